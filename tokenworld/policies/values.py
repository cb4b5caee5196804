"""What a critic says of a state: one number, or a distribution over returns. Both have `.mean` and `.loss(target)`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenworld.heads import TwoHot
from tokenworld.nn import symexp

BINS, LIMIT = 255, 20.0  # of a distribution over returns, in symlog units (DreamerV3, arXiv:2301.04104)


@dataclass(frozen=True)
class Point:
    """One number (...)."""

    mean: Tensor

    def loss(self, target: Tensor) -> Tensor:
        """Squared error."""
        return (self.mean - target) ** 2


class PointValue(nn.Linear):
    """features (..., F) -> `Point` (...)."""

    def __init__(self, features: int):
        super().__init__(features, 1)
        zero(self)

    def forward(self, features: Tensor) -> Point:
        return Point(super().forward(features).squeeze(-1))


class TwoHotValue(nn.Linear):
    """features (..., F) -> `TwoHot` (...): returns of any size without a scale to choose; zero at the beginning."""

    def __init__(self, features: int):
        super().__init__(features, BINS)
        zero(self)
        self.register_buffer("centres", symexp(torch.linspace(-LIMIT, LIMIT, BINS)), persistent=False)

    def forward(self, features: Tensor) -> TwoHot:
        return TwoHot(super().forward(features), self.centres)


VALUES = {"point": PointValue, "twohot": TwoHotValue}


def zero(layer: nn.Linear) -> None:
    """A layer that begins with zeros."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
