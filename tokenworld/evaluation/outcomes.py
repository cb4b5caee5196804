"""Rewards and terminations on held-out data (M5, tier A): do the events that a policy lives on survive?

Terminations are one step in hundreds: a classifier's area under the curve looks fine while the probability of an end is ten
times too low, so the hazard itself is compared with how often episodes ended.
"""

from __future__ import annotations

import math

import numpy as np

from tokenworld.evaluation import intervals
from tokenworld.evaluation.records import Metric, Scored

EVENT = 0.5  # a reward event is a reward further from zero than this
WITHIN = 2  # steps by which an event may be early or late
FEW_EVENTS = 10
BINS = 10


def rewards(scored: Scored) -> list[Metric]:
    """M5, rewards: recall and precision of events within 2 steps, and what the mean reward is off by."""
    real, told = np.abs(scored.reward) > EVENT, np.abs(scored.reward_mean) > EVENT
    found = [
        _share("M5.reward_recall", "Reward events that were predicted", near(told, scored), real, scored, "real reward events"),
        _share("M5.reward_precision", "Predicted reward events that came", near(real, scored), told, scored,
               "predicted reward events"),
    ]  # fmt: skip
    off = scored.reward_mean - np.sign(scored.reward)
    value, ci, n = intervals.ratio(off, None, scored.cluster)
    scale = float(np.abs(np.sign(scored.reward)).mean())
    found.append(
        Metric("M5.reward_bias", "Mean predicted reward minus mean reward sign", value, "per step", "zero", ci, n_clusters=n,
               n_samples=len(off), floor=scale if scale else None, ceiling=0.0, values=off)
    )  # fmt: skip
    return found


def terminations(scored: Scored) -> list[Metric]:
    """M5, terminations: the ratio of announced to real ends, Brier skill, and log-loss against the base rate."""
    hazard, end = np.clip(scored.hazard, 1e-9, 1 - 1e-9), scored.terminated.astype(float)
    n, ends = len(end), int(end.sum())
    names = {"M5.hazard_ratio": "Announced ends for each real one", "M5.hazard_brier": "Brier skill of the hazard",
             "M5.hazard_loss": "Log-loss of the hazard"}  # fmt: skip
    if ends == 0 or ends == n:
        reason = "no episode terminated in the held-out data" if ends == 0 else "every held-out step terminated"
        return [Metric(id, name, None, status="not_applicable", reason=reason) for id, name in names.items()]
    rate = ends / n
    ratio, ratio_ci, clusters = intervals.ratio(hazard, end, scored.cluster)
    missed, chance = np.square(hazard - end), np.square(rate - end)
    lost, lost_ci, _ = intervals.ratio(missed, chance, scored.cluster)
    loss = -(end * np.log2(hazard) + (1 - end) * np.log2(1 - hazard))
    value, ci, _ = intervals.ratio(loss, None, scored.cluster)
    floor = -(rate * math.log2(rate) + (1 - rate) * math.log2(1 - rate))
    few = ends < FEW_EVENTS
    common = dict(n_clusters=clusters, n_samples=n, status="underpowered" if few else "ok",
                  reason=f"only {ends} terminations" if few else "")  # fmt: skip
    return [
        Metric("M5.hazard_ratio", names["M5.hazard_ratio"], ratio, "", "none", ratio_ci, ceiling=1.0, **common),
        Metric("M5.hazard_brier", names["M5.hazard_brier"], 1 - lost, "", "higher", (1 - lost_ci[1], 1 - lost_ci[0]),
               floor=0.0, ceiling=1.0, **common),
        Metric("M5.hazard_loss", names["M5.hazard_loss"], value, "bits/step", "lower", ci, floor=floor, ceiling=0.0,
               values=loss, **common),
    ]  # fmt: skip


def hazard_reliability(scored: Scored, bins: int = BINS) -> dict[str, np.ndarray]:
    """Terminations by announced hazard: bins of equal numbers of *ends*, since most steps have a hazard near zero:
    {"probability", "frequency", "low", "high" (exact 95 % intervals), "count"}."""
    order = np.argsort(scored.hazard, kind="stable")
    end = scored.terminated[order].astype(int)
    total = end.sum()
    bins = max(1, min(bins, int(total) or 1))
    edges = np.searchsorted(np.cumsum(end), np.linspace(0, total, bins + 1)[1:-1], side="right")
    parts = [part for part in np.split(order, edges) if len(part)]
    k = [int(scored.terminated[part].sum()) for part in parts]
    bounds = [intervals.clopper_pearson(a, len(part)) for a, part in zip(k, parts, strict=True)]
    return {
        "probability": np.array([scored.hazard[part].mean() for part in parts]),
        "frequency": np.array([a / len(part) for a, part in zip(k, parts, strict=True)]),
        "low": np.array([low for low, _ in bounds]),
        "high": np.array([high for _, high in bounds]),
        "count": np.array([len(part) for part in parts]),
    }


def near(event: np.ndarray, scored: Scored) -> np.ndarray:
    """(N,): is there an event within 2 steps of the row, in its own episode?"""
    step = np.arange(len(event)) if scored.step is None else scored.step
    when: dict[tuple[int, int], None] = dict.fromkeys(zip(scored.cluster[event].tolist(), step[event].tolist(), strict=True))
    reach = range(-WITHIN, WITHIN + 1)
    rows = zip(scored.cluster.tolist(), step.tolist(), strict=True)
    return np.array([any((cluster, at + d) in when for d in reach) for cluster, at in rows])


def _share(id: str, name: str, met: np.ndarray, asked: np.ndarray, scored: Scored, what: str) -> Metric:
    n = int(asked.sum())
    if n == 0:
        return Metric(id, name, None, direction="higher", status="not_applicable", reason=f"there are no {what}")
    value, ci, clusters = intervals.ratio(met & asked, asked, scored.cluster)
    few = n < FEW_EVENTS
    return Metric(id, name, value, "share", "higher", ci, n_clusters=clusters, n_samples=n, floor=0.0, ceiling=1.0,
                  status="underpowered" if few else "ok", reason=f"only {n} {what}" if few else "")  # fmt: skip
