"""A recipe for what an environment shows: recipes are written for pictures, and `overlay=vectors` makes them read numbers."""

from __future__ import annotations

from tokenworld.config import compose, schema
from tokenworld.config.env_section import GYM
from tokenworld.config.saved import RunSpec
from tokenworld.config.targets import resolve
from tokenworld.envs.checked import make_checked

VECTORS = "vectors"  # the overlay


def compose_suited(words: list[str], recipe: str = compose.DEFAULT_RECIPE) -> RunSpec:
    """`compose.compose`, checked, and with `overlay=vectors` where the environment shows state vectors and the recipe's
    tokenizer, unless the user chose it, reads pictures. Raises UserError."""
    spec = compose.compose(words, recipe)
    schema.check(spec.cfg)
    env, is_chosen = spec.cfg["env"], any(key.startswith("tokenizer._target_") for key in spec.given)
    reads = getattr(resolve(spec.cfg["tokenizer"]["_target_"]), "frame_dtype", "uint8")  # a function of the user's has none
    if env["_target_"] != GYM or is_chosen or reads != "uint8" or spec.data is not None or spec.loads:
        return spec
    probe = make_checked(env, 1)
    shown = probe.single_observation_space.dtype
    probe.close()
    if shown != "float32":
        return spec
    spec = compose.compose([f"overlay={VECTORS}", *words], recipe)
    schema.check(spec.cfg)
    return spec
