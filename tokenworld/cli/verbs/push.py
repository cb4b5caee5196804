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
    summary="export a trained model to the Hugging Face hub",
    positional="RUN repo=USER/NAME",
    flags=TRUST,
    about="""\
Uploads the folder that `tokenworld export` writes to the Hugging Face hub. Agent.from_pretrained("user/name") then loads it
from anywhere. Log in once with `hf auth login`.

example
  tokenworld push runs/NAME repo=user/breakout private=true""",
)
KEYS = {
    "repo": Key(str, "USER/NAME", "created if it does not exist"),
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
        raise UserError("push uploads to a repository, got no repo: add repo=user/name")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        what = write_model(out, folder, keys)
        address = hub.push(folder, keys["repo"], private=keys.get("private") == "true")
    print(f"{what}: {address}")
    return address
