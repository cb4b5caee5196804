"""The one kernel that PyTorch lacks on a CPU: `native.cpp`, compiled by the machine's own compiler when it is first needed.

PyTorch's products read a cache at 19 GB/s where this loop reads it at 32 (two cores, one query over 170 keys in bf16), and
what surrounds them is a dozen small operations. Where there is no compiler the same is done by PyTorch, slower.
TOKENWORLD_NATIVE=0 switches it off. The library is kept in the user's cache; where there is no cache that is this user's alone
it is compiled again by each process.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from tokenworld import private

SOURCE = Path(__file__).with_suffix(".cpp")
FLAGS = ["-std=c++17", "-O3", "-march=native", "-ffast-math", "-fPIC", "-fopenmp"]
QUERIES = 4  # more are better served by matrix products


def attend_ring(
    qkv: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, keys: Tensor, values: Tensor, at: int
) -> Tensor | None:
    """As `kernels.attend_ring`; None where it cannot be done here."""
    B, L, _, N, d = qkv.shape
    if L > QUERIES or qkv.device.type != "cpu" or qkv.dtype != keys.dtype or (torch.is_grad_enabled() and qkv.requires_grad):
        return None
    inputs = [qkv, cos, sin, mask, keys, values]
    library = load_library()
    if library is None or any(x.dtype != qkv.dtype or not x.is_contiguous() for x in inputs):
        return None
    function = {torch.float32: library.attend_float, torch.bfloat16: library.attend_bf16}.get(qkv.dtype)
    if function is None:
        return None
    C, rows = keys.shape[2], mask.shape[2]
    assert keys.shape == values.shape == (B, N, C, d) and cos.shape == sin.shape == (L, d), (keys.shape, cos.shape)
    assert mask.shape == (B, 1, rows, C) and rows in (1, L) and 0 <= at <= C - L, (mask.shape, at)
    out = qkv.new_empty(B, L, N * d)
    pointers = [ctypes.c_void_p(x.data_ptr()) for x in (*inputs, out)]
    sizes = [ctypes.c_long(n) for n in (B, N, L, C, at, rows)]
    return out if function(ctypes.c_long(d), *pointers, *sizes) else None


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The library, from the user's cache or compiled now (a second); None without a compiler that can."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if os.environ.get("TOKENWORLD_NATIVE") == "0" or compiler is None or not sys.platform.startswith("linux"):
        return None
    for kept in (True, False):  # a cache may be full, or on a disk from which nothing may be loaded
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            path = private.file("XDG_CACHE_HOME", ".cache", f"native-{_fingerprint(compiler)}.so") if kept else None
            if path is not None and path.is_file():
                with contextlib.suppress(OSError):  # a damaged one is compiled again
                    return ctypes.CDLL(str(path))
            if path is not None or not kept:
                return _compile(compiler, path)
    return None


def _compile(compiler: str, path: Path | None) -> ctypes.CDLL:
    """Compile and load in a private folder; then keep at `path`, if there is one. In two steps: -ffast-math at the link would
    have every thread of the process flush small numbers."""
    with tempfile.TemporaryDirectory(dir=path and path.parent) as folder:
        compiled_object, linked = Path(folder) / "native.o", Path(folder) / "native.so"
        quiet = dict(check=True, capture_output=True, timeout=120)
        subprocess.run([compiler, *FLAGS, "-c", str(SOURCE), "-o", str(compiled_object)], **quiet)
        subprocess.run([compiler, "-shared", "-fopenmp", str(compiled_object), "-o", str(linked), "-lm"], **quiet)
        linked.chmod(0o700)
        library = ctypes.CDLL(str(linked))
        if path is not None:
            os.replace(linked, path)  # whole or not at all, whoever else compiles it now
        return library


def _fingerprint(compiler: str) -> str:
    """Of all that the machine code depends on: a home folder may be shared by machines that differ."""
    inputs = [SOURCE.read_text(), *FLAGS, compiler, platform.machine()]
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        inputs += sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))})
    return hashlib.sha256("\n".join(inputs).encode()).hexdigest()[:16]
