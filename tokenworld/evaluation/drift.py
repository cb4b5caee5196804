"""How far can a dream be trusted? M4, tier A: dreams under the actions of held-out episodes, beside what really came.

There is one real future of each start, so a distance between distributions is not to be had: the energy score is used, whose
expectation is lowest for the true distribution (Gneiting and Raftery 2007). Where the world itself is random it rises although
the model is right, and the valid horizon is a lower bound; a simulator that can be branched (tier B) says more.
"""

from __future__ import annotations

import numpy as np

from tokenworld.evaluation import intervals
from tokenworld.evaluation.records import Drift, Metric

WORTH = 0.5  # a dream is worth having while its score is below this share of that of a frame that stands still


def energy_scores(drift: Drift) -> tuple[np.ndarray, np.ndarray]:
    """(S, T) energy scores of the dreams, and of the standing frame: shares of the K codes that differ,
    E|X - y| - E|X - X'| / 2 over the M dreams X."""
    off = (drift.model != drift.real[:, None]).mean(-1).mean(1)  # (S, T)
    M = drift.model.shape[1]
    spread = np.zeros_like(off)
    for i in range(M):
        for j in range(i):
            spread += (drift.model[:, i] != drift.model[:, j]).mean(-1)
    spread = spread / (M * (M - 1) / 2) if M > 1 else spread
    return off - spread / 2, (drift.copy[:, None] != drift.real).mean(-1)


def horizon(drift: Drift) -> list[Metric]:
    """M4: the valid horizon in steps, censored at T, and how much dearer real frames are after dreamt ones."""
    score, still = energy_scores(drift)
    S, T = score.shape
    clusters = len(np.unique(drift.cluster))
    common = dict(n_clusters=clusters, n_samples=S, tier="A")
    few = dict(status="underpowered", reason=f"only {clusters} episodes") if clusters < intervals.FEW else {}
    if not still.any():
        return [Metric("M4.horizon", "Valid horizon", None, "steps", "higher", status="not_applicable",
                       reason="nothing moves in the held-out data", **common)]  # fmt: skip

    def first_bad(weights: np.ndarray) -> float:
        bad = weights @ score > WORTH * (weights @ still)
        return float(np.argmax(bad) + 1) if bad.any() else float(T + 1)

    value, ci, _ = intervals.statistic(first_bad, drift.cluster, draws=500)
    censored = f"longer than the {T} steps that were dreamt" if value > T else ""
    found = [
        Metric("M4.horizon", "Valid horizon", value - 1, "steps", "higher", (ci[0] - 1, ci[1] - 1), floor=0.0,
               **{**common, **few, "reason": few.get("reason", "") or censored})
    ]  # fmt: skip
    if T > 1:
        ratio, ci, _ = intervals.ratio(drift.own_bits[:, -1], drift.real_bits[:, -1], drift.cluster)
        name = f"Bits of a real frame after {T - 1} dreamt ones, in shares of those after real ones"
        found.append(Metric("M4.self_feeding", name, ratio, "", "lower", ci, ceiling=1.0, **common, **few))
    return found


def curves(drift: Drift) -> dict[str, np.ndarray]:
    """(T,) each: the mean energy score of the dreams with its interval, that of the standing frame."""
    score, still = energy_scores(drift)
    bounds = [intervals.ratio(score[:, t], None, drift.cluster)[1] for t in range(score.shape[1])]
    return {"model": score.mean(0), "low": np.array([b[0] for b in bounds]), "high": np.array([b[1] for b in bounds]),
            "copy": still.mean(0)}  # fmt: skip
