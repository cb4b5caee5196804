"""M13, experimental: what a planner loses by planning in the model (Grimm et al. 2021, arXiv:2106.10316)."""

from __future__ import annotations

import numpy as np

from tokenworld.evaluation.metrics.policies import COMMON
from tokenworld.evaluation.records import Array, Metric, PolicyValues
from tokenworld.evaluation.statistics import intervals
from tokenworld.evaluation.statistics.measured import absent, mean, number

IDS = ("M13.value_error", "M13.oracle_gain", "M13.planner_regret", "M13.optimism")
SILENT = {  # numbers that no finding reads, and why
    "M13.oracle_gain": "it is the planner's, not the model's",
}


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
