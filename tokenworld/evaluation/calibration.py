"""Code lengths and calibration on held-out data: M1 and M2 of tier A, no simulator and no sampling needed.

A code's surprise is -log2 q of what came, its announced surprise the entropy of q. Their difference, summed over a frame's
codes along the data, has mean zero if q is the true conditional (the increments are martingale differences): it is positive
if the model is overconfident. It is *not* a score: a model that ignores its inputs is perfectly calibrated.
"""

from __future__ import annotations

import math

import numpy as np

from tokenworld.evaluation import intervals
from tokenworld.evaluation.records import Metric, Scored

BINS = 15
PAIRS = 2000  # codes that the kernel error compares with each other


def code_length(scored: Scored, baselines: dict[str, np.ndarray]) -> list[Metric]:
    """M1: bits of a held-out frame. baselines: name -> bits (N, K) of simple predictors on the same frames; the best is the
    floor. Only the best possible model reaches the entropy of the world, which data do not tell: no ceiling."""
    frame = scored.bits.sum(1)
    floors = {name: float(bits.sum(1).mean()) for name, bits in baselines.items()}
    best = min(floors, key=floors.get) if floors else None
    found = [_mean("M1.bits", "Code length of a frame", frame, scored.cluster, "bits/frame", floor=floors.get(best))]
    if best is not None:
        gain = baselines[best].sum(1) - frame
        found.append(_mean("M1.gain", f"Bits saved against {best}", gain, scored.cluster, "bits/frame", "higher", floor=0.0))
    changed = scored.previous != scored.codes
    if changed.any():
        value, ci, n = intervals.ratio((scored.bits * changed).sum(1), changed.sum(1), scored.cluster)
        floors = {name: float(bits[changed].mean()) for name, bits in baselines.items()}
        found.append(
            _metric("M1.changed", "Code length of a changed code", value, ci, n, len(frame), "bits/code",
                    floor=min(floors.values(), default=None))
        )  # fmt: skip
    else:
        found.append(Metric("M1.changed", "Code length of a changed code", None, status="not_applicable",
                            reason="no code of the held-out frames changed"))  # fmt: skip
    return found


def calibration(scored: Scored) -> list[Metric]:
    """M2, tier A: the calibration gap per frame, its p-value, and the errors of the most probable code's probability."""
    paid, announced = scored.bits.sum(1), scored.entropy.sum(1)
    gap = paid - announced
    p = intervals.zero_mean_p(gap, scored.cluster)
    clusters = len(np.unique(scored.cluster))
    bins = reliability(scored.top.ravel(), scored.hit.ravel())
    error, error_p = kernel_error(scored)
    return [
        _mean("M2.dcal", "Calibration gap", gap, scored.cluster, "bits/frame", "zero", floor=None, ceiling=0.0),
        _metric("M2.dcal_p", "p-value of a calibration gap of 0", p, None, clusters, len(gap), "", "none"),
        _mean("M2.entropy", "Announced surprise of a frame", announced, scored.cluster, "bits/frame", "none"),
        _metric("M2.ece", "Expected calibration error of the most probable code", bins["ece"], None, clusters,
                scored.top.size, "probability", ceiling=0.0),  # fmt: skip
        _metric("M2.kce", "Kernel calibration error (unbiased)", error, None, clusters, min(PAIRS, scored.top.size), "",
                "zero", ceiling=0.0),  # fmt: skip
        _metric("M2.kce_p", "p-value of a kernel calibration error of 0", error_p, None, clusters,
                min(PAIRS, scored.top.size), "", "none"),  # fmt: skip
    ]


def reliability(probability: np.ndarray, hit: np.ndarray, bins: int = BINS) -> dict:
    """Equal-mass bins of (n,) probabilities and whether they came true: {"probability", "frequency", "count" (bins,),
    "low", "high" (exact 95 % intervals), "ece": mean absolute difference weighted by count} (Guo et al. 2017)."""
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    p = np.array([probability[part].mean() for part in parts])
    k = np.array([int(hit[part].sum()) for part in parts])
    n = np.array([len(part) for part in parts])
    bounds = [intervals.wilson(int(a), int(b)) for a, b in zip(k, n, strict=True)]
    return {
        "probability": p, "frequency": k / n, "count": n,
        "low": np.array([low for low, _ in bounds]), "high": np.array([high for _, high in bounds]),
        "ece": float((np.abs(p - k / n) * n).sum() / n.sum()),
    }  # fmt: skip


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
    null = np.einsum("dc,ce,de->d", signs, between, signs)
    value = between.sum()
    return float(value / count), float((1 + (null >= value).sum()) / (1 + draws))


def _mean(id, name, values, cluster, unit, direction="lower", floor=None, ceiling=None) -> Metric:
    value, ci, n = intervals.ratio(values, None, cluster)
    return _metric(id, name, value, ci, n, len(values), unit, direction, floor, ceiling, values)


def _metric(id, name, value, ci, clusters, samples, unit, direction="lower", floor=None, ceiling=None, values=None) -> Metric:
    if not math.isfinite(value):
        return Metric(id, name, None, unit, direction, status="not_applicable", reason="it needs at least two episodes")
    few = clusters < intervals.FEW
    return Metric(
        id, name, float(value), unit, direction, ci, n_clusters=clusters, n_samples=samples, floor=floor, ceiling=ceiling,
        status="underpowered" if few else "ok", values=values,
        reason=f"only {clusters} episodes: an interval over so few says little" if few else "",
    )  # fmt: skip
