"""Commands that are stopped, killed, started twice or cannot write: nothing that was complete is lost, and they go on."""

import errno
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from forks import Server

from tokenworld import files, signals
from tokenworld.cli import main as cli
from tokenworld.cli.verbs import data as data_verb
from tokenworld.cli.verbs import train as train_verb
from tokenworld.config import compose, saved, schema
from tokenworld.data import collect
from tokenworld.errors import UserError
from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.report import files as report
from tokenworld.storage import checkpoint
from tokenworld.training import export, folders, resume
from tokenworld.training.run import Run

DEBUG = ["overlay=debug", "device=cpu"]
PHASES = ["train.tokenizer.start=0", "train.dynamics.start=0", "train.policy.start=0"]
# A function waits where it begins, in Python, until SECONDS are over; `at` says that it does.
WAITING = """
import functools, pathlib, time
from tokenworld import signals
signals.LATEST, signals.HARD = {latest}, 1.0
import {module} as module
def waiting(function):
    @functools.wraps(function)
    def wrapped(*args, **keywords):
        if {when}:
            pathlib.Path("at").touch()
            end = time.monotonic() + {seconds}
            while time.monotonic() < end:
                time.sleep(0.01)
        return function(*args, **keywords)
    return wrapped
module.{name} = waiting(module.{name})
"""


def waits(module: str, name: str, when: str = "True", seconds: float = 1000, latest: float = 0.5) -> str:
    return WAITING.format(module=module, name=name, when=when, seconds=seconds, latest=latest)


@pytest.fixture(scope="module")
def server():
    server = Server()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def whole(server, tmp_path_factory):
    """A finished run of three epochs that nobody disturbed, with as many threads as the others."""
    folder = tmp_path_factory.mktemp("whole")
    code, err = server.start(folder, "train", *DEBUG, *PHASES, "train.collect.held_out=3", "out=run").ended(120)
    assert code == 0, err
    return folder / "run"


def weights(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "checkpoint").glob("*.safetensors")}


def epochs(out: Path) -> list[int]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["epoch"] for line in lines if line["phase"] == "collect"]


def unfinished(folder: Path) -> list[str]:
    """Temporary files and locks, anywhere below."""
    return [str(path) for path in folder.rglob("*") if files.is_own(path) or path.name in ("checkpoint.new", "checkpoint.old")]


def train(*words):
    spec = compose.compose([*DEBUG, *words])
    schema.check(spec.cfg)
    return train_verb.run(spec)


# ---------------------------------------------------------------------------------------------------------------------
# Signals


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"])
def test_a_signal_finishes_the_epoch_and_the_run_goes_on_to_the_same_end(server, tmp_path, whole, name):
    signum = getattr(signal, name)
    patch = waits("tokenworld.training.phases.dynamics", "train_dynamics", "args[0].epoch == 1", seconds=0.5, latest=30)
    command = server.start(tmp_path, "train", *DEBUG, *PHASES, "train.collect.held_out=3", "out=run", patch=patch)
    command.until(tmp_path / "at")
    command.signal(signum)
    code, err = command.ended()
    assert code == 128 + signum, err
    assert "Traceback" not in err and "stopped after epoch 2; resume with: tokenworld train --resume run" in err
    assert not unfinished(tmp_path) and epochs(tmp_path / "run") == [0, 1]
    assert not (tmp_path / "run" / "summary.json").exists()
    if name in ("SIGUSR1", "SIGHUP"):
        return  # the rest is the same
    code, err = server.start(tmp_path, "train", "--resume", "run").ended()
    assert code == 0 and "resumed run after epoch 2" in err, err
    assert weights(tmp_path / "run") == weights(whole) and epochs(tmp_path / "run") == [0, 1, 2]


@pytest.mark.parametrize(
    "module, function",
    [(None, f) for f in ("collect", "train_tokenizer", "train_dynamics", "train_policy", "evaluate")]
    + [("tokenworld.run_summary", "write_summary"), ("tokenworld.storage.checkpoint", "_fill")],
)
def test_an_epoch_that_does_not_end_is_lost_and_no_more(server, tmp_path, module, function):
    """In each phase, while the summary is written, and in the middle of a checkpoint."""
    when = "args[0].epoch == 1" if module is None else "True" if function == "write_summary" else "args[2]['epoch'] == 2"
    patch = waits(module or f"tokenworld.training.phases.{function.removeprefix('train_')}", function, when)
    command = server.start(tmp_path, "train", *DEBUG, *PHASES, "train.loop.epochs=2", "out=run", patch=patch)
    command.until(tmp_path / "at")
    began = time.monotonic()
    command.signal(signal.SIGTERM)
    code, err = command.ended()
    assert code == 143 and time.monotonic() - began < 5, err
    assert "Traceback" not in err and "resume with: tokenworld train --resume run" in err
    _, state = checkpoint.load(tmp_path / "run" / "checkpoint")
    assert state["epoch"] == (2 if function == "write_summary" else 1)
    if module is None and function != "collect":
        return  # the rest is the same
    code, err = server.start(tmp_path, "train", "--resume", "run").ended()
    assert code == 0 and epochs(tmp_path / "run") == [0, 1] and (tmp_path / "run" / "summary.json").exists(), err
    assert not unfinished(tmp_path)


def test_a_second_signal_stops_at_once(server, tmp_path):
    patch = waits("tokenworld.training.phases.policy", "train_policy", "args[0].epoch == 1", latest=1000)
    command = server.start(tmp_path, "train", *DEBUG, *PHASES, "out=run", patch=patch)
    command.until(tmp_path / "at")
    command.signal(signal.SIGTERM)
    time.sleep(0.3)
    command.signal(signal.SIGINT)
    code, err = command.ended(10)
    assert code == 130 and "stopping (SIGTERM)" in err and "resume with" in err and "Traceback" not in err


@pytest.mark.parametrize("nobody", ["hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)", "swallow()"])
def test_a_process_that_obeys_no_signal_ends_too(server, tmp_path, nobody):
    """One long call of a library, during which Python runs no handler; a bare except, which swallows what a handler raises."""
    patch = waits("tokenworld.training.phases.policy", "train_policy", "False") + f"""
import hashlib
from tokenworld.training.phases import dynamics
def swallow():
    while True:
        try:
            time.sleep(0.01)
        except BaseException:
            pass
def deaf(run, last, **keywords):
    pathlib.Path("at").touch()
    {nobody}
dynamics.train_dynamics = functools.wraps(dynamics.train_dynamics)(deaf)
"""
    command = server.start(tmp_path, "train", *DEBUG, *PHASES, "out=run", patch=patch)
    command.until(tmp_path / "at")
    began = time.monotonic()
    command.signal(signal.SIGTERM)
    code, err = command.ended(20)
    assert code == 143 and time.monotonic() - began < 6
    assert "stopped at once (SIGTERM); resume with: tokenworld train --resume run" in err


@pytest.mark.parametrize(
    "words, module, name",
    [
        (["collect", "overlay=debug", "out=new", "steps=50"], "tokenworld.data.collect", "Collector.collect"),
        (["evaluate", "RUN", "frames=60", "out=new"], "tokenworld.evaluation.assess", "evaluate_world_model"),
        (["dream", "RUN", "steps=3", "out=new.gif"], "tokenworld.evaluation.report.film_drawing", "video"),
        (["dream", "RUN", "steps=3", "out=new.gif"], "tokenworld.files", "sync"),
        (["export", "RUN", "out=new"], "tokenworld.storage.model_folder", "save"),
        (["score", "RUN", "episodes=3"], "tokenworld.scores.score", "score"),
        (["bench", "imagine", "overlay=debug", "repeats=1", "--json", "new.json"], "tokenworld.bench.rows", "bench"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_sigterm_ends_every_command_cleanly(server, tmp_path, whole, words, module, name):
    command = server.start(tmp_path, *(str(whole) if word == "RUN" else word for word in words), patch=waits(module, name))
    command.until(tmp_path / "at")
    command.signal(signal.SIGTERM)
    code, err = command.ended(10)
    assert code == 143 and "Traceback" not in err, err
    assert not unfinished(tmp_path) and not unfinished(whole)
    left = {path.name for path in tmp_path.iterdir() if not path.stem.isdigit()} - {"at"}
    assert left <= {"new"} if words[0] == "collect" else not left  # a collection is continued, nothing else stays


def test_signals_of_others_and_those_that_are_ignored_are_left_alone():
    kinds = [kind for kind in signals.KINDS if kind != signal.SIGINT]
    before = [signal.signal(kind, signal.SIG_IGN) for kind in kinds]
    try:
        with signals.ending(), signals.finishing(print, "") as request:
            assert all(signal.getsignal(kind) is signal.SIG_IGN for kind in kinds) and not request.signum
            own = signal.signal(signal.SIGTERM, lambda *_: None)
            with signals.ending():
                signal.raise_signal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, own)
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
    assert [signal.getsignal(kind) for kind in kinds] == before


# ---------------------------------------------------------------------------------------------------------------------
# A process that a training needs is lost


@pytest.mark.parametrize("kind, epoch", [(BrokenPipeError, 0), (EOFError, 1), (ConnectionResetError, 1)])
def test_a_lost_process_is_one_sentence_with_the_resume_command(tmp_path, monkeypatch, kind, epoch):
    play = collect.Collector.collect

    def lost(self, *args):
        if (tmp_path / "run" / "checkpoint").exists() == bool(epoch):
            raise kind
        return play(self, *args)

    monkeypatch.setattr(collect.Collector, "collect", lost)
    with pytest.raises(UserError) as caught:
        train(f"out={tmp_path / 'run'}")
    assert "a process of the environment MinAtar/Breakout-v1 has ended" in str(caught.value)
    assert str(caught.value).endswith(f"; resume with: tokenworld train --resume {tmp_path / 'run'}")
    monkeypatch.undo()
    assert train_verb.resume(str(tmp_path / "run"), {}, {})["env_steps"] > 0


def test_a_sentence_gets_the_resume_command_once_there_is_something_to_resume(tmp_path, monkeypatch):
    play = collect.Collector.collect

    def fail(self, *args):
        if (tmp_path / str(epoch) / "checkpoint").exists() == bool(epoch):
            raise UserError("mine")
        return play(self, *args)

    monkeypatch.setattr(collect.Collector, "collect", fail)
    for epoch, said in ((0, "mine"), (1, f"mine; resume with: tokenworld train --resume {tmp_path / '1'}")):
        with pytest.raises(UserError) as caught:
            train(f"out={tmp_path / str(epoch)}")
        assert str(caught.value) == said


def test_a_child_that_the_signal_reached_too_is_no_fault():
    """Whoever signals a group of processes ends those of the games as well, perhaps before ours hears of it."""
    with pytest.raises(signals.Stop) as caught, signals.ending(), signals.finishing(print, "") as request:
        signal.raise_signal(signal.SIGTERM)
        assert request.signum == signal.SIGTERM
        raise UserError("a process of the environment has ended") from EOFError()
    assert caught.value.signum == signal.SIGTERM
    with pytest.raises(UserError), signals.ending(), signals.finishing(print, ""):
        raise UserError("a process of the environment has ended") from EOFError()


# ---------------------------------------------------------------------------------------------------------------------
# Two processes, one folder


def test_the_second_is_refused_and_the_first_is_unharmed(server, tmp_path, whole):
    words = ["train", *DEBUG, *PHASES, "train.collect.held_out=3", "out=run"]
    when = "args[0].epoch < 2 and not pathlib.Path('go').exists()"
    patch = waits("tokenworld.training.phases.dynamics", "train_dynamics", when, seconds=0.05)
    patch = patch.replace("time.monotonic() < end", "not pathlib.Path('go').exists()")
    first = server.start(tmp_path, *words, patch=patch)
    first.until(tmp_path / "at")
    for second in (words, ["train", "--resume", "run"]):  # before the first checkpoint
        code, err = server.start(tmp_path, *second).ended()
        assert code == 2 and err == (
            f"tokenworld: run is being written by another process (process {first.pid} on {os.uname().nodename}):"
            " wait until it ends, or choose another folder\n"
        )
    (tmp_path / "go").touch()
    code, err = first.ended()
    assert code == 0 and epochs(tmp_path / "run") == [0, 1, 2], err
    assert weights(tmp_path / "run") == weights(whole)


def test_a_second_collect_is_refused(server, tmp_path):
    words = ["collect", "overlay=debug", "steps=300", "out=data"]
    first = server.start(tmp_path, *words, patch=waits("tokenworld.data.collect", "Collector.collect", seconds=4))
    first.until(tmp_path / "at")
    code, err = server.start(tmp_path, *words).ended()
    assert code == 2 and "data is being written by another process" in err
    code, err = first.ended()
    assert code == 0, err
    assert data_verb.run(str(tmp_path / "data"))["splits"]["train"]["steps"] <= 310


def test_two_in_the_same_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(folders.time, "strftime", lambda _: "20250101-000000")
    spec = compose.compose(DEBUG)
    with folders.claiming(spec) as one, folders.claiming(spec) as two:
        assert [one.name, two.name] == ["20250101-000000-quickstart-0", "20250101-000000-quickstart-0-2"]
        (two / "kept").touch()
    assert [path.name for path in Path("runs").iterdir()] == [two.name], "a run that never began leaves no folder"


# ---------------------------------------------------------------------------------------------------------------------
# Without a checkpoint


def begun(out: Path, epoch: int | None = 0) -> tuple[str, ...]:
    """A run that was killed before its first checkpoint: its words."""
    words = (*DEBUG, *PHASES, "train.collect.held_out=3", f"out={out}")
    spec = compose.compose(list(words))
    run = resume.start_run(spec)
    if epoch is not None:
        run.phases["collect"](run, False)
        run.log.metrics("collect", epoch=epoch)
    run.writer.close()
    run.log.close()
    return words


@pytest.mark.parametrize("again", ["the same command", "--resume"])
def test_a_run_killed_in_its_first_epoch_starts_over_and_keeps_what_was_there(tmp_path, whole, capsys, again):
    out = tmp_path / "run"
    words = begun(out)
    (out / "replay" / "foreign.txt").write_text("mine")
    shard = (out / "replay" / "episodes-00000.bin").read_bytes()
    metrics = (out / "metrics.jsonl").read_bytes()
    (out / "checkpoint.new").mkdir()
    (out / "checkpoint.new" / ".tmp-manifest.json").write_text('{"for')  # killed in its first checkpoint
    assert cli.main(["train", "--resume", str(out)] if again == "--resume" else ["train", *words]) == 0
    assert f"its earlier files are kept in {out / 'unfinished-1'}" in capsys.readouterr().err
    aside = out / "unfinished-1"
    assert (aside / "replay" / "foreign.txt").read_text() == "mine" and (aside / "metrics.jsonl").read_bytes() == metrics
    assert (aside / "replay" / "episodes-00000.bin").read_bytes() == shard
    assert weights(out) == weights(whole) and epochs(out) == [0, 1, 2] and not unfinished(out)


def test_nothing_is_kept_of_a_run_that_had_done_nothing(tmp_path, whole):
    words = begun(tmp_path / "run", epoch=None)
    assert cli.main(["train", *words]) == 0
    assert weights(tmp_path / "run") == weights(whole) and not list((tmp_path / "run").glob("unfinished*"))


@pytest.mark.parametrize("again", ["the same command", "--resume"])
@pytest.mark.parametrize("lost", ["metrics", "summary", "damaged"])
def test_a_run_that_has_lost_its_checkpoint_is_refused_and_unchanged(tmp_path, whole, capsys, again, lost):
    out = tmp_path / "run"
    if lost == "metrics":
        words = begun(out, epoch=2)
    else:
        shutil.copytree(whole, out)
        saved.save(out / "config.yaml", replace(saved.load(out), out=str(out)))
        words = (*DEBUG, *PHASES, "train.collect.held_out=3", f"out={out}")
        if lost == "summary":
            shutil.rmtree(out / "checkpoint")
            (out / "metrics.jsonl").write_text("")
        else:
            (out / "checkpoint" / "manifest.json").write_text('{"for')
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert cli.main(["train", "--resume", str(out)] if again == "--resume" else ["train", *words]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "restore" in err and "checkpoint" in err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_checkpoints_that_are_seldom_are_not_missed(tmp_path):
    begun(tmp_path, epoch=4)
    assert folders.start_over(tmp_path, checkpoint_every=10).name == "unfinished-1"
    assert not (tmp_path / "replay").exists() and (tmp_path / "config.yaml").exists()
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 4}\n{"epoch"')
    with pytest.raises(UserError, match="has finished 4 epochs or more and its checkpoint is missing"):
        folders.start_over(tmp_path, checkpoint_every=4)
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\n[1]\n" + b"[" * 100_000)
    assert folders.start_over(tmp_path, checkpoint_every=4).name == "unfinished-2"


@pytest.mark.parametrize("left", [[], [".lock"], [".tmp-7-config.yaml"], [".tmp-7-config.yaml", ".lock"]])
def test_a_kill_while_a_run_is_made_leaves_a_folder_that_counts_as_empty(tmp_path, left):
    for name in left:
        (tmp_path / name).write_text("half")
    spec = compose.compose([*DEBUG, f"out={tmp_path}"])
    with folders.claiming(spec) as out:
        assert [path.name for path in out.iterdir()] == [files.LOCK]


def test_what_fails_while_a_run_is_made_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    for made in (False, True):
        out = tmp_path / str(made)
        if made:
            out.mkdir()
        with pytest.raises(UserError, match="kmeans needs a tokenizer of patches"):
            train("recipe=iris", "train.evaluate.kmeans=true", f"out={out}")
        assert out.exists() == made and not made or not list(out.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# Disks that refuse


@pytest.fixture
def refused(monkeypatch):
    """Have the disk refuse to rename a file of this name into place."""

    def refuse(name: str, code: int, times: int = 1000):
        rename, left = os.replace, [times]

        def fail(source, target, **keywords):
            if Path(target).name == name and left[0]:
                left[0] -= 1
                raise OSError(code, os.strerror(code))
            return rename(source, target, **keywords)

        monkeypatch.setattr(files.os, "replace", fail)

    return refuse


@pytest.mark.parametrize(
    "name, code",
    [
        ("summary.json", errno.ENOSPC),
        ("dream.gif", errno.EROFS),
        ("learning_curve.png", errno.EIO),
        ("report.json", errno.EFBIG),
        ("config.yaml", errno.ENOSPC),
    ],
)
def test_a_training_that_cannot_write_says_how_to_resume(tmp_path, monkeypatch, refused, code, name):
    refused(name, code)
    words = [*DEBUG, *PHASES, "train.loop.epochs=2", "train.collect.held_out=3", f"out={tmp_path / 'run'}"]
    spec = compose.compose(words)
    with pytest.raises(UserError) as caught:
        train_verb.run(spec)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'run'}") and name in said and os.strerror(code) in said and "\n" not in said
    if name == "config.yaml":
        assert not (tmp_path / "run").exists()
        return
    assert said.endswith(f"; resume with: tokenworld train --resume {tmp_path / 'run'}") and not unfinished(tmp_path)
    monkeypatch.undo()
    assert train_verb.resume(str(tmp_path / "run"), {}, {})["env_steps"] > 0 and not unfinished(tmp_path)


def test_metrics_that_cannot_be_written_end_a_training_and_lose_nothing(tmp_path, monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    save = Run.save

    def full(self):
        save(self)
        self.log._file = open("/dev/full", "a")

    monkeypatch.setattr(Run, "save", full)
    with pytest.raises(UserError, match="metrics.jsonl cannot be written.*No space left.*resume with: tokenworld train"):
        train(f"out={tmp_path / 'run'}")
    monkeypatch.undo()
    assert train_verb.resume(str(tmp_path / "run"), {}, {})["env_steps"] > 0 and epochs(tmp_path / "run") == [0, 1, 2]


@pytest.mark.parametrize("name", ["report.json", "report.html"])
def test_an_evaluation_that_cannot_be_written_is_said_and_kept(tmp_path, monkeypatch, capsys, whole, refused, name):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    assert cli.main(["evaluate", str(whole), "frames=60", f"out={out}"]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    verdict = capsys.readouterr().out
    refused(name, errno.ENOSPC, times=1)
    assert cli.main(["evaluate", str(whole), "frames=60", f"out={out}"]) == 2
    said = capsys.readouterr()
    refusals = [line for line in said.err.splitlines() if not line.startswith("tier A, ")]  # the others tell the progress
    assert said.out == verdict and len(refusals) == 1 and "the result was saved as " in refusals[0]
    report.read(Path(said.err.strip().rpartition("saved as ")[2]))
    after = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    assert after.keys() == before.keys() and after["report.json"] == before["report.json"]


@pytest.mark.parametrize("command", ["evaluate", "dream", "export", "train", "collect", "sweep"])
def test_a_folder_that_cannot_be_written_is_said_before_the_work(tmp_path, monkeypatch, capsys, whole, command):
    (tmp_path / "file").write_text("x")
    out = f"out={tmp_path / 'file' / 'x'}" + (".gif" if command == "dream" else "")
    for module in (resume, export):
        monkeypatch.setattr(module, "open_run", lambda *_: pytest.fail("the work was begun"))
    monkeypatch.setattr(collect.Collector, "collect", lambda *_: pytest.fail("the work was begun"))
    words = [str(whole)] if command in ("evaluate", "dream", "export") else ["overlay=debug"]
    assert cli.main([command, *words, out]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "a file is in the place of a folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# ---------------------------------------------------------------------------------------------------------------------
# Killed evaluations and exports


def made() -> report.Report:
    return report.Report([Metric("code_length.saved_bits", "Gain", 1.0, "bits", "higher")], [], "No fault.", {}, {})


@pytest.mark.parametrize("kept", [["report.html"], ["report.html", "states.npz"], []])
def test_a_killed_evaluation_is_no_foreign_folder(tmp_path, kept):
    """As a kill between the renames leaves it; twice."""
    for _ in range(2):
        report.write(made(), tmp_path)
        (tmp_path / "report.json").rename(tmp_path / ".tmp-7-report.json")
        for name in {"report.html", "states.npz"} - set(kept):
            (tmp_path / name).unlink()
        report.check_folder(tmp_path)
        assert not list(tmp_path.iterdir())
    report.write(made(), tmp_path)
    report.check_folder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.html", "states.npz"}


@pytest.mark.parametrize("name", ["report.html", "notes.txt", "states.npz"])
def test_a_foreign_folder_is_refused_and_unchanged(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match="something else than a report"):
        report.check_folder(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_killed_export_is_done_again(tmp_path, capsys, whole):
    out = tmp_path / "model"
    assert cli.main(["export", str(whole), f"out={out}"]) == 0
    names = {path.name for path in out.iterdir()}
    assert "config.json" in names and not unfinished(tmp_path)
    (out / files.TEMPORARY.__add__("files")).mkdir()
    (out / "config.json").rename(out / ".tmp-files" / "config.json")
    (out / "README.md").unlink()
    assert cli.main(["export", str(whole), f"out={out}"]) == 0
    assert {path.name for path in out.iterdir()} == names
    assert cli.main(["export", str(whole), f"out={out}"]) == 0, "killed as it ended: the same model is there"
    (out / "README.md").write_text("mine")
    assert cli.main(["export", str(whole), f"out={out}"]) == 2 and "not empty" in capsys.readouterr().err
    assert (out / "README.md").read_text() == "mine"
