"""Calibration, from held-out data alone (tier A) and at exact branches (tier B).

A code's surprise is -log2 q of what came, its announced surprise the entropy of q. Their difference, summed over a frame's
codes along the data, has mean zero if q is the true conditional (the increments are martingale differences): it is positive
if the model is overconfident. It is *not* a score: a model that ignores its inputs is perfectly calibrated.

Where the true conditional p is known, KL(p || q) = [E_p(-log q) - H(q)] + [H(q) - H(p)]: calibration gap plus excess
entropy. The gap there is that of whole frames, the one along the data that of one code after another: they are zero
together, not equal.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from tokenworld.evaluation.records import Branches, Metric, Scored
from tokenworld.evaluation.statistics import divergences, intervals
from tokenworld.evaluation.statistics.measured import absent, mean, number
from tokenworld.evaluation.statistics.metric_spec import (
    CALIBRATION,
    HALF,
    MetricSpec,
    Rule,
    above,
    arrays_of,
    below,
    measure,
    of_likelihood,
)
from tokenworld.evaluation.statistics.reliability import reliability

_spec = partial(
    MetricSpec, section=CALIBRATION, topic="calibration", of_codes=True, source="Malik et al. 2019, arXiv:1906.08312"
)
OVER = 0.05  # bits of a frame that a calibration gap must exceed
GAP = _spec(
    "calibration.gap", "Calibration gap",
    "Surprise paid minus surprise announced. Above 0: overconfident. 0 is necessary, not sufficient: a model that ignores its "
    "inputs is calibrated. Values below 0 do not measure the size of the fault: very flat predictions come near 0 again.",
    alias="M2.dcal", unit="bits/frame", direction="zero",
    rules=(Rule("OVERCONFIDENT", "fault", above(OVER), lambda m: f"overconfident ({m.value:+.2f} bits a frame)",
                covers=("OVERCONFIDENT_AT_BRANCHES",)),
           Rule("UNDERCONFIDENT", "warning", below(-OVER), lambda m: f"underconfident ({m.value:+.2f} bits a frame)",
                covers=("UNDERCONFIDENT_AT_BRANCHES",))),
)  # fmt: skip
GAP_P = _spec(
    "calibration.gap_p", "p-value of a calibration gap of 0", "How likely a gap this large is if the model is calibrated.",
    alias="M2.dcal_p", direction="none", silent="a p-value says whether, not how much: the calibration gap does",
)  # fmt: skip
ENTROPY = _spec(
    "calibration.entropy", "Announced surprise of a frame", "How uncertain the model says it is.", alias="M2.entropy",
    unit="bits/frame", direction="none",
    silent="how uncertain the world is is not known from data: the excess entropy at branches judges it",
)  # fmt: skip
ECE = _spec(
    "calibration.ece", "Expected calibration error of the most probable code",
    "Mean difference between the probability of the most probable code and how often it comes.", alias="M2.ece",
    unit="probability", picture="top_reliability", source="Guo et al. 2017, arXiv:1706.04599",
    silent="it has no interval: the calibration gap judges",
)  # fmt: skip
KCE = _spec(
    "calibration.kce", "Kernel calibration error (unbiased)", "The same without bins and without bias.", alias="M2.kce",
    direction="zero", source="Widmann et al. 2019, arXiv:1910.11385", silent="it has no interval: the calibration gap judges",
)  # fmt: skip
KCE_P = _spec(
    "calibration.kce_p", "p-value of a kernel calibration error of 0",
    "How likely an error this large is if the model is calibrated.", alias="M2.kce_p", direction="none",
    source="Widmann et al. 2019, arXiv:1910.11385", silent="a p-value says whether, not how much: the calibration gap does",
)  # fmt: skip
BRANCH_GAP = _spec(
    "calibration.branch_gap", "Calibration gap of whole frames",
    "At branches: expected surprise at the possible next frames minus the surprise announced. Above 0: overconfident.",
    alias="M2.dcal_joint", unit="bits/frame", direction="zero", tier="B",
    rules=(Rule("OVERCONFIDENT_AT_BRANCHES", "fault", above(5 * OVER),
                lambda m: f"overconfident of whole frames ({m.value:+.2f} bits a frame)"),
           Rule("UNDERCONFIDENT_AT_BRANCHES", "warning", below(-5 * OVER),
                lambda m: f"underconfident of whole frames ({m.value:+.2f} bits a frame)")),
)  # fmt: skip
EXCESS_ENTROPY = _spec(
    "calibration.excess_entropy", "Entropy beyond the world's",
    "Announced surprise minus the world's own. Above 0 the model averages over futures, below 0 it drops some.",
    alias="M2.dh", unit="bits/frame", direction="zero", tier="B", picture="plane",
    source="Gneiting and Raftery 2007, doi:10.1198/016214506000001437",
    rules=(Rule("MORE_RANDOM_THAN_THE_WORLD", "warning", above(HALF),
                lambda m: f"more random than the world ({m.value:+.2f} bits a frame)"),
           Rule("LESS_RANDOM_THAN_THE_WORLD", "warning", below(-HALF),
                lambda m: f"less random than the world ({m.value:+.2f} bits a frame)")),
)  # fmt: skip
PAIRS = 2000  # codes that the kernel error compares with each other


@measure
@of_likelihood(GAP, GAP_P, ENTROPY, ECE, KCE, KCE_P)
def calibration(scored: Scored) -> list[Metric]:
    """Tier A: the calibration gap per frame, its p-value, and the errors of the most probable code's probability."""
    paid, announced, cluster = divergences.frame_bits(scored.bits), scored.entropy.sum(1), scored.cluster
    gap, clusters, codes = paid - announced, len(np.unique(cluster)), scored.top.size
    p = intervals.zero_mean_p(gap, cluster)
    bins = reliability(scored.top.ravel(), scored.hit.ravel())
    metrics = [
        mean(GAP, gap, cluster, ceiling=0.0),
        number(GAP_P, p, None, clusters, len(gap)),
        mean(ENTROPY, announced, cluster),
        number(ECE, bins["ece"], None, clusters, codes, ceiling=0.0),
    ]
    if clusters < 2:
        return metrics + [absent(spec, "it compares at least two episodes") for spec in (KCE, KCE_P)]
    (error, error_p), n = kernel_error(scored), min(PAIRS, codes)
    return metrics + [number(KCE, error, None, clusters, n, ceiling=0.0), number(KCE_P, error_p, None, clusters, n)]


@arrays_of("top_reliability")
@of_likelihood()
def top_reliability(scored: Scored) -> dict:
    """How often the most probable code came, by its probability."""
    return reliability(scored.top.ravel(), scored.hit.ravel())


@measure
@of_likelihood(BRANCH_GAP, EXCESS_ENTROPY)
def dispersion(branches: Branches) -> list[Metric]:
    """Tier B: how a model is wrong, from branches of the states that a policy visits: calibration gap of whole frames,
    positive if overconfident, and H(q) - H(p), positive if it averages, negative if it drops modes. They add up to
    KL(p || q).

    The entropy given the simulator's state is at most that given what the model sees: where state is hidden, H(q) - H(p)
    holds that honest uncertainty too and is an upper bound.
    """
    weight, p, H_p = divergences.weights(branches), branches.p, divergences.entropy_p(branches)
    paid = (p * divergences.finite_bits(branches)).sum(-1)  # (S, A)
    gap = (weight * (paid - branches.entropy_q)).sum(1)
    excess = (weight * (branches.entropy_q - H_p)).sum(1)
    reason = "" if branches.exact else divergences.ESTIMATED
    return [
        mean(BRANCH_GAP, gap, branches.cluster, ceiling=0.0),
        mean(EXCESS_ENTROPY, excess, branches.cluster, ceiling=0.0, reason=reason),
    ]


@arrays_of("plane")
@of_likelihood()
def plane(branches: Branches) -> dict:
    """Nothing: the calibration plane shows two metrics."""
    return {}


def kernel_error(scored: Scored, seed: int = 0, draws: int = 500) -> tuple[float, float]:
    """Squared kernel calibration error of (top probability, hit), unbiased, and its p-value (Widmann et al. 2019,
    arXiv:1910.11385): the mean over pairs of rows from different episodes of e e' k(p, p') with e = hit - p and a Laplacian
    kernel of width 0.1; under calibration the sign of a whole episode's errors is free, which gives the p-value."""
    rng = np.random.default_rng(seed)
    n, K = scored.top.shape
    chosen = rng.permutation(n * K)[:PAIRS]
    p, hit, cluster = scored.top.ravel()[chosen], scored.hit.ravel()[chosen], np.repeat(scored.cluster, K)[chosen]
    unique, number = np.unique(cluster, return_inverse=True)
    if len(unique) < 2:
        return math.nan, math.nan
    e = hit - p
    pairs = np.outer(e, e) * np.exp(-np.abs(p[:, None] - p) / 0.1)
    member = np.zeros((len(unique), len(e)))
    member[number, np.arange(len(e))] = 1
    between = member @ pairs @ member.T  # (C, C)
    np.fill_diagonal(between, 0)
    count = len(e) ** 2 - np.square(np.bincount(number)).sum()
    signs = rng.choice([-1.0, 1.0], size=(draws, len(unique)))
    null = ((signs @ between) * signs).sum(1)
    value = between.sum()
    return float(value / count), float((1 + (null >= value).sum()) / (1 + draws))
