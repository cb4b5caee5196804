"""Terminations: does the model know when an episode ends?

They are one step in hundreds: a classifier's area under the curve looks fine while the probability of an end is ten times too
low. So the hazard itself is compared with how often episodes ended, on held-out data (tier A) and at branches, where the true
one is known (tier B).
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np

from tokenworld.evaluation.records import Branches, Metric, Rollouts, Scored
from tokenworld.evaluation.statistics import divergences, intervals
from tokenworld.evaluation.statistics.measured import absent, mean, mean_error, number, of_few, share
from tokenworld.evaluation.statistics.metric_spec import REWARDS, MetricSpec, Rule, above, arrays_of, below, measure

_spec = partial(MetricSpec, section=REWARDS, topic="terminations", source="Yu et al. 2026, arXiv:2606.15032")
_branched = partial(_spec, topic="terminations at branches", tier="B")
BRANCH_RATIO = _branched(
    "terminations.branch_ratio", "Announced ends for each true one",
    "Announced ends for each possible one, at branch states: 1 is right.", alias="M5.branch_hazard_ratio", direction="none",
)  # fmt: skip
HAZARD_RATIO = _spec(
    "terminations.hazard_ratio", "Announced ends for each real one",
    "Ends that the model announces for each that came: 1 is right, 0.1 is ten times too few.",
    alias="M5.hazard_ratio", direction="none", picture="hazard_reliability",
    rules=(Rule("ENDS_TOO_RARE", "fault", below(0.5),
                lambda m: f"termination hazard {'more than 100' if m.value < 0.01 else format(1 / m.value, '.2g')}x too low",
                also=BRANCH_RATIO.id),
           Rule("ENDS_TOO_OFTEN", "fault", above(2), lambda m: f"termination hazard {m.value:.3g}x too high",
                also=BRANCH_RATIO.id)),
)  # fmt: skip
BRIER = _spec(
    "terminations.brier_skill", "Brier skill of the hazard",
    "Whether the model knows when an episode ends: 0 is the base rate, 1 is always right.",
    alias="M5.hazard_brier", direction="higher", quality="Terminations that are known", is_expected=True,
    rules=(Rule("BLIND_TO_ENDS", "fault", below(0.1), lambda m: "does not know when an episode ends"),),
)  # fmt: skip
LOG_LOSS = _spec(
    "terminations.log_loss", "Log-loss of the hazard", "Bits that the outcome 'ended or not' costs. Floor: the base rate.",
    alias="M5.hazard_loss", unit="bits/step", quality="Terminations that do not surprise", is_expected=True,
    silent="the Brier skill judges the same probabilities against the same base rate",
)  # fmt: skip
HAZARD_AFTER = _spec(
    "terminations.hazard_after", "Hazard one step after the end",
    "Where an episode ended, the probability of an end that the model announces one step later. A high value where ends are "
    "announced too rarely means that they are announced late.",
    alias="M5.hazard_after", unit="probability", direction="none",
    silent="what follows an end no data show: ENDS_LATE reads it where ends are announced too rarely",
)  # fmt: skip
BRANCH_ERROR = _branched(
    "terminations.branch_error", "Error of the predicted hazard",
    "Mean absolute error of the probability of an end, at branch states. Floor: one constant.",
    alias="M5.branch_hazard_error", unit="probability", quality="Ends after actions", is_expected=True,
    rules=(Rule("WRONG_ENDS", "fault", below(0.25, skill=True),
                lambda m: f"its terminations are {'worse' if m.skill_ci[1] < 0 else 'no better'} than a constant",
                covers=("BLIND_TO_ENDS",)),),
)  # fmt: skip
SURVIVAL_GAP = _branched(
    "terminations.survival_gap", "Steps that imagined rollouts last longer than real ones",
    "How many steps longer imagined rollouts last than real episodes from the same starts.",
    alias="M5.survival_gap", unit="steps", direction="zero", picture="survival", topic="terminations",
    rules=(Rule("DREAMS_TOO_LONG", "warning", above(1), lambda m: f"its rollouts outlast real episodes by {m.value:.1f} steps"),
           Rule("DREAMS_TOO_SHORT", "warning", below(-1), lambda m: f"its rollouts end {-m.value:.1f} steps too soon")),
)  # fmt: skip
LOG_RANK_P = _branched(
    "terminations.log_rank_p", "p-value of equal survival",
    "How likely such a difference is if imagined rollouts and real episodes last equally long.",
    alias="M5.log_rank_p", direction="none", topic="terminations",
    silent="a p-value says whether, not how much: the survival gap does",
)  # fmt: skip
BINS = 10


@measure
def terminations(scored: Scored) -> list[Metric]:
    """Tier A: the ratio of announced to real ends, Brier skill, and log-loss against the base rate."""
    hazard, end, cluster = np.clip(scored.hazard, 1e-9, 1 - 1e-9), scored.terminated.astype(float), scored.cluster
    n, count = len(end), int(end.sum())
    if count == 0 or count == n:
        reason = "no episode terminated in the held-out data" if count == 0 else "every held-out step terminated"
        return [absent(spec, reason) for spec in (HAZARD_RATIO, BRIER, LOG_LOSS, HAZARD_AFTER)]
    rate = count / n
    missed, chance = np.square(hazard - end), np.square(rate - end)
    loss = -(end * np.log2(hazard) + (1 - end) * np.log2(1 - hazard))
    floor = -(rate * math.log2(rate) + (1 - rate) * math.log2(1 - rate))
    skill = share(BRIER, missed, chance, cluster, floor=0.0, ceiling=1.0)
    if skill.value is not None:  # of the share that is missed, the rest
        skill = replace(skill, value=1 - skill.value, ci=skill.ci and (1 - skill.ci[1], 1 - skill.ci[0]))
    metrics = [
        share(HAZARD_RATIO, hazard, end, cluster, ceiling=1.0),
        skill,
        mean(LOG_LOSS, loss, cluster, floor=floor, ceiling=0.0),
        _after(scored),
    ]
    return [of_few(metric, count, "terminations") for metric in metrics]


def _after(scored: Scored) -> Metric:
    """The hazard that the model announces one step after an episode ended, at its last frame. Of a model that
    is right at the end it says nothing, since no data show that step; of one that is not, whether it is late."""
    if scored.hazard_after is None:
        return absent(HAZARD_AFTER, "the model was not asked for the step after an end", "skipped")
    met = np.isfinite(scored.hazard_after)
    return share(HAZARD_AFTER, np.where(met, scored.hazard_after, 0.0), met, scored.cluster, samples=int(met.sum()),
                 none="no last frame of an episode was read")  # fmt: skip


@arrays_of("hazard_reliability")
def reliability_of_ends(scored: Scored) -> dict[str, np.ndarray] | None:
    """`hazard_reliability`; None where no episode ended."""
    return hazard_reliability(scored) if scored.terminated.any() else None


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


@measure
def terminations_at_branches(branches: Branches) -> list[Metric]:
    """Tier B: predicted hazard of each state and action next to its true expectation over the branches, actions weighted as in
    KL(p || q). error: mean absolute difference; the floor is a constant prediction of the mean."""
    if branches.terminated is None or branches.hazard is None:
        return [absent(spec, "no terminations at the branches", "skipped") for spec in (BRANCH_ERROR, BRANCH_RATIO)]
    weight, cluster = divergences.weights(branches), branches.cluster
    true = (branches.p * branches.terminated).sum(-1)  # (S, A)
    return [
        mean_error(BRANCH_ERROR, branches.hazard, true, weight, cluster),
        share(BRANCH_RATIO, (weight * branches.hazard).sum(1), (weight * true).sum(1), cluster, ceiling=1.0,
              none="no branch ends the episode"),
    ]  # fmt: skip


@measure
def survival(rollouts: Rollouts) -> list[Metric]:
    """Tier B: steps that imagined rollouts live longer than real ones from the same starts under the same actions
    (restricted to the T steps that were made), and the log-rank test's p-value, its variance taken over starts."""
    alive, imagined, cluster = rollouts.alive_real, rollouts.alive_model, rollouts.cluster
    if alive.all() and imagined.all():
        return [absent(spec, "neither real nor imagined rollouts end") for spec in (SURVIVAL_GAP, LOG_RANK_P)]
    T = alive.shape[-1]
    gap = imagined.sum(-1).mean(1) - alive.sum(-1).mean(1)
    time = np.concatenate([alive.sum(-1).ravel(), imagined.sum(-1).ravel()])
    group = np.repeat([False, True], [alive[..., 0].size, imagined[..., 0].size])
    rows = np.concatenate([np.repeat(cluster, alive.shape[1]), np.repeat(cluster, imagined.shape[1])])
    z, p = intervals.log_rank(time, time < T, group, rows)
    n = len(np.unique(cluster))
    return [
        mean(SURVIVAL_GAP, gap, cluster, ceiling=0.0),
        number(LOG_RANK_P, p, None, n, len(time), reason=f"z = {z:+.2f}, positive where imagined rollouts end sooner"),
    ]


@arrays_of("survival")
def survival_of_rollouts(rollouts: Rollouts) -> dict[str, np.ndarray] | None:
    """`survival_curves`; None where no rollout ends."""
    return None if rollouts.alive_real.all() and rollouts.alive_model.all() else survival_curves(rollouts)


def survival_curves(rollouts: Rollouts) -> dict[str, np.ndarray]:
    """{"real", "model"}: Kaplan-Meier survival (T,), before any step and after each but the last, whose end is not seen."""
    T = rollouts.alive_real.shape[-1]
    times = {"real": rollouts.alive_real.sum(-1).ravel(), "model": rollouts.alive_model.sum(-1).ravel()}
    return {name: intervals.kaplan_meier(time, time < T, T - 1) for name, time in times.items()}
