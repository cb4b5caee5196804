"""`tokenworld collect out=DIR`: random play, written to a folder of episodes."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenworld.cli.arguments import SETTINGS, Help, Key, recipe_of, shared_keys
from tokenworld.errors import UserError

if TYPE_CHECKING:
    from tokenworld.config.saved import RunSpec
    from tokenworld.data import collection
    from tokenworld.log import Log

HELP = Help(
    summary="play a game and write the episodes to a folder",
    positional="out=DIR",
    settings=SETTINGS,
    about="""\
Plays the `env` of the recipe with random actions. Writes N training steps, and a fifth as many test steps (at least
1,000) from games with other seeds. Episodes still in progress at the end are written as truncated episodes.

examples
  tokenworld collect recipe=atari_small env.id=ALE/Breakout-v5 steps=5000 out=data/breakout""",
)
KEYS = shared_keys(
    "recipe overlay seed out",
    out=("DIR", "a new folder; the same command continues an interrupted collection"),
) | {"steps": Key(int, "5000", "environment steps to write")}


def parse(words: list[str]) -> Callable[[], Any]:
    spec, own = recipe_of("collect", words, KEYS)
    return lambda: run(spec, **own)


def run(spec: RunSpec, steps: int = 5000) -> dict[str, Any]:
    """Random play into a folder of episodes: `steps` for training and a fifth as many (at least 1,000) from other seeds to
    test on. The same command continues a collection that was interrupted, and leaves a finished one as it is."""
    from tokenworld.config import values
    from tokenworld.data import collection
    from tokenworld.data.describe import describe_content
    from tokenworld.log import Log
    from tokenworld.training.build import env_of, meta_of

    if spec.out is None:
        raise UserError("collect writes to a folder, got no out: add out=DIR, for example out=data/breakout")
    out, seed = Path(spec.out), spec.seed or 0
    command = json.loads(json.dumps(values.flatten({"env": spec.parts["env"], "seed": seed, "steps": steps})))
    log, plan = Log(None), collection.check_folder(out, command)
    if plan is not None and plan.finished is not None:
        return _check_collected(out, plan, log)
    make_env = functools.partial(env_of, spec.cfg)
    env = make_env(1)
    meta = meta_of(spec.cfg, env, seed)
    env.close()
    wanted = {"train": steps, "test": max(1000, steps // 5)}
    held = collection.collect_episodes(out, make_env, meta, command, wanted, log)
    log.say(f"collected {held['train']} training and {held['test']} test steps of {spec.parts['env']['id']}"
            f" ({describe_content(meta)}): {out}")  # fmt: skip
    return wanted


def _check_collected(out: Path, plan: collection.Plan, log: Log) -> dict[str, int]:
    """Return what a finished collection holds. Raises UserError if part of it is missing or damaged."""
    from tokenworld.data.describe import describe

    summary = describe(out)
    if summary["damage"] or summary["problems"]:
        what = "; ".join([*summary["problems"], *summary["damage"]][:2])
        raise UserError(f"{out} holds the collection of this command, but it is damaged ({what}): choose another out=DIR")
    steps = plan.finished
    log.say(f"already collected by the same command: {steps['train']} training and {steps['test']} test steps"
            f" ({summary['content']}): {out}")  # fmt: skip
    return plan.wanted
