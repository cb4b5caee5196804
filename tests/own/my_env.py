"""What users bring along: environments in a module of the current folder, good ones and bad ones."""

import os
import random

import gymnasium as gym
import numpy as np


class Mine(gym.Env):
    observation_space = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.x = 0, int(self.np_random.integers(8))
        return self.image(), {}

    def image(self):
        frame = np.zeros((8, 8, 3), np.uint8)
        frame[self.t % 8, self.x] = 255
        return frame

    def step(self, action):
        self.t, self.x = self.t + 1, (self.x + int(action) - 1) % 8
        return self.image(), float(self.x == 0), self.t > 8, False, {"t": self.t}


class Sized(Mine):
    def __init__(self, size):
        self.size = size


class Raises(Mine):
    def __init__(self):
        raise RuntimeError("no camera\nsecond line")


class Draws(Mine):
    def reset(self, **kwargs):
        random.random(), np.random.rand()
        return super().reset(**kwargs)


class NumpySeed(Mine):
    def reset(self, *, seed=None, options=None):
        if seed is not None:
            np.random.RandomState(seed)
        return super().reset(seed=seed, options=options)


class Old(Mine):
    def reset(self):
        return self.image()


class OldReset(Mine):
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.image()


class OldStep(Mine):
    def step(self, action):
        return self.image(), 0.0, False, {}


class Returns(Mine):
    """What it is given in place of its own image, reward, end or info: at its reset (`at` 0), or from step `at` on."""

    def __init__(self, at=4, **bad):
        self.at, self.bad = at, bad

    def reset(self, **kwargs):
        obs, info = super().reset(**kwargs)
        return (self.bad.get("obs", obs), self.bad.get("info", info)) if self.at == 0 else (obs, info)

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if self.t < self.at:
            return obs, reward, terminated, truncated, info
        if "error" in self.bad:
            raise self.bad["error"](*self.bad.get("words", ()))
        if "kill" in self.bad:
            os.kill(os.getpid(), 9)
        return self.bad.get("obs", obs), self.bad.get("reward", reward), self.bad.get("end", terminated), truncated, info


class Bounded(Mine):
    observation_space = gym.spaces.Box(0, 1, (8, 8, 3), np.uint8)


class Floating(Mine):
    observation_space = gym.spaces.Box(0.0, 1.0, (8, 8, 3), np.float32)

    def image(self):
        return super().image().astype(np.float32) / 255


class Doubled(Mine):
    observation_space = gym.spaces.Box(0.0, 2.0, (8, 8, 3), np.float32)

    def image(self):
        return super().image().astype(np.float32) / 127.5


class Steered(Mine):
    action_space = gym.spaces.Box(-1.0, 1.0, (2,))

    def step(self, action):
        return super().step(round(float(action[0])) + 1)


class Grows(Mine):
    count = 1

    def __init__(self):
        Grows.count += 1
        self.action_space = gym.spaces.Discrete(self.count)


class Refuses(gym.Wrapper):
    def __init__(self, env, keyword="gone"):
        raise KeyError(keyword)


def with_space(space, **more):
    return type("Spaced", (Mine,), {"observation_space": space, **more})


B = gym.spaces.Box
SPACES = {
    "Dict": gym.spaces.Dict(picture=Mine.observation_space, n=gym.spaces.Discrete(2)),
    "Unbounded": B(-np.inf, np.inf, (8, 8, 3), np.float32),
    "Ints": B(0, 255, (8, 8, 3), np.int64),
    "Stacked": B(0, 255, (4, 8, 8, 3), np.uint8),
    "Vector": B(-1.0, 1.0, (5,), np.float32),
    "Written": gym.spaces.Text(5),
    "Pair": gym.spaces.Tuple([B(0, 1, (2,))] * 2),
}
for name, space in SPACES.items():
    gym.register(f"{name}-v0", with_space(space))
gym.register("Drawn-v0", with_space(SPACES["Written"], metadata={"render_modes": ["rgb_array"]}))
gym.register("Endless-v0", with_space(Mine.observation_space, action_space=B(-np.inf, np.inf, (2,))))
gym.register("Linked-v0", with_space(Mine.observation_space, action_space=gym.spaces.Sequence(gym.spaces.Discrete(2))))
KINDS = (Mine, Sized, Raises, Draws, NumpySeed, Old, OldReset, OldStep, Returns, Bounded, Floating, Doubled, Steered, Grows)
for kind in KINDS:
    gym.register(f"{kind.__name__}-v0", kind)
gym.register("OldLimited-v0", OldStep, max_episode_steps=9)
gym.register("List-v0", lambda **_: [Mine()])
gym.register("None-v0", lambda **_: None)
gym.register("Nowhere-v0", "no_such_package.envs:Mine")
