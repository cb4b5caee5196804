"""Distances between distributions of next frames, weighted as a policy visits them; bits throughout."""

from __future__ import annotations

import numpy as np

from tokenworld.evaluation.records import Branches

IMPOSSIBLE = 40.0  # bits
ESTIMATED = "the true probabilities are estimated from draws: their entropy is biased low, this number high"


def weights(branches: Branches) -> np.ndarray:
    """(S, A), rows summing to 1: how much each action of a state counts."""
    if branches.behavior is None:
        return np.full(branches.p.shape[:2], 1 / branches.p.shape[1])
    return branches.behavior / branches.behavior.sum(1, keepdims=True)


def finite_bits(branches: Branches, bits: np.ndarray | None = None) -> np.ndarray:
    """bits (S, A, J) with unused branches at 0 and impossible ones at a finite price (see the module)."""
    bits = np.where(branches.p > 0, branches.bits if bits is None else bits, 0.0)
    largest = np.where(np.isfinite(bits), bits, 0.0).max((1, 2), keepdims=True)  # of its state: (S, 1, 1)
    return np.where(np.isfinite(bits), bits, np.maximum(IMPOSSIBLE, largest))


def frame_bits(bits: np.ndarray) -> np.ndarray:
    """Bits (N,) of frames from those of their codes (N, K); an impossible frame costs `IMPOSSIBLE` bits, or as many as its
    possible codes if that is more: what a frame costs depends on no other frame."""
    possible = np.where(np.isfinite(bits), bits, 0.0).sum(1)
    return np.where(np.isfinite(bits).all(1), bits.sum(1), np.maximum(IMPOSSIBLE, possible))


def capped(bits: np.ndarray) -> np.ndarray:
    """Bits of frames, any shape, with infinite ones at a finite price (see the module)."""
    finite = bits[np.isfinite(bits)]
    return np.where(np.isfinite(bits), bits, max(IMPOSSIBLE, finite.max(initial=0.0)))


def entropy_p(branches: Branches) -> np.ndarray:
    """H(p) in bits, (S, A)."""
    return -plogp(branches.p).sum(-1)


def kl(branches: Branches) -> np.ndarray:
    """KL(p || q) in bits, (S, A)."""
    return kl_of(branches.p, finite_bits(branches), entropy_p(branches))


def total_correlation_p(branches: Branches) -> np.ndarray:
    """sum_j H(z^j) - H(z) of the true next frame, in bits, (S, A)."""
    p, codes = branches.p, branches.codes
    marginal = np.zeros(codes.shape)  # (S, A, J, K): probability of the code that the branch has there
    for j in range(p.shape[-1]):
        marginal += p[..., j, None, None] * (codes[..., j, None, :] == codes)
    surprise = -np.log2(np.where(p[..., None] > 0, marginal, 1.0))
    return (p[..., None] * surprise).sum((-2, -1)) - entropy_p(branches)


def energy_distance(real: np.ndarray, model: np.ndarray) -> np.ndarray:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of draws real (..., R, F) and model (..., M, F), unbiased (a U-statistic; Szekely and
    Rizzo 2013): 0 on average if both are drawn alike. R and M must be at least 2."""
    return 2 * pair_distances(real, model).mean((-2, -1)) - spread(real) - spread(model)


def spread(draws: np.ndarray) -> np.ndarray:
    """E|X - X'| over different draws (..., n, F) -> (...)."""
    n = draws.shape[-2]
    return pair_distances(draws, draws).sum((-2, -1)) / (n * (n - 1))


def pair_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Euclidean distances (..., n, m) of x (..., n, F) to y (..., m, F): exactly 0 of equal ones."""
    return np.stack([np.sqrt(np.square(x.astype(float) - y[..., j, None, :]).sum(-1)) for j in range(y.shape[-2])], -1)


def kl_of(p: np.ndarray, bits: np.ndarray, entropy: np.ndarray) -> np.ndarray:
    return (p * bits).sum(-1) - entropy


def plogp(p: np.ndarray) -> np.ndarray:
    """p log2 p, 0 where p is."""
    return p * np.log2(np.where(p > 0, p, 1.0))
