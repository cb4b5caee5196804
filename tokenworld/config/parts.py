"""The parts of a world model, built from the sections of a recipe; sizes that follow from a part are passed to the next."""

from __future__ import annotations

from typing import Any

from tokenworld.action_space import Actions
from tokenworld.config.schema import build
from tokenworld.errors import UserError


def build_parts(config: dict, *, frame: tuple[int, int, int], actions: Actions) -> dict[str, Any]:
    """{"tokenizer", "backbone", "decoding", "reward", "termination"} for frames (C, H, W) and actions. Raises
    UserError for a config that lacks a section."""
    from tokenworld.interfaces import Shapes

    needed = ("tokenizer", "backbone", "decoding", "action", "reward", "termination")
    missing = [name for name in needed if name not in config]
    if missing:
        raise UserError(f"the config lacks {', '.join(missing)}: give the sections of a recipe, see config.compose")
    tokenizer, backbone = build(config["tokenizer"], frame_shape=frame), build(config["backbone"])
    D = backbone.D
    sizes = tuple(tokenizer.grid), tokenizer.K, tokenizer.V, tokenizer.E, D
    shapes = Shapes(frame, actions, *sizes, tokenizer.frame_dtype)
    decoding = build(config["decoding"], shapes=shapes, action=build(config["action"], actions=actions, dim=D))
    heads = {name: build(config[name], dim=decoding.shapes.dim) for name in ("reward", "termination")}
    return {"tokenizer": tokenizer, "backbone": backbone, "decoding": decoding} | heads
