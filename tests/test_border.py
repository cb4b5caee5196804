"""The border of every maker: what vector environments return is checked; which maker an id gets; which seeds games take."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, Sequence
from gymnasium.vector import AutoresetMode, VectorEnv
from own_env import play, same

from tokenworld.config.env_section import GYM, maker_of
from tokenworld.envs import atari, gym, known_world, minatar
from tokenworld.envs.checked import Checked
from tokenworld.errors import UserError

pytestmark = pytest.mark.usefixtures("own_folder")


class Plain(VectorEnv):
    """A vector environment of a user's own maker; `change` says what its third step returns or raises."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    single_observation_space, single_action_space = Box(0, 255, (1, 4, 4), np.uint8), Discrete(2)
    num_envs = 2

    def __init__(self, **change):
        self.change, self.t = change, 0

    def reset(self, *, seed=None, options=None):
        return np.zeros((2, 1, 4, 4), np.uint8), {}

    def step(self, actions):
        self.t += 1
        result = dict(obs=np.zeros((2, 1, 4, 4), np.uint8), reward=np.ones(2, np.float32), terminated=np.zeros(2, bool),
                      truncated=np.zeros(2, bool), info={})
        if self.t == 3:
            if "error" in self.change:
                raise self.change["error"]
            result |= self.change
        return tuple(value for key, value in result.items() if value is not ...)


@pytest.mark.parametrize("change, words", [
    (dict(reward=np.array([0.0, np.nan], np.float32)), "row 1 has reward nan, expected a finite number"),
    (dict(reward=np.array([np.inf, 0.0])), "row 0 has reward inf"),
    (dict(reward=np.array([0.0, 1e300])), "row 1 has reward 1e+300"),
    (dict(reward=np.array([0.0, None], object)), "row 1 has reward None"),
    (dict(reward=[0.0, None]), "row 1 has reward None"),
    (dict(reward=np.zeros(3)), "reward has shape (3,), expected (2,)"),
    (dict(obs=np.zeros((2, 1, 4, 4))), "observations are (2, 1, 4, 4) float64, expected (2, 1, 4, 4) uint8"),
    (dict(obs=np.zeros((2, 1, 5, 4), np.uint8)), "the observations are (2, 1, 5, 4) uint8"),
    (dict(obs=[0, 0]), "the observations are list"),
    (dict(terminated=np.zeros(2)), "row 0 has terminated 0.0 of float64, expected True or False"),
    (dict(truncated=np.zeros(1, bool)), "truncated has shape (1,)"),
    (dict(truncated=...), "step() returned 4 values, expected 5"),
    (dict(error=KeyError("door")), "failed in step 3: KeyError: 'door' (test_border.py:"),
])  # fmt: skip
def test_the_border_refuses(change, words, monkeypatch):
    monkeypatch.chdir(Path(__file__).parent)
    env = Checked(Plain(**change), "mine.make")
    env.reset(seed=0)
    env.step(np.zeros(2, int)), env.step(np.zeros(2, int))
    with pytest.raises(UserError) as error:
        env.step(np.zeros(2, int))
    message = str(error.value)
    assert words in message and "mine.make" in message and "step 3" in message, message


def test_the_border_refuses_what_is_no_vector():
    with pytest.raises(UserError, match="is a OrderEnforcing, expected a gymnasium.vector.VectorEnv"):
        Checked(gymnasium.make("my_env:Mine-v0", disable_env_checker=True), "mine")
    for key, space in (("single_observation_space", Box(0, 1, (4,))), ("single_action_space", Sequence(Discrete(2)))):
        env = Plain()
        setattr(env, key, space)
        with pytest.raises(UserError, match="the environment mine has"):
            Checked(env, "mine")


def test_the_border_changes_nothing():
    for make, tiny in ((minatar.make, minatar.TINY), (atari.make, atari.TINY), (known_world.make, known_world.TINY)):
        plain, checked = make(**tiny), Checked(make(**tiny), "x")
        assert checked.metadata == plain.metadata and checked.num_envs == plain.num_envs
        assert checked.single_observation_space == plain.single_observation_space and checked.unwrapped is checked.env
        assert same(play(plain, 30), play(checked, 30))
    with pytest.raises(ValueError, match="actions must be"):  # a fault of tokenworld keeps its traceback
        env = Checked(minatar.make(**minatar.TINY), "x")
        env.reset(seed=0)
        env.step(np.full(2, 99))


# ---------------------------------------------------------------------------------------------------------------------
# Ids and seeds


def test_an_id_says_its_maker():
    makers = {"ALE/Pong-v5": "atari", "MinAtar/Asterix-v1": "minatar", "KnownWorld-v0": "known_world", "CartPole-v1": "gym"}
    for id, maker in (makers | {"minigrid:MiniGrid-Empty-5x5-v0": "gym", "my_env:ALE/X-v0": "gym"}).items():
        assert maker_of(id, "tokenworld.envs.minatar.make") == f"tokenworld.envs.{maker}.make"
        assert maker_of(id, "mypackage.make") == "mypackage.make"
    assert maker_of("ALE/Pong-v5", GYM) == GYM
    code = "import sys, tokenworld.config.env_section; print([m for m in ('torch', 'gymnasium', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


MAKERS = {
    "atari": (atari.make, atari.TINY),
    "minatar": (minatar.make, minatar.TINY),
    "known-world": (known_world.make, known_world.TINY),
    "gym-atari": (gym.make, gym.TINY),
    "own": (gym.make, {"id": "my_env:Mine-v0", "num_envs": 2}),
    "numpy-seed": (gym.make, {"id": "my_env:NumpySeed-v0", "num_envs": 2}),
}


@pytest.mark.parametrize("name", MAKERS)
def test_any_whole_number_is_a_seed(name):
    make, keywords = MAKERS[name]
    env = make(**keywords)
    for seed in (2**31 - 2, 2**31, 2_147_006_441, 2**32, 12_345 * 1_000_003, 1_764_180_000_000_000_000, 2**64, 2**80):
        first, again = env.reset(seed=seed)[0], env.reset(seed=seed)[0]
        assert np.array_equal(first, again), seed
    assert np.array_equal(env.reset(seed=np.int64(5))[0], env.reset(seed=5)[0])
    for bad in (-1, 0.5, "3"):
        with pytest.raises(UserError, match="a seed must be a whole number from 0 on"):
            env.reset(seed=bad)
    env.close()


def test_seeds_that_a_game_holds_are_given_as_they_are():
    """Up to the largest: ale-py holds 2**31 - N, Gymnasium's own generator any, NumPy's old one 2**32 - 1."""
    env = atari.make(num_envs=4, height=16, width=16)
    for seed in (0, 2**31 - 4):
        assert np.array_equal(env.reset(seed=seed)[0], env._channel_first(env.games.reset(seed=seed)[0]))
    for id, seed in (("Mine", 2**40), ("NumpySeed", 2**31 + 5)):
        obs = gym.make(id=f"my_env:{id}-v0").reset(seed=seed)[0][0]
        plain = gymnasium.make(f"my_env:{id}-v0", disable_env_checker=True)
        assert np.array_equal(obs, plain.reset(seed=seed)[0].transpose(2, 0, 1))
