"""M14, experimental: how many bits of codes are enough (Subramanian et al. 2022, arXiv:2010.08843)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenworld.errors import UserError
from tokenworld.evaluation.metrics.policies import COMMON
from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.statistics.measured import absent

IDS = ("M14.knee", "M14.fragility")
SILENT = {  # numbers that no finding reads, and why
    "M14.knee": "how much information is enough has no ideal",
    "M14.fragility": "it judges a ladder of models, not one",
}


def information_knee(rate: Sequence[float], error: Sequence[Metric]) -> list[Metric]:
    """M14: a ladder of ablations of one model, each with the bits per frame it retains and its M13 (or other) error: the
    smallest rate whose error is within the interval of the full model's, and how much error rises with rate somewhere
    (0 for a sound ladder). It measures this model's usable information, not the environment's minimum.

    The interval of the knee holds the rates whose own intervals still reach, or wholly stay, below that bound. Raises
    UserError if rates and errors do not pair up.
    """
    if len(rate) != len(error) or len(set(rate)) != len(rate):
        raise UserError(f"a ladder takes one error for each rate, all different, got {len(rate)} rates and {len(error)} errors")
    names = {"M14.knee": "Bits of a frame that are enough", "M14.fragility": "Error that more information adds"}
    steps = sorted((r, e) for r, e in zip(rate, error, strict=True) if e.value is not None and e.ci is not None)
    if len(steps) < 3:
        return [absent(id, name, f"a ladder takes three measured rungs, got {len(steps)}", **COMMON)
                for id, name in names.items()]  # fmt: skip
    _, full = steps[-1]
    bound = full.ci[1]
    knee = min(r for r, e in steps if e.value <= bound)
    sure, hopeful = min((r for r, e in steps if e.ci[1] <= bound), default=knee), min(r for r, e in steps if e.ci[0] <= bound)
    values = np.array([e.value for _, e in steps])
    rise = float(max(0.0, (values - np.minimum.accumulate(values)).max()))
    common = dict(n_clusters=full.n_clusters, n_samples=len(steps), **COMMON)
    return [
        Metric("M14.knee", names["M14.knee"], float(knee), "bits/frame", "none", (float(hopeful), float(max(sure, knee))),
               **common),
        Metric("M14.fragility", names["M14.fragility"], rise, full.unit, "lower", ceiling=0.0, **common),
    ]  # fmt: skip


def ais_bound(reward_error: float, total_variation: float, gamma: float, value_span: float) -> float:
    """Most that the best policy of an approximate information state loses: 2 (eps + gamma span(V') delta) / (1 - gamma) with
    eps the largest error of the mean reward and delta the largest total variation of the next state (Subramanian et al. 2022,
    arXiv:2010.08843)."""
    return 2 * (reward_error + gamma * value_span * total_variation) / (1 - gamma)
