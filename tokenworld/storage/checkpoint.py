"""Checkpoints that survive a kill at any moment: weights as safetensors, the rest in a file that runs no code.

    NAME.safetensors (one per module) · shards/ (of a module that no process holds whole) · state.pt (optimizers, counters,
    RNG) · manifest.json (sizes, sha256)

Written into a sibling folder, synced, then renamed; the old checkpoint goes last. Between the two renames the names
`checkpoint.new` and `checkpoint.old` are both complete, and `load` finds them. A process may read while another one writes.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from tokenworld import files, forms
from tokenworld.errors import UserError, first_line
from tokenworld.storage import safe_load, weights

MANIFEST, STATE, WEIGHTS = "manifest.json", "state.pt", ".safetensors"
SHARDS = "shards"  # a folder of files that several processes wrote
FORMAT = 1
TRIES, PAUSE = 20, 0.02  # how often a checkpoint is read that another process replaces meanwhile; seconds between
MANIFEST_FORM = forms.record(files=forms.mapping_of(forms.record(bytes=forms.whole(), sha256=forms.text)))


def save(
    dir: Path | str,
    modules: dict[str, nn.Module | dict[str, Tensor]],
    state: dict[str, Any],
    shards: Callable[[Path], None] | None = None,
) -> None:
    """Replace the checkpoint at `dir`. state: numbers, text, lists, dicts, tensors (optimizer states, `rng_state()`).
    `shards` writes files of its own, safetensors too, into the folder that it is given.

    Raises UserError where the disk refuses; the old checkpoint is intact then.
    """
    dir = Path(dir)
    new, old = _sibling(dir, "new"), _sibling(dir, "old")
    with files.writing(dir, "the previous checkpoint is intact" if exists(dir) else "there was no checkpoint before it"):
        settle(dir)
        try:
            _fill(new, modules, state, shards)
            if dir.exists():
                dir.rename(old)
            new.rename(dir)
        except OSError:
            with contextlib.suppress(OSError):
                settle(dir)
            raise
        files.sync(dir.parent)
    shutil.rmtree(old, ignore_errors=True)


def _fill(new: Path, modules: dict, state: dict[str, Any], shards: Callable[[Path], None] | None) -> None:
    """All files of a checkpoint into a folder of its own; the manifest comes last, its presence means complete."""
    new.mkdir(parents=True)
    entries: dict[str, dict] = {}
    for name, module in modules.items():
        tensors = module.state_dict() if isinstance(module, nn.Module) else module
        # safetensors refuses tensors that share memory (tied weights): each gets its own copy
        tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        _write(new, name + WEIGHTS, to_safetensors(tensors), entries)
    if shards is not None:
        shards(new / SHARDS)
        for path in sorted((new / SHARDS).iterdir()):
            entries[f"{SHARDS}/{path.name}"] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    _write(new, STATE, buffer.getvalue(), entries)
    _write(new, files.TEMPORARY + MANIFEST, json.dumps({"format": FORMAT, "files": entries}, indent=1).encode(), {})
    (new / (files.TEMPORARY + MANIFEST)).rename(new / MANIFEST)
    files.sync(new)


def load(dir: Path | str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(module name -> state dict, state) of the checkpoint at `dir`, on the CPU; shards are checked, and read elsewhere.

    Raises UserError when there is none, or naming the file that is missing, truncated or corrupt.
    """
    dir = Path(dir)
    for attempt in range(TRIES):
        before = _identity(dir)
        try:
            return _load(_survivor(dir))
        except (UserError, OSError) as error:
            if attempt == TRIES - 1 or _identity(dir) == before:
                if isinstance(error, OSError):
                    raise UserError(files.explain(error, dir)) from None
                raise
        time.sleep(PAUSE)  # it was replaced meanwhile: its files are of two checkpoints
    raise AssertionError("unreachable")


def _load(dir: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    modules: dict[str, dict[str, Tensor]] = {}
    state: dict[str, Any] = {}
    for name, expected in _manifest(dir).items():
        path = dir / name
        if name.startswith(f"{SHARDS}/"):
            _verify(path, expected)
            continue
        content = _read_verified(path, expected)
        if name == STATE:
            try:
                state = safe_load.load(content)
            except ValueError as error:
                raise UserError(f"{path} cannot be read ({first_line(error)}): restore it from a copy") from None
        else:
            modules[name.removesuffix(WEIGHTS)] = weights.parse(content, path)
    return modules, state


def shards(dir: Path | str) -> Path | None:
    """The folder of the checkpoint's shards, if it has any."""
    folder = _survivor(Path(dir)) / SHARDS
    return folder if folder.is_dir() else None


def exists(dir: Path | str) -> bool:
    """Is there a checkpoint, be it a complete one under its temporary name?"""
    dir = Path(dir)
    return dir.is_dir() or any(_is_complete(_sibling(dir, suffix)) for suffix in ("new", "old"))


def settle(dir: Path | str) -> None:
    """Give what a kill left its name back, and remove what is left over. Only for the process that writes to the run."""
    dir = Path(dir)
    if not dir.is_dir() and exists(dir):
        _survivor(dir).rename(dir)
    for suffix in ("new", "old"):
        shutil.rmtree(_sibling(dir, suffix), ignore_errors=True)


def _sibling(dir: Path, suffix: str) -> Path:
    return dir.with_name(f"{dir.name}.{suffix}")


def _survivor(dir: Path) -> Path:
    """`dir`, or what a kill between the two renames left: the new one (its manifest comes last), else the old."""
    if dir.is_dir():
        return dir
    for folder in (_sibling(dir, "new"), _sibling(dir, "old")):
        if _is_complete(folder):
            return folder
    raise UserError(f"there is no checkpoint at {dir}: expected the folder of a run that has saved at least once")


def _is_complete(folder: Path) -> bool:
    """Has this folder a manifest, and all files that it lists? (Or a manifest of a later version.)"""
    try:
        manifest = _read_manifest(folder)
        if manifest["format"] != FORMAT:
            return True
        return all((folder / name).stat().st_size == each["bytes"] for name, each in _manifest(folder).items())
    except (UserError, OSError):
        return False


def _identity(dir: Path) -> tuple | None:
    """Which checkpoint is at `dir`: another one has another identity."""
    try:
        folder = _survivor(dir)
        manifest = (folder / MANIFEST).stat()
        return folder, folder.stat().st_ino, manifest.st_ino, manifest.st_mtime_ns
    except (UserError, OSError):
        return None


def _write(folder: Path, name: str, content: bytes, entries: dict[str, dict]) -> None:
    (folder / name).write_bytes(content)
    files.sync(folder / name)
    entries[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _read_manifest(dir: Path) -> dict[str, Any]:
    path = dir / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        raise UserError(
            f"{path} is missing or damaged: expected the list of a checkpoint's files, restore it from a copy"
        ) from None
    forms.check(manifest, forms.record(format=forms.whole()), path)
    return manifest


def _manifest(dir: Path) -> dict[str, dict]:
    manifest, path = _read_manifest(dir), dir / MANIFEST
    if manifest["format"] != FORMAT:
        raise UserError(f"{dir} has checkpoint format {manifest['format']}, this version reads {FORMAT}: update tokenworld")
    forms.check(manifest, MANIFEST_FORM, path)
    for name in manifest["files"]:
        if Path(name).name != name.removeprefix(f"{SHARDS}/") or not name.endswith((WEIGHTS, STATE)):
            raise UserError(f"{path} names files outside the checkpoint, {weights.shorten(name)}: it was not written by"
                            " tokenworld, restore it from a copy")  # fmt: skip
    if STATE not in manifest["files"]:
        raise UserError(f"{path} lists no {STATE}: the checkpoint is incomplete, restore it from a copy")
    return manifest["files"]


def _read_verified(path: Path, expected: dict) -> bytes:
    """The bytes of a file, read once: those that were checked, also if it is replaced meanwhile."""
    _check_size(path, expected)
    content = path.read_bytes()
    _check_sum(path, hashlib.sha256(content).hexdigest(), expected)
    return content


def _verify(path: Path, expected: dict) -> None:
    _check_size(path, expected)
    _check_sum(path, _sha256(path), expected)


def _check_size(path: Path, expected: dict) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing: the checkpoint is incomplete, restore it from a copy")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise UserError(f"{path} is truncated: expected {expected['bytes']} bytes, got {size}, restore it from a copy")


def _check_sum(path: Path, digest: str, expected: dict) -> None:
    if digest != expected["sha256"]:
        raise UserError(f"{path} is corrupt: its checksum is not the one in {MANIFEST}, restore it from a copy")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def rng_state() -> dict[str, Any]:
    """The global generators of Python, NumPy and torch (CUDA too, if there is one), in a form that `save` stores.

    The state of a `numpy.random.Generator` is `.bit_generator.state`, and that of a `torch.Generator` `.get_state()`:
    both may be put into `state` as they are.
    """
    numpy_state = np.random.get_state(legacy=False)
    numpy_state["state"] = numpy_state["state"] | {"key": numpy_state["state"]["key"].tolist()}
    return {
        "python": random.getstate(),
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """The inverse of `rng_state`. CUDA states are set only if as many devices are there. Raises RuntimeError or ValueError for
    a state that no generator has."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy_state = dict(state["numpy"])
    key = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy_state | {"state": numpy_state["state"] | {"key": key}})
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])
