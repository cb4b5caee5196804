"""What a run says: one JSON line per log step, progress for people, and the same numbers and pictures to optional sinks."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenworld import files
from tokenworld.errors import first_line

PLAIN_EVERY = 10.0  # seconds between the progress lines of a piped run


class Sink(Protocol):
    """Where the numbers and pictures of a run go besides its folder. Its keyword-only settings are those of an entry of
    `train.loop.sinks`; code passes what it takes of `folder` (the run's), `config` (the recipe) and `step` (where the run
    resumes)."""

    package: str | None  # what must be installed, imported when the sink is opened

    def log(self, numbers: dict[str, float], step: int) -> None: ...  # by name, `phase/key`; step: real steps so far
    def picture(self, name: str, path: Any, step: int) -> None: ...  # a png or gif that was written to `path`
    def close(self) -> None: ...  # nothing more comes


class Log:
    """Metrics of a run folder (`metrics.jsonl`) and messages for whoever watches.

    wall: seconds that earlier parts of a resumed run took. out_dir may be None: then no file is written. silent: no
    line is printed either. Sinks get the numbers over `steps`, the real environment steps so far, or over lines without play.
    """

    def __init__(self, out_dir: Path | str | None, *, wall: float = 0.0, silent: bool = False):
        self.path = None if out_dir is None else Path(out_dir) / "metrics.jsonl"
        self.lines = 0  # complete lines in metrics.jsonl: what a checkpoint stores and `truncate` takes
        self.silent = silent
        self._start = time.monotonic() - wall
        self._file = None
        self._bar: Any = None
        if self.path is not None:
            with files.writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.lines = _complete_lines(self.path)
                self._file = files.open_own(self.path, "a", encoding="utf-8")
        self.steps = 0
        self._sinks: list[Sink] = []

    def send_to(self, sinks: Sequence[Sink]) -> None:
        """Send what follows to these sinks, too."""
        self._sinks += sinks

    @property
    def wall(self) -> float:
        """Seconds since the run began, those before a resume included."""
        return time.monotonic() - self._start

    def metrics(self, phase: str, **numbers: Any) -> None:
        """Append one line. A number may be a 0-dim tensor; what is not finite becomes null (JSON has no NaN). Raises UserError
        where the disk refuses."""
        plain = {key: _plain(value) for key, value in numbers.items()}
        if self._file is not None:
            with files.writing(self.path):
                self._file.write(json.dumps({"phase": phase, "wall": round(self.wall, 3), **plain}) + "\n")
                self._file.flush()
        self.lines += 1
        shown = {f"{phase}/{key}": value for key, value in plain.items() if isinstance(value, (int, float))}
        self._send(lambda sink: sink.log(shown, self.steps or self.lines))

    def picture(self, name: str, path: Path) -> None:
        """Show the sinks a picture (png or gif) of the run folder."""
        self._send(lambda sink: sink.picture(name, path, self.steps or self.lines))

    def truncate(self, lines: int) -> None:
        """Cut metrics.jsonl to its first `lines` lines: what was logged after the checkpoint is logged again."""
        if self._file is None:
            return
        with files.writing(self.path):
            self._file.close()
            kept = self.path.read_bytes().splitlines(keepends=True)[:lines]
            files.truncate_own(self.path, sum(len(line) for line in kept if line.endswith(b"\n")))
            self.lines = _complete_lines(self.path)
            self._file = files.open_own(self.path, "a", encoding="utf-8")

    def say(self, text: str) -> None:
        """One line for people, on stderr, above a progress bar if there is one. A closed or full stderr is no error."""
        if self.silent:
            return
        with contextlib.suppress(OSError):
            if self._bar is not None:
                self._bar.write(text, file=sys.stderr)
            else:
                print(text, file=sys.stderr, flush=True)

    def progress(self, total: int, label: str, done: int = 0, *, closing: bool = True) -> Progress:
        """`for i in log.progress(100, "tokenizer"):`, or `with log.progress(...) as bar: bar.update(5, loss=0.1)`.
        closing: what took long ends with a line when piped."""
        return Progress(self, total, label, done, closing)

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # each line was flushed: what is left is a line that was refused
                self._file.close()
            self._file = None
        self._send(lambda sink: sink.close())
        self._sinks = []

    def _send(self, call: Callable[[Sink], None]) -> None:
        """Call every sink. One that fails, such as a server that is gone, is logged and left out from then on."""
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:
                self._sinks.remove(sink)
                self.say(f"the sink {type(sink).__name__} failed ({type(error).__name__}: {first_line(error)}) and is left out;"
                         " metrics.jsonl has all numbers")  # fmt: skip


class Progress:
    """A bar with ETA on a terminal; when piped, a plain line about every ten seconds, none for what took less."""

    def __init__(self, log: Log, total: int, label: str, done: int = 0, closing: bool = True):
        self.log, self.total, self.label, self.done, self.closing = log, total, label, done, closing
        self._before = done  # what a resumed run had done earlier says nothing about the speed of this one
        self._shown: dict[str, Any] = {}
        self._start = self._last = time.monotonic()
        self._bar: Any = None
        self._outer: Any = None  # bars nest: epochs around the updates of a phase

    def __enter__(self) -> Progress:
        self._start = self._last = time.monotonic()
        if sys.stderr.isatty() and not self.log.silent:
            from tqdm import tqdm

            self._outer = self.log._bar
            self._bar = self.log._bar = tqdm(total=self.total, initial=self.done, desc=self.label, file=sys.stderr,
                                             leave=False, dynamic_ncols=True)
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar, self.log._bar = None, self._outer
        elif self.closing and self.done > self._before and time.monotonic() - self._start >= PLAIN_EVERY:
            self.log.say(self._line())

    def __iter__(self) -> Iterator[int]:
        with self:
            for i in range(self.done, self.total):
                yield i
                self.update()

    def update(self, n: int = 1, **shown: Any) -> None:
        """n more are done; `shown` are numbers to print next to the bar (a tensor is only read when it is printed)."""
        self.done += n
        self._shown |= shown
        if self._bar is not None:
            self._bar.update(n)
            if shown and time.monotonic() - self._last > 1.0:
                self._last = time.monotonic()
                self._bar.set_postfix_str(self._numbers())
        elif time.monotonic() - self._last >= PLAIN_EVERY and self.done < self.total:
            self._last = time.monotonic()
            self.log.say(self._line())

    def _line(self) -> str:
        spent = time.monotonic() - self._start
        left = spent / max(1, self.done - self._before) * (self.total - self.done)
        time_left = f", {clock(left)} left" if self.done < self.total else ""
        return f"{self.label}: {self.done}/{self.total} in {clock(spent)}{time_left}  {self._numbers()}".rstrip()

    def _numbers(self) -> str:
        return " ".join(f"{key} {float(value):.4g}" for key, value in self._shown.items())


def clock(seconds: float) -> str:
    """Seconds as minutes and seconds, with hours where there are any: 1:23:45."""
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def _plain(value: Any) -> Any:
    """A Python number, text, list or null."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _complete_lines(path: Path) -> int:
    """The lines that end; a last half line of a killed process is cut off, so that no line is appended to it."""
    if not path.exists():
        return 0
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        files.truncate_own(path, whole)
    return content.count(b"\n")
