"""Frames cut into square patches and put together again, and the distinct ones among many: shared by patch tokenizers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cut(obs: Tensor, patch: int) -> Tensor:
    """obs (B, T, C, H, W) -> float patches (B, T, K, C * patch * patch), same scale; frames are padded with zeros."""
    B, T, C, H, W = obs.shape
    h, w, p = -(-H // patch), -(-W // patch), patch
    obs = F.pad(obs.float(), (0, w * p - W, 0, h * p - H))
    return obs.reshape(B, T, C, h, p, w, p).permute(0, 1, 3, 5, 2, 4, 6).reshape(B, T, h * w, C * p * p)


def join(patches: Tensor, patch: int, frame_shape: tuple[int, int, int]) -> Tensor:
    """Patches (B, T, K, C * patch * patch) -> obs (B, T, C, H, W), cropped."""
    (C, H, W), p = frame_shape, patch
    h, w = -(-H // p), -(-W // p)
    B, T = patches.shape[:2]
    obs = patches.reshape(B, T, h, w, C, p, p).permute(0, 1, 4, 2, 5, 3, 6).reshape(B, T, C, h * p, w * p)
    return obs[..., :H, :W]


def hash_weights(numbers: int) -> Tensor:
    """(numbers,) random integers so small that sums of their products with bytes are exact in float64."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2**36, (numbers,), generator=generator).double()


def distinct(hashes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """hashes (N,) of things -> a row of each of the n distinct ones (n,), which of them each is (N,), their counts (n,)."""
    _, inverse, count = hashes.unique(return_inverse=True, return_counts=True)
    row = torch.empty_like(count).scatter_(0, inverse, torch.arange(len(inverse), device=hashes.device))
    return row, inverse, count
