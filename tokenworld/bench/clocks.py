"""Seconds that calls take on a device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

WARMUP = 1  # calls that are not counted


def clock(device: torch.device, call: Callable[[], Any]) -> float:
    """Seconds that a call takes, the device's queue included."""
    synchronize(device)
    began = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - began


def time_calls(device: torch.device, call: Callable[[], Any], repeats: int, least: float = 0.05) -> list[float]:
    """Seconds per call, a value for each repeat, after a warm-up. Short calls are repeated up to `least` seconds."""
    once = [clock(device, call) for _ in range(WARMUP + 1)][-1]
    n = max(1, math.ceil(least / max(once, 1e-9)))

    def several():
        for _ in range(n):
            call()

    return [clock(device, several) / n for _ in range(repeats)]


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
