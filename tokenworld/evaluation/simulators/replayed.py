"""Simulators that are branched by playing again: any environment of `tokenworld.envs.gym` that a seed and its actions repeat.

The last resort, since a branch at step t costs t steps. What may come can only be drawn: chance is drawn again from the
environment's own random stream, `np_random`, and chance from elsewhere is not seen, so that the model is blamed for it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from tokenworld.action_space import of, to_space
from tokenworld.envs import gym
from tokenworld.evaluation.simulators.interface import self_test

Event = tuple[str, Any]  # ("action", a), a number or a row (A,), or ("seed", k)


class ReplaySimulator:
    """One environment; a snapshot is its seed and all that was done to it (see `interface.py` for the methods).

    Raises UserError as `tokenworld.envs.gym.make`.
    """

    exact = False

    def __init__(self, **settings):
        self.env = gym.make(num_envs=1, **settings)
        actions = of(self.env.single_action_space)
        self.actions = actions.choices[0] if actions.is_single else actions
        self.reset(0)

    def reset(self, seed: int) -> np.ndarray:
        self.seed, self.events = seed, []
        self.obs = self.env.reset(seed=seed)[0][0]
        return self.obs

    def step(self, a: int | np.ndarray) -> tuple[np.ndarray, float, bool]:
        self.events.append(("action", a))
        obs, reward, terminated, truncated, _ = self.env.step(to_space(self.env.single_action_space, np.array([a])))
        self.obs = obs[0]
        return self.obs, float(reward[0]), bool(terminated[0] or truncated[0])

    def snapshot(self) -> tuple[int, tuple[Event, ...]]:
        return self.seed, tuple(self.events)

    def restore(self, x: tuple[int, tuple[Event, ...]]) -> np.ndarray:
        self.reset(x[0])
        for kind, value in x[1]:
            self.step(value) if kind == "action" else self.reseed(value)
        return self.obs

    def reseed(self, k: int) -> None:
        self.events.append(("seed", k))
        inner = self.env.copies.envs[0].unwrapped
        if hasattr(inner, "np_random"):
            inner.np_random = np.random.default_rng(k)

    def branches(self, x: tuple[int, tuple[Event, ...]], a: int | np.ndarray) -> None:
        return None

    def state_hash(self) -> int:
        """Of the picture: what it hides is left out."""
        return int.from_bytes(hashlib.sha256(self.obs.tobytes()).digest()[:8], "big")


def of_env(*, processes: bool = False, **settings: Any) -> ReplaySimulator:
    """The simulator of an environment of `tokenworld.envs.gym.make`, tested; it runs in this process."""
    simulator = ReplaySimulator(**settings)
    self_test(simulator, str(settings.get("id")))
    return simulator
