"""What a change of structure must not change: losses, `--help` and `show` are those that are stored in tests/golden/.

Losses are compared to a relative 1e-5, as machines round differently; with TOKENWORLD_GOLDEN=exact (`tests/gate`) they, and
all other numbers of the runs, are compared bit for bit, for two commits on one machine. TOKENWORLD_GOLDEN=record (`tests/gate
record`) stores them, for a commit that changes them on purpose.
"""

import contextlib
import io
import json
import math
import os
from pathlib import Path

import pytest
import torch
from conftest import each_recipe

from tokenworld.cli import main as cli
from tokenworld.cli import verbs
from tokenworld.training.run import Run

GOLDEN = Path(__file__).resolve().parent / "golden"
MODE = os.environ.get("TOKENWORLD_GOLDEN", "close")
UPDATES = 3  # of each phase: later ones amplify what machines round differently
COMMANDS = verbs.names()


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def trained(recipe: str, out: Path, monkeypatch) -> dict:
    """The losses of each update by phase, and the metrics of a short run, without what depends on time."""
    losses: dict[str, list[float]] = {}
    update = Run.update

    def recorded(self, name, optimizer, parts, clip):
        values: list[float] = []
        update(self, name, optimizer, (values.append(part.item()) or part for part in parts), clip)
        losses.setdefault(name, []).append(sum(values))

    monkeypatch.setattr(Run, "update", recorded)
    words = ["train", f"recipe={recipe}", "overlay=debug", "seed=3", "device=cpu", f"out={out}", "train.evaluate.frames=0"]
    assert cli.main(words) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["wall"]
    return {"losses": losses, "metrics": lines}


def text_of(*words: str) -> str:
    """What a command prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert cli.main(list(words)) == 0
    return printed.getvalue()


def stored(name: str, value: str) -> str:
    """The stored text of this name, or `value`, which becomes it, when recording."""
    if MODE == "record":
        (GOLDEN / name).write_text(value, encoding="utf-8")
    return (GOLDEN / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", each_recipe())
def test_losses_are_the_stored_ones(recipe, tmp_path, monkeypatch):
    pytest.importorskip("minatar")
    found = trained(recipe, tmp_path / "run", monkeypatch)
    golden = json.loads(stored(f"{recipe}.json", json.dumps(found, indent=1) + "\n"))
    assert found["losses"].keys() == golden["losses"].keys() and {"dynamics", "world"} & golden["losses"].keys()
    for phase, losses in golden["losses"].items():
        for mine, theirs in zip(found["losses"][phase][:UPDATES], losses[:UPDATES], strict=True):
            assert math.isclose(mine, theirs, rel_tol=1e-5, abs_tol=1e-7), (phase, found["losses"][phase], losses)
    if MODE != "close":
        assert found == golden


def test_help_is_the_stored_one():
    found = "\n\n".join(text_of(*words, "--help") for words in ([], *([name] for name in COMMANDS)))
    assert found == stored("help.txt", found)


@pytest.mark.parametrize("recipe", each_recipe())
def test_show_is_the_stored_one(recipe):
    pytest.importorskip("minatar")
    found = text_of("show", f"recipe={recipe}") + "\n" + text_of("show", f"recipe={recipe}", "--yaml")
    assert found == stored(f"show_{recipe}.txt", found)
