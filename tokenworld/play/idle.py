"""Select recorded start states for the gallery: those whose imagined game lasts until a person knows the keys.

All random draws of a step follow from (seed, t), so a start state and a seed can be tested. This module imagines one action and
then some steps without a key. The page shows exactly the same game.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from tokenworld.play.future import draws
from tokenworld.play.starts import IDLE_STEPS, Start
from tokenworld.world_model import WorldModel

SEEDS = 8  # tried for each start
ENOUGH = 4  # good seeds per start; the search stops at `count` such starts
ROWS = 96  # imagined games in one batch; each holds its own state in memory
SECONDS = 6.0  # time limit of the search; a slow model tests fewer starts


def gallery(world_model: WorldModel, starts: list[Start], idle: int, count: int = 12, seconds: float = SECONDS) -> list[Start]:
    """Return up to `count` starts, each with its good seeds; most good seeds first.

    With a good seed, the game lasts IDLE_STEPS steps after any first action. Starts without a good seed are left out. If no
    start has one, the starts that last longest are returned, without seeds. The starts are tested in order until `count` are
    good or `seconds` have passed; at least one is tested. Untested starts are left out.
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
    """Count the steps before a termination, at most IDLE_STEPS, per first action and seed: `(A, SEEDS)` int64."""
    menu, device = world_model.shapes.actions.menu().to(world_model.device), world_model.device
    A = len(menu)
    steps = start.steps.to(device)
    _, origin = world_model.start(steps)
    by_seed = [torch.cat([draws(world_model, seed, t) for t in range(IDLE_STEPS)]) for seed in range(SEEDS)]
    noise = torch.stack(by_seed).repeat(A, 1, 1).to(device)  # (A * SEEDS, IDLE_STEPS, n)
    of_codes, of_outcome, _ = world_model.split_noise(noise)
    first = menu.repeat_interleave(SEEDS, 0)  # (A * SEEDS,), or a row each
    survived = []
    for rows in torch.arange(A * SEEDS, device=device).split(ROWS):
        state = origin.select(torch.zeros_like(rows))
        ended = torch.zeros_like(rows, dtype=torch.bool)
        lasts = torch.zeros_like(rows)
        for t in range(IDLE_STEPS):
            action = menu[torch.full_like(rows, idle)] if t else first[rows]
            prediction, state = world_model.step(state, action, of_codes[rows, t])
            ended |= world_model.outcome(prediction, of_outcome[rows, t])[1]
            lasts += ~ended
            if ended.all():
                break
        survived.append(lasts)
    return torch.cat(survived).view(A, SEEDS).cpu()
