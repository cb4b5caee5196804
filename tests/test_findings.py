"""Findings: each planted fault is named by its own signature, and nothing is claimed that straddles a threshold."""

from dataclasses import replace

import pytest

from tokenworld.evaluation.findings import RULES, SIGNATURES, Bound, above, below, findings, verdict
from tokenworld.evaluation.records import Metric

RIGHT = {  # what a right model shows, with (floor, ceiling) where its place between them is read
    "M0.recall": 1.0, "M1.gain": 2.0, "M2.dcal": 0.0, "M2.dcal_joint": 0.0, "M2.dh": 0.0, "M3.kl": 0.0, "M3.off_support": 0.0,
    "M3.missed": 0.0, "M3.coherence": 0.0, "M4.first": (0.1, 1.0, 0.1), "M4.last": (0.1, 1.0, 0.1), "M5.reward_recall": 1.0,
    "M5.reward_precision": 1.0, "M5.hazard_ratio": 1.0, "M5.hazard_brier": 0.9, "M5.branch_reward_error": (0.0, 0.2, 0.0),
    "M5.survival_gap": 0.0, "M6.shuffled": 1.0, "M7.effect_error": 0.0, "M7.spurious": 0.0, "M7.effect_cosine": 1.0,
    "M7.sensitivity": 1.0, "M8.do_gap": 0.0, "M8.do_gap_supported": 0.0, "M8.transfer_gap": 0.0, "M8.spurious_feature": 0.0,
    "M9.compression": 0.0, "M9.recall": 1.0, "M10.recall": 1.0, "M11.undo": 0.0, "M11.arrow_gap": 0.0, "M12.spearman": 1.0,
    "M13.planner_regret": (0.0, 1.0, 0.0), "M13.optimism": 0.0,
}  # fmt: skip

# The specification's table of planted faults: what each moves, and the codes that must name it; nothing else may be claimed.
FAULTS = {
    "action-blind": ({"M7.effect_error": 1.0, "M7.effect_cosine": 0.0, "M7.sensitivity": 0.0, "M6.shuffled": 0.0, "M3.kl": 0.82,
                      "M2.dh": 0.82, "M3.off_support": 0.32, "M12.spearman": 0.59},
                     {"ACTION_BLIND", "ACTIONS_WITHOUT_EFFECT", "WRONG_EFFECTS", "IMPOSSIBLE_FRAMES"}),
    "causally confused": ({"M8.transfer_gap": 2.27, "M8.do_gap": 1.18, "M8.do_gap_supported": 1.1, "M7.effect_error": 1.0,
                           "M7.effect_cosine": 0.0, "M7.sensitivity": 0.0, "M6.shuffled": 0.0, "M3.kl": 0.38},
                          {"CAUSALLY_CONFUSED", "WORSE_UNDER_OTHER_ACTIONS", "WORSE_UNDER_ANOTHER_AGENT", "ACTION_BLIND",
                           "ACTIONS_WITHOUT_EFFECT", "WRONG_EFFECTS"}),
    "left and right swapped": ({"M7.effect_cosine": 0.06, "M7.effect_error": 1.16, "M3.kl": 12.2, "M2.dcal": 12.2,
                                "M2.dcal_joint": 12.2, "M3.off_support": 0.5, "M12.spearman": -0.02, "M13.optimism": 0.74},
                               {"ACTION_SWAP", "WRONG_EFFECTS", "OVERCONFIDENT", "IMPOSSIBLE_FRAMES", "RANKS_POLICIES_WRONGLY",
                                "OPTIMISTIC"}),
    "independent tokens": ({"M3.coherence": 1.18, "M3.off_support": 0.54, "M2.dh": 1.18, "M3.kl": 1.18},
                           {"INCOHERENT_CODES", "IMPOSSIBLE_FRAMES"}),
    "overconfident": ({"M2.dcal": 1.11, "M2.dcal_joint": 1.11, "M2.dh": -0.48, "M3.missed": 0.14, "M3.kl": 0.63},
                      {"OVERCONFIDENT", "MISSES_OUTCOMES"}),
    "underconfident": ({"M2.dcal": -0.08, "M2.dcal_joint": -0.08, "M2.dh": 0.18, "M3.kl": 0.1}, {"UNDERCONFIDENT"}),
    "averaging": ({"M3.off_support": 0.5, "M2.dh": 1.0, "M3.coherence": -1.0, "M3.kl": 1.0},
                  {"AVERAGING", "IMPOSSIBLE_FRAMES"}),
    "mode dropped": ({"M2.dcal": 10.8, "M2.dcal_joint": 10.8, "M3.missed": 0.5, "M2.dh": -1.0, "M3.kl": 9.8,
                      "M13.planner_regret": (0.5, 1.0, 0.0)},
                     {"MODE_DROPPING", "OVERCONFIDENT", "MISSES_OUTCOMES", "PLANS_ASTRAY"}),
    "termination-blind": ({"M5.hazard_ratio": 0.0, "M5.hazard_brier": 0.0, "M5.survival_gap": 6.0, "M13.optimism": 14.8},
                          {"ENDS_TOO_RARE", "BLIND_TO_ENDS", "DREAMS_TOO_LONG", "OPTIMISTIC"}),
    "flat reward": ({"M5.reward_recall": 0.0, "M5.branch_reward_error": (0.19, 0.2, 0.0), "M12.spearman": 0.24,
                     "M13.planner_regret": (0.77, 1.0, 0.0)},
                    {"MISSES_REWARDS", "WRONG_REWARDS", "RANKS_POLICIES_WRONGLY", "PLANS_ASTRAY"}),
    "undoes": ({"M11.undo": 0.3}, {"UNDOES"}),
    "forgets": ({"M10.recall": 0.51, "M13.optimism": 0.64}, {"FORGETS", "OPTIMISTIC"}),
    "depends on history": ({"M9.compression": 0.05}, {"HISTORY_DEPENDENT"}),
    "self-feeding drift": ({"M4.last": (0.6, 1.0, 0.1)}, {"DRIFTS"}),
    "garbage off support": ({"M8.transfer_gap": 1.11, "M8.do_gap": 0.91, "M7.spurious": 0.13, "M11.undo": 0.38},
                            {"UNRELIABLE_OFF_SUPPORT", "WORSE_UNDER_OTHER_ACTIONS", "WORSE_UNDER_ANOTHER_AGENT",
                             "SPURIOUS_EFFECTS", "UNDOES"}),
    "harmless distractor": ({"M3.kl": 9.8, "M2.dcal": 10.8, "M2.dcal_joint": 10.8, "M3.missed": 0.5, "M2.dh": -1.0},
                            {"MODE_DROPPING", "OVERCONFIDENT", "MISSES_OUTCOMES", "HARMLESS_ERRORS"}),
    "wrong rare reward": ({"M5.branch_reward_error": (0.25, 0.2, 0.0), "M13.planner_regret": (0.77, 1.0, 0.0),
                           "M13.optimism": 1.5, "M12.spearman": 0.61},
                          {"WRONG_REWARDS", "PLANS_ASTRAY", "OPTIMISTIC"}),
    "tokenizer drops object": ({"M0.recall": 0.25}, {"TOKENIZER_LOSES_EVENTS"}),
    "reads a lamp": ({"M8.spurious_feature": 0.3}, {"READS_WHAT_HAS_NO_EFFECT"}),
    "merges states": ({"M9.recall": 0.2}, {"MERGES_STATES"}),
    "time runs both ways": ({"M11.arrow_gap": 0.3}, {"LOSES_THE_ARROW_OF_TIME"}),
    "ends too often": ({"M5.hazard_ratio": 4.0, "M5.survival_gap": -3.0}, {"ENDS_TOO_OFTEN", "DREAMS_TOO_SHORT"}),
    "invents rewards": ({"M5.reward_precision": 0.1}, {"INVENTS_REWARDS"}),
    "knows less than counts": ({"M1.gain": -1.0}, {"WORSE_THAN_COUNTING"}),
}  # fmt: skip


def measured(moved=(), half=0.004, status="ok", **more):
    """A right model's metrics, some of them moved; intervals of a half-width around each."""
    metrics = []
    for id, told in (RIGHT | dict(moved)).items():
        value, floor, ceiling = told if isinstance(told, tuple) else (told, None, None)
        ends = dict(ci=(value - half, value + half), floor=floor, ceiling=ceiling, n_clusters=50, n_samples=1000)
        metrics.append(Metric(id, id, value, status=status, **(ends | more)))
    return metrics


def claimed(metrics, notes=True):
    found = [finding for finding in findings(metrics) if finding["established"]]
    return {finding["code"] for finding in found if notes or finding["severity"] != "note"}


def test_a_right_model_has_no_fault():
    assert claimed(measured()) == set()
    assert verdict(measured(), findings(measured())).startswith("No fault established; knowing the action saves 1.00 bits")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_by_its_signature_alone(fault):
    moved, codes = FAULTS[fault]
    assert claimed(measured(moved), notes="HARMLESS_ERRORS" in codes) == codes
    for finding in findings(measured(moved)):
        assert bool(finding["text"]) == (finding["established"] is not False)
        assert set(finding["evidence"]) <= RIGHT.keys()


def test_every_rule_and_signature_is_planted_and_told_apart():
    named = set().union(*(codes for _, codes in FAULTS.values()))
    assert named == {rule.code for rule in (*RULES, *SIGNATURES)}
    sets = [frozenset(codes) for _, codes in FAULTS.values()]
    assert len(set(sets)) == len(sets)


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_claimed_where_intervals_are_wide_or_few(fault):
    moved, codes = FAULTS[fault]
    assert claimed(measured(moved, half=100.0)) == set()
    assert claimed(measured(moved, status="underpowered")) == set()
    assert claimed(measured(moved, ci=None)) == set()
    open_ = {finding["code"]: finding for finding in findings(measured(moved, half=100.0))}
    for code in codes:
        assert open_[code]["established"] is None
        assert open_[code]["text"] == "not established (n=1,000, 50 episodes)"


@pytest.mark.parametrize("rule", [*RULES, *SIGNATURES], ids=lambda rule: rule.code)
def test_a_claim_dies_with_any_one_of_its_bounds(rule):
    """Moving one interval over its threshold, all else as planted, leaves the finding open; past it, excluded."""
    moved = next(moved for moved, codes in FAULTS.values() if rule.code in codes)
    for bound in rule.bounds if hasattr(rule, "bounds") else (rule.bound,):
        if bound.side == "about":
            continue
        for step, said in ((0.0, None), (0.003, False)):
            beyond = bound.threshold + step * (1 if bound.side == "<" else -1)
            metrics = []
            for metric in measured(moved, half=0.0):
                if metric.id == bound.metric:
                    scale = 1.0 if not bound.skill else metric.ceiling - metric.floor
                    value = beyond if not bound.skill else metric.floor + beyond * scale
                    metric = replace(metric, value=value, ci=(value - 0.002 * abs(scale), value + 0.002 * abs(scale)))
                metrics.append(metric)
            found = {finding["code"]: finding for finding in findings(metrics)}
            assert found[rule.code]["established"] is said, (bound, step)


def test_bounds_by_hand():
    assert above("m", 1).holds(1.1, 2) and not above("m", 1).holds(1.0, 2) and above("m", 1).fails(0, 0.9)
    assert below("m", 1).holds(0, 0.9) and below("m", 1).fails(1.1, 2) and not below("m", 1).fails(1, 2)
    about = Bound("m", "about", 0.05)
    assert about.holds(-0.2, 0.01) and about.holds(0.01, 0.2) and about.fails(0.06, 0.2) and about.fails(-0.2, -0.06)
    skill = below("m", 0.5, skill=True)
    metric = Metric("m", "m", 8.0, ci=(7.5, 8.5), floor=10.0, ceiling=0.0, n_clusters=20)  # skill 0.15 to 0.25
    assert skill.established({"m": metric}) is True
    assert skill.established({"m": replace(metric, ci=(4.0, 6.0))}) is None  # 0.4 to 0.6
    assert skill.established({"m": replace(metric, ci=(1.0, 2.0))}) is False
    assert skill.established({"m": replace(metric, ceiling=None)}) is None and skill.established({}) is None


def test_another_measure_stands_in_where_the_first_is_missing():
    joint = [metric for metric in measured({"M2.dcal_joint": 1.0}) if metric.id != "M2.dcal"]
    found = {finding["code"]: finding for finding in findings(joint)}
    assert found["OVERCONFIDENT"]["established"] and found["OVERCONFIDENT"]["evidence"] == ["M2.dcal_joint"]
    both = {finding["code"]: finding for finding in findings(measured({"M2.dcal_joint": 1.0}))}
    assert both["OVERCONFIDENT"]["established"] is False and both["OVERCONFIDENT"]["evidence"] == ["M2.dcal"]


def test_what_was_not_measured_is_not_mentioned():
    alone = [metric for metric in measured({"M2.dh": 1.0}) if metric.id == "M2.dh"]
    assert findings(alone) == []
    assert verdict([], []) == "Nothing was measured."
    absent = [Metric("M2.dcal", "gap", None, status="skipped", reason="no time")]
    assert findings(absent) == [] and verdict(absent, []) == "Nothing was measured."


def test_the_verdict_is_one_line_without_repeating_itself():
    moved, _ = FAULTS["mode dropped"]
    horizon = Metric("M4.valid_horizon", "h", 1.0, "steps", "higher", ci=(1.0, 2.0), n_clusters=50, tier="B")
    metrics = [*measured(moved), horizon, Metric("M4.horizon", "h", 9.0, "steps", "higher", ci=(8.0, 9.0), n_clusters=50)]
    line = verdict(metrics, findings(metrics))
    assert line.startswith("Drops outcomes (50% of what really comes), ") and "rules out" not in line  # the signature says it
    assert "trust rollouts to 1 step;" in line and "\n" not in line and line.endswith(".")  # where measured, tier B's
    few = [replace(metric, status="underpowered") for metric in metrics]
    assert verdict(few, findings(few)).startswith("No fault established; not established: valid horizon, worse than counting, ")
    unsure = verdict(measured(half=100.0), findings(measured(half=100.0)))
    assert unsure.startswith("No fault established; not established: worse than counting, overconfident, ")
    assert f", and {len(RULES) + len(SIGNATURES) - 6} more." in unsure
    harmless = verdict(measured(FAULTS["harmless distractor"][0]), findings(measured(FAULTS["harmless distractor"][0])))
    assert harmless.startswith("Drops outcomes (50% of what really comes), overconfident (+10.80 bits a frame); its errors do")
