"""Which function makes an environment: it follows from the id, so that `env.id=ANYTHING` is all that a user has to say."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from tokenworld.config.targets import resolve

GYM = "tokenworld.envs.gym.make"
MAKERS = {
    "ALE/": "tokenworld.envs.atari.make",
    "MinAtar/": "tokenworld.envs.minatar.make",
    "KnownWorld-": "tokenworld.envs.known_world.make",
}


def maker_of(id: str, current: str) -> str:
    """The maker for an id: `current` if it is a plug-in, or if it can make this id; else the one that can."""
    for prefix, maker in MAKERS.items():
        if id.startswith(prefix):
            matching = maker
            break
    else:
        matching = GYM
    if current not in (GYM, *MAKERS.values()) or current == GYM and matching == MAKERS["ALE/"]:
        return current  # a class of the user's own; Gymnasium makes Atari games, too
    return matching


def choose(cfg: dict, maker: str | None, given: Iterable[str]) -> dict:
    """The recipe with the maker that the id of its env asks for, unless the user names one.

    Where this is another one than the recipe's `maker`, keys of env and train.evaluate.env that it does not take are dropped,
    but for those that the user has `given`: `config.check` refuses these.
    """
    env = cfg.get("env")
    if not isinstance(env, dict) or not isinstance(env.get("id"), str) or not isinstance(env.get("_target_"), str):
        return cfg
    given = set(given)
    if "env._target_" not in given:
        env = env | {"_target_": maker_of(env["id"], env["_target_"])}
    if env["_target_"] == maker:
        return cfg
    takes = keywords_of(env["_target_"])
    cfg = cfg | {"env": _only(env, takes, given, "env")}
    evaluate = cfg.get("train", {}).get("evaluate") if isinstance(cfg.get("train"), dict) else None
    if isinstance(evaluate, dict) and isinstance(evaluate.get("env"), dict):
        changes = _only(evaluate["env"], takes, given, "train.evaluate.env")
        cfg["train"] = cfg["train"] | {"evaluate": evaluate | {"env": changes}}
    return cfg


def keywords_of(maker: str) -> set[str] | None:
    """The keywords that a maker takes; None for any."""
    keywords = inspect.signature(resolve(maker)).parameters.values()
    return None if any(k.kind is k.VAR_KEYWORD for k in keywords) else {k.name for k in keywords}


def _only(section: dict[str, Any], takes: set[str] | None, given: set[str], prefix: str) -> dict[str, Any]:
    def stays(key: str) -> bool:
        path = f"{prefix}.{key}"
        return key == "_target_" or takes is None or key in takes or any(g == path or g.startswith(path + ".") for g in given)

    return {key: value for key, value in section.items() if stays(key)}


def of_data(cfg: dict, meta: dict) -> dict:
    """The recipe with the environment that a folder of episodes says it comes from."""
    before = cfg["env"]["_target_"]
    maker = maker_of(meta["env_id"], before)
    takes = keywords_of(maker)
    known = {key: value for key, value in meta["preprocessing"].items() if takes is None or key in takes}
    return choose(cfg | {"env": cfg["env"] | {"_target_": maker, "id": meta["env_id"]} | known}, before, ())
