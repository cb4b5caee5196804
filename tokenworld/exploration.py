"""Exploration: random actions among those that a policy chooses, each held for some steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tokenworld.action_space import Actions, of


class RandomActions:
    """Epsilon z-greedy exploration (Dabney et al. 2021, arXiv:2006.01782) of N games at once.

    A game that holds no random action begins one with probability `epsilon`: uniform over the actions, and held for n steps
    with probability n^-zeta / sum over m of m^-zeta (the paper takes zeta = 2), or for one step where zeta is None. zeta is
    above 1.
    """

    def __init__(self, rng: np.random.Generator, actions: Actions | int, *, epsilon: float = 1.0, zeta: float | None = None):
        self.rng, self.actions, self.epsilon, self.zeta = rng, of(actions), epsilon, zeta
        self._left = np.zeros(0, dtype=np.int64)

    def __call__(self, chosen: np.ndarray) -> np.ndarray:
        """The chosen actions (N,) int64 or (N, A) float32, with a random one where a game holds one."""
        N = len(chosen)
        if len(self._left) != N:
            self._held, self._left = np.zeros_like(chosen), np.zeros(N, dtype=np.int64)
        begins = self._left == 0
        if self.epsilon < 1:
            begins &= self.rng.random(N) < self.epsilon
        drawn = self._draw(N)
        steps = np.ones(N, dtype=np.int64) if self.zeta is None else self.rng.zipf(self.zeta, size=N)
        self._held = np.where(self._wide(begins), drawn, self._held)
        self._left = np.where(begins, steps, self._left)
        action = np.where(self._wide(self._left > 0), self._held, chosen)
        self._left = np.maximum(self._left - 1, 0)
        return action

    def _draw(self, N: int) -> np.ndarray:
        if self.actions.is_single:
            return self.rng.integers(self.actions.choices[0], size=N)
        return self.actions.draw(torch.from_numpy(self.rng.random((N, self.actions.size)))).numpy()

    def _wide(self, rows: np.ndarray) -> np.ndarray:
        """(N,), to go with actions."""
        return rows.reshape(-1, *[1] * len(self.actions.row))


def random_act(
    actions: Actions | int, rng: np.random.Generator, zeta: float | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """`act(obs, first (N,)) -> (N,) or (N, A)`: random actions only, each as often as any other; zeta: see `RandomActions`."""
    explore = RandomActions(rng, actions, zeta=zeta)
    return lambda obs, first: torch.from_numpy(explore(of(actions).zero(len(first)).numpy()))
