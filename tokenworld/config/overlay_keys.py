"""Which keys of an overlay a recipe takes: an overlay is for any recipe, and classes differ in their keywords."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

from tokenworld.config.schema import TRAIN
from tokenworld.config.targets import PARTS, is_part, resolve
from tokenworld.config.values import did_you_mean
from tokenworld.errors import UserError


def fitting(over: dict, recipe: dict, source: str) -> dict:
    """The keys of an overlay that the recipe has or that its classes take. A key that another class of tokenworld takes, and a
    part or phase that the recipe lacks, are left out. Raises UserError for a key that no class takes."""
    kept: dict[str, Any] = {}
    for name, section in over.items():
        if name == "train" and isinstance(section, dict) and isinstance(recipe.get("train"), dict):
            kept["train"] = {}
            for phase, settings in section.items():
                if phase in recipe["train"]:
                    kept["train"][phase] = _section(settings, recipe["train"][phase], source, f"train.{phase}")
                elif phase not in TRAIN:
                    raise UserError(_unknown(source, phase, [*TRAIN], "train."))
        elif name in recipe:
            # another environment takes other keys: `check` compares them with what makes it
            kept[name] = section if name == "env" else _section(section, recipe[name], source, name)
        elif name not in (*PARTS, "train"):
            raise UserError(_unknown(source, name, [*PARTS, "train"]))
    return kept


def _section(over: Any, base: Any, source: str, name: str) -> Any:
    """The keys of one section, "tokenizer" or "policy.network"."""
    if not (isinstance(over, dict) and isinstance(base, dict)):
        return over
    target = base.get("_target_")
    if not isinstance(target, str):
        return over  # a dict of settings, of which none has a name here
    kept: dict[str, Any] = {}
    for key, value in over.items():
        if key in base:
            kept[key] = _section(value, base[key], source, f"{name}.{key}")
        elif key in (own := _keywords(resolve(target, trusted=True))):
            kept[key] = value
        elif not any(key in _keywords(other) for other in _shipped(name)):
            raise UserError(_unknown(source, key, [*base, *own], f"{name}."))
    return kept


def _unknown(source: str, key: str, known: list[str], prefix: str = "") -> str:
    return (f"{source} sets {prefix}{key}, which neither the recipe nor any class of tokenworld takes there:"
            f" {did_you_mean(key, known, prefix)}remove it")


def _keywords(build: Callable) -> set[str]:
    return set(inspect.signature(build).parameters)


def _shipped(name: str) -> Iterator[Callable]:
    """Everything of tokenworld that a section of this name may hold."""
    phase = name.removeprefix("train.")
    folder = PARTS[name.split(".")[0]] if phase == name else "training.loop" if phase == "loop" else "training.phases"
    module = import_module(f"tokenworld.{folder}")
    names = [f"{module.__name__}.{each.name}" for each in pkgutil.iter_modules(getattr(module, "__path__", ()))]
    for each in map(import_module, names or [module.__name__]):
        for public, value in vars(each).items():
            if not public.startswith("_") and callable(value) and is_part(value, (folder,)):
                yield value
