"""Stable-Baselines3 inside a dream: `PPO("MlpPolicy", Dreams(tokenworld.dream_env.load("DIR", num_envs=64, ...)))`.

Needs stable-baselines3 (the extra `sb3`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tokenworld.dream_env import DreamEnv
from tokenworld.errors import UserError

try:
    from stable_baselines3.common.vec_env import VecEnv
except ImportError:
    raise UserError("tokenworld.sb3 needs stable-baselines3, which is not installed: pip install 'tokenworld[sb3]'") from None


class Dreams(VecEnv):
    """A `DreamEnv` with autoreset="same_step" as a VecEnv: returns and lengths of ended dreams are in info["episode"], and what
    was cut at the horizon is marked so that its value is bootstrapped."""

    def __init__(self, dreams: DreamEnv):
        if not dreams.at_once:
            raise UserError('stable-baselines3 needs a reset in the same step: give the DreamEnv autoreset="same_step"')
        self.dreams, self.render_mode = dreams, None
        super().__init__(dreams.num_envs, dreams.single_observation_space, dreams.single_action_space)
        self._total, self._length = np.zeros(self.num_envs), np.zeros(self.num_envs, int)

    def reset(self) -> np.ndarray:
        seed = self._seeds[0]
        self._reset_seeds()
        self._total[:], self._length[:] = 0, 0
        return self.dreams.reset(seed=seed)[0]

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self):
        obs, reward, terminated, truncated, info = self.dreams.step(self._actions)
        self._total += reward
        self._length += 1
        ended = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in np.flatnonzero(ended):
            infos[i] = {
                "terminal_observation": info["final_obs"][i],
                "TimeLimit.truncated": bool(truncated[i]),
                "episode": {"r": float(self._total[i]), "l": int(self._length[i]), "t": 0.0},
            }
        self._total[ended], self._length[ended] = 0, 0
        return obs, reward, ended, infos

    def close(self) -> None:
        self.dreams.close()

    def get_attr(self, attr_name: str, indices=None) -> list[Any]:
        return [getattr(self.dreams, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices=None) -> None:
        raise UserError(f"all dreams of a DreamEnv share their settings, {attr_name} is not set: create a new one")

    def env_method(self, method_name: str, *args: Any, indices=None, **keywords: Any) -> list[Any]:
        return [getattr(self.dreams, method_name)(*args, **keywords)] * len(list(self._get_indices(indices)))

    def env_is_wrapped(self, wrapper_class, indices=None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))
