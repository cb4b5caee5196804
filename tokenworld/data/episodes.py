"""Episodes on disk: append-only, checksummed, in an open format.

A data set is a folder:

    meta.json               one JSON object: "format" ("tokenworld-episodes"), "version" (1 or 2), "env_id", "frame_shape"
                            [C, H, W], "action_count", "action_meanings" (list of str, or null), "preprocessing" (the
                            environment's keywords), "seed" (int or null); in version 2 also "frame_dtype" ("uint8" or
                            "float32") and "actions" {"choices": [values of each discrete part], "bounds": [[low, high] of
                            each continuous part]}
    episodes-00000.bin      records, one after another; a new shard begins when one has reached 256 MB
    episodes-00001.bin ...
    collect.json            of `tokenworld collect`: what the folder is to hold, and whether it is finished

A record is one episode. All numbers are little-endian:

    bytes 0..3      the magic, b"TWEP"
    bytes 4..7      u32, the record's version, that of meta.json
    bytes 8..15     u64, the payload's length n
    bytes 16..19    u32, the payload's CRC-32 (as zlib.crc32)
    bytes 20..20+n  the payload: a zlib stream of a safetensors file

The safetensors file holds, for an episode of n actions, `obs` (n+1, C, H, W) uint8, `action` (n,) int64, `reward` (n,)
float32, `terminated` and `truncated` (n,) bool; its `__metadata__` holds the strings `episode` (the number of the
episode in this folder), `split` ("train" or "test") and `seed` (of the environment; "" if unknown).

Version 1 is written wherever frames are bytes and an action is one whole number, 0..action_count - 1. All else is version 2:
`obs` has the type "frame_dtype"; a state vector of M numbers is a frame [M, 1, 1] of finite float32 in its own units. With one
choice and no bounds, `action` is as above and "action_count" is that choice. Otherwise `action` is (n, A) float32, the discrete
parts first, whole numbers 0..choice - 1, then the continuous ones, low..high; "action_count" and "action_meanings" are null.

action[t] is taken at obs[t]; reward[t], terminated[t], truncated[t] and obs[t+1] are what the environment returned. Rewards
are finite. The arrays of a record have at most 240 MB (`RECORD_BYTES`): a collector writes a longer game as several truncated
parts. Older files may hold longer records, which are damage to a reader, unless it gets a higher `limit`.

Damage is survived and always reported. A writer that was killed leaves a torn record at the end of the last shard:
readers stop before it, the next writer cuts it off. A damaged record elsewhere is skipped.
"""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenworld import files
from tokenworld.data.meta import META, as_json, content_of, difference, make_meta, read_meta
from tokenworld.data.record_format import HEADER, RECORD_BYTES, SPLITS, Episode, pack, unpack, unpack_number
from tokenworld.data.shards import Damage, Damages, Payload, find_shards, pieces, scan, shard_number, shard_path
from tokenworld.errors import UserError
from tokenworld.storage import space_format

__all__ = ["Damage", "Episode", "EpisodeWriter", "make_meta", "read_episodes", "read_meta"]

SHARD_BYTES = 256 * 2**20

Say = Callable[[str], None]


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=4)


class EpisodeWriter:
    """Appends episodes to the data set in `directory`, which it creates if need be. One writer at a time.

    Each record reaches the operating system at once, so that a killed process loses nothing; the disk is waited for
    (fsync) when it matters: at `position`, at a new shard, at `close`. Raises `UserError` where the disk refuses; what was
    appended before is whole then.
    """

    def __init__(
        self, directory: str | Path, meta: dict[str, Any], *, shard_bytes: int = SHARD_BYTES, say: Say = _warn
    ) -> None:
        """say: gets a line about a torn record that is cut off. Raises `UserError` if the folder holds a data set of other
        frames or actions."""
        self.directory = Path(directory)
        self.shard_bytes = shard_bytes
        self.episodes = 0  # the number of the next one
        self.meta = meta
        self._create_or_check()
        self._content = content_of(self.meta)
        shards = find_shards(self.directory)
        self._shard = shard_number(shards[-1]) if shards else 0
        for shard in shards:
            with files.writing(shard), open(shard, "rb", buffering=0) as file:
                for item in scan(shard, file, self.meta["version"]):
                    if isinstance(item, Payload):
                        number = unpack_number(pieces(file, item))
                        self.episodes = max(self.episodes, self.episodes if number is None else number) + 1
                    elif item.kind == "torn" and shard == shards[-1]:
                        say(f"{item}: cut off")
                        files.truncate_own(shard, item.offset)
        self._open()

    @classmethod
    def open_at(
        cls,
        directory: str | Path,
        position: dict[str, int],
        *,
        shard_bytes: int = SHARD_BYTES,
        meta: dict[str, Any] | None = None,
        say: Say | None = None,
    ) -> EpisodeWriter:
        """Cut the data set back to an earlier `position()` and continue there.

        If data that the position speaks of is no longer there, `say` gets a line and the existing data is kept; without
        `say`, this raises `UserError`. meta: replaces a meta.json that cannot be read.
        """
        directory = Path(directory)
        try:
            meta = read_meta(directory)
        except UserError as error:
            if meta is None or say is None:
                raise
            say(f"{error}; it is written again")
            files.write(directory / META, as_json(meta))
        path = shard_path(directory, position["shard"])
        size = path.stat().st_size if path.is_file() else 0
        if size < position["offset"]:
            lost = f"{path} has {size} bytes, expected at least {position['offset']}"
            if say is None:
                raise UserError(f"{lost}: restore that file")
            say(f"{lost}: its last episodes are left out")
        for shard in find_shards(directory):
            if shard_number(shard) > position["shard"]:
                with files.writing(shard):
                    shard.unlink()
        if size > position["offset"]:
            with files.writing(path):
                files.truncate_own(path, position["offset"])
        writer = cls(directory, meta, shard_bytes=shard_bytes, say=_warn if say is None else say)
        writer.episodes = position["episodes"]
        return writer

    def append(self, episode: Episode) -> None:
        """Write one episode. Raises ValueError for other frames or actions, UserError for one that no record can hold."""
        content = self._content
        for name, what in (("obs", "frames"), ("action", "actions")):
            array, (dtype, shape) = getattr(episode, name), content.layout[name]
            if array.shape[1:] != shape or array.dtype != dtype:
                raise ValueError(f"{what} must be {shape} {dtype} as in {self.directory}/meta.json, got {array.shape[1:]}"
                                 f" {array.dtype}")  # fmt: skip
        wrong = space_format.first_outside(content.actions, episode.action)
        if wrong is not None:
            raise ValueError(f"actions must be in {space_format.limits(content.actions)}, got {wrong}")
        if episode.steps > content.longest:
            raise UserError(
                f"an episode of {episode.steps:,} steps is too long for a record, which holds {content.longest:,} steps of"
                f" frames {content.frame}: write it in parts whose last step is truncated"
            )
        if self._file.tell() >= self.shard_bytes:
            self.close()
            self._shard += 1
            self._open()
        self._write(pack(episode, self.episodes))
        self.episodes += 1

    def position(self) -> dict[str, int]:
        """Where the data set ends now, as JSON; all that lies before it is on the disk when this returns."""
        with self._writing():
            os.fsync(self._file.fileno())
        return {"shard": self._shard, "offset": self._file.tell(), "episodes": self.episodes}

    def close(self) -> None:
        if self._file.closed:
            return
        with self._writing(), self._file:
            os.fsync(self._file.fileno())

    def __enter__(self) -> EpisodeWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        with contextlib.suppress(*([UserError] if kind else [])):  # the first error is the one to report
            self.close()

    def _create_or_check(self) -> None:
        path = self.directory / META
        if not path.exists():
            if find_shards(self.directory):
                raise UserError(f"{self.directory} holds episodes but no meta.json: restore it or use another folder")
            text = as_json(self.meta)
            self.meta = json.loads(text)
            files.write(path, text)
            return
        there = read_meta(self.directory)
        different = difference(there, self.meta)
        if different is not None:
            key, theirs, ours = different
            raise UserError(f"{self.directory} is a data set with {key} {theirs}, got episodes with {ours}: choose another"
                            " folder")  # fmt: skip
        self.meta = there

    def _open(self) -> None:
        with self._writing():
            self._file = files.open_own(shard_path(self.directory, self._shard), "ab", buffering=0)
            self._file.seek(0, os.SEEK_END)
            files.sync(self.directory)

    def _write(self, record: bytes) -> None:
        """All of a record or, where the disk allows, nothing of it."""
        begin, left = self._file.tell(), memoryview(record)
        with self._writing():
            try:
                while left:
                    left = left[self._file.write(left) :]
            except BaseException:
                with contextlib.suppress(OSError):
                    self._file.truncate(begin)
                    self._file.seek(begin)
                raise

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return files.writing(shard_path(self.directory, self._shard), "all episodes that were written before are whole")


def read_episodes(
    directory: str | Path,
    split: str | None = None,
    on_corrupt: Callable[[Damage], None] | None = None,
    *,
    limit: int = RECORD_BYTES,
) -> Iterator[Episode]:
    """The episodes of a data set in the order of writing, of one split or of both.

    What cannot be read is skipped and handed to `on_corrupt`; without one, there are Python warnings. limit: bytes that the
    arrays of one record may have. Raises `UserError` at once if the folder is no data set.
    """
    if split is not None and split not in SPLITS:
        raise UserError(f"split must be train or test, got {split}: choose one of them, or leave it out for both")
    numbered = read_numbered(directory, split, on_corrupt, limit)
    return (episode for _, episode in numbered)


def read_numbered(
    directory: str | Path,
    split: str | None = None,
    on_corrupt: Callable[[Damage], None] | None = None,
    limit: int = RECORD_BYTES,
) -> Iterator[tuple[int | None, Episode]]:
    """As `read_episodes`, each with the number that it says it has in this data set."""
    return _read(Path(directory), read_meta(directory), split, on_corrupt, limit)


def _read(
    directory: Path, meta: dict[str, Any], split: str | None, on_corrupt: Callable[[Damage], None] | None, limit: int
) -> Iterator[tuple[int | None, Episode]]:
    damages = Damages()
    report = on_corrupt or damages.add
    content = content_of(meta)
    for shard in find_shards(directory):
        with files.writing(shard), open(shard, "rb", buffering=0) as file:
            for item in scan(shard, file, content.version):
                if isinstance(item, Damage):
                    report(item)
                    continue
                try:
                    numbered = unpack(pieces(file, item), item.end - item.begin, content, split, limit)
                except ValueError as error:
                    begin = item.begin - HEADER.size
                    reason = f"not an episode of this data set: {error}"
                    report(Damage(shard, begin, item.end - begin, "corrupt", reason))
                    continue
                if numbered is not None:
                    yield numbered
    for line in damages.lines():
        _warn(line)


def load_episodes(directory: str | Path, add: Callable[[Episode], None], say: Say) -> dict[str, int]:
    """Hand all episodes of a data set to `add`; how many there are by split, and how many are damaged.

    Damaged records are left out and reported to `say` in a few sentences.
    """
    damages, counts = Damages(), dict.fromkeys(SPLITS, 0)
    for episode in read_episodes(directory, on_corrupt=damages.add):
        add(episode)
        counts[episode.split] += 1
    for line in damages.lines():
        say(f"skipped: {line}")
    return counts | {"damaged": damages.count}


def check_trainable(directory: str | Path, counts: dict[str, int], collects: bool) -> None:
    """Raises `UserError` if there is nothing to learn from in what `load_episodes` has counted. collects: more will come."""
    if not counts["train"] and not (collects and counts["test"]):
        raise UserError(
            f"{directory} has no episode to train on (0 of the training split, {counts['test']} of the test split,"
            f" {counts['damaged']} damaged): choose another data set, `tokenworld collect` makes one"
        )
