"""Two evaluations beside each other: `tokenworld compare A B`.

Where both measured the same states, their difference is taken state by state and episodes are resampled, so that what is
hard for both cancels. What is a ratio has no value per state: there the two intervals are compared, and it is said so. Bits
of codes are comparable only between models that share a tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenworld.evaluation import intervals
from tokenworld.evaluation.report import read
from tokenworld.interfaces import UserError

OF_CODES = ("M1.", "M2.", "M3.", "M4.", "M6.", "M7.", "M8.", "M9.")  # depend on the tokenizer


@dataclass(frozen=True)
class Row:
    metric: str
    name: str
    unit: str
    a: float
    b: float
    difference: float
    ci: tuple[float, float] | None  # of the difference; None where only intervals could be compared
    verdict: str  # "better", "worse", "no difference shown", "not comparable"
    note: str = ""


def compare(a: Path, b: Path) -> tuple[list[Row], list[str]]:
    """B against A, metric by metric, and remarks. Raises UserError for reports of two games, or that cannot be read."""
    (one, states_one), (two, states_two) = read(a), read(b)
    game = [report["provenance"].get("env_id") for report in (one, two)]
    if game[0] != game[1]:
        raise UserError(f"{a} is about {game[0]} and {b} about {game[1]}: compare two models of one game")
    same_codes = one["provenance"]["weights"]["tokenizer"] == two["provenance"]["weights"]["tokenizer"]
    remarks = [] if same_codes else ["the tokenizers differ: numbers about codes are not comparable, and left out"]
    _, at_one, at_two = np.intersect1d(
        states_one.get("state", np.zeros(0, np.uint64)), states_two.get("state", np.zeros(0, np.uint64)), return_indices=True
    )
    remarks.append(f"{len(at_one):,} shared states" if len(at_one) else "no shared state: intervals are compared, unpaired")
    entries = {entry["id"]: entry for entry in two["metrics"]}
    rows = []
    for entry in one["metrics"]:
        other = entries.get(entry["id"])
        if other is None or entry["value"] is None or other["value"] is None or entry["direction"] == "none":
            continue
        if not same_codes and entry["id"].startswith(OF_CODES):
            continue
        x, y = states_one.get(entry["id"]), states_two.get(entry["id"])
        paired = len(at_one) > 0 and x is not None and y is not None
        if paired and len(x) == len(states_one["state"]) and len(y) == len(states_two["state"]):
            rows.append(_paired(entry, x[at_one], y[at_two], states_one[f"{entry['id']}/cluster"][at_one]))
        else:
            rows.append(_unpaired(entry, other))
    return rows, remarks


def exit_code(rows: list[Row], metrics: list[str] | None = None) -> int:
    """1 if B is shown to be worse in one of the metrics (all if None), else 0. Raises UserError for one that is not there."""
    known = {row.metric for row in rows}
    for name in metrics or []:
        if name not in known:
            raise UserError(f"metrics={name} is not compared here: expected some of {', '.join(sorted(known))}")
    return int(any(row.verdict == "worse" and (metrics is None or row.metric in metrics) for row in rows))


def table(rows: list[Row], remarks: list[str]) -> str:
    head = ("metric", "A", "B", "B - A", "95 % interval", "B is")
    lines = [head]
    for row in rows:
        ci = "" if row.ci is None else f"{row.ci[0]:+.3g} to {row.ci[1]:+.3g}"
        verdict = row.verdict + (f" ({row.note})" if row.note else "")
        lines.append((f"{row.name} [{row.metric}]", f"{row.a:.3g}", f"{row.b:.3g}", f"{row.difference:+.3g}", ci, verdict))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, "; ".join(remarks)])


def _paired(entry: dict[str, Any], x: np.ndarray, y: np.ndarray, cluster: np.ndarray) -> Row:
    if entry["direction"] == "zero":  # nearer to zero is better

        def of(weights: np.ndarray) -> float:
            return float(abs(weights @ y) - abs(weights @ x)) / weights.sum()

        value, ci, _ = intervals.statistic(of, cluster)
    else:
        value, ci, _ = intervals.ratio(y - x, None, cluster)
    verdict = _verdict(entry["direction"], ci)
    return Row(entry["id"], entry["name"], entry["unit"], float(x.mean()), float(y.mean()), value, ci, verdict)


def _unpaired(entry: dict[str, Any], other: dict[str, Any]) -> Row:
    a, b, note = entry["value"], other["value"], "unpaired"
    difference = abs(b) - abs(a) if entry["direction"] == "zero" else b - a
    verdict = "no difference shown"
    if entry["ci"] and other["ci"]:
        low, high = other["ci"][0] - entry["ci"][1], other["ci"][1] - entry["ci"][0]  # the intervals do not overlap
        verdict = _verdict(entry["direction"], (low, high)) if entry["direction"] != "zero" else verdict
    return Row(entry["id"], entry["name"], entry["unit"], a, b, difference, None, verdict, note)


def _verdict(direction: str, ci: tuple[float, float]) -> str:
    if ci[0] <= 0 <= ci[1]:
        return "no difference shown"
    return "better" if (ci[0] > 0) == (direction == "higher") else "worse"
