"""Lambda-returns of imagined trajectories, and a running scale for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def lambda_return(reward: Tensor, terminated: Tensor, value: Tensor, *, gamma: float, lambda_: float) -> Tensor:
    """R_t = r_t + gamma (1 - end_t) ((1 - lambda) V_{t+1} + lambda R_{t+1}), R_H = V_H (DreamerV2, eq. 4).

    reward, terminated (B, H), value (B, H+1) -> (B, H). The horizon is a truncation: it bootstraps; a termination does not, and
    a probable one in part.
    """
    discount = gamma * (1 - terminated.float())
    returns, last = [], value[:, -1]
    for t in reversed(range(reward.shape[1])):
        last = reward[:, t] + discount[:, t] * ((1 - lambda_) * value[:, t + 1] + lambda_ * last)
        returns.append(last)
    return torch.stack(returns[::-1], 1)


def weigh(x: Tensor, alive: Tensor) -> Tensor:
    """x (B, H) where the rollout is alive (bool), or times the probability that it is."""
    return torch.where(alive, x, 0) if alive.dtype == torch.bool else x * alive


class ReturnScale(nn.Module):
    """The spread of returns, P95 - P5, as a moving average, at least 1 (DreamerV3, eq. 7): divide advantages by it."""

    def __init__(self, rate: float = 0.01):
        super().__init__()
        self.rate = rate
        self.register_buffer("spread", torch.zeros(()))
        self.register_buffer("seen", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor) -> None:
        low, high = torch.quantile(returns.flatten()[: 2**20], torch.tensor([0.05, 0.95], device=returns.device))
        self.spread.lerp_(high - low, self.rate)
        self.seen.lerp_(torch.ones_like(self.seen), self.rate)

    def scale(self) -> Tensor:
        return (self.spread / self.seen.clamp(min=1e-8)).clamp(min=1.0)
