"""What a data set holds, what is damaged in it, and what is missing: `tokenworld data info`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tokenworld.data import collection
from tokenworld.data.episodes import read_numbered
from tokenworld.data.meta import actions_of, frame_dtype_of, read_meta
from tokenworld.data.record_format import SPLITS
from tokenworld.data.shards import Damages, find_shards, shard_number
from tokenworld.storage import space_format


def describe(directory: str | Path) -> dict[str, Any]:
    """Spaces, and per split episodes, steps and returns; size; damage; what is missing (`problems`, in words)."""
    directory = Path(directory)
    meta = read_meta(directory)
    damages = Damages()
    lists: dict[str, list[tuple[int, float, bool]]] = {name: [] for name in SPLITS}
    numbers: Counter[int] = Counter()
    for number, episode in read_numbered(directory, on_corrupt=damages.add):
        lists[episode.split].append((episode.steps, episode.episode_return, bool(episode.terminated[-1])))
        if number is not None:
            numbers[number] += 1
    splits = {name: _summary(entries) for name, entries in lists.items()}
    shards = find_shards(directory)
    episodes = sum(entry["episodes"] for entry in splits.values())
    held = {name: entry["steps"] for name, entry in splits.items()}
    return {
        "directory": str(directory),
        **{key: meta.get(key) for key in ("env_id", "frame_shape", "action_count", "action_meanings", "seed", "preprocessing")},
        "frame_dtype": frame_dtype_of(meta),
        "actions": space_format.as_json(actions_of(meta)),
        "content": describe_content(meta),
        "episodes": episodes,
        "steps": sum(held.values()),
        "splits": splits,
        "shards": len(shards),
        "bytes": sum(shard.stat().st_size for shard in shards),
        "corrupt": damages.corrupt,
        "torn": damages.torn,
        "damage": damages.lines(),
        "problems": [
            *collection.problems(directory, held, episodes),
            *_missing_shards([shard_number(shard) for shard in shards]),
            *_wrong_numbers(numbers, damages.count),
        ],
    }


def describe_content(meta: dict[str, Any]) -> str:
    """The frames and actions of a data set in words."""
    frames = space_format.describe_frames(meta["frame_shape"], frame_dtype_of(meta))
    return f"{frames}, {space_format.describe_actions(actions_of(meta), meta.get('action_meanings'))}"


def _summary(entries: list[tuple[int, float, bool]]) -> dict[str, Any]:
    returns = [entry[1] for entry in entries]
    return {
        "episodes": len(entries),
        "steps": sum(entry[0] for entry in entries),
        "terminated": sum(entry[2] for entry in entries),
        "return_mean": float(np.mean(returns)) if returns else None,
        "return_min": min(returns, default=None),
        "return_max": max(returns, default=None),
    }


def _missing_shards(numbers: list[int]) -> list[str]:
    absent = ranges_without(numbers)
    return [f"missing: episodes-{first:05d}.bin{f' to episodes-{last:05d}.bin' * (last > first)}" for first, last in absent[:3]]


def _wrong_numbers(numbers: Counter[int], damaged: int) -> list[str]:
    """Each record has a number, from 0 on without a gap."""
    problems = []
    repeated = [number for number, count in sorted(numbers.items()) if count > 1]
    if repeated:
        problems.append(f"repeated: {len(repeated):,} record numbers occur more than once, the first is {repeated[0]}")
    absent = ranges_without(list(numbers))
    count = sum(last - first + 1 for first, last in absent)
    if count > damaged:
        problems.append(f"missing: {count:,} record numbers do not occur, the first is {absent[0][0]}")
    return problems


def ranges_without(numbers: list[int]) -> list[tuple[int, int]]:
    """The ranges (first, last) of whole numbers from 0 to the greatest found one that are not in it."""
    ranges, wanted = [], 0
    for number in sorted(set(numbers)):
        if number > wanted:
            ranges.append((wanted, number - 1))
        wanted = number + 1
    return ranges
