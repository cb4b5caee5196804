"""The border of every environment: what it returns is checked once per step, before it enters the replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import VectorEnv, VectorWrapper

from tokenworld import action_space
from tokenworld.config import schema
from tokenworld.envs.failures import describe, is_own
from tokenworld.errors import UserError

LARGEST_REWARD = float(np.finfo(np.float32).max)
NUMBER = f"a finite number of at most {LARGEST_REWARD:.3g} in size"


def make_checked(section: dict[str, Any], num_envs: int, **changes: Any) -> Checked:
    """The environment of a config's `env` section, with some of its keywords changed. Raises UserError as its maker does."""
    section = section | changes
    return Checked(schema.build(section, num_envs=num_envs), str(section.get("id", section["_target_"])))


class Checked(VectorWrapper):
    """A vector environment whose faults are a UserError that names the environment, the row, the step and the value.

    `step` takes rows of `Actions`, (N,) or (N, A), whatever the space of the environment's actions is. Observations must be
    bytes (N, C, H, W) or finite float32 (N, M, 1, 1), rewards finite numbers (N,) that float32 holds, ends booleans (N,).
    """

    def __init__(self, env: VectorEnv, name: str) -> None:
        if not isinstance(env, VectorEnv):
            raise UserError(
                f"the environment {name} is a {type(env).__name__}, expected a gymnasium.vector.VectorEnv: register the class "
                "with Gymnasium and name it by env.id=module:ID, with env._target_=tokenworld.envs.gym.make"
            )
        super().__init__(env)
        self.name, self.steps = name, 0
        space = env.single_observation_space
        is_picture = isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 3
        is_vector = isinstance(space, Box) and space.dtype == np.float32 and space.shape[1:] == (1, 1)
        if not (is_picture or is_vector):
            raise UserError(f"the environment {name} has observations {space}, expected a Box (C, H, W) of uint8 or (M, 1, 1)"
                            " of float32: convert them")  # fmt: skip
        try:
            self.actions = action_space.of(env.single_action_space)
        except UserError as error:
            raise UserError(f"the environment {name} has {env.single_action_space}: {error}") from None
        self.shape, self.dtype = (env.num_envs, *space.shape), space.dtype

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        self.steps = 0
        obs, info = self._call(2, self.env.reset, seed=seed, options=options)
        self._check_obs(obs)
        return obs, info

    def step(self, actions):
        self.steps += 1
        rows = torch.from_numpy(np.asarray(actions))
        if rows.shape != (self.num_envs, *self.actions.row) or not self.actions.contains(rows).all():
            raise ValueError(f"actions must be {self.num_envs} of {self.actions}, got {actions}")
        own = action_space.to_space(self.env.single_action_space, actions)
        obs, reward, terminated, truncated, info = self._call(5, self.env.step, own)
        self._check_obs(obs)
        rewards = np.asarray(reward)
        self._check_rows("reward", rewards, "biuf", NUMBER)
        is_good = np.abs(rewards) <= LARGEST_REWARD
        if not is_good.all():
            row = int(np.flatnonzero(~is_good)[0])
            raise self._refusal(f"row {row} has reward {rewards[row]}", NUMBER)
        for what, flags in (("terminated", terminated), ("truncated", truncated)):
            self._check_rows(what, np.asarray(flags), "b", "True or False")
        return obs, reward, terminated, truncated, info

    def _call(self, count: int, method: Callable, *args: Any, **kwargs: Any) -> tuple:
        try:
            result = method(*args, **kwargs)
        except UserError:
            raise
        except Exception as error:
            if is_own(error):
                raise  # a fault of tokenworld: its traceback is wanted
            raise UserError(f"the environment {self.name} failed in step {self.steps}: {describe(error)}") from error
        if not isinstance(result, tuple) or len(result) != count:
            got = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
            raise self._refusal(f"{method.__name__}() returned {got}", f"{count} values, as in gymnasium.vector")
        return result

    def _check_obs(self, obs: Any) -> None:
        if not isinstance(obs, np.ndarray) or obs.dtype != self.dtype or obs.shape != self.shape:
            got = f"{obs.shape} {obs.dtype}" if isinstance(obs, np.ndarray) else type(obs).__name__
            raise self._refusal(f"the observations are {got}", f"{self.shape} {self.dtype}")
        if self.dtype == np.float32 and not np.isfinite(obs).all():
            row = int(np.flatnonzero(~np.isfinite(obs).all((1, 2, 3)))[0])
            raise self._refusal(f"row {row} has observation {obs[row, :, 0, 0]}", "finite numbers")

    def _check_rows(self, what: str, values: np.ndarray, kinds: str, expected: str) -> None:
        """`values` must be (N,) of a dtype of these kinds; else the first row that is not names itself."""
        if values.shape == self.shape[:1] and values.dtype.kind in kinds:
            return
        if values.shape != self.shape[:1]:
            raise self._refusal(f"{what} has shape {values.shape}", f"{self.shape[:1]}")
        rows = [row for row, value in enumerate(values.tolist()) if np.asarray(value).dtype.kind not in kinds]
        row = rows[0] if rows else 0
        raise self._refusal(f"row {row} has {what} {values.tolist()[row]!r} of {values.dtype}", expected)

    def _refusal(self, what: str, expected: str) -> UserError:
        prefix = f"the environment {self.name}, step {self.steps}"
        return UserError(f"{prefix}: {what}, expected {expected}: correct the environment")
