"""Environments: bytes channel-first, Gymnasium's vector API, repeatable, ends where they should be, good errors."""

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from tokenworld.envs import atari, gym, minatar
from tokenworld.errors import UserError


class Pattern(gymnasium.Env):
    """Image (5, 6, 3) whose pixel (y, x, c) is 10 y + x + 100 c at reset and one more per step; ends at 4 steps."""

    action_space = gymnasium.spaces.Discrete(2, start=3)
    observation_space = gymnasium.spaces.Box(0, 255, (5, 6, 3), np.uint8)

    def _image(self):
        y, x, c = np.meshgrid(np.arange(5), np.arange(6), np.arange(3), indexing="ij")
        return (10 * y + x + 100 * c - 50 * (c == 2) + self.t).astype(np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._image(), {}

    def step(self, action):
        assert action in (3, 4), action
        self.t += 1
        return self._image(), float(action), self.t == 4, False, {}


class Flags(gymnasium.Env):
    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(0, 1, (4, 4), bool)

    def reset(self, *, seed=None, options=None):
        return np.eye(4, dtype=bool), {}

    def step(self, action):
        return np.zeros((4, 4), bool), 0.0, False, False, {}


gymnasium.register("TokenworldTest/Pattern-v0", entry_point=Pattern)
gymnasium.register("TokenworldTest/Flags-v0", entry_point=Flags)


def play(env, seed, steps, action_seed=0):
    rng = np.random.default_rng(action_seed)
    obs, _ = env.reset(seed=seed)
    out = [(obs, None, None, None)]
    for _ in range(steps):
        space = env.single_action_space
        obs, reward, terminated, truncated, _ = env.step(rng.integers(0, space.n, env.num_envs) + space.start)
        out.append((obs, reward, terminated, truncated))
    return out


def same(one, two):
    return all(np.array_equal(a, b) for x, y in zip(one, two, strict=True) for a, b in zip(x, y, strict=True))


CASES = [
    pytest.param(atari.make, atari.TINY, id="atari"),
    pytest.param(atari.make, {**atari.TINY, "grayscale": True, "life_loss_ends": True}, id="atari-grey-lives"),
    pytest.param(atari.make, {**atari.TINY, "sticky": 0.25}, id="atari-sticky"),
    *[pytest.param(minatar.make, {**minatar.TINY, "id": f"MinAtar/{name}-v1"}, id=name) for name in minatar.GAMES],
    pytest.param(gym.make, gym.TINY, id="gym-atari"),
    pytest.param(gym.make, dict(id="TokenworldTest/Pattern-v0", num_envs=2), id="gym"),
]


@pytest.mark.parametrize("make, keywords", CASES)
def test_vector_contract(make, keywords):
    env = make(**keywords)
    assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
    assert isinstance(env.single_action_space, gymnasium.spaces.Discrete)
    N, shape = env.num_envs, env.single_observation_space.shape
    assert len(shape) == 3 and env.single_observation_space.dtype == np.uint8
    path = play(env, seed=5, steps=60)
    ended = np.zeros(N, bool)
    for obs, reward, terminated, truncated in path[1:]:
        assert obs.shape == (N, *shape) and obs.dtype == np.uint8 and obs in env.observation_space
        assert reward.shape == terminated.shape == truncated.shape == (N,)
        assert reward.dtype == np.float32 and terminated.dtype == truncated.dtype == bool
        # the step after an end brings a new episode: no reward, no end
        assert not (terminated | truncated)[ended].any() and (reward[ended] == 0).all()
        ended = terminated | truncated
    assert len({obs.tobytes() for obs, *_ in path}) > 3, "the frames must be arrays of their own, and move"
    # repeatable: the same environment again, and a fresh one; another seed gives another path
    assert same(path, play(env, seed=5, steps=60))
    fresh = make(**keywords)
    assert same(path, play(fresh, seed=5, steps=60))
    with pytest.raises((ValueError, AssertionError)):
        fresh.step(np.full(N, env.single_action_space.n + env.single_action_space.start))
    env.close()
    fresh.close()


@pytest.mark.parametrize("name", minatar.GAMES)
def test_minatar_is_the_package(name):
    """Row i of a vector of 3 is the package's own game seeded with seed + i, frame for frame."""
    from minatar import Environment

    env = minatar.make(id=f"MinAtar/{name}-v1", num_envs=3)
    path = play(env, seed=11, steps=300)
    rng = np.random.default_rng(0)
    actions = [rng.integers(0, env.single_action_space.n, 3) for _ in range(300)]
    for i in range(3):
        game = Environment(minatar.GAMES[name], sticky_action_prob=0.1)
        game.seed(11 + i)
        game.reset()
        done = False
        for t in range(301):
            if t > 0:
                if done:
                    game.reset()
                    reward, done = 0, False
                else:
                    reward, done = game.act(game.minimal_action_set()[actions[t - 1][i]])
                assert path[t][1][i] == reward and path[t][2][i] == done
            assert np.array_equal(path[t][0][i], game.state().transpose(2, 0, 1) * np.uint8(255)), (name, i, t)


def test_minatar_seeds_limit_and_actions():
    env = minatar.make(id="MinAtar/Freeway-v1", num_envs=2, max_steps=7)
    path = play(env, seed=0, steps=24)
    assert not np.array_equal(path[0][0][0], path[0][0][1]), "rows must have seeds of their own"
    assert not same(path, play(env, seed=1, steps=24))
    ends = [t for t, step in enumerate(path) if t and step[3].any()]
    assert ends == [7, 15, 23]  # 7 steps, one that resets, 7 steps ...
    assert minatar.make(id="MinAtar/Breakout-v1").metadata["action_meanings"] == ["NOOP", "LEFT", "RIGHT"]
    assert minatar.make(id="MinAtar/Breakout-v0").single_action_space.n == 6
    for name in minatar.GAMES:
        env = minatar.make(id=f"MinAtar/{name}-v1")
        channels = env.metadata["channels"]
        assert len(set(channels)) == len(channels) == env.single_observation_space.shape[0]
    assert minatar.make().metadata["channels"] == ["paddle", "ball", "trail", "brick"] and env.metadata["play_fps"] == 4
    # never sticky: "left" held from the start reaches the wall in exactly four steps (the paddle starts at 4)
    env = minatar.make(sticky=0.0)
    env.reset(seed=0)
    paddle = [int(env.step(np.array([1]))[0][0, 0, 9].argmax()) for _ in range(4)]
    assert paddle == [3, 2, 1, 0]


def test_atari_limit_counts_agent_steps():
    env = atari.make(num_envs=2, height=16, width=16, max_steps=20, frameskip=3)
    path = play(env, seed=0, steps=45)
    assert [t for t, step in enumerate(path) if t and step[3].all()] == [20, 41]
    assert not any(step[2].any() for step in path[1:])


def test_atari_life_loss_ends_the_episode_but_not_the_game():
    """With the same actions a game with `life_loss_ends` shows the very frames of one without, beginnings included."""
    lives = atari.make(num_envs=2, height=16, width=16, life_loss_ends=True)
    games = atari.make(num_envs=2, height=16, width=16)
    obs, _ = lives.reset(seed=3)
    other, _ = games.reset(seed=3)
    rng = np.random.default_rng(0)
    ended, life_losses, game_overs = np.zeros(2, bool), 0, 0
    for _ in range(260):
        assert np.array_equal(obs, other)
        actions = rng.integers(0, 4, 2)
        obs, _, terminated, _, info = lives.step(actions)
        other, _, over, _, _ = games.step(np.where(ended, 0, actions))
        assert not terminated[ended].any() and (terminated | ~over).all()
        ended = terminated
        life_losses += int((terminated & ~over).sum())
        game_overs += int(over.sum())
    assert life_losses >= 4 and game_overs >= 1, (life_losses, game_overs)


def test_atari_episode_that_would_be_over_at_its_beginning():
    """If the no-op after a lost life ends the game, that end is reported with the next step, not on the beginning."""
    env = atari.make(num_envs=1, height=16, width=16, life_loss_ends=True)
    env.reset(seed=0)
    inner = env.games
    sent, ends = [], iter([(1, 0), (1, 0), (0, 0), (0, 0), (0, 1), (0, 1), (0, 0)])

    class Scripted:
        def step(self, actions):
            sent.append(int(actions[0]))
            terminated, truncated = next(ends)
            frame = np.zeros((1, 1, 16, 16, 3), np.uint8)
            return frame, np.array([7]), np.array([terminated], bool), np.array([truncated], bool), {}

    env.games = Scripted()
    path = [env.step(np.array([1])) for _ in range(7)]
    env.games = inner
    assert [bool(step[2][0]) for step in path] == [True, False, True, False, False, False, False]
    assert [bool(step[3][0]) for step in path] == [False, False, False, False, True, False, True]
    assert sent == [1, 0, 1, 0, 1, 0, 1]
    assert [float(step[1][0]) for step in path] == [7, 0, 7, 0, 7, 0, 7]


def test_atari_rewards_are_scores_and_sticky_is_sticky():
    pacman = atari.make(id="ALE/MsPacman-v5", height=16, width=16)
    assert max(float(step[1].max()) for step in play(pacman, seed=0, steps=120)[1:]) >= 10
    plain = atari.make(height=16, width=16, noop_max=0)
    sticky = atari.make(height=16, width=16, noop_max=0, sticky=0.5)
    assert not same(play(plain, seed=0, steps=60), play(sticky, seed=0, steps=60))


def test_atari_colour_channels_and_actions():
    env = atari.make(num_envs=1, height=210, width=160, noop_max=0)
    obs, _ = env.reset(seed=0)
    import ale_py

    gymnasium.register_envs(ale_py)
    plain = gymnasium.make("ALE/Breakout-v5", frameskip=1)
    frame, _ = plain.reset(seed=0)
    assert np.array_equal(obs[0].transpose(1, 2, 0), frame), "channel-first RGB of the emulator's own frame"
    assert env.metadata["action_meanings"] == ["NOOP", "FIRE", "RIGHT", "LEFT"]
    assert atari.make(full_actions=True).single_action_space.n == 18


def test_gym_layouts_and_resize():
    env = gym.make(id="TokenworldTest/Pattern-v0", num_envs=2)
    obs, _ = env.reset(seed=0)
    assert obs.shape == (2, 3, 5, 6) and obs[1, 1, 2, 3] == 123 and obs[0, 2, 0, 1] == 151
    kept = obs.copy()
    obs, reward, *_ = env.step(np.array([3, 4]))
    assert reward.tolist() == [3, 4] and obs[0, 0, 0, 0] == 1 and np.array_equal(kept[:, :, 0, 0], [[0, 100, 150]] * 2)
    small = gym.make(id="TokenworldTest/Pattern-v0", height=5, width=3)
    obs, _ = small.reset(seed=0)
    # pairs of columns: (x, x+1) -> x + 0.5, which rounds to even
    assert obs.shape == (1, 3, 5, 3) and obs[0, 0, 0].tolist() == [0, 2, 4] and obs[0, 0, 1].tolist() == [10, 12, 14]
    obs, *_ = small.step(np.array([3]))
    assert obs[0, 0, 0].tolist() == [2, 4, 6], "1.5, 3.5, 5.5 are rounded, not cut"
    flags = gym.make(id="TokenworldTest/Flags-v0")
    obs, _ = flags.reset(seed=0)
    assert np.array_equal(obs, np.eye(4, dtype=np.uint8)[None, None] * 255)
    short = gym.make(id="TokenworldTest/Flags-v0", max_steps=2)
    assert [bool(step[3][0]) for step in play(short, 0, 4)[1:]] == [False, True, False, False]


def test_errors_say_what_and_suggest(monkeypatch):
    for make, id, words in [
        (atari.make, "ALE/Breakot-v5", "did you mean ALE/Breakout-v5"),
        (minatar.make, "MinAtar/Brekout-v1", "did you mean MinAtar/Breakout-v1"),
        (gym.make, "TokenworldTest/Patern-v0", "did you mean TokenworldTest/Pattern-v0"),
        (gym.make, "no_such_module:Env-v0", "the module no_such_module was not found"),
    ]:
        with pytest.raises(UserError) as error:
            make(id=id)
        assert words in str(error.value) and "\n" not in str(error.value), error.value
    for make, bad in [
        (atari.make, dict(num_envs=0)),
        (atari.make, dict(sticky=1.5)),
        (atari.make, dict(height=0)),
        (minatar.make, dict(max_steps=0)),
        (minatar.make, dict(num_envs=0)),
        (gym.make, dict(num_envs=0)),
        (gym.make, dict(height=0)),
    ]:
        with pytest.raises(UserError, match=f"env.{next(iter(bad))} must be"):
            make(**bad)
    monkeypatch.setitem(sys.modules, "minatar", None)
    with pytest.raises(UserError, match=r"pip install tokenworld\[quickstart\]"):
        minatar.make()
