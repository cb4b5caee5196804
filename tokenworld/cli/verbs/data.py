"""`tokenworld data info DIR`: describe a folder of episodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenworld.cli.arguments import Help, Key
from tokenworld.errors import UserError

HELP = Help(
    summary="describe a folder of episodes",
    positional="info DIR",
    about="""\
Prints episodes, steps, spaces, returns, size and integrity of a folder of episodes.

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

    summary = describe(folder)
    print(f"{folder}: {summary['env_id']}, {summary['content']}")
    for name, split in summary["splits"].items():
        if split["episodes"]:
            low, mean, high = split["return_min"], split["return_mean"], split["return_max"]
            print(
                f"{name}: {split['episodes']} episodes, {split['steps']} steps, {split['terminated']} terminated;"
                f" return {mean:.2f} (from {low:g} to {high:g})"
            )
    damage = [f"{summary['corrupt']:,} corrupt, {summary['torn']:,} torn"] if summary["damage"] else []
    state = "; ".join([*damage, *summary["problems"]]) or "intact"
    print(f"{summary['bytes'] / 2**20:.1f} MB in {summary['shards']} files, {state}")
    for line in summary["damage"]:
        print(f"skipped: {line}")
    return summary
