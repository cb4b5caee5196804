"""Does time run forwards in the model? M11, experimental: what cannot be undone, and whether order can be told.

A policy makes an arrow of time too, and a world in balance has none: what real data do not show is not asked of a model.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tokenworld.errors import UserError
from tokenworld.evaluation.records import Metric, Rollouts, Undos
from tokenworld.evaluation.statistics import intervals, ranking
from tokenworld.evaluation.statistics.classifier import fit, fold_of
from tokenworld.evaluation.statistics.measured import absent, mean, number, share

IDS = ("M11.undo", "M11.arrow_gap", "M11.reachability")
SILENT: dict[str, str] = {}  # numbers that no finding reads, and why
ARROW = 0.55  # below this area under the curve real data have no arrow to speak of


def irreversibility(undos: Undos) -> list[Metric]:
    """M11: the model's probability of undoing in one step what cannot be undone, over all opportunities (if it is exactly 0,
    up to 3 / n by the rule of three), and how much worse the order of imagined frames can be told than that of real ones."""
    n, clusters = len(undos.mass), len(np.unique(undos.cluster))
    id, name, common = "M11.undo", "Mass on undoing what cannot be undone", dict(unit="probability", experimental=True)
    if n == 0:
        found = [absent(id, name, "nothing that could be undone was ever seen", tier="B", **common)]
    elif (undos.mass == 0).all():
        found = [number(id, name, 0.0, (0.0, intervals.rule_of_three(n)), clusters, n, tier="B", ceiling=0.0, **common,
                        values=undos.mass, clusters=undos.cluster)]  # fmt: skip
    else:
        found = [mean(id, name, undos.mass, undos.cluster, tier="B", ceiling=0.0, **common)]
    id, name = "M11.arrow_gap", "Loss of the arrow of time"
    common = dict(unit="AUC", direction="zero", experimental=True)
    if undos.auc_real is None or undos.auc_model is None:
        return [*found, absent(id, name, "no classifier of the order of frames was trained", "skipped", **common)]
    if undos.auc_real < ARROW:
        why = f"real frames have no arrow of time: their order is told with an AUC of {undos.auc_real:.2f}, below {ARROW}"
        return [*found, absent(id, name, why, **common)]
    gap = undos.auc_real - undos.auc_model
    return [*found, number(id, name, gap, undos.auc_gap_ci, clusters, n, floor=undos.auc_real - 0.5, ceiling=0.0, **common)]


def precedence(
    real: np.ndarray, model: np.ndarray, cluster: np.ndarray, gap: int = 1, folds: int = 5, seed: int = 0
) -> dict[str, float | tuple[float, float]]:
    """Which of two frames `gap` steps apart came first? One classifier, trained on real frames (S, T, F) of other clusters,
    asked about real and imagined ones (S, T, F): {"auc_real", "auc_model", "auc_gap_ci"}, as `Undos` takes them.

    Precedence estimation after Grinsztajn et al. 2021 (arXiv:2106.04480). Raises UserError if there are no such pairs or fewer
    than two clusters.
    """
    if real.shape[1] <= gap or len(np.unique(cluster)) < 2:
        raise UserError(f"order {gap} steps apart takes longer clips of at least two episodes, got {real.shape[1]} frames")
    score = {name: np.zeros(2 * len(x) * (x.shape[1] - gap)) for name, x in (("real", real), ("model", model))}
    rows = {name: np.tile(np.repeat(cluster, x.shape[1] - gap), 2) for name, x in (("real", real), ("model", model))}
    features = {name: _ordered(x, gap) for name, x in (("real", real), ("model", model))}
    label = {name: np.arange(len(s)) < len(s) // 2 for name, s in score.items()}
    for fold in fold_of(rows["real"], folds, seed):
        held_out = {name: np.isin(c, np.unique(rows["real"][fold])) for name, c in rows.items()}
        classify = fit(features["real"][~fold], label["real"][~fold], products=False)
        for name in score:
            score[name][held_out[name]] = classify(features[name][held_out[name]])
    found, _ = np.unique(cluster, return_inverse=True)
    weights = intervals.draws_of(len(found), draws=500)
    of = {name: np.searchsorted(found, c) for name, c in rows.items()}
    drawn = [
        ranking.auc(score["real"], label["real"], part[:, of["real"]])
        - ranking.auc(score["model"], label["model"], part[:, of["model"]])
        for part in np.array_split(weights, 20)
    ]
    return {
        "auc_real": float(ranking.auc(score["real"], label["real"])),
        "auc_model": float(ranking.auc(score["model"], label["model"])),
        "auc_gap_ci": intervals.percentile(np.concatenate(drawn), clusters=len(found)),
    }


def of_rollouts(rollouts: Rollouts, steps: int = 8) -> list[Metric]:
    """M11.arrow_gap of the first `steps` frames of rollouts, of pairs (real, imagined) that both live so long."""
    T = min(steps, rollouts.real.shape[2])
    both = rollouts.alive_real[:, :, T - 1] & rollouts.alive_model[:, :, T - 1]  # (S, R)
    cluster = np.repeat(rollouts.cluster, both.shape[1])[both.ravel()]
    name, common = "Loss of the arrow of time", dict(unit="AUC", direction="zero", experimental=True, tier="B")
    if len(np.unique(cluster)) < 2 or T < 2:
        return [absent("M11.arrow_gap", name, f"fewer than two episodes have rollouts that live for {T} steps", **common)]
    real, model = (x[:, :, :T][both] for x in (rollouts.real, rollouts.model))  # (n, T, F)
    found = irreversibility(Undos(cluster, np.zeros(0), **precedence(real, model, cluster)))
    return [replace(one, tier="B", n_samples=len(cluster)) for one in found if one.id == "M11.arrow_gap"]


def reachability(cluster: np.ndarray, forward: np.ndarray, backward: np.ndarray) -> list[Metric]:
    """M11: pairs of states of which the second can be reached from the first and not the other way round (N,): the share of
    them of which the model says the same, from whether it reaches forward and backward (N,) bool."""
    kept = np.asarray(forward, bool) & ~np.asarray(backward, bool)
    return [share("M11.reachability", "One-way paths that stay one-way", kept, None, cluster, "share", "higher", tier="B",
                  floor=0.0, ceiling=1.0, experimental=True)]  # fmt: skip


def _ordered(x: np.ndarray, gap: int) -> np.ndarray:
    """Pairs (2 * S * (T - gap), 2 F): first in their order, then turned round. What a pair shows turns its sign with it."""
    S, T, F = x.shape
    a, b = x[:, :-gap].reshape(-1, F).astype(float), x[:, gap:].reshape(-1, F).astype(float)
    pairs = np.concatenate([b - a, np.square(b) - np.square(a)], 1)
    return np.concatenate([pairs, -pairs])
