"""A convolutional VQ-VAE (van den Oord et al. 2017) with the networks of VQGAN (Esser et al. 2021): IRIS's tokenizer.

Faithful to IRIS (Micheli et al. 2023) at the defaults: 64x64x3 to 4x4 codes, 64 channels, two residual blocks per
level, attention at 8 and 16, l1 + codebook + commitment. Different: frames of any size (padded at the right and bottom
edge, cropped again), the other quantizers, l2, a weight on changing pixels, and the perceptual term only from a local
file.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, Losses, Part, Steps
from tokenworld.kernels.layers import GroupNorm
from tokenworld.tokenizers.quantizers import Kind, Quantizer, check


class VQVAE(nn.Module, Part):
    """Frames (C, H, W) to a grid of ceil(H / s) x ceil(W / s) codes, s = 2 ** downsamplings, and back.

    channels: of all levels · blocks: residual blocks per level (the decoder has one more) · attention: feature-map
    heights at which a block is followed by self-attention · dim: width E of the code vectors and of the encoder's
    output · commitment, l1, l2: loss weights (codebook and perceptual have weight 1, lfq's entropy 0.1) ·
    change_weight: weight in l1 and l2 of pixels that differ from the previous frame (batches with T >= 2) · perceptual:
    a safetensors file with VGG16 and LPIPS weights, see `Perceptual`.
    """

    context, joint = 0, False

    def __init__(
        self,
        *,
        frame_shape: tuple[int, int, int],
        channels: int = 64,
        downsamplings: int = 4,
        blocks: int = 2,
        attention: list[int] | None = None,
        vocab_size: int = 512,
        dim: int = 512,
        quantizer: Kind = "vq",
        commitment: float = 1.0,
        l1: float = 1.0,
        l2: float = 0.0,
        change_weight: float = 1.0,
        perceptual: str | None = None,
    ) -> None:
        super().__init__()
        C, H, W = frame_shape
        attention = [8, 16] if attention is None else attention
        check(channels >= 1, "tokenizer.channels must be at least 1", channels, "choose e.g. 64")
        check(blocks >= 1, "tokenizer.blocks must be at least 1", blocks, "choose e.g. 2")
        fits = downsamplings >= 0 and 2**downsamplings <= min(H, W)
        hint = f"choose e.g. {min(2, min(H, W).bit_length() - 1)}"
        check(fits, f"tokenizer.downsamplings must leave a code of frames of {H}x{W}", downsamplings, hint)
        check(
            min(commitment, l1, l2) >= 0,
            "tokenizer.commitment, l1 and l2 must not be negative",
            (commitment, l1, l2),
            "choose 0 or more",
        )
        check(
            change_weight > 0,
            "tokenizer.change_weight must be positive",
            change_weight,
            "choose 1 to weigh all pixels alike",
        )
        self.quantizer = Quantizer(kind=quantizer, vocab_size=vocab_size, dim=dim)
        self.frame_shape, self.change_weight = (C, H, W), change_weight
        scale = 2**downsamplings
        self.grid = (-(-H // scale), -(-W // scale))
        self.K, self.V, self.E = self.grid[0] * self.grid[1], vocab_size, dim
        self.padding = (0, self.grid[1] * scale - W, 0, self.grid[0] * scale - H)
        self.weights = {"l1": l1, "l2": l2} | {
            name: commitment if name == "commitment" else 1.0 for name in self.quantizer.losses
        }
        if "entropy" in self.weights:
            self.weights["entropy"] = 0.1  # the library's own default

        heights = [
            self.grid[0] * 2**level for level in range(downsamplings, -1, -1)
        ]  # of the feature maps, largest first
        self.encoder = nn.Sequential(
            nn.Conv2d(C, channels, 3, padding=1),
            *_levels(Down, channels, heights, blocks, attention),
            *_middle(channels),
            *_out(channels, dim),
            nn.Conv2d(dim, dim, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.Conv2d(dim, channels, 3, padding=1),
            *_middle(channels),
            *_levels(Up, channels, heights[::-1], blocks + 1, attention),
            *_out(channels, C),
        )
        self.perceptual = None
        if perceptual is not None:
            check(C == 3, "tokenizer.perceptual needs frames of 3 channels", C, "leave it out")
            check(min(H, W) >= 16, "tokenizer.perceptual needs frames of 16x16 or more", f"{H}x{W}", "leave it out")
            self.perceptual = Perceptual(perceptual)
            self.weights["perceptual"] = 1.0

    @torch.no_grad()
    def encode(self, steps: Steps) -> Codes:
        """obs (B, T, C, H, W) uint8 -> indices (B, T, K), vectors (B, T, K, E). No gradient, no codebook update."""
        B, T = steps.obs.shape[:2]
        _, indices, _ = self.quantizer(self._encode(steps.obs), freeze=True)
        indices = indices.reshape(B, T, self.K)
        return Codes(indices=indices, vectors=self.embed(indices))

    def embed(self, indices: Tensor) -> Tensor:
        """indices (B, T, K) -> code vectors (B, T, K, E)."""
        return self.quantizer.embed(indices)

    def decode(self, codes: Codes, past: Tensor | None = None) -> Tensor:
        """codes (indices, or vectors where there are no indices) -> obs (B, T, C, H, W) float in 0..1."""
        vectors = codes.vectors if codes.indices is None else self.embed(codes.indices)
        return self._decode(vectors).float().clamp(0, 1)

    def loss(self, steps: Steps) -> tuple[Losses, Codes]:
        """l1, l2 and perceptual (B, T) of pixels 0..1, the quantizer's losses (). Train mode moves an EMA codebook."""
        B, T = steps.obs.shape[:2]
        vectors, indices, losses = self.quantizer(self._encode(steps.obs))
        codes = Codes(indices=indices.reshape(B, T, self.K), vectors=vectors.reshape(B, T, self.K, self.E))
        target = steps.obs.float() / 255
        output = self._decode(codes.vectors).float()
        error = output - target
        weight = pixel_weights(steps, self.change_weight)  # (B, T, 1, H, W)
        losses = {
            "l1": (weight * error.abs()).mean((2, 3, 4)),
            "l2": (weight * error.square()).mean((2, 3, 4)),
        } | losses  # (B, T)
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(output.flatten(0, 1), target.flatten(0, 1)).reshape(B, T)
        return losses, codes

    def _encode(self, obs: Tensor) -> Tensor:
        """obs (B, T, C, H, W) uint8 -> vectors before quantization (B*T, K, E)."""
        x = F.pad(obs.flatten(0, 1).float() / 127.5 - 1, self.padding, mode="replicate")  # (B*T, C, H', W') in -1..1
        return self.encoder(_channels_last(x)).flatten(2).transpose(1, 2)  # (B*T, K, E)

    def _decode(self, vectors: Tensor) -> Tensor:
        """Code vectors (B, T, K, E) -> pixels (B, T, C, H, W), about 0..1."""
        B, T, K, E = vectors.shape
        x = _channels_last(vectors.reshape(B * T, K, E).transpose(1, 2).reshape(B * T, E, *self.grid))
        _, H, W = self.frame_shape
        x = torch.cat([self.decoder(part) for part in x.split(self._frames_at_once(x))])
        return (x[..., :H, :W].unflatten(0, (B, T)) + 1) / 2


    @staticmethod
    def _frames_at_once(x: Tensor) -> int:
        """On a CPU a few frames' feature maps stay in its cache, 1.4 times faster; a gradient keeps them all anyway."""
        return 16 if x.device.type == "cpu" and not torch.is_grad_enabled() else max(1, len(x))


def _channels_last(x: Tensor) -> Tensor:
    """The layout in which convolutions and group norms are fastest on CPUs and GPUs alike."""
    return x.contiguous(memory_format=torch.channels_last)


class Residual(nn.Module):
    """x + conv(conv(x)), each convolution after a group norm and swish."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            group_norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
            group_norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Attention(nn.Module):
    """x plus one head of self-attention over all positions of the feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)  # (b, 1, h*w, channels)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed[:, 0].transpose(1, 2).reshape(x.shape))


class Down(nn.Module):
    """Halve height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """Double height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def group_norm(channels: int) -> GroupNorm:
    """32 groups as in the paper, fewer where the channels do not allow it."""
    groups = next(g for g in range(min(32, channels), 0, -1) if channels % g == 0)
    return GroupNorm(groups, channels, eps=1e-6)


def _levels(
    between: type[nn.Module], channels: int, heights: list[int], blocks: int, attention: list[int]
) -> list[nn.Module]:
    """For each height `blocks` residual blocks, with attention if the height is listed; between heights Down or Up."""
    modules: list[nn.Module] = []
    for level, height in enumerate(heights):
        for _ in range(blocks):
            modules.append(Residual(channels))
            if height in attention:
                modules.append(Attention(channels))
        if level + 1 < len(heights):
            modules.append(between(channels))
    return modules


def _middle(channels: int) -> list[nn.Module]:
    return [Residual(channels), Attention(channels), Residual(channels)]


def _out(channels: int, output: int) -> list[nn.Module]:
    return [group_norm(channels), nn.SiLU(), nn.Conv2d(channels, output, 3, padding=1)]


def pixel_weights(steps: Steps, change_weight: float) -> Tensor:
    """Weights (B, T, 1, H, W): `change_weight` where a pixel differs from the previous frame of its episode, else 1.

    A frame whose predecessor is unknown (t = 0, `first`) has weight 1 everywhere.
    """
    changed = torch.zeros_like(steps.obs[:, :, :1], dtype=torch.bool)
    changed[:, 1:] = (steps.obs[:, 1:] != steps.obs[:, :-1]).any(2, keepdim=True)
    changed &= ~steps.first[:, :, None, None, None]
    return torch.where(changed, change_weight, 1.0)


class Perceptual(nn.Module):
    """LPIPS (Zhang et al. 2018, version 0.1, VGG16): how far apart two images look. Frozen, not saved with the model.

    The file holds torchvision's VGG16 convolutions (`features.0.weight`, `features.0.bias`, `features.2.weight`, ...)
    and the linear weights of LPIPS (`lin0.model.1.weight` (1, 64, 1, 1), ... `lin4.model.1.weight`), as safetensors.
    """

    # Index of each convolution in torchvision's `features`, by block; a feature is the last ReLU of a block.
    BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))

    def __init__(self, path: str) -> None:
        super().__init__()
        if not Path(path).is_file():
            raise UserError(
                "tokenizer.perceptual must name a safetensors file with VGG16 and LPIPS weights, "
                f"got {path} which does not exist: leave it out or give the path of a local file"
            )
        names = [f"features.{i}.{kind}" for block in self.BLOCKS for i in block for kind in ("weight", "bias")]
        names += [f"lin{block}.model.1.weight" for block in range(len(self.BLOCKS))]
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise UserError(
                f"tokenizer.perceptual must name a safetensors file, got {path} ({error}): convert it"
            ) from error
        missing = [name for name in names if name not in tensors]
        if missing:
            raise UserError(
                "tokenizer.perceptual must hold VGG16 and LPIPS weights, "
                f"got {path} without {missing[0]}: convert it again"
            )
        for name in names:
            self.register_buffer(name.replace(".", "_"), tensors[name].float(), persistent=False)
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """a, b (n, 3, H, W) in 0..1 -> distance (n,)."""
        x = (torch.cat([a, b]) * 2 - 1 - self.shift) / self.scale
        distance = torch.zeros(len(a), device=a.device)
        for block, layers in enumerate(self.BLOCKS):
            if block:
                x = F.max_pool2d(x, 2)
            for i in layers:
                x = F.relu(
                    F.conv2d(x, getattr(self, f"features_{i}_weight"), getattr(self, f"features_{i}_bias"), padding=1)
                )
            unit_a, unit_b = F.normalize(x, dim=1, eps=1e-10).chunk(2)
            linear = getattr(self, f"lin{block}_model_1_weight")
            distance = distance + F.conv2d((unit_a - unit_b).square(), linear).mean((1, 2, 3))
        return distance


TINY = dict(channels=8, downsamplings=1, blocks=1, attention=[], vocab_size=8, dim=8)
