"""The command line: `tokenworld COMMAND ... key=value`. Only the standard library is imported until a command runs."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

from tokenworld import files, origins, signals
from tokenworld.cli import help as help_text
from tokenworld.cli import verbs
from tokenworld.cli.arguments import near
from tokenworld.errors import UserError, sentence


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code: 0, 1 for a sweep with a failed run, 2 for what the user can correct (one line on stderr),
    128 + the number of the signal that ended it: 130 for Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a path may hold what the locale cannot say
    try:
        with signals.ending(), origins.command_line(words):
            code = _run(words)
            sys.stdout.flush()  # here, where an error is reported
        if argv is None and os.environ.get("WORLD_SIZE", "1") != "1":
            signals.leave(code)  # gloo's threads sometimes abort a rank that ends in Python's own way
        return code
    except KeyboardInterrupt as error:
        code = 128 + getattr(error, "signum", signal.SIGINT)
        if argv is None:  # the process is this command
            signals.leave(code)
        return code
    except (UserError, OSError, EOFError) as error:
        is_closed = _is_stdout_closed()
        _abandon_stdout()
        if is_closed and isinstance(error, BrokenPipeError):  # `tokenworld show | head`
            return 0
        rank = os.environ.get("RANK", "0")
        with contextlib.suppress(OSError):  # a closed stderr
            print(f"tokenworld{'' if rank == '0' else f' (rank {rank})'}: {_sentence(error)}", file=sys.stderr)
        return 2


def parse(words: list[str]) -> Callable[[], Any]:
    """The call that a command line asks for, with its settings checked and nothing done yet. Raises UserError."""
    command, *rest = words
    if command not in verbs.names():
        raise UserError(f"there is no command {command!r}: {near(command, verbs.names())}"
                        f"expected one of {', '.join(verbs.names())}")  # fmt: skip
    verb = verbs.load(command)
    if origins.FLAG in verb.HELP.flags:  # `origins` has read it already
        rest = [word for word in rest if word != origins.FLAG]
    return verb.parse(rest)


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help") and len(words) == 1:
        print(help_text.overview())
        return 0
    if words[0] == "--version":
        from tokenworld import __version__

        print(f"tokenworld {__version__}")
        return 0
    if words[0] == "help":
        words = [*words[1:], "--help"]
    if words[0] in verbs.names() and {"-h", "--help"} & set(words):
        print(help_text.of_command(words[0]))
        return 0
    outcome = parse(words)()
    return outcome if isinstance(outcome, int) else 0  # a sweep has an exit code of its own


def _sentence(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if signals.is_lost_process(error):
        return "a process of this command has ended (out of memory, or killed): run the same command again"
    return sentence(files.explain(error))


def _is_stdout_closed() -> bool:
    """Has the reader of stdout, a pipe, gone?"""
    try:
        poller = select.poll()
        poller.register(sys.stdout.fileno(), 0)
        return bool(poller.poll(0))
    except (AttributeError, ValueError, OSError):  # Windows; a test's stdout
        return False


def _abandon_stdout() -> None:
    """If stdout is closed or full, drop what is left in its buffer: Python would complain of it at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
