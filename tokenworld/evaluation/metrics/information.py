"""Experimental: how many bits of codes are enough (Subramanian et al. 2022, arXiv:2010.08843)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from tokenworld.errors import UserError
from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.statistics.measured import absent, metric
from tokenworld.evaluation.statistics.metric_spec import USEFULNESS, MetricSpec

_spec = partial(
    MetricSpec, section=USEFULNESS, tier="C", of_codes=True, experimental=True,
    source="Subramanian et al. 2022, arXiv:2010.08843",
)  # fmt: skip
KNEE = _spec(
    "information.knee", "Bits of a frame that are enough", "The least information with which the model is as good as with all.",
    alias="M14.knee", unit="bits/frame", direction="none", silent="how much information is enough has no ideal",
)  # fmt: skip
FRAGILITY = _spec(
    "information.fragility", "Error that more information adds",
    "Error that more information adds: above 0 the model is fragile.", alias="M14.fragility",
    silent="it judges a ladder of models, not one",
)  # fmt: skip


def information_knee(rate: Sequence[float], error: Sequence[Metric]) -> list[Metric]:
    """A ladder of ablations of one model, each with the bits per frame it retains and its planning (or other) error: the
    smallest rate whose error is within the interval of the full model's, and how much error rises with rate somewhere
    (0 for a sound ladder). It measures this model's usable information, not the environment's minimum.

    The interval of the knee holds the rates whose own intervals still reach, or wholly stay, below that bound. Raises
    UserError if rates and errors do not pair up.
    """
    if len(rate) != len(error) or len(set(rate)) != len(rate):
        raise UserError(f"a ladder takes one error for each rate, all different, got {len(rate)} rates and {len(error)} errors")
    steps = sorted((r, e) for r, e in zip(rate, error, strict=True) if e.value is not None and e.ci is not None)
    if len(steps) < 3:
        return [absent(spec, f"a ladder takes three measured rungs, got {len(steps)}") for spec in (KNEE, FRAGILITY)]
    _, full = steps[-1]
    bound = full.ci[1]
    knee = min(r for r, e in steps if e.value <= bound)
    sure, hopeful = min((r for r, e in steps if e.ci[1] <= bound), default=knee), min(r for r, e in steps if e.ci[0] <= bound)
    values = np.array([e.value for _, e in steps])
    rise = float(max(0.0, (values - np.minimum.accumulate(values)).max()))
    common = dict(n_clusters=full.n_clusters, n_samples=len(steps))
    return [
        metric(KNEE, float(knee), ci=(float(hopeful), float(max(sure, knee))), **common),
        metric(FRAGILITY, rise, unit=full.unit, ceiling=0.0, **common),
    ]


def ais_bound(reward_error: float, total_variation: float, gamma: float, value_span: float) -> float:
    """Most that the best policy of an approximate information state loses: 2 (eps + gamma span(V') delta) / (1 - gamma) with
    eps the largest error of the mean reward and delta the largest total variation of the next state (Subramanian et al. 2022,
    arXiv:2010.08843)."""
    return 2 * (reward_error + gamma * value_span * total_variation) / (1 - gamma)
