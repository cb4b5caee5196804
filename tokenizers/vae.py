"""Frames as one Gaussian vector: the variational autoencoder of World Models (Ha and Schmidhuber 2018, arXiv:1803.10122,
section 2.1 and appendix A.1), trained alone.

Faithful: one vector z per frame, a decoder that reads nothing else, a divergence from the standard normal distribution that
costs nothing below 0.5 nats per dimension. Differs: `encode` returns the mean of z where the paper samples it; the convolutions
are those of `convnet.py`, so that frames of any size work.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, Losses, Part, Steps
from tokenworld.tokenizers.convnet import ConvNet, Pixels, pixel_loss, pixels_of
from tokenworld.tokenizers.quantizers import check

MOST_LOG_VARIANCE = 10.0  # of either sign: its exponential stays finite


class VAE(nn.Module, Part):
    """Frames (C, H, W) to one vector z of width E = dim, and back; there are no indices (V = 0).

    channels: of the first level of the convolutions · pixels: what the decoder's output means, see `convnet.pixel_loss` ·
    free_nats: per dimension of z, below which the divergence of a frame has no gradient (the paper's code has 0.5).
    """

    context, joint, K, V, grid = 0, False, 1, 0, (1, 1)

    def __init__(
        self,
        *,
        frame_shape: tuple[int, int, int],
        dim: int = 32,
        channels: int = 32,
        pixels: Pixels = "mse",
        free_nats: float = 0.5,
    ) -> None:
        super().__init__()
        check(dim >= 1, "tokenizer.dim must be at least 1", dim, "choose e.g. 32")
        check(free_nats >= 0, "tokenizer.free_nats must be at least 0", free_nats, "choose e.g. 0.5")
        self.net, self.pixels, self.E, self.free_nats = ConvNet(frame_shape, channels), pixels, dim, free_nats
        self.weights = {"pixels": 1.0, "kl": 1.0}
        self.encoder_out = nn.Linear(self.net.features, 2 * dim)
        self.decoder_in = nn.Linear(dim, self.net.features)

    @torch.no_grad()
    def encode(self, steps: Steps) -> Codes:
        """obs (B, T, C, H, W) uint8 -> vectors (B, T, 1, E): the mean of z."""
        return Codes(vectors=self._posterior(steps.obs)[0].unsqueeze(2))

    def embed(self, indices: Tensor) -> Tensor:
        """Raises UserError: there are no indices."""
        raise UserError("a VAE has no codebook, got indices: pass the vectors of its codes")

    def decode(self, codes: Codes, past: Tensor | None = None) -> Tensor:
        """vectors (B, T, 1, E) -> obs (B, T, C, H, W) float in 0..1."""
        return pixels_of(self._decode(codes.vectors), self.pixels)

    def loss(self, steps: Steps, codes: Codes | None = None) -> tuple[Losses, Codes]:
        """{"pixels", "kl": (B, T)} in nats, or squared pixel values, summed over the frame and over z. In train mode z is
        sampled, in eval mode it is the mean. Raises UserError for codes that were encoded before."""
        if codes is not None:
            raise UserError("a VAE learns from frames alone, got codes: use train.tokenizer and"
                            " train.dynamics._target_=tokenworld.training.phases.dynamics.train_dynamics")  # fmt: skip
        mean, log_variance = self._posterior(steps.obs)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean) if self.training else mean
        kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(-1)
        vectors = z.unsqueeze(2)  # (B, T, 1, E)
        losses = {
            "pixels": pixel_loss(self._decode(vectors), steps.obs, self.pixels),
            "kl": kl.clamp(min=self.free_nats * self.E),
        }
        return losses, Codes(vectors=vectors)

    def _posterior(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """obs (B, T, C, H, W) -> mean and log-variance of z, each (B, T, E) in fp32."""
        features = self.net.encode(obs).flatten(1)  # (B * T, D * h * w)
        mean, log_variance = self.encoder_out(features).float().unflatten(0, obs.shape[:2]).chunk(2, -1)
        return mean, log_variance.clamp(-MOST_LOG_VARIANCE, MOST_LOG_VARIANCE)

    def _decode(self, vectors: Tensor) -> Tensor:
        B, T = vectors.shape[:2]
        x = self.decoder_in(vectors.flatten(0, 2).to(self.decoder_in.weight.dtype))  # (B * T, D * h * w)
        return self.net.decode(x.unflatten(1, (self.net.D, *self.net.grid))).unflatten(0, (B, T))


TINY = dict(dim=4, channels=8)
