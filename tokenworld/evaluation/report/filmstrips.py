"""Branches as pictures: what was seen, all that could come of it and how likely, and what the model gives it and draws."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np

from tokenworld.evaluation.records import SAMPLES, SHOWN, Branching
from tokenworld.viz.frames import to_rgb

BRANCHES, CONTEXT = 5, 4  # frames of a row, at most
SIDE = 96  # pixels of a picture, at most
MOST = 3_500_000  # characters of all pictures: the page stays below 5 MB


def strips(branchings: Sequence[Branching]) -> str:
    """Up to eight states, the worst first, as HTML with the pictures inside it."""
    parts, size = [], 0
    for branching in sorted(branchings, key=lambda each: -each.kl)[:SHOWN]:
        part = _strip(branching)
        size += len(part)
        if size > MOST:
            parts.append('<p class="off">Further states are left out: the file would grow beyond 5 MB.</p>')
            break
        parts.append(part)
    return "".join(parts)


def picture(frame: np.ndarray, words: str, limits: tuple[np.ndarray, np.ndarray] | None = None) -> str:
    """A frame (C, H, W) uint8 as an image in the page, its longer side at most 96 pixels; words for who cannot see it. limits:
    of the numbers of a state vector."""
    step = max(1, -(-max(frame.shape[-2:]) // SIDE))
    return _image(to_rgb(np.asarray(frame)[:, ::step, ::step], scale=1, limits=limits), words)


def _strip(branching: Branching) -> str:
    order = np.argsort(-np.asarray(branching.p, float), kind="stable")[:BRANCHES]
    last, p, q = len(branching.context) - 1, branching.p, branching.q
    limits = branching.limits
    context = [_cell(picture(frame, "what was seen", limits), f"t - {last - i}" if i < last else "now")
               for i, frame in enumerate(branching.context)][-CONTEXT:]  # fmt: skip
    branches = [
        _cell(picture(branching.frames[j], f"can come with probability {p[j]:.3g}", limits), _bars(float(p[j]), float(q[j])))
        for j in order
    ]
    if len(branching.p) > len(order):
        branches.append(f'<span class="off">and {len(branching.p) - len(order)} less likely</span>')
    drawn = [_cell(picture(frame, "drawn by the model", limits), "") for frame in branching.samples[:SAMPLES]]
    if branching.changed is not None:
        mask = np.where(np.asarray(branching.changed, bool), 0, 235).astype(np.uint8)[..., None].repeat(3, -1)
        drawn.append(_cell(_image(mask, "where what can come differs, in black"), "black: where what can come differs"))
    rows = [("seen", context), ("can come", branches), ("model draws", drawn)]
    cells = "".join(f'<div class="strip"><b>{name}</b>{"".join(row)}</div>' for name, row in rows if row)
    return f'<div class="branching"><p>{escape(branching.words)}: {branching.kl:.2f} bits</p>{cells}</div>'


def _bars(p: float, q: float) -> str:
    """Both probabilities, in words and as bars."""
    width = (f"{100 * min(1.0, max(0.0, x)):.0f}%" for x in (p, q))
    true, model = (f'<i class="{name}" style="width:{w}"></i>' for name, w in zip(("p", "q"), width, strict=True))
    return f"{true}{model}world {_percent(p)}<br>model {_percent(q)}"


def _percent(x: float) -> str:
    return f"{x:.0%}" if x >= 0.1 else f"{x:.1%}" if x >= 0.001 or x == 0 else f"{x:.0e}"


def _cell(image: str, below: str) -> str:
    return f"<span>{image}<br>{below}</span>"


def _image(rgb: np.ndarray, words: str) -> str:
    """rgb (H, W, 3) uint8."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(rgb).quantize(256).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{data}">'
