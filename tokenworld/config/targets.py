"""From `_target_` to the class or function that it names: part folders of tokenworld, and what `origins` trusts."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from tokenworld import origins
from tokenworld.errors import UserError, first_line

# A part's section -> the module or folder of tokenworld that its class must come from.
PARTS = {
    "env": "envs",
    "tokenizer": "tokenizers",
    "backbone": "backbones",
    "decoding": "decoding",
    "action": "actions",
    "reward": "heads",
    "termination": "heads",
    "policy": "policies",
}


def resolve(target: str, *, trusted: bool = False) -> Callable:
    """The class or function that `_target_` names. Raises UserError.

    Untrusted (a loaded model): nothing outside the part folders of tokenworld is even imported, and what is found must
    have been defined there, so that `tokenworld.train.os.system` names nothing.
    """
    own = tuple({*PARTS.values(), "data", "train", "sinks"})
    trusted = trusted or origins.is_trusted(target)
    if not trusted and not target.startswith(tuple(f"tokenworld.{folder}." for folder in own)):
        raise UserError(f"_target_ must name a part of tokenworld, got {target}, code from outside: {origins.advice()}")
    found, error = _find(target)
    if found is None:
        near = _nearest_target(target)
        raise UserError(f"_target_ {target} cannot be imported ({error}){near and f': did you mean {near}?'}")
    if not (inspect.isclass(found) or inspect.isfunction(found) or trusted and callable(found)):
        raise UserError(f"_target_ must name a class or a function, got {target}, which is {type(found).__name__}")
    if not trusted and not is_part(found, own):
        raise UserError(f"_target_ must name something defined in a part of tokenworld, got {target}, "
                          f"which is defined in {found.__module__}")
    return found


def _find(target: str) -> tuple[Any, str]:
    """Import the longest module prefix, then walk the attributes; the reason if that leads nowhere."""
    words = target.split(".")
    if not all(word.isidentifier() for word in words) or len(words) < 2:
        return None, "expected package.module.Name"
    for cut in range(len(words) - 1, 0, -1):
        name = ".".join(words[:cut])
        try:
            found: Any = import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                continue  # that prefix is no module: try a shorter one
            return None, f"{error}"
        except Exception as error:  # whatever the module does when it is imported
            return None, f"{type(error).__name__} in {name}: {first_line(error)}"
        for word in words[cut:]:
            if not hasattr(found, word):
                return None, f"{found.__name__} has no {word}"
            found = getattr(found, word)
        return found, ""
    return None, f"there is no module {words[0]}"


def _nearest_target(target: str) -> str:
    """The nearest public name in the same module, if the module is there."""
    module, _, name = target.rpartition(".")
    try:
        names = [n for n, v in vars(import_module(module)).items() if getattr(v, "__module__", None) == module]
    except Exception:
        return ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"{module}.{near[0]}" if near else ""


def is_part(found: Any, folders: tuple[str, ...]) -> bool:
    module = getattr(found, "__module__", None) or ""
    return any(module == f"tokenworld.{folder}" or module.startswith(f"tokenworld.{folder}.") for folder in folders)
