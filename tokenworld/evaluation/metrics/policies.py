"""Is the model of use for decisions? Experimental: it orders policies by their returns.

Returns in the model next to returns in the real environment, over the same horizon. Rankings over few policies say little:
with 8 policies a correlation of 0.8 has an interval of (0.2, 0.96), so fewer than 20 count as underpowered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from tokenworld.evaluation.records import Array, Metric, PolicyValues
from tokenworld.evaluation.statistics import intervals, ranking
from tokenworld.evaluation.statistics.measured import absent, metric
from tokenworld.evaluation.statistics.metric_spec import USEFULNESS, MetricSpec, Rule, above, arrays_of, below, measure

_spec = partial(
    MetricSpec, section=USEFULNESS, topic="the ranking of policies", tier="C", experimental=True,
    source="Fu et al. 2021, arXiv:2103.16596",
)  # fmt: skip
SPEARMAN = _spec(
    "policies.spearman", "Rank correlation of policies",
    "Whether the model orders policies as the world does: 1 is the same order. It does not measure the size of errors.",
    alias="M12.spearman", direction="higher", quality="Order of policies", picture="policies", is_expected=True,
    rules=(Rule("RANKS_POLICIES_WRONGLY", "fault", below(0.5),
                lambda m: f"orders policies wrongly (rank correlation {m.value:.2f})"),),
)  # fmt: skip
KENDALL = _spec(
    "policies.kendall", "Kendall's tau of policies", "The same, counted by pairs of policies.",
    alias="M12.kendall", direction="higher", quality="Order of pairs of policies", is_expected=True,
    silent="the same order as the rank correlation, which judges it",
)  # fmt: skip
REGRET = _spec(
    "policies.regret", "Return lost by trusting the model's best policy",
    "Return lost by choosing the policy that is best in the model. Floor: choosing at random.",
    alias="M12.regret", unit="return", quality="Return kept by choosing in the model", is_expected=True,
    rules=(Rule("CHOOSES_POLICIES_BADLY", "fault", below(0.25, skill=True),
                lambda m: f"the policy that is best in it loses {m.value:.3g} of the return (one at random {m.floor:.3g})"),),
)  # fmt: skip
VALUE_ERROR = _spec(
    "policies.value_error", "Error of values", "Mean absolute error of the model's values, as a share of the range of values.",
    alias="M12.abs_error", unit="share of the range",
    rules=(Rule("VALUES_POLICIES_WRONGLY", "warning", above(0.25),
                lambda m: f"values of policies are off by {m.value:.0%} of their range"),),
)  # fmt: skip
MMRV = _spec(
    "policies.mmrv", "Mean maximum rank violation",
    "For each policy the largest return difference that the model orders wrongly, averaged over policies.",
    alias="M12.mmrv", unit="return", source="Li et al. 2024 (SIMPLER), arXiv:2405.05941",
    silent="a return without a scale: the regret judges the wrong order that matters most",
)  # fmt: skip
TERTILE_SPEARMAN = _spec(
    "policies.tertile_spearman", "Rank correlation among similar policies",
    "The order among policies that are similar: telling good from hopeless policies is easy.",
    alias="M12.within_tertile", direction="higher", quality="Order of similar policies", is_expected=True,
    silent="a third holds few policies: the rank correlation judges all",
)  # fmt: skip
POLICIES = 20  # with fewer, rankings say little


@measure
def policy_agreement(policy_values: PolicyValues, k: int = 1) -> list[Metric]:
    """After Fu et al. 2021 (arXiv:2103.16596): rank correlations of values in the model with real ones; regret of
    trusting its k best; mean absolute error over the range of real values; MMRV, the mean over policies of the largest real
    difference that it orders wrongly (Li et al. 2024); and rank correlation within thirds of similar policies, since good ones
    are easily told from bad. Intervals resample policies, and episodes within them."""
    values = policy_values
    real, model = _means(values.real), _means(values.model)  # (P,)
    P, reach = len(real), float(np.ptp(real)) if len(real) else 0.0
    if P < 3 or reach == 0:
        reason = f"a ranking takes at least three policies, got {P}" if P < 3 else "all policies are worth the same"
        return [absent(spec, reason) for spec in (SPEARMAN, KENDALL, REGRET, VALUE_ERROR, MMRV, TERTILE_SPEARMAN)]
    drawn_real, drawn_model = _drawn(values.real), _drawn(values.model, seed=len(real))  # (B, P)
    chosen = np.random.default_rng(0).integers(P, size=drawn_real.shape)
    pair = (np.take_along_axis(drawn_real, chosen, 1), np.take_along_axis(drawn_model, chosen, 1))
    error = np.abs(real - model) / reach
    episodes = sum(map(len, values.real)) + sum(map(len, values.model))
    few = dict(status="underpowered", reason=f"only {P} policies: a ranking takes about {POLICIES}") if P < POLICIES else {}

    def agreement(spec: MetricSpec, of: Callable, drawn: tuple[Array, Array], **more) -> Metric:
        value = float(of(real, model))
        if not np.isfinite(value):
            return absent(spec, "the model values all policies alike")
        draws = of(*drawn)
        ci = intervals.percentile(draws[np.isfinite(draws)])
        return metric(spec, value, ci=ci, n_clusters=P, n_samples=episodes, **few, **more)

    metrics = [
        agreement(SPEARMAN, ranking.spearman, pair, floor=0.0, ceiling=1.0),
        agreement(KENDALL, ranking.kendall, pair, floor=0.0, ceiling=1.0),
        agreement(REGRET, partial(regret, k=k), pair, name=REGRET.name if k == 1 else f"Return lost by trusting the best {k}",
             floor=float(real.max() - real.mean()), ceiling=0.0),
        agreement(VALUE_ERROR, lambda v, w: np.abs(v - w).mean(-1) / reach, pair, ceiling=0.0, values=error,
                  clusters=np.arange(P)),
        agreement(MMRV, mmrv, pair, ceiling=0.0),
    ]  # fmt: skip
    if P < 9:
        reason = f"thirds of {P} policies are too few to rank: it takes at least 9"
        return [*metrics, absent(TERTILE_SPEARMAN, reason)]
    order, third = np.argsort(real, kind="stable"), np.array_split(np.arange(P), 3)
    rng = np.random.default_rng(1)
    rows = np.concatenate([order[part[rng.integers(len(part), size=(len(chosen), len(part)))]] for part in third], 1)

    def within(v: np.ndarray, w: np.ndarray) -> np.ndarray:
        v, w = (v[order], w[order]) if v.ndim == 1 else (v, w)  # draws are in order of the thirds already
        each = np.stack([ranking.spearman(v[..., part], w[..., part]) for part in third])
        seen = np.isfinite(each)
        return np.where(seen.any(0), np.where(seen, each, 0).sum(0) / np.maximum(seen.sum(0), 1), np.nan)

    pair = (np.take_along_axis(drawn_real, rows, 1), np.take_along_axis(drawn_model, rows, 1))
    return [*metrics, agreement(TERTILE_SPEARMAN, within, pair, floor=0.0, ceiling=1.0)]


@arrays_of("policies")
def returns(policy_values: PolicyValues) -> dict:
    """Mean returns of each policy (P,), real and in the model, with their intervals (P, 2)."""
    values = policy_values
    bounds = [[intervals.ratio(x, None, np.arange(len(x)))[1] for x in side] for side in (values.real, values.model)]
    return {"names": values.names, "real": np.array([x.mean() for x in values.real]),
            "model": np.array([x.mean() for x in values.model]), "real_ci": np.array(bounds[0]),
            "model_ci": np.array(bounds[1])}  # fmt: skip


def regret(real: np.ndarray, model: np.ndarray, k: int = 1) -> np.ndarray:
    """Best real value less the best of the model's top k, real and model (..., P); ties are broken against the model."""
    top = np.lexsort((real, -model), axis=-1)[..., :k]
    return real.max(-1) - np.take_along_axis(real, top, -1).max(-1)


def mmrv(real: np.ndarray, model: np.ndarray) -> np.ndarray:
    """mean_i max_j |V_i - V_j| 1[the model orders i and j otherwise, or not at all], real and model (..., P)."""
    real, predicted = (x[..., :, None] - x[..., None, :] for x in (real, model))
    return (np.abs(real) * (np.sign(real) != np.sign(predicted))).max(-1).mean(-1)


def _means(returns: Sequence[Array]) -> np.ndarray:
    return np.array([np.mean(x) for x in returns], float)


def _drawn(returns: Sequence[Array], seed: int = 0) -> np.ndarray:
    """Bootstrap means (B, P) of each policy's episodes."""
    return np.stack(
        [intervals.draws_of(len(x), seed=seed + i) @ np.asarray(x, float) / len(x) for i, x in enumerate(returns)], 1
    )
