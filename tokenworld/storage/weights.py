"""Weights from files, and the parts that they go into: what does not fit, or is not finite, is refused by name.

A config of unknown origin may name any size. So parts are first built on the meta device, where tensors have a shape and take
no memory, and are compared with the tensors that the file holds; only parts that fit are built with memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokenworld.errors import UserError, first_line

CALLS = (20_000, 100)  # of torch's functions while parts are built: at most so many, and so many for each tensor of the file
LARGEST = 10**7  # a whole number in a config may be so large, or as large as the file has elements
UNSAVED = 2**28  # bytes of buffers that are not saved (masks, angles), in addition to as many as the file has


@dataclass(frozen=True)
class Stored:
    """Tensors of a model, with the words for error messages about them.

    tensors: by name; names begin with a part's (backbone.blocks.0...), unless they are all of one `part` · source: the file or
    folder they are from · config: the file that names the parts · mismatch, diverged: what to do if they do not fit it, or are
    not finite.
    """

    tensors: dict[str, Tensor]
    source: Path
    config: str
    mismatch: str
    diverged: str
    part: str | None = None

    def build_fitting(self, build: Callable[[], nn.Module], sections: Iterable[dict]) -> nn.Module:
        """What `build` makes of a config's sections, with these weights. Raises UserError before memory is taken for it."""
        self.outline(build, sections)
        module = build()
        self.load_into(module)
        return module

    def outline(
        self, build: Callable[[], nn.Module], sections: Iterable[dict], check: Callable[[Any], None] = lambda module: None
    ) -> None:
        """Raise UserError unless what `build` makes of a config's sections has these tensors, found out without memory.

        check: of the module on the meta device, before its tensors are compared. A part outside tokenworld, which the user
        vouched for, need not work on the meta device: it is compared when it has been built.
        """
        sections = list(sections)
        if not all(str(section["_target_"]).startswith("tokenworld.") for section in sections):
            return
        for section in sections:
            self._check_numbers(section)
        try:
            module = sketch(build, len(self.tensors))
        except (UserError, ImportError):
            raise
        except TooMany:
            raise UserError(f"{self.source} has {len(self.tensors)} tensors, but the parts in {self.config} have many more:"
                            f" {self.mismatch}") from None  # fmt: skip
        except Exception as error:  # of any library, on sizes that nothing can have
            raise UserError(f"the parts that {self.config} names cannot be built ({first_line(error)}), weights are in"
                            f" {self.source}: {self.mismatch}") from None  # fmt: skip
        check(module)
        self.check_fit(module)
        saved = set(module.state_dict())
        unsaved = sum(x.nbytes for name, x in module.named_buffers() if name not in saved)
        if unsaved > UNSAVED + self.bytes:
            raise UserError(f"{self.config} names parts with {unsaved / 2**20:.0f} MB of masks and tables, the weights in"
                            f" {self.source} have {self.bytes / 2**20:.0f} MB: {self.mismatch}")  # fmt: skip

    def check_fit(self, module: nn.Module) -> None:
        """Raise UserError naming part, tensor and both shapes where module and tensors differ."""
        wanted = module.state_dict()
        for key, own in wanted.items():
            tensor = self.tensors.get(key)
            if tensor is None:
                raise UserError(f"{self.source} lacks a tensor, {self.label(key)}, expected shape {tuple(own.shape)} as in"
                                f" {self.config}: {self.mismatch}")  # fmt: skip
            if tensor.shape != own.shape:
                raise UserError(f"{self.source} does not fit {self.config}, {self.label(key)} has shape {tuple(tensor.shape)}"
                                f" in the file, expected {tuple(own.shape)}: {self.mismatch}")  # fmt: skip
            if tensor.dtype != own.dtype and not (tensor.is_floating_point() and own.is_floating_point()):
                raise UserError(f"{self.source} does not fit {self.config}, {self.label(key)} has type {tensor.dtype} in"
                                f" the file, expected {own.dtype}: {self.mismatch}")  # fmt: skip
        extra = sorted(set(self.tensors) - set(wanted))
        if extra:
            raise UserError(f"{self.source} has a tensor that no part has, {self.label(extra[0])}"
                            f" {tuple(self.tensors[extra[0]].shape)}: {self.mismatch}")  # fmt: skip

    def check_finite(self) -> None:
        """Raise UserError naming part and tensor where a weight is NaN or infinite."""
        wrong = [(key, count) for key, x in self.tensors.items() if (count := count_not_finite(x))]
        if wrong:
            key, count = wrong[0]
            more = f" and {len(wrong) - 1} more tensors" if len(wrong) > 1 else ""
            raise UserError(f"{self.source} has weights that are NaN or infinite, {count} of {self.tensors[key].numel()} in"
                            f" {self.label(key)}{more}: {self.diverged}")  # fmt: skip

    def load_into(self, module: nn.Module) -> None:
        """All of them, and no others, into a module. Raises UserError; the module is then as it was."""
        self.check_fit(module)
        self.check_finite()
        module.load_state_dict(self.tensors)

    def label(self, key: str) -> str:
        key = shorten(key)
        part, _, name = key.partition(".")
        return f"{self.part}: {key}" if self.part else f"{part}: {name}"

    @property
    def bytes(self) -> int:
        return sum(x.nbytes for x in self.tensors.values())

    def _check_numbers(self, section: dict) -> None:
        largest = max(LARGEST, sum(x.numel() for x in self.tensors.values()))
        for key, value in _numbers(section):
            if abs(value) > largest:
                raise UserError(f"{self.config} says {shorten(key)} {shorten(value)}, the weights in {self.source} have"
                                f" {self.bytes} bytes: {self.mismatch}")  # fmt: skip


class TooMany(BaseException):
    """Parts have many more tensors than the file with their weights. No error that others may catch and explain."""


class _Counted(TorchFunctionMode):
    """Stop code that calls torch's functions without an end."""

    def __init__(self, limit: int):
        super().__init__()
        self.left = limit

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.left -= 1
        if self.left < 0:
            raise TooMany
        return func(*args, **(kwargs or {}))


def sketch(build: Callable[[], nn.Module], count: int) -> nn.Module:
    """The module that `build` makes, without memory, if it has about `count` tensors. Raises TooMany if it has many more.

    Draws nothing from the global generator.
    """
    # the end may come where a `no_grad` is being left, which is a call too
    with torch.set_grad_enabled(torch.is_grad_enabled()), torch.random.fork_rng(devices=[]):
        with warnings.catch_warnings(action="ignore"), torch.device("meta"), _Counted(CALLS[0] + CALLS[1] * count):
            return build()


def is_on_meta() -> bool:
    """Are parts being built without memory?"""
    return torch.get_default_device().type == "meta"


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises UserError."""
    return _read(load_file, path, path)


def parse(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file's bytes, which are from `path`. Raises UserError."""
    return _read(load, content, path)


def _read(function: Callable, source: Any, path: Path) -> dict[str, Tensor]:
    try:
        return function(source)
    except Exception as error:  # SafetensorError, and whatever its reader raises on types and shapes that torch does not have
        raise UserError(f"{path} cannot be read ({first_line(error)}): restore it from a copy") from None


def count_not_finite(x: Tensor) -> int:
    """How many elements are NaN or infinite."""
    if not x.is_floating_point() or x.is_meta:
        return 0
    finite = torch.isfinite(x)
    return 0 if finite.all() else int((~finite).sum())


def shorten(value: int | str) -> str:
    """A whole number or a name for a message, however long it is."""
    if isinstance(value, str):
        return value if value.isprintable() and len(value) <= 150 else repr(value[:100])
    return str(value) if abs(value) < 10**30 else f"a number of {value.bit_length()} bits"


def _numbers(section: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """The whole numbers of a config's section, each with its key."""
    waiting = [(key, section)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += [(f"{key}.{inner}".lstrip("."), each) for inner, each in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [(key, each) for each in value]
        elif isinstance(value, int):
            yield key, value
