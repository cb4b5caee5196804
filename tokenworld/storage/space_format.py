"""Actions and frames as files describe them: JSON that is checked, the version of a format that they need, and words.

The formats of episodes and of models have two versions: 1, for frames of bytes and one discrete action, and 2, for all
others. As JSON, actions are {"choices": [values of each discrete part], "bounds": [[low, high] of each continuous part]}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tokenworld.action_space import MOST_CHOICES, MOST_PARTS, Actions

VERSIONS = (1, 2)
FRAME_DTYPES = ("uint8", "float32")
ACTIONS = (f"choices, whole numbers in 1..{MOST_CHOICES}, and bounds, pairs of finite float32 numbers, the lower one first,"
           f" together 1 to {MOST_PARTS}")  # fmt: skip
CHUNK = 2**18  # numbers that are compared at once
SHOWN = 6  # parts of an action in a sentence


def version_of(actions: Actions, frame_dtype: str) -> int:
    """The version of a format that can hold such actions and frames."""
    return 1 if actions.is_single and frame_dtype == "uint8" else 2


def as_json(actions: Actions) -> dict[str, list]:
    """The inverse of `actions_from`."""
    return {"choices": list(actions.choices), "bounds": [list(pair) for pair in actions.bounds]}


def actions_from(value: Any) -> Actions:
    """The actions that JSON of unknown origin describes. Raises ValueError, whose text is what it must be."""
    choices, bounds = (value.get("choices"), value.get("bounds")) if isinstance(value, dict) else (None, None)
    if not isinstance(choices, list) or not isinstance(bounds, list) or not 1 <= len(choices) + len(bounds) <= MOST_PARTS:
        raise ValueError(ACTIONS)
    if not all(type(n) is int and 1 <= n <= MOST_CHOICES for n in choices) or not all(map(_is_pair, bounds)):
        raise ValueError(ACTIONS)
    return Actions(tuple(choices), tuple((float(low), float(high)) for low, high in bounds))


def _is_pair(value: Any) -> bool:
    """Are they bounds which float32, the type of actions, can tell apart?"""
    if not isinstance(value, list) or len(value) != 2 or not all(type(limit) in (int, float) for limit in value):
        return False
    largest = float(np.finfo(np.float32).max)
    return all(-largest <= limit <= largest for limit in value) and bool(np.float32(value[0]) < np.float32(value[1]))


def first_outside(actions: Actions, action: np.ndarray) -> str | None:
    """Actions (n,) or (n, A): their range, or the first one, if any lies outside of the space; else None."""
    if actions.is_single:
        is_within = not action.size or (action.min() >= 0 and action.max() < actions.choices[0])
        return None if is_within else f"{action.min()}..{action.max()}"
    rows = max(1, CHUNK // actions.size)
    for at in range(0, len(action), rows):
        chunk = action[at : at + rows]
        is_within = actions.contains(torch.from_numpy(np.ascontiguousarray(chunk))).numpy()
        if not is_within.all():
            return _row([f"{number:g}" for number in chunk[np.flatnonzero(~is_within)[0]].tolist()])
    return None


def limits(actions: Actions) -> str:
    """The values that actions may have: 0..4, or (0..4, -2..2) for those of several parts."""
    parts = [f"0..{n - 1}" for n in actions.choices] + [f"{low:g}..{high:g}" for low, high in actions.bounds]
    return parts[0] if actions.is_single else _row(parts)


def _row(parts: list[str]) -> str:
    return f"({', '.join(parts[:SHOWN] + ['...'] * (len(parts) > SHOWN))})"


def describe_frames(shape: Sequence[int], dtype: str) -> str:
    """Frames (C, H, W) in words."""
    C, H, W = shape
    if dtype != "uint8" and H == W == 1:
        return f"state vectors of {C} numbers"
    return f"frames {C} x {H} x {W} (channels, height, width)" + (f" of {dtype}" if dtype != "uint8" else "")


def describe_actions(actions: Actions, names: list[str] | None = None) -> str:
    """Actions in words, with their names or limits."""
    inner = ", ".join(names or []) if actions.is_single else limits(actions)[1:-1]
    return actions.describe() + (f" ({inner})" if inner else "")
