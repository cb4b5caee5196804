"""A mixture density network on a recurrent network, the model M of World Models (Ha and Schmidhuber 2018, arXiv:1803.10122,
section 2.2 and appendix A.2): the next z as a mixture of Gaussians per dimension.

Faithful: each dimension has a mixture of its own; a temperature divides the logits of the mixture and multiplies variances
(section 4.2). Differs: reward and termination are tokenworld's heads on h; no standard deviation is below `floor`, because z is
the mean of a frame's posterior and not a sample of it, so the density of a dimension that hardly varies would have no bound.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tokenworld.decoding.single import SingleState
from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, Losses, Part, Prediction, Shapes, Steps
from tokenworld.nn import ExactLinear, normal_of, sample_categorical


class Mixture(nn.Module, Part):
    """One forward pass and one position per frame, for a tokenizer that returns vectors; it has a density, but no likelihood
    of codes.

    mixtures: Gaussians per dimension of z · floor: the least standard deviation · temperature: of imagined codes; 0 takes the
    mean of the most probable Gaussian.
    """

    passes, lookahead, has_posterior, joint_draw = 1, 0, False, False

    def __init__(
        self, *, shapes: Shapes, action: nn.Module, mixtures: int = 5, floor: float = 0.05, temperature: float = 1.0
    ):
        super().__init__()
        if shapes.vocab_size:
            raise UserError("decoding Mixture predicts vectors, but this tokenizer makes codes with indices: choose tokenizer"
                            " vae, or decoding single")  # fmt: skip
        if mixtures < 1:
            raise UserError(f"decoding.mixtures must be at least 1, got {mixtures}: choose e.g. 5")
        if floor <= 0 or temperature < 0:
            raise UserError("decoding.floor must be positive and decoding.temperature at least 0,"
                            f" got {floor} and {temperature}: choose e.g. 0.05 and 1.0")  # fmt: skip
        D, self.Z = shapes.dim, shapes.codes * shapes.code_dim
        self.shapes, self.mixtures, self.floor, self.temperature = shapes, mixtures, floor, temperature
        self.noise_size = 2 * self.Z
        self.weights = {"codes": 1.0}
        self.action = action
        self.code, self.enter = nn.Linear(self.Z, D), nn.Sequential(nn.LayerNorm(D), nn.SiLU(), nn.Linear(D, D))
        self.out = ExactLinear(D, 3 * self.Z * mixtures)

    def loss(self, backbone, codes: Codes, steps: Steps) -> tuple[Losses, Tensor, Codes]:
        """{"codes": (B, T-1)}, minus the log-density of the next z in nats as a mean over its dimensions; h (B, T, D)."""
        h = self._read(backbone, codes.vectors, steps.action, None, steps.first)[0]  # (B, T, D)
        logits, mean, deviation = self._mixture(h[:, :-1])  # (B, T-1, Z, M) each
        error = (codes.vectors[:, 1:].flatten(2).unsqueeze(-1) - mean) / deviation
        density = -0.5 * error.square() - deviation.log() - 0.5 * math.log(2 * math.pi)
        return {"codes": -(logits.log_softmax(-1) + density).logsumexp(-1).mean(-1)}, h, codes

    def start(self, backbone, codes: Codes, steps: Steps) -> tuple[Prediction, SingleState]:
        z, first = codes.vectors, steps.first
        cache, h = backbone.make_cache(len(z), 1), self.out.weight.new_zeros(len(z), self.shapes.dim)
        if z.shape[1] > 1:
            out, cache = self._read(backbone, z[:, :-1], steps.action[:, :-1], cache, first[:, :-1])
            h = torch.where(first[:, -1:], 0, out[:, -1])
        return Prediction(Codes(vectors=z[:, -1:]), h), SingleState(cache, z[:, -1], first[:, -1])

    def step(self, backbone, state, action, noise, codes: Codes | None = None, first: Tensor | None = None):
        """Samples with noise (B, 2 * Z), or reads `codes`."""
        last, began = state.codes.unsqueeze(1), state.first.unsqueeze(1)
        out, cache = self._read(backbone, last, action.unsqueeze(1), state.cache, began)
        begins = torch.zeros_like(state.first) if first is None else first
        h = torch.where(begins[:, None], 0, out[:, 0])
        z = self._draw(h, noise) if codes is None else codes.vectors[:, 0]
        return Prediction(Codes(vectors=z.unsqueeze(1)), h), SingleState(cache, z, begins)

    def _read(self, backbone, z: Tensor, action: Tensor, cache: Any, first: Tensor | None) -> tuple[Tensor, Any]:
        """z (B, T, K, E), action (B, T) -> h (B, T, D), cache."""
        x = self.code(z.flatten(2).to(self.code.weight.dtype)) + self.action(action)  # (B, T, D)
        h, cache = backbone(self.enter(x).unsqueeze(2), "causal", cache, first)
        return h.squeeze(2), cache

    def _mixture(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """h (..., D) -> logits, means and standard deviations, (..., Z, M) each."""
        logits, mean, log_deviation = self.out(h).unflatten(-1, (3, self.Z, self.mixtures)).unbind(-3)
        return logits, mean, self.floor + log_deviation.exp()

    def _draw(self, h: Tensor, noise: Tensor) -> Tensor:
        """h (B, D), noise (B, 2 * Z): which Gaussian, and where in it -> z (B, K, E)."""
        logits, mean, deviation = self._mixture(h)  # (B, Z, M)
        which, where = noise.chunk(2, -1)
        index = sample_categorical(logits, which, self.temperature).unsqueeze(-1)  # (B, Z, 1)
        mean, deviation = mean.gather(-1, index).squeeze(-1), deviation.gather(-1, index).squeeze(-1)
        z = mean + deviation * self.temperature**0.5 * normal_of(where)
        return z.unflatten(-1, (self.shapes.codes, self.shapes.code_dim))  # (B, K, E)


TINY = dict(mixtures=2)
