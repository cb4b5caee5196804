"""What a metric is, as data: its names, its place in the report, and which of its values are faults.

A file of `metrics/` defines a `MetricSpec` next to the function that measures it. Nothing else lists metrics: the report, its
page, the findings, `metrics=` and the metric table read the specs, which `report/specs.py` gathers.

Thresholds are sizes that matter to a policy or a reader; what chance may do is the interval's part. Four were set after a look
at measured models: those of the calibration gap and the excess entropy at branches and of the lost dependence where they are
read alone, and that of the unexpected bits after one action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from tokenworld.evaluation.records import Metric

BITS = 0.1  # of a frame: excess entropies, gaps between agents and lost dependence below it are small
HALF = 0.5  # bits of a frame that an excess must have to be a fault by itself: estimates from 16 draws are off by a tenth
# Attributes of the functions that an evaluation calls
MEASURE, ARRAYS, LIKELIHOOD = "_is_measure", "_picture", "_of_likelihood"
NO_LIKELIHOOD = "the decoding gives no likelihood of a frame"
OF_POSTERIOR = "the codes of a frame come from a posterior: their probability is not that of the frame"
NO_EQUALITY = "equal frames need not have equal codes: there is nothing to count"


@dataclass(frozen=True)
class Section:
    """A section of the page; sections stand in the order of `order`, then of their titles."""

    title: str
    about: str = ""
    order: int = 100


OVERVIEW = Section("From floor to ceiling", order=0)
CALIBRATION = Section(
    "Calibration: overconfident or averaging?", "A model errs by being too sure, or by spreading its probability too widely.", 1
)
NEXT_FRAME = Section(
    "What can come, and what the model expects",
    "At simulator states, all possible next frames and their probabilities are enumerated or sampled.",
    2,
)
ACTIONS = Section(
    "What actions do", "Does the model know that another action would have another effect, and which effect?", 3
)
ROLLOUTS = Section(
    "How far a rollout can be trusted", "An imagined rollout is conditioned on its own frames, so small errors grow.", 4
)
REWARDS = Section(
    "Rewards and terminations", "Policies depend on both. Both are rare, so they are compared as probabilities.", 5
)
AGENTS = Section(
    "Another agent, another choice of actions", "A model may have learned the habits of its agent instead of the world.", 6
)
USEFULNESS = Section("Is it useful?", "Returns of policies and planners in the model, next to their returns in the world.", 7)
IDENTITY = Section(
    "Memory and irreversibility", "What the model remembers, which states it distinguishes, and what it undoes.", 8
)


@dataclass(frozen=True)
class Bound:
    """A side of a threshold: all of a metric's interval lies there, or of its skill's, or of it as a share of the floor."""

    metric: str  # its id; empty in a spec's own rules, which are about the spec
    side: str  # ">", "<", or "about": some of the interval is within the threshold of 0
    threshold: float
    skill: bool = False  # of the metric's position between floor and ceiling
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


def above(threshold: float, metric: str = "", skill: bool = False) -> Bound:
    return Bound(metric, ">", threshold, skill)


def below(threshold: float, metric: str = "", skill: bool = False) -> Bound:
    return Bound(metric, "<", threshold, skill)


@dataclass(frozen=True)
class Rule:
    """A finding that reads one metric. `also`: the id of the same quantity measured in another way; the finding holds if it
    holds in one of them. `covers`: findings that the verdict need not repeat next to it."""

    code: str
    severity: Literal["fault", "warning", "note"]
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
class MetricSpec:
    """A metric as the report knows it. The id is the name of its file, a dot and a name of its own."""

    id: str  # "family.name"
    name: str  # what is measured: "Calibration gap"
    explanation: str  # what it says, for people who have not read the papers
    alias: str = field(default="", kw_only=True)  # the id that reports of schema 1 have: an M, a number, a dot and a name
    quality: str = field(default="", kw_only=True)  # what is good, the label of its rung: "Mass on possible frames"
    unit: str = field(default="", kw_only=True)
    direction: Literal["lower", "higher", "zero", "none"] = field(default="lower", kw_only=True)  # what is good
    tier: Literal["A", "B", "C"] = field(default="A", kw_only=True)
    section: Section = field(default=OVERVIEW, kw_only=True)
    picture: str = field(default="", kw_only=True)  # that shows it: its name, in `report/drawings.py` or any other
    source: str = field(default="", kw_only=True)  # paper, and equation where it has one
    rules: tuple[Rule, ...] = field(default=(), kw_only=True)  # the findings that read this metric alone
    silent: str = field(default="", kw_only=True)  # why no finding reads it alone
    topic: str = field(default="", kw_only=True)  # what the verdict says was not judged; default: the family
    of_codes: bool = field(default=False, kw_only=True)  # comparable between models that share a tokenizer only
    is_expected: bool = field(default=False, kw_only=True)  # has its rung on the ladder also where it was not measured
    experimental: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        about_self = tuple(replace(rule, bound=replace(rule.bound, metric=self.id)) for rule in self.rules)
        object.__setattr__(self, "rules", about_self)

    @property
    def family(self) -> str:
        """The name of its file."""
        return self.id.split(".")[0]

    def variant(self, suffix: str, name: str) -> MetricSpec:
        """The same metric under other conditions, with the id "ID@SUFFIX"."""
        return replace(self, id=f"{self.id}@{suffix}", name=name)


def measure(function: Callable) -> Callable:
    """Mark a function that the evaluation calls where all records it needs are filled: its parameters, by name, that have no
    default. It returns the metrics."""
    setattr(function, MEASURE, True)
    return function


def arrays_of(picture: str) -> Callable[[Callable], Callable]:
    """Mark a function of records that returns the arrays of a picture, or None where there is nothing to draw."""

    def mark(function: Callable) -> Callable:
        setattr(function, ARRAYS, picture)
        return function

    return mark


def of_likelihood(*specs: MetricSpec) -> Callable[[Callable], Callable]:
    """Mark a function that reads likelihoods: these metrics of it are not applicable to a decoding without one."""

    def mark(function: Callable) -> Callable:
        setattr(function, LIKELIHOOD, specs)
        return function

    return mark


def which(metric: Metric) -> str:
    """The actions that a metric of the worst ones is about: what its reason says first."""
    return metric.reason.split(";")[0]
