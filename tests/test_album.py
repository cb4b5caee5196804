"""A training can be looked at while it lasts, at a small share of its time, and learns the same as without pictures."""

import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from test_recipes import assert_same_weights

from tokenworld import run_pictures
from tokenworld.cli import main as cli
from tokenworld.errors import UserError
from tokenworld.storage import checkpoint
from tokenworld.training.phases import evaluate

WORDS = ["train", "overlay=debug", "device=cpu", "seed=3", "train.collect.held_out=2", "train.evaluate.every=1",
         "train.loop.epochs=4"]  # fmt: skip


def lines(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "wall"} for row in rows]


@pytest.mark.parametrize("recipe", ["quickstart", "known_world"])
def test_pictures_change_nothing_of_what_is_learned(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "EVALUATION_TIME_SHARE", 1e6)  # what is measured must not depend on the time that there is
    monkeypatch.setattr(run_pictures, "SHARE", 1e6)
    seen, drawn, blank = [], tmp_path / "drawn", tmp_path / "blank"
    plain = run_pictures.save_learning_curve
    monkeypatch.setattr(run_pictures, "save_learning_curve", lambda run: (seen.append(run.epoch), plain(run)))
    assert cli.main([*WORDS, f"recipe={recipe}", f"out={drawn}"]) == 0
    assert seen == [1, 2, 4], "the curve is drawn after each evaluation: the policy is trained from the second epoch on"
    assert cli.main([*WORDS, f"recipe={recipe}", "train.evaluate.pictures=0", f"out={blank}"]) == 0
    strips = sorted(path.name for path in (drawn / "pictures").iterdir())
    assert strips == ["epoch_000001.png", "epoch_000002.png", "epoch_000003.png"], "the last one is dream.png"
    assert not (blank / "pictures").exists() and (blank / "dream.png").exists()
    for name in strips:
        assert Image.open(drawn / "pictures" / name).size[1] > 200 and (drawn / "pictures" / name).stat().st_size < 500_000
    assert_same_weights(drawn, blank)
    assert lines(drawn) == lines(blank)
    states = [torch.load(out / "checkpoint" / checkpoint.STATE, weights_only=True) for out in (drawn, blank)]
    assert {"pictures", "learning_curve"} <= states[0]["seconds"].keys()
    ranks = [state["ranks"][0] for state in states]
    assert repr(ranks[0]["rng"]) == repr(ranks[1]["rng"]) and repr(ranks[0]["code_cache"]) == repr(ranks[1]["code_cache"])
    summary = json.loads((drawn / "summary.json").read_text())
    assert summary["wall_seconds"]["pictures"] > 0


def test_a_short_training_spends_nothing_on_pictures(tmp_path):
    assert cli.main([*WORDS, f"out={tmp_path / 'run'}"]) == 0
    assert not (tmp_path / "run" / "pictures").exists()


def test_pictures_take_their_share_of_the_time_and_no_more(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run_pictures.time, "monotonic", lambda: now[0])
    run, drawn = SimpleNamespace(seconds={}, log=SimpleNamespace(wall=0.0)), 0
    for now[0] in range(0, 3600, 10):  # an evaluation every ten seconds, a picture takes two
        run.log.wall = now[0]
        with run_pictures._within_budget(run, "pictures", run_pictures.STRIP) as is_afforded:
            if is_afforded:
                drawn += 1
                now[0] += 2.0
    assert run.seconds["pictures"] == 2.0 * drawn <= run_pictures.SHARE * 3600 + 2.0 and drawn > 10


def test_few_strips_stay_and_they_are_spread_over_the_training(tmp_path):
    (tmp_path / "epoch_of_mine.png").write_bytes(b"")
    for epoch in range(1, 300):
        (tmp_path / f"epoch_{epoch:06d}.png").write_bytes(b"")
        run_pictures.thin_out(tmp_path)
    (tmp_path / "epoch_of_mine.png").unlink()  # no strip: it was left alone
    left = sorted(int(path.stem.removeprefix("epoch_")) for path in tmp_path.iterdir())
    assert len(left) == run_pictures.MOST and left[0] == 1 and left[-1] == 299
    assert max(b - a for a, b in zip(left, left[1:], strict=False)) < 40, left


def test_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "pictures").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"):
        run_pictures.update(SimpleNamespace(out=tmp_path), 3)


def test_the_key_is_checked(tmp_path, capsys):
    assert cli.main([*WORDS, "train.evaluate.pictures=-1", f"out={tmp_path / 'run'}"]) == 2
    assert "train.evaluate.pictures must be at least 0" in capsys.readouterr().err
