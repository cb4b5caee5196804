"""Two evaluations side by side: `tokenworld compare A B`.

Where both measured the same states, their difference is taken state by state and episodes are resampled, so that what is
hard for both cancels. A value of a state depends on that state alone (`tiers.tier_a`, `probes/branches.py`): evaluations of
the same weights with other frames, seeds or budgets agree wherever they meet, up to the rounding of batches of other sizes.
Where they measured other states, or where a number is a ratio and has no value per state, the two are compared as
independent, and it is said so: by resampling both, or, if only their intervals are known, by recovering the variances from
these (Zou and Donner 2008, doi:10.1002/sim.3095). Bits of codes are comparable only between models that share a tokenizer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tokenworld.errors import UserError
from tokenworld.evaluation.report import specs
from tokenworld.evaluation.report.files import read
from tokenworld.evaluation.statistics import intervals

ROUNDING = 1e-4  # of a value, or of 1 if that is more: a smaller difference is that of sums in another order
SAME = "no difference shown"
SURE = 0.05  # chance that a gate closes though B is worse in nothing, over all metrics that count
Array = np.ndarray


@dataclass(frozen=True)
class ComparisonRow:
    metric: str
    name: str
    unit: str
    a: float
    b: float
    difference: float  # B - A; of a number that is good at zero: |B| - |A|
    ci: tuple[float, float] | None  # of the difference; None where it is not known
    verdict: str  # "better", "worse", "no difference shown"
    note: str = ""  # "" for what is paired
    p: float = 1.0  # two-sided, of no difference
    harm: float = 0.0  # how much worse B is for sure: the end of the interval nearest to zero, 0 if it is not worse
    clusters: int = 0  # independent episodes behind the interval, 0 if unknown


class Comparison(NamedTuple):
    rows: list[ComparisonRow]
    remarks: list[str]  # what was and was not compared, and how


def compare(a: Path, b: Path) -> Comparison:
    """B against A, metric by metric, and remarks. Raises UserError for reports of two games, or that cannot be read."""
    (first, states_one), (second, states_two) = read(a), read(b)
    game = [report["provenance"].get("env_id") for report in (first, second)]
    if game[0] != game[1]:
        raise UserError(f"{a} is about {game[0]} and {b} about {game[1]}: compare two models of one game")
    if first["provenance"].get("menu") != second["provenance"].get("menu"):
        raise UserError(f"{a} and {b} compare other actions with each other: evaluate two models of the same actions")
    same_codes = _tokenizer(first) is not None and _tokenizer(first) == _tokenizer(second)
    remarks = [] if same_codes else ["the tokenizers differ: numbers about codes are not comparable, and left out"]
    same = _model(first) is not None and _model(first) == _model(second)
    remarks += ["A and B are evaluations of the same weights: differences are those of the sample, none is the model's"] * same
    prepared = [report["provenance"].get("preprocessing") for report in (first, second)]
    if prepared[0] != prepared[1]:
        remarks.append("the games are prepared differently, so a difference need not be the models'")
    entries, rows, alone, left_out = {entry["id"]: entry for entry in second["metrics"]}, [], [], []
    for entry in first["metrics"]:
        other, id = entries.pop(entry["id"], None), entry["id"]
        if entry["direction"] == "none":
            continue
        if other is None or entry["value"] is None or other["value"] is None:
            alone += [id] if entry["value"] is not None or (other is not None and other["value"] is not None) else []
        elif not same_codes and (spec := specs.spec_of(id)) is not None and spec.of_codes:
            left_out.append(id)
        else:
            rows.append(_row(entry, other, _rows_of(entry, states_one), _rows_of(other, states_two), same))
    alone += [id for id, entry in entries.items() if entry["value"] is not None and entry["direction"] != "none"]
    remarks += [f"left out: {', '.join(left_out)}"] if left_out else []
    shared = len(_match(states_one.get("state"), states_two.get("state"))[0])
    remarks.append(f"{shared:,} shared states" if shared else "no shared state: intervals are compared, unpaired")
    remarks += [f"measured in one of the two only: {', '.join(alone)}"] if alone else []
    return Comparison(rows, remarks)


def exit_code(rows: list[ComparisonRow], metrics: list[str] | None = None, tolerance: float = 0.0) -> int:
    """1 if B is shown to be worse in one of the metrics (all if None) by more than `tolerance`, a share of |A|; else 0.

    Many metrics are tried, so their p-values are Holm's: if B is worse in nothing, the code is 1 in at most 5 % of cases.
    Raises UserError for a metric that is not there, or a tolerance below 0.
    """
    chosen = None if metrics is None else {id for name in metrics for id in _named(name, rows)}
    if not tolerance >= 0:
        raise UserError(f"tolerance={tolerance} is no share: expected a number from 0, such as 0.02 for two percent of A")
    counting = [row for row in rows if chosen is None or row.metric in chosen]
    adjusted = intervals.holm(np.array([row.p for row in counting])) if counting else []
    worse = [row.harm > tolerance * abs(row.a) and p < SURE for row, p in zip(counting, adjusted, strict=True)]
    return int(any(worse))


def _named(name: str, rows: list[ComparisonRow]) -> list[str]:
    """The compared metrics that an id, an alias, a family or a row of aliases names. Raises UserError where none is."""
    known = [row.metric for row in rows]
    base, at, variant = name.partition("@")
    named = {f"{id}{at}{variant}" for id in specs.matches(base)} | {name}
    ids = [id for id in known if id in named or not at and id.partition("@")[0] in named]
    if not ids:
        raise UserError(f"metrics={name} is not compared here: expected some of {', '.join(sorted(known))}")
    return ids


def table(rows: list[ComparisonRow], remarks: list[str], every: bool = False) -> str:
    """The comparison as text: a line for each metric with a difference (every: for all metrics), the remarks, the summary."""
    head = ("metric", "A", "B", "B - A", "95 % interval", "B is")
    shown = rows if every else [row for row in rows if row.verdict != SAME]
    lines = [head] if shown else []
    for row in shown:
        ci = "" if row.ci is None else f"{row.ci[0]:+.3g} to {row.ci[1]:+.3g}"
        verdict = row.verdict + (f" ({row.note})" if row.note else "")
        lines.append((f"{row.name} [{row.metric}]", f"{row.a:.3g}", f"{row.b:.3g}", f"{row.difference:+.3g}", ci, verdict))
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    notes = list(remarks) if rows else [*remarks, "no metric is comparable"]
    if len(rows) > 1:
        notes.append(f"of {len(rows)} metrics one in 20 would differ by chance: the exit code corrects for that")
    return "\n".join([*text, "; ".join(notes), *([summary(rows)] if rows else [])])


def summary(rows: list[ComparisonRow]) -> str:
    """One line: in how many metrics B is better, worse, or not shown to differ, and which are worse."""
    better, worse, same = ([row for row in rows if row.verdict == verdict] for verdict in ("better", "worse", SAME))
    which = f" ({', '.join(row.metric for row in worse)})" if worse else ""
    return f"B: {len(better)} better, {len(worse)} worse{which}, {len(same)} equal ({SAME})"


def _row(entry: dict[str, Any], other: dict[str, Any], x: tuple | None, y: tuple | None, same: bool = False) -> ComparisonRow:
    """One metric; x and y are its values, clusters and states per row, where there are any. same: of the same weights, so that
    values of other states differ by the choice of states alone."""
    direction, a, b = entry["direction"], entry["value"], other["value"]
    at_x, at_y = _match(x[2], y[2]) if x is not None and y is not None else ((), ())
    if len(at_x):
        mine, theirs = x[0][at_x], y[0][at_y]
        theirs = np.where(np.abs(theirs - mine) <= ROUNDING * np.maximum(1, np.abs(mine)), mine, theirs)
        (value, ci, p, n), note = _resampled((mine, x[1][at_x]), (theirs,), direction), ""
        a, b = float(mine.mean()), float(theirs.mean())
    elif x is not None and y is not None:
        (value, ci, p, n), note = _resampled(x[:2], y[:2], direction), "unpaired"
    else:
        (value, ci, p), note = _recovered(entry, other), "unpaired"
        n = min(entry["n_clusters"], other["n_clusters"])
    verdict, harm = _verdict(direction, ci)
    if note and same:
        verdict, harm, p, note = SAME, 0.0, 1.0, f"{note}, the same weights"
    few = [word for word, report in (("A", entry), ("B", other)) if report["status"] == "underpowered"]
    if few or n < intervals.FEW and ci is not None:
        why = f"too little data in {' and '.join(few)}" if few else f"only {n} episodes"
        verdict, harm, p, note = SAME, 0.0, 1.0, f"{note}, {why}".lstrip(", ")
    return ComparisonRow(entry["id"], entry["name"], entry["unit"], a, b, value, ci, verdict, note, p, harm, n)


def _resampled(x: tuple, y: tuple, direction: str) -> tuple[float, tuple[float, float], float, int]:
    """Difference of means, interval, p and clusters. x, y: (values, clusters); y without clusters shares those of x, row by
    row, and both are then resampled together."""
    means, drawn = [], []
    for seed, (values, cluster) in enumerate((x, y if len(y) == 2 else (y[0], x[1]))):
        top, count = intervals.cluster_sums(values, cluster), intervals.cluster_sums(np.ones(len(cluster)), cluster)
        weights = intervals.draws_of(len(top), seed=seed if len(y) == 2 else 0)
        means.append(top.sum() / count.sum())
        drawn.append((weights @ top) / (weights @ count))
    if direction == "zero":  # nearer to zero is better
        means, drawn = np.abs(means), np.abs(drawn)
    value, spread = float(means[1] - means[0]), drawn[1] - drawn[0]
    clusters = min(len(np.unique(part[1])) for part in (x, y) if len(part) == 2)
    return value, intervals.percentile(spread, clusters=clusters), _p(value, float(spread.std())), clusters


def _recovered(entry: dict[str, Any], other: dict[str, Any]) -> tuple[float, tuple[float, float] | None, float]:
    """Difference, interval and p from two independent intervals: L = d - sqrt((b - b_low)^2 + (a_high - a)^2), U alike."""
    a, b, A, B = entry["value"], other["value"], entry["ci"], other["ci"]
    if entry["direction"] == "zero":
        A, B = (ci and _absolute(ci) for ci in (A, B))
        a, b = abs(a), abs(b)
    if A is None or B is None:
        return b - a, None, 1.0
    low = b - a - math.hypot(b - B[0], A[1] - a)
    high = b - a + math.hypot(B[1] - b, a - A[0])
    return b - a, (low, high), _p(b - a, (high - low) / 2 / intervals.normal_quantile(0.975))


def _absolute(ci: list[float]) -> tuple[float, float]:
    """The interval of |x| from that of x."""
    low, high = sorted(map(abs, ci))
    return (0.0 if ci[0] <= 0 <= ci[1] else low), high


def _p(value: float, error: float) -> float:
    return math.erfc(abs(value) / error / math.sqrt(2)) if error > 0 else float(value == 0)


def _verdict(direction: str, ci: tuple[float, float] | None) -> tuple[str, float]:
    """Better, worse or no difference shown, and how much worse for sure."""
    if ci is None or ci[0] <= 0 <= ci[1]:
        return SAME, 0.0
    if (ci[0] > 0) == (direction == "higher"):
        return "better", 0.0
    return "worse", min(map(abs, ci))


def _rows_of(entry: dict[str, Any], rows: dict[str, Array]) -> tuple[Array, Array, Array | None] | None:
    """Values, clusters and states of a metric, or None where it has none per row. The states of the report are those of
    held-out data: rows of the other tiers have their own or none."""
    id = entry["id"]
    if id not in rows:
        return None
    state = rows.get(f"{id}/state", rows.get("state") if entry["tier"] == "A" else None)
    if state is not None and len(state) != len(rows[id]):
        state = None
    return rows[id], rows[f"{id}/cluster"], state


def _match(a: Array | None, b: Array | None) -> tuple[Array, Array]:
    """Rows of a and of b that are one state; a state that is there several times is matched in its order."""
    if a is None or b is None:
        return np.zeros(0, int), np.zeros(0, int)
    keys = [np.rec.fromarrays([state.astype(np.uint64), _occurrence(state)], names="state,time") for state in (a, b)]
    _, at_a, at_b = np.intersect1d(*keys, assume_unique=True, return_indices=True)
    return at_a, at_b


def _occurrence(state: Array) -> Array:
    """How often each row's state was there before."""
    order = np.argsort(state, kind="stable")
    begins = np.flatnonzero(np.append(True, state[order][1:] != state[order][:-1])[: len(state)])
    before = np.arange(len(state)) - np.repeat(begins, np.diff(np.append(begins, len(state))))
    times = np.empty(len(state), int)
    times[order] = before
    return times


def _tokenizer(report: dict[str, Any]) -> str | None:
    weights = report["provenance"].get("weights")
    return weights.get("tokenizer") if isinstance(weights, dict) else None


def _model(report: dict[str, Any]) -> tuple | None:
    """What the numbers are of: all weights, and the settings of the parts that have them; None if these are not known."""
    weights, settings = report["provenance"].get("weights"), report["provenance"].get("parts")
    known = isinstance(weights, dict) and {"tokenizer", "dynamics"} <= weights.keys() and isinstance(settings, str)
    return (weights["tokenizer"], weights["dynamics"], settings) if known else None
