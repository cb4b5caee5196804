"""Any Gymnasium environment with image observations, as a vector environment of channel-first bytes.

Images are Box spaces of bytes (H, W, C), (C, H, W) or (H, W), or of booleans, which become 0 and 255. The channel axis
is the shorter one of the first and the last. Ids may name the module that registers them: `my_package:MyEnv-v0`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import batch_space
from torch.nn.functional import interpolate

from tokenworld.errors import UserError


def make(
    *,
    id: str = "ALE/Breakout-v5",
    num_envs: int = 1,
    height: int | None = None,
    width: int | None = None,
    max_steps: int | None = None,
    processes: bool = False,
) -> VectorEnv:
    """`num_envs` copies of the environment `id`: obs (N, C, H, W) uint8, discrete actions.

    `height` and `width` resize the frames (averaging over areas; None keeps the size); `max_steps` truncates (None
    keeps the environment's own limit); `processes` runs each copy in a process of its own, for slow environments.
    Raises `UserError` for an unknown id, observations that are no images, actions that are not discrete.
    """
    if num_envs < 1:
        raise UserError(f"env.num_envs must be at least 1, got {num_envs}: choose e.g. 8")
    for name, value in [("height", height), ("width", width), ("max_steps", max_steps)]:
        if value is not None and value < 1:
            raise UserError(f"env.{name} must be at least 1 or null, got {value}: choose e.g. 64")
    if id.startswith("ALE/"):
        _register_atari()
    make_one = _maker(id, max_steps)

    # One is built first: what is wrong with it is said in one sentence, not by a vector of workers.
    try:
        one = make_one()
    except gymnasium.error.DependencyNotInstalled as error:
        raise UserError(f"env.id={id} needs a package that is not installed: {error}") from error
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        nearest = difflib.get_close_matches(id, list(gymnasium.registry), n=1, cutoff=0.0)
        raise UserError(f"env.id={id} is not registered with Gymnasium: did you mean {nearest[0]}?") from error
    space, actions = one.observation_space, one.action_space
    one.close()
    if not (isinstance(space, Box) and space.dtype in (np.uint8, bool) and len(space.shape) in (2, 3)):
        got = f"Box{space.shape} {space.dtype}" if isinstance(space, Box) else f"{space}"
        raise UserError(
            f"env.id={id} has no image observations: got {got}, "
            f"expected a Box of uint8 or bool, (H, W), (H, W, C) or (C, H, W): choose an environment with pixels"
        )
    if not isinstance(actions, Discrete):
        raise UserError(f"env.id={id} has no discrete actions: got {actions}, expected Discrete: choose another one")

    vector = AsyncVectorEnv if processes else SyncVectorEnv
    copies = vector([make_one] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)
    return ImageVector(copies, height=height, width=width)


def _maker(id: str, max_steps: int | None) -> Callable[[], gymnasium.Env]:
    limit = {} if max_steps is None else {"max_episode_steps": max_steps}
    return lambda: gymnasium.make(id, disable_env_checker=True, **limit)


def _register_atari() -> None:
    try:
        import ale_py
    except ImportError as error:
        raise UserError("Atari needs ale-py, which is not installed: run `pip install 'gymnasium[atari]'`") from error
    gymnasium.register_envs(ale_py)


class ImageVector(VectorEnv):
    """Gymnasium's own vector environment with channel-first, resized byte frames."""

    def __init__(self, copies: VectorEnv, *, height: int | None, width: int | None) -> None:
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
        obs, info = self.copies.reset(seed=None if seed is None else int(seed), options=options)
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
        return np.array(obs, order="C")  # a copy: Gymnasium's vector environments reuse their buffers

    def close_extras(self, **kwargs: Any) -> None:
        self.copies.close(**kwargs)


TINY = dict(id="ALE/Breakout-v5", num_envs=2, height=16, width=16, max_steps=20)
