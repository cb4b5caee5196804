"""Causally right, or only predictive of one agent? M8: the same model under another choice of actions, and another agent.

A learner is right where it has data; off the support of its data nobody is. So a gap between policies must be read against
support: a gap among well-supported states and actions is a wrong cause, a gap among rare ones is coverage. Gaps can be
negative (a model may be worse on policy): both divergences are reported, not only their difference.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenworld.errors import UserError
from tokenworld.evaluation.records import Branches, Metric, Pairs
from tokenworld.evaluation.statistics import divergences, intervals
from tokenworld.evaluation.statistics.measured import absent, mean, number, share

IDS = ("M8.kl_behaviour", "M8.kl_do", "M8.do_gap", "M8.do_gap_supported", "M8.kl_other", "M8.transfer_gap",
       "M8.spurious_feature", "M8.matrix_gap")  # fmt: skip
SILENT = {  # numbers that no finding reads, and why
    "M8.kl_behaviour": "M8.do_gap compares it with M8.kl_do; M2.dcal_joint and M2.dh judge its parts",
    "M8.kl_do": "M8.do_gap compares it with M8.kl_behaviour",
    "M8.kl_other": "M8.transfer_gap compares it with M8.kl_behaviour",
    "M8.do_gap_supported": "it says what kind of fault M8.do_gap is: CAUSALLY_CONFUSED and UNRELIABLE_OFF_SUPPORT read it",
}
NAMES = {
    "M8.kl_behaviour": "KL divergence under the behaviour policy",
    "M8.kl_do": "KL divergence under actions set at random",
    "M8.do_gap": "What setting actions at random adds",
    "M8.do_gap_supported": "The same, where training data are plenty",
    "M8.kl_other": "KL divergence under another agent",
    "M8.transfer_gap": "What another agent adds",
}


def causal_gap(branches: Branches, other: Branches | None = None) -> list[Metric]:
    """M8, tier B: KL(p || q) at the same states under the behaviour policy and under do(a ~ uniform), and their difference;
    with `other`, branches at the states and under the policy of another agent, its KL and difference too."""
    absences = {}
    cells, cluster = divergences.kl(branches), branches.cluster  # (S, A)
    common = dict(unit="bits/frame", tier="B", reason="" if branches.exact else divergences.ESTIMATED)
    at = dict(ceiling=0.0, states=branches.hash)
    found = {"M8.kl_do": mean("M8.kl_do", NAMES["M8.kl_do"], cells.mean(1), cluster, **common, **at)}
    if branches.behaviour is None:
        absences |= dict.fromkeys(("M8.kl_behaviour", "M8.do_gap", "M8.do_gap_supported"), "the behaviour policy is not known")
    else:
        on = (divergences.weights(branches) * cells).sum(1)
        found["M8.kl_behaviour"] = mean("M8.kl_behaviour", NAMES["M8.kl_behaviour"], on, cluster, **common, **at)
        found["M8.do_gap"] = mean("M8.do_gap", NAMES["M8.do_gap"], cells.mean(1) - on, cluster, **common, **at)
        if branches.support is None:
            absences["M8.do_gap_supported"] = "it is not known how often training data hold a state and action"
        else:
            found["M8.do_gap_supported"] = _supported(branches, cells, common)
    if other is None or other.behaviour is None:
        why = "there are no states of another agent" if other is None else "the other agent's policy is not known"
        absences |= dict.fromkeys(("M8.kl_other", "M8.transfer_gap"), why)
    else:
        theirs = (divergences.weights(other) * divergences.kl(other)).sum(1)
        found["M8.kl_other"] = mean("M8.kl_other", NAMES["M8.kl_other"], theirs, other.cluster, **common, ceiling=0.0,
                                    states=other.hash)  # fmt: skip
        if branches.behaviour is None:
            absences["M8.transfer_gap"] = "the behaviour policy is not known"
        else:
            value, ci, n = intervals.difference(theirs, other.cluster, on, cluster)
            found["M8.transfer_gap"] = number("M8.transfer_gap", NAMES["M8.transfer_gap"], value, ci, n,
                                              len(on) + len(theirs), **common, ceiling=0.0)  # fmt: skip
    for id, why in absences.items():
        found[id] = absent(id, NAMES[id], why, "skipped", unit="bits/frame", tier="B")
    return [found[id] for id in NAMES]


def _supported(branches: Branches, cells: np.ndarray, common: dict) -> Metric:
    """The do gap over the cells (state, action) whose support is at least the median: of two weighted means."""
    id = "M8.do_gap_supported"
    high = branches.support >= np.median(branches.support)
    weight = divergences.weights(branches) * high
    sums = np.stack([(cells * high).sum(1), high.sum(1), (cells * weight).sum(1), weight.sum(1)], 1)  # (S, 4)
    found, row = np.unique(branches.cluster, return_inverse=True)
    whole = np.stack([np.bincount(row, weights=sums[:, i]) for i in range(4)], 1)
    if not (whole.sum(0)[[1, 3]] > 0).all():
        return absent(id, NAMES[id], "the behaviour policy never takes a well-supported action", unit="bits/frame", tier="B")
    drawn = intervals.draws_of(len(found)) @ whole
    drawn = drawn[(drawn[:, 1] > 0) & (drawn[:, 3] > 0)]
    total, gaps = whole.sum(0), drawn[:, 0] / drawn[:, 1] - drawn[:, 2] / drawn[:, 3]
    value = total[0] / total[1] - total[2] / total[3]
    ci = intervals.percentile(gaps, clusters=len(found))
    return number(id, NAMES[id], value, ci, len(found), int(high.sum()), **common, ceiling=0.0)


def by_support(branches: Branches, parts: int = 10) -> dict[str, np.ndarray]:
    """KL by how well training data support a (state, action): `parts` groups of equal numbers of cells, rarest first, equal
    supports together. {"support" (mean), "count", "do" (mean KL), "low", "high" (its interval), "behaviour" (KL weighted
    by the behaviour policy, nan if unknown)}. Raises UserError without `support`."""
    if branches.support is None:
        raise UserError("branches hold no support: give the count or density of each (state, action) in the training data")
    cells, support = divergences.kl(branches), branches.support
    A = support.shape[1]
    order = np.argsort(support.ravel(), kind="stable")
    edges = np.unique(support.ravel()[order][np.arange(parts) * support.size // parts])  # where a part begins
    part = np.searchsorted(edges, support.ravel(), side="right") - 1  # (S * A,)
    weight = np.full(support.size, np.nan) if branches.behaviour is None else divergences.weights(branches).ravel()
    flat, cluster = cells.ravel(), np.repeat(branches.cluster, A)
    rows = []
    for i in range(len(edges)):
        chosen = part == i
        value, (low, high), _ = intervals.ratio(flat[chosen], None, cluster[chosen])
        w = weight[chosen]
        on = float((w * flat[chosen]).sum() / w.sum()) if w.sum() > 0 else np.nan
        rows.append((support.ravel()[chosen].mean(), chosen.sum(), value, low, high, on))
    return dict(zip(("support", "count", "do", "low", "high", "behaviour"), np.array(rows).T, strict=True))


def spurious_feature(pairs: Pairs) -> list[Metric]:
    """M8: contexts that differ in one code without consequences (a score, a lamp): what the edit changes in the model's
    prediction beyond what it changes in truth, as Jensen-Shannon divergence."""
    beyond = pairs.js_model - np.maximum(pairs.js_true, pairs.js_floor)
    return [mean("M8.spurious_feature", "What a feature without consequences changes", beyond, pairs.cluster, "bits", "zero",
                 tier="B", ceiling=0.0)]  # fmt: skip


def transfer_matrix(
    bits: Sequence[Sequence[np.ndarray]], clusters: Sequence[np.ndarray], names: Sequence[str]
) -> tuple[list[Metric], dict[str, np.ndarray]]:
    """M8, tier A: bits[i][j] (N_j,) per frame of agent j's held-out data under the model trained on agent i's (or on all but
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
    id, name = "M8.matrix_gap", "Bits of a frame that a model of another agent costs more"
    if P < 2:
        return [absent(id, name, "it compares at least two agents", unit="bits/frame")], matrix
    extra = [np.mean([bits[i][j] for i in range(P) if i != j], 0) - bits[j][j] for j in range(P)]
    weight = [np.full(len(x), 1 / len(x)) for x in extra]  # each agent counts alike, however many its frames
    _, number_of = np.unique([f"{j}:{c}" for j in range(P) for c in clusters[j]], return_inverse=True)
    gap = share(id, name, np.concatenate([x * w for x, w in zip(extra, weight, strict=True)]), np.concatenate(weight),
                number_of, "bits/frame", ceiling=0.0)  # fmt: skip
    return [gap], matrix
