"""Branches at the states that the run's policy visits, weighted by that policy, compared with those of random play."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tokenworld.evaluation.probes import branches
from tokenworld.evaluation.probes.menu import Menu
from tokenworld.evaluation.probes.stages import Tick, unseen
from tokenworld.evaluation.records import Branches
from tokenworld.evaluation.statistics import draws
from tokenworld.imagination import Actor
from tokenworld.interfaces import Steps, View
from tokenworld.world_model import WorldModel

NOISE = 144  # evenly spread uniform numbers: an action's share of them is its probability; most numbers of actions divide it


def branches_of_policy(
    world_model: WorldModel, policy, simulator, *, count: int, context: int, deadline: float,
    support: Callable[[np.ndarray], np.ndarray] | None = None, seed: int = 0, tick: Tick = unseen,
) -> Branches | None:  # fmt: skip
    """Branches at `count` states that the policy visits, weighted by its own probabilities of actions; None where it has no
    such states. support: codes (S, K) of frames -> (S, A), how often training data hold them with each action."""
    device = world_model.device
    actor = Actor(world_model, policy, generator=torch.Generator(device).manual_seed(seed))

    def act(obs: np.ndarray, first: bool) -> int | np.ndarray:
        return draws.single(actor(torch.from_numpy(np.ascontiguousarray(obs))[None], torch.tensor([first]))[0].numpy())

    places = branches.branch_states(simulator, count, context, deadline, seed + 1, act)
    if not places:
        return None
    menu = Menu(world_model.shapes.actions)
    if not menu.is_complete:
        return _own_and_menu(world_model, policy, simulator, places, deadline, menu, tick)
    mine = branches.branches(world_model, simulator, places, deadline, tick=tick)
    if mine is None:
        return None
    used = places[: len(mine.p)]
    mine = replace(mine, behavior=np.stack([_probabilities(world_model, policy, branch_state) for branch_state in used]))
    if support is None:
        return mine
    last = branches.encode_frames(world_model, np.stack([branch_state.obs[-1] for branch_state in used]), device).cpu().numpy()
    return replace(mine, support=support(last))


def _own_and_menu(
    world_model: WorldModel, policy, simulator, places: list[branches.BranchState], deadline: float, menu: Menu, tick: Tick
) -> Branches | None:
    """Branches of an action of the policy, and of the menu: of the latter alone each is as likely at random."""
    own = [_chosen(world_model, policy, x)[int(draws.integers(x.key, NOISE, 1, 3)[0])] for x in places]
    mine = branches.branches(world_model, simulator, places, deadline, taken=own, tick=tick)
    if mine is None:
        return None
    is_own = np.arange(menu.columns) == 0
    return replace(mine, behavior=np.tile(is_own.astype(float), (len(mine.p), 1)), at_random=~is_own / len(menu))


def _probabilities(world_model: WorldModel, policy, branch_state: branches.BranchState) -> np.ndarray:
    """(A,): of the policy's actions after the frames of a place."""
    return Menu(world_model.shapes.actions).counts(_chosen(world_model, policy, branch_state)) / NOISE


@torch.no_grad()
def _chosen(world_model: WorldModel, policy, branch_state: branches.BranchState) -> Tensor:
    """NOISE actions of the policy (NOISE,) or (NOISE, A) after the frames of a place."""
    device, T = world_model.device, len(branch_state.obs)
    actor = Actor(world_model, policy, generator=torch.Generator(device))
    obs = torch.from_numpy(branch_state.obs).unsqueeze(0)
    zero, false = torch.zeros(1, T), torch.zeros(1, T, dtype=torch.bool)
    first, action = false.clone(), world_model.shapes.actions.zero(1, T)
    first[:, 0] = True
    action[0, :-1] = torch.from_numpy(branch_state.action)
    actor.burn_in(Steps(obs, action, zero, false, false, first, ~false, ~false))
    view = actor._look(obs[:, -1].to(device), first[:, -1].to(device))

    def repeated(x):
        return None if x is None else x.expand(NOISE, *x.shape[1:]).contiguous()

    many = View(view.codes.map(repeated), repeated(view.h), lambda: repeated(view.decode()))
    carry = repeated(actor.carry if actor.carry is not None else policy.start(1))
    noise = ((torch.arange(NOISE, device=device) + 0.5) / NOISE).unsqueeze(1)
    if policy.noise_size != 1:  # even numbers fill a line only
        noise = torch.rand(NOISE, policy.noise_size, generator=torch.Generator(device).manual_seed(0), device=device)
    chosen, _ = policy.act(many, carry, noise)
    return chosen.cpu()


def support_of(codes: np.ndarray, action: np.ndarray, acted: np.ndarray, A: int) -> Callable[[np.ndarray], np.ndarray]:
    """From training rows, codes (N, K), action and acted (N,): a function codes (S, K) -> counts (S, A)."""
    counts: dict[bytes, np.ndarray] = {}
    for row, a, real in zip(np.ascontiguousarray(codes), action.tolist(), acted.tolist(), strict=True):
        if real:
            counts.setdefault(row.tobytes(), np.zeros(A))[a] += 1
    nothing = np.zeros(A)

    def support(asked: np.ndarray) -> np.ndarray:
        return np.stack([counts.get(row.tobytes(), nothing) for row in np.ascontiguousarray(asked.astype(codes.dtype))])

    return support
