"""M1: code lengths of held-out frames, beside simple predictors (Lambert et al. 2020, arXiv:2002.04523)."""

from __future__ import annotations

import numpy as np

from tokenworld.evaluation.records import Metric, Scored
from tokenworld.evaluation.statistics import divergences
from tokenworld.evaluation.statistics.measured import mean, share

IDS = ("M1.bits", "M1.gain", "M1.changed", "M1.excess")
SILENT = {  # numbers that no finding reads, and why
    "M1.bits": "its ideal, the entropy of the world, is not known: M1.gain judges it against simple predictors",
    "M1.changed": "its ideal is not known: M1.gain judges the whole frame",
    "M1.excess": "it is known only where the world is: M2.dcal_joint and M2.dh are its parts and judge it",
}


def code_length(
    scored: Scored, baselines: dict[str, np.ndarray], *, entropy: np.ndarray | None = None, against: str | None = None
) -> list[Metric]:
    """M1: bits of a held-out frame. baselines: name -> bits (N, K) of simple predictors on the same frames; the best is the
    floor. against: the one that M1.gain compares with, chosen without these frames, so that a frame's gain depends on that
    frame alone; None: the best. Only the best possible model reaches the entropy of the world, which data do not tell:
    `entropy` (N,) is that of the true next frame, in bits, where it is known, and then there is a ceiling and an excess."""
    frame, N = divergences.frame_bits(scored.bits), len(scored.bits)
    floors = {name: float(bits.sum(1).mean()) for name, bits in baselines.items()}
    best = min(floors, key=floors.get) if floors else None
    ceiling = None if entropy is None else float(entropy.mean())
    found = [
        mean("M1.bits", "Code length of a frame", frame, scored.cluster, "bits/frame", floor=floors.get(best), ceiling=ceiling)
    ]
    if best is not None:
        against = against or best
        gain = baselines[against].sum(1) - frame
        found.append(mean("M1.gain", f"Bits saved against {against}", gain, scored.cluster, "bits/frame", "higher", floor=0.0))
    changed = scored.previous != scored.codes
    floors = {name: float(bits[changed].mean()) for name, bits in baselines.items()} if changed.any() else {}
    dear = np.where(changed, divergences.capped(scored.bits), 0.0).sum(1)
    found.append(
        share("M1.changed", "Code length of a changed code", dear, changed.sum(1), scored.cluster,
              "bits/code", floor=min(floors.values(), default=None), samples=N,
              none="no code of the held-out frames changed")
    )  # fmt: skip
    if entropy is not None:
        floor = None if best is None else float(baselines[best].sum(1).mean() - entropy.mean())
        found.append(mean("M1.excess", "Bits of a frame beyond the world's own entropy", frame - entropy, scored.cluster,
                          "bits/frame", floor=floor, ceiling=0.0))  # fmt: skip
    return found


def by_position(scored: Scored) -> np.ndarray:
    """Mean bits (K,) of each code of a frame: where the surprise is."""
    return scored.bits.mean(0)
