"""One episode, and the bytes that it is in a file (their format: `episodes.py`).

What is read comes from anywhere. A zlib stream can hold a thousand times its own length, so its first bytes, the header of
the safetensors file in it, are read first and checked against `meta.json`; then memory is taken for exactly what the header
promises, at most `RECORD_BYTES`, and filled piece by piece.
"""

from __future__ import annotations

import json
import math
import re
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.numpy

from tokenworld.action_space import Actions
from tokenworld.storage import space_format

MAGIC = b"TWEP"
HEADER = struct.Struct("<4sIQI")
RECORD_BYTES = 240 * 2**20  # of a record's arrays: with their copy in a replay less than 512 MB of memory
TENSORS_BYTES = 2**16  # the longest list of tensors; that of an episode has about 500 bytes
RATIO = 1032  # zlib makes at most so many bytes of one
CHUNK = 2**20
SPLITS = ("train", "test")
FIELDS = {"reward": np.float32, "terminated": np.bool_, "truncated": np.bool_}
ARRAYS = ("obs", "action", *FIELDS)
TYPES = {"uint8": "U8", "int64": "I64", "float32": "F32", "bool": "BOOL"}  # of NumPy, and as safetensors writes them


@dataclass(frozen=True)
class Content:
    """What all episodes of a data set have in common."""

    frame: tuple[int, int, int]  # C, H, W
    actions: Actions
    frame_dtype: str = "uint8"  # or "float32"

    @property
    def version(self) -> int:
        """Of the records that hold them."""
        return space_format.version_of(self.actions, self.frame_dtype)

    @property
    def layout(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """The type of each array of an episode, and the shape of one step of it."""
        action = np.dtype(np.int64 if self.actions.is_single else np.float32)
        arrays = {"obs": (np.dtype(self.frame_dtype), self.frame), "action": (action, self.actions.row)}
        return arrays | {name: (np.dtype(dtype), ()) for name, dtype in FIELDS.items()}

    @property
    def longest(self) -> int:
        """The most actions that one record can hold."""
        sizes = {name: dtype.itemsize * math.prod(shape) for name, (dtype, shape) in self.layout.items()}
        return (RECORD_BYTES - sizes["obs"]) // sum(sizes.values())


@dataclass(frozen=True)
class Episode:
    """One episode of n actions (n >= 1), or a part of one that was cut off. Raises ValueError for what cannot be one."""

    obs: np.ndarray  # (n+1, C, H, W) uint8, or float32, finite
    action: np.ndarray  # (n,) int64, or (n, A) float32, finite
    reward: np.ndarray  # (n,) float32, finite
    terminated: np.ndarray  # (n,) bool
    truncated: np.ndarray  # (n,) bool
    split: str = "train"
    seed: int | None = None  # of the environment it was collected from

    def __post_init__(self) -> None:
        n = len(self.action)
        if n < 1 or self.obs.ndim != 4 or len(self.obs) != n + 1 or self.obs.dtype not in (np.uint8, np.float32):
            raise ValueError(f"an episode of {n} actions needs obs ({n + 1}, C, H, W) uint8 or float32, got {self.obs.shape}"
                             f" {self.obs.dtype}")  # fmt: skip
        if (self.action.ndim, self.action.dtype) not in ((1, np.int64), (2, np.float32)):
            raise ValueError(f"action must be ({n},) int64 or ({n}, A) float32, got {self.action.shape} {self.action.dtype}")
        for name, dtype in FIELDS.items():
            field = getattr(self, name)
            if field.shape != (n,) or field.dtype != dtype:
                raise ValueError(f"{name} must be ({n},) {np.dtype(dtype)}, got {field.shape} {field.dtype}")
        for name, values in (("rewards", self.reward), ("frames", self.obs), ("actions", self.action)):
            is_finite = values.dtype != np.float32 or np.isfinite(values)
            if not np.all(is_finite):
                at = tuple(int(i) for i in np.argwhere(~is_finite)[0])
                raise ValueError(f"{name} must be finite numbers, got {values[at]} at step {at[0]}")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {SPLITS}, got {self.split!r}")

    @property
    def steps(self) -> int:
        return len(self.action)

    @property
    def episode_return(self) -> float:
        return float(self.reward.sum(dtype=np.float64))

    @property
    def version(self) -> int:
        """Of the record that holds it."""
        return 1 if self.obs.dtype == np.uint8 and self.action.ndim == 1 else 2


def pack(episode: Episode, number: int) -> bytes:
    """An episode as a record. number: which one of its folder it is."""
    metadata = {
        "episode": str(number),
        "split": episode.split,
        "seed": "" if episode.seed is None else str(episode.seed),
    }
    contiguous = {name: np.ascontiguousarray(getattr(episode, name)) for name in ARRAYS}
    payload = zlib.compress(safetensors.numpy.save(contiguous, metadata), level=1)
    return HEADER.pack(MAGIC, episode.version, len(payload), zlib.crc32(payload)) + payload


def unpack(
    pieces: Iterable[bytes], length: int, content: Content, split: str | None, limit: int
) -> tuple[int | None, Episode] | None:
    """The number and the episode of a payload of `length` bytes in `pieces`; None if it is of the other split.

    Raises ValueError for anything that is not an episode with such frames and actions, of at most `limit` bytes.
    """
    stream = _Inflated(pieces)
    header, metadata = _header(stream)
    if split is not None and metadata["split"] != split:
        return None
    n, offsets, total = _offsets_of(header, content)
    if total > limit:
        raise ValueError(f"it has {n:,} steps, {total:,} bytes, more than the {limit:,} bytes that a record may have")
    if total > RATIO * length:
        raise ValueError(f"its header declares {total:,} bytes, and {length:,} cannot hold them")
    read = stream.read(total)
    if stream.more(1):
        raise ValueError("it holds more than its header says")
    arrays = {}
    for name, (dtype, shape) in content.layout.items():
        field = read[slice(*offsets[name])]
        if dtype == np.bool_ and field.max() > 1:
            raise ValueError(f"{name} must hold 0 and 1, got {field.max()}")
        # a copy only where numbers do not begin at a multiple of their size
        arrays[name] = np.require(field.view(dtype.newbyteorder("<")), dtype, "A").reshape(-1, *shape)  # (n, ...), (n+1, ...)
    wrong = space_format.first_outside(content.actions, arrays["action"])
    if wrong is not None:
        raise ValueError(f"its actions are {wrong}, meta.json says {space_format.limits(content.actions)}")
    seed = metadata["seed"]
    return number_of(metadata), Episode(**arrays, split=metadata["split"], seed=int(seed) if seed else None)


def unpack_number(pieces: Iterable[bytes]) -> int | None:
    """The number that a payload says it has in its folder, if it says one."""
    try:
        return number_of(_header(_Inflated(pieces))[1])
    except ValueError:
        return None


def number_of(metadata: dict[str, str]) -> int | None:
    text = metadata.get("episode")
    return int(text) if isinstance(text, str) and re.fullmatch(r"[0-9]{1,18}", text) else None


def _header(stream: _Inflated) -> tuple[dict[str, Any], dict[str, str]]:
    """The list of tensors that a safetensors file begins with, without its metadata, and the metadata."""
    (length,) = struct.unpack("<Q", stream.read(8).tobytes())
    if length > TENSORS_BYTES:
        raise ValueError(f"its list of tensors has {length:,} bytes, more than {TENSORS_BYTES:,}")
    try:
        header = json.loads(stream.read(length).tobytes())
    except (ValueError, RecursionError) as error:
        raise ValueError("its list of tensors is not JSON") from error
    if not isinstance(header, dict) or not isinstance(metadata := header.pop("__metadata__", None), dict):
        raise ValueError("its list of tensors has no metadata")
    seed = metadata.get("seed")
    if metadata.get("split") not in list(SPLITS) or not (isinstance(seed, str) and re.fullmatch(r"-?[0-9]{1,99}|", seed)):
        raise ValueError("its metadata has no split, train or test, or no seed")
    return header, metadata


def _offsets_of(header: dict[str, Any], content: Content) -> tuple[int, dict[str, tuple[int, int]], int]:
    """Actions n; where each tensor begins and ends; bytes of all. Raises ValueError unless they lie one behind another."""
    try:
        n = header["action"]["shape"][0]
        layout = content.layout
        shapes = {name: [n + (name == "obs"), *shape] for name, (_, shape) in layout.items()}
        if header["obs"]["shape"][1:] != shapes["obs"][1:]:
            raise ValueError(f"frames are {tuple(header['obs']['shape'][1:])}, meta.json says {content.frame}")
        if type(n) is not int or n < 1 or set(header) != set(ARRAYS):
            raise KeyError
        offsets, at = {}, 0
        for name in sorted(header, key=lambda name: header[name]["data_offsets"][0]):
            dtype = layout[name][0]
            offsets[name] = (at, at + dtype.itemsize * math.prod(shapes[name]))
            expected = {"dtype": TYPES[dtype.name], "shape": shapes[name], "data_offsets": list(offsets[name])}
            if header[name] != expected:
                raise KeyError
            at = offsets[name][1]
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"its tensors are not {', '.join(ARRAYS)} of one episode") from error
    return n, offsets, at


class _Inflated:
    """What a zlib stream holds, as far as it is asked for. Raises ValueError where it is damaged or ends too early."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._stream = zlib.decompressobj()
        self._rest = b""

    def read(self, count: int) -> np.ndarray:
        """Exactly `count` bytes (count,) uint8."""
        content, at = np.empty(count, np.uint8), 0  # the system gives the memory as it is filled
        while at < count:
            piece = self.more(min(CHUNK, count - at))
            if not piece:
                raise ValueError(f"it ends after {at:,} of {count:,} bytes")
            content[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            at += len(piece)
        return content

    def more(self, most: int) -> bytes:
        """The next bytes, at most `most`; none at the end."""
        while not self._stream.eof:
            self._rest = self._rest or next(self._pieces, b"")
            is_last = not self._rest
            try:
                piece = self._stream.decompress(self._rest, most)
            except zlib.error as error:
                raise ValueError(f"{error}") from error
            self._rest = self._stream.unconsumed_tail
            if piece:
                return piece
            if is_last:
                raise ValueError("its zlib stream is cut off")
        return b""
