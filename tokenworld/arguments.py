"""What callers from Python pass, checked with the sentences of the command line: whole numbers, seeds, frames, actions, noise.

Types and shapes are checked always. Whether actions and codes are in range is checked on the CPU only, where looking costs
microseconds; on a GPU it would make the host wait at each step, so it is done there with TOKENWORLD_DEBUG=1.
"""

from __future__ import annotations

import operator
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenworld.action_space import Actions
from tokenworld.errors import UserError, first_line

DEBUG = bool(os.environ.get("TOKENWORLD_DEBUG"))
SEEDS = 2**63  # what NumPy and PyTorch both take
INDICES = (torch.int64, torch.int32)


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number of any library, least..most, as Python's."""
    try:
        if isinstance(value, (bool, np.bool_)) or isinstance(value, Tensor) and value.dtype == torch.bool:
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise UserError(f"{name} must be a whole number, got {format_value(value)}: give e.g. {name}={max(least, 1)}") from None
    if number < least or most is not None and number > most:
        expected = f"at least {least}" if most is None else f"from {least} to {most}"
        raise UserError(f"{name} must be {expected}, got {number}: give e.g. {name}={max(least, 1)}")
    return number


def seed(value: Any, name: str = "seed") -> int:
    """A seed of any library's whole numbers, 0 .. 2**63 - 1, as Python's."""
    return whole(name, value, 0, SEEDS - 1)


def sizes(name: str, value: Any, letters: str) -> tuple[int, ...]:
    """Whole numbers of at least 1, as many as letters: frame=(C, H, W)."""
    try:
        numbers = tuple(value)
    except TypeError:
        numbers = ()
    if len(numbers) != len(letters) or isinstance(value, str):
        raise UserError(f"{name} must be {len(letters)} whole numbers ({', '.join(letters)}), got {format_value(value)}")
    return tuple(whole(f"{name}'s {letter}", x) for letter, x in zip(letters, numbers, strict=True))


def array(name: str, value: Any) -> np.ndarray:
    """An array of its own in memory order, whatever the strides of what is given, and wherever it lies."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    try:
        return np.array(value, order="C")
    except ValueError as error:
        raise UserError(f"{name} must be an array of numbers ({first_line(error)})") from None


def frames(obs: Any, frame: tuple[int, int, int] | None = None, dims: str = "B", dtype: str | None = None) -> None:
    """obs (*dims, C, H, W) uint8 or float32, of the model's frame and type if these are given. Raises UserError."""
    letters = f"({', '.join(dims)}, C, H, W)"
    if not isinstance(obs, Tensor):
        raise UserError(f"frames must be a torch.Tensor {letters}, got a {type(obs).__name__}: use torch.from_numpy")
    if obs.ndim != len(dims) + 3:
        raise UserError(f"frames have shape {tuple(obs.shape)}, expected {letters}: reshape them")
    is_vector = dtype == "float32" or dtype is None and obs.shape[-2:] == (1, 1) and obs.dtype == torch.float32
    if is_vector and obs.dtype != torch.float32:
        raise UserError(f"state vectors have type {obs.dtype}, expected torch.float32: use .float()")
    if not is_vector and obs.dtype != torch.uint8:
        scale = ", multiply values in 0..1 by 255" if obs.is_floating_point() else ""
        raise UserError(f"frames have type {obs.dtype}, expected torch.uint8 of 0..255{scale}: use .to(torch.uint8)")
    given = tuple(obs.shape[-3:])
    if frame is not None and given != tuple(frame):
        is_last = given == (*frame[1:], frame[0])
        advice = "channels come first, use .movedim(-1, -3)" if is_last else "prepare them as in training"
        raise UserError(f"frames have shape {given}, expected (C, H, W) = {tuple(frame)}: {advice}")


def flags(name: str, value: Any, count: int) -> None:
    """A bool tensor of `count` values, (B,) or (B, 1)."""
    if not isinstance(value, Tensor) or value.dtype != torch.bool or value.numel() != count:
        raise UserError(f"{name} must be a bool tensor ({count},), got {format_value(value)}")


def space(value: Actions | int) -> Actions:
    """A record of actions, or a number of them."""
    return value if isinstance(value, Actions) else Actions((whole("actions", value),))


def actions(value: Any, space: Actions, shape: tuple[int | None, ...], letters: str) -> None:
    """Actions of this space and shape, None: any size."""
    shape, letters = (*shape, *space.row), letters + "A" * len(space.row)
    types = INDICES if space.is_single else (torch.float32,)
    if not isinstance(value, Tensor) or value.dtype not in types or not _fits(value, shape):
        expected = ", ".join(letter if n is None else str(n) for letter, n in zip(letters, shape, strict=True))
        kind = "an int64" if space.is_single else "a float32"
        raise UserError(f"actions must be {kind} tensor ({expected}), got {format_value(value)}")
    if space.is_single:
        within("actions", value, space.choices[0])
    elif _is_cheap(value) and not (good := space.contains(value)).all():
        raise UserError(f"actions must lie within {space}, got {value[~good][0].tolist()}: clip them")


def noise(value: Any, shape: tuple[int, ...], letters: str) -> None:
    """Uniform random numbers of this shape."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or tuple(value.shape) != shape:
        raise UserError(f"noise must be a tensor ({', '.join(letters)}) = {shape} of floating point, got {format_value(value)}:"
                        f" give torch.rand{shape}")  # fmt: skip


def codes(value: Any, K: int, V: int) -> None:
    """Indices of codes (B, T, K), 0 .. V - 1."""
    if not isinstance(value, Tensor) or value.dtype not in INDICES or not _fits(value, (None, None, K)):
        raise UserError(f"codes must be an int64 tensor (B, T, {K}), got {format_value(value)}")
    within("codes", value, V)


def within(name: str, value: Tensor, count: int) -> None:
    """Values 0 .. count - 1, where looking at them is cheap (see the module)."""
    if not _is_cheap(value):
        return
    low, high = value.aminmax()
    if low < 0 or high >= count:
        wrong = int(low if low < 0 else high)
        raise UserError(f"{name} must be numbers 0..{count - 1}, got {wrong}")


def _is_cheap(value: Tensor) -> bool:
    """May its values be looked at (see the module)?"""
    return not (value.numel() == 0 or value.is_meta) and (value.device.type == "cpu" or DEBUG)


def _fits(value: Tensor, shape: tuple[int | None, ...]) -> bool:
    return value.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, value.shape, strict=True))


def format_value(value: Any) -> str:
    """A value for a message: short, on one line."""
    if isinstance(value, Tensor) and value.ndim:
        return f"{tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return " ".join(repr(value).split())[:60]
