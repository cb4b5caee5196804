"""`tokenworld sweep out=DIR`: many runs of `train`, and one table of their results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenworld.cli.arguments import Help, Key, recipe_of, shared_keys
from tokenworld.cli.verbs import train

HELP = Help(
    summary="train many runs, over seeds, games or any setting, and compare their results in one table",
    positional="out=DIR",
    first={"key=A,B": "any setting below, with one or several values; [8,16] is one value"},
    settings=train.HELP.settings,
    flags=train.HELP.flags,
    about="""\
Runs `tokenworld train` for every combination of the given values, each in its own process. DIR/NAME is an ordinary run and
DIR/NAME.log is its log. All settings are checked before anything is created. Run the same command again to skip finished
runs, resume unfinished ones and retry failed ones; it may add values. Ctrl-C lets every run save and stop.
DIR/results.md and results.json compare the runs, also while the sweep runs: the return of each seed, their mean with a 95%
bootstrap interval, and random play. For Atari they also show human-normalized scores next to published ones, with mean,
median and interquartile mean over games. The exit code is 1 if a run failed.

examples
  tokenworld sweep seed=0,1,2 out=sweeps/breakout
  tokenworld sweep seed=0,1,2 env.id=MinAtar/Breakout-v1,MinAtar/Asterix-v1 jobs=2 out=sweeps/minatar
  tokenworld sweep recipe=iris seed=0,1,2,3,4 env.id=ALE/Pong-v5,ALE/Boxing-v5 jobs=4 out=sweeps/iris
  tokenworld sweep backbone.layers=1,2,4 out=sweeps/layers""",
)
KEYS = (
    shared_keys("out", out=("DIR", "where to write; a folder of another sweep is never overwritten"))
    | {"jobs": Key(int, "1", "parallel runs; each gets its share of the cores (unless you set OMP_NUM_THREADS) and one of"
                   " several GPUs")}
    | {name: key for name, key in train.KEYS.items() if name != "out"}
)  # fmt: skip


def parse(words: list[str]) -> Callable[[], Any]:
    from tokenworld import sweep

    out, jobs, members = sweep.plan(words, lambda settings: recipe_of("train", settings, train.KEYS)[0])
    return lambda: run(out, members, jobs, words)


def run(out: Path, members: list, jobs: int, words: list[str]) -> int:
    """Train every run of a grid, after each of its settings has been built once as a trial. Returns the exit code."""
    from tokenworld import sweep  # needs POSIX, which the rest does not
    from tokenworld.log import Log
    from tokenworld.training.build import build_run, device_of, with_loaded_sections

    tried: list[dict] = []
    for i, member in enumerate(members):
        spec = with_loaded_sections(member.spec)
        members[i] = replace(member, spec=spec)
        device_of(spec.device or "auto")
        if spec.cfg not in tried:
            tried.append(spec.cfg)
            build_run(member.out, replace(spec, data=None, device="cpu"), log=Log(None))
    return sweep.sweep(out, members, jobs, words)
