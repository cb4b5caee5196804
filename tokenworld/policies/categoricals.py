"""One categorical distribution per part of an action, independent of each other: a continuous part has bins, evenly spaced from
its lowest to its highest value (Tang and Agrawal 2020, arXiv:1901.10500)."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenworld.action_space import Actions
from tokenworld.errors import UserError
from tokenworld.nn import categorical_entropy, log_prob, sample_categorical


class Categoricals:
    """Of actions (...) or (..., A), from logits (..., size) of all parts, one behind the other. Raises UserError for less than
    two bins."""

    def __init__(self, actions: Actions, bins: int) -> None:
        if bins < 2:
            raise UserError(f"policy.bins must be at least 2, got {bins}: choose e.g. 15")
        self.actions, self.bins = actions, bins
        self.sizes = [*actions.choices, *[bins] * len(actions.bounds)]
        self.size = sum(self.sizes)

    def sample(self, logits: Tensor, noise: Tensor, temperature: float) -> Tensor:
        """logits (..., size), uniform noise (..., A) -> actions; temperature 0 takes the most probable value of each part."""
        parts = enumerate(logits.split(self.sizes, -1))
        index = torch.stack([sample_categorical(part, noise[..., i], temperature) for i, part in parts], -1)  # (..., A)
        n = len(self.actions.choices)
        return self.actions.join(index[..., :n], self.actions.unscale(index[..., n:] / (self.bins - 1) * 2 - 1))

    def log_prob(self, logits: Tensor, action: Tensor) -> Tensor:
        """logits (..., size), actions -> (...)."""
        discrete, continuous = self.actions.split(action)
        bins = ((self.actions.scale(continuous) + 1) / 2 * (self.bins - 1)).round().long().clamp(0, self.bins - 1)
        index = torch.cat([discrete, bins], -1)  # (..., A)
        parts = enumerate(logits.split(self.sizes, -1))
        return torch.stack([log_prob(part, index[..., i]) for i, part in parts]).sum(0)

    def entropy(self, logits: Tensor) -> Tensor:
        """logits (..., size) -> (...) nats."""
        return torch.stack([categorical_entropy(part) for part in logits.split(self.sizes, -1)]).sum(0)
