"""The forms that values from a file must have: `check` names the first value that has another one.

A form is a function of a value and of where it lies, which raises `Misfit`. Keys that a `record` does not name are left alone.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tokenworld.errors import UserError
from tokenworld.storage.weights import shorten

Form = Callable[[Any, str], None]
MANY, DEEP = 100_000, 12  # values in a `plain` one, and how deep they may be nested


class Misfit(Exception):
    """A value that has not the form which it should have."""

    def __init__(self, where: str, expected: str, value: Any):
        super().__init__(f"{where.lstrip('.') or 'it'} must be {expected}, got {_describe(value)}")


def check(value: Any, form: Form, path: Path | str) -> None:
    """Raise UserError, one sentence that names the file and the value, unless a value read from `path` has this form."""
    try:
        form(value, "")
    except Misfit as error:
        raise UserError(f"{path} is damaged, {error}: restore it from a copy") from None


def whole(low: int = 0, high: int = 2**53) -> Form:
    """A whole number low..high."""

    def form(value: Any, where: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise Misfit(where, f"a whole number {low}..{high}", value)

    return form


def number(value: Any, where: str) -> None:
    """Any number, NaN included: what was measured may be undefined."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or isinstance(value, int) and abs(value) > 2**1000:
        raise Misfit(where, "a number", value)


def positive(value: Any, where: str) -> None:
    """A finite number of at least 0."""
    number(value, where)
    if not (math.isfinite(value) and value >= 0):
        raise Misfit(where, "a finite number of at least 0", value)


def text(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise Misfit(where, "a word", value)


def flag(value: Any, where: str) -> None:
    if not isinstance(value, bool):
        raise Misfit(where, "true or false", value)


def maybe(form: Form) -> Form:
    """None, or this form; as a key of a record it may be missing."""

    def optional(value: Any, where: str) -> None:
        if value is not None:
            form(value, where)

    return optional


def either(*forms: Form) -> Form:
    """The first of these forms that fits; what does not fit the last is refused."""

    def form(value: Any, where: str) -> None:
        *others, last = forms
        for each in others:
            with contextlib.suppress(Misfit):
                return each(value, where)
        return last(value, where)

    return form


def list_of(form: Form, count: int | None = None, least: int = 0) -> Form:
    """A list of values of one form."""

    def each(value: Any, where: str) -> None:
        if not isinstance(value, (list, tuple)) or len(value) < least or count not in (None, len(value)):
            raise Misfit(where, f"a list of {'values' if count is None else count}{f', at least {least}' * (least > 0)}", value)
        for i, item in enumerate(value):
            form(item, f"{where}[{i}]")

    return each


def mapping_of(form: Form) -> Form:
    """A dict from words to values of one form."""

    def each(value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise Misfit(where, "a section with keys", value)
        for key, item in value.items():
            text(key, f"a key of {where}")
            form(item, f"{where}.{shorten(key)}")

    return each


def record(**forms: Form) -> Form:
    """A dict with these keys."""

    def each(value: Any, where: str) -> None:
        mapping_of(lambda *_: None)(value, where)
        for key, form in forms.items():
            form(value.get(key), f"{where}.{key}")

    return each


def tensor(ndim: int, *types: torch.dtype) -> Form:
    """A tensor on the CPU of so many dimensions and one of these types."""

    def form(value: Any, where: str) -> None:
        if not isinstance(value, torch.Tensor) or value.ndim != ndim or value.dtype not in types or value.requires_grad:
            names = " or ".join(str(kind).removeprefix("torch.") for kind in types)
            raise Misfit(where, f"a tensor of {ndim} dimensions of {names}", value)

    return form


def plain(value: Any, where: str) -> None:
    """What JSON can hold, bounded in size and depth."""
    waiting, seen = [(value, where, 0)], 0
    while waiting:
        value, where, depth = waiting.pop()
        seen += 1
        if seen > MANY or depth > DEEP:
            raise Misfit(where, f"at most {MANY} values, nested at most {DEEP} deep", value)
        if isinstance(value, (dict, list, tuple)) and len(value) + len(waiting) > MANY:
            raise Misfit(where, f"at most {MANY} values", value)
        if isinstance(value, dict):
            mapping_of(lambda *_: None)(value, where)
            waiting += [(each, f"{where}.{shorten(key)}", depth + 1) for key, each in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [(each, f"{where}[{i}]", depth + 1) for i, each in enumerate(value)]
        elif isinstance(value, (int, float)):
            number(float(value) if isinstance(value, bool) else value, where)
        elif value is not None:
            text(value, where)


def _describe(value: Any) -> str:
    """A value for a message: short, whatever it is."""
    if value is None or isinstance(value, (bool, float)):
        return str(value)
    if isinstance(value, int):
        return shorten(value)
    if isinstance(value, str):
        return repr(value[:40])
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (dict, list, tuple)):
        return f"{'a section' if isinstance(value, dict) else 'a list'} of {len(value)} values"
    return f"a {type(value).__name__}"
