"""Nothing that a received folder says is imported: only what the command line or a recipe names, or the user vouches for."""

import contextlib
import functools
import json
import shlex
import shutil
import sys

import pytest
import yaml

from tokenworld import Agent, DreamEnv, WorldModel, dream_env, origins, sweep
from tokenworld.cli import main as cli
from tokenworld.config import compose, saved
from tokenworld.errors import UserError
from tokenworld.training import build, resume

PAYLOAD = "import pathlib\npathlib.Path('executed').touch()\n"


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """A run, a model and a data set of the user's own."""
    folder = tmp_path_factory.mktemp("honest")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main("train overlay=debug train.collect.held_out=3 out=own".split()) == 0
        assert cli.main("export own out=model".split()) == 0
        assert cli.main("collect overlay=debug steps=40 out=dat".split()) == 0
    return folder


@pytest.fixture
def here(honest, tmp_path, monkeypatch):
    """The current folder, on the module path, with copies and a folder `gift` that holds a module."""
    for name in ("own", "model", "dat"):
        shutil.copytree(honest / name, tmp_path / name)
    (tmp_path / "gift").mkdir()
    (tmp_path / "gift" / "payload.py").write_text(PAYLOAD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("gift")]:
        del sys.modules[name]


def poison_run(folder, **sections):
    """Copy `own` to gift/run, with some of its config replaced."""
    run = shutil.copytree(folder / "own", folder / "gift" / "run")
    cfg = yaml.safe_load((run / "config.yaml").read_text())
    for key, value in sections.items():
        *path, last = key.split("__")
        functools.reduce(dict.__getitem__, path, cfg)[last] = value
    (run / "config.yaml").write_text(yaml.safe_dump(cfg))


GYM = "tokenworld.envs.gym.make"
POISONS = {
    "id": {"env": {"_target_": GYM, "id": "gift.payload:X-v0"}},
    "id while evaluating": {"train__evaluate__env": {"id": "gift.payload:X-v0"}},
    "wrapper": {"env": {"_target_": GYM, "id": "CartPole-v1", "wrappers": ["gift.payload.Wrapper"]}},
    "wrapper with keywords": {"env": {"_target_": GYM, "id": "CartPole-v1", "wrappers": [{"_target_": "gift.payload.W"}]}},
    "a wrapper of ours": {"env": {"_target_": GYM, "id": "CartPole-v1", "wrappers": ["tokenworld.storage.hub.os.system"]}},
    "keyword of a game that makes games": {"env": {"_target_": GYM, "id": "X-v0", "kwargs": {"env_id": "gift.payload:X-v0"}}},
    "keyword that names a class": {"env": {"_target_": GYM, "id": "X-v0", "kwargs": {"a": {"b": ["gift.payload.Thing"]}}}},
    "trust for the model of a dream": {
        "env": {"_target_": GYM, "id": "tokenworld/Dream-v0", "kwargs": {"model": "gift", "trust_remote_code": True}}
    },
    "part": {"reward___target_": "gift.payload.Reward"},
    "maker": {"env___target_": "gift.payload.make"},
    "phase": {"train__collect___target_": "gift.payload.collect"},
    "loop": {"train__loop___target_": "gift.payload.loop"},
    "network of a policy": {"policy__network___target_": "gift.payload.Network"},
}
COMMANDS = [
    "score gift/run", "train --resume gift/run", "train --resume gift/run train.loop.epochs=9", "evaluate gift/run",
    "evaluate own policies=gift/run tier=C frames=60 states=2", "export gift/run out=m", "push gift/run repo=a/b",
    "dream gift/run", "play gift/run port=8999", "train policy load.world_model=gift/run",
    "train dynamics load.tokenizer=gift/run", "train dynamics load.world_model=gift/run",
    "train overlay=debug load.world_model=gift/run", "train overlay=debug out=gift/run",
    "sweep overlay=debug load.world_model=gift/run out=sw",
]  # fmt: skip


def refused(capsys, words: str) -> str:
    assert cli.main(shlex.split(words)) == 2, words
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("tokenworld: "), said
    return said


@pytest.mark.parametrize("words", COMMANDS)
def test_no_command_runs_code_of_a_received_run(here, capsys, words):
    poison_run(here, **POISONS["id"])
    said = refused(capsys, words)
    assert "gift.payload:X-v0" in said and f"run: tokenworld {words} --trust-remote-code" in said
    assert not (here / "executed").exists() and "gift.payload" not in sys.modules


@pytest.mark.parametrize("poison", POISONS)
def test_nothing_in_a_config_leads_to_an_import(here, capsys, poison):
    poison_run(here, **POISONS[poison])
    for words in ("score gift/run", "train --resume gift/run"):
        assert "--trust-remote-code" in refused(capsys, words)
    with pytest.raises(UserError, match="trust_remote_code=True"):
        resume.open_run("gift/run", {})
    with contextlib.suppress(UserError):  # it plays in no other environment yet
        build.build_run(here, read("gift/run"), ("evaluate",))
    assert not (here / "executed").exists()


def read(run):
    cfg = yaml.safe_load(open(f"{run}/config.yaml"))
    return saved.RunSpec.of(cfg, cfg.pop("command"))


@pytest.mark.parametrize(
    "words",
    [
        "train tokenizer overlay=debug data=dat", "train overlay=debug data=dat", "sweep overlay=debug data=dat out=sw",
        "train dynamics overlay=debug data=dat load.tokenizer=own", "train policy overlay=debug data=dat load.world_model=own",
    ],
)  # fmt: skip
@pytest.mark.parametrize("poison", ["id", "wrapper", "kwargs"])
def test_no_command_runs_code_of_received_episodes(here, capsys, words, poison):
    meta = json.loads((here / "dat" / "meta.json").read_text())
    meta |= {"env_id": "gift.payload:X-v0"} if poison == "id" else {"env_id": "CartPole-v1"}
    keywords = {"wrapper": {"wrappers": ["gift.payload.W"]}, "kwargs": {"kwargs": {"a": "gift.payload:X"}}}
    meta["preprocessing"] = keywords.get(poison, {})
    (here / "dat" / "meta.json").write_text(json.dumps(meta))
    said = refused(capsys, words)
    assert "gift.payload" in said and f"tokenworld {words} --trust-remote-code" in said
    assert not (here / "executed").exists()
    assert cli.main(["data", "info", "dat"]) == 0, "which only looks at them"


@pytest.mark.parametrize("poison", ["id", "wrapper", "score_env", "part", "dream"])
def test_no_call_runs_code_of_a_received_model(here, poison):
    told = json.loads((here / "model" / "config.json").read_text())
    told["parts"] |= {
        "id": POISONS["id"],
        "wrapper": POISONS["wrapper"],
        "dream": POISONS["trust for the model of a dream"],
        "part": {"reward": {"_target_": "gift.payload.Reward"}},
        "score_env": {},
    }[poison]
    told["score_env"] = {"id": "gift.payload:X-v0"} if poison == "score_env" else told["score_env"]
    (here / "model" / "config.json").write_text(json.dumps(told))
    for call in (WorldModel.from_pretrained, Agent.from_pretrained, dream_env.load, lambda model: cli.main(["score", model])):
        try:
            assert call("model") == 2
        except UserError as error:
            assert "trust_remote_code=True" in str(error)
    assert not (here / "executed").exists()


def test_starts_of_a_dream_are_only_read(here):
    meta = json.loads((here / "dat" / "meta.json").read_text())
    (here / "dat" / "meta.json").write_text(json.dumps(meta | {"env_id": "gift.payload:X-v0"}))
    DreamEnv(WorldModel.from_pretrained("model"), "dat", 2).reset(seed=0)
    assert not (here / "executed").exists()


def test_the_flag_vouches_for_the_folders_of_its_command_only(here, capsys):
    poison_run(here, **POISONS["id"])
    assert "X-v0" in refused(capsys, "score gift/run --trust-remote-code"), "the module registers nothing"
    assert (here / "executed").exists(), "the module was imported"
    (here / "executed").unlink()
    del sys.modules["gift.payload"]
    assert "--trust-remote-code" in refused(capsys, "score gift/run"), "the next command does not inherit it"
    assert not (here / "executed").exists()


def test_the_command_line_and_a_recipe_of_the_users_are_trusted(here, capsys):
    (here / "mine.yaml").write_text(f"defaults: [quickstart, _self_]\nenv: {{_target_: {GYM}, id: 'gift.payload:X-v0'}}\n")
    for words in ("train overlay=debug env.id=gift.payload:X-v0 out=a", "train recipe=mine.yaml ~env.sticky out=b"):
        assert "--trust-remote-code" not in refused(capsys, words)
        assert (here / "executed").exists()
        (here / "executed").unlink()
        del sys.modules["gift.payload"]


def test_the_current_folder_is_searched_last_and_only_for_what_was_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", ".")])
    before = list(sys.path)
    compose.compose(["recipe=iris", "env.id=ALE/Pong-v5"])
    assert sys.path == before
    compose.compose(["env.id=mine:X-v0"])
    assert sys.path == [*before, str(tmp_path)]


def test_names_of_a_shipped_recipe_lead_nowhere():
    for recipe in compose.recipes():
        assert list(origins.names(compose.compose([f"recipe={recipe}"]).cfg)) == []


@pytest.mark.parametrize("flag, has_config, id, expected", [
    (False, False, "MinAtar/Breakout-v1", False), (True, False, "MinAtar/Breakout-v1", True),
    (False, True, "MinAtar/Breakout-v1", False), (False, True, "mine:X-v0", True), (False, False, "mine:X-v0", False),
])  # fmt: skip
def test_runs_of_a_sweep_get_the_flag_where_they_need_it(tmp_path, monkeypatch, flag, has_config, id, expected):
    spec = compose.compose([f"env.id={id}"])
    member = sweep.Member(tmp_path / "run", {"seed": "0"}, spec)
    if has_config:
        member.out.mkdir()
        saved.save(member.out / "config.yaml", spec)
    started = []
    monkeypatch.setattr(sweep.subprocess, "Popen", lambda words, **_: started.append(words))
    with origins.command_line(["sweep", *([origins.FLAG] if flag else [])]):
        sweep._start(member, 0, 1)
    assert (origins.FLAG in started[0]) == expected and ("--resume" in started[0]) == has_config
