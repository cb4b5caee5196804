"""The failing disk from Python: compile it, say what it does, read what it logged."""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("failing_disk.c")
COMPILERS = {"g++": ("-x", "c++"), "c++": ("-x", "c++"), "gcc": (), "cc": ()}
ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EROFS", "EIO", "EFBIG")}
ACTIONS = ("count", "kill", "half", "fail")  # their places are the numbers that failing_disk.c has for them


@dataclass(frozen=True)
class Plan:
    """What the disk does at its `at`-th call below `root`. action: count, kill, half (a kill after half of a write), fail."""

    root: str
    at: int = 0
    action: str = "count"
    error: int = 0
    once: bool = False
    log: str = ""

    def environment(self) -> dict[str, str]:
        """The variables that arm the library in a process of its own."""
        return {"ATTACK_ROOT": self.root, "ATTACK_AT": str(self.at), "ATTACK_DO": self.action, "ATTACK_LOG": self.log,
                "ATTACK_ERRNO": str(self.error), "ATTACK_ONCE": str(int(self.once))}  # fmt: skip

    def arm(self, handle: ctypes.CDLL) -> None:
        """Arm the library that is loaded into this process."""
        arm = handle.attack_arm
        arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_char_p]
        arm(os.fsencode(self.root), self.at, ACTIONS.index(self.action), self.error, self.once, os.fsencode(self.log))


@dataclass(frozen=True)
class Call:
    """One call of a log. path is relative to the plan's root."""

    number: int
    name: str
    path: str
    size: int

    @property
    def kind(self) -> str:
        """What is done to which kind of file, without the parts of a temporary name that differ from run to run."""
        name = re.sub(r"\.tmp-\d+(-\d+)?-", ".tmp-", self.path.strip("/"))
        return f"{self.name} {re.sub(r'[-_.]?[0-9a-z_]{8}$', '', name) if '/tmp' in name else name}"


def missing() -> str:
    """Why there is no failing disk here; empty if there is one."""
    if not sys.platform.startswith("linux"):
        return "LD_PRELOAD needs Linux"
    if not any(map(shutil.which, COMPILERS)):
        return f"there is no compiler: expected one of {', '.join(COMPILERS)}"
    try:
        library()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"failing_disk.c cannot be compiled: {error}"
    return ""


@functools.cache
def library() -> Path:
    """The compiled library, in a folder of this user's for temporary files. Named after its source, so compiled once."""
    compiler, flags = next((name, flags) for name, flags in COMPILERS.items() if shutil.which(name))
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"failing-disk-{os.getuid()}-{digest}.so"
    if not (path.is_file() and path.stat().st_uid == os.getuid()):
        temporary = path.with_suffix(f".{os.getpid()}")
        command = [compiler, *flags, "-shared", "-fPIC", "-O1", "-w", str(SOURCE), "-x", "none", "-o", str(temporary), "-ldl"]
        subprocess.run([word for word in command if flags or word not in ("-x", "none")], check=True, capture_output=True)
        temporary.replace(path)
    return path


def read_log(path: Path) -> list[Call]:
    calls = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        number, name, *middle, size = line.split(" ")
        calls.append(Call(int(number), name, " ".join(middle), int(size)))
    return calls


def choose(calls: list[Call], of_each: int = 3) -> list[Call]:
    """The first, the last and middle calls of each kind, at most `of_each` of one kind, in order."""
    kinds: dict[str, list[Call]] = {}
    for call in calls:
        kinds.setdefault(call.kind, []).append(call)
    chosen = set()
    for same in kinds.values():
        steps = min(of_each, len(same))
        chosen |= {same[round(i * (len(same) - 1) / max(1, steps - 1))] for i in range(steps)}
    return sorted(chosen, key=lambda call: call.number)
