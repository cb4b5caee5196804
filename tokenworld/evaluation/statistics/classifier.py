"""A small classifier with nothing to tune: logistic regression on at most 32 directions of the features and their products.

Products let it see what means do not show, such as codes that are right one by one and wrong together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

DIRECTIONS = 32
RIDGE = 0.01  # per row, on coefficients of standardized features
STEPS = 30


def fit(features: np.ndarray, label: np.ndarray, products: bool = True) -> Callable[[np.ndarray], np.ndarray]:
    """features (N, F), label (N,) bool -> a function of features (M, F) that gives log-odds (M,)."""
    inputs = _inputs(features, products)
    x = inputs(features)
    N, P = x.shape
    w, penalty = np.zeros(P), RIDGE * N * (np.arange(P) > 0)
    for _ in range(STEPS):  # Newton's method; the problem is convex
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (p - label) + penalty * w
        curvature = (x * (p * (1 - p))[:, None]).T @ x + np.diag(penalty + 1e-9 * N)
        step = np.linalg.solve(curvature, gradient)
        w = w - step
        if np.abs(step).max() < 1e-6:
            break
    return lambda new: inputs(new) @ w


def out_of_fold(features: np.ndarray, label: np.ndarray, cluster: np.ndarray, folds: int = 5, seed: int = 0) -> np.ndarray:
    """Log-odds (N,) of each row from a classifier that has seen no row of its cluster."""
    score = np.zeros(len(label))
    for held_out in fold_of(cluster, folds, seed):
        score[held_out] = fit(features[~held_out], label[~held_out])(features[held_out])
    return score


def fold_of(cluster: np.ndarray, folds: int = 5, seed: int = 0) -> list[np.ndarray]:
    """Which rows (N,) bool are held out in each fold: whole clusters."""
    unique, number = np.unique(cluster, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(unique)) % min(folds, len(unique))
    return [fold[number] == i for i in range(fold.max() + 1)]


def _inputs(features: np.ndarray, products: bool) -> Callable[[np.ndarray], np.ndarray]:
    """Standardize, turn to the directions of most variance, add products: (M, F) -> (M, P), the first column 1."""
    mean, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 1e-9, scale, np.inf)  # what never varies says nothing
    z = (features - mean) / scale
    if z.shape[1] > DIRECTIONS:
        _, vectors = np.linalg.eigh(z @ z.T) if len(z) < z.shape[1] else np.linalg.eigh(z.T @ z)
        turn = z.T @ vectors[:, -DIRECTIONS:] if len(z) < z.shape[1] else vectors[:, -DIRECTIONS:]
        spread = (z @ turn).std(0)
        turn = turn / np.where(spread > 1e-9, spread, np.inf)
    else:
        turn = np.eye(z.shape[1])
    i, j = np.triu_indices(turn.shape[1])

    def inputs(new: np.ndarray) -> np.ndarray:
        x = ((new - mean) / scale) @ turn
        return np.concatenate([np.ones((len(x), 1)), x, *([x[:, i] * x[:, j]] if products else [])], 1)

    return inputs
