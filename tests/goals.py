"""How readable the code base is, in numbers: `python tests/goals.py [COMMIT]` prints them, of a commit and of the working tree.

The goals and their targets are in GOALS; test_goals.py holds the code base to them.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIRST = "07da873"  # the commit that the targets were set for
LONG = 400  # lines of a file
RUN = 6  # equal lines in a row that count as a copy
SHAPED = ("decoding", "backbones", "tokenizers", "policies", "heads", "nn", "kernels", "world_model", "imagination")
RESHAPING = {"view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "flatten", "unflatten", "expand", "repeat",
             "stack", "cat", "split", "chunk", "gather", "rearrange", "repeat_interleave", "movedim", "unbind"}  # fmt: skip
SHAPE = re.compile(r"#.*\([A-Z0-9][\w +*/·-]*(, ?[\w+*/ ·-]+)*,?\)")
NEW_ORDER = ("interfaces", "world_model", "decoding/autoregressive", "imagination", "training/loop",
             "training/phases/dynamics", "training/phases/policy")  # fmt: skip
OLD_ORDER = ("interfaces", "world_model", "decoding/parallel", "imagination", "train", "run", "building")
PHASES = ("collect", "train_tokenizer", "train_dynamics", "train_policy", "train_policy_model_free",
          "evolve_policy", "evaluate")


def files_of(root: Path) -> dict[str, Path]:
    """Name from the package on ("decoding/parallel") -> file, of the library; tokenizers/ is a part of it."""
    found = {}
    for folder, inside in ((root / "tokenworld", ""), (root / "tokenizers", "tokenizers/")):
        for path in sorted(folder.rglob("*.py")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if inside or not name.startswith("tokenizers"):
                found[inside + name] = path
    return found


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def long_files(root: Path) -> list[str]:
    """Files of more than LONG lines that give no reason ("long because ...") in their first ten lines."""
    return [f"{name} {len(lines)}" for name, path in files_of(root).items()
            if len(lines := lines_of(path)) > LONG and "long because" not in " ".join(lines[:10]).lower()]  # fmt: skip


def imports_of(root: Path) -> dict[str, set[str]]:
    """file -> the files of the library that it imports, also inside functions."""
    files = files_of(root)
    modules = {f"tokenworld.{name.removesuffix('/__init__').replace('/', '.')}": name for name in files}
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        used: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                wholes = {f"{node.module}.{alias.name}" for alias in node.names}
                used |= {whole if whole in modules else str(node.module) for whole in wholes}
        found[name] = {modules[module] for module in used if module in modules} - {name}
    return found


def cycles(root: Path) -> list[str]:
    """A file that is imported by what it imports, for each such group."""
    graph, state, found = imports_of(root), {}, []

    def visit(name: str, path: tuple[str, ...]) -> None:
        if state.get(name) == "open":
            found.append(" -> ".join([*path[path.index(name) :], name]))
        if name not in state:
            state[name] = "open"
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            state[name] = "done"

    for name in graph:
        visit(name, ())
    return found


def duplication(root: Path) -> float:
    """Per cent of the code lines that lie in a run of RUN lines which also stands elsewhere, imports aside."""
    texts = {}
    for name, path in files_of(root).items():
        code = [line.strip() for line in lines_of(path)]
        texts[name] = [line for line in code if line and not line.startswith(("#", "import ", "from "))]
    runs = defaultdict(list)
    for name, code in texts.items():
        for i in range(len(code) - RUN + 1):
            runs["\n".join(code[i : i + RUN])].append((name, i))
    copied = {(name, i + j) for places in runs.values() if len(places) > 1 for name, i in places for j in range(RUN)}
    return 100 * len(copied) / sum(map(len, texts.values()))


def function_lengths(root: Path) -> list[int]:
    return [node.end_lineno - node.lineno + 1 for path in files_of(root).values()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.FunctionDef)]  # fmt: skip


def lines_with_shapes(root: Path) -> float:
    """Per cent of the reshaping statements whose shape stands on them or on the line above."""
    commented = total = 0
    for name, path in files_of(root).items():
        if name.split("/")[0] not in SHAPED:
            continue
        text = lines_of(path)
        for node in ast.walk(ast.parse("\n".join(text))):
            if not isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return)):
                continue
            calls = [each.func for each in ast.walk(node) if isinstance(each, ast.Call)]
            if any((call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "")) in RESHAPING for call in calls):
                total += 1
                commented += any(SHAPE.search(line) for line in text[max(0, node.lineno - 2) : node.end_lineno])
    return 100 * commented / total


def reading_order(root: Path) -> int:
    """Lines of the files to read in order before changing a part, and of one recipe."""
    files = files_of(root)
    order = NEW_ORDER if "training/loop" in files else OLD_ORDER
    recipe = lines_of(root / "configs" / "iris.yaml") if order is NEW_ORDER else []
    return len(recipe) + sum(len(lines_of(files[name])) for name in order)


def files_of_an_id(root: Path) -> int:
    """In how many files of the library the metric's id, or its alias, that most files spell is spelled; studies aside.

    An alias is "M2.dcal"; an id is the name of a file of metrics/, a dot and a word, alone in a string of that file. Both
    count wherever they stand in a string: in code, help, messages and docstrings.
    """
    files = {name: path for name, path in files_of(root).items() if not name.startswith("studies/")}
    texts = {name: [node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                    if isinstance(node, ast.Constant) and isinstance(node.value, str)]
             for name, path in files.items()}  # fmt: skip
    ids = {text for name, each in texts.items() if name.startswith("evaluation/metrics/") for text in each
           if re.fullmatch(rf"{name.split('/')[-1]}\.[a-z]\w*", text)}  # fmt: skip
    word = re.compile(r"(?<![\w./])(M\d+\.\w+|[a-z]\w*\.[a-z]\w*)(?![\w.(])")
    spelled = defaultdict(set)
    for name, each in texts.items():
        for id in set(word.findall("\n".join(each))):
            if id in ids or id[0] == "M":
                spelled[id].add(name)
    return max(map(len, spelled.values()))


def files_of_a_key(root: Path) -> int:
    """In how many files of the library a key of one command is spelled, as a string or as `key=` in one; of keys whose names
    mean nothing else."""
    counts = []
    for key in ("budget", "private", "repeats"):
        spelled = re.compile(rf"(?<![\w.]){key}=|^{key}$")
        texts = [[node.value for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                  if isinstance(node, ast.Constant) and isinstance(node.value, str)]
                 for path in files_of(root).values()]  # fmt: skip
        counts.append(sum(any(map(spelled.search, text)) for text in texts))
    return max(counts)


def phases_in_a_file(root: Path) -> int:
    """The most phases that one file defines."""
    counts = Counter(name for name, path in files_of(root).items()
                     for node in ast.parse(path.read_text(encoding="utf-8")).body
                     if isinstance(node, ast.FunctionDef) and node.name in PHASES
                     and any(arg.arg == "run" for arg in node.args.args))  # fmt: skip
    return max(counts.values())


def evaluation_entries(root: Path) -> int:
    """Files and folders of evaluation/ itself."""
    found = {name.split("/")[1] for name in files_of(root) if name.startswith("evaluation/")}
    return len(found - {"__init__"})


def readme_lines(root: Path) -> int:
    return len(lines_of(root / "README.md"))


@dataclass(frozen=True)
class Goal:
    """A number of the code base and its target; later: to be met by a later change, so only shown."""

    name: str
    measure: Callable[[Path], float]
    most: float
    least: float = 0
    later: bool = False

    def is_met(self, value: float) -> bool:
        return self.least <= value <= self.most


GOALS = [
    Goal("files of more than 400 lines without a reason", lambda root: len(long_files(root)), 0),
    Goal("import cycles, imports inside functions included", lambda root: len(cycles(root)), 0),
    Goal("% of code lines in identical runs of six or more", duplication, 1.0),
    Goal("lines of the longest function", lambda root: max(function_lengths(root)), 75),
    Goal("lines of interfaces.py", lambda root: len(lines_of(root / "tokenworld" / "interfaces.py")), 200),
    Goal("lines of the reading order", reading_order, 999),
    Goal("files that spell one metric's id", files_of_an_id, 1),
    Goal("files that spell a key of one command", files_of_a_key, 1),
    Goal("phases in one file", phases_in_a_file, 1),
    Goal("entries of evaluation/", evaluation_entries, 8),
    Goal("% of reshaping statements with a shape", lines_with_shapes, 100, least=90, later=True),
    Goal("lines of the README", readme_lines, 150, later=True),
]


def at(commit: str, folder: str) -> Path:
    """The files of a commit, unpacked in `folder`."""
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return Path(folder)


def main(commit: str = FIRST) -> None:
    """Print every goal: its target, at a commit, and now."""
    print(f"{'goal':52} {'target':>9} {commit[:9]:>9} {'now':>9}  met")
    with tempfile.TemporaryDirectory() as folder:
        old = at(commit, folder)
        for goal in GOALS:
            before, now = goal.measure(old), goal.measure(ROOT)
            target = f">= {goal.least:g}" if goal.least else f"<= {goal.most:g}"
            met = "yes" if goal.is_met(now) else "later" if goal.later else "no"
            print(f"{goal.name:52} {target:>9} {before:9.4g} {now:9.4g}  {met}")
    for each in (*long_files(ROOT), *cycles(ROOT)):
        print(f"  {each}")


if __name__ == "__main__":
    main(*sys.argv[1:])
