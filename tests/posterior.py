"""A tokenizer of features without indices and a decoding with a posterior, small: `decoding._target_=posterior.Recurrent` and
`tokenizer._target_=posterior.Features` in the tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tokenworld.interfaces import Codes, Losses, Part, Prediction, Shapes, State, Steps
from tokenworld.nn import balanced_kl, loss_mask, sample_categorical, straight_through


class Features(nn.Module, Part):
    """A frame as one vector: no index stands for it."""

    K, V, grid, context, joint = 1, 0, (1, 1), 0, True

    def __init__(self, *, frame_shape: tuple[int, int, int], width: int = 32):
        super().__init__()
        C, H, W = frame_shape
        self.E, self.weights = width, {"pixels": 1.0}
        self.into = nn.Sequential(nn.Flatten(2), nn.Linear(C * H * W, width), nn.SiLU())
        self.out = nn.Sequential(nn.Linear(width, C * H * W), nn.Unflatten(-1, frame_shape))

    def encode(self, steps: Steps) -> Codes:
        return Codes(vectors=self.into(steps.obs.float() / 255).unsqueeze(2))

    def decode(self, codes: Codes, past: Tensor | None = None) -> Tensor:
        return self.out(codes.vectors.squeeze(2)).sigmoid()

    def loss(self, steps: Steps, codes: Codes | None = None) -> tuple[Losses, Codes]:
        codes = self.encode(steps) if codes is None else codes
        return {"pixels": (self.decode(codes) - steps.obs.float() / 255).square().flatten(2).sum(-1)}, codes


@dataclass
class RecurrentState(State):
    memory: Tensor  # (B, D)
    code: Tensor  # (B, G * V) of the last frame

    def select(self, index: Tensor) -> RecurrentState:
        return RecurrentState(self.memory[index], self.code[index])


class Recurrent(nn.Module, Part):
    """A recurrent state-space model (after DreamerV2, arXiv:2010.02193) that needs no backbone: the codes of a frame depend on
    all that was read before."""

    passes, lookahead, has_posterior, joint_draw = 1, 1, True, False

    def __init__(self, *, shapes: Shapes, action: nn.Module, groups: int = 4, classes: int = 4, temperature: float = 1.0):
        super().__init__()
        D, self.G, self.V, self.temperature = shapes.dim, groups, classes, temperature
        whole = groups * classes
        self.shapes = replace(shapes, codes=groups, vocab_size=classes, grid=(1, groups), dim=D + whole)
        self.noise_size, self.weights, self.action, self.D = groups, {"dyn": 0.5, "rep": 0.1}, action, D
        self.cell, self.prior = nn.GRUCell(whole + D, D), nn.Linear(D, whole)
        self.posterior, self.out = nn.Linear(D + shapes.code_dim, whole), nn.Linear(D + whole, shapes.code_dim)

    def loss(self, backbone, codes: Codes, steps: Steps) -> tuple[Losses, Tensor, Codes]:
        states, priors, read, _ = self._read(codes, steps)
        h = torch.stack(states, 1)[:, 1:]  # (B, T-1, D + G * V)
        kl = balanced_kl(read.logits[:, 1:], torch.stack(priors, 1)[:, 1:], 0.1, loss_mask(steps, h.shape[1]))
        return kl, h, read

    def start(self, backbone, codes: Codes, steps: Steps) -> tuple[Prediction, RecurrentState]:
        states, priors, read, state = self._read(codes, steps)
        return Prediction(read[:, -1:], states[-1], lambda: priors[-1]), state

    def step(self, backbone, state, action, noise, codes: Codes | None = None, first: Tensor | None = None):
        memory = self._moved(state, action, torch.zeros(len(action), dtype=torch.bool) if first is None else first)
        prior = self._logits(self.prior(memory))
        if codes is None:
            indices, logits = sample_categorical(prior, noise, self.temperature), prior
        else:
            logits = self._logits(self.posterior(torch.cat([memory, codes.vectors[:, 0, 0]], -1)))
            indices = logits.argmax(-1)
        h, z, state = self._coded(memory, indices, logits)
        return Prediction(z, h, lambda: prior), state

    def _read(self, codes: Codes, steps: Steps):
        """Lists over T of h and of the logits of the prior, the posterior's codes (B, T), and the last state."""
        B, T = codes.shape
        state = RecurrentState(self.prior.weight.new_zeros(B, self.D), self.prior.weight.new_zeros(B, self.G * self.V))
        begins = torch.ones(B, dtype=torch.bool)
        states, priors, read = [], [], []
        for t in range(T):
            action = steps.action[:, max(0, t - 1)]
            memory = self._moved(state, action, begins if t == 0 else steps.first[:, t])
            priors.append(self._logits(self.prior(memory)))
            logits = self._logits(self.posterior(torch.cat([memory, codes.vectors[:, t, 0]], -1)))
            noise = torch.rand(B, self.G) if self.training else None
            indices = sample_categorical(logits, noise, 1.0) if self.training else logits.argmax(-1)
            h, z, state = self._coded(memory, indices, logits)
            states.append(h)
            read.append(z)
        return states, priors, Codes(*(torch.cat([getattr(z, name) for z in read], 1)
                                       for name in ("indices", "vectors", "logits"))), state  # fmt: skip

    def _moved(self, state: RecurrentState, action: Tensor, first: Tensor) -> Tensor:
        x = torch.cat([state.code, self.action(action.unsqueeze(1))[:, 0]], -1)
        return torch.where(first[:, None], 0.0, self.cell(x, state.memory))

    def _coded(self, memory: Tensor, indices: Tensor, logits: Tensor) -> tuple[Tensor, Codes, RecurrentState]:
        code = straight_through(logits, indices).flatten(1)  # (B, G, V) -> (B, G * V)
        h = torch.cat([memory, code], -1)
        return h, Codes(indices.unsqueeze(1), self.out(h)[:, None, None], logits.unsqueeze(1)), RecurrentState(memory, code)

    def _logits(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.G, self.V)).log_softmax(-1)  # (B, G * V) -> (B, G, V)


def posterior_model(recipe: str = "known_world", frame=(3, 16, 24), actions: int = 4):
    """An untrained world model of both, in eval mode, with weights well away from their start."""
    from conftest import rouse

    from tokenworld import WorldModel

    torch.manual_seed(0)
    words = ("overlay=debug", "~tokenizer", "tokenizer={_target_: posterior.Features}", "~decoding",
             "decoding={_target_: posterior.Recurrent}")  # fmt: skip
    return rouse(WorldModel.from_recipe(recipe, *words, frame=frame, actions=actions))
