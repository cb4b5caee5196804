"""Orders: area under the curve, Spearman, Kendall; the last axis is ranked, leading ones are bootstrap draws."""

from __future__ import annotations

import numpy as np


def auc(score: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Probability that a positive row scores above a negative one, ties half: score (N,), positive (N,) bool, weights (..., N)
    -> (...); nan where one kind is absent."""
    weights = np.ones(len(score)) if weights is None else np.asarray(weights, float)
    order = np.argsort(score, kind="stable")
    _, begins = np.unique(score[order], return_index=True)
    weights, positive = weights[..., order], np.asarray(positive, bool)[order]
    high = np.add.reduceat(weights * positive, begins, -1)  # (..., distinct scores)
    low = np.add.reduceat(weights * ~positive, begins, -1)
    below = np.cumsum(low, -1) - low / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (high * below).sum(-1) / (high.sum(-1) * low.sum(-1))


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks 1 .. n along the last axis, ties their mean; n up to a few hundred, since all pairs are compared."""
    below = (x[..., None, :] < x[..., :, None]).sum(-1)
    ties = (x[..., None, :] == x[..., :, None]).sum(-1)
    return below + (ties + 1) / 2


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rank correlation of x and y (..., n) -> (...); nan where either is constant."""
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    return _over((a * b).sum(-1), np.square(a).sum(-1) * np.square(b).sum(-1))


def kendall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of x and y (..., n) -> (...); nan where either is constant."""
    a, b = (np.sign(z[..., None, :] - z[..., :, None]) for z in (x, y))
    axes = (-2, -1)
    return _over((a * b).sum(axes), np.square(a).sum(axes) * np.square(b).sum(axes))


def _over(top: np.ndarray, square: np.ndarray) -> np.ndarray:
    return np.where(square > 0, top / np.sqrt(np.where(square > 0, square, 1.0)), np.nan)
