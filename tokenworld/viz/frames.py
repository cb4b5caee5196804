"""Frames of any channel count as colors, side by side, as PNG and GIF. Pillow loads slowly, so on use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tokenworld import files

# One color per channel for frames that are not pictures (MinAtar): distinct for color-blind eyes (Okabe and Ito).
PALETTE = np.array(
    [
        [0, 114, 178],
        [240, 228, 66],
        [213, 94, 0],
        [0, 158, 115],
        [204, 121, 167],
        [86, 180, 233],
        [230, 159, 0],
        [255, 255, 255],
    ]
)


BAR, HIGHEST = 64, 8  # pixels: width of a picture of a state vector, height of a bar at most
FULL, LINE, EMPTY = PALETTE[0], (119, 119, 119), (236, 236, 236)  # colors of bars, of the line of zero, of the rest
Limits = tuple[np.ndarray, np.ndarray]  # the least and the greatest value of each number of a state vector (M,) or (M, 1, 1)


def to_rgb(frames: np.ndarray, scale: int | None = None, limits: Limits | None = None) -> np.ndarray:
    """frames (..., C, H, W) uint8, or float in 0..1 -> (..., H*scale, W*scale, 3) uint8, by default about 200 pixels high.
    State vectors (..., M, 1, 1) of float become `bars` between the limits, by default those of these frames."""
    frames = np.asarray(frames)
    if is_vector(frames):
        frames = np.moveaxis(bars(frames[..., 0, 0], limits or limits_of(frames)), -1, -3)
    if frames.dtype != np.uint8:
        frames = (frames.clip(0, 1) * 255).round().astype(np.uint8)
    C, H, _ = frames.shape[-3:]
    if C == 3:
        rgb = np.moveaxis(frames, -3, -1)
    elif C == 1:
        rgb = np.repeat(np.moveaxis(frames, -3, -1), 3, -1)
    else:  # the strongest channel gives the color
        top = frames.argmax(-3)
        strength = frames.max(-3)[..., None] / 255
        rgb = (PALETTE[top % len(PALETTE)] * strength).astype(np.uint8)
    scale = max(1, 200 // H) if scale is None else scale
    return rgb.repeat(scale, -3).repeat(scale, -2)


def is_vector(frames: np.ndarray) -> bool:
    """Are frames (..., C, H, W) state vectors, which are no pictures?"""
    return frames.dtype.kind == "f" and frames.shape[-2:] == (1, 1)


def size_of(frame: np.ndarray) -> tuple[int, int]:
    """Height and width of the picture of a frame (..., C, H, W) at scale 1."""
    M = frame.shape[-3]
    return (M * _height(M), BAR) if is_vector(frame) else frame.shape[-2:]


def limits_of(frames: np.ndarray) -> Limits:
    """The least and the greatest value of each number (M,) of state vectors (..., M, 1, 1)."""
    flat = np.asarray(frames).reshape(-1, frames.shape[-3])
    return flat.min(0), flat.max(0)


def as_bytes(frames: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """State vectors (..., M, 1, 1) -> uint8, each number as one of 256 levels between its limits."""
    return np.rint(255 * _shares(frames, low, high)).astype(np.uint8)


def bars(values: np.ndarray, limits: Limits) -> np.ndarray:
    """Numbers (..., M) -> (..., M * height, BAR, 3) uint8: a bar for each, from zero, or from the limit that is nearer to zero,
    to its value between its limits. A gray line stands at zero where that is within the limits."""
    low, high = (np.asarray(limit, float).reshape(-1) for limit in limits)
    value = _shares(values, low, high)[..., None] * (BAR - 1)  # (..., M, 1), in pixels
    zero = _shares(np.zeros(1), low, high)[:, None] * (BAR - 1)  # (M, 1)
    x, height = np.arange(BAR), _height(values.shape[-1])
    is_full = (x >= np.minimum(value, zero).round()) & (x <= np.maximum(value, zero).round())  # (..., M, BAR)
    is_zero = (x == zero.round()) & ((low <= 0) & (high >= 0))[:, None]  # (M, BAR)
    rows = np.where(is_zero[..., None], LINE, np.where(is_full[..., None], FULL, EMPTY)).astype(np.uint8)
    rgb = np.repeat(rows, height, -3)  # (..., M * height, BAR, 3)
    if height > 2:  # a gap between bars
        rgb[..., ::height, :, :] = 255
    return rgb


def _height(M: int) -> int:
    """Pixels of each of M bars: together about as high as wide."""
    return max(1, min(HIGHEST, BAR // M))


def _shares(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Where values lie between their limits, 0..1; 1/2 where these are equal, and for NaN."""
    low, high = np.asarray(low, float), np.asarray(high, float)
    is_range = high > low
    share = np.where(is_range, (values - low) / np.where(is_range, high - low, 1.0), 0.5)
    return np.nan_to_num(share.clip(0, 1), nan=0.5)


def side_by_side(columns: list[np.ndarray], gap: int = 4) -> np.ndarray:
    """Videos (T, H, W, 3) of equal size -> one (T, H, total W, 3) with light gaps."""
    T, H = columns[0].shape[:2]
    bar = np.full((T, H, gap, 3), 200, np.uint8)
    parts = [part for column in columns for part in (column, bar)][:-1]
    return np.concatenate(parts, 2)


def grid(rows: list[np.ndarray], gap: int = 4) -> np.ndarray:
    """Rows of videos (T, H, W, 3), drawn one below the other with time to the right -> one picture."""
    strips = []
    for row in rows:
        T, H, _, _ = row.shape
        bar = np.full((T, H, gap, 3), 200, np.uint8)
        strips.append(np.concatenate(np.concatenate([row, bar], 2), 1))
        strips.append(np.full((gap, strips[0].shape[1], 3), 200, np.uint8))
    return np.concatenate(strips[:-1], 0)


def save_png(path: Path, picture: np.ndarray) -> None:
    """picture (H, W, 3) uint8."""
    from PIL import Image

    with files.replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def save_gif(path: Path, video: np.ndarray, fps: float = 10) -> None:
    """video (T, H, W, 3) uint8."""
    from PIL import Image

    frames = [Image.fromarray(frame) for frame in video]
    with files.replacing(path) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)


def code_colors(indices: Any) -> np.ndarray:
    """A color per code, (...) int -> (..., 3) uint8: gray for the most frequent one, then the palette, getting paler."""
    indices = np.asarray(indices)
    codes, inverse, counts = np.unique(indices, return_inverse=True, return_counts=True)
    rank = np.empty(len(codes), int)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(codes))
    n = len(PALETTE) - 1  # without white
    paler = (0.25 + 0.6 * ((rank - 1) // n) / max(1, (len(codes) - 2) // n + 1))[:, None]
    color = PALETTE[(rank - 1) % n] * (1 - paler) + 255 * paler
    color[rank == 0] = 236
    return color[inverse.reshape(indices.shape)].astype(np.uint8)
