"""Replay: all experience in memory, as it was stored, sampled uniformly over steps.

The rows of all episodes lie one after another; an episode of n actions is n+1 rows, the last of which has no action.
A window is `length` consecutive rows and may run across the border of two episodes: `first` marks each beginning, and
the model forgets there. A window is chosen by its *last* row and wraps around at the start of the buffer, so that each
row is as likely as any other, at each position of a window. The oldest row is always the first of an episode, hence the
row after a wrap is one, too.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tokenworld.data.record_format import Episode
from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, Steps

WindowEnd = Literal["any", "acted"]
NEWEST = 0.1  # the share of rows that `recent` draws from
FIELDS = {
    "reward": np.float32,
    "terminated": np.bool_,
    "truncated": np.bool_,
    "first": np.bool_,
    "acted": np.bool_,
}
ENCODE_CHUNK = 1024  # frames that are encoded at once
UNCODED = -1  # the version of a row that was never encoded


class Replay:
    """Episodes as rows. A row's number counts from the oldest row kept, and holds until the next `add`."""

    def __init__(self, *, capacity: int | None = None) -> None:
        """capacity: rows; when they are full the oldest whole episodes leave. The newest episode is always kept."""
        if capacity is not None and capacity < 2:
            raise UserError(f"replay.capacity must be at least 2 rows or null, got {capacity}: choose e.g. 100000")
        self.capacity = capacity
        self.episodes = 0
        self.rows = 0
        self.steps = 0  # rows with an action
        self._start = 0  # the oldest row's slot in the arrays
        self._lengths: list[int] = []  # rows of each episode kept
        self._arrays: dict[str, np.ndarray] = {}  # each (allocated rows, ...); made at the first `add`
        self._codes: np.ndarray | None = None  # (allocated rows, K) int32 indices, or (allocated rows, K, E) float32 vectors
        self._acted_rows: np.ndarray | None = None  # cache of the rows with an action
        self._event_rows: np.ndarray | None = None  # cache of the rows with a reward or a termination
        self._readers = 0  # generators of batches at work

    # ---------------------------------------------------------------------------------------------------- contents

    def add(self, episode: Episode) -> None:
        """Append an episode of n actions: n+1 rows. Not while a generator of `batches` is at work."""
        if self._readers:
            raise RuntimeError("no episode can be added while batches are being prepared: close that generator first")
        for name, what in (("obs", "frames"), ("action", "actions")):
            new, kept = getattr(episode, name), self._arrays.get(name, getattr(episode, name))
            if (new.shape[1:], new.dtype) != (kept.shape[1:], kept.dtype):
                raise ValueError(f"{what} must be {kept.shape[1:]} {kept.dtype}, got {new.shape[1:]} {new.dtype}")
        n = episode.steps
        self._evict(n + 1)
        self._reserve(n + 1, episode)
        at = self._start + self.rows
        new = slice(at, at + n + 1)
        self._arrays["obs"][new] = episode.obs
        for name in ("action", "reward", "terminated", "truncated"):
            self._arrays[name][at : at + n] = getattr(episode, name)
            self._arrays[name][at + n] = 0
        self._arrays["first"][new] = False
        self._arrays["first"][at] = True
        self._arrays["acted"][new] = True
        self._arrays["acted"][at + n] = False
        self._arrays["version"][new] = UNCODED
        self.rows += n + 1
        self.steps += n
        self.episodes += 1
        self._lengths.append(n + 1)
        self._acted_rows = self._event_rows = None

    def _evict(self, incoming: int) -> None:
        leaving = 0
        while self.capacity is not None and leaving < len(self._lengths) and self.rows + incoming > self.capacity:
            length = self._lengths[leaving]
            leaving += 1
            self._start += length
            self.rows -= length
            self.steps -= length - 1
            self.episodes -= 1
        del self._lengths[:leaving]

    def _reserve(self, incoming: int, like: Episode) -> None:
        """Make room behind the newest row: move the rows to the front, or double the arrays. Amortised constant."""
        if not self._arrays:
            self._arrays = {name: np.zeros_like(getattr(like, name)[:0]) for name in ("obs", "action")}
            self._arrays |= {name: np.zeros(0, dtype) for name, dtype in FIELDS.items()}
            self._arrays["version"] = np.zeros(0, np.int64)
        allocated = len(self._arrays["version"])
        needed = self.rows + incoming
        if self._start + needed <= allocated:
            return
        # At most half full after the move: then as many rows can come as were moved.
        target = allocated if 2 * needed <= allocated else max(1024, 2 * needed)
        for name, old in self._arrays.items():
            self._arrays[name] = self._move(old, target)
        if self._codes is not None:
            self._codes = self._move(self._codes, target)
        self._start = 0

    def _move(self, old: np.ndarray, target: int) -> np.ndarray:
        new = old if target == len(old) else np.empty((target, *old.shape[1:]), old.dtype)
        new[: self.rows] = old[self._start : self._start + self.rows]
        return new

    # ---------------------------------------------------------------------------------------------------- sampling

    def sample(
        self,
        batch: int,
        length: int,
        rng: np.random.Generator,
        ends: WindowEnd = "any",
        recent: float = 0.0,
        events: float = 0.0,
        within: int = 1,
    ) -> tuple[Steps, np.ndarray]:
        """Windows of `length` rows: Steps (B, T) and their rows (B, T) int64.

        The last row is uniform over all rows, or (`ends="acted"`) over those with an action: where imagination starts.
        With `recent` > 0 that share of the batch is drawn from the newest tenth of them instead. `events`: the share of windows
        whose last row is one of the `within` rows that lead to an event (a reward or a termination), the event's row included.
        """
        rows = self._windows(batch, length, rng, ends, recent, events, within)
        return self.gather(rows), rows

    def sample_frames(self, batch: int, rng: np.random.Generator) -> Steps:
        """Single frames, uniform over all rows: Steps (B, 1)."""
        return self.sample(batch, 1, rng)[0]

    def _windows(
        self, batch: int, length: int, rng: np.random.Generator, ends: WindowEnd, recent: float, events=0.0, within=1
    ) -> np.ndarray:
        if self.rows == 0:
            raise UserError("the replay is empty: training needs at least one episode of the training split")
        early = self._before_events(round(events * batch), rng, recent, within) if events else np.zeros(0, np.int64)
        batch -= len(early)
        if ends == "any":
            last = self._numbers(self.rows, batch, rng, recent)  # (B,)
        elif ends == "acted":
            if self._acted_rows is None:
                self._acted_rows = np.flatnonzero(self._view("acted"))
            last = self._acted_rows[self._numbers(self.steps, batch, rng, recent)]  # (B,)
        else:
            raise ValueError(f"ends must be 'any' or 'acted', got {ends!r}")
        last = np.concatenate([early, last])
        return (last[:, None] + np.arange(1 - length, 1)) % self.rows  # (B, T)

    def _before_events(self, count: int, rng: np.random.Generator, recent: float, within: int) -> np.ndarray:
        """(count,) rows of the `within` that lead to an event and have an action; none where nothing ever happened."""
        if self._event_rows is None:
            self._event_rows = np.flatnonzero((self._view("reward") != 0) | self._view("terminated"))
        if len(self._event_rows) == 0:
            return np.zeros(0, np.int64)
        event = self._event_rows[self._numbers(len(self._event_rows), count, rng, recent)]
        early = np.maximum(event - rng.integers(within, size=count), 0)
        return np.where(self._view("acted")[early], early, event)  # the row without an action ends the episode before

    @staticmethod
    def _numbers(total: int, batch: int, rng: np.random.Generator, recent: float) -> np.ndarray:
        newest = round(recent * batch)
        numbers = rng.integers(0, total, size=batch - newest)
        return np.concatenate([rng.integers(int(total * (1 - NEWEST)), total, size=newest), numbers]) if newest else numbers

    def batches(
        self,
        count: int,
        batch: int,
        length: int,
        rng: np.random.Generator,
        ends: WindowEnd = "any",
        recent: float = 0.0,
        events: float = 0.0,
        within: int = 1,
        prefetch: int = 2,
        frames: bool = True,
        pin: bool = False,
    ) -> Iterator[tuple[Steps, np.ndarray]]:
        """`count` times `sample`, prepared ahead by a thread. Without `frames` obs is (B, T, 0, 0, 0): who learns from codes
        need not move pixels. `pin`: in memory that a GPU copies from while it works.

        The batches, and the state of `rng` at each yield, are those of calling `sample` that often: the thread draws
        from a copy. Draw nothing else from `rng` meanwhile. Closing the generator ends the thread.
        """
        copy = np.random.Generator(type(rng.bit_generator)())
        copy.bit_generator.state = rng.bit_generator.state
        ready: queue.Queue = queue.Queue(maxsize=max(1, prefetch))
        stop = threading.Event()

        def put(item: object) -> None:
            while not stop.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def prepare() -> None:
            try:
                for _ in range(count):
                    if stop.is_set():
                        return
                    rows = self._windows(batch, length, copy, ends, recent, events, within)
                    steps = self.gather(rows, frames)
                    put(((steps.map(Tensor.pin_memory) if pin else steps, rows), copy.bit_generator.state))
            except BaseException as error:  # handed over, and raised where the batch is wanted
                put((error, None))

        thread = threading.Thread(target=prepare, name="replay-prefetch", daemon=True)
        self._readers += 1
        try:
            thread.start()
            for _ in range(count):
                item, state = ready.get()
                if isinstance(item, BaseException):
                    raise item
                rng.bit_generator.state = state
                yield item
        finally:
            stop.set()
            thread.join()
            self._readers -= 1

    def windows(self, length: int, batch: int = 1) -> Iterator[tuple[Steps, np.ndarray]]:
        """All rows once, in order, as windows (B, T), B <= batch: for evaluation. The last is padded, valid=False."""
        padded = -(-self.rows // length) * length
        numbers = np.arange(padded).reshape(-1, length)  # (windows, T)
        for at in range(0, len(numbers), batch):
            valid = numbers[at : at + batch] < self.rows  # (B, T)
            rows = np.minimum(numbers[at : at + batch], self.rows - 1)
            steps = self.gather(rows)
            mask = torch.from_numpy(valid)
            yield (
                Steps(
                    obs=steps.obs,
                    action=steps.action * mask.reshape(*mask.shape, *[1] * (steps.action.ndim - 2)),
                    reward=steps.reward * mask,
                    terminated=steps.terminated & mask,
                    truncated=steps.truncated & mask,
                    first=steps.first & mask,
                    acted=steps.acted & mask,
                    valid=mask,
                ),
                rows,
            )

    # ----------------------------------------------------------------------------------------------------- reading

    def gather(self, rows: np.ndarray, frames: bool = True) -> Steps:
        """The rows (B, T) as Steps, all valid; without `frames` obs is (B, T, 0, 0, 0)."""
        at = self._slots_of(rows)
        fields = {name: torch.from_numpy(self._arrays[name][at]) for name in ("action", *FIELDS)}
        obs = self._arrays["obs"][at] if frames else np.zeros((*rows.shape, 0, 0, 0), self._arrays["obs"].dtype)
        return Steps(obs=torch.from_numpy(obs), **fields, valid=torch.ones(rows.shape, dtype=torch.bool))

    def frames(self, rows: np.ndarray) -> Tensor:
        """The frames of rows (B, T): (B, T, C, H, W) uint8 or float32."""
        return torch.from_numpy(self._arrays["obs"][self._slots_of(rows)])

    def codes(self, rows: np.ndarray, encode: Callable[[Steps], Codes], version: int) -> Codes:
        """The codes of rows (B, T) under the tokenizer's `version` (>= 0), cached: their indices, or vectors without indices.

        Rows whose codes are of another version are encoded: `encode` gets Steps (n, 1), n <= 1024, each row once.
        """
        at = self._slots_of(rows)
        stale = np.unique(at[self._arrays["version"][at] != version])
        for chunk in np.array_split(stale, range(ENCODE_CHUNK, len(stale), ENCODE_CHUNK)):
            if len(chunk) == 0:
                continue
            codes = encode(self.gather((chunk - self._start)[:, None]))
            kept, dtype = (codes.vectors, torch.float32) if codes.indices is None else (codes.indices, torch.int32)
            new = kept[:, 0].to("cpu", dtype).numpy()  # (n, K) or (n, K, E)
            if self._codes is None or self._codes.shape[1:] != new.shape[1:] or self._codes.dtype != new.dtype:
                self._codes = np.zeros((len(self._arrays["version"]), *new.shape[1:]), new.dtype)
            self._codes[chunk] = new
            self._arrays["version"][chunk] = version
        assert self._codes is not None, rows.shape
        kept = torch.from_numpy(self._codes[at])  # (B, T, K) or (B, T, K, E)
        return Codes(vectors=kept) if kept.is_floating_point() else Codes(kept.long())

    def code_state(self) -> dict[str, Tensor]:
        """The cached codes as tensors, to be saved: encoding again in other chunks may differ in the last bit. Rows that were
        never encoded have zeros."""
        if self._codes is None:
            return {}
        kept = slice(self._start, self._start + self.rows)
        version = self._arrays["version"][kept]
        codes = np.where((version == UNCODED).reshape(-1, *[1] * (self._codes.ndim - 1)), 0, self._codes[kept])
        return {"codes": torch.from_numpy(codes), "version": torch.from_numpy(version.copy())}

    def load_code_state(self, state: dict[str, Tensor]) -> bool:
        """Put back `code_state()` of a replay with the same episodes. False, and no code is put back, if they are others: the
        codes of all rows are then encoded again."""
        if not state:
            return True
        codes, version = state["codes"], state["version"]
        if codes.ndim not in (2, 3) or len(codes) != self.rows or version.shape != (self.rows,):
            return False
        kept = slice(self._start, self._start + self.rows)
        self._codes = np.zeros((len(self._arrays["version"]), *codes.shape[1:]), codes.numpy().dtype)
        self._codes[kept] = codes.numpy()
        self._arrays["version"][kept] = version.numpy()
        return True

    def _slots_of(self, rows: np.ndarray) -> np.ndarray:
        assert rows.size == 0 or (rows.min() >= 0 and rows.max() < self.rows), (rows.min(), rows.max(), self.rows)
        return rows + self._start

    def _view(self, name: str) -> np.ndarray:
        return self._arrays[name][self._start : self._start + self.rows]
