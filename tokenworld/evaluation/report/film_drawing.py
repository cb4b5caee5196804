"""A `Film` as a labeled picture, with time to the right, and as a labeled video. Drawn with Pillow: matplotlib is slow."""

from __future__ import annotations

import numpy as np

from tokenworld.evaluation.probes.film import VISIBLE, Film
from tokenworld.viz.frames import size_of, to_rgb

COLUMNS = 12  # frames side by side in a picture
SIDE, VIDEO_SIDE = 80, 200  # pixels of a frame's longer side, about
MARGIN, GAP, LINE = 104, 6, 15  # pixels: for the names of rows, between frames, of a line of text
INK, FAINT, WHITE = (34, 34, 34), (119, 119, 119), (255, 255, 255)
GOOD, BAD = (0, 114, 178), (213, 94, 0)  # of rewards above and below zero, and of ends (Okabe and Ito)
MARK = (255, 0, 255)  # around cells that differ: in no palette of frames
LEGEND = (f"magenta outline: the cell differs from the real one by more than {VISIBLE} of 255; below: reward (imagined:"
          " expected), END: the episode terminates (imagined: probability above 0.5)")  # fmt: skip


def strip(film: Film) -> np.ndarray:
    """All frames of a film, in bands of twelve, as one picture (H, W, 3) uint8: names of rows, steps, actions, rewards,
    ends, and an outline where a row differs from reality."""
    pictures = {name: _pictures(film, name, SIDE) for name in film.rows}
    h, w = pictures["real"].shape[1:3]
    w = max(w, 40)  # room for the name of an action
    bands = range(0, len(film), COLUMNS)
    band = 2 * LINE + len(pictures) * (h + LINE + 2) + GAP
    columns = min(COLUMNS, len(film))
    width = max(MARGIN + columns * (w + GAP), 560)
    legend = _wrapped(LEGEND, width - 2 * GAP)
    image, draw = _canvas(width, LINE + 2 * GAP + len(bands) * band + len(legend) * LINE + GAP)
    _text(draw, (GAP, GAP), film.title)
    top = LINE + 2 * GAP
    for begin in bands:
        for name, row in zip(pictures, range(len(pictures)), strict=True):
            _text(draw, (GAP, top + 2 * LINE + row * (h + LINE + 2) + h // 2 - LINE // 2), name)
        for t in range(begin, min(begin + COLUMNS, len(film))):
            left = MARGIN + (t - begin) * (w + GAP)
            _text(draw, (left, top), f"step {t + 1}", FAINT, w)
            _text(draw, (left, top + LINE), "new episode" if film.first[t] else film.actions[t], INK, w)
            for row, (name, frames) in enumerate(pictures.items()):
                y = top + 2 * LINE + row * (h + LINE + 2)
                image.paste(_image(frames[t]), (left, y))
                _text(draw, (left, y + h), *_returned(film, name, t), w)
        top += band
    for i, line in enumerate(legend):
        _text(draw, (GAP, top + i * LINE), line, FAINT)
    return np.asarray(image)


def video(film: Film) -> np.ndarray:
    """The rows of a film side by side, (T, H, W, 3) uint8, with their names, the step, its action, rewards and ends."""
    pictures = {name: _pictures(film, name, VIDEO_SIDE) for name in film.rows}
    h, w = pictures["real"].shape[1:3]
    w = max(w, 110)
    width = len(pictures) * (w + GAP) + GAP
    shown = []
    for t in range(len(film)):
        image, draw = _canvas(width, h + 4 * LINE + 2 * GAP)
        _text(draw, (GAP, GAP), film.title, FAINT, width)
        for i, (name, frames) in enumerate(pictures.items()):
            left = GAP + i * (w + GAP)
            _text(draw, (left, GAP + LINE), name)
            image.paste(_image(frames[t]), (left, GAP + 2 * LINE))
            _text(draw, (left, GAP + 2 * LINE + h), *_returned(film, name, t), w)
        words = "new episode" if film.first[t] else film.actions[t]
        _text(draw, (GAP, GAP + 3 * LINE + h), f"step {t + 1} of {len(film)}   {words}", INK, width)
        shown.append(np.asarray(image))
    return np.stack(shown)


def _returned(film: Film, name: str, t: int) -> tuple[str, tuple[int, int, int]]:
    """The reward and the end that came with a frame, in words, and their color."""
    reward = float(film.reward[name][t]) if name in film.reward else 0.0
    words = [f"{reward:+.2g}"] if abs(reward) >= 0.1 else []
    over = name in film.ended and bool(film.ended[name][t])
    return " ".join([*words, *["END"] * over]), BAD if over or reward < 0 else GOOD


def _pictures(film: Film, name: str, side: int) -> np.ndarray:
    """The frames of a row, (T, h, w, 3) uint8 of about so many pixels, with an outline around cells that differ."""
    H, W = film.rows[name].shape[-2:]
    longest = max(H, W)
    shrunk = film.rows[name][..., :: -(-longest // (2 * side)), :: -(-longest // (2 * side))]  # a picture stays small
    rgb = to_rgb(shrunk, scale=max(1, side // max(size_of(shrunk))), limits=film.limits).copy()
    h, w = rgb.shape[1:3]
    rows, columns = film.grid
    for t, i, j in zip(*np.nonzero(film.differs.get(name, np.zeros((0, 0, 0)))), strict=True):
        y, x = slice(i * h // rows, (i + 1) * h // rows), slice(j * w // columns, (j + 1) * w // columns)
        cell = rgb[t, y, x]
        cell[[0, -1]] = MARK
        cell[:, [0, -1]] = MARK
    return rgb


def _canvas(width: int, height: int):
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (width, height), WHITE)
    return image, ImageDraw.Draw(image)


def _image(rgb: np.ndarray):
    from PIL import Image

    return Image.fromarray(rgb)


def _font():
    from PIL import ImageFont

    return ImageFont.load_default(11)


def _text(draw, at: tuple[int, int], words: str, color: tuple[int, int, int] = INK, room: int | None = None) -> None:
    """Words at a place, cut to `room` pixels."""
    font = _font()
    while words and room is not None and font.getlength(words) > room:
        words = words[:-1]
    if words:
        draw.text(at, words, fill=color, font=font)


def _wrapped(words: str, width: int) -> list[str]:
    """Words in lines of at most so many pixels."""
    font, lines = _font(), [""]
    for word in words.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    return lines
