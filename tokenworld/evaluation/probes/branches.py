"""Tier B: what a world model says at states of a simulator that can be branched, as the records that metrics read.

Real play gives the states; from each, every action is taken and all that can come of it is listed (or drawn, where a
simulator cannot list). Frames that tokenize alike are one branch (equal frames, where codes have no equality), and each is
scored by teacher forcing after `state.select`. What needs the model's own frames (its entropy, the distribution of single
codes, reward and termination where h reads drawn codes) is a mean over `DRAWS` of them: entropies and code distributions are
means of exact conditionals along the draws, which is unbiased and varies less than counting.

The seed, the budget and the number of places choose the places. What is drawn at a place follows from its `key` alone (see
`draws.py`), so that two evaluations can be compared place by place.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenworld.action_space import of
from tokenworld.evaluation.probes.codes import LONGEST, have_equality, have_likelihood, shrink
from tokenworld.evaluation.probes.levels import BYTES, Levels
from tokenworld.evaluation.probes.menu import Menu
from tokenworld.evaluation.probes.stages import Tick, unseen
from tokenworld.evaluation.records import Branches, Rollouts
from tokenworld.evaluation.statistics import draws
from tokenworld.interfaces import Codes, Steps
from tokenworld.nn import logprob
from tokenworld.world_model import WorldModel, frames_as_steps

DRAWS = 16  # of the model's frames for each state and action
SAMPLES = 16  # of the simulator's, where it cannot list
PER_EPISODE = 4  # states of one episode: more would be much alike
READ = 8  # frames of an episode before the first state that is looked for, at most
CANDIDATES = 16  # codes per position whose probabilities are compared
OF_LIKELIHOOD = ("bits", "entropy_q", "marginal_p", "marginal_q", "candidates")  # fields of `Branches`
ROWS = 256  # of the model at once
ACTIVE_STEPS = 512  # of random play, in which it is counted how often each pixel changes


@dataclass(frozen=True)
class BranchState:
    """A state to branch from: the simulator's snapshot and what led there, T frames and T - 1 actions."""

    snapshot: Any
    hash: int  # of the simulator's state
    episode: int
    obs: np.ndarray  # (T, C, H, W) uint8, or float32 of a state vector
    action: np.ndarray  # (T - 1,), or (T - 1, A)
    key: int = 0  # of the simulator's state and all that was seen and done in the episode before: the model reads that too


def branch_states(
    simulator, count: int, context: int, deadline: float, seed: int = 0, act=None, *, tick: Tick = unseen
) -> list[BranchState]:
    """States of real play, at most four of an episode, each with the last `context` frames of it, READ at least if it is more.

    act(obs (C, H, W), first) -> action; None: uniformly random actions. Fewer than `count` if the deadline passes.
    """
    rng, states, episode = np.random.default_rng(seed), [], 0
    while len(states) < count and time.monotonic() < deadline and episode < 20 * count:
        frames, actions, seen = [simulator.reset(seed + 1000 + episode)], [], []
        first, before = True, 0
        for t in range(LONGEST):
            before = draws.name_of(before, *map(_named, actions[-1:]), np.ascontiguousarray(frames[-1]).tobytes())
            if t + 1 >= min(context, READ):
                name = simulator.state_hash()
                seen.append((simulator.snapshot(), name, t, draws.name_of(name, before)))
            a = draws.random_actions(simulator.actions, rng) if act is None else act(frames[-1], first)
            first = False
            obs, _, terminated = simulator.step(a)
            if terminated:
                break
            actions.append(a)
            frames.append(obs)
        for i in sorted(rng.permutation(len(seen))[:PER_EPISODE]):
            snapshot, name, t, key = seen[i]
            begin = max(0, t - context + 1)
            obs, action = np.stack(frames[begin : t + 1]), _stacked(simulator, actions[begin:t])
            states.append(BranchState(snapshot, name, episode, obs, action, key))
            if len(states) <= count:
                tick()
        episode += 1
    return states[:count]


def _named(action: Any) -> bytes | int:
    return action.tobytes() if isinstance(action, np.ndarray) else action


def _stacked(simulator, actions: list) -> np.ndarray:
    """Actions as an array (n,) int, or (n, A) float32."""
    space = of(simulator.actions)
    return np.array(actions, int if space.is_single else np.float32).reshape(-1, *space.row)


@torch.no_grad()
def branches(
    world_model: WorldModel, simulator, places: list[BranchState], deadline: float, *, taken: Sequence[Tensor] | None = None,
    tick: Tick = unseen,
) -> Branches | None:  # fmt: skip
    """Every action of the menu at every place; whole places until the deadline passes, None if there was time for none.
    taken: a further action (A,) of each place, which comes first."""
    done = []
    menu = Menu(simulator.actions).rows
    for i, state in enumerate(places):
        if done and time.monotonic() > deadline:
            break
        tried = menu if taken is None else torch.cat([taken[i][None], menu])
        done.append(_branch(world_model, simulator, state, tried))
        tick()
    if not done:
        return None
    J, C = (max(record[name].shape[-1] if name in record else 0 for record in done) for name in ("p", "candidates"))
    padded = {"p": (J, 0), "bits": (J, 0), "reward": (J, 0), "terminated": (J, 0)}
    columns = {"candidates": (C, -1), "marginal_p": (C, 0), "marginal_q": (C, 0)}
    stacked: dict[str, Any] = dict.fromkeys(("codes", *OF_LIKELIHOOD))
    for name in done[0]:
        parts = [record[name] for record in done]
        if name == "codes":
            parts = [np.pad(x, ((0, 0), (0, J - x.shape[1]), (0, 0))) for x in parts]
        elif name in padded or name in columns:
            width, fill = padded.get(name) or columns[name]
            parts = [np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])], constant_values=fill) for x in parts]
        stacked[name] = np.stack(parts)
    used = places[: len(done)]
    return Branches(
        cluster=np.array([state.episode for state in used]),
        hash=np.array([state.key for state in used], np.uint64),
        exact=simulator.exact,
        **stacked,
    )


def _branch(world_model: WorldModel, simulator, branch_state: BranchState, tried: Tensor) -> dict[str, np.ndarray]:
    """Some actions at one place, `tried` (M,) or (M, A): p, bits, reward, terminated (M, J), codes (M, J, K), what the model
    says of itself. Without a likelihood, what takes one is left out, and the codes where equal frames need not have equal
    ones."""
    A, device = len(tried), world_model.device
    futures = [list_futures(simulator, branch_state, draws.single(a)) for a in tried.numpy()]
    z = np.stack([obs for future in futures for _, obs, _, _ in future])  # (n, C, H, W), or (n, K) codes
    if have_equality(world_model):
        z = encode_frames(world_model, z, device).cpu().numpy()
    merged, at = [], 0
    for future in futures:  # alike frames are one branch
        rows: dict[bytes, list] = {}
        for probability, _, reward, terminated in future:
            row = rows.setdefault(z[at].tobytes(), [z[at], 0.0, 0.0, 0.0])
            row[1] += probability
            row[2] += probability * reward
            row[3] += probability * terminated
            at += 1
        merged.append(list(rows.values()))
    J = max(map(len, merged))
    p, reward, terminations = np.zeros((A, J)), np.zeros((A, J)), np.zeros((A, J))
    codes = np.zeros((A, J, *z.shape[1:]), np.int64)
    for a, rows in enumerate(merged):
        for j, (code, probability, r, end) in enumerate(rows):
            codes[a, j], p[a, j], reward[a, j], terminations[a, j] = code, probability, r / probability, end / probability
    state = read_state(world_model, branch_state, device)
    tried = tried.to(device)
    action = tried[torch.from_numpy(np.argwhere(p > 0)[:, 0]).to(device)]  # (n,) or (n, A)
    scored = None
    if have_equality(world_model):
        scored = score_frames(world_model, state, action, torch.from_numpy(codes[p > 0]).to(device))
    own = own_distribution(world_model, state, tried, branch_state.key)
    record = {"p": p, "reward": reward, "terminated": terminations, "reward_mean": own["reward"], "hazard": own["hazard"]}
    record |= {"codes": codes} if have_equality(world_model) else {}
    if scored is None:
        return record
    bits = np.zeros((A, J))
    bits[p > 0] = scored
    candidates = _candidates(codes, p, own["mean"])
    picked = np.maximum(candidates, 0)  # (K, C)
    marginal_q = np.take_along_axis(own["mean"], np.broadcast_to(picked, (A, *picked.shape)), -1) * (candidates >= 0)
    marginal_p = (p[:, :, None, None] * (codes[..., None] == candidates)).sum(1)  # (A, K, C)
    marginal = own["mean"]
    entropies = -(marginal * np.log2(np.maximum(marginal, 1e-12))).sum((-1, -2))  # (A,): sum over positions
    return record | {
        "bits": bits, "entropy_q": own["entropy"], "marginal_p": marginal_p, "marginal_q": marginal_q,
        "candidates": candidates, "total_correlation_q": np.maximum(entropies - own["entropy"], 0.0),
    }  # fmt: skip


def list_futures(simulator, branch_state: BranchState, a: int | np.ndarray) -> list[tuple[float, np.ndarray, float, bool]]:
    enumerated = simulator.branches(branch_state.snapshot, a)
    if enumerated is not None:
        return enumerated
    drawn = []
    for k in range(SAMPLES):
        simulator.restore(branch_state.snapshot)
        simulator.reseed(k)  # alike for all actions: common random numbers
        drawn.append((1 / SAMPLES, *simulator.step(a)))
    return drawn


def encode_frames(world_model: WorldModel, obs: np.ndarray, device) -> Tensor:
    """obs (n, C, H, W) -> codes (n, K)."""
    steps = frames_as_steps(torch.from_numpy(obs).to(device), actions=world_model.shapes.actions)
    return world_model.encode(steps).indices[:, 0]


@torch.no_grad()
def read_state(world_model: WorldModel, branch_state: BranchState, device):
    """The model's state, of one row, after the frames that led to a place."""
    T = len(branch_state.obs)
    obs = torch.from_numpy(branch_state.obs).unsqueeze(0).to(device)
    zero, false = torch.zeros(1, T, device=device), torch.zeros(1, T, dtype=torch.bool, device=device)
    first = false.clone()
    first[:, 0] = True
    action = world_model.shapes.actions.zero(1, T, device=device)
    action[0, :-1] = torch.from_numpy(branch_state.action)
    return world_model.start(Steps(obs, action, zero, false, false, first, ~false, ~false))[1]


@torch.no_grad()
def score_frames(world_model: WorldModel, state, action: Tensor, codes: Tensor) -> np.ndarray | None:
    """Bits (n,) of the frames codes (n, K) after action (n,) or (n, A) in a state of one row; None without a likelihood."""
    parts = []
    for i in range(0, len(action), ROWS):
        a, z = action[i : i + ROWS], codes[i : i + ROWS]
        many = state.select(torch.zeros(len(a), dtype=torch.int64, device=a.device))
        prediction, _ = world_model.decoding.step(world_model.backbone, many, a, None, Codes(z.unsqueeze(1)))
        if prediction.score is None:
            return None
        parts.append(-logprob(prediction).double().sum(-1) / math.log(2))
    return torch.cat(parts).cpu().numpy()


@torch.no_grad()
def own_distribution(world_model: WorldModel, state, tried: Tensor, key: int, stream: int = 0) -> dict[str, np.ndarray]:
    """Of DRAWS frames after each of the actions `tried` (M,) or (M, A): reward and hazard (M,), and with a likelihood the
    entropy (M,) and the mean distribution of each code (M, K, V).

    key: of the place, from which the draws follow · stream: another one gives independent draws."""
    device, K, A = world_model.device, world_model.shapes.codes, len(tried)
    noise = draws.uniform(np.array([key]), (A * DRAWS, world_model.decoding.noise_size), stream, device)[0]
    parts_by_name: dict[str, list] = defaultdict(list)
    group = max(1, ROWS // DRAWS)
    for begin in range(0, A, group):
        action = tried[begin : begin + group].to(device).repeat_interleave(DRAWS, 0)
        many = state.select(torch.zeros(len(action), dtype=torch.int64, device=device))
        prediction, _ = world_model.step(many, action, noise[begin * DRAWS : begin * DRAWS + len(action)])
        if have_likelihood(world_model, prediction):
            p = prediction.score().double().softmax(-1).view(-1, DRAWS, K, world_model.shapes.vocab_size)
            parts_by_name["entropy"].append(-(p * p.clamp(min=1e-30).log2()).sum((-1, -2)).mean(1))
            parts_by_name["mean"].append(p.mean(1))
        parts_by_name["reward"].append(prediction.reward.mean.double().view(-1, DRAWS).mean(1))
        parts_by_name["hazard"].append(prediction.terminated.mean.double().view(-1, DRAWS).mean(1))
    return {name: torch.cat(parts).cpu().numpy() for name, parts in parts_by_name.items()}


def _candidates(codes: np.ndarray, p: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(K, C): per position the codes that can really come, then those that the model thinks likeliest; -1 where there are
    fewer."""
    K, V = mean.shape[1:]
    real = codes[p > 0]  # (n, K)
    weight = mean.max(0)  # (K, V)
    rows = []
    for k in range(K):
        there = np.unique(real[:, k])
        likely = np.argsort(-weight[k], kind="stable")[: CANDIDATES + len(there)]
        rows.append(np.concatenate([there, [v for v in likely if v not in there and weight[k, v] > 1e-3]])[:CANDIDATES])
    C = max(map(len, rows))
    return np.stack([np.pad(row, (0, C - len(row)), constant_values=-1) for row in rows]).astype(np.int64)


@torch.no_grad()
def rollouts(
    world_model: WorldModel, simulator, places: list[BranchState], *, steps: int, each: int, deadline: float,
    levels: Levels = BYTES, tick: Tick = unseen,
) -> Rollouts | None:  # fmt: skip
    """From each place, `each` real, `each` other real and `each` imagined futures of `steps` steps under the same random
    actions. Features: frames shrunk to at most 16 x 16 pixels, each pixel weighted by how often it changes in random play."""
    device, n = world_model.device, world_model.decoding.noise_size
    real, model, alive, alive_model, copy = [], [], [], [], []
    for branch_state in places:
        if real and time.monotonic() > deadline:
            break
        actions = draws.actions(branch_state.key, simulator.actions, steps)
        noise = draws.uniform(np.array([branch_state.key]), (steps, each, n + 1), 1, device)[0]
        played = [_play(simulator, branch_state, actions, k) for k in range(2 * each)]
        real.append(shrink(levels(np.stack([frames for frames, _ in played]))))
        alive.append(np.stack([lived for _, lived in played]))
        many = read_state(world_model, branch_state, device).select(torch.zeros(each, dtype=torch.int64, device=device))
        frames, lived = [], [torch.ones(each, dtype=torch.bool, device=device)]
        for t in range(steps):
            action = torch.as_tensor(actions[t], device=device).expand(each, *actions.shape[1:])
            prediction, many = world_model.step(many, action, noise[t, :, :-1])
            frames.append(levels(world_model.frames(prediction.codes)[:, 0].cpu()))
            lived.append(lived[-1] & ~prediction.terminated.sample(noise[t, :, -1]))
        model.append(shrink(torch.stack(frames, 1).numpy()))
        alive_model.append(torch.stack(lived[:-1], 1).cpu().numpy())
        copy.append(shrink(levels(branch_state.obs[None, -1:]))[0, 0])
        tick()
    if not real:
        return None
    real, model, copy = np.stack(real), np.stack(model), np.stack(copy)
    weight = _activity(simulator, levels)
    return Rollouts(
        cluster=np.array([branch_state.episode for branch_state in places[: len(real)]]),
        real=real[:, :each] * weight,
        second=real[:, each:] * weight,
        model=model * weight,
        copy=copy * weight,
        alive_real=np.stack(alive)[:, :each],
        alive_model=np.stack(alive_model),
    )


def _activity(simulator, levels: Levels) -> np.ndarray:
    """(F,) of norm 1: the weight of each pixel, by how often it changes in random play that is the same in every
    evaluation. Weights of the places at which one happens to look would make each distance depend on all of them."""
    rng, frames, changed = np.random.default_rng(0), [simulator.reset(0)], []
    for t in range(1, ACTIVE_STEPS + 1):
        obs, _, over = simulator.step(draws.random_actions(simulator.actions, rng))
        frames.append(obs)
        if over or t == ACTIVE_STEPS:
            changed.append(np.abs(np.diff(shrink(levels(np.stack(frames))[None])[0], axis=0)) > 0.05)
            frames = [simulator.reset(t)]
    weight = np.sqrt(np.concatenate(changed).mean(0)) + 1e-3
    return weight / np.linalg.norm(weight)


def _play(simulator, branch_state: BranchState, actions: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, C, H, W) of one real future and whether it had not ended before; the last frame stands after an end."""
    obs, over = simulator.restore(branch_state.snapshot), False
    simulator.reseed(k + 1)
    frames, alive = [], []
    for a in actions:
        alive.append(not over)
        if not over:
            obs, _, over = simulator.step(draws.single(a))
        frames.append(obs)
    return np.stack(frames), np.array(alive)
