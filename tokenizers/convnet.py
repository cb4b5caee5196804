"""A small convolutional encoder and its decoder, for tokenizers that are trained with the dynamics (DreamerV3,
arXiv:2301.04104, appendix B): every halving of the frame doubles the channels."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenworld.kernels.layers import GroupNorm
from tokenworld.tokenizers.quantizers import check

Pixels = Literal["bernoulli", "mse"]
SMALLEST = 4  # a side of the feature map is at least this where the frame allows it
WIDEST = 8  # times the channels of the first level


def levels_of(frame_shape: tuple[int, int, int]) -> int:
    """How often a frame (C, H, W) is halved: 64 x 64 to 4 x 4, 10 x 10 to 5 x 5."""
    levels, side = 0, min(frame_shape[1:])
    while side >= 2 * SMALLEST:
        side, levels = -(-side // 2), levels + 1
    return levels


class ConvNet(nn.Module):
    """Frames (n, C, H, W) in 0..1 to features (n, D, h, w) and back to the logits or values of pixels."""

    def __init__(self, frame_shape: tuple[int, int, int], channels: int):
        super().__init__()
        check(channels >= 1, "tokenizer.channels must be at least 1", channels, "choose e.g. 32")
        C, H, W = frame_shape
        levels = levels_of(frame_shape)
        scale = 2**levels
        self.frame_shape, self.grid = (C, H, W), (-(-H // scale), -(-W // scale))
        self.padding = (0, self.grid[1] * scale - W, 0, self.grid[0] * scale - H)
        widths = [channels * min(2**level, WIDEST) for level in range(levels + 1)]
        self.D = widths[-1]
        down: list[nn.Module] = [nn.Conv2d(C, channels, 3, padding=1), _norm(channels), nn.SiLU()]
        up: list[nn.Module] = []
        for narrow, wide in zip(widths, widths[1:], strict=False):
            down += [nn.Conv2d(narrow, wide, 4, 2, 1), _norm(wide), nn.SiLU()]
            up = [nn.ConvTranspose2d(wide, narrow, 4, 2, 1), _norm(narrow), nn.SiLU(), *up]
        self.encoder = nn.Sequential(*down)
        self.decoder = nn.Sequential(*up, nn.Conv2d(channels, C, 3, padding=1))

    @property
    def features(self) -> int:
        """The size of a feature map, D * h * w."""
        return self.D * self.grid[0] * self.grid[1]

    def encode(self, obs: Tensor) -> Tensor:
        """obs (B, T, C, H, W) uint8 -> features (B*T, D, h, w)."""
        x = F.pad(obs.flatten(0, 1).float() / 255, self.padding, mode="replicate")  # (B*T, C, H', W')
        return self.encoder(x.contiguous(memory_format=torch.channels_last))

    def decode(self, features: Tensor) -> Tensor:
        """features (n, D, h, w) -> (n, C, H, W), not yet in 0..1."""
        _, H, W = self.frame_shape
        return self.decoder(features.contiguous(memory_format=torch.channels_last))[..., :H, :W]


def _norm(channels: int) -> GroupNorm:
    return GroupNorm(1, channels)


def pixel_loss(out: Tensor, obs: Tensor, pixels: Pixels) -> Tensor:
    """What the decoder made (B, T, C, H, W) against frames of bytes -> (B, T), a sum over pixels.

    bernoulli: binary cross-entropy of logits, for frames of sparse bits, of which a squared error forgets the few · mse:
    squared error of values."""
    target = obs.float() / 255
    if pixels == "bernoulli":
        return F.binary_cross_entropy_with_logits(out.float(), target, reduction="none").sum((2, 3, 4))
    return (out.float() - target).square().sum((2, 3, 4))


def pixels_of(out: Tensor, pixels: Pixels) -> Tensor:
    """What the decoder made -> values in 0..1."""
    return out.float().sigmoid() if pixels == "bernoulli" else out.float().clamp(0, 1)
