"""`tokenworld compare A B`: two evaluations, state by state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from tokenworld.cli.arguments import Help, Key, folders_of
from tokenworld.config import compose
from tokenworld.errors import UserError

HELP = Help(
    summary="compare two evaluations, state by state, with an exit code",
    positional="A B",
    about="""\
Compares two folders that `tokenworld evaluate` wrote, B against A. Where both measured the same states, the difference is
taken state by state, with a 95% interval over episodes. Otherwise the two intervals are compared. Models with different
tokenizers are compared by the metrics that do not depend on codes.

Lists the metrics that differ (rows=all: every metric). The last line counts the metrics in which B is better, worse or equal.

Exit code 0: B is not shown to be worse; 1: B is worse in one of metrics= (default: all); 2: the two cannot be compared.

examples
  tokenworld compare old/evaluation new/evaluation
  tokenworld compare old/evaluation new/evaluation metrics=code_length,terminations""",
)
KEYS = {
    "metrics": Key(str, "ID,ID", "only these metrics, or families of them, decide the exit code; default: all"),
    "rows": Key(Literal["all"], "all", "also list the metrics in which no difference is shown"),
}


def parse(words: list[str]) -> Callable[[], Any]:
    compose.refuse_repeats([word for word in words if word.partition("=")[0] in KEYS])
    folders, settings = folders_of(words, 2, KEYS)
    keys = dict(word.split("=", 1) for word in settings if word.startswith(tuple(f"{key}=" for key in KEYS)))
    if len(folders) != 2 or len(keys) != len(settings):
        raise UserError(f"compare takes two folders of reports, metrics= and rows=, got {' '.join(words) or 'nothing'}: "
                        f"write tokenworld compare runs/A/evaluation runs/B/evaluation")  # fmt: skip
    if keys.get("rows", "all") != "all":
        raise UserError(f"rows={keys['rows']}: expected rows=all, which also lists the metrics in which no difference is shown")
    metrics = keys["metrics"].split(",") if "metrics" in keys else None
    return lambda: run(*folders, metrics, "rows" in keys)


def run(a: str, b: str, metrics: list[str] | None = None, every: bool = False) -> int:
    """Print the comparison of two evaluations and return the exit code. every: also list metrics without a difference."""
    from tokenworld.evaluation.report import compare

    rows, remarks = compare.compare(Path(a), Path(b))
    code = compare.exit_code(rows, metrics)
    print(compare.table(rows, remarks, every))
    return code
