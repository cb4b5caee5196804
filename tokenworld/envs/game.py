"""One copy of an environment at the border: what it returns is checked, what it raises is one sentence.

A vector of copies turns results into arrays, in which None is nan, 1e300 is inf and 300 is 44: so this is checked before.
"""

from __future__ import annotations

import contextlib
import inspect
import random
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector.utils import batch_space, iterate

from tokenworld import action_space
from tokenworld.envs.checked import LARGEST_REWARD, NUMBER
from tokenworld.envs.failures import describe
from tokenworld.envs.observations import Reader
from tokenworld.envs.seeds import fold
from tokenworld.envs.single import FROM_GYM
from tokenworld.errors import UserError

LARGEST_SEED = 2**31 - 1  # that every game takes, also one whose generator keeps 32 bits
NEW_API = (
    "change it, or wrap it in an adapter, so that reset(self, *, seed=None, options=None) returns (obs, info) and "
    "step(self, action) returns (obs, reward, terminated, truncated, info)"
)


class Game(gymnasium.Wrapper):
    """An environment whose faults are a UserError that names the environment, the row, the step and the value."""

    def __init__(self, env: gymnasium.Env, id: str, row: int = 0, reader: Reader | None = None) -> None:
        """reader: what turns its observations into frames; None returns them as they are."""
        super().__init__(env)
        self.id, self.row, self.steps, self.reader = id, row, 0, reader
        self.own_space = env.observation_space
        if reader is not None:
            self.observation_space = reader.space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Begin an episode. A seed that the game cannot hold is folded into 31 bits."""
        try:
            result = self._reset_seeded(seed, options)
        except (Exception, SystemExit) as error:
            raise UserError(f"{self._locate('failed in reset')}: {describe(error)}") from error
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
            raise self._refusal("reset()", _kind(result), "(obs, info)", NEW_API)
        return self._frame(result[0], "reset()"), result[1]

    def _reset_seeded(self, seed: int | None, options: dict[str, Any] | None):
        try:
            return self.env.reset(seed=seed, options=options)
        except Exception:
            if seed is None or seed <= LARGEST_SEED:
                raise
        return self.env.reset(seed=fold(seed, LARGEST_SEED + 1), options=options)

    def step(self, action):
        """One step: a frame, a finite reward and two booleans."""
        self.steps += 1
        try:
            result = self.env.step(action)
        except (Exception, SystemExit) as error:
            raise UserError(f"{self._locate('failed')}: {describe(error)}") from error
        if not (isinstance(result, tuple) and len(result) == 5 and isinstance(result[4], dict)):
            raise self._refusal("step()", _kind(result), "(obs, reward, terminated, truncated, info)", NEW_API)
        obs, reward, terminated, truncated, info = result
        return self._frame(obs, "step()"), self._reward(reward), self._flag(terminated), self._flag(truncated), info

    def offer(self, *, with_code: bool) -> tuple:
        """Observation space, action space and metadata; with_code: also functions in them, which no pipe can carry."""
        metadata = {key: value for key, value in (self.metadata or {}).items() if with_code or not callable(value)}
        return self.observation_space, self.action_space, metadata

    def close(self) -> None:
        """Close the game and ignore its errors."""
        with contextlib.suppress(Exception):
            super().close()

    def _frame(self, obs: Any, call: str) -> np.ndarray:
        if isinstance(self.own_space, Box):
            obs = self._array(obs, call)
        elif not self.own_space.contains(obs):
            todo = "return one of the space at every step, or correct the space"
            raise self._refusal(f"the observation of {call}", _kind(obs), f"one of {self.own_space}"[:200], todo)
        frame = obs if self.reader is None else self.reader.read(obs)
        if frame.dtype.kind == "f" and not np.isfinite(frame).all():
            raise self._refusal(f"the observation of {call}", f"{obs}"[:80], "finite numbers", "correct the environment")
        return frame

    def _array(self, obs: Any, call: str) -> np.ndarray:
        shape, dtype = self.own_space.shape, self.own_space.dtype
        try:
            frame = np.asarray(obs)
        except ValueError:  # rows of different lengths
            frame = np.array(None)
        if frame.shape != shape or not np.can_cast(frame.dtype, dtype):
            space = f"{shape} {dtype}, as observation_space has it"
            todo = "correct the space, or return e.g. obs.astype(np.uint8)"
            if frame.shape != shape:
                todo = "return frames of that shape at every step, or correct the space"
            raise self._refusal(f"the observation of {call}", _kind(obs), space, todo)
        return frame

    def _reward(self, reward: Any) -> float:
        try:
            value = float(reward)
        except (TypeError, ValueError):
            value = float("nan")
        if not -LARGEST_REWARD <= value <= LARGEST_REWARD or isinstance(reward, str):
            raise self._refusal("the reward", repr(reward)[:80], NUMBER, "correct step() of the environment")
        return value

    def _flag(self, value: Any) -> bool:
        if not isinstance(value, (bool, np.bool_)) and not (np.ndim(value) == 0 and value in (0, 1)):
            raise self._refusal("terminated or truncated", repr(value)[:80], "True or False", "correct step()")
        return bool(value)

    def _refusal(self, what: str, got: str, expected: str, todo: str) -> UserError:
        return UserError(f"{self._locate('')}: {what} is {got}, expected {expected}: {todo}")

    def _locate(self, what: str) -> str:
        return f"env.id={self.id} {what} in step {self.steps} of row {self.row}".replace("  ", " ")


def _kind(value: Any) -> str:
    """What was returned, in a few words."""
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    if isinstance(value, (np.ndarray, np.generic)):
        return f"an array {value.shape} of {value.dtype}"
    return type(value).__name__


# ---------------------------------------------------------------------------------------------------------------------


def try_out(game: Game) -> None:
    """One reset and one step on a copy of its own; UserError if the environment does not keep to Gymnasium's API.

    Global random states are afterward what they were.
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        obs, _ = game.reset(seed=0)
        space = game.observation_space
        if obs.dtype == space.dtype != np.float32 and not ((obs >= space.low) & (obs <= space.high)).all():
            raise UserError(
                f"env.id={game.id}: values of the observation lie in {obs.min()}..{obs.max()}, expected "
                f"{space.low.min()}..{space.high.max()} as in observation_space: correct the bounds, for pixels low=0, high=255"
            )
        lowest = action_space.of(game.action_space).draw(torch.zeros(1, action_space.of(game.action_space).size))
        batch = action_space.to_space(game.action_space, lowest.numpy())
        game.step(next(iter(iterate(batch_space(game.action_space, 1), batch))))
    except UserError as error:
        old = _old_api(game.unwrapped)
        if old is None:
            raise
        raise UserError(f"env.id={game.id} follows the old Gym API, {old}: {NEW_API}; {FROM_GYM}") from error
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _old_api(env: gymnasium.Env) -> str | None:
    """How an environment, without its wrappers, differs from Gymnasium's API; None if it does not."""
    try:
        takes = inspect.signature(env.reset).parameters.values()
        lacks = {"seed", "options"} - {each.name for each in takes}
        if lacks and not any(each.kind is each.VAR_KEYWORD for each in takes):
            return f"its reset() does not take {' and '.join(sorted(lacks))}"
        result = env.reset(seed=0, options=None)
        if not (isinstance(result, tuple) and len(result) == 2):
            return f"its reset() returns {_kind(result)}"
        result = env.step(env.action_space.sample())
        return f"its step() returns {_kind(result)}" if isinstance(result, tuple) and len(result) == 4 else None
    except (Exception, SystemExit):
        return None
