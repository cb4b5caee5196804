"""A command, a phase, a network and a simulator are one new file each: nothing else of the library changes.

Each test copies the library, adds one file to the copy, and uses it in a process of its own. Metrics: test_one_file_metric.py.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def library(tmp_path) -> Path:
    """A copy of the library without what a checkout has beside it."""
    ignore = shutil.ignore_patterns("__pycache__", "tokenizers", "configs")
    shutil.copytree(ROOT / "tokenworld", tmp_path / "tokenworld", ignore=ignore)
    shutil.copytree(ROOT / "tokenizers", tmp_path / "tokenworld" / "tokenizers", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "configs", tmp_path / "tokenworld" / "configs")
    return tmp_path


def python(library: Path, *words: str) -> str:
    """The output of a process that imports the copy."""
    environment = os.environ | {"PYTHONPATH": str(library), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, *words], cwd=library, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_command_is_one_file(library):
    (library / "tokenworld/cli/verbs/greet.py").write_text('''
"""`tokenworld greet`: say hello."""

from tokenworld.cli.arguments import Help, Key, values_of

HELP = Help(summary="say hello", about="Says hello.\\n\\nexample\\n  tokenworld greet name=Ada")
KEYS = {"name": Key(str, "NAME", "whom to greet")}


def parse(words):
    keys = values_of(words, KEYS)
    return lambda: run(**keys)


def run(name="world"):
    print(f"hello {name}")
''')
    assert "  greet      say hello" in python(library, "-m", "tokenworld.cli", "--help")
    text = python(library, "-m", "tokenworld.cli", "greet", "--help")
    assert text.startswith("tokenworld greet [key=value ...]") and "  name=NAME             whom to greet" in text
    assert python(library, "-m", "tokenworld.cli", "greet", "name=Ada") == "hello Ada\n"


def test_a_phase_is_one_file(library):
    (library / "tokenworld/training/phases/nap.py").write_text('''
def nap(run, is_last: bool, *, steps: int = 7) -> None:
    """Do nothing, and log it."""
    run.count["tokenizer"] += steps
''')
    word = "train.tokenizer={_target_: tokenworld.training.phases.nap.nap, steps: 3}"
    shown = python(library, "-m", "tokenworld.cli", "show", "overlay=debug", "~train.tokenizer", word, "--yaml")
    assert "_target_: tokenworld.training.phases.nap.nap" in shown and "steps: 3" in shown
    code = f"""
from tokenworld.training.build import temporary_run
run = temporary_run("overlay=debug", "~train.tokenizer", {word!r}, "device=cpu")
run.phases["tokenizer"](run)
run.phases["tokenizer"](run, True, steps=10)
print(run.count["tokenizer"], run.phases["tokenizer"].settings)
"""
    assert python(library, "-c", code).splitlines()[-1] == "13 {'steps': 3}"


def test_a_network_is_one_file(library):
    (library / "tokenworld/policies/blind.py").write_text('''
import torch
from torch import nn

from tokenworld.interfaces import Part


class BlindNetwork(nn.Module, Part):
    """Sees nothing: one learned vector."""

    needs_pixels, needs_h = False, False

    def __init__(self, *, shapes, width: int = 4):
        super().__init__()
        self.features, self.vector = width, nn.Parameter(torch.ones(width))

    def start(self, batch):
        return None

    def read_view(self, view):
        return view.codes.indices[:, 0]

    def read_trajectory(self, trajectory):
        return trajectory.codes.indices

    def forward(self, seen, carry):
        return self.vector.expand(len(seen), -1), None

    def forward_sequence(self, seen, carry):
        return self.vector.expand(*seen.shape[:2], -1)
''')
    words = ["overlay=debug", "~policy.network.hidden", "policy.network._target_=tokenworld.policies.blind.BlindNetwork",
             "policy.network.width=3"]  # fmt: skip
    assert "BlindNetwork" in python(library, "-m", "tokenworld.cli", "show", *words, "--yaml")
    code = f"""
from tokenworld.training.build import temporary_run
run = temporary_run(*{words}, "device=cpu", "train.policy.start=0", "train.policy.updates=1", "train.collect.steps=40")
for name in ("collect", "tokenizer", "dynamics", "policy"):
    run.phases[name](run, False)
print(type(run.policy.network).__name__, run.policy.actor.in_features, run.count["policy"] > 0)
"""
    assert python(library, "-c", code).splitlines()[-1] == "BlindNetwork 3 True"


def test_a_simulator_is_one_file(library):
    (library / "tokenworld/evaluation/simulators/still.py").write_text('''
import numpy as np


class Still:
    """The same picture at all times."""

    exact, actions = True, 2

    def reset(self, seed=None):
        return np.zeros((1, 4, 4), np.uint8)

    snapshot = state_hash = lambda self: 0
    reseed = lambda self, k: None

    def restore(self, x):
        return self.reset()

    def step(self, a):
        return self.reset(), 0.0, False

    def branches(self, x, a):
        return [(1.0, self.reset(), 0.0, False)]


def of_env(*, id, **settings):
    return Still()
''')
    code = """
import gymnasium, numpy as np
from tokenworld.evaluation.simulators.lookup import simulator_of

class Game(gymnasium.Env):
    metadata = {"simulator": "tokenworld.evaluation.simulators.still.of_env"}
    observation_space, action_space = gymnasium.spaces.Box(0, 255, (4, 4), np.uint8), gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((4, 4), np.uint8), {}
    def step(self, action):
        return np.zeros((4, 4), np.uint8), 0.0, False, False, {}

gymnasium.register("Still-v0", Game, max_episode_steps=9)
print(type(simulator_of({"_target_": "tokenworld.envs.gym.make", "id": "Still-v0"})).__name__)
"""
    assert python(library, "-c", code).splitlines()[-1] == "Still"
