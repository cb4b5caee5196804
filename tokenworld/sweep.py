"""Many runs of `tokenworld train`: a grid of settings, a few processes at once, one table at the end.

Nothing of a sweep lives in memory only: `sweep.json` says which run is which, a run with a summary.json is finished, and a
log that is locked belongs to a process that still runs. So the same command continues after any kind of end.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from tokenworld import files, origins, signals
from tokenworld.config import saved
from tokenworld.config.compose import cli_keys
from tokenworld.config.saved import RunSpec
from tokenworld.errors import UserError
from tokenworld.log import Log
from tokenworld.scores.comparison import compare, markdown
from tokenworld.sweep_folder import epochs_of, last_line, read_settings, read_summary

Settings = dict[str, str | None]  # key -> the word's value; ~key -> None
OWN_KEYS = ("out", "jobs")
TRAIN = (sys.executable, "-m", "tokenworld.cli", "train")
POLL = 0.2  # seconds between looks at the processes


@dataclass(frozen=True)
class Member:
    """One run of the grid: its folder, its words, and the config that they compose to."""

    out: Path
    settings: Settings
    spec: RunSpec

    @property
    def name(self) -> str:
        return self.out.name

    @property
    def log(self) -> Path:
        return self.out.with_name(self.name + ".log")

    @property
    def finished(self) -> bool:
        return (self.out / "summary.json").is_file()

    @property
    def summary(self) -> dict[str, Any] | None:
        """What a finished run measured; None for any other."""
        return read_summary(self.out) if self.finished else None

    @property
    def epochs(self) -> int:
        return self.spec.train["loop"].get("epochs", 1)

    @property
    def epochs_done(self) -> int:
        return self.epochs if self.finished else min(self.epochs, epochs_of(self.out))


# ---------------------------------------------------------------------------------------------------------------------
# The grid


def plan(words: Sequence[str], compose: Callable[[list[str]], RunSpec]) -> tuple[Path, int, list[Member]]:
    """Command line -> out, jobs, and every run of the grid, composed and checked by `compose`. Raises UserError."""
    own, grid = expand(words)
    if not own.get("out"):
        raise UserError("sweep writes its runs to a folder, got no out: add out=DIR, for example out=sweeps/breakout")
    out, jobs = Path(own["out"]), cli_keys([f"jobs={own.get('jobs', 1)}"], {"jobs": int})["jobs"]
    composed = [compose(words_of(settings)) for settings in grid]
    names = name_runs(out, [(settings, spec.parts["env"]["id"]) for settings, spec in zip(grid, composed, strict=True)])
    members = [
        Member(out / name, settings, replace(spec, out=str(out / name)))
        for name, settings, spec in zip(names, grid, composed, strict=True)
    ]
    return out, jobs, members


def expand(words: Sequence[str]) -> tuple[dict[str, str], list[Settings]]:
    """Command line -> the sweep's own keys (out, jobs), and the settings of each run: the product of all comma lists."""
    own: dict[str, str] = {}
    values: dict[str, list[str | None]] = {"seed": ["0"]}
    given = set()
    for word in words:
        key, equals, value = word.partition("=")
        if key in given:
            raise UserError(f"{key} is given twice: write all its values in one word, for example {key}=A,B")
        given.add(key)
        if key in OWN_KEYS:
            own[key] = value
        else:
            values[key] = split(key, value) if equals else [None]
    return own, [dict(zip(values, choice, strict=True)) for choice in product(*values.values())]


def split(key: str, text: str) -> list[str]:
    """`0,1,2` -> 0 1 2; commas inside brackets or quotes belong to a value: `[8,16]` is one, `[8,16],[8]` are two."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        depth += (letter in "[{(") - (letter in ")}]") if not quote else 0
        quote = "" if letter == quote else letter if not quote and letter in "'\"" else quote
        if letter == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    if len(parts) > 1 and ("" in parts or len(set(parts)) < len(parts)):
        raise UserError(f"{key}={text} has an empty or repeated value: expected different values, {key}=A,B")
    return parts


def words_of(settings: Settings) -> list[str]:
    return [key if value is None else f"{key}={value}" for key, value in settings.items()]


def name_runs(out: Path, runs: Sequence[tuple[Settings, str]]) -> list[str]:
    """A name for each (settings, env id): those in `out` keep theirs, new ones say what differs. Raises UserError if `out`
    holds something else than a part of this grid."""
    known = read_settings(out)
    chosen = [settings for settings, _ in runs]
    for name, settings in known.items():
        if settings not in chosen:
            raise UserError(
                f"{out} holds a sweep with {name} ({' '.join(words_of(settings))}), which this grid lacks: "
                f"give the same keys with at least the same values, or another out=DIR"
            )
    values = {key: list(dict.fromkeys(s.get(key) for s in chosen)) for settings in chosen for key in settings}
    swept = [key for key in values if len(values[key]) > 1 and key not in ("env.id", "seed")]
    games = labels(dict.fromkeys(env_id for _, env_id in runs))
    texts = {key: labels(values[key]) for key in swept}
    short = {key: key.rpartition(".")[2] for key in swept}
    short = {key: word if list(short.values()).count(word) == 1 else key for key, word in short.items()}
    names: list[str] = []
    for settings, env_id in runs:
        old = [name for name, theirs in known.items() if theirs == settings]
        new = "-".join([games[env_id], f"seed{settings['seed']}", *(short[key] + texts[key][settings[key]] for key in swept)])
        while not old and (new in known or new in names):
            new += "+"
        names.append(old[0] if old else new)
    return names


def labels(values: Sequence[str | None]) -> dict[str | None, str]:
    """Values as parts of a file name: ALE/Breakout-v5 is Breakout, unless there is a MinAtar/Breakout-v1 too."""

    def safe(text: str) -> str:
        return re.sub(r"[^\w.+-]+", "_", text).strip("_")

    whole = {value: safe(str(value)) for value in values}
    short = {value: safe(re.sub(r"-v\d+$", "", str(value).rpartition("/")[2])) for value in values}
    return short if len(set(short.values())) == len(short) else whole


# ---------------------------------------------------------------------------------------------------------------------
# The runs


def sweep(out: Path, members: Sequence[Member], jobs: int, words: Sequence[str]) -> int:
    """Train what is not finished, at most `jobs` at once, and compare all; the exit code: 1 if a run failed.

    Raises UserError, before anything is created, for a run that was begun with another recipe or has a damaged summary, and for
    a folder in which another sweep is at work; `Stop` after a signal, when every run has saved.
    """
    for member in members:
        _ = member.summary
        if (member.out / "config.yaml").is_file() and not _same(saved.load(member.out), member.spec):
            raise UserError(f"{member.out} was started with other settings than its recipe has now: choose another out=DIR")
    with files.locking(out):
        return _sweep(out, members, jobs, words)


def _sweep(out: Path, members: Sequence[Member], jobs: int, words: Sequence[str]) -> int:
    files.remove_unfinished(out)
    files.write(out / "sweep.json", json.dumps({"runs": {m.name: m.settings for m in members}}, indent=1) + "\n")
    log, again = Log(None), f"tokenworld sweep {shlex.join([*words, *_trust()])}"
    log.say(f"{out}: {len(members)} runs, {sum(m.finished for m in members)} of them finished, {jobs} at once")

    def write_table(failed: dict[str, int]) -> None:
        try:
            write_results(out, *results_of(members, failed))
        except UserError as error:  # the runs continue, and the table is written again later
            log.say(str(error))

    failed, signum = _train(members, jobs, log, write_table)
    results, text = results_of(members, failed)
    print(text, flush=True)
    write_results(out, results, text)
    for name, code in failed.items():
        log.say(f"failed: {name}, exit code {code}: {last_line(out / f'{name}.log')}")
    if not all(member.finished or member.name in failed for member in members):
        log.say(f"stopped; resume with: {again}")
        raise signals.Stop(signum or signal.SIGINT)
    if failed:
        log.say(f"{len(failed)} of {len(members)} runs failed, see {out}/NAME.log; to try them again: {again}")
    return 1 if failed else 0


@dataclass
class Job:
    """A running process of a sweep."""

    member: Member
    process: subprocess.Popen
    slot: int  # among the jobs
    signals_sent: int = 0  # signals that it got


def _train(
    members: Sequence[Member], jobs: int, log: Log, on_end: Callable[[dict[str, int]], Any]
) -> tuple[dict[str, int], int]:
    """Run what is not finished; `on_end` is called when a run ends. The exit codes of those that failed, by name, and the
    signal that stopped the others, or 0."""
    waiting = [member for member in members if not member.finished]
    running: list[Job] = []
    failed: dict[str, int] = {}
    announced: set[str] = set()
    with _Interrupts() as interrupts, _Clock(members, log) as clock:
        while waiting or running:
            for job in running[:]:
                code, name = job.process.poll(), job.member.name
                if code is None and job.signals_sent < interrupts.count:  # one each: a second one means stop without saving
                    job.process.send_signal(interrupts.signum)
                    job.signals_sent += 1
                elif code is not None:
                    running.remove(job)
                    if job.member.finished and code == 0:
                        how = "finished"
                    elif job.signals_sent:
                        how = "stopped"
                    else:
                        how, failed[name] = f"failed (exit code {code})", code or 1
                    clock.say(f"{how} {name}: {last_line(job.member.log)}")
                    on_end(failed)
            if interrupts.count:
                waiting = []
            if interrupts.count > interrupts.announced:
                interrupts.announced = interrupts.count
                log.say("stopping: each run finishes its epoch and saves; Ctrl-C again stops at once")
            for member in waiting[:]:
                slots = set(range(jobs)) - {job.slot for job in running}
                if not slots:
                    break
                process = None if member.finished else _start(member, min(slots), jobs)
                if process is not None:
                    clock.say(f"started {member.name}")
                    running.append(Job(member, process, min(slots)))
                if member.finished or process is not None:
                    waiting.remove(member)
                elif member.name not in announced:
                    announced.add(member.name)
                    log.say(f"{member.name} is still running in a process of another sweep: waiting for it")
            clock.tick()
            time.sleep(POLL)
    return failed, interrupts.signum


def _start(member: Member, slot: int, jobs: int) -> subprocess.Popen | None:
    """`tokenworld train` in a process of its own, its output in the run's log; None if another process has the run.

    The lock goes with the open file, so it holds for as long as the process lives, also without its sweep.
    """
    with files.writing(member.log), open(member.log, "ab") as output:
        try:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        if (member.out / "config.yaml").is_file():  # it is what the command line says, which its user vouches for
            words = ["--resume", str(member.out), *_trust(any(origins.names(member.spec.cfg)))]
        else:
            words = [*words_of(member.settings), f"out={member.out}", *_trust()]
        return subprocess.Popen(
            [*TRAIN, *words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(slot, jobs, member.spec.device or "auto"),
            start_new_session=True,  # a terminal's Ctrl-C reaches the sweep alone, which passes on exactly one
        )


def _trust(is_needed: bool = False) -> list[str]:
    """The flag that vouches for folders, if this sweep's own command had it, or a run of it needs it."""
    return [origins.FLAG] if is_needed or origins.is_vouched() else []


def environment(slot: int, jobs: int, device: str) -> dict[str, str]:
    """A job's share of the machine: its cores, and one of the visible GPUs in turn if there are several."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    changed = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, cores // jobs)))}
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        changed["CUDA_VISIBLE_DEVICES"] = visible[slot % gpus]
    return {**os.environ, **changed}


class _Interrupts:
    """Counts Ctrl-C, and the polite requests of a cluster or a closing terminal, instead of being ended by them."""

    def __init__(self) -> None:
        self.count = self.announced = 0
        self.signum = 0  # the newest one that counts

    def __enter__(self) -> _Interrupts:
        def handler(signum, frame):  # also where a signal was ignored: a child would inherit that, and be deaf to ours
            if self.previous[signum] is not signal.SIG_IGN:
                self.count, self.signum = self.count + 1, signum

        self.previous = {kind: signal.getsignal(kind) for kind in signals.KINDS}
        for kind in signals.KINDS:
            signal.signal(kind, handler)
        return self

    def __exit__(self, *_: Any) -> None:
        for kind, previous in self.previous.items():
            signal.signal(kind, previous)


class _Clock:
    """What is done and what is left, in epochs of all runs: a bar on a terminal, a line a minute when piped."""

    def __init__(self, members: Sequence[Member], log: Log):
        self.members, self.log = members, log
        self.total = sum(member.epochs for member in members)
        self.before = self.done = sum(member.epochs_done for member in members)
        self.began = self.looked = time.monotonic()
        self.every = 1.0 if sys.stderr.isatty() else 60.0

    def __enter__(self) -> _Clock:
        self.bar = self.log.progress(self.total, "epochs of all runs", self.done).__enter__()
        return self

    def __exit__(self, *reason: Any) -> None:
        self.bar.__exit__(*reason)

    def tick(self) -> None:
        if time.monotonic() - self.looked >= self.every:
            self.looked = time.monotonic()
            done = sum(member.epochs_done for member in self.members)
            self.bar.update(done - self.done)
            self.done = done

    def say(self, text: str) -> None:
        finished, done = sum(m.finished for m in self.members), sum(m.epochs_done for m in self.members)
        gained, spent = done - self.before, time.monotonic() - self.began
        minutes = spent / max(1, gained) * (self.total - done) / 60
        left = f", about {max(1, minutes):.0f} min left" if 0 < gained and done < self.total else ""
        self.log.say(f"[{finished}/{len(self.members)}{left}] {text}")


# ---------------------------------------------------------------------------------------------------------------------
# Files


def results_of(members: Sequence[Member], failed: dict[str, int]) -> tuple[dict[str, Any], str]:
    """What results.json and results.md say of what there is so far."""
    runs = [
        {
            "name": member.name,
            "env_id": member.spec.parts["env"]["id"],
            "seed": member.spec.seed,
            "settings": member.settings,
            "state": "failed" if member.name in failed else "finished" if member.finished else "unfinished",
            "last_line": last_line(member.log),
            "summary": member.summary,
        }
        for member in members
    ]
    results = compare(runs)
    return results, markdown(results)


def write_results(out: Path, results: dict[str, Any], text: str) -> None:
    files.write(out / "results.json", json.dumps(results, indent=1) + "\n")
    files.write(out / "results.md", text)


def _same(spec: RunSpec, other: RunSpec) -> bool:
    """Are two the same run? `out` may be written in another way, from another folder."""
    return replace(spec, out=None) == replace(other, out=None)
