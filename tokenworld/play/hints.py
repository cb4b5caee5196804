"""Read the hints for interactive play in the metadata of an environment: `play_fps` and `channels`."""

from __future__ import annotations

import math
from typing import Any

from tokenworld.data.meta import are_meanings

FPS = 15.0  # steps per second if the environment names no speed
FASTEST = 30.0  # highest steps per second on the page


def play_hints(metadata: dict[str, Any], C: int) -> tuple[float, tuple[str, ...]]:
    """Return the speed in steps per second and the name of each of the C channels.

    The names are () if the environment has none, or if the frames are pictures (C is 1 or 3).
    """
    fps, channels = metadata.get("play_fps"), metadata.get("channels")
    is_speed = isinstance(fps, int | float) and not isinstance(fps, bool) and math.isfinite(fps)
    return (
        min(max(float(fps), 1.0), FASTEST) if is_speed else FPS,
        tuple(channels) if C not in (1, 3) and are_meanings(channels, C) else (),
    )
