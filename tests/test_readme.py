"""The README's example runs as it stands and says what it claims."""

import re
from pathlib import Path

from tokenworld.cli import main as cli

README = Path(__file__).resolve().parent.parent / "README.md"


def test_a_model_is_loaded_and_acts_in_eight_lines(tmp_path, monkeypatch):
    example, _ = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert len([line for line in example.splitlines() if line.strip()]) <= 8
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "overlay=debug", "out=run", "train.collect.first_steps=400"]) == 0
    assert cli.main(["export", "run", "out=breakout"]) == 0
    names: dict = {}
    exec(example, names)
    assert names["obs"].shape == (4, 10, 10) and names["ended"]
    assert names["agent"].score(episodes=2)["episodes"] == 2


def test_the_example_runs():
    _, example = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    lines = [line for line in example.splitlines() if line.strip()]
    assert len(lines) <= 10
    names: dict = {}
    exec(example, names)
    assert len(names["dream"]) == 15
    assert names["frames"].shape == (8, 1, 4, 10, 10) and 0 <= names["frames"].min() <= names["frames"].max() <= 1
