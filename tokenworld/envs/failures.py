"""Describe an error in the user's own code and its location: one clause instead of a traceback."""

from __future__ import annotations

import os
import sysconfig
import traceback
from pathlib import Path

import tokenworld
from tokenworld.errors import first_line

OWN = str(Path(tokenworld.__file__).resolve().parent)
INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def describe(error: BaseException) -> str:
    """Return `ValueError: its first line (my_env.py:12)`: type, message, and the last line that ran in the user's own files."""
    kind = type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{kind}: {error.msg} ({_shorten_path(error.filename or '?')}:{error.lineno})"
    text = first_line(error)
    users = [each for each in _files(error) if not each[0].startswith((OWN, *INSTALLED))]
    location = f" ({_shorten_path(users[-1][0])}:{users[-1][1]})" if users else ""
    return f"{kind if text == kind else f'{kind}: {text}'}{location}"


def is_own(error: BaseException) -> bool:
    """Was the error raised by a line of tokenworld itself?"""
    files = _files(error)
    return bool(files) and files[-1][0].startswith(OWN)


def _files(error: BaseException) -> list[tuple[str, int]]:
    """The (file, line) of each call on the way to the error, but for Python's own machinery of imports."""
    calls = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return [(name, line) for name, line in calls if not name.startswith("<")]


def _shorten_path(file: str) -> str:
    here = os.getcwd() + os.sep
    return file.removeprefix(here)
