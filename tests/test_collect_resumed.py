"""Collecting that was interrupted, games that cannot be repeated or never end, episodes that were lost: work goes on."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from test_data import equal, offsets, read

from tokenworld import files
from tokenworld.cli import main as cli
from tokenworld.cli.verbs import collect as collect_verb
from tokenworld.cli.verbs import data as data_verb
from tokenworld.cli.verbs import train as train_verb
from tokenworld.config import compose, schema, values
from tokenworld.data import collection
from tokenworld.data.collect import Collector
from tokenworld.data.describe import describe
from tokenworld.data.episodes import EpisodeWriter, read_numbered
from tokenworld.errors import UserError
from tokenworld.training import build, resume

CONTENT = "frames 4 x 10 x 10 (channels, height, width), 3 actions (NOOP, LEFT, RIGHT)"
ROOT = Path(__file__).resolve().parent.parent


def composed(*words):
    spec = compose.compose(["overlay=debug", "device=cpu", *words])
    schema.check(spec.cfg)
    return spec


def collect(folder: Path, *words: str) -> dict:
    return collect_verb.run(composed(f"out={folder}", *words), steps=1200)


def interrupt(monkeypatch, folder: Path, after: int, error: BaseException, *words: str) -> None:
    """A collection that ends in `error` after so many vector steps."""
    step, left = Collector._step, [after]

    def failing(self, action, emit):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return step(self, action, emit)

    with monkeypatch.context() as patch, pytest.raises(type(error)):
        patch.setattr(Collector, "_step", failing)
        collect(folder, *words)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "data"
    collect(folder)
    return folder


# ----------------------------------------------------------------------------------------------------------- interrupted


def test_an_interrupted_collection_is_continued_without_repeating_games(whole, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "data"
    interrupt(monkeypatch, folder, 100, KeyboardInterrupt())
    assert "the same command continues it" in capsys.readouterr().err
    kept, _ = read(folder)
    held = sum(one.steps for one in kept)
    assert 300 < held < 1200
    assert describe(folder)["problems"][0].startswith(f"unfinished: {held:,} of 1,200 training steps and 0 of 1,000 test steps")
    with open(folder / "episodes-00000.bin", "ab") as file:
        file.write(b"TWEP\x01\x00\x00\x00half")  # killed while it wrote
    interrupt(monkeypatch, folder, 200, RuntimeError())  # in the test split
    assert "are kept; the remaining games differ" in capsys.readouterr().err
    collect(folder)
    assert re.search(rf"collected 1\d+ training and 1\d+ test steps of MinAtar/Breakout-v1 \({re.escape(CONTENT)}\): ",
                     capsys.readouterr().err)  # fmt: skip
    info = describe(folder)
    assert info["problems"] == [] and info["damage"] == [] and info["seed"] == 0
    assert info["splits"]["train"]["steps"] >= 1200 and info["splits"]["test"]["steps"] >= 1000
    episodes, reference = read(folder)[0], read(whole)[0]
    assert all(equal(a, b) for a, b in zip(episodes, kept, strict=False)), "what was there is kept"
    assert all(equal(a, b) for a, b in zip(kept, reference, strict=False)), "and is what an uninterrupted one plays first"
    played = Counter(one.action.tobytes() + one.obs.tobytes() for one in episodes if one.steps > 8)
    assert max(played.values()) == 1, "no game comes twice"
    assert [number for number, _ in read_numbered(folder)] == list(range(len(episodes)))


def test_a_killed_process_leaves_what_the_same_command_continues(tmp_path):
    words = ["collect", "overlay=debug", "steps=3000000", f"out={tmp_path / 'data'}"]
    process = subprocess.Popen([sys.executable, "-m", "tokenworld.cli", *words], cwd=ROOT, stderr=subprocess.DEVNULL)
    shard = tmp_path / "data" / "episodes-00000.bin"
    for _ in range(600):
        time.sleep(0.1)
        if shard.exists() and shard.stat().st_size > 20_000:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    held = describe(tmp_path / "data")
    assert held["episodes"] > 10 and held["problems"][0].startswith("unfinished: ")
    spec = composed(f"out={tmp_path / 'data'}")
    command = values.flatten({"env": spec.parts["env"], "seed": 0, "steps": 3000000})
    assert collection.check_folder(tmp_path / "data", command).attempts == 1
    with pytest.raises(UserError, match="steps=3000000, got 1200"):
        collect(tmp_path / "data")


def test_a_finished_collection_is_left_as_it_is(whole, tmp_path, capsys):
    """Killed as it ended, or the command given twice; and what has been lost of it since is told."""
    folder = tmp_path / "data"
    shutil.copytree(whole, folder)
    (folder / ".lock").touch()
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    assert collect(folder) == {"train": 1200, "test": 1000}
    said = capsys.readouterr().err
    assert "already collected by the same command: 12" in said and f"({CONTENT}): {folder}" in said
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"} == before
    shard = folder / "episodes-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1000])
    with pytest.raises(UserError, match="is damaged .incomplete: "):
        collect(folder)


def test_data_info_says_intact_of_nothing_else(whole, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(whole, folder)
    data_verb.run(str(folder))
    assert capsys.readouterr().out.rstrip().endswith("files, intact")
    plan = json.loads((folder / "collect.json").read_text())
    (folder / "collect.json").write_text(json.dumps(plan | {"finished": None}))
    data_verb.run(str(folder))
    last = capsys.readouterr().out.splitlines()[-1]
    assert "files, unfinished: " in last and "intact" not in last


def test_other_folders_are_refused_and_nothing_is_left_in_them(whole, tmp_path, monkeypatch):
    before = sorted(path.name for path in whole.iterdir())
    with pytest.raises(UserError, match="exists and is not empty, no file was overwritten"):
        collect(whole, "seed=1")
    assert sorted(path.name for path in whole.iterdir()) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for name in ("mine", "file"):
        with pytest.raises(UserError, match="exists and is not empty, no file was overwritten"):
            collect(tmp_path / name)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    interrupt(monkeypatch, tmp_path / "data", 50, RuntimeError())
    for word, said in (("seed=3", "seed=0, got 3"), ("env.sticky=0.2", "env.sticky=0.1, got 0.2")):
        with pytest.raises(UserError, match=said):
            collect(tmp_path / "data", word)
    with files.locking(tmp_path / "data"), pytest.raises(UserError, match="is being written by another process"):
        collect(tmp_path / "data")
    with pytest.raises(UserError, match="is not a MinAtar game|did you mean"):
        collect(tmp_path / "none", "env.id=MinAtar/Nothing-v1")
    assert not (tmp_path / "none").exists()


KIND = '"format": "tokenworld-collection", "version": 1'


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"format": "x"}', f"{{{KIND}}}", f'{{{KIND}, "command": {{}}, "wanted": {{"train": "1"}}, "attempts": -1}}'],
)
def test_a_damaged_plan_is_one_sentence(whole, tmp_path, content, capsys):
    shutil.copytree(whole, tmp_path / "data")
    (tmp_path / "data" / "collect.json").write_text(content)
    assert cli.main(["data", "info", str(tmp_path / "data")]) == 0
    assert "collect.json" in capsys.readouterr().out
    with pytest.raises(UserError, match="collect.json"):
        collect(tmp_path / "data")


def test_a_finished_collection_that_lost_its_end_is_incomplete(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "data")
    shard = tmp_path / "data" / "episodes-00000.bin"
    os.truncate(shard, offsets(shard)[-3])  # at the border of two records: nothing is damaged
    info = describe(tmp_path / "data")
    there = info["episodes"]
    assert info["damage"] == [] and info["problems"][0].startswith(f"incomplete: {there:,} of {there + 3:,} episodes")
    shard.unlink()
    data_verb.run(str(tmp_path / "data"))
    assert "incomplete: 0 of " in capsys.readouterr().out
    (tmp_path / "data" / "collect.json").unlink()  # an older folder, or one of another program
    assert describe(tmp_path / "data")["problems"] == []


def test_any_seed_collects(tmp_path):
    for seed in (2147, 2**32, 1764180000000000000, 2**64 - 1):
        collect_verb.run(composed(f"out={tmp_path / str(seed)}", f"seed={seed}"), steps=20)
        assert describe(tmp_path / str(seed))["problems"] == []


# -------------------------------------------------------------------------------------------------------------- training


class Own(gymnasium.Env):
    """Ends at times that no seed decides."""

    observation_space = gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((8, 8, 3), np.uint8), {}

    def step(self, action):
        return np.zeros((8, 8, 3), np.uint8), 0.0, bool(np.random.default_rng().random() < 0.2), False, {}


class Endless(Own):
    def step(self, action):
        return self.np_random.integers(0, 256, (8, 8, 3), np.uint8), 0.0, False, False, {}


for _name, _game in (("Own-v0", Own), ("Endless-v0", Endless)):
    gymnasium.register(f"tokenworld-test/{_name}", _game)


def gym_words(game: str) -> list[str]:
    return ["env._target_=tokenworld.envs.gym.make", "~env.sticky", f"env.id=tokenworld-test/{game}-v0"]


def test_games_that_no_seed_repeats_do_not_stop_a_resumed_run(tmp_path, capsys):
    out = tmp_path / "run"
    train_verb.run(composed(*gym_words("Own"), f"out={out}", "train.loop.epochs=2", "train.policy.start=9"))
    episodes = describe(out / "replay")["episodes"]
    train_verb.resume(str(out), {}, {"train.loop.epochs": 3})
    assert "the games in progress are dropped and new ones begin" in capsys.readouterr().err
    info = describe(out / "replay")
    assert info["episodes"] > episodes and info["problems"] == [] and info["damage"] == []
    train_verb.resume(str(out), {}, {"train.loop.epochs": 4})


def test_pythons_random_is_seeded(tmp_path):
    import random

    drawn = []
    for seed in (1, 1, 2):
        build.build_run(tmp_path, composed(f"seed={seed}"), phases=("collect",))
        drawn.append(random.random())
    assert drawn[0] == drawn[1] != drawn[2]


def test_games_that_never_end_enter_as_truncated_parts_and_resume_bit_for_bit(tmp_path, capsys, monkeypatch):
    words = [*gym_words("Endless"), "train.collect.cut=null", "train.collect.held_out=20"]
    train_verb.run(composed(*words, f"out={tmp_path / 'whole'}"))
    said = capsys.readouterr().err
    line = "no episode ended in 80 steps of 2 games: they are stored as truncated parts; set train.collect.cut=40"
    assert said.count(line) == 1
    parts = read(tmp_path / "whole" / "replay")[0]
    # 40 steps each; then 20 further ones an epoch: again after two epochs, when they have 40
    assert [(one.steps, one.split, bool(one.truncated[-1])) for one in parts] == [
        (40, "train", True), (40, "test", True), (40, "train", True), (40, "train", True)
    ]  # fmt: skip
    train_verb.run(composed(*words, f"out={tmp_path / 'half'}", "train.loop.epochs=2"))
    train_verb.resume(str(tmp_path / "half"), {}, {"train.loop.epochs": 3})
    again = read(tmp_path / "half" / "replay")[0]
    assert len(again) == len(parts) and all(equal(a, b) for a, b in zip(again, parts, strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    train_verb.run(composed(f"out={out}", "train.loop.epochs=2", "train.collect.held_out=3"))
    return out


def lose_a_byte(folder: Path) -> None:
    shard = folder / "replay" / "episodes-00000.bin"
    content = bytearray(shard.read_bytes())
    content[offsets(shard)[1] + 40] ^= 1
    shard.write_bytes(content)


def lose_the_end(folder: Path) -> None:
    shard = folder / "replay" / "episodes-00000.bin"
    os.truncate(shard, offsets(shard)[-1] + 30)


def lose_the_shard(folder: Path) -> None:
    (folder / "replay" / "episodes-00000.bin").unlink()


def lose_the_meta(folder: Path) -> None:
    (folder / "replay" / "meta.json").write_text("{")


@pytest.mark.parametrize("lose", [lose_a_byte, lose_the_end, lose_the_shard, lose_the_meta])
def test_lost_episodes_do_not_stop_a_run_whose_weights_are_whole(lose, run, tmp_path, capsys):
    out = tmp_path / "run"
    shutil.copytree(run, out)
    before = describe(out / "replay")["episodes"]
    lose(out)
    opened = resume.open_run(str(out), {})
    assert opened.count["dynamics"] and "skipped: " in capsys.readouterr().err or lose is lose_the_shard
    train_verb.resume(str(out), {}, {"train.loop.epochs": 3})
    said = capsys.readouterr().err
    assert ("the frames are encoded again" in said) == (lose is not lose_the_meta) and "epoch 3/3" in said
    info = describe(out / "replay")
    assert info["episodes"] >= (1 if lose is lose_the_shard else before)
    assert info["torn"] == 0 and info["corrupt"] == (lose is lose_a_byte)
    numbers = [number for number, _ in read_numbered(out / "replay", on_corrupt=lambda damage: None)]
    assert len(set(numbers)) == len(numbers), "no number is given twice"
    assert json.loads((out / "replay" / "meta.json").read_text()) == json.loads((run / "replay" / "meta.json").read_text())


def test_a_position_that_is_no_longer_there_is_refused_unless_it_may_be_said(run, tmp_path):
    shutil.copytree(run / "replay", tmp_path / "replay")
    said, position = [], {"shard": 0, "offset": 10**9, "episodes": 77}
    with pytest.raises(UserError, match="expected at least 1000000000: restore"):
        EpisodeWriter.open_at(tmp_path / "replay", position)
    with EpisodeWriter.open_at(tmp_path / "replay", position, say=said.append) as writer:
        assert writer.episodes == 77 and "its last episodes are left out" in said[0]
