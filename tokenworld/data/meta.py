"""`meta.json`: the metadata of a data set, checked when it is written and when it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenworld import files
from tokenworld.action_space import MOST_CHOICES, Actions, of
from tokenworld.data.record_format import Content
from tokenworld.errors import UserError
from tokenworld.storage import space_format

FORMAT = "tokenworld-episodes"
META = "meta.json"
JSON_BYTES = 2**20  # of a JSON file in a data set: more is not read
MOST_LETTERS = 500  # of an id or the name of an action


def make_meta(
    *,
    env_id: str,
    frame_shape: tuple[int, int, int],
    actions: Actions | int,
    frame_dtype: str = "uint8",
    action_meanings: list[str] | None = None,
    preprocessing: dict[str, Any] | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """The content of `meta.json`, of the lowest version that can hold such actions and frames. frame_shape is (C, H, W);
    frame_dtype "uint8" or "float32"."""
    actions = of(actions)
    version = space_format.version_of(actions, frame_dtype)
    return {
        "format": FORMAT,
        "version": version,
        "env_id": env_id,
        "frame_shape": [int(size) for size in frame_shape],
        **({"frame_dtype": frame_dtype, "actions": space_format.as_json(actions)} if version > 1 else {}),
        "action_count": actions.choices[0] if actions.is_single else None,
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
    if not _is_whole(meta.get("version")) or meta["version"] not in space_format.VERSIONS:
        raise UserError(
            f"{directory} has format version {quote(meta.get('version'))}, expected 1 or 2: use a version of tokenworld"
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
    for key, wanted, is_good in FORMS_2 if meta.get("version") == 2 else FORMS:
        value = meta.get(key)
        if not is_good(value, meta):
            got = quote(value) if key in meta else "nothing"
            raise UserError(f"{source}: {key} must be {wanted}, got {got}: {advice}")
    content = content_of(meta)
    if content.longest < 1:
        got = quote(meta["frame_shape"])
        raise UserError(f"{source}: frame_shape must be of frames that fit into a record, got {got}: choose smaller frames")
    if content.version != meta["version"]:
        raise UserError(f"{source}: version must be {content.version} for such frames and actions, got {meta['version']}:"
                        f" {advice}")  # fmt: skip


def actions_of(meta: dict[str, Any]) -> Actions:
    """The actions of a data set, from its checked metadata of either version."""
    return Actions((meta["action_count"],)) if meta["version"] == 1 else space_format.actions_from(meta["actions"])


def frame_dtype_of(meta: dict[str, Any]) -> str:
    """The type of the frames of a data set, "uint8" or "float32", from its checked metadata of either version."""
    return "uint8" if meta["version"] == 1 else meta["frame_dtype"]


def content_of(meta: dict[str, Any]) -> Content:
    """What the episodes of a data set have in common, from its checked metadata."""
    return Content(tuple(meta["frame_shape"]), actions_of(meta), frame_dtype_of(meta))


def difference(theirs: dict[str, Any], ours: dict[str, Any], *, env: bool = True) -> tuple[str, str, str] | None:
    """The first thing that keeps episodes of one data set out of another: its name and both values in words; None if there is
    none. env: are they to be of the same environment?"""
    for name, value in (
        *([("env_id", lambda meta: meta.get("env_id"))] if env else []),
        ("frame_shape", lambda meta: meta["frame_shape"]),
        ("frame_dtype", frame_dtype_of),
        ("actions", actions_of),
    ):
        one, two = value(theirs), value(ours)
        if one != two:
            if name == "actions" and one.is_single and two.is_single:
                return "action_count", str(one.choices[0]), str(two.choices[0])
            return (name, *(space_format.limits(x) if name == "actions" else str(x) for x in (one, two)))
    return None


def meanings_of(metadata: dict[str, Any], actions: Actions | int) -> list[str] | None:
    """The names of its actions that an environment's metadata hold, if they are names, one for each action."""
    names, actions = metadata.get("action_meanings"), of(actions)
    names = list(names) if isinstance(names, tuple) else names
    return names if actions.is_single and are_meanings(names, actions.choices[0]) else None


def are_meanings(value: Any, action_count: int | None) -> bool:
    """Is it a list with one printable text for each action? Actions that cannot be counted have no names."""
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


def _are_names(value: Any, action_count: int | None) -> bool:
    return value is None or are_meanings(value, action_count)


def _are_actions(value: Any) -> bool:
    try:
        space_format.actions_from(value)
    except ValueError:
        return False
    return True


def _is_count(value: Any, meta: dict[str, Any]) -> bool:
    """Is it the number of the actions, or null if they have several parts or continuous ones?"""
    actions = actions_of(meta)
    return value == (actions.choices[0] if actions.is_single else None) and not isinstance(value, (bool, float))


# What each value of a meta.json must be, in order: the later ones rely on the earlier ones.
Check = tuple[str, str, Callable[[Any, dict[str, Any]], bool]]
HEAD: list[Check] = [
    ("version", "1 or 2", lambda x, _: _is_whole(x) and x in space_format.VERSIONS),
    ("env_id", f"the environment's id, a text of 1 to {MOST_LETTERS} printable letters", lambda x, _: _is_text(x)),
    ("frame_shape", "[C, H, W], three whole numbers of at least 1", lambda x, _: _is_shape(x)),
]
TAIL: list[Check] = [
    ("action_meanings", "one text for each action, or null", lambda x, meta: _are_names(x, meta["action_count"])),
    ("preprocessing", "an object, the environment's keywords", lambda x, _: isinstance(x, dict)),
    ("seed", "a whole number or null", lambda x, _: x is None or _is_whole(x)),
]
COUNT = f"a whole number in 1..{MOST_CHOICES}"
FORMS = [*HEAD, ("action_count", COUNT, lambda x, _: _is_whole(x) and 1 <= x <= MOST_CHOICES), *TAIL]
FORMS_2 = [
    *HEAD,
    ("frame_dtype", " or ".join(space_format.FRAME_DTYPES), lambda x, _: x in space_format.FRAME_DTYPES),
    ("actions", f"an object of {space_format.ACTIONS}", lambda x, _: _are_actions(x)),
    ("action_count", f"{COUNT} as in actions, null for actions of several or continuous parts", _is_count),
    *TAIL,
]
