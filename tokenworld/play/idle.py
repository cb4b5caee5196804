"""Which recorded moments a person can begin at: those where the imagined game does not end before they have found the keys.

All that is random in a step follows from (seed, t), so that a start state and a seed can be tried out: what is imagined here,
with one action and then no key for some steps, is what the page will show.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from tokenworld.play.future import draws
from tokenworld.play.starts import IDLE_STEPS, Start
from tokenworld.world_model import WorldModel

SEEDS = 8  # tried for each start
ENOUGH = 4  # seeds of a start: with `count` such starts, no further one is tried
ROWS = 96  # imagined games at once: each holds a state of its own in memory
SECONDS = 6.0  # a slow model has tried fewer starts by then


def gallery(world_model: WorldModel, starts: list[Start], idle: int, count: int = 12, seconds: float = SECONDS) -> list[Start]:
    """Up to `count` of the starts, each with the seeds with which it lasts IDLE_STEPS after any one action; most seeds first.

    A start without such a seed is left out. If all are, those that last longest are returned, without seeds. The starts are
    tried in their order until `count` are good ones or `seconds` have passed; at least one is. What was not tried is left out.
    """
    tried: list[tuple[float, Start]] = []
    began = time.monotonic()
    for start in starts:
        if tried and (time.monotonic() - began > seconds or sum(len(each.seeds) >= ENOUGH for _, each in tried) >= count):
            break
        lasts = steps_survived(world_model, start, idle)  # (A, SEEDS)
        seeds = tuple((lasts.amin(0) == IDLE_STEPS).nonzero()[:, 0].tolist())
        tried.append((len(seeds) + lasts.double().mean().item() / (IDLE_STEPS + 1), replace(start, seeds=seeds)))
    best = [start for _, start in sorted(tried, key=lambda each: -each[0])]
    return ([start for start in best if start.seeds] or best)[:count]


@torch.no_grad()
def steps_survived(world_model: WorldModel, start: Start, idle: int) -> torch.Tensor:
    """(A, SEEDS) int64: how many of IDLE_STEPS steps pass without an end, for each first action and each seed."""
    A, K, device = world_model.shapes.actions, world_model.shapes.codes, world_model.device
    steps = start.steps.to(device)
    _, origin = world_model.start(steps)
    noise = torch.cat([torch.stack([draws(seed, t, K)[0] for t in range(IDLE_STEPS)])[None] for seed in range(SEEDS)])
    noise = noise.repeat(A, 1, 1).to(device)  # (A * SEEDS, IDLE_STEPS, K + 3)
    first = torch.arange(A, device=device).repeat_interleave(SEEDS)
    survived = []
    for rows in torch.arange(A * SEEDS, device=device).split(ROWS):
        state = origin.select(torch.zeros_like(rows))
        ended = torch.zeros_like(rows, dtype=torch.bool)
        lasts = torch.zeros_like(rows)
        for t in range(IDLE_STEPS):
            action = torch.full_like(rows, idle) if t else first[rows]
            prediction, state = world_model.step(state, action, noise[rows, t, :K])
            ended |= prediction.terminated.sample(noise[rows, t, K + 1])
            lasts += ~ended
            if ended.all():
                break
        survived.append(lasts)
    return torch.cat(survived).view(A, SEEDS).cpu()
