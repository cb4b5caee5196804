"""A small world whose every probability is known: what an evaluation says of a model can be checked against the truth.

A corridor of five cells with a door at its right end, an object that wanders round a ring of four positions and throws a
shadow, a vase that breaks and stays broken, a lamp without consequences that a behavior policy obeys, and a color that is
shown in the leftmost cell only and decides whether the door, used once, rewards or punishes. Each part tests one thing:
slips and the object chance, object and shadow whether codes are drawn together, the vase what cannot be undone, the lamp
confusion of cause and correlation, the color memory. 160 states, 4 actions, frames of 6 tiles.
"""

from __future__ import annotations

from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from tokenworld.envs.seeds import fold
from tokenworld.errors import UserError

ID = "KnownWorld-v0"
LEFT, RIGHT, STAY, USE = range(4)
MEANINGS = ["LEFT", "RIGHT", "STAY", "USE"]
STATE = (5, 4, 2, 2, 2)  # cell, object, vase broken?, lamp lit?, color
TILES = (5, 4, 4, 2, 2, 3)  # what a frame shows: cell, object, shadow, vase, lamp, color (0: not shown)
SLIP = 0.2  # probability that a move stays where it is
CRACK = 0.5  # probability that using the middle cell breaks the vase
HAZARD = (0.01, 0.01, 0.01, 0.15, 0.01)  # probability that the episode ends, by cell; using the door ends it
GOOD = 0.65  # probability that the color is 1, for which the door gives 1; it gives -1 for 0
VASE, DOOR = 2, 4  # the cells of the vase and the door
SIDE = 8  # pixels of a tile; frames are 2 rows of 3 tiles
INK = ((0, 114, 178), (230, 159, 0), (120, 84, 10), (204, 121, 167), (240, 228, 66), (213, 94, 0))  # of each tile


class World:
    """The exact kernel. States are numbers in 0..159, `STATE` unravels them.

    transition (S, A, S), whether or not the episode continues · reward, hazard (S, A) · behavior (S, A), a policy that goes
    right where the lamp is lit and uses the vase and the door only · start (S,) · tiles (S, 6) · states (S, 5).
    """

    actions = len(MEANINGS)

    def __init__(self, *, id: str = ID, max_steps: int = 40):
        if id != ID:
            raise UserError(f"env.id={id} is not a known world: did you mean {ID}?")
        if max_steps < 1:
            raise UserError(f"env.max_steps must be at least 1, got {max_steps}: choose e.g. 40")
        self.max_steps = max_steps
        self.states = np.array(list(product(*map(range, STATE))))  # (S, 5)
        S, A = len(self.states), self.actions
        self.transition, self.reward = np.zeros((S, A, S)), np.zeros((S, A))
        self.behavior = np.zeros((S, A))
        for s, (cell, ring, vase, lamp, color) in enumerate(self.states.tolist()):
            for a in range(A):
                for (p, c), (q, o), (r, v), lit in product(
                    _moves(cell, a), ((0.5, ring - 1), (0.5, ring + 1)), _breaks(cell, vase, a), (0, 1)
                ):
                    self.transition[s, a, self.index(c, o % 4, v, lit, color)] += p * q * r * 0.5
            self.reward[s, USE] = (2 * color - 1) * (cell == DOOR)
            usable = cell in (VASE, DOOR)
            wish = (0.05, 0.85, 0.05, 0.05 * usable) if lamp else (0.45, 0.2, 0.2, 0.15 * usable)
            self.behavior[s] = np.array(wish) / sum(wish)
        self.hazard = np.repeat(np.array(HAZARD)[self.states[:, 0], None], A, 1)
        self.hazard[self.states[:, 0] == DOOR, USE] = 1.0
        cell, ring, vase, lamp, color = self.states.T
        self.tiles = np.stack([cell, ring, ring, vase, lamp, np.where(cell == 0, color + 1, 0)], 1)  # (S, 6)
        start = np.where(color == 1, GOOD, 1 - GOOD) * ((cell == 0) & (vase == 0))
        self.start = start / start.sum()

    def index(self, *values: int) -> int:
        return int(np.ravel_multi_index(values, STATE))

    def kernel(self, state: int, action: int) -> list[tuple[float, int, float, bool]]:
        """[(probability, next state, reward, terminated)] of everything that may come."""
        reward, hazard, outcomes = float(self.reward[state, action]), float(self.hazard[state, action]), []
        for s in np.flatnonzero(self.transition[state, action]).tolist():
            p = float(self.transition[state, action, s])
            outcomes += [(p * (1 - hazard), s, reward, False), (p * hazard, s, reward, True)]
        return outcomes

    def starts(self) -> list[tuple[float, int]]:
        """[(probability, state)] in which episodes begin."""
        return [(float(self.start[s]), int(s)) for s in np.flatnonzero(self.start)]

    def render(self, state: int) -> np.ndarray:
        """What is seen of a state: (3, 16, 24) uint8."""
        return draw(self.tiles[state])

    @cached_property
    def pictures(self) -> np.ndarray:
        """Of all states: (S, 3, 16, 24)."""
        return draw(self.tiles)

    @cached_property
    def visits(self) -> np.ndarray:
        """`visits_of` the behavior policy."""
        return self.visits_of(self.behavior)

    def visits_of(self, policy: np.ndarray) -> np.ndarray:
        """(S,) share of the steps of a policy's episodes in each state, truncation included."""
        step = np.einsum("sa,sat->st", policy * (1 - self.hazard), self.transition)
        here, total = self.start, np.zeros(len(self.states))
        for _ in range(self.max_steps):
            total, here = total + here, here @ step
        return total / total.sum()

    def play(self, policy: np.ndarray, rng: np.random.Generator, count: int) -> list[dict[str, np.ndarray]]:
        """`count` episodes under a policy (S, A), together: [{"state" (T + 1,), "action", "terminated" (T,)}]."""
        state = choose(np.broadcast_to(self.start, (count, len(self.start))), rng)
        path, alive = [], np.ones(count, bool)
        for _ in range(self.max_steps):
            action = choose(policy[state], rng)
            terminated = rng.random(count) < self.hazard[state, action]
            after = choose(self.transition[state, action], rng)
            path.append((state, action, after, terminated, alive))
            state, alive = after, alive & ~terminated
        states, actions, after, terminated, lived = (np.stack(column, 1) for column in zip(*path, strict=True))
        return [
            {"state": np.append(states[i, :n], after[i, n - 1]), "action": actions[i, :n], "terminated": terminated[i, :n]}
            for i, n in enumerate(lived.sum(1))
        ]


def draw(tiles: np.ndarray) -> np.ndarray:
    """Tiles (..., 6) -> frames (..., 3, 16, 24) uint8: bars whose position is the value; vase, lamp and color as fillings."""
    tiles = np.asarray(tiles)
    frame = np.zeros((*tiles.shape[:-1], 2 * SIDE, 3 * SIDE, 3), np.uint8)
    for k, (n, ink) in enumerate(zip(TILES, INK, strict=True)):
        glyphs = np.stack([_glyph(k, value, ink) for value in range(n)])  # (n, side, side, 3)
        y, x = k // 3 * SIDE, k % 3 * SIDE
        frame[..., y : y + SIDE, x : x + SIDE, :] = glyphs[tiles[..., k]]
    return np.ascontiguousarray(np.moveaxis(frame, -1, -3))


def _glyph(tile: int, value: int, ink: tuple[int, int, int]) -> np.ndarray:
    picture = np.full((SIDE, SIDE, 3), 16, np.uint8)
    if tile <= 2:  # cell, object, shadow: a bar
        left = round(value * (SIDE - 2) / (TILES[tile] - 1))
        picture[1:-1, left : left + 2] = ink
    elif tile == 3:  # a vase, whole or in two pieces
        picture[1:-1, 2:-2] = ink
        picture[3:5, 2:-2] = 16 if value else ink
    elif tile == 4:
        picture[2:-2, 2:-2] = ink if value else (60, 60, 60)
    elif value:  # the color, where it is shown
        picture[1:-1, 1:-1] = ink if value == 1 else (0, 158, 115)
    return picture


def _moves(cell: int, action: int) -> list[tuple[float, int]]:
    to = max(0, cell - 1) if action == LEFT else min(4, cell + 1) if action == RIGHT else cell
    return [(1.0, cell)] if to == cell else [(1 - SLIP, to), (SLIP, cell)]


def _breaks(cell: int, vase: int, action: int) -> list[tuple[float, int]]:
    return [(1 - CRACK, 0), (CRACK, 1)] if action == USE and cell == VASE and not vase else [(1.0, vase)]


def choose(p: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One index of each row of probabilities (n, m)."""
    return (p.cumsum(1) / p.sum(1, keepdims=True) <= rng.random((len(p), 1))).sum(1)


def make(*, id: str = ID, num_envs: int = 1, max_steps: int = 40) -> VectorEnv:
    """`num_envs` known worlds: obs (N, 3, 16, 24) uint8, four actions. Raises `UserError` for numbers that cannot be."""
    if num_envs < 1:
        raise UserError(f"env.num_envs must be at least 1, got {num_envs}: choose e.g. 16")
    return KnownWorldVector(World(id=id, max_steps=max_steps), num_envs)


class KnownWorldVector(VectorEnv):
    """Known worlds behind Gymnasium's vector API."""

    def __init__(self, world: World, num_envs: int) -> None:
        self.world, self.num_envs = world, num_envs
        self.single_observation_space = Box(0, 255, world.pictures.shape[1:], np.uint8)
        self.single_action_space = Discrete(world.actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {
            "autoreset_mode": AutoresetMode.NEXT_STEP,
            "action_meanings": MEANINGS,
            "simulator": "tokenworld.evaluation.simulators.tabular.of_known_world",
        }
        self._rng = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """One random stream for all rows; without a seed it continues."""
        if options:
            raise ValueError(f"no reset options are supported, got {options}")
        if seed is not None:
            self._rng = np.random.default_rng(fold(seed))
        self._state = self._begin()
        self._ended, self._length = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, np.int64)
        return self.world.pictures[self._state], {}

    def step(self, actions):
        actions, A = np.asarray(actions), self.world.actions
        if actions.shape != (self.num_envs,) or actions.min() < 0 or actions.max() >= A:
            raise ValueError(f"actions must be {self.num_envs} numbers in 0..{A - 1}, got {actions}")
        begins = self._ended
        reward = np.where(begins, 0, self.world.reward[self._state, actions]).astype(np.float32)
        terminated = (self._rng.random(self.num_envs) < self.world.hazard[self._state, actions]) & ~begins
        after = choose(self.world.transition[self._state, actions], self._rng)
        self._state = np.where(begins, self._begin(), after)
        self._length = np.where(begins, 0, self._length + 1)
        truncated = (self._length >= self.world.max_steps) & ~terminated
        self._ended = terminated | truncated
        return self.world.pictures[self._state], reward, terminated, truncated, {}

    def _begin(self) -> np.ndarray:
        return choose(np.broadcast_to(self.world.start, (self.num_envs, len(self.world.start))), self._rng)


TINY = dict(num_envs=2, max_steps=20)
