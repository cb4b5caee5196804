"""Damage the files that commands read, one at a time, and see that each is read right or refused in one sentence.

    python tests/attack/mutations.py --count 4000 --seed 0 --out DIR [--only state.pt]

Each file is damaged with its checksum left wrong, and with the checksums made right, so that the checks of the content are
reached. A damaged file is a failure if the command ends in a traceback, by a signal, after its time, with more than one
sentence, with more than 512 MB of memory beyond its usual; if a wrong checksum goes unnoticed; or if a refusal loses or leaves
something.
Results are in DIR/results.jsonl, damaged files of failures in DIR/failures. The same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import random
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mutate
import scaling
from contents import files_of
from crash_points import TRAIN, sentence_faults
from disk import missing
from server import Outcome, Server

MEMORY = 512 * 2**20  # bytes beyond an undamaged run
CPU_SECONDS, WALL_SECONDS = 20, 120
NOISE = 30_000  # characters that a command may print
DREAM = (
    "import gymnasium, tokenworld; from tokenworld import DreamEnv; env = gymnasium.make('tokenworld/Dream-v0', model='model');"
    " env.reset(seed=0); env.step(0)"
)
RESUME, SCORE, EXPORT = "train --resume run", "score run episodes=2", "export run out=new"
EVALUATE = "evaluate run frames=60 budget=3 out=new"
OF_MODEL = ("score model episodes=2", "dream model data=data steps=3 out=new/x.gif",
            "evaluate model data=data frames=60 budget=3 out=new")  # fmt: skip
COMPARE = ("compare run/evaluation ev", "compare ev run/evaluation")
OF_RUN = (RESUME, SCORE, EXPORT, EVALUATE, "dream run steps=3 out=new/x.gif")
OF_DATA = ("data info data", "train tokenizer overlay=debug data=data out=new",
           "evaluate run data=data frames=60 budget=3 out=new")  # fmt: skip
SWEEP = "sweep overlay=debug train.collect.held_out=3 out=sweep"
# Keys of a config that say how much is to be done: a run that takes long over a large one does what it is asked to do.
AMOUNTS = set(
    "epochs updates steps first_steps batch window length horizon burn_in episodes final_episodes envs frames accumulate"
    " max_steps checkpoint_every every passes minibatches layers dim hidden heads context vocab_size patch start stop".split()
)


@dataclass(frozen=True)
class Target:
    """A kind of file: where one lies, the commands that read it, how it is damaged. checksum: "manifest", "record" or ""."""

    paths: tuple[str, ...]
    commands: tuple[str, ...]
    content: Callable[[bytes, random.Random], mutate.Mutation]
    checksum: str = ""


WEIGHTS = tuple(f"run/checkpoint/{part}.safetensors" for part in ("tokenizer", "dynamics", "policy"))
TARGETS = {
    "replay shard": Target(("run/replay/episodes-00000.bin",), ("data info run/replay", *OF_RUN), mutate.shard, "record"),
    "data shard": Target(("data/episodes-00000.bin",), OF_DATA, mutate.shard, "record"),
    "replay meta.json": Target(("run/replay/meta.json",), ("data info run/replay", RESUME, SCORE), mutate.json_text),
    "data meta.json": Target(("data/meta.json",), OF_DATA, mutate.json_text),
    "config.yaml": Target(("run/config.yaml",), OF_RUN, mutate.yaml_text),
    "state.pt": Target(("run/checkpoint/state.pt",), (RESUME, RESUME, SCORE, EXPORT), mutate.torch_file, "manifest"),
    "weights": Target(WEIGHTS, (RESUME, SCORE, EXPORT, EVALUATE), mutate.safetensors, "manifest"),
    "manifest.json": Target(("run/checkpoint/manifest.json",), (RESUME, SCORE), mutate.json_text),
    "metrics.jsonl": Target(("run/metrics.jsonl",), (RESUME,), mutate.json_line),
    "model config.json": Target(("model/config.json",), OF_MODEL, mutate.json_text),
    "model weights": Target(("model/model.safetensors", "model/policy.safetensors"), OF_MODEL, mutate.safetensors),
    "model starts": Target(("model/starts.safetensors",), (f"-c {DREAM}",), mutate.safetensors),
    "report.json": Target(("run/evaluation/report.json",), (*COMPARE, EXPORT), mutate.json_text),
    "states.npz": Target(("run/evaluation/states.npz",), COMPARE, mutate.arrays),
    "summary.json": Target(("sweep/Breakout-seed0/summary.json",), (SWEEP,), mutate.json_text),
    "sweep.json": Target(("sweep/sweep.json",), (SWEEP,), mutate.json_text),
}  # fmt: skip
OFTEN = ("replay shard", "data shard", "config.yaml", "state.pt", "weights", "model config.json")  # twice as many of these


@dataclass(frozen=True)
class Case:
    """One mutation: a function of seed and index."""

    index: int
    kind: str
    path: str
    command: str
    is_right: bool  # checksums are made right
    rng: random.Random


def case(seed: int, index: int, kinds: list[str]) -> Case:
    rng = random.Random(f"{seed}-{index}")
    kind = kinds[index % len(kinds)]
    target = TARGETS[kind]
    return Case(index, kind, rng.choice(target.paths), rng.choice(target.commands), bool(index // len(kinds) % 2), rng)


class World:
    """Undamaged folders made by the product, and how each command behaves on them."""

    def __init__(self, server: Server, folder: Path, has_sweep: bool = True) -> None:
        self.server, self.folder = server, folder
        self.usual: dict[str, Outcome] = {}
        if not (folder / "complete").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            made = [TRAIN, "evaluate run frames=60 budget=3 out=ev".split(), "export run out=model".split(),
                    "collect overlay=debug steps=100 out=data".split(), *([SWEEP.split()] if has_sweep else [])]  # fmt: skip
            for argv in made:
                done = server.run(argv, folder, timeout=300)
                if done.code:
                    raise RuntimeError(f"{' '.join(argv)} fails without an attack: {done.stderr[-2000:]}")
            config = folder / "run" / "config.yaml"
            config.write_text(re.sub(r"\bepochs: 2\b", "epochs: 3", config.read_text(encoding="utf-8")), encoding="utf-8")
            (folder / "complete").touch()

    def copy(self, command: str) -> Path:
        """A new folder with what a command reads."""
        where = Path(tempfile.mkdtemp(prefix="case-", dir=self.folder.parent))
        for source in self.folder.iterdir():
            if source.is_dir() and re.search(rf"(?<![\w/.]){source.name}\b", command):
                shutil.copytree(source, where / source.name)
        return where

    def run(self, command: str, where: Path) -> Outcome:
        argv = ["-c", command[3:]] if command.startswith("-c ") else command.split()
        return self.server.run(argv, where, timeout=WALL_SECONDS, cpu_limit=CPU_SECONDS, memory_limit=3 * 2**30)

    def usually(self, command: str) -> Outcome:
        """How the command ends on undamaged files. Raises RuntimeError if that is not well."""
        if command not in self.usual:
            where = self.copy(command)
            done = self.usual[command] = self.run(command, where)
            shutil.rmtree(where)
            if done.code not in (0, 1) or "Traceback" in done.stderr:
                raise RuntimeError(f"{command} fails without an attack: {done.stderr[-2000:]}")
        return self.usual[command]

    def attack(self, seed: int, index: int, kinds: list[str], failures: Path | None = None) -> dict:
        """One mutation: its record, with `outcome` "read", "refused" or what is wrong."""
        one = case(seed, index, kinds)
        usual, where, target = self.usually(one.command), self.copy(one.command), TARGETS[one.kind]
        before = (where / one.path).read_bytes()
        damage = target.content if one.is_right or not target.checksum else mutate.raw
        content, what = damage(before, one.rng)
        (where / one.path).write_bytes(content)
        if one.is_right and target.checksum == "manifest":
            _repair(where / one.path)
        there = {name: path.read_bytes() for name, path in files_of(where)}
        done = self.run(one.command, where)
        found = judge(done, usual) or ("refused" if done.code == 2 else "read")
        if found == "refused":
            found = lost(there, where, done) or found
        if found == "read" and content != before:
            found = unnoticed(one, what, done) or found
        last = (done.stderr.strip().splitlines() or [""])[-1]
        record = {"index": index, "kind": one.kind, "file": one.path, "command": one.command, "what": what, "outcome": found,
                  "checksum": "right" if one.is_right else "wrong", "code": done.code, "said": last[:300],
                  "asked": _is_asked(what, found), "cpu": round(done.cpu, 2),
                  "growth": (done.peak - usual.peak) >> 20}  # fmt: skip
        if found not in ("read", "refused") and failures is not None:
            kept = failures / f"{seed}-{index}"
            kept.mkdir(parents=True, exist_ok=True)
            if len(content) < 5 * 2**20:
                (kept / Path(one.path).name).write_bytes(content)
            (kept / "case.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
            (kept / "stderr.txt").write_text(done.stderr, encoding="utf-8")
        shutil.rmtree(where)
        return record


def judge(done: Outcome, usual: Outcome) -> str:
    """What is wrong with how a command ended; empty if nothing is."""
    if done.is_timeout or done.code == -24:
        return "slow"
    if done.code < 0:
        return f"killed by signal {-done.code}"
    if done.peak - usual.peak > MEMORY:
        return "memory"
    faults = sentence_faults(done)
    traced = [fault for fault in faults if "Traceback" in fault or "ignored" in fault]
    if traced:
        return "traceback" if "Traceback" in traced[0] else "exception ignored"
    if len(done.stderr) + len(done.stdout) > NOISE + len(usual.stderr) + len(usual.stdout):
        return "noise"
    if done.code == 2:
        return f"not one sentence: {faults[0]}" if faults else ""
    if done.code not in (0, usual.code) and not (done.code == 1 and usual.code in (0, 1) and done.stdout):
        return f"exit code {done.code}"
    return ""


def unnoticed(one: Case, what: str, done: Outcome) -> str:
    """Damage that a command that ended well has to notice: wrong checksums, weights that are not finite, episodes that are
    lost, doubled or impossible."""
    checksum = TARGETS[one.kind].checksum
    if checksum == "manifest" and not one.is_right:
        return "a wrong checksum went unnoticed"
    if one.kind == "model weights" and re.search("holds (nan|inf)", what):
        return "weights that are not finite went unnoticed"
    if checksum == "record" and one.command.startswith("data info") and done.stdout.rstrip().endswith("intact"):
        is_lost = one.kind == "data shard" and what.endswith((": lost", ": doubled"))
        if not one.is_right and what != "emptied" or is_lost or re.search(r"action holds|reward holds (nan|inf)", what):
            return "called intact"
    return ""


def lost(before: dict[str, bytes], where: Path, done: Outcome) -> str:
    """What a refused command changed: files are whole or longer; what a finished epoch writes may be new."""
    now = {name: path.read_bytes() for name, path in files_of(where)}
    went_on = re.search(r"^epoch \d+/", done.stderr, re.MULTILINE)
    for name, content in before.items():
        if went_on and not name.endswith((".bin", ".jsonl")):
            continue
        grows = name.endswith((".bin", ".jsonl", ".log", ".md")) or name.startswith("sweep/")
        if name not in now or (not now[name].startswith(content) if grows and name in now else now[name] != content):
            if not name.startswith("sweep/results"):
                return f"refused, but {'deleted' if name not in now else 'changed'} {name}"
    new = sorted(name for name in now if name not in before and name.startswith("new/"))
    return f"refused, but left {new[0]}" if new and not went_on else ""


def _is_asked(what: str, found: str) -> bool:
    """Is this a config's own large number, of which a long or large run is what it asks for?"""
    key = re.match(r"[\w.]*?(\w+): .* -> ", what)
    return found in ("slow", "memory") and key is not None and key[1] in AMOUNTS


def _repair(path: Path) -> None:
    """Have the manifest say what the file now is."""
    manifest = path.with_name("manifest.json")
    said = json.loads(manifest.read_text(encoding="utf-8"))
    content = path.read_bytes()
    said["files"][path.name] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest.write_text(json.dumps(said, indent=1), encoding="utf-8")


def kinds_of(only: str | None) -> list[str]:
    if only is not None and only not in TARGETS:
        sys.exit(f"--only: got {only}, expected one of {', '.join(TARGETS)}")
    return [only] if only else [kind for kind in TARGETS for _ in range(1 + (kind in OFTEN))]


def table(records: list[dict]) -> str:
    """Outcomes by kind of file, then each different failure with an example."""
    counts: dict[str, collections.Counter] = {}
    failures: dict[str, list[dict]] = {}
    for record in records:
        good = record["outcome"] in ("read", "refused")
        found = record["outcome"] if good else "asked for much" if record["asked"] else "FAILED"
        counts.setdefault(record["kind"], collections.Counter())[found] += 1
        if found == "FAILED":
            said = re.sub(r"[0-9]+", "N", record["said"])[:110]
            failures.setdefault(f"{record['kind']}: {record['outcome']}: {said}", []).append(record)
    columns = ("read", "refused", "asked for much", "FAILED")
    lines = [f"{'':20}" + "".join(f"{column:>16}" for column in columns)]
    lines += [f"{kind:20}" + "".join(f"{counts[kind][column]:16}" for column in columns) for kind in counts]
    for what, some in sorted(failures.items(), key=lambda item: -len(item[1])):
        lines += [f"{len(some):4} {what}", f"       {some[0]['index']}: {some[0]['what'][:120]} | {some[0]['command'][:60]}"]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help=f"one kind of file: {', '.join(TARGETS)}")
    parser.add_argument("--case", type=int, help="run this case again and print what it says")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    if missing():
        sys.exit(missing())
    kinds = kinds_of(asked.only)
    name = f"results-{asked.seed}{'-' + asked.only.replace(' ', '-') if asked.only else ''}.jsonl"
    asked.out.mkdir(parents=True, exist_ok=True)
    path = asked.out / name
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    records = [json.loads(line) for line in lines if line.endswith("}")]
    done = {record["index"] for record in records}
    with Server() as server, open(path, "a", encoding="utf-8") as file:
        world = World(server, asked.out / "world")
        if asked.case is not None:
            print(json.dumps(world.attack(asked.seed, asked.case, kinds, asked.out / "failures"), indent=1))
            return 0
        for index in range(asked.count):
            if index in done:
                continue
            records.append(world.attack(asked.seed, index, kinds, asked.out / "failures"))
            file.write(json.dumps(records[-1]) + "\n")
            file.flush()
            if index % 200 == 199:
                failed = sum(record["outcome"] not in ("read", "refused") for record in records)
                print(f"{index + 1}/{asked.count}, {failed} failed", flush=True)
        slow = [] if asked.only else scaling.faults(server, asked.out)
    print(table(records))
    print("\n".join(slow))
    return int(bool(slow) or any(record["outcome"] not in ("read", "refused") and not record["asked"] for record in records))


if __name__ == "__main__":
    sys.exit(main())
