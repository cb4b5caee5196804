"""Episodes on disk: append-only, checksummed, readable by anybody.

A data set is a folder:

    meta.json               one JSON object: "format" ("tokenworld-episodes"), "version" (1), "env_id", "frame_shape"
                            [C, H, W], "action_count", "action_meanings" (list of str, or null), "preprocessing" (the
                            environment's keywords), "seed" (int or null)
    episodes-00000.bin      records, one after another; a new shard begins when one has reached 256 MB
    episodes-00001.bin ...

A record is one episode. All numbers are little-endian:

    bytes 0..3      the magic, b"TWEP"
    bytes 4..7      u32, the record's version, 1
    bytes 8..15     u64, the payload's length n
    bytes 16..19    u32, the payload's CRC-32 (as zlib.crc32)
    bytes 20..20+n  the payload: a zlib stream of a safetensors file

The safetensors file holds, for an episode of n actions, `obs` (n+1, C, H, W) uint8, `action` (n,) int64, `reward` (n,)
float32, `terminated` and `truncated` (n,) bool; its `__metadata__` holds the strings `episode` (the number of the
episode in this folder), `split` ("train" or "test") and `seed` (of the environment; "" if unknown).

action[t] is taken at obs[t]; reward[t], terminated[t], truncated[t] and obs[t+1] are what the environment returned.

Damage is survived and always reported. A writer that was killed leaves a torn record at the end of the last shard:
readers stop before it, the next writer cuts it off. A damaged record elsewhere is skipped: by its length if another
record (or the end) follows there, otherwise by looking for the next magic that begins an intact record.
"""

from __future__ import annotations

import json
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from tokenworld.errors import UserError

FORMAT = "tokenworld-episodes"
VERSION = 1
MAGIC = b"TWEP"
HEADER = struct.Struct("<4sIQI")
SHARD_BYTES = 256 * 2**20
SPLITS = ("train", "test")
FIELDS = {"action": np.int64, "reward": np.float32, "terminated": np.bool_, "truncated": np.bool_}


@dataclass(frozen=True)
class Episode:
    """One episode of n actions (n >= 1), or a part of one that was cut off."""

    obs: np.ndarray  # (n+1, C, H, W) uint8
    action: np.ndarray  # (n,) int64
    reward: np.ndarray  # (n,) float32
    terminated: np.ndarray  # (n,) bool
    truncated: np.ndarray  # (n,) bool
    split: str = "train"
    seed: int | None = None  # of the environment it was collected from

    def __post_init__(self) -> None:
        n = len(self.action)
        if n < 1 or self.obs.ndim != 4 or len(self.obs) != n + 1 or self.obs.dtype != np.uint8:
            raise ValueError(f"an episode of {n} actions needs obs ({n + 1}, C, H, W) uint8, got {self.obs.shape}")
        for name, dtype in FIELDS.items():
            field = getattr(self, name)
            if field.shape != (n,) or field.dtype != dtype:
                raise ValueError(f"{name} must be ({n},) {np.dtype(dtype)}, got {field.shape} {field.dtype}")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {self.split!r}")

    @property
    def steps(self) -> int:
        return len(self.action)

    @property
    def episode_return(self) -> float:
        return float(self.reward.sum(dtype=np.float64))


@dataclass(frozen=True)
class Damage:
    """A part of a shard that could not be read."""

    file: Path
    offset: int  # where it begins, bytes
    length: int  # bytes that were skipped
    kind: str  # "torn": the last record is incomplete (its writer was killed, or writes still); "corrupt": all else
    reason: str

    def __str__(self) -> str:
        return f"{self.file}: {self.kind} record at byte {self.offset} ({self.reason}), {self.length} bytes skipped"


def make_meta(
    *,
    env_id: str,
    frame_shape: tuple[int, int, int],
    action_count: int,
    action_meanings: list[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """The content of `meta.json`. frame_shape is (C, H, W)."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "env_id": env_id,
        "frame_shape": [int(size) for size in frame_shape],
        "action_count": int(action_count),
        "action_meanings": action_meanings,
        "preprocessing": preprocessing or {},
        "seed": seed,
    }


def read_meta(directory: str | Path) -> dict[str, Any]:
    """`meta.json` of a data set. Raises `UserError` if the folder is none, or one of a later version."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory} is no data set: there is no such folder; make one with `tokenworld collect`")
    try:
        meta = json.loads((directory / "meta.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{directory} is no data set: it has no meta.json; `tokenworld collect` makes one") from error
    except ValueError as error:
        raise UserError(f"{directory} is no data set: its meta.json is not JSON; restore that file") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise UserError(f"{directory} is no data set: meta.json does not say format {FORMAT}; choose another folder")
    if meta.get("version") != VERSION:
        raise UserError(
            f"{directory} has format version {meta.get('version')}, expected {VERSION}: use a tokenworld that knows it"
        )
    shape = meta.get("frame_shape")
    if not (isinstance(shape, list) and len(shape) == 3 and isinstance(meta.get("action_count"), int)):
        raise UserError(f"{directory}: meta.json lacks frame_shape [C, H, W] or action_count; restore that file")
    return meta


class EpisodeWriter:
    """Appends episodes to the data set in `directory`, which it creates if need be. One writer at a time.

    Each record reaches the operating system at once, so that a killed process loses nothing; the disk is waited for
    (fsync) when it matters: at `position`, at a new shard, at `close`.
    """

    def __init__(self, directory: str | Path, meta: dict[str, Any], *, shard_bytes: int = SHARD_BYTES) -> None:
        """Raises `UserError` if the folder holds a data set of other frames or actions."""
        self.directory = Path(directory)
        self.shard_bytes = shard_bytes
        self.episodes = 0
        self.meta = meta
        self._create_or_check()
        shards = _shards(self.directory)
        self._shard = _number(shards[-1]) if shards else 0
        for shard in shards:
            for item in _scan(shard):
                if isinstance(item, bytes):
                    self.episodes += 1
                elif item.kind == "torn" and shard == shards[-1]:
                    warnings.warn(f"{item}: cut off", stacklevel=2)
                    os.truncate(shard, item.offset)
        self._open()

    @classmethod
    def open_at(
        cls, directory: str | Path, position: dict[str, int], *, shard_bytes: int = SHARD_BYTES
    ) -> EpisodeWriter:
        """Cut the data set back to an earlier `position()` and go on from there.

        Raises `UserError` if the data that the position speaks of is no longer there.
        """
        directory = Path(directory)
        meta = read_meta(directory)
        path = _shard_path(directory, position["shard"])
        size = path.stat().st_size if path.is_file() else 0
        if size < position["offset"]:
            raise UserError(f"{path} has {size} bytes, expected at least {position['offset']}: restore that file")
        for shard in _shards(directory):
            if _number(shard) > position["shard"]:
                shard.unlink()
        if path.is_file():
            os.truncate(path, position["offset"])
        writer = cls(directory, meta, shard_bytes=shard_bytes)
        writer.episodes = position["episodes"]
        return writer

    def append(self, episode: Episode) -> None:
        shape = tuple(self.meta["frame_shape"])
        if episode.obs.shape[1:] != shape:
            raise ValueError(f"frames must be {shape} as in {self.directory}/meta.json, got {episode.obs.shape[1:]}")
        A = self.meta["action_count"]
        if episode.action.min() < 0 or episode.action.max() >= A:
            raise ValueError(f"actions must be in 0..{A - 1}, got {episode.action.min()}..{episode.action.max()}")
        if self._file.tell() >= self.shard_bytes:
            self.close()
            self._shard += 1
            self._open()
        self._file.write(_record(episode, self.episodes))
        self._file.flush()
        self.episodes += 1

    def position(self) -> dict[str, int]:
        """Where the data set ends now, as JSON; all that lies before it is on the disk when this returns."""
        os.fsync(self._file.fileno())
        return {"shard": self._shard, "offset": self._file.tell(), "episodes": self.episodes}

    def close(self) -> None:
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _create_or_check(self) -> None:
        if not (self.directory / "meta.json").exists():
            if _shards(self.directory):
                raise UserError(f"{self.directory} holds episodes but no meta.json: restore it or use another folder")
            self.directory.mkdir(parents=True, exist_ok=True)
            _write_json(self.directory / "meta.json", self.meta)
            return
        there = read_meta(self.directory)
        for key in ("env_id", "frame_shape", "action_count"):
            if there.get(key) != self.meta[key]:
                raise UserError(
                    f"{self.directory} is a data set with {key} {there.get(key)}, got episodes with {self.meta[key]}: "
                    "choose another folder"
                )
        self.meta = there

    def _open(self) -> None:
        self._file = open(_shard_path(self.directory, self._shard), "ab")
        self._file.seek(0, os.SEEK_END)
        _sync_folder(self.directory)


def read_episodes(
    directory: str | Path, split: str | None = None, on_corrupt: Callable[[Damage], None] | None = None
) -> Iterator[Episode]:
    """The episodes of a data set in the order of writing, of one split or of both.

    What cannot be read is skipped and handed to `on_corrupt`; without one, it is a Python warning. Raises `UserError`
    at once if the folder is no data set.
    """
    if split is not None and split not in SPLITS:
        raise UserError(f"split must be train or test, got {split}: choose one of them, or leave it out for both")
    meta = read_meta(directory)
    report = on_corrupt or (lambda damage: warnings.warn(str(damage), stacklevel=2))
    return _read(Path(directory), tuple(meta["frame_shape"]), split, report)


def _read(
    directory: Path, shape: tuple[int, ...], split: str | None, report: Callable[[Damage], None]
) -> Iterator[Episode]:
    for shard in _shards(directory):
        offset = 0
        for item in _scan(shard):
            if isinstance(item, Damage):
                report(item)
                offset = item.offset + item.length
                continue
            length = HEADER.size + len(item)
            try:
                episode = _episode(item, shape, split)
            except (ValueError, KeyError, TypeError, struct.error, zlib.error, safetensors.SafetensorError) as error:
                report(Damage(shard, offset, length, "corrupt", f"not an episode of this data set: {error}"))
                episode = None
            offset += length
            if episode is not None:
                yield episode


def describe(directory: str | Path) -> dict[str, Any]:
    """What `tokenworld data info` prints: spaces, and per split episodes, steps and returns; size; integrity."""
    directory = Path(directory)
    meta = read_meta(directory)
    damages: list[Damage] = []
    splits: dict[str, Any] = {}
    lists: dict[str, list[tuple[int, float, bool]]] = {name: [] for name in SPLITS}
    for episode in read_episodes(directory, on_corrupt=damages.append):
        complete = bool(episode.terminated[-1])
        lists[episode.split].append((episode.steps, episode.episode_return, complete))
    for name, entries in lists.items():
        returns = [entry[1] for entry in entries]
        splits[name] = {
            "episodes": len(entries),
            "steps": sum(entry[0] for entry in entries),
            "terminated": sum(entry[2] for entry in entries),
            "return_mean": float(np.mean(returns)) if returns else None,
            "return_min": min(returns, default=None),
            "return_max": max(returns, default=None),
        }
    shards = _shards(directory)
    return {
        "directory": str(directory),
        **{key: meta.get(key) for key in ("env_id", "frame_shape", "action_count", "action_meanings", "seed")},
        "preprocessing": meta.get("preprocessing"),
        "episodes": sum(entry["episodes"] for entry in splits.values()),
        "steps": sum(entry["steps"] for entry in splits.values()),
        "splits": splits,
        "shards": len(shards),
        "bytes": sum(shard.stat().st_size for shard in shards),
        "corrupt": sum(damage.kind == "corrupt" for damage in damages),
        "torn": sum(damage.kind == "torn" for damage in damages),
        "damage": [str(damage) for damage in damages],
    }


def _record(episode: Episode, number: int) -> bytes:
    tensors = {"obs": episode.obs, **{name: getattr(episode, name) for name in FIELDS}}
    metadata = {
        "episode": str(number),
        "split": episode.split,
        "seed": "" if episode.seed is None else str(episode.seed),
    }
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    payload = zlib.compress(safetensors.numpy.save(contiguous, metadata), level=1)
    return HEADER.pack(MAGIC, VERSION, len(payload), zlib.crc32(payload)) + payload


def _episode(payload: bytes, shape: tuple[int, ...], split: str | None) -> Episode | None:
    """Decode a payload; None if it is of the other split."""
    raw = zlib.decompress(payload)
    (length,) = struct.unpack("<Q", raw[:8])  # a safetensors file begins with the length of its JSON header
    metadata = json.loads(raw[8 : 8 + length])["__metadata__"]
    if split is not None and metadata["split"] != split:
        return None
    tensors = safetensors.numpy.load(raw)
    if tensors["obs"].shape[1:] != shape:
        raise ValueError(f"frames are {tensors['obs'].shape[1:]}, meta.json says {shape}")
    seed = int(metadata["seed"]) if metadata["seed"] else None
    return Episode(**{name: tensors[name] for name in ("obs", *FIELDS)}, split=metadata["split"], seed=seed)


def _scan(shard: Path) -> Iterator[bytes | Damage]:
    """The payloads of a shard whose checksums are right, and the damage between them, in order."""
    with open(shard, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        offset = 0
        while offset < size:
            file.seek(offset)
            payload, reason = _payload(file.read(HEADER.size), file, size - offset)
            if payload is not None:
                yield payload
                offset += HEADER.size + len(payload)
                continue
            file.seek(offset)
            rest = file.read(size - offset)
            length = _skip(rest)
            # Nothing intact follows and a header does not end within the file: this is where a writer was killed.
            torn = length == len(rest) and reason.startswith("incomplete")
            yield Damage(shard, offset, length, "torn" if torn else "corrupt", reason)
            offset += length


def _payload(header: bytes, file: Any, left: int) -> tuple[bytes | None, str]:
    """The payload whose header was just read, or None and what is wrong. `left`: bytes to the end, header included."""
    if len(header) < HEADER.size:
        return None, "incomplete header"
    magic, version, length, checksum = HEADER.unpack(header)
    if magic != MAGIC:
        return None, "no record begins here"
    if version != VERSION:
        return None, f"record version {version}, expected {VERSION}"
    if length > left - HEADER.size:
        return None, "incomplete payload"
    payload = file.read(length)
    if zlib.crc32(payload) != checksum:
        return None, "wrong checksum"
    return payload, ""


def _skip(rest: bytes) -> int:
    """How many bytes to skip from a damaged record at the start of `rest` to the next record, or to the end."""
    if len(rest) >= HEADER.size:
        length = HEADER.unpack_from(rest)[2]
        end = HEADER.size + length
        if end == len(rest) or rest[end : end + len(MAGIC)] == MAGIC:
            return end
    at = rest.find(MAGIC, 1)
    while at != -1:
        if len(rest) - at >= HEADER.size:
            _, version, length, checksum = HEADER.unpack_from(rest, at)
            payload = rest[at + HEADER.size : at + HEADER.size + length]
            if version == VERSION and len(payload) == length and zlib.crc32(payload) == checksum:
                return at
        at = rest.find(MAGIC, at + 1)
    return len(rest)


def _shard_path(directory: Path, number: int) -> Path:
    return directory / f"episodes-{number:05d}.bin"


def _number(shard: Path) -> int:
    return int(shard.stem.removeprefix("episodes-"))


def _shards(directory: Path) -> list[Path]:
    found = [path for path in directory.glob("episodes-*.bin") if path.stem.removeprefix("episodes-").isdigit()]
    return sorted(found, key=_number)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, whenever the process is killed."""
    temporary = path.with_suffix(".tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _sync_folder(directory: Path) -> None:
    """New names reach the disk with their folder, not with their file. (Only POSIX can open a folder.)"""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
