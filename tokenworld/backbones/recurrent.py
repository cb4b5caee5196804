"""A recurrent backbone: one state per row instead of a window, so that its memory has no end (the GRU of DreamerV2 and V3,
arXiv:2010.02193, arXiv:2301.04104).

Faithful: a layer norm before the gates, an update gate that is biased towards keeping. Differs: one dense block.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenworld.errors import UserError
from tokenworld.interfaces import Part

KEEP = 1.0  # subtracted from the update gate's input


@dataclass
class RecurrentCache:
    """The state after the steps that were read. No call writes into it, so it stays usable."""

    state: Tensor  # (B, D)
    positions: int = 1

    def select(self, index: Tensor) -> RecurrentCache:
        return RecurrentCache(self.state[index])

    def put(self, rows: Tensor, other: RecurrentCache) -> RecurrentCache:
        """With other's rows in place of `rows`."""
        return RecurrentCache(self.state.index_copy(0, rows, other.state))

    @property
    def bytes(self) -> int:
        """What one pass reads of it."""
        return self.state.numel() * self.state.element_size()

    @property
    def memory(self) -> int:
        """Bytes that are reserved for it."""
        return self.bytes


class Recurrent(nn.Module, Part):
    """x (B, T, 1, D) -> h (B, T, 1, D), one position per step. `context`: steps that are read before an imagined rollout."""

    scans = True

    def __init__(self, *, dim: int = 256, context: int = 16):
        super().__init__()
        if dim < 1 or context < 1:
            raise UserError(f"backbone.dim and backbone.context must be at least 1, got {dim} and {context}")
        self.D, self.context = dim, context
        self.enter, self.hidden = nn.Linear(dim, 3 * dim), nn.Linear(dim, 3 * dim, bias=False)
        self.norm = nn.LayerNorm(3 * dim)

    def forward(self, x: Tensor, within: str, cache: RecurrentCache | None = None, first: Tensor | None = None, keep=True):
        """x (B, T, 1, D), first (B, T) -> h like x, cache (None if none came in). keep=False: x is forgotten."""
        B, T, P, D = x.shape
        if P != 1:
            raise UserError(f"backbone Recurrent reads one position per step, but the decoding has {P}: choose decoding single,"
                            " mixture or rssm, or backbone gpt")  # fmt: skip
        state = x.new_zeros(B, D) if cache is None else cache.state
        inputs, out = self.enter(x[:, :, 0]), []  # (B, T, 3 * D)
        for t in range(T):
            if first is not None:
                state = torch.where(first[:, t, None], 0, state)
            reset, candidate, update = self.norm(inputs[:, t] + self.hidden(state)).chunk(3, -1)  # (B, D) each
            candidate = torch.tanh(reset.sigmoid() * candidate)
            state = state + (update - KEEP).sigmoid() * (candidate - state)
            out.append(state)
        if cache is not None and keep:
            cache = RecurrentCache(state)
        return torch.stack(out, 1).unsqueeze(2), cache  # (B, T, 1, D)

    def make_cache(self, batch: int, positions: int, dtype: torch.dtype | None = None) -> RecurrentCache:
        """An empty cache for `batch` rows."""
        weight = self.enter.weight
        return RecurrentCache(torch.zeros(batch, self.D, dtype=dtype or weight.dtype, device=weight.device))


TINY = dict(dim=16, context=4)
