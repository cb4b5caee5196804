"""The loop: phases epoch after epoch, a checkpoint after each, and from the last one on bit for bit."""

from __future__ import annotations

import shlex
import signal
import time

import torch

from tokenworld import distributed, origins, signals
from tokenworld.sinks.opening import open_sinks
from tokenworld.training.batches import format_summary
from tokenworld.training.run import Run


def run_epochs(
    run: Run, *, epochs: int = 600, checkpoint_every: int = 1, sinks: list[str | dict] | None = None, shard: bool = False
) -> None:
    """Run epochs of all phases from where the run stands, with a checkpoint every `checkpoint_every` epochs and at the end.

    A signal (see `signals.py`) finishes the epoch, saves and stops; a second one stops at once, and the last checkpoint stays.
    `sinks`: where numbers and pictures go too, "tensorboard", "trackio", "wandb" or sections with a `_target_`. `shard`: each
    process holds a part of the dynamics, for one that does not fit a device; only by `tokenworld train dynamics`.
    """
    run.log.steps = run.count["env_steps"]
    if run.log.path is not None:  # the first rank's
        step = run.log.steps or run.log.lines
        run.log.send_to(open_sinks(sinks, folder=run.out, recipe=run.config | {"seed": run.seed}, step=step))
    run.to_shard = shard
    with signals.finishing(run.log.say, resume_command(run)) as request:
        began_at, began = run.epoch, time.monotonic()
        while run.epoch < epochs:
            for name, phase in run.phases.items():
                started = time.monotonic()
                phase(run, run.epoch == epochs - 1)
                run.seconds[name] = run.seconds.get(name, 0.0) + time.monotonic() - started
            run.epoch += 1
            stopping = bool(distributed.all_reduce_sum(torch.tensor(int(request.signum > 0), device=run.device)))
            if run.epoch % checkpoint_every == 0 or run.epoch == epochs or stopping:
                run.save()
            left = (time.monotonic() - began) / (run.epoch - began_at) * (epochs - run.epoch)
            summary = format_summary(run.epoch_summary)
            run.log.say(f"epoch {run.epoch}/{epochs} · {summary} · {run.log.wall:.0f} s, about {left:.0f} s left")
            run.epoch_summary.clear()
            if stopping:
                raise signals.Stop(request.signum or signal.SIGTERM)


def resume_command(run: Run) -> str:
    """Return the command line that resumes this run from its last checkpoint."""
    ranks = distributed.world_size()
    start = "tokenworld" if ranks == 1 else f"torchrun --nproc-per-node={ranks} -m tokenworld.cli"
    words = [str(run.out), *(f"{key}={value}" for key, value in run.resume_keys.items())]
    trust = [origins.FLAG] if any(origins.names(run.config)) else []  # a run never vouches for itself
    return f"{start} train --resume {shlex.join([*words, *trust])}"
