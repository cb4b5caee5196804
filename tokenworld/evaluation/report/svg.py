"""Charts as inline SVG: no script, no network, readable at 400 pixels and in print, told apart without color.

Colors are Okabe and Ito's (2008). Every chart has a title and a description for screen readers.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from html import escape

import numpy as np

BLUE, ORANGE, GREEN, GRAY, INK = "#0072B2", "#D55E00", "#009E73", "#999999", "#222222"
W, H = 380, 260  # of a chart
LEFT, RIGHT, TOP, BOTTOM = 54, 14, 10, 42
LINE = 16  # height of a line of words
HATCH = (
    '<defs><pattern id="none" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" fill="#eee"/><line x1="0" y1="0" x2="0" y2="6" stroke="#bbb" stroke-width="2"/>'
    "</pattern></defs>"
)


def svg(title: str, description: str, content: Sequence[str], width: int = W, height: int = H) -> str:
    head = f'<svg viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg">'
    return f"{head}<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(content)}</svg>"


def text(x: float, y: float, words: str, anchor: str = "start", color: str = INK, size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}" font-size="{size}">{escape(words)}</text>'


def line(points: Sequence[tuple[float, float]], color: str, width: float = 2, dash: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="{width}"{dashed}/>'


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from low to high, `about` as many."""
    raw = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(raw))
    step = unit * min((1, 2, 5, 10), key=lambda k: abs(k * unit - raw))
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


class Axes:
    """A frame with ticks below a legend of (color, dash, words), and the way from data to pixels."""

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        xlabel: str,
        ylabel: str,
        legend: Sequence[tuple[str, str, str]] = (),
        log: bool = False,
    ):
        self.x0, self.x1 = x if x[1] > x[0] else (x[0] - 0.5, x[0] + 0.5)
        self.y0, self.y1 = y if y[1] > y[0] else (y[0] - 0.5, y[0] + 0.5)
        self.top = TOP + LINE * len(legend)
        self.height = H + LINE * len(legend)
        self.low = self.height - BOTTOM
        self.drawn = []
        for i, (color, dash, words) in enumerate(legend):
            at = TOP + LINE * i + 4
            self.drawn += [line([(LEFT, at), (LEFT + 26, at)], color, dash=dash), text(LEFT + 32, at + 4, words)]
        for values, horizontal in ((ticks(self.x0, self.x1), True), (ticks(self.y0, self.y1), False)):
            step = abs(values[1] - values[0]) if len(values) > 1 else 1.0
            for value in values:
                if log and value != round(value):
                    continue
                words = f"1e{value:.0f}" if log and value else "1" if log else _tick(value, step)
                if horizontal:
                    self.drawn.append(line([(self.px(value), self.top), (self.px(value), self.low)], "#eee", 1))
                    self.drawn.append(text(self.px(value), self.low + 15, words, "middle"))
                else:
                    self.drawn.append(line([(LEFT, self.py(value)), (W - RIGHT, self.py(value))], "#eee", 1))
                    self.drawn.append(text(LEFT - 5, self.py(value) + 4, words, "end"))
        self.drawn.append(f'<rect x="{LEFT}" y="{self.top}" width="{W - LEFT - RIGHT}" height="{self.low - self.top}" '
                          f'fill="none" stroke="{GRAY}"/>')  # fmt: skip
        self.drawn.append(text((LEFT + W - RIGHT) / 2, self.height - 8, xlabel, "middle"))
        self.drawn.append(f'<g transform="translate(12 {(self.top + self.low) / 2:.0f}) rotate(-90)">'
                          f'{text(0, 0, ylabel, "middle")}</g>')  # fmt: skip

    def px(self, x: float) -> float:
        return LEFT + (min(max(x, self.x0), self.x1) - self.x0) / (self.x1 - self.x0) * (W - LEFT - RIGHT)

    def py(self, y: float) -> float:
        return self.low - (min(max(y, self.y0), self.y1) - self.y0) / (self.y1 - self.y0) * (self.low - self.top)

    def curve(self, x, y, color: str, dash: str = "", steps: bool = False) -> None:
        """Through the points that are finite, broken where some are not."""
        for part in _finite_runs(y):
            points = [(self.px(x[i]), self.py(y[i])) for i in part]
            if steps:
                points = [p for a, b in zip(points, points[1:], strict=False) for p in (a, (b[0], a[1]))] + points[-1:]
            self.drawn.append(line(points, color, dash=dash))

    def band(self, x, low, high, color: str) -> None:
        for part in _finite_runs(np.asarray(low, float) + np.asarray(high, float)):
            there = [(self.px(x[i]), self.py(high[i])) for i in part]
            back = [(self.px(x[i]), self.py(low[i])) for i in reversed(part)]
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in there + back)
            self.drawn.append(f'<polygon points="{path}" fill="{color}" opacity="0.2"/>')

    def point(self, x: float, y: float, low: float, high: float, color: str, hollow: bool = False) -> None:
        self.drawn.append(line([(self.px(x), self.py(low)), (self.px(x), self.py(high))], color))
        fill = f'fill="#fff" stroke="{color}" stroke-width="2"' if hollow else f'fill="{color}"'
        self.drawn.append(f'<circle cx="{self.px(x):.1f}" cy="{self.py(y):.1f}" r="4" {fill}/>')

    def across(self, y: float, low: float, high: float, color: str) -> None:
        self.drawn.append(line([(self.px(low), self.py(y)), (self.px(high), self.py(y))], color))

    def label(self, x: float, y: float, words: str, color: str = INK, anchor: str = "end", up: float = 0) -> None:
        self.drawn.append(text(self.px(x), self.py(y) - up, words, anchor, color))

    def svg(self, title: str, description: str) -> str:
        return svg(title, description, self.drawn, W, self.height)


def curves(title: str, xlabel: str, ylabel: str, x, lines: Sequence[tuple], *, band=None, mark=None, top=None,
           steps: bool = False, words: str = "") -> str:  # fmt: skip
    """lines: (words, y, color, dash) over x, told apart in a legend; band: (low, high) of the first; mark: (x, words), a
    vertical line; top: of the y axis, which begins at 0."""
    shown = [np.asarray(y, float) for _, y, _, _ in lines] + [np.asarray(end, float) for end in band or ()]
    finite = np.concatenate([y[np.isfinite(y)] for y in shown])
    top = top or (1.08 * float(finite.max()) if finite.size and finite.max() > 0 else 1.0)
    legend = [(color, dash, name) for name, _, color, dash in lines]
    legend += [(INK, "1 2", mark[1])] if mark else []
    axes = Axes((float(x[0]), float(x[-1])), (0.0, top), xlabel, ylabel, legend)
    if band:
        axes.band(x, *band, lines[0][2])
    for _, y, color, dash in lines:
        axes.curve(x, y, color, dash, steps)
    if mark:
        axes.drawn.append(line([(axes.px(mark[0]), axes.low), (axes.px(mark[0]), axes.top)], INK, 1.5, "1 2"))
    summary = "; ".join(f"{name} from {_short(y[0])} to {_short(y[-1])}" for name, y, _, _ in lines)
    return axes.svg(title, f"{words or ylabel} by {xlabel}: {summary}")


def reliability_chart(bins: dict, title: str, what: str, floor: float | None = None) -> str:
    """Announced probability against how often it came true, with exact intervals; on log axes from `floor` if given."""
    p, f, low, high = (np.asarray(bins[key], float) for key in ("probability", "frequency", "low", "high"))
    end = (0.0, 1.0)
    if floor is not None:
        p, f, low, high = (np.log10(np.maximum(x, floor)) for x in (p, f, low, high))
        end = (math.log10(floor), 0.0)
    legend = [(GRAY, "4 3", "as announced, so it comes"), (BLUE, "", "the model, with exact 95 % intervals")]
    axes = Axes(end, end, "announced probability", "how often it came", legend, log=floor is not None)
    axes.curve(end, end, GRAY, dash="4 3")
    for x, y, a, b in zip(p, f, low, high, strict=True):
        axes.point(x, y, a, b, BLUE)
    points = "; ".join(f"{a:.3g} announced, {b:.3g} true" for a, b in zip(bins["probability"], bins["frequency"], strict=True))
    return axes.svg(title, f"{what}: {points}")


def plane_chart(dcal, dh, others: Sequence[tuple[str, float, float]] = ()) -> str:
    """The calibration plane. dcal, dh: (value, (low, high) or None); others: name, x, y of other predictors.

    An oracle is at the origin; the axes reach as far as the model, others beyond them stay at the edge.
    """
    bounds = [abs(end) for value, ci in (dcal, dh) for end in (value, *(ci or ()))]
    reach = 1.25 * max(*bounds, 0.2)
    axes = Axes((-reach, reach), (-reach, reach), "calibration gap, bits/frame", "excess entropy, bits/frame")
    axes.curve([0, 0], [-reach, reach], GRAY)
    axes.curve([-reach, reach], [0, 0], GRAY)
    for x, side, anchor in ((-0.96, "underconfident", "start"), (0.96, "overconfident", "end")):
        for y, up, words in ((1, -14, "averaging"), (-1, 20, "mode-dropping")):
            axes.label(x * reach, y * reach, f"{side},", "#555", anchor, up=up)
            axes.label(x * reach, y * reach, words, "#555", anchor, up=up - 14)
    for name, x, y in (("calibrated, as the world", 0.0, 0.0), *others):
        axes.point(x, y, y, y, GREEN if x == y == 0 else GRAY, hollow=True)
        right = x > 0.4 * reach
        axes.drawn.append(text(axes.px(x) + (-7 if right else 7), axes.py(y) + 14, name, "end" if right else "start", "#555"))
    if dcal[1]:
        axes.across(dh[0], *dcal[1], BLUE)
    axes.point(dcal[0], dh[0], *(dh[1] or (dh[0], dh[0])), BLUE)
    side, anchor = (-7, "end") if dcal[0] > 0.4 * reach else (7, "start")
    up = 17 if dh[0] > 0.5 * reach else -7  # clear of the words in the corners
    axes.drawn.append(text(axes.px(dcal[0]) + side, axes.py(dh[0]) + up, "this model", anchor, BLUE))
    return axes.svg("Calibration plane", f"calibration gap {dcal[0]:.3g} bits, entropy beyond the world's {dh[0]:.3g} bits")


def scatter(title: str, xlabel: str, ylabel: str, names: Sequence[str], x, y, x_ci=None, y_ci=None) -> str:
    """Points with their intervals (P, 2) and the identity line, on one scale; names of up to eight."""
    everything = np.concatenate([np.ravel(np.asarray(v, float)) for v in (x, y, x_ci, y_ci) if v is not None])
    low, high = float(np.nanmin(everything)), float(np.nanmax(everything))
    pad = 0.08 * (high - low) or 0.5
    axes = Axes((low - pad, high + pad), (low - pad, high + pad), xlabel, ylabel, [(GRAY, "4 3", "the same in both")])
    axes.curve([low - pad, high + pad], [low - pad, high + pad], GRAY, dash="4 3")
    taken: list[tuple[float, float]] = []
    for i, name in enumerate(names):
        if x_ci is not None:
            axes.across(y[i], *x_ci[i], BLUE)
        axes.point(x[i], y[i], *((y[i], y[i]) if y_ci is None else y_ci[i]), BLUE)
        left, right = (-7, "end"), (7, "start")
        for side, anchor in ((left, right) if x[i] > (low + high) / 2 else (right, left)) if len(names) <= 8 else ():
            for up in (-7, 16):
                at = (axes.px(x[i]) + side + (30 if side > 0 else -30), axes.py(y[i]) + up)
                if all(abs(at[0] - a) > 60 or abs(at[1] - b) > 13 for a, b in taken):
                    taken.append(at)
                    axes.drawn.append(text(axes.px(x[i]) + side, at[1], name[:20], anchor))
                    break
            else:
                continue
            break
    points = "; ".join(f"{name} {_short(a)}, {_short(b)}" for name, a, b in zip(names, x, y, strict=True))
    return axes.svg(title, f"{xlabel}, {ylabel}: {points}")


def heat_map(
    values: np.ndarray,
    title: str,
    unit: str,
    *,
    top: float | None = None,
    signed: bool = False,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> str:
    """(h, w) values as shaded cells with their numbers, if there is room. `top` has the darkest shade; signed: blue above
    zero, orange below; rows and columns: their names."""
    h, w = values.shape
    left = min(110, 7 * max(map(len, rows), default=0) + 8) if rows else 1
    above = LINE if columns else 1
    size = min(64, (W - 1 - left) // w)
    finite = values[np.isfinite(values)]
    top = top or (float(np.abs(finite).max()) if finite.size else 0.0) or 1.0
    cells = [] if finite.size == values.size else [HATCH]
    for i in range(h):
        if rows:
            cells.append(text(left - 5, above + i * size + size / 2 + 4, rows[i][:15], "end"))
        for j in range(w):
            value, x, y = float(values[i, j]), left + j * size, above + i * size
            share = min(1.0, abs(value) / top) if math.isfinite(value) else 0.0
            shade = "url(#none)" if not math.isfinite(value) else _shade(share, signed and value < 0)
            cells.append(f'<rect x="{x}" y="{y}" width="{size}" height="{size}" fill="{shade}" stroke="#ddd"/>')
            if size >= 32 and math.isfinite(value):
                color = "#fff" if share > 0.6 else INK
                cells.append(text(x + size / 2, y + size / 2 + 4, _cell(value), "middle", color, 11 if size < 40 else 12))
    for j, name in enumerate(columns):
        cells.append(text(left + j * size + size / 2, 12, name[: max(1, size // 6)], "middle"))
    words = f"{h} by {w}, from {_short(finite.min())} to {_short(finite.max())} {unit}" if finite.size else "nothing"
    return svg(title, words, cells, W, above + h * size + 1)


def ladder(rows: Sequence[tuple[str, float | None, tuple[float, float] | None, str]], title: str) -> str:
    """(words, skill, its interval, note): a bar each below its words, from the floor (0) to the ceiling (1), hatched where
    there is no skill.

    Green if the whole interval lies above the floor, orange if below; gray if neither, or if a note says not to rely on it.
    """
    x = lambda skill: 16 + (min(max(skill, -0.3), 1.05) + 0.3) / 1.35 * (W - 26)  # noqa: E731
    drawn, y, described = [HATCH], 20, []
    for name, skill, ci, note in rows:
        described.append(f"{name}{', ' if note else ''}{note}")
        for words in textwrap.wrap(described[-1], 56, max_lines=4, placeholder=" …"):
            y += LINE
            drawn.append(text(4, y - 3, words, color=INK if skill is not None else "#555"))
        if skill is None:
            drawn.append(f'<rect x="{x(0):.1f}" y="{y}" width="{x(1) - x(0):.1f}" height="9" fill="url(#none)"/>')
        else:
            left, right = sorted((x(0), x(skill)))
            color = GRAY if note or ci is None or ci[0] <= 0 <= ci[1] else GREEN if ci[0] > 0 else ORANGE
            drawn.append(f'<rect x="{left:.1f}" y="{y}" width="{max(1, right - left):.1f}" height="13" fill="{color}"/>')
            if ci is not None:
                drawn.append(line([(x(ci[0]), y + 6.5), (x(ci[1]), y + 6.5)], INK, 2))
                drawn += [line([(x(end), y + 2.5), (x(end), y + 10.5)], INK, 2) for end in ci]
            if skill < -0.3:
                drawn.append(text(2, y + 11, "◀"))
        y += 20
    for end, word in ((0.0, "floor"), (1.0, "ceiling")):
        drawn.insert(1, line([(x(end), 16), (x(end), y)], "#ccc", 1))
        drawn.append(text(x(end), 12, word, "middle"))
    return svg(title, f"share of the way from floor to ceiling: {'; '.join(described)}", drawn, W, y)


def _shade(share: float, below: bool) -> str:
    """White to blue, or to orange."""
    dark = (213, 94, 0) if below else (0, 114, 178)
    return "rgb(" + ",".join(f"{255 - (255 - channel) * share:.0f}" for channel in dark) + ")"


def _finite_runs(y) -> list[list[int]]:
    runs: list[list[int]] = [[]]
    for i, value in enumerate(y):
        if math.isfinite(value):
            runs[-1].append(i)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _tick(value: float, step: float) -> str:
    if abs(value) >= 10_000 or step < 1e-4:
        return f"{value:.1g}" if value else "0"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _cell(value: float) -> str:
    return "0" if abs(value) < 0.005 else f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}" if abs(value) < 0.1 else f"{value:.2f}"
