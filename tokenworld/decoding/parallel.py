"""Parallel decoding: all K codes of the next frame in one pass (block teacher forcing, Dedieu et al. 2025, arXiv:2502.01591).

A step is its K codes and its action (P = K + 1), attended to in full; code k's position predicts code k of the *next*
frame, the action's position is h. Codes of one frame are independent given the past. Differs: the action is also added to
each code, and each code's logits start from a copy-or-frequency prior (`prepare`), so that the transformer begins with
what does not move and has only the rest to learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokenworld.interfaces import Codes, Losses, Prediction, Shapes, Steps, UserError
from tokenworld.nn import log_prob, mlp, sample_categorical


@dataclass
class ParallelState:
    """Everything has been read but the last frame, which waits for its action."""

    cache: Any
    codes: Tensor  # (B, K) of the last frame
    first: Tensor  # (B,) bool: the last frame is the first of its episode

    def select(self, index: Tensor) -> ParallelState:
        return ParallelState(self.cache.select(index), self.codes[index], self.first[index])


class Parallel(nn.Module):
    """One forward pass per frame. temperature 0 is greedy; `prior` starts from copy/unigram statistics of the data; `weight`
    is that of the codes' loss, beside 1 for reward and 1 for termination."""

    passes = 1

    def __init__(
        self,
        *,
        shapes: Shapes,
        action: nn.Module,
        temperature: float = 1.0,
        prior: bool = True,
        weight: float = 1.0,
    ):
        super().__init__()
        if weight <= 0:
            raise UserError(f"decoding.weight must be positive, got {weight}: choose e.g. 1.0")
        if temperature < 0:
            raise UserError(f"decoding.temperature must be at least 0, got {temperature}: choose e.g. 1.0")
        K, V, D = shapes.codes, shapes.vocab_size, shapes.dim
        self.K, self.V, self.temperature, self.prior = K, V, temperature, prior
        self.weights = {"codes": weight}
        self.action = action
        self.code = nn.Embedding(V, D)
        self.place = nn.Parameter(torch.randn(K + 1, D) * 0.3)
        self.logits = mlp(D, V, hidden=D, zero_last=prior)
        nn.init.normal_(self.code.weight, std=0.3)
        if prior:
            self.copy = nn.Parameter(torch.zeros(K))  # log odds of staying, per position
            self.frequency = nn.Parameter(torch.zeros(K, V))  # log unigram, per position

    @torch.no_grad()
    def prepare(self, codes: Codes, steps: Steps) -> None:
        """Fit the prior to data: p(z' | z) = eps_k unigram_k(z') + (1 - eps_k) [z' = z], with add-1 smoothing."""
        if not self.prior:
            return
        z = codes.indices
        follows = (steps.acted & steps.valid)[:, :-1] & steps.valid[:, 1:]
        now, after = z[:, :-1][follows], z[:, 1:][follows]  # (N, K)
        counts = torch.nn.functional.one_hot(after, self.V).sum(0).float()  # (K, V)
        unigram = (counts + 0.1) / (counts + 0.1).sum(1, keepdim=True)
        moved = (now != after).float()
        eps = (moved.sum(0) + 1) / (len(moved) + 2)  # (K,)
        self.frequency.copy_(unigram.log())
        # softmax(log u + c [z' = z]) puts p on the copy where e^c u / (1 - u + e^c u) = p; u as a typical code's frequency
        typical = (unigram**2).sum(1).clamp(max=0.999)
        self.copy.copy_((((1 - eps) / eps) * ((1 - typical) / typical)).log().clamp(min=0))

    def loss(self, backbone, codes: Codes, steps: Steps) -> tuple[Losses, Tensor]:
        """Cross-entropy in nats, a mean over K: {"codes": (B, T-1)}; h (B, T, D) at the action positions."""
        z = codes.indices
        out, _ = backbone(self._embed(z, steps.action), "full", None, steps.first)  # (B, T, K+1, D)
        nats = -log_prob(self._logits(out[:, :-1, : self.K], z[:, :-1]), z[:, 1:])  # (B, T-1, K)
        return {"codes": nats.mean(-1)}, out[:, :, self.K]

    def start(self, backbone, codes: Codes, steps: Steps) -> tuple[Prediction, ParallelState]:
        z = codes.indices
        B, T, K = z.shape
        cache = backbone.make_cache(B, K + 1)
        if T > 1:
            x = self._embed(z[:, :-1], steps.action[:, :-1])
            out, cache = backbone(x, "full", cache, steps.first[:, :-1])
            h, logits = out[:, -1, K], self._logits(out[:, -1, :K], z[:, -2])
            h = torch.where(steps.first[:, -1:], 0, h)
        else:
            h = torch.zeros(B, self.place.shape[-1], device=z.device)
            logits = torch.zeros(B, K, self.V, device=z.device)  # nothing is known before the first frame
        prediction = Prediction(Codes(z[:, -1:], logits=logits.unsqueeze(1)), h)
        return prediction, ParallelState(cache, z[:, -1], steps.first[:, -1])

    def step(self, backbone, state, action, noise, codes: Codes | None = None, first: Tensor | None = None):
        """Samples with noise (B, K), or reads `codes`."""
        x = self._embed(state.codes.unsqueeze(1), action.unsqueeze(1))  # (B, 1, K+1, D)
        out, cache = backbone(x, "full", state.cache, state.first.unsqueeze(1))
        h, logits = out[:, 0, self.K], self._logits(out[:, 0, : self.K], state.codes)  # (B, D), (B, K, V)
        z = sample_categorical(logits, noise, self.temperature) if codes is None else codes.indices[:, 0]
        begins = torch.zeros_like(state.first) if first is None else first
        if first is not None:
            h = torch.where(first[:, None], 0, h)
        return Prediction(Codes(z.unsqueeze(1), logits=logits.unsqueeze(1)), h), ParallelState(cache, z, begins)

    def _embed(self, z: Tensor, action: Tensor) -> Tensor:
        """(B, T, K), (B, T) -> (B, T, K+1, D)."""
        a = self.action(action).unsqueeze(2)  # (B, T, 1, D)
        return torch.cat([self.code(z) + a, a], 2) + self.place

    def _logits(self, out: Tensor, z: Tensor) -> Tensor:
        """out (..., K, D), the codes z (..., K) they stood on -> logits (..., K, V) of the next frame."""
        logits = self.logits(out)
        if not self.prior:
            return logits
        logits = logits + self.frequency
        stay = self.copy.expand(z.shape).unsqueeze(-1)
        return logits.scatter_add(-1, z.unsqueeze(-1), stay.to(logits.dtype))


TINY = dict()
