"""Frames as a grid of vectors without a codebook: the features that a decoding with a posterior reads (DreamerV3,
arXiv:2301.04104, section "World model learning"), and the decoder of what it makes of them."""

from __future__ import annotations

from torch import Tensor, nn

from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, Losses, Part, Steps
from tokenworld.tokenizers.convnet import ConvNet, Pixels, pixel_loss, pixels_of
from tokenworld.tokenizers.quantizers import check


class Continuous(nn.Module, Part):
    """Frames (C, H, W) to K = h * w vectors of width E = dim, and back; there are no indices (V = 0).

    channels: of the first level of the convolutions · pixels: what the decoder's output means, see `convnet.pixel_loss`.
    """

    context, joint, V = 0, True, 0

    def __init__(
        self, *, frame_shape: tuple[int, int, int], dim: int = 16, channels: int = 32, pixels: Pixels = "mse"
    ) -> None:
        super().__init__()
        check(dim >= 1, "tokenizer.dim must be at least 1", dim, "choose e.g. 16")
        self.net, self.pixels = ConvNet(frame_shape, channels), pixels
        self.grid = self.net.grid
        self.K, self.E = self.grid[0] * self.grid[1], dim
        self.weights = {"pixels": 1.0}
        self.encoder_out = nn.Conv2d(self.net.D, dim, 1)
        self.decoder_in = nn.Sequential(nn.SiLU(), nn.Conv2d(dim, self.net.D, 1))

    def encode(self, steps: Steps) -> Codes:
        """obs (B, T, C, H, W) uint8 -> vectors (B, T, K, E), with a gradient."""
        cells = self.encoder_out(self.net.encode(steps.obs))  # (B * T, E, h, w)
        return Codes(vectors=cells.flatten(2).transpose(1, 2).unflatten(0, steps.obs.shape[:2]))  # (B, T, K, E)

    def embed(self, indices: Tensor) -> Tensor:
        """Raises UserError: there are no indices."""
        raise UserError("a Continuous tokenizer has no codebook, got indices: pass the vectors of its codes")

    def decode(self, codes: Codes, past: Tensor | None = None) -> Tensor:
        """vectors (B, T, K, E) -> obs (B, T, C, H, W) float in 0..1."""
        return pixels_of(self._decode(codes), self.pixels)

    def loss(self, steps: Steps, codes: Codes | None = None) -> tuple[Losses, Codes]:
        """{"pixels": (B, T)} in nats or squared pixel values, summed over the frame."""
        codes = self.encode(steps) if codes is None else codes
        return {"pixels": pixel_loss(self._decode(codes), steps.obs, self.pixels)}, codes

    def _decode(self, codes: Codes) -> Tensor:
        B, T, K, E = codes.vectors.shape
        cells = codes.vectors.reshape(B * T, K, E).transpose(1, 2).reshape(B * T, E, *self.grid)  # (B * T, E, h, w)
        return self.net.decode(self.decoder_in(cells)).unflatten(0, (B, T))


TINY = dict(dim=4, channels=8)
