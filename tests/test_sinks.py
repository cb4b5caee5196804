"""Sinks get what metrics.jsonl gets, over real steps, and pictures; what is wrong with one is said before a run is created."""

import configparser
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from tokenworld.cli import main as cli
from tokenworld.errors import UserError
from tokenworld.log import Log
from tokenworld.sinks.opening import SHORT, check, open_sinks, run_name
from tokenworld.viz.frames import save_png

ROOT = Path(__file__).resolve().parent.parent
DEBUG = ["train", "overlay=debug", "device=cpu", "train.collect.held_out=2"]


class Kept:
    """A sink of somebody else's, named by its `_target_`."""

    package = None
    all: list = []

    def __init__(self, *, folder, config, step, color: str = "red"):
        self.seen, self.color, self.start, self.config = [], color, step, config
        Kept.all.append(self)

    def log(self, numbers, step):
        self.seen.append((numbers, step))

    def picture(self, name, path, step):
        self.seen.append((name, path.read_bytes()[:4], step))

    def close(self):
        self.seen.append("closed")


@pytest.fixture
def kept(monkeypatch):
    """The sinks of the test's own class, from the oldest to the newest."""
    monkeypatch.setattr(Kept, "all", [])
    monkeypatch.setitem(sys.modules, "kept_sink", types.SimpleNamespace(Kept=Kept, __name__="kept_sink"))
    return Kept.all


@pytest.mark.parametrize(
    "sinks, part",
    [
        (["tensorbord"], "did you mean tensorboard?.*trackio"),
        ([{"project": "mine"}], "without a _target_"),
        ([{"_target_": SHORT["trackio"], "porject": "mine"}], "porject.*did you mean train.loop.sinks.project"),
        ([{"_target_": SHORT["trackio"], "folder": "x"}], "cannot be set"),
        ([{"_target_": "tokenworld.sinks.trackio.Trakio"}], "did you mean tokenworld.sinks.trackio.Trackio"),
        ([{"_target_": "tokenworld.policies.planner.Planner"}], "in tokenworld.sinks"),
        ([{"_target_": "os.system"}], "code from outside"),
    ],
)
def test_a_wrong_sink_is_one_sentence(sinks, part):
    with pytest.raises(UserError, match=part):
        check(sinks)


@pytest.mark.parametrize("name", SHORT)
def test_a_missing_package_is_told_with_its_extra_before_a_run_is_created(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setitem(sys.modules, name, None)  # makes the import fail
    out = tmp_path / "run"
    assert cli.main([*DEBUG, f"train.loop.sinks=[{name}]", f"out={out}"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"pip install 'tokenworld[{name}]'" in said
    assert not (out / "config.yaml").exists()


@pytest.mark.parametrize("name", SHORT)
def test_an_extra_is_there_for_each_short_name(name):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options.extras_require"][name].split() == [name]


def test_numbers_pictures_and_the_recipe_reach_a_sink_by_target(tmp_path, kept, capsys):
    sink = "{_target_:kept_sink.Kept,color:blue}"
    words = [*DEBUG, "--trust-remote-code", f"train.loop.sinks=[{sink}]", f"out={tmp_path / 'run'}"]
    assert cli.main(words) == 0, capsys.readouterr().err
    (one,) = kept
    assert one.color == "blue" and one.start == 0 and one.config["recipe"] == "quickstart" and one.config["seed"] == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    numbers = [entry for entry in one.seen if isinstance(entry, tuple) and len(entry) == 2]
    assert len(numbers) == len(rows) and one.seen[-1] == "closed"
    steps = 0
    for row, (told, step) in zip(rows, numbers, strict=True):
        steps = row.get("env_steps", steps)
        assert step == steps > 0, "the x axis is real steps"
        phase = row["phase"]
        assert told == {f"{phase}/{k}": v for k, v in row.items() if isinstance(v, (int, float)) and k != "wall"}
    pictures = {entry[0] for entry in one.seen if isinstance(entry, tuple) and len(entry) == 3}
    assert pictures == {"film", "learning_curve"}
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "train.loop.epochs=4", "--trust-remote-code"]) == 0
    assert kept[1].start == steps


def test_a_sink_that_fails_ends_no_training_and_is_told(tmp_path, capsys):
    class Broken(Kept):
        def log(self, numbers, step):
            raise ConnectionError("no route\nto host")

    log = Log(tmp_path)
    fine, broken = (kind(folder=None, config={}, step=0) for kind in (Kept, Broken))
    log.send_to([broken, fine])
    for step in (1, 2):
        log.steps = step
        log.metrics("policy", loss=0.5, name="text", bad=float("nan"))
    log.close()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "the sink Broken failed (ConnectionError: no route" in said
    assert fine.seen == [({"policy/loss": 0.5}, 1), ({"policy/loss": 0.5}, 2), "closed"] and broken.seen == []
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_sink_that_cannot_be_opened_is_one_sentence(tmp_path, monkeypatch):
    fake = types.ModuleType("wandb")

    def init(**_):
        raise RuntimeError("api_key not configured\nrun wandb login")

    fake.init = init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    check(["wandb"])
    with pytest.raises(UserError, match="Wandb cannot be opened .*api_key not configured.*remove it from train.loop.sinks"):
        open_sinks(["wandb"], folder=tmp_path, recipe={}, step=0)


def test_where_nothing_is_played_lines_are_the_axis(tmp_path, kept):
    log = Log(tmp_path)
    log.send_to([Kept(folder=None, config={}, step=0)])
    for _ in range(2):
        log.metrics("tokenizer", loss=1.0)
    assert [step for _, step in kept[0].seen] == [1, 2]


def test_a_run_is_looked_at_without_its_sinks(tmp_path, monkeypatch, capsys):
    """Scoring needs no package that training reported to."""
    pytest.importorskip("tensorboard")
    assert cli.main([*DEBUG, "train.loop.sinks=[tensorboard]", f"out={tmp_path / 'run'}"]) == 0
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert cli.main(["score", str(tmp_path / "run"), "episodes=2"]) == 0
    assert cli.main(["train", "--resume", str(tmp_path / "run"), "train.loop.epochs=4"]) == 2
    assert "tokenworld[tensorboard]" in capsys.readouterr().err


def test_tensorboard_shows_numbers_and_pictures_over_steps(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    save_png(tmp_path / "a.png", np.zeros((4, 6, 3), np.uint8))

    def logged(start: int, steps: list[int]) -> None:
        log = Log(tmp_path)
        log.send_to(open_sinks(["tensorboard"], folder=tmp_path, recipe={}, step=start))
        for log.steps in steps:
            log.metrics("dynamics", loss=log.steps / 10, name="text")
        log.picture("film", tmp_path / "a.png")
        log.close()

    logged(0, [100, 200, 300])
    logged(200, [300, 400])  # resumed at step 200: step 300 is logged again
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["dynamics/loss"] and events.Tags()["images"] == ["film"]
    found = [(event.step, round(event.value)) for event in events.Scalars("dynamics/loss")]
    assert found == [(100, 10), (200, 20), (300, 30), (400, 40)]
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "tensorboard").symlink_to(tmp_path)
    with pytest.raises(UserError, match="is a link"):
        open_sinks(["tensorboard"], folder=tmp_path / "linked", recipe={}, step=0)


def test_wandb_gets_the_recipe_a_run_id_and_steps(tmp_path, monkeypatch):
    seen = []

    class Run:
        def define_metric(self, name, **keywords):
            seen.append((name, keywords))

        def log(self, numbers):
            seen.append(numbers)

        def finish(self):
            seen.append("finished")

    fake = types.ModuleType("wandb")
    fake.init = lambda **keywords: seen.append(keywords) or Run()
    fake.Image = lambda path: ("image", path)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log = Log(tmp_path)
    log.send_to(open_sinks([{"_target_": SHORT["wandb"], "project": "mine"}], folder=tmp_path, recipe={"seed": 3}, step=0))
    log.steps = 70
    log.metrics("policy", entropy=1.5)
    log.picture("film", tmp_path / "a.png")
    log.close()
    name = run_name(tmp_path)
    assert seen[0] == dict(project="mine", group=None, name=tmp_path.name, id=name, resume="allow", config={"seed": 3},
                           dir=str(tmp_path))  # fmt: skip
    assert seen[1:3] == [("step", {}), ("*", {"step_metric": "step"})]
    assert seen[3:] == [{"policy/entropy": 1.5, "step": 70}, {"film": ("image", f"{tmp_path}/a.png"), "step": 70}, "finished"]
    assert run_name(tmp_path / "a" / "r") != run_name(tmp_path / "b" / "r") and name == run_name(tmp_path)


def test_trackio_gets_the_recipe_and_steps_and_leaves_stdout_alone(tmp_path, monkeypatch, capsys):
    seen = []

    class Run:
        def log(self, numbers, step):
            seen.append((numbers, step))

        def finish(self):
            print("finished")

    fake = types.ModuleType("trackio")
    fake.init = lambda **keywords: print("initialized") or seen.append(keywords) or Run()
    fake.Image = lambda path: ("image", path)
    monkeypatch.setitem(sys.modules, "trackio", fake)
    log = Log(tmp_path)
    log.send_to(open_sinks(["trackio"], folder=tmp_path, recipe={"seed": 3}, step=0))
    log.steps = 70
    log.metrics("policy", entropy=1.5)
    log.picture("film", tmp_path / "a.png")
    log.close()
    assert seen == [
        dict(project="tokenworld", group=None, name=run_name(tmp_path), config={"seed": 3}, resume="allow", embed=False),
        ({"policy/entropy": 1.5}, 70), ({"film": ("image", f"{tmp_path}/a.png")}, 70)]  # fmt: skip
    said = capsys.readouterr()
    assert said.out == "" and said.err.split() == ["initialized", "finished"]


def test_the_real_trackio_keeps_a_run_without_a_network(tmp_path):
    pytest.importorskip("trackio")
    code = f"""
import socket

def refuse(self, address, *_):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"no network here: {{address}}")

socket.socket.connect = refuse
from tokenworld.cli import main as cli
for words in ({DEBUG!r} + ["train.loop.sinks=[trackio]", "out=run"], ["train", "--resume", "run", "train.loop.epochs=5"]):
    assert cli.main(words) == 0
"""
    env = os.environ | {"TRACKIO_DIR": str(tmp_path / "db"), "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    read = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
(run,) = SQLiteStorage.get_runs("tokenworld")
logs = SQLiteStorage.get_logs("tokenworld", run)
print(json.dumps([run, [[row.get("step"), row["collect/env_steps"]] for row in logs if "collect/env_steps" in row],
                  sum("film" in row for row in logs)]))
"""
    out = subprocess.run([sys.executable, "-c", read], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr[-2000:]
    run, collected, films = json.loads(out.stdout.splitlines()[-1])
    assert run == run_name(tmp_path / "run") and films >= 1
    assert len(collected) == 5 and all(step == env_steps for step, env_steps in collected)
