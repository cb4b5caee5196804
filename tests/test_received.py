"""Folders that somebody sent, or that other programs write to: links and bombs in them, and files of the same names."""

import shutil
from pathlib import Path

import pytest

from tokenworld import Agent, WorldModel, dream_env
from tokenworld.cli import main as cli
from tokenworld.cli.verbs import train as train_verb
from tokenworld.config import compose
from tokenworld.errors import UserError

DEBUG = ["overlay=debug", "device=cpu"]
MINE = "my own work\n" * 500


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run, a data set and a model."""
    folder = tmp_path_factory.mktemp("made")
    assert cli.main(["train", *DEBUG, "train.collect.held_out=3", f"out={folder / 'run'}"]) == 0
    assert cli.main(["collect", "overlay=debug", "steps=60", f"out={folder / 'data'}"]) == 0
    assert cli.main(["export", str(folder / "run"), f"out={folder / 'model'}"]) == 0
    return folder


@pytest.fixture
def sent(made, tmp_path):
    for name in ("run", "data", "model"):
        shutil.copytree(made / name, tmp_path / name)
    (tmp_path / "mine").write_text(MINE)
    return tmp_path


@pytest.mark.parametrize(
    "link, words",
    [
        ("run/metrics.jsonl", ["train", "--resume", "run", "train.loop.epochs=4"]),
        ("run/replay/episodes-00000.bin", ["train", "--resume", "run", "train.loop.epochs=4"]),
        ("run/.lock", ["train", "--resume", "run", "train.loop.epochs=4"]),
        ("run/config.yaml", ["train", "--resume", "run", "train.loop.epochs=4"]),
        ("run/summary.json", ["train", "--resume", "run", "train.loop.epochs=4"]),
        ("run/dream.gif", ["dream", "run", "steps=3"]),
        ("run/evaluation/report.html", ["evaluate", "run", "frames=60", "budget=3"]),
        ("run/evaluation/report.json", ["evaluate", "run", "frames=60", "budget=3"]),
        ("run/evaluation/.lock", ["evaluate", "run", "frames=60", "budget=3"]),
        ("data/.lock", ["collect", "overlay=debug", "steps=60", "out=data"]),
        ("data/collect.json", ["collect", "overlay=debug", "steps=60", "out=data"]),
    ],
)
def test_nothing_is_written_through_a_link_in_a_folder(sent, monkeypatch, capsys, link, words):
    monkeypatch.chdir(sent)
    path = sent / link
    path.unlink(missing_ok=True)
    path.symlink_to(sent / "mine")
    assert cli.main(words) in (0, 2)
    assert (sent / "mine").read_text() == MINE
    assert "Traceback" not in capsys.readouterr().err
    path.unlink()
    path.symlink_to(sent / "not there")
    assert cli.main(words) in (0, 2) and not (sent / "not there").exists()


def test_an_unfinished_collection_does_not_follow_a_link(sent, monkeypatch, capsys):
    monkeypatch.chdir(sent)
    plan = (sent / "data" / "collect.json").read_text()
    (sent / "data" / "collect.json").write_text(plan[: plan.index(' "finished"')] + ' "finished": null}')
    shard = sent / "data" / "episodes-00000.bin"
    shard.unlink()
    shard.symlink_to(sent / "not there")
    assert cli.main(["collect", "overlay=debug", "steps=60", "out=data"]) == 2
    assert "a link is in the place of a file" in capsys.readouterr().err and not (sent / "not there").exists()


def test_a_config_cannot_ask_for_millions_of_values(sent, monkeypatch, capsys):
    """Nine times as many keys a line, by merging what the line before has."""
    monkeypatch.chdir(sent)
    lines = ["a0: &a0 {" + ",".join(f"k{i}: 1" for i in range(5)) + "}"]
    lines += [f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 10)]
    (sent / "run" / "config.yaml").write_text("\n".join(lines) + "\ncommand: {}\n")
    for words in (["export", "run"], ["train", "--resume", "run"]):
        assert cli.main(words) == 2
        assert "run/config.yaml is damaged (it merges mappings by <<" in capsys.readouterr().err


def test_a_report_of_another_program_stays(sent, monkeypatch, capsys):
    monkeypatch.chdir(sent)
    Path("other").mkdir()
    for name in ("report.json", "report.html", "meta.tmp"):
        Path("other", name).write_text("mine")
    words = ["evaluate", "model", "data=data", "frames=60", "budget=3", "out=other"]
    assert cli.main(words) == 2 and "holds something else than a report" in capsys.readouterr().err
    assert {path.name: path.read_text() for path in Path("other").iterdir()} == dict.fromkeys(
        ("report.json", "report.html", "meta.tmp"), "mine"
    )
    words[-1] = "out=new"
    assert cli.main(words) == 0 and cli.main(words) == 0, "tokenworld replaces its own report"
    report = Path("new", "report.json")
    report.write_text(report.read_text()[:-500])
    assert cli.main(["compare", "new", "new"]) == 2 and "evaluate again" in capsys.readouterr().err
    assert cli.main(words) == 0, "a damaged report can be measured again, as compare advises"


def test_a_model_that_was_evaluated_is_exported_again(sent, monkeypatch):
    """The report lies in the model's folder: the same export finds its own files as they were."""
    monkeypatch.chdir(sent)
    assert cli.main(["evaluate", "model", "data=data", "frames=60", "budget=3"]) == 0
    assert cli.main(["export", "run", "out=model"]) == 0 and (sent / "model" / "evaluation" / "report.json").exists()


def test_what_cannot_be_read_is_blamed_not_what_is_written(sent, monkeypatch, capsys):
    monkeypatch.chdir(sent)
    config_file = sent / "run" / "config.yaml"
    text = config_file.read_text()
    config_file.write_text(text.replace("command:\n", f"command:\n  data: {'x' * 5000}\n"))
    assert cli.main(["export", "run", "out=new"]) == 2
    line = capsys.readouterr().err
    assert "xxx" in line and "new cannot be written" not in line and len(line) < 650


def test_training_on_an_unfinished_collection_says_so(sent, capsys):
    plan = (sent / "data" / "collect.json").read_text()
    (sent / "data" / "collect.json").write_text(plan[: plan.index(' "finished"')] + ' "finished": null}')
    spec = compose.compose([*DEBUG, f"data={sent / 'data'}", f"out={sent / 'tok'}"])
    train_verb.run_phase("tokenizer", spec)
    assert f"{sent / 'data'} is an unfinished collection: the same `tokenworld collect` command" in capsys.readouterr().err


def test_an_occupied_folder_is_resumed_only_if_it_is_a_run(sent, monkeypatch, capsys):
    monkeypatch.chdir(sent)
    assert cli.main(["train", *DEBUG, "out=data"]) == 2 and "--resume" not in capsys.readouterr().err
    assert cli.main(["train", *DEBUG, "seed=5", "out=run"]) == 2
    assert "resume that run by tokenworld train --resume run\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "call",
    [
        lambda model: WorldModel.from_pretrained("~nosuchuser/x"),
        lambda model: WorldModel.from_pretrained("x" * 300),
        lambda model: WorldModel.from_pretrained("a\0b"),
        lambda model: WorldModel.from_pretrained(None),
        lambda model: WorldModel.from_pretrained(b"model"),
        lambda model: WorldModel.from_pretrained("user/nothing", foo=1),
        lambda model: WorldModel.from_pretrained(model).save_pretrained(None),
        lambda model: WorldModel.from_pretrained(model).save_pretrained("a\0b"),
        lambda model: WorldModel.from_config({}, frame=(4, 10, 10), actions=3),
        lambda model: Agent.from_pretrained(model, seed=None),
        lambda model: Agent.from_pretrained(model, temperature=True),
        lambda model: Agent.from_pretrained(model, temperature=10**400),
        lambda model: dream_env.load(model, num_envs=2).render(),
        lambda model: dream_env.load(model, starts="x" * 5000),
    ],
)
def test_python_calls_are_refused_in_a_sentence(made, call):
    with pytest.raises(UserError):
        call(str(made / "model"))
