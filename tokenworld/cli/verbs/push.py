"""`tokenworld push RUN repo=USER/NAME`: a trained model to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tokenworld.cli.arguments import TRUST, Help, Key, run_and_keys
from tokenworld.cli.verbs.export import MODEL
from tokenworld.errors import UserError

HELP = Help(
    summary="the same, to the Hugging Face hub",
    positional="RUN repo=USER/NAME",
    flags=TRUST,
    about="""\
The folder of `tokenworld export` on the Hugging Face hub: Agent.from_pretrained("user/name") loads it from anywhere. Log in
once by `hf auth login`.

example
  tokenworld push runs/NAME repo=user/breakout private=true""",
)
KEYS = {
    "repo": Key(str, "USER/NAME", "created if it is not there"),
    "private": Key(Literal["true", "false"], "false", "true: only you can see it"),
} | MODEL


def parse(words: list[str]) -> Callable[[], Any]:
    run_folder, keys = run_and_keys("push", words, KEYS)
    return lambda: run(run_folder, keys)


def run(out: str, keys: dict) -> str:
    """`export` to the Hugging Face hub."""
    from tokenworld.storage import hub
    from tokenworld.training.export import write_model

    if "repo" not in keys:
        raise UserError("push needs to know where to, got no repo: add repo=user/name")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        what = write_model(out, folder, keys)
        address = hub.push(folder, keys["repo"], private=keys.get("private") == "true")
    print(f"{what}: {address}")
    return address
