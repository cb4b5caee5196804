"""Tier A: does the model use its actions? From held-out data.

Sensitivity is not correctness: a model with left and right swapped is as sensitive as a perfect one, and pays for it in code
length.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from tokenworld.evaluation.records import Metric, Scored
from tokenworld.evaluation.statistics import intervals
from tokenworld.evaluation.statistics.measured import absent, mean
from tokenworld.evaluation.statistics.metric_spec import ACTIONS, MetricSpec, Rule, below, measure, of_likelihood

_spec = partial(
    MetricSpec, section=ACTIONS, topic="the use of actions", of_codes=True, source="Bruce et al. 2024 (Genie), arXiv:2402.15391"
)
LEAST_SAVED = 0.1  # bits of a frame: a model that saves less by knowing the action ignores it
SAVED_BITS = _spec(
    "action_sensitivity.saved_bits", "Bits that the right action saves",
    "Bits saved by knowing the action, against an action drawn from those of the data. 0: the model ignores it. Sensitivity "
    "is not correctness. Continuous actions are compared with a menu of 16 representative ones.",
    alias="M6.shuffled", unit="bits/frame", direction="higher",
    rules=(Rule("ACTION_BLIND", "fault", below(LEAST_SAVED),
                lambda m: "ignores its actions" if m.value > -LEAST_SAVED
                else f"misled by its actions ({m.value:+.2f} bits a frame)", covers=("OVERLOOKS_AN_ACTION",)),),
)  # fmt: skip
INVERSE_ACCURACY = _spec(
    "action_sensitivity.inverse_accuracy", "Actions recognized by their effect",
    "How often the action that was taken explains the next frame best. Floor: the most frequent action.",
    alias="M6.inverse", unit="share", direction="higher",
    silent="how well an effect tells its action is the world's: the inverse gap judges what the model makes of it",
)  # fmt: skip
BLIND_STATES = _spec(
    "action_sensitivity.blind_states", "States in which actions make no difference to the model",
    "The share of states in which all actions give the frame the same probability.",
    alias="M6.blind", unit="share", direction="none",
    silent="in how many states actions make no difference in the world is not known: the effects at branches judge it",
)  # fmt: skip
TIE = 1e-3  # bits: two actions are as likely as each other if they differ by less, which rounding does too


@measure
@of_likelihood(SAVED_BITS, INVERSE_ACCURACY, BLIND_STATES)
def action_sensitivity(scored: Scored, taken: np.ndarray | None = None) -> list[Metric]:
    """Bits that knowing the action saves over an action drawn from those of the data, and how well the frame tells which
    action was taken: argmax_a of q(frame | h, a) pi_b(a), next to always naming the most frequent. Of actions within `TIE`
    bits of the best each is named equally often.

    taken (A,): how often each action was taken in all of the data, of which these rows are some: a row's values then depend on
    its state alone, and not on which others were measured. None: in these rows. Actions without numbers are compared with a
    menu, whose actions are equally likely.
    """
    scored = scored.under_each_action()
    A = 0 if scored.bits_by_action is None else scored.bits_by_action.shape[1]
    if A and scored.action is None:
        return _against_menu(scored)
    counts = np.bincount(scored.action, minlength=A) if A else np.zeros(0)
    if (counts > 0).sum() < 2:
        reason = "frames were not scored under other actions" if A == 0 else "the held-out data hold a single action"
        status = "skipped" if A == 0 else "not_applicable"
        return [absent(spec, reason, status) for spec in (SAVED_BITS, INVERSE_ACCURACY, BLIND_STATES)]
    taken = counts / counts.sum() if taken is None else taken / taken.sum()
    own = scored.bits_by_action[np.arange(len(scored.action)), scored.action]
    named = recognition_share(log_posterior(scored, taken), scored.action)
    are_alike = (np.ptp(scored.bits_by_action, axis=1) < 0.05).astype(float)
    floor = taken.max() if scored.behavior is None else (scored.behavior.argmax(1) == scored.action).mean()
    return [
        _saved(scored, own, taken),
        mean(INVERSE_ACCURACY, named, scored.cluster, floor=float(floor), states=scored.state),
        mean(BLIND_STATES, are_alike, scored.cluster, states=scored.state),
    ]


def _against_menu(scored: Scored) -> list[Metric]:
    """The same of actions without numbers: column 0 is the one that was taken, the others are the menu."""
    bits, A = scored.bits_by_action, scored.bits_by_action.shape[1]
    rest = dict(states=scored.state, reason=f"the action that was taken is compared with a menu of {A - 1} others")
    named = recognition_share(-bits, np.zeros(len(bits), int))
    are_alike = (np.ptp(bits, axis=1) < 0.05).astype(float)
    return [
        mean(SAVED_BITS, bits[:, 1:].mean(1) - bits[:, 0], scored.cluster, floor=0.0, **rest),
        mean(INVERSE_ACCURACY, named, scored.cluster, floor=1 / A, **rest),
        mean(BLIND_STATES, are_alike, scored.cluster, **rest),
    ]


def log_posterior(scored: Scored, taken: np.ndarray | None = None) -> np.ndarray:
    """(N, A): log2 of pi_b(a) q(frame | h, a), which is P(a | frame) up to a factor. taken (A,): as `action_sensitivity`."""
    if taken is None:
        taken = np.bincount(scored.action, minlength=scored.bits_by_action.shape[1])
    behavior = scored.behavior
    if behavior is None:
        behavior = np.broadcast_to(taken / taken.sum(), scored.bits_by_action.shape)
    with np.errstate(divide="ignore"):
        return np.log2(behavior) - scored.bits_by_action


def recognition_share(log_posterior: np.ndarray, action: np.ndarray) -> np.ndarray:
    """(N,): 1 where the action has the largest value of log_posterior (N, A) alone, 1 / n where it shares it with n - 1
    others within `TIE`, else 0."""
    best = log_posterior >= log_posterior.max(1, keepdims=True) - TIE
    return best[np.arange(len(log_posterior)), action] / best.sum(1)


def _saved(scored: Scored, own: np.ndarray, taken: np.ndarray) -> Metric:
    """Bits under an action drawn from the data's less those under the own one; each draw of the bootstrap has its own shares
    of actions, `taken` (A,) are those of all data, around whose value the interval is laid."""
    saved = scored.bits_by_action @ taken - own
    saved_bits = mean(SAVED_BITS, saved, scored.cluster, floor=0.0, states=scored.state)
    columns = np.concatenate([scored.bits_by_action, scored.action[:, None] == np.arange(len(taken)), own[:, None]], 1)
    sums = np.stack([intervals.cluster_sums(column, scored.cluster) for column in columns.T], 1)  # (C, 2 A + 1)
    drawn = intervals.draws_of(len(sums)) @ sums
    bits, count = drawn[:, : len(taken)], drawn[:, len(taken) : -1]
    n = count.sum(1)
    drawn = (bits * count).sum(1) / n**2 - drawn[:, -1] / n
    shares = np.bincount(scored.action, minlength=len(taken)) / len(own)
    aside = float((scored.bits_by_action @ (taken - shares)).mean())  # what other shares than those of these rows change
    return replace(saved_bits, ci=intervals.percentile(drawn + aside, clusters=len(sums)))
