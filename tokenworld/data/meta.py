"""`meta.json`: the metadata of a data set, checked when it is written and when it is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenworld import files
from tokenworld.data.record_format import longest
from tokenworld.errors import UserError

FORMAT = "tokenworld-episodes"
VERSION = 1
META = "meta.json"
JSON_BYTES = 2**20  # of a JSON file in a data set: more is not read
MOST_ACTIONS = 2**16
MOST_LETTERS = 500  # of an id or the name of an action


def make_meta(
    *,
    env_id: str,
    frame_shape: tuple[int, int, int],
    action_count: int,
    action_meanings: list[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """The content of `meta.json`. frame_shape is (C, H, W)."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "env_id": env_id,
        "frame_shape": [int(size) for size in frame_shape],
        "action_count": int(action_count),
        "action_meanings": action_meanings,
        "preprocessing": preprocessing or {},
        "seed": None if seed is None else int(seed),
    }


def read_meta(directory: str | Path) -> dict[str, Any]:
    """`meta.json` of a data set. Raises `UserError` if the folder is none, one of a later version, or damaged."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory} is not a data set: the folder does not exist; make one with `tokenworld collect`")
    if not (directory / META).is_file():
        raise UserError(f"{directory} is not a data set: it has no meta.json; `tokenworld collect` makes one")
    try:
        meta = read_json(directory / META)
    except ValueError as error:
        raise UserError(f"{directory} is not a data set: its meta.json {error}; restore that file") from error
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise UserError(f"{directory} is not a data set: meta.json does not say format {FORMAT}; choose another folder")
    if not _is_whole(meta.get("version")) or meta["version"] != VERSION:
        raise UserError(
            f"{directory} has format version {quote(meta.get('version'))}, expected {VERSION}: use a version of tokenworld"
            " that reads it"
        )
    check_meta(meta, f"{directory}/{META}")
    return meta


def as_json(meta: dict[str, Any]) -> str:
    """The text of a `meta.json` to be written. Raises `UserError` for one that could not be read."""
    try:
        text = json.dumps(meta, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"the metadata of a data set must be JSON, got {quote(meta)}: {error}") from error
    check_meta(json.loads(text), "the data set to be written", "choose such a value")
    return text


def check_meta(meta: dict[str, Any], source: str, advice: str = "restore that file or make the data set again") -> None:
    """Raises `UserError` for a value that no data set can have."""
    for key, wanted, is_good in (
        ("env_id", f"the environment's id, a text of 1 to {MOST_LETTERS} printable letters", _is_text),
        ("frame_shape", "[C, H, W], three whole numbers of at least 1", _is_shape),
        ("action_count", f"a whole number in 1..{MOST_ACTIONS}", lambda x: _is_whole(x) and 1 <= x <= MOST_ACTIONS),
        ("action_meanings", "one text for each action, or null", lambda x: x is None or are_meanings(x, meta["action_count"])),
        ("preprocessing", "an object, the environment's keywords", lambda x: isinstance(x, dict)),
        ("seed", "a whole number or null", lambda x: x is None or _is_whole(x)),
    ):
        value = meta.get(key)
        if not is_good(value):
            got = quote(value) if key in meta else "nothing"
            raise UserError(f"{source}: {key} must be {wanted}, got {got}: {advice}")
    if longest(tuple(meta["frame_shape"])) < 1:
        got = quote(meta["frame_shape"])
        raise UserError(f"{source}: frame_shape must be of frames that fit into a record, got {got}: choose smaller frames")


def meanings_of(metadata: dict[str, Any], action_count: int) -> list[str] | None:
    """The names of its actions that an environment's metadata hold, if they are names, one for each action."""
    names = metadata.get("action_meanings")
    names = list(names) if isinstance(names, tuple) else names
    return names if are_meanings(names, action_count) else None


def are_meanings(value: Any, action_count: int) -> bool:
    """Is it a list with one printable text for each action?"""
    return isinstance(value, list) and len(value) == action_count and all(map(_is_text, value))


def read_json(path: Path) -> Any:
    """The content of a small JSON file. Raises ValueError, whose text continues the file's name, and `UserError` for a disk
    that cannot be read."""
    with files.writing(path), open(path, "rb") as file:
        content = file.read(JSON_BYTES + 1)
    if len(content) > JSON_BYTES:
        raise ValueError(f"has more than the {JSON_BYTES:,} bytes that it may have")
    try:
        return json.loads(content.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError("is not JSON") from error


def quote(value: Any) -> str:
    """A value from a file as it goes into a sentence: short, on one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MOST_LETTERS and value.isprintable()


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_whole(size) and size >= 1 for size in value)
