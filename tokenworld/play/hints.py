"""What an environment's metadata say about play by people: `play_fps` and `channels`."""

from __future__ import annotations

import math
from typing import Any

from tokenworld.data.meta import are_meanings

FPS = 15.0  # steps per second where the environment names no speed
FASTEST = 30.0  # steps per second that the page offers


def play_hints(metadata: dict[str, Any], C: int) -> tuple[float, tuple[str, ...]]:
    """The speed in steps per second, and a name for each of the C channels: () where there are none, or where the frames
    are pictures (C is 1 or 3)."""
    fps, channels = metadata.get("play_fps"), metadata.get("channels")
    is_speed = isinstance(fps, int | float) and not isinstance(fps, bool) and math.isfinite(fps)
    return (
        min(max(float(fps), 1.0), FASTEST) if is_speed else FPS,
        tuple(channels) if C not in (1, 3) and are_meanings(channels, C) else (),
    )
