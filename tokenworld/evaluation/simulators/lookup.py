"""The simulator that an environment offers, if it has one that can be branched."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from tokenworld.envs.checked import make_checked
from tokenworld.errors import UserError
from tokenworld.evaluation.simulators.interface import Branchable, self_test

FOLDER = __name__.rpartition(".")[0]


def simulator_of(env: dict[str, Any]) -> Branchable:
    """The simulator of a recipe's `env` section, tested: `metadata["simulator"]` of the environment, called with the keywords
    of the section. It is the dotted name of a function in this folder or, of an environment outside of tokenworld, a function.

    Raises UserError where there is none.
    """
    settings, name = {key: value for key, value in env.items() if key != "_target_"}, str(env.get("id", env["_target_"]))
    env_copy = make_checked(env, 1, **({"processes": False} if "processes" in env else {}))
    offered = env_copy.metadata.get("simulator")
    env_copy.close()
    if offered is None:
        raise UserError(
            f"{name} offers no simulator that can be branched (Atari games do with env._target_=tokenworld.envs.atari.make),"
            ' expected metadata["simulator"] of the environment: evaluate with tier=A, which needs none'
        )
    if callable(offered):
        simulator = offered(**settings)
        self_test(simulator, name)
        return simulator
    return _named(offered, name)(**settings)  # these test themselves


def _named(offered: Any, name: str) -> Callable[..., Branchable]:
    module, _, function = str(offered).rpartition(".")
    if module.rpartition(".")[0] != FOLDER:
        raise UserError(f"{name} offers the simulator {offered!r}, expected a function, or the name of one in {FOLDER}")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError):
        raise UserError(f"{name} offers the simulator {offered!r}, which is not there: correct its metadata") from None
