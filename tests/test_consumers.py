"""Everything that uses a trained world model works with each family of them; the family's other recipes are slow tests."""

import json
import shutil

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tokenworld import Agent, dream_env
from tokenworld.cli import main as cli
from tokenworld.play.future import DreamSettings
from tokenworld.play.session import Session
from tokenworld.play.starts import Start
from tokenworld.training.resume import open_run

RECIPES = ["quickstart", "storm", "dreamer_v3", "world_models"]
OTHERS = ["transdreamer", "twm", "dreamer_v2"]


@pytest.fixture(scope="module", params=[*RECIPES, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def folder(request, tmp_path_factory):
    """A run of a few updates."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    words = [f"recipe={request.param}", "overlay=debug", "seed=3", "device=cpu", f"out={out}", "train.loop.epochs=2"]
    assert cli.main(["train", *words, "train.evaluate.frames=0", "train.collect.first_steps=200"]) == 0
    return out


def test_commands_and_environments(folder, tmp_path, capsys):
    gif, model = tmp_path / "a.gif", tmp_path / "model"
    for words in (["score", folder, "episodes=2"], ["evaluate", folder, "budget=20", "frames=100", f"out={tmp_path / 'e'}"],
                  ["dream", folder, f"out={gif}"], ["export", folder, f"out={model}"]):  # fmt: skip
        assert cli.main([*map(str, words)]) == 0, capsys.readouterr().err
    assert gif.stat().st_size > 0 and json.loads((tmp_path / "e" / "report.json").read_text())["metrics"]
    check_env(gymnasium.make("tokenworld/Dream-v0", model=model, horizon=6).unwrapped, skip_render_check=True)
    dreams = dream_env.load(model, num_envs=3, horizon=3)
    seen = [dreams.reset(seed=1)[0]]
    for _ in range(8):  # each begins again twice
        seen.append(dreams.step(np.zeros(3, np.int64))[0])
    again = [dreams.reset(seed=1)[0], *(dreams.step(np.zeros(3, np.int64))[0] for _ in range(8))]
    assert all(np.array_equal(a, b) for a, b in zip(seen, again, strict=True))
    assert Agent.from_pretrained(model).act(seen[-1][0]) in range(18)


def test_a_step_of_play(folder):
    run = open_run(str(folder), {})
    start = Start("a start", run.replay.sample(1, 3, np.random.default_rng(0), ends="acted")[0])
    names = [f"action {a}" for a in range(run.world_model.shapes.actions.choices[0])]
    session = Session(DreamSettings(run.world_model, [start], names, run.policy, name="a run"), 0, 7)
    for action in (0, 1, "policy"):
        if not session.first.ended:
            session.step(action)
    last = session.first.moments[-1]
    assert last.frame.shape == run.world_model.shapes.frame and last.action in range(18)
    assert last.surprise is None or last.surprise.shape == run.world_model.shapes.grid


def test_imagination_is_timed_against_another_run(folder, tmp_path, capsys):
    other = shutil.copytree(folder, tmp_path / "other")
    assert cli.main(["bench", "imagine", str(folder), str(other), "repeats=1", "--json", "-"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["runs"]) == {str(folder), str(other)} and result["against"] == str(other)
    low, middle, high = result["ratios"][str(folder)]["with the policy"]
    assert 0 < low <= middle <= high
    few = "at least two runs"
    for words, said in (([folder], few), ([folder, folder], few), ([folder, other, "seed=1"], "seed")):
        assert cli.main(["bench", "imagine", *map(str, words)]) == 2
        assert said in capsys.readouterr().err


def test_bench_leaves_out_phases_that_a_recipe_lacks(capsys):
    words = ["recipe=storm", "overlay=debug", "repeats=1", "--json", "-"]
    assert cli.main(["bench", "loop", *words]) == 0
    names = [row["name"] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert [name.split()[0] for name in names] == ["play", "dynamics", "policy", "the"]
    for what, lacks in (("tokenizer", []), ("imagine", ["~policy", "~train.policy"])):
        assert cli.main(["bench", what, *words, *lacks]) == 2
        assert "which storm lacks" in capsys.readouterr().err
