"""Random numbers that follow from a state alone, so that two evaluations that meet in a state draw the same there.

Frames, budget and seed of an evaluation choose its states. What is drawn *at* a state (the model's own frames, actions of a
rollout) must not depend on that choice: a comparison state by state would else show differences of the same weights. So
each number is a hash of the state, of what it is for (`stream`) and of its position: counter-based, in no order, and alike
on every device.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from tokenworld.action_space import Actions, of

STEP = 0x9E3779B97F4A7C15  # of SplitMix64 (Steele, Lea and Flood 2014)


def uniform(states: np.ndarray, shape: tuple[int, ...], stream: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """states (N,) integers -> (N, *shape) float32 uniform in [0, 1)."""
    count = int(np.prod(shape))
    key = _mixed(np.asarray(states).astype(np.uint64) ^ _mixed(np.array([stream + 1], np.uint64)))  # (N,)
    with np.errstate(over="ignore"):
        bits = _mixed(key[:, None] + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(STEP))
    numbers = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)  # 24 bits: exact, and below 1
    return torch.from_numpy(numbers.reshape(len(key), *shape)).to(device)


def integers(state: int, high: int, shape: tuple[int, ...] | int, stream: int = 0) -> np.ndarray:
    """Uniform integers in 0 .. high - 1 of one state."""
    return np.random.default_rng([int(state), stream]).integers(high, size=shape)


def actions(state: int, space: Actions | int, shape: tuple[int, ...] | int, stream: int = 0) -> np.ndarray:
    """Uniformly random actions (*shape) or (*shape, A) of one state."""
    return random_actions(space, np.random.default_rng([int(state), stream]), shape)


def random_actions(space: Actions | int, rng: np.random.Generator, shape: tuple[int, ...] | int | None = None) -> np.ndarray:
    """Uniformly random actions (*shape) or (*shape, A); None: one of them, as `single` gives it."""
    space = of(space)
    if space.is_single:
        return single(rng.integers(space.choices[0], size=shape))
    shape = () if shape is None else np.atleast_1d(shape).tolist()
    return space.draw(torch.from_numpy(rng.random((*shape, space.size)))).numpy()


def single(action: np.ndarray) -> np.ndarray | int:
    """An action as a simulator takes it: a number, or a row (A,)."""
    return int(action) if np.ndim(action) == 0 else action


def name_of(*parts: bytes | int) -> int:
    """A state as a number of 63 bits: the hash of all that it is."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else str(part).encode())
        digest.update(b"|")
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: each output bit depends on all input bits. x uint64."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(STEP)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
