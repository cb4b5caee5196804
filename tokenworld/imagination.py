"""A policy at work: inside the world model (`imagine`), and in the real environment through the model's eyes (`Actor`).

In imagination no value is fetched to the host; rollouts that terminated run on, masked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tokenworld import arguments
from tokenworld.interfaces import Codes, Prediction, Steps, Trajectory, View
from tokenworld.nn import concat
from tokenworld.world_model import WorldModel, frames_as_steps


@torch.no_grad()
def imagine(
    world_model: WorldModel,
    prediction: Prediction,
    state: Any,
    policy,
    horizon: int,
    noise: Tensor,
    carry: Any = None,
    expected_reward: bool = False,
    expected_end: bool = False,
) -> Trajectory:
    """Imagine a rollout from `state` with `policy`.

    Uniform noise (B, H, world_model.noise_size + policy.noise_size) feeds codes, reward, termination and action in this order.
    `prediction, state` come from `world_model.start`; `carry` from `policy.start` or a burn-in. Rewards are sampled, or
    their mean if `expected_reward`; with `expected_end` terminations and `alive` are probabilities. Consumes `state`.
    """
    arguments.noise(noise, (len(prediction.h), horizon, world_model.noise_size + policy.noise_size), "BHn")
    of_codes, of_outcome, of_action = world_model.split_noise(noise)
    first_carry = carry = policy.start(noise.shape[0]) if carry is None else carry
    alive = [torch.ones(len(noise), dtype=torch.float32 if expected_end else torch.bool, device=noise.device)]
    codes, h, actions, rewards, terminations, frames = [], [], [], [], [], []

    def look(prediction: Prediction) -> View:
        codes.append(prediction.codes)
        h.append(prediction.h.float())
        pixels = world_model.decode(prediction.codes)[:, 0] if policy.needs_pixels else None
        frames.append(pixels)
        return View(prediction.codes, h[-1], lambda: pixels)

    for t in range(horizon):
        action, carry = policy.act(look(prediction), carry, of_action[:, t])
        prediction, state = world_model.step(state, action, of_codes[:, t])
        reward, terminated = world_model.outcome(prediction, of_outcome[:, t], expected_reward, expected_end)
        actions.append(action)
        rewards.append(reward)
        terminations.append(terminated)
        alive.append(alive[-1] * (1 - terminated) if expected_end else alive[-1] & ~terminated)
    look(prediction)
    return Trajectory(
        concat(codes),
        torch.stack(h, 1),
        torch.stack(actions, 1),
        torch.stack(rewards, 1),
        torch.stack(terminations, 1),
        torch.stack(alive, 1),
        torch.stack(frames, 1) if policy.needs_pixels else None,
        first_carry,
    )


@dataclass(frozen=True)
class Ahead:
    """Rollouts from a state, for a policy that plans: actions (B, S, H), noise (B, S, H, noise_size) -> H predictions."""

    world_model: WorldModel
    state: Any

    @property
    def noise_size(self) -> int:
        return self.world_model.decoding.noise_size

    def __call__(self, actions: Tensor, noise: Tensor) -> list[Prediction]:
        return self.world_model.rollout(self.state, actions, noise)


class Actor:
    """A policy in the real environment, seeing through the world model: the collector's `act`.

    A policy that reads codes or pixels needs only the tokenizer; one that reads h has the dynamics follow along.
    """

    def __init__(self, world_model: WorldModel, policy, *, generator: torch.Generator, temperature=1.0, explore=None):
        """explore: see `exploration.RandomActions`, or None for the policy's actions only."""
        self.world_model, self.policy, self.generator = world_model, policy, generator
        self.temperature, self.explore = temperature, explore
        self.carry = self.state = self.action = None

    @torch.no_grad()
    def __call__(self, obs: Tensor, first: Tensor) -> Tensor:
        """obs (N, C, H, W) uint8, first (N,) bool -> actions (N,) int64, or (N, A) float32, on the host."""
        device = self.generator.device
        obs, first = obs.to(device), first.to(device)
        N = obs.shape[0]
        noise = torch.rand(N, self.policy.noise_size, generator=self.generator, device=device)
        view = self._look(obs, first)
        self.carry = self._fresh(self.carry, first)
        self.action, self.carry = self.policy.act(view, self.carry, noise, self.temperature)
        action = self.action.cpu()
        if self.explore is not None:
            action = torch.from_numpy(self.explore(action.numpy()))
            self.action = action.to(device)
        return action

    @torch.no_grad()
    def burn_in(self, steps: Steps) -> None:
        """Remember episodes in progress: all but the last frame of steps (N, T); the last is what `__call__` sees next."""
        device = self.generator.device
        steps = steps.to(device)
        for t in range(steps.obs.shape[1] - 1):
            view = self._look(steps.obs[:, t], steps.first[:, t])
            self.carry = self.policy.follow(view, self._fresh(self.carry, steps.first[:, t]))
            self.action = steps.action[:, t]

    def _look(self, obs: Tensor, first: Tensor) -> View:
        steps = frames_as_steps(obs, first, self.world_model.shapes.actions)
        if not (self.policy.needs_h or self.world_model.decoding.has_posterior):
            codes = self.world_model.encode(steps)
            return View(codes, None, lambda: self.world_model.decode(codes)[:, 0])
        if self.state is None:
            prediction, self.state = self.world_model.start(steps)
        else:
            prediction, self.state = self.world_model.observe(self.state, self.action, obs, first)
        return replace(self.world_model.view(prediction), dream=Ahead(self.world_model, self.state))

    def _fresh(self, carry: Any, first: Tensor) -> Any:
        """Rows that begin an episode forget."""
        fresh = self.policy.start(len(first))
        if carry is None or fresh is None:
            return fresh
        return torch.where(first.view(-1, *[1] * (carry.ndim - 1)), fresh, carry)


@torch.no_grad()
def burn_in_policy(model: WorldModel, policy, steps: Steps, codes: Codes) -> Any:
    """The policy's memory after all but the last frame of steps (B, T), seen as reconstructions."""
    carry = policy.start(steps.obs.shape[0])
    if carry is None:
        return None
    fresh = carry
    for t in range(steps.obs.shape[1] - 1):
        view = model.view_of(codes[:, t : t + 1])
        carry = policy.follow(view, torch.where(steps.first[:, t].view(-1, *[1] * (carry.ndim - 1)), fresh, carry))
    return torch.where(steps.first[:, -1].view(-1, *[1] * (carry.ndim - 1)), fresh, carry)
