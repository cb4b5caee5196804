"""State vectors as bytes, for the metrics that compare frames: each number in 256 levels of its range in held-out data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tokenworld.viz.frames import as_bytes

WORDS = "state vectors: each number as 256 levels between its least and greatest value in the held-out data"
ROWS = 4096  # frames that are read at once


@dataclass(frozen=True)
class Levels:
    """low, high (C, 1, 1): the range of each number of a frame; None: frames are bytes already."""

    low: np.ndarray | None = None
    high: np.ndarray | None = None

    def __call__(self, frames: Any) -> Any:
        """Frames (..., C, H, W), of torch or of numpy -> uint8, of the same kind."""
        if self.low is None:
            return frames
        if isinstance(frames, torch.Tensor):
            return torch.from_numpy(as_bytes(frames.cpu().numpy(), self.low, self.high)).to(frames.device)
        return as_bytes(frames, self.low, self.high)

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray] | None:
        """low, high as pictures of state vectors take them."""
        return None if self.low is None else (self.low, self.high)


BYTES = Levels()


def levels_of(replay: Any, frame_dtype: str) -> Levels:
    """The levels of all frames of a replay."""
    if frame_dtype == "uint8" or not replay.rows:
        return BYTES
    low = high = None
    for rows in np.array_split(np.arange(replay.rows), -(-replay.rows // ROWS)):
        frames = replay.frames(rows).numpy()  # (n, C, H, W)
        low = frames.min(0) if low is None else np.minimum(low, frames.min(0))
        high = frames.max(0) if high is None else np.maximum(high, frames.max(0))
    return Levels(low, high)
