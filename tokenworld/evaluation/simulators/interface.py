"""What a simulator must do to be branched: the same state, continued again and again (tier B of the evaluation).

Every adapter tests itself when it is made, and refuses to be made if a clone does not go on as the original does.

    C channels · H, W image · A actions
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from tokenworld.action_space import Actions
from tokenworld.errors import UserError
from tokenworld.evaluation.statistics import draws

Array = np.ndarray
Branch = tuple[float, Array, float, bool]  # probability, obs (C, H, W) uint8 or float32, reward, terminated
Action = int | Array  # 0..A-1, or of an `Actions` record a row (A,) float32
ENDED = "the episode has ended: restore or reset before the next step"


class Branchable(Protocol):
    """A simulator whose state can be kept and returned to: obs (C, H, W) uint8 or float32, actions 0..A-1 or rows."""

    exact: bool  # `branches` enumerates; if not, draw: restore, reseed, step
    actions: int | Actions  # A, or of what parts

    def reset(self, seed: int | None = None) -> Array:
        """The first obs of an episode: of a new, seeded game, or of what comes after the last episode."""

    def snapshot(self) -> Any:
        """Everything that the future depends on, and the current obs."""

    def restore(self, x: Any) -> Array:
        """Return to a snapshot, as often as wanted; its obs. Randomness continues as in the snapshot until `reseed`."""

    def step(self, a: Action) -> tuple[Array, float, bool]:
        """Obs, reward, terminated. Raises `ValueError` after the end of an episode."""

    def reseed(self, k: int) -> None:
        """Let all randomness to come depend on k alone: equal k are common random numbers."""

    def branches(self, x: Any, a: Action) -> list[Branch] | None:
        """All that can come of action a in snapshot x, or None if that cannot be listed; leaves the simulator as it is."""

    def state_hash(self) -> int:
        """64 bits of the state, without its randomness: equal for states with the same possible futures."""


def self_test(simulator: Branchable, name: str, rounds: int = 10, steps: int = 20) -> None:
    """Clone, run `steps` random steps in original and clone, compare; from `rounds` states. Raises `UserError` if they differ.

    Between the two other actions run, so that what a restore forgets is not by chance what it was. Where branches are listed,
    what happens must be among them.
    """
    rng = np.random.default_rng(0)
    simulator.reset(1)
    for round in range(rounds):
        now = _play(simulator, draws.random_actions(simulator.actions, rng, 7))[-1]
        actions = draws.random_actions(simulator.actions, rng, steps)
        x = simulator.snapshot()
        enumerated = simulator.branches(x, draws.single(actions[0]))
        simulator.reseed(round)
        original = [now, *_play(simulator, actions)]
        _play(simulator, np.stack([draws.random_actions(simulator.actions, rng)] * 3))
        clone = [(simulator.restore(x), *now[1:3], simulator.state_hash())]
        simulator.reseed(round)
        clone += _play(simulator, actions)
        for t, (expected, actual) in enumerate(zip(original, clone, strict=False)):
            for what, u, v in zip(("observation", "reward", "end", "state"), expected, actual, strict=True):
                if not np.array_equal(u, v):
                    raise UserError(
                        f"{name} cannot be branched: {t} steps after a snapshot the {what} of a clone differs from the "
                        "original's, expected the same; use another version of its package, or do without a simulator"
                    )
        if enumerated is not None:
            obs, reward, terminated, _ = original[1]
            is_listed = any(np.array_equal(obs, o) and (reward, terminated) == (r, e) for _, o, r, e in enumerated)
            if not is_listed or abs(sum(p for p, *_ in enumerated) - 1) > 1e-9:
                raise UserError(
                    f"{name} cannot be branched: a step gave what is not among its {len(enumerated)} listed branches, expected"
                    " one of them; use another version of its package, or do without a simulator"
                )


def _play(simulator: Branchable, actions: Array) -> list[tuple[Array, float, bool, int]]:
    """Take actions, through the ends of episodes: obs, reward, terminated and hash of all steps and of all first frames."""
    path = []
    for a in actions:
        path.append((*simulator.step(draws.single(a)), simulator.state_hash()))
        if path[-1][2]:
            path.append((simulator.reset(len(path)), 0.0, False, simulator.state_hash()))
    return path
