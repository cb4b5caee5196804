"""Two knobs of five positions that are set at each step; a reward for both at a target that is never shown."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, MultiDiscrete

TARGET = (3, 1)
LENGTH = 20  # steps of an episode: the optimum


class Knobs(gymnasium.Env):
    """Pictures (8, 10, 1): the knobs are bars in the upper and the lower half."""

    observation_space = Box(0, 255, (8, 10, 1), np.uint8)
    action_space = MultiDiscrete([5, 5])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.knobs = 0, self.np_random.integers(5, size=2)
        return self.seen(), {}

    def step(self, action):
        self.t, self.knobs = self.t + 1, np.array(action)
        return self.seen(), float(tuple(self.knobs) == TARGET), False, self.t == LENGTH, {}

    def seen(self):
        picture = np.zeros((8, 10, 1), np.uint8)
        for knob, at in enumerate(self.knobs):
            picture[4 * knob : 4 * knob + 4, 2 * at : 2 * at + 2] = 255
        return picture


class Gauges(Knobs):
    """The same knobs beside numbers: how long it has gone on, and how often each knob was moved, as cells of a strip."""

    observation_space = Dict(picture=Box(0, 255, (8, 10, 1), np.uint8), time=Box(0, LENGTH, (1,)), moved=Box(0, LENGTH, (2,)))

    def reset(self, *, seed=None, options=None):
        self.moved = np.zeros(2)
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.moved += np.array(action) != self.knobs
        return super().step(action)

    def seen(self):
        numbers = {"time": np.float32([self.t]), "moved": self.moved.astype(np.float32)}
        return {"picture": super().seen(), **numbers}


gymnasium.register("Knobs-v0", Knobs)
gymnasium.register("Gauges-v0", Gauges)
