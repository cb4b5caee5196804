"""Files of this user alone: what is kept between two starts, and is trusted when it is found again.

They lie where the XDG Base Directory Specification puts them. A file that another user could have written is never used:
its owner and that of its folder must be this user, and nobody else may write to either.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
from pathlib import Path


def file(variable: str, default: str, name: str) -> Path | None:
    """The path of a file in the folder `tokenworld` below the one that `variable` names (else `default` in the home folder).

    What lies at the path is this user's own: anything else there is removed. None where there is no such folder: no home
    folder is known, or it cannot be written or belongs to another user.
    """
    base = _base(variable, default)
    if base is None:
        return None
    try:
        (base / "tokenworld").mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = Path(os.path.realpath(base / "tokenworld"))
        path = folder / name
        if not _is_mine(folder.stat()):
            return None
        was_open = _is_open(folder.stat())
        if was_open:
            folder.chmod(0o700)
        if os.path.lexists(path) and (was_open or not _is_trusted(path.lstat())):
            path.unlink()
    except OSError:
        return None
    return path


def token(name: str) -> str:
    """Random, made once for each user and kept where only they can read it. Where nothing can be kept, a new one each time."""
    new, path = secrets.token_urlsafe(32), file("XDG_STATE_HOME", ".local/state", name)
    if path is None:
        return new
    try:
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
                opened.write(new)
        except FileExistsError:
            existing = path.read_text(encoding="ascii")
            if (os.name != "posix" or path.stat().st_mode & 0o077 == 0) and re.fullmatch(r"[\w-]{43}", existing):
                return existing
            path.unlink()  # others could read it, or it is damaged
            return token(name)
    except (OSError, ValueError):
        pass
    return new


def _base(variable: str, default: str) -> Path | None:
    """A relative path in the variable is invalid and ignored, as the specification says."""
    named = os.environ.get(variable, "")
    if os.path.isabs(named):
        return Path(named)
    home = os.path.expanduser("~") if os.environ.get("HOME", "unset") else ""  # "~" of a user that no one knows
    return Path(home) / default if os.path.isabs(home) else None


def _is_trusted(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and _is_mine(status) and not _is_open(status)


def _is_mine(status: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()


def _is_open(status: os.stat_result) -> bool:
    """May others write to it? (Only POSIX says so in the mode.)"""
    return os.name == "posix" and bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
