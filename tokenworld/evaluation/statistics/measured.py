"""A number with its cluster-bootstrap interval, as the `Metric` of a report: what all metrics of per-row values share."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.statistics import intervals
from tokenworld.evaluation.statistics.metric_spec import MetricSpec

FEW_EVENTS = 10


def mean(spec: MetricSpec, values: np.ndarray, cluster: np.ndarray, **more) -> Metric:
    """The mean of values (N,), kept as the metric's `values`; `more` as in `share`."""
    return share(spec, values, None, cluster, values=values, clusters=cluster, **more)


def share(
    spec: MetricSpec, numerator: np.ndarray, denominator: np.ndarray | None, cluster: np.ndarray, *, method: str = "percentile",
    samples: int | None = None, none: str = "", **more,
) -> Metric:  # fmt: skip
    """sum(numerator) / sum(denominator) over rows (N,). If the denominator sums to 0 it is not applicable, for the reason
    `none`; rows that are not finite make it invalid; `more`: further fields of `Metric`, in place of the spec's."""
    value, ci, clusters = intervals.ratio(numerator, denominator, cluster, method=method)
    if not math.isfinite(value):
        more.pop("reason", None)
        if not np.isfinite(numerator).all():
            reason = "the model's numbers are not finite: its weights are damaged, or its training diverged"
            return absent(spec, reason, "invalid", **more)
        return absent(spec, none or "there is nothing to measure it on", **more)
    samples = len(numerator) if samples is None else samples
    return number(spec, value, ci, clusters, samples, **more)


def number(spec: MetricSpec, value: float, ci: tuple[float, float] | None, n: int, samples: int, **more) -> Metric:
    """A value with a given interval; underpowered if it comes of fewer than ten clusters."""
    if n < intervals.FEW:
        few = f"only {n} independent clusters: an interval over so few says little"
        more = {**more, "status": "underpowered", "reason": f"{few}; {more['reason']}" if more.get("reason") else few}
    if ci is not None and not all(math.isfinite(x) for x in ci):
        ci = None
    return metric(spec, float(value), ci=ci, n_clusters=n, n_samples=samples, **more)


def absent(spec: MetricSpec, reason: str, status: str = "not_applicable", **more) -> Metric:
    """What could not be measured, and why."""
    more = {key: value for key, value in more.items() if key not in ("values", "clusters", "states", "reason", "status")}
    return metric(spec, None, status=status, reason=reason, **more)


def metric(spec: MetricSpec, value: float | None, **more) -> Metric:
    """The metric of a spec; `more`: further fields of `Metric`, in place of the spec's."""
    shared = {key: getattr(spec, key) for key in ("id", "name", "unit", "direction", "tier", "experimental")}
    return Metric(**(shared | {"value": value} | more))


def of_few(result: Metric, events: int, what: str) -> Metric:
    """Underpowered if it is measured, on fewer than ten events."""
    if result.value is None or events >= FEW_EVENTS:
        return result
    return replace(result, status="underpowered", reason=f"only {events} {what}")


def mean_error(spec: MetricSpec, predicted: np.ndarray, true: np.ndarray, weight: np.ndarray, cluster: np.ndarray) -> Metric:
    """The mean absolute error of predictions (S, A) with weights (S, A); the floor is a constant prediction of the mean."""
    center = (weight * true).sum(1).mean()
    floor = float((weight * np.abs(true - center)).sum(1).mean())
    return mean(spec, (weight * np.abs(predicted - true)).sum(1), cluster, floor=floor, ceiling=0.0)
