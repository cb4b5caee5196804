"""From numbers to sentences: a finding is claimed only if a whole interval lies beyond its threshold.

A rule is (code, severity, the metric it reads, what the interval must do, the words). Where the interval straddles the
threshold the finding is "not established", which is not the same as absent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenworld.evaluation.records import Metric

OVER = 0.05  # bits of a frame that a calibration gap must exceed
HEED = 0.1  # bits of a frame: who saves less by knowing the action ignores it


@dataclass(frozen=True)
class Rule:
    code: str
    severity: str  # "fault", "warning" or "good"
    metric: str
    holds: Callable[[float, float], bool]  # (low, high) of the interval
    fails: Callable[[float, float], bool]  # the interval excludes it
    words: Callable[[Metric], str]


RULES = (
    Rule("WORSE_THAN_COUNTING", "fault", "M1.gain", lambda low, high: high < 0, lambda low, high: low > 0,
         lambda m: f"worse than counting codes ({-m.value:.2f} bits a frame more)"),
    Rule("OVERCONFIDENT", "fault", "M2.dcal", lambda low, high: low > OVER, lambda low, high: high < OVER,
         lambda m: f"overconfident ({m.value:+.2f} bits a frame)"),
    Rule("UNDERCONFIDENT", "warning", "M2.dcal", lambda low, high: high < -OVER, lambda low, high: low > -OVER,
         lambda m: f"underconfident ({m.value:+.2f} bits a frame)"),
    Rule("ACTION_BLIND", "fault", "M6.shuffled", lambda low, high: high < HEED, lambda low, high: low > HEED,
         lambda m: "ignores its actions" if m.value > -HEED else f"misled by its actions ({m.value:+.2f} bits a frame)"),
    Rule("MISSES_REWARDS", "fault", "M5.reward_recall", lambda low, high: high < 0.5, lambda low, high: low > 0.5,
         lambda m: f"misses {1 - m.value:.0%} of the reward events"),
    Rule("INVENTS_REWARDS", "fault", "M5.reward_precision", lambda low, high: high < 0.5, lambda low, high: low > 0.5,
         lambda m: f"{1 - m.value:.0%} of the predicted reward events do not come"),
    Rule("ENDS_TOO_RARE", "fault", "M5.hazard_ratio", lambda low, high: high < 0.5, lambda low, high: low > 0.5,
         lambda m: f"termination hazard {1 / max(m.value, 1e-6):.3g}x too low"),
    Rule("ENDS_TOO_OFTEN", "fault", "M5.hazard_ratio", lambda low, high: low > 2, lambda low, high: high < 2,
         lambda m: f"termination hazard {m.value:.3g}x too high"),
    Rule("BLIND_TO_ENDS", "fault", "M5.hazard_brier", lambda low, high: high < 0.1, lambda low, high: low > 0.1,
         lambda m: "does not know when an episode ends"),
    Rule("TOKENIZER_LOSES_EVENTS", "fault", "M0.recall", lambda low, high: high < 0.9, lambda low, high: low > 0.9,
         lambda m: f"the tokenizer loses {1 - m.value:.0%} of what moves"),
)  # fmt: skip


def findings(metrics: list[Metric]) -> list[dict[str, Any]]:
    """[{code, severity, evidence, text, established}]: established True, False (excluded) or None (not established)."""
    by_id = {metric.id: metric for metric in metrics}
    found = []
    for rule in RULES:
        metric = by_id.get(rule.metric)
        if metric is None or metric.value is None or metric.ci is None:
            continue
        low, high = metric.ci
        enough = metric.status == "ok"  # of few events an interval says little
        holds, fails = enough and rule.holds(low, high), enough and rule.fails(low, high)
        established = True if holds else False if fails else None
        text = rule.words(metric) if holds else ""
        if established is None:
            text = f"not established (n={metric.n_samples:,}, {metric.n_clusters} episodes)"
        found.append({"code": rule.code, "severity": rule.severity, "evidence": [rule.metric], "text": text,
                      "established": established})  # fmt: skip
    return found


def verdict(metrics: list[Metric], found: list[dict[str, Any]]) -> str:
    """One line: what is established, how far a dream can be trusted, and how much is open."""
    claimed = [finding["text"] for finding in found if finding["established"]]
    open_ = [finding["code"] for finding in found if finding["established"] is None]
    by_id = {metric.id: metric for metric in metrics}
    parts = [", ".join(claimed) if claimed else "no fault established"]
    reach = by_id.get("M4.horizon")
    if reach is not None and reach.value is not None:
        beyond = "more than " if "longer" in reach.reason else ""
        parts.append(f"trust rollouts to {beyond}{reach.value:.0f} steps")
    saved = by_id.get("M6.shuffled")
    if saved is not None and saved.value is not None and saved.ci[0] > HEED:
        parts.append(f"knowing the action saves {saved.value:.2f} bits a frame")
    if open_:
        parts.append(f"not established: {', '.join(code.lower().replace('_', ' ') for code in open_)}")
    line = "; ".join(parts)
    return line[0].upper() + line[1:] + "."
