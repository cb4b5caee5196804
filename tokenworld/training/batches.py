"""Batches of a phase: splitting, progress bar, and logged metrics."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import torch

from tokenworld import distributed
from tokenworld.errors import UserError
from tokenworld.interfaces import Steps
from tokenworld.training.run import Run


def log_metrics(run: Run, phase: str, shown: tuple[str, ...] = (), **numbers: Any) -> None:
    """Write a line of metrics; the numbers named in `shown` also appear in the epoch's closing line."""
    run.log.steps = run.count["env_steps"]
    run.log.metrics(phase, epoch=run.epoch, **numbers)
    run.epoch_summary |= {f"{phase} {name}".removesuffix(" loss"): numbers[name] for name in shown if numbers[name] is not None}


def format_summary(summary: dict[str, float]) -> str:
    """The metrics of an epoch's last line, as text."""
    return ", ".join(f"{name} {float(value):.4g}" for name, value in summary.items()) or "no phase ran this epoch"


def progress(run: Run, batches, total: int, label: str):
    """Yield the batches with a progress bar."""
    with run.log.progress(total, f"epoch {run.epoch + 1} {label}") as bar:
        for batch in batches:
            yield batch
            bar.update()


def split_batch(batch: int, accumulate: int) -> list[slice]:
    """Split a batch into `accumulate` parts of nearly equal size."""
    bounds = [round(i * batch / accumulate) for i in range(accumulate + 1)]
    return [slice(*bounds[i : i + 2]) for i in range(accumulate) if bounds[i] < bounds[i + 1]]


def gather_steps(steps: Steps) -> Steps:
    """Gather the steps of all ranks."""
    return Steps(**{f.name: distributed.all_gather(getattr(steps, f.name)) for f in fields(steps)})


def check_finite(loss: torch.Tensor, what: str) -> float:
    """Return the loss as a number. Raises UserError when training has diverged: the last checkpoint is from before."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise UserError(
            f"the {what} loss is {value}: training diverged, expected a finite number;"
            f" start again with a smaller train.{what}.lr or train.{what}.clip (the last checkpoint is from before)"
        )
    return value
