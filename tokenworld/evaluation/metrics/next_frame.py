"""Is the model's randomness the world's? M3, tier B: exact where the simulator's next frames can be enumerated.

The true next frames of a state and action are at most a handful (a sticky action starts after 0 .. m emulator frames), so
each is scored by the model and nothing is sampled. States count alike; within a state, actions count as often as the policy
that chose it takes them, where that is known.

A branch that the model gives probability 0 would cost infinitely many bits: it counts `IMPOSSIBLE` bits (a probability of
about 1e-12), or as many as the dearest possible branch of its state if that is more.
"""

from __future__ import annotations

import numpy as np

from tokenworld.evaluation.records import Branches, Metric, Rollouts
from tokenworld.evaluation.statistics.divergences import (
    ESTIMATED,
    energy_distance,
    entropy_p,
    finite_bits,
    kl,
    kl_of,
    pair_distances,
    spread,
    total_correlation_p,
    weights,
)
from tokenworld.evaluation.statistics.measured import absent, mean

IDS = ("M3.kl", "M3.off_support", "M3.missed", "M3.coherence", "M3.energy")
SILENT = {  # numbers that no finding reads, and why
    "M3.kl": "it is the sum of M2.dcal_joint and M2.dh, which say which way it is wrong; HARMLESS_ERRORS reads it",
}
MISSED = 0.1  # a branch is missed if the model gives it less than this share of its probability


def branch_fidelity(branches: Branches, baselines: dict[str, np.ndarray] | None = None) -> list[Metric]:
    """M3: KL(p || q), the model's mass on impossible frames, the true mass it misses, and how much of the codes' dependence
    it loses, TC(p) - TC(q) with TC = sum_j H(z^j) - H(z). baselines: name -> bits (S, A, J) of other predictors of the same
    branches; the best KL is the floor."""
    weight, cluster, p = weights(branches), branches.cluster, branches.p
    q = np.where(p > 0, np.exp2(-np.where(p > 0, branches.bits, 0.0)), 0.0)  # (S, A, J)
    missed = (p * (q < MISSED * p)).sum(-1)
    floors = [
        float((weight * kl_of(p, finite_bits(branches, bits), entropy_p(branches))).sum(1).mean())
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
