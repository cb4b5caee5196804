"""Is the model's randomness the world's? Tier B: exact where the simulator's next frames can be enumerated.

The true next frames of a state and action are at most a handful (a sticky action starts after 0 .. m emulator frames), so
the model scores each and samples none. States count alike; within a state, actions count as often as the policy
that chose it takes them, where that is known.

A branch that the model gives probability 0 would cost infinitely many bits: it counts `IMPOSSIBLE` bits (a probability of
about 1e-12), or as many as the costliest possible branch of its state if that is more.
"""

from __future__ import annotations

from functools import partial

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
from tokenworld.evaluation.statistics.metric_spec import (
    HALF,
    NEXT_FRAME,
    MetricSpec,
    Rule,
    above,
    below,
    measure,
    of_likelihood,
)

_spec = partial(
    MetricSpec, section=NEXT_FRAME, topic="the next frame", tier="B", of_codes=True, is_expected=True,
    source="Gneiting and Raftery 2007, doi:10.1198/016214506000001437",
)  # fmt: skip
KL = _spec(
    "next_frame.kl", "KL divergence of the next frame",
    "KL(p || q): how far the model's next frame is from the world's, in bits: calibration gap plus excess entropy.",
    alias="M3.kl", unit="bits/frame", quality="The world's next frame", picture="filmstrips",
    silent="it is the sum of the calibration gap and the excess entropy, which say what is wrong; HARMLESS_ERRORS reads it",
)  # fmt: skip
IMPOSSIBLE_MASS = _spec(
    "next_frame.impossible_mass", "Mass on impossible frames",
    "Probability that the model gives to frames that cannot come.",
    alias="M3.off_support", unit="probability", quality="Mass on possible frames",
    rules=(Rule("IMPOSSIBLE_FRAMES", "fault", above(0.1),
                lambda m: f"gives {m.value:.0%} of its probability to impossible frames"),),
)  # fmt: skip
MISSED_MASS = _spec(
    "next_frame.missed_mass", "True mass that the model misses",
    "Total probability of the outcomes that the model underestimates more than tenfold.",
    alias="M3.missed", unit="probability", quality="Outcomes that are expected",
    rules=(Rule("MISSES_OUTCOMES", "fault", above(0.1), lambda m: f"all but rules out {m.value:.0%} of what really comes"),),
)  # fmt: skip
LOST_DEPENDENCE = _spec(
    "next_frame.lost_dependence", "Dependence between codes that the model lacks",
    "Total correlation of the world's codes minus the model's. Above 0: the codes of a frame are drawn as if they were "
    "independent, and make frames that do not fit together.",
    alias="M3.coherence", unit="bits/frame", direction="zero", is_expected=False,
    rules=(Rule("LOOSE_CODES", "warning", above(HALF),
                lambda m: f"draws the codes of a frame too independently ({m.value:.2f} bits)"),
           Rule("TIED_CODES", "warning", below(-HALF),
                lambda m: f"ties the codes of a frame together too much ({-m.value:.2f} bits)")),
)  # fmt: skip
ENERGY_DISTANCE = _spec(
    "next_frame.energy_distance", "Energy distance of the next frame",
    "Distance of sampled next frames from real ones. Floor: the frame before; ceiling: the distance between two real samples.",
    alias="M3.energy", unit="distance", quality="Next frames like real ones", of_codes=False,
    source="Székely and Rizzo 2013, doi:10.1016/j.jspi.2013.03.018",
    rules=(Rule("NEXT_FRAME_OFF", "warning", below(0.5, skill=True),
                lambda m: f"its next frames differ from real ones ({m.value:.2g}; a static frame {m.floor:.2g})"),),
)  # fmt: skip
MISSED = 0.1  # a branch is missed if the model gives it less than this share of its probability


@measure
@of_likelihood(KL, IMPOSSIBLE_MASS, MISSED_MASS, LOST_DEPENDENCE)
def branch_fidelity(branches: Branches, baselines: dict[str, np.ndarray] | None = None) -> list[Metric]:
    """KL(p || q), the model's mass on impossible frames, the true mass it misses, and how much of the codes' dependence
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
    metrics = [
        mean(KL, (weight * kl(branches)).sum(1), cluster, floor=min(floors, default=None), ceiling=0.0, method="bca",
             reason=estimated),
        mean(IMPOSSIBLE_MASS, (weight * (1 - q.sum(-1))).sum(1), cluster, floor=1.0, ceiling=0.0,
             reason="" if branches.exact else "frames that were not drawn count as impossible: an upper bound"),
        mean(MISSED_MASS, (weight * missed).sum(1), cluster, floor=1.0, ceiling=0.0),
    ]  # fmt: skip
    if branches.total_correlation_q is None:
        return metrics + [absent(LOST_DEPENDENCE, "the model's total correlation was not computed", "skipped")]
    gap = (weight * (total_correlation_p(branches) - branches.total_correlation_q)).sum(1)
    return metrics + [mean(LOST_DEPENDENCE, gap, cluster, ceiling=0.0, reason=estimated)]


@measure
def frame_distance(rollouts: Rollouts) -> list[Metric]:
    """Where branches cannot be enumerated: energy distance of the model's next frames to the real ones, over starts.

    The floor is the frame before, the ceiling a second draw of real frames. On raw pixels it is blind to small objects:
    weight the features by how often they change.
    """
    if min(rollouts.real.shape[1], rollouts.model.shape[1]) < 2:
        return [absent(ENERGY_DISTANCE, "it takes two real and two imagined rollouts of each start")]
    real, first = rollouts.real[:, :, 0], rollouts.model[:, :, 0]  # (S, R, F), (S, M, F)
    copy = 2 * pair_distances(real, rollouts.copy[:, None]).mean((-2, -1)) - spread(real)
    second = energy_distance(real, rollouts.second[:, :, 0]) if rollouts.second.shape[1] > 1 else None
    return [mean(ENERGY_DISTANCE, energy_distance(real, first), rollouts.cluster, floor=float(copy.mean()),
                 ceiling=None if second is None else float(second.mean()))]  # fmt: skip
