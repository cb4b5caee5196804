"""Action encoders: what the dynamics sees of an action."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenworld.interfaces import Part


class DiscreteAction(nn.Module, Part):
    """A learned vector per discrete action, as IRIS's action tokens."""

    def __init__(self, *, actions: int, dim: int):
        super().__init__()
        self.A = actions
        self.table = nn.Embedding(actions, dim)
        nn.init.normal_(self.table.weight, std=0.3)

    def forward(self, action: Tensor) -> Tensor:
        """action (...) int64 -> (..., D)."""
        return self.table(action)


class ShuffledAction(DiscreteAction):
    """A control: while it learns, the dynamics sees the actions of other windows of the batch. So a policy cannot learn from
    the model what its actions do."""

    def forward(self, action: Tensor) -> Tensor:
        """action (B, ...) int64 -> (B, ..., D)."""
        return super().forward(action[torch.randperm(len(action)).to(action.device)] if self.training else action)


TINY = dict()
