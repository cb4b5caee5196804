"""The recurrent state-space model of Dreamer (PlaNet, arXiv:1811.04551; DreamerV2, arXiv:2010.02193; V3, arXiv:2301.04104).

A step is one position: the codes z_t and the action lead to the deterministic state of the next step, d; the prior p(z | d)
predicts its codes, the posterior q(z | d, frame) infers them from what the tokenizer made of the frame. So the codes of a frame
depend on what came before it: they exist only along with the dynamics.

Faithful: G x V categorical codes, straight-through samples, balanced KL divergence with free nats per step, a share of the
uniform distribution in both; heads and policy read [d, z]. Differs: outside training the posterior takes its most probable
classes, and the divergence of a window's first frame is left out. The decoder's first linear map, from [d, z] to a grid of
vectors, is here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, Losses, Part, Prediction, Shapes, State, Steps
from tokenworld.nn import ExactLinear, balanced_kl, check_kl, sample_categorical, straight_through, uniform_mix


@dataclass
class RSSMState(State):
    """Everything has been read but the last frame, which waits for its action."""

    cache: Any
    codes: Tensor  # (B, G) of the last frame
    first: Tensor  # (B,) bool: the last frame is the first of its episode

    def select(self, index: Tensor) -> RSSMState:
        return RSSMState(self.cache.select(index), self.codes[index], self.first[index])

    def put(self, rows: Tensor, other: RSSMState) -> RSSMState | None:
        """None with a window of keys, whose rows have one cursor."""
        cache = self.cache.put(rows, other.cache)
        if cache is None:
            return None
        return RSSMState(cache, self.codes.index_copy(0, rows, other.codes), self.first.index_copy(0, rows, other.first))


class RSSM(nn.Module, Part):
    """One forward pass and one position per frame, for a tokenizer that returns vectors.

    groups, classes: G and V of the codes · hidden: width of the layers of prior and posterior · kl: {dyn, rep}, weights of the
    two directions of the KL divergence · free_nats: of each step · unimix: share of the uniform distribution · posterior: what
    it reads; "frame" reads the steps in parallel, with any backbone; "frame_and_state" reads one after the other, with a
    backbone that scans · temperature: of imagined codes; 0 is greedy.
    """

    passes, lookahead, has_posterior, joint_draw = 1, 1, True, False

    def __init__(
        self,
        *,
        shapes: Shapes,
        action: nn.Module,
        groups: int = 32,
        classes: int = 32,
        hidden: int = 256,
        kl: dict | None = None,
        free_nats: float = 1.0,
        unimix: float = 0.01,
        posterior: Literal["frame_and_state", "frame"] = "frame_and_state",
        temperature: float = 1.0,
    ):
        super().__init__()
        if shapes.vocab_size:
            raise UserError("decoding RSSM infers its own codes from vectors, but this tokenizer makes codes with indices:"
                            " choose tokenizer continuous, or decoding single")  # fmt: skip
        if groups < 1 or classes < 2 or hidden < 1:
            raise UserError("decoding.groups and hidden must be at least 1 and decoding.classes at least 2,"
                            f" got {groups}, {hidden} and {classes}")  # fmt: skip
        if temperature < 0 or free_nats < 0 or not 0 <= unimix < 1:
            raise UserError("decoding.temperature and free_nats must be at least 0 and decoding.unimix in [0, 1),"
                            f" got {temperature}, {free_nats} and {unimix}")  # fmt: skip
        D, G, V, inputs = shapes.dim, groups, classes, shapes.codes * shapes.code_dim
        self.D, self.G, self.V, self.noise_size = D, G, V, G
        self.cells = (shapes.codes, shapes.code_dim)  # K, E of the tokenizer
        self.shapes = replace(shapes, codes=G, vocab_size=V, grid=(1, G), dim=D + G * V)
        self.free_nats, self.unimix, self.posterior, self.temperature = free_nats, unimix, posterior, temperature
        self.weights = check_kl({"dyn": 1.0, "rep": 0.1} if kl is None else kl)
        self.action = action
        self.code, self.enter = nn.Linear(G * V, D), nn.Sequential(nn.LayerNorm(D), nn.SiLU(), nn.Linear(D, D))
        self.prior = Logits(D, hidden, G, V)
        self.of_frame, self.of_state = nn.Linear(inputs, hidden), nn.Linear(D, hidden, bias=False)
        self.inferred = Logits(hidden, hidden, G, V)
        self.vectors = nn.Linear(D + G * V, inputs)

    def loss(self, backbone, codes: Codes, steps: Steps) -> tuple[Losses, Tensor, Codes]:
        """{"dyn", "rep": (B, T-1)} in nats, sums over G; h (B, T-1, D + G * V), [d, z] of the frame after the action; the
        posterior's codes of all frames."""
        d, z, q, _ = self._read(backbone, codes, steps, None)
        h = torch.cat([d, z.flatten(2)], -1)  # (B, T, D + G * V)
        return balanced_kl(q[:, 1:], self._prior(d[:, 1:]), self.free_nats), h[:, 1:], Codes(z.argmax(-1), self._cells(h), q)

    def start(self, backbone, codes: Codes, steps: Steps) -> tuple[Prediction, RSSMState]:
        B = codes.shape[0]
        d, z, q, cache = self._read(backbone, codes, steps, backbone.make_cache(B, 1))
        z = z[:, -1].argmax(-1)  # (B, G)
        return self._predict(d[:, -1], z, q[:, -1]), RSSMState(cache, z, steps.first[:, -1])

    def step(self, backbone, state, action, noise, codes: Codes | None = None, first: Tensor | None = None):
        """Draws from the prior with noise (B, G), or infers the codes from the vectors of a frame, or reads those of an earlier
        prediction."""
        x = self._embed(self._one_hot(state.codes), action)  # (B, D)
        out, cache = backbone(x[:, None, None], "causal", state.cache, state.first.unsqueeze(1))
        begins = torch.zeros_like(state.first) if first is None else first
        d = torch.where(begins[:, None], 0, out[:, 0, 0])
        if codes is None:
            q = self._prior(d)
            z = sample_categorical(q, noise, self.temperature)
        elif codes.indices is not None:
            z, q = codes.indices[:, 0], self._prior(d)
        else:
            z, q = self._infer(d, self._inputs(codes)[:, 0])
            z = z.argmax(-1)
        return self._predict(d, z, q), RSSMState(cache, z, begins)

    def _read(self, backbone, codes: Codes, steps: Steps, cache: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Vectors, or codes of earlier predictions, of T frames and the actions between them -> d (B, T, D), z (B, T, G, V)
        one-hot, log-probabilities q (B, T, G, V), and the cache after all but the last frame, if one came in."""
        if codes.indices is not None:
            z = self._one_hot(codes.indices)
            d, cache = self._states(backbone, z, steps, cache)
            return d, z, self._prior(d), cache
        seen = self._inputs(codes)
        if self.posterior == "frame":
            z, q = self._infer(None, seen)
            d, cache = self._states(backbone, z, steps, cache)
            return d, z, q, cache
        return self._scan(backbone, seen, steps, cache)

    def _states(self, backbone, z: Tensor, steps: Steps, cache: Any) -> tuple[Tensor, Any]:
        """Codes z (B, T, G, V) that are all known -> d (B, T, D), and the cache after all but the last frame."""
        d = z.new_zeros(*z.shape[:2], self.D)
        if z.shape[1] > 1:
            x = self._embed(z[:, :-1], steps.action[:, :-1]).unsqueeze(2)  # (B, T-1, 1, D)
            out, cache = backbone(x, "causal", cache, steps.first[:, :-1])
            d = F.pad(out.squeeze(2), (0, 0, 1, 0)).masked_fill(steps.first.unsqueeze(-1), 0)  # (B, T, D)
        return d, cache

    def _scan(self, backbone, seen: Tensor, steps: Steps, cache: Any) -> tuple[Tensor, Tensor, Tensor, Any]:
        """As `_read`, of inputs of the posterior seen (B, T, hidden), one frame after the other."""
        if not backbone.scans:
            raise UserError(f"decoding.posterior=frame_and_state needs a backbone that scans, got a {type(backbone).__name__}:"
                            " choose backbone recurrent, or decoding.posterior=frame")  # fmt: skip
        first, T = steps.first, seen.shape[1]
        state = backbone.make_cache(len(seen), 1) if cache is None else cache
        d, all_d, all_z, all_q = seen.new_zeros(len(seen), self.D), [], [], []
        for t in range(T):
            z, q = self._infer(d, seen[:, t])
            for parts, part in ((all_d, d), (all_z, z), (all_q, q)):
                parts.append(part)
            if t < T - 1:
                x = self._embed(z, steps.action[:, t])  # (B, D)
                out, state = backbone(x[:, None, None], "causal", state, first[:, t, None])
                d = torch.where(first[:, t + 1, None], 0, out[:, 0, 0])
        return torch.stack(all_d, 1), torch.stack(all_z, 1), torch.stack(all_q, 1), None if cache is None else state

    def _infer(self, d: Tensor | None, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs of the posterior (..., hidden) after states d (..., D) -> one-hot codes (..., G, V), with the gradient of the
        probabilities, and log-probabilities."""
        if self.posterior == "frame_and_state":
            seen = seen + self.of_state(d)
        q = uniform_mix(self.inferred(F.silu(seen)), self.unimix)
        index = sample_categorical(q, torch.rand_like(q[..., 0])) if self.training else q.argmax(-1)
        return straight_through(q, index).to(seen.dtype), q

    def _inputs(self, codes: Codes) -> Tensor:
        """The tokenizer's vectors (B, T, K, E) -> (B, T, hidden)."""
        return self.of_frame(codes.vectors.flatten(2).to(self.of_frame.weight.dtype))

    def _embed(self, z: Tensor, action: Tensor) -> Tensor:
        """One-hot codes z (..., G, V), action (...) -> (..., D)."""
        return self.enter(self.code(z.flatten(-2)) + self.action(action))

    def _one_hot(self, index: Tensor) -> Tensor:
        return F.one_hot(index, self.V).to(self.code.weight.dtype)  # (..., G, V)

    def _predict(self, d: Tensor, z: Tensor, q: Tensor) -> Prediction:
        """d (B, D), z (B, G), q (B, G, V) -> the prediction of one frame."""
        h = torch.cat([d, self._one_hot(z).flatten(1)], -1)  # (B, D + G * V)
        codes = Codes(z.unsqueeze(1), self._cells(h.unsqueeze(1)), q.unsqueeze(1))
        return Prediction(codes, h, lambda: self._prior(d))

    def _prior(self, d: Tensor) -> Tensor:
        """d (..., D) -> log-probabilities (..., G, V) of the codes."""
        return uniform_mix(self.prior(d), self.unimix)

    def _cells(self, h: Tensor) -> Tensor:
        """[d, z] (B, T, D + G * V) -> what the tokenizer decodes, (B, T, K, E)."""
        return self.vectors(h).unflatten(-1, self.cells)


class Logits(nn.Module):
    """(..., inputs) -> logits (..., G, V), a hidden layer with a norm between."""

    def __init__(self, inputs: int, hidden: int, G: int, V: int):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.SiLU())
        self.out, self.sizes = ExactLinear(hidden, G * V), (G, V)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x)).unflatten(-1, self.sizes)


TINY = dict(groups=3, classes=5, hidden=16)
