"""A recipe for what an environment shows: recipes are written for pictures, and `overlay=vectors` makes them read numbers."""

from __future__ import annotations

import contextlib

import numpy as np
from gymnasium.spaces import Box

from tokenworld.config import compose, schema
from tokenworld.config.env_section import GYM
from tokenworld.config.saved import RunSpec
from tokenworld.config.targets import resolve
from tokenworld.envs.checked import make_checked
from tokenworld.errors import UserError
from tokenworld.interfaces import Part

VECTORS = "vectors"  # the overlay


def compose_suited(words: list[str], recipe: str = compose.DEFAULT_RECIPE) -> RunSpec:
    """`compose.compose`, checked, and with `overlay=vectors` where the environment shows state vectors and the recipe's
    tokenizer, unless the user chose it, reads pictures. Raises UserError."""
    spec = compose.compose(words, recipe)
    if _may_show_vectors(spec):
        schema.check_section(spec.cfg, "env")
        with contextlib.suppress(UserError):  # whoever plays it will say what is wrong with it
            probe = make_checked(spec.cfg["env"], 1)
            if probe.single_observation_space.dtype == np.float32:
                spec = compose.compose([f"overlay={VECTORS}", *words], recipe)
            probe.close()
    schema.check(spec.cfg)
    return spec


def _may_show_vectors(spec: RunSpec) -> bool:
    """Has the recipe a tokenizer of pictures that the user did not choose, and an environment that may show anything?"""
    env, is_chosen = spec.cfg.get("env"), any(key.startswith("tokenizer._target_") for key in spec.given)
    if is_chosen or spec.data is not None or spec.loads or not isinstance(env, dict) or env.get("_target_") != GYM:
        return False
    schema.check_section(spec.cfg | {"tokenizer": {"_target_": spec.cfg.get("tokenizer", {}).get("_target_")}}, "tokenizer")
    return frames_read(spec.cfg) == "uint8"


def frames_read(cfg: dict) -> str:
    """The type of frames that a recipe's tokenizer reads."""
    build = resolve(cfg["tokenizer"]["_target_"])
    return build.frame_dtype if isinstance(build, type) and Part in build.__mro__ else "uint8"


def check_frames(cfg: dict, space: Box) -> None:
    """Raise UserError for a tokenizer that does not read what the environment, with these observations, shows."""
    is_vector = space.dtype == np.float32
    if is_vector != (frames_read(cfg) == "float32"):
        shown = f"state vectors of {space.shape[0]} numbers" if is_vector else f"pictures {space.shape}"
        advice = "add overlay=vectors" if is_vector else "choose a recipe for pictures, e.g. recipe=quickstart"
        raise UserError(f"env.id={cfg['env'].get('id')} has {shown}, but the tokenizer {cfg['tokenizer']['_target_']} reads"
                        f" {'pictures' if is_vector else 'state vectors'}: {advice}")  # fmt: skip
