"""Is the model of use to somebody who decides? M12 to M14, experimental: policies ranked, planners served, codes needed.

Returns in the model beside returns in the real environment, over the same horizon. Rankings over few policies say little:
with 8 a correlation of 0.8 has an interval of (0.2, 0.96), so fewer than 20 count as underpowered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from tokenworld.errors import UserError
from tokenworld.evaluation import intervals, ranking
from tokenworld.evaluation.measured import absent, mean, number
from tokenworld.evaluation.records import Array, Metric, PolicyValues

IDS = ("M12.spearman", "M12.kendall", "M12.regret", "M12.abs_error", "M12.mmrv", "M12.within_tertile", "M13.value_error",
       "M13.oracle_gain", "M13.planner_regret", "M13.optimism", "M14.knee", "M14.fragility")  # fmt: skip
SILENT = {  # numbers that no finding reads, and why
    "M12.kendall": "the same order as M12.spearman, which judges it",
    "M12.mmrv": "a return without a scale: M12.regret judges the wrong order that matters most",
    "M12.within_tertile": "a third holds few policies: M12.spearman judges all",
    "M13.oracle_gain": "it is the planner's, not the model's",
    "M14.knee": "how much information is enough has no ideal",
    "M14.fragility": "it judges a ladder of models, not one",
}
POLICIES = 20  # with fewer, rankings say little
COMMON = dict(tier="C", experimental=True)


# ---------------------------------------------------------------------------------------------------------------------
# M12: policies


def policy_agreement(values: PolicyValues, k: int = 1) -> list[Metric]:
    """M12 (after Fu et al. 2021, arXiv:2103.16596): rank correlations of values in the model with real ones; regret of
    trusting its k best; mean absolute error over the range of real values; MMRV, the mean over policies of the largest real
    difference that it orders wrongly (Li et al. 2024); and rank correlation within thirds of alike policies, since good ones
    are easily told from bad. Intervals resample policies, and episodes within them."""
    names = {"M12.spearman": "Rank correlation of policies", "M12.kendall": "Kendall's tau of policies",
             "M12.regret": f"Return lost by trusting the model's best {k}", "M12.abs_error": "Error of values",
             "M12.mmrv": "Return differences ordered wrongly",
             "M12.within_tertile": "Rank correlation among alike policies"}  # fmt: skip
    real, model = _means(values.real), _means(values.model)  # (P,)
    P, reach = len(real), float(np.ptp(real)) if len(real) else 0.0
    if P < 3 or reach == 0:
        reason = f"a ranking takes at least three policies, got {P}" if P < 3 else "all policies are worth the same"
        return [absent(id, name, reason, **COMMON) for id, name in names.items()]
    drawn_real, drawn_model = _drawn(values.real), _drawn(values.model, seed=len(real))  # (B, P)
    chosen = np.random.default_rng(0).integers(P, size=drawn_real.shape)
    pair = (np.take_along_axis(drawn_real, chosen, 1), np.take_along_axis(drawn_model, chosen, 1))
    error = np.abs(real - model) / reach
    episodes = sum(map(len, values.real)) + sum(map(len, values.model))
    few = dict(status="underpowered", reason=f"only {P} policies: a ranking takes about {POLICIES}") if P < POLICIES else {}

    def made(id: str, of: Callable, drawn: tuple[Array, Array], unit: str, direction: str, **more) -> Metric:
        value = float(of(real, model))
        if not np.isfinite(value):
            return absent(id, names[id], "the model values all policies alike", unit=unit, direction=direction, **COMMON)
        draws = of(*drawn)
        return Metric(id, names[id], value, unit, direction, intervals.percentile(draws[np.isfinite(draws)]), n_clusters=P,
                      n_samples=episodes, **COMMON, **few, **more)  # fmt: skip

    found = [
        made("M12.spearman", ranking.spearman, pair, "", "higher", floor=0.0, ceiling=1.0),
        made("M12.kendall", ranking.kendall, pair, "", "higher", floor=0.0, ceiling=1.0),
        made("M12.regret", partial(regret, k=k), pair, "return", "lower", floor=float(real.max() - real.mean()), ceiling=0.0),
        made("M12.abs_error", lambda v, w: np.abs(v - w).mean(-1) / reach, pair, "share of the range", "lower", ceiling=0.0,
             values=error, clusters=np.arange(P)),
        made("M12.mmrv", mmrv, pair, "return", "lower", ceiling=0.0),
    ]  # fmt: skip
    if P < 9:
        reason = f"thirds of {P} policies are too few to rank: it takes at least 9"
        return [*found, absent("M12.within_tertile", names["M12.within_tertile"], reason, **COMMON)]
    order, third = np.argsort(real, kind="stable"), np.array_split(np.arange(P), 3)
    rng = np.random.default_rng(1)
    rows = np.concatenate([order[part[rng.integers(len(part), size=(len(chosen), len(part)))]] for part in third], 1)

    def within(v: np.ndarray, w: np.ndarray) -> np.ndarray:
        v, w = (v[order], w[order]) if v.ndim == 1 else (v, w)  # draws are in order of the thirds already
        each = np.stack([ranking.spearman(v[..., part], w[..., part]) for part in third])
        seen = np.isfinite(each)
        return np.where(seen.any(0), np.where(seen, each, 0).sum(0) / np.maximum(seen.sum(0), 1), np.nan)

    pair = (np.take_along_axis(drawn_real, rows, 1), np.take_along_axis(drawn_model, rows, 1))
    return [*found, made("M12.within_tertile", within, pair, "", "higher", floor=0.0, ceiling=1.0)]


def regret(real: np.ndarray, model: np.ndarray, k: int = 1) -> np.ndarray:
    """Best real value less the best of the model's top k, real and model (..., P); ties are broken against the model."""
    top = np.lexsort((real, -model), axis=-1)[..., :k]
    return real.max(-1) - np.take_along_axis(real, top, -1).max(-1)


def mmrv(real: np.ndarray, model: np.ndarray) -> np.ndarray:
    """mean_i max_j |V_i - V_j| 1[the model orders i and j otherwise, or not at all], real and model (..., P)."""
    real, told = (x[..., :, None] - x[..., None, :] for x in (real, model))
    return (np.abs(real) * (np.sign(real) != np.sign(told))).max(-1).mean(-1)


def _means(returns: Sequence[Array]) -> np.ndarray:
    return np.array([np.mean(x) for x in returns], float)


def _drawn(returns: Sequence[Array], seed: int = 0) -> np.ndarray:
    """Bootstrap means (B, P) of each policy's episodes."""
    return np.stack(
        [intervals.draws_of(len(x), seed=seed + i) @ np.asarray(x, float) / len(x) for i, x in enumerate(returns)], 1
    )


# ---------------------------------------------------------------------------------------------------------------------
# M13: value equivalence and planners


def value_equivalence(real: np.ndarray, model: np.ndarray, cluster: np.ndarray) -> list[Metric]:
    """M13: mean |V - V'| over the range of V, values (P, S) of P policies (or P functions after k Bellman steps) at S states,
    real and in the model (Grimm et al. 2021, arXiv:2106.10316)."""
    id, name, reach = "M13.value_error", "Error of values at states", float(np.ptp(real))
    if reach == 0:
        return [absent(id, name, "all states are worth the same under all policies", **COMMON)]
    error = np.abs(real - model).mean(0) / reach
    return [mean(id, name, error, cluster, "share of the range", **COMMON, ceiling=0.0)]


def planning(values: PolicyValues) -> list[Metric]:
    """M13: what a planner gains over random actions in the simulator; what it loses by planning in the model; what the model
    promised it beyond what it got. A planner that gains nothing in the simulator cannot indict a model: then there is no
    verdict on it. Of returns 0 and 1 the intervals are Agresti and Caffo's."""
    names = {"M13.oracle_gain": "What a planner in the simulator gains",
             "M13.planner_regret": "What planning in the model loses",
             "M13.optimism": "What the model promises beyond what comes"}  # fmt: skip
    oracle, mine, random, promised = values.oracle_planner, values.model_planner, values.random, values.planner_in_model
    common = dict(unit="return", **COMMON)

    def skipped(id: str) -> Metric:
        return absent(id, names[id], "the returns of these planners were not measured", "skipped", **common)

    found, able, scale = [], False, None
    if oracle is None or random is None:
        found += [skipped("M13.oracle_gain"), skipped("M13.planner_regret")]
    else:
        gain = _gap("M13.oracle_gain", names["M13.oracle_gain"], oracle, random, direction="higher", floor=0.0, **common)
        able = gain.ci is not None and gain.ci[0] > 0
        found.append(gain)
        scale = gain.value if able else None
        id = "M13.planner_regret"
        if mine is None:
            found.append(skipped(id))
        elif not able:
            reason = "this planner does not beat random actions in the simulator either: it cannot judge a model"
            found.append(absent(id, names[id], reason, **common))
        else:
            loss = _gap(id, names[id], oracle, mine, floor=gain.value, ceiling=0.0, **common)
            found.append(loss)
    if promised is None or mine is None:
        return [*found, skipped("M13.optimism")]
    return [*found, _gap("M13.optimism", names["M13.optimism"], promised, mine, direction="zero", floor=scale,
                        ceiling=0.0, **common)]  # fmt: skip


def _gap(id: str, name: str, a: Array, b: Array, **more) -> Metric:
    """mean(a) - mean(b) of independent episodes; says so where its interval includes 0."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    value, ci, n = intervals.difference(a, np.arange(len(a)), b, np.arange(len(b)))
    if np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        ci = intervals.agresti_caffo(int(a.sum()), len(a), int(b.sum()), len(b))
    reason = "not established: the interval includes 0" if ci[0] <= 0 <= ci[1] else ""
    return number(id, name, value, ci, n, len(a) + len(b), reason=reason, **more)


# ---------------------------------------------------------------------------------------------------------------------
# M14: how much information is enough


def information_knee(rate: Sequence[float], error: Sequence[Metric]) -> list[Metric]:
    """M14: a ladder of ablations of one model, each with the bits per frame it retains and its M13 (or other) error: the
    smallest rate whose error is within the interval of the full model's, and how much error rises with rate somewhere
    (0 for a sound ladder). It measures this model's usable information, not the environment's minimum.

    The interval of the knee holds the rates whose own intervals still reach, or wholly stay, below that bound. Raises
    UserError if rates and errors do not pair up.
    """
    if len(rate) != len(error) or len(set(rate)) != len(rate):
        raise UserError(f"a ladder takes one error for each rate, all different, got {len(rate)} rates and {len(error)} errors")
    names = {"M14.knee": "Bits of a frame that are enough", "M14.fragility": "Error that more information adds"}
    steps = sorted((r, e) for r, e in zip(rate, error, strict=True) if e.value is not None and e.ci is not None)
    if len(steps) < 3:
        return [absent(id, name, f"a ladder takes three measured rungs, got {len(steps)}", **COMMON)
                for id, name in names.items()]  # fmt: skip
    _, full = steps[-1]
    bound = full.ci[1]
    knee = min(r for r, e in steps if e.value <= bound)
    sure, hopeful = min((r for r, e in steps if e.ci[1] <= bound), default=knee), min(r for r, e in steps if e.ci[0] <= bound)
    values = np.array([e.value for _, e in steps])
    rise = float(max(0.0, (values - np.minimum.accumulate(values)).max()))
    common = dict(n_clusters=full.n_clusters, n_samples=len(steps), **COMMON)
    return [
        Metric("M14.knee", names["M14.knee"], float(knee), "bits/frame", "none", (float(hopeful), float(max(sure, knee))),
               **common),
        Metric("M14.fragility", names["M14.fragility"], rise, full.unit, "lower", ceiling=0.0, **common),
    ]  # fmt: skip


def ais_bound(reward_error: float, total_variation: float, gamma: float, value_span: float) -> float:
    """Most that the best policy of an approximate information state loses: 2 (eps + gamma span(V') delta) / (1 - gamma) with
    eps the largest error of the mean reward and delta the largest total variation of the next state (Subramanian et al. 2022,
    arXiv:2010.08843)."""
    return 2 * (reward_error + gamma * value_span * total_variation) / (1 - gamma)
