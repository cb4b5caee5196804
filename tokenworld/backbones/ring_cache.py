"""The keys and values of the last `context` steps, which a transformer reads instead of computing them again."""

from __future__ import annotations

import os
from dataclasses import dataclass

from torch import Tensor

from tokenworld.kernels.memory import ring_memory

# A stricter world for tests: using a cache that a later call has consumed raises instead of reading spoilt memory.
DEBUG = bool(os.environ.get("TOKENWORLD_DEBUG"))


@dataclass
class RingCache:
    """Keys and values of the last `context` steps: per layer one ring (B, N, S, D/N), S = context * P.

    A call writes into the rings, so it consumes the cache that it is given; `select` is the only copy. On a CPU, where
    reading them is what a pass costs, they are C <= S slots wide, packed at the front of their memory, and spread out as
    they fill: half-empty rows are read at half the speed. On a GPU C = S, so that every pass has the same shape.
    """

    keys: list[Tensor]
    values: list[Tensor]
    cursor: Tensor  # () int64: positions read so far, the same for all rows
    start: Tensor  # (B,) int64: the step at which the row's episode began
    positions: int  # P
    read: int  # the cursor, as the host knows it
    S: int  # slots that there is memory for
    alive: bool = True

    def select(self, index: Tensor) -> RingCache:
        assert self.alive, "this state was consumed by a step: keep a copy with state.select(index) before stepping"
        return RingCache(
            [self._rows(k, index) for k in self.keys],
            [self._rows(v, index) for v in self.values],
            self.cursor.clone(),
            self.start[index],
            self.positions,
            self.read,
            self.S,
        )

    def put(self, rows: Tensor, other: RingCache) -> None:
        """None: rows cannot be replaced, since all of them have one cursor."""

    @property
    def filled(self) -> int:
        """How many slots hold something."""
        return min(self.S, self.read)

    @property
    def memory(self) -> int:
        """Bytes that are reserved for the rings."""
        return sum(ring.untyped_storage().nbytes() for ring in self.keys + self.values)

    @property
    def bytes(self) -> int:
        """What one pass over the filled part of the rings reads."""
        B, N, C, width = self.keys[0].shape
        return 2 * len(self.keys) * B * N * self.filled * width * self.keys[0].element_size()

    def reserve(self, positions: int) -> None:
        """Have slots for so many more positions, in steps of two environment steps."""
        B, N, C, width = self.keys[0].shape
        needed, grain = min(self.S, self.filled + positions), 2 * self.positions
        if needed > C:
            wider = (B, N, min(self.S, -(-needed // grain) * grain), width)
            for rings in (self.keys, self.values):
                for i, ring in enumerate(rings):
                    old = ring.clone()
                    rings[i] = ring.as_strided(wider, (N * wider[2] * width, wider[2] * width, width, 1))
                    rings[i][:, :, :C] = old
                    rings[i][:, :, C:] = 0  # weighed with 0, which must not meet a NaN

    def _rows(self, ring: Tensor, index: Tensor) -> Tensor:
        _, N, C, width = ring.shape
        rows = ring_memory((len(index), N, self.S, width), C, ring.dtype, ring.device)
        return rows.copy_(ring[index])

    def advance(self, positions: int, start: Tensor) -> RingCache:
        """The cache after so many positions more, whose rows' episodes began at the steps `start`; consumes this one."""
        self.alive = not DEBUG
        return RingCache(
            self.keys,
            self.values,
            self.cursor + positions,
            start,
            self.positions,
            self.read + positions,
            self.S,
        )
