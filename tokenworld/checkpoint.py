"""Checkpoints that survive a kill at any moment: weights as safetensors, the rest in a file that runs no code.

    NAME.safetensors (one per module) · shards/ (of a module that no process holds whole) · state.pt (optimisers, counters,
    RNG) · manifest.json (sizes, sha256)

Written into a sibling folder, synced, then renamed; the old checkpoint goes last. Between the two renames the names
`checkpoint.new` and `checkpoint.old` are both complete, and `load` finds them.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from tokenworld import files
from tokenworld.errors import UserError

MANIFEST = "manifest.json"
SHARDS = "shards"  # a folder of files that several processes wrote
FORMAT = 1


def save(
    dir: Path | str,
    modules: dict[str, nn.Module | dict[str, Tensor]],
    state: dict[str, Any],
    shards: Callable[[Path], None] | None = None,
) -> None:
    """Replace the checkpoint at `dir`. state: numbers, text, lists, dicts, tensors (optimiser states, `rng_state()`).
    `shards` writes files of its own, safetensors too, into the folder that it is given.

    Raises UserError when the disk is full; the old checkpoint is intact then.
    """
    dir = Path(dir)
    new, old = _sibling(dir, "new"), _sibling(dir, "old")
    _settle(dir, new, old)
    try:
        new.mkdir(parents=True)
        manifest: dict[str, Any] = {"format": FORMAT, "files": {}}
        for name, module in modules.items():
            weights = module.state_dict() if isinstance(module, nn.Module) else module
            # safetensors refuses tensors that share memory (tied weights): each gets its own copy
            weights = {key: value.detach().cpu().contiguous().clone() for key, value in weights.items()}
            _write(new, f"{name}.safetensors", to_safetensors(weights), manifest)
        if shards is not None:
            shards(new / SHARDS)
            for path in sorted((new / SHARDS).iterdir()):
                manifest["files"][f"{SHARDS}/{path.name}"] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        _write(new, "state.pt", buffer.getvalue(), manifest)
        files.write(new / MANIFEST, json.dumps(manifest, indent=1))  # last: its presence means complete
        _sync_folder(new)
    except (OSError, UserError) as error:
        shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"no space left for the checkpoint {dir}: free some space and resume; "
                            f"the previous checkpoint is intact") from None
        raise
    if dir.exists():
        dir.rename(old)
    new.rename(dir)
    _sync_folder(dir.parent)
    shutil.rmtree(old, ignore_errors=True)


def load(dir: Path | str) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """(module name -> state dict, state) of the checkpoint at `dir`, on the CPU; shards are checked, and read elsewhere.

    Raises UserError when there is none, or naming the file that is missing, truncated or corrupt.
    """
    dir = _survivor(Path(dir))
    files = _manifest(dir)
    modules: dict[str, dict[str, Tensor]] = {}
    state: dict[str, Any] = {}
    for name, expected in files.items():
        if name.startswith(f"{SHARDS}/"):
            _verify(dir / name, expected)
            continue
        content = _verified(dir / name, expected)
        try:
            if name == "state.pt":
                state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            else:
                modules[name.removesuffix(".safetensors")] = from_safetensors(content)
        except (SafetensorError, pickle.UnpicklingError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{dir / name} cannot be read ({reason}): restore it from a copy") from None
    return modules, state


def shards(dir: Path | str) -> Path | None:
    """The folder of the checkpoint's shards, if it has any."""
    folder = _survivor(Path(dir)) / SHARDS
    return folder if folder.is_dir() else None


def exists(dir: Path | str) -> bool:
    """Is there a complete checkpoint, be it under its temporary name?"""
    return any((folder / MANIFEST).is_file() for folder in _candidates(Path(dir)))


def settle(dir: Path | str) -> None:
    """Give a checkpoint that a kill left under its temporary name its own one, and delete unfinished ones: for its writer."""
    _settle(Path(dir), _sibling(Path(dir), "new"), _sibling(Path(dir), "old"))


def _sibling(dir: Path, suffix: str) -> Path:
    return dir.with_name(f"{dir.name}.{suffix}")


def _candidates(dir: Path) -> list[Path]:
    return [dir, _sibling(dir, "new"), _sibling(dir, "old")]


def _survivor(dir: Path) -> Path:
    """`dir`, or what a kill between the two renames left: the new one (its manifest comes last), else the old."""
    if dir.is_dir():
        return dir
    for folder in _candidates(dir):
        if (folder / MANIFEST).is_file():
            return folder
    raise UserError(f"there is no checkpoint at {dir}: expected the folder of a run that has saved at least once")


def _settle(dir: Path, new: Path, old: Path) -> None:
    """Give a survivor its name back before a new checkpoint is written beside it."""
    if not dir.is_dir() and exists(dir):
        _survivor(dir).rename(dir)
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)


def _write(folder: Path, name: str, content: bytes, manifest: dict | None) -> None:
    with open(folder / name, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    if manifest is not None:
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, not only the contents of its files."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _manifest(dir: Path) -> dict[str, dict]:
    try:
        manifest = json.loads((dir / MANIFEST).read_text(encoding="utf-8"))
        files, found = dict(manifest["files"]), manifest["format"]
        good = all(isinstance(f["bytes"], int) and isinstance(f["sha256"], str) for f in files.values())
    except (OSError, ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise UserError(f"{dir / MANIFEST} is missing or damaged: expected the list of a checkpoint's files, "
                        f"restore it from a copy")
    if found != FORMAT:
        raise UserError(f"{dir} has checkpoint format {found}, this version reads {FORMAT}: update tokenworld")
    if any(Path(name).name != name.removeprefix(f"{SHARDS}/") for name in files):
        raise UserError(f"{dir / MANIFEST} names files outside the checkpoint: it was not written by tokenworld")
    return files


def _verified(path: Path, expected: dict) -> bytes:
    _verify(path, expected)
    return path.read_bytes()


def _verify(path: Path, expected: dict) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing: the checkpoint is incomplete, restore it from a copy")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise UserError(f"{path} is truncated: expected {expected['bytes']} bytes, got {size}, "
                        f"restore it from a copy")
    if _sha256(path) != expected["sha256"]:
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
    """The inverse of `rng_state`. CUDA states are set only if as many devices are there."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    numpy_state = dict(state["numpy"])
    key = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    np.random.set_state(numpy_state | {"state": numpy_state["state"] | {"key": key}})
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available() and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([each.cpu() for each in state["cuda"]])
