"""Files are written whole or not at all, a disk that refuses is one sentence, and a folder has one writer."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tokenworld import files
from tokenworld.cli import main as cli
from tokenworld.errors import UserError
from tokenworld.log import Log
from tokenworld.viz import figures
from tokenworld.viz.frames import save_gif, save_png

REFUSALS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES]
HOLDER = """
import sys
from tokenworld import files
with files.locking(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


def names(folder) -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture
def refuse(monkeypatch):
    """Have one function of `os` fail with an errno, as the disk would have it."""

    def refused(name: str, code: int, owner=os):
        def fail(*_, **__):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(owner, name, fail)

    return refused


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a folder, which is ended with the test."""
    begun = []

    def hold(folder):
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        begun.append(process)
        assert process.stdout.readline() == b"held\n"
        return process

    yield hold
    for process in begun:
        process.kill()
        process.communicate()


# ---------------------------------------------------------------------------------------------------------------------
# Whole or not at all


@pytest.mark.parametrize("code", REFUSALS, ids=errno.errorcode.get)
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_refused_file_is_as_it_was_and_one_sentence(tmp_path, refuse, code, where):
    path = tmp_path / "a.json"
    files.write(path, "old")
    refuse(where, code)
    with pytest.raises(UserError) as caught:
        files.write(path, "new")
    said = str(caught.value)
    assert said.startswith(f"{path} cannot be written or read ({os.strerror(code)}): ") and "\n" not in said
    assert files.ADVICE[code] in said
    assert names(tmp_path) == ["a.json"] and path.read_text() == "old"


@pytest.mark.parametrize("code", REFUSALS, ids=errno.errorcode.get)
def test_a_refused_write_of_bytes_leaves_nothing(tmp_path, refuse, code):
    refuse("write_bytes", code, Path)
    with pytest.raises(UserError, match="cannot be written"):
        files.write(tmp_path / "new" / "a.bin", b"x")
    assert names(tmp_path / "new") == []


def test_what_fails_for_another_reason_leaves_the_old_file_too(tmp_path):
    path = tmp_path / "a.txt"
    files.write(path, "old")
    for reason in (ValueError("mine"), KeyboardInterrupt()):
        with pytest.raises(type(reason)), files.replacing(path) as temporary:
            temporary.write_text("half")
            raise reason
    assert names(tmp_path) == ["a.txt"] and path.read_text() == "old"


def test_a_link_is_followed_only_where_the_user_gives_it(tmp_path):
    """A folder that somebody sent may hold links to the user's files."""
    far = tmp_path / "far"
    far.mkdir()
    (far / "real.txt").write_text("old")
    for name, target in (("link.txt", "real.txt"), ("dangling.txt", "later.txt")):
        path = tmp_path / name
        path.symlink_to(far / target)
        files.write(files.follow_links(path), "new")
        assert path.is_symlink() and (far / target).read_text() == "new"
        for call, what in ((files.truncate_own, 0), (files.open_own, "a")):
            with pytest.raises(UserError, match="a link is in the place of a file"), files.writing(path):
                call(path, what)
        files.write(path, "newer")
        assert not path.is_symlink() and path.read_text() == "newer" and (far / target).read_text() == "new"


def test_a_lock_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "folder").mkdir()
    for target in ("mine", "not there"):
        (tmp_path / "folder" / ".lock").symlink_to(tmp_path / target)
        with pytest.raises(UserError, match="a link is in the place of a file"), files.locking(tmp_path / "folder"):
            pass
        (tmp_path / "folder" / ".lock").unlink()
    assert (tmp_path / "mine").read_text() == "mine" and not (tmp_path / "not there").exists()


def test_what_is_no_file_is_written_where_it_is(tmp_path, capfd):
    (tmp_path / "link.txt").symlink_to("/dev/stdout")
    for path in ("/dev/stdout", tmp_path / "link.txt"):  # a file here, as with > FILE
        files.check_replaceable(path)
        files.write(path, "to stdout\n")
        assert capfd.readouterr().out == "to stdout\n" and Path("/dev/stdout").is_symlink()
    (tmp_path / "link.txt").unlink()
    os.mkfifo(tmp_path / "pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()))
    reader.start()
    files.write(tmp_path / "pipe", "through")
    reader.join()
    assert got == ["through"] and names(tmp_path) == ["pipe"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_device_is_one_sentence(monkeypatch):
    with pytest.raises(UserError, match="/dev/full cannot be written.*No space left.*free some space"):
        files.write("/dev/full", "x" * 100_000)


def test_the_lost_process_of_a_game_is_no_fault_of_the_disk(tmp_path):
    for kind in (BrokenPipeError, ConnectionResetError):
        with pytest.raises(kind), files.writing(tmp_path):
            raise kind


@pytest.mark.parametrize("code", REFUSALS, ids=errno.errorcode.get)
def test_pictures_and_metrics_are_one_sentence_too(tmp_path, refuse, code):
    video = np.zeros((3, 8, 8, 3), np.uint8)
    log = Log(tmp_path / "run")
    log.metrics("loop", step=1)
    refuse("fsync", code)
    for save in (lambda: save_gif(tmp_path / "a.gif", video), lambda: save_png(tmp_path / "a.png", video[0]),
                 lambda: figures.save_curve(tmp_path / "c.png", [(1, 3), (2, 4)], random=0.5, xlabel="x", ylabel="y"),
                 lambda: log.truncate(0)):  # fmt: skip
        with pytest.raises(UserError, match=os.strerror(code)):
            save()
    assert names(tmp_path) == ["run"]


def test_metrics_on_a_full_disk(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    log = Log(tmp_path)
    log._file = open("/dev/full", "a")
    with pytest.raises(UserError, match="metrics.jsonl cannot be written.*No space left"):
        log.metrics("loop", step=1)
    log.close()  # the line that was refused is not tried again


def test_a_full_stderr_stops_nobody(monkeypatch):
    if not Path("/dev/full").exists():
        pytest.skip("no device that is always full")
    full = open("/dev/full", "w")  # closing it would fail
    monkeypatch.setattr(sys, "stderr", full)
    Log(None).say("x" * 100_000)
    monkeypatch.undo()
    os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


# ---------------------------------------------------------------------------------------------------------------------
# Before the work, and after it


def test_what_cannot_be_written_is_said_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    for check, path, said in (
        (files.check_writable, tmp_path / "file" / "x", "Not a directory.*a file is in the place of a folder"),
        (files.check_writable, tmp_path / "file", "File exists.*a file is in the place of a folder"),
        (files.check_replaceable, tmp_path, "Is a directory.*a folder is in the place of a file"),
        (files.check_writable, tmp_path / ("n" * 300), "name too long.*choose a shorter path"),
        (files.check_replaceable, tmp_path / "file" / "x.gif", "a file is in the place of a folder"),
    ):
        with pytest.raises(UserError, match=said):
            check(path)
    assert names(tmp_path) == ["file"]


def test_a_result_is_kept_elsewhere(tmp_path, monkeypatch):
    """In the current folder, or where temporary files are; the sentence says where."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written.*the result was saved as ") as caught:
        files.write_or_rescue(tmp_path / "file" / "a.txt", lambda place: files.write(place, "kept"))
    place = Path(str(caught.value).rpartition("saved as ")[2])
    assert place.read_text() == "kept" and place.name == "a.txt" and place.parent.parent == tmp_path / "here"

    def only(place):
        if not str(place).startswith(str(tmp_path / "there")):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        place.write_text("kept")

    (tmp_path / "there").mkdir()
    monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path / "there"))
    with pytest.raises(UserError, match="saved as .*/there/"):
        files.write_or_rescue("b.txt", only)
    with pytest.raises(UserError, match="Read-only file system.*can be written$"):
        monkeypatch.setattr(files.tempfile, "gettempdir", lambda: str(tmp_path / "nowhere"))
        files.write_or_rescue("c.txt", only)
    assert [name for name in names(tmp_path / "here") if not name.startswith("a-")] == [], "no empty folders stay"


def test_any_error_of_the_disk_is_one_sentence_of_the_command_line(capsys, monkeypatch):
    def fail(words):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "some/file")

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == (
        "tokenworld: some/file cannot be written or read (No space left on device): free some space, then run the same"
        " command again\n"
    )


@pytest.mark.parametrize("kind", [BrokenPipeError, EOFError, ConnectionResetError])
def test_a_lost_process_is_not_taken_for_a_closed_stdout(capsys, monkeypatch, kind):
    def fail(words):
        raise kind

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["train"]) == 2
    assert "a process of this command has ended" in capsys.readouterr().err


def test_a_closed_stdout_is_quiet_and_a_full_one_is_not():
    call = [sys.executable, "-m", "tokenworld.cli", "--help"]
    read, write = os.pipe()
    os.close(read)
    ended = subprocess.run(call, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, b"")
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            ended = subprocess.run(call, stdout=full, stderr=subprocess.PIPE, text=True)
        assert ended.returncode == 2 and ended.stderr.count("\n") == 1 and "No space left" in ended.stderr


# ---------------------------------------------------------------------------------------------------------------------
# One writer


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path, holder):
    folder = tmp_path / "new" / "run"
    process = holder(folder)
    assert files.is_empty(folder)
    with pytest.raises(UserError, match=rf"being written by another process \(process {process.pid} on .*\): wait until"):
        with files.locking(folder):
            pytest.fail("two at once")
    process.kill()
    process.wait()
    assert names(folder) == [files.LOCK], "the kill left its lock file, which nobody holds"
    with files.locking(folder):
        (folder / "work").write_text("x")
    assert names(folder) == ["work"], "no lock stays behind"


def test_an_ended_process_leaves_no_folder_that_it_made(tmp_path, holder):
    process = holder(tmp_path / "run")
    process.communicate(b"\n")
    assert process.returncode == 0 and names(tmp_path) == []
    (tmp_path / "mine").mkdir()
    with files.locking(tmp_path / "mine"):
        pass
    assert names(tmp_path) == ["mine"]


def test_a_lock_is_not_inherited_by_the_process_of_a_game(tmp_path):
    read, write = os.pipe()
    with files.locking(tmp_path):
        child = os.fork()
        if child == 0:  # lives longer than its parent's lock
            os.read(read, 1)
            os._exit(0)
    try:
        with files.locking(tmp_path):
            pass
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)


def test_many_processes_take_turns(tmp_path):
    """Lock files are deleted while others open them: still no two have the folder at once."""
    code = """
import sys, time
from pathlib import Path
from tokenworld import files
from tokenworld.errors import UserError
folder, done = Path(sys.argv[1]), 0
while done < 100:
    try:
        with files.locking(folder):
            with open(folder / "one", "x"):
                pass
            (folder / "one").unlink()
        done += 1
    except UserError as error:
        assert "another process" in str(error), error
"""
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.PIPE) for _ in range(3)]
    assert [(p.communicate(timeout=60)[1], p.returncode) for p in processes] == [(b"", 0)] * 3


def test_a_file_system_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    if files.fcntl is None:
        pytest.skip("no locks here")

    def none(*_):
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(files.fcntl, "flock", none)
    with files.locking(tmp_path):
        pass


# ---------------------------------------------------------------------------------------------------------------------
# What killed processes left


def test_leftovers_are_nothing_and_are_deleted_and_nothing_else_is(tmp_path):
    assert files.is_empty(tmp_path) and files.is_empty(tmp_path / "not there")
    for name in (".tmp-12-a.json", ".lock"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".tmp-files").mkdir()
    (tmp_path / ".tmp-files" / "a").write_text("half")
    assert files.is_empty(tmp_path)
    for name in ("mine.tmp", "config.tmp", ".tmp-mine", ".tmp", "notes"):
        (tmp_path / name).write_text("mine")
        assert not files.is_empty(tmp_path)
        (tmp_path / name).rename(tmp_path.with_name(name))
    (tmp_path / "mine.tmp").write_text("mine")
    files.remove_unfinished(tmp_path)
    assert names(tmp_path) == [".lock", "mine.tmp"]
    assert not files.is_empty(tmp_path / "mine.tmp"), "a file is no empty folder"


def test_a_folder_is_filled_whole_or_not_at_all(tmp_path):
    folder, kinds = tmp_path / "model", ("config.json", "weights", "card")

    def fill(fail=None, text=""):
        with files.filling(folder, kinds, last="config.json") as stage:
            stage.mkdir()
            for name in kinds:
                (stage / name).write_text(name + text)
            if fail is not None:
                raise fail

    for fail in (UserError("no"), KeyboardInterrupt()):
        with pytest.raises(type(fail)):
            fill(fail)
        assert not folder.exists()
    # as a kill between two renames leaves it
    (folder / ".tmp-files").mkdir(parents=True)
    (folder / ".tmp-files" / "config.json").write_text("config.json")
    (folder / "weights").write_text("old")
    fill()
    assert names(folder) == sorted(kinds) and (folder / "weights").read_text() == "weights"
    # as a kill after the last rename leaves it; the same command finds its own work, another one a folder that is taken
    (folder / ".tmp-files").mkdir()
    fill()
    for fail, text, said in ((None, "2", "is not empty, no file was overwritten"), (UserError("no"), "", "no")):
        with pytest.raises(UserError, match=said):
            fill(fail, text)
    assert names(folder) == sorted(kinds) and (folder / "weights").read_text() == "weights"
    (folder / "notes").write_text("mine")
    fill()
    (folder / "notes").unlink()
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="is not empty, no file was overwritten"):
        fill()
    assert names(folder) == ["card", "weights"], "files of an unknown origin stay"


def test_a_complete_folder_stays_where_its_stage_cannot_be_removed(tmp_path, monkeypatch):
    folder, stays = tmp_path / "model", shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None)
    with files.filling(folder, ("config.json",), last="config.json") as stage:
        stage.mkdir()
        (stage / "config.json").write_text("whole")
    monkeypatch.setattr(shutil, "rmtree", stays)
    assert (folder / "config.json").read_text() == "whole"


def test_an_abandoned_file_goes_when_its_name_is_written_again(tmp_path):
    """The folder may be others' too: what was written within the last hour, or has another name, stays."""
    for name in ("old[1].gif", "other.gif"):
        for number, age in ((1, 2 * files.ABANDONED), (2, 0)):
            path = tmp_path / f".tmp-{number}-{name}"
            path.write_text("half")
            os.utime(path, (time.time() - age,) * 2)
    files.write(tmp_path / "old[1].gif", "whole")
    assert names(tmp_path) == [".tmp-1-other.gif", ".tmp-2-old[1].gif", ".tmp-2-other.gif", "old[1].gif"]
