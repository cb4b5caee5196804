"""Does the model keep the state of its world? What histories mean to it.

After Vafa et al. 2024, arXiv:2406.03689, for stochastic worlds: two histories that lead to one state must be followed
by the same frames (compression), two that lead to states with different futures must not (distinction). Divergences are
Jensen-Shannon, in bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from tokenworld.evaluation.records import Metric, Pairs
from tokenworld.evaluation.statistics import intervals, ranking
from tokenworld.evaluation.statistics.measured import absent, mean, number, share
from tokenworld.evaluation.statistics.metric_spec import IDENTITY, MetricSpec, Rule, above, below, measure, of_likelihood

_spec = partial(
    MetricSpec, section=IDENTITY, topic="state identity", tier="B", of_codes=True, is_expected=True,
    source="Vafa et al. 2024, arXiv:2406.03689",
)  # fmt: skip
COMPRESSION = _spec(
    "state_identity.compression", "Divergence between histories of one state",
    "Jensen-Shannon divergence between the predictions after histories that lead to one state: 0 is right.",
    alias="M9.compression", unit="bits", quality="One state, one prediction",
    rules=(Rule("HISTORY_DEPENDENT", "fault", above(0.01),
                lambda m: f"predicts differently after histories that lead to one state ({m.value:.2f} bits)"),),
)  # fmt: skip
DISTINCTION = _spec(
    "state_identity.distinction_auc", "States distinguished",
    "Area under the curve: whether the model distinguishes histories of different states from those of one state.",
    alias="M9.distinction_auc", unit="AUC", direction="higher", quality="Different states distinguished",
    rules=(Rule("STATES_HARD_TO_TELL", "warning", below(0.75),
                lambda m: f"hardly tells different states from one state ({m.value:.2f} of the area under the curve)"),),
)  # fmt: skip
PRECISION = _spec(
    "state_identity.precision", "Distinctions that are true",
    "Of the histories that the model distinguishes, the share that really differs.",
    alias="M9.precision", unit="share", direction="higher", is_expected=False,
    rules=(Rule("SPLITS_STATES", "fault", below(0.5),
                lambda m: f"{1 - m.value:.0%} of the states that it tells apart are one"),),
)  # fmt: skip
RECALL = _spec(
    "state_identity.recall", "True distinctions that are made",
    "Of the states that really differ, the share that the model distinguishes.",
    alias="M9.recall", unit="share", direction="higher", quality="Different states that are distinguished",
    rules=(Rule("MERGES_STATES", "fault", below(0.5),
                lambda m: f"does not tell {1 - m.value:.0%} of the different states apart"),),
)  # fmt: skip
GRID = (0.001, 0.003, 0.01, 0.03, 0.1)  # bits


@measure
@of_likelihood(COMPRESSION, DISTINCTION, PRECISION, RECALL)
def state_identity(history_pairs: Pairs, tau: float = 0.01) -> list[Metric]:
    """Divergence between histories of one state beyond that of two estimates of the same prediction; how well divergence
    ranks pairs that truly differ by more than tau bits above pairs of one state; precision and recall of "more than tau
    bits apart" as a sign of it."""
    pairs = history_pairs
    same, apart, cluster = pairs.same.astype(bool), (~pairs.same.astype(bool)) & (pairs.js_true > tau), pairs.cluster
    beyond = pairs.js_model - pairs.js_floor
    distinct, true = beyond > tau, pairs.js_true > tau
    metrics = []
    if same.any():
        floor = float(beyond[~same].mean()) if (~same).any() else None
        states = None if pairs.state is None else pairs.state[same]
        metrics.append(mean(COMPRESSION, beyond[same], cluster[same], floor=floor, ceiling=0.0, states=states))
    else:
        metrics.append(absent(COMPRESSION, "no two histories lead to one state"))
    if same.any() and apart.any():
        metrics.append(_distinction(pairs, same, apart))
    else:
        what = "no two histories lead to one state" if not same.any() else f"no two states differ by more than {tau} bits"
        metrics.append(absent(DISTINCTION, what))
    for spec, of, none in ((PRECISION, distinct, "the model tells no histories apart"),
                           (RECALL, true, f"no two states differ by more than {tau} bits")):  # fmt: skip
        metrics.append(share(spec, distinct & true, of, cluster, samples=int(of.sum()), none=none, ceiling=1.0))
    return metrics


def _distinction(pairs: Pairs, same: np.ndarray, apart: np.ndarray) -> Metric:
    rows = same | apart
    score, positive = (pairs.js_model - pairs.js_floor)[rows], apart[rows]
    unique, row = np.unique(pairs.cluster[rows], return_inverse=True)
    weights = intervals.draws_of(len(unique), draws=1000)
    drawn = np.concatenate([ranking.auc(score, positive, part[:, row]) for part in np.array_split(weights, 20)])
    ci = intervals.percentile(drawn[np.isfinite(drawn)], clusters=len(unique))
    value = float(ranking.auc(score, positive))
    return number(DISTINCTION, value, ci, len(unique), int(rows.sum()), floor=0.5, ceiling=1.0)


def by_threshold(pairs: Pairs, grid: Sequence[float] = GRID) -> dict[str, np.ndarray]:
    """For each threshold in bits: {"threshold", "merged" (share of pairs of one state that are not told apart), "precision",
    "recall" (of telling apart what differs by more); nan where there is nothing}."""
    beyond, rows = pairs.js_model - pairs.js_floor, []
    for tau in grid:
        predicted, true = beyond > tau, pairs.js_true > tau
        cases = ((~predicted & pairs.same, pairs.same), (predicted & true, predicted), (predicted & true, true))
        rows.append((tau, *(hit.sum() / of.sum() if of.any() else np.nan for hit, of in cases)))
    return dict(zip(("threshold", "merged", "precision", "recall"), np.array(rows).T, strict=True))
