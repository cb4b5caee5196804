"""Heads read h and return a distribution with .loss(target), .mean and .sample(noise). Shapes are h's without D."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenworld.errors import UserError
from tokenworld.interfaces import Part
from tokenworld.nn import log_prob, mlp, sample_categorical, symexp, symlog


@dataclass(frozen=True)
class Sign:
    """Reward sign in {-1, 0, 1}: logits (..., 3)."""

    logits: Tensor

    def loss(self, target: Tensor) -> Tensor:
        """Cross-entropy in nats of the sign of a real reward."""
        return -log_prob(self.logits, target.sign().long() + 1)

    @property
    def mean(self) -> Tensor:
        p = self.signs
        return p[..., 2] - p[..., 0]

    @property
    def signs(self) -> Tensor:
        """Probabilities (..., 3) of a negative, of no and of a positive reward."""
        return self.logits.float().softmax(-1)

    def sample(self, noise: Tensor) -> Tensor:
        return sample_categorical(self.logits, noise).float() - 1


@dataclass(frozen=True)
class TwoHot:
    """A reward of any size as a distribution over symlog-spaced bins: logits (..., bins), `centres` (bins,) in reward units."""

    logits: Tensor
    centres: Tensor

    def loss(self, target: Tensor) -> Tensor:
        """Cross-entropy in nats to the two bins around the target, each weighted by its nearness (DreamerV3, eq. 10)."""
        z, bins = symlog(target.float()), symlog(self.centres)
        z = z.clamp(bins[0], bins[-1])
        above = torch.searchsorted(bins, z).clamp(1, len(bins) - 1)
        below = above - 1
        share = (z - bins[below]) / (bins[above] - bins[below])
        return -(1 - share) * log_prob(self.logits, below) - share * log_prob(self.logits, above)

    @property
    def mean(self) -> Tensor:
        """The halves are mirrored before they are summed: huge opposite centers must cancel exactly (DreamerV3)."""
        p, half = self.logits.float().softmax(-1), len(self.centres) // 2
        return ((p[..., half + 1 :] - p[..., :half].flip(-1)) * self.centres[half + 1 :]).sum(-1)

    @property
    def signs(self) -> Tensor:
        """Probabilities (..., 3) of a reward below -1/2, of one between and of one above 1/2."""
        p, parts = self.logits.float().softmax(-1), (self.centres < -0.5, self.centres.abs() <= 0.5, self.centres > 0.5)
        return torch.stack([(p * part).sum(-1) for part in parts], -1)

    def sample(self, noise: Tensor) -> Tensor:
        return self.centres[sample_categorical(self.logits, noise)]


@dataclass(frozen=True)
class Bernoulli:
    """Termination: logits (...)."""

    logits: Tensor

    def loss(self, target: Tensor) -> Tensor:
        """Binary cross-entropy in nats."""
        return F.binary_cross_entropy_with_logits(self.logits.float(), target.float(), reduction="none")

    @property
    def mean(self) -> Tensor:
        return self.logits.float().sigmoid()

    def sample(self, noise: Tensor) -> Tensor:
        return noise < self.mean


class SignReward(nn.Module, Part):
    """IRIS's reward head: three classes. Its `mean` is the expected sign."""

    signs_only = True

    def __init__(self, *, dim: int, hidden: int = 256):
        super().__init__()
        self.net = mlp(dim, 3, hidden=hidden, zero_last=True)

    def forward(self, h: Tensor) -> Sign:
        return Sign(self.net(h))


class TwoHotReward(nn.Module, Part):
    """DreamerV3's reward head: `bins` centers spaced evenly in symlog units from -limit to limit.

    Dream with its mean (train.policy.expected_reward=true): a sample may be a far bin that only has rounding's mass.
    """

    def __init__(self, *, dim: int, hidden: int = 256, bins: int = 255, limit: float = 20.0):
        super().__init__()
        if bins < 3 or bins % 2 == 0:
            raise UserError(f"reward.bins must be odd and at least 3 (the middle bin is 0), got {bins}: choose e.g. 255")
        self.net = mlp(dim, bins, hidden=hidden, zero_last=True)
        self.register_buffer("centres", symexp(torch.linspace(-limit, limit, bins)), persistent=False)

    def forward(self, h: Tensor) -> TwoHot:
        return TwoHot(self.net(h), self.centres)


class Termination(nn.Module, Part):
    """Probability that the episode terminates (not: is truncated) with this step."""

    def __init__(self, *, dim: int, hidden: int = 256):
        super().__init__()
        self.net = mlp(dim, 1, hidden=hidden, zero_last=True)

    def forward(self, h: Tensor) -> Bernoulli:
        return Bernoulli(self.net(h).squeeze(-1))
