"""One position per step: all codes of a frame and the action in one vector, the next codes drawn from one output, each on its
own (STORM, arXiv:2310.09615; TransDreamer, arXiv:2202.09481; TWM, arXiv:2303.07109).

Faithful to STORM: reward and termination are read before the next codes are drawn; with a tokenizer that is trained together
with it, the loss is the balanced KL divergence between the posterior of the next frame and the prior (`kl`), of which nothing
below `free_nats` counts. Differs: without `kl` the loss is the cross-entropy of the codes, for any frozen tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, Losses, Part, Prediction, Shapes, State, Steps
from tokenworld.nn import ExactLinear, balanced_kl, check_kl, log_prob, loss_mask, sample_categorical, uniform_mix


@dataclass
class SingleState(State):
    """Everything has been read but the last frame, which waits for its action."""

    cache: Any
    codes: Tensor  # (B, K) of the last frame
    first: Tensor  # (B,) bool: the last frame is the first of its episode

    def select(self, index: Tensor) -> SingleState:
        return SingleState(self.cache.select(index), self.codes[index], self.first[index])

    def put(self, rows: Tensor, other: SingleState) -> SingleState | None:
        """None with a window of keys, whose rows have one cursor."""
        cache = self.cache.put(rows, other.cache)
        if cache is None:
            return None
        return SingleState(cache, self.codes.index_copy(0, rows, other.codes), self.first.index_copy(0, rows, other.first))


class Single(nn.Module, Part):
    """One forward pass and one position per frame.

    temperature: 0 is greedy · kl: {dyn, rep}, weights of the two directions of the KL divergence, for a tokenizer that is
    trained together with this; null: cross-entropy · free_nats: of the mean of each direction over a batch · unimix: share of
    the uniform distribution in what is predicted.
    """

    passes, lookahead, has_posterior, joint_draw = 1, 0, False, False

    def __init__(
        self,
        *,
        shapes: Shapes,
        action: nn.Module,
        temperature: float = 1.0,
        kl: dict | None = None,
        free_nats: float = 1.0,
        unimix: float = 0.01,
    ):
        super().__init__()
        if temperature < 0:
            raise UserError(f"decoding.temperature must be at least 0, got {temperature}: choose e.g. 1.0")
        if not 0 <= unimix < 1:
            raise UserError(f"decoding.unimix must be at least 0 and below 1, got {unimix}: choose e.g. 0.01")
        K, V, D = shapes.codes, shapes.vocab_size, shapes.dim
        if V < 2:
            raise UserError("decoding Single predicts codes with indices, which this tokenizer does not make: choose tokenizer"
                            " categorical, or decoding rssm")  # fmt: skip
        self.shapes, self.K, self.V, self.noise_size = shapes, K, V, K
        self.temperature, self.unimix, self.free_nats = temperature, unimix, free_nats
        self.weights = {"codes": 1.0} if kl is None else check_kl(kl)
        self.action = action
        self.code = nn.EmbeddingBag(K * V, D, mode="sum")
        nn.init.normal_(self.code.weight, std=K**-0.5)
        self.register_buffer("offset", torch.arange(K) * V, persistent=False)
        self.enter = nn.Sequential(nn.LayerNorm(D), nn.SiLU(), nn.Linear(D, D))
        self.hidden, self.logits = nn.Linear(D, D), ExactLinear(D, K * V)

    def loss(self, backbone, codes: Codes, steps: Steps) -> tuple[Losses, Tensor, Codes]:
        """{"codes": (B, T-1)}, the cross-entropy in nats as a mean over K, or {"dyn", "rep": (B, T-1)}, KL divergences in nats
        as sums over K; h (B, T, D)."""
        h = self._read(backbone, codes, steps.action, None, steps.first)[0]  # (B, T, D)
        prior = self._prior(h[:, :-1])  # (B, T-1, K, V)
        if "codes" in self.weights:
            return {"codes": -log_prob(prior, codes.indices[:, 1:]).mean(-1)}, h, codes
        if codes.logits is None:
            raise UserError("decoding.kl needs the posterior of a tokenizer that is trained with the decoding, but this one is"
                            " frozen: set decoding.kl=null, or train.dynamics._target_="
                            "tokenworld.training.phases.world.train_world")  # fmt: skip
        return balanced_kl(codes.logits[:, 1:], prior, self.free_nats, loss_mask(steps, prior.shape[1])), h, codes

    def start(self, backbone, codes: Codes, steps: Steps) -> tuple[Prediction, SingleState]:
        z, first = codes.indices, steps.first
        cache, h = backbone.make_cache(len(z), 1), self.logits.weight.new_zeros(len(z), self.shapes.dim)
        logits = self._prior(h)
        if z.shape[1] > 1:
            out, cache = self._read(backbone, codes[:, :-1], steps.action[:, :-1], cache, first[:, :-1])
            h = torch.where(first[:, -1:], 0, out[:, -1])
            logits = self._prior(h)
        return Prediction(Codes(z[:, -1:]), h, lambda: logits), SingleState(cache, z[:, -1], first[:, -1])

    def step(self, backbone, state, action, noise, codes: Codes | None = None, first: Tensor | None = None):
        """Samples with noise (B, K), or reads `codes`."""
        last = Codes(state.codes.unsqueeze(1))
        out, cache = self._read(backbone, last, action.unsqueeze(1), state.cache, state.first.unsqueeze(1))
        begins = torch.zeros_like(state.first) if first is None else first
        h = torch.where(begins[:, None], 0, out[:, 0])
        logits = self._prior(h)
        z = sample_categorical(logits, noise, self.temperature) if codes is None else codes.indices[:, 0]
        return Prediction(Codes(z.unsqueeze(1)), h, lambda: logits), SingleState(cache, z, begins)

    def _read(self, backbone, codes: Codes, action: Tensor, cache: Any, first: Tensor | None) -> tuple[Tensor, Any]:
        """codes (B, T, K), action (B, T) -> h (B, T, D), cache."""
        B, T = codes.shape
        if codes.logits is None:
            x = self.code((codes.indices + self.offset).flatten(0, 1)).view(B, T, -1)
        else:  # a gradient flows back to the tokenizer
            x = codes.vectors.flatten(2) @ self.code.weight  # (B, T, K * V) @ (K * V, D)
        h, cache = backbone(self.enter(x + self.action(action)).unsqueeze(2), "causal", cache, first)
        return h.squeeze(2), cache

    def _prior(self, h: Tensor) -> Tensor:
        """h (..., D) -> log-probabilities (..., K, V) of the next codes."""
        return uniform_mix(self.logits(F.silu(self.hidden(h))).unflatten(-1, (self.K, self.V)), self.unimix)


TINY = dict()
