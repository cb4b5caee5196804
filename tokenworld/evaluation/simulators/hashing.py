"""64 bits of a state."""

from __future__ import annotations

import hashlib


def hash_of(state: bytes) -> int:
    """64 bits: equal for equal states."""
    return int.from_bytes(hashlib.blake2b(state, digest_size=8).digest(), "little")
