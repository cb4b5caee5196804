"""An interactive imagined episode: step, rewind, branch, and the real game for comparison. Independent of the web server."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenworld.errors import UserError
from tokenworld.play.future import Action, DreamSettings, Future, Moment
from tokenworld.play.starts import RealGame
from tokenworld.viz.frames import save_gif, side_by_side, to_rgb

LONGEST = 5000  # maximum steps of one dream
HOTTEST = 5.0  # maximum temperature


@dataclass(frozen=True)
class Branch:
    """The step at which the second future leaves the first."""

    t: int
    action: int
    repeats: int  # up to this time it repeats the later actions of the first future; then both get the same keys


class Session:
    """The dream of one person. `t` is the displayed time. A step continues from there and deletes the later moments."""

    def __init__(self, dream: DreamSettings, start: int = 0, seed: int = 0):
        self.dream = dream
        self.begin(start, seed)

    def begin(self, start: int, seed: int = 0) -> None:
        """Begin a new dream. Raises UserError for a start that is not in the gallery."""
        _check_number("start", start, 0, len(self.dream.starts) - 1)
        _check_number("seed", seed, 0, 2**31)
        self.start, self.seed, self.t = start, seed, 0
        self.first = Future.begin(self.dream, self.dream.starts[start], seed)
        self.second: Future | None = None
        self.parting: Branch | None = None
        game = self.dream.starts[start].game
        self.real: list[tuple[RealGame, float]] = [] if game is None else [(game, 0.0)]  # of the first future
        self.log: list[tuple[int | str, float]] = []  # the request of each step: action (or "policy", "planner"), temperature

    @property
    def length(self) -> int:
        """Return the last time step of the longest future."""
        return max(len(f.moments) for f in self._futures()) - 1

    def step(self, action: int | str, temperature: float | None = None) -> None:
        """Step all futures. action: a number, or "policy" or "planner", which then chooses in each future separately; a row
        where a script repeats what one of these chose.

        Raises UserError for an invalid action or temperature, and at the end of all futures.
        """
        temperature = self._temperature(temperature)
        if action in ("policy", "planner"):
            if getattr(self.dream, action) is None:
                raise UserError(f"this run has no trained {action} to choose actions: choose the actions yourself")
        else:
            action = self._checked(action)
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
        """Display time t, earlier or later. No moment is deleted until the next step."""
        _check_number("t", t, 0, self.length)
        self.t = t

    def branch(self, t: int, action: int) -> None:
        """Add a second future with `action` at time t and then the actions of the first; same random draws in both."""
        self._check_action(action)
        if len(self.first.moments) < 2:
            raise UserError("a branch needs a step to leave from, and this dream has no step yet: take one first")
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
        """Drop the first future and continue with the second. The real game then follows its actions."""
        if self.second is None:
            raise UserError("this dream has no second future to keep: branch first")
        parting, self.first = self.parting, self.second
        self.second = self.parting = None
        self._log_of_first()
        del self.real[parting.t + 1 :]
        for moment in self.first.moments[parting.t + 1 :]:
            self._real_step(moment.action)
        self.t = min(self.t, self.length)

    def script(self) -> dict[str, Any]:
        """Return the requests that made this dream. `restore` makes the same dream from them."""
        parting = None if self.parting is None else [self.parting.t, self.parting.action, self.parting.repeats]
        return {
            "start": self.start,
            "seed": self.seed,
            "log": [list(entry) for entry in self.log],
            "branch": parting,
            "t": self.t,
        }

    def restore(self, script: dict[str, Any]) -> None:
        """Make the dream of a script. Raises UserError for an invalid script."""
        try:
            log = [(action, temperature) for action, temperature in script["log"]]
            start, seed, t, branch = script["start"], script["seed"], script["t"], script["branch"]
            at, action, repeats = branch or (None, None, None)
        except (KeyError, TypeError, ValueError):
            raise UserError("the script is not one of a dream: begin a new dream") from None
        if len(log) > LONGEST:
            raise UserError(f"a dream has at most {LONGEST:,} steps, this script has {len(log):,}: begin a new dream")
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

    # --- the view of the page ---

    def view(self, whole: bool = True) -> tuple[dict[str, Any], list[np.ndarray]]:
        """Return the numbers of time t and its pictures `(H, W, 3)` uint8: dream, branch and real, as far as they exist.

        whole: add the numbers of all steps, for a page that does not have them.
        """
        names, pictures = ["dream"], [self.first.at(self.t).frame]
        view: dict[str, Any] = {"t": self.t, "length": self.length, "start": self.start, "seed": self.seed}
        view["dream"] = self._pane(self.first)
        if self.second is not None:
            names.append("branch")
            pictures.append(self.second.at(self.t).frame)
            view["branch"] = self._pane(self.second) | {"at": self.parting.t, "action": self.parting.action}
        if self.real:
            i = min(self.t, len(self.real) - 1)
            names.append("real")
            pictures.append(self.real[i][0].frame)
            returned = sum(reward for _, reward in self.real[: i + 1])
            view["real"] = {"reward": self.real[i][1], "return": returned, "ended": self.real[i][0].ended, "t": i}
        view["panes"] = names
        view["script"] = self.script() if whole else {"last": list(self.log[-1])}
        if whole:
            view["timeline"] = {name: _timeline(f) for name, f in zip(("dream", "branch"), self._futures(), strict=False)}
        return view, [to_rgb(picture, scale=1, limits=self.dream.limits) for picture in pictures]

    def _pane(self, future: Future) -> dict[str, Any]:
        moment, i = future.at(self.t), min(self.t, len(future.moments) - 1)
        return {
            "t": i,
            **self._action(moment.action),
            "by": moment.by,
            "reward": round(moment.reward, 4),
            "return": round(sum(m.reward for m in future.moments[: i + 1]), 4),
            "p_end": round(moment.p_end, 4),
            "ended": moment.ended,
            "bits": _bits(moment),
            "surprise": None if moment.surprise is None else moment.surprise.round(3).tolist(),
        }

    def _action(self, action: Action | None) -> dict[str, Any]:
        """Return the number of an action, and the name of one that is not in the menu."""
        if action is None or isinstance(action, int):
            return {"action": action}
        return {"action": None, "name": self.dream.name_of(action)}

    # --- saving ---

    def gif(self, fps: float = 10) -> bytes:
        """Return a gif of all futures and the real game side by side, from start to end."""
        columns = [[f.at(t).frame for t in range(self.length + 1)] for f in self._futures()]
        if self.real:
            columns.append([self.real[min(t, len(self.real) - 1)][0].frame for t in range(self.length + 1)])
        video = side_by_side([to_rgb(np.stack(column), limits=self.dream.limits) for column in columns])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "dream.gif"
            save_gif(path, video, fps)
            return path.read_bytes()

    def npz(self) -> bytes:
        """Return the dream as an npz file without pickles.

        The first future has the array names of an episode. The second future is branch_*; the real game, up to its end, is
        real_*.
        """
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
        """Delete the moments after the displayed time, and a second future that leaves the first later than that."""
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
        """Step the real game, if there is one that has not ended."""
        if self.real and not self.real[-1][0].ended:
            self.real.append(self.real[-1][0].step(action))

    def _temperature(self, temperature: Any) -> float:
        default = self.dream.temperature
        if temperature is None:
            return 1.0 if default is None else default
        number = isinstance(temperature, int | float) and not isinstance(temperature, bool)
        if not number or not 0 <= temperature <= HOTTEST:
            raise UserError(f"temperature must be a number from 0 to {HOTTEST:g}, got {temperature!r}: choose e.g. 1.0")
        return float(temperature)

    def _checked(self, action: Any) -> Action:
        space = self.dream.world_model.shapes.actions
        if isinstance(action, list | tuple) and not space.is_single:
            is_row = len(action) == space.size and all(isinstance(x, int | float) for x in action)
            if not (is_row and space.contains(torch.tensor(action, dtype=space.dtype))):
                raise UserError(f"action must be a number of a button or a row within {space.describe()}: begin a new dream")
            return tuple(map(float, action))
        self._check_action(action)
        return action

    def _check_action(self, action: Any) -> None:
        _check_number("action", action, 0, len(self.dream.actions) - 1)


def _check_number(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UserError(f"{name} must be a whole number from {low} to {high}, got {value!r}: choose one of these")


def _bits(moment: Moment) -> float | None:
    """Return the surprise of the whole frame in bits."""
    return None if moment.surprise is None else round(float(moment.surprise.sum()), 3)


def _timeline(future: Future) -> dict[str, list]:
    steps = future.moments[1:]
    return {
        "bits": [_bits(m) for m in steps],
        "reward": [round(m.reward, 4) for m in steps],
        "p_end": [round(m.p_end, 4) for m in steps],
    }


def _rows(future: Future) -> np.ndarray:
    """Return the actions of a future, `(T,)` int64 or `(T, A)` float32."""
    empty = future.dream.world_model.shapes.actions.zero(0).numpy()
    rows = [future.row(moment.action).numpy() for moment in future.moments[1:]]
    return np.stack(rows) if rows else empty


def _arrays(future: Future) -> dict[str, np.ndarray]:
    moments, steps = future.moments, future.moments[1:]
    arrays = {
        "obs": np.stack([m.frame for m in moments]),
        "codes": np.stack([(m.codes.vectors if m.codes.indices is None else m.codes.indices).numpy() for m in moments]),
        "action": _rows(future),
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
