"""The files of a data set: intact records and damage in them, found in time and memory that grow with a file's size only.

A damaged record is skipped by its length if another record (or the end) follows there, otherwise by looking for the next
magic that begins an intact record. Each checksum costs the same, however long the record claims to be (`checksums.py`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tokenworld.data.checksums import Checksums
from tokenworld.data.record_format import CHUNK, HEADER, MAGIC

SHOWN = 3  # damages that are described one by one


@dataclass(frozen=True)
class Payload:
    """Where a record's payload lies whose checksum is right."""

    begin: int
    end: int


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


class Damages:
    """How much of a data set could not be read, and the first few damages in words."""

    def __init__(self) -> None:
        self.corrupt = self.torn = 0
        self.first: list[str] = []

    def add(self, damage: Damage) -> None:
        self.corrupt += damage.kind == "corrupt"
        self.torn += damage.kind == "torn"
        if len(self.first) < SHOWN:
            self.first.append(str(damage))

    @property
    def count(self) -> int:
        return self.corrupt + self.torn

    def lines(self) -> list[str]:
        """The first few, and how many there are besides."""
        more = self.count - len(self.first)
        return self.first + ([f"{more:,} more damaged records"] if more else [])


def shard_path(directory: Path, number: int) -> Path:
    return directory / f"episodes-{number:05d}.bin"


def shard_number(shard: Path) -> int:
    return int(shard.stem.removeprefix("episodes-"))


def find_shards(directory: Path) -> list[Path]:
    """The files of a data set in the order of writing."""
    named = [path for path in directory.glob("episodes-*.bin") if re.fullmatch(r"episodes-[0-9]{5,9}\.bin", path.name)]
    return sorted((path for path in named if path.is_file()), key=shard_number)


def scan(shard: Path, file: BinaryIO, version: int = 1) -> Iterator[Payload | Damage]:
    """The records of a shard, opened unbuffered, whose checksums are right, and the damage between them, in order.

    version: of the records; those of another one are damage.
    """
    source = _Source(file, version)
    at = 0
    while at < source.size:
        record = source.record(at)
        if isinstance(record, Payload):
            yield record
            at = record.end
            continue
        end = source.skip(at)
        # Nothing intact follows and a header does not end within the file: this is where a writer was killed.
        is_torn = end == source.size and record.startswith("incomplete")
        yield Damage(shard, at, end - at, "torn" if is_torn else "corrupt", record)
        at = end


def pieces(file: BinaryIO, payload: Payload) -> Iterator[bytes]:
    """The bytes of a payload."""
    for at in range(payload.begin, payload.end, CHUNK // 16):
        file.seek(at)  # others read this file, too
        yield file.read(min(CHUNK // 16, payload.end - at))


class _Source:
    """A shard's bytes, by their position."""

    def __init__(self, file: BinaryIO, version: int) -> None:
        self._file, self._version = file, version
        self._mark = MAGIC + version.to_bytes(4, "little")  # what a record begins with
        self.size = os.fstat(file.fileno()).st_size
        self._checksums = Checksums(self._read)
        self._window, self._window_at = b"", -1  # the part that was searched last

    def record(self, at: int) -> Payload | str:
        """The payload of the record that begins here, or what is wrong with it."""
        header = self._read(at, HEADER.size)
        if len(header) < HEADER.size:
            return "incomplete header"
        magic, version, length, checksum = HEADER.unpack(header)
        begin = at + HEADER.size
        if magic != MAGIC:
            return "no record begins here"
        if version != self._version:
            return f"record version {version}, expected {self._version}"
        if length > self.size - begin:
            return "incomplete payload"
        if self._checksums.of(begin, begin + length) != checksum:
            return "wrong checksum"
        return Payload(begin, begin + length)

    def skip(self, at: int) -> int:
        """Where the next record begins after a damaged one, or the end."""
        header = self._read(at, HEADER.size)
        if len(header) == HEADER.size:
            end = at + HEADER.size + HEADER.unpack(header)[2]
            if end == self.size or (end < self.size and self._read(end, len(MAGIC)) == MAGIC):
                return end
        at = self._find(at + 1)
        while at < self.size and not isinstance(self.record(at), Payload):
            at = self._find(at + 1)
        return at

    def _find(self, at: int) -> int:
        """Where the next record could begin, or the end."""
        while at < self.size:
            begin = at - at % CHUNK
            if begin != self._window_at:
                self._window, self._window_at = self._read(begin, CHUNK + len(self._mark) - 1), begin
            index = self._window.find(self._mark, at - begin)
            if index != -1:
                return begin + index
            at = begin + CHUNK
        return self.size

    def _read(self, at: int, count: int) -> bytes:
        self._file.seek(at)
        return self._file.read(count)
