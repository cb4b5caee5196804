"""What the tokenizer loses, the dynamics can never know: tier A."""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from tokenworld.evaluation.metrics.tokenizer_measures import codebook_usage, events, perplexity
from tokenworld.evaluation.records import Metric, Reconstructions
from tokenworld.evaluation.statistics import intervals
from tokenworld.evaluation.statistics.measured import absent, number
from tokenworld.evaluation.statistics.metric_spec import OVERVIEW, MetricSpec, Rule, below, measure

_spec = partial(
    MetricSpec, section=OVERVIEW, topic="the tokenizer", source="Micheli et al. 2023 (IRIS), arXiv:2209.00588"
)
PSNR = _spec(
    "tokenizer.psnr", "Reconstruction",
    "Peak signal-to-noise ratio of decode(encode(frame)). High values can hide a lost ball: see the next line.",
    alias="M0.psnr", unit="dB", direction="higher",
    silent="it stays high when a small object is lost: event recall judges that",
)  # fmt: skip
RECALL = _spec(
    "tokenizer.event_recall", "Changes that survive the tokenizer",
    "Of the pixels that change from frame to frame, the share that also changes in the reconstruction.",
    alias="M0.recall", unit="share", direction="higher", quality="Changes that survive the tokenizer", is_expected=True,
    rules=(Rule("TOKENIZER_LOSES_EVENTS", "fault", below(0.9),
                lambda m: f"the tokenizer loses {1 - m.value:.0%} of what moves"),),
)  # fmt: skip
PRECISION = _spec(
    "tokenizer.event_precision", "Changes of the reconstruction that are real",
    "Of the pixels that change in the reconstruction, the share that really changed.",
    alias="M0.precision", unit="share", direction="higher", quality="Changes that are real", is_expected=True,
    rules=(Rule("TOKENIZER_INVENTS_EVENTS", "warning", below(0.9),
                lambda m: f"{1 - m.value:.0%} of what moves in the reconstruction stands still in truth"),),
)  # fmt: skip
USAGE = _spec(
    "tokenizer.codebook_usage", "Codes in use", "The share of the codebook that occurs.", alias="M0.usage", unit="share",
    direction="none", silent="how many codes a game needs is not known",
)  # fmt: skip
PERPLEXITY = _spec(
    "tokenizer.perplexity", "Perplexity of the codes",
    "How many codes are in use, counted by how evenly: exp of the entropy of their frequencies.", alias="M0.perplexity",
    unit="codes", direction="none", silent="how many codes a game needs is not known",
)  # fmt: skip
DICTIONARY_PSNR = _spec(
    "tokenizer.dictionary_psnr", "Reconstruction by a plain dictionary of patches",
    "The same frames, reconstructed by k-means patches fitted on the training frames, as many as the tokenizer has codes.",
    unit="dB", direction="none", silent="it is what the tokenizer is compared with",
)  # fmt: skip
DICTIONARY_RECALL = _spec(
    "tokenizer.dictionary_event_recall", "Changes that survive a plain dictionary of patches",
    "Event recall of the k-means patches on the same frames.", unit="share", direction="none",
    silent="it is what the tokenizer is compared with",
)  # fmt: skip
DICTIONARY_PRECISION = _spec(
    "tokenizer.dictionary_event_precision", "Changes of a plain dictionary of patches that are real",
    "Event precision of the k-means patches on the same frames.", unit="share", direction="none",
    silent="it is what the tokenizer is compared with",
)  # fmt: skip


NO_INDICES = "the codes have no indices"
NO_PATCHES = "the tokenizer has no codes of patches that a dictionary could be as large as"


@measure
def tokenizer_ceiling(reconstructions: Reconstructions) -> list[Metric]:
    """PSNR, event recall and precision, and codes in use."""
    codes, V, n = reconstructions.codes, reconstructions.vocab_size, len(np.unique(reconstructions.cluster))
    if codes is None:
        usage = [absent(spec, NO_INDICES) for spec in (USAGE, PERPLEXITY)]
    else:
        usage = [number(spec, value, None, n, len(codes))
                 for spec, value in ((USAGE, codebook_usage(codes, V)), (PERPLEXITY, perplexity(codes, V)))]  # fmt: skip
    return fidelity(reconstructions, PSNR, RECALL, PRECISION) + usage


@measure
def dictionary_of_patches(dictionary_reconstructions: Reconstructions | None) -> list[Metric]:
    """PSNR, event recall and precision of a plain dictionary of patches on the same frames; None where there is no such."""
    specs = (DICTIONARY_PSNR, DICTIONARY_RECALL, DICTIONARY_PRECISION)
    if dictionary_reconstructions is None:
        return [absent(spec, NO_PATCHES) for spec in specs]
    return fidelity(dictionary_reconstructions, *specs)


def fidelity(
    reconstructions: Reconstructions, psnr: MetricSpec, recall: MetricSpec, precision: MetricSpec
) -> list[Metric]:
    """Do the picture and its changes survive?"""
    frames, decoded, cluster = reconstructions.frames, reconstructions.decoded, reconstructions.cluster
    error = (frames.float() - decoded.float()).square().flatten(1).mean(1).double().numpy()  # (N,)
    mse, (low, high), n = intervals.ratio(error, None, cluster)
    whole = [events(frames[rows], decoded[rows], reconstructions.first[rows]) for rows in _episodes(cluster)]
    numbers = np.arange(len(whole))
    metrics = [number(psnr, _db(mse), (_db(high), _db(low)), n, len(error))]
    for spec, share, of in ((recall, "recall", "real_changes"), (precision, "precision", "reconstructed_changes")):
        count = np.array([e[of] for e in whole], float)
        if count.sum() == 0:
            metrics.append(absent(spec, "nothing changes"))
            continue
        kept = count * np.array([e[share] or 0.0 for e in whole])
        value, ci, _ = intervals.ratio(kept, count, numbers)
        metrics.append(number(spec, value, ci, n, int(count.sum()), floor=0.0, ceiling=1.0))
    return metrics


def _episodes(cluster: np.ndarray) -> list[np.ndarray]:
    _, number = np.unique(cluster, return_inverse=True)
    return [np.flatnonzero(number == i) for i in range(number.max() + 1)]


def _db(mse: float) -> float:
    """Of equal frames it would be infinite: 100 at most."""
    return min(100.0, 10 * math.log10(255**2 / mse)) if mse > 0 else 100.0
