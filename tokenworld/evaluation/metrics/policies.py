"""Is the model of use to somebody who decides? M12 to M14, experimental: policies ranked, planners served, codes needed.

Returns in the model beside returns in the real environment, over the same horizon. Rankings over few policies say little:
with 8 a correlation of 0.8 has an interval of (0.2, 0.96), so fewer than 20 count as underpowered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from tokenworld.evaluation.records import Array, Metric, PolicyValues
from tokenworld.evaluation.statistics import intervals, ranking
from tokenworld.evaluation.statistics.measured import absent

IDS = ("M12.spearman", "M12.kendall", "M12.regret", "M12.abs_error", "M12.mmrv", "M12.within_tertile")
SILENT = {  # numbers that no finding reads, and why
    "M12.kendall": "the same order as M12.spearman, which judges it",
    "M12.mmrv": "a return without a scale: M12.regret judges the wrong order that matters most",
    "M12.within_tertile": "a third holds few policies: M12.spearman judges all",
}
POLICIES = 20  # with fewer, rankings say little
COMMON = dict(tier="C", experimental=True)


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
