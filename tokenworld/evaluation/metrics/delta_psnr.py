"""Do imagined frames follow the actions? The one number of actions that needs no likelihood of a frame: tier A.

Rollouts under the real actions are compared with rollouts under random ones. It rises also where random actions merely ruin the
picture, and is small where actions do little: the effects of actions at branches of a simulator say more, where they are known.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from tokenworld.evaluation.records import Metric, Steered
from tokenworld.evaluation.statistics import intervals
from tokenworld.evaluation.statistics.measured import absent, number
from tokenworld.evaluation.statistics.metric_spec import ACTIONS, MetricSpec, measure

_spec = partial(MetricSpec, section=ACTIONS, topic="the use of actions", source="Bruce et al. 2024 (Genie), arXiv:2402.15391")
STEPS = 4  # that are imagined
DELTA = _spec(
    "delta_psnr.gain", "Peak signal-to-noise ratio that the real actions add",
    "How much nearer to the real frame a rollout comes under the real actions than under random ones, four steps ahead. 0: the "
    "model ignores actions.",
    unit="dB", direction="higher", silent="how much of a frame actions can change depends on the game",
)  # fmt: skip
LEAST = 1e-2  # squared error of bytes that still counts: 68 dB


@measure
def delta_psnr(steered: Steered) -> list[Metric]:
    """PSNR(real actions) - PSNR(random actions) of the frame STEPS ahead. Errors are averaged over all starts and rollouts
    before the logarithm, as for reconstructions, and LEAST at least: single frames that are exact would be infinite."""
    if steered.steps < STEPS:
        return [absent(DELTA, f"no held-out episode goes on for {STEPS} steps after the frames that are read")]
    true, random = steered.real_actions.mean(1), steered.random_actions.mean(1)  # (S,)

    def gain(weights: np.ndarray) -> float:
        real, other = (max(float(weights @ error / weights.sum()), LEAST) for error in (true, random))
        return float(10 * np.log10(other / real))

    value, ci, clusters = intervals.statistic(gain, steered.cluster, draws=500)
    return [number(DELTA, value, ci, clusters, len(true), floor=0.0)]
