"""A run to play in, and a server for it: what the tests of `play` share."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from browser import wait_for

from tokenworld.cli import main as cli
from tokenworld.play.future import DreamSettings
from tokenworld.play.idle import gallery
from tokenworld.play.session import Session
from tokenworld.play.starts import moments
from tokenworld.storage import checkpoint
from tokenworld.training.resume import open_run


def make_run(out: Path) -> Path:
    """Trained for moments; its termination head is set so that no dream ends by itself."""
    assert cli.main(["train", "overlay=debug", f"out={out}", "train.collect.first_steps=400"]) == 0
    return shift_end(out, -30)


def shift_end(out: Path, by: float) -> Path:
    """More or less of the probability that the model gives to an end."""
    modules, state = checkpoint.load(out / "checkpoint")
    (bias,) = (
        key for key in modules["dynamics"] if re.fullmatch(r"3\..*\.bias", key) and modules["dynamics"][key].shape == (1,)
    )
    modules["dynamics"][bias] += by
    checkpoint.save(out / "checkpoint", modules, state)
    return out


def collected(out: Path) -> dict:
    """The saved state of the run's collector."""
    return checkpoint.load(out / "checkpoint")[1]["ranks"][0]["collector"]


def make_dream(out: Path) -> DreamSettings:
    run = open_run(str(out), {"device": "cpu"})
    model = run.world_model.eval()
    starts = gallery(model, moments(run, collected(out), 0), 0)
    return DreamSettings(model, starts, run.meta["action_meanings"], run.policy, name="a run")


ACTIONS = np.random.default_rng(0).integers(0, 3, 80).tolist()


def played(dream, actions, seed=0, temperature=None, start=0):
    session = Session(dream, start, seed)
    for action in actions:
        session.step(action, temperature)
    return session


def same(a, b) -> bool:
    """Two futures, in everything that is seen of them."""
    fields = ("action", "reward", "p_end", "ended", "temperature")
    return len(a.moments) == len(b.moments) and all(
        np.array_equal(x.frame, y.frame)
        and torch.equal(x.codes.indices, y.codes.indices)
        and np.array_equal(x.surprise, y.surprise)
        and all(getattr(x, name) == getattr(y, name) for name in fields)
        for x, y in zip(a.moments, b.moments, strict=True)
    )


class Served:
    """`tokenworld play` in a process of its own."""

    def __init__(self, folder: Path, port: int, state: Path):
        env = os.environ | {"XDG_STATE_HOME": str(state), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-m", "tokenworld.cli", "play", str(folder), f"port={port}", "device=cpu"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=Path(__file__).parent.parent)
        self.url = re.search(r"http://\S+", self.process.stdout.readline())[0]
        wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1).close() is None, 20)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
