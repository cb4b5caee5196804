"""Crafter has the API of the old Gym: an adapter gives it Gymnasium's."""

import crafter
import gymnasium
import numpy as np


class Crafter(gymnasium.Env):
    action_space = gymnasium.spaces.Discrete(17)

    def __init__(self, size=64, area=64):
        self.settings = {"size": (size, size), "area": (area, area)}
        self.observation_space = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.game = crafter.Env(**self.settings, seed=0)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.game = crafter.Env(**self.settings, seed=seed)
        return self.game.reset(), {}

    def step(self, action):
        obs, reward, done, info = self.game.step(action)
        is_dead = info["discount"] == 0
        return obs, reward, is_dead, done and not is_dead, {}


gymnasium.register("Crafter-v0", Crafter)
