"""Parallel decoding: all K codes of the next frame in one pass (block teacher forcing, Dedieu et al. 2025, arXiv:2502.01591).

A step is its K codes and its action (P = K + 1), attended to in full; code k's position predicts code k of the *next*
frame. Differs:

- Each code also carries the action, and first sees its neighbors on the grid (a 3x3 convolution): what moves mostly moves
  there.
- Each code's logits start from a copy-or-frequency prior (`prepare`): the transformer begins with what does not move and has
  only the rest to learn.
- The least certain code of a frame, the pivot, is drawn first. With `pivots` > 1 the least certain code given the pivot comes
  next, and so on. All other codes are drawn independently given the pivots. Where chance moves several codes together (a
  sticky action moves the whole paddle), codes drawn without regard for each other make half a move.
- h is the action's position after it has read the codes that were drawn. An h from before the draw knows only the odds of
  an end: the rollout continues after a lost ball, into states outside the training data, and the policy learns to exploit them.
  The K positions are pooled into h: `max` learns rare events, which show at one position, in fewer updates than `sum`.
- With `corrupt`, training replaces that share of the input codes with codes of other windows at the same position and time;
  the targets stay what they are. The model learns to correct a wrongly sampled frame (a lost ball) from the frames before it.
  Without it, the rollout continues outside the training data, and the policy learns to exploit that.
- With `codebook`, the embedding and the logit of a code also depend on its code vector, so that similar codes share what is
  learned. The prior mixes each position's frequencies with those of all positions. Only codes in use are drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, Losses, Part, Prediction, Shapes, State, Steps
from tokenworld.nn import CodeEmbedding, ExactLinear, categorical_entropy, log_prob, mlp, sample_categorical


@dataclass
class ParallelState(State):
    """Everything has been read but the last frame, which waits for its action."""

    cache: Any
    codes: Tensor  # (B, K) of the last frame
    first: Tensor  # (B,) bool: the last frame is the first of its episode

    def select(self, index: Tensor) -> ParallelState:
        return ParallelState(self.cache.select(index), self.codes[index], self.first[index])


POOLS = {"sum": lambda x: x.sum(-2) * x.shape[-2] ** -0.5, "max": lambda x: x.amax(-2)}  # (..., K, D) -> (..., D)
GRAIN = 32  # the number of logits is a multiple of this, so that a new code rarely changes a tensor's shape
UNUSED = -1e9  # the logit of a code that is not in use


class Parallel(nn.Module, Part):
    """One forward pass per frame.

    temperature: 0 is greedy · prior: start from copy/unigram statistics of the data · weight: of the codes' loss, next to 1
    for reward, for termination and for `alone`, the codes' loss given fewer pivots, which finds the least certain code ·
    pool: how the K positions are pooled into h · codebook: use code vectors too, see `set_codebook` · pivots: codes drawn one
    after another before the rest; give one for each independent random event in a step · corrupt: share of the
    input codes that are replaced in training.
    """

    passes, lookahead, has_posterior, joint_draw = 1, 1, False, True

    def __init__(
        self,
        *,
        shapes: Shapes,
        action: nn.Module,
        temperature: float = 1.0,
        prior: bool = True,
        weight: float = 1.0,
        pool: Literal["sum", "max"] = "sum",
        codebook: bool = False,
        pivots: int = 1,
        corrupt: float = 0.0,
    ):
        super().__init__()
        if pool not in POOLS:
            raise UserError(f"decoding.pool must be one of {', '.join(POOLS)}, got {pool!r}: choose e.g. max")
        if weight <= 0:
            raise UserError(f"decoding.weight must be positive, got {weight}: choose e.g. 1.0")
        if temperature < 0:
            raise UserError(f"decoding.temperature must be at least 0, got {temperature}: choose e.g. 1.0")
        K, V, D = shapes.codes, shapes.vocab_size, shapes.dim
        self.K, self.V, self.temperature, self.prior = K, V, temperature, prior
        self.grid, self.shapes, self.noise_size = shapes.grid, shapes, K
        self.weights = {"codes": weight, "alone": 1.0}
        self.action, self.pool = action, POOLS[pool]
        if pivots < 1:
            raise UserError(f"decoding.pivots must be at least 1, got {pivots}: choose e.g. 1")
        self.pivots = min(pivots, K)
        if not 0 <= corrupt < 1:
            raise UserError(f"decoding.corrupt must be at least 0 and below 1, got {corrupt}: choose e.g. 0.02")
        self.corrupt = corrupt
        self.computed = V  # n: logits are computed for codes 0..n-1
        E = shapes.code_dim if codebook else 0
        if codebook:
            self.register_buffer("codebook", torch.zeros(V, E))
            self.register_buffer("used", torch.tensor(V))
            self.register_load_state_dict_post_hook(Parallel._set_computed)
        self.code = CodeEmbedding(V, D, E)
        self.place = nn.Parameter(torch.randn(K + 1, D) * 0.3)
        nn.init.normal_(self.code.weight, std=0.3)
        self.near = nn.Conv2d(D, D, 3, padding=1)
        self.hidden, self.logits = nn.Linear(D, D), ExactLinear(D, V)
        self.vector_logits = ExactLinear(E, D) if codebook else None  # from a code's vector to its row of `logits`
        self.drawn = CodeEmbedding(V, D, E)
        self.reading = mlp(D, D, hidden=D)  # of a position and the code that was drawn there
        self.lead = nn.Linear(D, D)  # the message of the pivots to the other positions
        self.gate = nn.Linear(D, D) if pivots > 1 else None  # per position: the parts of the message that concern it
        if prior:
            nn.init.zeros_(self.logits.weight)
            nn.init.zeros_(self.logits.bias)
            if codebook:
                nn.init.zeros_(self.vector_logits.weight)
                nn.init.zeros_(self.vector_logits.bias)
            self.copy = nn.Parameter(torch.zeros(K))  # log odds of staying, per position
            self.frequency = nn.Parameter(torch.zeros(K, V))  # log unigram, per position

    @torch.no_grad()
    def prepare(self, sample: Callable[[], tuple[Steps, Codes | None]]) -> None:
        """Fit the prior to data: p(z' | z) = eps_k unigram_k(z') + (1 - eps_k) [z' = z], with add-1 smoothing."""
        steps, codes = sample()  # drawn without a prior too: all later draws of a run follow from the number of earlier ones
        if not self.prior:
            return
        z = codes.indices
        follows = (steps.acted & steps.valid)[:, :-1] & steps.valid[:, 1:]
        now, after = z[:, :-1][follows], z[:, 1:][follows]  # (N, K)
        counts = torch.nn.functional.one_hot(after, self.V).sum(0).float()  # (K, V)
        unigram = (counts + 0.1) / (counts + 0.1).sum(1, keepdim=True)
        if self.vector_logits is not None:  # a code that was seen only at other positions is possible here too
            unigram = (unigram + unigram.mean(0)) / 2
        moved = (now != after).float()
        eps = (moved.sum(0) + 1) / (len(moved) + 2)  # (K,)
        self.frequency.copy_(unigram.log())
        # softmax(log u + c [z' = z]) puts p on the copy where e^c u / (1 - u + e^c u) = p; u as a typical code's frequency
        typical = (unigram**2).sum(1).clamp(max=0.999)
        self.copy.copy_((((1 - eps) / eps) * ((1 - typical) / typical)).log().clamp(min=0))

    @torch.no_grad()
    def set_codebook(self, vectors: Tensor, used: int) -> None:
        """Store the code vectors `(V, E)`, of which the first `used` are in use, if `codebook` is set."""
        if self.vector_logits is not None:
            self.codebook.copy_(vectors)
            self.used.fill_(max(used, 1))
            self._set_computed()

    def _set_computed(self, _=None) -> None:
        self.computed = min(self.V, -(-max(int(self.used), 1) // GRAIN) * GRAIN)

    def loss(self, backbone, codes: Codes, steps: Steps) -> tuple[Losses, Tensor, Codes]:
        """Cross-entropies in nats, means over K: {"codes", "alone": (B, T-1)}; h (B, T-1, D)."""
        z, after = self._corrupt(codes.indices), codes.indices[:, 1:]
        out, _ = backbone(self._embed(z, steps.action), "full", None, steps.first)  # (B, T, K+1, D)
        out, before = out[:, :-1], z[:, :-1]
        *fewer, given = self._condition(out, before, lambda logits, pivot: after.gather(-1, pivot))
        nats = [-log_prob(logits, after).mean(-1) for logits in fewer]  # each (B, T-1)
        losses = {"codes": -log_prob(given, after).mean(-1), "alone": sum(nats) / len(nats)}
        return losses, self._summary(out, after), codes

    def start(self, backbone, codes: Codes, steps: Steps) -> tuple[Prediction, ParallelState]:
        z = codes.indices
        B, T, K = z.shape
        cache = backbone.make_cache(B, K + 1)
        if T > 1:
            x = self._embed(z[:, :-1], steps.action[:, :-1])
            out, cache = backbone(x, "full", cache, steps.first[:, :-1])
            h = torch.where(steps.first[:, -1:], 0, self._summary(out[:, -1], z[:, -1]))
            prediction = Prediction(Codes(z[:, -1:]), h, lambda: self._all(self._draw(out[:, -1], z[:, -2], None, z[:, -1])[1]))
        else:
            h = self.place.new_zeros(B, self.place.shape[-1])
            unknown = torch.zeros(B, K, self.V, device=z.device)  # before the first frame all codes are equally likely
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
        return Prediction(Codes(z.unsqueeze(1)), h, lambda: self._all(logits)), ParallelState(cache, z, begins)

    def _corrupt(self, z: Tensor) -> Tensor:
        """z (B, T, K) with a share `corrupt` of its codes, chosen at random, from another window."""
        if not (self.training and self.corrupt):
            return z
        other = z[torch.randperm(len(z), device=z.device)]
        return torch.where(torch.rand(z.shape, device=z.device) < self.corrupt, other, z)

    def _embed(self, z: Tensor, action: Tensor) -> Tensor:
        """(B, T, K), (B, T) -> (B, T, K+1, D)."""
        a, x = self.action(action).unsqueeze(2), self.code(z, self._vectors())  # (B, T, 1, D), (B, T, K, D)
        B, T, K, D = x.shape
        near = self.near(x.view(B * T, *self.grid, D).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)  # (B*T, K, D)
        return torch.cat([x + near.reshape(x.shape) + a, a], 2) + self.place

    def _condition(self, out: Tensor, before: Tensor, draw: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        """Logits `(..., K, n)` of the codes, each independent of the others, then given one pivot, and so on to all pivots.

        draw: (logits `(..., 1, n)` of a pivot, its position `(..., 1)`) -> its code `(..., 1)`."""
        K = self.K
        given = self._logits(self.hidden(out[..., :K, :]), before)
        logits, message = [given], 0
        gate = 1 if self.gate is None else self.gate(out[..., :K, :])
        is_drawn = torch.zeros_like(before, dtype=torch.bool)
        for _ in range(self.pivots):
            entropy = categorical_entropy(given.detach()).masked_fill(is_drawn, -1)
            pivot = entropy.argmax(-1, keepdim=True)  # (..., 1)
            at = pivot.unsqueeze(-1)
            code = draw(given.gather(-2, at.expand(*pivot.shape, given.shape[-1])), pivot)
            state = out.gather(-2, at.expand(*pivot.shape, out.shape[-1]))
            message = message + self.reading(state + self.drawn(code, self._vectors()))  # (..., 1, D)
            is_drawn = is_drawn.scatter(-1, pivot, True)
            others = self._logits(self.hidden(out[..., :K, :]) + self.lead(message * gate), before)
            given = torch.where(is_drawn.unsqueeze(-1), given, others)
            logits.append(given)
        return logits

    def _logits(self, hidden: Tensor, before: Tensor) -> Tensor:
        """hidden (..., K, D) on the codes before (..., K) -> logits (..., K, n) of the next ones."""
        n = self.computed
        extra = None if self.vector_logits is None else self.vector_logits(self._vectors())
        logits = self.logits(F.silu(hidden), n, extra)
        if not self.prior:
            return self._mask_unused(logits)
        logits = logits + self.frequency[:, :n]
        stay = self.copy.expand(before.shape).unsqueeze(-1)
        return self._mask_unused(logits.scatter_add(-1, before.unsqueeze(-1), stay.to(logits.dtype)))

    def _draw(self, out: Tensor, before: Tensor, noise: Tensor | None, z: Tensor | None) -> tuple[Tensor, Tensor]:
        """out (B, K+1, D) -> the next codes (B, K), drawn with noise (B, K) or given as z, and the logits (B, K, n) of each
        given those drawn before it."""
        if z is not None:
            return z, self._condition(out, before, lambda logits, pivot: z.gather(-1, pivot))[-1]

        def draw(logits: Tensor, pivot: Tensor) -> Tensor:
            return sample_categorical(logits, noise.gather(1, pivot), self.temperature)

        logits = self._condition(out, before, draw)[-1]
        return sample_categorical(logits, noise, self.temperature), logits

    def _summary(self, out: Tensor, z: Tensor) -> Tensor:
        """out (..., K+1, D) and the codes z (..., K) that were drawn from it -> h (..., D)."""
        K = self.K
        return out[..., K, :] + self.pool(self.reading(out[..., :K, :] + self.drawn(z, self._vectors())))

    def _vectors(self) -> Tensor | None:
        """The vectors `(n, E)` of the codes that have logits; None without `codebook`."""
        return None if self.vector_logits is None else self.codebook[: self.computed]

    def _mask_unused(self, logits: Tensor) -> Tensor:
        """Make codes impossible that the tokenizer does not use yet."""
        if self.vector_logits is None:
            return logits
        return logits.masked_fill(torch.arange(logits.shape[-1], device=logits.device) >= self.used, UNUSED)

    def _all(self, logits: Tensor) -> Tensor:
        """Pad logits `(..., n)` to `(..., V)`."""
        return F.pad(logits, (0, self.V - logits.shape[-1]), value=UNUSED)


TINY = dict()
