"""Does the model use its actions (M6, tier A: held-out data), and do they have the right effects (M7, tier B: branches)?

Sensitivity is not correctness: a model with left and right swapped is as sensitive as a perfect one, and pays for it in code
length. Effects are compared code by code, and only where the true ones differ: a joint distance of frames would blame
actions for errors that all actions share.
"""

from __future__ import annotations

import numpy as np

from tokenworld.evaluation.records import Branches, Metric
from tokenworld.evaluation.statistics import intervals
from tokenworld.evaluation.statistics.measured import absent, mean, number, share

IDS = ("M7.effect_error", "M7.spurious", "M7.effect_cosine", "M7.sensitivity")
SILENT: dict[str, str] = {}  # numbers that no finding reads, and why
MOVED = 1e-6  # a pair of actions moves a code if its distributions differ by more than this (sum of absolute differences)
CHUNK = 32  # states at once, to bound memory
MOVED_ESTIMATED = 0.1  # the same, where the true distributions are estimated from draws


def counterfactual_effects(branches: Branches, after: int = 1) -> list[Metric]:
    """M7: with D_j = p_j(. | a) - p_j(. | a') for each code j, state and pair of actions, and D'_j the model's:

    effect_error    sum |D - D'| / sum |D| over the codes that the pair truly moves: 0 right, 1 none or as wrong as none
    spurious        how many codes it does not truly move the model moves (sum of total variations, per state and pair)
    effect_cosine   cos(D, D') over the moved codes, 0 if the model has no effect: near 0 or below for swapped actions
    sensitivity     sum |D'| / sum |D| over all codes: 1 for swapped actions too, which is why it is a legacy

    `after`: the records hold the frames that many steps after a single different action; ids then end in "@after".
    """
    at, suffix = ("", "") if after == 1 else (f", {after} steps after", f"@{after}")
    sums, cluster = _sums(branches), branches.cluster
    names = {
        "M7.effect_error": "Error of the effect of actions",
        "M7.spurious": "Codes moved by the wrong action",
        "M7.effect_cosine": "Agreement of the effects of actions",
        "M7.sensitivity": "Size of the effect of actions",
    }
    reason = "" if branches.exact else f"effects below {MOVED_ESTIMATED} count as none, since they are estimated from draws"
    common = dict(tier="B", reason=reason)
    none = "no action has an effect in these states"
    error, spurious, cosine, sensitivity = ((id + suffix, name + at) for id, name in names.items())
    return [
        share(*error, sums["wrong"], sums["moved"], cluster, none=none, floor=1.0, ceiling=0.0, **common),
        mean(*spurious, sums["spurious"], cluster, "codes", ceiling=0.0, **common),
        _cosine(*cosine, sums, cluster, none, common),
        share(*sensitivity, sums["model"], sums["true"], cluster, direction="none", none=none, floor=0.0, **common),
    ]


def effect_matrices(branches: Branches) -> dict[str, np.ndarray]:
    """(A, A) mean total variation per code, over states: "true" between p(. | a) and p(. | b), "model" between the q's, and
    "cross" between p(. | a) and q(. | b). A right model's cross is its true one; swapped actions swap its columns."""
    p, q = (_with_rest(m, branches.candidates) for m in (branches.marginal_p, branches.marginal_q))  # (S, A, K, C + 1)

    def between(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        rows = [np.abs(x[:, a, None] - y).sum(-1).mean((0, 2)) / 2 for a in range(x.shape[1])]
        return np.stack(rows)

    return {"true": between(p, p), "model": between(q, q), "cross": between(p, q)}


def _sums(branches: Branches) -> dict[str, np.ndarray]:
    """What the metrics are ratios of, (S,) each, over unordered pairs of actions, codes and their values."""
    sums = pair_sums(branches)
    return {name: values.mean(1) / 2 if name == "spurious" else values.sum(1) for name, values in sums.items()}


def pair_sums(branches: Branches) -> dict[str, np.ndarray]:
    """(S, pairs) each, over codes and their values; pairs of actions (a, b) with a < b, in order. With D the true difference
    of a code and D' the model's: "true" and "model" are the sums of |D| and |D'|, "moved" and "model_moved" the same over the
    codes that the pair moves, "spurious" of |D'| over the others; and over the moved ones "wrong" of |D - D'|, "along" of D D',
    "true_square" and "model_square" of their squares."""
    a, b = np.triu_indices(branches.p.shape[1], 1)
    threshold = MOVED if branches.exact else MOVED_ESTIMATED
    parts: dict[str, list[np.ndarray]] = {}
    for rows in np.array_split(np.arange(len(branches.p)), max(1, len(branches.p) // CHUNK)):
        p, q = (_with_rest(m, branches.candidates, rows) for m in (branches.marginal_p, branches.marginal_q))
        D, E = p[:, a] - p[:, b], q[:, a] - q[:, b]  # (n, pairs, K, C + 1)
        true, model = np.abs(D).sum(-1), np.abs(E).sum(-1)  # (n, pairs, K)
        moved = true > threshold
        found = {
            "true": true,
            "model": model,
            "moved": true * moved,
            "model_moved": model * moved,
            "wrong": np.abs(D - E).sum(-1) * moved,
            "spurious": model * ~moved,
            "along": (D * E).sum(-1) * moved,
            "true_square": np.square(D).sum(-1) * moved,
            "model_square": np.square(E).sum(-1) * moved,
        }
        for name, values in found.items():
            parts.setdefault(name, []).append(values.sum(-1))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _with_rest(marginal: np.ndarray, candidates: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """(S, A, K, C) -> (n, A, K, C + 1): unused candidates hold nothing, the last column what is outside all candidates."""
    used = np.where(candidates[rows, None] >= 0, marginal[rows], 0.0)
    return np.concatenate([used, 1 - used.sum(-1, keepdims=True)], -1)


def _cosine(id: str, name: str, sums: dict[str, np.ndarray], cluster: np.ndarray, none: str, common: dict) -> Metric:
    more = dict(unit="", direction="higher", floor=0.0, ceiling=1.0, **common)
    if sums["true_square"].sum() == 0:
        return absent(id, name, none, **{key: value for key, value in more.items() if key != "reason"})
    whole = [intervals.cluster_sums(sums[part], cluster) for part in ("along", "true_square", "model_square")]

    def cosine(weights: np.ndarray) -> np.ndarray:
        along, true, model = (weights @ part for part in whole)
        size = np.sqrt(true * model)
        return np.where(size > 0, along / np.where(size > 0, size, 1.0), 0.0)

    C = len(whole[0])
    ci = intervals.percentile(cosine(intervals.draws_of(C)), clusters=C)
    return number(id, name, float(cosine(np.ones(C))), ci, C, len(cluster), **more)
