"""What can be measured without any environment, and does it predict what cannot? M15.

A proxy is worth what its rank correlation with the criteria (M3, M7, M12, M13) over models says, and no more: `meta_table`
is to be read with each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tokenworld.errors import UserError
from tokenworld.evaluation.records import Drift, Metric, Rollouts
from tokenworld.evaluation.statistics import intervals, ranking
from tokenworld.evaluation.statistics.classifier import out_of_fold
from tokenworld.evaluation.statistics.divergences import capped
from tokenworld.evaluation.statistics.measured import absent, mean, number

IDS = ("M15.c2st", "M15.disagreement", "M15.self_consistency", "M15.uncovered")
WORTH = "a proxy is worth what its rank correlation with the criteria says, see `meta_table`"
SILENT = dict.fromkeys(IDS, WORTH)  # numbers that no finding reads, and why
TOLD = "Real and imagined told apart"


def c2st(
    real: np.ndarray,
    real_cluster: np.ndarray,
    model: np.ndarray,
    model_cluster: np.ndarray,
    *,
    id: str = "M15.c2st",
    name: str = "Real and imagined told apart",
    seed: int = 0,
) -> list[Metric]:
    """M15: how well a small classifier tells imagined rows (M, F) from real ones (N, F), as the area under its curve on
    clusters that it has not seen (Lopez-Paz and Oquab 2017, arXiv:1610.06545): 0.5 not at all. It saturates at 1: ask for
    short clips too. The interval is over held-out clusters, with the classifiers as they are."""
    common = dict(unit="AUC", ceiling=0.5, floor=1.0)
    cluster = np.concatenate([real_cluster, model_cluster])
    if len(np.unique(real_cluster)) < 2 or len(np.unique(model_cluster)) < 2:
        return [absent(id, name, "it takes at least two episodes", **common)]
    label = np.arange(len(cluster)) >= len(real)
    score = out_of_fold(np.concatenate([real, model]).astype(float), label, cluster, seed=seed)
    return [c2st_from_scores(score, label, cluster, id=id, name=name)]


def c2st_from_scores(
    score: np.ndarray, label: np.ndarray, cluster: np.ndarray, *, id: str = "M15.c2st", name: str = TOLD
) -> Metric:
    """The same from scores (N,) of any classifier on rows that it has not seen, label (N,) true if imagined."""
    found, row = np.unique(cluster, return_inverse=True)
    parts = np.array_split(intervals.draws_of(len(found), draws=1000), 20)
    drawn = np.concatenate([ranking.auc(score, label, part[:, row]) for part in parts])
    ci = intervals.percentile(drawn[np.isfinite(drawn)], clusters=len(found))
    return number(id, name, float(ranking.auc(score, label)), ci, len(found), len(score), unit="AUC", floor=1.0, ceiling=0.5)


def c2st_by_length(rollouts: Rollouts, lengths: Sequence[int] = (1, 2, 4, 8)) -> list[Metric]:
    """M15.c2st@L: the same for the first L frames of rollouts, those that had not ended by then; lengths beyond T are left
    out."""
    found = []
    for L in (length for length in lengths if length <= rollouts.real.shape[2]):
        parts = []
        for clips, alive in ((rollouts.real, rollouts.alive_real), (rollouts.model, rollouts.alive_model)):
            lives = alive[:, :, L - 1]
            parts += [clips[:, :, :L][lives].reshape(int(lives.sum()), L * clips.shape[-1]),
                      np.repeat(rollouts.cluster, lives.shape[1])[lives.ravel()]]  # fmt: skip
        found += c2st(*parts, id=f"M15.c2st@{L}", name=f"Real and imagined clips of {L} frames told apart")
    return found


def disagreement(q: np.ndarray, cluster: np.ndarray) -> list[Metric]:
    """M15: how much E models (or one at E temperatures) differ, q (E, N, ..., C) their distributions over codes: bits of
    Jensen-Shannon divergence per row, summed over codes. Blind to errors that all share."""
    of_mean, mean_of = _entropy(q.mean(0)), _entropy(q).mean(0)  # (N, ...)
    apart = (of_mean - mean_of).reshape(len(cluster), -1).sum(1)
    return [mean("M15.disagreement", "Disagreement of an ensemble", apart, cluster, "bits/frame", ceiling=0.0)]


def self_consistency(own: np.ndarray, own_cluster: np.ndarray, real: np.ndarray, real_cluster: np.ndarray) -> list[Metric]:
    """M15: bits that a frame of the model's own rollouts costs it beyond one of real experience, own (N,), real (M,)."""
    value, ci, n = intervals.difference(capped(own), own_cluster, capped(real), real_cluster)
    name = "Bits of its own frames beyond real ones"
    return [number("M15.self_consistency", name, value, ci, n, len(own) + len(real), unit="bits/frame", direction="zero",
                   ceiling=0.0)]  # fmt: skip


def own_frames(drift: Drift) -> list[Metric]:
    """M15.self_consistency of dreams beside the real futures from the same starts."""
    _, M, T = drift.dreamt_bits.shape
    own = drift.dreamt_bits.ravel(), np.repeat(drift.cluster, M * T)
    return self_consistency(*own, drift.real_bits.ravel(), np.repeat(drift.cluster, T))


def uncovered(support: np.ndarray, cluster: np.ndarray) -> list[Metric]:
    """M15: the share of rows whose context and action the training data never hold, from how often they do, support (N,)."""
    return [mean("M15.uncovered", "Where training data are silent", (np.asarray(support) <= 0).astype(float), cluster, "share",
                 ceiling=0.0)]  # fmt: skip


def meta_table(proxies: Mapping[str, np.ndarray], criteria: Mapping[str, np.ndarray], seed: int = 0) -> dict:
    """Does a proxy predict a criterion? Spearman over M models, proxies and criteria name -> (M,), nan where one was not
    measured: {"proxies", "criteria": names, "rho", "low", "high" (proxies, criteria): 95 % interval over models, "models": how
    many had both}. nan for fewer than four. Raises UserError if lengths differ."""
    lengths = {len(x) for x in (*proxies.values(), *criteria.values())}
    if len(lengths) != 1:
        raise UserError(f"a meta table takes one number of each proxy and criterion per model, got lengths {sorted(lengths)}")
    shape = (len(proxies), len(criteria))
    rho, low, high, models = (np.full(shape, np.nan) for _ in range(4))
    for i, proxy in enumerate(proxies.values()):
        for j, criterion in enumerate(criteria.values()):
            x, y = np.asarray(proxy, float), np.asarray(criterion, float)
            both = np.isfinite(x) & np.isfinite(y)
            x, y, n = x[both], y[both], int(both.sum())
            models[i, j] = n
            if n >= 4:
                rho[i, j] = ranking.spearman(x, y)
                rows = np.random.default_rng(seed).integers(n, size=(intervals.DRAWS, n))
                drawn = ranking.spearman(x[rows], y[rows])
                low[i, j], high[i, j] = intervals.percentile(drawn[np.isfinite(drawn)])
    return {"proxies": tuple(proxies), "criteria": tuple(criteria), "rho": rho, "low": low, "high": high, "models": models}


def _entropy(q: np.ndarray) -> np.ndarray:
    return -(q * np.log2(np.where(q > 0, q, 1.0))).sum(-1)
