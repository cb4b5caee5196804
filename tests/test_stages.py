"""An evaluation says what it does: a line for each probe with its time and the budget left, a bar on a terminal."""

import re
import sys
import time

import pytest

from tokenworld import log as log_module
from tokenworld.cli import main as cli
from tokenworld.evaluation.probes import policies, stages
from tokenworld.evaluation.probes.stages import Stages
from tokenworld.evaluation.report import files as report
from tokenworld.log import Log

LINE = re.compile(r"tier ([ABC]), (.+?)(?:: (\d+) of (\d+) [\w ]+)? in \d+:\d\d; \d+:\d\d of the budget left")
PROBES = {
    "A": ["tokenizer", "metrics of the tokenizer", "held-out frames under each action", "metrics of held-out frames",
          "imagined rollouts and held-out episodes", "metrics of imagined rollouts"],
    "B": ["branch states of random play", "every action at branch states", "metrics of branches",
          "pictures of the worst branch states", "whole futures of branch states", "metrics of futures",
          "every action at states of the run's policy", "metrics of agents", "pairs of histories", "metrics of histories"],
    "C": ["policies that play and dream", "a planner in the simulator and in the model", "metrics of policies"],
}  # fmt: skip


@pytest.fixture
def time_of(monkeypatch):
    """A clock that the test turns: time_of[0] is now, in seconds."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_line_has_the_parts_the_time_and_what_is_left(time_of, capsys):
    watched = Stages(Log(None), budget=200.0)
    with watched.probe("branches", 7, "states") as tick:
        for _ in range(5):
            time_of[0] += 13.0
            tick()
    watched.tier = "C"
    with watched.probe("metrics"):
        time_of[0] += 140.0
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "tier A, branches: 1/7 in 0:13, 1:18 left", "a probe that takes long is no silence either"
    assert said[-2] == "tier A, branches: 5 of 7 states in 1:05; 2:15 of the budget left"
    assert said[-1] == "tier C, metrics in 2:20; the budget is used up"


def test_short_probes_are_not_worth_a_line_of_a_training(time_of, capsys):
    watched = Stages(Log(None), budget=100.0, least=10.0)
    for seconds in (9.0, 11.0):
        with watched.probe(f"{seconds:.0f} seconds"):
            time_of[0] += seconds
    assert [line.split(" in ")[0] for line in capsys.readouterr().err.splitlines()] == ["tier A, 11 seconds"]


def test_who_does_not_watch_hears_nothing(time_of, capsys):
    with Stages().probe("all") as tick:
        time_of[0] += 1000.0
        tick()
    assert capsys.readouterr().err == ""
    assert stages.unseen() is None


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Stages(Log(None), 60.0).probe("branches", 3, "states") as tick:
        tick()
    said = capsys.readouterr().err
    assert "\r" in said and "0/3" in said and "tier A, branches: 1 of 3 states in 0:00" in said


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("stages") / "run"
    assert cli.main(["train", "overlay=debug", "device=cpu", "train.collect.held_out=3", f"out={out}"]) == 0
    return out


def test_every_probe_of_all_tiers_has_its_line(run, tmp_path, monkeypatch, capsys):
    small = {"POLICIES": 4, "SHARES": (0.0, 0.5), "HORIZON": 5, "EPISODES": 4, "PLANNED": 2, "CANDIDATES": 2}
    for name, value in small.items():
        monkeypatch.setattr(policies, name, value)
    words = ["evaluate", str(run), "tier=C", "states=4", "frames=30", "device=cpu", f"out={tmp_path / 'e'}"]

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(report, "write", killed)  # after the last tier: the same command takes what was measured
    capsys.readouterr()
    assert cli.main(words) == 130
    found: dict[str, list] = {}
    for line in capsys.readouterr().err.splitlines():
        if match := LINE.fullmatch(line):
            found.setdefault(match[1], []).append(match[2])
            if match[4] and match[2] != "branch states of random play":
                assert match[3] == match[4] or match[1] == "A", line  # short episodes end the rollouts of tier A early
    assert found == PROBES
    monkeypatch.undo()
    assert cli.main(words) == 0
    said = capsys.readouterr().err
    assert not LINE.search(said) and [said.count(f"tier {tier}: measured before") for tier in "ABC"] == [1, 1, 1]


def test_progress_without_a_closing_line(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now[0])
    for closing in (True, False):
        with Log(None).progress(2, f"closing {closing}", closing=closing) as bar:
            now[0] += 20.0
            bar.done = 2
    assert capsys.readouterr().err.splitlines() == ["closing True: 2/2 in 0:20"]
