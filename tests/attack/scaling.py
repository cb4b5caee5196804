"""Damaged shards of twice the size take at most 2.5 times as long: shards made to be costly to read."""

from __future__ import annotations

import json
import random
import shutil
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

from mutate import HEADER, MAGIC
from server import Server

MOST = 2.5  # times as long for twice the size
QUICK = 0.4  # seconds of CPU that are not worth a comparison
AGAIN = 4  # measurements more, where the first say that it does not scale
LARGEST = 16 * 2**20  # bytes
META = {
    "format": "tokenworld-episodes", "version": 1, "env_id": "MinAtar/Breakout-v1", "frame_shape": [4, 10, 10],
    "action_count": 3, "action_meanings": None, "preprocessing": {}, "seed": 0,
}  # fmt: skip


def _magics(size: int) -> bytes:
    return MAGIC * (size // 4)


def _to_the_end(size: int) -> bytes:
    """Headers, each of a record that reaches to the end, with a wrong checksum."""
    count = size // HEADER.size
    return b"".join(HEADER.pack(MAGIC, 1, (count - i - 1) * HEADER.size, 7) for i in range(count))


def _halves(size: int) -> bytes:
    """Headers, each of a record of half of what is left."""
    count = size // HEADER.size
    return b"".join(HEADER.pack(MAGIC, 1, (count - i - 1) * HEADER.size // 2, 7) for i in range(count))


def _chained(size: int) -> bytes:
    """Small records with wrong checksums, one after another: each is a damage of its own."""
    return (HEADER.pack(MAGIC, 1, 4, 7) + b"abcd") * (size // (HEADER.size + 4))


def _empty(size: int) -> bytes:
    """Records without content and with right checksums."""
    return HEADER.pack(MAGIC, 1, 0, 0) * (size // HEADER.size)


def _tiny(size: int) -> bytes:
    """Right checksums over what is no episode."""
    import zlib

    return (HEADER.pack(MAGIC, 1, 4, zlib.crc32(b"abcd")) + b"abcd") * (size // (HEADER.size + 4))


def _noise(size: int) -> bytes:
    return random.Random(0).randbytes(size)


def _long_last(size: int) -> bytes:
    """Headers of records that are longer than the file, then zeros."""
    head = struct.pack("<4sIQI", MAGIC, 1, 2**62, 0)
    return head * (size // 2 // len(head)) + bytes(size // 2)


SHARDS: dict[str, Callable[[int], bytes]] = {
    "magic numbers": _magics,
    "records that reach to the end": _to_the_end,
    "records of half of the rest": _halves,
    "small records with wrong checksums": _chained,
    "empty records": _empty,
    "small records that are no episodes": _tiny,
    "noise": _noise,
    "records longer than the file": _long_last,
}


def seconds(server: Server, folder: Path, content: bytes, limit: int) -> tuple[float, int]:
    """CPU seconds that `data info` takes over one shard, and the characters that it prints."""
    where = Path(tempfile.mkdtemp(prefix="scaling-", dir=folder))
    (where / "data").mkdir()
    (where / "data" / "meta.json").write_text(json.dumps(META), encoding="utf-8")
    (where / "data" / "episodes-00000.bin").write_bytes(content)
    done = server.run(["data", "info", "data"], where, cpu_limit=limit, timeout=10 * limit)
    shutil.rmtree(where)
    return done.cpu if done.code >= 0 else float(limit), len(done.stdout) + len(done.stderr)


def faults(server: Server, folder: Path, limit: int = 30, largest: int = LARGEST) -> list[str]:
    """A sentence for each kind of shard whose reading does not scale, or about which too much is said."""
    found = []
    least, _ = seconds(server, folder, b"", limit)
    for name, make in SHARDS.items():
        size = 2**16
        took, said = seconds(server, folder, make(size), limit)
        while size < largest and took - least < QUICK:
            size *= 4
            took, said = seconds(server, folder, make(size), limit)
        if took - least >= QUICK:
            twice, _ = seconds(server, folder, make(2 * size), 3 * limit)
            for _ in range(AGAIN):  # a busy machine makes single measurements larger, never smaller
                if twice - least > MOST * (took - least):
                    took = min(took, seconds(server, folder, make(size), limit)[0])
                    twice = min(twice, seconds(server, folder, make(2 * size), 3 * limit)[0])
            if twice - least > MOST * (took - least) or took >= limit:
                found.append(f"{name}: {size} bytes take {took - least:.2f} s, twice as many {twice - least:.2f} s")
        if said > 5000:
            found.append(f"{name}: {size} bytes are told of in {said} characters")
    return found
