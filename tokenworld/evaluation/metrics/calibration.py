"""Code lengths and calibration: M1 and M2, from held-out data alone (tier A) and at exact branches (tier B).

A code's surprise is -log2 q of what came, its announced surprise the entropy of q. Their difference, summed over a frame's
codes along the data, has mean zero if q is the true conditional (the increments are martingale differences): it is positive
if the model is overconfident. It is *not* a score: a model that ignores its inputs is perfectly calibrated.

Where the true conditional p is known, KL(p || q) = [E_p(-log q) - H(q)] + [H(q) - H(p)]: calibration gap plus excess
entropy. The gap there is that of whole frames, the one along the data that of one code after another: they are zero
together, not equal.
"""

from __future__ import annotations

import math

import numpy as np

from tokenworld.evaluation.records import Branches, Metric, Scored
from tokenworld.evaluation.statistics import divergences, intervals
from tokenworld.evaluation.statistics.measured import absent, mean, number
from tokenworld.evaluation.statistics.reliability import reliability

IDS = ("M2.dcal", "M2.dcal_p", "M2.entropy", "M2.ece", "M2.kce", "M2.kce_p", "M2.dcal_joint", "M2.dh")
SILENT = {  # numbers that no finding reads, and why
    "M2.dcal_p": "a p-value says whether, not how much: M2.dcal does",
    "M2.entropy": "how uncertain the world is is not known from data: M2.dh judges it at branches",
    "M2.ece": "it has no interval: M2.dcal judges",
    "M2.kce": "it has no interval: M2.dcal judges",
    "M2.kce_p": "a p-value says whether, not how much: M2.dcal does",
}
PAIRS = 2000  # codes that the kernel error compares with each other


def calibration(scored: Scored) -> list[Metric]:
    """M2, tier A: the calibration gap per frame, its p-value, and the errors of the most probable code's probability."""
    paid, announced, cluster = divergences.frame_bits(scored.bits), scored.entropy.sum(1), scored.cluster
    gap, clusters, codes = paid - announced, len(np.unique(cluster)), scored.top.size
    common = dict(unit="", direction="none")
    p = intervals.zero_mean_p(gap, cluster)
    bins = reliability(scored.top.ravel(), scored.hit.ravel())
    found = [
        mean("M2.dcal", "Calibration gap", gap, cluster, "bits/frame", "zero", ceiling=0.0),
        number("M2.dcal_p", "p-value of a calibration gap of 0", p, None, clusters, len(gap), **common),
        mean("M2.entropy", "Announced surprise of a frame", announced, cluster, "bits/frame", "none"),
        number("M2.ece", "Expected calibration error of the most probable code", bins["ece"], None, clusters, codes,
               unit="probability", ceiling=0.0),
    ]  # fmt: skip
    names = {"M2.kce": "Kernel calibration error (unbiased)", "M2.kce_p": "p-value of a kernel calibration error of 0"}
    if clusters < 2:
        return found + [absent(id, name, "it compares at least two episodes") for id, name in names.items()]
    (error, error_p), n = kernel_error(scored), min(PAIRS, codes)
    return found + [
        number("M2.kce", names["M2.kce"], error, None, clusters, n, unit="", direction="zero", ceiling=0.0),
        number("M2.kce_p", names["M2.kce_p"], error_p, None, clusters, n, **common),
    ]


def dispersion(branches: Branches) -> list[Metric]:
    """M2, tier B: how a model is wrong, from branches of the states that a policy visits: calibration gap of whole frames,
    positive if overconfident, and H(q) - H(p), positive if it averages, negative if it drops modes. They add up to M3.kl.

    The entropy given the simulator's state is at most that given what the model sees: where state is hidden, H(q) - H(p)
    holds that honest uncertainty too and is an upper bound.
    """
    weight, p, H_p = divergences.weights(branches), branches.p, divergences.entropy_p(branches)
    paid = (p * divergences.finite_bits(branches)).sum(-1)  # (S, A)
    gap = (weight * (paid - branches.entropy_q)).sum(1)
    excess = (weight * (branches.entropy_q - H_p)).sum(1)
    common = dict(unit="bits/frame", direction="zero", tier="B", ceiling=0.0)
    return [
        mean("M2.dcal_joint", "Calibration gap of whole frames", gap, branches.cluster, **common),
        mean("M2.dh", "Entropy beyond the world's", excess, branches.cluster, **common,
             reason="" if branches.exact else divergences.ESTIMATED),
    ]  # fmt: skip


def kernel_error(scored: Scored, seed: int = 0, draws: int = 500) -> tuple[float, float]:
    """Squared kernel calibration error of (top probability, hit), unbiased, and its p-value (Widmann et al. 2019,
    arXiv:1910.11385): the mean over pairs of rows from different episodes of e e' k(p, p') with e = hit - p and a Laplacian
    kernel of width 0.1; under calibration the sign of a whole episode's errors is free, which gives the p-value."""
    rng = np.random.default_rng(seed)
    n, K = scored.top.shape
    chosen = rng.permutation(n * K)[:PAIRS]
    p, hit, cluster = scored.top.ravel()[chosen], scored.hit.ravel()[chosen], np.repeat(scored.cluster, K)[chosen]
    found, number = np.unique(cluster, return_inverse=True)
    if len(found) < 2:
        return math.nan, math.nan
    e = hit - p
    pairs = np.outer(e, e) * np.exp(-np.abs(p[:, None] - p) / 0.1)
    member = np.zeros((len(found), len(e)))
    member[number, np.arange(len(e))] = 1
    between = member @ pairs @ member.T  # (C, C)
    np.fill_diagonal(between, 0)
    count = len(e) ** 2 - np.square(np.bincount(number)).sum()
    signs = rng.choice([-1.0, 1.0], size=(draws, len(found)))
    null = ((signs @ between) * signs).sum(1)
    value = between.sum()
    return float(value / count), float((1 + (null >= value).sum()) / (1 + draws))
