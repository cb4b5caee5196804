"""Everything that is written goes through here: whole files, one sentence for a disk that refuses, one writer per folder.

A file is written under a temporary name beside its place, synced and renamed, so that a reader finds the old file or the new
one. An `OSError` while writing becomes one `UserError`. A folder that is written is locked for as long as its process lives.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tokenworld.errors import UserError

try:
    import fcntl
except ImportError:  # not POSIX: folders are not locked there
    fcntl = None

LOCK = ".lock"
TEMPORARY = ".tmp-"  # what the name of an unfinished file begins with: it may be deleted by whoever holds the folder's lock
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system that has none

ADVICE = {
    errno.ENOSPC: "free some space, then run the same command again",
    errno.EDQUOT: "free some of your quota, then run the same command again",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), then run the same command again",
    errno.EROFS: "the file system is read-only, choose a folder that can be written",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.ENOTDIR: "a file is in the place of a folder, choose another path",
    errno.EISDIR: "a folder is in the place of a file, choose another path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.EIO: "check the disk, then run the same command again",
}


def explain(error: OSError, path: Path | str | None = None) -> str:
    """One sentence on an `OSError`: the path, what the system said, what to do."""
    path = path or error.filename
    where = f"{path} cannot be written or read" if path else "a file cannot be written or read"
    reason = error.strerror or type(error).__name__
    return f"{where} ({reason}): {ADVICE.get(error.errno, 'check the path and the disk, then run the same command again')}"


@contextlib.contextmanager
def writing(path: Path | str, kept: str = "") -> Iterator[None]:
    """Turn an `OSError` in the block into a `UserError` that names `path`. kept: what is not lost, ends the sentence."""
    try:
        yield
    except OSError as error:
        raise UserError(explain(error, path) + (f"; {kept}" if kept else "")) from error


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary path with the suffix of `path`, renamed to it when the block ends well and removed when it does not.

    Makes the parent folders. Raises UserError where the disk refuses; a file that was there is then unchanged.
    """
    path = Path(os.path.realpath(path))  # through a link to what it names
    if path.exists() and not path.is_file() and not path.is_dir():  # /dev/stdout, a named pipe
        with writing(path):
            yield path
        return
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write(path: Path | str, content: bytes | str) -> None:
    """Replace a file by `content`, whole or not at all. Raises UserError where the disk refuses."""
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def sync(path: Path) -> None:
    """Wait until a file's bytes or a folder's names are on the disk. (Only POSIX can open a folder.)"""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_unfinished(folder: Path) -> None:
    """Delete the unfinished files that killed processes left in `folder`. Only while its lock is held."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def check_writable(folder: Path | str) -> None:
    """Make a folder, and try a file in it, before the work whose result goes there. Raises UserError."""
    folder = Path(folder)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def user_path(word: str | Path) -> Path:
    """The path that a user means: as it is written if that is there, else with ~ as the home folder, if there is one."""
    path = Path(word)
    with contextlib.suppress(RuntimeError):  # no such user, or no home
        return path if path.exists() else path.expanduser()
    return path


def is_empty(folder: Path | str) -> bool:
    """Is there nothing in this folder but a lock and unfinished files? True for a folder that does not exist."""
    folder = Path(folder)
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    return all(path.name == LOCK or path.name.startswith(TEMPORARY) for path in folder.iterdir())


@contextlib.contextmanager
def locked(folder: Path | str) -> Iterator[None]:
    """Be the only process that writes to `folder`, which is made if need be. The system frees the lock when a process ends,
    however it ends. Raises UserError if another process holds it."""
    path = Path(folder) / LOCK
    check_writable(folder)
    with writing(path):
        file = open(path, "a+", encoding="utf-8")
    with file:
        with writing(path):
            _take(file, folder)
        yield


def _take(file: TextIO, folder: Path | str) -> None:
    """Take the lock that an open file stands for, and write into it who has it."""
    file.seek(0)
    owner = file.read(100).strip() or "unknown"
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is being written by another process ({owner}): wait until it ends, or choose another folder"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
