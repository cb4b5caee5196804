"""Signals that end a command: obeyed within ten seconds, and the exit code says which one it was (128 + its number).

SIGTERM (a scheduler, `docker stop`), SIGUSR1 (SLURM's `--signal`) and SIGHUP (a closed terminal) raise `Stop` where the
command is, as Ctrl-C raises KeyboardInterrupt, so that temporary files are removed. A training finishes its epoch and saves
first (`finishing`), but for Ctrl-C it has only `LATEST` seconds. Imports nothing heavy: the command line starts fast.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from tokenworld.errors import UserError

KINDS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
LATEST = 7.0  # seconds that are left to finish something
HARD = 2.0  # seconds after that until the process ends, whatever it does

_handling = 0  # blocks at work that have replaced handlers


class Stop(KeyboardInterrupt):
    """A signal ends this command; `signum` is its number."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Request:
    """A signal that was noted and not obeyed yet: its number, or 0."""

    signum = 0


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Have the signals that end a process raise `Stop` in the block: for whole commands. Ignored ones stay ignored."""
    kinds = [kind for kind in KINDS if signal.getsignal(kind) is signal.SIG_DFL]
    with _handled(_stop_at_once, kinds):
        try:
            yield
        finally:
            _deadline.cancel()


@contextlib.contextmanager
def finishing(say: Callable[[str], None], command: str) -> Iterator[Request]:
    """Note the first signal instead of raising `Stop`: a second one, or `LATEST` seconds (not for Ctrl-C), raises it in the
    block, and the end of the block raises it too. `command` resumes the work."""
    if _deadline.signum:  # it was swallowed before
        raise Stop(_deadline.signum)
    request = Request()

    def note(signum, frame):
        if request.signum:
            raise Stop(signum)
        request.signum = signum
        if signum == signal.SIGINT:
            _thread.start_new_thread(say, ("stopping: this epoch is finished and saved first; Ctrl-C again stops at once",))
        else:
            _deadline.start(signum, say, command)

    kinds = [kind for kind in KINDS if signal.getsignal(kind) in (_stop_at_once, signal.default_int_handler)]
    with _handled(note, kinds):
        try:
            yield request
        except Exception as error:  # whoever signals a group of processes ends the environments' too
            if not is_lost_process(error):
                raise
            time.sleep(0.2)  # the signal may arrive after the news of the child
            if not request.signum:
                raise
        finally:
            _deadline.cancel()
    if request.signum:
        raise Stop(request.signum)


def is_lost_process(error: BaseException | None) -> bool:
    """Does this error come from a child process that has ended? What such an error was raised for counts too."""
    while error is not None and not isinstance(error, (EOFError, ConnectionError)):
        error = error.__cause__ or error.__context__ if isinstance(error, UserError) else error.__cause__
    return error is not None


def _stop_at_once(signum, frame):
    _deadline.start(signum, None, "")
    raise Stop(signum)


class _Deadline:
    """Repeats a signal, and ends the process `HARD` seconds after `LATEST`: Python obeys no signal during one long call of
    another library, and a bare `except` of another library swallows `Stop`."""

    def __init__(self) -> None:
        self._over: threading.Event | None = None
        self.signum = 0  # the signal whose time runs

    def start(self, signum: int, say: Callable[[str], None] | None, command: str) -> None:
        if self._over is None:
            self._over, self.signum = threading.Event(), signum
            # not threading.Thread, whose locks the interrupted code may hold
            _thread.start_new_thread(self._watch, (self._over, signum, say, command))

    def cancel(self) -> None:
        if self._over is not None:
            self._over.set()
            self._over, self.signum = None, 0

    @staticmethod
    def _watch(over: threading.Event, signum: int, say: Callable[[str], None] | None, command: str) -> None:
        name = signal.Signals(signum).name
        if say is not None:
            say(f"stopping ({name}): this epoch is finished and saved first if that takes less than {LATEST:g} s")
        for seconds in (LATEST / 3,) * 3 if say is None else (LATEST,):
            if over.wait(seconds):
                return
            signal.pthread_kill(threading.main_thread().ident, signum)
        if over.wait(HARD):
            return
        if say is not None:
            say(f"stopped at once ({name}); resume with: {command}")
        leave(128 + signum)


_deadline = _Deadline()


def leave(code: int) -> None:
    """End the process now: Python's own way takes seconds when large libraries are loaded."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    _end_children()
    os._exit(code)


def _end_children() -> None:
    """End the environments' processes, which would complain of their lost parent."""
    import multiprocessing

    for child in multiprocessing.active_children():
        child.kill()


@contextlib.contextmanager
def _handled(handler: Callable, kinds: Sequence[int]) -> Iterator[None]:
    """`handler` for these signals in the block. Only the main thread can have handlers; nothing is changed in another one."""
    global _handling
    if threading.current_thread() is not threading.main_thread():
        kinds = ()
    previous = {kind: signal.signal(kind, handler) for kind in kinds}
    _handling += 1
    try:
        yield
    finally:
        _handling -= 1
        for kind, before in previous.items():
            signal.signal(kind, before)


def _in_child() -> None:
    """A forked process (of an environment) leaves signals to its parent, which ends it by SIGTERM."""
    if _handling:
        for kind in KINDS:  # not SIG_IGN, which programs that it starts would inherit
            signal.signal(kind, signal.SIG_DFL if kind == signal.SIGTERM else lambda *_: None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
