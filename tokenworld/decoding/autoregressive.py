"""Autoregressive decoding: one code after the other (IRIS, arXiv:2209.00588, section 2.2).

A step is its K codes, then its action (P = K + 1). The action's position predicts the next frame's first code, the reward
and the termination; code k predicts code k+1 of the same frame. Faithful: order, shifts, own code embedding, separate MLP
heads. Differs: a frame takes K passes, not K + 1, because its last code and the next action are read in one pass, and the
position within a step is a learned vector while the time step is left to the backbone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, Losses, Part, Prediction, Shapes, State, Steps
from tokenworld.nn import log_prob, mlp, sample_categorical


@dataclass
class AutoregressiveState(State):
    """Everything has been read but the last frame's last code, which waits for the action to share its pass."""

    cache: Any
    codes: Tensor  # (B, K) of the last frame
    first: Tensor  # (B,) bool: the last frame is the first of its episode

    def select(self, index: Tensor) -> AutoregressiveState:
        return AutoregressiveState(self.cache.select(index), self.codes[index], self.first[index])


class Autoregressive(nn.Module, Part):
    """K forward passes per frame, exact joint distribution of a frame's codes. temperature 0 is greedy."""

    lookahead, has_posterior, joint_draw = 0, False, True

    def __init__(self, *, shapes: Shapes, action: nn.Module, temperature: float = 1.0):
        super().__init__()
        if temperature < 0:
            raise UserError(f"decoding.temperature must be at least 0, got {temperature}: choose e.g. 1.0")
        K, V, D = shapes.codes, shapes.vocab_size, shapes.dim
        self.K, self.temperature = K, temperature
        self.passes = self.noise_size = K
        self.shapes = shapes
        self.weights = {"codes": 1.0}
        self.action = action
        self.code = nn.Embedding(V, D)
        self.place = nn.Parameter(torch.randn(K + 1, D) * 0.3)
        self.logits = mlp(D, V, hidden=D, exact=True)
        nn.init.normal_(self.code.weight, std=0.3)

    def loss(self, backbone, codes: Codes, steps: Steps) -> tuple[Losses, Tensor, Codes]:
        """Cross-entropy in nats, a mean over K: {"codes": (B, T-1)}; h (B, T, D) at the action positions."""
        z = codes.indices
        B, T, K = z.shape
        h, _ = backbone(self._embed(z, steps.action), "causal", None, steps.first)  # (B, T, K+1, D)
        nats = -log_prob(self._logits_of_next(h), z[:, 1:])  # (B, T-1, K)
        return {"codes": nats.mean(-1)}, h[:, :, K], codes

    def start(self, backbone, codes: Codes, steps: Steps) -> tuple[Prediction, AutoregressiveState]:
        z = codes.indices
        B, T, K = z.shape
        cache = backbone.make_cache(B, K + 1)
        h = self.place.new_zeros(B, self.place.shape[-1])
        if T > 1:
            past, cache = backbone(self._embed(z[:, :-1], steps.action[:, :-1]), "causal", cache, steps.first[:, :-1])
            h = torch.where(steps.first[:, -1:], 0, past[:, -1, K])
        return self._read_frame(backbone, AutoregressiveState(cache, z[:, -1], steps.first[:, -1]), h)

    def step(self, backbone, state, action, noise, codes: Codes | None = None, first: Tensor | None = None):
        """Samples with noise (B, K), or reads `codes` in two passes."""
        cache, K = state.cache, self.K
        last = torch.stack(
            [self.code(state.codes[:, -1]) + self.place[K - 1], self.action(action) + self.place[K]], 1
        )  # (B, 2, D): the waiting code and the action in one pass
        out, cache = backbone(last.unsqueeze(1), "causal", cache, state.first.unsqueeze(1))
        h = out[:, 0, -1]
        begins = torch.zeros_like(state.first) if first is None else first
        if codes is not None:
            h = torch.where(begins[:, None], 0, h)
            return self._read_frame(backbone, AutoregressiveState(cache, codes.indices[:, 0], begins), h)
        z, logits = [], [self.logits(h)]  # K times (B,), (B, V)
        for k in range(K):
            z.append(sample_categorical(logits[k], noise[:, k], self.temperature))
            if k < K - 1:
                x = self.code(z[k]) + self.place[k]  # (B, D)
                out, cache = backbone(x[:, None, None], "causal", cache)
                logits.append(self.logits(out[:, 0, 0]))
        z, logits = torch.stack(z, 1), torch.stack(logits, 1)  # (B, K), (B, K, V)
        return Prediction(Codes(z.unsqueeze(1)), h, lambda: logits), AutoregressiveState(cache, z, begins)

    def _read_frame(self, backbone, state: AutoregressiveState, h: Tensor):
        """Read all but the last code of the state's frame and score all of them."""
        z, cache, first = state.codes, state.cache, state.first
        logits = [self.logits(h).unsqueeze(1)]
        if self.K > 1:
            x = self.code(z[:, :-1]) + self.place[: self.K - 1]  # (B, K-1, D)
            out, cache = backbone(x.unsqueeze(1), "causal", cache, first.unsqueeze(1))
            logits.append(self.logits(out[:, 0]))
        logits = torch.cat(logits, 1)  # (B, K, V)
        return Prediction(Codes(z.unsqueeze(1)), h, lambda: logits), AutoregressiveState(cache, z, first)

    def _embed(self, z: Tensor, action: Tensor) -> Tensor:
        """(B, T, K), (B, T) -> (B, T, K+1, D)."""
        return torch.cat([self.code(z), self.action(action).unsqueeze(2)], 2) + self.place

    def _logits_of_next(self, h: Tensor) -> Tensor:
        """h (B, T, K+1, D) -> logits (B, T-1, K, V) of frames 1..T-1."""
        K = self.K
        return self.logits(torch.cat([h[:, :-1, K:], h[:, 1:, : K - 1]], 2))


TINY = dict()
