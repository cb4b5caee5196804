"""From numbers to findings: a finding is claimed only if a whole interval lies beyond its threshold.

The rules are in `rules.py`. Where an interval straddles a threshold the finding is "not established", which is not the same as
absent. Every finding says its threshold, whether it is claimed, open or excluded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.report.rules import RULES, SIGNATURES, Bound, Rule, Signature


def findings(metrics: list[Metric]) -> list[dict[str, Any]]:
    """[{code, severity, evidence, text, established, threshold}]: established True, False (excluded) or None (open).

    Rules and signatures that read what was not measured are left out.
    """
    by_id = {metric.id: metric for metric in metrics if metric.value is not None and metric.ci is not None}
    found = [_by_rule(rule, by_id) for rule in RULES] + [_by_signature(signature, by_id) for signature in SIGNATURES]
    return [finding for finding in found if finding is not None]


def _by_rule(rule: Rule, by_id: dict[str, Metric]) -> dict[str, Any] | None:
    """Of the measures of a quantity, the first one that is beyond the threshold, else that is open, else the first."""
    bounds = [replace(rule.bound, metric=metric) for metric in (rule.metric, rule.also) if metric in by_id]
    bounds = [bound for bound in bounds if bound.interval(by_id[bound.metric]) is not None]
    if not bounds:
        return None
    settled = [bound.established(by_id) for bound in bounds]
    at = next((settled.index(answer) for answer in (True, None) if answer in settled), 0)
    return _finding(rule, bounds[at : at + 1], by_id, settled[at], lambda read: rule.words(read[0]))


def _by_signature(signature: Signature, by_id: dict[str, Metric]) -> dict[str, Any] | None:
    bounds = signature.bounds
    if not all(bound.metric in by_id and bound.interval(by_id[bound.metric]) is not None for bound in bounds):
        return None
    settled = [bound.established(by_id) for bound in bounds]
    is_excused = any(bound.established(by_id) for bound in signature.unless)
    answer = False if False in settled or is_excused else None if None in settled else True
    return _finding(signature, bounds, by_id, answer, lambda read: signature.words({metric.id: metric for metric in read}))


def _finding(
    source: Rule | Signature,
    bounds: tuple[Bound, ...],
    by_id: dict[str, Metric],
    established: bool | None,
    words: Callable[[list[Metric]], str],
) -> dict[str, Any]:
    read = [by_id[metric] for metric in dict.fromkeys(bound.metric for bound in bounds)]
    text = words(read) if established else ""
    if established is None:
        few = min(read, key=lambda metric: metric.n_clusters)
        text = f"not established (n={few.n_samples:,}, {few.n_clusters} episodes)"
    limits = [bound.limit(by_id[bound.metric]) for bound in bounds]
    limit = limits[0] if len(bounds) == 1 else ", ".join(f"{b.metric} {words}" for b, words in zip(bounds, limits, strict=True))
    return {"code": source.code, "severity": source.severity, "evidence": [metric.id for metric in read], "text": text,
            "established": established, "threshold": limit}  # fmt: skip
