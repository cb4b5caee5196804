"""Any Gymnasium environment as a vector environment: pictures as channel-first bytes, everything else as vectors of numbers.

Pictures are Box spaces of bytes (H, W, C), (C, H, W) or (H, W), of booleans, or of numbers from 0 to 1. The channel axis is the
shorter one of the first and the last. Other numbers are a vector, see `observations.py`. Actions may be of any space that
`action_space.of` takes. Ids may name the module that registers them: `my_package:MyEnv-v0`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from tokenworld.envs.copies import Copies
from tokenworld.envs.game import Game, try_out
from tokenworld.envs.observations import channel_last, is_nested, reader_of, resize
from tokenworld.envs.seeds import fold
from tokenworld.envs.single import build
from tokenworld.envs.spaces import check_spaces
from tokenworld.errors import UserError


def make(
    *,
    id: str = "ALE/Breakout-v5",
    num_envs: int = 1,
    height: int | None = None,
    width: int | None = None,
    max_steps: int | None = None,
    processes: bool = False,
    wrappers: list | None = None,
    kwargs: dict | None = None,
    strip: int = 8,
    render: bool = False,
) -> VectorEnv:
    """`num_envs` copies of the environment `id`: obs (N, C, H, W) uint8, or (N, M, 1, 1) float32; actions of its own space.

    `kwargs` go to `gymnasium.make`; `wrappers` are dotted names, applied in order to each copy (a mapping of `_target_` and
    keyword arguments may stand for a name). `height` and `width` resize the frames (averaging over areas; None keeps the
    size); `max_steps` truncates (None keeps the environment's own limit); `processes` runs each copy in a process of its own,
    for slow environments; `render`: the picture that it draws of itself is the observation; `strip`: side in pixels of the
    cells below a picture that show the numbers which come with it. Raises `UserError` for an environment that cannot be built,
    observations and actions that cannot be read, and one that fails in a trial of one step.
    """
    if render:
        wrappers = [*(wrappers or []), "gymnasium.wrappers.AddRenderObservation"]
        kwargs = {"render_mode": "rgb_array"} | (kwargs or {})
    if num_envs < 1:
        raise UserError(f"env.num_envs must be at least 1, got {num_envs}: choose e.g. 8")
    for name, value in [("height", height), ("width", width), ("max_steps", max_steps), ("strip", strip)]:
        if value is not None and value < 1:
            raise UserError(f"env.{name} must be at least 1 or null, got {value}: choose e.g. 64")
    build_one = partial(build, id, max_steps=max_steps, wrappers=wrappers, kwargs=kwargs)

    # One is built and tried first: what is wrong with it is said at once, not by a vector of workers in the middle of a run.
    probe = build_one()
    check_spaces(id, probe)
    read = partial(reader_of, cell=strip, size=(height, width))
    has_strip = is_nested(probe.observation_space)
    probe = Game(probe, id, reader=read(probe.observation_space))
    try_out(probe)
    probe.close()
    copies = Copies(partial(_build_game, build_one, id, read), num_envs, id=id, processes=processes)
    vector = Vector(copies, size=(None, None) if has_strip else (height, width))
    if not id.startswith("ALE/"):  # the only chance of an Atari game is outside of its random stream
        vector.metadata = {"simulator": "tokenworld.evaluation.simulators.replayed.of_env"} | vector.metadata
    return vector


def _build_game(build_one: partial, id: str, read: partial, row: int) -> Game:
    env = build_one()
    return Game(env, id, row, read(env.observation_space))


class Vector(VectorEnv):
    """Copies of an environment with channel-first, resized frames of bytes, or with vectors (M, 1, 1) float32."""

    def __init__(self, copies: Copies, *, size: tuple[int | None, int | None]) -> None:
        self.copies = copies
        self.num_envs = copies.num_envs
        space = copies.single_observation_space
        shape = space.shape
        self.is_vector = len(shape) == 1
        # (H, W) -> (1, H, W); (H, W, C) -> (C, H, W); (C, H, W) stays.
        self.channel_last = channel_last(shape)
        if self.is_vector:
            low, high = (bound.reshape(-1, 1, 1) for bound in (space.low, space.high))
            self.single_observation_space = Box(low, high, dtype=np.float32)
        else:
            C = 1 if len(shape) == 2 else min(shape[0], shape[2])
            H, W = shape[:2] if len(shape) == 2 or self.channel_last else shape[1:]
            self.size = (size[0] or H, size[1] or W)
            self.resize = self.size != (H, W)
            self.single_observation_space = Box(0, 255, (C, *self.size), np.uint8)
        self.single_action_space = copies.single_action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.metadata = {**copies.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        obs, info = self.copies.reset(seed=fold(seed), options=options)
        return self._frames(obs), info

    def step(self, actions):
        if not all(self.single_action_space.contains(action) for action in iterate(self.action_space, actions)):
            raise ValueError(f"actions must be {self.num_envs} of {self.single_action_space}, got {actions}")
        obs, reward, terminated, truncated, info = self.copies.step(actions)
        return self._frames(obs), reward.astype(np.float32), terminated, truncated, info

    def _frames(self, obs: np.ndarray) -> np.ndarray:
        if self.is_vector:
            return obs[:, :, None, None].copy()  # (N, M, 1, 1)
        if obs.dtype == bool:
            obs = obs.astype(np.uint8) * np.uint8(255)
        if obs.ndim == 3:
            obs = obs[:, None]  # (N, 1, H, W)
        elif self.channel_last:
            obs = obs.transpose(0, 3, 1, 2)  # (N, C, H, W)
        if self.resize:
            obs = resize(obs, self.size)  # (N, C, h, w)
        return np.array(obs, order="C")  # a copy: the vector reuses its array

    def close_extras(self, **kwargs: Any) -> None:
        self.copies.close(**kwargs)


TINY = dict(id="ALE/Breakout-v5", num_envs=2, height=16, width=16, max_steps=20)
