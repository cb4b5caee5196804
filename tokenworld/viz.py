"""Pictures: frames of any channel count as colours, strips, gifs, curves. Pillow and matplotlib load slowly, so on use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

# One colour per channel for frames that are not pictures (MinAtar): distinct for colour-blind eyes (Okabe and Ito).
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
    else:  # the strongest channel gives the colour
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

    Image.fromarray(picture).save(path)


def save_gif(path: Path, video: np.ndarray, fps: float = 10) -> None:
    """video (T, H, W, 3) uint8."""
    from PIL import Image

    frames = [Image.fromarray(frame) for frame in video]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)


def save_curve(path: Path, x: list[float], y: list[float], *, random: float | None, xlabel: str, ylabel: str) -> None:
    """A learning curve with the random policy's level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(x, y, marker="o", color="#0072B2", label="policy")
    if random is not None:
        axes.axhline(random, color="#D55E00", linestyle="--", label="random")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


# Figures of the notebooks on backbones and on evaluation, each a matplotlib Figure.

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe and Ito


def figure_of(width: float = 6.0, height: float = 3.5):
    """An empty figure and its axes, that no global state of matplotlib knows of."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def draw_lines(lines: dict[str, tuple], xlabel: str, ylabel: str, *, log: bool = False, level: tuple[str, float] | None = None):
    """lines: name -> (x, y) or (x, y, low, high), a curve with its band; level: a horizontal line with its name."""
    figure, axes = figure_of()
    for i, (name, (x, y, *band)) in enumerate(lines.items()):
        colour, dash = COLOURS[i % len(COLOURS)], ("-", "--", "-.", ":")[i % 4]  # equal curves stay visible below each other
        axes.plot(x, y, marker="o", markersize=3, color=colour, linestyle=dash, label=name)
        if band:
            axes.fill_between(x, *band, color=colour, alpha=0.2, linewidth=0)
    if level is not None:
        axes.axhline(level[1], color="#555555", linestyle="--", linewidth=1, label=level[0])
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def draw_reliability(bins: dict[str, dict]):
    """bins: name -> what `calibration.reliability` returns. How often it came true over what was announced, with intervals."""
    figure, axes = figure_of(4.5, 4.2)
    axes.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1, label="as announced, so it comes")
    for colour, (name, b) in zip(COLOURS, bins.items(), strict=False):
        p, f = np.asarray(b["probability"]), np.asarray(b["frequency"])
        reach = np.clip([f - b["low"], b["high"] - f], 0, None)
        axes.errorbar(p, f, yerr=reach, fmt="o", markersize=4, color=colour, capsize=2, label=name)
    axes.set(xlabel="announced probability", ylabel="how often it came", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
    return figure


def draw_intervals(rows: list[tuple[str, float, float, float]], xlabel: str, zero: float = 0.0):
    """rows: (name, value, low, high), drawn from the top down; blue where the interval lies off `zero`, else grey."""
    figure, axes = figure_of(6.5, 1.0 + 0.3 * len(rows))
    for i, (_, value, low, high) in enumerate(rows):
        colour = COLOURS[0] if low > zero or high < zero else "#999999"
        axes.plot([low, high], [i, i], color=colour, linewidth=2)
        axes.plot([value], [i], marker="o", color=colour)
    axes.axvline(zero, color="#555555", linewidth=1)
    axes.set(yticks=range(len(rows)), yticklabels=[name for name, *_ in rows], xlabel=xlabel)
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    return figure


def draw_table(values: np.ndarray, rows: list[str], columns: list[str], title: str = ""):
    """values (R, C) as cells with their numbers: blue above zero, orange below; the shade saturates at 1, nan is left white."""
    R, C = values.shape
    figure, axes = figure_of(2.6 + 0.62 * C, 1.4 + 0.3 * R)
    axes.imshow(np.nan_to_num(values), cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for i, j in np.ndindex(R, C):
        if np.isfinite(values[i, j]) and abs(values[i, j]) >= 0.005:
            dark = abs(values[i, j]) > 0.6
            axes.text(j, i, f"{values[i, j]:+.2f}", ha="center", va="center", fontsize=7, color="white" if dark else "black")
    axes.set(yticks=range(R), yticklabels=rows, xticks=range(C), title=title)
    axes.set_xticklabels(columns, rotation=50, ha="right", fontsize=8)
    axes.tick_params(axis="y", labelsize=8)
    return figure


def draw_bars(parts: dict[str, dict[str, float]], ylabel: str):
    """parts: name of a bar -> its pieces by name, stacked; each piece has one colour in all bars."""
    figure, axes = figure_of(5.0, 3.2)
    pieces = list(dict.fromkeys(piece for bar in parts.values() for piece in bar))
    below = np.zeros(len(parts))
    for colour, piece in zip(COLOURS, pieces, strict=False):
        heights = np.array([bar.get(piece, 0.0) for bar in parts.values()])
        axes.bar(list(parts), heights, bottom=below, color=colour, label=piece)
        below += heights
    axes.set_ylabel(ylabel)
    figure.legend(fontsize=8, loc="outside upper center", ncols=len(pieces))
    return figure


def draw_picture(picture: np.ndarray, rows: Sequence[str] = (), width: float = 9.0):
    """picture (H, W, 3) uint8, such as `grid` makes, with the names of its rows."""
    H, W, _ = picture.shape
    figure, axes = figure_of(width, width * H / W + 0.2)
    axes.imshow(picture)
    R = max(1, len(rows))
    axes.set(xticks=[], yticks=[H * (i + 0.5) / R for i in range(len(rows))], yticklabels=list(rows))
    axes.tick_params(length=0)
    return figure
