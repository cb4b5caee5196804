"""Any observation space as what a tokenizer reads: a picture of bytes, or a vector of numbers in their own units.

A picture is a Box of bytes, of booleans, or of numbers from 0 to 1, with two or three dimensions. Everything else that is made
of numbers is a vector. A Dict or Tuple with a picture and numbers is the picture with a strip of gray cells below it, one cell
for each number: 256 levels between its bounds, or of symlog where it has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple
from torch.nn.functional import interpolate

FARTHEST = 1e4  # the number without bounds that a cell shows as white; its negative is black


@dataclass(frozen=True)
class Reader:
    """`space`: a Box of uint8 or bool, (H, W), (H, W, C) or (C, H, W), or of float32, (M,) · `read`: an observation as that."""

    space: Box
    read: Callable[[Any], np.ndarray]


def reader_of(space: Space, *, cell: int = 8, size: tuple[int | None, int | None] = (None, None)) -> Reader | None:
    """How observations of this space are read; None if they cannot be. cell: side of a cell of the strip · size: height and
    width of a picture above a strip, None for its own."""
    leaves = list(_leaves(space))
    pictures = [path for path, leaf in leaves if is_picture(leaf)]
    numbers = [(path, leaf) for path, leaf in leaves if _count(leaf)]
    if not leaves or len(pictures) + len(numbers) < len(leaves) or len(pictures) > 1:
        return None
    if not pictures:
        low, high = _bounds(numbers)
        return Reader(Box(low, high, dtype=np.float32), lambda obs: _vector(obs, numbers))
    picture = _at(space, pictures[0])
    if not numbers:
        return Reader(_bytes_space(picture), lambda obs: _bytes(_at(obs, pictures[0]), picture))
    return _with_strip(pictures[0], picture, numbers, cell, size)


def is_picture(space: Space) -> bool:
    """Is this a Box that can be looked at: bytes, booleans, or numbers from 0 to 1?"""
    if not isinstance(space, Box) or len(space.shape) not in (2, 3):
        return False
    is_unit = np.issubdtype(space.dtype, np.floating) and (space.low == 0).all() and (space.high == 1).all()
    return space.dtype in (np.uint8, bool) or bool(is_unit)


def is_nested(space: Space) -> bool:
    """Is this a Dict or a Tuple?"""
    return isinstance(space, (Dict, Tuple))


def channel_last(shape: tuple[int, ...]) -> bool:
    """Is a picture of this shape (H, W, C), and not (C, H, W)?"""
    return len(shape) == 3 and shape[0] >= shape[2]


def resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames (N, C, H, W) uint8 -> (N, C, *size): means over areas."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames)).float()
    return interpolate(pixels, size=size, mode="area").round().to(torch.uint8).numpy()


def _with_strip(
    path: tuple, picture: Box, numbers: list[tuple[tuple, Space]], cell: int, size: tuple[int | None, int | None]
) -> Reader:
    C, H, W = _channels_first(np.zeros(picture.shape, np.uint8)).shape
    size = (size[0] or H, size[1] or W)
    low, high = _bounds(numbers)
    across = max(1, size[1] // cell)
    rows = -(-len(low) // across)
    shape = (C, size[0] + rows * cell, size[1])

    def read(obs: Any) -> np.ndarray:
        frame = np.zeros(shape, np.uint8)
        pixels = _channels_first(_bytes(_at(obs, path), picture))[None]
        frame[:, : size[0]] = (pixels if size == (H, W) else resize(pixels, size))[0]
        for at, level in enumerate(levels(_vector(obs, numbers), low, high)):
            y, x = size[0] + at // across * cell, at % across * cell
            frame[:, y : y + cell, x : x + cell] = level
        return np.moveaxis(frame, 0, -1)  # (H, W, C)

    return Reader(Box(0, 255, (*shape[1:], C), np.uint8), read)


def levels(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Numbers (M,) with bounds (M,), which may be infinite -> their gray levels (M,) uint8."""
    is_bounded = np.isfinite(low) & np.isfinite(high)
    start, stop = np.where(is_bounded, low, 0), np.where(is_bounded, high, 1)
    linear = (values - start) / np.maximum(stop - start, 1e-12)
    bent = (np.sign(values) * np.log1p(np.abs(values)) / np.log1p(FARTHEST) + 1) / 2
    return (np.where(is_bounded, linear, bent).clip(0, 1) * 255).round().astype(np.uint8)


def _leaves(space: Space, path: tuple = ()) -> Iterator[tuple[tuple, Space]]:
    """The spaces that a nested one is made of, each with the keys that lead to it."""
    if is_nested(space):
        for key, inner in space.items() if isinstance(space, Dict) else enumerate(space):
            yield from _leaves(inner, (*path, key))
    else:
        yield path, space


def _at(nested: Any, path: tuple) -> Any:
    for key in path:
        nested = nested[key]
    return nested


def _count(leaf: Space) -> int:
    """The numbers of an observation that is not a picture; 0: it is none."""
    if isinstance(leaf, (Discrete, MultiDiscrete, MultiBinary)):
        return int(np.prod(leaf.shape))
    is_vector = isinstance(leaf, Box) and len(leaf.shape) <= 1 and leaf.dtype.kind in "fiub"
    return int(np.prod(leaf.shape)) if is_vector else 0


def _bounds(numbers: list[tuple[tuple, Space]]) -> tuple[np.ndarray, np.ndarray]:
    """The least and greatest values (M,) float32 of all numbers."""
    low, high = [], []
    for _, leaf in numbers:
        n = _count(leaf)
        if isinstance(leaf, Box):
            pair = leaf.low, leaf.high
        elif isinstance(leaf, Discrete):
            pair = leaf.start, leaf.start + leaf.n - 1
        elif isinstance(leaf, MultiDiscrete):
            pair = leaf.start, leaf.start + leaf.nvec - 1
        else:
            pair = np.zeros(n), np.ones(n)
        low.append(np.asarray(pair[0], np.float32).reshape(n))
        high.append(np.asarray(pair[1], np.float32).reshape(n))
    low, high = np.concatenate(low), np.concatenate(high)
    low[low <= -1e30], high[high >= 1e30] = -np.inf, np.inf  # the largest floats stand for no bound
    return low, high


def _vector(obs: Any, numbers: list[tuple[tuple, Space]]) -> np.ndarray:
    """The numbers (M,) float32 of an observation."""
    return np.concatenate([np.asarray(_at(obs, path), np.float32).reshape(_count(leaf)) for path, leaf in numbers])


def _bytes_space(picture: Box) -> Box:
    return picture if picture.dtype in (np.uint8, bool) else Box(0, 255, picture.shape, np.uint8)


def _bytes(obs: Any, picture: Box) -> np.ndarray:
    frame = np.asarray(obs)
    if picture.dtype == np.uint8 or picture.dtype == bool:
        return frame
    return (frame * 255).round().astype(np.uint8)


def _channels_first(frame: np.ndarray) -> np.ndarray:
    """A picture (H, W), (H, W, C) or (C, H, W) -> (C, H, W) uint8."""
    frame = frame.astype(np.uint8) * np.uint8(255) if frame.dtype == bool else frame
    if frame.ndim == 2:
        return frame[None]
    return np.moveaxis(frame, -1, 0) if channel_last(frame.shape) else frame
