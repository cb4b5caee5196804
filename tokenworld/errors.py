"""The error that users see, and the first line of other libraries' errors. Imports nothing: the command line starts fast."""

from __future__ import annotations

import re

LONGEST = 600  # characters of a sentence


class UserError(Exception):
    """Something the user can fix: one sentence that says what, got, expected and what to do. Exit code 2."""

    def __init__(self, text: str):
        super().__init__(sentence(text))


def sentence(text: str) -> str:
    """One line of at most `LONGEST` printable characters: values in it may come from a file of unknown origin.

    Of a text that is too long the beginning (what, got) and the end (expected, what to do) stay.
    """
    if not text.isprintable():  # line breaks, and what a terminal obeys
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    text = re.sub(r"\S{250,}", lambda match: f"{match[0][:100]}...{match[0][-50:]}", text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[5 - LONGEST // 2 :]}"


def first_line(error: BaseException) -> str:
    """The first line of another library's message, at most 200 characters; the type's name if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0].rstrip(".")[:200]
