"""Atari as a simulator that can be branched (see `interface.py`).

Pitfalls of cloning that this file handles:
- ALE's snapshots leave out the action that a sticky step repeats, so what ran before a restore leaks into what comes after.
  Here the emulator itself is never sticky and runs frame by frame; the repeated action is held, and drawn, in Python.
- `copy.deepcopy` of an `AtariEnv` is a fresh game. Emulators are never copied here: their state is.
- The screen is the old one after a restore, until a frame has run: every snapshot brings its observation along.
- Wrappers (frame stacks, lives, max-pooling, step limits) are outside a snapshot: there are none here. Frames are made by
  pure functions and equal those of `tokenworld.envs` bit for bit. There is no step limit, so no episode is truncated.

    C channels · H, W image · A actions
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from tokenworld.envs import atari
from tokenworld.errors import UserError
from tokenworld.evaluation.simulators.hashing import hash_of
from tokenworld.evaluation.simulators.interface import ENDED, Array, Branch, self_test


@dataclass(frozen=True)
class AtariState:
    emulator: Any  # ale_py.ALEState; nothing in the emulator is random
    obs: Array  # (C, H, W) uint8
    screen: Array  # (screen's H, W, C) uint8, what obs was shrunk from: a game that ends early shows it again
    held: int  # the action, in the emulator's numbers, that a sticky frame repeats
    lives: int
    ended: bool  # the episode
    random: dict[str, Any]  # of the generator that draws stickiness


class Atari:
    """One game of ale-py with the options and the frames of `tokenworld.envs.atari.make`; sticky branches are enumerated.

    A sticky emulator repeats, in each of the m = `frameskip` frames and with probability `sticky`, what it did in the frame
    before; once it has taken the new action, repeating is taking it. The new action begins after k frames with probability
    (1 - sticky) sticky^k for k < m, and not at all with sticky^m: at most m + 1 branches (Machado et al., 2018, section 5).

    Raises `UserError` for an id or a number that cannot be, for frames larger than the screen, and if cloning fails.
    """

    exact = True

    def __init__(
        self,
        *,
        id: str = "ALE/Breakout-v5",
        height: int = 64,
        width: int = 64,
        grayscale: bool = False,
        frameskip: int = 4,
        sticky: float = 0.0,
        noop_max: int = 30,
        life_loss_ends: bool = False,
        full_actions: bool = False,
        maxpool: bool = True,
    ) -> None:
        # It knows what is wrong with an option, better than this file would.
        atari.make(id=id, height=height, width=width, frameskip=frameskip, sticky=sticky, noop_max=noop_max).close()
        import ale_py
        import gymnasium

        self.ale = ale_py.ALEInterface()
        self.ale.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale.setFloat("repeat_action_probability", 0.0)
        self._rom = ale_py.roms.get_rom_path(gymnasium.spec(id).kwargs["game"])
        self.ale.loadROM(self._rom)
        H, W = self.ale.getScreenDims()
        if (height, width) != (H, W) and (height >= H or width >= W):
            raise UserError(
                f"env.height and env.width of a simulator must be below {H} and {W}, the size of the screen of {id}, "
                f"got {height} and {width}: choose e.g. 64 and 64"
            )
        self.height, self.width, self.grayscale, self.maxpool = height, width, grayscale, maxpool
        self.frameskip, self.sticky, self.noop_max, self.life_loss_ends = frameskip, sticky, noop_max, life_loss_ends
        meanings = self.ale.getLegalActionSet() if full_actions else self.ale.getMinimalActionSet()
        self.action_set = [int(action.value) for action in meanings]
        self.actions = len(self.action_set)
        self_test(self, id)
        self.reset(0)

    def reset(self, seed: int | None = None) -> Array:
        """The first obs of an episode; without a seed, and if only a life was lost, after a no-op in the same game."""
        if seed is not None:
            self._random = np.random.default_rng(seed)
            self.ale.loadROM(self._rom)
        elif self.life_loss_ends and self._ended and not self.ale.game_over():
            self._frames(0, self._frames_held())
            if not self.ale.game_over():
                self._ended = False
                return self._obs
        self.ale.reset_game()
        for _ in range(self._random.integers(self.noop_max) if self.noop_max > 0 else 0):  # as many as ale-py: 0..max-1
            self.ale.act(0)
            if self.ale.game_over():
                self.ale.reset_game()
        self._show(self._screen())
        self._held, self._lives, self._ended = 0, self.ale.lives(), False
        return self._obs

    def snapshot(self) -> AtariState:
        emulator, random = self.ale.cloneState(), self._random.bit_generator.state
        return AtariState(emulator, self._obs, self._shown, self._held, self._lives, self._ended, random)

    def restore(self, x: AtariState) -> Array:
        self.ale.restoreState(x.emulator)
        self._obs, self._shown, self._held, self._lives, self._ended = x.obs, x.screen, x.held, x.lives, x.ended
        self._random.bit_generator.state = x.random
        return x.obs

    def step(self, a: int) -> tuple[Array, float, bool]:
        number = self._number(a, self._ended)
        return self._frames(number, self._frames_held())

    def reseed(self, k: int) -> None:
        self._random = np.random.default_rng(k)

    def branches(self, x: AtariState, a: int) -> list[Branch]:
        """At most m + 1; those that nobody could tell apart by obs, reward and end are one."""
        here, number, m, s = self.snapshot(), self._number(a, x.ended), self.frameskip, self.sticky
        delays = [(1.0, 0)] if number == x.held or s == 0 else [((1 - s) * s**k, k) for k in range(m)] + [(s**m, m)]
        merged: dict[tuple[bytes, float, bool], Branch] = {}
        for p, k in delays:
            self.restore(x)
            obs, reward, terminated = self._frames(number, k)
            key = (obs.tobytes(), reward, terminated)
            merged[key] = (p + (merged[key][0] if key in merged else 0.0), obs, reward, terminated)
        self.restore(here)
        return list(merged.values())

    def state_hash(self) -> int:
        """Of the RAM, the screen (it shows what a few games keep in the video chip), the held action and the end."""
        state = [self.ale.getRAM(), self._shown, np.array([self._held if self.sticky > 0 else 0, self._lives, self._ended])]
        return hash_of(b"".join(part.tobytes() for part in state))

    def _number(self, a: int, ended: bool) -> int:
        if ended:
            raise ValueError(ENDED)
        if not 0 <= a < self.actions:  # the emulator would take some other action, or hang
            raise ValueError(f"action must be a number in 0..{self.actions - 1}, got {a}")
        return self.action_set[a]

    def _frames_held(self) -> int:
        """For how many frames the old action is repeated: always the same number of draws, for common random numbers."""
        taken = self._random.random(self.frameskip) >= self.sticky
        return int(taken.argmax()) if taken.any() else self.frameskip

    def _frames(self, number: int, k: int) -> tuple[Array, float, bool]:
        """k frames of the held action, then `number`, in all m frames or until the game is over."""
        m, reward, last = self.frameskip, 0.0, []
        for i in range(m):
            reward += self.ale.act(self._held if i < k else number)
            if self.ale.game_over():
                # The frame that ends a game is not shown: ale-py pools in place, and what was pooled before goes instead.
                last.append(self._shown)
                break
            if i >= m - 2:
                last.append(self._screen())
        self._show(np.maximum.reduce(last) if self.maxpool else last[-1])
        self._held = self._held if k == m else number
        lives = self.ale.lives()
        self._ended = bool(self.ale.game_over() or (self.life_loss_ends and lives < self._lives))
        self._lives = lives
        return self._obs, reward, self._ended

    def _screen(self) -> Array:
        return self.ale.getScreenGrayscale()[..., None] if self.grayscale else self.ale.getScreenRGB()  # (H, W, C)

    def _show(self, screen: Array) -> None:
        self._shown = screen
        self._obs = np.ascontiguousarray(shrink(screen, self.height, self.width).transpose(2, 0, 1))  # (C, H, W)


def shrink(image: Array, height: int, width: int) -> Array:
    """(H, W, C) uint8 -> (height, width, C) uint8, each pixel the mean of the area under it, as OpenCV's INTER_AREA has it.

    Bit for bit: float32, columns before rows, from left to right and from top to bottom, halves to even. ale-py brings its own
    OpenCV, and this saves the dependency. Neither side may grow.
    """
    H, W, C = image.shape
    if (H, W) == (height, width):
        return image
    if H % height == 0 and W % width == 0:  # whole blocks: integer sums
        total = image.reshape(height, H // height, width, W // width, C).sum((1, 3), dtype=np.int32)
        if (H, W) == (2 * height, 2 * width):
            return ((total + 2) >> 2).astype(np.uint8)
        return np.rint(total.astype(np.float32) * np.float32(height * width / (H * W))).astype(np.uint8)
    index, weight = _overlaps(W, width)
    columns = sum(image[:, i] * w[:, None] for i, w in zip(index, weight, strict=True))  # (H, width, C)
    index, weight = _overlaps(H, height)
    return np.rint(sum(columns[i] * w[:, None, None] for i, w in zip(index, weight, strict=True))).astype(np.uint8)


@lru_cache
def _overlaps(source: int, size: int) -> tuple[Array, Array]:
    """Which of `source` pixels each of `size` larger ones covers, and with what share of its area: (n, size) both, 0 = none."""
    scale = 1.0 / (size / source)
    rows: list[list[tuple[int, float]]] = []
    for start in np.arange(size) * scale:
        stop, area = start + scale, min(scale, source - start)
        first, last = int(np.ceil(start)), min(int(np.floor(stop)), source - 1)
        row = [(first - 1, (first - start) / area)] if first - start > 1e-3 else []  # slivers below a thousandth are left out
        row += [(i, 1.0 / area) for i in range(first, last)]
        row += [(last, min(stop - last, 1.0, area) / area)] if stop - last > 1e-3 else []
        rows.append(row)
    n = max(map(len, rows))
    padded = np.array([row + [(0, 0.0)] * (n - len(row)) for row in rows])  # (size, n, 2)
    return padded[..., 0].T.astype(np.int64), padded[..., 1].T.astype(np.float32)


def of_env(*, max_steps: int | None = None, **settings: Any) -> Atari:
    """The simulator of an environment of `tokenworld.envs.atari.make`; a branch is too short to be truncated."""
    return Atari(**settings)
