"""Data sets that come from anywhere: reading them takes bounded memory and linear time, and ends in a sentence at worst."""

import copy
import errno
import json
import os
import random
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from test_data import META, episode, equal, offsets, read, write

from tokenworld.cli import main as cli
from tokenworld.cli.verbs import data as data_verb
from tokenworld.cli.verbs import train as train_verb
from tokenworld.config import compose, schema
from tokenworld.data import record_format, shards
from tokenworld.data.checksums import Checksums
from tokenworld.data.describe import describe
from tokenworld.data.episodes import Episode, EpisodeWriter, check_trainable, load_episodes, make_meta, read_episodes, read_meta
from tokenworld.data.meta import content_of, meanings_of
from tokenworld.errors import UserError

HEADER = {
    "__metadata__": {"episode": "0", "split": "train", "seed": "7"},
    "action": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]},
    "reward": {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]},
    "obs": {"dtype": "U8", "shape": [3, 1, 2, 3], "data_offsets": [24, 42]},
    "terminated": {"dtype": "BOOL", "shape": [2], "data_offsets": [42, 44]},
    "truncated": {"dtype": "BOOL", "shape": [2], "data_offsets": [44, 46]},
}


def record(payload: bytes) -> bytes:
    return struct.pack("<4sIQI", b"TWEP", 1, len(payload), zlib.crc32(payload)) + payload


def stored(header, body: bytes = bytes(46), length: int | None = None) -> bytes:
    """A record whose checksum is right, with this list of tensors."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return record(zlib.compress(struct.pack("<Q", len(text) if length is None else length) + text + body, 1))


def put(folder: Path, content: bytes) -> Path:
    write(folder, [0])
    with open(folder / "episodes-00000.bin", "ab") as file:
        file.write(content)
    return folder


# ---------------------------------------------------------------------------------------------------------------- memory


BOMBS = """
import json, resource, struct, sys, zlib
from pathlib import Path
from tokenworld.data.episodes import EpisodeWriter, make_meta, read_episodes
from tokenworld.data.describe import describe
from test_data_damage import HEADER, record

def bomb(head, size):
    stream = zlib.compressobj(1)
    parts = [stream.compress(head)] + [stream.compress(bytes(2**20)) for _ in range(size // 2**20)] + [stream.flush()]
    return record(b"".join(parts))

def said(header):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text

def honest(n):
    header, at = {"__metadata__": {"episode": "0", "split": "train", "seed": ""}}, 0
    for name, kind, size, shape in [("obs", "U8", 6 * (n + 1), [n + 1, 1, 2, 3]), ("action", "I64", 8 * n, [n]),
            ("reward", "F32", 4 * n, [n]), ("terminated", "BOOL", n, [n]), ("truncated", "BOOL", n, [n])]:
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return said(header), at

folder = Path(sys.argv[1])
EpisodeWriter(folder, make_meta(env_id="Test-v0", frame_shape=(1, 2, 3), actions=5)).close()
G = 2**29
largest = 12_000_000
bombs = [
    bomb(b"", G),  # no header at all
    bomb(struct.pack("<Q", 2**62), G),  # a header of its own size
    bomb(struct.pack("<Q", G - 100), G),
    bomb(said(HEADER), G),  # more than the header says
    bomb(honest(20_000_000)[0], G),  # what the header says
    bomb(honest(largest)[0], 2**20),  # less than the header says
    bomb(honest(largest)[0], honest(largest)[1] // 2**20 * 2**20),
]
(folder / "episodes-00000.bin").write_bytes(b"".join(bombs))
print(sum(map(len, bombs)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
info = describe(folder)
print(info["corrupt"], info["episodes"], (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
print(*info["damage"], sep="\\n")
"""


def test_a_zip_bomb_takes_no_more_memory_than_a_record_may(tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parent.parent)])
    out = subprocess.run([sys.executable, "-c", BOMBS, str(tmp_path / "data")], env=os.environ | {"PYTHONPATH": path},
                         capture_output=True, text=True, check=True).stdout.splitlines()  # fmt: skip
    corrupt, episodes, megabytes = map(int, out[1].split())
    assert (corrupt, episodes) == (7, 0) and megabytes < 320, out
    assert int(out[0]) < 16 * 2**20


def test_the_longest_record_and_one_that_is_longer(tmp_path, monkeypatch):
    one = episode(40)
    size = 41 * 6 + 40 * 14
    with monkeypatch.context() as patch:
        patch.setattr(record_format, "RECORD_BYTES", size)
        assert content_of(META).longest == 40
        with EpisodeWriter(tmp_path, META) as writer:
            writer.append(one)
            with pytest.raises(UserError, match="41 steps is too long for a record, which holds 40 .*: write it in parts"):
                writer.append(episode(41))
    assert [equal(each, one) for each in read_episodes(tmp_path, limit=size)] == [True]
    damages = []
    assert list(read_episodes(tmp_path, on_corrupt=damages.append, limit=size - 1)) == []
    assert f"40 steps, {size} bytes, more than the {size - 1} bytes that a record may have" in str(damages[0])


# --------------------------------------------------------------------------------------------------------------- content


def changed(**tensors) -> dict:
    return HEADER | {name: HEADER[name] | entry for name, entry in tensors.items()}


CONTRADICTIONS = {
    "another frame": (changed(obs=dict(shape=[3, 1, 3, 2])), r"meta.json says \(1, 2, 3\)"),
    "frames without actions": (changed(obs=dict(shape=[2, 1, 2, 3])), "its tensors are not"),
    "no action": (changed(action=dict(shape=[0])), "its tensors are not"),
    "a negative number of actions": (changed(action=dict(shape=[-1])), "its tensors are not"),
    "true actions": (changed(action=dict(shape=[True])), "its tensors are not"),
    "a shape of text": (changed(action=dict(shape="2")), "its tensors are not"),
    "two axes": (changed(action=dict(shape=[1, 2])), "its tensors are not"),
    "another type": (changed(reward=dict(dtype="I32")), "its tensors are not"),
    "overlapping tensors": (changed(reward=dict(data_offsets=[0, 8])), "its tensors are not"),
    "a gap": (changed(truncated=dict(data_offsets=[45, 47])), "its tensors are not"),
    "huge offsets": (changed(truncated=dict(data_offsets=[2**63, 2**63 + 2])), "its tensors are not"),
    "offsets of text": (changed(obs=dict(data_offsets=["0", "1"])), "its tensors are not"),
    "a further tensor": (HEADER | {"x": HEADER["truncated"]}, "its tensors are not"),
    "a missing tensor": ({key: value for key, value in HEADER.items() if key != "reward"}, "its tensors are not"),
    "no metadata": ({key: value for key, value in HEADER.items() if key != "__metadata__"}, "no metadata"),
    "a third split": (HEADER | {"__metadata__": {"split": "valid", "seed": ""}}, "no split"),
    "an unhashable split": (HEADER | {"__metadata__": {"split": ["train"], "seed": ""}}, "no split"),
    "a seed of letters": (HEADER | {"__metadata__": {"split": "train", "seed": "x"}}, "no seed"),
    "an endless seed": (HEADER | {"__metadata__": {"split": "train", "seed": "9" * 5000}}, "no seed"),
    "a list": ([], "no metadata"),
    "deep": (b"[" * 50_000, "is not JSON"),
    "long": (b" " * 70_000, "more than 65,536"),
    "empty": (b"", "is not JSON"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_record_that_contradicts_itself_or_meta_is_damage(name, tmp_path):
    header, reason = CONTRADICTIONS[name]
    there, damages = read(put(tmp_path, stored(header) + stored(HEADER)))
    assert [one.steps for one in there] == [3, 2], "what lies around it is read"
    assert len(damages) == 1 and damages[0].kind == "corrupt" and "not an episode of this data set" in str(damages[0])
    assert re.search(reason, str(damages[0])), damages


def body(action=(0, 1), reward=(0.0, 1.0), terminated=(0, 1)) -> bytes:
    return struct.pack("<2q2f18x2B2x", *action, *reward, *terminated)


@pytest.mark.parametrize(
    "content, reason",
    [
        (body(reward=(0.0, float("nan"))), "finite numbers, got nan at step 1"),
        (body(reward=(float("-inf"), 0.0)), "finite numbers, got -inf at step 0"),
        (body(action=(0, 5)), r"actions are 0\.\.5, meta.json says 0\.\.4"),
        (body(action=(-1, 4)), r"actions are -1\.\.4, meta.json says 0\.\.4"),
        (body(action=(2**62, 4)), "meta.json says 0"),
        (body(terminated=(0, 2)), "terminated must hold 0 and 1, got 2"),
        (body()[:-1], "cut off|ends after"),
        (body() + b"x", "holds more than its header says"),
    ],
)
def test_values_that_no_episode_can_have_are_damage(content, reason, tmp_path, capsys):
    there, damages = read(put(tmp_path, stored(HEADER, content)))
    assert len(there) == 1 and len(damages) == 1 and re.search(reason, str(damages[0])), damages
    data_verb.run(str(tmp_path))
    assert "1 corrupt" in (out := capsys.readouterr().out) and "intact" not in out and re.search(reason, out)


def test_an_episode_with_rewards_that_are_not_finite_cannot_be_made():
    good = episode(3)
    for value in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="finite numbers, got .* at step 2"):
            Episode(good.obs, good.action, np.array([0, 0, value], np.float32), good.terminated, good.truncated)


def test_any_list_of_tensors_is_survived(tmp_path):
    """One value in it changed in type, sign, size or absence, 600 times: an episode or one damage, never anything else."""
    rng, whole = random.Random(0), write(tmp_path, [0])
    shard = tmp_path / "episodes-00000.bin"
    clean = shard.read_bytes()
    wild = [None, True, -1, 0, 2**31, 2**63, 2**80, 1e300, 0.5, "", "train", "9" * 99, [], {}, [1], [-1, 2**64], {"a": 1}]
    for _ in range(600):
        header = copy.deepcopy(HEADER)
        inner = rng.choice([header, *header.values(), *[entry.get("shape", entry) for entry in header.values()]])
        key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
        if rng.random() < 0.2:
            del inner[key]
        else:
            inner[key] = rng.choice(wild)
        shard.write_bytes(clean + stored(header))
        there, damages = read(tmp_path)
        assert len(there) + len(damages) == 2 and equal(there[0], whole[0])


# ------------------------------------------------------------------------------------------------------------------ time


class Counted:
    """An open file that counts what is read."""

    def __init__(self, path: Path) -> None:
        self.file, self.bytes, self.reads = open(path, "rb", buffering=0), 0, 0
        self.fileno, self.seek = self.file.fileno, self.file.seek

    def read(self, count: int) -> bytes:
        content = self.file.read(count)
        self.bytes, self.reads = self.bytes + len(content), self.reads + 1
        return content


def hostile(kind: str, size: int) -> bytes:
    """Beginnings of records that are none."""
    rng = random.Random(1)
    if kind == "claims the rest":
        return b"".join(struct.pack("<4sIQI", b"TWEP", 1, abs(size - 20 * (i + 1) - 3), 0) for i in range(size // 20))
    if kind == "claims anything":
        return b"".join(struct.pack("<4sIQI", b"TWEP", 1, rng.randrange(size), i) for i in range(size // 20))
    if kind == "claims to the next":
        return b"".join(struct.pack("<4sIQI", b"TWEP", 1, 0, 1) for i in range(size // 20))
    if kind == "between intact ones":
        lies = (struct.pack("<4sIQI", b"TWEP", 1, abs(size - 40 * (i + 1) - 3), 0) for i in range(size // 40))
        return b"".join(record(b"") + lie for lie in lies)
    return b"TWEP" * (size // 4)


KINDS = ["claims the rest", "claims anything", "claims to the next", "between intact ones", "magics"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_shard_is_read_in_linear_time_and_what_follows_is_found(kind, tmp_path):
    costs = []
    for size in (200_000, 400_000):
        path = tmp_path / f"{size}.bin"
        path.write_bytes(hostile(kind, size) + b"rest" + stored(HEADER))
        source = Counted(path)
        found = [item for item in shards.scan(path, source) if isinstance(item, shards.Payload)]
        assert found[-1].end == path.stat().st_size
        costs.append((source.bytes, source.reads))
    assert costs[1][0] < 2.5 * costs[0][0] and costs[1][1] < 2.5 * costs[0][1], costs
    assert costs[1][1] < 400_000 / 16 * 8, costs


def test_the_checksum_of_a_part_is_that_of_zlib():
    content = np.random.default_rng(0).bytes(50_000)
    sums, rng = Checksums(lambda at, count: content[at : at + count]), random.Random(0)
    for _ in range(300):
        begin, end = sorted((rng.randrange(50_001), rng.randrange(50_001)))
        assert sums.of(begin, end) == zlib.crc32(content[begin:end])
    assert sums.of(0, 50_000) == zlib.crc32(content) and sums.of(7, 7) == 0


def test_many_damages_are_summarized(tmp_path, capsys):
    put(tmp_path, hostile("claims to the next", 100_000))
    info = describe(tmp_path)
    assert info["corrupt"] == 5000 and len(info["damage"]) < 6 and info["damage"][-1] == "4,997 more damaged records"
    data_verb.run(str(tmp_path))
    assert len(out := capsys.readouterr().out.splitlines()) < 9 and "5,000 corrupt" in "".join(out)
    said = []
    assert load_episodes(tmp_path, [].append, said.append)["damaged"] == 5000 and len(said) == 4
    with pytest.warns(UserWarning) as warned:
        list(read_episodes(tmp_path))
    assert len(warned) == 4


# ------------------------------------------------------------------------------------------------------------------ meta


META_FAULTS = [
    ("env_id", value) for value in (None, "", 7, [], {}, ["Test-v0"], "x" * 10_000, "a\nb", "a\x1b[2J", "\ud800")
] + [
    ("frame_shape", value)
    for value in (None, [], [1, 2], [1, 2, 3, 4], [1, 2, 0], [1, 2, -3], [1, 2, True], [1, 2, 3.0], [1, 2, "3"], "123", {},
                  [1, 2, 2**31], [10**400, 1, 1])  # fmt: skip
] + [
    ("action_count", value) for value in (None, 0, -1, True, 2.0, "5", [], [5], 2**31, 10**300)
] + [
    ("action_meanings", value)
    for value in ([], ["a"], ["a"] * 6, [1] * 5, [None] * 5, "abcde", {}, 5, ["a\nb"] * 5, [["a"]] * 5)
] + [
    ("preprocessing", value) for value in (None, [], "x", 3)
] + [
    ("seed", value) for value in ("7", 7.0, True, [], {}, [7])
] + [
    ("version", value) for value in (True, 1.0, "1", [], {}, None)
]  # fmt: skip


@pytest.mark.parametrize("key, value", META_FAULTS)
def test_a_meta_that_cannot_be_is_refused_in_one_sentence(key, value, tmp_path, capsys):
    write(tmp_path / "data", [0])
    meta = json.loads((tmp_path / "data" / "meta.json").read_text())
    for content in (meta | {key: value}, {name: entry for name, entry in meta.items() if name != key}):
        if key in ("action_meanings", "seed") and key not in content:
            continue  # may be left out
        (tmp_path / "data" / "meta.json").write_text(json.dumps(content))
        assert cli.main(["data", "info", str(tmp_path / "data")]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and key in said.err and len(said.err) < 500
        with pytest.raises(UserError, match=key):
            EpisodeWriter(tmp_path / "data", META)


@pytest.mark.parametrize(
    "content", ["", "[", "NaN", '{"seed": NaN}', "[" * 100_000, "9" * 10_000, b"\xff\xfe", " " * 2**21, f"[{'1,' * 2**20}1]"]
)
def test_a_file_that_is_no_meta_is_refused_in_one_sentence(content, tmp_path, capsys):
    (tmp_path / "meta.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert cli.main(["data", "info", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_meta_of_a_hundred_megabytes_is_not_read(tmp_path):
    with open(tmp_path / "meta.json", "wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(UserError, match="more than the 1,048,576 bytes"):
        read_meta(tmp_path)


def test_a_writer_refuses_a_meta_that_it_could_not_read(tmp_path):
    for changes in (dict(actions=0), dict(env_id=""), dict(frame_shape=(1, 0, 2)), dict(action_meanings=["a"])):
        with pytest.raises(UserError, match=next(iter(changes))):
            EpisodeWriter(tmp_path / "data", make_meta(**dict(env_id="Test-v0", frame_shape=(1, 2, 3), actions=5) | changes))
    for value in (np.inf, np.zeros(3), object()):
        meta = make_meta(env_id="Test-v0", frame_shape=(1, 2, 3), actions=5, preprocessing={"x": value})
        with pytest.raises(UserError, match="must be JSON"):
            EpisodeWriter(tmp_path / "data", meta)
    assert not (tmp_path / "data").exists()
    meta = make_meta(env_id="Test-v0", frame_shape=np.array([1, 2, 3]), actions=np.int64(5), seed=np.int64(3))
    EpisodeWriter(tmp_path / "data", meta).close()
    assert read_meta(tmp_path / "data") == meta


@pytest.mark.parametrize("names", [("a",), ["a"], ["a", 3], "ab", {0: "a", 1: "b"}, None, 7])
def test_names_of_actions_that_do_not_fit_are_not_used(names):
    assert meanings_of({"action_meanings": names}, 2) is None
    assert meanings_of({"action_meanings": ("a", "b")}, 2) == ["a", "b"]


# --------------------------------------------------------------------------------------------------------------- training


def composed(*words):
    spec = compose.compose(["overlay=debug", "device=cpu", *words])
    schema.check(spec.cfg)
    return spec


def minatar_data(folder: Path, reward: float, split: str) -> Path:
    meta = make_meta(env_id="MinAtar/Breakout-v1", frame_shape=(4, 10, 10), actions=3, preprocessing={"sticky": 0.1})
    with EpisodeWriter(folder, meta) as writer:
        ends, obs = np.arange(9) == 8, np.zeros((10, 4, 10, 10), np.uint8)
        one = Episode(obs, np.zeros(9, np.int64), np.zeros(9, np.float32), ends, ends & False, split)
        one.reward[3] = reward
        for _ in range(3):
            writer.append(one)
    return folder


@pytest.mark.parametrize("reward, split, said", [(np.nan, "train", "0 of the test split, 3 damaged"), (0, "test", "3 of the")])
def test_a_data_set_without_anything_to_learn_from_is_refused(reward, split, said, tmp_path):
    data = minatar_data(tmp_path / "data", reward, split)
    with pytest.raises(UserError, match=f"no episode to train on.*{said}"):
        train_verb.run_phase("tokenizer", composed(f"data={data}", f"out={tmp_path / 'run'}"))
    assert not (tmp_path / "run").exists()
    counts = {"train": 0, "test": 3, "damaged": 0}
    check_trainable(data, counts, collects=True)  # test episodes, and training episodes will come
    with pytest.raises(UserError, match="no episode to train on"):
        check_trainable(data, counts | {"test": 0}, collects=True)


# ------------------------------------------------------------------------------------------------------------------ disks


class Refusing:
    """A file on a disk that takes half of what is written, then refuses."""

    def __init__(self, file, code: int) -> None:
        self.file, self.code, self.full = file, code, False
        self.tell, self.fileno, self.seek, self.truncate, self.close = (
            file.tell, file.fileno, file.seek, file.truncate, file.close
        )  # fmt: skip

    @property
    def closed(self) -> bool:
        return self.file.closed

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def write(self, content) -> int:
        if self.full:
            raise OSError(self.code, os.strerror(self.code))
        self.full = True
        return self.file.write(content[: len(content) // 2])


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_refuses_is_one_sentence_and_costs_the_record_only(code, tmp_path):
    writer = EpisodeWriter(tmp_path, META)
    writer.append(episode(3))
    size = (tmp_path / "episodes-00000.bin").stat().st_size
    whole, writer._file = writer._file, Refusing(writer._file, code)
    with pytest.raises(UserError, match="episodes-00000.bin cannot be written .*all episodes .* before are whole"):
        writer.append(episode(30))
    assert (tmp_path / "episodes-00000.bin").stat().st_size == size, "no half record stays"
    writer._file = whole
    writer.append(episode(5))  # there is space again
    writer.close()
    there, damages = read(tmp_path)
    assert [one.steps for one in there] == [3, 5] and damages == [] and describe(tmp_path)["problems"] == []


def test_a_limit_on_file_sizes_is_one_sentence(tmp_path):
    """The system's own refusal: half of a record fits."""
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_data import META, episode
from tokenworld.data.episodes import EpisodeWriter
with EpisodeWriter({str(tmp_path)!r}, META) as writer:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    for number in range(100):
        writer.append(episode(30, number))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stderr.strip().splitlines()[-1].startswith("tokenworld.errors.UserError: ") and "ulimit -f" in out.stderr
    there, damages = read(tmp_path)
    assert there and damages == [] and describe(tmp_path)["problems"] == []


def test_a_folder_that_cannot_be_written_or_read_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        EpisodeWriter(tmp_path / "file" / "data", META)
    write(tmp_path / "data", [0])
    (tmp_path / "data" / "episodes-00001.bin").mkdir()  # no shard, and nothing else that counts
    (tmp_path / "data" / "episodes-².bin").write_text("")
    assert describe(tmp_path / "data")["episodes"] == 1


# ----------------------------------------------------------------------------------------------------------- completeness


def test_missing_shards_and_repeated_or_missing_records_are_named(tmp_path, capsys):
    write(tmp_path, range(12), shard_bytes=600)
    paths = sorted(tmp_path.glob("*.bin"))
    assert len(paths) > 3 and describe(tmp_path)["problems"] == []
    first, second = paths[0].read_bytes(), paths[1].read_bytes()
    cut = offsets(paths[1])[1]
    paths[1].write_bytes(second[cut:])
    assert describe(tmp_path)["problems"] == ["missing: 1 record numbers do not occur, the first is "
                                              f"{len(offsets(paths[0]))}"]  # fmt: skip
    paths[1].write_bytes(first + second)
    assert "repeated: " in describe(tmp_path)["problems"][0]
    paths[1].unlink()
    found = describe(tmp_path)["problems"]
    assert found[0] == "missing: episodes-00001.bin" and "record numbers do not occur" in found[1]
    data_verb.run(str(tmp_path))
    assert "missing: episodes-00001.bin" in capsys.readouterr().out


def test_numbers_go_on_behind_a_damaged_record(tmp_path):
    write(tmp_path, range(4))
    shard = tmp_path / "episodes-00000.bin"
    content = bytearray(shard.read_bytes())
    content[offsets(shard)[1] + 40] ^= 1
    shard.write_bytes(content)
    with EpisodeWriter(tmp_path, META) as writer:
        assert writer.episodes == 4
        writer.append(episode(3, 9))
    info = describe(tmp_path)
    assert info["corrupt"] == 1 and info["problems"] == []


def test_what_a_data_set_does_not_say_is_unknown(tmp_path):
    """Its seed and the names of its actions may be left out: nothing needs them."""
    meta = make_meta(env_id="X-v0", frame_shape=(1, 2, 2), actions=2)
    for key in ("seed", "action_meanings"):
        (tmp_path / "meta.json").write_text(json.dumps({name: value for name, value in meta.items() if name != key}))
        assert describe(tmp_path)[key] is None
