"""Numbers of evaluations as matplotlib Figures, for notebooks: curves, reliability, intervals, tables, stacked bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

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
