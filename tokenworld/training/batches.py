"""Batches of a phase: splitting, progress bar, updates on windows of the replay, and logged metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch

from tokenworld import distributed, optim
from tokenworld.errors import UserError
from tokenworld.interfaces import Steps
from tokenworld.nn import total_loss
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


def update_on_windows(
    run: Run, name: str, losses_of: Callable, weights: dict, batches: dict, *,
    lr: float, warmup: int, clip: float, accumulate: int,
) -> None:  # fmt: skip
    """Update what the optimizer `name` trains on windows of the replay. `losses_of(steps, rows)` returns a function from a
    slice of a batch to its losses; `batches`: of `Run.batches`, with `batch` that of all ranks together."""
    modules, optimizer = run.modules(name), run.optimizer(name, lr)
    modules.train()
    batch = distributed.split_evenly(batches["batch"], "train.dynamics.batch")
    frames = frozenset(run.world_model.tokenizer.weights)
    seen: dict[str, Any] = {}

    def learn(steps: Steps, losses_of_part: Callable):
        for part in split_batch(batch, accumulate):
            with run.autocast():
                losses = losses_of_part(part)
                loss = total_loss(losses, weights, steps[part], steps, of_frames=frames)
            seen.update(losses=losses, steps=steps[part])
            yield loss

    with optim.learning(optimizer):
        for steps, rows in progress(run, run.batches(**batches | {"batch": batch}), batches["count"], "dynamics"):
            optim.set_rate(optimizer, lr, min(1.0, (run.count["dynamics"] + 1) / max(warmup, 1)))
            steps = steps.to(run.device)
            run.update(name, optimizer, learn(steps, losses_of(steps, rows)), clip)
    modules.eval()
    whole = {loss: total_loss({loss: x}, {loss: 1.0}, seen["steps"], of_frames=frames) for loss, x in seen["losses"].items()}
    total = total_loss(seen["losses"], weights, seen["steps"], of_frames=frames)
    log_metrics(run, "dynamics", ("loss",), updates=run.count["dynamics"], loss=check_finite(total, "dynamics"), **whole)
