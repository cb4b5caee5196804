"""Figures of frames, codes and metrics. Matplotlib loads slowly, so it is imported on use. No display is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenworld import files
from tokenworld.viz.frames import Limits, code_colors, is_vector, limits_of, to_rgb

BLUE, RED, HEAT = "#0072B2", "#D55E00", "inferno"
# Lines that differ without color too
STYLES = [
    dict(color=BLUE, linestyle="-", marker="o"),
    dict(color=RED, linestyle="--", marker="s"),
    dict(color="#009E73", linestyle=":", marker="^"),
    dict(color="#CC79A7", linestyle="-.", marker="D"),
    dict(color="#E69F00", linestyle="-", marker="v"),
    dict(color="#56B4E9", linestyle="--", marker="x"),
]


def save_curve(
    path: Path, points: Sequence[Sequence[float]], *, random: float | None, xlabel: str, ylabel: str, title: str = ""
) -> None:
    """A learning curve of points (x, y) or (x, y, low, high), an interval, with the random policy's level."""
    rows = np.array([(*point, np.nan, np.nan)[:4] for point in points], float)
    x, y, low, high = rows.T
    figure = curves({"policy": y}, x=x, bands={"policy": (low, high)}, xlabel=xlabel, ylabel=ylabel, title=title, width=6)
    axes = figure.axes[0]
    axes.errorbar(x, y, np.maximum([y - low, high - y], 0), color=BLUE, linestyle="none", capsize=3)
    if random is not None:
        axes.axhline(random, color=RED, linestyle="--", label="random")
        axes.legend()
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def filmstrip(
    rows: dict[str, Any],
    *,
    titles: Sequence[str] | None = None,
    captions: dict[str, Sequence[str]] | None = None,
    heat: dict[str, Any] | None = None,
    heat_label: str = "",
    marks: dict[str, Any] | None = None,
    title: str = "",
    width: float = 10.0,
):
    """Rows of frames with time to the right: name -> (T, C, H, W); a row may be shorter than the others.

    titles: above the columns · captions: name -> words below each frame · heat: name -> (T, h, w) from 0 up, drawn over the
    dimmed frames on one scale with a color bar · marks: name -> (T, h, w) bool, cells that get an outline.
    """
    captions, heat, marks = captions or {}, heat or {}, marks or {}
    limits = _limits(next(iter(rows.values())))
    pictures = {name: to_rgb(frames, scale=1, limits=limits) for name, frames in rows.items()}
    T = max(len(frames) for frames in pictures.values())
    H, W = next(iter(pictures.values())).shape[1:3]
    high = (width - 1.2) / T * H / W
    row = high + 0.1 + 0.2 * bool(captions)
    figure = _figure(width, len(rows) * row + 0.25 * bool(titles) + 0.35 * bool(title), title)
    grid = figure.subplots(len(rows), T, squeeze=False)
    heat = {name: np.asarray(values, float) for name, values in heat.items()}
    top = max([values.max() for values in heat.values()], default=1.0) or 1.0
    overlay = None
    for i, (row, (name, frames)) in enumerate(zip(grid, pictures.items(), strict=True)):
        for t, axes in enumerate(row):
            if t >= len(frames):
                axes.axis("off")
                continue
            rgb = frames[t] if name not in heat else (frames[t] * 0.45 + 255 * 0.2).astype(np.uint8)
            axes.imshow(rgb, extent=(0, W, H, 0), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if name in heat:
                values = heat[name][t]
                overlay = axes.imshow(values, extent=(0, W, H, 0), cmap=HEAT, vmin=0, vmax=top, interpolation="nearest",
                                      alpha=np.clip(values / top, 0, 1) ** 0.5)  # fmt: skip
            if name in marks:
                _outline(axes, np.asarray(marks[name][t]), H, W)
            if name in captions and t < len(captions[name]):
                axes.set_xlabel(captions[name][t], fontsize=8, labelpad=2)
            if titles is not None and i == 0 and t < len(titles):
                axes.set_title(titles[t], fontsize=9)
        row[0].set_ylabel(name, fontsize=10)
    if overlay is not None:
        figure.colorbar(overlay, ax=grid, label=heat_label, shrink=0.9, pad=0.01, aspect=20 * max(1, high * len(rows)) / 2)
    return figure


def tokens(frames: Any, indices: Any, reconstructions: Any, *, title: str = "", width: float = 10.0):
    """Frames (T, C, H, W), their codes (T, h, w) as numbers in a grid, and what the codes decode to (T, C, H, W).

    The code that is seen most often is gray, the next ones have a color each.
    """
    indices, T = np.asarray(indices), len(frames)
    figure = _figure(width, 3 * (width - 1) / T + 0.8, title)
    grid = figure.subplots(3, T, squeeze=False)
    colors, (h, w) = code_colors(indices), indices.shape[1:]
    for t in range(T):
        for axes, frame in ((grid[0, t], frames[t]), (grid[2, t], reconstructions[t])):
            axes.imshow(to_rgb(frame, scale=1, limits=_limits(frames)), interpolation="nearest")
        grid[1, t].imshow(colors[t], interpolation="nearest")
        for i in range(h):
            for j in range(w):
                grid[1, t].text(j, i, str(indices[t, i, j]), ha="center", va="center", fontsize=_fit(width / T / w))
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    for axes, name in zip(grid[:, 0], ("frame", "codes", "decoded"), strict=True):
        axes.set_ylabel(name, fontsize=10)
    return figure


def token_map(indices: Any, *, title: str = "", xlabel: str = "step", width: float = 10.0):
    """All codes (T, K) of an episode, a column per step, above how many of them changed with each step."""
    indices = np.asarray(indices)
    T, K = indices.shape
    changed = indices[1:] != indices[:-1]  # (T-1, K)
    figure = _figure(width, 4.6, title)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.imshow(
        code_colors(indices).swapaxes(0, 1), aspect="auto", interpolation="nearest", extent=(-0.5, T - 0.5, K - 0.5, -0.5)
    )
    above.set_ylabel("position in the frame")
    t, k = np.nonzero(changed)
    above.scatter(t + 1, k, s=4, color="black", label="changed")
    above.legend(loc="upper right", fontsize=8)
    below.bar(np.arange(1, T), changed.sum(1), color=BLUE, width=0.8)
    below.set_ylabel("changed codes")
    below.set_xlabel(xlabel)
    below.grid(axis="y", alpha=0.3)
    return figure


def along(
    frames: Any,
    panels: dict[str, dict[str, Any]],
    *,
    bars: Sequence[str] = (),
    captions: Sequence[str] | None = None,
    title: str = "",
    xlabel: str = "step",
    width: float = 10.0,
):
    """Frames (T, C, H, W) in a row, and below them panels of numbers on the same time axis.

    panels: label of the y axis -> name -> T or fewer values; NaN is left out. The names in `bars` are drawn as bars, upward
    and downward in different colors, the others as lines. captions: words below each frame, e.g. actions.
    """
    rgb = to_rgb(frames, scale=1)
    T, H, W = rgb.shape[:3]
    high = (width - 1.0) / T * H / W
    figure = _figure(width, high + 0.3 + 1.7 * len(panels) + 0.4, title)
    film, *others = figure.subplots(1 + len(panels), 1, sharex=True, height_ratios=(high, *[1.7] * len(panels)))
    for t in range(T):
        film.imshow(rgb[t], extent=(t - 0.46, t + 0.46, 0, 1), aspect="auto", interpolation="nearest")
        if captions is not None and t < len(captions):
            film.text(t, -0.04, captions[t], ha="center", va="top", fontsize=8)
    film.set(xlim=(-0.5, T - 0.5), ylim=(-0.2 if captions is not None else 0, 1))
    film.axis("off")
    for axes, (label, series) in zip(others, panels.items(), strict=True):
        for (name, values), style in zip(series.items(), STYLES, strict=False):
            values = np.asarray(values, float)
            x = np.arange(len(values))
            if name in bars:
                axes.bar(x, values, width=0.5, color=np.where(values >= 0, BLUE, RED), alpha=0.8, label=name)
            else:
                axes.plot(x, values, label=name, markersize=4, **style)
        axes.set_ylabel(label)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.grid(alpha=0.3)
        axes.margins(y=0.15)
        axes.legend(fontsize=8, loc="best")
    others[-1].set_xlabel(xlabel)
    return figure


def curves(
    series: dict[str, Any],
    *,
    x: Any = None,
    bands: dict[str, tuple[Any, Any]] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    width: float = 7.0,
):
    """Lines name -> values over `x` (by default 0, 1, ...), distinct without color too; bands: name -> (low, high)."""
    figure = _figure(width, 3.4, title)
    axes = figure.subplots()
    for (name, values), style in zip(series.items(), STYLES, strict=False):
        at = np.arange(len(values)) if x is None else np.asarray(x)
        (line,) = axes.plot(at, np.asarray(values, float), label=name, markersize=4, **style)
        if bands and name in bands:
            axes.fill_between(at, *bands[name], color=line.get_color(), alpha=0.2, linewidth=0)
    return _label(figure, axes, xlabel, ylabel, legend=len(series) > 1)


def bars(
    values: dict[str, float], *, intervals: dict[str, Any] | None = None, ylabel: str = "", title: str = "", width: float = 5.0
):
    """A bar per name, with its interval (low, high) where there is one."""
    figure = _figure(width, 3.2, title)
    axes = figure.subplots()
    names = list(values)
    axes.bar(names, list(values.values()), color=[STYLES[i % len(STYLES)]["color"] for i in range(len(names))], width=0.6)
    for i, name in enumerate(names):
        if intervals and name in intervals:
            low, high = intervals[name]
            beyond = np.maximum([[values[name] - low], [high - values[name]]], 0)
            axes.errorbar(i, values[name], beyond, color="black", capsize=5)
        axes.annotate(f"{values[name]:.2f}", (i, values[name]), (-14, 4), textcoords="offset points", ha="right", fontsize=9)
    axes.margins(y=0.15)
    return _label(figure, axes, "", ylabel, legend=False)


def fan(lines: Any, chosen: dict[str, Any], *, xlabel: str = "", ylabel: str = "", title: str = "", width: float = 8.0):
    """Many thin lines (S, H), and on top of them a few with names."""
    figure = _figure(width, 3.8, title)
    axes = figure.subplots()
    axes.plot(np.asarray(lines).T, color="#999999", alpha=0.35, linewidth=0.8)
    for (name, values), style in zip(chosen.items(), STYLES, strict=False):
        axes.plot(np.asarray(values, float), label=name, markersize=5, **style | {"linewidth": 2.5})
    return _label(figure, axes, xlabel, ylabel)


def shares(maps: dict[str, Any], names: Sequence[str], *, xlabel: str = "", title: str = "", width: float = 10.0):
    """Tables of shares in 0..1 side by side: name -> (columns, rows), with the row's name at the left."""
    figure = _figure(width, 0.9 + 0.45 * len(names), title)
    grid = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
    for axes, (name, values) in zip(grid, maps.items(), strict=True):
        picture = axes.imshow(np.asarray(values).T, vmin=0, vmax=1, cmap="cividis", aspect="auto", interpolation="nearest")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(xlabel)
        axes.set_yticks(range(len(names)), names)
    figure.colorbar(picture, ax=grid, label="share", pad=0.01)
    return figure


def _figure(width: float, height: float, title: str):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _limits(frames: Any) -> Limits | None:
    """The limits of state vectors (T, M, 1, 1); None for pictures."""
    return limits_of(frames) if is_vector(frames := np.asarray(frames)) else None


def _label(figure, axes, xlabel: str, ylabel: str, legend: bool = True):
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if legend:
        axes.legend(fontsize=9)
    return figure


def _outline(axes, cells: np.ndarray, H: int, W: int) -> None:
    from matplotlib.patches import Rectangle

    h, w = cells.shape
    for i, j in zip(*np.nonzero(cells), strict=True):
        axes.add_patch(Rectangle((j * W / w, i * H / h), W / w, H / h, fill=False, edgecolor="white", linewidth=1.6))


def _fit(inches: float) -> float:
    """A font size at which three digits fit into so many inches."""
    return min(9.0, max(3.0, 30 * inches))


# ---- of evaluations

COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe and Ito


def figure_of(width: float = 6.0, height: float = 3.5):
    """An empty figure and its axes, that no global state of matplotlib knows of."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def draw_lines(lines: dict[str, tuple], xlabel: str, ylabel: str, *, log: bool = False, level: tuple[str, float] | None = None):
    """lines: name -> (x, y) or (x, y, low, high), a curve with its band; level: a horizontal line with its name."""
    figure, axes = figure_of()
    for i, (name, (x, y, *band)) in enumerate(lines.items()):
        color, dash = COLORS[i % len(COLORS)], ("-", "--", "-.", ":")[i % 4]  # equal curves stay visible below each other
        axes.plot(x, y, marker="o", markersize=3, color=color, linestyle=dash, label=name)
        if band:
            axes.fill_between(x, *band, color=color, alpha=0.2, linewidth=0)
    if level is not None:
        axes.axhline(level[1], color="#555555", linestyle="--", linewidth=1, label=level[0])
    axes.set(xlabel=xlabel, ylabel=ylabel, yscale="log" if log else "linear")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def draw_reliability(bins: dict[str, dict]):
    """bins: name -> what `calibration.reliability` returns. Observed frequency over predicted probability, with intervals."""
    figure, axes = figure_of(4.5, 4.2)
    axes.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1, label="perfect calibration")
    for color, (name, b) in zip(COLORS, bins.items(), strict=False):
        p, f = np.asarray(b["probability"]), np.asarray(b["frequency"])
        errors = np.clip([f - b["low"], b["high"] - f], 0, None)
        axes.errorbar(p, f, yerr=errors, fmt="o", markersize=4, color=color, capsize=2, label=name)
    axes.set(xlabel="predicted probability", ylabel="observed frequency", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="upper left")
    return figure


def draw_intervals(rows: list[tuple[str, float, float, float]], xlabel: str, zero: float = 0.0):
    """rows: (name, value, low, high), drawn from the top down; blue where the interval lies off `zero`, else gray."""
    figure, axes = figure_of(6.5, 1.0 + 0.3 * len(rows))
    for i, (_, value, low, high) in enumerate(rows):
        color = COLORS[0] if low > zero or high < zero else "#999999"
        axes.plot([low, high], [i, i], color=color, linewidth=2)
        axes.plot([value], [i], marker="o", color=color)
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
    """parts: name of a bar -> its pieces by name, stacked; each piece has one color in all bars."""
    figure, axes = figure_of(5.0, 3.2)
    pieces = list(dict.fromkeys(piece for bar in parts.values() for piece in bar))
    below = np.zeros(len(parts))
    for color, piece in zip(COLORS, pieces, strict=False):
        heights = np.array([bar.get(piece, 0.0) for bar in parts.values()])
        axes.bar(list(parts), heights, bottom=below, color=color, label=piece)
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
