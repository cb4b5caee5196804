"""Any whole number from 0 on is a seed: what a game cannot hold is folded into what it can."""

from __future__ import annotations

import operator

from tokenworld.errors import UserError


def fold(seed: int | None, limit: int | None = None) -> int | None:
    """Return `seed` modulo `limit` as a Python int, so that a seed below `limit` stays as it is; None stays None.

    Without a limit the seed is only checked. Raises UserError for what is no whole number (NumPy's are), or negative.
    """
    if seed is None:
        return None
    try:
        whole = operator.index(seed)
    except TypeError:
        whole = -1
    if whole < 0:
        raise UserError(f"a seed must be a whole number from 0 on, got {seed!r}: choose e.g. 0")
    return whole if limit is None else whole % limit
