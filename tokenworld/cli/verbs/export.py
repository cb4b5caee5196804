"""`tokenworld export RUN`: a trained model as a folder for others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenworld import files
from tokenworld.cli.arguments import TRUST, Help, run_and_keys, shared_keys

HELP = Help(
    summary="export a trained model as a folder that others load in one line: weights, config, model card",
    positional="RUN",
    flags=TRUST,
    about="""\
Writes the run's world model, and its policy if it has one, to a folder that needs no run: config.json, weights as
safetensors, a few real moments to start dreams from, and a model card with the measured return and evaluation. Loading the
folder executes no code.

example
  tokenworld export runs/NAME out=breakout

then, in Python
  from tokenworld import Agent, WorldModel
  agent = Agent.from_pretrained("breakout")          agent.act(obs), agent.score(episodes=100)
  world_model = WorldModel.from_pretrained("breakout")""",
)
MODEL = shared_keys(
    "data device",
    device=("cpu", "auto, cpu, cuda or mps"),
    data=("DIR", "episodes to take moments from, if the run's own were moved"),
)
KEYS = shared_keys("out", out=("RUN/model", "a new folder")) | MODEL


def parse(words: list[str]) -> Callable[[], Any]:
    run_folder, keys = run_and_keys("export", words, KEYS)
    return lambda: run(run_folder, keys)


def run(out: str, keys: dict) -> Path:
    """A run's world model and policy as a folder that `WorldModel.from_pretrained` and `Agent.from_pretrained` load."""
    from tokenworld.storage import model_folder
    from tokenworld.training.export import write_model

    folder = Path(keys["out"]) if "out" in keys else Path(out) / "model"
    with files.filling(folder, model_folder.FILES, last=model_folder.CONFIG) as stage:
        what = write_model(out, stage, keys)
    print(f"{what}, {sum(file.stat().st_size for file in folder.iterdir()) / 2**20:.1f} MB: {folder}")
    return folder
