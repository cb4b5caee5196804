"""Is the model's randomness the world's? M3, tier B: exact where the simulator's next frames can be enumerated.

The true next frames of a state and action are at most a handful (a sticky action starts after 0 .. m emulator frames), so
each is scored by the model and nothing is sampled. States count alike; within a state, actions count as often as the policy
that chose it takes them, where that is known.

A branch that the model gives probability 0 would cost infinitely many bits: it counts `IMPOSSIBLE` bits (a probability of
about 1e-12), or as many as the dearest possible branch of its state if that is more.
"""

from __future__ import annotations

import numpy as np

from tokenworld.evaluation.measured import absent, mean
from tokenworld.evaluation.records import Branches, Metric, Rollouts

IDS = ("M3.kl", "M3.off_support", "M3.missed", "M3.coherence", "M3.energy")
SILENT = {  # numbers that no finding reads, and why
    "M3.kl": "it is the sum of M2.dcal_joint and M2.dh, which say which way it is wrong; HARMLESS_ERRORS reads it",
}
IMPOSSIBLE = 40.0  # bits
MISSED = 0.1  # a branch is missed if the model gives it less than this share of its probability
ESTIMATED = "the true probabilities are estimated from draws: their entropy is biased low, this number high"


def branch_fidelity(branches: Branches, baselines: dict[str, np.ndarray] | None = None) -> list[Metric]:
    """M3: KL(p || q), the model's mass on impossible frames, the true mass it misses, and how much of the codes' dependence
    it loses, TC(p) - TC(q) with TC = sum_j H(z^j) - H(z). baselines: name -> bits (S, A, J) of other predictors of the same
    branches; the best KL is the floor."""
    weight, cluster, p = weights(branches), branches.cluster, branches.p
    q = np.where(p > 0, np.exp2(-np.where(p > 0, branches.bits, 0.0)), 0.0)  # (S, A, J)
    missed = (p * (q < MISSED * p)).sum(-1)
    floors = [
        float((weight * _kl(p, finite_bits(branches, bits), entropy_p(branches))).sum(1).mean())
        for bits in (baselines or {}).values()
    ]
    estimated = "" if branches.exact else ESTIMATED
    found = [
        mean("M3.kl", "KL divergence of the next frame", (weight * kl(branches)).sum(1), cluster, "bits/frame", tier="B",
             floor=min(floors, default=None), ceiling=0.0, method="bca", reason=estimated),
        mean("M3.off_support", "Mass on impossible frames", (weight * (1 - q.sum(-1))).sum(1), cluster, "probability",
             tier="B", floor=1.0, ceiling=0.0,
             reason="" if branches.exact else "frames that were not drawn count as impossible: an upper bound"),
        mean("M3.missed", "True mass that the model misses", (weight * missed).sum(1), cluster, "probability", tier="B",
             floor=1.0, ceiling=0.0),
    ]  # fmt: skip
    name, common = "Dependence between codes that the model lacks", dict(unit="bits/frame", direction="zero", tier="B")
    if branches.total_correlation_q is None:
        return found + [absent("M3.coherence", name, "the model's total correlation was not computed", "skipped", **common)]
    gap = (weight * (total_correlation_p(branches) - branches.total_correlation_q)).sum(1)
    return found + [mean("M3.coherence", name, gap, cluster, **common, ceiling=0.0, reason=estimated)]


def weights(branches: Branches) -> np.ndarray:
    """(S, A), rows summing to 1: how much each action of a state counts."""
    if branches.behaviour is None:
        return np.full(branches.p.shape[:2], 1 / branches.p.shape[1])
    return branches.behaviour / branches.behaviour.sum(1, keepdims=True)


def finite_bits(branches: Branches, bits: np.ndarray | None = None) -> np.ndarray:
    """bits (S, A, J) with unused branches at 0 and impossible ones at a finite price (see the module)."""
    bits = np.where(branches.p > 0, branches.bits if bits is None else bits, 0.0)
    dearest = np.where(np.isfinite(bits), bits, 0.0).max((1, 2), keepdims=True)  # of its state: (S, 1, 1)
    return np.where(np.isfinite(bits), bits, np.maximum(IMPOSSIBLE, dearest))


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
    return _kl(branches.p, finite_bits(branches), entropy_p(branches))


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


def frame_distance(rollouts: Rollouts) -> list[Metric]:
    """M3 where branches cannot be enumerated: energy distance of the model's next frames to the real ones, over starts.

    The floor is the frame before, the ceiling a second draw of real frames. On raw pixels it is blind to small objects:
    weight the features by how often they change.
    """
    name, common = "Energy distance of the next frame", dict(unit="distance", tier="B")
    if min(rollouts.real.shape[1], rollouts.model.shape[1]) < 2:
        return [absent("M3.energy", name, "it takes two real and two imagined rollouts of each start", **common)]
    real, first = rollouts.real[:, :, 0], rollouts.model[:, :, 0]  # (S, R, F), (S, M, F)
    copy = 2 * pair_distances(real, rollouts.copy[:, None]).mean((-2, -1)) - spread(real)
    second = energy_distance(real, rollouts.second[:, :, 0]) if rollouts.second.shape[1] > 1 else None
    return [mean("M3.energy", name, energy_distance(real, first), rollouts.cluster, **common, floor=float(copy.mean()),
                 ceiling=None if second is None else float(second.mean()))]  # fmt: skip


def _kl(p: np.ndarray, bits: np.ndarray, entropy: np.ndarray) -> np.ndarray:
    return (p * bits).sum(-1) - entropy


def plogp(p: np.ndarray) -> np.ndarray:
    """p log2 p, 0 where p is."""
    return p * np.log2(np.where(p > 0, p, 1.0))
