"""How far can a dream be trusted? M4: dreams under given actions, beside what really came of them.

Tier A, held-out episodes: there is one real future of each start, so a distance between distributions is not to be had; the
energy score is used, whose expectation is lowest for the true distribution (Gneiting and Raftery 2007). Where the world
itself is random it rises although the model is right, and the valid horizon is a lower bound.

Tier B, a simulator that can be branched: several real rollouts from each start, so D(t), the energy distance between real and
imagined frames of step t, is 0 for a right model in a random world too. Rollouts that have ended are left out of it (M5
compares when they end).
"""

from __future__ import annotations

import numpy as np

from tokenworld.evaluation.records import Drift, Metric, Rollouts
from tokenworld.evaluation.statistics import intervals
from tokenworld.evaluation.statistics.divergences import capped, pair_distances
from tokenworld.evaluation.statistics.measured import absent, number, share

IDS = ("M4.horizon", "M4.self_feeding", "M4.first", "M4.last", "M4.distance", "M4.valid_horizon", "M4.median_horizon",
       "M4.spread_skill", "M4.rollout_self_feeding")  # fmt: skip
SILENT = {  # numbers that no finding reads, and why
    "M4.self_feeding": "in a random world dream and reality part without a fault of the model",
    "M4.rollout_self_feeding": "in a random world dream and reality part without a fault of the model",
    "M4.median_horizon": "another view of M4.valid_horizon, which the verdict reads",
    "M4.spread_skill": "a ratio of two small numbers where the world is nearly certain: M4.distance judges the rollouts",
    "M4.last": "DRIFTS reads it together with M4.first; M4.distance judges all steps",
}
WORTH = 0.5  # a dream is worth having while its score is below this share of that of a frame that stands still


def energy_scores(drift: Drift) -> tuple[np.ndarray, np.ndarray]:
    """(S, T) energy scores of the dreams, and of the standing frame: shares of the K codes that differ,
    E|X - y| - E|X - X'| / 2 over the M dreams X."""
    off = (drift.model != drift.real[:, None]).mean(-1).mean(1)  # (S, T)
    M = drift.model.shape[1]
    spread = np.zeros_like(off)
    for i in range(M):
        for j in range(i):
            spread += (drift.model[:, i] != drift.model[:, j]).mean(-1)
    spread = spread / (M * (M - 1) / 2) if M > 1 else spread
    return off - spread / 2, (drift.copy[:, None] != drift.real).mean(-1)


def horizon(drift: Drift) -> list[Metric]:
    """M4: the valid horizon in steps, censored at T, and how much dearer real frames are after dreamt ones."""
    score, still = energy_scores(drift)
    S, T = score.shape
    clusters = len(np.unique(drift.cluster))
    common = dict(n_clusters=clusters, n_samples=S, tier="A")
    few = dict(status="underpowered", reason=f"only {clusters} episodes") if clusters < intervals.FEW else {}
    if not still.any():
        return [Metric("M4.horizon", "Valid horizon", None, "steps", "higher", status="not_applicable",
                       reason="nothing moves in the held-out data", **common)]  # fmt: skip

    def first_bad(weights: np.ndarray) -> float:
        bad = weights @ score > WORTH * (weights @ still)
        return float(np.argmax(bad) + 1) if bad.any() else float(T + 1)

    value, ci, _ = intervals.statistic(first_bad, drift.cluster, draws=500)
    censored = f"longer than the {T} steps that were imagined" if value > T else ""
    found = [
        Metric("M4.horizon", "Valid horizon", value - 1, "steps", "higher", (ci[0] - 1, ci[1] - 1), floor=0.0,
               **{**common, **few, "reason": few.get("reason", "") or censored})
    ]  # fmt: skip
    if T > 1 and drift.own_bits is not None:
        ratio, ci, _ = intervals.ratio(drift.own_bits[:, -1], drift.real_bits[:, -1], drift.cluster)
        name = f"Bits of a real frame after {T - 1} dreamt ones, for each after real ones"
        reason = "in a random world dream and reality part without anybody's fault: a fault only where nothing is random"
        found.append(Metric("M4.self_feeding", name, ratio, "", "none", ci, ceiling=1.0,
                            **{**common, **few, "reason": few.get("reason", reason)}))  # fmt: skip
    return found


def curves(drift: Drift) -> dict[str, np.ndarray]:
    """(T,) each: the mean energy score of the dreams with its interval, that of the standing frame."""
    score, still = energy_scores(drift)
    bounds = [intervals.ratio(score[:, t], None, drift.cluster)[1] for t in range(score.shape[1])]
    return {"model": score.mean(0), "low": np.array([b[0] for b in bounds]), "high": np.array([b[1] for b in bounds]),
            "copy": still.mean(0)}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# With a simulator


def rollout_drift(rollouts: Rollouts) -> list[Metric]:
    """M4, tier B: D(t) at the first and last step and on average, two horizons, spread over error, and self-feeding.

    valid_horizon: steps before the lower end of the interval of D(t) - D_copy(t) / 2 exceeds 0, for all starts together; its
    interval begins where the upper end does. median_horizon: Kaplan-Meier median over starts of the steps before a start's
    own D(t) exceeds half of its D_copy(t), and what a second draw of real rollouts shows in 19 of 20 starts. Both are
    censored at T. spread_skill: mean distance between dreams over that of dreams to reality, 1 if they are drawn alike.
    """
    cluster, T = rollouts.cluster, rollouts.real.shape[2]
    names = {"M4.first": "Energy distance after one step", "M4.last": f"Energy distance after {T} steps",
             "M4.distance": "Energy distance over all steps", "M4.valid_horizon": "Valid horizon",
             "M4.median_horizon": "Median valid horizon of a start",
             "M4.spread_skill": "Spread of the dreams for their error"}  # fmt: skip
    if min(rollouts.real.shape[1], rollouts.model.shape[1]) < 2:
        reason = "it takes two real and two imagined rollouts of each start"
        return [absent(id, name, reason, tier="B") for id, name in names.items()] + [_self_feeding(rollouts)]
    D, copy, second, spread, error = _distances(rollouts)
    found = []
    for id, steps in (("M4.first", slice(0, 1)), ("M4.last", slice(T - 1, T)), ("M4.distance", slice(0, T))):
        seen = np.isfinite(D[:, steps])
        floor, ceiling = (float(np.nanmean(x[:, steps])) if np.isfinite(x[:, steps]).any() else None for x in (copy, second))
        found.append(share(id, names[id], np.where(seen, D[:, steps], 0).sum(1), seen.sum(1), cluster, "distance", tier="B",
                           floor=floor, ceiling=ceiling, none="no rollouts live that long"))  # fmt: skip
    found += [_valid_horizon(D, copy, cluster, names), _median_horizon(D, copy, second, cluster, names)]
    found.append(share("M4.spread_skill", names["M4.spread_skill"], np.nansum(spread, 1), np.nansum(error, 1), cluster, "",
                       "none", tier="B", ceiling=1.0, none="dreams and reality are one and the same"))  # fmt: skip
    return [*found, _self_feeding(rollouts)]


def distance_curves(rollouts: Rollouts) -> dict[str, np.ndarray]:
    """(T,) each: D(t) of the model with its interval, of the standing frame and of a second draw of the real world, and the
    bits of a real frame after a dreamt past for each after the real one (nan if unknown)."""
    D, copy, second, _, _ = _distances(rollouts)
    seen = np.isfinite(D)
    model, low, high = intervals.columns(np.where(seen, D, 0.0), seen.astype(float), rollouts.cluster)
    feeding = np.full(D.shape[1], np.nan)
    if rollouts.own_bits is not None and rollouts.real_bits is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            feeding = capped(rollouts.own_bits).sum(0) / capped(rollouts.real_bits).sum(0)
    return {"model": model, "low": low, "high": high, "copy": _over_starts(copy), "second": _over_starts(second),
            "self_feeding": feeding}  # fmt: skip


def _distances(rollouts: Rollouts) -> tuple[np.ndarray, ...]:
    """(S, T) each, nan where too few rollouts live: energy distances to the real rollouts of the model's, of the standing
    frame and of a second draw; mean distance between dreams, and of dreams to real rollouts."""
    columns = []
    both = np.ones(rollouts.second.shape[:2], bool)
    for t in range(rollouts.real.shape[2]):
        real, model, second = (x[:, :, t] for x in (rollouts.real, rollouts.model, rollouts.second))
        alive, dreamt = rollouts.alive_real[:, :, t], rollouts.alive_model[:, :, t]
        still = rollouts.copy[:, None]
        within, spread = _mean_distance(real, real, alive, alive), _mean_distance(model, model, dreamt, dreamt)
        error = _mean_distance(model, real, dreamt, alive)
        again = _mean_distance(real, second, alive, both) * 2 - _mean_distance(second, second, both, both)
        copy = 2 * _mean_distance(real, still, alive, both[:, :1])
        columns.append((2 * error - within - spread, copy - within, again - within, spread, error))
    return tuple(np.stack(column, 1) for column in zip(*columns, strict=True))


def _mean_distance(x: np.ndarray, y: np.ndarray, of_x: np.ndarray, of_y: np.ndarray) -> np.ndarray:
    """Mean distance (S,) of the draws x (S, n, F) to y (S, m, F) that are marked; of different ones if y is x."""
    pairs = of_x[:, :, None] & of_y[:, None]
    if x is y:
        pairs = pairs & ~np.eye(x.shape[1], dtype=bool)
    count = pairs.sum((1, 2))
    total = (pair_distances(x, y) * pairs).sum((1, 2))
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _valid_horizon(D: np.ndarray, copy: np.ndarray, cluster: np.ndarray, names: dict[str, str]) -> Metric:
    T, seen = D.shape[1], np.isfinite(D)
    excess = np.where(seen, D - WORTH * copy, 0.0)
    _, low, high = intervals.columns(excess, seen.astype(float), cluster)
    latest, soonest = (float(np.argmax(end > 0)) if (end > 0).any() else float(T) for end in (low, high))
    reason = f"longer than the {T} steps that were imagined" if latest == T else ""
    id, n = "M4.valid_horizon", len(np.unique(cluster))
    return number(id, names[id], latest, (soonest, latest), n, len(D), unit="steps", direction="higher", tier="B", floor=0.0,
                  reason=reason)  # fmt: skip


def _median_horizon(D: np.ndarray, copy: np.ndarray, second: np.ndarray, cluster: np.ndarray, names: dict[str, str]) -> Metric:
    S, T = D.shape
    peak = np.where(np.isfinite(second), second, -np.inf).max(1)
    noise = float(np.quantile(peak[np.isfinite(peak)], 0.95)) if np.isfinite(peak).any() else 0.0
    seen = np.isfinite(D)
    bad = seen & (np.where(seen, D, 0.0) > np.maximum(WORTH * np.where(seen, copy, 0.0), noise))
    last_seen = np.where(seen.any(1), T - np.argmax(seen[:, ::-1], 1), 0)
    time = np.where(bad.any(1), np.argmax(bad, 1) + 1, last_seen + 1)  # lost sight of after the last step seen
    found, row = np.unique(cluster, return_inverse=True)

    def median(weights: np.ndarray) -> np.ndarray:
        half = intervals.kaplan_meier(time, bad.any(1), T, weights) <= 0.5
        return np.where(half.any(-1), np.argmax(half, -1) - 1, T).astype(float)

    value = float(median(np.ones(S)))
    drawn = median(intervals.draws_of(len(found))[:, row])
    id, reason = "M4.median_horizon", f"longer than the {T} steps that were imagined" if value == T else ""
    ci = intervals.percentile(drawn, clusters=len(found))
    return number(id, names[id], value, ci, len(found), S, unit="steps", direction="higher", tier="B", floor=0.0,
                  reason=reason)  # fmt: skip


def _self_feeding(rollouts: Rollouts) -> Metric:
    id, name = "M4.rollout_self_feeding", "Bits of the last real frame after a dreamt past, for each after the real one"
    if rollouts.own_bits is None or rollouts.real_bits is None:
        return absent(id, name, "real frames were not scored after a dreamt past", "skipped", tier="B")
    reason = "in a random world dream and reality part without anybody's fault: a fault only where nothing is random"
    return share(id, name, capped(rollouts.own_bits)[:, -1], capped(rollouts.real_bits)[:, -1], rollouts.cluster, "", "none",
                 tier="B", ceiling=1.0, reason=reason, none="the real frames cost nothing")  # fmt: skip


def _over_starts(values: np.ndarray) -> np.ndarray:
    seen = np.isfinite(values)
    return np.where(seen.any(0), np.where(seen, values, 0.0).sum(0) / np.maximum(seen.sum(0), 1), np.nan)
