"""What an agent can do, as numbers: any Gymnasium action space as a row of discrete and continuous parts, and back.

A space with one discrete part has actions (...,) int64. Any other has rows (..., A) float32, the discrete parts first. Nested
spaces (Dict, Tuple) are flattened in their own order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tokenworld.errors import UserError

if TYPE_CHECKING:
    from gymnasium.spaces import Space

MOST_CHOICES = 2**16  # values of one discrete part
MOST_PARTS = 2**10  # numbers of one action
MENU = 16  # representative actions, where there are more than can be counted
SPREAD = 0.7548776662  # steps of an additive recurrence by the powers of this number fill a cube evenly (Roberts 2018, R2)


@dataclass(frozen=True)
class Actions:
    """choices: number of values of each discrete part; (1,) is no choice at all, as of a video · bounds: lowest and highest
    value of each continuous part. Raises UserError for a part without values."""

    choices: tuple[int, ...] = (1,)
    bounds: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MOST_PARTS or any(not 1 <= n <= MOST_CHOICES for n in self.choices):
            raise UserError(f"actions must have 1 to {MOST_PARTS} parts, the discrete ones 1 to {MOST_CHOICES} values each,"
                            f" got {self}"[:400])  # fmt: skip
        for low, high in self.bounds:
            if not (np.isfinite(np.float32([low, high])).all() and np.float32(low) < np.float32(high)):
                raise UserError(f"a continuous action must have finite bounds, the lower one first, got {low} to {high}: wrap"
                                " the environment, e.g. {_target_: gymnasium.wrappers.RescaleAction, min_action: -1,"
                                " max_action: 1}")  # fmt: skip

    @property
    def size(self) -> int:
        """A, the numbers of one action."""
        return len(self.choices) + len(self.bounds)

    @property
    def is_single(self) -> bool:
        """Is an action one whole number?"""
        return len(self.choices) == 1 and not self.bounds

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of one action: () or (A,)."""
        return () if self.is_single else (self.size,)

    @property
    def dtype(self) -> torch.dtype:
        """The type of a tensor of actions."""
        return torch.int64 if self.is_single else torch.float32

    def zero(self, *shape: int, device: torch.device | None = None) -> Tensor:
        """What stands where no action is taken: zeros (*shape) or (*shape, A)."""
        return torch.zeros(*shape, *self.row, dtype=self.dtype, device=device)

    def draw(self, noise: Tensor) -> Tensor:
        """Uniform noise (..., A) -> uniformly random actions (...) or (..., A)."""
        sizes = torch.tensor(self.choices, dtype=noise.dtype, device=noise.device)
        chosen = torch.minimum((noise[..., : len(self.choices)] * sizes).floor(), sizes - 1)
        low, high = self._limits(noise)
        return self.join(chosen, (low + noise[..., len(self.choices) :] * (high - low)).clamp(low, high))

    def split(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (...) or (..., A) -> the discrete parts (..., n) int64, the continuous ones (..., m) float32."""
        if self.is_single:
            return action.unsqueeze(-1), torch.zeros(*action.shape, 0, device=action.device)
        n = len(self.choices)
        return action[..., :n].round().long(), action[..., n:]

    def join(self, discrete: Tensor, continuous: Tensor) -> Tensor:
        """The inverse of `split`."""
        return discrete[..., 0].long() if self.is_single else torch.cat([discrete.float(), continuous.float()], -1)

    def scale(self, continuous: Tensor) -> Tensor:
        """Continuous parts (..., m) in their own units -> -1 to 1."""
        low, high = self._limits(continuous)
        return 2 * (continuous - low) / (high - low) - 1

    def unscale(self, scaled: Tensor) -> Tensor:
        """The inverse of `scale`."""
        low, high = self._limits(scaled)
        return (low + (scaled + 1) / 2 * (high - low)).clamp(low, high)  # rounding may leave the bounds

    def menu(self, most: int = MENU) -> Tensor:
        """Representative actions (M,) or (M, A), M <= most, always the same ones: all where they can be counted (one discrete
        part: always all of them), else the lowest, the highest and the middle one, then others evenly spread."""
        if self.is_single:
            return torch.arange(self.choices[0])
        if not self.bounds and math.prod(self.choices) <= most:
            return torch.tensor(list(itertools.product(*map(range, self.choices))), dtype=torch.float32)
        steps = torch.arange(1, most - 2)[:, None] * SPREAD ** torch.arange(1, self.size + 1)  # (M - 3, A)
        points = torch.cat([torch.tensor([[0.0], [1.0], [0.5]]).expand(3, self.size), (0.5 + steps) % 1])  # (M, A)
        return self.draw(points.double()).unique(dim=0)[:most]

    def contains(self, action: Tensor) -> Tensor:
        """Which actions (...) or (..., A) lie within the space: (...) bool. NaN does not."""
        if self.is_single:
            return (action >= 0) & (action < self.choices[0])
        discrete, continuous = self.split(action)
        sizes = torch.tensor(self.choices, device=action.device)
        low, high = self._limits(continuous)
        is_whole = discrete == action[..., : len(self.choices)]
        is_within = ((continuous >= low) & (continuous <= high)).all(-1)
        return is_within & (is_whole & (discrete >= 0) & (discrete < sizes)).all(-1)

    def label(self, action: Tensor, meanings: list[str] | None = None) -> str:
        """An action in a few letters, for buttons and tables."""
        if self.is_single:
            return meanings[int(action)] if meanings else f"action {int(action)}"
        discrete, continuous = self.split(action)
        return " ".join([*map(str, discrete.tolist()), *(f"{value:+.3g}" for value in continuous.tolist())])

    def describe(self) -> str:
        """The space in a few words."""
        if self.is_single:
            return f"{self.choices[0]} actions"
        discrete = f"{len(self.choices)} discrete ({' x '.join(map(str, self.choices[:6]))})" if self.choices else ""
        continuous = f"{len(self.bounds)} continuous" if self.bounds else ""
        kinds = " and ".join(filter(None, [discrete, continuous]))
        return f"actions of {kinds} part{'s' * (self.size > 1)}"

    def _limits(self, like: Tensor) -> tuple[Tensor, Tensor]:
        bounds = torch.tensor(self.bounds, dtype=like.dtype, device=like.device).view(-1, 2)
        return bounds[:, 0], bounds[:, 1]


def of(space: Space | Actions | int) -> Actions:
    """The actions of a Gymnasium space, or that many numbered ones. Raises UserError for a space of another kind, and for
    continuous actions without bounds."""
    if isinstance(space, Actions):
        return space
    if isinstance(space, (int, np.integer)) and not isinstance(space, bool):
        return Actions((int(space),))
    parts = [_parts(leaf) for leaf in _leaves(space)]
    return Actions(tuple(n for choices, _ in parts for n in choices), tuple(pair for _, bounds in parts for pair in bounds))


def space_of(actions: Actions) -> Space:
    """The plainest Gymnasium space of these actions: Discrete, MultiDiscrete, Box, or a Tuple of the last two."""
    from gymnasium.spaces import Box, Discrete, MultiDiscrete, Tuple

    if actions.is_single:
        return Discrete(actions.choices[0])
    low, high = (np.array([pair[side] for pair in actions.bounds], np.float32) for side in (0, 1))
    spaces = ([MultiDiscrete(actions.choices)] if actions.choices else []) + ([Box(low, high)] if actions.bounds else [])
    return spaces[0] if len(spaces) == 1 else Tuple(spaces)


def to_space(space: Space, action: np.ndarray) -> Any:
    """Actions (N,) or (N, A) -> a batch of the space's own, as Gymnasium's vector environments take it."""
    from gymnasium.spaces import Discrete

    if isinstance(space, Discrete):  # the most frequent one by far
        return np.asarray(action, np.int64) + space.start
    discrete, continuous = (part.numpy() for part in of(space).split(torch.from_numpy(np.asarray(action))))
    return _build(space, iter(discrete.T), iter(continuous.T), len(discrete))


def from_space(space: Space, batch: Any) -> np.ndarray:
    """The inverse of `to_space`."""
    actions = of(space)
    discrete, continuous = [], []
    for leaf, values in _leaves_with(space, batch):
        kept = discrete if _parts(leaf)[0] else continuous
        kept += list(_columns(leaf, values))
    columns = (torch.from_numpy(np.stack(part, -1)) if part else torch.zeros(len((discrete or continuous)[0]), 0)
               for part in (discrete, continuous))  # fmt: skip
    return actions.join(*columns).numpy()


def _leaves(space: Space) -> Iterator[Space]:
    return (leaf for leaf, _ in _leaves_with(space, None))


def _leaves_with(space: Space, batch: Any) -> Iterator[tuple[Space, Any]]:
    """The spaces that a nested one is made of, each with its part of a batch of actions."""
    from gymnasium.spaces import Dict, Tuple

    if isinstance(space, Dict):
        for key, inner in space.items():
            yield from _leaves_with(inner, None if batch is None else batch[key])
    elif isinstance(space, Tuple):
        for at, inner in enumerate(space):
            yield from _leaves_with(inner, None if batch is None else batch[at])
    else:
        yield space, batch


def _parts(leaf: Space) -> tuple[list[int], list[tuple[float, float]]]:
    """The sizes of the discrete parts, or the bounds of the continuous ones, of a space that is not nested."""
    from gymnasium.spaces import Box, Discrete, MultiBinary, MultiDiscrete, Text

    match leaf:
        case Discrete():
            return [int(leaf.n)], []
        case MultiDiscrete():
            return leaf.nvec.ravel().tolist(), []
        case MultiBinary():
            return [2] * math.prod(leaf.shape), []
        case Text():  # 0 ends the text
            return [len(leaf.character_list) + 1] * leaf.max_length, []
        case Box() if np.issubdtype(leaf.dtype, np.floating):
            return [], list(zip(leaf.low.ravel().tolist(), leaf.high.ravel().tolist(), strict=True))
        case Box():
            return (leaf.high.astype(np.int64) - leaf.low.astype(np.int64) + 1).ravel().tolist(), []
    raise UserError(f"actions must be Discrete, MultiDiscrete, MultiBinary, Box, Text, or a Dict or Tuple of these, got {leaf}:"
                    " wrap the environment in a gymnasium.ActionWrapper")  # fmt: skip


def _build(space: Space, discrete: Iterator[np.ndarray], continuous: Iterator[np.ndarray], N: int) -> Any:
    """A batch of `space` from the next columns (N,) of both kinds."""
    from gymnasium.spaces import Dict, Discrete, Text, Tuple

    if isinstance(space, Dict):
        return {key: _build(inner, discrete, continuous, N) for key, inner in space.items()}
    if isinstance(space, Tuple):
        return tuple(_build(inner, discrete, continuous, N) for inner in space)
    choices, bounds = _parts(space)
    columns = np.stack([next(discrete) for _ in choices] + [next(continuous) for _ in bounds], 1)  # (N, parts)
    if isinstance(space, Text):
        return tuple(_text(space, row) for row in columns)
    if isinstance(space, Discrete):
        return (columns[:, 0] + space.start).astype(np.int64)
    values = columns.reshape(N, *space.shape) + _offset(space)
    if bounds:
        values = np.clip(values, space.low, space.high)  # float32 may round past the bounds
    return values.astype(space.dtype)


def _columns(leaf: Space, values: Any) -> np.ndarray:
    """The inverse of `_build` for one leaf: (parts, N)."""
    from gymnasium.spaces import Discrete, Text

    if isinstance(leaf, Text):
        letters = {letter: at + 1 for at, letter in enumerate(leaf.character_list)}
        return np.array([[letters[x] for x in text] + [0] * (leaf.max_length - len(text)) for text in values]).T
    if isinstance(leaf, Discrete):
        return (np.asarray(values) - leaf.start)[None]
    return (np.asarray(values) - _offset(leaf)).reshape(len(values), -1).T


def _offset(leaf: Space) -> Any:
    """What a discrete part adds to 0, 1, 2 ..."""
    from gymnasium.spaces import Box, MultiDiscrete

    if isinstance(leaf, MultiDiscrete):
        return leaf.start
    return leaf.low.astype(np.int64) if isinstance(leaf, Box) and not np.issubdtype(leaf.dtype, np.floating) else 0


def _text(space: Any, row: np.ndarray) -> str:
    """Letters up to the first 0, at least as many as the space asks for."""
    stops = np.flatnonzero(row == 0)
    length = max(int(stops[0]) if len(stops) else len(row), space.min_length)
    return "".join(space.character_list[max(int(at) - 1, 0)] for at in row[:length])
