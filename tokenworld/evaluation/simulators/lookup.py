"""The simulator of a recipe's environment, if it has one that can be branched."""

from __future__ import annotations

from typing import Any

from tokenworld.envs.known_world import World
from tokenworld.errors import UserError
from tokenworld.evaluation.simulators.atari import Atari
from tokenworld.evaluation.simulators.interface import Branchable, self_test
from tokenworld.evaluation.simulators.minatar import MinAtar
from tokenworld.evaluation.simulators.replayed import Replay
from tokenworld.evaluation.simulators.tabular import Tabular


def simulator_of(env: dict[str, Any]) -> Branchable:
    """The simulator of a recipe's `env` section, tested. Raises UserError where there is none."""
    settings, target = {key: value for key, value in env.items() if key != "_target_"}, env["_target_"]
    if target == "tokenworld.envs.known_world.make":
        return _tested(Tabular(World(**settings)), env["id"])
    if target == "tokenworld.envs.gym.make" and not str(env["id"]).startswith("ALE/"):
        settings.pop("processes", None)
        return _tested(Replay(**settings), env["id"])
    settings.pop("max_steps", None)  # a branch is a few steps long: nothing is truncated
    if target == "tokenworld.envs.minatar.make":
        return MinAtar(**settings)
    if target == "tokenworld.envs.atari.make":
        return Atari(**settings)
    raise UserError(
        f"{env['id']} cannot be branched through {target}, expected env._target_ tokenworld.envs.atari.make (whose sticky "
        "actions can be listed), minatar.make, known_world.make or gym.make: evaluate with tier=A, which needs none"
    )


def _tested(simulator: Branchable, name: str) -> Branchable:
    self_test(simulator, name)
    return simulator
