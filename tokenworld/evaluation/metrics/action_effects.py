"""Do actions have the right effects? Tier B: branches.

Sensitivity is not correctness: a model with left and right swapped is as sensitive as a perfect one, and pays for it in code
length. Effects are compared code by code, and only where the true ones differ: a joint distance of frames would blame
actions for errors that all actions share.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from tokenworld.evaluation.records import Branches, Metric
from tokenworld.evaluation.statistics import intervals
from tokenworld.evaluation.statistics.measured import absent, mean, number, share
from tokenworld.evaluation.statistics.metric_spec import (
    ACTIONS,
    MetricSpec,
    Rule,
    above,
    arrays_of,
    below,
    measure,
    of_likelihood,
)

_spec = partial(
    MetricSpec, section=ACTIONS, topic="the effects of actions", tier="B", of_codes=True, is_expected=True,
    source="Yu et al. 2026, arXiv:2606.15032",
)  # fmt: skip
ERROR = _spec(
    "action_effects.error", "Error of the effect of actions",
    "Of the effect that changing the action has on the codes, the share that the model gets wrong. Continuous actions: pairs "
    "of a menu of 16 representative ones.",
    alias="M7.effect_error", unit="share", quality="Right effects of actions", picture="effects",
    rules=(Rule("WRONG_EFFECTS", "fault", above(0.5),
                lambda m: f"gets {min(1, m.value):.0%} of the effects of its actions wrong"),),
)  # fmt: skip
SPURIOUS = _spec(
    "action_effects.spurious", "Codes moved by the wrong action",
    "Number of codes that the model changes although the action does not affect them. \"@part1\": where two actions differ in "
    "their first part only.",
    alias="M7.spurious", unit="codes", is_expected=False,
    rules=(Rule("SPURIOUS_EFFECTS", "warning", above(0.1),
                lambda m: f"actions move {m.value:.2g} codes that they do not move in truth"),),
)  # fmt: skip
COSINE = _spec(
    "action_effects.cosine", "Agreement of the effects of actions",
    "Whether actions move codes in the right direction: 1 is right, 0 unrelated; swapped actions are near 0.",
    alias="M7.effect_cosine", direction="higher", quality="Effects of actions that agree with the world's",
    rules=(Rule("EFFECTS_DISAGREE", "fault", below(0.5),
                lambda m: f"the effects of its actions agree with the world's by {m.value:.2f} only"),),
)  # fmt: skip
SIZE_RATIO = _spec(
    "action_effects.size_ratio", "Size of the effect of actions",
    "Size of the model's effects over the size of the world's. It is 1 for swapped actions too.",
    alias="M7.sensitivity", unit="share", direction="none", is_expected=False,
    rules=(Rule("ACTIONS_WITHOUT_EFFECT", "fault", below(0.2),
                lambda m: f"its actions have {max(0, m.value):.0%} of their effect",
                covers=("EFFECTS_DISAGREE", "PAIR_TOO_ALIKE", "OVERLOOKS_AN_ACTION")),
           Rule("ACTIONS_TOO_STRONG", "warning", above(1.5), lambda m: f"its actions have {m.value:.0%} of their effect")),
)  # fmt: skip
MOVED = 1e-6  # a pair of actions moves a code if its distributions differ by more than this (sum of absolute differences)
CHUNK = 32  # states at once, to bound memory
MOVED_ESTIMATED = 0.1  # the same, where the true distributions are estimated from draws


@measure
@of_likelihood(ERROR, SPURIOUS, COSINE, SIZE_RATIO)
def counterfactual_effects(branches: Branches, after: int = 1, parts: np.ndarray | None = None) -> list[Metric]:
    """With D_j = p_j(. | a) - p_j(. | a') for each code j, state and pair of actions, and D'_j the model's:

    error           sum |D - D'| / sum |D| over the codes that the pair truly moves: 0 right, 1 none or as wrong as none
    spurious        how many codes it does not truly move the model moves (sum of total variations, per state and pair)
    cosine          cos(D, D') over the moved codes, 0 if the model has no effect: near 0 or below for swapped actions
    size_ratio      sum |D'| / sum |D| over all codes: 1 for swapped actions too

    `after`: the records hold the frames that many steps after a single different action; ids then end in "@after".
    parts (A, n): of each action, where actions have several. "spurious" is then also told of pairs that differ in one part
    only, with an id that ends in "@part" and its number: does each part move its own codes only?
    """
    specs = (ERROR, SPURIOUS, COSINE, SIZE_RATIO)
    if after != 1:
        specs = tuple(spec.variant(str(after), f"{spec.name}, {after} steps after") for spec in specs)
    error, spurious, cosine, size_ratio = specs
    sums, cluster = _sums(branches), branches.cluster
    reason = "" if branches.exact else f"effects below {MOVED_ESTIMATED} count as none, since they are estimated from draws"
    none = "no action has an effect in these states"
    return [
        share(error, sums["wrong"], sums["moved"], cluster, none=none, floor=1.0, ceiling=0.0, reason=reason),
        mean(spurious, sums["spurious"], cluster, ceiling=0.0, reason=reason),
        _cosine(cosine, sums, cluster, none, reason),
        share(size_ratio, sums["model"], sums["true"], cluster, none=none, floor=0.0, reason=reason),
        *([] if parts is None else _of_parts(spurious, branches, parts, reason)),
    ]


def _of_parts(spec: MetricSpec, branches: Branches, parts: np.ndarray, reason: str) -> list[Metric]:
    """What pairs of actions that differ in one part only move of what they do not move in truth, for each part."""
    a, b = np.triu_indices(len(parts), 1)
    differs = parts[a] != parts[b]  # (pairs, n)
    alone = differs & (differs.sum(1, keepdims=True) == 1)
    values, metrics = pair_sums(branches)["spurious"] / 2, []  # (S, pairs)
    for i, chosen in enumerate(alone.T):
        of_part = spec.variant(f"part{i + 1}", f"{spec.name}, part {i + 1} of the action")
        if chosen.any():
            metrics.append(mean(of_part, values[:, chosen].mean(1), branches.cluster, ceiling=0.0, reason=reason))
        else:
            metrics.append(absent(of_part, f"no two actions of the menu differ in part {i + 1} only"))
    return metrics


@arrays_of("effects")
@of_likelihood()
def effects(branches: Branches, names: Sequence[str] = ()) -> dict:
    """`effect_matrices`, and the names of the actions."""
    return effect_matrices(branches) | {"actions": names}


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
        sums = {
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
        for name, values in sums.items():
            parts.setdefault(name, []).append(values.sum(-1))
    return {name: np.concatenate(values) for name, values in parts.items()}


def _with_rest(marginal: np.ndarray, candidates: np.ndarray, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
    """(S, A, K, C) -> (n, A, K, C + 1): unused candidates hold nothing, the last column what is outside all candidates."""
    used = np.where(candidates[rows, None] >= 0, marginal[rows], 0.0)
    return np.concatenate([used, 1 - used.sum(-1, keepdims=True)], -1)


def _cosine(spec: MetricSpec, sums: dict[str, np.ndarray], cluster: np.ndarray, none: str, reason: str) -> Metric:
    if sums["true_square"].sum() == 0:
        return absent(spec, none, floor=0.0, ceiling=1.0)
    whole = [intervals.cluster_sums(sums[part], cluster) for part in ("along", "true_square", "model_square")]

    def cosine(weights: np.ndarray) -> np.ndarray:
        along, true, model = (weights @ part for part in whole)
        size = np.sqrt(true * model)
        return np.where(size > 0, along / np.where(size > 0, size, 1.0), 0.0)

    C = len(whole[0])
    ci = intervals.percentile(cosine(intervals.draws_of(C)), clusters=C)
    return number(spec, float(cosine(np.ones(C))), ci, C, len(cluster), floor=0.0, ceiling=1.0, reason=reason)
