"""A number with its cluster-bootstrap interval, as the `Metric` of a report: what all metrics of per-row values share."""

from __future__ import annotations

import math

import numpy as np

from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.statistics import intervals


def mean(
    id: str, name: str, values: np.ndarray, cluster: np.ndarray, unit: str = "", direction: str = "lower", **more
) -> Metric:
    """The mean of values (N,), kept as the metric's `values`; `more` as in `share`."""
    return share(id, name, values, None, cluster, unit, direction, values=values, clusters=cluster, **more)


def share(
    id: str, name: str, numerator: np.ndarray, denominator: np.ndarray | None, cluster: np.ndarray, unit: str = "share",
    direction: str = "lower", *, method: str = "percentile", samples: int | None = None, none: str = "", **more,
) -> Metric:  # fmt: skip
    """sum(numerator) / sum(denominator) over rows (N,). If the denominator sums to 0 it is not applicable, for the reason
    `none`; rows that are not finite make it invalid; `more`: further fields of `Metric`."""
    value, ci, clusters = intervals.ratio(numerator, denominator, cluster, method=method)
    if not math.isfinite(value):
        if not np.isfinite(numerator).all():
            reason = "the model's numbers are not finite: its weights are damaged, or its training diverged"
            return absent(id, name, reason, "invalid", unit=unit, direction=direction, **more)
        more["reason"] = none or "there is nothing to measure it on"
        return absent(id, name, unit=unit, direction=direction, **more)
    samples = len(numerator) if samples is None else samples
    return number(id, name, value, ci, clusters, samples, unit=unit, direction=direction, **more)


def number(id: str, name: str, value: float, ci: tuple[float, float] | None, n: int, samples: int, **more) -> Metric:
    """A value with a given interval; underpowered if it comes of fewer than ten clusters."""
    if n < intervals.FEW:
        few = f"only {n} independent clusters: an interval over so few says little"
        more = {**more, "status": "underpowered", "reason": f"{few}; {more['reason']}" if more.get("reason") else few}
    if ci is not None and not all(math.isfinite(x) for x in ci):
        ci = None
    return Metric(id, name, float(value), ci=ci, n_clusters=n, n_samples=samples, **more)


def absent(id: str, name: str, reason: str, status: str = "not_applicable", **more) -> Metric:
    """What could not be measured, and why."""
    more = {key: value for key, value in more.items() if key not in ("values", "clusters", "states", "reason", "status")}
    return Metric(id, name, None, status=status, reason=reason, **more)
