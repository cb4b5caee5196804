"""Evolution strategy with covariance matrix adaptation (CMA-ES; Hansen 2016, "The CMA Evolution Strategy: A Tutorial",
arXiv:1604.00772).

Faithful: weighted recombination of the better half, cumulative step-size adaptation, rank-one and rank-mu update of a full
covariance, whose decomposition is put off for as long as it changes little. Differs: no negative weights; the rate of the path
of the step size and the condition that stalls the rank-one update are those of the package `cma` 4.5, which the tests compare
with; samples are made with the symmetric root of the covariance, which does not depend on the signs of eigenvectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokenworld.errors import UserError

FASTEST = 1.0  # the logarithm of sigma grows by at most so much per generation


@dataclass(frozen=True)
class Rates:
    """The constants for `n` numbers and a population of so many (table 1 of the tutorial, but c_sigma)."""

    weights: list[float]  # of the better half, the best first; they sum to 1
    effective: float  # mu_eff
    path: float  # c_c, of the path of the covariance
    rank_one: float  # c_1
    rank_mu: float  # c_mu
    path_sigma: float  # c_sigma
    damping: float  # d_sigma
    wait: float  # generations between two decompositions

    @classmethod
    def of(cls, n: int, population: int) -> Rates:
        raw = [math.log((population + 1) / 2) - math.log(i + 1) for i in range(population // 2)]
        weights = [w / sum(raw) for w in raw]
        mu = 1 / sum(w * w for w in weights)
        path = (4 + mu / n) / (n + 4 + 2 * mu / n)
        rank_one = min(1.0, population / 6) * 2 / ((n + 1.3) ** 2 + mu)
        rank_mu = min(1 - rank_one, 2 * (0.25 + mu + 1 / mu - 2) / ((n + 2) ** 2 + mu))
        path_sigma = min(0.5, (mu + 2) / (n + mu + 3))
        damping = 1 + 2 * max(0.0, math.sqrt((mu - 1) / (n + 1)) - 1) + path_sigma
        return cls(weights, mu, path, rank_one, rank_mu, path_sigma, damping, 1 / (rank_one + rank_mu) / n / 10)


class CMAES(nn.Module):
    """A normal distribution over `n` numbers that moves to where the fitness is high. All of its state is in float64 buffers,
    so a checkpoint resumes it bit for bit. sigma: its first standard deviation, around zero."""

    def __init__(self, n: int, sigma: float):
        super().__init__()
        if sigma <= 0 or not math.isfinite(sigma):
            raise UserError(f"policy.sigma must be positive, got {sigma}: choose e.g. 0.1")
        self.n = n
        zero, eye = torch.zeros(n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
        for name in ("mean", "path", "path_sigma"):
            self.register_buffer(name, zero.clone())
        for name in ("covariance", "basis"):  # basis: eigenvectors of the last decomposition
            self.register_buffer(name, eye.clone())
        self.register_buffer("scale", zero + 1)  # roots of its eigenvalues
        self.register_buffer("sigma", torch.tensor(sigma, dtype=torch.float64))
        self.register_buffer("generation", torch.tensor(0))
        self.register_buffer("decomposed", torch.tensor(0))  # the generation of the last decomposition

    def ask(self, normal: Tensor) -> Tensor:
        """Standard normal numbers (population, n) -> samples (population, n) in float64."""
        return self.mean + self.sigma * self._transformed(normal.double(), self.scale)

    @torch.no_grad()
    def update(self, samples: Tensor, fitness: Tensor) -> None:
        """Learn from the fitness (population,) of samples (population, n), the higher the better; of equal ones the earlier
        counts as better."""
        rates = Rates.of(self.n, len(samples))
        best = fitness.argsort(descending=True, stable=True)[: len(rates.weights)]
        weights = torch.tensor(rates.weights, dtype=torch.float64, device=samples.device)
        steps = (samples[best].double() - self.mean) / self.sigma  # (mu, n)
        step = weights @ steps  # (n,)
        self.mean += self.sigma * step
        self.generation += 1
        c, effective = rates.path_sigma, rates.effective
        self.path_sigma.mul_(1 - c).add_(math.sqrt(c * (2 - c) * effective) * self._transformed(step, 1 / self.scale))
        length = self.path_sigma.square().sum() / (1 - (1 - c) ** (2 * int(self.generation)))
        moves = float(length / self.n < 2 + 4 / (self.n + 1))  # else sigma is about to grow, and the path would grow with it
        c = rates.path
        self.path.mul_(1 - c).add_(moves * math.sqrt(c * (2 - c) * effective) * step)
        kept = 1 - rates.rank_one * (1 - (1 - moves) * c * (2 - c)) - rates.rank_mu
        self.covariance.mul_(kept).add_(rates.rank_one * torch.outer(self.path, self.path))
        self.covariance.add_(rates.rank_mu * (steps.T * weights) @ steps)
        # the mean length of a standard normal vector
        expected = math.sqrt(2) * math.exp(math.lgamma((self.n + 1) / 2) - math.lgamma(self.n / 2))
        growth = rates.path_sigma / rates.damping * (self.path_sigma.norm() / expected - 1)
        self.sigma *= growth.clamp(-FASTEST, FASTEST).exp()
        if self.generation - self.decomposed >= rates.wait:
            self._decompose()

    def _transformed(self, x: Tensor, scale: Tensor) -> Tensor:
        """x (..., n) times the symmetric matrix of these eigenvalues."""
        return ((x @ self.basis) * scale) @ self.basis.T

    def _decompose(self) -> None:
        values, vectors = torch.linalg.eigh((self.covariance + self.covariance.T) / 2)
        self.scale.copy_(values.clamp(min=torch.finfo(values.dtype).tiny).sqrt())
        self.basis.copy_(vectors)
        self.decomposed.copy_(self.generation)
