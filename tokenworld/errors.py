"""The error that users see, and the first line of other libraries' errors. Imports nothing: the command line starts fast."""

from __future__ import annotations


LONGEST = 600  # characters of a sentence: values in it may come from a file


class UserError(Exception):
    """Something the user can fix: one sentence that says what, got, expected and what to do. Exit code 2.

    Of a sentence that is too long the beginning (what, got) and the end (expected, what to do) stay.
    """

    def __init__(self, sentence: str):
        if len(sentence) > LONGEST:
            sentence = f"{sentence[: LONGEST // 2]} ... {sentence[5 - LONGEST // 2 :]}"
        super().__init__(sentence)


def first_line(error: BaseException) -> str:
    """The first line of another library's message, at most 200 characters; the type's name if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0].rstrip(".")[:200]
