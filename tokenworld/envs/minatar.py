"""MinAtar (Young and Tian, 2019): five Atari-like games on a 10x10 grid, with one channel per kind of object.

Faithful to the `minatar` package, whose game code runs unchanged; what differs: frames are channel-first bytes (0 or
255), many games are stepped by one loop without a wrapper each, a seeded reset clears the action that a sticky step
would repeat (the package keeps it, so that its games are not repeatable), and episodes have a step limit, which
truncates. Freeway's own limit of 2,500 steps is part of its rules and terminates.
"""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from tokenworld.envs.seeds import fold
from tokenworld.errors import UserError

GAMES = {
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}
MEANINGS = {"n": "NOOP", "l": "LEFT", "u": "UP", "r": "RIGHT", "d": "DOWN", "f": "FIRE"}


def make(
    *, id: str = "MinAtar/Breakout-v1", num_envs: int = 1, sticky: float = 0.1, max_steps: int = 10000
) -> VectorEnv:
    """`num_envs` MinAtar games: obs (N, 4 to 10, 10, 10) uint8 in {0, 255}, discrete actions.

    `-v1` ids have the game's minimal action set, `-v0` ids all six actions. `sticky` is the probability that the last
    action is repeated; `max_steps` is the length at which an episode is truncated. Raises `UserError` for an id or a
    number that cannot be, and when the `minatar` package is not installed.
    """
    ids = {f"MinAtar/{name}-v{version}": (game, version) for name, game in GAMES.items() for version in (0, 1)}
    if id not in ids:
        nearest = difflib.get_close_matches(id, sorted(ids, reverse=True), n=1, cutoff=0.0)[0]
        raise UserError(f"env.id={id} is not a MinAtar game: did you mean {nearest}?")
    if num_envs < 1:
        raise UserError(f"env.num_envs must be at least 1, got {num_envs}: choose e.g. 16")
    if not 0.0 <= sticky < 1.0:
        raise UserError(f"env.sticky must be a probability in [0, 1), got {sticky}: choose e.g. 0.1")
    if max_steps < 1:
        raise UserError(f"env.max_steps must be at least 1, got {max_steps}: choose e.g. 10000")
    try:
        from minatar import Environment
    except ImportError as error:
        raise UserError(
            f"env.id={id} needs the package minatar, which is not installed: run `pip install tokenworld[quickstart]`"
        ) from error
    game, version = ids[id]
    games = [Environment(game, sticky_action_prob=sticky) for _ in range(num_envs)]
    return MinAtarVector(games, minimal_actions=version == 1, max_steps=max_steps)


class MinAtarVector(VectorEnv):
    """A list of `minatar.Environment`s behind Gymnasium's vector API."""

    def __init__(self, games: list[Any], *, minimal_actions: bool, max_steps: int) -> None:
        H, W, C = games[0].state_shape()
        self.games = games
        self.num_envs = len(games)
        self.max_steps = max_steps
        actions = games[0].minimal_action_set() if minimal_actions else range(games[0].num_actions())
        self.actions = [int(action) for action in actions]
        self.single_observation_space = Box(0, 255, (C, H, W), np.uint8)
        self.single_action_space = Discrete(len(self.actions))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        meanings = [MEANINGS[games[0].env.action_map[action]] for action in self.actions]
        self.metadata = {
            "autoreset_mode": AutoresetMode.NEXT_STEP,
            "action_meanings": meanings,
            "channels": [name.replace("_", " ") for name in games[0].env.channels],  # what each of the C shows, in their order
            "simulator": "tokenworld.evaluation.simulators.minatar.of_env",
            "play_fps": 4,  # steps per second at which a person can follow: a ball crosses the frame in six
        }
        self._frames = np.zeros((self.num_envs, H, W, C), bool)
        self._begin()

    def _begin(self) -> None:
        self._ended = np.zeros(self.num_envs, bool)  # the next step of this row begins an episode
        self._length = np.zeros(self.num_envs, np.int64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Row i is seeded with seed + i; without a seed the games' random streams continue."""
        if options:
            raise ValueError(f"no reset options are supported, got {options}")
        seed = fold(seed)
        for i, game in enumerate(self.games):
            if seed is not None:
                game.seed(fold(seed + i, 2**32))
                game.last_action = 0
            game.reset()
            self._frames[i] = game.state()
        self._begin()
        return self._obs(), {}

    def step(self, actions):
        actions = np.asarray(actions)
        A = len(self.actions)
        if actions.shape != (self.num_envs,) or actions.min() < 0 or actions.max() >= A:
            raise ValueError(f"actions must be {self.num_envs} numbers in 0..{A - 1}, got {actions}")
        reward = np.zeros(self.num_envs, np.float32)
        terminated = np.zeros(self.num_envs, bool)
        begins = self._ended.tolist()
        for i, (game, action) in enumerate(zip(self.games, actions.tolist(), strict=True)):
            if begins[i]:
                game.reset()
            else:
                reward[i], terminated[i] = game.act(self.actions[action])
            self._frames[i] = game.state()
        self._length = np.where(self._ended, 0, self._length + 1)
        truncated = (self._length >= self.max_steps) & ~terminated
        self._ended = terminated | truncated
        return self._obs(), reward, terminated, truncated, {}

    def _obs(self) -> np.ndarray:
        return to_bytes(self._frames)  # (N, C, H, W)


def to_bytes(frames: np.ndarray) -> np.ndarray:
    """(..., H, W, C) bool, as the package draws them -> (..., C, H, W) uint8 in {0, 255}."""
    return np.ascontiguousarray(np.moveaxis(frames, -1, -3)).view(np.uint8) * np.uint8(255)


TINY = dict(id="MinAtar/Breakout-v1", num_envs=2, max_steps=40)
