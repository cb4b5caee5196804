"""Copies of an environment: Gymnasium's own vectors bit for bit, and processes that end in one sentence, never in silence."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from own_env import PROCESSES, play, refusal, same

from tokenworld.envs import gym
from tokenworld.errors import UserError

pytestmark = pytest.mark.usefixtures("own_folder")


def reference(kind, num_envs, **kwargs):
    return kind([lambda: gymnasium.make("my_env:Mine-v0", disable_env_checker=True, **kwargs)] * num_envs,
                autoreset_mode=AutoresetMode.NEXT_STEP)


@PROCESSES
def test_copies_are_gymnasiums_own_vector(processes):
    """Bit for bit what SyncVectorEnv and AsyncVectorEnv give: frames, rewards, ends and their autoreset, infos."""
    theirs = reference(AsyncVectorEnv if processes else SyncVectorEnv, 3)
    path = play(theirs, 40)
    ours = play(gym.make(id="my_env:Mine-v0", num_envs=3, processes=processes), 40)
    assert same([(obs.transpose(0, 3, 1, 2), *rest) for obs, *rest in path], ours)
    env = gym.make(id="my_env:Mine-v0", num_envs=3, processes=processes)
    env.reset(seed=0)
    assert env.step(np.zeros(3, int))[-1]["t"].tolist() == [1, 1, 1]
    env.close()


def test_the_trial_draws_nothing():
    gym.make(id="my_env:Mine-v0").close()  # imported
    states = []
    for id in ("my_env:Mine-v0", "my_env:Draws-v0", "ALE/Breakout-v5"):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        gym.make(id=id).close()
        states.append((random.random(), np.random.rand(), float(torch.rand(1))))
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    assert set(states) == {(random.random(), np.random.rand(), float(torch.rand(1)))}


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def ended(pids, seconds=10.0) -> bool:
    until = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(is_running, pids))


@pytest.mark.parametrize("when", ["between steps", "in a step"])
def test_a_killed_process_is_one_sentence_and_the_others_end(when, capfd):
    kwargs = {"at": 4, "kill": True} if when == "in a step" else {}
    env = gym.make(id="my_env:Returns-v0", num_envs=3, processes=True, kwargs=kwargs)
    pids = [worker.process.pid for worker in env.copies.workers]
    env.reset(seed=0)
    env.step(np.zeros(3, int))
    if not kwargs:
        os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(UserError, match=r"a process of the environment my_env:Returns-v0 has ended: row \d, killed by SIGKILL"):
        for _ in range(9):
            env.step(np.zeros(3, int))
    assert ended(pids, 1)
    env.close()
    assert capfd.readouterr().err == ""


def test_processes_ignore_the_signals_of_their_group_and_close_quickly(capfd):
    env = gym.make(id="my_env:Mine-v0", num_envs=2, processes=True)
    pids = [worker.process.pid for worker in env.copies.workers]
    env.reset(seed=0)
    for pid in pids:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            os.kill(pid, number)
    time.sleep(0.2)
    env.step(np.zeros(2, int))
    began = time.monotonic()
    env.close()
    assert time.monotonic() - began < 3 and ended(pids, 1) and capfd.readouterr().err == ""


@pytest.mark.parametrize("end", ["raise SystemExit", "os._exit(1)", "os.kill(os.getpid(), 9)", "del env; time.sleep(30)"])
def test_processes_end_with_the_main_one(end, own_folder):
    code = ("import os, time\nfrom tokenworld.envs.gym import make\n"
            "env = make(id='my_env:Mine-v0', num_envs=2, processes=True)\n"
            f"env.reset(seed=0)\nprint(*[w.process.pid for w in env.copies.workers], flush=True)\n{end}")
    paths = os.pathsep.join([str(own_folder), *sys.path])
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          env=os.environ | {"PYTHONPATH": paths}) as main:  # fmt: skip
        pids = [int(word) for word in main.stdout.readline().split()]
        assert len(pids) == 2 and ended(pids)
        main.kill()
        assert main.stderr.read() == ""


def test_copies_must_have_the_same_spaces():
    assert "copies of an environment must have the same spaces" in refusal(id="my_env:Grows-v0", num_envs=2)
