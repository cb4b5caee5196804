"""Data of any actions and of state vectors: stored, damaged, replayed and collected as data of one action and bytes is."""

import copy
import json
import random
import re
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import safetensors.numpy
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from test_data import equal, offsets, read

from tokenworld import forms
from tokenworld.action_space import Actions, of, space_of
from tokenworld.cli import main as cli
from tokenworld.cli.verbs import data as data_verb
from tokenworld.data import collection, meta
from tokenworld.data.collect import Collector, play_episode
from tokenworld.data.describe import describe
from tokenworld.data.episodes import EpisodeWriter, make_meta, read_meta
from tokenworld.data.record_format import Content, Episode
from tokenworld.data.replay import Replay
from tokenworld.errors import UserError
from tokenworld.exploration import random_act
from tokenworld.log import Log
from tokenworld.scores.returns import episode_returns
from tokenworld.training import build, restore

SAVED = Path(__file__).resolve().parent / "saved" / "0.1.0"
MULTI, BOX = Actions((3, 4)), Actions((), ((-2.0, 2.0), (0.25, 1.0)))
MIXED = Actions((3,), ((-1.0, 1.0),))
KINDS = {
    "several choices": (MULTI, "uint8"),
    "continuous": (BOX, "uint8"),
    "mixed": (MIXED, "float32"),
    "state vectors": (Actions((5,)), "float32"),
    "continuous control": (BOX, "float32"),
}


def frame_of(dtype: str) -> tuple[int, int, int]:
    return (1, 2, 3) if dtype == "uint8" else (4, 1, 1)


def meta_of(actions: Actions, dtype: str) -> dict:
    return make_meta(env_id="Test-v0", frame_shape=frame_of(dtype), frame_dtype=dtype, actions=actions, seed=7)


def episode_of(actions: Actions, dtype: str, n: int = 3, number: int = 0) -> Episode:
    rng = np.random.default_rng(number)
    shape = (n + 1, *frame_of(dtype))
    obs = rng.integers(0, 256, shape, np.uint8) if dtype == "uint8" else (100 * rng.standard_normal(shape)).astype(np.float32)
    action = actions.draw(torch.from_numpy(rng.random((n, actions.size)))).numpy()
    ends = np.arange(n) == n - 1
    return Episode(obs, action, rng.standard_normal(n).astype(np.float32), ends, ends & False, "train", 7)


def write(folder: Path, actions: Actions, dtype: str, numbers=range(3)) -> list[Episode]:
    episodes = [episode_of(actions, dtype, 3 + number, number) for number in numbers]
    with EpisodeWriter(folder, meta_of(actions, dtype)) as writer:
        for one in episodes:
            writer.append(one)
    return episodes


# --------------------------------------------------------------------------------------------------------------- on disk


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_read_is_what_was_written(kind, tmp_path):
    actions, dtype = KINDS[kind]
    episodes = write(tmp_path, actions, dtype) + write(tmp_path, actions, dtype, range(3, 5))
    there, damages = read(tmp_path)
    assert damages == [] and len(there) == 5 and all(equal(a, b) for a, b in zip(there, episodes, strict=True))
    assert all((a.obs.dtype, a.action.dtype) == (b.obs.dtype, b.action.dtype) for a, b in zip(there, episodes, strict=True))
    assert there[0].obs.flags.writeable and there[0].action.flags.aligned
    content = meta.content_of(read_meta(tmp_path))
    assert content == Content(frame_of(dtype), actions, dtype) and content.version == 2
    assert (meta.actions_of(read_meta(tmp_path)), meta.frame_dtype_of(read_meta(tmp_path))) == (actions, dtype)
    position = EpisodeWriter(tmp_path, meta_of(actions, dtype)).position()
    assert EpisodeWriter.open_at(tmp_path, position).episodes == 5
    assert describe(tmp_path)["problems"] == [] and json.dumps(describe(tmp_path))


def test_a_third_party_can_read_it(tmp_path):
    """A reader written from the module's documentation, with nothing of the library."""
    (one,) = write(tmp_path, MIXED, "float32", [1])
    data = (tmp_path / "episodes-00000.bin").read_bytes()
    magic, version, length, checksum = struct.unpack_from("<4sIQI", data, 0)
    assert (magic, version, checksum) == (b"TWEP", 2, zlib.crc32(data[20 : 20 + length]))
    tensors = safetensors.numpy.load(zlib.decompress(data[20 : 20 + length]))
    assert tensors["obs"].dtype == np.float32 and np.array_equal(tensors["obs"], one.obs)
    assert tensors["action"].dtype == np.float32 and np.array_equal(tensors["action"], one.action)
    told = json.loads((tmp_path / "meta.json").read_text())
    assert (told["version"], told["frame_dtype"], told["frame_shape"]) == (2, "float32", [4, 1, 1])
    assert told["actions"] == {"choices": [3], "bounds": [[-1.0, 1.0]]} and told["action_count"] is None
    assert set(one.action[:, 0]) <= {0.0, 1.0, 2.0}


def test_one_action_and_bytes_are_written_as_ever(tmp_path):
    """Against what version 0.1.0 wrote."""
    told = json.loads((SAVED / "episodes" / "meta.json").read_text())
    keys = ("env_id", "frame_shape", "action_meanings", "preprocessing", "seed")
    again = make_meta(**{key: told[key] for key in keys}, actions=told["action_count"])
    with EpisodeWriter(tmp_path, again) as writer:
        for one in read(SAVED / "episodes")[0]:
            writer.append(one)
    assert (tmp_path / "meta.json").read_bytes() == (SAVED / "episodes" / "meta.json").read_bytes()
    before, now = (folder / "episodes-00000.bin" for folder in (SAVED / "episodes", tmp_path))
    assert len(offsets(before)) == len(offsets(now)) > 20
    for ours, theirs in zip(records(now), records(before), strict=True):
        assert ours == theirs


def records(shard: Path) -> list[tuple]:
    """The version, the list of tensors and the rest of each record. How well it is compressed is the machine's, and the order
    of its metadata that of a hash."""
    data, found = shard.read_bytes(), []
    for at in offsets(shard):
        raw = zlib.decompressobj().decompress(data[at + 20 :])
        begin = 8 + struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8:begin])
        found.append((data[at + 4], header.pop("__metadata__"), list(header.items()), begin, raw[begin:]))
    return found


def test_state_vectors_with_one_action_keep_its_count_and_names(tmp_path):
    names = ["left", "right"]
    told = make_meta(env_id="X-v0", frame_shape=(4, 1, 1), frame_dtype="float32", actions=2, action_meanings=names)
    assert (told["version"], told["action_count"], told["actions"]) == (2, 2, {"choices": [2], "bounds": []})
    EpisodeWriter(tmp_path, told).close()
    assert read_meta(tmp_path) == told
    assert meta.meanings_of({"action_meanings": names}, Actions((2,), ((0.0, 1.0),))) is None


def test_the_longest_record_counts_all_bytes():
    assert Content((4, 1, 1), BOX, "float32").longest == (240 * 2**20 - 16) // (16 + 8 + 6)
    assert Content((1, 2, 3), Actions((5,))).longest == (240 * 2**20 - 6) // (6 + 14)


def test_an_episode_that_cannot_be_is_refused():
    good = episode_of(BOX, "float32")
    broken = np.where(np.arange(4).reshape(4, 1, 1, 1) == 2, np.float32(np.nan), good.obs)
    for change, said in (
        (dict(obs=broken), "frames must be finite .*step 2"),
        (dict(action=np.full((3, 2), np.inf, np.float32)), "actions must be finite .*step 0"),
        (dict(action=good.action.astype(np.float64)), r"must be \(3,\) int64 or \(3, A\) float32, got \(3, 2\) float64"),
        (dict(action=good.action[:, 0]), r"must be \(3,\) int64 or \(3, A\) float32, got \(3,\) float32"),
        (dict(action=good.action.astype(np.int64)), r"got \(3, 2\) int64"),
        (dict(obs=good.obs.astype(np.float64)), "uint8 or float32, got .* float64"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(good, **change)


def test_a_writer_takes_episodes_of_its_own_frames_and_actions_only(tmp_path):
    writer, good = EpisodeWriter(tmp_path / "data", meta_of(BOX, "float32")), episode_of(BOX, "float32")
    for change, said in (
        (dict(obs=good.obs.astype(np.uint8)), r"frames must be \(4, 1, 1\) float32 .*, got \(4, 1, 1\) uint8"),
        (dict(action=np.zeros(3, np.int64)), r"actions must be \(2,\) float32 .*, got \(\) int64"),
        (dict(action=good.action[:, :1]), r"actions must be \(2,\) float32 .*, got \(1,\)"),
        (dict(action=np.zeros((3, 2), np.float32)), r"actions must be in \(-2..2, 0.25..1\), got \(0, 0\)"),
    ):
        with pytest.raises(ValueError, match=said):
            writer.append(replace(good, **change))
    fractions = replace(episode_of(MIXED, "float32"), action=np.float32([[0, 0], [0.5, 0], [3, 0]]))
    with pytest.raises(ValueError, match=r"actions must be in \(0..2, -1..1\), got \(0.5, 0\)"):
        EpisodeWriter(tmp_path / "mixed", meta_of(MIXED, "float32")).append(fractions)


OTHERS = [
    (meta_of(Actions((), ((-2.0, 2.0), (0.25, 2.0))), "float32"), r"actions \(-2..2, 0.25..1\), got .* \(-2..2, 0.25..2\)"),
    (meta_of(Actions((4,)), "float32"), r"actions \(-2..2, 0.25..1\), got .* 0..3"),
    (meta_of(BOX, "float32") | {"frame_dtype": "uint8"}, "frame_dtype float32, got .* uint8"),
    (meta_of(BOX, "float32") | {"env_id": "Other-v0"}, "env_id Test-v0, got .* Other-v0"),
]


@pytest.mark.parametrize("other, said", OTHERS)
def test_other_frames_or_actions_are_another_data_set(other, said, tmp_path):
    write(tmp_path, BOX, "float32")
    with pytest.raises(UserError, match=said):
        EpisodeWriter(tmp_path, other)
    run = SimpleNamespace(meta=other, add=[].append, log=Log(None))
    if "env_id" in said:
        assert build.read_data(run, str(tmp_path))["train"] == 3
    else:
        with pytest.raises(UserError, match=said.replace("got .* ", "expected ") + ".*: set env.id=Test-v0"):
            build.read_data(run, str(tmp_path))


# ---------------------------------------------------------------------------------------------------------------- damage

FAULTS = [
    ("version", 1), ("version", 3), ("version", True), ("frame_dtype", None), ("frame_dtype", "float64"),
    ("frame_dtype", ["uint8"]), ("frame_shape", [2**31, 1, 1]), ("action_count", 3), ("action_count", 1),
    ("action_count", True), ("action_meanings", ["a", "b"]),
] + [
    ("actions", value)
    for value in (
        None, [], 3, {}, {"choices": []}, {"choices": [], "bounds": []}, {"choices": [3], "bounds": None},
        {"choices": [0], "bounds": []}, {"choices": [True, 2], "bounds": []}, {"choices": [3.0], "bounds": []},
        {"choices": [2**40, 2], "bounds": []}, {"choices": [2] * 1025, "bounds": []}, {"choices": ["3"], "bounds": []},
        {"choices": [], "bounds": [[0, 1]] * 1025}, {"choices": [], "bounds": [[1, 0]]}, {"choices": [], "bounds": [[0, 0]]},
        {"choices": [], "bounds": [[0]]}, {"choices": [], "bounds": [0, 1]}, {"choices": [], "bounds": [[0, "1"]]},
        {"choices": [], "bounds": [[0, 1e39]]}, {"choices": [], "bounds": [[0, 10**400]]},
        {"choices": [], "bounds": [[False, 1]]}, {"choices": [], "bounds": [[1, 1 + 1e-12]]},
    )
]  # fmt: skip


@pytest.mark.parametrize("key, value", FAULTS)
def test_a_meta_that_cannot_be_is_refused_in_one_sentence(key, value, tmp_path, capsys):
    write(tmp_path, BOX, "float32")
    told = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(told | {key: value}))
    assert cli.main(["data", "info", str(tmp_path)]) == 2
    said = capsys.readouterr()
    wanted = "action_count" if key == "version" and type(value) is int and value == 1 else key
    assert said.out == "" and said.err.count("\n") == 1 and wanted in said.err and len(said.err) < 500
    with pytest.raises(UserError, match=wanted):
        EpisodeWriter(tmp_path, meta_of(BOX, "float32"))


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_bounds_that_are_not_finite_are_refused(text, tmp_path):
    write(tmp_path, BOX, "float32")
    path = tmp_path / "meta.json"
    path.write_text(path.read_text().replace("2.0", text, 1))
    with pytest.raises(UserError, match="meta.json"):
        read_meta(tmp_path)


def test_version_2_is_refused_where_version_1_would_do(tmp_path):
    told = make_meta(env_id="X-v0", frame_shape=(1, 2, 3), actions=4)
    told |= {"version": 2, "frame_dtype": "uint8", "actions": {"choices": [4], "bounds": []}}
    with pytest.raises(UserError, match="version must be 1 for such frames and actions, got 2"):
        EpisodeWriter(tmp_path, told)


HEADER = {
    "__metadata__": {"episode": "0", "split": "train", "seed": "7"},
    "obs": {"dtype": "F32", "shape": [3, 1, 1, 1], "data_offsets": [0, 12]},
    "action": {"dtype": "F32", "shape": [2, 2], "data_offsets": [12, 28]},
    "reward": {"dtype": "F32", "shape": [2], "data_offsets": [28, 36]},
    "terminated": {"dtype": "BOOL", "shape": [2], "data_offsets": [36, 38]},
    "truncated": {"dtype": "BOOL", "shape": [2], "data_offsets": [38, 40]},
}


def stored(header=HEADER, obs=(0, 1, 2), action=(0, -1, 2, 1), reward=(0, 0), version=2) -> bytes:
    text = json.dumps(header).encode()
    payload = zlib.compress(struct.pack("<Q", len(text)) + text + struct.pack("<3f4f2f4x", *obs, *action, *reward), 1)
    return struct.pack("<4sIQI", b"TWEP", version, len(payload), zlib.crc32(payload)) + payload


def changed(**tensors) -> bytes:
    return stored(HEADER | {name: HEADER[name] | entry for name, entry in tensors.items()})


NAN, INF = float("nan"), float("inf")
DAMAGES = {
    "frames that are NaN": (stored(obs=(0, NAN, 0)), "frames must be finite numbers, got nan at step 1"),
    "infinite frames": (stored(obs=(0, 0, -INF)), "frames must be finite numbers, got -inf at step 2"),
    "rewards that are NaN": (stored(reward=(0, NAN)), "rewards must be finite"),
    "actions that are NaN": (stored(action=(0, 0, 1, NAN)), r"actions are \(1, nan\), meta.json says \(0..2, -1..1\)"),
    "choices that are NaN": (stored(action=(NAN, 0, 1, 0)), r"actions are \(nan, 0\), meta.json says"),
    "infinite choices": (stored(action=(0, 0, INF, 0)), r"actions are \(inf, 0\), meta.json says"),
    "fractions of choices": (stored(action=(0, 0, 0.5, 0)), r"actions are \(0.5, 0\), meta.json says"),
    "too large choices": (stored(action=(3, 0, 0, 0)), r"actions are \(3, 0\), meta.json says"),
    "huge choices": (stored(action=(-3e38, 0, 0, 0)), r"meta.json says"),
    "out of bounds": (stored(action=(0, 0, 0, 1.5)), r"actions are \(0, 1.5\), meta.json says"),
    "frames of bytes": (changed(obs=dict(dtype="U8")), "its tensors are not"),
    "frames of halves": (changed(obs=dict(dtype="F16")), "its tensors are not"),
    "whole actions": (changed(action=dict(dtype="I64")), "its tensors are not"),
    "actions of one part": (changed(action=dict(shape=[2])), "its tensors are not"),
    "actions of three parts": (changed(action=dict(shape=[2, 3])), "its tensors are not"),
    "a huge number of actions": (changed(action=dict(shape=[2**60, 2])), "its tensors are not"),
    "another frame": (changed(obs=dict(shape=[3, 1, 1, 2])), r"meta.json says \(1, 1, 1\)"),
    "a record of version 1": (stored(version=1), "record version 1, expected 2"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_record_that_no_episode_can_be_is_damage(name, tmp_path):
    record, reason = DAMAGES[name]
    EpisodeWriter(tmp_path, make_meta(env_id="X-v0", frame_shape=(1, 1, 1), frame_dtype="float32", actions=MIXED)).close()
    (tmp_path / "episodes-00000.bin").write_bytes(stored() + record + stored())
    there, damages = read(tmp_path)
    assert [one.action.tolist() for one in there] == [[[0, -1], [2, 1]]] * 2, "what lies around it is read"
    assert len(damages) == 1 and damages[0].kind == "corrupt" and re.search(reason, str(damages[0])), damages


def test_records_of_version_2_in_a_data_set_of_version_1_are_damage(tmp_path):
    EpisodeWriter(tmp_path, make_meta(env_id="X-v0", frame_shape=(1, 1, 1), actions=3)).close()
    (tmp_path / "episodes-00000.bin").write_bytes(stored() + stored())
    there, damages = read(tmp_path)
    assert there == [] and [str(d).count("record version 2, expected 1") for d in damages] == [1, 1]


def test_any_list_of_tensors_and_any_numbers_are_survived(tmp_path):
    """One value changed in type, sign, size or absence, or one byte of the arrays, 400 times: an episode or one damage."""
    rng = random.Random(0)
    EpisodeWriter(tmp_path, make_meta(env_id="X-v0", frame_shape=(1, 1, 1), frame_dtype="float32", actions=MIXED)).close()
    shard = tmp_path / "episodes-00000.bin"
    wild = [None, True, -1, 0, 2**31, 2**63, 1e300, 0.5, "", "F32", [], {}, [1], [2, 2**64]]
    numbers = [0.0, 1.0, -1.0, 0.3, 2.5, NAN, INF, -INF, 1e-45, 3e38]
    for _ in range(400):
        header = copy.deepcopy(HEADER)
        inner = rng.choice([header, *header.values(), *[entry.get("shape", entry) for entry in header.values()]])
        key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
        inner[key] = rng.choice([inner[key], *wild])
        good = ((0, 1, 2), (0, -1, 2, 1), (0, 0))
        values = [[rng.choice(numbers) if rng.random() < 0.1 else x for x in part] for part in good]
        shard.write_bytes(stored() + stored(header, *values))
        there, damages = read(tmp_path)
        assert len(there) + len(damages) == 2 and there[0].action.tolist() == [[0, -1], [2, 1]]
        assert all(MIXED.contains(torch.from_numpy(one.action)).all() and np.isfinite(one.obs).all() for one in there)


def test_numbers_that_are_not_aligned_are_read(tmp_path):
    """Frames of bytes before float actions: where those begin is a multiple of nothing."""
    one = episode_of(BOX, "uint8", 4)
    header, body, at = {"__metadata__": {"episode": "0", "split": "train", "seed": "7"}}, b"", 0
    for name, kind in (("truncated", "BOOL"), ("obs", "U8"), ("terminated", "BOOL"), ("action", "F32"), ("reward", "F32")):
        array = getattr(one, name)
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        body, at = body + array.tobytes(), at + array.nbytes
    text = json.dumps(header).encode()
    payload = zlib.compress(struct.pack("<Q", len(text)) + text + body)
    EpisodeWriter(tmp_path, meta_of(BOX, "uint8")).close()
    shard = tmp_path / "episodes-00000.bin"
    shard.write_bytes(struct.pack("<4sIQI", b"TWEP", 2, len(payload), zlib.crc32(payload)) + payload)
    (again,), damages = read(tmp_path)
    assert damages == [] and equal(again, one) and again.action.flags.aligned


# ---------------------------------------------------------------------------------------------------------------- replay


@pytest.mark.parametrize("kind", KINDS)
def test_a_replay_keeps_frames_and_actions_as_they_are(kind):
    actions, dtype = KINDS[kind]
    replay, episodes = Replay(capacity=40), [episode_of(actions, dtype, 6, number) for number in range(20)]
    for one in episodes:
        replay.add(one)
    last = episodes[-replay.episodes :]
    rows = np.arange(replay.rows)[None]
    steps = replay.gather(rows)
    assert (steps.obs.dtype, steps.action.dtype) == (getattr(torch, dtype), actions.dtype)
    assert np.array_equal(steps.obs[0].numpy(), np.concatenate([one.obs for one in last]))
    assert np.array_equal(steps.action[steps.acted].numpy(), np.concatenate([one.action for one in last]))
    assert not steps.action[~steps.acted].any() and steps.action.shape == (1, replay.rows, *actions.row)
    empty = replay.gather(rows, frames=False)
    assert empty.obs.shape == (1, replay.rows, 0, 0, 0) and empty.obs.dtype == steps.obs.dtype
    seen = [steps for steps, _ in replay.windows(4, 3)]
    assert torch.equal(torch.cat([steps.action[steps.valid] for steps in seen]), steps.action[0])
    assert any(not steps.valid.all() for steps in seen) and not any(steps.action[~steps.valid].any() for steps in seen)
    sampled = next(replay.batches(1, 5, 3, np.random.default_rng(0)))[0]
    assert sampled.action.shape == (5, 3, *actions.row) and sampled.obs.dtype == steps.obs.dtype


def test_a_replay_holds_episodes_of_one_kind():
    replay = Replay()
    replay.add(episode_of(BOX, "float32"))
    vectors = episode_of(BOX, "float32")
    for other, said in (
        (replace(vectors, obs=vectors.obs.astype(np.uint8)), r"frames must be \(4, 1, 1\) float32, got \(4, 1, 1\) uint8"),
        (episode_of(BOX, "uint8"), r"frames must be \(4, 1, 1\) float32, got \(1, 2, 3\) uint8"),
        (episode_of(Actions((5,)), "float32"), r"actions must be \(2,\) float32, got \(\) int64"),
        (episode_of(Actions((3, 4, 5)), "float32"), r"actions must be \(2,\) float32, got \(3,\)"),
    ):
        with pytest.raises(ValueError, match=said):
            replay.add(other)
    assert replay.episodes == 1


# ------------------------------------------------------------------------------------------------------------ collecting


class Drift(VectorEnv):
    """N rows of games on rows of actions: obs (3, 1, 1) float32 = (step, the sum of what was done, the last action's first
    number); game g of row i lasts i + 2 + g % 3 steps. The step after an end ignores its action."""

    def __init__(self, num_envs: int = 3, actions: Actions = MIXED, drift: float = 0.0) -> None:
        self.num_envs, self.drift = num_envs, drift
        self.single_action_space = space_of(actions)
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3, 1, 1), np.float32)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.sent: list[np.ndarray] = []
        self.ignored: list[list[float]] = []

    def reset(self, *, seed=None, options=None):
        self.game, self.over = np.zeros(self.num_envs, int), np.zeros(self.num_envs, bool)
        self.state = np.zeros((self.num_envs, 3), np.float32)
        self.state[:, 1] = np.random.default_rng(seed).random(self.num_envs)
        return self.state.reshape(-1, 3, 1, 1).copy(), {}

    def step(self, actions):
        assert actions.dtype == np.float32 and actions.shape == (self.num_envs, of(self.single_action_space).size)
        assert of(self.single_action_space).contains(torch.from_numpy(actions)).all()
        self.sent.append(actions.copy())
        self.ignored += actions[self.over].tolist()
        over, total = self.over, self.state[:, 1] * 0.9 + actions.sum(1) + self.drift
        new = np.stack([self.state[:, 0] + 1, total, actions[:, 0]], 1).astype(np.float32)
        self.state = np.where(over[:, None], np.float32([0, 0.5, 99]), new)
        self.game = self.game + over
        self.over = done = ~over & (self.state[:, 0] == np.arange(self.num_envs) + 2 + self.game % 3)
        reward = np.where(over, 0, self.state[:, 1]).astype(np.float32)
        return self.state.reshape(-1, 3, 1, 1).copy(), reward, done & (self.game % 2 == 0), done & (self.game % 2 == 1), {}


def policy(actions: Actions, seed: int):
    """Depends on all it sees."""
    rng = np.random.default_rng(seed)

    def act(obs, first):
        assert obs.dtype == torch.float32 and obs.shape[1:] == (3, 1, 1)
        noise = torch.from_numpy(rng.random((len(obs), actions.size))).float()
        return actions.draw((noise + obs.flatten(1).sum(1, keepdim=True).sin().abs() + 0.1 * first[:, None]) % 1)

    return act


@pytest.mark.parametrize("actions", [MIXED, BOX, MULTI], ids=["mixed", "continuous", "choices"])
def test_collecting_continues_bit_for_bit(actions):
    whole: list[Episode] = []
    collector = Collector(env := Drift(actions=actions), seed=4, on_episode=whole.append)
    collector.collect(60, policy(actions, 0))
    collector.cut(at_least=2)
    collector.collect(20, policy(actions, 1))
    state = collector.state_dict()
    assert state["actions"].dtype == np.float32 and state["actions"].shape[1:] == (3, actions.size)
    assert np.array_equal(state["actions"], np.stack(env.sent))
    idle = [0.0] * len(actions.choices) + [min(max(0.0, low), high) for low, high in actions.bounds]
    assert len(env.ignored) > 5 and all(row == idle for row in env.ignored), "0, or what is nearest to it"
    before, recent = len(whole), collector.recent(4)
    stats = collector.collect(50, policy(actions, 2))
    collector.cut()
    for one in whole:
        assert one.obs.dtype == one.action.dtype == np.float32 and one.action.shape == (one.steps, actions.size)
        assert np.array_equal(one.obs[1:, 2, 0, 0], one.action[:, 0]), "obs[t+1] came from action[t]"

    resumed: list[Episode] = []
    again = Collector(Drift(actions=actions), seed=4, on_episode=resumed.append)
    saved = {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in state.items()}
    forms.check(saved, restore.COLLECTOR, "state.pt")
    assert again.load_state_dict(restore.collector_state({"collector": saved})) is None and resumed == []
    assert all(np.array_equal(again.state_dict()[key], state[key]) for key in state)
    assert all(torch.equal(a, b) for a, b in zip(vars(again.recent(4)).values(), vars(recent).values(), strict=True))
    assert again.collect(50, policy(actions, 2)) == stats
    again.cut()
    assert len(resumed) == len(whole) - before > 0
    assert all(equal(a, b) for a, b in zip(resumed, whole[before:], strict=True))


def test_games_that_are_others_are_dropped():
    collector = Collector(Drift(), seed=0, on_episode=lambda one: None)
    collector.collect(50, policy(MIXED, 0))
    state = collector.state_dict()
    for env, said in (
        (Drift(drift=0.001), "gave other frames or rewards"),
        (Drift(2), "of 3 games and there are 2 now"),
        (Drift(actions=Actions((3, 4, 5))), r"have shape \(2,\) and those of the environment have \(3,\) now"),
        (Drift(actions=Actions((3,), ((-0.5, 0.5),))), r"a saved action is \(.*\) and actions are \(0..2, -0.5..0.5\) now"),
    ):
        assert re.search(said, Collector(env, seed=0, on_episode=print).load_state_dict(state))


def test_what_was_done_lately_is_rows_of_actions():
    collector = Collector(env := Drift(2), seed=0, on_episode=lambda one: None)
    collector.collect(4, policy(MIXED, 0))
    recent = collector.recent(3)
    assert recent.action.dtype == torch.float32 and recent.action.shape == (2, 3, 2)
    assert np.array_equal(recent.action[1, :2].numpy(), np.stack(env.sent)[:, 1]) and not recent.action[:, 2].any()
    assert recent.obs.dtype == torch.float32


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_action_that_is_no_number_is_one_sentence(value):
    collector = Collector(Drift(), seed=0, on_episode=print)

    def act(obs, first):
        action = policy(MIXED, 0)(obs, first)
        action[1, 1] = value
        return action

    with pytest.raises(UserError, match=r"the policy's action in game 1 is \[\d.0, (nan|inf)\], expected .* \(0..2, -1..1\)"):
        collector.collect(1, act)
    assert collector.steps == 0


def test_actions_of_another_shape_or_outside_are_refused():
    for N, action, said in (
        (3, torch.zeros(3, dtype=torch.int64), r"of shape \(3, 2\), got \(3,\)"),
        (2, torch.zeros(2), r"of shape \(2, 2\), got \(2,\)"),  # which could pass for one row for all games
        (3, torch.full((3, 2), 1.5), r"in \(0..2, -1..1\), got \(1.5, 1.5\)"),
    ):
        with pytest.raises(ValueError, match=said):
            Collector(Drift(N), seed=0, on_episode=print).collect(1, lambda obs, first, action=action: action)


def test_random_play_with_rows_is_collected_scored_and_described(tmp_path, capsys):
    told = make_meta(env_id="Drift-v0", frame_shape=(3, 1, 1), frame_dtype="float32", actions=BOX)
    command, wanted = {"seed": 0}, {"train": 60, "test": 30}
    held = collection.collect_episodes(tmp_path, lambda N: Drift(N, BOX), told, command, wanted, Log(None))
    assert held["train"] >= 60 and held["test"] >= 30 and describe(tmp_path)["problems"] == []
    data_verb.run(str(tmp_path))
    said = capsys.readouterr().out.splitlines()[0]
    assert "Drift-v0, state vectors of 3 numbers, actions of 2 continuous parts (-2..2, 0.25..1)" in said
    returns, lengths = episode_returns(Drift(3, BOX), random_act(BOX, np.random.default_rng(0)), 9, seed=0)
    assert len(returns) == 9 and lengths.min() >= 2 and np.isfinite(returns).all() and np.ptp(returns) > 0
    steps = play_episode(Drift(1, BOX), random_act(BOX, np.random.default_rng(0)), seed=0)
    assert steps.action.shape == (1, 3, 2) and not steps.action[0, 2].any()


def test_a_meta_follows_the_environment(tmp_path):
    cfg = {"env": {"_target_": "x", "id": "Drift-v0", "gravity": 9.8}}
    told = build.meta_of(cfg, Drift(2), 3)
    assert (told["frame_dtype"], told["frame_shape"], told["preprocessing"]) == ("float32", [3, 1, 1], {"gravity": 9.8})
    assert meta.actions_of(told) == MIXED and told["version"] == 2
    collector = Collector(Drift(2), seed=3, on_episode=EpisodeWriter(tmp_path, told).append)
    collector.collect(30, random_act(MIXED, np.random.default_rng(0)))
    assert sum(one.steps for one in read(tmp_path)[0]) > 20


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda log: log[..., :1], r"has actions of shape \(1,\), the environment has \(2,\)"),
        (lambda log: log[..., 0].astype(np.int64), r"has actions of shape \(\), the environment has \(2,\)"),
        (lambda log: log * np.float32(np.nan), r"has actions \(nan, nan\), the environment has \(0..2, -1..1\)"),
        (lambda log: log + np.float32(3), r"the environment has \(0..2, -1..1\)"),
    ],
)
def test_a_saved_log_of_other_actions_is_refused(change, said):
    collector = Collector(Drift(), seed=0, on_episode=lambda one: None)
    collector.collect(30, policy(MIXED, 0))
    state = {key: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for key, x in collector.state_dict().items()}
    restore._check_games({"collector": state}, MIXED, Path("state.pt"))
    with pytest.raises(UserError, match=said):
        state["actions"] = torch.from_numpy(change(state["actions"].numpy()))
        restore._check_games({"collector": state}, MIXED, Path("state.pt"))
    with pytest.raises(UserError, match="state.pt is damaged, actions must be"):
        forms.check(state | {"actions": torch.zeros(3, 3, 2, dtype=torch.float64)}, restore.COLLECTOR, "state.pt")
