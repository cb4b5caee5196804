"""64 bits of a state."""

from __future__ import annotations

import hashlib


def _hash(state: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(state, digest_size=8).digest(), "little")
