"""`tokenworld dream RUN`: a picture of real, reconstructed and imagined frames."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenworld import files
from tokenworld.cli.arguments import DEVICE, TRUST, Help, Key, run_and_keys, shared_keys
from tokenworld.errors import UserError

HELP = Help(
    summary="a picture of real, reconstructed and imagined frames side by side",
    positional="RUN",
    flags=TRUST,
    about="""\
Draws real, reconstructed and imagined frames side by side, from the same start and with the same actions.

examples
  tokenworld dream runs/NAME out=dream.gif
  tokenworld dream dyn steps=50 out=ball.gif""",
)
KEYS = (
    shared_keys("out", out=("RUN/dream.gif", "a .gif, or a .png of some of its frames"))
    | {"steps": Key(int, "40", "imagined steps")}
    | shared_keys(
        "seed data device",
        device=DEVICE,
        seed=("0", "the random seed of the start and of the imagined frames"),
        data=("DIR", "episodes to start from"),
    )
)


def parse(words: list[str]) -> Callable[[], Any]:
    run_folder, keys = run_and_keys("dream", words, KEYS)
    return lambda: run(run_folder, keys)


def run(out: str, keys: dict) -> Path:
    """A gif (or png) of real, reconstructed and imagined frames from the same start and actions."""
    from tokenworld.evaluation.probes.film import film_of, title_of
    from tokenworld.evaluation.report import film_drawing
    from tokenworld.training.resume import open_run
    from tokenworld.viz.frames import save_gif, save_png

    path = files.follow_links(keys["out"]) if "out" in keys else Path(out) / "dream.gif"
    if path.suffix not in (".gif", ".png"):
        raise UserError(f"out must end in .gif or .png, got {path}: write for example out=dream.gif")
    files.check_replaceable(path)
    run = open_run(out, keys)
    held_out = run.held_out if run.held_out.rows else run.replay
    if not held_out.rows:
        raise UserError(f"{out} has no episodes to start a dream from: add data=DIR, a folder that `collect` wrote")
    film = film_of(
        run, held_out, steps=keys.get("steps", 40), seed=keys.get("seed", 0), dynamics=run.count["dynamics"] > 0,
        title=title_of(run),
    )  # fmt: skip
    if path.suffix == ".gif":
        files.write_or_rescue(path, lambda target: save_gif(target, film_drawing.video(film), fps=4))
    else:
        files.write_or_rescue(path, lambda target: save_png(target, film_drawing.strip(film)))
    run.log.say(f"{' | '.join(film.rows)}, {len(film)} frames: {path}")
    return path
