"""The specs and measuring functions of all metrics, found by listing the folder `metrics/`: a new file there is all it takes.

    python -m tokenworld.evaluation.report.specs > docs/metrics.md
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from types import ModuleType
from typing import Any

from tokenworld.errors import UserError
from tokenworld.evaluation import metrics
from tokenworld.evaluation.statistics.metric_spec import ARRAYS, LIKELIHOOD, MEASURE, MetricSpec, Rule, Section

TIERS = {"A": "held-out data", "B": "a simulator", "C": "policies"}
TABLE = """\
# Metrics

Made by `python -m tokenworld.evaluation.report.specs`. Each row is a `MetricSpec`, which stands in the file of its family in
`tokenworld/evaluation/metrics/`. *Good* says which values are good; *needs* what the metric is measured on. The alias is the id
in reports of schema 1; `metrics=` takes ids, families, aliases and the rows of aliases (`M2`).
"""


@functools.cache
def specs() -> tuple[MetricSpec, ...]:
    """All specs, in the order of the report: by the row of their alias, those without one last, as they stand in their file."""
    listing = [spec for module in _modules() for spec in vars(module).values() if isinstance(spec, MetricSpec)]
    return tuple(sorted(listing, key=lambda spec: (_row_number(spec), spec.family)))


@functools.cache
def by_id() -> dict[str, MetricSpec]:
    return {spec.id: spec for spec in specs()}


@functools.cache
def _by_alias() -> dict[str, MetricSpec]:
    return {spec.alias: spec for spec in specs() if spec.alias}


def spec_of(id: str) -> MetricSpec | None:
    """The spec of a metric or of a variant ("ID@4"); None if there is none."""
    return by_id().get(id.split("@")[0])


def position(id: str) -> int:
    """Where a metric stands in the order of the report."""
    return _positions().get(id.split("@")[0], len(specs()))


def explain(id: str) -> str:
    """The sentence of a metric or of a variant. Empty if there is none."""
    spec = spec_of(id)
    return spec.explanation if spec else ""


def alias_of(id: str) -> str:
    """The id of schema 1; empty if there is none."""
    base, at, variant = id.partition("@")
    spec = by_id().get(base)
    return f"{spec.alias}{at}{variant}" if spec and spec.alias else ""


def id_of(alias: str) -> str:
    """The id of an id of schema 1; what is not one comes back as it is."""
    base, at, variant = alias.partition("@")
    spec = _by_alias().get(base)
    return f"{spec.id}{at}{variant}" if spec else alias


def translate(words: str) -> str:
    """Words with each id of schema 1 in them replaced."""
    return re.sub(r"\bM\d+\.\w+", lambda match: id_of(match[0]), words)


def select(words: str) -> list[str]:
    """The ids of the metrics that comma-separated words name by their id, alias, family or row. Raises UserError for a word
    that names none."""
    chosen: set[str] = set()
    for word in words.split(","):
        named = matches(word)
        if not named:
            known = dict.fromkeys(name for spec in specs() for name in _names(spec))
            near = get_close_matches(word, list(known), n=1, cutoff=0.0)[0]
            raise UserError(f"metrics: got {word}, expected a metric id. Did you mean {near}?")
        chosen |= named
    return [spec.id for spec in specs() if spec.id in chosen]


def matches(word: str) -> set[str]:
    """The ids of the metrics that a word names by their id, alias, family or row."""
    return {spec.id for spec in specs() if word in _names(spec)}


def rules() -> list[Rule]:
    """The findings that read one metric, in the order of the report."""
    return [rule for spec in specs() for rule in spec.rules]


def sections() -> dict[Section, list[MetricSpec]]:
    """The sections of the page in their order, each with its metrics."""
    by_section: dict[Section, list[MetricSpec]] = {}
    for spec in specs():
        by_section.setdefault(spec.section, []).append(spec)
    return dict(sorted(by_section.items(), key=lambda item: (item[0].order, item[0].title)))


def measures(records: Iterable[str]) -> list[Callable]:
    """The measuring functions that need no other records than these, by name."""
    given = set(records)
    return [function for function in _marked(MEASURE) if _needs(function) <= given]


def takes_likelihood(function: Callable) -> bool:
    """Does a measuring function or one of a picture read likelihoods?"""
    return hasattr(function, LIKELIHOOD)


def of_likelihood(function: Callable) -> tuple[MetricSpec, ...]:
    """The metrics of a function that are not applicable to a decoding without a likelihood."""
    return getattr(function, LIKELIHOOD)


def pictures(records: Iterable[str]) -> dict[str, Callable]:
    """picture -> the function of these records that returns its arrays."""
    given = set(records)
    return {getattr(function, ARRAYS): function for function in _marked(ARRAYS) if _needs(function) <= given}


def call(function: Callable, records: dict[str, Any]) -> Any:
    """The function's result, with the records that it has parameters for."""
    return function(**{name: records[name] for name in inspect.signature(function).parameters if name in records})


def table() -> str:
    """All metrics in Markdown."""
    rows = ["| id | alias | what it says | unit | good | needs | source |", "|---|---|---|---|---|---|---|"]
    for spec in specs():
        name = f"**{spec.name}{' (experimental)' if spec.experimental else ''}.** {spec.explanation}"
        good = {"lower": "low", "higher": "high", "zero": "0", "none": ""}[spec.direction]
        cells = (f"`{spec.id}`", spec.alias, name, spec.unit, good, TIERS[spec.tier], _linked(spec.source))
        rows.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return TABLE + "\n" + "\n".join(rows) + "\n"


def _linked(source: str) -> str:
    """A source with links to the paper."""
    source = re.sub(r"arXiv:(\d+\.\d+)", r"[arXiv:\1](https://arxiv.org/abs/\1)", source)
    return re.sub(r"doi:(\S+)", r"[doi:\1](https://doi.org/\1)", source)


@functools.cache
def _positions() -> dict[str, int]:
    return {spec.id: i for i, spec in enumerate(specs())}


def _names(spec: MetricSpec) -> tuple[str, ...]:
    """What `metrics=` may call a metric."""
    return tuple(name for name in (spec.id, spec.family, spec.alias, spec.alias.partition(".")[0]) if name)


def _row_number(spec: MetricSpec) -> int:
    return int(spec.alias[1 : spec.alias.index(".")]) if spec.alias else 1_000


@functools.cache
def _modules() -> tuple[ModuleType, ...]:
    """The files of the folder `metrics/`. Raises ValueError for an id that does not begin with the name of its file."""
    names = sorted(module.name for module in pkgutil.iter_modules(metrics.__path__))
    modules = tuple(importlib.import_module(f"{metrics.__name__}.{name}") for name in names)
    for module, name in zip(modules, names, strict=True):
        wrong = [spec.id for spec in vars(module).values() if isinstance(spec, MetricSpec) and spec.family != name]
        if wrong:
            raise ValueError(f"metrics/{name}.py defines {', '.join(wrong)}: expected ids that begin with {name}.")
    return modules


@functools.cache
def _marked(mark: str) -> tuple[Callable, ...]:
    """The functions of the metrics files that have this mark, in the order of the report."""
    return tuple(
        function for module in _modules() for function in vars(module).values()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and hasattr(function, mark)
    )  # fmt: skip


@functools.cache
def _needs(function: Callable) -> set[str]:
    """The names of the records without which a function is not called."""
    return {name for name, each in inspect.signature(function).parameters.items() if each.default is inspect.Parameter.empty}


if __name__ == "__main__":
    print(table(), end="")
