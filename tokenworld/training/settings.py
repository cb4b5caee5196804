"""Invalid settings of phases are refused before anything is created."""

from __future__ import annotations

import math
from typing import Any

from tokenworld import optim
from tokenworld.errors import UserError


def check_settings(phases: dict[str, dict[str, Any]]) -> None:
    """Refuse invalid numbers before anything is created. Raises UserError."""
    least = dict(updates=1, batch=1, window=1, length=2, horizon=1, burn_in=1, every=1, episodes=1, final_episodes=1, envs=1)
    least |= dict(population=2, epochs=1, checkpoint_every=1, accumulate=1, steps=1, first_steps=1, cut=1)
    least |= dict(start=0, stop=0, warmup=0, held_out=0, frames=0, pictures=0)
    for phase, settings in phases.items():
        optim.check(**(settings.get("optimizer") or {}))
        for key, value in settings.items():
            if isinstance(value, (str, dict, list, bool, type(None))):
                continue
            if value < least.get(key, value):
                raise UserError(f"train.{phase}.{key} must be at least {least[key]}, got {value}")
            if key in ("lr", "clip") and value <= 0:
                raise UserError(f"train.{phase}.{key} must be positive, got {value}: choose e.g. 0.001")
            if key in ("recent", "epsilon", "events") and not 0 <= value <= 1:
                raise UserError(f"train.{phase}.{key} is a share, it must lie in 0..1, got {value}")
            if key.endswith("temperature") and value < 0:
                raise UserError(f"train.{phase}.{key} must be at least 0, got {value}: choose e.g. 1.0")
        if settings.get("window", 1) > settings.get("batch", math.inf):
            raise UserError(f"train.{phase}.window must be at most train.{phase}.batch, got {settings['window']}")
