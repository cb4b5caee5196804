"""An evaluation that was killed goes on after its last finished tier, and only if nothing that matters has changed."""

import json
import shutil

import numpy as np
import pytest

from tokenworld.cli import main as cli
from tokenworld.evaluation import assess
from tokenworld.evaluation.probes import policies
from tokenworld.evaluation.records import Branching, Metric
from tokenworld.evaluation.report import files, partial

TIERS = ("A", "B", "C")


class Killed(BaseException):
    """As a signal would end the process: nothing handles it."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("interrupted") / "run"
    assert cli.main(["train", "overlay=debug", "device=cpu", "train.collect.held_out=3", f"out={out}"]) == 0
    return out


@pytest.fixture(scope="module")
def results():
    """What each tier measured the first time: measuring takes seconds, and here it only matters whether it is asked for."""
    return {}


@pytest.fixture
def counted(results, monkeypatch):
    """Which tiers were measured; `stop` is the one in which the process is killed."""
    state = {"measured": [], "stop": None}

    def watched(tier, plain):
        def measure(*arguments, **keywords):
            if state["stop"] == tier:
                raise Killed
            state["measured"].append(tier)
            if tier not in results:
                results[tier] = plain(*arguments, **keywords)
            return results[tier]

        return measure

    for tier in TIERS:
        name = f"tier_{tier.lower()}"
        monkeypatch.setattr(assess, name, watched(tier, getattr(assess, name)))
    small = {"POLICIES": 4, "SHARES": (0.0, 0.5), "HORIZON": 5, "EPISODES": 4, "PLANNED": 2, "CANDIDATES": 2}
    for name, value in small.items():
        monkeypatch.setattr(policies, name, value)
    return state


def evaluate(run, out, *more):
    words = {"tier": "C", "states": "4", "frames": "30", "device": "cpu", "out": str(out)} | dict(w.split("=") for w in more)
    return cli.main(["evaluate", str(run), *(f"{key}={value}" for key, value in words.items())])


def killed_in(tier, run, out, counted, *more):
    counted["stop"] = tier
    with pytest.raises(Killed):
        evaluate(run, out, *more)
    counted.update(stop=None, measured=[])


def without_times(folder):
    told, rows = files.read(folder)
    for entry in told["metrics"]:
        entry.pop("seconds")
    return told, {name: x.tolist() for name, x in rows.items()}


def test_the_same_command_goes_on_after_the_last_tier(run, counted, tmp_path):
    assert evaluate(run, tmp_path / "whole") == 0 and counted["measured"] == list(TIERS)
    for tier, rest in (("B", ["B", "C"]), ("C", ["C"])):
        out = tmp_path / tier
        killed_in(tier, run, out, counted)
        assert (out / partial.NAME).is_dir() and not (out / "report.json").exists()
        assert evaluate(run, out) == 0 and counted["measured"] == rest
        assert not (out / partial.NAME).exists()
        assert without_times(out) == without_times(tmp_path / "whole")
        pages = [(folder / "report.html").read_text().count("<svg") for folder in (out, tmp_path / "whole")]
        assert pages[0] == pages[1] > 3  # the pictures are there as well


@pytest.mark.parametrize("more", [["frames=40"], ["seed=1"], ["states=5"], ["budget=7"], ["tier=B"], ["policies=RUN"]])
def test_other_settings_measure_anew(run, counted, tmp_path, more):
    killed_in("B", run, tmp_path / "e", counted)
    assert evaluate(run, tmp_path / "e", *(word.replace("RUN", str(run)) for word in more)) == 0
    assert counted["measured"][0] == "A" and not (tmp_path / "e" / partial.NAME).exists()


def test_other_weights_data_and_code_measure_anew(run, counted, tmp_path, monkeypatch):
    killed_in("C", run, tmp_path / "e", counted)
    monkeypatch.setattr(partial, "_code", lambda: "a newer version")
    killed_in("C", run, tmp_path / "e", counted)
    monkeypatch.undo()
    assert len(list((tmp_path / "e" / partial.NAME).iterdir())) == 4


def test_numbers_that_somebody_sent_along_are_not_taken(monkeypatch, tmp_path):
    """The name of a kept tier follows from a secret of the user: each has their own."""
    keys = []
    for user in ("one", "two", "one"):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / user))
        keys.append(partial.key_of(weights="w"))
    assert keys[0] == keys[2] != keys[1]


def test_a_damaged_tier_is_measured_again(run, counted, tmp_path):
    killed_in("B", run, tmp_path / "e", counted)
    (file,) = (tmp_path / "e" / partial.NAME).glob("*-A.npz")
    content = file.read_bytes()
    for wrong in (b"", b"PK", content[: len(content) // 2], content[:-40], content[:300] + bytes(99) + content[399:]):
        file.write_bytes(wrong)
        killed_in("B", run, tmp_path / "e", counted)
        assert len(file.read_bytes()) == pytest.approx(len(content), rel=0.01)  # as before, but for times
    np.savez(file, tree=np.array([{}], object))
    killed_in("B", run, tmp_path / "e", counted)
    assert evaluate(run, tmp_path / "e") == 0


def test_a_folder_of_others_is_still_refused(run, tmp_path, capsys):
    (tmp_path / "e" / partial.NAME).mkdir(parents=True)
    (tmp_path / "e" / "mine.txt").write_text("")
    assert evaluate(run, tmp_path / "e") == 2 and "holds something else" in capsys.readouterr().err
    assert (tmp_path / "e" / "mine.txt").exists()


def test_what_is_kept_is_what_was_measured(tmp_path):
    strip = Branching("words", 1.5, np.zeros((1, 2), np.uint8), [np.ones(2)], np.array([0.5]), np.array([np.nan]), None)
    metric = Metric("code_length.bits", "Bits", np.float64(1.0), ci=(np.float32(0.0), 2.0), values=np.arange(3.0),
                    clusters=np.arange(3))
    odd = {"films": [strip], 3: (None, True, float("inf"), "x"), "flags": np.array([True]), "f": np.ones((2, 3)).T}
    value = ([metric], odd)
    found, seconds = partial.kept(tmp_path, "key", "A", lambda: value)
    assert found is value
    again, same = partial.kept(tmp_path, "key", "A", lambda: pytest.fail("it was kept"))
    assert same == seconds and repr(again) == repr(value) and [type(x) for x in again] == [list, dict]
    assert json.loads(json.dumps(again[0][0].value)) == 1.0
    shutil.rmtree(tmp_path / partial.NAME)
    assert partial.kept(tmp_path, "key", "A", lambda: (object(),))[0]  # what cannot be kept is measured all the same
    assert not (tmp_path / partial.NAME).exists()
