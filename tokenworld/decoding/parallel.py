"""Parallel decoding: all K codes of the next frame in one pass (block teacher forcing, Dedieu et al. 2025, arXiv:2502.01591).

A step is its K codes and its action (P = K + 1), attended to in full; code k's position predicts code k of the *next*
frame. Differs:

- Each code also carries the action, and first sees its neighbours on the grid (a 3x3 convolution): what moves mostly moves
  there.
- Each code's logits start from a copy-or-frequency prior (`prepare`): the transformer begins with what does not move and has
  only the rest to learn.
- The least certain code of a frame is drawn first, and the others, independently, given it. Where chance moves several codes
  together (a sticky action moves the whole paddle), codes drawn without regard for each other make half a move.
- h is the action's position after it has read the codes that were drawn. An h from before the draw knows only the odds of
  an end: it lets a dream go on whose frame shows a lost ball, into what no data describe, and a policy finds what pays there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, Losses, Prediction, Shapes, Steps
from tokenworld.nn import ExactLinear, categorical_entropy, log_prob, mlp, sample_categorical


@dataclass
class ParallelState:
    """Everything has been read but the last frame, which waits for its action."""

    cache: Any
    codes: Tensor  # (B, K) of the last frame
    first: Tensor  # (B,) bool: the last frame is the first of its episode

    def select(self, index: Tensor) -> ParallelState:
        return ParallelState(self.cache.select(index), self.codes[index], self.first[index])


class Parallel(nn.Module):
    """One forward pass per frame.

    temperature: 0 is greedy · prior: start from copy/unigram statistics of the data · weight: of the codes' loss, beside 1
    for reward, for termination and for `alone`, the codes' loss without regard for each other, which tells the least certain.
    """

    passes = 1
    ahead = 1

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
        self.grid = shapes.grid
        self.weights = {"codes": weight, "alone": 1.0}
        self.action = action
        self.code = nn.Embedding(V, D)
        self.place = nn.Parameter(torch.randn(K + 1, D) * 0.3)
        nn.init.normal_(self.code.weight, std=0.3)
        self.near = nn.Conv2d(D, D, 3, padding=1)
        self.hidden, self.logits = nn.Linear(D, D), ExactLinear(D, V)
        self.drawn = nn.Embedding(V, D)
        self.reading = mlp(D, D, hidden=D)  # of a position and the code that was drawn there
        self.lead = nn.Linear(D, D)  # what the first reading tells all positions
        if prior:
            nn.init.zeros_(self.logits.weight)
            nn.init.zeros_(self.logits.bias)
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
        """Cross-entropies in nats, means over K: {"codes", "alone": (B, T-1)}; h (B, T-1, D)."""
        z = codes.indices
        out, _ = backbone(self._embed(z, steps.action), "full", None, steps.first)  # (B, T, K+1, D)
        out, before, after = out[:, :-1], z[:, :-1], z[:, 1:]
        alone, lead = self._alone(out, before)
        nats = {"codes": self._given(out, before, alone, lead, after.gather(-1, lead)), "alone": alone}
        return {name: -log_prob(logits, after).mean(-1) for name, logits in nats.items()}, self._summary(out, after)

    def start(self, backbone, codes: Codes, steps: Steps) -> tuple[Prediction, ParallelState]:
        z = codes.indices
        B, T, K = z.shape
        cache = backbone.make_cache(B, K + 1)
        if T > 1:
            x = self._embed(z[:, :-1], steps.action[:, :-1])
            out, cache = backbone(x, "full", cache, steps.first[:, :-1])
            h = torch.where(steps.first[:, -1:], 0, self._summary(out[:, -1], z[:, -1]))
            prediction = Prediction(Codes(z[:, -1:]), h, lambda: self._draw(out[:, -1], z[:, -2], None, z[:, -1])[1])
        else:
            h = self.place.new_zeros(B, self.place.shape[-1])
            unknown = torch.zeros(B, K, self.V, device=z.device)  # nothing is known before the first frame
            prediction = Prediction(Codes(z), h, lambda: unknown)
        return prediction, ParallelState(cache, z[:, -1], steps.first[:, -1])

    def step(self, backbone, state, action, noise, codes: Codes | None = None, first: Tensor | None = None):
        """Samples with noise (B, K), or reads `codes`."""
        x = self._embed(state.codes.unsqueeze(1), action.unsqueeze(1))  # (B, 1, K+1, D)
        out, cache = backbone(x, "full", state.cache, state.first.unsqueeze(1))
        out = out[:, 0]  # (B, K+1, D)
        z, logits = self._draw(out, state.codes, noise, None if codes is None else codes.indices[:, 0])
        h = self._summary(out, z)
        begins = torch.zeros_like(state.first) if first is None else first
        if first is not None:
            h = torch.where(first[:, None], 0, h)
        return Prediction(Codes(z.unsqueeze(1)), h, lambda: logits), ParallelState(cache, z, begins)

    def _embed(self, z: Tensor, action: Tensor) -> Tensor:
        """(B, T, K), (B, T) -> (B, T, K+1, D)."""
        a, x = self.action(action).unsqueeze(2), self.code(z)  # (B, T, 1, D), (B, T, K, D)
        B, T, K, D = x.shape
        near = self.near(x.view(B * T, *self.grid, D).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)  # (B*T, K, D)
        return torch.cat([x + near.reshape(x.shape) + a, a], 2) + self.place

    def _alone(self, out: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """out (..., K+1, D) on the codes before (..., K) -> logits (..., K, V) of the next codes without regard for each
        other, and which of them is the least certain (..., 1)."""
        logits = self._logits(self.hidden(out[..., : self.K, :]), before)
        return logits, categorical_entropy(logits.detach()).argmax(-1, keepdim=True)

    def _given(self, out: Tensor, before: Tensor, alone: Tensor, lead: Tensor, code: Tensor) -> Tensor:
        """Logits (..., K, V) given that position lead (..., 1) has this code (..., 1); there they stay what they were."""
        K, place = self.K, lead.unsqueeze(-1)
        read = self.reading(out.gather(-2, place.expand(*lead.shape, out.shape[-1])) + self.drawn(code))  # (..., 1, D)
        logits = self._logits(self.hidden(out[..., :K, :]) + self.lead(read), before)
        return torch.where(torch.arange(K, device=out.device).unsqueeze(-1) == place, alone, logits)

    def _logits(self, hidden: Tensor, before: Tensor) -> Tensor:
        """hidden (..., K, D) on the codes before (..., K) -> logits (..., K, V) of the next ones."""
        logits = self.logits(F.silu(hidden))
        if not self.prior:
            return logits
        logits = logits + self.frequency
        stay = self.copy.expand(before.shape).unsqueeze(-1)
        return logits.scatter_add(-1, before.unsqueeze(-1), stay.to(logits.dtype))

    def _draw(self, out: Tensor, before: Tensor, noise: Tensor | None, z: Tensor | None) -> tuple[Tensor, Tensor]:
        """out (B, K+1, D) -> the next codes (B, K), drawn with noise (B, K) or given as z, and the logits (B, K, V) of each
        given those drawn before it."""
        alone, lead = self._alone(out, before)
        if z is not None:
            return z, self._given(out, before, alone, lead, z.gather(-1, lead))
        first = alone.gather(1, lead.unsqueeze(-1).expand(-1, -1, self.V))  # (B, 1, V)
        code = sample_categorical(first, noise.gather(1, lead), self.temperature)
        logits = self._given(out, before, alone, lead, code)
        return sample_categorical(logits, noise, self.temperature), logits

    def _summary(self, out: Tensor, z: Tensor) -> Tensor:
        """out (..., K+1, D) and the codes z (..., K) that were drawn from it -> h (..., D)."""
        K = self.K
        return out[..., K, :] + self.reading(out[..., :K, :] + self.drawn(z)).sum(-2) * K**-0.5


TINY = dict()
