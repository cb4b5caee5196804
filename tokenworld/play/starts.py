"""Where a dream can begin: moments of the run's recorded episodes, with the real game at that moment where it can be had.

A recorded episode is frames; to go on with the real game, the game itself is needed. MinAtar's games are repeatable, and a
checkpoint holds every action that was sent to them: the games are played once more, and copied where a dream may begin.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokenworld.envs.minatar import MinAtarVector, to_bytes
from tokenworld.errors import UserError
from tokenworld.interfaces import Steps
from tokenworld.training.run import Run

MOMENTS = 48  # of which the page offers the best
PROBES = 8  # moments looked at for each that is wanted: most end too soon, some are ends of games
IDLE_STEPS = 10  # a person who has pressed one key has this many steps to find the others


@dataclass(frozen=True)
class Start:
    """A moment to begin at: what the world model reads, and the real game if it can go on from here."""

    name: str
    steps: Steps  # (1, T), the last frame is the one to begin with
    game: RealGame | None = None
    seeds: tuple[int, ...] = ()  # with these no dream ends within IDLE_STEPS after one key; empty: not tried, or none


@dataclass(frozen=True)
class RealGame:
    """A MinAtar game at one moment, its random state included. A value: `step` leaves it as it is."""

    game: Any
    actions: tuple[int, ...]  # the package's number of each action
    ended: bool = False

    @property
    def frame(self) -> np.ndarray:
        """(C, H, W) uint8, as the world model's training frames."""
        return to_bytes(self.game.state())

    def step(self, action: int) -> tuple[RealGame, float]:
        """The game one step later, and the reward. Where it has ended it stays as it is."""
        if self.ended:
            return self, 0.0
        game = copy.deepcopy(self.game)
        reward, ended = game.act(self.actions[action])
        return RealGame(game, self.actions, bool(ended)), float(reward)

    def lasts(self, first: int, idle: int) -> int:
        """The steps, at most IDLE_STEPS, that do not end the game when `first` is followed by `idle` only."""
        game = copy.deepcopy(self.game)
        for t in range(IDLE_STEPS):
            if game.act(self.actions[idle if t else first])[1]:
                return t
        return IDLE_STEPS


def idle_action(actions: list[str]) -> int:
    """The action while no key is pressed: NOOP where there is one, else the first."""
    names = [name.upper() for name in actions]
    return names.index("NOOP") if "NOOP" in names else 0


def moments(run: Run, collected: dict | None, idle: int, count: int = MOMENTS) -> list[Start]:
    """Up to `count` recorded moments in random order, no frame twice. collected: the saved state of the run's collector.

    With the real game if that can be played again; those come first that last longest when one action is followed by the
    action `idle` only. From the frames alone if not. Raises UserError if there is no episode.
    """
    if not run.replay.rows and not run.held_out.rows:
        raise UserError(f"{run.out} has no episodes to begin a dream from: add data=DIR, a folder that `collect` wrote")
    found = _replayed(run, collected, idle, PROBES * count) or [(0, start) for start in _recorded(run, 2 * count)]
    order = np.random.default_rng(0).permutation(len(found)).tolist()
    starts: dict[bytes, Start] = {}  # by the frame
    for i in sorted(order, key=lambda i: -found[i][0]):
        starts.setdefault(found[i][1].steps.obs[0, -1].numpy().tobytes(), found[i][1])
    return list(starts.values())[:count]


def _recorded(run: Run, count: int) -> list[Start]:
    """From frames; of held-out episodes if there are any."""
    held_out = run.held_out.rows > 0
    replay = run.held_out if held_out else run.replay
    acted = np.flatnonzero(replay.gather(np.arange(replay.rows)[None], frames=False).acted[0].numpy())
    starts = []
    for row in _spread(acted, count).tolist():
        rows = np.arange(row - run.world_model.backbone.context + 1, row + 1)[None]  # (1, T)
        steps = replay.gather(rows[:, rows[0] >= 0])
        starts.append(Start(f"{'held-out' if held_out else 'recorded'} frame {row:,}", _this_episode(steps)))
    return starts


def _this_episode(steps: Steps) -> Steps:
    """Without what lies before the first frame of the episode that the last frame (1, T) is in."""
    begins = np.flatnonzero(steps.first[0].numpy())
    return steps[:, begins[-1] :] if len(begins) else steps


def _replayed(run: Run, collected: dict | None, idle: int, count: int) -> list[tuple[int, Start]]:
    """Every action that was sent, sent again: up to `count` starts, each with the steps that its game lasts.

    Empty where that is impossible, or did not give what was recorded.
    """
    if collected is None:
        return []
    log = np.asarray(collected["actions"]).astype(np.int64)  # (M, N)
    env = run.make_env(log.shape[1] if log.ndim == 2 and log.shape[1] else 1).unwrapped
    if not isinstance(env, MinAtarVector) or not len(log):
        env.close()
        return []
    M, N = log.shape
    wanted: dict[int, list[int]] = {}  # step: games
    for row in _spread(np.arange(M * N), count).tolist():
        wanted.setdefault(row // N, []).append(row % N)
    kept = {row.tobytes() for replay in (run.replay, run.held_out) for row in _frames(replay)}
    T, obs = run.world_model.backbone.context, env.reset(seed=collected["seed"])[0]
    first = np.ones(N, bool)
    past: list[tuple] = []  # (obs, action, first) of the last T vector steps
    found: list[tuple[int, int, int, Start]] = []  # t, i, the steps that it lasts, start
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
            found.append((t, i, lasts, Start(f"after {t * N + i:,} steps", steps, game)))
        first = env._ended.copy()  # the step that comes next begins an episode
        obs = env.step(log[t])[0]
        first |= episodes.follow(t, env._ended)
    return [(lasts, start) for t, i, lasts, start in found if t < episodes.until[i]]


class _Episodes:
    """Which steps of N games are in a recorded episode. cuts: the collector's, of (vector steps before it, at_least)."""

    def __init__(self, N: int, cuts: np.ndarray) -> None:
        self.cuts = [(int(at), int(at_least)) for at, at_least in cuts]
        self.until = np.zeros(N, np.int64)  # the steps of each game before this one are in an episode, as far as is known
        self.begin = np.zeros(N, np.int64)  # the first step of the episode in progress

    def follow(self, t: int, ended: np.ndarray) -> np.ndarray:
        """After step t, in which the games `ended` (N,) bool did: the games (N,) bool that were cut."""
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
    """(frame, action, first) of T consecutive steps -> Steps (1, T); nobody has acted on the last."""
    T = len(rows)
    obs = torch.from_numpy(np.stack([row[0] for row in rows]))[None]
    action = torch.tensor([[int(row[1]) for row in rows]])
    action[0, -1] = 0
    first = torch.tensor([[bool(row[2]) for row in rows]])
    acted = torch.ones(1, T, dtype=torch.bool)
    acted[0, -1] = False
    no = torch.zeros(1, T, dtype=torch.bool)
    return Steps(obs, action, torch.zeros(1, T), no, no, first, acted, ~no)


def _spread(values: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of the values, evenly."""
    if not len(values):
        return values
    return values[np.unique(np.linspace(0, len(values) - 1, min(count, len(values))).round().astype(int))]
