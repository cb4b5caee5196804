"""State identity of a real model: histories that lead to one state of the simulator, and states that differ.

From a place, short action sequences are played under the same randomness; where two of them end in the same state (a detour, or
actions that commute), the model must expect the same of both. The divergence is that of the next codes' distributions, each a
mean of exact conditionals along drawn frames, so two sets of draws of one history are a floor that is not 0. The seed chooses
the pairs; the detours and draws at a place follow from the place alone (see `draws.py`).
"""

from __future__ import annotations

import itertools
import time

import numpy as np
import torch

from tokenworld.evaluation.probes import branches as branch_probe
from tokenworld.evaluation.probes.branches import BranchState
from tokenworld.evaluation.probes.codes import history_of
from tokenworld.evaluation.probes.menu import Menu
from tokenworld.evaluation.probes.stages import Tick, unseen
from tokenworld.evaluation.records import Branches, Pairs
from tokenworld.evaluation.statistics import draws
from tokenworld.evaluation.statistics.divergences import plogp
from tokenworld.world_model import WorldModel

LENGTH = 3  # actions of a detour
SEQUENCES = 40  # that are tried from a place
PAIRS = 40  # of each kind, at most


@torch.no_grad()
def pairs(
    world_model: WorldModel, simulator, places: list[BranchState], branches: Branches, deadline: float, seed: int = 0, *,
    tick: Tick = unseen,
) -> Pairs | None:  # fmt: skip
    """Pairs of one state and of different states among the places of `branches`; None if there is neither."""
    device, rows, menu = world_model.device, [], Menu(simulator.actions)
    used = [int(i) for i in np.random.default_rng(seed).permutation(len(branches.p))]

    def marginals_of(branch_state: BranchState, stream: int) -> np.ndarray:  # (A, K, V)
        state = branch_probe.read_state(world_model, branch_state, device)
        return branch_probe.own_distribution(world_model, state, menu.rows, branch_state.key, stream)["mean"]

    for i in used[:PAIRS]:
        if rows and time.monotonic() > deadline:
            break
        tick()
        meeting = _meeting(simulator, places[i], history_of(world_model.backbone), menu)
        if meeting is not None:
            left, again, right = marginals_of(meeting[0], 0), marginals_of(meeting[0], 1), marginals_of(meeting[1], 2)
            rows.append((places[i].episode, True, _apart(left, right), _apart(left, again), 0.0, places[i].key))
    V = world_model.shapes.vocab_size
    for i, j in zip(used[:PAIRS], used[1:] + used[:1], strict=False):
        if rows and time.monotonic() > deadline or places[i].hash == places[j].hash:
            continue
        tick()
        left, again, right = marginals_of(places[i], 0), marginals_of(places[i], 1), marginals_of(places[j], 2)
        true = _apart(_marginals(branches, i, V), _marginals(branches, j, V))
        key = draws.name_of(places[i].key, places[j].key)
        rows.append((places[i].episode, False, _apart(left, right), _apart(left, again), true, key))
    if not rows:
        return None
    return Pairs(*(np.array(column) for column in zip(*rows, strict=True)))


def _meeting(simulator, branch_state: BranchState, context: int, menu: Menu) -> tuple[BranchState, BranchState] | None:
    """Two histories from a place that end in one state by different ways, or None."""
    A, tried = len(menu), menu.rows.numpy()
    few = A**LENGTH <= SEQUENCES
    every = itertools.product(range(A), repeat=LENGTH) if few else draws.integers(branch_state.key, A, (SEQUENCES, LENGTH))
    seen: dict[int, tuple[BranchState, bytes]] = {}
    for sequence in every:
        simulator.restore(branch_state.snapshot)
        simulator.reseed(0)
        frames, over = [], False
        for a in sequence:
            obs, _, over = simulator.step(draws.single(tried[a]))
            frames.append(obs)
            if over:
                break
        if over:
            continue
        obs = np.concatenate([branch_state.obs, np.stack(frames)])[-context:]
        action = branch_state.action[:0]
        if len(obs) > 1:
            action = np.concatenate([branch_state.action, tried[np.array(sequence)]])[-(len(obs) - 1) :]
        end, way = simulator.state_hash(), obs.tobytes() + action.tobytes()
        if end in seen and seen[end][1] != way:
            return seen[end][0], BranchState(None, end, branch_state.episode, obs, action, branch_state.key)
        seen.setdefault(end, (BranchState(None, end, branch_state.episode, obs, action, branch_state.key), way))
    return None


def _marginals(branches: Branches, i: int, V: int) -> np.ndarray:
    """(A, K, V): the true distributions of the next codes at a place."""
    p, codes = branches.p[i], branches.codes[i]  # (A, J), (A, J, K)
    A, J, K = codes.shape
    marginals = np.zeros((A, K, V))
    for j in range(J):
        at = codes[:, j, :, None]  # (A, K, 1)
        np.put_along_axis(marginals, at, np.take_along_axis(marginals, at, -1) + p[:, j, None, None], -1)
    return marginals


def _apart(p: np.ndarray, q: np.ndarray) -> float:
    """Jensen-Shannon divergence in bits of (A, K, V), summed over codes, mean over actions."""
    return float(((plogp(p) + plogp(q)).sum(-1) / 2 - plogp((p + q) / 2).sum(-1)).sum(-1).mean())
