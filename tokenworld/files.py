"""Everything that is written goes through here: whole files, one sentence for a disk error, one writer per folder.

A file is written under a temporary name next to its path, synced and renamed, so that a reader finds the old file or the new
one. An `OSError` while writing becomes one `UserError`. A folder that is written is locked for as long as its process lives.
"""

from __future__ import annotations

import contextlib
import errno
import filecmp
import glob
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TextIO

from tokenworld.errors import UserError

try:
    import fcntl
except ImportError:  # not POSIX: folders are not locked there
    fcntl = None

LOCK = ".lock"
STREAM = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/(self|\d+)/fd/\d+")
TEMPORARY = ".tmp-"  # what the name of an unfinished file begins with: it may be deleted by whoever holds the folder's lock
ABANDONED = 3600.0  # seconds that an unfinished file has not been written for when nobody will finish it
STAGE = f"{TEMPORARY}files"
UNFINISHED = re.compile(rf"{re.escape(TEMPORARY)}([0-9]+-.+|files)")
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)  # of a file system that has none

ADVICE = {
    errno.ENOSPC: "free some space, then run the same command again",
    errno.EDQUOT: "free some of your quota, then run the same command again",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f), then run the same command again",
    errno.EROFS: "the file system is read-only, choose a folder that can be written",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.ENOTDIR: "a file is in the place of a folder, choose another path",
    errno.EEXIST: "a file is in the place of a folder, choose another path",
    errno.EISDIR: "a folder is in the place of a file, choose another path",
    errno.ENAMETOOLONG: "choose a shorter path",
    errno.ELOOP: "a link is in the place of a file that is written, remove the link",
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
    except ConnectionError:  # of a process, not of a disk
        raise
    except OSError as error:
        raise UserError(explain(error, path) + (f"; {kept}" if kept else "")) from error


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary path with the suffix of `path`, renamed to it when the block ends well and removed when it does not.

    Makes the parent folders. A link at `path` is replaced, its target stays (see `follow_links`). Raises UserError where
    the disk refuses; a file that was there is then unchanged.
    """
    path = Path(path)
    if _is_stream(path):
        with writing(path):
            yield path
        return
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(path)
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _remove_abandoned(path: Path) -> None:
    """Delete what killed processes left of this very file: the folder may be others' too, so an hour decides, not a lock."""
    for old in path.parent.glob(f"{TEMPORARY}[0-9]*-{glob.escape(path.name)}"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > ABANDONED:
                old.unlink()


def follow_links(path: Path | str) -> Path:
    """What a link names, for a path that the user gives; a folder's own files are never written through a link."""
    return Path(path) if _is_stream(Path(path)) else Path(os.path.realpath(path))


def open_own(path: Path, mode: str, **keywords: Any) -> IO:
    """Open a file of a folder of tokenworld's to write on. Raises OSError where a link is in its place."""
    no_follow = getattr(os, "O_NOFOLLOW", 0)
    return open(path, mode, opener=lambda name, flags: os.open(name, flags | no_follow, 0o666), **keywords)


def truncate_own(path: Path, size: int) -> None:
    """Cut a file of a folder of tokenworld's. Raises OSError where a link is in its place."""
    with open_own(path, "r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def write(path: Path | str, content: bytes | str) -> None:
    """Replace a file by `content`, whole or not at all. Raises UserError where the disk refuses."""
    with replacing(path) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else encode(content))


def encode(text: str) -> bytes:
    """UTF-8; what it cannot say (a path's bytes that are no text) is escaped."""
    return text.encode("utf-8", errors="backslashreplace")


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
    """Delete the unfinished files and folders that killed processes left in `folder`. Only while its lock is held."""
    folder = Path(folder)
    for path in [path for path in folder.iterdir() if is_unfinished(path)] if folder.is_dir() else ():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def is_unfinished(path: Path) -> bool:
    return UNFINISHED.fullmatch(path.name) is not None


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
    with contextlib.suppress(RuntimeError, OSError, ValueError):  # no such user, or no home; no path at all
        return path if path.exists() else path.expanduser()
    return path


def check_path(name: str, value: Any) -> Path:
    """What a caller from Python passes as a path, ~ as the home folder. Raises UserError for what cannot be one."""
    wrong = "" if isinstance(value, (str, os.PathLike)) else "expected a str or a pathlib.Path"
    if not wrong:
        try:
            os.lstat(path := user_path(value))
        except ValueError as error:  # a zero byte
            wrong = str(error)
        except OSError as error:
            wrong = error.strerror if error.errno == errno.ENAMETOOLONG else ""
    if wrong:
        raise UserError(f"{name} is not a path, got {value!r}: {wrong}")
    return path


def check_replaceable(path: Path | str) -> None:
    """Check that a file can be written, before the work whose result it takes. Raises UserError."""
    path = Path(path)
    if path.is_dir():
        raise UserError(explain(IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)), path))
    if not _is_stream(path):
        check_writable(Path(os.path.realpath(path)).parent if path.is_symlink() else path.parent)


def _is_stream(path: Path) -> bool:
    """Is this a pipe, a device, or another name of this process's own output, which may be a file that others write to too?"""
    for _ in range(40):  # links, as many as a system follows
        if STREAM.fullmatch(str(path)):
            return True
        if not path.is_symlink():
            break
        path = path.parent / os.readlink(path)
    return path.exists() and not path.is_file() and not path.is_dir()


def write_or_rescue(path: Path | str, write: Callable[[Path], None]) -> None:
    """Do `write(path)`. Where the disk refuses, write to a new folder of the current one, or of the system's for temporary
    files, and raise UserError that says where the result is."""
    path = Path(path)
    try:
        return write(path)
    except (UserError, OSError) as error:
        reason = explain(error, path) if isinstance(error, OSError) else str(error)
    for parent in (Path.cwd(), tempfile.gettempdir()):
        try:
            fallback = Path(tempfile.mkdtemp(prefix=f"{path.stem}-", dir=parent)) / path.name
        except OSError:
            continue
        try:
            write(fallback)
        except (UserError, OSError):
            shutil.rmtree(fallback.parent, ignore_errors=True)
        else:
            raise UserError(f"{reason}; the result was saved as {fallback}")
    raise UserError(reason)


def is_empty(folder: Path | str) -> bool:
    """Is there nothing in this folder but a lock and unfinished files? True for a folder that does not exist."""
    folder = Path(folder)
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    return all(is_own(path) for path in folder.iterdir())


def is_own(path: Path) -> bool:
    """Is this a lock or an unfinished file?"""
    return path.name == LOCK or is_unfinished(path)


@contextlib.contextmanager
def locking(folder: Path | str) -> Iterator[None]:
    """Be the only process that writes to `folder`, which is made if need be, and removed if it is then empty. The system frees
    the lock when a process ends, however it ends. Raises UserError if another process holds it."""
    folder = Path(folder)
    path, is_new = folder / LOCK, not folder.exists()
    check_writable(folder)
    with writing(path):
        file = _take(path)
    _held.add(file)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # while it is held: who waits for this very file looks again
            if is_new:
                folder.rmdir()
        _held.discard(file)
        file.close()


@contextlib.contextmanager
def filling(folder: Path | str, names: Sequence[str], last: str) -> Iterator[Path]:
    """A path in `folder`, to be made a folder with files of these names: they move to `folder` when the block ends well, `last`
    as the last, so that a folder that has it is complete. What a killed process left of them is deleted first; a complete
    folder stays as it is if the block makes the same files. Raises UserError for a folder that holds anything else, or that
    another process writes."""
    folder = Path(folder)
    stage = folder / STAGE
    with locking(folder):
        with writing(folder):
            is_complete = (folder / last).exists()
            if stage.is_dir() and not is_complete:
                _remove(folder, names)
            if not is_complete and not is_empty(folder):
                raise UserError(_describe_occupied(folder))
            remove_unfinished(folder)
        try:
            yield stage
            with writing(folder):
                if not is_complete:
                    _move(stage, folder, last)
                elif not _is_same(stage, folder, names):
                    raise UserError(_describe_occupied(folder))
        except BaseException:
            if not is_complete:
                _remove(folder, names)
            raise
        finally:
            shutil.rmtree(stage, ignore_errors=True)  # a complete folder is no worse for a stage that stays


def _describe_occupied(folder: Path) -> str:
    return f"{folder} exists and is not empty, no file was overwritten: choose another out=DIR"


def _move(stage: Path, folder: Path, last: str) -> None:
    for path in sorted(stage.iterdir(), key=lambda path: path.name == last):
        sync(path)
        if path.name == last:
            sync(folder)
        os.replace(path, folder / path.name)
    sync(folder)


def _is_same(stage: Path, folder: Path, names: Sequence[str]) -> bool:
    """Do both hold the same files, byte for byte?"""
    present = [[name for name in names if (each / name).exists()] for each in (stage, folder)]
    return present[0] == present[1] and all(filecmp.cmp(stage / name, folder / name, shallow=False) for name in present[0])


def _remove(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)


_held: set[TextIO] = set()  # open files of the locks of this process


def _in_child() -> None:
    """A forked process keeps no lock of its parent: it may outlive it."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)


def _take(path: Path) -> TextIO:
    """The open file that holds the lock `path`, which says who has it."""
    while True:
        file = open_own(path, "a+", encoding="utf-8")
        try:
            _lock(file, path.parent)
            if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # another process has just removed it


def _lock(file: TextIO, folder: Path) -> None:
    file.seek(0)
    owner = file.read(100).strip() or "unknown"
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{folder} is being written by another process ({owner}): wait until it ends, or choose another folder"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
