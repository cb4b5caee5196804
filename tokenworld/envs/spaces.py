"""Which observations and actions fit; for others, the wrapper that makes them fit."""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict

from tokenworld import action_space
from tokenworld.envs.observations import is_picture, reader_of
from tokenworld.errors import UserError

RENDER = "env.render=true env.height=64 env.width=64"
DTYPE = "{_target_: gymnasium.wrappers.DtypeObservation, dtype: uint8}"


def check_spaces(id: str, env: gymnasium.Env) -> None:
    """Raise UserError for observations that are neither a picture nor numbers, and for actions without parts or bounds."""
    space = env.observation_space
    if reader_of(space) is None:
        got = f"Box{space.shape} {space.dtype}" if isinstance(space, Box) else f"{space}"
        raise UserError(
            f"env.id={id} has observations that cannot be read: got {got[:200]}, expected one picture (a Box of uint8, bool or"
            f" 0 to 1, shaped (H, W), (H, W, C) or (C, H, W)), numbers, or a Dict of both: {_advice(env)}"
        )
    try:
        action_space.of(env.action_space)
    except UserError as error:
        raise UserError(f"env.id={id}: {error}") from None


def _advice(env: gymnasium.Env) -> str:
    """What to add so that these observations fit."""
    space = env.observation_space
    if isinstance(space, Dict):
        images = [key for key, inner in space.items() if is_picture(inner)]
        if images and "minigrid" in type(env.unwrapped).__module__:
            return "add 'env.wrappers=[minigrid.wrappers.RGBImgPartialObsWrapper,minigrid.wrappers.ImgObsWrapper]'"
        if images:
            return _advise_wrapper(f"its image, obs[{images[0]!r}]")
    if isinstance(space, Box) and len(space.shape) in (2, 3):
        if not np.issubdtype(space.dtype, np.floating):
            return f"if its values lie in 0..255, add 'env.wrappers=[{DTYPE}]'"
        rescaled = f"{{_target_: gymnasium.wrappers.RescaleObservation, min_obs: 0, max_obs: 255}}, {DTYPE}"
        if np.isfinite(space.low).all() and np.isfinite(space.high).all():
            return f"if it is a picture, add 'env.wrappers=[{rescaled}]'"
        return _advise_wrapper("the picture as bytes in 0..255")
    if isinstance(space, Box) and len(space.shape) > 3:
        return "leave out the wrapper that stacks frames: the world model remembers earlier frames by itself"
    if "rgb_array" in (env.metadata or {}).get("render_modes", ()):
        return f"to learn from its rendered pictures, add {RENDER}"
    return f"{_advise_wrapper('a picture of it')}; or choose an environment with pixels"


def _advise_wrapper(returned: str) -> str:
    """What a wrapper of the user's own must do."""
    return (
        "write a gymnasium.ObservationWrapper in a module of the current folder, have it set observation_space and return "
        f"{returned}, and name it: 'env.wrappers=[my_module.MyWrapper]'"
    )
