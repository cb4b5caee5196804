"""A future of a dream: a sequence of moments, one per action. Any earlier moment can be restored.

All random draws of step t follow from (seed, t). The same start, seed and actions give the same dream. Two futures with one
different action have the same random draws, so they differ by that action only.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from tokenworld.imagination import Ahead, burn_in_policy
from tokenworld.interfaces import Codes
from tokenworld.nn import logprob
from tokenworld.play.starts import Start, idle_action
from tokenworld.viz.frames import Limits, limits_of
from tokenworld.world_model import WorldModel

Action = int | tuple[float, ...]  # the number of a row of the menu, or a row that policy or planner chose instead
KEPT = 32  # the newest states are all kept, and every 32nd of the older ones; the others are computed again


@dataclass(frozen=True)
class DreamSettings:
    """The model and the settings that all sessions share; read-only."""

    world_model: WorldModel
    starts: list[Start]
    actions: list[str]  # names
    policy: Any = None
    planner: Any = None  # searches imagined rollouts before each step; it has no trained weights
    expected_reward: bool = False  # a reward is the mean of the reward head, not a sample
    name: str = ""
    fps: float = 15.0  # initial steps per second of the page
    channels: tuple[str, ...] = ()  # the name of each channel of a frame, if the environment has names

    @property
    def idle(self) -> int:
        """Return the action for steps without a pressed key."""
        return idle_action(self.actions, self.world_model.shapes.actions)

    @functools.cached_property
    def menu(self) -> torch.Tensor:
        """Return the actions that can be chosen, `(M,)` or `(M, A)`; an action is the number of its row."""
        return self.world_model.shapes.actions.menu()

    @functools.cached_property
    def limits(self) -> Limits | None:
        """Return the range of each number of the recorded frames, if they are state vectors."""
        if self.world_model.shapes.frame_dtype == "uint8":
            return None
        return limits_of(np.concatenate([start.steps.obs[0].cpu().numpy() for start in self.starts]))

    @property
    def grid(self) -> tuple[int, int]:
        """Return the rows and columns of codes over a picture: a row for each number of a state vector, if that has a code."""
        shapes = self.world_model.shapes
        return (shapes.codes, 1) if self.limits is not None and shapes.codes == shapes.frame[0] else shapes.grid

    def name_of(self, action: Action) -> str:
        """Return the name of an action of the menu, or of a row that policy or planner chose."""
        return self.actions[action] if isinstance(action, int) else self.world_model.shapes.actions.label(torch.tensor(action))

    @property
    def noise_of_action(self) -> int:
        """Return how many random numbers policy and planner may take per step."""
        return max([1, *(who.noise_size for who in (self.policy, self.planner) if who is not None)])

    @property
    def temperature(self) -> float | None:
        """Return the temperature of the recipe; None for a decoding without a temperature."""
        return self.world_model.decoding.temperature


@dataclass(frozen=True)
class Moment:
    """One time step of a future: the frame, and the step that led to it (None or 0 for the first moment)."""

    codes: Codes  # without B and T, on the CPU
    frame: np.ndarray  # (C, H, W) uint8 or float32, the decoded codes
    action: Action | None = None
    by: str | None = None  # "policy" or "planner" chose the action; None: a person
    temperature: float = 1.0
    reward: float = 0.0
    p_end: float = 0.0  # the predicted probability of a termination
    ended: bool = False
    surprise: np.ndarray | None = None  # (h, w) bits: -log2 of the probability of each code; None without a likelihood


@dataclass(frozen=True)
class Memory:
    """The inputs of a step. A step copies the state, so many steps can begin from one memory."""

    state: Any
    codes: Codes  # T = 1
    h: torch.Tensor  # (1, D)
    carry: Any  # of the policy


@dataclass
class Future:
    """The moments of one dream, from its start."""

    dream: DreamSettings
    seed: int
    moments: list[Moment]
    memories: dict[int, Memory] = field(default_factory=dict)

    @classmethod
    @torch.no_grad()
    def begin(cls, dream: DreamSettings, start: Start, seed: int) -> Future:
        """Return a future that holds the start only."""
        model, device = dream.world_model, dream.world_model.device
        steps = start.steps.to(device)
        codes = model.encode(steps)
        prediction, state = model.start(steps, codes)
        last = prediction.codes
        carry = None if dream.policy is None else burn_in_policy(model, dream.policy, steps, codes)
        moment = Moment(last.map(lambda x: x[0, 0].cpu()), _frame(model, last))
        return cls(dream, seed, [moment], {0: Memory(state, last, prediction.h, carry)})

    @property
    def ended(self) -> bool:
        return self.moments[-1].ended

    def at(self, t: int) -> Moment:
        """Return the moment at t, or the last one if the future is shorter."""
        return self.moments[min(t, len(self.moments) - 1)]

    def cut(self, t: int) -> None:
        """Delete the moments after t."""
        del self.moments[t + 1 :]
        self.memories = {k: memory for k, memory in self.memories.items() if k <= t}

    def until(self, t: int) -> Future:
        """Return a copy of this future up to t, to continue with other actions."""
        memories = {k: memory for k, memory in self.memories.items() if k <= t}
        return Future(self.dream, self.seed, self.moments[: t + 1], memories)

    def step(self, action: Action | str, temperature: float) -> None:
        """Take one step. action: a number or a row, or "policy" or "planner", which then chooses the action."""
        t = len(self.moments) - 1
        memory = self._memory(t)
        by = action if isinstance(action, str) else None
        if by is not None:
            action = self._choose(by, memory, t)
        after, moment = self._advance(memory, t, action, temperature)
        self.moments.append(replace(moment, by=by))
        self.memories[t + 1] = after
        old = t + 1 - KEPT
        if old > 0 and old % KEPT:
            self.memories.pop(old, None)

    def _memory(self, t: int) -> Memory:
        """Return the memory of time t, stored or computed again by the same steps, bit for bit."""
        k = max(k for k in self.memories if k <= t)
        memory = self.memories[k]
        for i in range(k, t):
            memory, _ = self._advance(memory, i, self.moments[i + 1].action, self.moments[i + 1].temperature)
        self.memories[t] = memory
        return memory

    @torch.no_grad()
    def _choose(self, by: str, memory: Memory, t: int) -> Action:
        model = self.dream.world_model
        noise, dream = model.split_noise(self._noise(t))[2], self.dream
        view = replace(model.view_of(memory.codes, memory.h), dream=Ahead(model, memory.state))
        who = dream.policy if by == "policy" else dream.planner
        carry = memory.carry if by == "policy" else who.start(1)
        chosen = who.act(view, carry, noise[:, : who.noise_size])[0][0]
        if not chosen.ndim:
            return int(chosen)
        same = (dream.menu == chosen.cpu()).all(-1).nonzero()
        return int(same[0]) if len(same) else tuple(chosen.tolist())

    @torch.no_grad()
    def _advance(self, memory: Memory, t: int, action: Action, temperature: float) -> tuple[Memory, Moment]:
        """Step from time t to t + 1."""
        model, policy = _tempered(self.dream.world_model, temperature), self.dream.policy
        of_codes, of_outcome, _ = model.split_noise(self._noise(t))
        here = torch.zeros(1, dtype=torch.int64, device=of_codes.device)
        taken = self.row(action)[None].to(of_codes.device)
        prediction, state = model.step(memory.state.select(here), taken, of_codes)
        reward, ended = model.outcome(prediction, of_outcome, self.dream.expected_reward)
        carry = memory.carry
        if carry is not None:
            carry = policy.follow(model.view_of(memory.codes, memory.h), carry)
        nats = logprob(prediction)
        bits = None if nats is None else (-nats[0] / math.log(2)).clamp(min=0).cpu().numpy().reshape(self.dream.grid)
        codes = prediction.codes
        moment = Moment(
            codes.map(lambda x: x[0, 0].cpu()),
            _frame(model, codes),
            action=action,
            temperature=temperature,
            reward=float(reward),
            p_end=float(prediction.terminated.mean),
            ended=bool(ended),
            surprise=bits,
        )
        return Memory(state, codes, prediction.h, carry), moment

    def row(self, action: Action) -> torch.Tensor:
        """Return the action of a number of the menu, or of a row, `()` or `(A,)`."""
        return self.dream.menu[action] if isinstance(action, int) else torch.tensor(action)

    def _noise(self, t: int) -> torch.Tensor:
        """Return `draws` of step t on the device of the model."""
        return draws(self.dream.world_model, self.seed, t, self.dream.noise_of_action).to(self.dream.world_model.device)


def draws(world_model: WorldModel, seed: int, t: int, more: int = 1) -> torch.Tensor:
    """Return the draws of step t, `(1, n)` uniform: codes, reward, termination, `more` for the action, as in `imagine`."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + t)
    return torch.rand(1, world_model.noise_size + more, generator=generator)


def _tempered(world_model: WorldModel, temperature: float) -> WorldModel:
    """Return a model with the same weights and another temperature. The shared model stays unchanged."""
    if world_model.decoding.temperature in (None, temperature):
        return world_model
    twin, decoding = copy.copy(world_model), copy.copy(world_model.decoding)
    decoding.temperature = temperature
    twin._modules = world_model._modules | {"decoding": decoding}
    return twin


def _frame(world_model: WorldModel, codes: Codes) -> np.ndarray:
    """Decode codes with T = 1 to a frame `(C, H, W)`, as the environment gives them."""
    return world_model.frames(codes)[0, 0].cpu().numpy()
