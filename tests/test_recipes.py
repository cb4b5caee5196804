"""Every recipe, shrunk by the debug overlay: trains, saves, and a killed run ends bit for bit like one that was not."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import each_recipe
from safetensors.torch import load_file

from tokenworld.cli.verbs import train as train_verb
from tokenworld.config import compose, saved, schema
from tokenworld.errors import UserError
from tokenworld.policies.evolution import CMAES
from tokenworld.training.phases import evaluate
from tokenworld.training.run import Run


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the library catches it."""


def run(recipe, out, *words):
    spec = compose.compose([f"recipe={recipe}", "overlay=debug", f"out={out}", "seed=3", "device=cpu", *words])
    schema.check(spec.cfg)
    return train_verb.run(spec)


def weights(out):
    return {
        f"{path.stem}.{name}": tensor
        for path in sorted((out / "checkpoint").glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_same_weights(one, other):
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys() and len(a) > 20
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, different[:5]


OPTIONS = ["train.dynamics.optimizer={muon: 0.02, average: 0.9}", "train.dynamics.warmup=0", "train.collect.zeta=2.0",
           "policy.network._target_=tokenworld.policies.networks.FrameNetwork"]  # fmt: skip


CASES = [*(pytest.param(each.values[0], (), marks=each.marks) for each in each_recipe()), ("quickstart", OPTIONS)]


@pytest.mark.parametrize("recipe, words", CASES)
def test_a_killed_run_resumes_bit_for_bit(recipe, words, tmp_path, monkeypatch):
    # what the evaluation measures must not depend on how busy this machine is
    monkeypatch.setattr(evaluate, "EVALUATION_TIME_SHARE", 1e6)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    result = run(recipe, whole, *words)
    last = "policy" if "policy" in saved.load(whole).parts else "dynamics"  # what is trained last
    assert result["env_steps"] > 0 and json.loads((whole / "summary.json").read_text())["updates"][last] > 0
    assert last == "dynamics" or result["imagined_steps"] > 0 and result["eval"]["episodes"] == 2
    pictures = ("dream.png", "dream.gif", *["learning_curve.png"] * (last == "policy"))
    for name in ("config.yaml", "metrics.jsonl", *pictures):
        assert (whole / name).stat().st_size > 0, name

    # Killed once while the policy, or else the dynamics, is being trained, once just before a checkpoint.
    step, evolve, save, calls = Run.update, CMAES.update, Run.save, {"policy": 0, "save": 0}

    def die_once(is_policy=True):
        calls["policy"] += is_policy
        if calls["policy"] == 1:
            calls["policy"] += 1
            raise Killed

    def dying_update(self, name, *args):
        step(self, name, *args)
        die_once(name == last)

    def dying_generation(self, *args):
        evolve(self, *args)
        die_once()

    def dying_save(self):
        calls["save"] += 1
        if calls["save"] == 2:
            raise Killed
        save(self)

    monkeypatch.setattr(Run, "update", dying_update)
    monkeypatch.setattr(CMAES, "update", dying_generation)
    monkeypatch.setattr(Run, "save", dying_save)
    with pytest.raises(Killed):
        run(recipe, killed, *words)
    with pytest.raises(Killed):
        train_verb.resume(str(killed), {}, {})
    train_verb.resume(str(killed), {}, {})
    assert_same_weights(whole, killed)

    def lines(out):
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in row.items() if key != "wall"} for row in rows]

    assert lines(whole) == lines(killed)


@pytest.mark.slow
def test_sigkill_at_five_random_moments(tmp_path):
    """The same with real kills of a real process, for the recipe of the paper."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    first = ["train", "recipe=iris", "overlay=debug", "seed=3", "device=cpu"]
    command = [sys.executable, "-m", "tokenworld.cli"]
    began = time.monotonic()
    subprocess.run([*command, *first, f"out={whole}"], check=True, capture_output=True)
    seconds = time.monotonic() - began
    generator = torch.Generator().manual_seed(int(time.time()))
    kills = 0
    while kills < 5:
        words = ["train", "--resume", str(killed)] if (killed / "config.yaml").exists() else [*first, f"out={killed}"]
        process = subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(float(torch.rand((), generator=generator)) * seconds)
            break  # it finished before its kill
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
    words = ["train", "--resume", str(killed)] if (killed / "config.yaml").exists() else [*first, f"out={killed}"]
    subprocess.run([*command, *words], check=True, capture_output=True)
    assert_same_weights(whole, killed)


def test_an_existing_run_is_never_overwritten(tmp_path):
    run("quickstart", tmp_path / "a")
    before = (tmp_path / "a" / "checkpoint" / "manifest.json").read_text()
    with pytest.raises(UserError, match="no file was overwritten"):
        run("quickstart", tmp_path / "a", "policy.gamma=0.5")
    assert (tmp_path / "a" / "checkpoint" / "manifest.json").read_text() == before
