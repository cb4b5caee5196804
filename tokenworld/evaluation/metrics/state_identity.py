"""Does the model keep the state of its world? M9: what histories mean to it. M10: what it remembers.

M9 (after Vafa et al. 2024, arXiv:2406.03689, for stochastic worlds): two histories that lead to one state must be followed
by the same frames (compression), two that lead to states with different futures must not (distinction). Divergences are
Jensen-Shannon, in bits. M10: a bit is planted, hidden for k steps and asked for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenworld.evaluation.records import Metric, Pairs
from tokenworld.evaluation.statistics import intervals, ranking
from tokenworld.evaluation.statistics.measured import absent, mean, number, share

IDS = ("M9.compression", "M9.distinction_auc", "M9.precision", "M9.recall")
SILENT: dict[str, str] = {}  # numbers that no finding reads, and why
GRID = (0.001, 0.003, 0.01, 0.03, 0.1)  # bits


def state_identity(pairs: Pairs, tau: float = 0.01) -> list[Metric]:
    """M9: divergence between histories of one state beyond that of two estimates of the same prediction; how well divergence
    ranks pairs that truly differ by more than tau bits above pairs of one state; precision and recall of "more than tau
    bits apart" as a sign of it."""
    same, apart, cluster = pairs.same.astype(bool), (~pairs.same.astype(bool)) & (pairs.js_true > tau), pairs.cluster
    beyond = pairs.js_model - pairs.js_floor
    told, true = beyond > tau, pairs.js_true > tau
    names = {"M9.compression": "Divergence between histories of one state", "M9.distinction_auc": "States told apart",
             "M9.precision": "Distinctions that are true", "M9.recall": "True distinctions that are made"}  # fmt: skip
    common = dict(tier="B")
    found = []
    if same.any():
        floor = float(beyond[~same].mean()) if (~same).any() else None
        found.append(mean("M9.compression", names["M9.compression"], beyond[same], cluster[same], "bits", **common, floor=floor,
                          ceiling=0.0, states=None if pairs.state is None else pairs.state[same]))  # fmt: skip
    else:
        found.append(absent("M9.compression", names["M9.compression"], "no two histories lead to one state", **common))
    if same.any() and apart.any():
        found.append(_distinction(names["M9.distinction_auc"], pairs, same, apart))
    else:
        what = "no two histories lead to one state" if not same.any() else f"no two states differ by more than {tau} bits"
        found.append(absent("M9.distinction_auc", names["M9.distinction_auc"], what, **common))
    for id, of, none in (("M9.precision", told, "the model tells no histories apart"),
                         ("M9.recall", true, f"no two states differ by more than {tau} bits")):  # fmt: skip
        found.append(share(id, names[id], told & true, of, cluster, "share", "higher", samples=int(of.sum()), none=none,
                           **common, ceiling=1.0))  # fmt: skip
    return found


def _distinction(name: str, pairs: Pairs, same: np.ndarray, apart: np.ndarray) -> Metric:
    rows = same | apart
    score, positive = (pairs.js_model - pairs.js_floor)[rows], apart[rows]
    found, row = np.unique(pairs.cluster[rows], return_inverse=True)
    weights = intervals.draws_of(len(found), draws=1000)
    drawn = np.concatenate([ranking.auc(score, positive, part[:, row]) for part in np.array_split(weights, 20)])
    return number("M9.distinction_auc", name, float(ranking.auc(score, positive)),
                  intervals.percentile(drawn[np.isfinite(drawn)], clusters=len(found)), len(found), int(rows.sum()), unit="AUC",
                  direction="higher", tier="B", floor=0.5, ceiling=1.0)  # fmt: skip


def by_threshold(pairs: Pairs, grid: Sequence[float] = GRID) -> dict[str, np.ndarray]:
    """For each threshold in bits: {"threshold", "merged" (share of pairs of one state that are not told apart), "precision",
    "recall" (of telling apart what differs by more); nan where there is nothing}."""
    beyond, rows = pairs.js_model - pairs.js_floor, []
    for tau in grid:
        told, true = beyond > tau, pairs.js_true > tau
        cases = ((~told & pairs.same, pairs.same), (told & true, told), (told & true, true))
        rows.append((tau, *(hit.sum() / of.sum() if of.any() else np.nan for hit, of in cases)))
    return dict(zip(("threshold", "merged", "precision", "recall"), np.array(rows).T, strict=True))
