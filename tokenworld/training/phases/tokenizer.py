"""Train the tokenizer on frames of the replay."""

from __future__ import annotations

import collections
from typing import Any

from tokenworld import distributed
from tokenworld.evaluation.metrics.tokenizer_measures import codebook_usage, perplexity
from tokenworld.interfaces import Steps
from tokenworld.nn import total_loss
from tokenworld.training.batches import check_finite, gather_steps, log_metrics, progress, split_batch
from tokenworld.training.costs import free_codes, warn_of_full_dictionary
from tokenworld.training.run import Run


def train_tokenizer(
    run: Run,
    last: bool,
    *,
    start: int = 5,
    stop: int | None = None,
    updates: int = 200,
    batch: int = 256,
    window: int = 1,
    lr: float = 1e-4,
    clip: float = 10.0,
    recent: float = 0.0,
    accumulate: int = 1,
) -> None:
    """Train the tokenizer on uniformly drawn frames (window 1) or on windows of frames; from epoch `start` up to `stop`.

    `recent`: the share of a batch that is drawn from the newest tenth of the replay. `accumulate`: parts in which a batch
    is computed, to save memory; the gradient is that of the whole batch, a running mean of a codebook moves once per part.
    A tokenizer without parameters learns in `loss` itself and needs no step.
    """
    if run.epoch < start or (stop is not None and run.epoch >= stop):
        return
    tokenizer = run.world_model.tokenizer
    optimizer = run.optimizer("tokenizer", lr) if any(True for _ in tokenizer.parameters()) else None
    if run.count["tokenizer"] == 0:
        tokenizer.prepare(lambda: (run.replay.sample(min(2048, run.replay.rows), 1, run.rng)[0].to(run.device), None))
    tokenizer.train()
    loss_of = tokenizer.loss if optimizer is None else run.loss("tokenizer", tokenizer.loss)
    windows = distributed.split_evenly(batch // window, "the windows of a batch of train.tokenizer")
    batches = run.batches(updates, windows, window, recent=recent)
    seen: dict[str, Any] = {}
    free = free_codes(tokenizer)

    def learn(steps: Steps):
        for part in split_batch(len(steps.obs), accumulate):
            with run.autocast():
                seen["losses"], seen["codes"] = loss_of(steps[part])
                seen["loss"] = total_loss(seen["losses"], tokenizer.weights)
            yield seen["loss"] * (len(steps.obs[part]) / len(steps.obs))

    for steps, _ in progress(run, batches, updates, "tokenizer"):
        if optimizer is None:
            collections.deque(learn(gather_steps(steps.to(run.device))), maxlen=0)
            run.count["tokenizer"] += 1
        else:
            run.update("tokenizer", optimizer, learn(steps.to(run.device)), clip)
    tokenizer.eval()
    if last or (stop is not None and run.epoch == stop - 1):
        tokenizer.finalize(steps.to(run.device) for steps, _ in run.replay.windows(1, 256))
        distributed.broadcast_parameters(tokenizer)
    warn_of_full_dictionary(run, free)
    V, indices = tokenizer.V, seen["codes"].indices
    use = {} if indices is None else dict(codebook_usage=codebook_usage(indices, V), perplexity=perplexity(indices, V))
    log_metrics(
        run,
        "tokenizer",
        ("loss",),
        updates=run.count["tokenizer"],
        loss=check_finite(seen["loss"], "tokenizer"),
        **{name: value.mean() for name, value in seen["losses"].items()},
        **use,
    )
