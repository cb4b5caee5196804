"""A collection that may be interrupted: random play into a data set that knows what it is to hold.

`collect.json` in the folder of the data set is written before the first episode and when the last one is on the disk:

    {"format": "tokenworld-collection", "version": 1, "command": {...}, "wanted": {"train": 6000, "test": 1200},
     "attempts": 1, "finished": null or {"episodes": 130, "train": 6003, "test": 1204}}

The same command continues an unfinished collection: all finished episodes are kept, and other games provide the rest.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv

from tokenworld import action_space, files
from tokenworld.data.collect import Collector
from tokenworld.data.episodes import Episode, EpisodeWriter, load_episodes
from tokenworld.data.meta import META, read_json
from tokenworld.data.record_format import SPLITS
from tokenworld.errors import UserError
from tokenworld.exploration import random_act
from tokenworld.log import Log

PLAN = "collect.json"
FORMAT = "tokenworld-collection"
VERSION = 1
ENVS = 8  # games that are played side by side: as many different starts
MOST_ATTEMPTS = 500  # with seeds of their own


@dataclass(frozen=True)
class Plan:
    """What a folder of episodes is to hold."""

    command: dict[str, Any]  # what must be the same to continue
    wanted: dict[str, int]  # steps by split
    attempts: int = 0  # how often it was begun or continued
    finished: dict[str, int] | None = None  # what it held when it was finished: episodes, and steps by split

    def write(self, directory: Path) -> None:
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        files.write(directory / PLAN, json.dumps(content, indent=1))


def read_plan(directory: Path) -> Plan | None:
    """The plan of a data set, None if it has none. Raises `UserError` for a file that cannot be one."""
    path = directory / PLAN
    if not path.is_file():
        return None
    try:
        content = read_json(path)
        if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
            raise ValueError(f"does not say format {FORMAT}, version {VERSION}")
        plan = Plan(**{name: content.get(name) for name in Plan.__dataclass_fields__})
        counts = [plan.attempts, *(_counts(plan.wanted, SPLITS))]
        counts += [] if plan.finished is None else _counts(plan.finished, ("episodes", *SPLITS))
        if not isinstance(plan.command, dict) or any(type(n) is not int or n < 0 for n in counts):
            raise ValueError("does not hold a command and numbers of steps")
    except ValueError as error:
        raise UserError(f"{path} {error}: restore that file or choose another folder") from None
    return plan


def _counts(numbers: Any, names: tuple[str, ...]) -> list[Any]:
    return [numbers.get(name) for name in names] if isinstance(numbers, dict) else [None]


def check_folder(directory: Path, command: dict[str, Any]) -> Plan | None:
    """The plan of this command in `directory`, None for an empty folder. Raises `UserError` for any other folder."""
    if files.is_empty(directory):
        return None
    plan = read_plan(directory) if directory.is_dir() else None
    different = sorted(key for key in {*command, *plan.command} if command.get(key) != plan.command.get(key)) if plan else []
    if plan is None or plan.finished is not None and different:
        raise UserError(
            f"{directory} exists and is not empty, no file was overwritten: choose another out=DIR or remove it first"
        )
    if different:
        key = different[0]
        raise UserError(
            f"{directory} is an unfinished collection with {key}={plan.command.get(key)}, got {command.get(key)}:"
            " choose another out=DIR, or run the command that began it to finish it"
        )
    return plan


def collect_episodes(
    directory: Path,
    make_env: Callable[[int], VectorEnv],
    meta: dict[str, Any],
    command: dict[str, Any],
    wanted: dict[str, int],
    log: Log,
) -> dict[str, int]:
    """Play `wanted` steps by split into a data set, or what an interrupted call with the same command has left of them; the
    steps that it holds then, where games end.

    command: what must be the same to continue, as JSON, with the `seed`. Raises `UserError` for a folder of something else.
    """
    with files.locking(directory):
        plan = check_folder(directory, command) or Plan(command, wanted)
        files.remove_unfinished(directory)
        if plan.finished is not None:  # a process that was killed as it ended, or the same command given twice
            return plan.finished
        attempt = plan.attempts
        replace(plan, attempts=attempt + 1).write(directory)
        with EpisodeWriter(directory, meta, say=log.say) as writer:
            held = _count_held(directory, log) if attempt else dict.fromkeys(SPLITS, 0)
            if attempt:
                log.say(
                    f"continuing {directory}: {_progress(held, wanted)} are kept; the remaining games differ from those of an"
                    " uninterrupted collection"
                )

            def keep(episode: Episode) -> None:
                writer.append(episode)
                held[episode.split] += episode.steps

            try:
                for split in wanted:
                    _play(make_env, command["seed"], split, attempt, wanted[split] - held[split], keep, log)
            except KeyboardInterrupt:
                log.say(f"stopped: {directory} holds {_progress(held, wanted)}; the same command continues it")
                raise
        replace(plan, attempts=attempt + 1, finished={"episodes": writer.episodes, **held}).write(directory)
    return held


def _play(
    make_env: Callable[[int], VectorEnv],
    seed: int,
    split: str,
    attempt: int,
    steps: int,
    keep: Callable[[Episode], None],
    log: Log,
) -> None:
    if steps <= 0:
        return
    # game i of a vector environment is seeded with seed + i: far apart, so no test game is a training game
    game_seed = 1_000_003 * seed + 500_000 * (split == "test") + 1000 * (attempt % MOST_ATTEMPTS)
    key = [seed, split == "test", *([attempt] if attempt else [])]
    state = np.random.SeedSequence(key).generate_state(4)
    random.seed(state.tobytes())
    np.random.seed(state)
    torch.manual_seed(int(state[0]))
    env = make_env(ENVS)
    collector = Collector(env, seed=game_seed, on_episode=keep, split=split)
    act = random_act(action_space.of(env.single_action_space), np.random.default_rng(key))
    with log.progress(steps, f"collect {split}") as bar:
        for at in range(0, steps, 500):
            part = min(500, steps - at)
            collector.collect(part, act)
            bar.update(part)
    collector.cut()
    env.close()


def _count_held(directory: Path, log: Log) -> dict[str, int]:
    """Steps by split that a data set holds."""
    held = dict.fromkeys(SPLITS, 0)

    def count(episode: Episode) -> None:
        held[episode.split] += episode.steps

    if (directory / META).is_file():
        load_episodes(directory, count, log.say)
    return held


def _progress(held: dict[str, int], wanted: dict[str, int]) -> str:
    parts = [f"{held[split]:,} of {wanted[split]:,} {name} steps" for split, name in (("train", "training"), ("test", "test"))]
    return " and ".join(parts)


def problems(directory: Path, held: dict[str, int], episodes: int) -> list[str]:
    """What a data set lacks that its plan says it holds, in words. held: steps by split."""
    try:
        plan = read_plan(directory)
    except UserError as error:
        return [str(error)]
    if plan is None:
        return []
    if plan.finished is None:
        return [f"unfinished: {_progress(held, plan.wanted)}; the same `tokenworld collect` command continues it"]
    if episodes < plan.finished["episodes"]:
        steps = _progress(held, plan.finished)
        return [f"incomplete: {episodes:,} of {plan.finished['episodes']:,} episodes can be read ({steps})"]
    return []
