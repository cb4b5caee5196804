"""`tokenworld show`: a recipe resolved, and what its parts cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenworld.cli.arguments import SETTINGS, Help, Key, recipe_of, shared_keys
from tokenworld.config import saved
from tokenworld.config.saved import RunSpec
from tokenworld.errors import UserError

HELP = Help(
    summary="print a resolved recipe with its parameters and cost, or how two recipes differ",
    settings=SETTINGS,
    flags={"--yaml": "print only the recipe, as a file to start your own from"},
    about="""\
Prints the recipe as it will run, the parameters of each part, and the passes and FLOPs per imagined frame. With against=,
prints what differs. With --yaml, prints only the recipe, as a file to start your own from.

examples
  tokenworld show recipe=iris
  tokenworld show recipe=iris against=quickstart
  tokenworld show recipe=iris env.id=ALE/Pong-v5 backbone.layers=4
  tokenworld show recipe=quickstart --yaml   > mine.yaml""",
)
KEYS = shared_keys("recipe overlay") | {"against": Key(str, "NAME", "another recipe: print only what differs")}


def parse(words: list[str]) -> Callable[[], Any]:
    spec, own = recipe_of("show", [word for word in words if word != "--yaml"], KEYS)
    against = own.get("against")
    if "--yaml" in words and against:
        raise UserError(f"--yaml prints one recipe, got against={against} too: leave one of them out")
    if "--yaml" in words:
        return lambda: print(_yaml(spec.cfg), end="")
    if not against:
        return lambda: run(spec)
    other, _ = recipe_of("show", [f"recipe={against}"], KEYS)
    return lambda: print(_table([("", spec.recipe, against),
                                 *((k, _word(a), _word(b)) for k, a, b in saved.difference(spec.cfg, other.cfg))]))  # fmt: skip


def run(spec: RunSpec) -> None:
    """Print a recipe and what its parts cost."""
    from tokenworld.bench.costs import costs

    print(_yaml(spec.cfg))
    print(_table(costs(spec.cfg)))


def _yaml(cfg: dict) -> str:
    import yaml

    return yaml.safe_dump(cfg, sort_keys=False)


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)


def _word(value) -> str:
    return "-" if value is None else str(value)
