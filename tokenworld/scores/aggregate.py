"""Scores of several runs as one number with an interval: over seeds, and over games and seeds (arXiv:2108.13264)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenworld.scores.returns import mean_ci95


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """{"value": mean, "ci95": its bootstrap interval over runs, or None for a single run, which says nothing of others}."""
    mean, interval = mean_ci95(np.asarray(values, float))
    return {"value": mean, "ci95": interval if len(values) > 1 else None}


def over_games(scores: Mapping[str, Sequence[float]], seed: int = 0, draws: int = 10_000) -> dict[str, dict[str, Any]]:
    """Normalised scores of each game's runs -> mean, median and iqm, each {"value", "ci95"}.

    Mean and median are over games, of each game's mean over runs; the interquartile mean is over all runs of all games.
    Intervals (95 %) are of the stratified bootstrap; None if some game has a single run, whose spread is unknown.
    """
    games = [np.asarray(values, float) for values in scores.values()]
    points = statistics([values[None] for values in games])
    if min(len(values) for values in games) < 2:
        return {name: {"value": float(value[0]), "ci95": None} for name, value in points.items()}
    drawn = statistics(resampled(games, draws, np.random.default_rng(seed)))
    return {
        name: {"value": float(value[0]), "ci95": [float(x) for x in np.percentile(drawn[name], [2.5, 97.5])]}
        for name, value in points.items()
    }


def resampled(games: Sequence[np.ndarray], draws: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Stratified: for each game (draws, runs), drawn with replacement from the runs of that game alone."""
    return [values[rng.integers(len(values), size=(draws, len(values)))] for values in games]


def statistics(games: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """games: for each (N, runs), N samples of its runs -> mean, median and iqm, each (N,)."""
    means = np.stack([values.mean(-1) for values in games], -1)  # (N, games)
    return {
        "mean": means.mean(-1),
        "median": np.median(means, -1),
        "iqm": interquartile_mean(np.concatenate(games, -1)),
    }


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis without the lowest and the highest quarter: of n values, n // 4 go at each end."""
    n = values.shape[-1]
    return np.sort(values, -1)[..., n // 4 : n - n // 4].mean(-1)
