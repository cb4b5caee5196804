"""`tokenworld bench`: how fast a recipe runs on this machine."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenworld import files
from tokenworld.cli.arguments import SETTINGS, Help, Key, folders_of, recipe_of, shared_keys, values_of
from tokenworld.config.saved import RunSpec
from tokenworld.errors import UserError

HELP = Help(
    summary="how fast a recipe runs here, compared with the best this machine can do",
    positional="imagine|dynamics|tokenizer|encode|decode|collect|loop [RUN RUN]",
    settings=SETTINGS,
    flags={"--json FILE": "write the figures as JSON; - prints them instead of the table"},
    about="""\
Times the recipe's own phases and imagined rollouts after a warm-up and prints the median: units per second, forward passes
per frame, counted FLOPs, and two fractions of the best this machine can do: in a matrix product of the same shape, and in
reading memory. Both are measured in the same call. `loop` adds up the whole schedule without test episodes.
With folders of runs: measures them in turns with their trained weights, and prints how many times as fast each is as the last.

examples
  tokenworld bench imagine
  tokenworld bench imagine runs/storm runs/quickstart
  tokenworld bench imagine recipe=iris precision=bf16 train.policy.burn_in=1 --json iris.json
  tokenworld bench dynamics recipe=iris train.dynamics.batch=8
  tokenworld bench loop recipe=iris device=cuda precision=bf16""",
)
KEYS = shared_keys("recipe overlay seed device precision") | {
    "repeats": Key(int, "5", "timings of each row; the median is reported"),
}
ROUNDS = 3
OF_RUNS = ("repeats", "device", "precision")  # keys that go with the folders of runs


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
    what, *words = words
    folders, words = folders_of(words, 0, KEYS)
    if folders:
        return _parse_runs(what, folders, words, json_file)
    spec, own = recipe_of("bench", words, KEYS)
    return lambda: run(what, spec, json_file=json_file, **own)


def _parse_runs(what: str, folders: list[str], words: list[str], json_file: str | None) -> Callable[[], Any]:
    if len(set(folders)) < 2:
        raise UserError(f"bench compares the folders of at least two runs, got {folders[0]}: add another one")
    for key in (word.partition("=")[0] for word in words):
        if key not in OF_RUNS:
            raise UserError(f"bench measures runs as they are, got {key!r}: expected some of {', '.join(OF_RUNS)}")
    keys = values_of(words, {name: KEYS[name] for name in OF_RUNS})
    return lambda: compare(what, folders, json_file=json_file, **keys)


def compare(what: str, folders: list[str], repeats: int = 5, json_file: str | None = None, **keys: str) -> dict[str, Any]:
    """Measure runs with their trained weights, one after the other in each of `ROUNDS` rounds, so that a change of the machine
    concerns all of them, and how many times as fast each is as the last one."""
    from tokenworld.bench import rows
    from tokenworld.training.resume import open_run

    rows.check(what)
    json_file = _checked(json_file)
    runs = {folder: open_run(folder, keys) for folder in folders}
    for folder, each in runs.items():
        if not each.replay.steps:
            raise UserError(f"{folder} has no episodes to start from: give the folder of a run that collected some")
    rounds = [{folder: rows.bench(what, each, repeats) for folder, each in runs.items()} for _ in range(ROUNDS)]
    result = rows.compared(rounds)
    text = "\n\n".join(rows.table(each) for each in result["runs"].values()) + "\n\n" + rows.ratios(result)
    _show(result, json_file, text)
    return result


def _checked(json_file: str | None) -> str | None:
    if json_file in (None, "-"):
        return json_file
    files.check_replaceable(json_file)
    return files.follow_links(json_file)


def _show(result: dict[str, Any], json_file: str | None, text: str) -> None:
    print(json.dumps(result, indent=1) if json_file == "-" else text, flush=True)
    if json_file not in (None, "-"):
        files.write_or_rescue(json_file, lambda target: files.write(target, json.dumps(result, indent=1) + "\n"))
        print(f"written: {json_file}", file=sys.stderr)


def run(what: str, spec: RunSpec, repeats: int = 5, json_file: str | None = None) -> dict[str, Any]:
    """Measure how fast a recipe runs on this machine, and how far that is from the best this machine can do. json_file: "-"
    prints the figures to stdout instead of the table."""
    from tokenworld.bench import rows
    from tokenworld.log import Log
    from tokenworld.training.build import build_run

    rows.check(what)
    json_file = _checked(json_file)
    with tempfile.TemporaryDirectory() as folder:
        run = build_run(Path(folder), spec, log=Log(None))
        run.phases["collect"](run, False, steps=rows.REAL_STEPS, first_steps=rows.REAL_STEPS, random=True)
        run.collector.cut()
        result = rows.bench(what, run, repeats)
    _show(result, json_file, rows.table(result))
    return result
