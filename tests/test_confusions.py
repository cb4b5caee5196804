"""Metrics of the worst actions: one action that is another, one taken for another, actions swapped in some states."""

from dataclasses import replace

import numpy as np
import pytest

from tokenworld.evaluation.metrics import confusions
from tokenworld.evaluation.records import Branches, Scored
from tokenworld.evaluation.report.findings import findings

NAMES = ("NOOP", "LEFT", "RIGHT")
A, NOOP, LEFT, RIGHT = 3, 0, 1, 2
SURE = 0.9  # of the code that an action brings; each brings its own


def scored(expects, n=3000, seed=0):
    """Held-out rows in which action a brings code a nine times in ten, and a model that expects of action a in state s (0 or 1)
    the code expects[s][a], as surely. Alternating states."""
    rng = np.random.default_rng(seed)
    action, state = rng.integers(A, size=n), np.arange(n) % 2
    code = np.where(rng.random(n) < SURE, action, (action + rng.integers(1, A, size=n)) % A)
    expected = np.array(expects)[state]  # (N, A)
    q = np.where(expected == code[:, None], SURE, (1 - SURE) / (A - 1))  # (N, A)
    own = -np.log2(q[np.arange(n), action])
    announced = -(SURE * np.log2(SURE) + (1 - SURE) * np.log2((1 - SURE) / (A - 1)))
    zero = np.zeros(n)
    return Scored(
        cluster=np.arange(n) // 20, previous=code[:, None], codes=code[:, None], action=action, bits=own[:, None],
        entropy=np.full((n, 1), announced), top=np.full((n, 1), SURE), hit=zero[:, None] > 0, reward=zero, reward_mean=zero,
        terminated=zero > 0, hazard=zero, bits_by_action=-np.log2(q),
    )  # fmt: skip


def branches(effect, states=60):
    """Branch states in which action a brings code a, and a model that gives it probability effect[s % len(effect)][a] (C,)."""
    p = np.broadcast_to(np.eye(A)[:, None], (states, A, 1, A))
    q = np.array(effect, float)[np.arange(states) % len(effect)][:, :, None]  # (S, A, 1, C)
    one = np.ones((states, A, 1))
    return Branches(
        cluster=np.arange(states) // 3, hash=np.arange(states, dtype=np.uint64), exact=True, p=one,
        codes=np.broadcast_to(np.arange(A)[:, None, None], (states, A, 1, 1)), bits=one, entropy_q=one[..., 0],
        marginal_p=p, marginal_q=q, candidates=np.broadcast_to(np.arange(A), (states, 1, A)),
    )  # fmt: skip


def told(metrics):
    codes = {finding["code"]: finding["text"] for finding in findings(metrics) if finding["established"]}
    return {metric.id: metric for metric in metrics}, codes


RIGHT_MODEL = [NOOP, LEFT, RIGHT]
GAP = np.log2(SURE / ((1 - SURE) / (A - 1)))  # bits between the code that is expected and another


def test_a_right_model_confuses_nothing():
    found, codes = told(confusions.confused_actions(scored([RIGHT_MODEL] * 2), names=NAMES))
    assert codes == {}
    assert found["confusions.misattributed_bits"].value < -2 and found["confusions.closest_pair_bits"].value > 3
    assert abs(found["confusions.inverse_gap"].value) < 0.02 and found["confusions.unexpected_bits"].ci[0] < 0
    found, codes = told(confusions.confused_effects(branches([np.eye(A)]), NAMES))
    assert codes == {} and found["confusions.weakest_pair"].value == 1 and found["confusions.swapped_states"].value == 0


def test_an_action_that_is_another_is_named():
    found, codes = told(confusions.confused_actions(scored([[NOOP, LEFT, NOOP]] * 2), names=NAMES))
    assert found["confusions.closest_pair_bits"].value == 0 and found["confusions.closest_pair_bits"].reason == "NOOP and RIGHT"
    assert found["confusions.unexpected_bits"].value == pytest.approx((SURE - (1 - SURE) / 2) * GAP, abs=0.3)
    assert found["confusions.unexpected_bits"].reason == "after RIGHT"
    words = "makes one action of NOOP and RIGHT (they differ by 0.00 bits a frame, after RIGHT"
    assert codes["ALIASED_ACTIONS"].startswith(words)
    assert "TAKES_ONE_ACTION_FOR_ANOTHER" not in codes
    found, codes = told(confusions.confused_effects(branches([np.eye(A)[[NOOP, LEFT, NOOP]]]), NAMES))
    assert found["confusions.weakest_pair"].value == 0
    assert codes == {"PAIR_TOO_ALIKE": "makes one action of NOOP and RIGHT (0% of their difference in the world)"}


def changed(record):
    """The same rows, in which a code changes to the one that came."""
    return replace(record, previous=record.codes + A)


def test_an_action_that_was_never_told_from_another_is_named():
    """A model that learned where one action was recorded as another expects either effect, and announces the surprise."""
    record = changed(scored([RIGHT_MODEL] * 2))
    q = 2.0**-record.bits_by_action
    q[:, [NOOP, RIGHT]] = q[:, [NOOP, RIGHT]].mean(1, keepdims=True)
    own = q[np.arange(len(q)), record.action]
    either = np.array([(1 + A * SURE - SURE) / (A - 1) / 2, (1 - SURE) / (A - 1)])  # of one of its two codes, of the third
    announced = np.where(record.action == LEFT, record.entropy[:, 0], -(np.array([2, 1]) * either * np.log2(either)).sum())
    aliased = replace(record, bits_by_action=-np.log2(q), bits=-np.log2(own)[:, None], entropy=announced[:, None])
    found, codes = told(confusions.confused_actions(aliased, names=NAMES))
    assert found["confusions.closest_pair_bits"].value == 0 and found["confusions.overlooked"].reason == "NOOP from RIGHT"
    assert found["confusions.overlooked"].value == pytest.approx(SURE + (1 - SURE) / (A - 1) / 2 - 0.5, abs=0.03)
    more = f"a simple classifier recognizes {found['confusions.overlooked'].value:.0%} more"
    assert codes == {"OVERLOOKS_AN_ACTION": f"does not tell NOOP from RIGHT, though the frames do ({more})"}
    right, _ = told(confusions.confused_actions(record, names=NAMES))
    assert right["confusions.overlooked"].ci[0] <= 0 <= right["confusions.overlooked"].ci[1]


def test_a_classifier_learns_nothing_from_the_rows_that_it_judges():
    """Codes of many kinds that have nothing to do with the actions."""
    rng = np.random.default_rng(1)
    record = scored([RIGHT_MODEL] * 2, n=600)
    noise = rng.integers(40, size=(600, 3))
    blind = replace(record, previous=noise + 40, codes=noise, bits_by_action=np.ones((600, A)))
    found, _ = told(confusions.confused_actions(blind, names=NAMES))
    assert abs(found["confusions.overlooked"].value) < 0.1
    assert found["confusions.overlooked"].ci[0] < 0 < found["confusions.overlooked"].ci[1]


def test_an_action_that_is_taken_for_another_is_named():
    found, codes = told(confusions.confused_actions(scored([[NOOP, RIGHT, LEFT]] * 2), names=NAMES))
    assert found["confusions.misattributed_bits"].value == pytest.approx((SURE - (1 - SURE) / 2) * GAP, abs=0.3)
    assert codes["TAKES_ONE_ACTION_FOR_ANOTHER"].startswith(("expects after LEFT what follows RIGHT (+",
                                                             "expects after RIGHT what follows LEFT (+"))  # fmt: skip
    assert "ALIASED_ACTIONS" not in codes and found["confusions.inverse_gap"].ci[0] > 0.5


def test_actions_that_are_swapped_in_half_of_the_states_are_named():
    swapped = [NOOP, RIGHT, LEFT]
    found, codes = told(confusions.confused_actions(scored([RIGHT_MODEL, swapped]), names=NAMES))
    assert found["confusions.inverse_gap"].value == pytest.approx((SURE - (1 - SURE) / 2) / 3, abs=0.04)
    assert "TAKES_ACTIONS_FOR_OTHERS" in codes and not {"ALIASED_ACTIONS", "TAKES_ONE_ACTION_FOR_ANOTHER"} & set(codes)
    found, codes = told(confusions.confused_effects(branches([np.eye(A), np.eye(A)[swapped]]), NAMES))
    assert found["confusions.swapped_states"].value == 0.5
    assert codes == {"ACTIONS_SWAPPED_IN_SOME_STATES": "gives its actions the effects of others in 50% of the states"}


def test_a_model_without_effects_gives_its_actions_no_effects_of_others():
    """Nor one whose effects point elsewhere but are too weak to be felt."""
    swapped = np.eye(A)[[NOOP, RIGHT, LEFT]]
    for strength in (0.0, 0.2):
        effect = [(1 - strength) / A + strength * swapped]
        found, codes = told(confusions.confused_effects(branches(effect), NAMES))
        assert found["confusions.swapped_states"].value == 0 and set(codes) == {"PAIR_TOO_ALIKE"}
        assert found["confusions.weakest_pair"].value == pytest.approx(strength)
    found, _ = told(confusions.confused_effects(branches([0.4 / A + 0.6 * swapped]), NAMES))
    assert found["confusions.swapped_states"].value == 1


def test_what_cannot_be_asked_says_why():
    record = scored([RIGHT_MODEL] * 2)
    alone = Scored(**{**record.__dict__, "action": np.zeros(len(record.action), int)})
    assert {m.status for m in confusions.confused_actions(alone)} == {"not_applicable"}
    blind = Scored(**{**record.__dict__, "bits_by_action": None})
    assert {m.status for m in confusions.confused_actions(blind)} == {"skipped"}
    still = branches([np.eye(A)])
    still = Branches(**{**still.__dict__, "marginal_p": np.broadcast_to(np.eye(A)[0], still.marginal_p.shape)})
    assert {m.status for m in confusions.confused_effects(still)} == {"not_applicable"}


def test_the_worst_of_several_actions_is_rarely_worse_than_chance():
    """Of 80 samples of a right model, intervals of the worst action that lie above 0 (5 % would be 4)."""
    alarms = sum(confusions.confused_actions(scored([RIGHT_MODEL] * 2, n=400, seed=seed))[3].ci[0] > 0 for seed in range(80))
    assert alarms <= 8
