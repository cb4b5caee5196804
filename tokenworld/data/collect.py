"""Collecting: play a vector environment, cut its stream into episodes, and be able to continue after a crash.

Vector environments start a new episode on the step *after* an end: that step ignores its action and returns the new
episode's first observation. It is no transition, and no trace of it enters the data but that observation.

Environments cannot be saved. A collector's state is therefore the log of all actions it has sent: a fresh collector on
a freshly built environment replays them, and is then exactly where the other one was. A running checksum of what came back
tells whether it is; if not, as with games that draw from generators of their own, the games in progress are dropped.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from tokenworld import action_space
from tokenworld.data.record_format import Content, Episode
from tokenworld.data.replay import Replay
from tokenworld.errors import UserError
from tokenworld.interfaces import Steps
from tokenworld.storage import space_format

# obs (N, C, H, W) uint8 or float32, first (N,) bool -> action (N,) int64 or (N, A) float32
Act = Callable[[Tensor, Tensor], Tensor]


class Collector:
    """Plays `env` from `env.reset(seed=seed)` on and hands each finished episode to `on_episode`.

    `env.step` takes rows of actions, see `action_space`, whatever space the environment advertises.
    A game that is longer than a record can hold comes in parts, all but the last of them truncated.
    """

    def __init__(
        self, env: VectorEnv, *, seed: int, on_episode: Callable[[Episode], None], split: str = "train"
    ) -> None:
        mode = env.metadata.get("autoreset_mode")
        if mode != AutoresetMode.NEXT_STEP:
            raise UserError(f"the environment must have autoreset mode NextStep, got {mode}: build it with that mode")
        self.env = env
        self.seed = seed
        self.on_episode = on_episode
        self.split = split
        self.steps = 0  # real transitions so far
        self.episodes = 0  # episodes handed on so far, cut ones included
        self._target = 0  # transitions asked for so far: what one call collects too much, the next collects less
        self._cuts: list[tuple[int, int]] = []  # (vector steps before it, at_least) of each cut
        self._before = (0, 0)  # steps and episodes of games that were dropped, and of all before them
        self.actions = action_space.of(env.single_action_space)
        self._dtype = np.dtype(np.int64 if self.actions.is_single else np.float32)
        bounds = np.array([*[(0, n) for n in self.actions.choices], *self.actions.bounds])  # (A, 2)
        # what is sent where an action is ignored: 0, or what is nearest to it
        self._idle = np.clip(0, *bounds.T).astype(self._dtype).reshape(self.actions.row)
        logged = np.float32 if not self.actions.is_single else np.uint8 if self.actions.choices[0] <= 256 else np.int32
        self._log = np.zeros((0, env.num_envs, *self.actions.row), logged)  # (allocated, N) or (allocated, N, A)
        self._sent = 0  # vector steps so far; the rows of the log in use
        self._began = False

    def collect(self, steps: int, act: Act) -> dict[str, Any]:
        """Collect `steps` more transitions, with episodes in progress carried from call to call.

        A vector step brings up to N transitions, so a call may end with up to N - 1 too many; they count toward the
        next. Returns the transitions of this call, and of the games that ended in it (whatever was cut in between)
        their number, returns and mean return (None if there were none).
        """
        self._begin()
        self._target += steps
        before, returns = self.steps, []
        while self.steps < self._target:
            obs, first = torch.from_numpy(self._obs), torch.from_numpy(self._first.copy())
            action = self._checked(act(obs, first).cpu().numpy())
            action = np.where(self._wide(self._resets), self._idle, action)  # ignored by the environment
            returns += self._step(action, emit=True)
        return {
            "steps": self.steps - before,
            "episodes": len(returns),
            "returns": returns,
            "return_mean": float(np.mean(returns)) if returns else None,
        }

    def cut(self, at_least: int = 1, hold_out: bool = False) -> int:
        """End the episodes in progress that have `at_least` actions as truncated; returns how many.

        The games continue: their next observation is the first of a new episode. For the end of a collection, and to
        train on long games before they are over. hold_out: the last of two or more is of the test split.
        """
        self._begin()
        return self._cut(max(1, at_least), emit=True, hold_out=hold_out)

    @property
    def has_cut(self) -> bool:
        """Was `cut` called, in this process or before?"""
        return bool(self._cuts)

    def recent(self, length: int) -> Steps:
        """The last `length` rows of the episodes in progress, the current frame last: Steps (N, length).

        Shorter episodes are padded in front by their first frame; `first` is true where they really begin.
        """
        self._begin()
        N = self.env.num_envs
        obs = np.stack([self._obs] * length, 1)  # (N, T, C, H, W)
        action = np.zeros((N, length, *self.actions.row), self._dtype)  # (N, T) or (N, T, A)
        first = np.zeros((N, length), bool)
        for i in range(N):
            known = min(length, len(self._transitions[i]) + 1)
            if self._transitions[i]:
                obs[i, -known:] = self._frames[i][-known:]
                obs[i, :-known] = self._frames[i][0]
                action[i, -known:-1] = [a for a, *_ in self._transitions[i]][len(self._transitions[i]) + 1 - known :]
            if known == len(self._transitions[i]) + 1:
                first[i, -known] = self._first[i] if known == 1 else True
        zero = torch.zeros(N, length)
        false = torch.zeros(N, length, dtype=torch.bool)
        return Steps(
            torch.from_numpy(obs), torch.from_numpy(action), zero, false, false, torch.from_numpy(first), false, ~false
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a fresh collector needs: an array of actions (M, N) or (M, N, A), an array of cuts (n, 2), and numbers."""
        return {
            "actions": self._log[: self._sent].copy(),
            "cuts": np.array(self._cuts, np.int64).reshape(-1, 2),
            "began": int(self._began),
            "seed": self.seed,
            "steps": self.steps,
            "episodes": self.episodes,
            "target": self._target,
            "before": list(self._before),
            "checksum": self._checksum if self._began else 0,
        }

    def load_state_dict(self, state: dict[str, Any]) -> str | None:
        """Replay a state on a freshly built collector and environment; `on_episode` is not called.

        Where the games turn out to be others than those of the state, new games begin, with a seed of their own and the
        counts of the state. Returns a sentence that says so, else None.
        """
        if self._began:
            raise RuntimeError("a state can only be loaded into a collector that has not played yet")
        if state["seed"] != self.seed:
            raise UserError(f"the collector's seed is {self.seed}, its saved state has {state['seed']}: use that seed")
        difference = self._replay(state)
        if difference is None:
            return None
        self._start_over(state)
        return (
            f"the games in progress are dropped and new ones begin, because {difference}: the environment is not the same, or"
            " draws from a random generator that its seed does not set; all episodes that ended are kept"
        )

    def _replay(self, state: dict[str, Any]) -> str | None:
        """Send the actions of a state again; what came out otherwise, if anything."""
        actions, cuts = np.asarray(state["actions"]), np.asarray(state["cuts"])
        N, row = self.env.num_envs, self.actions.row
        if actions.ndim < 2 or actions.shape[1] != N:
            return f"the saved actions are of {actions.shape[min(1, actions.ndim - 1)]} games and there are {N} now"
        if actions.shape[2:] != row or (actions.dtype == np.float32) != bool(row):
            return f"the saved actions have shape {actions.shape[2:]} and those of the environment have {row} now"
        wrong = space_format.first_outside(self.actions, actions.reshape(-1, *row))  # (M N,) or (M N, A)
        if wrong is not None:
            return f"a saved action is {wrong} and actions are {space_format.limits(self.actions)} now"
        self._before = tuple(int(count) for count in state.get("before", (0, 0)))
        self.steps, self.episodes = self._before
        if not state["began"]:
            return None
        self._begin()
        waiting = [(int(at), int(least)) for at, least in cuts]
        for at in range(len(actions) + 1):
            while waiting and waiting[0][0] == at:
                self._cut(waiting.pop(0)[1], emit=False)
            if at < len(actions):
                self._step(actions[at].astype(self._dtype), emit=False)
        self._target = int(state["target"])
        if (self.steps, self.episodes) != (int(state["steps"]), int(state["episodes"])):
            return (
                f"replaying their actions gave {self.steps} steps and {self.episodes} episodes, the saved state has"
                f" {state['steps']} and {state['episodes']}"
            )
        if state.get("checksum", self._checksum) != self._checksum:
            return "replaying their actions gave other frames or rewards"
        return None

    def _start_over(self, state: dict[str, Any]) -> None:
        """Begin new games, with the counts of a state whose own games are lost."""
        self.steps, self.episodes, self._target = (int(state[name]) for name in ("steps", "episodes", "target"))
        self._before = (self.steps, self.episodes)
        self.seed = int(np.random.default_rng([abs(self.seed), self.steps]).integers(2**30))
        self._cuts = [(0, 1)] * bool(len(state["cuts"]))  # a cut of nothing: `has_cut` stays
        self._sent, self._began = 0, False
        self._begin()

    def _begin(self) -> None:
        if self._began:
            return
        self._began = True
        N = self.env.num_envs
        self._obs, _ = self.env.reset(seed=self.seed)
        self._first = np.ones(N, bool)  # the current observation begins an episode
        self._resets = np.zeros(N, bool)  # the next step of this row resets
        self._returns = np.zeros(N)  # of the games in progress, whatever was cut
        self._frames = [[frame.copy()] for frame in self._obs]
        self._transitions: list[list[tuple]] = [[] for _ in range(N)]
        self._longest = Content(self._obs.shape[1:], self.actions, str(self._obs.dtype)).longest
        self._checksum = zlib.crc32(np.ascontiguousarray(self._obs))

    def _step(self, action: np.ndarray, emit: bool) -> list[float]:
        """One vector step; returns the returns of the games that ended."""
        self._append_to_log(action)
        obs, reward, terminated, truncated, _ = self.env.step(action)
        ended: list[float] = []
        resets = self._resets
        self._obs, self._first = obs, resets.copy()
        for came in (obs, np.asarray(reward, np.float32), terminated, truncated):
            self._checksum = zlib.crc32(np.ascontiguousarray(came), self._checksum)
        self._resets = (terminated | truncated) & ~resets
        columns = (column.tolist() for column in (resets, reward, terminated, truncated))
        for i, (reset, r, term, trunc, a) in enumerate(zip(*columns, action, strict=True)):
            if reset:
                self._frames[i], self._transitions[i] = [obs[i].copy()], []
                self._returns[i] = 0.0
                continue
            self._frames[i].append(obs[i].copy())
            self._transitions[i].append((a, r, term, trunc))
            self._returns[i] += r
            self.steps += 1
            if term or trunc:
                ended.append(float(self._returns[i]))
                self._finish(i, emit)
            elif len(self._transitions[i]) == self._longest:
                self._truncate(i, emit)
        return ended

    def _cut(self, at_least: int, emit: bool, hold_out: bool = False) -> int:
        self._cuts.append((self._sent, at_least))
        games = [i for i in range(self.env.num_envs) if len(self._transitions[i]) >= at_least]
        for i in games:
            self._truncate(i, emit, "test" if hold_out and len(games) > 1 and i == games[-1] else None)
        return len(games)

    def _truncate(self, i: int, emit: bool, split: str | None = None) -> None:
        """End the episode of a game that continues."""
        a, r, _, _ = self._transitions[i][-1]
        self._transitions[i][-1] = (a, r, False, True)
        self._finish(i, emit, split)
        self._frames[i], self._first[i] = [self._obs[i].copy()], True

    def _finish(self, i: int, emit: bool, split: str | None = None) -> None:
        frames, transitions = self._frames[i], self._transitions[i]
        self._frames[i], self._transitions[i] = [], []
        self.episodes += 1
        if not emit:
            return
        action, reward, terminated, truncated = zip(*transitions, strict=True)
        self.on_episode(
            Episode(
                obs=np.stack(frames),
                action=np.array(action, self._dtype),
                reward=np.array(reward, np.float32),
                terminated=np.array(terminated, bool),
                truncated=np.array(truncated, bool),
                split=split or self.split,
                seed=self.seed,
            )
        )

    def _checked(self, action: np.ndarray) -> np.ndarray:
        """What a policy returned, as actions (N,) or (N, A). Raises UserError where it is no number."""
        shape = (self.env.num_envs, *self.actions.row)
        if action.shape != shape:
            raise ValueError(f"act must return actions of shape {shape}, got {action.shape}")
        if not np.isfinite(action).all():
            game = int(np.argwhere(~np.isfinite(action))[0, 0])
            raise UserError(f"the policy's action in game {game} is {action[game].tolist()}, expected numbers in"
                            f" {space_format.limits(self.actions)}: its training diverged, train again with a smaller lr or"
                            " restore an earlier copy")  # fmt: skip
        return action if self.actions.is_single else action.astype(np.float32)

    def _wide(self, rows: np.ndarray) -> np.ndarray:
        """(N,), to go with actions."""
        return rows.reshape(-1, *[1] * len(self.actions.row))

    def _append_to_log(self, action: np.ndarray) -> None:
        wrong = space_format.first_outside(self.actions, action)
        if wrong is not None:
            raise ValueError(f"act must return actions in {space_format.limits(self.actions)}, got {wrong}")
        if self._sent == len(self._log):
            longer = np.zeros((max(1024, 2 * self._sent), *self._log.shape[1:]), self._log.dtype)
            longer[: self._sent] = self._log
            self._log = longer
        self._log[self._sent] = action
        self._sent += 1


def play_episode(env: VectorEnv, act: Act, *, seed: int) -> Steps:
    """The first whole episode that ends in `env`, of n actions: Steps (1, n+1), the last of which has no action."""
    memory = Replay()
    collector = Collector(env, seed=seed, on_episode=lambda episode: memory.episodes or memory.add(episode))
    while not memory.episodes:
        collector.collect(1, act)
    return memory.gather(np.arange(memory.rows)[None])
