"""How far can an imagined rollout be trusted? Rollouts under given actions, compared with what really followed.

Tier A, held-out episodes: there is one real future of each start, so there is no distance between distributions; the
energy score is used, whose expectation is lowest for the true distribution (Gneiting and Raftery 2007). Where the world
itself is random it rises although the model is right, and the valid horizon is a lower bound.

Tier B, a simulator that can be branched: several real rollouts from each start, so D(t), the energy distance between real and
imagined frames of step t, is 0 for a right model in a random world too. Rollouts that have ended are left out of it (the
survival gap compares when they end).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from tokenworld.evaluation.records import Drift, Metric, Rollouts
from tokenworld.evaluation.statistics import intervals
from tokenworld.evaluation.statistics.divergences import capped, pair_distances
from tokenworld.evaluation.statistics.measured import absent, metric, number, share
from tokenworld.evaluation.statistics.metric_spec import (
    NO_LIKELIHOOD,
    ROLLOUTS,
    MetricSpec,
    Rule,
    arrays_of,
    below,
    measure,
)

_spec = partial(
    MetricSpec, section=ROLLOUTS, topic="rollouts", of_codes=True, source="Janner et al. 2019, arXiv:1906.08253"
)
RANDOM = "in a random world imagined and real futures part without a fault of the model"
HELD_OUT_HORIZON = _spec(
    "rollouts.held_out_horizon", "Valid horizon",
    "Steps for which an imagined rollout is closer to what came than half of the error of a static frame. One real future of "
    "each start is known, so in a random world this is a lower bound.",
    alias="M4.horizon", unit="steps", direction="higher", picture="drift", topic="the valid horizon",
    silent="the verdict reads it: how long a horizon must be is not known",
)  # fmt: skip
EXPOSURE_BIAS = _spec(
    "rollouts.held_out_exposure_bias", "Bits of a real frame after imagined frames, for each after real ones",
    "Cost of encoding a real frame when the context is imagined instead of real, as a ratio.",
    alias="M4.self_feeding", direction="none", silent=RANDOM,
)  # fmt: skip
_branched = partial(_spec, tier="B")
FIRST = _branched(
    "rollouts.first_step_distance", "Energy distance after one step",
    "Distance of imagined from real futures after one step, both sampled many times.",
    alias="M4.first", unit="distance", quality="First frames like real ones", of_codes=False,
    rules=(Rule("FIRST_STEP_OFF", "warning", below(0.5, skill=True),
                lambda m: f"its rollouts are off from the first step ({m.value:.2g}; a static frame {m.floor:.2g})"),),
)  # fmt: skip
LAST = _branched(
    "rollouts.last_step_distance", "Energy distance after the last step", "The same at the end of the rollouts.",
    alias="M4.last", unit="distance", quality="Last frames like real ones", of_codes=False,
    silent="DRIFTS reads it together with the first step; the distance over all steps judges the rollouts",
)  # fmt: skip
DISTANCE = _branched(
    "rollouts.distance", "Energy distance over all steps",
    "The same over all steps. Floor: a static frame; ceiling: other real futures.",
    alias="M4.distance", unit="distance", quality="Rollouts like real ones", of_codes=False, picture="distance",
    is_expected=True,
    rules=(Rule("ROLLOUTS_OFF", "warning", below(0.5, skill=True),
                lambda m: f"its rollouts part from reality ({m.value:.2g}; a static frame {m.floor:.2g})"),),
)  # fmt: skip
VALID_HORIZON = _branched(
    "rollouts.valid_horizon", "Valid horizon", "Steps until that distance exceeds half of the error of a static frame.",
    alias="M4.valid_horizon", unit="steps", direction="higher", topic="the valid horizon", of_codes=False,
    silent="the verdict reads it: how long a horizon must be is not known",
)  # fmt: skip
MEDIAN_HORIZON = _branched(
    "rollouts.median_horizon", "Median valid horizon of a start",
    "The same start by start: half of the starts are valid for longer.",
    alias="M4.median_horizon", unit="steps", direction="higher", of_codes=False,
    silent="another view of the valid horizon, which the verdict reads",
)  # fmt: skip
SPREAD = _branched(
    "rollouts.spread_error_ratio", "Spread of the rollouts for their error",
    "Mean distance between imagined rollouts over their distance to real ones: 1 is right, below 1 they are too similar.",
    alias="M4.spread_skill", direction="none", of_codes=False,
    silent="a ratio of two small numbers where the world is nearly certain: the distance judges the rollouts",
)  # fmt: skip
BRANCH_EXPOSURE_BIAS = _branched(
    "rollouts.exposure_bias", "Bits of the last real frame after an imagined context, for each after the real one",
    "Cost of encoding the last real frame when the context is imagined instead of real, as a ratio.",
    alias="M4.rollout_self_feeding", direction="none", silent=RANDOM,
)  # fmt: skip
WORTH = 0.5  # a rollout is valid while its score is below this share of that of a static frame


def energy_scores(drift: Drift) -> tuple[np.ndarray, np.ndarray]:
    """(S, T) energy scores of the rollouts, and of the static frame: shares of the K codes that differ,
    E|X - y| - E|X - X'| / 2 over the M rollouts X. Codes or tiles, see `Drift`."""
    off = (drift.model != drift.real[:, None]).mean(-1).mean(1)  # (S, T)
    M = drift.model.shape[1]
    spread = np.zeros_like(off)
    for i in range(M):
        for j in range(i):
            spread += (drift.model[:, i] != drift.model[:, j]).mean(-1)
    spread = spread / (M * (M - 1) / 2) if M > 1 else spread
    return off - spread / 2, (drift.copy[:, None] != drift.real).mean(-1)


@measure
def horizon(drift: Drift, no_likelihood: str = NO_LIKELIHOOD) -> list[Metric]:
    """The valid horizon in steps, censored at T, and how much more real frames cost after imagined ones."""
    score, still = energy_scores(drift)
    S, T = score.shape
    clusters = len(np.unique(drift.cluster))
    common = dict(n_clusters=clusters, n_samples=S)
    few = dict(status="underpowered", reason=f"only {clusters} episodes") if clusters < intervals.FEW else {}
    if not still.any():
        return [absent(HELD_OUT_HORIZON, "nothing moves in the held-out data", **common)]

    def first_bad(weights: np.ndarray) -> float:
        bad = weights @ score > WORTH * (weights @ still)
        return float(np.argmax(bad) + 1) if bad.any() else float(T + 1)

    value, ci, _ = intervals.statistic(first_bad, drift.cluster, draws=500)
    censored = f"longer than the {T} steps that were imagined" if value > T else ""
    metrics = [
        metric(HELD_OUT_HORIZON, value - 1, ci=(ci[0] - 1, ci[1] - 1), floor=0.0,
               **{**common, **few, "reason": few.get("reason", "") or censored})
    ]  # fmt: skip
    if drift.own_bits is None:
        metrics.append(absent(EXPOSURE_BIAS, no_likelihood))
    elif T > 1:
        ratio, ci, _ = intervals.ratio(drift.own_bits[:, -1], drift.real_bits[:, -1], drift.cluster)
        name = f"Bits of a real frame after {T - 1} imagined ones, for each after real ones"
        reason = f"{RANDOM}: a fault only in a deterministic world"
        metrics.append(metric(EXPOSURE_BIAS, ratio, name=name, ci=ci, ceiling=1.0,
                            **{**common, **few, "reason": few.get("reason", reason)}))  # fmt: skip
    return metrics


@arrays_of("drift")
def curves(drift: Drift) -> dict[str, np.ndarray]:
    """(T,) each: the mean energy score of the rollouts with its interval, that of the static frame."""
    score, still = energy_scores(drift)
    bounds = [intervals.ratio(score[:, t], None, drift.cluster)[1] for t in range(score.shape[1])]
    return {"model": score.mean(0), "low": np.array([b[0] for b in bounds]), "high": np.array([b[1] for b in bounds]),
            "copy": still.mean(0)}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# With a simulator


@measure
def rollout_drift(rollouts: Rollouts) -> list[Metric]:
    """Tier B: D(t) at the first and last step and on average, two horizons, spread over error, and exposure bias.

    valid_horizon: steps before the lower end of the interval of D(t) - D_copy(t) / 2 exceeds 0, for all starts together; its
    interval begins where the upper end does. median_horizon: Kaplan-Meier median over starts of the steps before a start's
    own D(t) exceeds half of its D_copy(t), and what a second draw of real rollouts shows in 19 of 20 starts. Both are
    censored at T. spread_error_ratio: mean distance between imagined rollouts over that to real ones, 1 if both have one
    distribution.
    """
    cluster, T = rollouts.cluster, rollouts.real.shape[2]
    if min(rollouts.real.shape[1], rollouts.model.shape[1]) < 2:
        reason = "it takes two real and two imagined rollouts of each start"
        measured = (FIRST, LAST, DISTANCE, VALID_HORIZON, MEDIAN_HORIZON, SPREAD)
        return [absent(spec, reason) for spec in measured] + [_exposure_bias(rollouts)]
    D, copy, second, spread, error = _distances(rollouts)
    metrics = []
    for spec, steps in ((FIRST, slice(0, 1)), (LAST, slice(T - 1, T)), (DISTANCE, slice(0, T))):
        seen = np.isfinite(D[:, steps])
        floor, ceiling = (float(np.nanmean(x[:, steps])) if np.isfinite(x[:, steps]).any() else None for x in (copy, second))
        name = f"Energy distance after {T} steps" if spec is LAST else spec.name
        metrics.append(share(spec, np.where(seen, D[:, steps], 0).sum(1), seen.sum(1), cluster, name=name, floor=floor,
                           ceiling=ceiling, none="no rollouts live that long"))  # fmt: skip
    metrics += [_valid_horizon(D, copy, cluster), _median_horizon(D, copy, second, cluster)]
    metrics.append(share(SPREAD, np.nansum(spread, 1), np.nansum(error, 1), cluster, ceiling=1.0,
                       none="imagined and real rollouts are all the same"))  # fmt: skip
    return [*metrics, _exposure_bias(rollouts)]


@arrays_of("distance")
def distance_curves(rollouts: Rollouts) -> dict[str, np.ndarray]:
    """(T,) each: D(t) of the model with its interval, of the static frame and of a second draw of the real world, and the
    bits of a real frame after an imagined context for each after the real one (nan if unknown)."""
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
    """(S, T) each, nan where too few rollouts live: energy distances to the real rollouts of the model's, of the static
    frame and of a second draw; mean distance between imagined rollouts, and of these to real ones."""
    columns = []
    both = np.ones(rollouts.second.shape[:2], bool)
    for t in range(rollouts.real.shape[2]):
        real, model, second = (x[:, :, t] for x in (rollouts.real, rollouts.model, rollouts.second))
        alive, imagined = rollouts.alive_real[:, :, t], rollouts.alive_model[:, :, t]
        still = rollouts.copy[:, None]
        within, spread = _mean_distance(real, real, alive, alive), _mean_distance(model, model, imagined, imagined)
        error = _mean_distance(model, real, imagined, alive)
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


def _valid_horizon(D: np.ndarray, copy: np.ndarray, cluster: np.ndarray) -> Metric:
    T, seen = D.shape[1], np.isfinite(D)
    excess = np.where(seen, D - WORTH * copy, 0.0)
    _, low, high = intervals.columns(excess, seen.astype(float), cluster)
    latest, soonest = (float(np.argmax(end > 0)) if (end > 0).any() else float(T) for end in (low, high))
    reason = f"longer than the {T} steps that were imagined" if latest == T else ""
    return number(VALID_HORIZON, latest, (soonest, latest), len(np.unique(cluster)), len(D), floor=0.0, reason=reason)


def _median_horizon(D: np.ndarray, copy: np.ndarray, second: np.ndarray, cluster: np.ndarray) -> Metric:
    S, T = D.shape
    peak = np.where(np.isfinite(second), second, -np.inf).max(1)
    noise = float(np.quantile(peak[np.isfinite(peak)], 0.95)) if np.isfinite(peak).any() else 0.0
    seen = np.isfinite(D)
    bad = seen & (np.where(seen, D, 0.0) > np.maximum(WORTH * np.where(seen, copy, 0.0), noise))
    last_seen = np.where(seen.any(1), T - np.argmax(seen[:, ::-1], 1), 0)
    time = np.where(bad.any(1), np.argmax(bad, 1) + 1, last_seen + 1)  # lost sight of after the last step seen
    unique, row = np.unique(cluster, return_inverse=True)

    def median(weights: np.ndarray) -> np.ndarray:
        half = intervals.kaplan_meier(time, bad.any(1), T, weights) <= 0.5
        return np.where(half.any(-1), np.argmax(half, -1) - 1, T).astype(float)

    value = float(median(np.ones(S)))
    drawn = median(intervals.draws_of(len(unique))[:, row])
    reason = f"longer than the {T} steps that were imagined" if value == T else ""
    ci = intervals.percentile(drawn, clusters=len(unique))
    return number(MEDIAN_HORIZON, value, ci, len(unique), S, floor=0.0, reason=reason)


def _exposure_bias(rollouts: Rollouts) -> Metric:
    if rollouts.own_bits is None or rollouts.real_bits is None:
        return absent(BRANCH_EXPOSURE_BIAS, "real frames were not scored after an imagined context", "skipped")
    own, real = capped(rollouts.own_bits)[:, -1], capped(rollouts.real_bits)[:, -1]
    reason = f"{RANDOM}: a fault only in a deterministic world"
    return share(BRANCH_EXPOSURE_BIAS, own, real, rollouts.cluster, ceiling=1.0, reason=reason,
                 none="the real frames cost nothing")  # fmt: skip


def _over_starts(values: np.ndarray) -> np.ndarray:
    seen = np.isfinite(values)
    return np.where(seen.any(0), np.where(seen, values, 0.0).sum(0) / np.maximum(seen.sum(0), 1), np.nan)
