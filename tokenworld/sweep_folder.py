"""What a sweep's folder says, checked: its own sweep.json, and what its runs wrote. It may be of unknown origin."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from tokenworld import files
from tokenworld.errors import UserError

NAME = re.compile(r"[\w.+-]*-seed[\w.+-]+")  # as `sweep.name_runs` makes them: no separators, so each is a folder of its own


def read_settings(out: Path) -> dict[str, dict[str, str | None]]:
    """The settings of a sweep's runs by name; none for a new one. Raises UserError for a folder of something else, and for a
    sweep.json that no sweep wrote."""
    path = out / "sweep.json"
    if not path.is_file():
        if not files.is_empty(out):
            raise UserError(f"{out} exists and is not a sweep, no file was overwritten: choose another out=DIR or remove it")
        return {}
    advice = "restore it from a copy, or choose another out=DIR"
    try:
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
        settings = [each.items() for each in runs.values()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is damaged: {advice}") from None
    for name in runs:
        if not NAME.fullmatch(name):
            raise UserError(f"{path} names a run {name[:80]!r}, expected a name like Breakout-seed0: {advice}")
    for key, value in (item for items in settings for item in items):
        if not _is_word(key) or "=" in key or not (value is None or isinstance(value, str) and (not value or _is_word(value))):
            raise UserError(f"{path} has the setting {str((key, value))[:80]}, expected words like backbone.layers: {advice}")
    return runs


def _is_word(text: str) -> bool:
    """Can this be a word of a command line? It may hold spaces, but no line breaks or control characters."""
    return text != "" and text.isprintable()


def read_summary(run: Path) -> dict[str, Any]:
    """The summary.json of a finished run, with what a table of runs needs. Raises UserError if it is damaged."""
    path = run / "summary.json"
    try:
        with files.writing(path):
            summary = json.loads(path.read_text(encoding="utf-8"))
        evaluation = summary["eval"]
        numbers = [summary["env_steps"]]
        if evaluation["return_mean"] is not None:  # a run without a policy has no return
            numbers += [evaluation["return_mean"], evaluation["random_return_mean"]]
        good = all(isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x) for x in numbers)
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        good = False
    if not good:
        raise UserError(f"{path} is damaged: delete it, the same command then writes it again from the run's checkpoint")
    return summary


def epochs_of(run: Path) -> int:
    """The epochs that a run's newest line of metrics tells of; 0 if there is none yet, or it is being written."""
    try:
        epoch = json.loads(last_line(run / "metrics.jsonl"))["epoch"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0
    return epoch if isinstance(epoch, int) else 0


def last_line(path: Path) -> str:
    """The last line with something in it; empty if there is none."""
    if not path.is_file():
        return ""
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 20_000))
        lines = [line.strip() for line in re.split(r"[\r\n]", file.read().decode("utf-8", "replace")) if line.strip()]
    return lines[-1] if lines else ""
