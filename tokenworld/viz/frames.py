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


def to_rgb(frames: np.ndarray, scale: int | None = None) -> np.ndarray:
    """frames (..., C, H, W) uint8, or float in 0..1 -> (..., H*scale, W*scale, 3) uint8, by default about 200 pixels high."""
    frames = np.asarray(frames)
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
