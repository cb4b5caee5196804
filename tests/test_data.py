"""Data: what was played is what is stored and what is sampled; damage is survived and reported; resuming is exact."""

import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv

from tokenworld.data.collect import Collector
from tokenworld.data.describe import describe
from tokenworld.data.episodes import Damage, Episode, EpisodeWriter, make_meta, read_episodes, read_meta
from tokenworld.data.replay import Replay
from tokenworld.envs import atari, gym, minatar
from tokenworld.errors import UserError
from tokenworld.exploration import random_act
from tokenworld.interfaces import Codes, Steps

META = make_meta(env_id="Test-v0", frame_shape=(1, 2, 3), actions=5, seed=7)


def episode(n: int, number: int = 0, split: str = "train") -> Episode:
    """Frame t of episode `number` holds (number, t, ...); action t is t % 5, reward 100 number + t."""
    obs = np.zeros((n + 1, 1, 2, 3), np.uint8)
    obs[:, 0, 0, 0], obs[:, 0, 0, 1] = number, np.arange(n + 1)
    obs[:, 0, 1] = np.random.default_rng(number).integers(0, 256, (n + 1, 3))
    ends = np.zeros(n, bool)
    ends[-1] = True
    return Episode(
        obs=obs,
        action=np.arange(n) % 5,
        reward=(100 * number + np.arange(n)).astype(np.float32),
        terminated=ends if number % 2 == 0 else ends & False,
        truncated=ends if number % 2 == 1 else ends & False,
        split=split,
        seed=7,
    )


def equal(one: Episode, two: Episode) -> bool:
    arrays = ("obs", "action", "reward", "terminated", "truncated")
    return one.split == two.split and all(np.array_equal(getattr(one, a), getattr(two, a)) for a in arrays)


def write(directory: Path, numbers, **keywords) -> list[Episode]:
    episodes = [episode(3 + number, number, "test" if number % 3 == 2 else "train") for number in numbers]
    with EpisodeWriter(directory, META, **keywords) as writer:
        for one in episodes:
            writer.append(one)
    return episodes


def read(directory: Path, split: str | None = None) -> tuple[list[Episode], list[Damage]]:
    damages: list[Damage] = []
    return list(read_episodes(directory, split, damages.append)), damages


def offsets(shard: Path) -> list[int]:
    """Where records begin, read by the documentation alone."""
    data, at, found = shard.read_bytes(), 0, []
    while at < len(data):
        assert data[at : at + 4] == b"TWEP"
        found.append(at)
        at += 20 + struct.unpack("<Q", data[at + 8 : at + 16])[0]
    return found


# ------------------------------------------------------------------------------------------------------------- on disk


def test_round_trip_splits_rotation_and_appending(tmp_path):
    one = write(tmp_path, range(6), shard_bytes=600)
    two = write(tmp_path, range(6, 9), shard_bytes=600)
    episodes, damages = read(tmp_path)
    assert damages == [] and len(episodes) == 9
    assert all(equal(a, b) for a, b in zip(episodes, one + two, strict=True))
    assert [e.seed for e in episodes] == [7] * 9
    assert len(list(tmp_path.glob("episodes-*.bin"))) > 2
    for split in ("train", "test"):
        there = [e for e in one + two if e.split == split]
        assert all(equal(a, b) for a, b in zip(read(tmp_path, split)[0], there, strict=True))
    assert episodes[3].steps == 6 and episodes[3].episode_return == sum(range(300, 306))


def test_a_third_party_can_read_it(tmp_path):
    """A reader written from the module's documentation, with nothing of the library."""
    import safetensors.numpy

    (one, two) = write(tmp_path, [1, 2])
    data = (tmp_path / "episodes-00000.bin").read_bytes()
    magic, version, length, checksum = struct.unpack_from("<4sIQI", data, 0)
    payload = data[20 : 20 + length]
    assert (magic, version, checksum) == (b"TWEP", 1, zlib.crc32(payload))
    raw = zlib.decompress(payload)
    tensors = safetensors.numpy.load(raw)
    assert np.array_equal(tensors["obs"], one.obs) and tensors["obs"].dtype == np.uint8
    assert np.array_equal(tensors["action"], one.action) and tensors["action"].dtype == np.int64
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    assert header["__metadata__"] == {"episode": "0", "split": "train", "seed": "7"}
    assert data[20 + length : 24 + length] == b"TWEP" and len(data) > 20 + length
    assert json.loads((tmp_path / "meta.json").read_text())["frame_shape"] == [1, 2, 3]


@pytest.mark.parametrize("kept", [1, 19, 20, 21, -1])
def test_torn_tail_is_reported_then_cut(tmp_path, kept):
    episodes = write(tmp_path, range(3))
    shard = tmp_path / "episodes-00000.bin"
    last, size = offsets(shard)[-1], shard.stat().st_size
    os.truncate(shard, last + kept if kept > 0 else size + kept)
    there, damages = read(tmp_path)
    assert [d.kind for d in damages] == ["torn"] and damages[0].file == shard and damages[0].offset == last
    assert all(equal(a, b) for a, b in zip(there, episodes[:2], strict=True))
    with pytest.warns(UserWarning, match="torn record at byte"), EpisodeWriter(tmp_path, META) as writer:
        assert writer.episodes == 2 and shard.stat().st_size == last
        writer.append(episode(4, 9))
    there, damages = read(tmp_path)
    assert damages == [] and len(there) == 3 and equal(there[2], episode(4, 9))


# damaged: a byte of the payload, of the checksum, of the magic, of the version, of the length (too small, too big)
@pytest.mark.parametrize("where, value", [(40, None), (16, None), (0, None), (4, None), (8, 3), (12, 255)])
def test_flipped_byte_in_the_middle_costs_one_episode(tmp_path, where, value):
    episodes = write(tmp_path, range(5))
    shard = tmp_path / "episodes-00000.bin"
    data, at = bytearray(shard.read_bytes()), offsets(shard)
    data[at[2] + where] = data[at[2] + where] ^ 0x55 if value is None else value
    shard.write_bytes(data)
    there, damages = read(tmp_path)
    assert [e.obs[0, 0, 0, 0] for e in there] == [0, 1, 3, 4]
    assert all(equal(a, b) for a, b in zip(there, episodes[:2] + episodes[3:], strict=True))
    assert [(d.kind, d.offset, d.length) for d in damages] == [("corrupt", at[2], at[3] - at[2])]
    assert str(shard) in str(damages[0])
    info = describe(tmp_path)
    assert info["corrupt"] == 1 and info["episodes"] == 4 and str(shard) in info["damage"][0]
    with pytest.warns(UserWarning, match="corrupt record"):  # never silent
        list(read_episodes(tmp_path))
    size = shard.stat().st_size
    with EpisodeWriter(tmp_path, META) as writer:  # appending goes on behind it
        writer.append(episode(4, 9))
    assert shard.stat().st_size > size and len(read(tmp_path)[0]) == 5


def test_damages_are_counted_one_by_one(tmp_path):
    """Two damaged neighbours are two; a magic by chance inside a record whose length is lost makes one not into two."""
    write(tmp_path, range(5))
    shard = tmp_path / "episodes-00000.bin"
    clean, at = shard.read_bytes(), offsets(shard)
    data = bytearray(clean)
    data[at[1] + 40] ^= 1
    data[at[2] + 40] ^= 1
    shard.write_bytes(data)
    assert [d.offset for d in read(tmp_path)[1]] == at[1:3]
    data = bytearray(clean)
    data[at[1] + 12] = 255
    data[at[1] + 30 : at[1] + 34] = b"TWEP"
    shard.write_bytes(data)
    assert [(d.offset, d.length) for d in read(tmp_path)[1]] == [(at[1], at[2] - at[1])]


def test_intact_record_of_another_kind_is_reported(tmp_path):
    """Right checksum, wrong content: not zlib, frames of another shape."""
    write(tmp_path, [0])
    shard = tmp_path / "episodes-00000.bin"
    for payload in (b"not zlib at all", zlib.compress(b"\x00" * 100), zlib.compress(b"{}")):
        with open(shard, "ab") as file:
            file.write(struct.pack("<4sIQI", b"TWEP", 1, len(payload), zlib.crc32(payload)) + payload)
    there, damages = read(tmp_path)
    assert len(there) == 1 and [d.kind for d in damages] == ["corrupt"] * 3
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps({**meta, "frame_shape": [1, 3, 2]}))
    there, damages = read(tmp_path)
    assert there == [] and "meta.json says (1, 3, 2)" in str(damages[0])


def test_any_damage_is_survived(tmp_path):
    """Random bytes flipped, cut out and inserted: never a crash, never silent, intact episodes come back unchanged."""
    episodes = write(tmp_path, range(6))
    shard = tmp_path / "episodes-00000.bin"
    clean, rng = shard.read_bytes(), np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(clean)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(len(data)))
            match rng.integers(3):
                case 0:
                    data[at] ^= int(rng.integers(1, 256))
                case 1:
                    del data[at : at + int(rng.integers(1, 50))]
                case 2:
                    data[at:at] = rng.bytes(10) + b"TWEP"
        shard.write_bytes(data)
        there, damages = read(tmp_path)
        numbers = [int(e.obs[0, 0, 0, 0]) for e in there]
        assert damages and 2 <= len(there) < 7 and numbers == sorted(set(numbers))
        assert all(equal(e, episodes[number]) for e, number in zip(there, numbers, strict=True))


def test_position_and_open_at(tmp_path):
    with EpisodeWriter(tmp_path, META, shard_bytes=600) as writer:
        for number in range(3):
            writer.append(episode(5, number))
        position = json.loads(json.dumps(writer.position()))
        bytes_then = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        for number in range(3, 12):
            writer.append(episode(5, number))
    assert len(list(tmp_path.glob("*.bin"))) > len([n for n in bytes_then if n.endswith(".bin")])
    with EpisodeWriter.open_at(tmp_path, position, shard_bytes=600) as writer:
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == bytes_then
        assert writer.position() == position and writer.episodes == 3
        writer.append(episode(5, 40))
    there, damages = read(tmp_path)
    assert damages == [] and [int(e.obs[0, 0, 0, 0]) for e in there] == [0, 1, 2, 40]
    os.truncate(tmp_path / "episodes-00000.bin", 10)
    with pytest.raises(UserError, match="has 10 bytes, expected at least"):
        EpisodeWriter.open_at(tmp_path, {**position, "shard": 0})


def test_killed_writer(tmp_path):
    """SIGKILL in the middle of writing: what was appended is there, the position before it can be gone back to."""
    code = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]!r}
from test_data import META, episode
from tokenworld.data.episodes import EpisodeWriter
writer = EpisodeWriter({str(tmp_path)!r}, META)
print(writer.position(), flush=True)
for number in range(10**6):
    writer.append(episode(50, number % 250))
    print(number, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    position = json.loads(process.stdout.readline().replace("'", '"'))
    for line in process.stdout:
        if int(line) == 20:
            break
    process.send_signal(signal.SIGKILL)
    last = int(([line, *process.stdout.readlines()])[-1])
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    there, damages = read(tmp_path)
    assert len(there) >= last + 1 and all(d.kind == "torn" for d in damages) and len(damages) <= 1
    assert all(equal(e, episode(50, number % 250)) for number, e in enumerate(there))
    with EpisodeWriter.open_at(tmp_path, position) as writer:
        writer.append(episode(3, 1))
    assert [e.steps for e in read(tmp_path)[0]] == [3]


def test_describe(tmp_path):
    write(tmp_path, range(4))  # steps 3, 4, 5 (test), 6
    info = describe(tmp_path)
    assert (info["episodes"], info["steps"], info["frame_shape"], info["action_count"]) == (4, 18, [1, 2, 3], 5)
    train, test = info["splits"]["train"], info["splits"]["test"]
    assert (train["episodes"], train["steps"], test["episodes"], test["steps"]) == (3, 13, 1, 5)
    assert train["terminated"] == 1 and test["terminated"] == 1
    returns = [3, 100 + 101 + 102 + 103, sum(range(300, 306))]
    assert (train["return_min"], train["return_max"]) == (3, returns[2]) and train["return_mean"] == np.mean(returns)
    assert info["bytes"] == (tmp_path / "episodes-00000.bin").stat().st_size and info["corrupt"] == info["torn"] == 0
    json.dumps(info)


def test_folders_that_are_no_data_set(tmp_path):
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "meta.json").write_text("[]")
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "meta.json").write_text("hello")
    (tmp_path / "empty").mkdir()
    for name in ("list", "text", "empty", "absent"):
        for reader in (describe, read_meta, read_episodes):
            with pytest.raises(UserError, match="is not a data set"):
                reader(tmp_path / name)
    write(tmp_path / "data", [0])
    with pytest.raises(UserError, match="action_count 5, got episodes with 6"):
        EpisodeWriter(tmp_path / "data", {**META, "action_count": 6})
    with pytest.raises(UserError, match="split must be train or test"):
        read_episodes(tmp_path / "data", "valid")
    meta = json.loads((tmp_path / "data" / "meta.json").read_text())
    (tmp_path / "data" / "meta.json").write_text(json.dumps({**meta, "version": 3}))
    with pytest.raises(UserError, match="version 3, expected 1 or 2"):
        describe(tmp_path / "data")


# -------------------------------------------------------------------------------------------------------------- replay


def filled(lengths, **keywords) -> Replay:
    replay = Replay(**keywords)
    for number, n in enumerate(lengths):
        replay.add(episode(n, number))
    return replay


class Enumerate:
    """In place of a generator: `integers` returns each number once, in order."""

    def integers(self, low, high, size):
        assert (low, size) == (0, high)
        return np.arange(high)


def test_each_row_is_equally_likely_at_each_place():
    """Exact: going once through all random numbers hits each row (each acted row) once, at each place of the window."""
    replay = filled([2, 5, 1, 3])
    assert (replay.rows, replay.steps, replay.episodes) == (15, 11, 4)
    for length in (1, 4, 20):
        steps, rows = replay.sample(15, length, Enumerate())
        for place in range(length):
            assert sorted(rows[:, place]) == list(range(15))
        assert (np.diff(rows, axis=1) % 15 == 1).all() and steps.obs.shape == (15, length, 1, 2, 3)
    steps, rows = replay.sample(11, 4, Enumerate(), ends="acted")
    assert sorted(rows[:, -1]) == [row for row in range(15) if row not in (2, 8, 10, 14)]
    assert steps.acted[:, -1].all()
    replay.add(episode(2, 9))  # what came later is sampled, too
    _, rows = replay.sample(13, 2, Enumerate(), ends="acted")
    assert sorted(rows[:, -1])[-3:] == [13, 15, 16]


def test_sampling_is_uniform_over_steps_not_episodes():
    """An episode of 90 steps and nine of 1: chi-square over 20,000 draws, far below its 0.001 quantile."""
    replay = filled([90] + [1] * 9)
    for ends, cells in (("any", 109), ("acted", 99)):
        _, rows = replay.sample(20000, 3, np.random.default_rng(1), ends)
        counts = np.bincount(rows[:, -1], minlength=109)
        expected = 20000 / cells
        chi = ((counts[counts > 0] - expected) ** 2 / expected).sum()
        assert (counts > 0).sum() == cells and chi < cells + 3.1 * np.sqrt(2 * cells), (ends, chi)


def test_rows_carry_what_belongs_together():
    replay = filled([2, 3])
    steps, rows = replay.sample(7, 9, Enumerate())
    at = rows.tolist().index([5, 6, 0, 1, 2, 3, 4, 5, 6])
    assert steps.obs[at, :, 0, 0, 0].tolist() == [1, 1, 0, 0, 0, 1, 1, 1, 1]
    assert steps.obs[at, :, 0, 0, 1].tolist() == [2, 3, 0, 1, 2, 0, 1, 2, 3]
    assert steps.action[at].tolist() == [2, 0, 0, 1, 0, 0, 1, 2, 0]
    assert steps.reward[at].tolist() == [102, 0, 0, 1, 0, 100, 101, 102, 0]
    assert steps.acted[at].tolist() == [True, False, True, True, False, True, True, True, False]
    assert steps.first[at].tolist() == [False, False, True, False, False, True, False, False, False]
    assert steps.terminated[at].tolist() == [False] * 3 + [True] + [False] * 5
    assert steps.truncated[at].tolist() == [True] + [False] * 6 + [True, False]
    assert steps.valid.all() and steps.obs.dtype == torch.uint8
    assert (steps.action.dtype, steps.reward.dtype) == (torch.int64, torch.float32)
    # where rows are not neighbours in one episode, the later one begins an episode
    number, t = steps.obs[..., 0, 0, 0].int(), steps.obs[..., 0, 0, 1].int()
    follows = (number[:, 1:] == number[:, :-1]) & (t[:, 1:] == t[:, :-1] + 1)
    assert torch.equal(~follows, steps.first[:, 1:])
    assert torch.equal(replay.frames(rows), steps.obs)
    assert replay.sample_frames(5, np.random.default_rng(0)).obs.shape == (5, 1, 1, 2, 3)


@pytest.mark.parametrize("capacity", [None, 40, 200])
def test_growth_and_capacity_against_a_plain_list(capacity):
    """300 episodes of random lengths against lists: the same rows, the oldest whole episodes gone, codes kept."""
    rng = np.random.default_rng(3)
    replay, kept = Replay(capacity=capacity), []
    for number in range(300):
        one = episode(int(rng.integers(1, 30)), number % 250)
        replay.add(one)
        kept.append(one)
        while capacity and sum(e.steps + 1 for e in kept) > capacity and len(kept) > 1:
            kept.pop(0)
        if number % 20 == 0 or number > 280:
            rows = np.arange(replay.rows)[None]
            steps = replay.gather(rows)
            obs = np.concatenate([e.obs for e in kept])
            assert (replay.rows, replay.steps, replay.episodes) == (len(obs), len(obs) - len(kept), len(kept))
            assert np.array_equal(steps.obs[0].numpy(), obs)
            assert steps.first[0].sum() == len(kept) and bool(steps.first[0, 0])
            assert np.array_equal(steps.reward[0, steps.acted[0]].numpy(), np.concatenate([e.reward for e in kept]))
            codes = replay.codes(rows, lambda s: Codes(s.obs[:, :, 0, 1].long()), version=0).indices
            assert np.array_equal(codes[0].numpy(), obs[:, 0, 1])
    replay.add(episode(250, 1))  # larger than the capacity: the newest is kept whole
    if capacity:
        assert replay.episodes == (1 if capacity <= 251 else 2) and replay.rows == 251


def test_codes_are_cached_and_exactly_the_stale_rows_encoded_again():
    replay = filled([4, 6, 1600])
    seen: list[int] = []

    def encode(offset):
        def call(steps: Steps):
            assert steps.obs.shape[1] == 1 and len(steps.obs) <= 1024 and steps.obs.shape[0] > 0
            seen.extend(np.concatenate([steps.obs[:, 0, 0, 1].numpy(), steps.obs[:, 0, 0, 0, :2].numpy()], 1).tolist())
            return Codes(steps.obs[:, :, 0, 1].long() * 256 + offset)  # (n, 1, 3)

        return call

    def expect(rows, offset):
        return replay.frames(rows)[:, :, 0, 1].long() * 256 + offset

    rows = np.array([[0, 1, 2], [1, 2, 3]])
    assert torch.equal(replay.codes(rows, encode(0), 0).indices, expect(rows, 0)) and len(seen) == 4
    assert len({tuple(key) for key in seen}) == 4
    seen.clear()
    more = np.array([[2, 3, 4], [4, 5, 6]])
    assert torch.equal(replay.codes(more, encode(0), 0).indices, expect(more, 0)) and len(seen) == 3  # rows 4, 5, 6
    seen.clear()
    assert torch.equal(replay.codes(rows, encode(9), 1).indices, expect(rows, 9)) and len(seen) == 4  # a new tokenizer
    seen.clear()
    assert torch.equal(replay.codes(more, encode(9), 1).indices, expect(more, 9)) and len(seen) == 3
    seen.clear()
    everything = np.arange(replay.rows)[None]
    assert torch.equal(replay.codes(everything, encode(9), 1).indices, expect(everything, 9))
    assert len(seen) == replay.rows - 7
    # saved and loaded: nothing is encoded again; new episodes are
    again = filled([4, 6, 1600])
    assert again.load_code_state(replay.code_state())
    seen.clear()
    assert torch.equal(again.codes(everything, encode(9), 1).indices, expect(everything, 9)) and seen == []
    again.add(episode(3, 5))
    again.codes(np.arange(again.rows)[None], encode(9), 1)
    assert len(seen) == 4
    assert not again.load_code_state(replay.code_state())  # of other rows: nothing is put back
    seen.clear()
    assert again.codes(everything, encode(9), 1).indices.shape == (1, replay.rows, 3) and seen == []


def test_batches_equal_sequential_sampling_and_leave_the_generator_there():
    replay = filled([20, 30, 7])
    one, two = np.random.default_rng(5), np.random.default_rng(5)
    for ends in ("any", "acted"):
        for steps, rows in replay.batches(7, 4, 5, one, ends):
            other, other_rows = replay.sample(4, 5, two, ends)
            assert np.array_equal(rows, other_rows) and torch.equal(steps.obs, other.obs)
            assert one.bit_generator.state == two.bit_generator.state
    for steps, rows in replay.batches(3, 4, 5, one, frames=False):
        other, other_rows = replay.sample(4, 5, two)
        assert np.array_equal(rows, other_rows) and torch.equal(steps.action, other.action)
        assert steps.obs.shape == (4, 5, 0, 0, 0)
    before = threading.active_count()
    generator = replay.batches(1000, 4, 5, one, prefetch=3)
    for _ in range(3):
        next(generator)
        replay.sample(4, 5, two)
    with pytest.raises(RuntimeError, match="no episode can be added"):
        replay.add(episode(3))
    generator.close()  # early: the thread ends, the generator stands where three batches leave it
    assert threading.active_count() == before and one.bit_generator.state == two.bit_generator.state
    replay.add(episode(3))


def test_batches_hand_over_exceptions():
    with pytest.raises(UserError, match="replay is empty"):
        list(Replay().batches(3, 2, 2, np.random.default_rng(0)))
    with pytest.raises(UserError, match="capacity must be at least 2"):
        Replay(capacity=0)


def test_windows_cover_all_rows_once_in_order():
    replay = filled([3, 2, 5])  # 13 rows
    for batch in (1, 2):
        seen, valid = [], []
        for steps, rows in replay.windows(4, batch):
            assert rows.shape[1] == 4 and len(rows) <= batch
            seen += rows[steps.valid.numpy()].tolist()
            valid += steps.valid.flatten().tolist()
            assert not (steps.acted | steps.first | steps.terminated)[~steps.valid].any()
        assert seen == list(range(13)) and valid == [True] * 13 + [False] * 3


# ---------------------------------------------------------------------------------------------------------- collecting


class Counter(VectorEnv):
    """N rows; obs (1, 1, 3) = (game, step, last action taken in it); row i's game g lasts i + 2 + g % 3 steps.

    The reward of a step is 10 step + action; games end by termination and by truncation in turn. The step after an end
    ignores its action: it returns (game + 1, 0, 99).
    """

    def __init__(self, num_envs: int = 3) -> None:
        self.num_envs = num_envs
        self.single_action_space = gymnasium.spaces.Discrete(5)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def reset(self, *, seed=None, options=None):
        self.game = np.zeros(self.num_envs, int)
        self.t = np.zeros(self.num_envs, int)
        self.last = np.full(self.num_envs, 99)
        self.over = np.zeros(self.num_envs, bool)
        return self._obs(), {}

    def _obs(self):
        return np.stack([self.game, self.t, self.last], 1).astype(np.uint8)[:, None, None]

    def step(self, actions):
        over = self.over
        self.t = np.where(over, 0, self.t + 1)
        self.game = self.game + over
        self.last = np.where(over, 99, actions)
        reward = np.where(over, 0, 10 * self.t + actions).astype(np.float32)
        done = ~over & (self.t == np.arange(self.num_envs) + 2 + self.game % 3)
        terminated, truncated = done & (self.game % 2 == 0), done & (self.game % 2 == 1)
        self.over = done
        return self._obs(), reward, terminated, truncated, {}


def check_counter_episode(one: Episode, begins_at: int = 0, cut: bool = False) -> None:
    game, t, last = one.obs[:, 0, 0].T.astype(int)
    assert (game == game[0]).all(), "an episode must not reach into the next game"
    assert t.tolist() == list(range(begins_at, begins_at + one.steps + 1))
    assert last[1:].tolist() == one.action.tolist(), "obs[t+1] came from action[t]"
    assert one.reward.tolist() == (10 * t[1:] + one.action).tolist(), "reward[t] came from action[t]"
    assert not one.terminated[:-1].any() and not one.truncated[:-1].any()
    ends = (False, True) if cut else (game[0] % 2 == 0, game[0] % 2 == 1)
    assert (one.terminated[-1], one.truncated[-1]) == ends


def test_collected_transitions_are_aligned_and_autoreset_steps_left_out():
    episodes: list[Episode] = []
    collector = Collector(Counter(), seed=0, on_episode=episodes.append, split="test")
    seen_first = []

    def act(obs, first):
        assert obs.dtype == torch.uint8 and obs.shape == (3, 1, 1, 3) and first.dtype == torch.bool
        assert torch.equal(first, obs[:, 0, 0, 1] == 0), "first marks the first observation of a game"
        seen_first.append(int(first.sum()))
        return torch.from_numpy(np.random.default_rng(len(seen_first)).integers(0, 5, 3))

    stats = collector.collect(100, act)
    assert 100 <= stats["steps"] <= 102 and collector.steps == stats["steps"]
    assert stats["episodes"] == len(episodes) == collector.episodes and stats["episodes"] > 10
    assert stats["returns"] == [e.episode_return for e in episodes]
    for one in episodes:
        check_counter_episode(one)
        assert one.split == "test"
    more = collector.collect(100, act)
    assert 200 <= collector.steps <= 202 and more["steps"] == collector.steps - stats["steps"]
    # every transition is in exactly one episode once the rest is cut
    finished = len(episodes)
    collector.cut()
    assert sum(e.steps for e in episodes) == collector.steps
    for one in episodes[:finished]:
        check_counter_episode(one)
    for one in episodes[finished:]:
        check_counter_episode(one, cut=True)


def test_cut_goes_on_with_the_same_game():
    episodes: list[Episode] = []
    collector = Collector(Counter(1), seed=0, on_episode=episodes.append)
    firsts = []

    def act(obs, first):
        firsts.append(bool(first[0]))
        return torch.ones(1, dtype=torch.int64)

    collector.collect(3, act)  # game 0 lasts 2 steps, then 1 step of game 1, which lasts 3
    assert [e.steps for e in episodes] == [2] and firsts == [True, False, False, True]
    assert collector.cut(at_least=2) == 0
    assert collector.cut() == 1 and collector.cut() == 0
    stats = collector.collect(2, act)
    assert [e.steps for e in episodes] == [2, 1, 2] and firsts[4:] == [True, False]
    check_counter_episode(episodes[1], cut=True)
    check_counter_episode(episodes[2], begins_at=1)
    assert np.array_equal(episodes[2].obs[0], episodes[1].obs[-1])
    assert stats["returns"] == [11 + 21 + 31], "the return of a game counts what was cut off, too"


def test_wrong_autoreset_mode_is_refused():
    env = Counter()
    env.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
    with pytest.raises(UserError, match="autoreset mode NextStep"):
        Collector(env, seed=0, on_episode=print)


RESUME = [
    pytest.param(lambda: Counter(3), 40, id="toy"),
    pytest.param(lambda: minatar.make(id="MinAtar/SpaceInvaders-v1", num_envs=3), 300, id="minatar"),
    pytest.param(
        lambda: atari.make(num_envs=2, height=16, width=16, life_loss_ends=True, sticky=0.1), 180, id="atari"
    ),
    pytest.param(lambda: gym.make(num_envs=2, height=16, width=16, max_steps=12), 45, id="gym"),
]


@pytest.mark.parametrize("build, steps", RESUME)
def test_resume_is_bit_for_bit(build, steps):
    """Collect, save, collect on; a fresh collector with the saved state then does exactly the same."""

    def policy(rng):
        def act(obs, first):  # depends on all it sees
            mixed = obs.flatten(1).long().sum(1) + first.long() + torch.from_numpy(rng.integers(0, 1000, len(obs)))
            return mixed % actions

        return act

    whole: list[Episode] = []
    env = build()
    actions = int(env.single_action_space.n)
    collector = Collector(env, seed=4, on_episode=whole.append)
    collector.collect(steps, policy(np.random.default_rng(0)))
    collector.cut(at_least=10)
    collector.collect(steps // 3, policy(np.random.default_rng(1)))
    state = collector.state_dict()
    assert state["actions"].dtype == np.uint8
    before = len(whole)
    stats = collector.collect(steps, policy(np.random.default_rng(2)))
    collector.cut()
    env.close()

    resumed: list[Episode] = []
    env = build()
    again = Collector(env, seed=4, on_episode=resumed.append)
    again.load_state_dict(state)
    assert resumed == [], "finished episodes must not come twice"
    saved_again = again.state_dict()
    assert all(np.array_equal(saved_again[key], state[key]) for key in state)
    assert again.collect(steps, policy(np.random.default_rng(2))) == stats
    again.cut()
    assert len(resumed) == len(whole) - before > 0
    assert all(equal(a, b) for a, b in zip(resumed, whole[before:], strict=True))
    assert (again.steps, again.episodes) == (collector.steps, collector.episodes)
    env.close()


class Longer(Counter):
    """Its games never end."""

    def step(self, actions):
        obs, reward, _, _, info = super().step(actions)
        self.over = np.zeros(self.num_envs, bool)
        return obs, reward, np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool), info


class Brighter(Counter):
    """The same lengths, other frames."""

    def _obs(self):
        return super()._obs() + np.uint8(1)


class Richer(Counter):
    """The same lengths and frames, other rewards."""

    def step(self, actions):
        obs, reward, *rest = super().step(actions)
        return obs, reward + 1, *rest


@pytest.mark.parametrize(
    "other, reason",
    [
        (lambda: Longer(3), "gave .* steps and 3 episodes"),
        (lambda: Brighter(3), "other frames or rewards"),
        (lambda: Richer(3), "other frames or rewards"),
        (lambda: Counter(2), "of 3 games and there are 2 now"),
    ],
)
def test_games_that_cannot_be_replayed_are_dropped_and_new_ones_begin(other, reason):
    collector = Collector(Counter(3), seed=0, on_episode=lambda one: None)
    act = random_act(5, np.random.default_rng(0))
    collector.collect(50, act)
    collector.cut(2)
    state = collector.state_dict()
    episodes: list[Episode] = []
    again = Collector(other(), seed=0, on_episode=episodes.append)
    assert re.search(f"are dropped.*{reason}", again.load_state_dict(state))
    assert (again.steps, again.episodes, again.has_cut) == (collector.steps, collector.episodes, True)
    assert again.seed != 0 and episodes == []
    stats = again.collect(30, act)
    again.cut()
    assert 25 <= stats["steps"] <= 33 and sum(one.steps for one in episodes) == stats["steps"], "all from new games"
    assert again.steps == collector.steps + stats["steps"]
    assert all(one.obs[0, 0, 0, 1] in (0, 1) for one in episodes if not one.truncated[-1]), "from their beginning"
    # what goes on from there can be saved and replayed in turn
    saved = again.state_dict()
    third = Collector(other(), seed=saved["seed"], on_episode=print)
    assert third.load_state_dict(saved) is None
    assert all(np.array_equal(third.state_dict()[key], saved[key]) for key in saved)


def test_a_state_without_a_checksum_is_replayed_by_its_counts():
    collector = Collector(Counter(3), seed=0, on_episode=lambda one: None)
    collector.collect(50, random_act(5, np.random.default_rng(0)))
    state = {key: value for key, value in collector.state_dict().items() if key not in ("checksum", "before")}
    again = Collector(Counter(3), seed=0, on_episode=print)
    assert again.load_state_dict(state) is None and again.steps == collector.steps
    with pytest.raises(UserError, match="seed is 1"):
        Collector(Counter(3), seed=1, on_episode=print).load_state_dict(state)


def test_recent_draws_that_share_from_the_newest_tenth():
    replay = Replay()
    for _ in range(10):
        replay.add(episode(99))
    _, rows = replay.sample(400, 1, np.random.default_rng(0), recent=0.25)
    newest = (rows[:, -1] >= 900).sum()
    assert 100 <= newest <= 100 + 60  # a quarter on purpose, a tenth of the rest by chance


def eventful(rewards: dict[int, list[int]], ends: tuple[int, ...] = (), episodes: int = 10) -> Replay:
    """Episodes of 99 steps, 100 rows each: rewards of -2 at these steps of these, a termination at the end of `ends`."""
    replay = Replay()
    for number in range(episodes):
        reward, terminated = np.zeros(99, np.float32), np.zeros(99, bool)
        reward[rewards.get(number, [])] = -2
        terminated[-1] = number in ends
        replay.add(replace(episode(99, number), reward=reward, terminated=terminated, truncated=np.zeros(99, bool)))
    return replay


def test_a_share_of_windows_ends_shortly_before_an_event():
    replay = eventful({2: [50], 5: [7, 10]}, ends=(3,))
    before = {row - t for row in (250, 507, 510, 398) for t in range(8)}
    _, rows = replay.sample(4000, 6, np.random.default_rng(0), ends="acted", events=0.5, within=8)
    near = [row in before for row in rows[:, -1]]
    assert all(near[:2000]) and sum(near[2000:]) < 2000 * 0.06 and set(rows[:2000, -1]) == before
    assert replay.gather(rows).acted[:, -1].all()


def test_the_newest_events_are_drawn_as_often_as_the_newest_rows():
    replay = eventful({0: list(range(0, 90)), 9: list(range(10, 20))})
    _, rows = replay.sample(1000, 1, np.random.default_rng(0), ends="acted", recent=0.5, events=1.0)
    newest = (rows[:, -1] >= 900).mean()
    assert 0.5 <= newest < 0.6  # half on purpose, a tenth of the rest by chance


def test_rows_near_an_event_that_nobody_acted_on_give_way_to_the_event():
    replay = eventful({0: [0], 1: [0]})  # before row 100 comes row 99, the last of its episode
    _, rows = replay.sample(200, 1, np.random.default_rng(0), ends="acted", events=1.0, within=2)
    assert set(rows[:, -1]) == {0, 100}


def test_without_events_windows_are_drawn_as_without_that_share():
    replay = eventful({})
    _, rows = replay.sample(64, 8, np.random.default_rng(0), ends="acted", events=0.5, within=8)
    _, plain = replay.sample(64, 8, np.random.default_rng(0), ends="acted")
    assert (rows == plain).all()


def test_events_are_found_again_when_episodes_come_and_go():
    replay = Replay(capacity=220)
    for number in range(4):
        reward = np.zeros(99, np.float32)
        reward[10 * number] = 1
        replay.add(replace(episode(99, number), reward=reward, terminated=np.zeros(99, bool)))
        _, rows = replay.sample(400, 1, np.random.default_rng(0), events=1.0)
        assert set(rows[:, 0]) == set(np.flatnonzero(replay.gather(np.arange(replay.rows)[None]).reward[0]))


def test_rows_without_codes_are_saved_as_zeros(monkeypatch):
    """Memory that was never written holds anything: it must not reach a checkpoint, which is checked when it is read."""
    monkeypatch.setattr(np, "empty", lambda shape, dtype=float: np.full(shape, 99, dtype))
    replay = Replay()
    replay.add(episode(5))
    replay.codes(np.arange(6)[None], lambda steps: Codes(torch.ones(len(steps.obs), 1, 2, dtype=torch.int64)), version=1)
    for _ in range(3):
        replay.add(episode(900))
    state = replay.code_state()
    assert state["codes"].shape == (6 + 3 * 901, 2) and state["codes"].dtype == torch.int32
    assert (state["codes"][:6] == 1).all() and (state["codes"][6:] == 0).all() and (state["version"][6:] == -1).all()
