"""Several processes that train one model: the same losses as one, checkpoints for any number of them, and sudden ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ALONE = {"OMP_NUM_THREADS": "1", "TOKENWORLD_DEBUG": ""}


def launched(ranks, *words, module=(), options=(), **popen):
    """torchrun on this machine, on a free port; with one rank the plain command."""
    many = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *options]
    command = [*(many if ranks > 1 else [sys.executable]), *module, *map(str, words)]
    environment = os.environ | ALONE | {"PYTHONPATH": f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, **popen
    )


def ended(process, seconds=150):
    """(exit code, output); a process that hangs is killed with all its children, and fails the test."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        kill_all(process)
        pytest.fail(f"still at work after {seconds} s: {process.communicate(timeout=30)[0][-3000:]}")
    return process.returncode, output


def kill_all(process):
    """Kill a process and its workers, which lead sessions of their own and would keep its output open."""
    for pid in [process.pid, *children(process)]:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


def train(ranks, *words, options=()):
    return launched(ranks, "train", *words, module=["-m", "tokenworld.cli"], options=options)


QUICK = ["overlay=debug", "device=cpu", "train.collect.envs=6", "train.collect.held_out=5"]
SAME = {
    "iris": ["recipe=iris", "overlay=debug", "backbone.dropout=0", "tokenizer.channels=8", "tokenizer.blocks=1",
             "train.tokenizer.batch=6", "train.dynamics.batch=6",
             "train.policy.batch=6", "policy.normalize=returns", "train.tokenizer.accumulate=1", "train.dynamics.accumulate=1"],
    "quickstart": ["overlay=debug", "train.dynamics.batch=6", "train.policy.batch=8"],
    "atari_small": ["recipe=atari_small", "overlay=debug", "train.dynamics.batch=6", "train.policy.batch=6"],
}  # fmt: skip


@pytest.mark.parametrize("recipe", list(SAME))
def test_two_processes_have_the_losses_of_one(recipe, tmp_path):
    found = []
    for ranks in (1, 2):
        out, result = tmp_path / f"run{ranks}", tmp_path / f"{ranks}.json"
        code, output = ended(launched(ranks, HERE / "ranks.py", out, result, *SAME[recipe]))
        assert code == 0, output[-3000:]
        found.append(json.loads(result.read_text()))
    assert found[0].keys() == found[1].keys() >= {"dynamics", "policy"}
    for name in found[0]:
        one, two = found[0][name], found[1][name]
        assert len(one) == len(two) >= 20
        apart = [abs(a - b) for a, b in zip(one, two, strict=True)]
        if name == "tokenizer" and recipe == "iris":
            # a vector between two codes goes to the other one after the first rounding error, and losses part from there
            assert max(apart[:3]) < 1e-6 and max(apart) < 1e-3, apart
        elif name != "tokenizer":  # the codebook of atari_small begins as patches that each rank draws from its own replay
            assert max(apart) < 1e-5, (name, apart)


def test_a_checkpoint_of_two_goes_on_with_one_two_and_three(tmp_path):
    code, output = ended(train(2, *QUICK, f"out={tmp_path / 'a'}", "train.loop.epochs=2", "train.policy.batch=6",
                               "train.dynamics.batch=6", "train.tokenizer.batch=6"))  # fmt: skip
    assert code == 0, output[-3000:]
    for ranks in (2, 1, 3):
        config = (tmp_path / "a" / "config.yaml").read_text()
        epochs = int(config.split("\n    epochs: ")[1].split()[0])
        (tmp_path / "a" / "config.yaml").write_text(config.replace(f"\n    epochs: {epochs}", f"\n    epochs: {epochs + 1}"))
        before = json.loads((tmp_path / "a" / "summary.json").read_text())
        code, output = ended(train(ranks, "--resume", tmp_path / "a"))
        assert code == 0, output[-3000:]
        after = json.loads((tmp_path / "a" / "summary.json").read_text())
        assert f"resumed {tmp_path / 'a'} after epoch {epochs}" in output
        assert after["env_steps"] > before["env_steps"] and after["updates"]["dynamics"] > before["updates"]["dynamics"]
        lines = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
        assert [line["epoch"] for line in lines if line["phase"] == "collect"] == list(range(epochs + 1))


def test_a_sharded_dynamics_learns_as_a_whole_one_and_any_number_of_ranks_goes_on(tmp_path):
    def command(*words):
        code, output = ended(launched(words[0], *words[1:], module=["-m", "tokenworld.cli"]))
        assert code == 0, output[-3000:]
        return output

    def losses(out):
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return [line["loss"] for line in lines if line["phase"] == "dynamics"]

    common = ["recipe=atari_small", "overlay=debug", "backbone.dropout=0", "train.dynamics.batch=6"]
    command(1, "collect", *common, "steps=60", f"out={tmp_path / 'data'}")
    common += ["device=cpu"]
    command(1, "train", "tokenizer", *common, f"data={tmp_path / 'data'}", f"out={tmp_path / 'tok'}")
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    for out, shard in ((whole, "false"), (parts, "true")):
        command(2, "train", "dynamics", *common, f"load.tokenizer={tmp_path / 'tok'}", f"out={out}", "train.loop.epochs=2",
                f"train.loop.shard={shard}")  # fmt: skip
    assert sorted(p.suffix for p in (parts / "checkpoint" / "shards").iterdir()) == [".safetensors"] * 2

    def go_on(out, ranks):
        epochs = len(losses(out))
        config = (out / "config.yaml").read_text()
        (out / "config.yaml").write_text(config.replace(f"\n    epochs: {epochs}", f"\n    epochs: {epochs + 1}"))
        assert f"after epoch {epochs}" in command(ranks, "train", "--resume", out)

    go_on(whole, 2)
    go_on(parts, 2)
    assert losses(parts) == pytest.approx(losses(whole), abs=1e-4)
    for ranks in (3, 1, 2):
        go_on(parts, ranks)
    code, output = ended(train(2, *common, f"out={tmp_path / 'no'}", "train.loop.shard=true"))
    assert code != 0 and "a policy needs the whole model" in output, output[-3000:]
    command(1, "train", "policy", *common, f"load.world_model={parts}", f"out={tmp_path / 'policy'}")


def children(process):
    """The workers of torchrun: its child processes."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def begun(process, out, epochs=1):
    """Wait until the run has saved so many epochs."""
    for _ in range(1200):
        if (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").read_text().count('"collect"') > epochs:
            return
        assert process.poll() is None, process.communicate()[0][-3000:]
        time.sleep(0.05)
    kill_all(process)
    pytest.fail(f"the run did not begin: {process.communicate(timeout=30)[0][-3000:]}")


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the workers in /proc")
def test_a_rank_that_dies_ends_the_job_and_the_run_goes_on(tmp_path):
    words = [*QUICK, f"out={tmp_path / 'a'}", "train.loop.epochs=6", "train.dynamics.updates=15"]
    process = train(2, *words)
    begun(process, tmp_path / "a")
    os.kill(children(process)[-1], signal.SIGKILL)
    code, output = ended(process)
    assert code != 0
    go_on = f"resume with: torchrun --nproc-per-node=2 -m tokenworld.cli train --resume {tmp_path / 'a'}"
    assert go_on in output, output[-3000:]
    code, output = ended(train(2, *words))  # the same command goes on, too
    assert code == 0 and "resumed" in output, output[-3000:]


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the workers in /proc")
def test_an_elastic_restart_goes_on_from_the_last_checkpoint(tmp_path):
    words = [*QUICK, f"out={tmp_path / 'a'}", "train.loop.epochs=6", "train.dynamics.updates=15"]
    process = train(2, *words, options=["--max-restarts=1"])
    begun(process, tmp_path / "a")
    os.kill(children(process)[-1], signal.SIGKILL)
    code, output = ended(process)
    assert code == 0 and "resumed" in output, output[-3000:]


def test_what_several_processes_need_is_said_in_one_sentence(tmp_path):
    for words, said in (
        ([*QUICK], "add out=DIR"),
        ([*QUICK, f"out={tmp_path / 'b'}", "train.dynamics.batch=5"], "must be a multiple of the 2 processes, got 5"),
    ):
        code, output = ended(train(2, *words))
        assert code != 0 and said in output and "Error" not in output.split(said)[0], output[-3000:]
