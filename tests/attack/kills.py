"""Kill real processes at random times, and end trainings with SIGTERM in each phase.

    python tests/attack/kills.py --count 60 --seed 0 --out DIR

After each kill the checks of `crash_points.py` are made, in real processes too. A training that gets SIGTERM ends within ten
seconds with exit code 143, tells the command that goes on, and loses no finished epoch.
"""

from __future__ import annotations

import argparse
import collections
import random
import re
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from contents import epoch_of
from crash_points import Bench, Scenario
from disk import missing
from server import Outcome, Processes, Server, Signal

LONG = "train overlay=debug train.loop.epochs=6 train.collect.held_out=3 train.dynamics.updates=20 device=cpu out=run".split()
SCENARIOS = [
    Scenario("long train", LONG, "run", again=[["train", "--resume", "run"]]),
    Scenario("long collect", "collect overlay=debug steps=2500 out=data".split(), "data"),
    Scenario("long evaluate", "evaluate run frames=300 budget=30 out=ev".split(), "ev", ("run",)),
    Scenario("export", "export run out=model".split(), "model", ("run",)),
]
WEIGHTS = (3, 2, 1, 1)  # how often each is killed
ANSWER = 10.0  # seconds that a training has after SIGTERM
PHASES = {  # phase -> what makes it endless in the first epoch; the file and the text in it that say that it has begun
    "collect": ("train.collect.first_steps=1000000000", "run/replay", ""),
    "tokenizer": ("train.tokenizer.updates=100000000", "run/metrics.jsonl", '"phase": "collect"'),
    "dynamics": ("train.dynamics.updates=100000000", "run/metrics.jsonl", '"phase": "tokenizer"'),
    "policy": ("train.policy.start=0 train.policy.updates=100000000", "run/metrics.jsonl", '"phase": "dynamics"'),
    "evaluate": (
        "train.loop.epochs=1 train.policy.start=0 train.evaluate.final_episodes=100000000",
        "run/metrics.jsonl",
        '"phase": "policy"',
    ),
    "epochs": ("train.loop.epochs=1000000 train.evaluate.frames=0", "run/checkpoint", ""),
}


def work_of(runner: Server | Processes, bench: Bench, scenario: Scenario) -> float:
    """Seconds from the first file that a command writes to its end."""
    bench.trace(scenario)
    where = bench.fresh(scenario)
    done = runner.run(scenario.argv, where, sent=Signal(0.0, 0, scenario.out))  # signal 0 is none: it only takes the time
    shutil.rmtree(where)
    return done.answer or 0.1


def kill(bench: Bench, scenario: Scenario, rng: random.Random, work: float) -> tuple[str, list[str]]:
    """One kill at a random time, most of them after the command has begun to write: when it was, and the faults."""
    begins = rng.random() < 0.15
    sent = Signal(rng.random() * 4.0) if begins else Signal(rng.random() * work, watch=scenario.out)
    outcome, faults = bench.kill(scenario, sent)
    when = "ended before" if outcome.code == 0 else f"killed {sent.after:.2f} s after its {'start' if begins else 'first file'}"
    if outcome.code not in (0, -int(signal.SIGKILL)):
        faults.insert(0, f"exit code {outcome.code}: {outcome.stderr[-200:]}")
    return when, faults


def terminate(runner: Server | Processes, folder: Path, phase: str, after: float = 0.7) -> tuple[Outcome, list[str]]:
    """SIGTERM to a training in a phase: how it ended, and a sentence for each fault."""
    settings, watch, text = PHASES[phase]
    where = Path(tempfile.mkdtemp(prefix=f"term-{phase}-", dir=folder))
    argv = f"train overlay=debug device=cpu out=run {settings}".split()
    done = runner.run(argv, where, sent=Signal(after, int(signal.SIGTERM), watch, text), timeout=60)
    faults = []
    if done.answer is None:
        faults.append(f"it ended before the signal, exit code {done.code}: {done.stderr[-200:]}")
    elif done.is_timeout or done.answer > ANSWER:
        faults.append(f"it did not end within {ANSWER:g} s, but {'never' if done.is_timeout else f'after {done.answer:.1f} s'}")
    if done.code != 128 + signal.SIGTERM:
        faults.append(f"exit code {done.code}, expected {128 + signal.SIGTERM}")
    if "train --resume run" not in done.stderr:
        faults.append(f"the command that goes on is not told: {done.stderr[-150:]!r}")
    if "Traceback" in done.stderr:
        faults.append(f"a Traceback: {done.stderr[-150:]!r}")
    finished = max((int(n) for n in re.findall(r"^epoch (\d+)/", done.stderr, re.MULTILINE)), default=0)
    if epoch_of(where / "run") < finished:
        faults.append(f"epoch {finished} was finished, the checkpoint is of epoch {epoch_of(where / 'run')}")
    shutil.rmtree(where, ignore_errors=True)
    return done, faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--forked", action="store_true", help="forks of one process in place of real processes: quicker")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    if missing():
        sys.exit(missing())
    asked.out.mkdir(parents=True, exist_ok=True)
    rng, kinds = random.Random(asked.seed), collections.Counter()
    runner = Server().__enter__() if asked.forked else Processes()
    bench = Bench(runner, asked.out)
    work: dict[str, float] = {}
    for number in range(asked.count):
        scenario = rng.choices(SCENARIOS, WEIGHTS)[0]
        if scenario.name not in work:
            work[scenario.name] = work_of(runner, bench, scenario)
        when, faults = kill(bench, scenario, rng, work[scenario.name])
        print(f"{number + 1}/{asked.count} {scenario.name}, {when}: {'; '.join(faults) or 'whole'}", flush=True)
        kinds[scenario.name, "faults" if faults else "whole"] += 1
    for phase in PHASES:
        done, faults = terminate(runner, asked.out, phase)
        took = "" if done.answer is None else f" after {done.answer:.1f} s"
        print(f"SIGTERM in {phase}: exit code {done.code}{took}: {'; '.join(faults) or 'as it should'}", flush=True)
        kinds["SIGTERM", "faults" if faults else "whole"] += 1
    if asked.forked:
        runner.__exit__()
    for (name, how), count in sorted(kinds.items()):
        print(f"{count:4} {name}: {how}")
    return int(any(how == "faults" for _, how in kinds))


if __name__ == "__main__":
    sys.exit(main())
