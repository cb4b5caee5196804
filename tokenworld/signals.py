"""Signals that end a command: obeyed within ten seconds, and the exit code says which one it was (128 + its number).

SIGTERM (a scheduler, `docker stop`), SIGUSR1 (SLURM's `--signal`) and SIGHUP (a closed terminal) raise `Stop` where the
command is, as Ctrl-C raises KeyboardInterrupt, so that temporary files are removed. A training finishes its epoch and saves
first (`finishing`), but for Ctrl-C it has only `LATEST` seconds. Imports nothing heavy: the command line starts fast.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from tokenworld.errors import UserError

KINDS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
LATEST = 7.0  # seconds that are left to finish something
HARD = 2.0  # seconds after that until the process ends, whatever it does

Say = Callable[[str], None]


class Stop(KeyboardInterrupt):
    """A signal ends this command; `signum` is its number."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Request:
    """A signal that was noted and not obeyed yet: its number, or 0."""

    signum = 0


class _State:
    """What handlers and the watching thread share."""

    blocks = 0  # at work that have replaced handlers
    stopping = 0  # the signal that has raised `Stop`, or 0
    finishing: tuple[Say, str] | None = None  # of a block that notes signals: how it speaks, and what resumes it
    pipe: tuple[int, int] | None = None  # through which the thread hears of signals


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Have the signals that end a process raise `Stop` in the block: for whole commands. Ignored ones stay ignored."""
    kinds = [kind for kind in KINDS if signal.getsignal(kind) is signal.SIG_DFL]
    with _handling(_stop_at_once, kinds), _watching():
        try:
            yield
        finally:
            _State.stopping = 0


@contextlib.contextmanager
def finishing(say: Say, command: str) -> Iterator[Request]:
    """Note the first signal instead of raising `Stop`: a second one, or `LATEST` seconds (not for Ctrl-C), raises it in the
    block, and the end of the block raises it too. `command` resumes the work."""
    if _State.stopping:  # it was swallowed before
        raise Stop(_State.stopping)
    request = Request()

    def note(signum, frame):
        if request.signum:
            raise Stop(signum)
        request.signum = signum
        if signum == signal.SIGINT:  # said by another thread: this one may be in the middle of a line
            _thread.start_new_thread(say, ("stopping: this epoch is finished and saved first; Ctrl-C again stops at once",))

    kinds = [kind for kind in KINDS if signal.getsignal(kind) in (_stop_at_once, signal.default_int_handler)]
    _State.finishing = (say, command)
    with _handling(note, kinds):
        try:
            yield request
        except Exception as error:  # whoever signals a group of processes ends the environments' too
            if not is_lost_process(error):
                raise
            time.sleep(0.2)  # the signal may arrive after the news of the child
            if not request.signum:
                raise
        finally:
            _State.finishing = None
    if request.signum:
        raise Stop(request.signum)


def is_lost_process(error: BaseException | None) -> bool:
    """Does this error come from a child process that has ended? What such an error was raised for counts too."""
    while error is not None and not isinstance(error, (EOFError, ConnectionError)):
        error = error.__cause__ or error.__context__ if isinstance(error, UserError) else error.__cause__
    return error is not None


def leave(code: int) -> None:
    """End the process now: Python's own way takes seconds when large libraries are loaded."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    _end_children()
    os._exit(code)


def _stop_at_once(signum, frame):
    _State.stopping = signum
    raise Stop(signum)


# ---------------------------------------------------------------------------------------------------------------------
# The thread that ends what obeys no signal: one long call of another library, or a bare `except` that swallows `Stop`


@contextlib.contextmanager
def _watching() -> Iterator[None]:
    """Have a thread hear of signals, even while Python runs no handler, and end the process in time."""
    if threading.current_thread() is not threading.main_thread() or os.name != "posix":
        yield
        return
    _State.pipe = read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(read, threading.main_thread().ident), daemon=True, name="signals")
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        _State.pipe = None
        os.close(write)
        thread.join(1.0)
        os.close(read)


def _watch(pipe: int, main: int) -> None:
    signum = None
    while signum is None:
        received = os.read(pipe, 1)
        if not received:
            return
        kind = received[0]
        ours = kind in KINDS and kind != signal.SIGINT and getattr(signal.getsignal(kind), "__module__", "") == __name__
        signum = kind if ours else None
    name, (say, command) = signal.Signals(signum).name, _State.finishing or (None, "")
    if say is not None:
        say(f"stopping ({name}): this epoch is finished and saved first if that takes less than {LATEST:g} s")
    for seconds in (LATEST / 3,) * 3 if say is None else (LATEST,):
        if _is_over(pipe, seconds):
            return
        signal.pthread_kill(main, signum)
    if _is_over(pipe, HARD):
        return
    if say is not None:
        say(f"stopped at once ({name}); resume with: {command}")
    leave(128 + signum)


def _is_over(pipe: int, seconds: float) -> bool:
    """Wait; has the command ended meanwhile?"""
    end = time.monotonic() + seconds
    while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
        if not os.read(pipe, 1):
            return True
    return False


def _end_children() -> None:
    """End the environments' processes, which would complain of their lost parent."""
    import multiprocessing

    for child in multiprocessing.active_children():
        child.kill()


# ---------------------------------------------------------------------------------------------------------------------
# Handlers


@contextlib.contextmanager
def _handling(handler: Callable, kinds: Sequence[int]) -> Iterator[None]:
    """`handler` for these signals in the block. Only the main thread can have handlers."""
    if threading.current_thread() is not threading.main_thread():
        kinds = ()
    previous = {kind: signal.signal(kind, handler) for kind in kinds}
    _State.blocks += 1
    try:
        yield
    finally:
        _State.blocks -= 1
        for kind, before in previous.items():
            signal.signal(kind, before)


def _in_child() -> None:
    """A forked process (of an environment) leaves signals to its parent, which ends it by SIGTERM."""
    if _State.pipe is not None:  # it is the parent's
        signal.set_wakeup_fd(-1)
        for end in _State.pipe:
            os.close(end)
        _State.pipe = None
    if _State.blocks:
        for kind in KINDS:  # not SIG_IGN, which programs that it starts would inherit
            signal.signal(kind, signal.SIG_DFL if kind == signal.SIGTERM else lambda *_: None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
