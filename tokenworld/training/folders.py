"""The folder of a run: its name, its one writer, and what a process that was killed left in it.

With several processes the first one holds the lock, decides, and moves files; what it refuses, all refuse.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tokenworld import distributed, files, origins
from tokenworld.config import saved
from tokenworld.config.saved import RunSpec
from tokenworld.errors import UserError
from tokenworld.storage import checkpoint

WORK = ("replay", "metrics.jsonl", "checkpoint", "checkpoint.new", "checkpoint.old", "tensorboard", "pictures")  # of a start


@contextlib.contextmanager
def claiming(spec: RunSpec) -> Iterator[Path]:
    """The locked folder of a training: `out`, or a new one under runs/. Raises UserError for a folder that holds anything else
    than a run of the same config."""
    if distributed.world_size() > 1 and spec.out is None:
        raise UserError("training on several processes needs a fixed folder for restarts, got no out: add out=DIR")
    with _naming(spec) as out, locking(out):
        there = saved.load(out) if (out / "config.yaml").is_file() else None
        same = files.is_empty(out) or there == spec
        if not distributed.broadcast(same):
            trust = f" {origins.FLAG}" if there and any(origins.names(there.cfg)) else ""
            resume = f", or resume that run by tokenworld train --resume {shlex.quote(str(out))}{trust}" if there else ""
            raise UserError(f"{out} exists and is not this run, no file was overwritten: choose another out=DIR{resume}")
        yield out


@contextlib.contextmanager
def locking(out: Path) -> Iterator[None]:
    """Be the only training that writes to a run's folder, and settle what killed ones left. Raises UserError."""
    with contextlib.ExitStack() as stack:
        refused = None
        if distributed.rank() == 0:
            try:
                stack.enter_context(files.locking(out))
                with files.writing(out):
                    files.remove_unfinished(out)
                    checkpoint.settle(out / "checkpoint")
            except UserError as error:
                refused = str(error)
        refused = distributed.broadcast(refused)
        if refused:
            raise UserError(refused)
        yield


@contextlib.contextmanager
def _naming(spec: RunSpec) -> Iterator[Path]:
    """`out`, or a new folder that no other process has, though two may start in the same second; removed if it stays empty."""
    if spec.out:
        yield Path(spec.out)
        return
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(spec.recipe).stem}-{spec.seed or 0}"
    for number in itertools.count(1):
        out = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            with files.writing(out):
                out.parent.mkdir(parents=True, exist_ok=True)
                out.mkdir()
            break
        except UserError as error:
            if not isinstance(error.__cause__, FileExistsError) or not out.is_dir():
                raise
    try:
        yield out
    finally:
        with contextlib.suppress(OSError):
            out.rmdir()


@contextlib.contextmanager
def emptying_on_error(out: Path) -> Iterator[None]:
    """Delete everything but the lock if the block, which fills an empty folder, fails."""
    try:
        yield
    except BaseException:
        if distributed.rank() == 0 and out.is_dir():
            for path in out.iterdir():
                if path.name != files.LOCK:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        raise


def start_over(out: Path, checkpoint_every: int) -> Path | None:
    """Make room for the start of a run that has no checkpoint. What was written is moved to a folder unfinished-N, which is
    returned; None if that was nothing. Raises UserError if a checkpoint must have been there: it is lost, the run is not."""
    epochs = _last_epoch(out / "metrics.jsonl")
    if epochs >= checkpoint_every or (out / "summary.json").exists():
        raise UserError(
            f"{out} has finished {epochs} epochs or more and its checkpoint is missing or damaged, no file was overwritten:"
            f" restore {out}/checkpoint from a copy, or train in another folder (out=DIR)"
        )
    paths = [out / name for name in WORK if (out / name).exists() or (out / name).is_symlink()]
    if not any(_has_work(path) for path in paths):
        return None
    with files.writing(out):
        aside = next(path for n in itertools.count(1) if not (path := out / f"unfinished-{n}").exists())
        aside.mkdir()
        for path in paths:
            path.rename(aside / path.name)
    return aside


def _last_epoch(metrics: Path) -> int:
    """The newest epoch of a run's metrics, of which there are as many finished ones; 0 if they say nothing."""
    epochs = [0]
    with files.writing(metrics):
        lines = metrics.read_bytes().splitlines() if metrics.is_file() else []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            epochs.append(int(json.loads(line)["epoch"]))
    return max(epochs)


def _has_work(path: Path) -> bool:
    """Is there anything but empty files, and the meta.json that each start writes?"""
    inside = path.rglob("*") if path.is_dir() else [path]
    return any(file.is_file() and file.name != "meta.json" and file.stat().st_size > 0 for file in inside)
