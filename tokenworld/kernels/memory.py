"""Memory on a CPU: huge pages for what is read often, and no pages given back that are needed again at once."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys

import torch
from torch import Tensor

HUGE = 2 << 20  # bytes of a huge page


def ring_memory(shape: tuple[int, ...], C: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros (B, N, C, d) at the front of memory for shape (B, N, S, d): on Linux in huge pages, where a processor looks up
    fewer addresses."""
    B, N, S, d = shape
    count = B * N * S * d
    if device.type == "cpu" and count * dtype.itemsize >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        memory = mmap.mmap(-1, count * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(memory, dtype=dtype, count=count)
    else:
        whole = torch.zeros(count, dtype=dtype, device=device)
    return whole[: B * N * C * d].view(B, N, C, d)


def keep_freed_memory() -> None:
    """Have glibc keep what is freed: large tensors are else given back and faulted in again, page by page, in every step."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD: the most that it takes
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
