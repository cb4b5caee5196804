"""A linear controller, the C of World Models (Ha and Schmidhuber 2018, arXiv:1803.10122, section 2.3): action = W [z, h] + b,
evolved and not trained by gradients.

Faithful: it reads the vector of the frame and the state of the dynamics, and has no other layer; it is deterministic, in the
dream and in the real environment; a continuous part of the action is the tanh of its output. Differs: of a discrete part the
value with the largest output is taken; outside evolution the parameters are the mean of the search distribution, where the
paper takes the best member of a generation.

Its parameters are its carry: `start` returns the mean, once per row, and an evolution gives each row a sample instead. So one
imagined rollout holds a whole population.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokenworld.errors import UserError
from tokenworld.interfaces import Losses, Part, Shapes, View
from tokenworld.policies.evolution import CMAES

EVOLVE = "set train.policy._target_=tokenworld.training.phases.evolution.evolve_policy"


class LinearController(nn.Module, Part):
    """Acts by W [z, h] + b, whatever the temperature; (Z + D + 1) * O parameters for O outputs, one for each value of each
    discrete part and one for each continuous part. sigma: the first standard deviation of their search."""

    needs_pixels, needs_h, noise_size = False, True, 0

    def __init__(self, *, shapes: Shapes, sigma: float = 0.1):
        super().__init__()
        if shapes.vocab_size:
            raise UserError("policy LinearController reads vectors of frames, but this decoding makes codes with indices:"
                            " choose tokenizer vae and decoding mixture")  # fmt: skip
        self.actions, self.inputs = shapes.actions, shapes.codes * shapes.code_dim + shapes.dim
        self.sizes = [*self.actions.choices, len(self.actions.bounds)]
        self.outputs = sum(self.sizes)
        self.weights: dict[str, float] = {}
        self.search = CMAES((self.inputs + 1) * self.outputs, sigma)

    def start(self, batch: int) -> Tensor:
        """The parameters of each row (B, n): the mean of the search distribution."""
        return self.search.mean.float().expand(batch, -1)

    @torch.no_grad()
    def act(self, view: View, carry: Tensor, noise: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """carry (B, n), noise (B, 0) -> action (B,) or (B, A), the same carry."""
        x = torch.cat([view.codes.vectors.flatten(1).float(), view.h.float()], -1)  # (B, Z + D)
        bias, weight = carry[:, : self.outputs], carry[:, self.outputs :].unflatten(1, (self.inputs, self.outputs))
        *discrete, continuous = (torch.einsum("bi,bio->bo", x, weight) + bias).split(self.sizes, -1)
        chosen = torch.stack([part.argmax(-1) for part in discrete], -1) if discrete else continuous[:, :0]  # (B, n)
        return self.actions.join(chosen, self.actions.unscale(continuous.tanh())), carry

    def follow(self, view: View, carry: Tensor) -> Tensor:
        """It has no memory but its parameters."""
        return carry

    def loss(self, imagined: Any) -> Losses:
        """Raises UserError: nothing here has a gradient."""
        raise UserError(f"a linear controller is evolved, got an imagined rollout to learn from by gradient: {EVOLVE}")

    def updates(self, imagined: Any, generator: torch.Generator, loss: Any = None):
        """Raises UserError, as `loss`."""
        return self.loss(imagined)

    def track(self) -> None:
        """It has no slow copies."""
