"""Weights & Biases: a run of a project, on its server or, with WANDB_MODE=offline, in RUN/wandb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenworld.sinks.opening import run_name


class Wandb:
    """A resumed run continues the one that it was. The x axis of all plots is `step`: real environment steps."""

    package = "wandb"

    def __init__(self, *, folder: Path, config: dict[str, Any], project: str = "tokenworld", group: str | None = None):
        import wandb

        name = run_name(folder)
        self.run = wandb.init(
            project=project, group=group, name=folder.name, id=name, resume="allow", config=config, dir=str(folder)
        )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.run.log({**numbers, "step": step})

    def picture(self, name: str, path: Path, step: int) -> None:
        import wandb

        self.run.log({name: wandb.Image(str(path)), "step": step})

    def close(self) -> None:
        self.run.finish()
