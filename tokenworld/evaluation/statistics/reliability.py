"""Reliability: how often what is predicted with a probability comes (Murphy and Winkler 1977)."""

from __future__ import annotations

import numpy as np

from tokenworld.evaluation.statistics import intervals

BINS = 15


def reliability(probability: np.ndarray, hit: np.ndarray, bins: int = BINS) -> dict:
    """Equal-mass bins of (n,) probabilities and whether they came true: {"probability", "frequency", "count" (bins,),
    "low", "high" (exact 95 % intervals), "ece": mean absolute difference weighted by count} (Guo et al. 2017)."""
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    p = np.array([probability[part].mean() for part in parts])
    k = np.array([int(hit[part].sum()) for part in parts])
    n = np.array([len(part) for part in parts])
    bounds = [intervals.clopper_pearson(int(a), int(b)) for a, b in zip(k, n, strict=True)]
    return {
        "probability": p, "frequency": k / n, "count": n,
        "low": np.array([low for low, _ in bounds]), "high": np.array([high for _, high in bounds]),
        "ece": float((np.abs(p - k / n) * n).sum() / n.sum()),
    }  # fmt: skip
