"""What the model remembers: a bit is planted, hidden for k steps and asked for."""

from __future__ import annotations

from functools import partial

import numpy as np

from tokenworld.evaluation.records import Metric, Recalls
from tokenworld.evaluation.statistics import intervals
from tokenworld.evaluation.statistics.measured import absent, mean, number
from tokenworld.evaluation.statistics.metric_spec import IDENTITY, MetricSpec, Rule, arrays_of, below, measure

_spec = partial(MetricSpec, section=IDENTITY, topic="memory", tier="B", source="World Stability 2025, arXiv:2503.08122")
RECALL = _spec(
    "memory.recall", "A bit recalled after the longest delay",
    "How often a hidden bit is recalled after the longest delay of at most ten steps. Longer delays: @STEPS. Floor: guessing.",
    alias="M10.recall", unit="share", direction="higher", quality="A hidden bit recalled", picture="memory", is_expected=True,
    rules=(Rule("FORGETS", "fault", below(0.75),
                lambda m: f"forgets what is hidden (recalls {m.value:.0%}, chance is {m.floor or 0.5:.0%})"),),
)  # fmt: skip
HALF_LIFE = _spec(
    "memory.half_life", "Steps until half of what was remembered is lost", "Steps until half of the information is lost.",
    alias="M10.half_life", unit="steps", direction="higher",
    silent="how long a bit must be remembered is not known: recall judges the longest delay",
)  # fmt: skip
RETURN = _spec(
    "memory.return_distance", "Distance to the start after an action and its inverse, beyond the world's",
    "How far the model ends from the start after an action and its inverse, beyond the distance in the world.",
    alias="M10.return", unit="distance", silent="a distance without a scale",
)  # fmt: skip


JUDGED = 10  # steps: a longer delay is shown and not judged, since most windows are shorter


@measure
def recall(recalls: Recalls) -> list[Metric]:
    """Accuracy of the bit that the model gives back after the longest delay that is judged and after each longer one, with an
    exact interval (rows count as independent: one was planted in each); the delay at which the bits of information kept have
    halved since the shortest; and, of an action followed by its inverse, how much farther from the start the model ends than
    the world."""
    curve, right = recall_by_delay(recalls), _right(recalls)
    delays = curve["delay"].astype(int)
    judged = int(max(delays[delays <= JUDGED], default=delays[0]))
    metrics = [_half_life(recalls, curve)]
    for k, low, high in zip(delays, curve["low"], curve["high"], strict=True):
        chosen, name = recalls.delay == k, f"A bit recalled after {k} steps"
        if k == judged or k > JUDGED:
            spec = RECALL if k == judged else RECALL.variant(str(k), name)
            metrics.append(number(
                spec, float(right[chosen].mean()), (low, high), len(np.unique(recalls.cluster[chosen])), int(chosen.sum()),
                name=name, floor=0.5, ceiling=1.0, values=right[chosen], clusters=recalls.cluster[chosen],
            ))  # fmt: skip
    if recalls.return_distance is None or recalls.return_distance_real is None:
        return [*metrics, absent(RETURN, "no action was followed by its inverse", "skipped")]
    beyond = recalls.return_distance - recalls.return_distance_real
    return [*metrics, mean(RETURN, beyond, recalls.cluster, ceiling=0.0)]


@arrays_of("memory")
def recall_by_delay(recalls: Recalls) -> dict[str, np.ndarray]:
    """{"delay", "accuracy", "low", "high" (exact 95 % interval), "count", "information" (bits between the planted bit and the
    one given back, less the bias of the estimate)}, one entry for each delay, ascending."""
    rows, right = [], _right(recalls)
    for k in np.unique(recalls.delay):
        chosen = recalls.delay == k
        n, hits = int(chosen.sum()), float(right[chosen].sum())
        low, high = intervals.clopper_pearson(hits, n)
        information = float(_information(recalls.truth[chosen], recalls.answer[chosen], np.ones(n)))
        rows.append((k, hits / n, low, high, n, information))
    return dict(zip(("delay", "accuracy", "low", "high", "count", "information"), np.array(rows).T, strict=True))


def _half_life(recalls: Recalls, curve: dict[str, np.ndarray]) -> Metric:
    delays = np.unique(recalls.delay)
    if curve["low"][0] <= 0.5:
        reason = f"no color is recalled after the shortest delay, {delays[0]} steps"
        return absent(HALF_LIFE, reason)
    unique, row = np.unique(recalls.cluster, return_inverse=True)

    def half_life(weights: np.ndarray) -> np.ndarray:
        chosen = [recalls.delay == k for k in delays]
        kept = np.stack([_information(recalls.truth[c], recalls.answer[c], weights[..., c]) for c in chosen], -1)
        lost = kept <= kept[..., :1] / 2
        return np.where(lost.any(-1), delays[np.argmax(lost, -1)], delays[-1])

    value = int(half_life(np.ones(len(row))))
    ci = intervals.percentile(half_life(intervals.draws_of(len(unique), draws=1000)[:, row]))
    beyond = curve["information"][-1] > curve["information"][0] / 2
    reason = f"longer than {delays[-1]} steps, the longest delay" if beyond else ""
    return number(HALF_LIFE, value, ci, len(unique), len(row), floor=0.0, reason=reason)


def _right(recalls: Recalls) -> np.ndarray:
    """(N,): 1 if the likelier bit is the planted one, 0 if not, 1/2 if the model does not care."""
    return np.where(recalls.answer == 0.5, 0.5, (recalls.answer > 0.5) == (recalls.truth > 0.5)).astype(float)


def _information(truth: np.ndarray, answer: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mutual information in bits of the planted and the likelier bit, weights (..., n), less its first-order bias
    (Miller 1955) of one degree of freedom; not below 0."""
    given = np.where(answer == 0.5, 0.5, answer > 0.5)
    cells = np.stack([weights @ ((truth == t) * (given if g else 1 - given)) for t in (0, 1) for g in (0, 1)], -1)
    total = np.maximum(cells.sum(-1), 1e-12)
    p = (cells / total[..., None]).reshape(*cells.shape[:-1], 2, 2)
    independent = p.sum(-1, keepdims=True) * p.sum(-2, keepdims=True)
    whole = (p * np.log2(np.where(p > 0, p / np.where(independent > 0, independent, 1), 1))).sum((-2, -1))
    return np.maximum(0.0, whole - 1 / (2 * np.log(2) * total))
