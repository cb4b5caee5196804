"""A frame as G categorical variables of V classes, trained with the dynamics (DreamerV2, arXiv:2010.02193; STORM,
arXiv:2310.09615): a variational autoencoder whose posterior reads the frame alone.

Faithful: G x V logits from a convolutional encoder, 1 % of the uniform distribution mixed in, gradients straight through the
sample, reconstruction summed over pixels. Differs: outside training the codes are the most probable classes, not a sample.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenworld.interfaces import Codes, Losses, Part, Steps
from tokenworld.nn import categorical_entropy, sample_categorical, straight_through, uniform_mix
from tokenworld.tokenizers.convnet import ConvNet, Pixels, pixel_loss, pixels_of
from tokenworld.tokenizers.quantizers import check

LEAST_ENTROPY = 0.1  # of the largest possible: below this the loss `entropy` begins (TWM, arXiv:2303.07109)


class Categorical(nn.Module, Part):
    """Frames (C, H, W) to K = groups codes of V = classes; the vector of a code is one-hot, E = V.

    channels: of the first level of the convolutions · unimix: share of the uniform distribution in the posterior · pixels: what
    the decoder's output means, see `convnet.pixel_loss` · entropy: weight of a loss that keeps the posterior's entropy above a
    tenth of the largest possible; 0: none.
    """

    context, joint = 0, True

    def __init__(
        self,
        *,
        frame_shape: tuple[int, int, int],
        groups: int = 32,
        classes: int = 32,
        channels: int = 32,
        unimix: float = 0.01,
        pixels: Pixels = "mse",
        entropy: float = 0.0,
    ) -> None:
        super().__init__()
        check(groups >= 1, "tokenizer.groups must be at least 1", groups, "choose e.g. 32")
        check(classes >= 2, "tokenizer.classes must be at least 2", classes, "choose e.g. 32")
        check(0 <= unimix < 1, "tokenizer.unimix must lie in [0, 1)", unimix, "choose e.g. 0.01")
        check(entropy >= 0, "tokenizer.entropy must not be negative", entropy, "choose 0 or more")
        self.K, self.V, self.E, self.grid = groups, classes, classes, (1, groups)
        self.unimix, self.pixels = unimix, pixels
        self.weights = {"pixels": 1.0} | ({"entropy": entropy} if entropy else {})
        self.net = ConvNet(frame_shape, channels)
        self.encoder_out = nn.Linear(self.net.features, groups * classes)
        self.decoder_in = nn.Linear(groups * classes, self.net.features)

    def encode(self, steps: Steps) -> Codes:
        """obs (B, T, C, H, W) uint8 -> indices, vectors and logits of the posterior. In train mode a sample, whose vectors have
        the gradient of the probabilities; in eval mode the most probable classes."""
        B, T = steps.obs.shape[:2]
        logits = uniform_mix(self.encoder_out(self.net.encode(steps.obs).flatten(1)).view(B, T, self.K, self.V), self.unimix)
        if self.training:
            indices = sample_categorical(logits, torch.rand(logits.shape[:-1], device=logits.device))
        else:
            indices = logits.argmax(-1)
        return Codes(indices, straight_through(logits, indices), logits)

    def embed(self, indices: Tensor) -> Tensor:
        """indices (B, T, K) -> one-hot vectors (B, T, K, V)."""
        return F.one_hot(indices, self.V).to(self.decoder_in.weight.dtype)

    def decode(self, codes: Codes, past: Tensor | None = None) -> Tensor:
        """codes -> obs (B, T, C, H, W) float in 0..1."""
        return pixels_of(self._decode(codes), self.pixels)

    def loss(self, steps: Steps, codes: Codes | None = None) -> tuple[Losses, Codes]:
        """{"pixels", maybe "entropy"}: (B, T) in nats or squared pixel values, summed over the frame."""
        codes = self.encode(steps) if codes is None else codes
        losses = {"pixels": pixel_loss(self._decode(codes), steps.obs, self.pixels)}
        if "entropy" in self.weights:
            share = categorical_entropy(codes.logits).mean(-1) / math.log(self.V)  # (B, T)
            losses["entropy"] = (LEAST_ENTROPY - share).clamp(min=0)
        return losses, codes

    def _decode(self, codes: Codes) -> Tensor:
        vectors = self.embed(codes.indices) if codes.vectors is None else codes.vectors  # (B, T, K, V)
        B, T = vectors.shape[:2]
        features = self.decoder_in(vectors.flatten(0, 1).flatten(1)).view(B * T, self.net.D, *self.net.grid)
        return self.net.decode(F.silu(features)).unflatten(0, (B, T))


TINY = dict(groups=4, classes=4, channels=8)
