"""Runs open wherever they and their episodes are now: moved folders, another machine, names of any kind; and go on longer."""

import json
import shlex
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import each_recipe
from safetensors.torch import load_file

from tokenworld.cli import main as cli
from tokenworld.config import compose, saved, schema
from tokenworld.errors import UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A whole run, and one phase after the other on collected episodes."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in (
            "train overlay=debug train.collect.held_out=3 out=run",
            "collect overlay=debug steps=100 out=data",
            "train tokenizer overlay=debug data=data out=tok",
            "train dynamics overlay=debug load.tokenizer=tok out=dyn",
            "train policy overlay=debug load.world_model=dyn out=pol",
        ):
            assert cli.main(words.split()) == 0, words
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    """A copy of it elsewhere: the episodes that the runs name are those of `trained`."""
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def works(words: str) -> None:
    assert cli.main(shlex.split(words)) == 0, words


def refused(capsys, words: str) -> str:
    capsys.readouterr()
    assert cli.main(shlex.split(words)) == 2, words
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("tokenworld: "), said
    return said


# ----------------------------------------------------------------------------------------------------------- moved folders


@pytest.fixture
def moved(here, monkeypatch):
    """The episodes that dyn and pol name are gone; they lie in `elsewhere` now."""
    for run in ("tok", "dyn", "pol"):
        path = here / run / "config.yaml"
        saved.save(path, replace(saved.load(path), data=str(here / "data")))
    shutil.move("data", "elsewhere")
    return here


@pytest.mark.parametrize(
    "words",
    [
        "score pol episodes=2", "export dyn", "export pol out=model", "evaluate dyn frames=60 data=elsewhere",
        "score dyn policy=shooting policy.horizon=2 policy.samples=4 episodes=1", "dream dyn data=elsewhere steps=4",
        "train policy overlay=debug load.world_model=dyn data=elsewhere out=pol2",
    ],
)  # fmt: skip
def test_moved_episodes_stop_nothing_that_needs_none(moved, words):
    works(words)


@pytest.mark.parametrize("run", ["tok", "dyn", "pol"])
def test_a_resumed_run_is_told_once_where_its_episodes_are(moved, capsys, run):
    said = refused(capsys, f"train --resume {run}")
    assert f"tokenworld train --resume {run} data=DIR" in said and str(moved / "data") in said
    works(f"train --resume {run} data=elsewhere")
    works(f"train --resume {run}")
    assert saved.load(run).data == str(moved / "elsewhere")


def test_what_needs_episodes_asks_for_them(moved, capsys):
    assert "add data=DIR" in refused(capsys, "dream dyn")
    assert "add data=DIR" in refused(capsys, "train policy overlay=debug load.world_model=dyn out=x")
    assert "the folder does not exist" in refused(capsys, "dream dyn data=nowhere")


# ----------------------------------------------------------------------------------------------------------------- devices


@pytest.fixture
def from_a_gpu(here):
    for run in ("run", "dyn"):
        other = "mps" if torch.cuda.is_available() else "cuda"
        saved.save(here / run / "config.yaml", replace(saved.load(run), device=other))
    return here


@pytest.mark.parametrize("words", ["export run", "export dyn device=cpu", "score run episodes=2", "dream dyn steps=3"])
def test_a_run_of_another_device_opens_here(from_a_gpu, words):
    works(words)


def test_resuming_on_another_device_is_asked_for(from_a_gpu, capsys):
    assert "tokenworld train --resume run device=cpu" in refused(capsys, "train --resume run")
    works("train --resume run device=cpu")
    assert "expected one of cpu" in refused(capsys, "score run device=mps")


# ------------------------------------------------------------------------------------------------------------------- names


NAMES = ["lr=0.1", "seed=3", "epoch=10-step=5000", "é#(x),y", "-d", "~t", "a b", "{x}", "[1]", "it's $HOME"]


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_may_have_any_name(here, name):
    shutil.copytree("run", f"{name}/run")
    shutil.copytree("run", f"x/{name}")
    (here / "y").mkdir()
    quoted, inner = shlex.quote(f"{name}/run"), shlex.quote(f"x/{name}")
    works(f"score {quoted} episodes=1")
    works(f"score {inner} episodes=1")
    works(f"train --resume {quoted}")
    works(f"compare {quoted}/evaluation {inner}/evaluation")
    shutil.copy("data/meta.json", f"{name}/meta.json")
    works(f"data info {shlex.quote(name)}")
    (here / name / f"my {name}.yaml").write_text("defaults: [quickstart, _self_]\nbackbone: {layers: 3}\n")
    (here / name / "over.yaml").write_text("backbone: {layers: 3}\n")
    for word in (f"recipe={name}/my {name}.yaml", f"overlay={name}/over.yaml"):
        cfg = compose.compose([word]).cfg
        schema.check(cfg)
        assert cfg["backbone"]["layers"] == 3


def test_a_folder_that_is_called_like_a_setting_is_one_where_a_run_is_missing(here, capsys):
    shutil.copytree("run", "seed=3")
    works("score seed=3 episodes=1")
    works("score run seed=3 episodes=1")
    works("score ./seed=3 seed=3 episodes=1")
    assert "one run" in refused(capsys, "score episodes=1 seed=4")


def test_policies_are_split_where_no_path_has_the_comma(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    assert compose.split_paths("a,b,c") == ["a,b", "c"] and compose.split_paths("c,d") == ["c", "d"]
    assert compose.split_paths("c,a,b") == ["c", "a,b"] and compose.split_paths("") == []


# ---------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    "words",
    ["train seed=1 seed=2", "train recipe=iris recipe=quickstart", "train env.id=MinAtar/Freeway-v1 env.id=ALE/Pong-v5",
     "score run episodes=1 episodes=2", "show ~env.sticky ~env.sticky", "compare a b metrics=M1 metrics=M2"],
)  # fmt: skip
def test_a_key_that_is_given_twice_is_refused(here, capsys, words):
    assert "given twice" in refused(capsys, words)


def test_overlays_are_merged_in_their_order(tmp_path):
    for name, layers in (("a", 3), ("b", 5)):
        (tmp_path / f"{name}.yaml").write_text(f"backbone: {{layers: {layers}}}\n" + ("seeds: 1\n" if name == "c" else ""))
    a, b = (f"overlay={tmp_path}/{name}.yaml" for name in "ab")
    spec = compose.compose([a, "overlay=debug", b])
    assert spec.parts["backbone"]["layers"] == 5 and spec.parts["backbone"]["dim"] == 32
    assert compose.compose([b, a]).cfg["backbone"]["layers"] == 3
    assert compose.compose([f"overlay={spec.overlay}"]).cfg == spec.cfg
    with pytest.raises(UserError, match="no overlay 'debgu'"):
        compose.compose([a, "overlay=debgu"])


@pytest.mark.parametrize("recipe", ["quickstart", "storm", "dreamer_v3", "iris", "world_models"])
def test_the_known_world_is_an_overlay_of_any_recipe(recipe):
    cfg = compose.compose([f"recipe={recipe}", "overlay=known_world"]).cfg
    schema.check(cfg)
    assert cfg["env"] == {"_target_": "tokenworld.envs.known_world.make", "id": "KnownWorld-v0", "max_steps": 40}
    assert ("patch" in cfg["tokenizer"]) == (recipe == "quickstart") and cfg["train"]["dynamics"]["length"] == 24


def test_an_overlay_may_change_the_environment(tmp_path):
    (tmp_path / "a.yaml").write_text("env: {id: ALE/Pong-v5, frameskip: 2}\n")
    cfg = compose.compose([f"overlay={tmp_path}/a.yaml"]).cfg
    schema.check(cfg)
    assert cfg["env"] == {"_target_": "tokenworld.envs.atari.make", "id": "ALE/Pong-v5", "sticky": 0.1, "frameskip": 2}


@pytest.mark.parametrize("recipe", each_recipe())
@pytest.mark.parametrize("id", ["MinAtar/Asterix-v1", "ALE/Pong-v5", "CartPole-v1", "somewhere:Mine-v0", "KnownWorld-v0"])
def test_the_id_says_how_an_environment_is_made(recipe, id):
    cfg = compose.compose([f"recipe={recipe}", f"env.id={id}"]).cfg
    schema.check(cfg)
    if id.startswith("ALE") and recipe.startswith("pendulum"):
        pytest.skip("a recipe of Gymnasium's environments makes Atari games by Gymnasium, too")
    maker = {"MinAtar": "minatar", "ALE": "atari", "KnownWorld": "known_world"}.get(id.replace("-v0", "").split("/")[0], "gym")
    assert cfg["env"]["_target_"] == f"tokenworld.envs.{maker}.make" and cfg["env"]["id"] == id


def test_the_users_own_choice_of_maker_and_keys_stays(capsys):
    gym = "tokenworld.envs.gym.make"
    assert compose.compose([f"env._target_={gym}", "env.id=ALE/Pong-v5"]).cfg["env"] == {"_target_": gym, "id": "ALE/Pong-v5"}
    cfg = compose.compose(["env.id=CartPole-v1", "env.sticky=0.2"]).cfg
    with pytest.raises(UserError, match="unknown key env.sticky"):
        schema.check(cfg)
    assert "sticky" not in compose.compose(["env.id=CartPole-v1", "~env.sticky"]).cfg["env"]


@pytest.mark.parametrize("word", ["train.evaluate.env={life_loss_ends: false}", "train.evaluate.env={_target_: a.b}"])
def test_the_first_evaluation_cannot_fail_for_a_setting(capsys, word):
    assert "train.evaluate.env" in refused(capsys, f"train '{word}'")


def test_show_prints_a_recipe_to_start_from(here, capsys):
    works("show recipe=iris overlay=debug env.id=ALE/Pong-v5 --yaml")
    (here / "mine.yaml").write_text(capsys.readouterr().out)
    again = compose.compose(["recipe=mine.yaml"]).cfg
    assert again == compose.compose(["recipe=iris", "overlay=debug", "env.id=ALE/Pong-v5"]).cfg


# ---------------------------------------------------------------------------------------------------------------- going on


def epochs_of(run):
    return [json.loads(line)["epoch"] for line in open(f"{run}/metrics.jsonl") if '"collect"' in line]


def test_a_finished_run_trains_on(here, capsys):
    works("train --resume run train.loop.epochs=5 train.loop.checkpoint_every=2")
    assert epochs_of("run") == [0, 1, 2, 3, 4]
    spec = saved.load("run")
    assert spec.train["loop"]["epochs"] == 5 and "train.loop.epochs" in spec.given
    assert "has trained 5 epochs" in refused(capsys, "train --resume run train.loop.epochs=4")
    assert saved.load("run").cfg["train"]["loop"]["epochs"] == 5, "a refused change is not kept"


def test_a_longer_run_is_what_it_would_have_been(here):
    """In MinAtar nothing is decided by the last epoch, so it ends bit for bit like one that was planned longer."""
    works("train overlay=debug train.collect.held_out=3 train.loop.epochs=5 out=planned")
    works("train --resume run train.loop.epochs=5")
    for name in ("tokenizer", "dynamics", "policy"):
        one, other = (load_file(f"{run}/checkpoint/{name}.safetensors") for run in ("planned", "run"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one), name


def test_a_dynamics_is_continued(here):
    works("train dynamics overlay=debug load.world_model=dyn out=dyn2")
    one, other = (load_file(f"{run}/checkpoint/dynamics.safetensors") for run in ("dyn", "dyn2"))
    assert one.keys() == other.keys() and any(not torch.equal(one[key], other[key]) for key in one)
    tokens = [load_file(f"{run}/checkpoint/tokenizer.safetensors") for run in ("dyn", "dyn2")]
    assert all(torch.equal(tokens[0][key], tokens[1][key]) for key in tokens[0])


def test_a_dynamics_is_moved_to_another_game_where_its_shapes_fit(here, capsys):
    works("collect overlay=debug env.id=MinAtar/Breakout-v0 steps=60 out=six")
    said = refused(capsys, "train dynamics overlay=debug load.world_model=dyn data=six out=x")
    assert "dyn was trained on MinAtar/Breakout-v1 and does not fit MinAtar/Breakout-v0" in said and "6 actions" in said
    works("collect overlay=debug env.sticky=0.3 steps=60 out=sticky")
    works("train dynamics overlay=debug load.world_model=dyn data=sticky out=y")
    works("train overlay=debug load.world_model=run env.sticky=0.3 out=z")
    assert saved.load("z").cfg["env"]["sticky"] == 0.3


# ------------------------------------------------------------------------------------------------------- damaged or edited


COMMANDS = ["{recipe: 3}", "{seed: -1, recipe: a}", "{phase: x, recipe: a}", "{}", "{recipe: a, nothing: 1}", "[1]"]


@pytest.mark.parametrize("line", [f"command: {each}" for each in COMMANDS])
def test_a_config_that_somebody_edited_is_read_right_or_refused(here, capsys, line):
    text = (here / "run" / "config.yaml").read_text()
    (here / "run" / "config.yaml").write_text(text[: text.index("command:")] + line + "\n")
    assert "config.yaml" in refused(capsys, "score run episodes=1")


def test_a_line_too_much_or_too_little_is_refused_or_read(here):
    """At each place of a config, and whatever it is: never another error than one sentence."""
    lines = (here / "run" / "config.yaml").read_text().splitlines()
    changed = [[*lines[:i], line, *lines[i:]] for i in range(len(lines)) for line in ("null: 1", "  id:", "    null: 1", "- x")]
    refused = 0
    for text in changed + [lines[:i] + lines[i + 1 :] for i in range(len(lines))]:
        (here / "x.yaml").write_text("\n".join(text))
        try:
            cfg = saved.load(here / "x.yaml").cfg
            schema.check(cfg)
        except UserError:
            refused += 1
    assert refused > len(changed) / 2


@pytest.mark.parametrize("value", [".nan", "1.0e+400", "2026-11-26", "!!binary aGk=", "1" * 60, "[" * 40 + "]" * 40, "{1: 2}"])
def test_values_that_no_config_has_are_refused(here, capsys, value):
    text = (here / "run" / "config.yaml").read_text()
    (here / "run" / "config.yaml").write_text(text.replace("layers: 1", f"layers: {value}"))
    for command in ("score", "train --resume", "export"):
        assert "config.yaml" in refused(capsys, f"{command} run") or "backbone" in refused(capsys, f"{command} run")


def test_a_config_that_unfolds_without_end_is_refused(here, capsys):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
    (here / "run" / "config.yaml").write_text("\n".join([*lines, "command: {recipe: a}"]) + "\n")
    assert "values" in refused(capsys, "score run")
