"""Simulators that are branched by copying them: MinAtar (tier B of the evaluation).

A simulator here has reset(seed) -> obs, step(a) -> (obs, reward, terminated), snapshot(), restore(x) -> obs, reseed(k),
state_hash(), branches(x, a) -> [(p, obs, reward, terminated)] or None where it cannot list what may come, `exact` (can it?)
and `actions`. Observations are (C, H, W) uint8, those of `tokenworld.envs` bit for bit: they come from the same code.
"""

from __future__ import annotations

import copy
import hashlib
from typing import Any

import numpy as np

from tokenworld.envs import known_world, minatar
from tokenworld.evaluation import known_probe
from tokenworld.evaluation.simulators import Atari
from tokenworld.evaluation.tabular import Tabular
from tokenworld.interfaces import UserError

TESTED = 20  # steps that a clone and its original must agree on


class MinAtar:
    """One MinAtar game. Its randomness (sticky actions, what spawns where) can be drawn, not listed.

    Raises UserError for an id or a number that cannot be, and if a copy does not go on as its original does.
    """

    exact = False

    def __init__(self, *, id: str = "MinAtar/Breakout-v1", sticky: float = 0.1, max_steps: int = 10000):
        self.games = minatar.make(id=id, num_envs=1, sticky=sticky, max_steps=max_steps)
        self.actions = len(self.games.actions)
        self_test(self, id)

    def reset(self, seed: int) -> np.ndarray:
        return self.games.reset(seed=seed)[0][0]

    def step(self, a: int) -> tuple[np.ndarray, float, bool]:
        obs, reward, terminated, truncated, _ = self.games.step(np.array([a]))
        return obs[0], float(reward[0]), bool(terminated[0] or truncated[0])

    def snapshot(self) -> Any:
        return copy.deepcopy(self.games)

    def restore(self, x: Any) -> np.ndarray:
        self.games = copy.deepcopy(x)
        return self.games._obs()[0]

    def reseed(self, k: int) -> None:
        self.games.games[0].seed(k)

    def branches(self, x: Any, a: int) -> None:
        return None

    def state_hash(self) -> int:
        """Of the picture and the action that a sticky step would repeat; what the picture hides (timers) is left out."""
        digest = hashlib.sha256(self.games._frames.tobytes())
        digest.update(bytes([int(self.games.games[0].last_action)]))
        return int.from_bytes(digest.digest()[:8], "big")


def self_test(simulator, name: str, rounds: int = 4) -> None:
    """A clone and its original, reseeded alike, must see the same for 20 steps, whatever ran in between. Raises UserError."""
    rng = np.random.default_rng(0)
    for round in range(rounds):
        simulator.reset(round)
        _play(simulator, rng.integers(simulator.actions, size=5))
        start, actions, seen = simulator.snapshot(), rng.integers(simulator.actions, size=TESTED), []
        for other in range(2):
            first = (simulator.restore(start), 0.0, False)
            simulator.reseed(round)
            seen.append([first, *_play(simulator, actions)])
            simulator.reset(rounds)
            _play(simulator, np.full(3, (round + other) % simulator.actions))
        same = len(seen[0]) == len(seen[1]) and all(
            np.array_equal(a[0], b[0]) and a[1:] == b[1:] for a, b in zip(*seen, strict=True)
        )
        if not same:
            raise UserError(f"{name} cannot be branched: a clone went another way than its original, evaluate with tier=A")


def _play(simulator, actions: np.ndarray) -> list[tuple[np.ndarray, float, bool]]:
    """Until the episode ends."""
    path = []
    for a in actions.tolist():
        path.append(simulator.step(a))
        if path[-1][2]:
            break
    return path


def simulator_of(env: dict[str, Any]):
    """The simulator of a recipe's `env` section. Raises UserError where there is none."""
    settings = {key: value for key, value in env.items() if key != "_target_"}
    if env["_target_"] == "tokenworld.envs.minatar.make":
        return MinAtar(**settings)
    if env["_target_"] == "tokenworld.envs.atari.make":
        settings.pop("max_steps", None)  # a branch is a few steps long: nothing is truncated
        return Atari(**settings)
    if env["_target_"] == "tokenworld.envs.known_world.make":
        return Tabular(known_world.World(**settings), known_probe.scripted)
    raise UserError(
        f"{env['id']} cannot be branched, expected an Atari or a MinAtar game or the known world: evaluate with tier=A, which "
        "needs no simulator"
    )
