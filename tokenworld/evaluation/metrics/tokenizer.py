"""What the tokenizer loses, the dynamics can never know: M0, tier A."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from tokenworld.evaluation.metrics.tokenizer_measures import codebook_usage, events, perplexity
from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.statistics import intervals
from tokenworld.evaluation.statistics.measured import absent, number

IDS = ("M0.psnr", "M0.recall", "M0.precision", "M0.usage", "M0.perplexity")
SILENT = {  # numbers that no finding reads, and why
    "M0.psnr": "it stays high when a small object is lost: M0.recall judges that",
    "M0.usage": "how many codes a game needs is not known",
    "M0.perplexity": "how many codes a game needs is not known",
}


def tokenizer_ceiling(
    frames: Tensor, decoded: Tensor, first: Tensor, cluster: np.ndarray, codes: Tensor, V: int
) -> list[Metric]:
    """M0: frames and decoded (N, C, H, W) uint8, first (N,), their episodes (N,), codes (N, K) -> PSNR, event recall and
    precision, codes in use."""
    error = (frames.float() - decoded.float()).square().flatten(1).mean(1).double().numpy()  # (N,)
    mse, (low, high), n = intervals.ratio(error, None, cluster)
    whole = [events(frames[rows], decoded[rows], first[rows]) for rows in _episodes(cluster)]
    numbers = np.arange(len(whole))
    found = [
        number("M0.psnr", "Reconstruction", _db(mse), (_db(high), _db(low)), n, len(error), unit="dB", direction="higher"),
    ]
    for id, name, share, of in (
        ("M0.recall", "Changes that survive the tokenizer", "recall", "real_changes"),
        ("M0.precision", "Changes of the reconstruction that are real", "precision", "reconstructed_changes"),
    ):
        count = np.array([e[of] for e in whole], float)
        if count.sum() == 0:
            found.append(absent(id, name, "nothing changes", direction="higher"))
            continue
        kept = count * np.array([e[share] or 0.0 for e in whole])
        value, ci, _ = intervals.ratio(kept, count, numbers)
        found.append(number(id, name, value, ci, n, int(count.sum()), unit="share", direction="higher", floor=0.0,
                            ceiling=1.0))  # fmt: skip
    for id, name, value, unit in (
        ("M0.usage", "Codes in use", codebook_usage(codes, V), "share"),
        ("M0.perplexity", "Perplexity of the codes", perplexity(codes, V), "codes"),
    ):
        found.append(number(id, name, value, None, n, len(codes), unit=unit, direction="none"))
    return found


def _episodes(cluster: np.ndarray) -> list[np.ndarray]:
    _, number = np.unique(cluster, return_inverse=True)
    return [np.flatnonzero(number == i) for i in range(number.max() + 1)]


def _db(mse: float) -> float:
    """Of equal frames it would be infinite: 100 at most."""
    return min(100.0, 10 * math.log10(255**2 / mse)) if mse > 0 else 100.0
