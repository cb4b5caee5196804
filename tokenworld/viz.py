"""Pictures: frames of any channel count as colours, strips, gifs, and figures of what a model does and thinks.

Pillow and matplotlib load slowly, so on use; figures need no display.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenworld import files

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
BLUE, RED, HEAT = "#0072B2", "#D55E00", "inferno"
# Lines that are told apart without colour too
STYLES = [
    dict(color=BLUE, linestyle="-", marker="o"),
    dict(color=RED, linestyle="--", marker="s"),
    dict(color="#009E73", linestyle=":", marker="^"),
    dict(color="#CC79A7", linestyle="-.", marker="D"),
    dict(color="#E69F00", linestyle="-", marker="v"),
    dict(color="#56B4E9", linestyle="--", marker="x"),
]


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

    with files.replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def save_gif(path: Path, video: np.ndarray, fps: float = 10) -> None:
    """video (T, H, W, 3) uint8."""
    from PIL import Image

    frames = [Image.fromarray(frame) for frame in video]
    with files.replacing(path) as temporary:
        frames[0].save(temporary, format="GIF", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0)


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


# ---------------------------------------------------------------------------------------------------------------------
# Figures: each function returns a matplotlib Figure. Frames are (..., C, H, W) as in `to_rgb`, everything an array or list


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
    dimmed frames on one scale with a colour bar · marks: name -> (T, h, w) bool, cells that get an outline.
    """
    captions, heat, marks = captions or {}, heat or {}, marks or {}
    pictures = {name: to_rgb(frames, scale=1) for name, frames in rows.items()}
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

    The code that is seen most often is grey, the next ones have a colour each.
    """
    indices, T = np.asarray(indices), len(frames)
    figure = _figure(width, 3 * (width - 1) / T + 0.8, title)
    grid = figure.subplots(3, T, squeeze=False)
    colours, (h, w) = code_colours(indices), indices.shape[1:]
    for t in range(T):
        for axes, frame in ((grid[0, t], frames[t]), (grid[2, t], reconstructions[t])):
            axes.imshow(to_rgb(frame, scale=1), interpolation="nearest")
        grid[1, t].imshow(colours[t], interpolation="nearest")
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
        code_colours(indices).swapaxes(0, 1), aspect="auto", interpolation="nearest", extent=(-0.5, T - 0.5, K - 0.5, -0.5)
    )
    above.set_ylabel("place in the frame")
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
    and downward in different colours, the others as lines. captions: words below each frame, e.g. actions.
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
    """Lines name -> values over `x` (by default 0, 1, ...), told apart without colour too; bands: name -> (low, high)."""
    figure = _figure(width, 3.4, title)
    axes = figure.subplots()
    for (name, values), style in zip(series.items(), STYLES, strict=False):
        at = np.arange(len(values)) if x is None else np.asarray(x)
        (line,) = axes.plot(at, np.asarray(values, float), label=name, markersize=4, **style)
        if bands and name in bands:
            axes.fill_between(at, *bands[name], color=line.get_color(), alpha=0.2, linewidth=0)
    return _labelled(figure, axes, xlabel, ylabel, legend=len(series) > 1)


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
    return _labelled(figure, axes, "", ylabel, legend=False)


def fan(lines: Any, chosen: dict[str, Any], *, xlabel: str = "", ylabel: str = "", title: str = "", width: float = 8.0):
    """Many thin lines (S, H), and on top of them a few with names."""
    figure = _figure(width, 3.8, title)
    axes = figure.subplots()
    axes.plot(np.asarray(lines).T, color="#999999", alpha=0.35, linewidth=0.8)
    for (name, values), style in zip(chosen.items(), STYLES, strict=False):
        axes.plot(np.asarray(values, float), label=name, markersize=5, **style | {"linewidth": 2.5})
    return _labelled(figure, axes, xlabel, ylabel)


def shares(maps: dict[str, Any], names: Sequence[str], *, xlabel: str = "", title: str = "", width: float = 10.0):
    """Tables of shares in 0..1 beside each other: name -> (columns, rows), with the row's name at the left."""
    figure = _figure(width, 0.9 + 0.45 * len(names), title)
    grid = figure.subplots(1, len(maps), squeeze=False, sharey=True)[0]
    for axes, (name, values) in zip(grid, maps.items(), strict=True):
        picture = axes.imshow(np.asarray(values).T, vmin=0, vmax=1, cmap="cividis", aspect="auto", interpolation="nearest")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel(xlabel)
        axes.set_yticks(range(len(names)), names)
    figure.colorbar(picture, ax=grid, label="share", pad=0.01)
    return figure


def code_colours(indices: Any) -> np.ndarray:
    """A colour per code, (...) int -> (..., 3) uint8: grey for the most frequent one, then the palette, ever paler."""
    indices = np.asarray(indices)
    codes, inverse, counts = np.unique(indices, return_inverse=True, return_counts=True)
    rank = np.empty(len(codes), int)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(codes))
    n = len(PALETTE) - 1  # without white
    paler = (0.25 + 0.6 * ((rank - 1) // n) / max(1, (len(codes) - 2) // n + 1))[:, None]
    colour = PALETTE[(rank - 1) % n] * (1 - paler) + 255 * paler
    colour[rank == 0] = 236
    return colour[inverse.reshape(indices.shape)].astype(np.uint8)


def _figure(width: float, height: float, title: str):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _labelled(figure, axes, xlabel: str, ylabel: str, legend: bool = True):
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
