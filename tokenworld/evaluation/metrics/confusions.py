"""Which of its actions does the model confuse? On held-out data (tier A) and at branches (tier B), action by action.

Means over all actions and states hide a fault of one action, or of one kind of state. These numbers are those of the worst
action, of the worst pair of actions, or shares of states. The worst of several is the worst by chance too, so its interval
has the level 1 - 0.05 / n of n candidates (Bonferroni): it holds for whichever turns out to be the worst.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import combinations, permutations

import numpy as np

from tokenworld.evaluation.metrics import action_effects, action_sensitivity
from tokenworld.evaluation.records import Branches, Metric, Scored
from tokenworld.evaluation.statistics import classifier, divergences, intervals
from tokenworld.evaluation.statistics.measured import absent, mean, number, share
from tokenworld.evaluation.statistics.metric_spec import (
    ACTIONS,
    HALF,
    MetricSpec,
    Rule,
    above,
    below,
    measure,
    of_likelihood,
    which,
)

_spec = partial(
    MetricSpec, section=ACTIONS, topic="the use of actions", of_codes=True, source="Yu et al. 2026, arXiv:2606.15032"
)
_branched = partial(_spec, topic="the effects of actions", tier="B", is_expected=True)
CLOSEST_PAIR_BITS = _spec(
    "confusions.closest_pair_bits", "Bits by which the two most similar actions differ",
    "Of all pairs of actions, the pair that the model distinguishes least: by how much the cost of a frame differs.",
    alias="M6.apart", unit="bits/frame", direction="higher",
    silent="two actions may be one in the world: ALIASED_ACTIONS reads it where the frames after one surprise the model",
)  # fmt: skip
OVERLOOKED = _spec(
    "confusions.overlooked", "Share by which a classifier distinguishes the two most similar actions better",
    "How much more often a simple classifier than the model recognizes which of these two actions was taken.",
    alias="M6.overlooked", unit="share",
    rules=(Rule("OVERLOOKS_AN_ACTION", "fault", above(0.1),
                lambda m: f"does not tell {which(m)}, though the frames do (a simple classifier recognizes {m.value:.0%} "
                          "more)"),),
)  # fmt: skip
MISATTRIBUTED_BITS = _spec(
    "confusions.misattributed_bits", "Bits that a frame costs less under a wrong action",
    "Of all pairs, the one where what follows an action is best explained by the other. Above 0: confused.",
    alias="M6.misnamed", unit="bits/frame",
    rules=(Rule("TAKES_ONE_ACTION_FOR_ANOTHER", "fault", above(action_sensitivity.LEAST_SAVED),
                lambda m: f"expects after {which(m)} ({m.value:+.2f} bits a frame saved under the wrong name)",
                covers=("WRONG_AFTER_ONE_ACTION", "TAKES_ACTIONS_FOR_OTHERS")),),
)  # fmt: skip
UNEXPECTED_BITS = _spec(
    "confusions.unexpected_bits", "Unannounced surprise after one action, beyond that after the others",
    "Of all actions, the one after which surprise exceeds the announced surprise most: 0 is right.",
    alias="M6.unannounced", unit="bits/frame",
    rules=(Rule("WRONG_AFTER_ONE_ACTION", "fault", above(HALF),
                lambda m: f"wrong {which(m)} ({m.value:+.2f} bits a frame more than announced, beyond the other actions)"),),
)  # fmt: skip
INVERSE_GAP = _spec(
    "confusions.inverse_gap", "Announced minus real share of actions that their effect tells",
    "How much less often an action is recognized by its effect than the model announces: 0 is right.",
    alias="M6.inverse_gap", unit="share", direction="zero",
    rules=(Rule("TAKES_ACTIONS_FOR_OTHERS", "fault", above(0.1),
                lambda m: f"expects {m.value:.0%} of the frames after another action than the one that was taken",
                covers=("WRONG_AFTER_ONE_ACTION",)),
           Rule("KNOWS_ACTIONS_TOO_POORLY", "warning", below(-0.1),
                lambda m: f"its actions tell more than it announces ({-m.value:.0%} more are recognized)")),
)  # fmt: skip
WEAKEST_PAIR = _branched(
    "confusions.weakest_pair", "Size of the effect of the weakest pair of actions",
    "Of all pairs of actions, the one whose difference is smallest compared with the world: 1 is right.",
    alias="M7.weakest_pair", direction="higher", quality="Actions that differ",
    rules=(Rule("PAIR_TOO_ALIKE", "fault", below(0.25),
                lambda m: f"makes one action of {which(m)} ({max(0, m.value):.0%} of their difference in the world)",
                covers=("OVERLOOKS_AN_ACTION",)),),
)  # fmt: skip
SWAPPED_STATES = _branched(
    "confusions.swapped_states", "States in which actions have other effects",
    "The share of states in which actions have effects, but those of other actions.",
    alias="M7.reversed", unit="share", quality="States with the right actions",
    rules=(Rule("ACTIONS_SWAPPED_IN_SOME_STATES", "fault", above(0.1),
                lambda m: f"gives its actions the effects of others in {m.value:.0%} of the states",
                covers=("TAKES_ACTIONS_FOR_OTHERS", "WRONG_AFTER_ONE_ACTION", "WRONG_EFFECTS")),),
)  # fmt: skip
OF_DATA = (CLOSEST_PAIR_BITS, OVERLOOKED, MISATTRIBUTED_BITS, UNEXPECTED_BITS, INVERSE_GAP)
DISAGREE = 0.3  # cosine of true and predicted effects of a state below which they are other effects
LEAST_EFFECT = 0.5  # share of the true effect that the model's must have to be an effect at all
FEW = 10  # rows of an action, below which it is not judged
UNNUMBERED = "there are too many actions for any two to be taken often enough"
SEEN = 5  # rows in which a change of a code must have been seen to be a sign of an action


@measure
@of_likelihood(*OF_DATA)
def confused_actions(scored: Scored, taken: np.ndarray | None = None, names: Sequence[str] = ()) -> list[Metric]:
    """Tier A: what the model makes of each action, on rows with `bits_by_action`.

    closest_pair_bits    of the pair of actions that differ least to the model: mean size of the difference in bits that the
                         frames after either of them cost under the two. 0: one action to the model
    overlooked           of the same pair: how much more often a classifier on the changes of codes recognizes the action than
                         the model does. At most 0 for a right model, as nothing recognizes more than it does; above 0 the
                         frames after the two actions differ in what the model expects to be the same
    misattributed_bits   of the pair (a, b) for which it is largest: mean bits of the frames after a under a, less those under
                         b. Below 0 for a right model; above 0 what follows a is what the model expects of b
    unexpected_bits      of the worst action: mean surprise paid minus announced after it, beyond the same after all others. 0
                         for a right model, and for one that is wrong about all actions in the same way
    inverse_gap          P(action | frame) as the model has it, argmax: its mean probability minus how often it is right. 0 for
                         a right model; above 0 frames come that the model expects of other actions

    taken (A,): how often each action was taken in all data; None: in these rows. names (A,): of the actions.
    """
    scored = scored.under_each_action()
    A = 0 if scored.bits_by_action is None else scored.bits_by_action.shape[1]
    if A and scored.action is None:
        return [absent(spec, UNNUMBERED) for spec in OF_DATA]
    seen = np.flatnonzero(np.bincount(scored.action, minlength=A) >= FEW) if A else np.zeros(0, int)
    if len(seen) < 2:
        reason = "frames were not scored under other actions" if A == 0 else f"fewer than two actions were taken {FEW} times"
        status = "skipped" if A == 0 else "not_applicable"
        return [absent(spec, reason, status) for spec in OF_DATA]
    worst = [measure(scored, seen, names) for measure in (_apart, _overlooked, _misnamed, _unannounced)]
    return [*worst, _inverse_gap(scored, taken)]


def _apart(scored: Scored, seen: np.ndarray, names: Sequence[str]) -> Metric:
    values, rows, a, b = _nearest_pair(scored, seen)
    return _extreme(CLOSEST_PAIR_BITS, values, scored.cluster[rows], math.comb(len(seen), 2),
                    f"{_name(a, names)} and {_name(b, names)}", floor=0.0)  # fmt: skip


def _nearest_pair(scored: Scored, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray, int, int]:
    """The pair a, b of actions under which a frame's bits differ least: the differences (n,), the rows (N,) bool, a, b."""
    pairs = [(a, b, np.isin(scored.action, (a, b))) for a, b in combinations(seen, 2)]
    bits = scored.bits_by_action
    differences = [(np.abs(bits[rows, a] - bits[rows, b]), rows, a, b) for a, b, rows in pairs]
    return min(differences, key=lambda pair: pair[0].mean())


def _overlooked(scored: Scored, seen: np.ndarray, names: Sequence[str]) -> Metric:
    _, rows, a, b = _nearest_pair(scored, seen)
    is_b, cluster = scored.action[rows] == b, scored.cluster[rows]
    words = f"{_name(a, names)} from {_name(b, names)}"
    if len(np.unique(cluster)) < 2:
        return absent(OVERLOOKED, "a classifier needs two episodes to learn and to be judged")
    model = scored.bits_by_action[rows, a] - scored.bits_by_action[rows, b]  # (n,) log-odds of b
    gain = _right(_odds_of_changes(scored.previous[rows], scored.codes[rows], is_b, cluster), is_b) - _right(model, is_b)
    weight = np.where(is_b, 1 / is_b.mean(), 1 / (1 - is_b.mean()))  # both actions count alike
    value, ci, n = intervals.ratio(gain * weight, weight, cluster)
    return number(OVERLOOKED, value, ci, n, len(gain), ceiling=0.0, reason=words)


def _right(odds: np.ndarray, is_b: np.ndarray) -> np.ndarray:
    """Is action b recognized where log-odds (n,) are above 0, and a below? 1, 0, or 1/2 where they leave it open."""
    return np.where(np.abs(odds) < action_sensitivity.TIE, 0.5, (odds > 0) == is_b)


def _odds_of_changes(previous: np.ndarray, codes: np.ndarray, is_b: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """Log-odds (n,) of action b from which codes (n, K) changed to what: naive Bayes, each row from the other clusters' rows.
    A change is one sign at its position and another at any position."""
    n, K = codes.shape
    V = int(max(previous.max(), codes.max())) + 1
    row, position = np.nonzero(previous != codes)
    kind = previous[row, position].astype(np.int64) * V + codes[row, position]
    signs, sign = np.unique(np.concatenate([kind, (position + 1) * V * V + kind]), return_inverse=True)
    row = np.tile(row, 2)
    odds = np.zeros(n)
    for held_out in classifier.fold_of(cluster):
        learned = ~held_out[row]
        by_action = [np.bincount(sign[learned & (is_b[row] == label)], minlength=len(signs)) for label in (False, True)]
        of_a, of_b = [(np.minimum(count, total) + 0.5) / (total + 1) for count, total in  # share of rows with the sign
                      zip(by_action, (np.sum(~held_out & ~is_b), np.sum(~held_out & is_b)), strict=True)]  # fmt: skip
        known = sum(by_action) >= SEEN
        missing, present = np.log((1 - of_b) / (1 - of_a)), np.log(of_b / of_a)
        odds[held_out] = np.sum(missing[known])
        ours = ~learned & known[sign]
        np.add.at(odds, row[ours], (present - missing)[sign[ours]])
    return odds


def _misnamed(scored: Scored, seen: np.ndarray, names: Sequence[str]) -> Metric:
    pairs = [(a, b, scored.action == a) for a, b in permutations(seen, 2)]
    costs = [(scored.bits_by_action[rows, a] - scored.bits_by_action[rows, b], rows, a, b) for a, b, rows in pairs]
    values, rows, a, b = max(costs, key=lambda pair: pair[0].mean())
    return _extreme(MISATTRIBUTED_BITS, values, scored.cluster[rows], len(costs),
                    f"{_name(b, names)} what follows {_name(a, names)}", ceiling=0.0)  # fmt: skip


def _extreme(spec: MetricSpec, values: np.ndarray, cluster: np.ndarray, candidates: int, words: str, **more) -> Metric:
    """The mean of values (n,), the largest or smallest of so many candidates; `words` say which one."""
    value, ci, n = intervals.ratio(values, None, cluster, level=1 - 0.05 / candidates)
    return number(spec, value, ci, n, len(values), reason=words, **more)


def _unannounced(scored: Scored, seen: np.ndarray, names: Sequence[str]) -> Metric:
    gap = divergences.frame_bits(scored.bits) - scored.entropy.sum(1)
    beyond = {a: gap[scored.action == a].mean() - gap[scored.action != a].mean() for a in seen}
    worst = max(beyond, key=beyond.get)
    own = (scored.action == worst).astype(float)

    def difference(weights: np.ndarray) -> float:
        return float(np.average(gap, weights=weights * own) - np.average(gap, weights=weights * (1 - own)))

    def gap_of(weights: np.ndarray) -> float:
        return difference(weights) if (weights @ own > 0) and (weights @ (1 - own) > 0) else np.nan

    value, ci, n = intervals.statistic(gap_of, scored.cluster, level=1 - 0.05 / len(seen))
    return number(UNEXPECTED_BITS, value, ci, n, int(own.sum()), ceiling=0.0, reason=f"after {_name(worst, names)}")


def _inverse_gap(scored: Scored, taken: np.ndarray | None) -> Metric:
    log_posterior = action_sensitivity.log_posterior(scored, taken)  # (N, A)
    posterior = np.exp2(log_posterior - log_posterior.max(1, keepdims=True))
    announced = (posterior / posterior.sum(1, keepdims=True)).max(1)
    gap = announced - action_sensitivity.recognition_share(log_posterior, scored.action)
    return mean(INVERSE_GAP, gap, scored.cluster, ceiling=0.0, states=scored.state)


@measure
@of_likelihood(WEAKEST_PAIR, SWAPPED_STATES)
def confused_effects(branches: Branches, names: Sequence[str] = ()) -> list[Metric]:
    """Tier B: with D = p(. | a) - p(. | b) of each code and D' the model's, over the codes that a pair of actions moves:

    weakest_pair     sum |D'| / sum |D| of the pair for which it is smallest: 1 is right, 0 makes one action of two
    swapped_states   share of states, of those in which actions have an effect, where cos(D, D') is below 0.3 though the model's
                     effect has half of the true size: actions have the effects of others there

    names (A,): of the actions.
    """
    least = action_effects.MOVED_ESTIMATED
    reason = "" if branches.exact else f"effects below {least} count as none: they are estimated from draws"
    pairs = list(combinations(range(branches.p.shape[1]), 2))
    sums = action_effects.pair_sums(branches)  # name -> (S, pairs)
    none = "no action has an effect in these states"
    moved = [i for i in range(len(pairs)) if (sums["moved"][:, i] > 0).sum() >= FEW]
    weakest = min(moved, key=lambda i: sums["model_moved"][:, i].sum() / sums["moved"][:, i].sum(), default=None)
    anchors = dict(floor=0.0, ceiling=1.0)
    if weakest is None:
        metrics = [absent(WEAKEST_PAIR, none, **anchors)]
    else:
        value, ci, n = intervals.ratio(sums["model_moved"][:, weakest], sums["moved"][:, weakest], branches.cluster,
                                       level=1 - 0.05 / len(moved))  # fmt: skip
        words = " and ".join(_name(a, names) for a in pairs[weakest])
        reasons = f"{words}{reason and '; '}{reason}"
        metrics = [number(WEAKEST_PAIR, value, ci, n, len(branches.p), reason=reasons, **anchors)]
    whole = {name: values.sum(1) for name, values in sums.items()}
    size = np.sqrt(whole["true_square"] * whole["model_square"])
    has = whole["moved"] > 0
    other = has & (whole["along"] < DISAGREE * size) & (whole["model_moved"] > LEAST_EFFECT * whole["moved"])
    return [*metrics, share(SWAPPED_STATES, other.astype(float), has, branches.cluster, floor=1.0, ceiling=0.0,
                          samples=int(has.sum()), none=none, reason=reason)]  # fmt: skip


def _name(action: int, names: Sequence[str]) -> str:
    return str(names[action]) if len(names) else f"action {action}"
