"""The worst branch states as pictures for `report/filmstrips.py`, made again from the snapshots of the scored places."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import torch

from tokenworld.evaluation.probes import branches as branch_probe
from tokenworld.evaluation.probes.levels import BYTES, Levels
from tokenworld.evaluation.probes.menu import Menu
from tokenworld.evaluation.probes.stages import Tick, unseen
from tokenworld.evaluation.records import SAMPLES, SHOWN, Branches, Branching
from tokenworld.evaluation.statistics import draws
from tokenworld.evaluation.statistics.divergences import kl
from tokenworld.world_model import WorldModel


@torch.no_grad()
def worst(
    world_model: WorldModel, simulator, places: Sequence[branch_probe.BranchState], branches: Branches,
    names: Sequence[str] = (), deadline: float = math.inf, seed: int = 0, tick: Tick = unseen,
    levels: Levels = BYTES,
) -> list[Branching]:  # fmt: skip
    """Of the states with the largest KL(p || q) their worst action, at most `SHOWN`: what was seen, a frame for each
    branch with the world's probability and the model's, frames that the model draws. places[s] is where branches[s] begins;
    fewer once time.monotonic() passes `deadline`."""
    device, menu = world_model.device, Menu(simulator.actions).rows
    generator = torch.Generator(device).manual_seed(seed)
    divergence, strips = kl(branches), []  # (S, A)
    for s in np.argsort(-divergence.max(1), kind="stable")[:SHOWN].tolist():
        if time.monotonic() > deadline:
            break
        tick()
        a, branch_state = int(divergence[s].argmax()), places[s]
        # the same as when they were scored: draws are seeded by number
        futures = branch_probe.list_futures(simulator, branch_state, draws.single(menu[a].numpy()))
        frames = np.stack([obs for _, obs, _, _ in futures])
        tokens = branch_probe.encode_frames(world_model, frames, device).cpu().numpy()  # (n, K)
        there = branches.p[s, a] > 0
        codes = branches.codes[s, a][there]  # (J, K)
        shown = [int(np.flatnonzero((tokens == code).all(1))[0]) for code in codes]
        n = SAMPLES
        state = branch_probe.read_state(world_model, branch_state, device)
        many = state.select(torch.zeros(n, dtype=torch.int64, device=device))
        noise = torch.rand(n, world_model.decoding.noise_size, generator=generator, device=device)
        prediction, _ = world_model.step(many, menu[a].to(device).expand(n, *menu.shape[1:]), noise)
        drawn = world_model.frames(prediction.codes)[:, 0].cpu().numpy()
        name = f"action {names[a]}" if len(names) > a else f"action {a}"
        strips.append(
            Branching(
                words=f"Episode {branch_state.episode}, {name}",
                kl=float(divergence[s, a]),
                context=branch_state.obs[-branch_probe.READ :],
                frames=frames[shown],
                p=branches.p[s, a][there],
                q=np.exp2(-branches.bits[s, a][there]),
                samples=drawn,
                changed=(codes != codes[0]).any(0).reshape(world_model.shapes.grid),
                limits=levels.limits,
            )
        )
    return strips
