"""A dream that somebody is in: steps, rewinding, a second future beside the first, the real game beside both. No web here."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenworld.errors import UserError
from tokenworld.play.future import Dream, Future, Moment
from tokenworld.play.starts import RealGame
from tokenworld.viz.frames import save_gif, side_by_side, to_rgb

LONGEST = 5000  # steps of one dream
HOTTEST = 5.0  # temperature


@dataclass(frozen=True)
class Branch:
    """Where the second future leaves the first."""

    t: int
    action: int
    repeats: int  # up to this time it repeats the first future's later actions; from then on both get the same keys


class Session:
    """One person's dream. `t` is the time that is looked at; a step goes on from there and forgets what came after."""

    def __init__(self, dream: Dream, start: int = 0, seed: int = 0):
        self.dream = dream
        self.begin(start, seed)

    def begin(self, start: int, seed: int = 0) -> None:
        """A new dream. Raises UserError for a start that the gallery does not have."""
        _check_number("start", start, 0, len(self.dream.starts) - 1)
        _check_number("seed", seed, 0, 2**31)
        self.start, self.seed, self.t = start, seed, 0
        self.first = Future.begin(self.dream, self.dream.starts[start], seed)
        self.second: Future | None = None
        self.parting: Branch | None = None
        game = self.dream.starts[start].game
        self.real: list[tuple[RealGame, float]] = [] if game is None else [(game, 0.0)]  # beside the first future
        self.log: list[tuple[int | str, float]] = []  # what each step was asked for: action (or who chooses), temperature

    @property
    def length(self) -> int:
        """The latest time there is."""
        return max(len(f.moments) for f in self._futures()) - 1

    def step(self, action: int | str, temperature: float | None = None) -> None:
        """One step of all futures; instead of an action, "policy" or "planner" chooses one, in each for itself.

        Raises UserError for an action or a temperature that cannot be, and at the end of all futures.
        """
        temperature = self._temperature(temperature)
        if action in ("policy", "planner"):
            if getattr(self.dream, action) is None:
                raise UserError(f"this run has no trained {action} to choose actions: choose them yourself")
        else:
            self._check_action(action)
        if all(f.at(self.t).ended and self.t >= len(f.moments) - 1 for f in self._futures()):
            raise UserError("the dream has ended here: rewind it, or begin another")
        if self.t >= LONGEST:
            raise UserError(f"a dream has at most {LONGEST:,} steps: save it, and begin another")
        self._cut()
        if not self.first.ended:
            self.first.step(action, temperature)
            self._real_step(self.first.moments[-1].action)
        if self.second is not None and not self.second.ended:
            self.second.step(action, temperature)
        self.log.append((action, temperature))
        self.t += 1

    def rewind(self, t: int) -> None:
        """Look at time t, from the past or back towards the end. Nothing is forgotten until the next step."""
        _check_number("t", t, 0, self.length)
        self.t = t

    def branch(self, t: int, action: int) -> None:
        """A second future in which `action` was taken at time t, and then what the first one did; same random draws in both."""
        self._check_action(action)
        if len(self.first.moments) < 2:
            raise UserError("a second future leaves the first at a step that was taken, and none was: take one first")
        _check_number("t", t, 0, len(self.first.moments) - 2)
        self.unbranch()
        later = self.first.moments[t + 1 :]
        second = self.first.until(t)
        second.step(action, later[0].temperature)
        for moment in later[1:]:
            if second.ended:
                break
            second.step(moment.action, moment.temperature)
        self.second, self.parting = second, Branch(t, action, len(self.first.moments) - 1)
        self.t = min(max(self.t, t + 1), self.length)

    def unbranch(self) -> None:
        """Drop the second future."""
        self.second = self.parting = None
        self._log_of_first()
        self.t = min(self.t, self.length)

    def adopt(self) -> None:
        """Drop the first future and go on with the second; the real game then follows its actions."""
        if self.second is None:
            raise UserError("there is no second future to keep: branch first")
        parting, self.first = self.parting, self.second
        self.second = self.parting = None
        self._log_of_first()
        del self.real[parting.t + 1 :]
        for moment in self.first.moments[parting.t + 1 :]:
            self._real_step(moment.action)
        self.t = min(self.t, self.length)

    def script(self) -> dict[str, Any]:
        """All that makes this dream: `restore` makes it again."""
        parting = None if self.parting is None else [self.parting.t, self.parting.action, self.parting.repeats]
        return {
            "start": self.start,
            "seed": self.seed,
            "log": [list(entry) for entry in self.log],
            "branch": parting,
            "t": self.t,
        }

    def restore(self, script: dict[str, Any]) -> None:
        """The dream of a script. Raises UserError for one that no dream here can have written."""
        try:
            log = [(action, temperature) for action, temperature in script["log"]]
            start, seed, t, branch = script["start"], script["seed"], script["t"], script["branch"]
            at, action, repeats = branch or (None, None, None)
        except (KeyError, TypeError, ValueError):
            raise UserError("this is no script of a dream: begin a new one") from None
        if len(log) > LONGEST:
            raise UserError(f"a dream has at most {LONGEST:,} steps, this script has {len(log):,}: begin a new one")
        if branch:
            _check_number("the last step of a branch", repeats, 1, len(log))
        self.begin(start, seed)
        for i, (taken, temperature) in enumerate(log):
            if branch and i == repeats:
                self.branch(at, action)
            self.t = self.length
            self.step(taken, temperature)
        if branch and repeats >= len(log):
            self.branch(at, action)
        self.rewind(t)

    # --- what is seen of it ---

    def view(self, whole: bool = True) -> tuple[dict[str, Any], list[np.ndarray]]:
        """What there is at time t: numbers, and pictures (H, W, 3) uint8: dream, branch and real, as far as they exist.

        whole: with the numbers of all steps, for a page that has not seen them.
        """
        names, pictures = ["dream"], [self.first.at(self.t).frame]
        told: dict[str, Any] = {"t": self.t, "length": self.length, "start": self.start, "seed": self.seed}
        told["dream"] = self._told(self.first)
        if self.second is not None:
            names.append("branch")
            pictures.append(self.second.at(self.t).frame)
            told["branch"] = self._told(self.second) | {"at": self.parting.t, "action": self.parting.action}
        if self.real:
            i = min(self.t, len(self.real) - 1)
            names.append("real")
            pictures.append(self.real[i][0].frame)
            returned = sum(reward for _, reward in self.real[: i + 1])
            told["real"] = {"reward": self.real[i][1], "return": returned, "ended": self.real[i][0].ended, "t": i}
        told["panes"] = names
        told["script"] = self.script() if whole else {"last": list(self.log[-1])}
        if whole:
            told["timeline"] = {name: _timeline(f) for name, f in zip(("dream", "branch"), self._futures(), strict=False)}
        return told, [to_rgb(picture, scale=1) for picture in pictures]

    def _told(self, future: Future) -> dict[str, Any]:
        moment, i = future.at(self.t), min(self.t, len(future.moments) - 1)
        return {
            "t": i,
            "action": moment.action,
            "by": moment.by,
            "reward": round(moment.reward, 4),
            "return": round(sum(m.reward for m in future.moments[: i + 1]), 4),
            "p_end": round(moment.p_end, 4),
            "ended": moment.ended,
            "bits": _bits(moment),
            "surprise": None if moment.surprise is None else moment.surprise.round(3).tolist(),
        }

    # --- saving ---

    def gif(self, fps: float = 10) -> bytes:
        """All futures and the real game side by side, from the start to the end."""
        columns = [[f.at(t).frame for t in range(self.length + 1)] for f in self._futures()]
        if self.real:
            columns.append([self.real[min(t, len(self.real) - 1)][0].frame for t in range(self.length + 1)])
        video = side_by_side([to_rgb(np.stack(column)) for column in columns])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "dream.gif"
            save_gif(path, video, fps)
            return path.read_bytes()

    def npz(self) -> bytes:
        """The first future of n actions as arrays, in the words of an episode; the second's as branch_*, the real game's, up to
        its own end, as real_*. Nothing in the file is pickled."""
        arrays = _arrays(self.first)
        if self.second is not None:
            arrays |= {f"branch_{name}": value for name, value in _arrays(self.second).items()}
            arrays["branch_at"] = np.array(self.parting.t)
        if self.real:
            arrays["real_obs"] = np.stack([game.frame for game, _ in self.real])
            arrays["real_reward"] = np.array([reward for _, reward in self.real[1:]], np.float32)
            arrays["real_terminated"] = np.array([game.ended for game, _ in self.real[1:]], bool)
        arrays |= {"seed": np.array(self.seed), "start": np.array(self.start)}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    # --- the rest ---

    def _futures(self) -> list[Future]:
        return [self.first] if self.second is None else [self.first, self.second]

    def _cut(self) -> None:
        """Forget what comes after the time that is looked at, and a second future that has not yet left the first."""
        for future in self._futures():
            future.cut(self.t)
        del self.real[self.t + 1 :], self.log[self.t :]
        if self.parting is not None and self.parting.t >= self.t:
            self.second = self.parting = None
        elif self.parting is not None:
            self.parting = Branch(self.parting.t, self.parting.action, min(self.parting.repeats, self.t))

    def _log_of_first(self) -> None:
        self.log = [(m.action if m.by is None else m.by, m.temperature) for m in self.first.moments[1:]]

    def _real_step(self, action: int) -> None:
        """The real game, if there is one, goes along until it ends."""
        if self.real and not self.real[-1][0].ended:
            self.real.append(self.real[-1][0].step(action))

    def _temperature(self, temperature: Any) -> float:
        own = self.dream.temperature
        if temperature is None:
            return 1.0 if own is None else own
        number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
        if not number or not 0 <= temperature <= HOTTEST:
            raise UserError(f"temperature must be a number from 0 to {HOTTEST:g}, got {temperature!r}: choose e.g. 1.0")
        return float(temperature)

    def _check_action(self, action: Any) -> None:
        _check_number("action", action, 0, len(self.dream.actions) - 1)


def _check_number(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f"{name} must be a whole number from {low} to {high}, got {value!r}: choose one of these")


def _bits(moment: Moment) -> float | None:
    """Of the whole frame."""
    return None if moment.surprise is None else round(float(moment.surprise.sum()), 3)


def _timeline(future: Future) -> dict[str, list]:
    steps = future.moments[1:]
    return {
        "bits": [_bits(m) for m in steps],
        "reward": [round(m.reward, 4) for m in steps],
        "p_end": [round(m.p_end, 4) for m in steps],
    }


def _arrays(future: Future) -> dict[str, np.ndarray]:
    moments, steps = future.moments, future.moments[1:]
    arrays = {
        "obs": np.stack([m.frame for m in moments]),
        "codes": np.stack([m.codes.numpy() for m in moments]),
        "action": np.array([m.action for m in steps], np.int64),
        "reward": np.array([m.reward for m in steps], np.float32),
        "terminated": np.array([m.ended for m in steps], bool),
        "p_end": np.array([m.p_end for m in steps], np.float32),
        "by_policy": np.array([m.by == "policy" for m in steps], bool),
        "by_planner": np.array([m.by == "planner" for m in steps], bool),
        "temperature": np.array([m.temperature for m in steps], np.float32),
    }
    if steps and steps[0].surprise is not None:
        arrays["surprise_bits"] = np.stack([m.surprise for m in steps]).astype(np.float32)
    return arrays
