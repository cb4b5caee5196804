"""Charts as inline SVG: no script, no network, readable at 400 pixels and in print, told apart without colour.

Colours are Okabe and Ito's (2008). Every chart has a title and a description for screen readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#999999", "#222222"
W, H = 380, 260  # of a chart
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 40


def svg(title: str, description: str, content: Sequence[str], width: int = W, height: int = H) -> str:
    head = f'<svg viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg">'
    return f"{head}<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(content)}</svg>"


def text(x: float, y: float, words: str, anchor: str = "start", colour: str = INK, size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{escape(words)}</text>'


def line(points: Sequence[tuple[float, float]], colour: str, width: float = 2, dash: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"{dashed}/>'


class Axes:
    """A frame with ticks, and the way from data to pixels."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], xlabel: str, ylabel: str):
        self.x0, self.x1 = x if x[1] > x[0] else (x[0], x[0] + 1)
        self.y0, self.y1 = y if y[1] > y[0] else (y[0], y[0] + 1)
        self.drawn = [f'<rect x="{LEFT}" y="{TOP}" width="{W - LEFT - RIGHT}" height="{H - TOP - BOTTOM}" fill="none" '
                      f'stroke="{GREY}"/>']  # fmt: skip
        for value in np.linspace(self.x0, self.x1, 5):
            self.drawn.append(text(self.px(value), H - BOTTOM + 15, _short(value), "middle"))
        for value in np.linspace(self.y0, self.y1, 5):
            self.drawn.append(text(LEFT - 5, self.py(value) + 4, _short(value), "end"))
        self.drawn.append(text((LEFT + W - RIGHT) / 2, H - 6, xlabel, "middle"))
        self.drawn.append(f'<g transform="translate(11 {(TOP + H - BOTTOM) / 2:.0f}) rotate(-90)">'
                          f'{text(0, 0, ylabel, "middle")}</g>')  # fmt: skip

    def px(self, x: float) -> float:
        return LEFT + (x - self.x0) / (self.x1 - self.x0) * (W - LEFT - RIGHT)

    def py(self, y: float) -> float:
        return H - BOTTOM - (y - self.y0) / (self.y1 - self.y0) * (H - TOP - BOTTOM)

    def curve(self, x, y, colour: str, dash: str = "") -> None:
        self.drawn.append(line([(self.px(a), self.py(b)) for a, b in zip(x, y, strict=True)], colour, dash=dash))

    def band(self, x, low, high, colour: str) -> None:
        there = [(self.px(a), self.py(b)) for a, b in zip(x, high, strict=True)]
        back = [(self.px(a), self.py(b)) for a, b in zip(x, low, strict=True)][::-1]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in there + back)
        self.drawn.append(f'<polygon points="{path}" fill="{colour}" opacity="0.2"/>')

    def point(self, x: float, y: float, low: float, high: float, colour: str) -> None:
        self.drawn.append(line([(self.px(x), self.py(low)), (self.px(x), self.py(high))], colour))
        self.drawn.append(f'<circle cx="{self.px(x):.1f}" cy="{self.py(y):.1f}" r="3.5" fill="{colour}"/>')

    def label(self, x: float, y: float, words: str, colour: str, anchor: str = "end") -> None:
        self.drawn.append(text(self.px(x), self.py(y), words, anchor, colour))


def reliability_chart(bins: dict, title: str, what: str, floor: float | None = None) -> str:
    """Announced probability against how often it came true, with exact intervals; on log axes from `floor` if given."""
    p, f, low, high = (np.asarray(bins[key], float) for key in ("probability", "frequency", "low", "high"))
    label = ""
    if floor is not None:
        p, f, low, high = (np.log10(np.maximum(x, floor)) for x in (p, f, low, high))
        label, end = " (powers of ten)", (np.log10(floor), 0.0)
    else:
        end = (0.0, 1.0)
    axes = Axes(end, end, f"announced{label}", f"came true{label}")
    axes.curve(end, end, GREY, dash="4 3")
    for x, y, a, b in zip(p, f, low, high, strict=True):
        axes.point(x, y, a, b, BLUE)
    points = "; ".join(f"{a:.3g} announced, {b:.3g} true" for a, b in zip(bins["probability"], bins["frequency"], strict=True))
    return svg(title, f"{what}: {points}", axes.drawn)


def drift_chart(curves: dict, horizon: float | None) -> str:
    t = np.arange(1, len(curves["model"]) + 1)
    top = float(max(curves["copy"].max(), curves["high"].max())) * 1.35 or 1.0  # room for the words
    axes = Axes((1, len(t)), (0, top), "dreamt steps", "energy score")
    axes.curve(t, curves["copy"], ORANGE, dash="6 3")
    axes.curve(t, curves["copy"] / 2, GREY, dash="2 3")
    axes.band(t, curves["low"], curves["high"], BLUE)
    axes.curve(t, curves["model"], BLUE)
    middle = len(t) // 2
    axes.label(1.2, top * 0.95, "- - a frame that stands still", ORANGE, "start")
    axes.label(1.2, top * 0.88, "··· half of it", INK, "start")
    axes.label(t[middle], curves["high"][middle] + top * 0.03, "the dream", BLUE)
    if horizon is not None and 1 <= horizon <= len(t):
        axes.drawn.append(line([(axes.px(horizon), axes.py(0)), (axes.px(horizon), axes.py(top))], INK, 1))
    ends = f"the dream ends at {curves['model'][-1]:.3g}, the standing frame at {curves['copy'][-1]:.3g}"
    return svg("Drift", f"Energy score by dreamt steps: {ends}", axes.drawn)


def plane_chart(dcal: float, dh: float) -> str:
    """The calibration plane: a point, and the names of the quadrants it could be in."""
    reach = 1.2 * max(abs(dcal), abs(dh), 0.25)
    axes = Axes((-reach, reach), (-reach, reach), "calibration gap, bits", "spread gap, bits")
    axes.curve([0, 0], [-reach, reach], GREY)
    axes.curve([-reach, reach], [0, 0], GREY)
    axes.label(-0.95 * reach, 0.88 * reach, "averaging", GREY, "start")
    axes.label(0.95 * reach, 0.88 * reach, "averaging, overconfident", GREY)
    axes.label(-0.95 * reach, -0.95 * reach, "drops futures", GREY, "start")
    axes.label(0.95 * reach, -0.95 * reach, "drops futures, overconfident", GREY)
    axes.label(0.02 * reach, 0.04 * reach, "right", INK, "start")
    axes.point(dcal, dh, dh, dh, BLUE)
    return svg("Calibration plane", f"calibration gap {dcal:.3g} bits, spread gap {dh:.3g} bits", axes.drawn)


def distance_chart(curves: dict) -> str:
    t = np.arange(1, len(curves["model"]) + 1)
    top = float(np.nanmax(np.concatenate([curves["copy"], curves["high"]]))) * 1.35 or 1.0
    axes = Axes((1, len(t)), (0, top), "steps", "energy distance")
    axes.curve(t, np.nan_to_num(curves["copy"]), ORANGE, dash="6 3")
    axes.curve(t, np.nan_to_num(curves["second"]), GREEN, dash="2 3")
    axes.band(t, np.clip(np.nan_to_num(curves["low"]), 0, top), np.clip(np.nan_to_num(curves["high"]), 0, top), BLUE)
    axes.curve(t, np.clip(np.nan_to_num(curves["model"]), 0, top), BLUE)
    axes.label(1.2, top * 0.95, "- - a frame that stands still", ORANGE, "start")
    axes.label(1.2, top * 0.88, "··· other real futures", GREEN, "start")
    axes.label(1.2, top * 0.81, "— dreams", BLUE, "start")
    ends = f"at the end {curves['model'][-1]:.3g}, standing frame {curves['copy'][-1]:.3g}"
    return svg("Distance of futures", ends, axes.drawn)


def heat_map(values: np.ndarray, title: str, unit: str, top: float | None = None) -> str:
    """(h, w) values as shaded cells with their numbers, if there is room for them; `top` has the darkest shade."""
    h, w = values.shape
    size = min(64, (W - 2) // w)
    top = top or float(values.max()) or 1.0
    cells = []
    for i in range(h):
        for j in range(w):
            share = float(values[i, j]) / top
            shade = f"rgb({255 - 255 * share:.0f},{255 - 141 * share:.0f},{255 - 77 * share:.0f})"
            cells.append(f'<rect x="{j * size + 1}" y="{i * size + 1}" width="{size}" height="{size}" fill="{shade}" '
                         f'stroke="#ddd"/>')  # fmt: skip
            if size >= 34:
                colour = "#fff" if share > 0.6 else INK
                x, y = j * size + size / 2, i * size + size / 2 + 4
                cells.append(text(x, y, _cell(float(values[i, j])), "middle", colour, 11))
    words = f"{h} by {w} positions, from {values.min():.3g} to {values.max():.3g} {unit}"
    return svg(title, words, cells, w * size + 2, h * size + 2)


def ladder(rows: Sequence[tuple[str, float | None, tuple[float, float] | None, str]]) -> str:
    """(name, skill, its interval, reason why not measured): a bar each, from the floor (0) to the ceiling (1)."""
    height, wide = 40 * len(rows) + 24, 380
    x = lambda skill: 10 + (min(max(skill, -0.25), 1.1) + 0.25) / 1.35 * (wide - 20)  # noqa: E731
    drawn = [
        '<defs><pattern id="none" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<rect width="6" height="6" fill="#eee"/><line x1="0" y1="0" x2="0" y2="6" stroke="#bbb" stroke-width="2"/>'
        "</pattern></defs>"
    ]
    for end, word in ((0.0, "floor"), (1.0, "ceiling")):
        drawn.append(line([(x(end), 16), (x(end), height)], GREY, 1))
        drawn.append(text(x(end), 11, word, "middle"))
    for i, (name, skill, ci, reason) in enumerate(rows):
        y = 24 + 40 * i
        if skill is None:
            drawn.append(f'<rect x="{x(0):.1f}" y="{y + 14}" width="{x(1) - x(0):.1f}" height="14" fill="url(#none)"/>')
            drawn.append(text(x(0), y + 10, f"{name}: {reason}"[:64]))
            continue
        left, right = sorted((x(0), x(skill)))
        sure = ci is not None and min(ci) > 0
        drawn.append(f'<rect x="{left:.1f}" y="{y + 14}" width="{max(1, right - left):.1f}" height="14" '
                     f'fill="{GREEN if sure else ORANGE}"/>')  # fmt: skip
        if ci is not None:
            drawn.append(line([(x(min(ci)), y + 21), (x(max(ci)), y + 21)], INK, 2))
        drawn.append(text(x(0), y + 10, f"{name}: {skill:.2f}"))
    told = "; ".join(f"{name} {'not measured' if skill is None else format(skill, '.2f')}" for name, skill, _, _ in rows)
    return svg("Skill between floor and ceiling", told, drawn, wide, height)


def _cell(value: float) -> str:
    return "<.01" if abs(value) < 0.01 else f"{value:.2g}"


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.2g}"
