"""Collect start states of dreams: recorded moments of the run, with the real game at that moment if available.

A recorded episode holds frames only; to continue the real game, the game itself is needed. MinAtar is deterministic given its
seed, and a checkpoint holds every action sent to it. So the games are played again and copied at each start state.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokenworld.action_space import Actions
from tokenworld.envs.minatar import MinAtarVector, to_bytes
from tokenworld.errors import UserError
from tokenworld.interfaces import Steps
from tokenworld.training.run import Run

MOMENTS = 48  # candidates; the page shows the best of them
PROBES = 8  # moments to test per wanted moment: most end too soon, some are the end of a game
IDLE_STEPS = 10  # steps to find the other keys after the first key


@dataclass(frozen=True)
class Start:
    """A start state: the input of the world model, and the real game if it can continue from here."""

    name: str
    steps: Steps  # (1, T); the dream begins at the last frame
    game: RealGame | None = None
    seeds: tuple[int, ...] = ()  # seeds whose dream lasts IDLE_STEPS after one key; empty: not tested, or none


@dataclass(frozen=True)
class RealGame:
    """A MinAtar game at one moment, with its random state. Immutable: `step` returns a new one."""

    game: Any
    actions: tuple[int, ...]  # action numbers of the MinAtar package
    ended: bool = False

    @property
    def frame(self) -> np.ndarray:
        """Return the frame `(C, H, W)` uint8 in the format of the training frames."""
        return to_bytes(self.game.state())

    def step(self, action: int) -> tuple[RealGame, float]:
        """Return the game after one step, and the reward. An ended game stays unchanged."""
        if self.ended:
            return self, 0.0
        game = copy.deepcopy(self.game)
        reward, ended = game.act(self.actions[action])
        return RealGame(game, self.actions, bool(ended)), float(reward)

    def lasts(self, first: int, idle: int) -> int:
        """Count the steps before the end of the game, at most IDLE_STEPS, with action `first` and then `idle`."""
        game = copy.deepcopy(self.game)
        for t in range(IDLE_STEPS):
            if game.act(self.actions[idle if t else first])[1]:
                return t
        return IDLE_STEPS


def idle_action(actions: list[str], space: Actions | None = None) -> int:
    """Return the action for steps without a pressed key: NOOP if it exists, else the first action. Of continuous actions it is
    the row of the menu that is nearest to the middle."""
    if space is not None and space.bounds:
        discrete, continuous = space.split(space.menu())
        return int((space.scale(continuous).square().sum(-1) + discrete.sum(-1)).argmin())
    names = [name.upper() for name in actions]
    return names.index("NOOP") if "NOOP" in names else 0


def moments(run: Run, collected: dict | None, idle: int, count: int = MOMENTS) -> list[Start]:
    """Return up to `count` recorded moments, each frame once.

    If the real game can be played again, the moments have it. They are sorted by the number of steps that the game lasts with
    one action followed by `idle`, longest first, ties in random order. Otherwise they have frames only, in random order.

    Args:
        collected: the saved state of the collector of the run.

    Raises:
        UserError: the run has no episode.
    """
    if not run.replay.rows and not run.held_out.rows:
        raise UserError(f"{run.out} has no episodes to begin a dream from: add data=DIR, a folder that `collect` wrote")
    candidates = _replay_starts(run, collected, idle, PROBES * count)
    candidates = candidates or [(0, start) for start in _recorded_starts(run, 2 * count)]
    order = np.random.default_rng(0).permutation(len(candidates)).tolist()
    starts: dict[bytes, Start] = {}  # by the frame
    for i in sorted(order, key=lambda i: -candidates[i][0]):
        starts.setdefault(candidates[i][1].steps.obs[0, -1].numpy().tobytes(), candidates[i][1])
    return list(starts.values())[:count]


def _recorded_starts(run: Run, count: int) -> list[Start]:
    """Return starts with frames only, from held-out episodes if there are any."""
    held_out = run.held_out.rows > 0
    replay = run.held_out if held_out else run.replay
    acted = np.flatnonzero(replay.gather(np.arange(replay.rows)[None], frames=False).acted[0].numpy())
    starts = []
    for row in _space_evenly(acted, count).tolist():
        rows = np.arange(row - run.world_model.backbone.context + 1, row + 1)[None]  # (1, T)
        steps = replay.gather(rows[:, rows[0] >= 0])
        starts.append(Start(f"{'held-out' if held_out else 'recorded'} frame {row:,}", _this_episode(steps)))
    return starts


def _this_episode(steps: Steps) -> Steps:
    """Drop the steps before the episode of the last frame. steps: `(1, T)`."""
    begins = np.flatnonzero(steps.first[0].numpy())
    return steps[:, begins[-1] :] if len(begins) else steps


def _replay_starts(run: Run, collected: dict | None, idle: int, count: int) -> list[tuple[int, Start]]:
    """Play the recorded actions again and return up to `count` starts, each with the steps that its game lasts.

    Empty if the game cannot be played again, or if its frames differ from the recorded ones.
    """
    if collected is None:
        return []
    log = np.asarray(collected["actions"])  # (M, N), or (M, N, A)
    if log.ndim != 2:
        return []
    log, env = log.astype(np.int64), run.make_env(log.shape[1] or 1).unwrapped
    if not isinstance(env, MinAtarVector) or not len(log):
        env.close()
        return []
    M, N = log.shape
    wanted: dict[int, list[int]] = {}  # step: games
    for row in _space_evenly(np.arange(M * N), count).tolist():
        wanted.setdefault(row // N, []).append(row % N)
    kept = {row.tobytes() for replay in (run.replay, run.held_out) for row in _frames(replay)}
    T, obs = run.world_model.backbone.context, env.reset(seed=collected["seed"])[0]
    first = np.ones(N, bool)
    past: list[tuple] = []  # (obs, action, first) of the last T vector steps
    replayed: list[tuple[int, int, int, Start]] = []  # t, i, the steps that the game lasts, start
    episodes = _Episodes(N, collected["cuts"])
    for t in range(M):
        past.append((obs, log[t], first))
        past = past[-T:]
        for i in wanted.get(t, []):
            if env._ended[i] or obs[i].tobytes() not in kept:
                continue
            steps = _this_episode(_steps([(o[i], a[i], f[i]) for o, a, f in past]))
            game = RealGame(copy.deepcopy(env.games[i]), tuple(env.actions))
            lasts = min(game.lasts(first_action, idle) for first_action in range(len(game.actions)))
            replayed.append((t, i, lasts, Start(f"after {t * N + i:,} steps", steps, game)))
        first = env._ended.copy()  # the next step begins an episode
        obs = env.step(log[t])[0]
        first |= episodes.follow(t, env._ended)
    return [(lasts, start) for t, i, lasts, start in replayed if t < episodes.until[i]]


class _Episodes:
    """Track which steps of N games are in a recorded episode. cuts: of the collector, (vector steps before it, at_least)."""

    def __init__(self, N: int, cuts: np.ndarray) -> None:
        self.cuts = [(int(at), int(at_least)) for at, at_least in cuts]
        self.until = np.zeros(N, np.int64)  # per game: all earlier steps are in an episode, as far as known
        self.begin = np.zeros(N, np.int64)  # the first step of the episode in progress

    def follow(self, t: int, ended: np.ndarray) -> np.ndarray:
        """Process step t. ended: `(N,)` bool, the games that ended in it. Returns the games that were cut, `(N,)` bool."""
        self.until[ended], self.begin[ended] = t + 1, t + 2  # the step after an end is a reset
        was_cut = np.zeros(len(ended), bool)
        for at, at_least in self.cuts:
            if at == t + 1:
                was_cut |= at - self.begin >= at_least
                self.until[was_cut] = self.begin[was_cut] = at
        return was_cut


def _frames(replay) -> np.ndarray:
    return replay.frames(np.arange(replay.rows)).numpy() if replay.rows else np.zeros((0, 1), np.uint8)


def _steps(rows: list[tuple[np.ndarray, int, bool]]) -> Steps:
    """Convert T consecutive (frame, action, first) to Steps `(1, T)`. The last step has no action yet."""
    T = len(rows)
    obs = torch.from_numpy(np.stack([row[0] for row in rows]))[None]
    action = torch.tensor([[int(row[1]) for row in rows]])
    action[0, -1] = 0
    first = torch.tensor([[bool(row[2]) for row in rows]])
    acted = torch.ones(1, T, dtype=torch.bool)
    acted[0, -1] = False
    no = torch.zeros(1, T, dtype=torch.bool)
    return Steps(obs, action, torch.zeros(1, T), no, no, first, acted, ~no)


def _space_evenly(values: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` of the values, evenly spaced."""
    if not len(values):
        return values
    return values[np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int))]
