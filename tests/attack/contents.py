"""What a folder of results holds: is each file whole, and do two folders hold the same but for times?"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors import safe_open

from tokenworld.data.episodes import read_episodes
from tokenworld.errors import UserError
from tokenworld.storage import checkpoint

# Keys that are left out: times, and where a shard ends, as the order of a record's metadata and so its size is random.
LEFT_OUT = {"seconds", "wall", "wall_seconds", "time", "offset"}
UNFINISHED = re.compile(r"(^\.tmp-|\.tmp$|\.tmp\.|\.new$|\.old$|\.unfinished|\.partial)")
ASIDE = re.compile(r"^unfinished-\d+$")  # what a training without a finished epoch is moved to when it starts over
IGNORED = {".lock"}
ARRAYS = ("obs", "action", "reward", "terminated", "truncated")  # of an episode


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """Relative name and path of each file that is finished, by its name and those of its folders."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        is_passing = any(UNFINISHED.search(part) or ASIDE.search(part) for part in Path(name).parts)
        if path.is_file() and path.name not in IGNORED and not is_passing:
            yield name, path


def leftovers(folder: Path) -> list[str]:
    """Files and folders below `folder` whose names say that they are unfinished."""
    found = [path.relative_to(folder) for path in folder.rglob("*") if UNFINISHED.search(path.name)]
    return sorted(str(path) for path in found if not any(map(ASIDE.search, path.parts)))


def snapshot(folder: Path) -> dict[str, str]:
    """The checksum of each file."""
    return {name: _hash(path.read_bytes()) for name, path in files_of(folder)}


def broken(folder: Path) -> list[str]:
    """A sentence for each file that is not whole. Shards and logs may end in a torn record."""
    found = []
    for name, path in files_of(folder):
        try:
            _open(path)
        except Exception as error:  # whatever a reader says
            found.append(f"{name} is not whole: {type(error).__name__}: {str(error)[:100]}")
    return found


def _open(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".yaml":
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), "no mapping"
    elif path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            assert file.keys() is not None
    elif path.suffix == ".npz":
        with zipfile.ZipFile(path) as file:
            assert file.testzip() is None, "a member is damaged"
    elif path.suffix in (".gif", ".png"):
        with Image.open(path) as picture:
            for i in range(getattr(picture, "n_frames", 1)):
                picture.seek(i)
                picture.load()
    elif path.suffix == ".html":
        assert path.read_text(encoding="utf-8").rstrip().endswith("</html>"), "it does not end"
    elif path.suffix == ".pt":
        torch.load(path, map_location="cpu", weights_only=True)
    elif path.suffix == ".md":
        assert path.stat().st_size, "it is empty"


def epoch_of(run: Path) -> int:
    """The epoch of the newest complete checkpoint of a run; 0 if there is none."""
    try:
        return int(checkpoint.load(run / "checkpoint")[1]["epoch"])
    except UserError:
        return 0


def fingerprint(folder: Path) -> dict[str, Any]:
    """File name -> what it says, without times. Episodes are decoded, tensors are hashed."""
    found: dict[str, Any] = {}
    for name, path in files_of(folder):
        if path.name == "meta.json":
            found[str(Path(name).parent / "episodes")] = episodes(path.parent)
        if path.suffix in (".html", ".bin", ".log") or path.name in ("results.json", "results.md", "manifest.json"):
            continue  # with times, or read as something else
        found[name] = _content(path, folder.parent)
    return found


def _content(path: Path, where: Path) -> Any:
    """where: the folder of the commands, which may be part of paths in a config."""
    if path.suffix == ".json":
        return _plain(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".jsonl":
        return [_plain(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".pt":
        return _plain(torch.load(path, map_location="cpu", weights_only=True))
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return {name: _plain(arrays[name]) for name in arrays.files}
    return _hash(path.read_bytes().replace(str(where).encode(), b"."))


def episodes(folder: Path) -> list[str]:
    """A checksum of each episode of a data set that can be read; none if there is no data set."""
    if not (folder / "meta.json").is_file():
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            _hash(b"".join(getattr(each, name).tobytes() for name in ARRAYS) + f"{each.split} {each.seed}".encode())
            for each in read_episodes(folder)
        ]


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {str(key): _plain(value) for key, value in x.items() if key not in LEFT_OUT}
    if isinstance(x, (list, tuple)):
        return [_plain(value) for value in x]
    if torch.is_tensor(x):
        x = x.contiguous().view(torch.uint8).numpy() if x.ndim else x.item()
    if isinstance(x, np.ndarray):
        return f"{x.dtype} {x.shape} {_hash(np.ascontiguousarray(x).tobytes())}"
    return x.item() if isinstance(x, np.generic) else x


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def differences(expected: dict[str, Any], got: dict[str, Any]) -> list[str]:
    """A sentence for each file in which two fingerprints differ. An evaluation within a training measures as many frames as its
    share of the time allows: where these differ, its numbers are not compared."""
    found = [f"{name} is missing" for name in expected if name not in got]
    found += [f"{name} is there, and not in the uninterrupted run" for name in got if name not in expected]
    for name in expected.keys() & got.keys():
        folder = str(Path(name).parent)
        if Path(name).name in ("report.json", "states.npz") and _samples(expected, folder) != _samples(got, folder):
            continue
        one, other = expected[name], got[name]
        if name.endswith("metrics.jsonl"):
            one, other = _without_quality(one), _without_quality(other)
        if one != other:
            found.append(f"{name} differs: {_where(one, other)}")
    return sorted(found)


def _samples(found: dict[str, Any], folder: str) -> Any:
    """What the report of a folder measured: each metric's id, status and number of samples."""
    report = found.get(str(Path(folder) / "report.json"))
    return report and [(metric["id"], metric["status"], metric["n_samples"]) for metric in report["metrics"]]


def _without_quality(lines: list[dict]) -> list[dict]:
    return [{key: line[key] for key in ("phase", "epoch")} if line.get("phase") == "quality" else line for line in lines]


def _where(one: Any, other: Any, path: str = "") -> str:
    """Where two structures differ first."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in [*one, *other]:
            if one.get(key, "absent") != other.get(key, "absent"):
                return _where(one.get(key, "absent"), other.get(key, "absent"), f"{path}.{key}")
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return f"{path} has {len(other)} entries, expected {len(one)}"
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            if a != b:
                return _where(a, b, f"{path}[{i}]")
    return f"{path} is {str(other)[:60]}, expected {str(one)[:60]}"
