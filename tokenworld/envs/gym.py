"""Any Gymnasium environment with image observations, as a vector environment of channel-first bytes.

Images are Box spaces of bytes (H, W, C), (C, H, W) or (H, W), or of booleans, which become 0 and 255. The channel axis
is the shorter one of the first and the last. Ids may name the module that registers them: `my_package:MyEnv-v0`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch.nn.functional import interpolate

from tokenworld.envs.copies import Copies
from tokenworld.envs.game import Game, try_out
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
) -> VectorEnv:
    """`num_envs` copies of the environment `id`: obs (N, C, H, W) uint8, discrete actions.

    `kwargs` go to `gymnasium.make`; `wrappers` are dotted names, applied in order to each copy (a mapping of `_target_` and
    keyword arguments may stand for a name). `height` and `width` resize the frames (averaging over areas; None keeps the
    size); `max_steps` truncates (None keeps the environment's own limit); `processes` runs each copy in a process of its own,
    for slow environments. Raises `UserError` for an environment that cannot be built, observations that are no images,
    actions that are not discrete, and one that fails in a trial of one step.
    """
    if num_envs < 1:
        raise UserError(f"env.num_envs must be at least 1, got {num_envs}: choose e.g. 8")
    for name, value in [("height", height), ("width", width), ("max_steps", max_steps)]:
        if value is not None and value < 1:
            raise UserError(f"env.{name} must be at least 1 or null, got {value}: choose e.g. 64")
    build_one = partial(build, id, max_steps=max_steps, wrappers=wrappers, kwargs=kwargs)

    # One is built and tried first: what is wrong with it is said at once, not by a vector of workers in the middle of a run.
    probe = Game(build_one(), id)
    check_spaces(id, probe)
    try_out(probe)
    probe.close()
    copies = Copies(partial(_build_game, build_one, id), num_envs, id=id, processes=processes)
    vector = ImageVector(copies, height=height, width=width)
    if not id.startswith("ALE/"):  # the only chance of an Atari game is outside of its random stream
        vector.metadata = {"simulator": "tokenworld.evaluation.simulators.replayed.of_env"} | vector.metadata
    return vector


def _build_game(build_one: partial, id: str, row: int) -> Game:
    return Game(build_one(), id, row)


class ImageVector(VectorEnv):
    """Copies of an environment with channel-first, resized byte frames."""

    def __init__(self, copies: Copies, *, height: int | None, width: int | None) -> None:
        self.copies = copies
        self.num_envs = copies.num_envs
        self.start = int(copies.single_action_space.start)
        shape = copies.single_observation_space.shape
        # (H, W) -> (1, H, W); (H, W, C) -> (C, H, W); (C, H, W) stays.
        self.channel_last = len(shape) == 3 and shape[0] >= shape[2]
        C = 1 if len(shape) == 2 else min(shape[0], shape[2])
        H, W = shape[:2] if len(shape) == 2 or self.channel_last else shape[1:]
        self.size = (height or H, width or W)
        self.resize = self.size != (H, W)
        self.single_observation_space = Box(0, 255, (C, *self.size), np.uint8)
        self.single_action_space = Discrete(int(copies.single_action_space.n))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.metadata = {**copies.metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        obs, info = self.copies.reset(seed=fold(seed), options=options)
        return self._frames(obs), info

    def step(self, actions):
        actions = np.asarray(actions)
        A = int(self.single_action_space.n)
        if actions.shape != (self.num_envs,) or actions.min() < 0 or actions.max() >= A:
            raise ValueError(f"actions must be {self.num_envs} numbers in 0..{A - 1}, got {actions}")
        obs, reward, terminated, truncated, info = self.copies.step(actions + self.start)
        return self._frames(obs), reward.astype(np.float32), terminated, truncated, info

    def _frames(self, obs: np.ndarray) -> np.ndarray:
        if obs.dtype == bool:
            obs = obs.astype(np.uint8) * np.uint8(255)
        if obs.ndim == 3:
            obs = obs[:, None]  # (N, 1, H, W)
        elif self.channel_last:
            obs = obs.transpose(0, 3, 1, 2)  # (N, C, H, W)
        if self.resize:
            frames = torch.from_numpy(np.ascontiguousarray(obs)).float()
            obs = interpolate(frames, size=self.size, mode="area").round().to(torch.uint8).numpy()  # (N, C, h, w)
        return np.array(obs, order="C")  # a copy: the vector reuses its array

    def close_extras(self, **kwargs: Any) -> None:
        self.copies.close(**kwargs)


TINY = dict(id="ALE/Breakout-v5", num_envs=2, height=16, width=16, max_steps=20)
