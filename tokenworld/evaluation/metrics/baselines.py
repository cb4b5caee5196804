"""Code lengths of frames of codes, and the simple predictors that a world model has to beat.

A frame of K codes costs sum_j -log2 p(code_j) bits. All baselines are proper distributions over V codes, fitted on
training codes and scored on held-out ones. Indices are (N, K) int64 with `first` (N,) bool; a frame that starts an
episode has no predecessor and is not scored (nor used to fit what looks at a predecessor).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CodeCounts:
    """Training statistics of the three baselines."""

    unigram: Tensor  # (K, V) float64, the probabilities of position j
    copy_epsilon: Tensor  # (K,) float64, the weight of the unigram in copy-last
    pairs: Tensor  # sorted keys (position, previous code, code) that occur
    pair_counts: Tensor  # their counts
    contexts: Tensor  # (K, V) counts of (position, previous code)
    bigram_weight: float  # pseudo-counts that the unigram has in the bigram
    best: str  # of the three, the one with the shortest code on the training frames, each coded by the counts of the others


def pairs(indices: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """indices (N, K), first (N,) -> previous and current codes (M, K) of the frames that have a predecessor."""
    assert first.shape == indices.shape[:1], (first.shape, indices.shape)
    follows = ~first[1:].bool()
    return indices[:-1][follows], indices[1:][follows]


def fit(indices: Tensor, first: Tensor, V: int) -> CodeCounts:
    """Fit the baselines on training codes, indices (N, K), first (N,).

    unigram: add-alpha counts per position, one alpha for all, chosen from 1 .. 0.0001 by leave-one-out likelihood.
    copy-last: epsilon_j by maximum likelihood, half a pseudo-count on either side keeping it off 0 and 1.
    bigram: (count(previous, code) + w unigram(code)) / (count(previous) + w), w chosen from 0.03 .. 30 by leave-one-out
    likelihood.
    """
    N, K = indices.shape
    position = torch.arange(K, device=indices.device)
    counts = torch.bincount((position * V + indices).flatten(), minlength=K * V).reshape(K, V).double()
    seen = counts.gather(1, indices.T).T - 1  # (N, K), the count of each code without itself
    alphas = [1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001]
    alpha = max(alphas, key=lambda a: ((seen + a) / (N - 1 + a * V)).log().sum().item())
    unigram = (counts + alpha) / (N + alpha * V)

    previous, current = pairs(indices, first)
    epsilon = _fit_copy(unigram, previous, current)

    keys, pair_counts = _keys(previous, current, V).unique(return_counts=True)
    contexts = torch.bincount((position * V + previous).flatten(), minlength=K * V).reshape(K, V).double()
    same = pair_counts[torch.searchsorted(keys, _keys(previous, current, V))].double() - 1  # (M, K)
    context, prior = contexts.gather(1, previous.T).T - 1, unigram.gather(1, current.T).T
    weights = [0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]
    weight = max(weights, key=lambda w: ((same + w * prior) / (context + w)).log().sum().item())
    likelihood = {
        "copy_last": (1 - epsilon) * (previous == current) + epsilon * prior,
        "unigram": prior,
        "bigram": (same + weight * prior) / (context + weight),  # without the pair itself: rare pairs would win by heart
    }
    best = max(likelihood, key=lambda name: likelihood[name].log().sum().item())
    return CodeCounts(unigram, epsilon, keys, pair_counts.double(), contexts, weight, best)


def bits_unigram(counts: CodeCounts, previous: Tensor, current: Tensor) -> Tensor:
    """Bits (M, K) of the current codes (M, K); the previous ones are ignored."""
    return -counts.unigram.gather(1, current.T).T.log2()


def bits_copy_last(counts: CodeCounts, previous: Tensor, current: Tensor) -> Tensor:
    """Bits (M, K) under (1 - epsilon_j) on the last frame's code + epsilon_j times the unigram of position j."""
    epsilon, unigram = counts.copy_epsilon, counts.unigram.gather(1, current.T).T
    return -((1 - epsilon) * (previous == current) + epsilon * unigram).log2()


def bits_bigram(counts: CodeCounts, previous: Tensor, current: Tensor) -> Tensor:
    """Bits (M, K) given the code of the same position in the previous frame."""
    K, V = counts.unigram.shape
    keys = _keys(previous, current, V)
    if len(counts.pairs):
        index = torch.searchsorted(counts.pairs, keys).clamp(max=len(counts.pairs) - 1)
        same = counts.pair_counts[index] * (counts.pairs[index] == keys)
    else:
        same = torch.zeros_like(keys, dtype=torch.float64)
    w, prior = counts.bigram_weight, counts.unigram.gather(1, current.T).T
    return -((same + w * prior) / (counts.contexts.gather(1, previous.T).T + w)).log2()


def bits_per_changed_token(bits: Tensor, previous: Tensor, current: Tensor) -> float | None:
    """Mean of bits (M, K) over the codes that differ from the previous frame's; None if none does."""
    changed = previous != current
    return bits[changed].double().mean().item() if changed.any() else None


def baselines(counts: CodeCounts, indices: Tensor, first: Tensor) -> dict[str, float | None]:
    """Bits per predicted frame of held-out codes, indices (N, K), first (N,), and the unigram's per changed token.

    Keys as in a run's summary: bits_per_frame_copy_last, bits_per_frame_unigram, bits_per_frame_bigram,
    bits_per_changed_token_unigram. All None if no frame has a predecessor.
    """
    previous, current = pairs(indices, first)
    per_frame = {"copy_last": bits_copy_last, "unigram": bits_unigram, "bigram": bits_bigram}
    summary: dict[str, float | None] = {
        f"bits_per_frame_{name}": bits(counts, previous, current).sum(1).mean().item() if len(current) else None
        for name, bits in per_frame.items()
    }
    unigram = bits_unigram(counts, previous, current)
    summary["bits_per_changed_token_unigram"] = bits_per_changed_token(unigram, previous, current)
    return summary


def _keys(previous: Tensor, current: Tensor, V: int) -> Tensor:
    """One integer (M, K) for each (position, previous code, code)."""
    return (torch.arange(previous.shape[1], device=previous.device) * V + previous) * V + current


def _fit_copy(unigram: Tensor, previous: Tensor, current: Tensor) -> Tensor:
    """epsilon (K,) of the highest likelihood of copy-last: its derivative falls in epsilon, so bisection finds it."""
    same = previous == current  # (M, K)
    excess = 1 - unigram.gather(1, current.T).T
    low, high = torch.zeros(unigram.shape[0], dtype=torch.float64), torch.ones(unigram.shape[0], dtype=torch.float64)
    low, high = low.to(unigram.device), high.to(unigram.device)
    for _ in range(40):
        epsilon = (low + high) / 2
        kept = torch.where(same, -excess / (1 - epsilon * excess), 0.0).sum(0)
        slope = kept + ((~same).sum(0) + 0.5) / epsilon - 0.5 / (1 - epsilon)
        low, high = torch.where(slope > 0, epsilon, low), torch.where(slope > 0, high, epsilon)
    return (low + high) / 2
