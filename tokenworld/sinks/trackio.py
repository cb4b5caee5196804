"""trackio: a local database without an account; `trackio show --project tokenworld` opens its page."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from tokenworld.sinks.opening import run_name


class Trackio:
    """A resumed run continues the one that it was; epochs that it repeats occur twice. Its database is not in the run
    but where trackio keeps all of the user's (TRACKIO_DIR). With TRACKIO_SPACE_ID it logs to a Hugging Face Space instead."""

    package = "trackio"

    def __init__(self, *, folder: Path, config: dict[str, Any], project: str = "tokenworld", group: str | None = None):
        import trackio

        self.image = trackio.Image
        with contextlib.redirect_stdout(sys.stderr):  # it speaks on stdout, which is for results
            self.run = trackio.init(
                project=project, group=group, name=run_name(folder), config=config, resume="allow", embed=False
            )

    def log(self, numbers: dict[str, float], step: int) -> None:
        self.run.log(numbers, step=step)

    def picture(self, name: str, path: Path, step: int) -> None:
        self.run.log({name: self.image(str(path))}, step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self.run.finish()
