"""The evaluation on real models: it orders checkpoints of one training, and names faults that were planted. Minutes: slow."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from tokenworld import cli
from tokenworld.data.episodes import EpisodeWriter, read_episodes, read_meta
from tokenworld.decoding.parallel import Parallel
from tokenworld.evaluation import report

pytestmark = pytest.mark.slow


def evaluated(run, name="evaluation"):
    assert cli.main(["evaluate", str(run), f"out={run / name}"]) == 0
    told, _ = report.read(run / name)
    return told["verdict"], {metric["id"]: metric for metric in told["metrics"]}


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    """Trainings on the same episodes with the same frozen tokenizer: name -> folder."""
    folder = tmp_path_factory.mktemp("faults")
    assert cli.main(["train", "device=cpu", f"out={folder / 'base'}", "train.loop.epochs=5"]) == 0
    endless = folder / "endless"
    with EpisodeWriter(endless, read_meta(folder / "base" / "replay")) as writer:
        for episode in read_episodes(folder / "base" / "replay"):
            if episode.split == "train":  # the labels of what is learnt from, not of what is measured on
                ends = np.zeros_like(episode.terminated)
                last = ends.copy()
                last[-1] = True
                episode = replace(episode, terminated=ends, truncated=last)
            writer.append(episode)
    runs = {}
    for name, epochs, data, more in (
        ("early", 1, "base/replay", ["train.dynamics.updates=15"]), ("middle", 1, "base/replay", []),
        ("final", 16, "base/replay", []),
        ("shuffled", 16, "base/replay", ["action._target_=tokenworld.actions.ShuffledAction"]), ("endless", 16, "endless", []),
    ):  # fmt: skip
        runs[name] = folder / f"run_{name}"
        words = ["device=cpu", f"load.tokenizer={folder / 'base'}", f"data={folder / data}", f"out={runs[name]}"]
        assert cli.main(["train", "dynamics", *words, f"train.loop.epochs={epochs}", *more]) == 0
    yield runs
    shutil.rmtree(folder)


def test_checkpoints_of_one_training_are_ordered(learnt):
    found = [evaluated(learnt[name])[1] for name in ("early", "middle", "final")]
    for metric, better in (("M1.bits", -1), ("M5.hazard_loss", -1), ("M4.horizon", 1)):
        values = [numbers[metric]["value"] for numbers in found]
        print(metric, values)
        assert all(better * (b - a) >= 0 for a, b in zip(values, values[1:], strict=False)), (metric, values)
        assert values[0] != values[-1]


@pytest.mark.parametrize("fault, words", [("shuffled", "its actions"), ("endless", "too low")])
def test_a_planted_fault_is_named(learnt, fault, words):
    wrong, _ = evaluated(learnt[fault])
    right, _ = evaluated(learnt["final"])
    print(f"{fault}: {wrong}\nfinal: {right}")
    assert words in wrong and words not in right


def test_sharpened_logits_are_named_overconfident(learnt, monkeypatch):
    plain = Parallel._logits
    monkeypatch.setattr(Parallel, "_logits", lambda self, hidden, before: 2 * plain(self, hidden, before))
    wrong, _ = evaluated(learnt["final"], "sharpened")
    monkeypatch.undo()
    right, _ = evaluated(learnt["final"])
    print(f"sharpened: {wrong}\nfinal: {right}")
    assert wrong.startswith("Overconfident") and "verconfident (" not in right
