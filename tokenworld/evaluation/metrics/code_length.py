"""Code lengths of held-out frames, compared with simple predictors (Lambert et al. 2020, arXiv:2002.04523): tier A."""

from __future__ import annotations

from functools import partial

import numpy as np

from tokenworld.evaluation.records import Metric, Scored
from tokenworld.evaluation.statistics import divergences
from tokenworld.evaluation.statistics.measured import absent, mean, share
from tokenworld.evaluation.statistics.metric_spec import (
    NO_EQUALITY,
    OVERVIEW,
    MetricSpec,
    Rule,
    arrays_of,
    below,
    measure,
    of_likelihood,
)

_spec = partial(
    MetricSpec, section=OVERVIEW, topic="code length", of_codes=True, source="Lambert et al. 2020, arXiv:2002.04523"
)
BITS = _spec(
    "code_length.bits", "Code length of a frame",
    "Bits that a held-out frame costs under the model, given the frames before it. Floor: the best simple predictor.",
    alias="M1.bits", unit="bits/frame", quality="Short code of a frame", picture="surprise",
    silent="its ideal, the entropy of the world, is not known: the saved bits compare it with simple predictors",
)  # fmt: skip
GAIN = _spec(
    "code_length.saved_bits", "Bits saved against the best simple predictor",
    "Bits that the model saves against the best of copying, counting codes and counting pairs of codes.",
    alias="M1.gain", unit="bits/frame", direction="higher",
    rules=(Rule("WORSE_THAN_COUNTING", "fault", below(0),
                lambda m: f"worse than counting codes ({-m.value:.2f} bits a frame more)"),),
)  # fmt: skip
CHANGED = _spec(
    "code_length.changed_code_bits", "Code length of a changed code",
    "The same, of codes that differ from those of the last frame: the static background does not count.",
    alias="M1.changed", unit="bits/code", silent="its ideal is not known: the saved bits judge the whole frame",
)  # fmt: skip
EXCESS = _spec(
    "code_length.excess_bits", "Bits of a frame beyond the world's own entropy",
    "Bits that the model pays beyond the entropy of the world: 0 is the best possible.",
    alias="M1.excess", unit="bits/frame", quality="No bits beyond the world's entropy",
    silent="it is known only where the world is: its parts, the calibration gap and the excess entropy at branches, judge it",
)  # fmt: skip


BASELINE_BITS = _spec(
    "code_length.baseline_bits", "Code length of a frame under a simple predictor",
    "Bits that a held-out frame costs under copying the last frame, counting codes, or counting pairs of codes.",
    unit="bits/frame", direction="none", silent="it is the floor of the code length of a frame",
)  # fmt: skip
BASELINE_CHANGED = _spec(
    "code_length.baseline_changed_bits", "Code length of a changed code under a simple predictor",
    "The same, of codes that differ from those of the last frame.",
    unit="bits/code", direction="none", silent="it is the floor of the code length of a changed code",
)  # fmt: skip


POSTERIOR_KL = _spec(
    "code_length.posterior_kl", "Divergence of the posterior from the prediction",
    "Bits per frame that the posterior of a held-out frame is away from what was predicted before it: KL(posterior || "
    "prediction). It depends on how much the posterior keeps of a frame, and is not comparable with code lengths.",
    unit="bits/frame", silent="a posterior that keeps nothing of the frame has none: the reconstruction must be read with it",
)  # fmt: skip


@measure
def posterior_kl(scored: Scored) -> list[Metric]:
    """The divergence whose expectation a decoding with a posterior is trained to lower (Hafner et al. 2020,
    arXiv:2010.02193, equation 3)."""
    if scored.posterior_bits is None:
        return [absent(POSTERIOR_KL, "the decoding has no posterior with probabilities")]
    return [mean(POSTERIOR_KL, scored.posterior_bits, scored.cluster, ceiling=0.0)]


@measure
def of_predictors(scored: Scored, baselines: dict[str, np.ndarray] | None) -> list[Metric]:
    """A variant of both baselines, "ID@NAME", for each simple predictor. baselines: name -> bits (N, K); None: codes cannot be
    counted."""
    if baselines is None:
        return [absent(spec, NO_EQUALITY) for spec in (BASELINE_BITS, BASELINE_CHANGED)]
    changed, results = scored.previous != scored.codes, []
    for name, bits in baselines.items():
        words = name.replace("_", " ")
        frame = BASELINE_BITS.variant(name, f"Code length of a frame: {words}")
        code = BASELINE_CHANGED.variant(name, f"Code length of a changed code: {words}")
        results.append(mean(frame, bits.sum(1), scored.cluster))
        results.append(share(code, np.where(changed, bits, 0.0).sum(1), changed.sum(1), scored.cluster, samples=len(bits),
                             none="no code of the held-out frames changed"))  # fmt: skip
    return results


@measure
@of_likelihood(BITS, GAIN, CHANGED, EXCESS)
def code_length(
    scored: Scored, baselines: dict[str, np.ndarray], *, entropy: np.ndarray | None = None, against: str | None = None
) -> list[Metric]:
    """Bits of a held-out frame. baselines: name -> bits (N, K) of simple predictors on the same frames; the best is the
    floor. against: the one that the saved bits refer to, chosen without these frames, so that a frame's value depends on that
    frame alone; None: the best. Only the best possible model reaches the entropy of the world, which data do not tell:
    `entropy` (N,) is that of the true next frame, in bits, where it is known, and then there is a ceiling and an excess."""
    frame, N = divergences.frame_bits(scored.bits), len(scored.bits)
    floors = {name: float(bits.sum(1).mean()) for name, bits in baselines.items()}
    best = min(floors, key=floors.get) if floors else None
    ceiling = None if entropy is None else float(entropy.mean())
    metrics = [mean(BITS, frame, scored.cluster, floor=floors.get(best), ceiling=ceiling)]
    if best is not None:
        against = against or best
        gain = baselines[against].sum(1) - frame
        metrics.append(mean(GAIN, gain, scored.cluster, name=f"Bits saved against {against}", floor=0.0))
    changed = scored.previous != scored.codes
    floors = {name: float(bits[changed].mean()) for name, bits in baselines.items()} if changed.any() else {}
    paid = np.where(changed, divergences.capped(scored.bits), 0.0).sum(1)
    metrics.append(
        share(CHANGED, paid, changed.sum(1), scored.cluster, floor=min(floors.values(), default=None), samples=N,
              none="no code of the held-out frames changed")
    )  # fmt: skip
    if entropy is not None:
        floor = None if best is None else float(baselines[best].sum(1).mean() - entropy.mean())
        metrics.append(mean(EXCESS, frame - entropy, scored.cluster, floor=floor, ceiling=0.0))
    return metrics


@arrays_of("surprise")
@of_likelihood()
def by_position(scored: Scored, grid: tuple[int, ...] = (-1,)) -> np.ndarray:
    """Mean bits of each code of a frame, in the shape of its grid: where the surprise is."""
    return scored.bits.mean(0).reshape(grid)
