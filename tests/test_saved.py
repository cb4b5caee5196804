"""What earlier versions wrote opens, scores, evaluates, exports and is resumed: tests/saved/VERSION/, of a few updates each.

Such a folder is written once, by the version that it names, with `tokenworld train overlay=debug seed=3 device=cpu
train.collect.first_steps=200`, `export`, `evaluate` and `collect recipe=quickstart overlay=debug steps=200 seed=1`.
"""

import json
import math
import re
import shutil
from pathlib import Path

import pytest

from tokenworld import Agent
from tokenworld.cli import main as cli
from tokenworld.evaluation.report import specs
from tokenworld.evaluation.report.files import read, read_json

SAVED = sorted((Path(__file__).resolve().parent / "saved").iterdir())


@pytest.fixture(params=SAVED, ids=lambda path: path.name)
def saved(request, tmp_path, monkeypatch) -> Path:
    """The current folder: a copy of what a version wrote."""
    pytest.importorskip("minatar")
    folder = Path(shutil.copytree(request.param, tmp_path / "saved"))
    monkeypatch.chdir(folder)
    return folder


def done(*words: str) -> bool:
    return cli.main(list(words)) == 0


def figures(folder: Path) -> dict[str, float]:
    """The metrics of a report of any schema, by the ids of this version."""
    return {metric["id"]: math.nan if metric["value"] is None else metric["value"] for metric in read_json(folder)["metrics"]}


def test_a_saved_run_scores_and_dreams_and_exports(saved, capsys):
    assert done("score", "run", "episodes=2")
    assert "return" in capsys.readouterr().out
    assert done("dream", "run", "out=dream.gif") and (saved / "dream.gif").stat().st_size > 1000
    assert done("export", "run", "out=again") and (saved / "again" / "model.safetensors").is_file()


def test_a_saved_run_is_evaluated_as_it_was(saved):
    assert done("evaluate", "run", "out=again")
    before, now = figures(saved / "evaluation"), figures(saved / "again")
    assert before.keys() <= now.keys() and sum(math.isfinite(value) for value in before.values()) > 20
    assert {id: now[id] for id in before} == pytest.approx(before, rel=1e-3, abs=1e-5, nan_ok=True)
    assert done("compare", "evaluation", "again")


def test_a_saved_evaluation_of_schema_1_is_read_by_aliases(saved, capsys):
    """Its ids, the evidence and limits of its findings, its verdict and the rows of states.npz are those of this version."""
    old = json.loads((saved / "evaluation" / "report.json").read_text())
    report, rows = read(saved / "evaluation")
    assert old["schema"] == 1 and report["schema"] == 2 and len(report["metrics"]) == len(old["metrics"]) > 30
    pairs = list(zip(report["metrics"], old["metrics"], strict=True))
    assert all(entry["alias"] == was["id"] != entry["id"] for entry, was in pairs)
    ids = {entry["id"] for entry in report["metrics"]}
    assert ids <= {spec.id for spec in specs.specs()}
    assert all(set(finding["evidence"]) <= ids for finding in report["findings"])
    assert "code_length.bits" in rows and "code_length.bits/cluster" in rows and "M1.bits" not in rows
    assert not re.search(r"\bM\d+\.", json.dumps([report["findings"], report["verdict"], sorted(rows)]))
    for name in ("M1.bits", "code_length.bits", "M1", "code_length"):
        assert done("compare", "evaluation", "evaluation", f"metrics={name}")
    capsys.readouterr()
    assert not done("compare", "evaluation", "evaluation", "metrics=M1.bit")
    assert "metrics=M1.bit is not compared here" in capsys.readouterr().err
    shutil.copytree("evaluation", "run/evaluation")
    assert done("export", "run", "out=again")
    card = (saved / "again" / "README.md").read_text()
    assert "| code_length.bits (M1.bits) Code length of a frame |" in card


def test_a_saved_run_is_resumed_and_is_its_own_config(saved):
    before = (saved / "run" / "config.yaml").read_bytes()
    assert done("train", "overlay=debug", "seed=3", "device=cpu", "out=run", "train.collect.first_steps=200")
    assert (saved / "run" / "config.yaml").read_bytes() == before
    assert done("train", "--resume", "run", "train.loop.epochs=4")
    assert json.loads((saved / "run" / "summary.json").read_text())["updates"]["dynamics"] == 8


def test_a_saved_model_acts(saved):
    agent = Agent.from_pretrained("model")
    assert agent.score(episodes=2)["episodes"] == 2


def test_saved_episodes_are_trained_on(saved, capsys):
    assert done("data", "info", "episodes")
    assert "MinAtar/Breakout-v1" in capsys.readouterr().out
    assert done("train", "tokenizer", "recipe=quickstart", "overlay=debug", "data=episodes", "out=tokenizer")
