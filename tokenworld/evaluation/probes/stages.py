"""What an evaluation says while it works: a line for each probe with its time and the budget left, on a terminal also a bar."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

from tokenworld.log import Log, clock

Tick = Callable[[], None]  # called after each part of a probe


def unseen() -> None:
    """The `Tick` of a probe that nobody watches."""


class Stages:
    """The probes of an evaluation, one after the other, and the time that it has.

    log: says the lines; None: no line is logged. budget: seconds of the whole evaluation. least: a probe that took fewer
    seconds gets no line.
    """

    def __init__(self, log: Log | None = None, budget: float = math.inf, *, least: float = 0.0):
        self.log, self.budget, self.least = log or Log(None, silent=True), budget, least
        self.end = time.monotonic() + budget
        self.tier = "A"

    @property
    def left(self) -> float:
        """Seconds of the budget, below zero where it is overdrawn."""
        return self.end - time.monotonic()

    @contextlib.contextmanager
    def probe(self, name: str, total: int = 1, unit: str = "") -> Iterator[Tick]:
        """A probe of `total` parts. The line names how many were done, if there is a word for them."""
        began, label = time.monotonic(), f"tier {self.tier}, {name}"
        with self.log.progress(total, label, closing=False) as bar:
            yield bar.update
        seconds = time.monotonic() - began
        if seconds >= self.least:
            parts = f": {bar.done} of {total} {unit}" if unit else ""
            self.log.say(f"{label}{parts} in {clock(seconds)}{self._left()}")

    def kept(self) -> None:
        """Say that an interrupted evaluation had measured this tier."""
        self.log.say(f"tier {self.tier}: measured before, by the evaluation that was interrupted{self._left()}")

    def _left(self) -> str:
        if not math.isfinite(self.budget):
            return ""
        return f"; {clock(self.left)} of the budget left" if self.left > 0 else "; the budget is used up"
