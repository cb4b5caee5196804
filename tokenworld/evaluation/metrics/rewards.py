"""Rewards: do the events that a policy lives on survive? On held-out data (tier A) and at branches, where the true expectation
is known (tier B)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from tokenworld.evaluation.records import Branches, Metric, Scored
from tokenworld.evaluation.statistics import divergences, intervals
from tokenworld.evaluation.statistics.measured import absent, mean, mean_error, number, of_few, share
from tokenworld.evaluation.statistics.metric_spec import (
    REWARDS,
    Bound,
    MetricSpec,
    Rule,
    above,
    arrays_of,
    below,
    measure,
)
from tokenworld.evaluation.statistics.reliability import reliability

SIZE = 0.25  # rewards that are off by a quarter of their size are off
_spec = partial(MetricSpec, section=REWARDS, topic="rewards", source="Yu et al. 2026, arXiv:2606.15032")
_branched = partial(_spec, topic="rewards at branches", unit="reward", tier="B", is_expected=True)
RECALL = _spec(
    "rewards.recall", "Reward events that were predicted",
    "Of the rewards that came, the share that was predicted within two steps, with its sign.",
    alias="M5.reward_recall", unit="share", direction="higher", quality="Rewards that were predicted", is_expected=True,
    picture="reward_confusion",
    rules=(Rule("MISSES_REWARDS", "fault", below(0.5), lambda m: f"misses {1 - m.value:.0%} of the reward events"),),
)  # fmt: skip
PRECISION = _spec(
    "rewards.precision", "Predicted reward events that came",
    "Of the predicted rewards, the share that came within two steps, with its sign.",
    alias="M5.reward_precision", unit="share", direction="higher", quality="Predicted rewards that came", is_expected=True,
    rules=(Rule("INVENTS_REWARDS", "fault", below(0.5),
                lambda m: f"{1 - m.value:.0%} of the predicted reward events do not come"),),
)  # fmt: skip
BRANCH_BIAS = _branched(
    "rewards.branch_bias", "Bias of the predicted reward", "Whether the expected reward of an action is too high or too low.",
    alias="M5.branch_reward_bias", direction="zero", quality="Rewards of actions promised as they come",
)  # fmt: skip
BIAS = _spec(
    "rewards.bias", "Mean predicted reward minus mean reward", "Whether the rewards are too high or too low on the whole.",
    alias="M5.reward_bias", unit="per step", direction="zero", quality="Rewards promised as they come", is_expected=True,
    rules=(Rule("PROMISES_TOO_MUCH", "fault", Bound("", ">", SIZE, of_floor=True),
                lambda m: f"promises too much reward ({m.value:+.3f} a step)", also=BRANCH_BIAS.id),
           Rule("PROMISES_TOO_LITTLE", "fault", Bound("", "<", -SIZE, of_floor=True),
                lambda m: f"promises too little reward ({m.value:+.3f} a step)", also=BRANCH_BIAS.id)),
)  # fmt: skip
SLOPE = _spec(
    "rewards.slope", "Reward that comes for each unit predicted",
    "Regression of the real on the predicted reward: 1 is right, however random rewards are. Below 0: wrong sign; below 1: "
    "predicted too large; above 1: too small.",
    alias="M5.reward_slope", direction="none",
    rules=(Rule("REWARDS_OF_THE_WRONG_SIGN", "fault", below(0),
                lambda m: f"predicts rewards of the wrong sign (for each unit predicted {m.value:+.2f} comes)",
                covers=("PROMISES_TOO_LITTLE", "PROMISES_TOO_MUCH", "REWARDS_TOO_LARGE", "MISSES_REWARDS", "INVENTS_REWARDS",
                        "WRONG_REWARDS")),
           Rule("REWARDS_TOO_LARGE", "fault", below(1 - SIZE),
                lambda m: f"predicts rewards too large (for each unit predicted {m.value:.2f} comes)"),
           Rule("REWARDS_TOO_SMALL", "fault", above(1 + SIZE),
                lambda m: f"predicts rewards too small (for each unit predicted {m.value:.2f} comes)",
                covers=("WRONG_REWARDS",))),
)  # fmt: skip
DELAY = _spec(
    "rewards.delay", "Steps by which predicted reward events are late",
    "How many steps after a real reward event the model predicts it. 0 is right.",
    alias="M5.reward_delay", unit="steps", direction="zero",
    rules=(Rule("REWARDS_LATE", "fault", above(0.5), lambda m: f"predicts rewards late (by {m.value:.1f} steps)",
                covers=("REWARDS_TOO_LARGE", "WRONG_REWARDS")),
           Rule("REWARDS_EARLY", "fault", below(-0.5), lambda m: f"predicts rewards early (by {-m.value:.1f} steps)",
                covers=("REWARDS_TOO_LARGE", "WRONG_REWARDS"))),
)  # fmt: skip
SIGN_ECE = _spec(
    "rewards.sign_ece", "Calibration error of the signs of rewards",
    "Mean difference between the probabilities of a negative, no and a positive reward and how often these come.",
    alias="M5.reward_classes", unit="probability",
    silent="it has no interval; the bias and the slope judge the expected reward",
)  # fmt: skip
BRANCH_ERROR = _branched(
    "rewards.branch_error", "Error of the predicted reward",
    "Mean absolute error of the expected reward of an action, at branch states. Floor: one constant.",
    alias="M5.branch_reward_error", quality="Rewards of actions",
    rules=(Rule("WRONG_REWARDS", "fault", below(0.25, skill=True),
                lambda m: f"its rewards are {'worse' if m.skill_ci[1] < 0 else 'no better'} than a constant"),),
)  # fmt: skip
EVENT_F1 = _spec(
    "rewards.event_f1", "F1 of reward events at their exact steps",
    "Harmonic mean of recall and precision of reward events, an early or late one counting as two errors.",
    direction="higher", silent="recall and precision within two steps judge the events",
)  # fmt: skip
EVENT = 0.5  # a reward event is a reward further from zero than this
WITHIN = 2  # steps by which an event may be early or late


@measure
def rewards(scored: Scored, signs: bool = True) -> list[Metric]:
    """Tier A: recall and precision of events of the same sign within 2 steps; the mean error; the slope of the reward
    that came over the predicted one (for a right model exactly 1, however random rewards are); the delay of predicted
    events; and the calibration error of the three signs. `signs`: the model predicts the signs of rewards (else the rewards
    themselves)."""
    gave = np.sign(scored.reward) if signs else scored.reward
    real, predicted = _sign_of_events(gave), _sign_of_events(scored.reward_mean)
    metrics = [
        _events(RECALL, near(predicted, real, scored), real != 0, scored, "real reward events"),
        _events(PRECISION, near(real, predicted, scored), predicted != 0, scored, "predicted reward events"),
        _f1(real != 0, predicted != 0, scored),
        *_sizes(scored, gave, int((real != 0).sum())),
        _delay(real, predicted, scored),
    ]
    if scored.reward_probability is None:
        return [*metrics, absent(SIGN_ECE, "the model's probabilities of signs are not known", "skipped")]
    errors = [reliability(scored.reward_probability[:, c], np.sign(scored.reward) == c - 1)["ece"] for c in range(3)]
    clusters = len(np.unique(scored.cluster))
    return [*metrics, number(SIGN_ECE, float(np.mean(errors)), None, clusters, len(gave), ceiling=0.0)]


def _f1(real: np.ndarray, predicted: np.ndarray, scored: Scored) -> Metric:
    """2 TP / (2 TP + FP + FN) of events (N,) bool."""
    if not real.any():
        return absent(EVENT_F1, "there are no real reward events")
    return share(EVENT_F1, 2.0 * (real & predicted), real.astype(float) + predicted, scored.cluster, samples=int(real.sum()),
                 floor=0.0, ceiling=1.0)  # fmt: skip


def _sign_of_events(reward: np.ndarray) -> np.ndarray:
    """(N,) -> the sign of each reward event, 0 where there is none."""
    return np.sign(reward) * (np.abs(reward) > EVENT)


def _sizes(scored: Scored, gave: np.ndarray, events: int) -> list[Metric]:
    """Bias and slope, which say little of few events."""
    predicted, cluster, scale = scored.reward_mean, scored.cluster, float(np.abs(gave).mean())
    metrics = [
        mean(BIAS, predicted - gave, cluster, floor=scale if scale else None, ceiling=0.0),
        share(SLOPE, predicted * gave, np.square(predicted), cluster, ceiling=1.0, none="no reward is ever predicted"),
    ]
    return [of_few(metric, events, "real reward events") for metric in metrics]


def _delay(real: np.ndarray, predicted: np.ndarray, scored: Scored) -> Metric:
    """Steps from a real event to the predicted event that is nearest to it, of either sign."""
    offset = np.full(len(real), np.nan)
    for d in sorted(range(-WITHIN, WITHIN + 1), key=abs, reverse=True):  # the nearest is written last
        offset = np.where(near(np.abs(predicted), np.abs(real), scored, (d,)), d, offset)
    met = np.isfinite(offset)
    n = int(met.sum())
    delay = share(DELAY, np.where(met, offset, 0.0), met, scored.cluster, samples=n, ceiling=0.0,
                  none=f"no predicted reward event is within {WITHIN} steps of a real one")  # fmt: skip
    return of_few(delay, n, "pairs of a real and a predicted reward event")


def _events(spec: MetricSpec, met: np.ndarray, asked: np.ndarray, scored: Scored, what: str) -> Metric:
    n = int(asked.sum())
    metric = share(spec, met & asked, asked, scored.cluster, samples=n, none=f"there are no {what}", floor=0.0, ceiling=1.0)
    if n:
        metric = replace(metric, ci=intervals.clustered_wilson(met & asked, asked, scored.cluster))
    return of_few(metric, n, what)


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


@arrays_of("reward_confusion")
def confusion_of_events(scored: Scored) -> np.ndarray | None:
    """`reward_confusion`; None without a reward event."""
    return reward_confusion(scored) if (np.abs(scored.reward) > EVENT).any() else None


def reward_confusion(scored: Scored) -> np.ndarray:
    """(3, 3) rows by the sign of the real reward (-1, 0, 1), columns by the sign that the mean predicts (0 unless it is
    further from zero than an event)."""
    real = np.sign(scored.reward).astype(int) + 1
    predicted = (np.sign(scored.reward_mean) * (np.abs(scored.reward_mean) > EVENT)).astype(int) + 1
    return np.bincount(3 * real + predicted, minlength=9).reshape(3, 3)


@measure
def rewards_at_branches(branches: Branches, signs: bool = True) -> list[Metric]:
    """Tier B: predicted reward of each state and action next to its true expectation over the branches, actions weighted as in
    KL(p || q). error: mean absolute difference; the floor is a constant prediction of the mean."""
    if branches.reward is None or branches.reward_mean is None:
        return [absent(spec, "no rewards at the branches", "skipped") for spec in (BRANCH_ERROR, BRANCH_BIAS)]
    weight, cluster, p = divergences.weights(branches), branches.cluster, branches.p
    true = (p * np.where(p > 0, np.sign(branches.reward) if signs else branches.reward, 0.0)).sum(-1)  # (S, A)
    return [
        mean_error(BRANCH_ERROR, branches.reward_mean, true, weight, cluster),
        mean(BRANCH_BIAS, (weight * (branches.reward_mean - true)).sum(1), cluster,
             floor=float((weight * np.abs(true)).sum(1).mean()) or None, ceiling=0.0),
    ]  # fmt: skip
