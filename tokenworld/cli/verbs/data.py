"""`tokenworld data info DIR`: look at a folder of episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenworld.cli.arguments import Help, Key
from tokenworld.errors import UserError

HELP = Help(
    summary="look at a folder of episodes",
    place="info DIR",
    about="""\
Episodes, steps, spaces, returns, size and integrity of a folder of episodes.

example
  tokenworld data info data/breakout""",
)
KEYS: dict[str, Key] = {}


def parse(words: list[str]) -> Callable[[], Any]:
    if len(words) != 2 or words[0] != "info":
        raise UserError(f"data takes `info` and a folder of episodes, got {' '.join(words) or 'nothing'}: "
                        f"write tokenworld data info data/breakout")  # fmt: skip
    return lambda: run(words[1])


def run(folder: str) -> dict[str, Any]:
    """Episodes, steps, spaces, returns, size and integrity of a folder of episodes."""
    from tokenworld.data.describe import describe

    found = describe(folder)
    C, H, W = found["frame_shape"]
    actions = f"{found['action_count']} actions"
    if found["action_meanings"]:
        actions += f" ({', '.join(found['action_meanings'])})"
    print(f"{folder}: {found['env_id']}, frames {C} x {H} x {W} (channels, height, width), {actions}")
    for name, split in found["splits"].items():
        if split["episodes"]:
            low, mean, high = split["return_min"], split["return_mean"], split["return_max"]
            print(
                f"{name}: {split['episodes']} episodes, {split['steps']} steps, {split['terminated']} terminated;"
                f" return {mean:.2f} (from {low:g} to {high:g})"
            )
    damage = [f"{found['corrupt']:,} corrupt, {found['torn']:,} torn"] if found["damage"] else []
    state = "; ".join([*damage, *found["problems"]]) or "intact"
    print(f"{found['bytes'] / 2**20:.1f} MB in {found['shards']} files, {state}")
    for line in found["damage"]:
        print(f"skipped: {line}")
    return found
