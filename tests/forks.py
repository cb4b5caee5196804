"""Commands in processes of their own that begin at once: one process has imported tokenworld, and forks each.

As a program it reads a JSON request a line, {"words", "folder", "patch"}, and answers with the process id of the command.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent


class Server:
    """Starts commands, with as many threads as this process has, so that their sums are the same; `stop` ends it."""

    def __init__(self) -> None:
        import torch

        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(HERE.parent)}
        call = [sys.executable, str(HERE / "forks.py")]
        self.process = subprocess.Popen(call, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, folder: Path, *words: str, patch: str = "") -> "Command":
        """Begin `tokenworld WORDS` in this folder; `patch` is Python that is executed before."""
        folder.mkdir(parents=True, exist_ok=True)
        request = {"words": list(map(str, words)), "folder": str(folder), "patch": patch}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Command(folder, int(self.process.stdout.readline()))

    def stop(self) -> None:
        self.process.communicate("")


class Command:
    """A command at work."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.folder, self.pid = folder, pid

    def text(self, name: str) -> str:
        return (self.folder / f"{self.pid}.{name}").read_text()

    def signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def until(self, path: Path, seconds: float = 60) -> None:
        """Wait until a file is there."""
        end = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < end and not (self.folder / f"{self.pid}.code").exists(), self.text("err")
            time.sleep(0.02)

    def ended(self, seconds: float = 60) -> tuple[int, str]:
        """(exit code, stderr); a command that hangs is killed, and fails the test."""
        code, end = self.folder / f"{self.pid}.code", time.monotonic() + seconds
        while not code.exists():
            if time.monotonic() > end:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"still at work after {seconds} s: {self.text('err')}")
            time.sleep(0.02)
        return int(code.read_text()), self.text("err")


def serve() -> None:
    for name in ("cli.main", "training.export", "sweep", "tokenizers.nearest", "data.collection"):  # what takes long to import
        importlib.import_module(f"tokenworld.{name}")
    for line in sys.stdin:
        request = json.loads(line)
        if os.fork() == 0:
            watch(**request)
            os._exit(0)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def watch(words: list[str], folder: str, patch: str) -> None:
    """Fork the command, tell its process id, and write its exit code to a file."""
    pid = os.fork()
    if pid == 0:
        run(words, folder, patch)
    print(pid, flush=True)
    _, status = os.waitpid(pid, 0)
    path = Path(folder) / f"{pid}.code"
    path.with_suffix(".part").write_text(str(os.waitstatus_to_exitcode(status)))
    path.with_suffix(".part").rename(path)


def run(words: list[str], folder: str, patch: str) -> None:
    from tokenworld.cli import main as cli

    os.chdir(folder)
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{os.getpid()}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, which they inherit
    sys.argv = ["tokenworld", *words]
    code = 1
    try:
        exec(patch, {})
        code = cli.main()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        import multiprocessing.util

        multiprocessing.util._exit_function()  # as the interpreter does before it ends
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
