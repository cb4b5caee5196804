"""What an evaluation that was killed had measured: each finished tier is kept until the report is written.

A tier is one npz file in `.partial/` of the report's folder: its metrics and pictures as JSON, their arrays as arrays, no
pickles. Its name is the hash of all that its numbers depend on (`key_of`): weights, data, settings and tokenworld's own code.
A file of anything else, or a damaged one, is measured again. A secret of this user is part of the hash: whoever sends a run
cannot send numbers for it along.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenworld import files, private
from tokenworld.errors import UserError
from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.report import rows
from tokenworld.evaluation.report.filmstrips import Branching

NAME = ".partial"
KINDS = {"Metric": Metric, "Branching": Branching}
TREE = "tree"


def key_of(**depends: Any) -> str:
    """The hash of what the numbers depend on, of the code that measures them, and of this user's secret."""
    text = json.dumps(depends | {"code": _code(), "secret": private.token("evaluate.token")}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def kept(folder: Path | None, key: str, tier: str, measure: Callable[[], tuple]) -> tuple[tuple, float]:
    """What `measure` returns and the seconds that it took: of the killed evaluation with this key, if there was one.

    folder: of the report; None keeps nothing. What cannot be kept is measured all the same."""
    path = None if folder is None else folder / NAME / f"{key}-{tier}.npz"
    stored = None if path is None or not path.is_file() else _read(path)
    if stored is not None:
        return stored
    began = time.monotonic()
    result = measure()
    seconds = time.monotonic() - began
    if path is not None:
        with contextlib.suppress(UserError, TypeError):
            files.write(path, _packed((result, seconds)))
    return result, seconds


def remove(folder: Path) -> None:
    """Forget what was kept: the report is written."""
    shutil.rmtree(folder / NAME, ignore_errors=True)


@functools.cache
def _code() -> str:
    """The hash of tokenworld's source."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).resolve().parent.parent.parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _packed(value: Any) -> bytes:
    arrays: list[np.ndarray] = []
    tree, content = json.dumps(_plain(value, arrays)).encode(), io.BytesIO()
    np.savez(content, **{TREE: np.frombuffer(tree, np.uint8), **{str(i): x for i, x in enumerate(arrays)}})
    return content.getvalue()


def _plain(value: Any, arrays: list[np.ndarray]) -> Any:
    """The value as JSON, its types written next to what JSON does not tell apart; arrays by their number."""
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biuf":
        arrays.append(np.asarray(value))
        return {"array" if isinstance(value, np.ndarray) else "number": len(arrays) - 1}
    if is_dataclass(value):
        return {type(value).__name__: {f.name: _plain(getattr(value, f.name), arrays) for f in fields(value)}}
    if isinstance(value, dict):
        return {"dict": [[_plain(key, arrays), _plain(each, arrays)] for key, each in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list" if isinstance(value, list) else "tuple": [_plain(each, arrays) for each in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a {type(value).__name__} is not kept")


def _read(path: Path) -> tuple[tuple, float] | None:
    """What was kept, or None if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > path.stat().st_size:  # they are stored as they are
                return None
            arrays = {each.filename.removesuffix(".npy"): rows.array_of(archive.read(each), "biuf") for each in members}
        result, seconds = _rebuild(json.loads(arrays[TREE].tobytes()), arrays)
        return (result, float(seconds)) if isinstance(result, tuple) else None
    except rows.DAMAGE:
        return None


def _rebuild(tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of `_plain`."""
    if not isinstance(tree, dict):
        return tree
    ((kind, inner),) = tree.items()
    if kind in ("array", "number"):
        return arrays[str(inner)] if kind == "array" else arrays[str(inner)][()]
    if kind == "dict":
        return {_rebuild(key, arrays): _rebuild(each, arrays) for key, each in inner}
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(_rebuild(each, arrays) for each in inner)
    return KINDS[kind](**{name: _rebuild(each, arrays) for name, each in inner.items()})
