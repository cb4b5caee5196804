"""Any action space as rows of numbers and back, and any observation space as a picture or a vector."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Text, Tuple
from gymnasium.vector.utils import batch_space, iterate

from tokenworld import action_space
from tokenworld.action_space import Actions
from tokenworld.envs import gym
from tokenworld.envs.checked import make_checked
from tokenworld.envs.observations import FARTHEST, levels, reader_of
from tokenworld.errors import UserError
from tokenworld.exploration import random_act

SPACES = [
    (Discrete(5, start=2), Actions((5,))),
    (MultiDiscrete([3, 4], start=[1, -1]), Actions((3, 4))),
    (MultiBinary(3), Actions((2, 2, 2))),
    (MultiBinary((2, 2)), Actions((2, 2, 2, 2))),
    (Box(-2, 2, (1,)), Actions((), ((-2.0, 2.0),))),
    (Box(np.array([0, -1], np.float32), np.array([1, 3], np.float32)), Actions((), ((0.0, 1.0), (-1.0, 3.0)))),
    (Box(-1, 2, (2,), dtype=np.int8), Actions((4, 4))),
    (Text(2, charset="abc"), Actions((4, 4))),
    (
        Dict({"turn": Box(-1, 1, (2,)), "gear": Discrete(3), "more": Tuple([MultiBinary(2), Box(0, 5, ())])}),
        Actions((3, 2, 2), ((0.0, 5.0), (-1.0, 1.0), (-1.0, 1.0))),
    ),
]


@pytest.mark.parametrize("space, actions", SPACES, ids=[str(space)[:30] for space, _ in SPACES])
def test_actions_of_any_space(space, actions):
    assert action_space.of(space) == actions
    rows = actions.draw(torch.rand(200, actions.size))
    assert rows.shape == (200, *actions.row) and rows.dtype == actions.dtype and actions.contains(rows).all()
    batch = action_space.to_space(space, rows.numpy())
    own = list(iterate(batch_space(space, 200), batch))
    assert len(own) == 200 and all(space.contains(action) for action in own)
    assert len({str(action) for action in own}) > 2
    back = action_space.from_space(space, batch)
    if not isinstance(space, Text):  # what follows a text's end is lost
        assert np.allclose(back, rows.numpy(), atol=1e-6)
    again = action_space.to_space(space, back)
    assert str(again) == str(batch)
    plain = action_space.space_of(actions)
    assert action_space.of(plain) == actions
    assert torch.equal(torch.from_numpy(action_space.from_space(plain, action_space.to_space(plain, rows.numpy()))), rows)


def test_each_part_of_a_nested_action_is_its_own():
    space, actions = SPACES[-1]
    row = np.array([[2, 0, 1, 4.5, -0.25, 0.75]], np.float32)
    batch = action_space.to_space(space, row)
    assert batch["gear"].tolist() == [2] and batch["more"][0].tolist() == [[0, 1]] and batch["more"][1].tolist() == [4.5]
    assert batch["turn"].tolist() == [[-0.25, 0.75]] and actions.contains(torch.from_numpy(row)).all()


def test_uniform_actions_are_uniform():
    actions = Actions((3,), ((-2.0, 2.0),))
    rows = actions.draw(torch.rand(30_000, 2, generator=torch.Generator().manual_seed(0)))
    assert torch.bincount(rows[:, 0].long()).float().div(30_000).sub(1 / 3).abs().max() < 0.02
    assert rows[:, 1].min() < -1.99 and rows[:, 1].max() > 1.99 and abs(float(rows[:, 1].mean())) < 0.05
    assert Actions((4,)).draw(torch.tensor([[0.0], [0.999999], [1.0]])).tolist() == [0, 3, 3]


@pytest.mark.parametrize("wrong", [[3, 0.0], [1.5, 0.0], [0, 2.5], [0, float("nan")], [-1, 0.0]])
def test_what_is_no_action(wrong):
    actions = Actions((3,), ((-2.0, 2.0),))
    assert actions.contains(torch.tensor([[2, -2.0], wrong])).tolist() == [True, False]


@pytest.mark.parametrize("wrong", [
    lambda: action_space.of(Box(-np.inf, np.inf, (2,))),
    lambda: Actions((), ((1.0, 1.0),)),
    lambda: Actions((), ()),
    lambda: Actions((0,)),
    lambda: Actions((2,) * 2000),
    lambda: action_space.of(gymnasium.spaces.Graph(Box(0, 1), None)),
])  # fmt: skip
def test_spaces_that_cannot_be(wrong):
    with pytest.raises(UserError) as error:
        wrong()
    assert "\n" not in str(error.value) and ("got" in str(error.value))


def test_a_menu_represents_all_actions():
    assert Actions((18,)).menu().tolist() == list(range(18)), "all of a single discrete part, as Atari has them"
    assert Actions((3, 4)).menu().tolist() == [[i, j] for i in range(3) for j in range(4)]
    for actions in (Actions((), ((-2.0, 2.0),)), Actions((9, 9)), Actions((2,), ((0.0, 1.0), (-1.0, 1.0)))):
        menu = actions.menu()
        assert 10 <= len(menu) <= 16 and actions.contains(menu).all() and len(menu.unique(dim=0)) == len(menu)
        assert torch.equal(menu, actions.menu()), "always the same"
        low, high = actions.draw(torch.zeros(1, actions.size)), actions.draw(torch.ones(1, actions.size))
        assert all((menu == edge).all(-1).any() for edge in (low, high))


def test_actions_in_words():
    assert Actions((3,)).label(torch.tensor(2), ["LEFT", "STAY", "FIRE"]) == "FIRE"
    assert Actions((3,), ((-2.0, 2.0),)).label(torch.tensor([1.0, -0.5])) == "1 -0.5"
    assert Actions((3, 2), ((-2.0, 2.0),)).describe() == "actions of 2 discrete (3 x 2) and 1 continuous parts"


class Knobs(gymnasium.Env):
    """Shows a picture and what its last action was, and insists on actions of its space."""

    observation_space = Dict(
        picture=Box(0, 255, (16, 24, 3), np.uint8),
        knobs=MultiDiscrete([3, 5], start=[0, 1]),
        speed=Box(-np.inf, np.inf, (1,)),
        angle=Box(-1, 1, ()),
    )
    action_space = Tuple([MultiDiscrete([3, 5], start=[0, 1]), Box(-2, 2, (1,))])

    def _seen(self, knobs, speed):
        picture = np.full((16, 24, 3), 7, np.uint8)
        return {"picture": picture, "knobs": np.array(knobs), "speed": np.float32([speed]), "angle": np.float32(0.0)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._seen([0, 1], 0.0), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        return self._seen(action[0], action[1][0]), float(action[1][0]), False, False, {}


gymnasium.register("TokenworldTest/Knobs-v0", entry_point=Knobs)
KNOBS = {"_target_": "tokenworld.envs.gym.make", "id": "TokenworldTest/Knobs-v0"}


@pytest.mark.parametrize("processes", [False, True])
def test_numbers_beside_a_picture_are_a_strip_of_cells(processes):
    env = make_checked(KNOBS, 2, processes=processes)
    assert env.single_observation_space.shape == (3, 32, 24), "four cells, three in a row of 24 pixels: two rows of 8"
    assert env.actions == Actions((3, 5), ((-2.0, 2.0),))
    env.reset(seed=0)
    obs, reward, *_ = env.step(np.array([[2, 4, 1.5], [0, 0, -2]], np.float32))
    assert (obs[:, :, :16] == 7).all() and reward.tolist() == [1.5, -2.0]
    cells = obs[:, 0, 16::8, ::8].reshape(2, -1)  # (N, cells)
    assert (obs[:, :, 16:24, :8] == cells[:, 0, None, None, None]).all()
    bent = [levels(np.array([v]), np.array([-np.inf]), np.array([np.inf]))[0] for v in (1.5, -2.0)]
    assert cells.tolist() == [[255, 255, bent[0], 128, 0, 0], [0, 0, bent[1], 128, 0, 0]]
    assert bent[0] > 128 > bent[1]
    env.close()


def test_a_resized_picture_keeps_its_strip():
    env = make_checked(KNOBS, 1, height=8, width=16, strip=4)
    assert env.single_observation_space.shape == (3, 12, 16)
    obs, _ = env.reset(seed=0)
    assert (obs[0, :, :8] == 7).all() and obs[0, 0, 8:, ::4].tolist() == [[0, 0, 128, 128]] * 4
    env.close()


def test_levels_without_bounds_tell_small_numbers_apart():
    values = np.array([-FARTHEST, -1.0, -0.1, 0.0, 0.1, 1.0, FARTHEST, 1e9])
    shown = levels(values, np.full(8, -np.inf), np.full(8, np.inf)).tolist()
    assert shown[0] == 0 and shown[3] == 128 and shown[-2:] == [255, 255] and sorted(set(shown[:7])) == shown[:7]


@pytest.mark.parametrize("space, obs, expected", [
    (Discrete(4, start=3), 5, [5.0]),
    (MultiBinary(3), np.array([1, 0, 1], np.int8), [1.0, 0.0, 1.0]),
    (Tuple([Box(-9, 9, (2,)), Discrete(3)]), (np.array([1.5, -2.5], np.float32), 2), [1.5, -2.5, 2.0]),
    (Box(0, 50, (2,), np.int32), np.array([7, 50], np.int32), [7.0, 50.0]),
])  # fmt: skip
def test_numbers_alone_are_a_vector(space, obs, expected):
    reader = reader_of(space)
    assert reader.read(obs).tolist() == expected and reader.read(obs) in reader.space


@pytest.mark.parametrize("space", [
    Text(5),
    Dict(picture=Box(0, 255, (8, 8, 3), np.uint8), mission=Text(9)),
    Dict(left=Box(0, 255, (8, 8, 3), np.uint8), right=Box(0, 255, (8, 8, 3), np.uint8)),
    Box(-1, 1, (8, 8, 3)),
    Box(0, 255, (4, 8, 8, 3), np.uint8),
])  # fmt: skip
def test_observations_that_cannot_be_read(space):
    assert reader_of(space) is None


def test_environments_beyond_pictures_by_their_id():
    for id, shape, actions in [
        ("CartPole-v1", (4, 1, 1), Actions((2,))),
        ("Pendulum-v1", (3, 1, 1), Actions((), ((-2.0, 2.0),))),
        ("FrozenLake-v1", (1, 1, 1), Actions((4,))),
    ]:
        env = make_checked({"_target_": "tokenworld.envs.gym.make", "id": id}, 3)
        act = random_act(env.actions, np.random.default_rng(0))
        obs, _ = env.reset(seed=0)
        path = [obs]
        for _ in range(20):
            obs, *_ = env.step(act(torch.from_numpy(obs), torch.zeros(3, dtype=torch.bool)).numpy())
            path.append(obs)
        assert env.single_observation_space.shape == shape and env.actions == actions
        assert all(frames.shape == (3, *shape) and frames.dtype == np.float32 for frames in path)
        assert len({frames.tobytes() for frames in path}) > 3
        env.close()


@pytest.mark.parametrize("action", [[[float("nan")]], [[2.5]], [0.0], [[0.0, 0.0]]])
def test_an_action_outside_its_space_is_refused(action):
    env = make_checked({"_target_": "tokenworld.envs.gym.make", "id": "Pendulum-v1"}, 1)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="actions must be 1 of"):
        env.step(np.array(action, np.float32))
    env.close()


class Lost(gymnasium.Env):
    observation_space, action_space = Box(-np.inf, np.inf, (2,)), Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.array([0, np.nan if action else 1], np.float32), 0.0, False, False, {}


gymnasium.register("TokenworldTest/Lost-v0", entry_point=Lost)


def test_a_number_that_is_none_names_the_environment():
    env = gym.make(id="TokenworldTest/Lost-v0", num_envs=2)
    env.reset(seed=0)
    env.step(np.array([0, 0]))
    with pytest.raises(UserError, match=r"env.id=TokenworldTest/Lost-v0 in step 2 of row 1: the observation of step\(\) is"):
        env.step(np.array([0, 1]))
