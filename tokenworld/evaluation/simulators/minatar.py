"""MinAtar as a simulator that can be branched (see `interface.py`).

    C channels · H, W image · A actions
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np

from tokenworld.envs import minatar
from tokenworld.evaluation.simulators.hashing import hash_of
from tokenworld.evaluation.simulators.interface import ENDED, Array, self_test


@dataclass(frozen=True)
class MinAtarState:
    game: Any  # a copy, randomness included
    obs: Array  # (C, H, W) uint8
    ended: bool


class MinAtar:
    """One game of MinAtar with the frames of `tokenworld.envs.minatar.make`; its branches are not listed: draw them.

    Sticky steps and the game's own randomness share one generator. Raises `UserError` for an id or a number that cannot be,
    when `minatar` is not installed, and if cloning fails.
    """

    exact = False

    def __init__(self, *, id: str = "MinAtar/Breakout-v1", sticky: float = 0.1) -> None:
        games = minatar.make(id=id, sticky=sticky)
        self.game, self.action_set, self.actions = games.games[0], games.actions, len(games.actions)
        self_test(self, id)
        self.reset(0)

    def reset(self, seed: int | None = None) -> Array:
        if seed is not None:
            self.game.seed(seed % 2**32)
            self.game.last_action = 0
        self.game.reset()
        self._ended, self._obs = False, minatar.to_bytes(self.game.state())
        return self._obs

    def snapshot(self) -> MinAtarState:
        return MinAtarState(copy.deepcopy(self.game), self._obs, self._ended)

    def restore(self, x: MinAtarState) -> Array:
        self.game, self._obs, self._ended = copy.deepcopy(x.game), x.obs, x.ended
        return x.obs

    def step(self, a: int) -> tuple[Array, float, bool]:
        if not 0 <= a < self.actions:
            raise ValueError(f"action must be a number in 0..{self.actions - 1}, got {a}")
        if self._ended:
            raise ValueError(ENDED)
        reward, ended = self.game.act(self.action_set[a])
        self._ended, self._obs = bool(ended), minatar.to_bytes(self.game.state())
        return self._obs, float(reward), self._ended

    def reseed(self, k: int) -> None:
        self.game.seed(k % 2**32)  # of the stickiness and of the game

    def branches(self, x: MinAtarState, a: int) -> None:
        return None

    def state_hash(self) -> int:
        """Of all that the game holds but its generator, and of the action that a sticky step repeats."""
        state = {name: value for name, value in vars(self.game.env).items() if name != "random"}
        held = self.game.last_action if self.game.sticky_action_prob > 0 else 0
        return hash_of(repr((_plain(state), held, self._ended)).encode())


def _plain(value: Any) -> Any:
    """The same text for the same state, whatever types of numbers a game has reached it with."""
    if isinstance(value, np.ndarray):
        return value.shape, _plain(value.ravel().tolist())
    if isinstance(value, dict):
        return [(key, _plain(value[key])) for key in sorted(value)]
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return float(value) if isinstance(value, bool | int | float | np.generic) else repr(value)


def of_env(*, max_steps: int | None = None, **settings: Any) -> MinAtar:
    """The simulator of an environment of `tokenworld.envs.minatar.make`; a branch is too short to be truncated."""
    return MinAtar(**settings)
