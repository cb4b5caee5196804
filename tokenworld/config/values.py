"""The values that a recipe may hold, and whether they are of the type that a keyword is annotated with."""

from __future__ import annotations

import difflib
import inspect
import math
import types
import typing
from typing import Any, Literal

from tokenworld.errors import UserError

DEEPEST, MOST_VALUES, MOST_BYTES = 12, 10_000, 2**20  # of a config; the shipped ones have about 100 values


def check_values(config: Any, source: Any, depth: int = 0) -> int:
    """The number of values in a config. Raises UserError unless all are words, finite numbers, true, false, null,
    and lists and sections of these with words as keys: in a damaged or forged file anything can stand."""
    if depth > DEEPEST:
        raise UserError(f"{source} is nested more than {DEEPEST} deep: expected sections with keys and values")
    if isinstance(config, dict):
        wrong = [key for key in config if not isinstance(key, str)]
        if wrong:
            raise UserError(f"{source} has the key {wrong[0]!r}: expected words as keys")
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        count = 1
        for value in config:
            count += check_values(value, source, depth + 1)
            if count > MOST_VALUES:
                raise UserError(f"{source} has more than {MOST_VALUES:,} values: expected the sections of a recipe")
        return count
    if isinstance(config, bool) or config is None or isinstance(config, str):
        return 1
    if isinstance(config, int) and abs(config) < 2**128 or isinstance(config, float) and math.isfinite(config):
        return 1
    raise UserError(f"{source} has the value {str(config)[:40]!s}: expected words, true, false, null or finite numbers")


def did_you_mean(key: str, valid: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    return f"did you mean {prefix}{near[0]}? " if near else ""


def fits(value: Any, kind: Any) -> bool:
    """Is a YAML value of the annotated type? An int is a float, a list is a tuple, a bool is neither int nor float."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is inspect.Parameter.empty or kind is Any:
        return True
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in args)
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            return False
        if origin is tuple and Ellipsis not in args:
            return len(value) == len(args) and all(fits(v, a) for v, a in zip(value, args, strict=True))
        return all(fits(v, args[0]) for v in value)
    if origin is dict or kind is dict:
        return isinstance(value, dict)
    if kind in (None, types.NoneType):
        return value is None
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (bool, str, list, tuple):
        return isinstance(value, (list, tuple)) if kind in (list, tuple) else isinstance(value, kind)
    return False  # any other type cannot be written in YAML: such a keyword is passed by code


def words_for(kind: Any) -> str:
    """Describe an annotation in words."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    simple = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", None: "null"}
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(words_for(option) for option in args)
    if kind is types.NoneType:
        return "null"
    if origin in (list, tuple) and args:
        count = f"{len(args)} items, each " if origin is tuple and Ellipsis not in args else ""
        return f"a list of {count}{words_for(args[0])}"
    return simple.get(kind, f"a {getattr(kind, '__name__', kind)}")


def yaml_word(value: Any) -> str:
    if value is None or isinstance(value, bool):  # 0 and 1 are numbers, though they equal False and True
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if value.__hash__ else str(list(value))


def as_annotated(value: Any, keyword: inspect.Parameter | None) -> Any:
    """YAML has no tuples: a list becomes one where the constructor asks for a tuple."""
    if keyword is None or not isinstance(value, list):
        return value
    options = [keyword.annotation, *typing.get_args(keyword.annotation)]
    return tuple(value) if any(o is tuple or typing.get_origin(o) is tuple for o in options) else value


def flatten(cfg: dict, prefix: str = "") -> dict[str, Any]:
    """{"tokenizer.vocab_size": 512, ...}"""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
