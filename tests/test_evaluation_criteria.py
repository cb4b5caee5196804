"""Histories, memory, the arrow of time, usefulness and proxies against values by hand and known worlds."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tokenworld.errors import UserError
from tokenworld.evaluation.metrics import arrow_of_time, information, memory, planning, policies, proxies, state_identity
from tokenworld.evaluation.records import Metric, Pairs, PolicyValues, Recalls, Rollouts, Undos


def by_id(metrics):
    return {metric.id: metric for metric in metrics}


# ------------------------------------------------------------------------------------------------------- ---- histories


def pairs(js_same, js_apart, floor=0.0, n=40):
    """n pairs of one state, n of two states that differ by 0.5 bits."""
    same = np.arange(2 * n) < n
    js = np.where(same, js_same, js_apart)
    return Pairs(np.arange(2 * n) // 2, same, js + floor, np.full(2 * n, floor), np.where(same, 0.0, 0.5))


def test_a_right_model_merges_and_distinguishes():
    found = by_id(state_identity.state_identity(pairs(0.0, 0.5, floor=0.02)))
    names = ("compression", "distinction_auc", "precision", "recall")
    assert [found[f"state_identity.{x}"].value for x in names] == pytest.approx([0, 1, 1, 1])
    assert found["state_identity.compression"].skill == pytest.approx(1)
    assert found["state_identity.compression"].n_clusters == 20


def test_models_that_remember_too_much_or_too_little():
    entangled = by_id(state_identity.state_identity(pairs(0.5, 0.5)))  # histories as such matter to it
    assert entangled["state_identity.compression"].value == 0.5 and entangled["state_identity.distinction_auc"].value == 0.5
    assert entangled["state_identity.precision"].value == 0.5 and entangled["state_identity.recall"].value == 1
    forgetful = by_id(state_identity.state_identity(pairs(0.0, 0.0)))
    assert forgetful["state_identity.compression"].value == 0 and forgetful["state_identity.recall"].value == 0
    assert forgetful["state_identity.precision"].status == "not_applicable"
    assert "tells no" in forgetful["state_identity.precision"].reason
    grid = state_identity.by_threshold(pairs(0.02, 0.5))
    assert grid["merged"].tolist() == [0, 0, 0, 1, 1] and grid["precision"].tolist() == [0.5, 0.5, 0.5, 1, 1]
    alike = pairs(0.0, 0.5)
    none = by_id(state_identity.state_identity(replace(alike, same=np.zeros(80, bool))))
    assert none["state_identity.compression"].status == none["state_identity.distinction_auc"].status == "not_applicable"


def test_distinction_has_an_interval_that_covers():
    rng, covered = np.random.default_rng(0), 0
    truth = 0.5 * math.erfc(-1 / 2)  # P(N(1, 1) > N(0, 1))
    for _ in range(200):
        same = np.arange(200) % 2 == 0
        js = rng.normal(np.where(same, 0, 1), 1)
        record = Pairs(np.arange(200) // 2, same, js, np.zeros(200), np.where(same, 0.0, 0.5))
        low, high = by_id(state_identity.state_identity(record))["state_identity.distinction_auc"].ci
        covered += low <= truth <= high
    assert 0.9 <= covered / 200 <= 0.985


# -------------------------------------------------------------------------------------------------------- ----- memory


def recalls(keeps, delays=(1, 2, 4, 8), n=400, seed=0):
    """A model that still knows the bit after k steps with probability keeps(k), else guesses."""
    rng = np.random.default_rng(seed)
    delay, truth = np.repeat(delays, n), rng.integers(2, size=n * len(delays))
    knows = rng.random(len(delay)) < np.array([keeps(k) for k in delay])
    return Recalls(np.arange(len(delay)), delay, truth, np.where(knows, truth, rng.integers(2, size=len(delay))) * 0.8 + 0.1)


def test_recall_and_half_life():
    found = by_id(memory.recall(recalls(lambda k: 1.0)))
    assert found["memory.recall"].value == 1 and found["memory.recall"].ci == pytest.approx((0.025 ** (1 / 400), 1))
    assert found["memory.half_life"].value == 8 and "longer than 8" in found["memory.half_life"].reason
    fading = by_id(memory.recall(recalls(lambda k: {1: 1.0, 2: 0.95, 4: 0.5, 8: 0.0}[k])))
    assert fading["memory.half_life"].value == 4 and fading["memory.recall"].ci[0] < 0.5 < fading["memory.recall"].ci[1]
    blank = recalls(lambda k: 0.0)
    never = by_id(memory.recall(replace(blank, answer=np.full(1600, 0.5))))
    assert never["memory.recall"].value == 0.5 and never["memory.half_life"].status == "not_applicable"
    assert never["memory.return_distance"].status == "skipped"
    back = replace(blank, return_distance=np.full(1600, 3.0), return_distance_real=np.full(1600, 1.0))
    assert by_id(memory.recall(back))["memory.return_distance"].value == 2


def test_information_is_that_of_a_noisy_channel():
    curve = memory.recall_by_delay(recalls(lambda k: 0.6, delays=(1,), n=40000))
    wrong = 0.2
    capacity = 1 + wrong * math.log2(wrong) + (1 - wrong) * math.log2(1 - wrong)
    assert curve["information"][0] == pytest.approx(capacity, abs=0.02) and curve["accuracy"][0] == pytest.approx(0.8, abs=0.01)
    few = [memory.recall_by_delay(recalls(lambda k: 0.6, (1,), 30, seed))["information"][0] for seed in range(1000)]
    assert np.mean(few) == pytest.approx(capacity, abs=0.014)  # uncorrected it would be 0.024 bits too high


# ---------------------------------------------------------------------------------------------------------- ----- arrow


def test_undoing_what_cannot_be_undone():
    never = by_id(arrow_of_time.irreversibility(Undos(np.arange(300), np.zeros(300), 0.9, 0.7, (0.1, 0.3))))
    assert never["arrow_of_time.undo_mass"].value == 0 and never["arrow_of_time.undo_mass"].ci == (0, 0.01)
    assert never["arrow_of_time.auc_gap"].value == pytest.approx(0.2)
    assert never["arrow_of_time.auc_gap"].floor == pytest.approx(0.4)
    assert never["arrow_of_time.auc_gap"].ci == (0.1, 0.3) and never["arrow_of_time.undo_mass"].experimental
    some = by_id(arrow_of_time.irreversibility(Undos(np.arange(40), np.tile([0.0, 0.6], 20))))
    assert some["arrow_of_time.undo_mass"].value == pytest.approx(0.3) and some["arrow_of_time.undo_mass"].ci[0] > 0.1
    assert some["arrow_of_time.auc_gap"].status == "skipped"
    flat = by_id(arrow_of_time.irreversibility(Undos(np.zeros(0), np.zeros(0), 0.52, 0.5)))
    assert (
        flat["arrow_of_time.undo_mass"].status == flat["arrow_of_time.auc_gap"].status == "not_applicable"
        and "0.52" in flat["arrow_of_time.auc_gap"].reason
    )
    one_way = arrow_of_time.reachability(np.arange(20), np.ones(20, bool), np.arange(20) < 5)
    assert one_way[0].value == 0.75


def test_one_classifier_tells_the_order_of_real_and_of_imagined_frames():
    rng = np.random.default_rng(0)
    falling = -np.cumsum(rng.random((60, 12, 1)) < 0.4, 1) + 0.0
    noise = rng.normal(size=(60, 12, 4))
    real = np.concatenate([falling, noise], -1)
    still = np.concatenate([rng.permuted(falling, axis=1), noise], -1)
    found = arrow_of_time.precedence(real, still, np.arange(60), gap=3)
    assert found["auc_real"] > 0.95 and abs(found["auc_model"] - 0.5) < 0.06 and found["auc_gap_ci"][0] > 0.35
    same = arrow_of_time.precedence(real, real[rng.permutation(60)], np.arange(60), gap=3)
    assert abs(same["auc_real"] - same["auc_model"]) < 0.02
    assert abs(arrow_of_time.precedence(noise, noise, np.arange(60))["auc_real"] - 0.5) < 0.1
    with pytest.raises(UserError, match="longer clips"):
        arrow_of_time.precedence(real, still, np.arange(60), gap=12)


# ----------------------------------------------------------------------------------------------------- ----- usefulness


def policy_values(real, model, noise=0.0, episodes=8, seed=0):
    rng = np.random.default_rng(seed)
    spread = [[v + noise * rng.normal(size=episodes) for v in values] for values in (real, model)]
    return PolicyValues(tuple(map(str, range(len(real)))), tuple(spread[0]), tuple(spread[1]))


def test_agreement_by_hand():
    real, model = np.array([0.0, 1, 2, 3]), np.array([0.0, 2, 1, 1.5])
    found = by_id(policies.policy_agreement(policy_values(real, model)))
    assert found["policies.spearman"].value == pytest.approx(1 - 6 * (4 + 1 + 1) / 60)
    assert found["policies.kendall"].value == pytest.approx((4 - 2) / 6)
    assert found["policies.regret"].value == 2 and found["policies.regret"].floor == 1.5
    assert found["policies.value_error"].value == pytest.approx((0 + 1 + 1 + 1.5) / 4 / 3)
    assert found["policies.mmrv"].value == pytest.approx((0 + 2 + 1 + 2) / 4)
    assert found["policies.spearman"].status == "underpowered" and "4 policies" in found["policies.spearman"].reason
    assert found["policies.tertile_spearman"].status == "not_applicable" and found["policies.regret"].experimental
    assert policies.regret(real, model, k=2) == 0 and policies.regret(real, np.zeros(4)) == 3  # ties go against the model
    same = policies.policy_agreement(policy_values(np.ones(5), real[[0, 1, 2, 3, 0]]))
    assert all(m.status == "not_applicable" for m in same)
    mute = by_id(policies.policy_agreement(policy_values(real, np.ones(4))))
    assert mute["policies.spearman"].value is None and mute["policies.mmrv"].value == pytest.approx((3 + 2 + 2 + 3) / 4)


def test_easy_rankings_are_told_from_real_ones():
    rng = np.random.default_rng(0)
    real = np.concatenate([centre + rng.random(10) for centre in (0.0, 10.0, 20.0)])
    groups = np.repeat([0.0, 10.0, 20.0], 10) + rng.random(30)  # knows good from bad, nothing else
    found = by_id(policies.policy_agreement(policy_values(real, groups)))
    assert found["policies.spearman"].value > 0.85 and found["policies.spearman"].status == "ok"
    low, high = found["policies.tertile_spearman"].ci
    assert low < 0.1 < high and abs(found["policies.tertile_spearman"].value) < 0.45
    right = by_id(policies.policy_agreement(policy_values(real, real)))
    assert all(right[f"policies.{x}"].value == 1 for x in ("spearman", "kendall", "tertile_spearman"))
    assert all(right[f"policies.{x}"].value == 0 for x in ("regret", "value_error", "mmrv"))


@pytest.mark.parametrize("P, low, high", [(8, 0.22, 0.96), (20, 0.55, 0.92)])
def test_rank_correlations_over_few_policies_say_little(P, low, high):
    """The typical interval at a correlation of 0.8 is as wide as Fisher's."""
    rng, ends = np.random.default_rng(0), []
    while len(ends) < 25:
        x = rng.normal(size=P)
        y = 0.8 * x + 0.6 * rng.normal(size=P)
        metric = policies.policy_agreement(policy_values(x, y))[0]
        if 0.77 < metric.value < 0.83:
            ends.append(metric.ci)
    assert np.median(ends, 0) == pytest.approx((low, high), abs=0.15)


# -------------------------------------------------------------------------------------------------- -------------- values


def test_value_equivalence_is_in_shares_of_the_range():
    real = np.array([[0.0, 1, 2, 4], [4.0, 3, 2, 1]])
    found = planning.value_equivalence(real, real + np.array([[1.0], [-3.0]]), np.arange(4))[0]
    assert found.value == pytest.approx(2 / 4) and found.values.shape == (4,)
    assert planning.value_equivalence(np.ones((2, 3)), np.zeros((2, 3)), np.arange(3))[0].status == "not_applicable"


def test_a_planner_that_gains_nothing_indicts_no_model():
    rng = np.random.default_rng(0)
    base = policy_values(np.arange(3.0), np.arange(3.0))
    returns = dict(
        oracle_planner=rng.normal(10, 1, 40), model_planner=rng.normal(4, 1, 40), random=rng.normal(0, 1, 40),
        planner_in_model=rng.normal(12, 1, 40),
    )  # fmt: skip
    found = by_id(planning.planning(replace(base, **returns)))
    assert found["planning.oracle_gain"].ci[0] > 9 and found["planning.regret"].value == pytest.approx(6, abs=1)
    assert found["planning.regret"].floor == found["planning.oracle_gain"].value and found["planning.optimism"].ci[0] > 7
    weak = by_id(planning.planning(replace(base, **(returns | {"oracle_planner": rng.normal(0, 1, 40)}))))
    assert weak["planning.regret"].value is None and "cannot judge" in weak["planning.regret"].reason
    assert "not established" in weak["planning.oracle_gain"].reason
    binary = dict(oracle_planner=np.repeat([1, 0], [8, 2]), model_planner=np.repeat([1, 0], [3, 7]), random=np.zeros(10))
    found = by_id(planning.planning(replace(base, **binary)))
    assert found["planning.regret"].ci == pytest.approx((0.0545, 0.7788), abs=1e-4)
    assert found["planning.optimism"].status == "skipped"
    assert all(m.status == "skipped" for m in planning.planning(base))


def test_the_knee_is_the_least_information_that_is_as_good_as_all():
    def rung(value):
        return Metric("planning.value_error", "", value, ci=(value - 0.05, value + 0.05), n_clusters=30)

    found = by_id(information.information_knee([1.0, 2, 4, 8], [rung(0.9), rung(0.22), rung(0.19), rung(0.2)]))
    assert found["information.knee"].value == 2 and found["information.fragility"].value == pytest.approx(0.01)
    assert found["information.knee"].ci == (2, 4)  # only the rung of 4 bits stays wholly below the bound of 0.25
    short = information.information_knee([1.0, 2], [rung(0.9), rung(0.2)])
    assert all(m.status == "not_applicable" for m in short)
    with pytest.raises(UserError, match="one error for each rate"):
        information.information_knee([1.0, 1.0], [rung(0.9), rung(0.2)])


def test_the_bound_of_an_information_state_holds_in_a_random_world():
    """An optimal policy of a wrong tabular model, valued in the true one, loses no more than the bound."""
    rng, gamma = np.random.default_rng(0), 0.9

    def value(P, r, policy=None):
        v = np.zeros(4)
        for _ in range(500):
            q = r + gamma * P @ v
            v = q.max(1) if policy is None else q[np.arange(4), policy]
        return v, q.argmax(1)

    for _ in range(20):
        P, r = rng.dirichlet(np.ones(4), (4, 2)), rng.random((4, 2))
        Q = 0.9 * P + 0.1 * rng.dirichlet(np.ones(4), (4, 2))
        wrong = r + rng.uniform(-0.05, 0.05, r.shape)
        (best, _), (told, chosen) = value(P, r), value(Q, wrong)
        loss = (best - value(P, r, chosen)[0]).max()
        bound = information.ais_bound(np.abs(wrong - r).max(), np.abs(P - Q).sum(-1).max() / 2, gamma, np.ptp(told))
        assert loss <= bound + 1e-9
    assert information.ais_bound(0.1, 0.2, 0.5, 3.0) == pytest.approx(1.6)


# --------------------------------------------------------------------------------------------------------- ----- proxies


def test_classifiers_tell_apart_what_differs_and_nothing_else():
    rng = np.random.default_rng(0)
    cluster = np.arange(600) // 6
    bits = rng.integers(2, size=(600, 1))
    joint, apart = np.hstack([bits, bits]), rng.integers(2, size=(600, 2))  # alike code by code
    assert proxies.c2st(joint, cluster, apart, cluster)[0].value > 0.7
    null = [proxies.c2st(rng.normal(size=(600, 3)), cluster, rng.normal(size=(600, 3)), cluster)[0] for _ in range(10)]
    assert abs(np.mean([m.value for m in null]) - 0.5) < 0.03
    assert sum(m.ci[0] < 0.5 < m.ci[1] for m in null) >= 7
    wide = rng.normal(size=(600, 80))
    moved = proxies.c2st(wide, cluster, rng.normal(size=(600, 80)) + 0.6, cluster)[0]
    assert moved.value > 0.9 and moved.n_clusters == 100
    assert proxies.c2st(wide, np.zeros(600), wide, np.zeros(600))[0].status == "not_applicable"


def test_rows_of_one_cluster_are_never_in_both_parts():
    """Every cluster has a mark of its own that tells its label: what a classifier learns of it must be of no use."""
    rng = np.random.default_rng(0)
    cluster = np.arange(400) // 10
    mark = np.eye(40)[cluster] + 0.01 * rng.normal(size=(400, 40))
    label = rng.permutation(40)[cluster] < 20
    found = proxies.c2st(mark[~label], cluster[~label], mark[label], cluster[label])[0]
    assert abs(found.value - 0.5) < 0.15


def test_longer_clips_are_easier_to_tell_apart():
    rng = np.random.default_rng(0)
    alive = np.ones((60, 4, 8), bool)
    drift = np.arange(8)[:, None] * 0.2
    record = Rollouts(np.arange(60), rng.normal(size=(60, 4, 8, 2)), rng.normal(size=(60, 4, 8, 2)),
                      rng.normal(size=(60, 4, 8, 2)) + drift, np.zeros((60, 2)), alive, alive)  # fmt: skip
    found = by_id(proxies.c2st_by_length(record, (1, 4, 8, 16)))
    assert list(found) == ["proxies.c2st@1", "proxies.c2st@4", "proxies.c2st@8"]
    assert abs(found["proxies.c2st@1"].value - 0.5) < 0.1 and found["proxies.c2st@8"].value > 0.9


def test_clips_that_no_rollout_lives_to_see_are_not_compared():
    rng, alive = np.random.default_rng(0), np.ones((20, 3, 4), bool)
    alive[:, :, 2:] = False
    frames = [rng.normal(size=(20, 3, 4, 2)) for _ in range(3)]
    record = Rollouts(np.arange(20), *frames, np.zeros((20, 2)), np.ones_like(alive), alive)
    found = by_id(proxies.c2st_by_length(record, (1, 4)))
    assert found["proxies.c2st@1"].value is not None and found["proxies.c2st@4"].status == "not_applicable"


def test_disagreement_self_consistency_and_coverage_by_hand():
    q = np.array([[[1.0, 0]], [[0.0, 1]]]).repeat(20, 1)  # two models, sure of different codes
    assert proxies.disagreement(q, np.arange(20))[0].value == 1
    assert proxies.disagreement(q[[0, 0]], np.arange(20))[0].value == 0
    many = np.stack([q, q], 2)  # of two codes each
    assert proxies.disagreement(many, np.arange(20))[0].value == 2
    found = proxies.self_consistency(np.full(20, 3.0), np.arange(20), np.full(30, 5.0), np.arange(30))[0]
    assert found.value == -2 and found.ci == (-2, -2) and found.n_clusters == 20
    assert proxies.uncovered(np.tile([0, 3, 1, 7], 10), np.arange(40))[0].value == 0.25


def test_the_meta_table_says_which_proxy_predicts_what():
    rng = np.random.default_rng(0)
    quality = rng.normal(size=19)
    table = proxies.meta_table(
        {"good": np.exp(quality), "blind": rng.normal(size=19), "rare": np.where(np.arange(19) < 3, quality, np.nan)},
        {"value error": -quality},
    )
    assert table["rho"][0, 0] == pytest.approx(-1) and table["models"].ravel().tolist() == [19, 19, 3]
    assert table["low"][1, 0] < 0 < table["high"][1, 0] and np.isnan(table["rho"][2, 0])
    with pytest.raises(UserError, match="lengths"):
        proxies.meta_table({"a": np.ones(3)}, {"b": np.ones(4)})
