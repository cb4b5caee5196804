"""`tokenworld bench`: how fast a recipe runs on this machine."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenworld import files
from tokenworld.cli.arguments import SETTINGS, Help, Key, recipe_of, shared_keys
from tokenworld.config.saved import RunSpec
from tokenworld.errors import UserError

HELP = Help(
    summary="how fast a recipe runs here, compared with the best this machine can do",
    positional="imagine|dynamics|tokenizer|encode|decode|collect|loop",
    settings=SETTINGS,
    flags={"--json FILE": "write the figures as JSON; - prints them instead of the table"},
    about="""\
Times the recipe's own phases and imagined rollouts after a warm-up and prints the median: units per second, forward passes
per frame, counted FLOPs, and two fractions of the best this machine can do: in a matrix product of the same shape, and in
reading memory. Both are measured in the same call. `loop` adds up the whole schedule without test episodes.

examples
  tokenworld bench imagine
  tokenworld bench imagine recipe=iris precision=bf16 train.policy.burn_in=1 --json iris.json
  tokenworld bench dynamics recipe=iris train.dynamics.batch=8
  tokenworld bench loop recipe=iris device=cuda precision=bf16""",
)
KEYS = shared_keys("recipe overlay seed device precision") | {
    "repeats": Key(int, "5", "timings of each row; the median is reported"),
}


def parse(words: list[str]) -> Callable[[], Any]:
    words, json_file = list(words), None
    if "--json" in words:
        at = words.index("--json")
        if at + 1 == len(words) or "=" in words[at + 1]:
            raise UserError("--json needs the file to write (- for stdout), for example --json bench.json")
        json_file = words[at + 1]
        del words[at : at + 2]
    if not words or "=" in words[0]:
        raise UserError("bench needs the name of a benchmark, got none: write for example tokenworld bench imagine recipe=iris")
    spec, own = recipe_of("bench", words[1:], KEYS)
    return lambda: run(words[0], spec, json_file=json_file, **own)


def run(what: str, spec: RunSpec, repeats: int = 5, json_file: str | None = None) -> dict[str, Any]:
    """Measure how fast a recipe runs on this machine, and how far that is from the best this machine can do. json_file: "-"
    prints the figures to stdout instead of the table."""
    from tokenworld.bench import rows
    from tokenworld.log import Log
    from tokenworld.training.build import build_run

    rows.check(what)
    if json_file not in (None, "-"):
        files.check_replaceable(json_file)
        json_file = files.follow_links(json_file)
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(Path(folder), spec, log=Log(None))
        run.phases["collect"](run, False, steps=rows.REAL_STEPS, first_steps=rows.REAL_STEPS, random=True)
        run.collector.cut()
        result = rows.bench(what, run, repeats)
    print(json.dumps(result, indent=1) if json_file == "-" else rows.table(result), flush=True)
    if json_file not in (None, "-"):
        files.write_or_rescue(json_file, lambda target: files.write(target, json.dumps(result, indent=1) + "\n"))
        run.log.say(f"written: {json_file}")
    return result
