"""An environment of one's own: found by its id, wrapped, tried once; faults are one sentence with the cause."""

import re
import sys

import numpy as np
import pytest
import torch
from own_env import DRAWN, PROCESSES, play, refusal, same

from tokenworld import origins
from tokenworld.cli.verbs import train as train_verb
from tokenworld.config import compose, schema
from tokenworld.envs import gym
from tokenworld.evaluation.simulators.lookup import simulator_of

pytestmark = pytest.mark.usefixtures("own_folder")

CAUSES = [
    ("my_evn:Mine-v0", ["the module my_evn was not found", "the current folder", "did you mean my_env?"]),
    ("robotics_lab:Mine-v0", ["module robotics_lab was not found", "add that folder to PYTHONPATH, or install its package"]),
    ("my_env.more:Mine-v0", ["the module my_env.more was not found"]),
    ("my_env.py:Mine-v0", ["not found", "without .py"]),
    ("./my_env:Mine-v0", ["not found", "without folders"]),
    (":Mine-v0", ["names no module before the colon"]),
    ("miniworld:MiniWorld-Hallway-v0", ["the module miniworld was not found", "pip install miniworld"]),
    ("lacks:Mine-v0", ["lacks failed to import: ModuleNotFoundError: No module named 'a_package", "(lacks.py:2)"]),
    ("wrong:Mine-v0", ["wrong failed to import: SyntaxError: invalid syntax (wrong.py:2)"]),
    ("leaves:Mine-v0", ["leaves failed to import: SystemExit: 0 (leaves.py:2)"]),
    ("my_env:Mein-v0", ["was imported, but it does not register Mein-v0: did you mean env.id=my_env:Mine-v0?"]),
    ("my_env:Zebra-v0", ["it registers", "and others"]),
    ("empty:Mine-v1", ["registers no environment: call gymnasium.register"]),
    ("my_env:Mine-v9", ["there is no version v9 of Mine: choose one of Mine-v0"]),
    ("CartPole-v9", ["no version v9 of CartPole: choose one of CartPole-v0, CartPole-v1"]),
    ("CartPol-v1", ["did you mean CartPole-v1?", "env.id=package:CartPol-v1"]),
    ("Zzyzx-v0", ["is not registered with Gymnasium: if a package", "env.id=package:Zzyzx-v0"]),
    ("not an id", ["is not registered with Gymnasium"]),
    ("MiniGrid-Empty-5x5-v0", ["write env.id=minigrid:MiniGrid-Empty-5x5-v0"]),
    ("BabyAI-GoToRedBall-v0", ["write env.id=minigrid:BabyAI-GoToRedBall-v0"]),
    ("MinAtar/Breakout-v1", ["is made by tokenworld.envs.minatar.make"]),
    ("ALE/Pog-v5", ["did you mean ALE/Pong-v5?"]),
    ("", ["env.id must name a Gymnasium environment, got ''"]),
    ("  ", ["env.id must name a Gymnasium environment"]),
    ("my_env:Raises-v0", ["cannot be constructed: RuntimeError: no camera (my_env.py:36)"]),
    ("my_env:Sized-v0", ["missing 1 required positional argument: 'size'", "env.kwargs.NAME=VALUE"]),
    ("my_env:List-v0", ["its entry point returned no gymnasium.Env", "'list'"]),
    ("my_env:None-v0", ["its entry point returned no gymnasium.Env", "NoneType"]),
    ("my_env:Nowhere-v0", ["cannot be constructed: ModuleNotFoundError: No module named 'no_such_package'"]),
    ("my_env:Old-v0", ["the old Gym API, its reset() does not take options and seed", "(obs, info)", "GymV21Environment-v0"]),
    ("my_env:OldReset-v0", ["the old Gym API, its reset() returns an array (8, 8, 3) of uint8"]),
    ("my_env:OldStep-v0", ["the old Gym API, its step() returns a tuple of 4"]),
    ("my_env:OldLimited-v0", ["the old Gym API, its step() returns a tuple of 4"]),  # a time limit unpacks it before we do
    ("my_env:Bounded-v0", ["lie in 0..255, expected 0..1 as in observation_space"]),
    ("my_env:Dict-v0", ["the observation of reset() is an array (8, 8, 3) of uint8, expected one of Dict('picture'"]),
    ("my_env:Pair-v0", ["the observation of reset() is an array (8, 8, 3) of uint8, expected one of Tuple(Box"]),
    ("my_env:Doubled-v0", ["got Box(8, 8, 3) float32", "RescaleObservation", "DtypeObservation"]),
    ("my_env:Unbounded-v0", ["float32", "the picture as bytes in 0..255"]),
    ("my_env:Ints-v0", ["got Box(8, 8, 3) int64", "DtypeObservation, dtype: uint8"]),
    ("my_env:Stacked-v0", ["got Box(4, 8, 8, 3) uint8", "leave out the wrapper that stacks frames"]),
    ("my_env:Vector-v0", ["the observation of reset() is an array (8, 8, 3) of uint8, expected (5,) float32"]),
    ("my_env:Written-v0", ["got Text", "a picture of it"]),
    ("my_env:Drawn-v0", ["to learn from its rendered pictures, add env.render=true env.height=64 env.width=64"]),
    ("minigrid:MiniGrid-Empty-5x5-v0", ["minigrid.wrappers.RGBImgPartialObsWrapper,minigrid.wrappers.ImgObsWrapper"]),
    ("my_env:Endless-v0", ["a continuous action must have finite bounds, the lower one first, got -inf to inf"]),
    ("my_env:Linked-v0", ["actions must be Discrete, MultiDiscrete", "got Sequence", "gymnasium.ActionWrapper"]),
]


@pytest.mark.parametrize("id, words", CAUSES, ids=[id or "empty" for id, _ in CAUSES])
def test_the_cause_is_named(id, words):
    if id.startswith("minigrid:"):
        pytest.importorskip("minigrid")
    message = refusal(id=id)
    for word in words:
        assert word in message, message


def test_a_folder_that_is_not_searched_is_named(own_folder, monkeypatch):
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", ".", str(own_folder))])
    assert "lies in the current folder, which Python does not search: set PYTHONPATH=." in refusal(id="my_env:Mine-v0")


ODD_RETURNS = [
    ({"obs": np.zeros((8, 8, 3))}, "the observation of step() is an array (8, 8, 3) of float64, expected (8, 8, 3) uint8"),
    ({"obs": np.zeros((8, 9, 3), np.uint8)}, "is an array (8, 9, 3) of uint8"),
    ({"obs": np.zeros((8, 8, 3), np.int64)}, "of int64"),
    ({"obs": None}, "is NoneType"),
    ({"obs": [[1], [2, 3]]}, "is list"),
    ({"reward": float("nan")}, "the reward is nan, expected a finite number"),
    ({"reward": float("-inf")}, "the reward is -inf"),
    ({"reward": None}, "the reward is None"),
    ({"reward": 1e300}, "the reward is 1e+300"),
    ({"reward": np.array([1.0, 2.0])}, "the reward is array([1., 2.])"),
    ({"reward": "1"}, "the reward is '1'"),
    ({"end": None}, "terminated or truncated is None, expected True or False"),
    ({"end": 3}, "terminated or truncated is 3"),
    ({"error": ValueError, "words": ["lost"]}, "ValueError: lost (my_env.py:"),
    ({"error": SystemExit, "words": [0]}, "SystemExit: 0 (my_env.py:"),
    ({"error": AssertionError}, "AssertionError (my_env.py:"),
]


@PROCESSES
@pytest.mark.parametrize("bad, words", ODD_RETURNS, ids=[next(iter(b)) + "-" + w[-12:] for b, w in ODD_RETURNS])
def test_what_a_game_returns_is_checked(bad, words, processes):
    """In the trial, and in a later step, whose number and row are named."""
    assert words in refusal(id="my_env:Returns-v0", kwargs={"at": 1, **bad})
    message = refusal(id="my_env:Returns-v0", kwargs={"at": 4, **bad}, num_envs=2, processes=processes)
    assert words in message and "in step 4 of row 0" in message, message


@pytest.mark.parametrize("bad, words", [({"obs": np.zeros(3)}, "observation of reset()"), ({"info": None}, "is a tuple of 2")])
def test_what_a_reset_returns_is_checked(bad, words):
    assert words in refusal(id="my_env:Returns-v0", kwargs={"at": 0, **bad})


@pytest.mark.parametrize("reward", [True, 2, np.float32(0.5), np.int64(3), np.array(1.5), torch.tensor(2.0)])
def test_every_kind_of_number_is_a_reward(reward):
    env = gym.make(id="my_env:Returns-v0", kwargs={"at": 1, "reward": reward})
    assert play(env, 2)[1][1].tolist() == [float(reward)]


# ---------------------------------------------------------------------------------------------------------------------
# Wrappers and keyword arguments


RESCALED = [{"_target_": "gymnasium.wrappers.RescaleObservation", "min_obs": 0, "max_obs": 255},
            {"_target_": "gymnasium.wrappers.DtypeObservation", "dtype": "uint8"}]


def test_wrappers_and_kwargs_reach_each_copy():
    env = gym.make(id="CartPole-v1", num_envs=2, height=32, width=48, **DRAWN)
    assert env.single_observation_space.shape == (3, 32, 48) and len(np.unique(play(env, 3)[1][0])) > 2
    env = gym.make(id="my_env:Steered-v0", wrappers=[{"_target_": "gymnasium.wrappers.DiscretizeAction", "bins": 3}])
    assert env.single_action_space.n == 9 and len(play(env, 12)) == 13
    assert gym.make(id="my_env:Sized-v0", kwargs={"size": 3}).copies.envs[0].unwrapped.size == 3


def test_advice_on_wrappers_is_what_yaml_takes():
    """The command line that the refusal of float images gives is read as the list that makes them fit."""
    advice = re.search(r"'(env\.wrappers=.*)'", refusal(id="my_env:Doubled-v0"))[1]
    cfg = compose.compose(["env._target_=tokenworld.envs.gym.make", advice]).cfg
    assert cfg["env"]["wrappers"] == RESCALED


def test_float_images_fit_by_the_advised_wrappers():
    mine = play(gym.make(id="my_env:Mine-v0"), 12)
    assert same(play(gym.make(id="my_env:Doubled-v0", wrappers=RESCALED), 12), mine)
    assert same(play(gym.make(id="my_env:Floating-v0"), 12), mine)


@pytest.mark.parametrize("wrappers, words", [
    ("a.b", "env.wrappers must be a list, got 'a.b'"),
    (["Name"], "must hold dotted names"),
    ([{"size": 3}], "must hold dotted names, or mappings with a _target_"),
    (["my_evn.W"], "the module my_evn was not found"),
    (["lacks.W"], "lacks failed to import: ModuleNotFoundError"),
    (["gymnasium.wrappers.GrayScaleObservation"], "did you mean gymnasium.wrappers.GrayscaleObservation?"),
    (["my_env.Zebra"], "the module my_env has no Zebra"),
    (["my_env.Refuses"], "cannot wrap my_env:Mine-v0: KeyError: 'gone' (my_env.py:"),
    ([{"_target_": "my_env.Refuses", "keyword": "x"}], "KeyError: 'x'"),
    (["gymnasium.wrappers.ResizeObservation"], "missing 1 required positional argument: 'shape': give it in a mapping"),
    (["gymnasium.wrappers.AddRenderObservation"], "add env.kwargs.render_mode=rgb_array"),
    (["builtins.type"], "returned type, expected a gymnasium.Env"),
])  # fmt: skip
def test_wrappers_that_cannot_be(wrappers, words):
    assert words in refusal(id="my_env:Mine-v0", wrappers=wrappers)


@pytest.mark.parametrize("kwargs, words", [
    ({"size": 3}, "cannot be constructed: TypeError"),
    ({"max_episode_steps": 3}, "env.kwargs.max_episode_steps is set by env.max_steps"),
    ({"id": "x"}, "env.kwargs.id is set by env.id"),
])  # fmt: skip
def test_kwargs_that_cannot_be(kwargs, words):
    assert words in refusal(id="my_env:Mine-v0", kwargs=kwargs)


def test_a_simulator_takes_wrappers_and_kwargs():
    env = {"_target_": "tokenworld.envs.gym.make", "id": "CartPole-v1", "height": 16, "width": 24, **DRAWN}
    origins.trust({"env": env})
    simulator = simulator_of(env)
    assert simulator.reset(0).shape == (3, 16, 24)


# ---------------------------------------------------------------------------------------------------------------------
# Training


GRID = "env.wrappers=[minigrid.wrappers.RGBImgPartialObsWrapper,minigrid.wrappers.ImgObsWrapper]"
SMALL = ["env.height=14", "env.width=14", "env.max_steps=20"]
TRAINED = {
    "MiniGrid-Empty": ["env.id=minigrid:MiniGrid-Empty-5x5-v0", GRID, *SMALL],
    "MiniGrid-DoorKey": ["env.id=minigrid:MiniGrid-DoorKey-5x5-v0", GRID, *SMALL],
    "CartPole": ["env.id=CartPole-v1", "env.kwargs.render_mode=rgb_array", "env.height=16", "env.width=24",
                 "env.wrappers=[gymnasium.wrappers.AddRenderObservation]"],
    "own": ["env.id=my_env:Mine-v0"],
    "own-processes": ["env.id=my_env:Mine-v0", "env.processes=true"],
    "Crafter": ["env.id=my_crafter:Crafter-v0", "env.kwargs={size: 18, area: 12}", "env.max_steps=20"],
}  # fmt: skip


@pytest.mark.parametrize("name", TRAINED)
def test_own_environments_train(name, own_folder):
    """From the words of a command line, the id among them, to a trained policy."""
    if not name.startswith(("own", "CartPole")):
        pytest.importorskip("crafter" if name == "Crafter" else "minigrid")
    spec = compose.compose(["overlay=debug", f"out={own_folder / 'run'}", "device=cpu", *TRAINED[name]])
    schema.check(spec.cfg)
    summary = train_verb.run(spec)
    assert summary["updates"]["policy"] > 0
