"""Tier C: what policies earn in the real environment and in dreams from the same kinds of beginnings, over the same horizon.

The policies are made from the run's own one, by mixing it with random actions in many shares, and from constant actions: some
twenty, from good to hopeless, since a ranking of few says little. One planner, random shooting without any learning, plans in
the simulator and in the model: if it is of use in the first, what it loses in the second is the model's fault.
Rewards count by their sign, as the model predicts them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenworld.action_space import Actions, of
from tokenworld.evaluation.probes.menu import Menu
from tokenworld.evaluation.probes.stages import Stages, Tick
from tokenworld.evaluation.records import PolicyValues
from tokenworld.evaluation.statistics import draws
from tokenworld.imagination import Actor, imagine
from tokenworld.interfaces import View
from tokenworld.world_model import WorldModel, frames_as_steps

HORIZON = 50  # steps of a return
EPISODES = 32  # of each policy, real and imagined
SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of random actions in the run's policy
POLICIES = 20
CANDIDATES, DEPTH = 32, 10  # action sequences that the planner tries at each step, and their length
PLANNED = 16  # episodes of a planner


@dataclass(frozen=True)
class Constant:
    """Always one action; looks at nothing."""

    action: int | Tensor  # a number, or a row (A,)
    needs_pixels = needs_h = False
    noise_size = 1

    def start(self, batch: int) -> None:
        return None

    def act(self, view: View, carry: Any, noise: Tensor, temperature: float = 1.0) -> tuple[Tensor, Any]:
        action = torch.as_tensor(self.action, device=noise.device)
        return action.expand(len(noise), *action.shape), carry


class Mixed:
    """A policy that acts at random with probability `share`; the first uniform number decides both, but for the parts of a
    random action that has several."""

    def __init__(self, policy, share: float, actions: Actions | int):
        self.policy, self.share, self.actions = policy, share, of(actions)
        self.needs_pixels, self.needs_h, self.start = policy.needs_pixels, policy.needs_h, policy.start
        self.first = max(1, policy.noise_size)  # what follows is for a random action with several parts
        self.noise_size = self.first + len(self.actions.row) * self.actions.size

    def act(self, view: View, carry: Any, noise: Tensor, temperature: float = 1.0) -> tuple[Tensor, Any]:
        decides = noise[:, 0]
        own = ((decides - self.share) / max(1e-6, 1 - self.share)).clamp(0, 1 - 1e-6)
        of_policy = torch.cat([own.unsqueeze(1), noise[:, 1:]], 1)[:, : self.policy.noise_size]
        action, carry = self.policy.act(view, carry, of_policy, temperature)
        if not self.actions.is_single:
            random = self.actions.draw(noise[:, self.first :])
            return torch.where((decides < self.share)[:, None], random, action), carry
        A = self.actions.choices[0]
        random = (decides / max(1e-6, self.share) * A).long().clamp(max=A - 1)
        return torch.where(decides < self.share, random, action), carry


def policies_of(policy, actions: Actions | int) -> dict[str, Mixed]:
    """name -> policy: the run's own one (None: a run without) in many shares, random play, and constant actions."""
    actions, rows = of(actions), Menu(actions).rows
    policies = {} if policy is None else {f"policy, {share:.0%} random": Mixed(policy, share, actions) for share in SHARES}
    policies["random"] = Mixed(Constant(rows[0]), 1.0, actions)
    for share in (0.25, 0.5, 0.0, 0.75):
        if len(policies) < POLICIES:
            policies |= {f"{_name(actions, a)}, {share:.0%} random": Mixed(Constant(a), share, actions) for a in rows}
    return policies


def _name(actions: Actions, action: Tensor) -> str:
    return f"{'' if actions.is_single else 'action '}{actions.label(action)}"


def policy_values(
    world_model: WorldModel, policy, make_env: Callable[[int], Any], simulator=None, *, others: Mapping[str, Any],
    deadline: float, seed: int = 0, stages: Stages | None = None,
) -> PolicyValues | None:  # fmt: skip
    """Returns of `others` by name, of all policies made from `policy`, and of the planner where there is a simulator for it;
    whole policies until the deadline passes, None if there was time for fewer than three."""
    stages, env = stages or Stages(), make_env(EPISODES)
    names, real, model = [], [], []
    starts = torch.from_numpy(env.reset(seed=seed + 77)[0])
    playing = {**others, **policies_of(policy, world_model.shapes.actions)}
    with stages.probe("policies that play and dream", len(playing), "policies") as tick:
        for name, player in playing.items():
            if time.monotonic() > deadline:
                break
            names.append(name)
            real.append(_played(world_model, player, env, seed))
            model.append(_imagined_returns(world_model, player, starts, seed))
            tick()
    env.close()
    if len(names) < 3:
        return None
    planned = {}
    if simulator is not None and time.monotonic() < deadline:
        with stages.probe("a planner in the simulator and in the model", PLANNED, "episodes") as tick:
            planned = _planned(world_model, simulator, deadline, seed, tick)
    return PolicyValues(tuple(names), tuple(real), tuple(model), **planned)


def _played(world_model: WorldModel, policy, env, seed: int) -> np.ndarray:
    """(N,) real returns over the horizon, one episode of each row."""
    device = world_model.device
    actor = Actor(world_model, policy, generator=torch.Generator(device).manual_seed(seed))
    obs, _ = env.reset(seed=seed)
    first, alive = np.ones(env.num_envs, bool), np.ones(env.num_envs, bool)
    total = np.zeros(env.num_envs)
    for _ in range(HORIZON):
        action = actor(torch.from_numpy(np.ascontiguousarray(obs)), torch.from_numpy(first)).numpy()
        obs, reward, terminated, truncated, _ = env.step(action)
        total += alive * np.sign(reward)
        first = np.zeros_like(first)  # what follows an end is played, and not counted
        alive &= ~(terminated | truncated)
        if not alive.any():
            break
    return total


@torch.no_grad()
def _imagined_returns(world_model: WorldModel, policy, starts: Tensor, seed: int) -> np.ndarray:
    """(N,) returns of dreams from the first frames (N, C, H, W) of episodes."""
    device = world_model.device
    generator = torch.Generator(device).manual_seed(seed)
    steps = frames_as_steps(starts.to(device), torch.ones(len(starts), dtype=bool), world_model.shapes.actions)
    prediction, state = world_model.start(steps)
    noise = torch.rand(len(starts), HORIZON, world_model.noise_size + policy.noise_size, generator=generator, device=device)
    dream = imagine(world_model, prediction, state, policy, HORIZON, noise)
    return (dream.reward * dream.alive[:, :-1]).sum(1).double().cpu().numpy()


# ---------------------------------------------------------------------------------------------------------------------
# The planner


def _planned(world_model: WorldModel, simulator, deadline: float, seed: int, tick: Tick) -> dict[str, np.ndarray]:
    """Returns (n,) of episodes with the planner in the simulator, in the model, at random, and of dreams that are planned."""
    returns: dict[str, list[float]] = {"oracle_planner": [], "model_planner": [], "random": [], "planner_in_model": []}
    for episode in range(PLANNED):
        rng = np.random.default_rng([seed, episode])
        if time.monotonic() > deadline:
            break
        returns["oracle_planner"].append(_episode(simulator, seed + 5000 + episode, _in_simulator(simulator, rng)))
        returns["model_planner"].append(_episode(simulator, seed + 5000 + episode, InModel(world_model, rng)))
        returns["random"].append(_episode(simulator, seed + 5000 + episode, _at_random(simulator, rng)))
        returns["planner_in_model"].append(_planned_dream(world_model, simulator.reset(seed + 5000 + episode), rng))
        tick()
    return {name: np.array(values) for name, values in returns.items()} if len(returns["random"]) > 1 else {}


def _episode(simulator, seed: int, choose: Callable[[np.ndarray], Any]) -> float:
    obs, total = simulator.reset(seed), 0.0
    for _ in range(HORIZON):
        obs, reward, over = simulator.step(choose(obs))
        total += np.sign(reward)
        if over:
            break
    return total


def _at_random(simulator, rng: np.random.Generator) -> Callable[[np.ndarray], Any]:
    return lambda obs: draws.random_actions(simulator.actions, rng)


def _in_simulator(simulator, rng: np.random.Generator) -> Callable[[np.ndarray], Any]:
    """Random shooting where the truth can be tried: the first action of the best of some random sequences."""

    def choose(obs: np.ndarray) -> int | np.ndarray:
        here = simulator.snapshot()
        plans, gains = draws.random_actions(simulator.actions, rng, (CANDIDATES, DEPTH)), np.zeros(CANDIDATES)
        for i, plan in enumerate(plans):
            simulator.restore(here)
            simulator.reseed(int(rng.integers(2**31)))
            for t, a in enumerate(plan):
                _, reward, over = simulator.step(draws.single(a))
                gains[i] += np.sign(reward) * (1 - 1e-3 * t)  # the sooner the better
                if over:
                    gains[i] -= 1e-4 * (DEPTH - t)  # all else alike, it is better to live
                    break
        simulator.restore(here)
        return draws.single(plans[gains.argmax(), 0])

    return choose


class InModel:
    """The same planner in a world model that follows the real frames."""

    def __init__(self, world_model: WorldModel, rng: np.random.Generator):
        self.world_model, self.rng = world_model, rng
        self.device = world_model.device
        self.state, self.action = None, None

    @torch.no_grad()
    def __call__(self, obs: np.ndarray) -> int | np.ndarray:
        frame, first = torch.from_numpy(obs[None]).to(self.device), torch.tensor([self.state is None])
        if self.state is None:
            _, self.state = self.world_model.start(frames_as_steps(frame, first, self.world_model.shapes.actions))
        else:
            _, self.state = self.world_model.observe(self.state, self.action, frame, first.to(self.device))
        self.action = shoot(self.world_model, self.state, self.rng)[None]
        return draws.single(self.action[0].cpu().numpy())


def shoot(world_model: WorldModel, state, rng: np.random.Generator) -> Tensor:
    """The first action () or (A,) of the best of some random sequences, imagined from a state of one row."""
    device, n = world_model.device, world_model.decoding.noise_size
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**31)))
    plans = torch.from_numpy(draws.random_actions(world_model.shapes.actions, rng, (CANDIDATES, DEPTH))).to(device)
    many = state.select(torch.zeros(CANDIDATES, dtype=torch.int64, device=device))
    gains, alive = torch.zeros(CANDIDATES, device=device), torch.ones(CANDIDATES, device=device)
    for t in range(DEPTH):
        noise = torch.rand(CANDIDATES, n, generator=generator, device=device)
        prediction, many = world_model.step(many, plans[:, t], noise)
        terminations = prediction.terminated.mean
        gains += alive * (prediction.reward.mean * (1 - 1e-3 * t) - 1e-4 * terminations * (DEPTH - t))
        alive = alive * (1 - terminations)
    return plans[gains.argmax(), 0]


@torch.no_grad()
def _planned_dream(world_model: WorldModel, obs: np.ndarray, rng: np.random.Generator) -> float:
    """The return of one dream in which the planner plans: what the model promises it."""
    device = world_model.device
    generator = torch.Generator(device).manual_seed(int(rng.integers(2**31)))
    frame = torch.from_numpy(obs[None]).to(device)
    _, state = world_model.start(frames_as_steps(frame, torch.tensor([True]), world_model.shapes.actions))
    total = 0.0
    for _ in range(HORIZON):
        action = shoot(world_model, state, rng)[None]
        noise = torch.rand(1, world_model.noise_size, generator=generator, device=device)
        of_codes, of_outcome, _ = world_model.split_noise(noise)
        prediction, state = world_model.step(state, action, of_codes)
        reward, ended = world_model.outcome(prediction, of_outcome)
        total += float(reward)
        if ended.item():
            break
    return total
