"""Experimental: what a planner loses by planning in the model (Grimm et al. 2021, arXiv:2106.10316)."""

from __future__ import annotations

from functools import partial

import numpy as np

from tokenworld.evaluation.records import Array, Metric, PolicyValues
from tokenworld.evaluation.statistics import intervals
from tokenworld.evaluation.statistics.measured import absent, mean, number
from tokenworld.evaluation.statistics.metric_spec import USEFULNESS, Bound, MetricSpec, Rule, above, below, measure

_spec = partial(
    MetricSpec, section=USEFULNESS, topic="planning", unit="return", tier="C", experimental=True,
    source="Grimm et al. 2021, arXiv:2106.10316",
)  # fmt: skip
GAIN = 0.1  # of what a planner gains in the simulator over random actions
VALUE_ERROR = _spec(
    "planning.value_error", "Error of values at states",
    "Mean absolute error of the values of states, as a share of their range.",
    alias="M13.value_error", unit="share of the range",
    rules=(Rule("VALUES_STATES_WRONGLY", "warning", above(0.25),
                lambda m: f"values of states are off by {m.value:.0%} of their range"),),
)  # fmt: skip
ORACLE_GAIN = _spec(
    "planning.oracle_gain", "What a planner in the simulator gains",
    "What the planner gains in the simulator over random actions: if it gains nothing, it cannot judge a model.",
    alias="M13.oracle_gain", direction="higher", silent="it is the planner's, not the model's",
)  # fmt: skip
REGRET = _spec(
    "planning.regret", "What planning in the model loses", "Return lost because the planner plans in the model.",
    alias="M13.planner_regret", quality="Return kept by planning in the model", is_expected=True,
    rules=(Rule("PLANS_ASTRAY", "fault", below(1 - GAIN, skill=True),
                lambda m: f"planning in it loses {m.value:.3g} of the return"),),
)  # fmt: skip
OPTIMISM = _spec(
    "planning.optimism", "What the model promises beyond what comes",
    "Return that the model promises its planner beyond what comes.", alias="M13.optimism", direction="zero",
    quality="Returns promised as they come",
    rules=(Rule("OPTIMISTIC", "warning", Bound("", ">", GAIN, of_floor=True),
                lambda m: f"promises {m.value:.3g} more return than comes"),
           Rule("PESSIMISTIC", "warning", Bound("", "<", -GAIN, of_floor=True),
                lambda m: f"promises {-m.value:.3g} less return than comes")),
)  # fmt: skip


def value_equivalence(real: np.ndarray, model: np.ndarray, cluster: np.ndarray) -> list[Metric]:
    """Mean |V - V'| over the range of V, values (P, S) of P policies (or P functions after k Bellman steps) at S states,
    real and in the model (Grimm et al. 2021, arXiv:2106.10316)."""
    reach = float(np.ptp(real))
    if reach == 0:
        return [absent(VALUE_ERROR, "all states are worth the same under all policies")]
    error = np.abs(real - model).mean(0) / reach
    return [mean(VALUE_ERROR, error, cluster, ceiling=0.0)]


@measure
def planning(policy_values: PolicyValues) -> list[Metric]:
    """What a planner gains over random actions in the simulator; what it loses by planning in the model; what the model
    promised it beyond what it got. A planner that gains nothing in the simulator cannot indict a model: then there is no
    verdict on it. Of returns 0 and 1 the intervals are Agresti and Caffo's."""
    values = policy_values
    oracle, mine, random, promised = values.oracle_planner, values.model_planner, values.random, values.planner_in_model

    def skipped(spec: MetricSpec) -> Metric:
        return absent(spec, "the returns of these planners were not measured", "skipped")

    metrics, able, scale = [], False, None
    if oracle is None or random is None:
        metrics += [skipped(ORACLE_GAIN), skipped(REGRET)]
    else:
        gain = _gap(ORACLE_GAIN, oracle, random, floor=0.0)
        able = gain.ci is not None and gain.ci[0] > 0
        metrics.append(gain)
        scale = gain.value if able else None
        if mine is None:
            metrics.append(skipped(REGRET))
        elif not able:
            reason = "this planner does not beat random actions in the simulator either: it cannot judge a model"
            metrics.append(absent(REGRET, reason))
        else:
            metrics.append(_gap(REGRET, oracle, mine, floor=gain.value, ceiling=0.0))
    if promised is None or mine is None:
        return [*metrics, skipped(OPTIMISM)]
    return [*metrics, _gap(OPTIMISM, promised, mine, floor=scale, ceiling=0.0)]


def _gap(spec: MetricSpec, a: Array, b: Array, **more) -> Metric:
    """mean(a) - mean(b) of independent episodes; says so where its interval includes 0."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    value, ci, n = intervals.difference(a, np.arange(len(a)), b, np.arange(len(b)))
    if np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all():
        ci = intervals.agresti_caffo(int(a.sum()), len(a), int(b.sum()), len(b))
    reason = "not established: the interval includes 0" if ci[0] <= 0 <= ci[1] else ""
    return number(spec, value, ci, n, len(a) + len(b), reason=reason, **more)
