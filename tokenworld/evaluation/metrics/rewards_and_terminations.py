"""Rewards and terminations (M5): do the events that a policy lives on survive?

Terminations are one step in hundreds: a classifier's area under the curve looks fine while the probability of an end is ten
times too low, so the hazard itself is compared with how often episodes ended, on held-out data (tier A) and at branches, where
the true one is known (tier B).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tokenworld.evaluation.records import Branches, Metric, Rollouts, Scored
from tokenworld.evaluation.statistics import divergences, intervals
from tokenworld.evaluation.statistics.measured import absent, mean, number, share
from tokenworld.evaluation.statistics.reliability import reliability

IDS = ("M5.reward_recall", "M5.reward_precision", "M5.reward_bias", "M5.reward_slope", "M5.reward_delay", "M5.reward_classes",
       "M5.hazard_ratio", "M5.hazard_brier", "M5.hazard_loss", "M5.hazard_after", "M5.branch_reward_error",
       "M5.branch_reward_bias", "M5.branch_hazard_error", "M5.branch_hazard_ratio", "M5.survival_gap",
       "M5.log_rank_p")  # fmt: skip
SILENT = {  # numbers that no finding reads, and why
    "M5.reward_classes": "it has no interval; M5.reward_bias and M5.reward_slope judge the expected reward",
    "M5.hazard_loss": "M5.hazard_brier judges the same probabilities against the same base rate",
    "M5.hazard_after": "what follows an end no data show: ENDS_LATE reads it where ends are announced too rarely",
    "M5.log_rank_p": "a p-value says whether, not how much: M5.survival_gap does",
}
EVENT = 0.5  # a reward event is a reward further from zero than this
WITHIN = 2  # steps by which an event may be early or late
FEW_EVENTS = 10
BINS = 10


def rewards(scored: Scored, signs: bool = True) -> list[Metric]:
    """M5, rewards: recall and precision of events of the same sign within 2 steps; the mean error; the slope of the reward
    that came over the predicted one (for a right model exactly 1, however random rewards are); the delay of predicted
    events; and the calibration error of the three signs. `signs`: the model predicts the signs of rewards (else the rewards
    themselves)."""
    gave = np.sign(scored.reward) if signs else scored.reward
    real, predicted = _sign_of_events(gave), _sign_of_events(scored.reward_mean)
    found = [
        _events("M5.reward_recall", "Reward events that were predicted", near(predicted, real, scored), real != 0, scored,
                "real reward events"),
        _events("M5.reward_precision", "Predicted reward events that came", near(real, predicted, scored), predicted != 0,
                scored, "predicted reward events"),
        *_sizes(scored, gave, int((real != 0).sum())),
        _delay(real, predicted, scored),
    ]  # fmt: skip
    name, common = "Calibration error of the signs of rewards", dict(unit="probability")
    if scored.reward_probability is None:
        return found + [
            absent("M5.reward_classes", name, "the model's probabilities of signs are not known", "skipped", **common)
        ]
    errors = [reliability(scored.reward_probability[:, c], np.sign(scored.reward) == c - 1)["ece"] for c in range(3)]
    clusters = len(np.unique(scored.cluster))
    return found + [number("M5.reward_classes", name, float(np.mean(errors)), None, clusters, len(gave), **common, ceiling=0.0)]


def _sign_of_events(reward: np.ndarray) -> np.ndarray:
    """(N,) -> the sign of each reward event, 0 where there is none."""
    return np.sign(reward) * (np.abs(reward) > EVENT)


def _sizes(scored: Scored, gave: np.ndarray, events: int) -> list[Metric]:
    """M5.reward_bias and M5.reward_slope, which say little of few events."""
    predicted, cluster, scale = scored.reward_mean, scored.cluster, float(np.abs(gave).mean())
    names = {"M5.reward_bias": "Mean predicted reward minus mean reward",
             "M5.reward_slope": "Reward that comes for each unit predicted"}  # fmt: skip
    bias, slope = names
    found = [
        mean(bias, names[bias], predicted - gave, cluster, "per step", "zero", floor=scale if scale else None, ceiling=0.0),
        share(slope, names[slope], predicted * gave, np.square(predicted), cluster, "", "none", ceiling=1.0,
              none="no reward is ever predicted"),
    ]  # fmt: skip
    return [_of_few(metric, events, "real reward events") for metric in found]


def _delay(real: np.ndarray, predicted: np.ndarray, scored: Scored) -> Metric:
    """M5.reward_delay: steps from a real event to the predicted event that is nearest to it, of either sign."""
    offset = np.full(len(real), np.nan)
    for d in sorted(range(-WITHIN, WITHIN + 1), key=abs, reverse=True):  # the nearest is written last
        offset = np.where(near(np.abs(predicted), np.abs(real), scored, (d,)), d, offset)
    met = np.isfinite(offset)
    name, n = "Steps by which predicted reward events are late", int(met.sum())
    found = share("M5.reward_delay", name, np.where(met, offset, 0.0), met, scored.cluster, "steps", "zero", samples=n,
                  ceiling=0.0, none=f"no predicted reward event is within {WITHIN} steps of a real one")  # fmt: skip
    return _of_few(found, n, "pairs of a real and a predicted reward event")


def _of_few(metric: Metric, events: int, what: str) -> Metric:
    """Underpowered if it is measured, on fewer than ten events."""
    if metric.value is None or events >= FEW_EVENTS:
        return metric
    return replace(metric, status="underpowered", reason=f"only {events} {what}")


def reward_confusion(scored: Scored) -> np.ndarray:
    """(3, 3) rows by the sign of the real reward (-1, 0, 1), columns by the sign that the mean foretells (0 unless it is
    further from zero than an event)."""
    real = np.sign(scored.reward).astype(int) + 1
    told = (np.sign(scored.reward_mean) * (np.abs(scored.reward_mean) > EVENT)).astype(int) + 1
    return np.bincount(3 * real + told, minlength=9).reshape(3, 3)


def terminations(scored: Scored) -> list[Metric]:
    """M5, terminations: the ratio of announced to real ends, Brier skill, and log-loss against the base rate."""
    hazard, end, cluster = np.clip(scored.hazard, 1e-9, 1 - 1e-9), scored.terminated.astype(float), scored.cluster
    n, ends = len(end), int(end.sum())
    names = {"M5.hazard_ratio": "Announced ends for each real one", "M5.hazard_brier": "Brier skill of the hazard",
             "M5.hazard_loss": "Log-loss of the hazard", "M5.hazard_after": "Hazard one step after the end"}  # fmt: skip
    if ends == 0 or ends == n:
        reason = "no episode terminated in the held-out data" if ends == 0 else "every held-out step terminated"
        return [absent(id, name, reason) for id, name in names.items()]
    rate = ends / n
    missed, chance = np.square(hazard - end), np.square(rate - end)
    loss = -(end * np.log2(hazard) + (1 - end) * np.log2(1 - hazard))
    floor = -(rate * math.log2(rate) + (1 - rate) * math.log2(1 - rate))
    skill = share("M5.hazard_brier", names["M5.hazard_brier"], missed, chance, cluster, "", "higher", floor=0.0, ceiling=1.0)
    if skill.value is not None:  # of the share that is missed, the rest
        skill = replace(skill, value=1 - skill.value, ci=skill.ci and (1 - skill.ci[1], 1 - skill.ci[0]))
    found = [
        share("M5.hazard_ratio", names["M5.hazard_ratio"], hazard, end, cluster, "", "none", ceiling=1.0),
        skill,
        mean("M5.hazard_loss", names["M5.hazard_loss"], loss, cluster, "bits/step", floor=floor, ceiling=0.0),
    ]
    found.append(_after(scored))
    return [_of_few(metric, ends, "terminations") for metric in found]


def _after(scored: Scored) -> Metric:
    """M5.hazard_after: the hazard that the model announces one step after an episode ended, at its last frame. Of a model that
    is right at the end it says nothing, since no data show that step; of one that is not, whether it is late."""
    id, name = "M5.hazard_after", "Hazard one step after the end"
    if scored.hazard_after is None:
        return absent(id, name, "the model was not asked for the step after an end", "skipped", direction="none")
    met = np.isfinite(scored.hazard_after)
    return share(id, name, np.where(met, scored.hazard_after, 0.0), met, scored.cluster, "probability", "none",
                 samples=int(met.sum()), none="no last frame of an episode was read")  # fmt: skip


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


def near(
    event: np.ndarray, asked: np.ndarray, scored: Scored, offsets: Sequence[int] = tuple(range(-WITHIN, WITHIN + 1))
) -> np.ndarray:
    """(N,): does the row ask for an event, and is there one of the same sign that many steps later in its own episode? event
    and asked (N,) are signs, 0 for none."""
    step = np.arange(len(event)) if scored.step is None else scored.step
    rows = list(zip(scored.cluster.tolist(), step.tolist(), strict=True))
    when = {row: sign for row, sign in zip(rows, event.tolist(), strict=True) if sign}
    return np.array([
        bool(sign) and any(when.get((cluster, at + d)) == sign for d in offsets)
        for (cluster, at), sign in zip(rows, asked.tolist(), strict=True)
    ], bool)  # fmt: skip


def _events(id: str, name: str, met: np.ndarray, asked: np.ndarray, scored: Scored, what: str) -> Metric:
    n = int(asked.sum())
    found = share(id, name, met & asked, asked, scored.cluster, "share", "higher", samples=n, none=f"there are no {what}",
                  floor=0.0, ceiling=1.0)  # fmt: skip
    if n:
        found = replace(found, ci=intervals.clustered_wilson(met & asked, asked, scored.cluster))
    return _of_few(found, n, what)


# ---------------------------------------------------------------------------------------------------------------------
# With a simulator


def at_branches(branches: Branches, signs: bool = True) -> list[Metric]:
    """M5, tier B: predicted reward and hazard of each state and action beside their true expectations over the branches,
    actions weighted as in M3. error: mean absolute difference; the floor is always saying the mean."""
    weight, cluster, p = divergences.weights(branches), branches.cluster, branches.p
    names = {"M5.branch_reward_error": "Error of the predicted reward", "M5.branch_reward_bias": "Bias of the predicted reward",
             "M5.branch_hazard_error": "Error of the predicted hazard",
             "M5.branch_hazard_ratio": "Announced ends for each true one"}  # fmt: skip
    found = []
    reward, bias, error, ratio = names
    if branches.reward is None or branches.reward_mean is None:
        found += [absent(id, names[id], "no rewards at the branches", "skipped", tier="B") for id in (reward, bias)]
    else:
        true = (p * np.where(p > 0, np.sign(branches.reward) if signs else branches.reward, 0.0)).sum(-1)  # (S, A)
        found += [
            _error(reward, names[reward], branches.reward_mean, true, weight, cluster, "reward"),
            mean(bias, names[bias], (weight * (branches.reward_mean - true)).sum(1), cluster, "reward", "zero", tier="B",
                 floor=float((weight * np.abs(true)).sum(1).mean()) or None, ceiling=0.0),
        ]  # fmt: skip
    if branches.terminated is None or branches.hazard is None:
        found += [absent(id, names[id], "no terminations at the branches", "skipped", tier="B") for id in (error, ratio)]
    else:
        true = (p * branches.terminated).sum(-1)
        found += [
            _error(error, names[error], branches.hazard, true, weight, cluster, "probability"),
            share(ratio, names[ratio], (weight * branches.hazard).sum(1), (weight * true).sum(1), cluster, "", "none",
                  tier="B", ceiling=1.0, none="no branch ends the episode"),
        ]  # fmt: skip
    return found


def survival(rollouts: Rollouts) -> list[Metric]:
    """M5, tier B: steps that imagined rollouts live longer than real ones from the same starts under the same actions
    (restricted to the T steps that were made), and the log-rank test's p-value, its variance taken over starts."""
    alive, dreamt, cluster = rollouts.alive_real, rollouts.alive_model, rollouts.cluster
    names = {"M5.survival_gap": "Steps that dreams last longer than reality", "M5.log_rank_p": "p-value of equal survival"}
    if alive.all() and dreamt.all():
        return [absent(id, name, "neither real nor imagined rollouts end", tier="B") for id, name in names.items()]
    T = alive.shape[-1]
    gap = dreamt.sum(-1).mean(1) - alive.sum(-1).mean(1)
    time = np.concatenate([alive.sum(-1).ravel(), dreamt.sum(-1).ravel()])
    group = np.repeat([False, True], [alive[..., 0].size, dreamt[..., 0].size])
    rows = np.concatenate([np.repeat(cluster, alive.shape[1]), np.repeat(cluster, dreamt.shape[1])])
    z, p = intervals.log_rank(time, time < T, group, rows)
    n = len(np.unique(cluster))
    return [
        mean("M5.survival_gap", names["M5.survival_gap"], gap, cluster, "steps", "zero", tier="B", ceiling=0.0),
        number("M5.log_rank_p", names["M5.log_rank_p"], p, None, n, len(time), direction="none", tier="B",
               reason=f"z = {z:+.2f}, positive where dreams end sooner"),
    ]  # fmt: skip


def survival_curves(rollouts: Rollouts) -> dict[str, np.ndarray]:
    """{"real", "model"}: Kaplan-Meier survival (T,), before any step and after each but the last, whose end is not seen."""
    T = rollouts.alive_real.shape[-1]
    times = {"real": rollouts.alive_real.sum(-1).ravel(), "model": rollouts.alive_model.sum(-1).ravel()}
    return {name: intervals.kaplan_meier(time, time < T, T - 1) for name, time in times.items()}


def _error(
    id: str, name: str, told: np.ndarray, true: np.ndarray, weight: np.ndarray, cluster: np.ndarray, unit: str
) -> Metric:
    centre = (weight * true).sum(1).mean()
    floor = float((weight * np.abs(true - centre)).sum(1).mean())
    return mean(id, name, (weight * np.abs(told - true)).sum(1), cluster, unit, tier="B", floor=floor, ceiling=0.0)
