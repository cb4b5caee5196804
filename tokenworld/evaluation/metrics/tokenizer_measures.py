"""How good a tokenizer's codes are: pixels, events, use of the codebook, and a patch dictionary to compare with.

All functions are pure. Frames are (N, C, H, W), uint8 or float in 0..1; a row with `first` starts an episode, and no
pair of consecutive frames crosses it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

THRESHOLD = 25.0  # of 255: a pixel changes when its largest channel difference exceeds it
CHUNK = 256  # frames at once, to bound memory


def psnr(real: Tensor, reconstructed: Tensor) -> float:
    """Peak signal-to-noise ratio in dB, peak 255, of the mean squared error pooled over all pixels of all frames.

    Infinite if the frames are equal.
    """
    assert real.shape == reconstructed.shape, (real.shape, reconstructed.shape)
    total = sum(
        (_to_255(a) - _to_255(b)).square().sum(dtype=torch.float64).item()
        for a, b in zip(real.split(CHUNK), reconstructed.split(CHUNK), strict=True)
    )
    return math.inf if total == 0 else 10 * math.log10(255**2 * real.numel() / total)


def events(real: Tensor, reconstructed: Tensor, first: Tensor) -> dict[str, float | int | None]:
    """Do the frames' changes survive? `recall`, `precision`, and how many `real_changes`, `reconstructed_changes`.

    A pixel changes when the largest channel difference d between consecutive frames exceeds 25/255. With d the real and
    e the reconstructed difference (vectors over channels), a real change is recovered when e moves along d by at least
    half as much, e.d >= 0.5 d.d; recall is the share of real changes that are. Precision turns it round: of the pixels
    that change in the reconstruction, the share with d.e >= 0.5 e.e. None where there is nothing to recover. first (N,)
    bool.
    """
    assert real.shape == reconstructed.shape and first.shape == real.shape[:1], (
        real.shape,
        reconstructed.shape,
        first.shape,
    )
    changes = recovered = shown = true = 0
    for start in range(1, len(real), CHUNK):
        rows = slice(start - 1, min(start - 1 + CHUNK, len(real) - 1) + 1)
        paired = ~first[rows][1:].bool()
        d = (_to_255(real[rows]).diff(dim=0))[paired]  # (n, C, H, W)
        e = (_to_255(reconstructed[rows]).diff(dim=0))[paired]
        along = (d * e).sum(1)  # (n, H, W)
        real_change = d.abs().amax(1) > THRESHOLD
        shown_change = e.abs().amax(1) > THRESHOLD
        changes += int(real_change.sum())
        shown += int(shown_change.sum())
        recovered += int((real_change & (along >= 0.5 * d.square().sum(1))).sum())
        true += int((shown_change & (along >= 0.5 * e.square().sum(1))).sum())
    return {
        "recall": recovered / changes if changes else None,
        "precision": true / shown if shown else None,
        "real_changes": changes,
        "reconstructed_changes": shown,
    }


def codebook_usage(indices: Tensor, V: int) -> float:
    """The share of the V codes that occur in indices (any shape, int64)."""
    return torch.bincount(indices.flatten(), minlength=V).count_nonzero().item() / V


def perplexity(indices: Tensor, V: int) -> float:
    """exp of the entropy of the codes' frequencies in indices (any shape): 1 if one is used, V if all are alike."""
    share = torch.bincount(indices.flatten(), minlength=V).double() / indices.numel()
    return math.exp(-torch.special.xlogy(share, share).sum().item())


def kmeans_baseline(
    train: Tensor, test: Tensor, patch: int = 8, vocab_size: int = 512, *, iterations: int = 30, seed: int = 0
) -> Tensor:
    """Reconstruct test frames with a plain dictionary of patches: k-means on the patches of the training frames.

    train (N, C, H, W), test (M, C, H, W) uint8 -> (M, C, H, W) uint8. k-means++ starts, then `iterations` of Lloyd's
    algorithm; equal patches are merged and weighted, which is exact. Frames are padded with zeros to whole patches.
    """
    generator = torch.Generator().manual_seed(seed)
    points, inverse = _patches(train, patch).unique(dim=0, return_inverse=True)  # (n, D)
    weight = torch.bincount(inverse, minlength=len(points)).float()
    points = points.float()
    centers = _kmeans_plus_plus(points, weight, min(vocab_size, len(points)), generator)  # (V, D)
    for _ in range(iterations):
        nearest = _nearest(points, centers)
        mass = torch.zeros(len(centers)).index_add_(0, nearest, weight)
        total = torch.zeros_like(centers).index_add_(0, nearest, points * weight[:, None])
        used = mass > 0
        centers[used] = total[used] / mass[used, None]
    centers = centers.round().to(torch.uint8)

    out = []
    N, C, H, W = test.shape
    h, w = -(-H // patch), -(-W // patch)
    for frames in test.split(CHUNK):
        distinct, inverse = _patches(frames, patch).unique(dim=0, return_inverse=True)
        codes = centers[_nearest(distinct.float(), centers.float())][inverse]  # (n*h*w, D)
        whole = codes.reshape(-1, h, w, C, patch, patch).permute(0, 3, 1, 4, 2, 5).reshape(-1, C, h * patch, w * patch)
        out.append(whole[..., :H, :W])
    return torch.cat(out)


def _to_255(frames: Tensor) -> Tensor:
    """uint8, or float in 0..1, to float in 0..255."""
    return frames.float() if frames.dtype == torch.uint8 else frames.float() * 255


def _patches(frames: Tensor, patch: int) -> Tensor:
    """(N, C, H, W) uint8 -> (N*h*w, C * patch * patch) uint8."""
    N, C, H, W = frames.shape
    h, w = -(-H // patch), -(-W // patch)
    padded = torch.nn.functional.pad(frames, (0, w * patch - W, 0, h * patch - H))
    return padded.reshape(N, C, h, patch, w, patch).permute(0, 2, 4, 1, 3, 5).reshape(N * h * w, -1)


def _kmeans_plus_plus(points: Tensor, weight: Tensor, V: int, generator: torch.Generator) -> Tensor:
    """V starting centers (V, D), each drawn in proportion to its weighted squared distance to the nearest so far
    (Arthur and Vassilvitskii 2007)."""
    chosen = [int(torch.multinomial(weight, 1, generator=generator))]
    squares = points.square().sum(1)
    distance = torch.full((len(points),), math.inf)
    while len(chosen) < V:
        center = points[chosen[-1]]
        distance = torch.minimum(distance, (squares - 2 * points @ center + center.square().sum()).clamp(min=0))
        chosen.append(_draw(distance * weight, generator))
    return points[chosen].clone()


def _draw(mass: Tensor, generator: torch.Generator) -> int:
    """An index with probability proportional to mass (n,): by inverse CDF, since multinomial stops at 2**24 entries."""
    cumulative = mass.double().cumsum(0)
    at = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[-1]
    return min(int(torch.searchsorted(cumulative, at, right=True)), len(mass) - 1)


def _nearest(points: Tensor, centers: Tensor) -> Tensor:
    """Index (n,) of the nearest of centers (V, D) for each of points (n, D)."""
    half = centers.square().sum(1) / 2
    return torch.cat([(part @ centers.T - half).argmax(1) for part in points.split(8192)])
