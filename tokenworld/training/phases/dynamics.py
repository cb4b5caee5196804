"""Train backbone, decoding and heads on windows of the replay; the tokenizer is frozen."""

from __future__ import annotations

import numpy as np

from tokenworld.interfaces import Codes, Steps
from tokenworld.training.batches import update_on_windows
from tokenworld.training.run import Run


def train_dynamics(
    run: Run,
    last: bool,
    *,
    start: int = 25,
    stop: int | None = None,
    updates: int = 200,
    batch: int = 64,
    length: int = 20,
    lr: float = 1e-4,
    weight_decay: float = 0.01,
    warmup: int = 0,
    clip: float = 10.0,
    recent: float = 0.0,
    accumulate: int = 1,
    optimizer: dict | None = None,
) -> None:
    """Train backbone, decoding and heads on `batch` windows of `length` steps; the tokenizer is frozen here.

    `recent`: the share of a batch that is drawn from the newest tenth of the replay. `accumulate`: parts in which a batch
    is computed, to save memory; the gradient is that of the whole batch. `optimizer`: keywords of `tokenworld.optim.make`:
    {muon: 0.02, average: 0.98}.
    """
    if run.epoch < start or (stop is not None and run.epoch >= stop):
        return
    model, name = run.world_model, "dynamics"
    if run.count["dynamics"] == 0:
        model.decoding.prepare(lambda: _pairs(run))
    model.share_codebook()
    if run.to_shard:
        run.shard()
    run.optimizer(name, lr, weight_decay)
    loss_of = model.forward if run.sharded else run.loss(name, model.forward)

    def losses_of(steps: Steps, rows: np.ndarray):
        codes = run.codes(run.replay, rows)
        return lambda part: loss_of(steps[part], codes[part])

    model.tokenizer.eval()
    batches = dict(count=updates, batch=batch, length=length, recent=recent, frames=False)
    update_on_windows(run, name, losses_of, model.weights, batches, lr=lr, warmup=warmup, clip=clip, accumulate=accumulate)


def _pairs(run: Run) -> tuple[Steps, Codes]:
    """Draw pairs of consecutive steps, and their codes."""
    steps, rows = run.replay.sample(min(4096, run.replay.rows), 2, run.rng)
    codes = run.codes(run.replay, rows)
    return steps.to(run.device), codes
