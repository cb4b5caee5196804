"""The verdict: what could not be judged and why, what is wrong and from which threshold on, how long rollouts are right."""

from __future__ import annotations

from typing import Any

from tokenworld.evaluation.metrics.action_sensitivity import LEAST_SAVED, SAVED_BITS
from tokenworld.evaluation.metrics.rollouts import HELD_OUT_HORIZON, VALID_HORIZON
from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.report import specs
from tokenworld.evaluation.report.findings import SIGNATURES

NAMED = 6  # faults that the verdict lists, and what is open or was not judged
IN_VERDICT = (VALID_HORIZON, HELD_OUT_HORIZON, SAVED_BITS)  # metrics that the verdict itself reads
TIERS = {"B": "what actions really do and whole rollouts", "C": "policies and planning"}  # what is missing without one


def verdict(metrics: list[Metric], findings: list[dict[str, Any]]) -> str:
    """One line, from `findings.findings(metrics)`."""
    if not any(metric.value is not None for metric in metrics):
        return "Nothing was measured."
    parts = []
    lacking = _not_judged(metrics)
    if lacking:
        parts.append(f"not judged: {_join(lacking)}")
    covers = {source.code: source.covers for source in (*specs.rules(), *SIGNATURES)}
    findings = _without_repetition(findings, covers)
    claimed = [finding for finding in findings if finding["established"]]
    claimed.sort(key=lambda finding: (finding["severity"] != "fault",
                                      -len(covers[finding["code"]])))  # what says the most first
    faults = [f"{finding['text']} [limit: {finding['threshold']}]" for finding in claimed if finding["severity"] != "note"]
    settled = sum(finding["established"] is not None and finding["severity"] != "note" for finding in findings)
    none = f"no fault established in {settled} checks" if settled else "no check was settled"
    parts.append(_join(faults) if faults else none)
    parts += [finding["text"] for finding in claimed if finding["severity"] == "note"]
    by_id = {metric.id: metric for metric in metrics if metric.value is not None and metric.status == "ok"}
    reach = by_id.get(VALID_HORIZON.id) or by_id.get(HELD_OUT_HORIZON.id)
    if reach is not None:
        steps = f"{reach.value:.0f} step{'s' * (round(reach.value) != 1)}"
        is_cut = reach.reason.startswith("longer")
        near = "rollouts as a whole stay near reality for" if faults else "trust rollouts to"  # other faults are known
        parts.append(f"{near} {f'at least {steps} (longest tried)' if is_cut else steps}")
    saved = by_id.get(SAVED_BITS.id)
    if saved is not None and saved.ci is not None and saved.ci[0] > LEAST_SAVED:
        parts.append(f"knowing the action saves {saved.value:.2f} bits a frame")
    judged = {metric.id for metric in metrics if metric.status == "ok"}
    open_ = [f"{finding['code'].lower().replace('_', ' ')} [limit: {finding['threshold']}]" for finding in findings
             if finding["established"] is None and set(finding["evidence"]) <= judged]  # fmt: skip
    if open_:
        parts.append(f"not established, the interval holds the limit: {_join(open_)}")
    line = "; ".join(parts)
    return line[0].upper() + line[1:] + "."


def _without_repetition(findings: list[dict[str, Any]], covers: dict[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    """All but what an established finding says better."""
    covered = {code for finding in findings if finding["established"] for code in covers[finding["code"]]}
    return [finding for finding in findings if finding["code"] not in covered]


def _not_judged(metrics: list[Metric]) -> list[str]:
    """What findings read and what was not measured, or on too little: each topic with the first reason, and missing tiers."""
    rules = specs.rules()
    read = {rule.metric for rule in rules} | {rule.also for rule in rules} | {spec.id for spec in IN_VERDICT}
    read |= {bound.metric for signature in SIGNATURES for bound in signature.bounds}
    reasons: dict[str, dict[str, None]] = {}  # reason -> topics
    seen: set[str] = set()
    for metric in metrics:
        topic = _topic(metric.id)
        if metric.id in read and metric.status != "ok" and topic not in seen:
            seen.add(topic)
            reasons.setdefault(metric.reason.split(":")[0], {})[topic] = None
    lacking = [f"{' and '.join(topics)} ({reason})" for reason, topics in reasons.items()]
    there = {metric.tier for metric in metrics}
    return lacking + [f"{what} (tier {tier} was not run)" for tier, what in TIERS.items() if tier not in there]


def _topic(id: str) -> str:
    """What a metric is about, in words."""
    spec = specs.spec_of(id)
    return id if spec is None else spec.topic or spec.family.replace("_", " ")


def _join(words: list[str]) -> str:
    rest = f", and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return ", ".join(words[:NAMED]) + rest
