"""Intervals for numbers measured on dependent data: frames of one episode are not independent, so episodes are resampled.

The cluster bootstrap (Davison and Hinkley 1997, section 3.8) draws whole clusters with replacement; most numbers here are
ratios of sums over rows, for which a draw is two products with the clusters' counts. Proportions of few events have exact
binomial intervals instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

DRAWS = 2000
FEW = 10  # clusters: with fewer an interval says little, and the number counts as underpowered


def draws_of(clusters: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each cluster is in each draw: (draws, clusters)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=draws).astype(float)


def cluster_sums(values: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """values (N,), cluster (N,) -> sums (C,) over the C distinct clusters."""
    _, number = np.unique(cluster, return_inverse=True)
    return np.bincount(number, weights=values)


def ratio(
    numerator: np.ndarray, denominator: np.ndarray | None, cluster: np.ndarray, *, level: float = 0.95, seed: int = 0
) -> tuple[float, tuple[float, float], int]:
    """sum(numerator) / sum(denominator) over rows (N,), its percentile interval, and the number of clusters.

    denominator None: ones, and the ratio is the mean. Draws in which the denominator is 0 are left out.
    """
    numerator = np.asarray(numerator, float)
    denominator = np.ones_like(numerator) if denominator is None else np.asarray(denominator, float)
    top, bottom = cluster_sums(numerator, cluster), cluster_sums(denominator, cluster)
    value = top.sum() / bottom.sum()
    weights = draws_of(len(top), seed=seed)
    below = weights @ bottom
    drawn = (weights @ top)[below > 0] / below[below > 0]
    return float(value), percentile(drawn, level), len(top)


def statistic(
    of: Callable[[np.ndarray], float], cluster: np.ndarray, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> tuple[float, tuple[float, float], int]:
    """Any statistic of weighted rows: `of(weights (N,))` with all weights 1, its interval, the number of clusters."""
    found, number = np.unique(cluster, return_inverse=True)
    drawn = [of(weights[number]) for weights in draws_of(len(found), draws, seed)]
    drawn = np.array([x for x in drawn if math.isfinite(x)])
    return float(of(np.ones(len(number)))), percentile(drawn, level), len(found)


def percentile(drawn: np.ndarray, level: float) -> tuple[float, float]:
    """The percentile interval of bootstrap draws; nan where there are none."""
    if len(drawn) == 0:
        return math.nan, math.nan
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def zero_mean_p(values: np.ndarray, cluster: np.ndarray) -> float:
    """Two-sided p-value of "the mean of values (N,) is zero": a z-test on the sums of the clusters, which need only have
    mean zero and be independent of each other (martingale differences are)."""
    sums = cluster_sums(np.asarray(values, float), cluster)
    spread = math.sqrt(float(np.square(sums).sum()))
    return 1.0 if spread == 0 else math.erfc(abs(float(sums.sum())) / spread / math.sqrt(2))


def wilson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, k of n."""
    if n == 0:
        return 0.0, 1.0
    z = normal_quantile((1 + level) / 2)
    centre, half = (k + z * z / 2) / (n + z * z), z * math.sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
    return max(0.0, centre - half), min(1.0, centre + half)


def clopper_pearson(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion, k of n (Clopper and Pearson 1934), by bisection on binomial tails."""
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else _bisect(lambda p: binomial_tail(k, n, p) > tail)
    high = 1.0 if k == n else _bisect(lambda p: 1 - binomial_tail(k + 1, n, p) < tail)
    return low, high


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(X >= k) for X of n trials with probability p."""
    if k <= 0 or p >= 1:
        return 1.0
    if k > n or p <= 0:
        return 0.0
    x = np.arange(k, n + 1)
    choose = math.lgamma(n + 1) - np.array([math.lgamma(i + 1) + math.lgamma(n - i + 1) for i in x])
    return float(min(1.0, np.exp(choose + x * math.log(p) + (n - x) * math.log1p(-p)).sum()))


def rule_of_three(n: int) -> float:
    """Upper 95 % bound of a rate of which n opportunities showed no event."""
    return min(1.0, 3 / n) if n else 1.0


def agresti_caffo(k1: int, n1: int, k2: int, n2: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of the difference of two proportions k1/n1 - k2/n2 (Agresti and Caffo 2000)."""
    z = normal_quantile((1 + level) / 2)
    a, b = (k1 + 1) / (n1 + 2), (k2 + 1) / (n2 + 2)
    half = z * math.sqrt(a * (1 - a) / (n1 + 2) + b * (1 - b) / (n2 + 2))
    return a - b - half, a - b + half


def kaplan_meier(time: np.ndarray, event: np.ndarray, horizon: int) -> np.ndarray:
    """Survival (horizon + 1,) after 0 .. horizon steps; time (N,) int of the event, or of being lost sight of (event false)."""
    alive, survival = 1.0, [1.0]
    for t in range(1, horizon + 1):
        at_risk = int((time >= t).sum())
        alive *= 1 - int(((time == t) & event).sum()) / at_risk if at_risk else 1.0
        survival.append(alive)
    return np.array(survival)


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values (n,)."""
    order, n = np.argsort(p), len(p)
    adjusted = np.empty(n)
    adjusted[order] = np.minimum(1, np.maximum.accumulate((n - np.arange(n)) * np.asarray(p, float)[order]))
    return adjusted


def normal_quantile(p: float) -> float:
    return math.copysign(_bisect(lambda x: math.erf(x / math.sqrt(2)) > abs(2 * p - 1), high=40.0), p - 0.5)


def _bisect(above: Callable[[float], bool], low: float = 0.0, high: float = 1.0) -> float:
    """Where a condition that is false at `low` and true at `high` turns."""
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if above(middle) else (middle, high)
    return (low + high) / 2
