"""Does time run forward in the model? Experimental: what cannot be undone, and whether order can be told.

A policy makes an arrow of time too, and a world in balance has none: what real data do not show is not asked of a model.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from tokenworld.errors import UserError
from tokenworld.evaluation.records import Metric, Rollouts, Undos
from tokenworld.evaluation.statistics import intervals, ranking
from tokenworld.evaluation.statistics.classifier import fit, fold_of
from tokenworld.evaluation.statistics.measured import absent, mean, number, share
from tokenworld.evaluation.statistics.metric_spec import IDENTITY, MetricSpec, Rule, above, below, measure, of_likelihood

_spec = partial(MetricSpec, section=IDENTITY, topic="the direction of time", tier="B", experimental=True)
UNDO_MASS = _spec(
    "arrow_of_time.undo_mass", "Mass on undoing what cannot be undone",
    "Probability that the model gives to undoing what cannot be undone.", alias="M11.undo", unit="probability", picture="undos",
    source="Rahaman et al. 2020, arXiv:1907.01285",
    rules=(Rule("UNDOES", "fault", above(0.01),
                lambda m: f"undoes what cannot be undone in {m.value:.0%} of the opportunities"),),
)  # fmt: skip
AUC_GAP = _spec(
    "arrow_of_time.auc_gap", "Loss of the arrow of time",
    "How much harder it is to tell forward from backward in imagined rollouts than in reality.", alias="M11.arrow_gap",
    unit="AUC", direction="zero", quality="Order of time kept", source="Grinsztajn et al. 2021, arXiv:2106.04480",
    rules=(Rule("LOSES_THE_ARROW_OF_TIME", "warning", above(0.1),
                lambda m: f"its rollouts lose the order of time ({m.value:.2f} of the area under the curve)"),
           Rule("ADDS_AN_ARROW_OF_TIME", "warning", below(-0.1),
                lambda m: f"its rollouts have more order in time than reality ({-m.value:.2f} of the area under the curve)")),
)  # fmt: skip
REACHABILITY = _spec(
    "arrow_of_time.reachability", "One-way paths that stay one-way",
    "Of the one-way paths of the world, the share that is one-way in the model.", alias="M11.reachability", unit="share",
    direction="higher", quality="One-way paths kept", source="Rahaman et al. 2020, arXiv:1907.01285",
    rules=(Rule("LOSES_ONE_WAY_PATHS", "fault", below(0.9),
                lambda m: f"{1 - m.value:.0%} of the one-way paths can be gone back"),),
)  # fmt: skip
ARROW = 0.55  # below this area under the curve real data have no arrow to speak of


def irreversibility(undos: Undos) -> list[Metric]:
    """What is undone, and the gap between the arrows of time of the same record."""
    return [*undoing(undos), _auc_gap(undos)]


@measure
@of_likelihood(UNDO_MASS)
def undoing(undos: Undos) -> list[Metric]:
    """The model's probability of undoing in one step what cannot be undone, over all opportunities (if it is exactly 0, up to
    3 / n by the rule of three)."""
    n, clusters = len(undos.mass), len(np.unique(undos.cluster))
    if n == 0:
        return [absent(UNDO_MASS, "nothing that could be undone was ever seen")]
    if (undos.mass == 0).all():
        ci = (0.0, intervals.rule_of_three(n))
        return [number(UNDO_MASS, 0.0, ci, clusters, n, ceiling=0.0, values=undos.mass, clusters=undos.cluster)]
    return [mean(UNDO_MASS, undos.mass, undos.cluster, ceiling=0.0)]


def _auc_gap(undos: Undos) -> Metric:
    """How much worse the order of imagined frames can be told than that of real ones."""
    if undos.auc_real is None or undos.auc_model is None:
        return absent(AUC_GAP, "no classifier of the order of frames was trained", "skipped")
    if undos.auc_real < ARROW:
        why = f"real frames have no arrow of time: their order is told with an AUC of {undos.auc_real:.2f}, below {ARROW}"
        return absent(AUC_GAP, why)
    n, clusters = len(undos.mass), len(np.unique(undos.cluster))
    gap = undos.auc_real - undos.auc_model
    return number(AUC_GAP, gap, undos.auc_gap_ci, clusters, n, floor=undos.auc_real - 0.5, ceiling=0.0)


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
    unique, _ = np.unique(cluster, return_inverse=True)
    weights = intervals.draws_of(len(unique), draws=500)
    of = {name: np.searchsorted(unique, c) for name, c in rows.items()}
    drawn = [
        ranking.auc(score["real"], label["real"], part[:, of["real"]])
        - ranking.auc(score["model"], label["model"], part[:, of["model"]])
        for part in np.array_split(weights, 20)
    ]
    return {
        "auc_real": float(ranking.auc(score["real"], label["real"])),
        "auc_model": float(ranking.auc(score["model"], label["model"])),
        "auc_gap_ci": intervals.percentile(np.concatenate(drawn), clusters=len(unique)),
    }


@measure
def of_rollouts(rollouts: Rollouts, steps: int = 8) -> list[Metric]:
    """The gap between the arrows of time of the first `steps` frames, of pairs of rollouts that both live so long."""
    T = min(steps, rollouts.real.shape[2])
    both = rollouts.alive_real[:, :, T - 1] & rollouts.alive_model[:, :, T - 1]  # (S, R)
    cluster = np.repeat(rollouts.cluster, both.shape[1])[both.ravel()]
    if len(np.unique(cluster)) < 2 or T < 2:
        return [absent(AUC_GAP, f"fewer than two episodes have rollouts that live for {T} steps")]
    real, model = (x[:, :, :T][both] for x in (rollouts.real, rollouts.model))  # (n, T, F)
    gap = _auc_gap(Undos(cluster, np.zeros(0), **precedence(real, model, cluster)))
    return [replace(gap, n_samples=len(cluster))]


def reachability(cluster: np.ndarray, forward: np.ndarray, backward: np.ndarray) -> list[Metric]:
    """Pairs of states of which the second can be reached from the first and not the other way round (N,): the share of
    them of which the model says the same, from whether it reaches forward and backward (N,) bool."""
    kept = np.asarray(forward, bool) & ~np.asarray(backward, bool)
    return [share(REACHABILITY, kept, None, cluster, floor=0.0, ceiling=1.0)]


def _ordered(x: np.ndarray, gap: int) -> np.ndarray:
    """Pairs (2 * S * (T - gap), 2 F): first in their order, then turned round. What a pair shows turns its sign with it."""
    S, T, F = x.shape
    a, b = x[:, :-gap].reshape(-1, F).astype(float), x[:, gap:].reshape(-1, F).astype(float)
    pairs = np.concatenate([b - a, np.square(b) - np.square(a)], 1)
    return np.concatenate([pairs, -pairs])
