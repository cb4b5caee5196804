"""`tokenworld play RUN`: a page on which a person plays in a world model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenworld.cli.arguments import DEVICE, TRUST, Help, Key, run_and_keys, shared_keys
from tokenworld.errors import UserError

HELP = Help(
    summary="play inside the dream yourself, in a page of your browser",
    positional="RUN",
    flags=TRUST,
    about="""\
Opens a page on this machine to play in the run's world model, and prints its address. You choose the actions by keyboard,
mouse or touch, or let the policy or a planner choose. The world model imagines the outcome. The first action key starts the
game at a recorded moment. If the model has such moments, the game then lasts at least ten steps without another key (the
search takes up to six seconds). Pause, step, rewind; branch into a second future with the same random draws; see what
surprised the model. On MinAtar the real game gets the same actions. Needs the extra `play`: pip install tokenworld[play].
Only you can connect: the address holds a secret, and the page answers only this machine.

examples
  tokenworld play runs/NAME
  tokenworld play runs/NAME port=9000""",
)
KEYS = {"port": Key(int, "8642", "port of the address")} | shared_keys(
    "data device", data=("DIR", "more episodes to start from"), device=DEVICE
)


def parse(words: list[str]) -> Callable[[], Any]:
    run_folder, keys = run_and_keys("play", words, KEYS)
    return lambda: run(run_folder, keys)


def run(out: str, keys: dict) -> None:
    """Serve the page on which a person plays in a run's world model, until Ctrl-C."""
    from tokenworld.play import server  # its packages are an extra
    from tokenworld.play.future import DreamSettings
    from tokenworld.play.hints import play_hints
    from tokenworld.play.idle import gallery
    from tokenworld.play.starts import idle_action, moments
    from tokenworld.policies.planner import Planner
    from tokenworld.storage import checkpoint
    from tokenworld.training import restore
    from tokenworld.training.resume import open_run

    port = keys.get("port", server.PORT)
    server.check(port)
    run = open_run(out, {key: value for key, value in keys.items() if key != "port"})
    if not run.count["dynamics"]:
        raise UserError(f"{out} has no trained dynamics to dream with: expected a run of `train` or `train dynamics`")
    space, C, saved = run.world_model.shapes.actions, run.world_model.shapes.frame[0], Path(out) / "checkpoint"
    collected = restore.collector_of(out, space) if checkpoint.exists(saved) else None
    actions = [space.label(row, run.meta["action_meanings"]) for row in space.menu()]
    idle, world_model, env = idle_action(actions, space), run.world_model.eval(), run.make_env(1)
    fps, channels = play_hints(env.metadata, C if run.world_model.shapes.frame_dtype == "uint8" else 1)
    env.close()
    dream = DreamSettings(
        world_model,
        gallery(world_model, moments(run, collected, idle), idle),
        actions,
        run.policy if run.count["policy"] else None,
        Planner(shapes=run.world_model.shapes, horizon=8, samples=32, iterations=2, elites=4).to(run.device),
        expected_reward=run.config["train"].get("policy", {}).get("expected_reward", False),
        name=f"{run.config['env']['id']}, {out}",
        fps=fps,
        channels=channels,
    )
    server.serve(dream, port)
