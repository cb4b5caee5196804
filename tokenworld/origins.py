"""Decide which strings may be imported.

A config names code in three ways: the class of a part (`_target_`), the module before the colon of an environment's id, and
wrappers and keyword arguments of an environment. Importing runs code, so a name is followed only if its origin is known: it is
defined in a part folder of tokenworld, or this command line or a recipe of the user's says it (`trust`), or the user vouches
for the folder that it was read from (`--trust-remote-code`, `trust_remote_code=True`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from tokenworld.errors import UserError

FLAG = "--trust-remote-code"

_trusted: set[str] = set()
_command: list[str] | None = None  # the words of the command line that runs now
_vouched = False  # its user vouches for every folder that it names


def names(config: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    """The strings of a config that lead to the import of something outside tokenworld."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from names(value, (*path, str(key)))
    elif isinstance(config, (list, tuple)):
        for value in config:
            yield from names(value, path)
    elif path and path[-1] == "trust_remote_code" and config not in (False, None):
        yield "trust_remote_code"
    elif isinstance(config, str) and _leads_to_code(config, path):
        yield config


def _leads_to_code(word: str, path: tuple[str, ...]) -> bool:
    if "wrappers" in path:
        return True
    if path and path[-1] == "_target_":
        return not word.startswith("tokenworld.")  # else `targets.resolve` lets nothing pass but parts
    if "kwargs" in path:  # environments that make other environments import what their keywords name
        return ":" in word or re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", word) is not None
    return ":" in word and path[-1:] in (("id",), ("env_id",))


def trust(config: Any) -> None:
    """Allow what this config names to be imported, also from the current folder: the user wrote it, or vouches for it."""
    targets = set(names(config))
    _trusted.update(targets)
    here = os.getcwd()
    if targets and not {"", ".", here} & set(sys.path):
        sys.path.append(here)  # at the end: nothing that is installed is hidden


@contextlib.contextmanager
def command_line(words: list[str]) -> Iterator[None]:
    """While a command runs: what it names is trusted until it ends, and with --trust-remote-code what its folders name, too."""
    global _command, _vouched, _trusted
    before = _command, _vouched, _trusted
    _command, _vouched, _trusted = [word for word in words if word != FLAG], FLAG in words, set(_trusted)
    try:
        yield
    finally:
        _command, _vouched, _trusted = before


def is_vouched() -> bool:
    return _vouched


def is_trusted(name: str) -> bool:
    return name in _trusted


def check(config: Any, source: Any) -> None:
    """Raises UserError if a config that was read from `source` names code that nobody vouched for."""
    if _vouched:
        return trust(config)
    for name in names(config):
        if name not in _trusted:
            raise UserError(f"{source} names code outside tokenworld, {name}, and loading it would run that code: {advice()}")


def advice() -> str:
    """What to do for code that is not trusted."""
    if _command is None:
        return "pass trust_remote_code=True if you trust where it came from"
    return f"if you trust where it came from, run: tokenworld {shlex.join([*_command, FLAG])}"
