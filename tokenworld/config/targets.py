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

MOVED = {  # an old dotted name -> the new one; rows are added, never removed
    "tokenworld.train.loop": "tokenworld.training.loop.run_epochs",
    "tokenworld.train.collect": "tokenworld.training.phases.collect.collect",
    "tokenworld.train.train_tokenizer": "tokenworld.training.phases.tokenizer.train_tokenizer",
    "tokenworld.train.train_dynamics": "tokenworld.training.phases.dynamics.train_dynamics",
    "tokenworld.train.train_policy": "tokenworld.training.phases.policy.train_policy",
    "tokenworld.train.train_policy_model_free": "tokenworld.training.phases.model_free.train_policy_model_free",
    "tokenworld.train.evaluate": "tokenworld.training.phases.evaluate.evaluate",
    "tokenworld.actions.DiscreteAction": "tokenworld.actions.ActionTable",
}


def with_new_names(config: Any) -> Any:
    """A config of an earlier version in which each `_target_` that was moved has its new name."""
    if isinstance(config, dict):
        return {key: MOVED.get(value, value) if key == "_target_" and isinstance(value, str) else with_new_names(value)
                for key, value in config.items()}  # fmt: skip
    return [with_new_names(value) for value in config] if isinstance(config, list) else config


def resolve(target: str, *, trusted: bool = False) -> Callable:
    """Return the class or function that `_target_` names. Raises UserError.

    Untrusted (a loaded model): nothing outside the part folders of tokenworld is even imported, and what is found must
    have been defined there, so that `tokenworld.heads.os.system` names nothing.
    """
    target = MOVED.get(target, target)
    own = tuple({*PARTS.values(), "data", "training.loop", "training.phases", "sinks"})
    trusted = trusted or origins.is_trusted(target)
    if not trusted and not target.startswith(tuple(f"tokenworld.{folder}." for folder in own)):
        raise UserError(f"_target_ must name a part of tokenworld, got {target}, code from outside: {origins.advice()}")
    resolved, error = _find(target)
    if resolved is None:
        near = _nearest_target(target)
        raise UserError(f"_target_ {target} cannot be imported ({error}){near and f': did you mean {near}?'}")
    if not (inspect.isclass(resolved) or inspect.isfunction(resolved) or trusted and callable(resolved)):
        raise UserError(f"_target_ must name a class or a function, got {target}, which is {type(resolved).__name__}")
    if not trusted and not is_part(resolved, own):
        raise UserError(f"_target_ must name something defined in a part of tokenworld, got {target}, "
                          f"which is defined in {resolved.__module__}")
    return resolved


def _find(target: str) -> tuple[Any, str]:
    """Import the longest module prefix, then walk the attributes; the reason if that leads nowhere."""
    words = target.split(".")
    if not all(word.isidentifier() for word in words) or len(words) < 2:
        return None, "expected package.module.Name"
    for cut in range(len(words) - 1, 0, -1):
        name = ".".join(words[:cut])
        try:
            resolved: Any = import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                continue  # that prefix is no module: try a shorter one
            return None, f"{error}"
        except Exception as error:  # whatever the module does when it is imported
            return None, f"{type(error).__name__} in {name}: {first_line(error)}"
        for word in words[cut:]:
            if not hasattr(resolved, word):
                return None, f"{resolved.__name__} has no {word}"
            resolved = getattr(resolved, word)
        return resolved, ""
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


def is_part(value: Any, folders: tuple[str, ...]) -> bool:
    module = getattr(value, "__module__", None) or ""
    return any(module == f"tokenworld.{folder}" or module.startswith(f"tokenworld.{folder}.") for folder in folders)
