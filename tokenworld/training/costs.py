"""Warnings about costly or lossy settings: many codes per frame, a full dictionary of codes."""

from __future__ import annotations

import time
from typing import Any

import torch

MANY_CODES = 256  # a frame; the shipped recipes have 16 to 64
SIZE = 512  # of the matrix product that measures this machine


def warn_of_costs(run: Any, train: dict[str, dict[str, Any]]) -> None:
    """Say how many codes a frame has and about how long the dynamics will take, if these are many. `train`: its phases."""
    world_model, K = run.world_model, run.world_model.shapes.codes
    if K <= MANY_CODES or "dynamics" not in run.phases:
        return
    settings = train["dynamics"]
    C, H, W = world_model.shapes.frame
    epochs = max(0, train["loop"].get("epochs", 1) - settings.get("start", 0))
    updates = settings.get("updates", 1) * epochs
    flops = updates * _update_flops(world_model, settings.get("batch", 1), settings.get("length", 2))
    hours = flops / _speed(run.device) / 3600
    needs = f"{hours / 24:.0f} days" if hours > 48 else f"{hours:.0f} hours" if hours > 2 else f"{60 * hours:.0f} minutes"
    run.log.say(
        f"this tokenizer makes {K:,} codes for a frame of {H} x {W} pixels: training the dynamics takes about {needs} or more"
        " here; use smaller frames (env.height=64 env.width=64) or larger patches (tokenizer.patch=8) for fewer codes"
    )


def free_codes(tokenizer: Any) -> int | None:
    """How many codes a growing dictionary has left; None for any other tokenizer."""
    used = tokenizer.codes_in_use()
    return None if used is None else tokenizer.V - used


def warn_of_full_dictionary(run: Any, before: int | None) -> None:
    """Say, once in a training, that no new patch becomes a code from now on. before: the codes that were left."""
    tokenizer = run.world_model.tokenizer
    if before and free_codes(tokenizer) == 0:
        run.log.say(
            f"the dictionary of codes is full ({tokenizer.V:,} of {tokenizer.V:,}): a new patch is encoded as its nearest code,"
            f" and small objects can disappear; increase it: tokenizer.vocab_size={2 * tokenizer.V}"
        )


def _update_flops(world_model: Any, batch: int, length: int) -> float:
    """Of one update of the dynamics: six for each weight and position, and what attention adds."""
    positions = length * (world_model.shapes.codes + 1)
    weights = sum(p.numel() for p in world_model.dynamics_modules().parameters())
    layers = max((len(m) for m in world_model.backbone.modules() if isinstance(m, torch.nn.ModuleList)), default=1)
    return batch * positions * (6 * weights + 12 * layers * world_model.shapes.dim * positions)


def _speed(device: torch.device) -> float:
    """Floating-point operations a second in a matrix product, the best of three."""
    x = torch.ones(SIZE, SIZE, device=device)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        (x @ x).sum().item()
        times.append(time.perf_counter() - began)
    return 2 * SIZE**3 / min(times)
