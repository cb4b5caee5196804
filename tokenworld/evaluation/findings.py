"""From numbers to sentences: a finding is claimed only if a whole interval lies beyond its threshold.

A `Rule` reads one metric. A `Signature` reads several, or their place between floor and ceiling: what a fault moves and what
it leaves alone, since one number alone seldom tells which fault it was (an action-blind model is perfectly calibrated, one
with left and right swapped heeds its actions as much as a right one). Where an interval straddles a threshold the finding is
"not established", which is not the same as absent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenworld.evaluation.records import Metric

OVER = 0.05  # bits of a frame that a calibration gap must exceed
HEED = 0.1  # bits of a frame: who saves less by knowing the action ignores it
BITS = 0.1  # of a frame: excess entropies, gaps between agents and lost dependence below it are small
NAMED = 6  # faults that the verdict lists, and open questions


@dataclass(frozen=True)
class Bound:
    """A side of a threshold: all of a metric's interval, or of the interval of its skill, lies there."""

    metric: str
    side: str  # ">", "<", or "about": some of the interval is within the threshold of 0
    threshold: float
    skill: bool = False  # of the metric's place between floor and ceiling

    def holds(self, low: float, high: float) -> bool:
        if self.side == "about":
            return low < self.threshold and high > -self.threshold
        return low > self.threshold if self.side == ">" else high < self.threshold

    def fails(self, low: float, high: float) -> bool:
        if self.side == "about":
            return not self.holds(low, high)
        return high < self.threshold if self.side == ">" else low > self.threshold

    def established(self, metrics: dict[str, Metric]) -> bool | None:
        """True, False (excluded) or None: not measured, or on too few episodes, or the interval straddles the threshold."""
        metric = metrics.get(self.metric)
        interval = None if metric is None else _interval(metric, self.skill)
        if interval is None or metric.status != "ok":  # of few events an interval says little
            return None
        return True if self.holds(*interval) else False if self.fails(*interval) else None


@dataclass(frozen=True)
class Rule:
    code: str
    severity: str  # "fault", "warning" or "note"
    bound: Bound
    words: Callable[[Metric], str]
    instead: str = ""  # the same quantity measured in another way, read where the first was not measured

    @property
    def metric(self) -> str:
        return self.bound.metric

    def holds(self, low: float, high: float) -> bool:
        return self.bound.holds(low, high)

    def fails(self, low: float, high: float) -> bool:
        return self.bound.fails(low, high)


@dataclass(frozen=True)
class Signature:
    """All of `bounds` hold and none of `unless` does. `covers`: findings that the verdict need not repeat beside it."""

    code: str
    severity: str
    bounds: tuple[Bound, ...]
    words: Callable[[dict[str, Metric]], str]
    unless: tuple[Bound, ...] = ()
    covers: tuple[str, ...] = ()


def above(metric: str, threshold: float, skill: bool = False) -> Bound:
    return Bound(metric, ">", threshold, skill)


def below(metric: str, threshold: float, skill: bool = False) -> Bound:
    return Bound(metric, "<", threshold, skill)


RULES = (
    Rule("WORSE_THAN_COUNTING", "fault", below("M1.gain", 0),
         lambda m: f"worse than counting codes ({-m.value:.2f} bits a frame more)"),
    Rule("OVERCONFIDENT", "fault", above("M2.dcal", OVER),
         lambda m: f"overconfident ({m.value:+.2f} bits a frame)", instead="M2.dcal_joint"),
    Rule("UNDERCONFIDENT", "warning", below("M2.dcal", -OVER),
         lambda m: f"underconfident ({m.value:+.2f} bits a frame)", instead="M2.dcal_joint"),
    Rule("IMPOSSIBLE_FRAMES", "fault", above("M3.off_support", 0.1),
         lambda m: f"gives {m.value:.0%} of its probability to impossible frames"),
    Rule("MISSES_OUTCOMES", "fault", above("M3.missed", 0.1),
         lambda m: f"all but rules out {m.value:.0%} of what really comes"),
    Rule("ACTION_BLIND", "fault", below("M6.shuffled", HEED),
         lambda m: "ignores its actions" if m.value > -HEED else f"misled by its actions ({m.value:+.2f} bits a frame)"),
    Rule("ACTIONS_WITHOUT_EFFECT", "fault", below("M7.sensitivity", 0.2),
         lambda m: f"its actions have {max(0, m.value):.0%} of their effect"),
    Rule("WRONG_EFFECTS", "fault", above("M7.effect_error", 0.5),
         lambda m: f"gets {min(1, m.value):.0%} of the effects of its actions wrong"),
    Rule("SPURIOUS_EFFECTS", "warning", above("M7.spurious", 0.1),
         lambda m: f"actions move {m.value:.2g} codes that they do not move in truth"),
    Rule("WORSE_UNDER_OTHER_ACTIONS", "warning", above("M8.do_gap", BITS),
         lambda m: f"worse where actions are set at random ({m.value:+.2f} bits a frame)"),
    Rule("WORSE_UNDER_ANOTHER_AGENT", "warning", above("M8.transfer_gap", BITS),
         lambda m: f"worse under another agent ({m.value:+.2f} bits a frame)", instead="M8.matrix_gap"),
    Rule("READS_WHAT_HAS_NO_EFFECT", "fault", above("M8.spurious_feature", 0.05),
         lambda m: f"reads a feature without consequences ({m.value:.2f} bits)"),
    Rule("HISTORY_DEPENDENT", "fault", above("M9.compression", 0.01),
         lambda m: f"predicts differently after histories that lead to one state ({m.value:.2f} bits)"),
    Rule("MERGES_STATES", "fault", below("M9.recall", 0.5),
         lambda m: f"does not tell {1 - m.value:.0%} of the different states apart"),
    Rule("FORGETS", "fault", below("M10.recall", 0.75),
         lambda m: f"forgets what is hidden (recalls {m.value:.0%}, chance is {m.floor or 0.5:.0%})"),
    Rule("UNDOES", "fault", above("M11.undo", 0.01),
         lambda m: f"undoes what cannot be undone in {m.value:.0%} of the opportunities"),
    Rule("LOSES_THE_ARROW_OF_TIME", "warning", above("M11.arrow_gap", 0.1),
         lambda m: f"its dreams lose the order of time ({m.value:.2f} of the area under the curve)"),
    Rule("MISSES_REWARDS", "fault", below("M5.reward_recall", 0.5),
         lambda m: f"misses {1 - m.value:.0%} of the reward events"),
    Rule("INVENTS_REWARDS", "fault", below("M5.reward_precision", 0.5),
         lambda m: f"{1 - m.value:.0%} of the predicted reward events do not come"),
    Rule("ENDS_TOO_RARE", "fault", below("M5.hazard_ratio", 0.5),
         lambda m: f"termination hazard {'more than 100' if m.value < 0.01 else format(1 / m.value, '.2g')}x too low",
         instead="M5.branch_hazard_ratio"),
    Rule("ENDS_TOO_OFTEN", "fault", above("M5.hazard_ratio", 2),
         lambda m: f"termination hazard {m.value:.3g}x too high", instead="M5.branch_hazard_ratio"),
    Rule("BLIND_TO_ENDS", "fault", below("M5.hazard_brier", 0.1), lambda m: "does not know when an episode ends"),
    Rule("DREAMS_TOO_LONG", "warning", above("M5.survival_gap", 1), lambda m: f"dreams outlive reality by {m.value:.1f} steps"),
    Rule("DREAMS_TOO_SHORT", "warning", below("M5.survival_gap", -1), lambda m: f"dreams end {-m.value:.1f} steps too soon"),
    Rule("TOKENIZER_LOSES_EVENTS", "fault", below("M0.recall", 0.9),
         lambda m: f"the tokenizer loses {1 - m.value:.0%} of what moves"),
    Rule("RANKS_POLICIES_WRONGLY", "fault", below("M12.spearman", 0.5),
         lambda m: f"orders policies wrongly (rank correlation {m.value:.2f})"),
    Rule("PLANS_ASTRAY", "fault", above("M13.planner_regret", 0),
         lambda m: f"planning in it loses {m.value:.3g} of the return"),
    Rule("OPTIMISTIC", "warning", above("M13.optimism", 0), lambda m: f"promises {m.value:.3g} more return than comes"),
)  # fmt: skip

SIGNATURES = (
    Signature("ACTION_SWAP", "fault", (above("M7.sensitivity", 0.8), below("M7.effect_cosine", 0.3)),
              lambda m: f"confuses its actions with each other (effects agree by {m['M7.effect_cosine'].value:.2f})"),
    Signature("MODE_DROPPING", "fault", (above("M3.missed", 0.2), below("M2.dh", -BITS)),
              lambda m: f"drops outcomes ({m['M3.missed'].value:.0%} of what really comes)", covers=("MISSES_OUTCOMES",)),
    Signature("INCOHERENT_CODES", "fault", (above("M3.coherence", BITS), above("M3.off_support", 0.1)),
              lambda m: f"its codes do not belong together ({m['M3.coherence'].value:.2f} bits of dependence lost, "
                        f"{m['M3.off_support'].value:.0%} impossible frames)", covers=("IMPOSSIBLE_FRAMES",)),
    Signature("AVERAGING", "fault",
              (Bound("M2.dcal_joint", "about", OVER), above("M2.dh", BITS), above("M3.off_support", 0.1)),
              lambda m: f"averages over outcomes ({m['M2.dh'].value:+.2f} bits of entropy, "
                        f"{m['M3.off_support'].value:.0%} impossible frames)",
              unless=(above("M3.coherence", BITS), above("M7.effect_error", 0.5)), covers=("IMPOSSIBLE_FRAMES",)),
    Signature("CAUSALLY_CONFUSED", "fault", (above("M8.do_gap", BITS), above("M7.effect_error", 0.5)),
              lambda m: f"predicts its agent rather than its actions ({m['M8.do_gap'].value:+.2f} bits where actions are set "
                        "at random)",
              unless=(below("M8.do_gap_supported", BITS),), covers=("WORSE_UNDER_OTHER_ACTIONS", "WORSE_UNDER_ANOTHER_AGENT")),
    Signature("UNRELIABLE_OFF_SUPPORT", "warning", (above("M8.do_gap", BITS), below("M8.do_gap_supported", BITS)),
              lambda m: f"unreliable where training data are rare ({m['M8.do_gap'].value:+.2f} bits)",
              covers=("WORSE_UNDER_OTHER_ACTIONS", "WORSE_UNDER_ANOTHER_AGENT")),
    Signature("WRONG_REWARDS", "fault", (below("M5.branch_reward_error", 0.25, skill=True),),
              lambda m: "its rewards are worse than a constant" if m["M5.branch_reward_error"].skill_ci[1] < 0 else
              "its rewards are no better than a constant"),
    Signature("DRIFTS", "fault", (above("M4.first", 0.75, skill=True), below("M4.last", 0.75, skill=True)),
              lambda m: "right for one step, adrift at the end of a dream"),
    Signature("HARMLESS_ERRORS", "note", (above("M3.kl", 0.5), above("M13.planner_regret", 0.9, skill=True)),
              lambda m: "its errors do not cost a planner"),
)  # fmt: skip


def findings(metrics: list[Metric]) -> list[dict[str, Any]]:
    """[{code, severity, evidence, text, established}]: established True, False (excluded) or None (not established).

    Rules and signatures that read what was not measured are left out.
    """
    by_id = {metric.id: metric for metric in metrics if metric.value is not None and metric.ci is not None}
    found = []
    for rule in RULES:
        read = rule.metric if rule.metric in by_id else rule.instead
        bound = Bound(read, rule.bound.side, rule.bound.threshold, rule.bound.skill)
        if read in by_id and _interval(by_id[read], bound.skill) is not None:
            settled = bound.established(by_id)
            found.append(_finding(rule.code, rule.severity, [by_id[read]], settled, lambda m, r=rule: r.words(next(iter(m)))))
    for signature in SIGNATURES:
        if all(b.metric in by_id and _interval(by_id[b.metric], b.skill) is not None for b in signature.bounds):
            settled = [bound.established(by_id) for bound in signature.bounds]
            excused = any(bound.established(by_id) for bound in signature.unless)
            settled = False if False in settled or excused else None if None in settled else True
            read = [by_id[metric] for metric in dict.fromkeys(bound.metric for bound in signature.bounds)]
            words = lambda m, s=signature: s.words({metric.id: metric for metric in m})  # noqa: E731
            found.append(_finding(signature.code, signature.severity, read, settled, words))
    return found


def verdict(metrics: list[Metric], found: list[dict[str, Any]]) -> str:
    """One line: what is established, how far a dream can be trusted, and how much is open."""
    holding = {finding["code"] for finding in found if finding["established"]}
    covered = {code for signature in SIGNATURES if signature.code in holding for code in signature.covers}
    claimed = [finding for finding in found if finding["established"] and finding["code"] not in covered]
    causes = {signature.code for signature in SIGNATURES}  # first: they say more than one number does
    claimed = sorted(claimed, key=lambda finding: (finding["severity"] != "fault", finding["code"] not in causes))
    faults = [finding["text"] for finding in claimed if finding["severity"] != "note"]
    open_ = [finding["code"].lower().replace("_", " ") for finding in found if finding["established"] is None]
    by_id = {metric.id: metric for metric in metrics if metric.value is not None}
    parts = [_listed(faults) if faults else "no fault established" if found else "nothing was measured"]
    parts += [finding["text"] for finding in claimed if finding["severity"] == "note"]
    reach = by_id.get("M4.valid_horizon") or by_id.get("M4.horizon")
    if reach is not None and reach.status == "ok":
        beyond = "more than " if "longer" in reach.reason else ""
        parts.append(f"trust rollouts to {beyond}{reach.value:.0f} step{'s' * (round(reach.value) != 1)}")
    elif reach is not None:
        open_.insert(0, "valid horizon")
    saved = by_id.get("M6.shuffled")
    if saved is not None and saved.status == "ok" and saved.ci is not None and saved.ci[0] > HEED:
        parts.append(f"knowing the action saves {saved.value:.2f} bits a frame")
    if open_:
        parts.append(f"not established: {_listed(open_)}")
    line = "; ".join(parts)
    return line[0].upper() + line[1:] + "."


def _listed(words: list[str]) -> str:
    rest = f", and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return ", ".join(words[:NAMED]) + rest


def _finding(
    code: str, severity: str, read: list[Metric], established: bool | None, words: Callable[[list[Metric]], str]
) -> dict[str, Any]:
    text = words(read) if established else ""
    if established is None:
        few = min(read, key=lambda metric: metric.n_clusters)
        text = f"not established (n={few.n_samples:,}, {few.n_clusters} episodes)"
    return {"code": code, "severity": severity, "evidence": [m.id for m in read], "text": text, "established": established}


def _interval(metric: Metric, skill: bool) -> tuple[float, float] | None:
    """The interval of a metric or of its skill; None where there is none."""
    if metric.value is None:
        return None
    return metric.skill_ci if skill else metric.ci
