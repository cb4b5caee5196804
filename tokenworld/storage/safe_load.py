"""`torch.load` for a file of unknown origin: plain values and tensors, no code, and no more memory than the file is long.

A file of `torch.save` is a zip archive whose members are stored as they are: one pickle, and the bytes of each tensor. Before
it is opened, compressed members (a few bytes could become gigabytes) and pickles that name anything but tensors are refused.
"""

from __future__ import annotations

import io
import pickletools
import zipfile
from typing import Any

import torch

END = 22  # bytes of a zip archive's last record, without a comment
TYPES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
NAMED = {"torch._utils _rebuild_tensor_v2", "collections OrderedDict", *(f"torch {name}Storage" for name in TYPES)}


def load(content: bytes) -> Any:
    """What `torch.save` wrote, on the CPU. Raises ValueError with a reason for anything else."""
    _check(content)
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes it raise exceptions of many types
        raise ValueError(str(error) or type(error).__name__) from None
    _check_memory(state, len(content))
    return state


def _check(content: bytes) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            if content[-END:-END + 4] != b"PK\x05\x06" or len({member.filename for member in members}) < len(members):
                raise ValueError("it is not an archive of torch.save")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise ValueError("its members are compressed, torch.save stores them as they are")
            if sum(max(member.file_size, member.compress_size) for member in members) > len(content):
                raise ValueError("its members are longer than the file")
            pickles = [archive.read(member) for member in members if member.filename.endswith(".pkl")]
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError, UnicodeDecodeError, EOFError) as error:
        raise ValueError(f"it is not an archive of torch.save: {error}") from None
    for content in pickles:
        for operation, argument, _ in pickletools.genops(content):
            if operation.name == "GLOBAL" and argument not in NAMED or operation.name in ("STACK_GLOBAL", "INST", "OBJ"):
                raise ValueError(f"it names {argument or 'code'}, expected plain values and tensors")


def _check_memory(state: Any, most: int) -> None:
    """Refuse tensors that are larger than what the file holds of them: torch would make room for them, or repeat a value."""
    waiting, seen, storages = [state], set(), {}
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise ValueError("it has a tensor of an unusual kind")
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            if value.nbytes > storage.nbytes():
                raise ValueError("it has a tensor that is larger than its memory")
        elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            waiting += [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
    if sum(storages.values()) > most:
        raise ValueError("its tensors are larger than the file")
