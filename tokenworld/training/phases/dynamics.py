"""Train backbone, decoding and heads on windows of the replay; the tokenizer is frozen."""

from __future__ import annotations

from typing import Any

from tokenworld import distributed, optim
from tokenworld.interfaces import Codes, Steps
from tokenworld.nn import total_loss
from tokenworld.training.batches import check_finite, log_metrics, progress, split_batch
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
    model, modules = run.world_model, run.world_model.dynamics_modules()
    if run.count["dynamics"] == 0:
        model.decoding.prepare(lambda: _pairs(run))
    model.share_codebook()
    if run.to_shard:
        run.shard()
    optimizer = run.optimizer("dynamics", modules, lr, weight_decay)
    model.tokenizer.eval()
    modules.train()
    loss_of = model.forward if run.sharded else run.loss("dynamics", modules, model.forward)
    batch = distributed.split_evenly(batch, "train.dynamics.batch")
    seen: dict[str, Any] = {}

    def learn(steps: Steps, codes: Codes):
        for part in split_batch(batch, accumulate):
            with run.autocast():
                losses = loss_of(steps[part], Codes(codes.indices[part]))
                loss = total_loss(losses, model.weights, steps[part], steps)
            seen.update(losses=losses, steps=steps[part])
            yield loss

    batches = run.batches(updates, batch, length, recent=recent, frames=False)
    with optim.learning(optimizer):
        for steps, rows in progress(run, batches, updates, "dynamics"):
            optim.set_rate(optimizer, lr, min(1.0, (run.count["dynamics"] + 1) / max(warmup, 1)))
            steps, codes = steps.to(run.device), run.codes(run.replay, rows)
            run.update("dynamics", optimizer, learn(steps, codes), clip)
    modules.eval()
    log_metrics(
        run,
        "dynamics",
        ("loss",),
        updates=run.count["dynamics"],
        loss=check_finite(total_loss(seen["losses"], model.weights, seen["steps"]), "dynamics"),
        **{name: total_loss({name: value}, {name: 1.0}, seen["steps"]) for name, value in seen["losses"].items()},
    )


def _pairs(run: Run) -> tuple[Steps, Codes]:
    """Draw pairs of consecutive steps, and their codes."""
    steps, rows = run.replay.sample(min(4096, run.replay.rows), 2, run.rng)
    codes = run.codes(run.replay, rows)
    return steps.to(run.device), codes
