"""Simulators whose kernel is known: every branch is listed with its exact probability."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from tokenworld.envs import known_world
from tokenworld.evaluation.simulators.interface import self_test


class TabularWorld(Protocol):
    """A tabular world, such as `tokenworld.envs.known_world.World`; states are integers."""

    actions: int

    def kernel(self, state: int, action: int) -> list[tuple[float, int, float, bool]]:
        """[(probability, next state, reward, terminated)], probabilities summing to 1."""

    def render(self, state: int) -> np.ndarray:
        """What is seen of a state: (C, H, W) uint8."""

    def starts(self) -> list[tuple[float, int]]:
        """[(probability, state)] in which episodes begin."""


class Tabular:
    """A world as a simulator to branch (see `interface.py` for its methods); a snapshot is the state's number and the random
    stream, so that there is nothing a clone could lose."""

    exact = True

    def __init__(self, world: TabularWorld):
        self.world, self.actions = world, world.actions
        self.state, self._rng = world.starts()[0][1], np.random.default_rng(0)

    def reset(self, seed: int) -> np.ndarray:
        self.reseed(seed)
        self.state = self._drawn(self.world.starts())[1]
        return self.world.render(self.state)

    def step(self, a: int) -> tuple[np.ndarray, float, bool]:
        _, self.state, reward, terminated = self._drawn(self.world.kernel(self.state, a))
        return self.world.render(self.state), reward, terminated

    def snapshot(self) -> tuple[int, dict]:
        return self.state, self._rng.bit_generator.state

    def restore(self, x: tuple[int, dict]) -> np.ndarray:
        self.state, self._rng.bit_generator.state = x
        return self.world.render(self.state)

    def reseed(self, k: int) -> None:
        self._rng = np.random.default_rng(k)

    def state_hash(self) -> int:
        return self.state

    def branches(self, x: tuple[int, dict], a: int) -> list[tuple[float, np.ndarray, float, bool]]:
        """[(p, obs, reward, terminated)] of everything that may follow."""
        return [(p, self.world.render(s), reward, end) for p, s, reward, end in self.world.kernel(x[0], a)]

    def _drawn(self, outcomes: list[tuple]) -> tuple:
        p = np.array([outcome[0] for outcome in outcomes])
        return outcomes[self._rng.choice(len(outcomes), p=p / p.sum())]


def of_known_world(**settings: Any) -> Tabular:
    """The simulator of an environment of `tokenworld.envs.known_world.make`, tested."""
    simulator = Tabular(known_world.World(**settings))
    self_test(simulator, str(settings.get("id")))
    return simulator
