"""Pictures of a run while it trains: a film strip of each evaluation in RUN/pictures, and the learning curve so far.

They take about two hundredths of the training's time, at most MOST files, and no random number of the run's own.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from tokenworld import files
from tokenworld.errors import UserError
from tokenworld.evaluation.probes.film import film_of, title_of
from tokenworld.evaluation.report import film_drawing
from tokenworld.viz import figures
from tokenworld.viz.frames import save_gif, save_png

FOLDER = "pictures"
MOST = 24  # strips that are kept
SHARE = 0.01  # of the training's time, for the strips and for the curve each
STRIP, CURVE = 0.5, 1.0  # seconds that the first one is expected to take


def update(run, steps: int) -> None:
    """Draw pictures within the time budget: `steps` steps of real, reconstructed and imagined frames, and the learning curve.

    Raises UserError where the disk refuses, and for a link instead of the folder.
    """
    if (run.out / FOLDER).is_symlink():
        raise UserError(f"{run.out / FOLDER} is a link, links are not written through: remove it")
    held_out = run.held_out if run.held_out.rows else run.replay
    if run.count["tokenizer"] and held_out.rows:
        with _within_budget(run, "pictures", STRIP) as is_afforded:
            if is_afforded:
                path = run.out / FOLDER / f"epoch_{run.epoch + 1:06d}.png"
                film = film_of(run, held_out, steps=steps, seed=run.seed, dynamics=has_dynamics(run), title=title_of(run))
                save_png(path, film_drawing.strip(film))
                thin_out(path.parent)
                run.log.picture("film", path)
    if run.curve:
        with _within_budget(run, "learning_curve", CURVE) as is_afforded:
            if is_afforded:
                save_learning_curve(run)


def has_dynamics(run) -> bool:
    """Can this process imagine?"""
    return run.count["dynamics"] > 0 and not run.sharded


def save_learning_curve(run) -> None:
    """RUN/learning_curve.png: the return of every evaluation so far, with its 95% interval."""
    path = run.out / "learning_curve.png"
    figures.save_curve(
        path, run.curve, random=run.results.get("random"), xlabel="real steps", ylabel="return, with 95% interval",
        title=str(run.meta.get("env_id")),
    )  # fmt: skip
    run.log.picture("learning_curve", path)


def save_film(run) -> None:
    """RUN/dream.png and dream.gif of a finished run, if there is anything to see."""
    held_out = run.held_out if run.held_out.rows else run.replay
    if run.count["tokenizer"] and held_out.rows:
        film = film_of(run, held_out, steps=24, seed=run.seed, dynamics=has_dynamics(run), title=title_of(run))
        save_png(run.out / "dream.png", film_drawing.strip(film))
        save_gif(run.out / "dream.gif", film_drawing.video(film), fps=4)
        run.log.picture("film", run.out / "dream.png")


def thin_out(folder: Path) -> None:
    """Keep at most MOST strips, the first and the newest among them. The one goes whose neighbors are nearest to each other, so
    that they stay spread over the training."""
    strips = sorted((int(path.stem[6:]), path) for path in folder.glob("epoch_*.png") if path.stem[6:].isdecimal())
    while len(strips) > MOST:
        gaps = [after - before for (before, _), (after, _) in zip(strips, strips[2:], strict=False)]
        _, path = strips.pop(1 + gaps.index(min(gaps)))
        with files.writing(path):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _within_budget(run, name: str, expected: float) -> Iterator[bool]:
    """Yield whether the time budget allows another picture. Its time is counted in `run.seconds`."""
    began, spent = time.monotonic(), run.seconds.get(name, 0.0)
    is_afforded = spent + expected <= SHARE * run.log.wall
    yield is_afforded
    if is_afforded:
        run.seconds[name] = spent + time.monotonic() - began
