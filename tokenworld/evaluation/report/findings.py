"""From numbers to findings: a finding is claimed only if a whole interval lies beyond its threshold.

A `Rule` reads one metric and stands in its spec. A `Signature`, here, reads several: what a fault moves and what it leaves
alone. One metric alone seldom tells which fault it was: an action-blind model is perfectly calibrated, one with left and right
swapped is as sensitive to its actions as a right one.

Where an interval straddles a threshold the finding is "not established", which is not the same as absent. Every finding says
its threshold, whether it is claimed, open or excluded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from tokenworld.evaluation.metrics import (
    action_effects,
    agents,
    calibration,
    confusions,
    next_frame,
    planning,
    rollouts,
    terminations,
)
from tokenworld.evaluation.metrics.action_sensitivity import LEAST_SAVED, SAVED_BITS
from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.report import specs
from tokenworld.evaluation.statistics.metric_spec import BITS, HALF, Bound, Rule, above, below, which


@dataclass(frozen=True)
class Signature:
    """All of `bounds` hold and none of `unless` does. `words` takes the metrics of the bounds, in their order. `covers`:
    findings that the verdict need not repeat next to it."""

    code: str
    severity: str
    bounds: tuple[Bound, ...]
    words: Callable[..., str]
    unless: tuple[Bound, ...] = ()
    covers: tuple[str, ...] = ()


SIGNATURES = (
    Signature("ACTION_SWAP", "fault", (above(0.8, action_effects.SIZE_RATIO.id), below(0.3, action_effects.COSINE.id)),
              lambda _, cosine: f"confuses its actions with each other (effects agree by {cosine.value:.2f})",
              covers=("ACTIONS_SWAPPED_IN_SOME_STATES", "TAKES_ACTIONS_FOR_OTHERS", "EFFECTS_DISAGREE", "WRONG_EFFECTS")),
    Signature("ALIASED_ACTIONS", "fault",
              (below(LEAST_SAVED, confusions.CLOSEST_PAIR_BITS.id), above(HALF, confusions.UNEXPECTED_BITS.id)),
              lambda pair, action: f"makes one action of {which(pair)} (they differ by {pair.value:.2f} bits a frame, "
                                f"{which(action)} {action.value:+.2f} more come than announced)",
              unless=(below(LEAST_SAVED, SAVED_BITS.id),),
              covers=("WRONG_AFTER_ONE_ACTION", "PAIR_TOO_ALIKE", "OVERLOOKS_AN_ACTION")),
    Signature("ENDS_LATE", "fault", (below(0.5, terminations.HAZARD_RATIO.id), above(0.5, terminations.HAZARD_AFTER.id)),
              lambda _, after: f"announces ends one step late (hazard {after.value:.0%} one step after the end)",
              covers=("ENDS_TOO_RARE", "BLIND_TO_ENDS", "WRONG_ENDS")),
    Signature("MODE_DROPPING", "fault", (above(0.2, next_frame.MISSED_MASS.id), below(-BITS, calibration.EXCESS_ENTROPY.id)),
              lambda missed, _: f"drops outcomes ({missed.value:.0%} of what really comes)",
              covers=("MISSES_OUTCOMES", "LESS_RANDOM_THAN_THE_WORLD")),
    Signature("INCOHERENT_CODES", "fault",
              (above(BITS, next_frame.LOST_DEPENDENCE.id), above(0.1, next_frame.IMPOSSIBLE_MASS.id)),
              lambda lost, impossible: f"its codes do not belong together ({lost.value:.2f} bits of dependence lost, "
                                       f"{impossible.value:.0%} impossible frames)",
              covers=("IMPOSSIBLE_FRAMES", "LOOSE_CODES", "MORE_RANDOM_THAN_THE_WORLD")),
    Signature("AVERAGING", "fault",
              (Bound(calibration.BRANCH_GAP.id, "about", calibration.OVER), above(BITS, calibration.EXCESS_ENTROPY.id),
               above(0.1, next_frame.IMPOSSIBLE_MASS.id)),
              lambda _, excess, impossible: f"averages over outcomes ({excess.value:+.2f} bits of entropy, "
                                            f"{impossible.value:.0%} impossible frames)",
              unless=(above(BITS, next_frame.LOST_DEPENDENCE.id), above(0.5, action_effects.ERROR.id)),
              covers=("IMPOSSIBLE_FRAMES", "MORE_RANDOM_THAN_THE_WORLD", "TIED_CODES")),
    Signature("CAUSALLY_CONFUSED", "fault", (above(BITS, agents.INTERVENTION_GAP.id), above(0.5, action_effects.ERROR.id)),
              lambda gap,
              _: f"predicts its agent rather than its actions ({gap.value:+.2f} bits where actions are set at random)",
              unless=(below(BITS, agents.SUPPORTED_GAP.id),),
              covers=("WORSE_UNDER_OTHER_ACTIONS", "WORSE_UNDER_ANOTHER_AGENT")),
    Signature("UNRELIABLE_OFF_SUPPORT", "warning",
              (above(BITS, agents.INTERVENTION_GAP.id), below(BITS, agents.SUPPORTED_GAP.id)),
              lambda gap, _: f"unreliable where training data are rare ({gap.value:+.2f} bits)",
              covers=("WORSE_UNDER_OTHER_ACTIONS", "WORSE_UNDER_ANOTHER_AGENT")),
    Signature("DRIFTS", "fault", (above(0.75, rollouts.FIRST.id, skill=True), below(0.75, rollouts.LAST.id, skill=True)),
              lambda *_: "right for one step, wrong at the end of a rollout", covers=("ROLLOUTS_OFF",)),
    Signature("HARMLESS_ERRORS", "note", (above(0.5, next_frame.KL.id),
                                          above(1 - planning.GAIN, planning.REGRET.id, skill=True)),
              lambda *_: "its errors do not cost a planner"),
)  # fmt: skip


def findings(metrics: list[Metric]) -> list[dict[str, Any]]:
    """[{code, severity, evidence, text, established, threshold}]: established True, False (excluded) or None (open).

    Rules and signatures that read what was not measured are left out.
    """
    by_id = {metric.id: metric for metric in metrics if metric.value is not None and metric.ci is not None}
    results = [_by_rule(rule, by_id) for rule in specs.rules()] + [_by_signature(signature, by_id) for signature in SIGNATURES]
    return [finding for finding in results if finding is not None]


def _by_rule(rule: Rule, by_id: dict[str, Metric]) -> dict[str, Any] | None:
    """Of the measures of a quantity, the first one that is beyond the threshold, else that is open, else the first."""
    bounds = [replace(rule.bound, metric=metric) for metric in (rule.metric, rule.also) if metric in by_id]
    bounds = [bound for bound in bounds if bound.interval(by_id[bound.metric]) is not None]
    if not bounds:
        return None
    settled = [bound.established(by_id) for bound in bounds]
    at = next((settled.index(answer) for answer in (True, None) if answer in settled), 0)
    return _finding(rule, bounds[at : at + 1], by_id, settled[at], rule.words)


def _by_signature(signature: Signature, by_id: dict[str, Metric]) -> dict[str, Any] | None:
    bounds = signature.bounds
    if not all(bound.metric in by_id and bound.interval(by_id[bound.metric]) is not None for bound in bounds):
        return None
    settled = [bound.established(by_id) for bound in bounds]
    is_excused = any(bound.established(by_id) for bound in signature.unless)
    answer = False if False in settled or is_excused else None if None in settled else True
    return _finding(signature, bounds, by_id, answer, signature.words)


def _finding(
    source: Rule | Signature,
    bounds: tuple[Bound, ...],
    by_id: dict[str, Metric],
    established: bool | None,
    words: Callable[..., str],
) -> dict[str, Any]:
    read = [by_id[metric] for metric in dict.fromkeys(bound.metric for bound in bounds)]
    text = words(*read) if established else ""
    if established is None:
        few = min(read, key=lambda metric: metric.n_clusters)
        text = f"not established (n={few.n_samples:,}, {few.n_clusters} episodes)"
    limits = [bound.limit(by_id[bound.metric]) for bound in bounds]
    limit = limits[0] if len(bounds) == 1 else ", ".join(f"{b.metric} {words}" for b, words in zip(bounds, limits, strict=True))
    return {"code": source.code, "severity": source.severity, "evidence": [metric.id for metric in read], "text": text,
            "established": established, "threshold": limit}  # fmt: skip
