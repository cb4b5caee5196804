"""Action encoders: what the dynamics sees of an action."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from tokenworld.action_space import Actions, of
from tokenworld.interfaces import Part
from tokenworld.nn import mlp


class ActionTable(nn.Module, Part):
    """A learned vector for each value of each discrete part, as IRIS's action tokens, and two layers on the continuous parts,
    scaled to -1..1; their sum. hidden: width of these layers."""

    def __init__(self, *, actions: Actions | int, dim: int, hidden: int = 64):
        super().__init__()
        self.actions = of(actions)
        *offset, size = itertools.accumulate(self.actions.choices, initial=0)  # where each part begins in the table
        self.table = nn.Embedding(size, dim)
        nn.init.normal_(self.table.weight, std=0.3)
        self.register_buffer("offset", torch.tensor(offset, dtype=torch.int64), persistent=False)
        self.continuous = mlp(len(self.actions.bounds), dim, hidden=hidden) if self.actions.bounds else None

    def forward(self, action: Tensor) -> Tensor:
        """action (...) int64, or (..., A) float32 -> (..., D)."""
        if self.actions.is_single:
            return self.table(action)
        discrete, continuous = self.actions.split(action)  # (..., n), (..., m)
        out = self.table(discrete + self.offset).sum(-2)  # (..., D)
        return out if self.continuous is None else out + self.continuous(self.actions.scale(continuous).to(out.dtype))


class ShuffledAction(ActionTable):
    """A control: while it learns, the dynamics sees the actions of other windows of the batch. So a policy cannot learn from
    the model what its actions do."""

    def forward(self, action: Tensor) -> Tensor:
        """action (B, ...) -> (B, ..., D)."""
        return super().forward(action[torch.randperm(len(action)).to(action.device)] if self.training else action)


TINY = dict()
