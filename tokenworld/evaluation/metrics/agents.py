"""Causally right, or only predictive of one agent? The same model under another choice of actions, and another agent.

A learner is right where it has data; off the support of its data nobody is. So a gap between policies must be read against
support: a gap among well-supported states and actions is a wrong cause, a gap among rare ones is coverage. Gaps can be
negative (a model may be worse on policy): both divergences are reported, not only their difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from tokenworld.errors import UserError
from tokenworld.evaluation.records import Branches, Metric, Pairs
from tokenworld.evaluation.statistics import divergences, intervals
from tokenworld.evaluation.statistics.measured import absent, mean, number, share
from tokenworld.evaluation.statistics.metric_spec import (
    AGENTS,
    BITS,
    MetricSpec,
    Rule,
    above,
    arrays_of,
    below,
    measure,
    of_likelihood,
)

_spec = partial(
    MetricSpec, section=AGENTS, topic="other agents", unit="bits/frame", tier="B", of_codes=True,
    source="Richens and Everitt 2024, arXiv:2402.10877",
)  # fmt: skip
BEHAVIOR_KL = _spec(
    "agents.behavior_kl", "KL divergence under the behavior policy",
    "KL(p || q) of the next frame under the actions of the policy that played.", alias="M8.kl_behaviour",
    silent="the intervention gap compares it with the divergence under random actions; the calibration family judges its parts",
)  # fmt: skip
INTERVENTIONAL_KL = _spec(
    "agents.interventional_kl", "KL divergence under actions set at random",
    "KL(p || q) of the next frame where each action is equally likely, whatever a policy would do. Of continuous actions those "
    "of a menu of 16.", alias="M8.kl_do",
    silent="the intervention gap compares it with the divergence under the behavior policy",
)  # fmt: skip
INTERVENTION_GAP = _spec(
    "agents.intervention_gap", "What setting actions at random adds",
    "The second minus the first: what the model knows of its agent but not of the actions.", alias="M8.do_gap",
    rules=(Rule("WORSE_UNDER_OTHER_ACTIONS", "warning", above(BITS),
                lambda m: f"worse where actions are set at random ({m.value:+.2f} bits a frame)"),),
)  # fmt: skip
SUPPORTED_GAP = _spec(
    "agents.supported_intervention_gap", "The same, where training data are plenty",
    "The same where training data are plenty: a gap here is a wrong cause, not a lack of data.", alias="M8.do_gap_supported",
    picture="support",
    silent="it says what kind of fault the intervention gap is: CAUSALLY_CONFUSED and UNRELIABLE_OFF_SUPPORT read it",
)  # fmt: skip
OTHER_AGENT_KL = _spec(
    "agents.other_agent_kl", "KL divergence under another agent",
    "KL(p || q) of the next frame at the states and under the actions of another agent.", alias="M8.kl_other",
    silent="the transfer gap compares it with the divergence under the behavior policy",
)  # fmt: skip
MATRIX_GAP = _spec(
    "agents.matrix_gap", "Bits of a frame that a model of another agent costs more",
    "How much more a frame costs under a model that was trained on another agent.", alias="M8.matrix_gap", tier="A",
    picture="transfer",
)  # fmt: skip
TRANSFER_GAP = _spec(
    "agents.transfer_gap", "What another agent adds",
    "How much larger the divergence is under another agent. This alone does not prove a wrong cause: the agent may visit "
    "states that are harder to predict.",
    alias="M8.transfer_gap",
    rules=(Rule("WORSE_UNDER_ANOTHER_AGENT", "warning", above(BITS),
                lambda m: f"worse under another agent ({m.value:+.2f} bits a frame)", also=MATRIX_GAP.id),),
)  # fmt: skip
SPURIOUS_FEATURE = _spec(
    "agents.spurious_feature", "What a feature without consequences changes",
    "How much the prediction changes with a feature that has no consequences.", alias="M8.spurious_feature", unit="bits",
    direction="zero", source="Ding et al. 2022 (FOCUS), arXiv:2206.01474",
    rules=(Rule("READS_WHAT_HAS_NO_EFFECT", "fault", above(0.05),
                lambda m: f"reads a feature without consequences ({m.value:.2f} bits)"),
           Rule("OVERLOOKS_A_FEATURE", "warning", below(-0.05),
                lambda m: f"overlooks a feature that has consequences ({-m.value:.2f} bits)")),
)  # fmt: skip
OF_BRANCHES = (BEHAVIOR_KL, INTERVENTIONAL_KL, INTERVENTION_GAP, SUPPORTED_GAP, OTHER_AGENT_KL, TRANSFER_GAP)


@measure
@of_likelihood(*OF_BRANCHES)
def causal_gap(own_branches: Branches, other_branches: Branches | None = None) -> list[Metric]:
    """Tier B: KL(p || q) at the same states under the behavior policy and under do(a ~ uniform), and their difference; with
    `other_branches`, at the states and under the policy of another agent, its KL and difference too."""
    branches, other, absences = own_branches, other_branches, {}
    cells, cluster = divergences.kl(branches), branches.cluster  # (S, A)
    at_random = cells.mean(1) if branches.at_random is None else cells @ branches.at_random
    reason = "" if branches.exact else divergences.ESTIMATED
    at = dict(ceiling=0.0, states=branches.hash, reason=reason)
    gaps = {INTERVENTIONAL_KL: mean(INTERVENTIONAL_KL, at_random, cluster, **at)}
    if branches.behavior is None:
        absences |= dict.fromkeys((BEHAVIOR_KL, INTERVENTION_GAP, SUPPORTED_GAP), "the behavior policy is not known")
    else:
        on = (divergences.weights(branches) * cells).sum(1)
        gaps[BEHAVIOR_KL] = mean(BEHAVIOR_KL, on, cluster, **at)
        gaps[INTERVENTION_GAP] = mean(INTERVENTION_GAP, at_random - on, cluster, **at)
        if branches.support is None:
            absences[SUPPORTED_GAP] = "it is not known how often training data hold a state and action"
        else:
            gaps[SUPPORTED_GAP] = _supported(branches, cells, reason)
    if other is None or other.behavior is None:
        why = "there are no states of another agent" if other is None else "the other agent's policy is not known"
        absences |= dict.fromkeys((OTHER_AGENT_KL, TRANSFER_GAP), why)
    else:
        theirs = (divergences.weights(other) * divergences.kl(other)).sum(1)
        gaps[OTHER_AGENT_KL] = mean(OTHER_AGENT_KL, theirs, other.cluster, reason=reason, ceiling=0.0, states=other.hash)
        if branches.behavior is None:
            absences[TRANSFER_GAP] = "the behavior policy is not known"
        else:
            value, ci, n = intervals.difference(theirs, other.cluster, on, cluster)
            gaps[TRANSFER_GAP] = number(TRANSFER_GAP, value, ci, n, len(on) + len(theirs), reason=reason, ceiling=0.0)
    gaps |= {spec: absent(spec, why, "skipped") for spec, why in absences.items()}
    return [gaps[spec] for spec in OF_BRANCHES]


def _supported(branches: Branches, cells: np.ndarray, reason: str) -> Metric:
    """The do gap over the cells (state, action) whose support is at least the median: of two weighted means."""
    high = branches.support >= np.median(branches.support)
    weight = divergences.weights(branches) * high
    sums = np.stack([(cells * high).sum(1), high.sum(1), (cells * weight).sum(1), weight.sum(1)], 1)  # (S, 4)
    unique, row = np.unique(branches.cluster, return_inverse=True)
    whole = np.stack([np.bincount(row, weights=sums[:, i]) for i in range(4)], 1)
    if not (whole.sum(0)[[1, 3]] > 0).all():
        return absent(SUPPORTED_GAP, "the behavior policy never takes a well-supported action")
    drawn = intervals.draws_of(len(unique)) @ whole
    drawn = drawn[(drawn[:, 1] > 0) & (drawn[:, 3] > 0)]
    total, gaps = whole.sum(0), drawn[:, 0] / drawn[:, 1] - drawn[:, 2] / drawn[:, 3]
    value = total[0] / total[1] - total[2] / total[3]
    ci = intervals.percentile(gaps, clusters=len(unique))
    return number(SUPPORTED_GAP, value, ci, len(unique), int(high.sum()), reason=reason, ceiling=0.0)


@arrays_of("support")
@of_likelihood()
def support_curve(own_branches: Branches) -> dict[str, np.ndarray] | None:
    """`by_support` in five groups; None where support is not known."""
    return None if own_branches.support is None else by_support(own_branches, parts=5)


def by_support(branches: Branches, parts: int = 10) -> dict[str, np.ndarray]:
    """KL by how well training data support a (state, action): `parts` groups of equal numbers of cells, rarest first, equal
    supports together. {"support" (mean), "count", "do" (mean KL), "low", "high" (its interval), "behavior" (KL weighted
    by the behavior policy, nan if unknown)}. Raises UserError without `support`."""
    if branches.support is None:
        raise UserError("branches hold no support: give the count or density of each (state, action) in the training data")
    cells, support = divergences.kl(branches), branches.support
    A = support.shape[1]
    order = np.argsort(support.ravel(), kind="stable")
    edges = np.unique(support.ravel()[order][np.arange(parts) * support.size // parts])  # where a part begins
    part = np.searchsorted(edges, support.ravel(), side="right") - 1  # (S * A,)
    weight = np.full(support.size, np.nan) if branches.behavior is None else divergences.weights(branches).ravel()
    flat, cluster = cells.ravel(), np.repeat(branches.cluster, A)
    rows = []
    for i in range(len(edges)):
        chosen = part == i
        value, (low, high), _ = intervals.ratio(flat[chosen], None, cluster[chosen])
        w = weight[chosen]
        on = float((w * flat[chosen]).sum() / w.sum()) if w.sum() > 0 else np.nan
        rows.append((support.ravel()[chosen].mean(), chosen.sum(), value, low, high, on))
    return dict(zip(("support", "count", "do", "low", "high", "behavior"), np.array(rows).T, strict=True))


def spurious_feature(pairs: Pairs) -> list[Metric]:
    """Contexts that differ in one code without consequences (a score, a lamp): what the edit changes in the model's
    prediction beyond what it changes in truth, as Jensen-Shannon divergence."""
    beyond = pairs.js_model - np.maximum(pairs.js_true, pairs.js_floor)
    return [mean(SPURIOUS_FEATURE, beyond, pairs.cluster, ceiling=0.0)]


def transfer_matrix(
    bits: Sequence[Sequence[np.ndarray]], clusters: Sequence[np.ndarray], names: Sequence[str]
) -> tuple[list[Metric], dict[str, np.ndarray]]:
    """Tier A: bits[i][j] (N_j,) per frame of agent j's held-out data under the model trained on agent i's (or on all but
    those of others): the matrix of means with intervals (P, P), and what a model of another agent costs more than one's own
    on the same frames, over all agents. Raises UserError unless bits is P by P with rows that agree."""
    P = len(names)
    if any(len(row) != P for row in bits) or len(bits) != P or len(clusters) != P:
        raise UserError(f"a transfer matrix of {P} agents takes {P} x {P} arrays of bits and {P} of clusters")
    cells = [[intervals.ratio(bits[i][j], None, clusters[j])[:2] for j in range(P)] for i in range(P)]
    matrix = {
        "mean": np.array([[value for value, _ in row] for row in cells]),
        "low": np.array([[ci[0] for _, ci in row] for row in cells]),
        "high": np.array([[ci[1] for _, ci in row] for row in cells]),
    }
    if P < 2:
        return [absent(MATRIX_GAP, "it compares at least two agents")], matrix
    extra = [np.mean([bits[i][j] for i in range(P) if i != j], 0) - bits[j][j] for j in range(P)]
    weight = [np.full(len(x), 1 / len(x)) for x in extra]  # each agent counts alike, however many its frames
    _, number_of = np.unique([f"{j}:{c}" for j in range(P) for c in clusters[j]], return_inverse=True)
    total = np.concatenate([x * w for x, w in zip(extra, weight, strict=True)])
    return [share(MATRIX_GAP, total, np.concatenate(weight), number_of, ceiling=0.0)], matrix
