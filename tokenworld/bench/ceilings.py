"""The best that this machine does (products, convolutions, reading memory), and counted FLOPs and bytes of a model."""

from __future__ import annotations

import copy
import os
import platform
import resource
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tokenworld.action_space import Actions, of
from tokenworld.bench.clocks import time_calls
from tokenworld.imagination import imagine
from tokenworld.interfaces import Codes, Record, Steps
from tokenworld.training.run import Run


def product_ceiling(run: Run, rows: int, dim: int) -> float:
    """FLOP/s of (rows, D) x (D, 4D) in the run's precision: the widest product of a transformer block."""
    a, b = (torch.randn(shape, device=run.device, dtype=precision(run)) for shape in ((rows, dim), (dim, 4 * dim)))
    return 8 * rows * dim * dim / min(time_calls(run.device, lambda: a @ b, 5))


def picture_ceiling(run: Run, frames: int) -> float | None:
    """FLOP/s of the tokenizer's own 3x3 convolution at full size, channels last; None if it has none."""
    convolutions = [m for m in run.world_model.tokenizer.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    if not convolutions:
        return None
    C, (_, H, W) = convolutions[0].out_channels, run.world_model.shapes.frame
    conv = nn.Conv2d(C, C, 3, padding=1, device=run.device, dtype=precision(run)).to(memory_format=torch.channels_last)
    best = 0.0
    for n in {min(frames, 16), frames}:  # small batches stay in a CPU's cache
        x = torch.randn(n, C, H, W, device=run.device, dtype=precision(run)).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            best = max(best, 18 * C * C * H * W * n / min(time_calls(run.device, lambda x=x: conv(x), 5)))
    return best


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second of a sum over 256 MB."""
    x = torch.ones(2**26, device=device)
    return 4 * x.numel() / min(time_calls(device, x.sum, 5))


def peak_memory(device: torch.device) -> int:
    """Bytes: of the device if it counts them, of the whole process otherwise."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def precision(run: Run) -> torch.dtype:
    return torch.bfloat16 if run.precision == "bf16" else torch.float32


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), name)
    return f"{device.type} ({name})"


class Dice:
    """A random policy: the cost of the imagined rollout alone, with or without pixels."""

    def __init__(self, actions: Actions | int, needs_pixels: bool):
        self.actions, self.needs_pixels = of(actions), needs_pixels
        self.noise_size = self.actions.size

    def start(self, batch: int) -> None:
        return None

    def act(self, view, carry, noise: Tensor) -> tuple[Tensor, None]:
        return self.actions.draw(noise), None

    def to(self, device) -> Dice:
        return self


def count_flops(call: Callable, *arguments: Any) -> int:
    """FLOPs of call(*arguments), the arguments taken to the meta device first: shapes without numbers."""
    with FlopCounterMode(display=False) as counter:
        call(*(_meta(argument) for argument in arguments))
    return counter.get_total_flops()


def _meta(x: Any) -> Any:
    if isinstance(x, nn.Module):
        return copy.deepcopy(x).to("meta")
    return x.to("meta") if isinstance(x, (Tensor, Record)) else x


def dream_flops(model, policy, steps, codes, noise, horizon: int) -> int:
    def begin(model, policy, steps, codes):
        with torch.no_grad():
            return (*model.start(steps, codes), policy.start(len(steps.obs)))

    def whole(model, policy, steps, codes, noise):
        prediction, state, carry = begin(model, policy, steps, codes)
        imagine(model, prediction, state, policy, horizon, noise, carry)

    start = count_flops(begin, model, policy, steps, codes)
    return count_flops(whole, model, policy, steps, codes, noise) - start


def positions_of(model, steps: Steps, codes: Codes) -> int:
    """Positions of the backbone per step (P), which the decoding chooses."""
    return model.start(steps[:1, :1], codes[:1, :1])[1].cache.positions


@torch.no_grad()
def dream_bytes(run: Run, model, steps, codes, noise) -> float:
    """Weights once per pass, and in each pass what the cache holds: what an imagined rollout of codes must read."""
    size = torch.finfo(precision(run)).bits // 8
    weights = sum(p.numel() for p in run.world_model.dynamics_modules().parameters()) * size
    _, state = model.start(steps, codes)
    total, of_codes = 0.0, model.split_noise(noise)[0]
    for t in range(noise.shape[1]):
        _, state = model.step(state, torch.zeros_like(steps.action[:, 0]), of_codes[:, t])
        total += model.decoding.passes * (weights + state.cache.bytes)
    return total


def encode_flops(run: Run, steps: Steps) -> float:
    """Of one frame, counted on a real one: the quantizers do not run on the meta device."""
    with FlopCounterMode(display=False) as counter:
        run.world_model.encode(steps[:1, :1].to(run.device))
    return counter.get_total_flops()


@torch.no_grad()
def decode_flops(run: Run) -> float:
    """Of one frame, counted on the codes of a real one."""
    codes = run.world_model.start(run.replay.gather(np.zeros((1, 1), np.int64)).to(run.device))[0].codes
    run.world_model.decode(codes)  # a tokenizer of patches draws its dictionary once
    with FlopCounterMode(display=False) as counter:
        run.world_model.decode(codes)
    return counter.get_total_flops()
