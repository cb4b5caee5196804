"""Which numbers are faults, and from where on: the rules that `findings.py` applies, as data.

A `Rule` reads one metric. A `Signature` reads several, or their place between floor and ceiling: what a fault moves and what
it leaves alone, since one number alone seldom tells which fault it was (an action-blind model is perfectly calibrated, one
with left and right swapped is as sensitive to its actions as a right one).

Every metric whose ideal is known has a rule, or its file says in `SILENT` why it has none; a test compares. The margins are
sizes that matter to a policy or a reader; what chance may do is the interval's part. Four were set after a look at measured
models: those of M2.dcal_joint, M2.dh and M3.coherence where they are read alone, and that of M6.unannounced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenworld.evaluation.records import Metric

OVER = 0.05  # bits of a frame that a calibration gap must exceed
LEAST_SAVED = 0.1  # bits of a frame: a model that saves less by knowing the action ignores it
BITS = 0.1  # of a frame: excess entropies, gaps between agents and lost dependence below it are small
HALF = 0.5  # bits of a frame that an excess must have to be a fault by itself: estimates from 16 draws are off by a tenth
GAIN = 0.1  # of what a planner gains in the simulator over random actions
SIZE = 0.25  # rewards that are off by a quarter of their size are off


@dataclass(frozen=True)
class Bound:
    """A side of a threshold: all of a metric's interval lies there, or of its skill's, or of it as a share of the floor."""

    metric: str
    side: str  # ">", "<", or "about": some of the interval is within the threshold of 0
    threshold: float
    skill: bool = False  # of the metric's place between floor and ceiling
    of_floor: bool = False  # of its share of the floor

    def holds(self, low: float, high: float) -> bool:
        if self.side == "about":
            return low < self.threshold and high > -self.threshold
        return low > self.threshold if self.side == ">" else high < self.threshold

    def fails(self, low: float, high: float) -> bool:
        if self.side == "about":
            return not self.holds(low, high)
        return high < self.threshold if self.side == ">" else low > self.threshold

    def interval(self, metric: Metric) -> tuple[float, float] | None:
        """What is compared with the threshold; None where there is none."""
        if metric.value is None or metric.ci is None:
            return None
        if self.of_floor:
            return None if not metric.floor else (metric.ci[0] / metric.floor, metric.ci[1] / metric.floor)
        return metric.skill_ci if self.skill else metric.ci

    def limit(self, metric: Metric) -> str:
        """The threshold in words, in units of the metric: "above 0.05 bits/frame"."""
        level, floor = self.threshold, metric.floor
        if self.skill and floor is not None and metric.ceiling is not None:
            level = floor - self.threshold * (floor - metric.ceiling)
        elif self.of_floor and floor is not None:
            level = self.threshold * floor
        is_above = (self.side == ">") != (self.skill and metric.ceiling is not None and metric.ceiling < floor)
        unit = "" if metric.unit == "share" else f" {metric.unit}".rstrip()
        number = f"{level:.0%}" if metric.unit == "share" else f"{level:.3g}"
        side = "within +-" if self.side == "about" else "above " if is_above else "below "
        return f"{side}{number}{unit}"

    def established(self, metrics: dict[str, Metric]) -> bool | None:
        """True, False (excluded) or None: not measured, or on too few episodes, or the interval straddles the threshold."""
        metric = metrics.get(self.metric)
        interval = None if metric is None else self.interval(metric)
        if interval is None or metric.status != "ok":  # of few events an interval says little
            return None
        return True if self.holds(*interval) else False if self.fails(*interval) else None


@dataclass(frozen=True)
class Rule:
    """`also`: the same quantity measured in another way; the finding holds if it holds in one of them. `covers`: findings that
    the verdict need not repeat beside it."""

    code: str
    severity: str  # "fault", "warning" or "note"
    bound: Bound
    words: Callable[[Metric], str]
    also: str = ""
    covers: tuple[str, ...] = ()

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


def _which(metric: Metric) -> str:
    """The actions that a number of the worst ones is about: what its reason says first."""
    return metric.reason.split(";")[0]


RULES = (
    Rule("TOKENIZER_LOSES_EVENTS", "fault", below("M0.recall", 0.9),
         lambda m: f"the tokenizer loses {1 - m.value:.0%} of what moves"),
    Rule("TOKENIZER_INVENTS_EVENTS", "warning", below("M0.precision", 0.9),
         lambda m: f"{1 - m.value:.0%} of what moves in the reconstruction stands still in truth"),
    Rule("WORSE_THAN_COUNTING", "fault", below("M1.gain", 0),
         lambda m: f"worse than counting codes ({-m.value:.2f} bits a frame more)"),
    Rule("OVERCONFIDENT", "fault", above("M2.dcal", OVER), lambda m: f"overconfident ({m.value:+.2f} bits a frame)",
         covers=("OVERCONFIDENT_AT_BRANCHES",)),
    Rule("UNDERCONFIDENT", "warning", below("M2.dcal", -OVER), lambda m: f"underconfident ({m.value:+.2f} bits a frame)",
         covers=("UNDERCONFIDENT_AT_BRANCHES",)),
    Rule("OVERCONFIDENT_AT_BRANCHES", "fault", above("M2.dcal_joint", 5 * OVER),
         lambda m: f"overconfident of whole frames ({m.value:+.2f} bits a frame)"),
    Rule("UNDERCONFIDENT_AT_BRANCHES", "warning", below("M2.dcal_joint", -5 * OVER),
         lambda m: f"underconfident of whole frames ({m.value:+.2f} bits a frame)"),
    Rule("MORE_RANDOM_THAN_THE_WORLD", "warning", above("M2.dh", HALF),
         lambda m: f"more random than the world ({m.value:+.2f} bits a frame)"),
    Rule("LESS_RANDOM_THAN_THE_WORLD", "warning", below("M2.dh", -HALF),
         lambda m: f"less random than the world ({m.value:+.2f} bits a frame)"),
    Rule("IMPOSSIBLE_FRAMES", "fault", above("M3.off_support", 0.1),
         lambda m: f"gives {m.value:.0%} of its probability to impossible frames"),
    Rule("MISSES_OUTCOMES", "fault", above("M3.missed", 0.1),
         lambda m: f"all but rules out {m.value:.0%} of what really comes"),
    Rule("LOOSE_CODES", "warning", above("M3.coherence", HALF),
         lambda m: f"draws the codes of a frame too independently ({m.value:.2f} bits)"),
    Rule("TIED_CODES", "warning", below("M3.coherence", -HALF),
         lambda m: f"ties the codes of a frame together too much ({-m.value:.2f} bits)"),
    Rule("NEXT_FRAME_OFF", "warning", below("M3.energy", 0.5, skill=True),
         lambda m: f"its next frames differ from real ones ({m.value:.2g}; a standing frame {m.floor:.2g})"),
    Rule("FIRST_STEP_OFF", "warning", below("M4.first", 0.5, skill=True),
         lambda m: f"its rollouts are off from the first step ({m.value:.2g}; a standing frame {m.floor:.2g})"),
    Rule("ROLLOUTS_OFF", "warning", below("M4.distance", 0.5, skill=True),
         lambda m: f"its rollouts part from reality ({m.value:.2g}; a standing frame {m.floor:.2g})"),
    Rule("MISSES_REWARDS", "fault", below("M5.reward_recall", 0.5),
         lambda m: f"misses {1 - m.value:.0%} of the reward events"),
    Rule("INVENTS_REWARDS", "fault", below("M5.reward_precision", 0.5),
         lambda m: f"{1 - m.value:.0%} of the predicted reward events do not come"),
    Rule("REWARDS_OF_THE_WRONG_SIGN", "fault", below("M5.reward_slope", 0),
         lambda m: f"predicts rewards of the wrong sign (for each unit predicted {m.value:+.2f} comes)",
         covers=("PROMISES_TOO_LITTLE", "PROMISES_TOO_MUCH", "REWARDS_TOO_LARGE", "MISSES_REWARDS", "INVENTS_REWARDS",
                 "WRONG_REWARDS")),
    Rule("REWARDS_TOO_LARGE", "fault", below("M5.reward_slope", 1 - SIZE),
         lambda m: f"predicts rewards too large (for each unit predicted {m.value:.2f} comes)"),
    Rule("REWARDS_TOO_SMALL", "fault", above("M5.reward_slope", 1 + SIZE),
         lambda m: f"predicts rewards too small (for each unit predicted {m.value:.2f} comes)", covers=("WRONG_REWARDS",)),
    Rule("REWARDS_LATE", "fault", above("M5.reward_delay", 0.5),
         lambda m: f"predicts rewards late (by {m.value:.1f} steps)", covers=("REWARDS_TOO_LARGE", "WRONG_REWARDS")),
    Rule("REWARDS_EARLY", "fault", below("M5.reward_delay", -0.5),
         lambda m: f"predicts rewards early (by {-m.value:.1f} steps)", covers=("REWARDS_TOO_LARGE", "WRONG_REWARDS")),
    Rule("PROMISES_TOO_MUCH", "fault", Bound("M5.reward_bias", ">", SIZE, of_floor=True),
         lambda m: f"promises too much reward ({m.value:+.3f} a step)", also="M5.branch_reward_bias"),
    Rule("PROMISES_TOO_LITTLE", "fault", Bound("M5.reward_bias", "<", -SIZE, of_floor=True),
         lambda m: f"promises too little reward ({m.value:+.3f} a step)", also="M5.branch_reward_bias"),
    Rule("WRONG_REWARDS", "fault", below("M5.branch_reward_error", 0.25, skill=True),
         lambda m: f"its rewards are {'worse' if m.skill_ci[1] < 0 else 'no better'} than a constant"),
    Rule("ENDS_TOO_RARE", "fault", below("M5.hazard_ratio", 0.5),
         lambda m: f"termination hazard {'more than 100' if m.value < 0.01 else format(1 / m.value, '.2g')}x too low",
         also="M5.branch_hazard_ratio"),
    Rule("ENDS_TOO_OFTEN", "fault", above("M5.hazard_ratio", 2),
         lambda m: f"termination hazard {m.value:.3g}x too high", also="M5.branch_hazard_ratio"),
    Rule("BLIND_TO_ENDS", "fault", below("M5.hazard_brier", 0.1), lambda m: "does not know when an episode ends"),
    Rule("WRONG_ENDS", "fault", below("M5.branch_hazard_error", 0.25, skill=True),
         lambda m: f"its terminations are {'worse' if m.skill_ci[1] < 0 else 'no better'} than a constant",
         covers=("BLIND_TO_ENDS",)),
    Rule("DREAMS_TOO_LONG", "warning", above("M5.survival_gap", 1), lambda m: f"dreams outlive reality by {m.value:.1f} steps"),
    Rule("DREAMS_TOO_SHORT", "warning", below("M5.survival_gap", -1), lambda m: f"dreams end {-m.value:.1f} steps too soon"),
    Rule("ACTION_BLIND", "fault", below("M6.shuffled", LEAST_SAVED),
         lambda m: "ignores its actions" if m.value > -LEAST_SAVED else f"misled by its actions ({m.value:+.2f} bits a frame)",
         covers=("OVERLOOKS_AN_ACTION",)),
    Rule("OVERLOOKS_AN_ACTION", "fault", above("M6.overlooked", 0.1),
         lambda m: f"does not tell {_which(m)}, though the frames do (a simple classifier recognizes {m.value:.0%} more)"),
    Rule("TAKES_ONE_ACTION_FOR_ANOTHER", "fault", above("M6.misnamed", LEAST_SAVED),
         lambda m: f"expects after {_which(m)} ({m.value:+.2f} bits a frame saved under the wrong name)",
         covers=("WRONG_AFTER_ONE_ACTION", "TAKES_ACTIONS_FOR_OTHERS")),
    Rule("WRONG_AFTER_ONE_ACTION", "fault", above("M6.unannounced", HALF),
         lambda m: f"wrong {_which(m)} ({m.value:+.2f} bits a frame more than announced, beyond the other actions)"),
    Rule("TAKES_ACTIONS_FOR_OTHERS", "fault", above("M6.inverse_gap", 0.1),
         lambda m: f"expects {m.value:.0%} of the frames after another action than the one that was taken",
         covers=("WRONG_AFTER_ONE_ACTION",)),
    Rule("KNOWS_ACTIONS_TOO_POORLY", "warning", below("M6.inverse_gap", -0.1),
         lambda m: f"its actions tell more than it announces ({-m.value:.0%} more are recognized)"),
    Rule("ACTIONS_WITHOUT_EFFECT", "fault", below("M7.sensitivity", 0.2),
         lambda m: f"its actions have {max(0, m.value):.0%} of their effect",
         covers=("EFFECTS_DISAGREE", "PAIR_TOO_ALIKE", "OVERLOOKS_AN_ACTION")),
    Rule("ACTIONS_TOO_STRONG", "warning", above("M7.sensitivity", 1.5),
         lambda m: f"its actions have {m.value:.0%} of their effect"),
    Rule("WRONG_EFFECTS", "fault", above("M7.effect_error", 0.5),
         lambda m: f"gets {min(1, m.value):.0%} of the effects of its actions wrong"),
    Rule("EFFECTS_DISAGREE", "fault", below("M7.effect_cosine", 0.5),
         lambda m: f"the effects of its actions agree with the world's by {m.value:.2f} only"),
    Rule("SPURIOUS_EFFECTS", "warning", above("M7.spurious", 0.1),
         lambda m: f"actions move {m.value:.2g} codes that they do not move in truth"),
    Rule("PAIR_TOO_ALIKE", "fault", below("M7.weakest_pair", 0.25),
         lambda m: f"makes one action of {_which(m)} ({max(0, m.value):.0%} of their difference in the world)",
         covers=("OVERLOOKS_AN_ACTION",)),
    Rule("ACTIONS_SWAPPED_IN_SOME_STATES", "fault", above("M7.reversed", 0.1),
         lambda m: f"gives its actions the effects of others in {m.value:.0%} of the states",
         covers=("TAKES_ACTIONS_FOR_OTHERS", "WRONG_AFTER_ONE_ACTION", "WRONG_EFFECTS")),
    Rule("WORSE_UNDER_OTHER_ACTIONS", "warning", above("M8.do_gap", BITS),
         lambda m: f"worse where actions are set at random ({m.value:+.2f} bits a frame)"),
    Rule("WORSE_UNDER_ANOTHER_AGENT", "warning", above("M8.transfer_gap", BITS),
         lambda m: f"worse under another agent ({m.value:+.2f} bits a frame)", also="M8.matrix_gap"),
    Rule("READS_WHAT_HAS_NO_EFFECT", "fault", above("M8.spurious_feature", 0.05),
         lambda m: f"reads a feature without consequences ({m.value:.2f} bits)"),
    Rule("OVERLOOKS_A_FEATURE", "warning", below("M8.spurious_feature", -0.05),
         lambda m: f"overlooks a feature that has consequences ({-m.value:.2f} bits)"),
    Rule("HISTORY_DEPENDENT", "fault", above("M9.compression", 0.01),
         lambda m: f"predicts differently after histories that lead to one state ({m.value:.2f} bits)"),
    Rule("MERGES_STATES", "fault", below("M9.recall", 0.5),
         lambda m: f"does not tell {1 - m.value:.0%} of the different states apart"),
    Rule("SPLITS_STATES", "fault", below("M9.precision", 0.5),
         lambda m: f"{1 - m.value:.0%} of the states that it tells apart are one"),
    Rule("STATES_HARD_TO_TELL", "warning", below("M9.distinction_auc", 0.75),
         lambda m: f"hardly tells different states from one state ({m.value:.2f} of the area under the curve)"),
    Rule("FORGETS", "fault", below("M10.recall", 0.75),
         lambda m: f"forgets what is hidden (recalls {m.value:.0%}, chance is {m.floor or 0.5:.0%})"),
    Rule("UNDOES", "fault", above("M11.undo", 0.01),
         lambda m: f"undoes what cannot be undone in {m.value:.0%} of the opportunities"),
    Rule("LOSES_THE_ARROW_OF_TIME", "warning", above("M11.arrow_gap", 0.1),
         lambda m: f"its dreams lose the order of time ({m.value:.2f} of the area under the curve)"),
    Rule("ADDS_AN_ARROW_OF_TIME", "warning", below("M11.arrow_gap", -0.1),
         lambda m: f"its dreams have more order in time than reality ({-m.value:.2f} of the area under the curve)"),
    Rule("LOSES_ONE_WAY_PATHS", "fault", below("M11.reachability", 0.9),
         lambda m: f"{1 - m.value:.0%} of the one-way paths can be gone back"),
    Rule("RANKS_POLICIES_WRONGLY", "fault", below("M12.spearman", 0.5),
         lambda m: f"orders policies wrongly (rank correlation {m.value:.2f})"),
    Rule("CHOOSES_POLICIES_BADLY", "fault", below("M12.regret", 0.25, skill=True),
         lambda m: f"the policy that is best in it loses {m.value:.3g} of the return (one at random {m.floor:.3g})"),
    Rule("VALUES_POLICIES_WRONGLY", "warning", above("M12.abs_error", 0.25),
         lambda m: f"values of policies are off by {m.value:.0%} of their range"),
    Rule("VALUES_STATES_WRONGLY", "warning", above("M13.value_error", 0.25),
         lambda m: f"values of states are off by {m.value:.0%} of their range"),
    Rule("PLANS_ASTRAY", "fault", below("M13.planner_regret", 1 - GAIN, skill=True),
         lambda m: f"planning in it loses {m.value:.3g} of the return"),
    Rule("OPTIMISTIC", "warning", Bound("M13.optimism", ">", GAIN, of_floor=True),
         lambda m: f"promises {m.value:.3g} more return than comes"),
    Rule("PESSIMISTIC", "warning", Bound("M13.optimism", "<", -GAIN, of_floor=True),
         lambda m: f"promises {-m.value:.3g} less return than comes"),
)  # fmt: skip

SIGNATURES = (
    Signature("ACTION_SWAP", "fault", (above("M7.sensitivity", 0.8), below("M7.effect_cosine", 0.3)),
              lambda m: f"confuses its actions with each other (effects agree by {m['M7.effect_cosine'].value:.2f})",
              covers=("ACTIONS_SWAPPED_IN_SOME_STATES", "TAKES_ACTIONS_FOR_OTHERS", "EFFECTS_DISAGREE", "WRONG_EFFECTS")),
    Signature("ALIASED_ACTIONS", "fault", (below("M6.apart", LEAST_SAVED), above("M6.unannounced", HALF)),
              lambda m: f"makes one action of {_which(m['M6.apart'])} (they differ by {m['M6.apart'].value:.2f} bits a frame, "
                        f"{_which(m['M6.unannounced'])} {m['M6.unannounced'].value:+.2f} more come than announced)",
              unless=(below("M6.shuffled", LEAST_SAVED),),
              covers=("WRONG_AFTER_ONE_ACTION", "PAIR_TOO_ALIKE", "OVERLOOKS_AN_ACTION")),
    Signature("ENDS_LATE", "fault", (below("M5.hazard_ratio", 0.5), above("M5.hazard_after", 0.5)),
              lambda m: f"announces ends one step late (hazard {m['M5.hazard_after'].value:.0%} one step after the end)",
              covers=("ENDS_TOO_RARE", "BLIND_TO_ENDS", "WRONG_ENDS")),
    Signature("MODE_DROPPING", "fault", (above("M3.missed", 0.2), below("M2.dh", -BITS)),
              lambda m: f"drops outcomes ({m['M3.missed'].value:.0%} of what really comes)",
              covers=("MISSES_OUTCOMES", "LESS_RANDOM_THAN_THE_WORLD")),
    Signature("INCOHERENT_CODES", "fault", (above("M3.coherence", BITS), above("M3.off_support", 0.1)),
              lambda m: f"its codes do not belong together ({m['M3.coherence'].value:.2f} bits of dependence lost, "
                        f"{m['M3.off_support'].value:.0%} impossible frames)",
              covers=("IMPOSSIBLE_FRAMES", "LOOSE_CODES", "MORE_RANDOM_THAN_THE_WORLD")),
    Signature("AVERAGING", "fault",
              (Bound("M2.dcal_joint", "about", OVER), above("M2.dh", BITS), above("M3.off_support", 0.1)),
              lambda m: f"averages over outcomes ({m['M2.dh'].value:+.2f} bits of entropy, "
                        f"{m['M3.off_support'].value:.0%} impossible frames)",
              unless=(above("M3.coherence", BITS), above("M7.effect_error", 0.5)),
              covers=("IMPOSSIBLE_FRAMES", "MORE_RANDOM_THAN_THE_WORLD", "TIED_CODES")),
    Signature("CAUSALLY_CONFUSED", "fault", (above("M8.do_gap", BITS), above("M7.effect_error", 0.5)),
              lambda m: f"predicts its agent rather than its actions ({m['M8.do_gap'].value:+.2f} bits where actions are set "
                        "at random)",
              unless=(below("M8.do_gap_supported", BITS),), covers=("WORSE_UNDER_OTHER_ACTIONS", "WORSE_UNDER_ANOTHER_AGENT")),
    Signature("UNRELIABLE_OFF_SUPPORT", "warning", (above("M8.do_gap", BITS), below("M8.do_gap_supported", BITS)),
              lambda m: f"unreliable where training data are rare ({m['M8.do_gap'].value:+.2f} bits)",
              covers=("WORSE_UNDER_OTHER_ACTIONS", "WORSE_UNDER_ANOTHER_AGENT")),
    Signature("DRIFTS", "fault", (above("M4.first", 0.75, skill=True), below("M4.last", 0.75, skill=True)),
              lambda m: "right for one step, adrift at the end of a dream", covers=("ROLLOUTS_OFF",)),
    Signature("HARMLESS_ERRORS", "note", (above("M3.kl", 0.5), above("M13.planner_regret", 1 - GAIN, skill=True)),
              lambda m: "its errors do not cost a planner"),
)  # fmt: skip
