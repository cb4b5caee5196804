"""Aggregate the scores of several runs, with intervals: over seeds, and over games and seeds (arXiv:2108.13264)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tokenworld.scores.returns import mean_ci95


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Return {"value": mean, "ci95": bootstrap interval over runs}; the interval is None for a single run."""
    mean, interval = mean_ci95(np.asarray(values, float))
    return {"value": mean, "ci95": interval if len(values) > 1 else None}


def over_games(scores: Mapping[str, Sequence[float]], seed: int = 0, draws: int = 10_000) -> dict[str, dict[str, Any]]:
    """Return mean, median and iqm, each {"value", "ci95"}. scores: the normalized scores of the runs of each game.

    Mean and median are over the means of the games; the interquartile mean is over all runs of all games. Intervals (95 %) are
    those of the stratified bootstrap. They are None if a game has a single run, because its variance is unknown.
    """
    games = [np.asarray(values, float) for values in scores.values()]
    points = statistics([values[None] for values in games])
    if min(len(values) for values in games) < 2:
        return {name: {"value": float(value[0]), "ci95": None} for name, value in points.items()}
    drawn = statistics(resample(games, draws, np.random.default_rng(seed)))
    return {
        name: {"value": float(value[0]), "ci95": [float(x) for x in np.percentile(drawn[name], [2.5, 97.5])]}
        for name, value in points.items()
    }


def resample(games: Sequence[np.ndarray], draws: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Draw a stratified bootstrap: per game `(draws, runs)`, with replacement from the runs of that game only."""
    return [values[rng.integers(len(values), size=(draws, len(values)))] for values in games]


def statistics(games: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Return mean, median and iqm, each `(N,)`. games: per game `(N, runs)`, N samples of its runs."""
    means = np.stack([values.mean(-1) for values in games], -1)  # (N, games)
    return {
        "mean": means.mean(-1),
        "median": np.median(means, -1),
        "iqm": interquartile_mean(np.concatenate(games, -1)),
    }


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis without the lowest and highest n // 4 of the n values."""
    n = values.shape[-1]
    return np.sort(values, -1)[..., n // 4 : n - n // 4].mean(-1)
