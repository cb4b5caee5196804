"""Findings: each planted fault is named by its own signature, and nothing is claimed that straddles a threshold."""

from dataclasses import replace

import pytest

from tokenworld.evaluation.metrics.action_sensitivity import LEAST_SAVED
from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.report import specs
from tokenworld.evaluation.report.findings import SIGNATURES, findings
from tokenworld.evaluation.report.verdict import verdict
from tokenworld.evaluation.statistics.metric_spec import Bound, Rule, above, below

RULES = specs.rules()

RIGHT = {  # what a right model shows, with (floor, ceiling) where its place between them is read
    "tokenizer.event_recall": 1.0, "tokenizer.event_precision": 1.0, "code_length.saved_bits": 2.0, "calibration.gap": 0.0,
    "calibration.branch_gap": 0.0, "calibration.excess_entropy": 0.0, "next_frame.kl": 0.0,
    "next_frame.impossible_mass": 0.0, "next_frame.missed_mass": 0.0, "next_frame.lost_dependence": 0.0,
    "next_frame.energy_distance": (0.1, 1.0, 0.1), "rollouts.first_step_distance": (0.1, 1.0, 0.1),
    "rollouts.last_step_distance": (0.1, 1.0, 0.1), "rollouts.distance": (0.1, 1.0, 0.1), "rewards.recall": 1.0,
    "rewards.precision": 1.0,
    "rewards.bias": (0.0, 0.1, 0.0), "rewards.slope": 1.0, "rewards.delay": 0.0, "terminations.hazard_ratio": 1.0,
    "terminations.brier_skill": 0.9, "terminations.hazard_after": 0.0, "rewards.branch_error": (0.0, 0.2, 0.0),
    "rewards.branch_bias": (0.0, 0.1, 0.0), "terminations.branch_error": (0.0, 0.2, 0.0), "terminations.branch_ratio": 1.0,
    "terminations.survival_gap": 0.0, "action_sensitivity.saved_bits": 1.0, "confusions.closest_pair_bits": 1.0,
    "confusions.overlooked": 0.0, "confusions.misattributed_bits": -1.0,
    "confusions.unexpected_bits": 0.0,
    "confusions.inverse_gap": 0.0, "action_effects.error": 0.0, "action_effects.spurious": 0.0, "action_effects.cosine": 1.0,
    "action_effects.size_ratio": 1.0,
    "confusions.weakest_pair": 1.0, "confusions.swapped_states": 0.0, "agents.intervention_gap": 0.0,
    "agents.supported_intervention_gap": 0.0, "agents.transfer_gap": 0.0,
    "agents.matrix_gap": 0.0, "agents.spurious_feature": 0.0, "state_identity.compression": 0.0, "state_identity.recall": 1.0,
    "state_identity.precision": 1.0,
    "state_identity.distinction_auc": 1.0, "memory.recall": 1.0, "arrow_of_time.undo_mass": 0.0, "arrow_of_time.auc_gap": 0.0,
    "arrow_of_time.reachability": 1.0,
    "policies.spearman": 1.0, "policies.regret": (0.0, 1.0, 0.0), "policies.value_error": 0.0, "planning.value_error": 0.0,
    "planning.regret": (0.0, 1.0, 0.0), "planning.optimism": (0.0, 1.0, 0.0),
}  # fmt: skip
WHICH = {"confusions.closest_pair_bits": "LEFT and RIGHT", "confusions.overlooked": "LEFT from RIGHT",
         "confusions.misattributed_bits": "LEFT what follows RIGHT", "confusions.unexpected_bits": "after RIGHT",
         "confusions.weakest_pair": "LEFT and RIGHT; estimated"}  # fmt: skip

# The specification's table of planted faults: what each moves, and the codes that must name it; nothing else may be claimed.
FAULTS = {
    "action-blind": ({"action_effects.error": 1.0, "action_effects.cosine": 0.0, "action_effects.size_ratio": 0.0,
                      "action_sensitivity.saved_bits": 0.0, "next_frame.kl": 0.82,
                      "calibration.excess_entropy": 0.82, "next_frame.impossible_mass": 0.32, "policies.spearman": 0.59},
                     {"ACTION_BLIND", "ACTIONS_WITHOUT_EFFECT", "WRONG_EFFECTS", "IMPOSSIBLE_FRAMES", "EFFECTS_DISAGREE",
                      "MORE_RANDOM_THAN_THE_WORLD"}),
    "causally confused": ({"agents.transfer_gap": 2.27, "agents.intervention_gap": 1.18,
                           "agents.supported_intervention_gap": 1.1, "action_effects.error": 1.0,
                           "action_effects.cosine": 0.0, "action_effects.size_ratio": 0.0, "action_sensitivity.saved_bits": 0.0,
                           "next_frame.kl": 0.38},
                          {"CAUSALLY_CONFUSED", "WORSE_UNDER_OTHER_ACTIONS", "WORSE_UNDER_ANOTHER_AGENT", "ACTION_BLIND",
                           "ACTIONS_WITHOUT_EFFECT", "WRONG_EFFECTS", "EFFECTS_DISAGREE"}),
    "left and right swapped": ({"action_effects.cosine": 0.06, "action_effects.error": 1.16, "next_frame.kl": 12.2,
                                "calibration.gap": 12.2,
                                "calibration.branch_gap": 12.2, "next_frame.impossible_mass": 0.5, "policies.spearman": -0.02,
                                "planning.optimism": (0.74, 1.0, 0.0)},
                               {"ACTION_SWAP", "WRONG_EFFECTS", "OVERCONFIDENT", "IMPOSSIBLE_FRAMES", "RANKS_POLICIES_WRONGLY",
                                "OPTIMISTIC", "EFFECTS_DISAGREE", "OVERCONFIDENT_AT_BRANCHES"}),
    "independent tokens": ({"next_frame.lost_dependence": 1.18, "next_frame.impossible_mass": 0.54,
                            "calibration.excess_entropy": 1.18, "next_frame.kl": 1.18},
                           {"INCOHERENT_CODES", "IMPOSSIBLE_FRAMES", "LOOSE_CODES", "MORE_RANDOM_THAN_THE_WORLD"}),
    "overconfident": ({"calibration.gap": 1.11, "calibration.branch_gap": 1.11, "calibration.excess_entropy": -0.48,
                       "next_frame.missed_mass": 0.14, "next_frame.kl": 0.63},
                      {"OVERCONFIDENT", "MISSES_OUTCOMES", "OVERCONFIDENT_AT_BRANCHES"}),
    "underconfident": ({"calibration.gap": -0.08, "calibration.branch_gap": -0.08, "calibration.excess_entropy": 0.18,
                        "next_frame.kl": 0.1}, {"UNDERCONFIDENT"}),
    "averaging": ({"next_frame.impossible_mass": 0.5, "calibration.excess_entropy": 1.0, "next_frame.lost_dependence": -1.0,
                   "next_frame.kl": 1.0},
                  {"AVERAGING", "IMPOSSIBLE_FRAMES", "TIED_CODES", "MORE_RANDOM_THAN_THE_WORLD"}),
    "mode dropped": ({"calibration.gap": 10.8, "calibration.branch_gap": 10.8, "next_frame.missed_mass": 0.5,
                      "calibration.excess_entropy": -1.0, "next_frame.kl": 9.8,
                      "planning.regret": (0.5, 1.0, 0.0)},
                     {"MODE_DROPPING", "OVERCONFIDENT", "MISSES_OUTCOMES", "PLANS_ASTRAY", "OVERCONFIDENT_AT_BRANCHES",
                      "LESS_RANDOM_THAN_THE_WORLD"}),
    "termination-blind": ({"terminations.hazard_ratio": 0.0, "terminations.brier_skill": 0.0, "terminations.survival_gap": 6.0,
                           "planning.optimism": (14.8, 1.0, 0.0)},
                          {"ENDS_TOO_RARE", "BLIND_TO_ENDS", "DREAMS_TOO_LONG", "OPTIMISTIC"}),
    "flat reward": ({"rewards.recall": 0.0, "rewards.branch_error": (0.19, 0.2, 0.0), "policies.spearman": 0.24,
                     "planning.regret": (0.77, 1.0, 0.0)},
                    {"MISSES_REWARDS", "WRONG_REWARDS", "RANKS_POLICIES_WRONGLY", "PLANS_ASTRAY"}),
    "undoes": ({"arrow_of_time.undo_mass": 0.3}, {"UNDOES"}),
    "forgets": ({"memory.recall": 0.51, "planning.optimism": (0.64, 1.0, 0.0)}, {"FORGETS", "OPTIMISTIC"}),
    "depends on history": ({"state_identity.compression": 0.05}, {"HISTORY_DEPENDENT"}),
    "self-feeding drift": ({"rollouts.last_step_distance": (0.6, 1.0, 0.1)}, {"DRIFTS"}),
    "garbage off support": ({"agents.transfer_gap": 1.11, "agents.intervention_gap": 0.91, "action_effects.spurious": 0.13,
                             "arrow_of_time.undo_mass": 0.38},
                            {"UNRELIABLE_OFF_SUPPORT", "WORSE_UNDER_OTHER_ACTIONS", "WORSE_UNDER_ANOTHER_AGENT",
                             "SPURIOUS_EFFECTS", "UNDOES"}),
    "harmless distractor": ({"next_frame.kl": 9.8, "calibration.gap": 10.8, "calibration.branch_gap": 10.8,
                             "next_frame.missed_mass": 0.5, "calibration.excess_entropy": -1.0},
                            {"MODE_DROPPING", "OVERCONFIDENT", "MISSES_OUTCOMES", "HARMLESS_ERRORS",
                             "OVERCONFIDENT_AT_BRANCHES", "LESS_RANDOM_THAN_THE_WORLD"}),
    "wrong rare reward": ({"rewards.branch_error": (0.25, 0.2, 0.0), "planning.regret": (0.77, 1.0, 0.0),
                           "planning.optimism": (1.5, 1.0, 0.0), "policies.spearman": 0.61},
                          {"WRONG_REWARDS", "PLANS_ASTRAY", "OPTIMISTIC"}),
    "tokenizer drops object": ({"tokenizer.event_recall": 0.25}, {"TOKENIZER_LOSES_EVENTS"}),
    "reads a lamp": ({"agents.spurious_feature": 0.3}, {"READS_WHAT_HAS_NO_EFFECT"}),
    "merges states": ({"state_identity.recall": 0.2}, {"MERGES_STATES"}),
    "time runs both ways": ({"arrow_of_time.auc_gap": 0.3}, {"LOSES_THE_ARROW_OF_TIME"}),
    "ends too often": ({"terminations.hazard_ratio": 4.0, "terminations.survival_gap": -3.0},
                       {"ENDS_TOO_OFTEN", "DREAMS_TOO_SHORT"}),
    "invents rewards": ({"rewards.precision": 0.1}, {"INVENTS_REWARDS"}),
    "knows less than counts": ({"code_length.saved_bits": -1.0}, {"WORSE_THAN_COUNTING"}),
    "invents events": ({"tokenizer.event_precision": 0.5}, {"TOKENIZER_INVENTS_EVENTS"}),
    "sure at branches": ({"calibration.branch_gap": 0.5}, {"OVERCONFIDENT_AT_BRANCHES"}),
    "unsure at branches": ({"calibration.branch_gap": -0.5}, {"UNDERCONFIDENT_AT_BRANCHES"}),
    "random": ({"calibration.excess_entropy": 0.8}, {"MORE_RANDOM_THAN_THE_WORLD"}),
    "not random": ({"calibration.excess_entropy": -0.8}, {"LESS_RANDOM_THAN_THE_WORLD"}),
    "loose": ({"next_frame.lost_dependence": 0.8}, {"LOOSE_CODES"}),
    "tied": ({"next_frame.lost_dependence": -0.8}, {"TIED_CODES"}),
    "next frame": ({"next_frame.energy_distance": (0.9, 1.0, 0.1)}, {"NEXT_FRAME_OFF"}),
    "first step": ({"rollouts.first_step_distance": (0.9, 1.0, 0.1)}, {"FIRST_STEP_OFF"}),
    "all steps": ({"rollouts.distance": (0.9, 1.0, 0.1)}, {"ROLLOUTS_OFF"}),
    "reward sign flipped": ({"rewards.recall": 0.0, "rewards.precision": 0.0, "rewards.slope": -1.0,
                             "rewards.bias": (-0.2, 0.1, 0.0), "rewards.branch_error": (0.4, 0.2, 0.0)},
                            {"REWARDS_OF_THE_WRONG_SIGN", "REWARDS_TOO_LARGE", "PROMISES_TOO_LITTLE", "MISSES_REWARDS",
                             "INVENTS_REWARDS", "WRONG_REWARDS"}),
    "rewards one step late": ({"rewards.slope": 0.0, "rewards.delay": 1.0, "rewards.branch_error": (0.2, 0.2, 0.0)},
                              {"REWARDS_LATE", "REWARDS_TOO_LARGE", "WRONG_REWARDS"}),
    "rewards early": ({"rewards.delay": -1.0}, {"REWARDS_EARLY"}),
    "rewards halved": ({"rewards.slope": 2.0, "rewards.bias": (-0.05, 0.1, 0.0)},
                       {"REWARDS_TOO_SMALL", "PROMISES_TOO_LITTLE"}),
    "rewards doubled": ({"rewards.slope": 0.5, "rewards.bias": (0.1, 0.1, 0.0)},
                        {"REWARDS_TOO_LARGE", "PROMISES_TOO_MUCH"}),
    "rewards at branches": ({"rewards.branch_bias": (0.1, 0.1, 0.0)}, {"PROMISES_TOO_MUCH"}),
    "ends at branches": ({"terminations.branch_error": (0.2, 0.2, 0.0)}, {"WRONG_ENDS"}),
    "ends one step late": ({"terminations.hazard_ratio": 0.0, "terminations.hazard_after": 1.0,
                            "terminations.brier_skill": 0.0},
                           {"ENDS_LATE", "ENDS_TOO_RARE", "BLIND_TO_ENDS"}),
    "one action aliased": ({"confusions.closest_pair_bits": 0.0, "confusions.misattributed_bits": 0.0,
                            "confusions.unexpected_bits": 3.0, "confusions.weakest_pair": 0.0},
                           {"ALIASED_ACTIONS", "WRONG_AFTER_ONE_ACTION", "PAIR_TOO_ALIKE"}),
    "one action aliased in the data": ({"confusions.closest_pair_bits": 0.0, "confusions.overlooked": 0.4},
                                       {"OVERLOOKS_AN_ACTION"}),
    "one action wrong": ({"confusions.unexpected_bits": 3.0}, {"WRONG_AFTER_ONE_ACTION"}),
    "one action for another": ({"confusions.misattributed_bits": 3.0}, {"TAKES_ONE_ACTION_FOR_ANOTHER"}),
    "swapped in some states": ({"confusions.inverse_gap": 0.3, "confusions.swapped_states": 0.4},
                               {"TAKES_ACTIONS_FOR_OTHERS", "ACTIONS_SWAPPED_IN_SOME_STATES"}),
    "poor actions": ({"confusions.inverse_gap": -0.3}, {"KNOWS_ACTIONS_TOO_POORLY"}),
    "strong actions": ({"action_effects.size_ratio": 2.0}, {"ACTIONS_TOO_STRONG"}),
    "effects disagree": ({"action_effects.cosine": 0.4}, {"EFFECTS_DISAGREE"}),
    "overlooks": ({"agents.spurious_feature": -0.3}, {"OVERLOOKS_A_FEATURE"}),
    "splits states": ({"state_identity.precision": 0.2}, {"SPLITS_STATES"}),
    "states hard to tell": ({"state_identity.distinction_auc": 0.5}, {"STATES_HARD_TO_TELL"}),
    "an arrow too much": ({"arrow_of_time.auc_gap": -0.3}, {"ADDS_AN_ARROW_OF_TIME"}),
    "paths back": ({"arrow_of_time.reachability": 0.5}, {"LOSES_ONE_WAY_PATHS"}),
    "chooses badly": ({"policies.regret": (0.9, 1.0, 0.0)}, {"CHOOSES_POLICIES_BADLY"}),
    "values policies wrongly": ({"policies.value_error": 0.5}, {"VALUES_POLICIES_WRONGLY"}),
    "values states wrongly": ({"planning.value_error": 0.5}, {"VALUES_STATES_WRONGLY"}),
    "pessimistic": ({"planning.optimism": (-1.0, 1.0, 0.0)}, {"PESSIMISTIC"}),
}  # fmt: skip


def measured(moved=(), half=0.004, status="ok", **more):
    """A right model's metrics, some of them moved; intervals of a half-width around each."""
    metrics = []
    for id, told in (RIGHT | dict(moved)).items():
        value, floor, ceiling = told if isinstance(told, tuple) else (told, None, None)
        tier = {"policies": "C", "planning": "C", "next_frame": "B", "action_effects": "B"}.get(id.split(".")[0], "A")
        ends = dict(ci=(value - half, value + half), floor=floor, ceiling=ceiling, n_clusters=50, n_samples=1000,
                    reason=WHICH.get(id, ""), tier=tier)  # fmt: skip
        metrics.append(Metric(id, id, value, status=status, **(ends | more)))
    return metrics


def claimed(metrics, notes=True):
    found = [finding for finding in findings(metrics) if finding["established"]]
    return {finding["code"] for finding in found if notes or finding["severity"] != "note"}


def test_a_right_model_has_no_fault():
    assert claimed(measured()) == set()
    assert verdict(measured(), findings(measured())).startswith("No fault established in 74 checks; knowing the action saves")


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
    moved = next(moved for moved, codes in FAULTS.values() if rule.code in codes and (
        not isinstance(rule, Rule) or rule.metric in moved))  # fmt: skip
    for bound in rule.bounds if hasattr(rule, "bounds") else (rule.bound,):
        if bound.side == "about":
            continue
        for step, said in ((0.0, None), (0.003, False)):
            beyond = bound.threshold + step * (1 if bound.side == "<" else -1)
            metrics = []
            for metric in measured(moved, half=0.0):
                if metric.id == getattr(rule, "also", None):
                    continue  # it would answer for the first measure
                if metric.id == bound.metric:
                    scale = metric.ceiling - metric.floor if bound.skill else metric.floor if bound.of_floor else 1.0
                    value = metric.floor + beyond * scale if bound.skill else beyond * scale
                    metric = replace(metric, value=value, ci=(value - 0.002 * abs(scale), value + 0.002 * abs(scale)))
                metrics.append(metric)
            found = {finding["code"]: finding for finding in findings(metrics)}
            assert found[rule.code]["established"] is said, (bound, step)


def test_bounds_by_hand():
    assert above(1, "m").holds(1.1, 2) and not above(1, "m").holds(1.0, 2) and above(1, "m").fails(0, 0.9)
    assert below(1, "m").holds(0, 0.9) and below(1, "m").fails(1.1, 2) and not below(1, "m").fails(1, 2)
    about = Bound("m", "about", 0.05)
    assert about.holds(-0.2, 0.01) and about.holds(0.01, 0.2) and about.fails(0.06, 0.2) and about.fails(-0.2, -0.06)
    skill = below(0.5, "m", skill=True)
    metric = Metric("m", "m", 8.0, ci=(7.5, 8.5), floor=10.0, ceiling=0.0, n_clusters=20)  # skill 0.15 to 0.25
    assert skill.established({"m": metric}) is True
    assert skill.established({"m": replace(metric, ci=(4.0, 6.0))}) is None  # 0.4 to 0.6
    assert skill.established({"m": replace(metric, ci=(1.0, 2.0))}) is False
    assert skill.established({"m": replace(metric, ceiling=None)}) is None and skill.established({}) is None


def test_a_quantity_that_is_measured_twice_speaks_if_either_measure_is_beyond():
    def ends(ratio, at_branches):
        moved = {"terminations.hazard_ratio": ratio, "terminations.branch_ratio": at_branches}
        return next(finding for finding in findings(measured(moved)) if finding["code"] == "ENDS_TOO_RARE")

    assert ends(0.1, 1.0)["evidence"] == ["terminations.hazard_ratio"] and ends(0.1, 1.0)["established"]
    assert ends(1.0, 0.1)["evidence"] == ["terminations.branch_ratio"] and ends(1.0, 0.1)["established"]
    assert ends(1.0, 0.5)["evidence"] == ["terminations.branch_ratio"] and ends(1.0, 0.5)["established"] is None
    assert ends(1.0, 1.0)["evidence"] == ["terminations.hazard_ratio"] and ends(1.0, 1.0)["established"] is False
    alone = [metric for metric in measured({"terminations.branch_ratio": 0.1}) if metric.id != "terminations.hazard_ratio"]
    assert "ENDS_TOO_RARE" in claimed(alone)


def test_every_metric_speaks_or_its_file_says_why_not():
    """A new metric needs a rule that its own excursion triggers, on each side that is not its ideal, or a reason."""
    also = {rule.also for rule in RULES}
    for spec in specs.specs():
        if spec.silent:
            assert not spec.rules and len(spec.silent) > 20, spec.id
            continue
        assert spec.rules or spec.id in also, f"{spec.id}: no finding reads it, and its spec does not say why not"
        bounds = [rule.bound for rule in RULES if spec.id in (rule.metric, rule.also)]
        right = next(metric for metric in measured() if metric.id == spec.id)
        sides = {side for bound in bounds for side in bound.side}
        far = [value for side, value in (("<", -1e3), (">", 1e3)) if side in sides or any(b.skill for b in bounds)]
        claims = [finding for value in far for finding in findings([replace(right, value=value, ci=(value, value))])]
        assert any(spec.id in finding["evidence"] and finding["established"] for finding in claims), spec.id


BOTH_SIDES = {  # of a number whose ideal lies between bad values: what says that it is too low, and too high
    "calibration.gap": ("UNDERCONFIDENT", "OVERCONFIDENT"), "calibration.excess_entropy": ("LESS_RANDOM_THAN_THE_WORLD",
                                                                                           "MORE_RANDOM_THAN_THE_WORLD"),
    "calibration.branch_gap": ("UNDERCONFIDENT_AT_BRANCHES", "OVERCONFIDENT_AT_BRANCHES"),
    "next_frame.lost_dependence": ("TIED_CODES", "LOOSE_CODES"),
    "rewards.bias": ("PROMISES_TOO_LITTLE", "PROMISES_TOO_MUCH"), "rewards.delay": ("REWARDS_EARLY", "REWARDS_LATE"),
    "rewards.branch_bias": ("PROMISES_TOO_LITTLE", "PROMISES_TOO_MUCH"),
    "rewards.slope": ("REWARDS_TOO_LARGE", "REWARDS_TOO_SMALL"),
    "terminations.hazard_ratio": ("ENDS_TOO_RARE", "ENDS_TOO_OFTEN"),
    "terminations.branch_ratio": ("ENDS_TOO_RARE", "ENDS_TOO_OFTEN"),
    "terminations.survival_gap": ("DREAMS_TOO_SHORT", "DREAMS_TOO_LONG"),
    "confusions.inverse_gap": ("KNOWS_ACTIONS_TOO_POORLY", "TAKES_ACTIONS_FOR_OTHERS"),
    "action_effects.size_ratio": ("ACTIONS_WITHOUT_EFFECT", "ACTIONS_TOO_STRONG"),
    "agents.spurious_feature": ("OVERLOOKS_A_FEATURE", "READS_WHAT_HAS_NO_EFFECT"),
    "arrow_of_time.auc_gap": ("ADDS_AN_ARROW_OF_TIME", "LOSES_THE_ARROW_OF_TIME"),
    "planning.optimism": ("PESSIMISTIC", "OPTIMISTIC"),
}  # fmt: skip


@pytest.mark.parametrize("id", BOTH_SIDES)
def test_a_number_with_an_ideal_in_between_speaks_on_both_sides(id):
    right = next(metric for metric in measured() if metric.id == id)
    for value, code in zip((-3.0, 3.0), BOTH_SIDES[id], strict=True):
        assert code in claimed([replace(right, value=value, ci=(value - 0.1, value + 0.1))])


def test_every_finding_says_its_threshold():
    for half in (0.004, 100.0):
        for finding in findings(measured(half=half)):
            assert finding["threshold"] and any(digit in finding["threshold"] for digit in "0123456789"), finding
    said = {finding["code"]: finding["threshold"] for finding in findings(measured())}
    assert said["MISSES_REWARDS"] == "below 0.5"
    assert said["ACTION_SWAP"] == "action_effects.size_ratio above 0.8, action_effects.cosine below 0.3"
    metric = Metric("m", "m", 0.0, "distance", ci=(0.0, 0.1), floor=1.0, ceiling=0.2)
    assert below(0.5, "m", skill=True).limit(metric) == "above 0.6 distance"  # a skill below 0.5 is a distance above 0.6
    assert above(0.5, "m", skill=True).limit(metric) == "below 0.6 distance"
    assert below(0.5, "m", skill=True).limit(replace(metric, floor=0.0, ceiling=1.0)) == "below 0.5 distance"
    assert Bound("m", "<", -0.25, of_floor=True).limit(replace(metric, floor=0.08, unit="per step")) == "below -0.02 per step"
    assert above(0.1, "m").limit(replace(metric, unit="share")) == "above 10%"


def test_what_was_not_measured_is_not_mentioned():
    alone = [metric for metric in measured({"calibration.excess_entropy": 1.0}) if metric.id == "calibration.excess_entropy"]
    assert [finding["code"] for finding in findings(alone)] == ["MORE_RANDOM_THAN_THE_WORLD", "LESS_RANDOM_THAN_THE_WORLD"]
    assert verdict([], []) == "Nothing was measured."
    absent = [Metric("calibration.gap", "gap", None, status="skipped", reason="no time")]
    assert findings(absent) == [] and verdict(absent, []) == "Nothing was measured."


def test_the_verdict_begins_with_what_was_not_judged_and_why():
    reason = "only 5 real reward events"
    held_out = [id for id in RIGHT if id.startswith("rewards.") and "branch" not in id]
    few = [replace(metric, status="underpowered", reason=reason) if metric.id in held_out else metric
           for metric in measured({"rewards.recall": 0.0})]  # fmt: skip
    line = verdict(few, findings(few))
    assert line.startswith("Not judged: rewards (only 5 real reward events); no fault established in ") and "misses" not in line
    data = [metric for metric in few if metric.tier == "A"]
    line = verdict(data, findings(data))
    assert line.startswith("Not judged: rewards (only 5 real reward events), what actions really do and whole rollouts (tier B "
                           "was not run), policies and planning (tier C was not run); no fault")  # fmt: skip
    absent = [Metric("terminations.hazard_ratio", "h", None, status="not_applicable", reason="no episode terminated: add data")]
    assert "terminations (no episode terminated)" in verdict([*few, *absent], findings(few))


def test_the_verdict_is_one_line_without_repeating_itself():
    moved, _ = FAULTS["mode dropped"]
    horizon = Metric("rollouts.valid_horizon", "h", 1.0, "steps", "higher", ci=(1.0, 2.0), n_clusters=50, tier="B")
    metrics = [*measured(moved), horizon, Metric("rollouts.held_out_horizon", "h", 9.0, "steps", "higher", ci=(8.0, 9.0),
                                                 n_clusters=50)]
    line = verdict(metrics, findings(metrics))
    assert line.startswith("Drops outcomes (50% of what really comes) [limit: next_frame.missed_mass above 0.2, "
                           "calibration.excess_entropy below -0.1], ")  # fmt: skip
    assert "rules out" not in line and "less random" not in line  # the signature says it
    assert "; rollouts as a whole stay near reality for 1 step;" in line  # where measured, tier B's
    assert "\n" not in line and line.endswith(".")
    long = [*measured(), replace(horizon, value=20.0, ci=(20.0, 20.0), reason="longer than the 20 steps that were imagined")]
    assert "; trust rollouts to at least 20 steps (longest tried); " in verdict(long, findings(long))
    few = [replace(metric, status="underpowered", reason="few") for metric in metrics]
    line = verdict(few, findings(few))
    assert line.startswith("Not judged: the tokenizer and code length and ") and "no check was settled" in line
    assert "rollouts as a whole" not in line and "trust" not in line and "not established" not in line
    unsure = verdict(measured(half=100.0), findings(measured(half=100.0)))
    assert "not established, the interval holds the limit: tokenizer loses events [limit: below 0.9], " in unsure
    assert f", and {len(RULES) + len(SIGNATURES) - 6} more." in unsure
    harmless = verdict(measured(FAULTS["harmless distractor"][0]), findings(measured(FAULTS["harmless distractor"][0])))
    assert harmless.startswith("Drops outcomes (50% of what really comes) [limit: ") and "; its errors do not cost" in harmless
    at_limit = dict(value=2 * LEAST_SAVED, ci=(LEAST_SAVED, 3 * LEAST_SAVED))
    saved = [replace(metric, **at_limit) for metric in measured() if metric.id == "action_sensitivity.saved_bits"]
    assert "knowing the action" not in verdict(saved, findings(saved))  # its interval holds the limit
