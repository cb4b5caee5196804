"""What can be measured without any environment, and does it predict what cannot?

A proxy is worth what its rank correlation with the criteria (next frame, effects of actions, policies, planning) over models
says, and no more: `meta_table` is to be read with each of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from tokenworld.errors import UserError
from tokenworld.evaluation.records import Drift, Metric, Rollouts
from tokenworld.evaluation.statistics import intervals, ranking
from tokenworld.evaluation.statistics.classifier import out_of_fold
from tokenworld.evaluation.statistics.divergences import capped
from tokenworld.evaluation.statistics.measured import absent, mean, number
from tokenworld.evaluation.statistics.metric_spec import IDENTITY, MetricSpec, measure, of_likelihood

_spec = partial(
    MetricSpec, section=IDENTITY, of_codes=True,
    silent="a proxy is worth what its rank correlation with the criteria says, see `meta_table`",
)  # fmt: skip
C2ST = _spec(
    "proxies.c2st", "Real and imagined told apart",
    "How well a small classifier tells imagined frames from real ones: 0.5 is not at all.", alias="M15.c2st", unit="AUC",
    tier="B", quality="Imagined clips like real ones", source="Lopez-Paz and Oquab 2017, arXiv:1610.06545",
)  # fmt: skip
DISAGREEMENT = _spec(
    "proxies.disagreement", "Disagreement of an ensemble", "How much models differ where there is no simulator to ask.",
    alias="M15.disagreement", unit="bits/frame",
)  # fmt: skip
SELF_CONSISTENCY = _spec(
    "proxies.self_consistency", "Bits of its own frames beyond real ones",
    "Whether the model finds its own frames more or less surprising than real ones.", alias="M15.self_consistency",
    unit="bits/frame", direction="zero",
)  # fmt: skip
UNCOVERED = _spec(
    "proxies.uncovered", "Where training data are silent", "The share of situations that the training data never hold.",
    alias="M15.uncovered", unit="share",
)  # fmt: skip


def c2st(
    real: np.ndarray, real_cluster: np.ndarray, model: np.ndarray, model_cluster: np.ndarray, *, spec: MetricSpec = C2ST,
    seed: int = 0,
) -> list[Metric]:  # fmt: skip
    """How well a small classifier tells imagined rows (M, F) from real ones (N, F), as the area under its curve on
    clusters that it has not seen (Lopez-Paz and Oquab 2017, arXiv:1610.06545): 0.5 not at all. It saturates at 1: ask for
    short clips too. The interval is over held-out clusters, with the classifiers as they are."""
    cluster = np.concatenate([real_cluster, model_cluster])
    if len(np.unique(real_cluster)) < 2 or len(np.unique(model_cluster)) < 2:
        return [absent(spec, "it takes at least two episodes", ceiling=0.5, floor=1.0)]
    label = np.arange(len(cluster)) >= len(real)
    score = out_of_fold(np.concatenate([real, model]).astype(float), label, cluster, seed=seed)
    return [c2st_from_scores(score, label, cluster, spec)]


def c2st_from_scores(score: np.ndarray, label: np.ndarray, cluster: np.ndarray, spec: MetricSpec = C2ST) -> Metric:
    """The same from scores (N,) of any classifier on rows that it has not seen, label (N,) true if imagined."""
    unique, row = np.unique(cluster, return_inverse=True)
    parts = np.array_split(intervals.draws_of(len(unique), draws=1000), 20)
    drawn = np.concatenate([ranking.auc(score, label, part[:, row]) for part in parts])
    ci = intervals.percentile(drawn[np.isfinite(drawn)], clusters=len(unique))
    return number(spec, float(ranking.auc(score, label)), ci, len(unique), len(score), floor=1.0, ceiling=0.5)


@measure
def c2st_by_length(rollouts: Rollouts, lengths: Sequence[int] = (1, 2, 4, 8)) -> list[Metric]:
    """The same, a variant for each length L, for the first L frames of rollouts, those that had not ended by then; lengths
    beyond T are left out."""
    metrics = []
    for L in (length for length in lengths if length <= rollouts.real.shape[2]):
        parts = []
        for clips, alive in ((rollouts.real, rollouts.alive_real), (rollouts.model, rollouts.alive_model)):
            lives = alive[:, :, L - 1]
            parts += [clips[:, :, :L][lives].reshape(int(lives.sum()), L * clips.shape[-1]),
                      np.repeat(rollouts.cluster, lives.shape[1])[lives.ravel()]]  # fmt: skip
        metrics += c2st(*parts, spec=C2ST.variant(str(L), f"Real and imagined clips of {L} frame{'s' * (L > 1)} told apart"))
    return metrics


def disagreement(q: np.ndarray, cluster: np.ndarray) -> list[Metric]:
    """How much E models (or one at E temperatures) differ, q (E, N, ..., C) their distributions over codes: bits of
    Jensen-Shannon divergence per row, summed over codes. Blind to errors that all share."""
    of_mean, mean_of = _entropy(q.mean(0)), _entropy(q).mean(0)  # (N, ...)
    apart = (of_mean - mean_of).reshape(len(cluster), -1).sum(1)
    return [mean(DISAGREEMENT, apart, cluster, ceiling=0.0)]


def self_consistency(own: np.ndarray, own_cluster: np.ndarray, real: np.ndarray, real_cluster: np.ndarray) -> list[Metric]:
    """Bits that a frame of the model's own rollouts costs it beyond one of real experience, own (N,), real (M,)."""
    value, ci, n = intervals.difference(capped(own), own_cluster, capped(real), real_cluster)
    return [number(SELF_CONSISTENCY, value, ci, n, len(own) + len(real), ceiling=0.0)]


@measure
@of_likelihood(SELF_CONSISTENCY)
def own_frames(drift: Drift) -> list[Metric]:
    """Self-consistency of imagined rollouts compared with the real futures from the same starts."""
    if drift.imagined_bits is None:
        return [absent(SELF_CONSISTENCY, "the model's own frames were not scored", "skipped")]
    _, M, T = drift.imagined_bits.shape
    own = drift.imagined_bits.ravel(), np.repeat(drift.cluster, M * T)
    return self_consistency(*own, drift.real_bits.ravel(), np.repeat(drift.cluster, T))


def uncovered(support: np.ndarray, cluster: np.ndarray) -> list[Metric]:
    """The share of rows whose context and action the training data never hold, from how often they do, support (N,)."""
    return [mean(UNCOVERED, (np.asarray(support) <= 0).astype(float), cluster, ceiling=0.0)]


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
