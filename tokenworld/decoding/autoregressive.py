"""Autoregressive decoding: one code after the other (IRIS, arXiv:2209.00588, section 2.2).

A step is its K codes, then its action (P = K + 1). The action's position predicts the next frame's first code, the reward
and the termination; code k predicts code k+1 of the same frame. Faithful: order, shifts, own code embedding, separate MLP
heads. Differs: a frame takes K passes, not K + 1, because its last code and the next action are read in one pass, and the
place within a step is a learned vector while the time step is left to the backbone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenworld.interfaces import Codes, Losses, Prediction, Shapes, Steps, UserError
from tokenworld.nn import mlp, sample_categorical


@dataclass
class AutoregressiveState:
    """Everything has been read but the last frame's last code, which waits for the action to share its pass."""

    cache: Any
    codes: Tensor  # (B, K) of the last frame

    def select(self, index: Tensor) -> AutoregressiveState:
        return AutoregressiveState(self.cache.select(index), self.codes[index])


class Autoregressive(nn.Module):
    """K forward passes per frame, exact joint distribution of a frame's codes. temperature 0 is greedy."""

    def __init__(self, *, shapes: Shapes, action: nn.Module, temperature: float = 1.0):
        super().__init__()
        if temperature < 0:
            raise UserError(f"decoding.temperature must be at least 0, got {temperature}: choose e.g. 1.0")
        K, V, D = shapes.codes, shapes.vocab_size, shapes.dim
        self.K, self.temperature = K, temperature
        self.passes = K
        self.weights = {"codes": 1.0}
        self.action = action
        self.code = nn.Embedding(V, D)
        self.place = nn.Parameter(torch.randn(K + 1, D) * 0.3)
        self.logits = mlp(D, V, hidden=D)
        nn.init.normal_(self.code.weight, std=0.3)

    def loss(self, backbone, codes: Codes, steps: Steps) -> tuple[Losses, Tensor]:
        """Cross-entropy in nats, a mean over K: {"codes": (B, T-1)}; h (B, T, D) at the action positions."""
        z = codes.indices
        B, T, K = z.shape
        h, _ = backbone(self._embed(z, steps.action), "causal", None, steps.first)  # (B, T, K+1, D)
        nats = -_pick(self._logits_of_next(h), z[:, 1:])  # (B, T-1, K)
        return {"codes": nats.mean(-1)}, h[:, :, K]

    def start(self, backbone, codes: Codes, steps: Steps) -> tuple[Prediction, AutoregressiveState]:
        z = codes.indices
        B, T, K = z.shape
        cache = backbone.make_cache(B, K + 1)
        h = torch.zeros(B, self.place.shape[-1], device=z.device)
        if T > 1:
            past, cache = backbone(self._embed(z[:, :-1], steps.action[:, :-1]), "causal", cache, steps.first[:, :-1])
            h = torch.where(steps.first[:, -1:], 0, past[:, -1, K])
        state = AutoregressiveState(cache, z[:, -1])
        return self._read_frame(backbone, state, h, steps.first[:, -1])

    def step(self, backbone, state, action, noise, codes: Codes | None = None, first: Tensor | None = None):
        """Samples with noise (B, K), or reads `codes` in two passes."""
        cache, K = state.cache, self.K
        last = torch.stack(
            [self.code(state.codes[:, -1]) + self.place[K - 1], self.action(action) + self.place[K]], 1
        )  # (B, 2, D): the waiting code and the action in one pass
        out, cache = backbone(last.unsqueeze(1), "causal", cache)
        h = out[:, 0, -1]
        if codes is not None:
            h = h if first is None else torch.where(first[:, None], 0, h)
            return self._read_frame(backbone, AutoregressiveState(cache, codes.indices[:, 0]), h, first)
        z, logits = [], [self.logits(h)]  # K times (B,), (B, V)
        for k in range(K):
            z.append(sample_categorical(logits[k], noise[:, k], self.temperature))
            if k < K - 1:
                x = self.code(z[k]) + self.place[k]  # (B, D)
                out, cache = backbone(x[:, None, None], "causal", cache)
                logits.append(self.logits(out[:, 0, 0]))
        z, logits = torch.stack(z, 1), torch.stack(logits, 1)  # (B, K), (B, K, V)
        return Prediction(Codes(z.unsqueeze(1), logits=logits.unsqueeze(1)), h), AutoregressiveState(cache, z)

    def _read_frame(self, backbone, state: AutoregressiveState, h: Tensor, first: Tensor | None):
        """Read all but the last code of the state's frame and score all of them."""
        z, cache = state.codes, state.cache
        logits = [self.logits(h).unsqueeze(1)]
        if self.K > 1:
            x = self.code(z[:, :-1]) + self.place[: self.K - 1]  # (B, K-1, D)
            mark = None if first is None else first.unsqueeze(1)
            out, cache = backbone(x.unsqueeze(1), "causal", cache, mark)
            logits.append(self.logits(out[:, 0]))
        elif first is not None:  # nothing is read now: the cut waits in the cache
            cache.start = torch.where(first, cache.cursor // 2, cache.start)
        logits = torch.cat(logits, 1)  # (B, K, V)
        return Prediction(Codes(z.unsqueeze(1), logits=logits.unsqueeze(1)), h), AutoregressiveState(cache, z)

    def _embed(self, z: Tensor, action: Tensor) -> Tensor:
        """(B, T, K), (B, T) -> (B, T, K+1, D)."""
        return torch.cat([self.code(z), self.action(action).unsqueeze(2)], 2) + self.place

    def _logits_of_next(self, h: Tensor) -> Tensor:
        """h (B, T, K+1, D) -> logits (B, T-1, K, V) of frames 1..T-1."""
        K = self.K
        return self.logits(torch.cat([h[:, :-1, K:], h[:, 1:, : K - 1]], 2))


def _pick(logits: Tensor, index: Tensor) -> Tensor:
    """Log-probability in nats: logits (..., V), index (...) -> (...)."""
    return logits.float().log_softmax(-1).gather(-1, index.unsqueeze(-1)).squeeze(-1)


TINY = dict()
