"""What the tests of users' own environments share: bad modules, and a game that is played (modules: `own/`)."""

import numpy as np
import pytest

from tokenworld.envs import gym
from tokenworld.errors import UserError

OTHERS = {
    "lacks": "import numpy\nimport a_package_that_is_missing\n",
    "wrong": "x = 1\ndef f(:\n",
    "leaves": "import sys\nsys.exit(0)\n",
    "empty": "x = 1\n",
}
MODULES = ("my_env", "my_crafter", "knobs", *OTHERS)
DRAWN = {"wrappers": ["gymnasium.wrappers.AddRenderObservation"], "kwargs": {"render_mode": "rgb_array"}}
PROCESSES = pytest.mark.parametrize("processes", [False, True], ids=["one-process", "processes"])


def refusal(**keywords) -> str:
    """What making or playing an environment is refused with."""
    with pytest.raises(UserError) as error:
        play(gym.make(**keywords), 12)
    assert "\n" not in str(error.value), error.value
    return str(error.value)


def play(env, steps, seed=3):
    obs, _ = env.reset(seed=seed)
    rng, path = np.random.default_rng(0), [(obs,)]
    for _ in range(steps):
        path.append(env.step(rng.integers(env.single_action_space.n, size=env.num_envs))[:4])
    env.close()
    return path


def same(one, other):
    return all(np.array_equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))
