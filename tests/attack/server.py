"""Run the command line many times at little cost: one process has tokenworld imported and forks a child for each run.

`Server` starts that process, with the failing disk preloaded but not armed. `Server.run(argv, ...)` is a run of
`tokenworld.cli.main(argv)` in a child of it, which ends as a process of its own would end. `Processes.run` is the same in a
real process. Both return an `Outcome`.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import gc
import importlib
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from disk import Plan, library

ROOT = Path(__file__).resolve().parents[2]
PRELOADED = (
    "minatar.environments.breakout torch._dynamo torch.utils.flop_counter torch.utils.serialization scipy.stats"
    " torch.profiler._cupti_monitor huggingface_hub tqdm PIL.Image einops vector_quantize_pytorch"
).split()
POLL = 0.003  # seconds


@dataclass(frozen=True)
class Outcome:
    """How a run ended. code: the exit code, minus the signal's number if it was killed by one."""

    code: int
    stdout: str
    stderr: str
    peak: int  # bytes of resident memory at most
    cpu: float  # seconds
    wall: float  # seconds
    is_timeout: bool = False
    answer: float | None = None  # seconds from the signal that it was sent to its end

    @property
    def is_killed(self) -> bool:
        return self.code < 0


def environment(**changes: str) -> dict[str, str]:
    """What a run finds in its environment: this checkout, one thread, no network."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
    dropped = ("LD_PRELOAD", "COLUMNS", "PYTEST_CURRENT_TEST")
    return {key: value for key, value in os.environ.items() if key not in dropped} | own | changes


@dataclass(frozen=True)
class Signal:
    """A signal to a run, some seconds after its file `watch` (relative to its folder) holds `text`, or after its start."""

    after: float
    number: int = int(signal.SIGKILL)
    watch: str = ""
    text: str = ""

    def is_due(self, cwd: Path) -> bool:
        """Does what is waited for hold?"""
        if not self.watch:
            return True
        path = cwd / self.watch
        try:
            return path.exists() and (not self.text or self.text in path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return False


class Processes:
    """The runs of a `Server`, each in a real process of its own."""

    def run(
        self, argv: list[str], cwd: Path, *, plan: Plan | None = None, sent: Signal | None = None, timeout: float = 300.0
    ) -> Outcome:
        """`python -m tokenworld.cli ARGV`, sent a signal if it still runs when that is due."""
        changes = {} if plan is None else {"LD_PRELOAD": str(library()), **plan.environment()}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            began, command = time.monotonic(), [sys.executable, "-m", "tokenworld.cli", *map(str, argv)]
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": err}
            process = subprocess.Popen(command, cwd=cwd, env=environment(**changes), start_new_session=True, **streams)
            found = _wait(process.pid, began, cwd, sent, timeout)
            process.returncode = found["code"]
            return Outcome(stdout=_tail(out), stderr=_tail(err), **found)


class Server:
    """A process that forks runs. A context manager; one run at a time."""

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None

    def __enter__(self) -> Server:
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            env=environment(LD_PRELOAD=str(library())),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()

    def run(
        self,
        argv: list[str],
        cwd: Path,
        *,
        plan: Plan | None = None,
        sent: Signal | None = None,
        timeout: float = 120.0,
        cpu_limit: int = 0,
        memory_limit: int = 0,
    ) -> Outcome:
        """Run a command line in a child. memory_limit: bytes of address space beyond what the child begins with."""
        asked = {
            "argv": list(map(str, argv)), "cwd": str(cwd), "plan": None if plan is None else dataclasses.asdict(plan),
            "sent": None if sent is None else dataclasses.asdict(sent), "timeout": timeout, "cpu_limit": cpu_limit,
            "memory_limit": memory_limit,
        }  # fmt: skip
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fork server ended with exit code {self.process.wait()}")
        return Outcome(**json.loads(line))


def _wait(pid: int, began: float, cwd: Path, sent: Signal | None, timeout: float) -> dict:
    """Wait for a child that leads its own process group; its fields of an `Outcome`, without the output."""
    is_timeout, due, signalled = False, None, None
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        now = time.monotonic()
        if done:
            break
        if sent is not None and due is None and sent.is_due(cwd):
            due = now + sent.after
        if due is not None and signalled is None and now >= due:
            os.kill(pid, sent.number)
            signalled = now
        if now - began >= timeout:
            is_timeout = True
            os.kill(pid, signal.SIGKILL)
        time.sleep(POLL)
    try:
        os.killpg(pid, signal.SIGKILL)  # workers that it left
    except (ProcessLookupError, PermissionError):
        pass
    return {
        "code": os.waitstatus_to_exitcode(status), "peak": usage.ru_maxrss * 1024, "cpu": usage.ru_utime + usage.ru_stime,
        "wall": now - began, "is_timeout": is_timeout, "answer": None if signalled is None else now - signalled,
    }  # fmt: skip


def _tail(file, limit: int = 100_000) -> str:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - limit))
    return file.read().decode("utf-8", "replace")


# ---------------------------------------------------------------------------------------------------------------------
# The server's side


def serve() -> list[str] | None:
    """Answer requests until stdin ends: None then. In a child: the command line that it is to run."""
    requests, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    os.environ.pop("LD_PRELOAD", None)  # a child's own processes are left alone
    _preload()
    while line := requests.readline():
        asked = json.loads(line)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            began = time.monotonic()
            pid = os.fork()
            if pid == 0:
                _become(asked, out.fileno(), err.fileno())
                return asked["argv"]
            sent = None if asked["sent"] is None else Signal(**asked["sent"])
            found = _wait(pid, began, Path(asked["cwd"]), sent, asked["timeout"])
            answers.write(json.dumps({"stdout": _tail(out), "stderr": _tail(err), **found}) + "\n")
            answers.flush()
    return None


def _become(asked: dict, out: int, err: int) -> None:
    """Make this child look like a process that was started for the request."""
    os.setsid()
    os.chdir(asked["cwd"])
    os.dup2(out, 1)
    os.dup2(err, 2)
    sys.argv = ["tokenworld", *asked["argv"]]
    sys.path[0] = ""  # as with python -m
    random.seed(0)  # a fork draws new random numbers of Python's: what a run does not seed itself is equal in each
    if asked["cpu_limit"]:
        resource.setrlimit(resource.RLIMIT_CPU, (asked["cpu_limit"], asked["cpu_limit"] + 1))
    if asked["memory_limit"]:
        with open("/proc/self/statm") as file:
            now = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (now + asked["memory_limit"],) * 2)
    if asked["plan"] is not None:
        Plan(**asked["plan"]).arm(ctypes.CDLL(None))


def _preload() -> None:
    """Import what runs need, so that children share it; what is not installed here is left out."""
    package = ROOT / "tokenworld"
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in package.rglob("*.py")]
    names += [f"tokenworld.tokenizers.{path.stem}" for path in (package / "tokenizers").glob("*.py")]
    for name in [*names, *PRELOADED]:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    with contextlib.suppress(Exception):
        from PIL import Image

        from tokenworld.config import compose

        Image.init()
        compose.compose(["overlay=debug"])
    gc.collect()
    gc.freeze()  # a child's collections leave these objects alone


def _end(code: object) -> None:
    """End as the interpreter would, without the second that it takes to free all modules: what is buffered is written."""
    with contextlib.suppress(Exception):
        threading._shutdown()
    gc.collect()
    for found in gc.get_objects():
        if isinstance(found, io.IOBase) and not found.closed and found not in (sys.stdout, sys.stderr):
            try:
                found.flush()
            except Exception as error:
                print(f"Exception ignored in: {found!r}\n{type(error).__name__}: {error}", file=sys.stderr)
    atexit._run_exitfuncs()
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code & 0xFF if isinstance(code, int) else int(code is not None))


def _child(argv: list[str]) -> None:
    """Run a command line as `python -m tokenworld.cli` does; `-c CODE` is Python, whose UserError ends as a command's does."""
    from tokenworld.cli import main as cli
    from tokenworld.errors import UserError

    try:
        if argv[0] != "-c":
            _end(cli.main(argv))
        exec(compile(argv[1], "<code>", "exec"), {})
        _end(0)
    except SystemExit as error:
        _end(error.code)
    except BaseException as error:
        if argv[0] == "-c" and isinstance(error, UserError):
            print(f"tokenworld: {error}", file=sys.stderr)
            _end(2)
        traceback.print_exc()
        _end(1)


if __name__ == "__main__":
    argv = serve()
    if argv is not None:
        _child(argv)
