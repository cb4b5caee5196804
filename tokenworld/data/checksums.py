"""The CRC-32 of any part of a file in constant time, after one pass over it.

The CRC of a part follows from those of the two beginnings of the file that end where it begins and where it ends: a CRC is
linear, so that zero bytes behind something change its CRC by a product of matrices over GF(2), which are tabulated here.
"""

from __future__ import annotations

import array
import functools
import zlib
from collections.abc import Callable

BLOCK = 4096  # bytes between two beginnings whose CRCs are kept
READ = 256 * BLOCK

Read = Callable[[int, int], bytes]  # where it begins, at most how many bytes -> bytes


class Checksums:
    """CRCs of the parts of what `read` reads."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._kept = array.array("I", [0])  # CRCs of the first 0, BLOCK, 2 BLOCK, ... bytes

    def of(self, begin: int, end: int) -> int:
        """The CRC-32 of bytes begin..end, as zlib.crc32."""
        return self._beginning(end) ^ with_zeros(self._beginning(begin), end - begin)

    def _beginning(self, end: int) -> int:
        blocks, rest = divmod(end, BLOCK)
        while len(self._kept) <= blocks:
            at = (len(self._kept) - 1) * BLOCK
            content = self._read(at, READ)
            for begin in range(0, max(len(content), BLOCK), BLOCK):
                self._kept.append(zlib.crc32(content[begin : begin + BLOCK], self._kept[-1]))
        return zlib.crc32(self._read(blocks * BLOCK, rest), self._kept[blocks])


def with_zeros(crc: int, count: int) -> int:
    """What remains of the CRC of some bytes in the CRC of them and `count` further ones."""
    power = 0
    while count:
        if count & 1:
            a, b, c, d = _tables(power)
            crc = a[crc & 255] ^ b[crc >> 8 & 255] ^ c[crc >> 16 & 255] ^ d[crc >> 24]
        count >>= 1
        power += 1
    return crc


@functools.cache
def _tables(power: int) -> list[list[int]]:
    """For each byte of a CRC and each of its values, what 2**power zero bytes make of it."""
    if power == 0:
        images = [_one_zero(1 << bit) for bit in range(32)]
    else:
        images = [with_zeros(with_zeros(1 << bit, 1 << power - 1), 1 << power - 1) for bit in range(32)]
    tables = [[0] * 256 for _ in range(4)]
    for byte, table in enumerate(tables):
        for value in range(1, 256):
            lowest = (value & -value).bit_length() - 1
            table[value] = table[value & (value - 1)] ^ images[8 * byte + lowest]
    return tables


def _one_zero(crc: int) -> int:
    for _ in range(8):
        crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return crc
