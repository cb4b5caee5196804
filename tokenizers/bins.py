"""State vectors as tokens: each number is one code, the bin in which it lies (Trajectory Transformer, arXiv:2106.02039, section
3.1; Gato, arXiv:2205.06175, section 2.1).

Nothing in it is learned by gradient: `prepare` fits the bins to what is seen before the first update, and they stay, so that a
code keeps its meaning. Differs: a code's vector is a set of smooth functions of its bin's position, so that a decoding that
uses code vectors knows which codes are near each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from tokenworld.interfaces import Codes, Losses, Part, Steps
from tokenworld.nn import symexp, symlog
from tokenworld.tokenizers.quantizers import check

WAVES = 4  # a code's vector: sines and cosines of so many wavelengths, the longest of which is twice the range of the bins
FAR = 30.0  # bins spaced by symlog reach this many standard deviations to both sides
NEAR = 3.0  # within a third of a standard deviation these bins are about evenly spaced


class Bins(nn.Module, Part):
    """Vectors (M, 1, 1) of float32 to K = M codes, each of one of V = `bins` bins of its own number, and back to bin centers.

    spacing: "uniform" from the least to the greatest number that `prepare` sees and `margin` times that range beyond both;
    "quantile": equally many of the seen numbers in each; "symlog": fine around the mean and coarse far from it, for numbers
    that grow while a policy learns.
    """

    context, joint = 0, False
    frame_dtype = "float32"

    def __init__(
        self,
        *,
        frame_shape: tuple[int, int, int],
        bins: int = 128,
        spacing: Literal["uniform", "quantile", "symlog"] = "uniform",
        margin: float = 0.5,
    ) -> None:
        super().__init__()
        M, H, W = frame_shape
        check(
            (H, W) == (1, 1), "a Bins tokenizer reads vectors of numbers, frames (M, 1, 1)", frame_shape,
            "choose a tokenizer of pictures, or an environment with state vectors",
        )  # fmt: skip
        check(bins >= 2, "tokenizer.bins must be at least 2", bins, "choose e.g. 128")
        check(margin >= 0, "tokenizer.margin must be at least 0", margin, "choose e.g. 0.5")
        self.spacing, self.margin = spacing, margin
        self.grid, self.K, self.V, self.E = (M, 1), M, bins, 1 + 2 * WAVES
        self.weights = {"l2": 1.0}
        even = torch.linspace(-1, 1, bins + 1)
        self.register_buffer("edges", even[1:-1].repeat(M, 1))  # (M, V-1), rising; bin v lies from edge v-1 up to edge v
        self.register_buffer("centers", ((even[1:] + even[:-1]) / 2).repeat(M, 1))  # (M, V)
        position = torch.linspace(-1, 1, bins).unsqueeze(1)
        waves = math.pi / 2 * 2 ** torch.arange(WAVES) * position  # (V, WAVES)
        self.register_buffer("codebook", torch.cat([position, waves.sin(), waves.cos()], 1), persistent=False)  # (V, E)

    @torch.no_grad()
    def prepare(self, sample: Callable[[], tuple[Steps, Codes | None]]) -> None:
        """Fit the bins to the numbers of a sample of frames."""
        seen = sample()[0].obs.flatten(0, 1).flatten(1).double().T  # (M, n)
        bounds = self._bounds(seen)  # (M, V+1)
        self.edges.copy_(bounds[:, 1:-1])
        self.centers.copy_((bounds[:, 1:] + bounds[:, :-1]) / 2)

    def _bounds(self, seen: Tensor) -> Tensor:
        """Numbers (M, n) -> where bins begin and end (M, V+1), rising."""
        even = torch.linspace(0, 1, self.V + 1, dtype=seen.dtype, device=seen.device)
        low, high = seen.amin(1, keepdim=True), seen.amax(1, keepdim=True)
        room = (high - low).clamp(min=1e-6)
        if self.spacing == "symlog":
            mean, unit = seen.mean(1, keepdim=True), seen.std(1, keepdim=True).clamp(min=1e-6) / NEAR
            return mean + unit * symexp((2 * even - 1) * symlog(torch.tensor(FAR * NEAR, dtype=seen.dtype)))
        if self.spacing == "quantile":  # bins of numbers that occur often are narrow, never empty
            bounds = torch.quantile(seen, even, dim=1).T
            return torch.cummax(bounds + even * room * 1e-6, 1).values
        low, high = low - self.margin * room, high + self.margin * room
        return low + even * (high - low)

    @torch.no_grad()
    def encode(self, steps: Steps) -> Codes:
        """obs (B, T, M, 1, 1) float32 -> indices (B, T, M), vectors (B, T, M, E)."""
        numbers = steps.obs.flatten(2).movedim(-1, 0)  # (M, B, T)
        indices = torch.searchsorted(self.edges, numbers.flatten(1).contiguous(), right=True)  # (M, B * T)
        indices = indices.view(numbers.shape).movedim(0, -1)
        return Codes(indices, self.embed(indices))

    def embed(self, indices: Tensor) -> Tensor:
        """indices (B, T, M) -> code vectors (B, T, M, E): the bin's position from -1 to 1, and waves of it."""
        return self.codebook[indices]

    def decode(self, codes: Codes, past: Tensor | None = None) -> Tensor:
        """indices (B, T, M) -> obs (B, T, M, 1, 1) float32: the centers of the bins."""
        numbers = self.centers.expand(*codes.indices.shape, self.V).gather(-1, codes.indices.unsqueeze(-1))  # (B, T, M, 1)
        return numbers.unsqueeze(-1)

    @torch.no_grad()
    def loss(self, steps: Steps, codes: Codes | None = None) -> tuple[Losses, Codes]:
        """{"l2": (B, T)}, the mean squared error in units of the range of all bins, without gradient."""
        codes = self.encode(steps) if codes is None else codes
        scale = (self.centers[:, -1] - self.centers[:, 0]).clamp(min=1e-6)  # (M,)
        error = (self.decode(codes) - steps.obs).flatten(2) / scale  # (B, T, M)
        return {"l2": error.square().mean(-1)}, codes


TINY = dict(bins=16)
