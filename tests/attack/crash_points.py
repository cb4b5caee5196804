"""Kill a command, or fail its disk, at each of its calls that write; then see what is left and whether it can go on.

    python tests/attack/crash_points.py --only train --action kill --points 200 --out DIR

After a kill or an error every finished file is whole, the inputs are untouched and finished epochs are kept. The same command
(for a training also --resume) then goes on, and its result is that of a run that nothing happened to. An error is one sentence
on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import random
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from contents import broken, differences, episodes, epoch_of, fingerprint, leftovers, snapshot
from disk import ERRORS, Call, Plan, choose, missing, read_log
from server import Outcome, Processes, Server, Signal

TRAIN = "train overlay=debug train.loop.epochs=2 train.collect.held_out=3 device=cpu out=run".split()
NOTE = "notes.txt"
LONGEST = 600  # characters of a sentence on stderr


@dataclass(frozen=True)
class Scenario:
    """A command that writes. base: the prepared folders that it reads; out: what it writes, relative to its folder."""

    name: str
    argv: list[str]
    out: str
    base: tuple[str, ...] = ()
    again: list[list[str]] = field(default_factory=list)  # what goes on, besides the same command
    is_timed: bool = False  # its result is a measurement of time: not compared
    is_shared: bool = False  # its folder is not its own: an unfinished file there may be of a process at work

    @property
    def is_collection(self) -> bool:
        """Does it collect? It keeps what it has and collects the rest, so its result is another one than without a kill."""
        return self.argv[0] == "collect"

    @property
    def is_training(self) -> bool:
        """Does it write checkpoints to run/?"""
        return self.argv[0] == "train" and self.out == "run"


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("train", TRAIN, "run", again=[["train", "--resume", "run"]]),
        Scenario("resume", ["train", "--resume", "run"], "run", ("part",)),
        Scenario("collect", "collect overlay=debug steps=150 out=data".split(), "data"),
        Scenario("evaluate", "evaluate run frames=60 budget=5 out=ev".split(), "ev", ("run",)),
        Scenario("replace", "evaluate run frames=60 budget=5".split(), "run/evaluation", ("run",)),
        Scenario("export", "export run out=model".split(), "model", ("run",)),
        Scenario("dream", "dream run steps=5 out=pictures/dream.gif".split(), "pictures", ("run",), is_shared=True),
        Scenario("tokenizer", "train tokenizer overlay=debug data=data out=tok".split(), "tok", ("data",)),
        Scenario("sweep", "sweep overlay=debug train.collect.held_out=3 out=sweep".split(), "sweep", ("sweep",)),
        Scenario("bench", "bench tokenizer overlay=debug repeats=1 --json b/bench.json".split(), "b", is_timed=True,
                 is_shared=True),
    )
}
BASES = {  # name -> the folder that it becomes, and the commands that make it
    "run": ("run", [TRAIN]),
    "data": ("data", ["collect overlay=debug steps=150 out=data".split()]),
    "part": ("run", [TRAIN]),
    "sweep": ("sweep", ["sweep overlay=debug train.collect.held_out=3 out=sweep".split()]),
}


class Bench:
    """Where commands run, a folder to work in, and what is made once: bases, references, traces."""

    def __init__(self, server: Server | Processes, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.made: dict[str, Path] = {}
        self.traces: dict[str, list[Call]] = {}
        self.references: dict[str, dict] = {}

    def base(self, name: str) -> Path:
        """The folder of a base, made by the product itself. "part" is a run of three epochs, stopped after two."""
        if name not in self.made:
            where = self.folder / "bases" / name
            shutil.rmtree(where, ignore_errors=True)
            where.mkdir(parents=True)
            folder, commands = BASES[name]
            for argv in commands:
                made = self.server.run(argv, where, timeout=300)
                if made.code:
                    raise RuntimeError(f"{' '.join(argv)} fails without an attack: {made.stderr[-2000:]}")
            if name == "part":
                config = where / folder / "config.yaml"
                config.write_text(re.sub(r"\bepochs: 2\b", "epochs: 3", config.read_text(encoding="utf-8")), encoding="utf-8")
            self.made[name] = where / folder
        return self.made[name]

    def fresh(self, scenario: Scenario, name: str = "") -> Path:
        """A new folder with the scenario's bases."""
        where = Path(tempfile.mkdtemp(prefix=f"{scenario.name}-{name}", dir=self.folder))
        for base in scenario.base:
            source = self.base(base)
            shutil.copytree(source, where / source.name)
        return where

    def trace(self, scenario: Scenario) -> list[Call]:
        """The calls of the scenario when nothing happens; its result becomes the reference."""
        if scenario.name not in self.traces:
            where, log = self.fresh(scenario, "reference"), self.folder / f"{scenario.name}.calls"
            log.unlink(missing_ok=True)
            done = self.server.run(scenario.argv, where, plan=Plan(str(where), log=str(log)))
            if done.code:
                raise RuntimeError(f"{' '.join(scenario.argv)} fails without an attack: {done.stderr[-2000:]}")
            self.traces[scenario.name] = read_log(log)
            self.references[scenario.name] = fingerprint(where / scenario.out)
            shutil.rmtree(where)
        return self.traces[scenario.name]

    def attack(self, scenario: Scenario, plan: Plan, *, second: int = 0, keep: bool = False) -> list[str]:
        """Run the scenario on a failing disk, then check and go on; a sentence for each fault. plan.root is set here.
        second: the call at which the next try is killed, too."""
        self.trace(scenario)
        where = self.fresh(scenario)
        before = snapshot(where)
        outcome = self.server.run(scenario.argv, where, plan=dataclasses.replace(plan, root=str(where)))
        faults = after_kill(outcome) if plan.action in ("kill", "half") else after_error(outcome)
        if second:
            self.server.run((scenario.again or [scenario.argv])[0], where, plan=Plan(str(where), second, "kill"))
        faults += self.check(scenario, where, before, outcome)
        if keep:
            print(f"kept: {where}\n{outcome.stderr}", file=sys.stderr)
        else:
            shutil.rmtree(where, ignore_errors=True)
        return faults

    def kill(self, scenario: Scenario, sent: Signal) -> tuple[Outcome, list[str]]:
        """Run the scenario, send it a signal, then check and go on: how it ended, and a sentence for each fault."""
        self.trace(scenario)
        where = self.fresh(scenario)
        before = snapshot(where)
        outcome = self.server.run(scenario.argv, where, sent=sent)
        faults = self.check(scenario, where, before, outcome)
        shutil.rmtree(where, ignore_errors=True)
        return outcome, faults

    def check(self, scenario: Scenario, where: Path, before: dict[str, str], outcome: Outcome) -> list[str]:
        """What is wrong with what an interrupted run left, and with going on from there."""
        faults, now = broken(where), snapshot(where)
        inputs = {name for name in before if not name.startswith(scenario.out + "/")}
        faults += [f"the input {name} changed" for name in inputs if now.get(name) != before[name]]
        epochs = [int(n) for n in re.findall(r"^epoch (\d+)/", outcome.stderr, re.MULTILINE)]
        done = max(epochs, default=0)
        if scenario.is_training and epoch_of(where / "run") < done:
            faults.append(f"epoch {done} was finished, the checkpoint is of epoch {epoch_of(where / 'run')}")
        noted = scenario.is_training and not scenario.base and (where / "run" / "replay").is_dir()
        if noted:  # a folder of a user's may hold other files
            (where / "run" / "replay" / NOTE).write_text("not tokenworld's", encoding="utf-8")
        collected = episodes(where / "data") if scenario.is_collection else []
        if outcome.code:
            faults += self.go_on(scenario, where, done)
        if noted and not list(where.rglob(NOTE)):
            faults.append("a file in replay/ that is not tokenworld's was deleted")
        for note in where.rglob(NOTE):
            note.unlink()
        if not any(fault.startswith("cannot go on") for fault in faults):
            if scenario.is_collection:
                faults += self.incomplete(where, collected)
            elif not scenario.is_timed:
                faults += differences(self.references[scenario.name], fingerprint(where / scenario.out))
        if outcome.code and not scenario.is_shared:  # a disk that refuses to delete may end well
            faults += [f"left over at the end: {name}" for name in leftovers(where)]
        return faults

    def incomplete(self, where: Path, collected: list[str]) -> list[str]:
        """What a collection lacks: what it held before it went on, and what `data info` says of it."""
        now = episodes(where / "data")
        faults = [] if now[: len(collected)] == collected else [f"{len(collected)} episodes were there, they are not first now"]
        told = self.server.run(["data", "info", "data"], where)
        is_intact = told.code == 0 and told.stdout.rstrip().endswith("intact")
        return faults + ([] if is_intact else [f"data info says: {told.stdout[-300:]}"])

    def go_on(self, scenario: Scenario, where: Path, done: int) -> list[str]:
        """Run the same command again, or what else goes on; the first that ends well decides."""
        tried = []
        for argv in [scenario.argv, *scenario.again]:
            again = self.server.run(argv, where)
            if again.code == 0:
                found = re.search(r"after epoch (\d+)", again.stderr)
                if scenario.is_training and done and (found is None or int(found[1]) < done):
                    return [f"epoch {done} was finished, and going on begins {found[0] if found else 'from the start'}"]
                return []
            last = (again.stderr.strip().splitlines() or ["silent"])[-1]
            tried.append(f"{' '.join(argv)}: exit code {again.code}, {last[:200]}")
        return [f"cannot go on: {'; '.join(tried)}"]


def after_kill(outcome: Outcome) -> list[str]:
    return [] if outcome.code == -9 else [f"not reached: the run ended with exit code {outcome.code}"]


def after_error(outcome: Outcome) -> list[str]:
    """What is wrong with how a run ended whose disk failed. A run that does not need what failed may end well."""
    if outcome.code == 0:
        return [fault for fault in sentence_faults(outcome) if "Traceback" in fault or "ignored" in fault]
    return ([] if outcome.code == 2 else [f"exit code {outcome.code}, expected 2"]) + sentence_faults(outcome)


def sentence_faults(outcome: Outcome) -> list[str]:
    """What is wrong with stderr, which should end in one sentence of the product."""
    lines = [line for line in outcome.stderr.splitlines() if line.strip()]
    said = [line for line in lines if line.startswith("tokenworld:")]
    faults = []
    if any("Traceback" in line for line in lines):
        faults.append(f"a Traceback: {lines[-1][:150]}")
    if any("Exception ignored" in line for line in lines):
        faults.append(f"an exception ignored: {lines[-1][:150]}")
    if not faults and (len(said) != 1 or lines[-1] != said[0]):
        faults.append(f"{len(said)} sentences on stderr, which ends in: {lines[-1][:150] if lines else 'nothing'}")
    if any(len(line) > LONGEST for line in said):
        faults.append(f"a sentence of {max(map(len, said))} characters: {said[-1][:100]}")
    return faults


def plans(calls: list[Call], action: str, points: int, seed: int, once: bool = False) -> list[tuple[Call, Plan]]:
    """At most `points` calls to attack: first those that `choose` names, then others at random; 0: those alone."""
    if action == "half":
        calls = [call for call in calls if call.name == "write" and call.size > 1]
    first = choose(calls)
    points = points or len(first)
    rest = [call for call in calls if call not in first]
    random.Random(seed).shuffle(rest)
    picked = (first + rest)[:points] if points < len(calls) else calls
    if points < len(first):
        picked = sorted(random.Random(seed).sample(first, points), key=lambda call: call.number)
    error = ERRORS.get(action, 0)
    return [(call, Plan("", call.number, "fail" if error else action, error, once)) for call in picked]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only", default=",".join(SCENARIOS), help="scenarios, by name")
    parser.add_argument("--action", default="kill,half,ENOSPC,EROFS,EIO,EFBIG")
    parser.add_argument("--points", type=int, default=40, help="of each scenario and action; 0: first, middle, last of a kind")
    parser.add_argument("--calls", default="", help="only calls of these names, for example write,rename")
    parser.add_argument("--at", type=int, help="attack this call alone, and keep the folder")
    parser.add_argument("--once", action="store_true", help="errors pass after one call")
    parser.add_argument("--twice", action="store_true", help="what goes on is killed once, too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    if missing():
        sys.exit(missing())
    asked.out.mkdir(parents=True, exist_ok=True)
    table: collections.Counter = collections.Counter()
    kinds: dict[str, list[str]] = {}
    with Server() as server, open(asked.out / "faults.jsonl", "a", encoding="utf-8") as record:
        bench = Bench(server, asked.out)
        for name in asked.only.split(","):
            scenario = SCENARIOS[name]
            calls = [call for call in bench.trace(scenario) if not asked.calls or call.name in asked.calls.split(",")]
            for action in asked.action.split(","):
                picked = plans(calls, action, len(calls) if asked.at else asked.points, asked.seed, asked.once)
                for call, plan in picked:
                    if asked.at and call.number != asked.at:
                        continue
                    second = 1 + hash((asked.seed, call.number)) % len(calls) if asked.twice else 0
                    faults = bench.attack(scenario, plan, second=second, keep=asked.at is not None)
                    table[name, action, "whole" if not faults else "FAULT"] += 1
                    again = f"--only {name} --action {action} --at {call.number}"
                    again += " --once" * asked.once + " --twice" * asked.twice
                    for fault in faults:
                        kind = f"{name} {action}: {re.sub(r'[0-9]+', 'N', fault)[:230]}"
                        kinds.setdefault(kind, []).append(f"{call.kind} [{again}]")
                    record.write(json.dumps({"run": again, "call": call.kind, "faults": faults}) + "\n")
                    record.flush()
                print(f"{name} {action}: {len(picked)} points of {len(calls)} calls,"
                      f" {table[name, action, 'FAULT']} with faults", flush=True)
    for kind, where in sorted(kinds.items()):
        print(f"{len(where):4} {kind}\n       at {where[0]}")
    return int(any(key[2] == "FAULT" for key in table))


if __name__ == "__main__":
    sys.exit(main())
