"""From `train.loop.sinks` to open sinks: each entry is a short name or a section with a `_target_` and its keywords."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenworld.config import schema
from tokenworld.config.targets import is_part, resolve
from tokenworld.errors import UserError, first_line
from tokenworld.log import Sink

SHORT = {
    "tensorboard": "tokenworld.sinks.tensorboard.TensorBoard",
    "trackio": "tokenworld.sinks.trackio.Trackio",
    "wandb": "tokenworld.sinks.wandb.Wandb",
}
KEY = "train.loop.sinks"


def check(sinks: Sequence[str | dict] | None) -> None:
    """Raises UserError for a sink that does not exist, for keywords that it does not take and for one whose package is not
    installed: before a run is created or resumed."""
    for section in _sections(sinks):
        target = section["_target_"]
        sink = resolve(target)
        if target.startswith("tokenworld.") and not is_part(sink, ("sinks",)):
            raise UserError(f"{KEY} must name something in tokenworld.sinks, got {target}: choose one of {', '.join(SHORT)}")
        schema.check_keywords({}, KEY, section, sink)
        package = getattr(sink, "package", None)
        if package is not None and not _is_installed(package):
            extra = f"'tokenworld[{package}]'" if target in SHORT.values() else package
            raise UserError(f"the sink {target.rpartition('.')[2]} is not installed: run pip install {extra}")


def open_sinks(sinks: Sequence[str | dict] | None, *, folder: Path, recipe: dict[str, Any], step: int) -> list[Sink]:
    """The sinks of a run that writes to `folder`. step: where a resumed run continues. Raises UserError for one that fails."""
    opened = []
    for section in _sections(sinks):
        try:
            opened.append(schema.build(section, folder=folder, config=recipe, step=step))
        except (UserError, OSError):
            raise
        except Exception as error:  # whatever its package does: no account, no network
            raise UserError(f"the sink {section['_target_']} cannot be opened ({type(error).__name__}: {first_line(error)}):"
                            f" remove it from {KEY}, or correct the error") from error  # fmt: skip
    return opened


def run_name(folder: Path) -> str:
    """A name for a run that another run of the same name in another folder does not have, the same after a resume."""
    return f"{folder.name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:6]}"


def _sections(sinks: Sequence[str | dict] | None) -> list[dict[str, Any]]:
    sections = []
    for entry in sinks or ():
        if isinstance(entry, str) and entry not in SHORT:
            near = difflib.get_close_matches(entry, SHORT, n=1, cutoff=0.5)
            raise UserError(f"there is no sink {entry!r}: {near and f'did you mean {near[0]}? ' or ''}expected some of"
                            f" {', '.join(SHORT)}, or a section with a _target_")  # fmt: skip
        section = {"_target_": SHORT[entry]} if isinstance(entry, str) else entry
        if not isinstance(section.get("_target_"), str):
            raise UserError(f"{KEY} has an entry without a _target_, {section!r}: write {{_target_: {SHORT['trackio']}}}")
        sections.append(section)
    return sections


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # it was imported without a spec, as stand-ins of tests are
        return True
