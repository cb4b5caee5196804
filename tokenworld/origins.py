"""Which strings may be imported, decided in one place.

A config names code in three ways: the class of a part (`_target_`), the module before the colon of an environment's id, and
wrappers and keyword arguments of an environment. Importing runs code, so a name is followed only if its origin is known: it is
defined in a part folder of tokenworld, or this command line or a recipe of the user's says it (`trust`), or the user vouches
for the folder that it was read from (`--trust-remote-code`, `trust_remote_code=True`).
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from typing import Any

from tokenworld.errors import UserError

FLAG = "--trust-remote-code"
command: list[str] | None = None  # the words of this process's command line, if it has one

_trusted: set[str] = set()


def names(config: Any, key: str = "") -> Iterator[str]:
    """The strings of a config that lead to the import of something outside tokenworld."""
    if isinstance(config, dict):
        for inner, value in config.items():
            yield from names(value, f"{key}.{inner}")
        return
    if isinstance(config, (list, tuple)):
        for value in config:
            yield from names(value, key)
        return
    path = key.split(".")
    if path[-1] == "trust_remote_code" and config not in (False, None):
        yield "trust_remote_code"
    if not isinstance(config, str):
        return
    is_class = path[-1] in ("_target_", "wrappers") and not config.startswith("tokenworld.")
    has_module = ":" in config and (path[-1] in ("id", "env_id") or "kwargs" in path)
    if is_class or has_module:
        yield config


def trust(config: Any) -> None:
    """Allow what this config names to be imported, also from the current folder: the user wrote it, or vouches for it."""
    found = set(names(config))
    _trusted.update(found)
    here = os.getcwd()
    if found and not {"", ".", here} & set(sys.path):
        sys.path.append(here)  # at the end: nothing that is installed is hidden


def is_trusted(name: str) -> bool:
    return name in _trusted


def check(config: Any, source: Any) -> None:
    """Raises UserError if a config that was read from `source` names code that nobody vouched for."""
    for name in names(config):
        if name not in _trusted:
            raise UserError(f"{source} names code outside tokenworld, {name}, and loading it would run that code: {advice()}")


def advice() -> str:
    """What to do for code that is not trusted."""
    if command is None:
        return "pass trust_remote_code=True if you trust where it came from"
    return f"if you trust where it came from, run: tokenworld {shlex.join([*command, FLAG])}"
