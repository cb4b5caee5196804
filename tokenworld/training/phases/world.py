"""Train tokenizer, backbone, decoding and heads together, with one optimizer (DreamerV3, arXiv:2301.04104; STORM,
arXiv:2310.09615)."""

from __future__ import annotations

import numpy as np

from tokenworld.errors import UserError
from tokenworld.interfaces import Steps
from tokenworld.training.batches import update_on_windows
from tokenworld.training.run import Run
from tokenworld.world_model import WorldModel


def train_world(
    run: Run,
    last: bool,
    *,
    start: int = 0,
    stop: int | None = None,
    updates: int = 200,
    batch: int = 16,
    length: int = 64,
    lr: float = 1e-4,
    weight_decay: float = 0.0,
    warmup: int = 0,
    clip: float = 100.0,
    recent: float = 0.0,
    accumulate: int = 1,
    optimizer: dict | None = None,
) -> None:
    """Train the tokenizer together with the dynamics on `batch` windows of `length` steps.

    The settings are those of `train_dynamics`. The tokenizer must be one that can learn from the dynamics' loss (`joint`): a
    codebook of vector quantization cannot. The codes of all frames are new after each update.
    """
    if run.epoch < start or (stop is not None and run.epoch >= stop):
        return
    model, name = run.world_model, "world"
    if run.count["tokenizer"] == 0:
        model.tokenizer.prepare(lambda: (run.replay.sample(min(2048, run.replay.rows), 1, run.rng)[0].to(run.device), None))
    run.optimizer(name, lr, weight_decay)
    loss_of = run.loss(name, model.joint_loss)

    def losses_of(steps: Steps, rows: np.ndarray):
        return lambda part: loss_of(steps[part])

    batches = dict(count=updates, batch=batch, length=length, recent=recent)
    weights = model.weights | model.tokenizer.weights
    update_on_windows(run, name, losses_of, weights, batches, lr=lr, warmup=warmup, clip=clip, accumulate=accumulate)


def check(world_model: WorldModel) -> None:
    """Raise UserError for a tokenizer that cannot be trained with the dynamics."""
    tokenizer = world_model.tokenizer
    if not tokenizer.joint:
        raise UserError(f"train_world trains the tokenizer with the dynamics, which a {type(tokenizer).__name__} cannot:"
                        " choose another tokenizer, or train.dynamics._target_="
                        "tokenworld.training.phases.dynamics.train_dynamics and a section train.tokenizer")  # fmt: skip
