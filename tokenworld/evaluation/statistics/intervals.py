"""Intervals for numbers measured on dependent data: frames of one episode are not independent, so episodes are resampled.

The cluster bootstrap (Davison and Hinkley 1997, section 3.8) draws whole clusters with replacement; most numbers here are
ratios of sums over rows, for which a draw is two products with the clusters' counts. Proportions of few events have exact
binomial intervals instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

DRAWS = 2000
FEW = 10  # clusters: with fewer an interval says little, and the number counts as underpowered


@lru_cache(maxsize=4)  # the metrics of one record share their clusters
def draws_of(clusters: int, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """How often each cluster is in each draw: (draws, clusters), read-only."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(clusters, size=(draws, clusters)) + clusters * np.arange(draws)[:, None]
    counts = np.bincount(chosen.ravel(), minlength=draws * clusters).reshape(draws, clusters).astype(float)
    counts.flags.writeable = False
    return counts


def cluster_sums(values: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """values (N,), cluster (N,) -> sums (C,) over the C distinct clusters."""
    _, number = np.unique(cluster, return_inverse=True)
    return np.bincount(number, weights=values)


def ratio(
    numerator: np.ndarray,
    denominator: np.ndarray | None,
    cluster: np.ndarray,
    *,
    level: float = 0.95,
    seed: int = 0,
    method: str = "percentile",
) -> tuple[float, tuple[float, float], int]:
    """sum(numerator) / sum(denominator) over rows (N,), its interval ("percentile" or "bca"), and the number of clusters.

    denominator None: ones, and the ratio is the mean. Draws in which the denominator is 0 are left out; nan if it always is.
    """
    numerator = np.asarray(numerator, float)
    denominator = np.ones_like(numerator) if denominator is None else np.asarray(denominator, float)
    top, bottom = cluster_sums(numerator, cluster), cluster_sums(denominator, cluster)
    if bottom.sum() == 0:
        return math.nan, (math.nan, math.nan), len(top)
    value = float(top.sum() / bottom.sum())
    weights = draws_of(len(top), seed=seed)
    below = weights @ bottom
    drawn = (weights @ top)[below != 0] / below[below != 0]
    if method == "percentile" or len(top) < 2:
        return value, percentile(drawn, level, len(top)), len(top)
    rest = bottom.sum() - bottom
    left_out = (top.sum() - top)[rest != 0] / rest[rest != 0]
    return value, bca(value, drawn, left_out, level), len(top)


def columns(
    numerator: np.ndarray, denominator: np.ndarray | None, cluster: np.ndarray, *, level: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`ratio` for each of D columns of (N, D), drawn together: values, lower and upper ends of their intervals, each (D,)."""
    D = numerator.shape[1]
    denominator = np.ones_like(numerator, float) if denominator is None else np.asarray(denominator, float)
    top = np.stack([cluster_sums(numerator[:, d], cluster) for d in range(D)], 1)
    bottom = np.stack([cluster_sums(denominator[:, d], cluster) for d in range(D)], 1)
    weights = draws_of(len(top), seed=seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        value, drawn = top.sum(0) / bottom.sum(0), (weights @ top) / (weights @ bottom)
    bounds = [percentile(drawn[np.isfinite(drawn[:, d]), d], level, len(top)) for d in range(D)]
    return value, np.array([low for low, _ in bounds]), np.array([high for _, high in bounds])


def difference(
    values: np.ndarray, cluster: np.ndarray, other: np.ndarray, other_cluster: np.ndarray, *, level: float = 0.95
) -> tuple[float, tuple[float, float], int]:
    """mean(values) - mean(other) of two independent samples, its interval, and the number of clusters of the smaller one."""
    parts = []
    for seed, (x, c) in enumerate(((values, cluster), (other, other_cluster))):
        top, bottom = cluster_sums(np.asarray(x, float), c), cluster_sums(np.ones(len(c)), c)
        weights = draws_of(len(top), seed=seed)
        parts.append((top.sum() / bottom.sum(), (weights @ top) / (weights @ bottom), len(top)))
    (a, drawn_a, n_a), (b, drawn_b, n_b) = parts
    return float(a - b), percentile(drawn_a - drawn_b, level, min(n_a, n_b)), min(n_a, n_b)


def statistic(
    of: Callable[[np.ndarray], float], cluster: np.ndarray, *, level: float = 0.95, draws: int = DRAWS, seed: int = 0
) -> tuple[float, tuple[float, float], int]:
    """Any statistic of weighted rows: `of(weights (N,))` with all weights 1, its interval, the number of clusters."""
    unique, number = np.unique(cluster, return_inverse=True)
    drawn = [of(weights[number]) for weights in draws_of(len(unique), draws, seed)]
    drawn = np.array([x for x in drawn if math.isfinite(x)])
    return float(of(np.ones(len(number)))), percentile(drawn, level, len(unique)), len(unique)


def percentile(drawn: np.ndarray, level: float = 0.95, clusters: int = 0) -> tuple[float, float]:
    """The percentile interval of bootstrap draws; nan where there are none.

    Draws of few clusters spread too little and have too light tails: with `clusters` the interval is expanded as Student's t
    is against the normal distribution (Hesterberg 2015, section 3.3).
    """
    if len(drawn) == 0:
        return math.nan, math.nan
    tail = (1 - level) / 2 if clusters < 2 else _expanded(level, clusters)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


@lru_cache(maxsize=256)
def _expanded(level: float, clusters: int) -> float:
    """The tail of a normal distribution that lies as far out as Student's t interval of `clusters` draws."""
    return normal_cdf(-student_quantile((1 + level) / 2, clusters - 1) * math.sqrt(clusters / (clusters - 1)))


def bca(value: float, drawn: np.ndarray, left_out: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """The bias-corrected accelerated interval (Efron 1987) of a skewed statistic; left_out: it without each cluster in turn."""
    below = ((drawn < value).sum() + (drawn == value).sum() / 2) / max(1, len(drawn))
    if not 0 < below < 1:
        return percentile(drawn, level)
    bias, spread = normal_quantile(below), left_out.mean() - left_out
    scale = np.square(spread).sum() ** 1.5
    acceleration = float((spread**3).sum() / (6 * scale)) if scale > 0 else 0.0
    bounds = []
    for tail in ((1 - level) / 2, (1 + level) / 2):
        z = bias + normal_quantile(tail)
        bounds.append(normal_cdf(bias + z / (1 - acceleration * z)))
    low, high = np.quantile(drawn, bounds)
    return float(low), float(high)


def zero_mean_z(values: np.ndarray, cluster: np.ndarray) -> float:
    """z of "the mean of values (N,) is zero", from the sums of the clusters, which need only have mean zero and be
    independent of each other (martingale differences are)."""
    sums = cluster_sums(np.asarray(values, float), cluster)
    spread = math.sqrt(float(np.square(sums).sum()))
    return 0.0 if spread == 0 else float(sums.sum()) / spread


def zero_mean_p(values: np.ndarray, cluster: np.ndarray) -> float:
    """Its two-sided p-value."""
    return math.erfc(abs(zero_mean_z(values, cluster)) / math.sqrt(2))


# ---------------------------------------------------------------------------------------------------------------------
# Proportions


def wilson(k: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, k of n."""
    if n == 0:
        return 0.0, 1.0
    z = normal_quantile((1 + level) / 2)
    center, half = (k + z * z / 2) / (n + z * z), z * math.sqrt(k * (n - k) / n + z * z / 4) / (n + z * z)
    return max(0.0, center - half), min(1.0, center + half)


def clustered_wilson(hit: np.ndarray, asked: np.ndarray, cluster: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of the share of rows asked (N,) bool that hit, with as many independent rows as the bootstrap over
    clusters says there are, at most all: of few events the bootstrap alone is too narrow (after Korn and Graubard 1998)."""
    top, bottom = cluster_sums(np.asarray(hit, float), cluster), cluster_sums(np.asarray(asked, float), cluster)
    n, p = bottom.sum(), top.sum() / bottom.sum()
    weights = draws_of(len(top))
    below = weights @ bottom
    variance = np.var((weights @ top)[below > 0] / below[below > 0])
    effective = min(n, p * (1 - p) / variance) if variance > 0 else n
    return wilson(p * effective, effective, level)


def clopper_pearson(k: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion, k of n (Clopper and Pearson 1934): beta quantiles, by bisection."""
    tail = (1 - level) / 2
    low = 0.0 if k == 0 else _bisect(lambda p: incomplete_beta(k, n - k + 1, p) > tail)
    high = 1.0 if k == n else _bisect(lambda p: incomplete_beta(k + 1, n - k, p) > 1 - tail)
    return low, high


def binomial_tail(k: int, n: int, p: float) -> float:
    """P(X >= k) for X of n trials with probability p."""
    return 1.0 if k <= 0 else 0.0 if k > n else incomplete_beta(k, n - k + 1, p)


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly its mirror image does not
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny, c, d, fraction = 1e-300, 1.0, 0.0, 1.0
    for i in range(1, 20_000):  # modified Lentz
        m = i // 2
        top = m * (b - m) if i % 2 == 0 else -(a + m) * (a + b + m)
        term = top * x / ((a + i - 1) * (a + i))
        d, c = 1 / (1 + term * d or tiny), 1 + term / c or tiny
        fraction *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return front / fraction


def rule_of_three(n: int) -> float:
    """Upper 95 % bound of a rate of which n opportunities showed no event."""
    return min(1.0, 3 / n) if n else 1.0


def agresti_caffo(k1: int, n1: int, k2: int, n2: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of the difference of two proportions k1/n1 - k2/n2 (Agresti and Caffo 2000)."""
    z = normal_quantile((1 + level) / 2)
    a, b = (k1 + 1) / (n1 + 2), (k2 + 1) / (n2 + 2)
    half = z * math.sqrt(a * (1 - a) / (n1 + 2) + b * (1 - b) / (n2 + 2))
    return a - b - half, a - b + half


# ---------------------------------------------------------------------------------------------------------------------
# Times of events


def kaplan_meier(time: np.ndarray, event: np.ndarray, horizon: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Survival (..., horizon + 1) after 0 .. horizon steps (Kaplan and Meier 1958); time (N,) int of the event, or of being
    lost sight of (event false); weights (..., N), such as a bootstrap's counts."""
    weights = np.ones(len(time)) if weights is None else np.asarray(weights, float)
    steps = np.arange(1, horizon + 1)
    at_risk = weights @ (time[:, None] >= steps).astype(float)  # (..., horizon)
    died = weights @ ((time[:, None] == steps) & np.asarray(event, bool)[:, None]).astype(float)
    alive = np.cumprod(1 - died / np.where(at_risk > 0, at_risk, 1), -1)
    return np.concatenate([np.ones_like(alive[..., :1]), alive], -1)


def log_rank(time: np.ndarray, event: np.ndarray, group: np.ndarray, cluster: np.ndarray) -> tuple[float, float]:
    """z > 0 where group 1 dies sooner than group 0, and its two-sided p-value: time (N,) int, event and group (N,) bool.

    The variance is that of the clusters' sums of the score's terms (Lin and Wei 1989), so rows of one cluster, of both
    groups too, may depend on each other.
    """
    event, Z = np.asarray(event, bool), np.asarray(group, float)
    steps = np.arange(int(time.min()), int(time.max()) + 1)
    risk = (time[:, None] >= steps).astype(float)  # (N, T)
    share = (Z @ risk) / risk.sum(0)  # of group 1 among those at risk
    died = (time[:, None] == steps) & event[:, None]
    terms = ((Z[:, None] - share) * (died - risk * died.sum(0) / risk.sum(0))).sum(1)
    z = zero_mean_z(terms, cluster)
    return z, math.erfc(abs(z) / math.sqrt(2))


# ---------------------------------------------------------------------------------------------------------------------
# Several tests, and the normal distribution


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down adjusted p-values (n,)."""
    order, n = np.argsort(p), len(p)
    adjusted = np.empty(n)
    adjusted[order] = np.minimum(1, np.maximum.accumulate((n - np.arange(n)) * np.asarray(p, float)[order]))
    return adjusted


def normal_cdf(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2


def normal_quantile(p: float) -> float:
    return math.copysign(_bisect(lambda x: math.erf(x / math.sqrt(2)) > abs(2 * p - 1), high=40.0), p - 0.5)


def student_quantile(p: float, freedom: int) -> float:
    """The quantile of Student's t distribution, p in (0, 1)."""
    beyond = 2 * min(p, 1 - p)
    t = _bisect(lambda t: incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t)) < beyond, high=1e6)
    return math.copysign(t, p - 0.5)


def _bisect(above: Callable[[float], bool], low: float = 0.0, high: float = 1.0) -> float:
    """Where a condition that is false at `low` and true at `high` turns."""
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if above(middle) else (middle, high)
    return (low + high) / 2
