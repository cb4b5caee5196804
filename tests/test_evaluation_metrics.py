"""Metrics at branches and rollouts against brute force on small joint distributions, and by hand."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from tokenworld.errors import UserError
from tokenworld.evaluation.metrics import (
    action_effects,
    agents,
    calibration,
    code_length,
    next_frame,
    rewards,
    rollouts,
    terminations,
)
from tokenworld.evaluation.records import Branches, Pairs, Rollouts, Scored
from tokenworld.evaluation.statistics import divergences

S, A, K, V = 12, 3, 2, 3
FRAMES = np.array(list(itertools.product(range(V), repeat=K)))  # (V ** K, K)


def by_id(metrics):
    return {metric.id: metric for metric in metrics}


def entropy(p):
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())


def marginals(joint):
    """(..., V ** K) -> (..., K, V)."""
    return np.stack([np.stack([joint[..., FRAMES[:, j] == v].sum(-1) for v in range(V)], -1) for j in range(K)], -2)


def branches(p, q, **more):
    """From joints p, q (S, A, V ** K): branches in the order of the likeliest, those without probability at the end."""
    J = int((p > 0).sum(-1).max())
    order = np.argsort(-p, axis=-1, kind="stable")[..., :J]
    mine = np.take_along_axis(p, order, -1)
    with np.errstate(divide="ignore"):
        bits = -np.log2(np.take_along_axis(q, order, -1))
    H = np.array([[entropy(cell) for cell in row] for row in q])
    parts = np.array([[sum(entropy(m) for m in cell) for cell in row] for row in marginals(q)])
    fields = dict(
        cluster=np.arange(len(p)), hash=np.arange(len(p), dtype=np.uint64), exact=True, p=mine, codes=FRAMES[order], bits=bits,
        entropy_q=H, marginal_p=marginals(p), marginal_q=marginals(q), total_correlation_q=parts - H,
        candidates=np.broadcast_to(np.arange(V), (len(p), K, V)),
    )  # fmt: skip
    return Branches(**(fields | more))


def joints(seed, zeros=0.0):
    rng = np.random.default_rng(seed)
    p = rng.gamma(0.5, size=(S, A, V**K)) * (rng.random((S, A, V**K)) >= zeros)
    p[..., 0] += 0.01
    return p / p.sum(-1, keepdims=True)


# ---------------------------------------------------------------------------------------------------- ------ branches


def test_divergences_are_those_of_brute_force():
    p, q = joints(0, zeros=0.5), joints(1)
    behavior = np.random.default_rng(2).dirichlet(np.ones(A), S)
    record = branches(p, q, behavior=behavior)
    found = by_id(next_frame.branch_fidelity(record) + calibration.dispersion(record))
    kl, off, missed, gap, dh, tc = (np.zeros((S, A)) for _ in range(6))
    for s, a in itertools.product(range(S), range(A)):
        for x, y in zip(p[s, a], q[s, a], strict=True):
            if x > 0:
                kl[s, a] += x * math.log2(x / y)
                gap[s, a] -= x * math.log2(y)
                missed[s, a] += x * (y < x / 10)
            else:
                off[s, a] += y
        gap[s, a] -= entropy(q[s, a])
        dh[s, a] = entropy(q[s, a]) - entropy(p[s, a])
        for joint, sign in ((p[s, a], 1), (q[s, a], -1)):
            tc[s, a] += sign * (sum(entropy(m) for m in marginals(joint)) - entropy(joint))
    for id, cells in {"next_frame.kl": kl, "next_frame.impossible_mass": off, "next_frame.missed_mass": missed,
                      "next_frame.lost_dependence": tc, "calibration.branch_gap": gap,
                      "calibration.excess_entropy": dh}.items():  # fmt: skip
        assert found[id].value == pytest.approx((behavior * cells).sum(1).mean(), abs=1e-12), id
        assert found[id].values == pytest.approx((behavior * cells).sum(1)) and found[id].status == "ok"
    assert found["next_frame.kl"].value == pytest.approx(found["calibration.branch_gap"].value
                                                         + found["calibration.excess_entropy"].value)
    assert by_id(next_frame.branch_fidelity(replace(record, behavior=None)))["next_frame.kl"].value == pytest.approx(kl.mean())


def test_the_true_model_is_at_the_ceiling_of_everything():
    p = joints(3, zeros=0.5)
    record = branches(p, p, behavior=np.full((S, A), 1 / A), support=np.ones((S, A)))
    zero = next_frame.branch_fidelity(record) + calibration.dispersion(record) + agents.causal_gap(record, record)
    zero += action_effects.counterfactual_effects(record)
    values = {m.id: m.value for m in zero}
    assert values.pop("action_effects.cosine") == pytest.approx(1)
    assert values.pop("action_effects.size_ratio") == pytest.approx(1)
    assert all(value == pytest.approx(0, abs=1e-9) for value in values.values()), values
    assert len(values) == 4 + 2 + 6 + 2


def test_an_impossible_branch_has_a_finite_price():
    p = np.zeros((S, A, V**K))
    p[..., :2] = 0.5
    q = np.zeros_like(p)
    q[..., 0] = 1.0
    found = by_id(next_frame.branch_fidelity(branches(p, q)) + calibration.dispersion(branches(p, q)))
    assert found["next_frame.kl"].value == pytest.approx(0.5 * divergences.IMPOSSIBLE - 1)
    assert found["next_frame.missed_mass"].value == 0.5 and found["next_frame.impossible_mass"].value == 0
    assert found["calibration.excess_entropy"].value == -1
    assert divergences.capped(np.array([np.inf, 300.0, 2.0])).tolist() == [300, 300, 2]


def test_a_product_of_marginals_lacks_the_dependence_between_codes():
    p = np.zeros((S, A, V**K))
    p[..., 0] = p[..., V + 1] = 0.5  # both codes 0, or both 1
    m = marginals(p)
    q = np.stack([m[..., 0, x] * m[..., 1, y] for x, y in FRAMES], -1)
    found = by_id(next_frame.branch_fidelity(branches(p, q)) + calibration.dispersion(branches(p, q)))
    assert found["next_frame.lost_dependence"].value == pytest.approx(1)
    assert found["next_frame.impossible_mass"].value == pytest.approx(0.5)
    assert found["calibration.branch_gap"].value == pytest.approx(0)
    assert found["calibration.excess_entropy"].value == pytest.approx(1)
    absent = by_id(next_frame.branch_fidelity(replace(branches(p, q), total_correlation_q=None)))["next_frame.lost_dependence"]
    assert absent.value is None and absent.status == "skipped" and absent.reason
    other = by_id(next_frame.branch_fidelity(branches(p, p), {"product": branches(p, q).bits}))["next_frame.kl"]
    assert other.floor == pytest.approx(1) and other.skill == pytest.approx(1)


def test_excess_code_length_is_beyond_a_known_entropy():
    record = Scored(
        cluster=np.arange(20), previous=np.zeros((20, 2), int), codes=np.ones((20, 2), int), action=np.zeros(20, int),
        bits=np.full((20, 2), 1.5), entropy=np.ones((20, 2)), top=np.ones((20, 2)), hit=np.ones((20, 2), bool),
        reward=np.zeros(20), reward_mean=np.zeros(20), terminated=np.zeros(20, bool), hazard=np.zeros(20),
    )  # fmt: skip
    found = by_id(code_length.code_length(record, {"count": np.full((20, 2), 4.0)}, entropy=np.full(20, 2.0)))
    assert found["code_length.excess_bits"].value == 1 and found["code_length.excess_bits"].floor == 6
    assert found["code_length.bits"].skill == pytest.approx(5 / 6)
    assert found["code_length.changed_code_bits"].value == 1.5 and found["code_length.saved_bits"].value == 5
    assert code_length.by_position(record).tolist() == [1.5, 1.5]


def test_energy_distance_is_unbiased_and_its_floor_is_the_standing_frame():
    rng = np.random.default_rng(0)
    real, model = rng.normal(size=(5, 3, 2)), rng.normal(1, 1, size=(5, 4, 2))
    for s in range(5):
        cross = np.mean([math.dist(x, y) for x in real[s] for y in model[s]])
        within = [
            np.mean([math.dist(x, y) for i, x in enumerate(z) for j, y in enumerate(z) if i != j]) for z in (real[s], model[s])
        ]
        assert divergences.energy_distance(real, model)[s] == pytest.approx(2 * cross - sum(within))
    rollout = drawn_rollouts(lambda shape: rng.normal(size=shape))
    found = by_id(next_frame.frame_distance(rollout))["next_frame.energy_distance"]
    assert found.ci[0] < 0 < found.ci[1] and abs(found.ceiling) < 0.1 and found.floor > 1
    single = by_id(next_frame.frame_distance(replace(rollout, real=rollout.real[:, :1])))["next_frame.energy_distance"]
    assert single.value is None and single.status == "not_applicable"


# ------------------------------------------------------------------------------------------------------------ ---- effects


def two_actions(q_left, q_right, p_left=(0.9, 0.1, 0.0), p_right=(0.1, 0.9, 0.0)):
    """Code 0 follows the action, code 1 is a coin that it does not move (unless the model says so)."""
    coin = np.array([0.5, 0.5, 0.0])
    p = np.stack([np.outer(x, coin).ravel() for x in (p_left, p_right)])
    q = np.stack([np.outer(*x).ravel() for x in (q_left, q_right)])
    return branches(np.tile(p, (S, 1, 1)), np.tile(q, (S, 1, 1)))


def test_effects_of_right_swapped_deaf_and_spurious_models():
    left, right, coin, tilted = (np.array(x) for x in ((0.9, 0.1, 0.0), (0.1, 0.9, 0.0), (0.5, 0.5, 0.0), (0.7, 0.3, 0.0)))
    expected = {  # error, spurious, cosine, sensitivity
        "right": (((left, coin), (right, coin)), (0, 0, 1, 1)),
        "swapped": (((right, coin), (left, coin)), (2, 0, -1, 1)),
        "deaf": (((coin, coin), (coin, coin)), (1, 0, 0, 0)),
        "spurious": (((left, tilted), (right, coin)), (0, 0.2, 1, (1.6 + 0.4) / 1.6)),
        "halved": (((tilted, coin), (np.array([0.3, 0.7, 0]), coin)), (0.5, 0, 1, 0.5)),
    }
    for name, (q, values) in expected.items():
        found = action_effects.counterfactual_effects(two_actions(*q))
        assert [m.value for m in found] == pytest.approx(values, abs=1e-9), name
    late = action_effects.counterfactual_effects(two_actions(*expected["deaf"][0]), after=4)
    assert [m.id for m in late][0] == "action_effects.error@4" and late[0].value == 1
    matrices = action_effects.effect_matrices(two_actions(*expected["swapped"][0]))
    assert matrices["true"] == pytest.approx(np.array([[0, 0.4], [0.4, 0]])) and matrices["model"] == pytest.approx(
        matrices["true"]
    )
    assert matrices["cross"] == pytest.approx(np.array([[0.4, 0], [0, 0.4]]))


def test_mass_outside_the_candidates_is_an_effect_and_no_effect_is_not_applicable():
    record = two_actions((np.array([0.9, 0.1, 0]), np.array([0.5, 0.5, 0])), (np.array([0.1, 0.9, 0]), np.array([0.5, 0.5, 0])))
    q = record.marginal_q.copy()
    q[:, 1, 1] = [0.25, 0.25, 0.0]  # half of the coin's mass goes to a code that no branch has
    found = by_id(action_effects.counterfactual_effects(replace(record, marginal_q=q)))
    assert found["action_effects.spurious"].value == pytest.approx(0.5)
    still = replace(record, marginal_p=record.marginal_p[:, :1].repeat(2, 1))
    found = by_id(action_effects.counterfactual_effects(still))
    assert found["action_effects.error"].value is None and found["action_effects.cosine"].status == "not_applicable"
    assert found["action_effects.spurious"].value == pytest.approx(0.8)


# ----------------------------------------------------------------------------------------------------------- ---- transfer


def confused():
    """Right for the behavior's favourite action 0, one bit off for the others, where data are rare too."""
    p = np.zeros((S, A, V**K))
    p[..., 0] = 1
    q = p.copy()
    q[:, 1:, :2] = 0.5
    behavior = np.tile([0.8, 0.1, 0.1], (S, 1))
    return branches(p, q, behavior=behavior, support=np.tile([80, 10, 10], (S, 1)))


def test_gaps_between_policies_by_hand():
    record = confused()
    other = replace(record, behavior=np.tile([0.0, 0.5, 0.5], (S, 1)), cluster=np.arange(S) + 100)
    found = {m.id: m.value for m in agents.causal_gap(record, other)}
    assert found["agents.behavior_kl"] == pytest.approx(0.2) and found["agents.interventional_kl"] == pytest.approx(2 / 3)
    assert found["agents.intervention_gap"] == pytest.approx(2 / 3 - 0.2) and found["agents.other_agent_kl"] == pytest.approx(1)
    assert found["agents.transfer_gap"] == pytest.approx(0.8)
    plenty = replace(record, support=np.tile([80, 80, 10], (S, 1)))
    assert by_id(agents.causal_gap(plenty))["agents.supported_intervention_gap"].value == pytest.approx(1 / 2 - 0.1 / 0.9)
    missing = by_id(agents.causal_gap(replace(record, behavior=None, support=None)))
    assert missing["agents.interventional_kl"].value == pytest.approx(2 / 3)
    assert missing["agents.intervention_gap"].status == "skipped"
    assert missing["agents.transfer_gap"].status == "skipped"


def test_error_by_support():
    table = agents.by_support(confused(), parts=10)
    assert table["support"].tolist() == [10, 80] and table["count"].tolist() == [2 * S, S]
    assert table["do"] == pytest.approx([1, 0]) and table["behavior"] == pytest.approx([1, 0])
    with pytest.raises(UserError, match="support"):
        agents.by_support(replace(confused(), support=None))


def test_transfer_matrix_counts_agents_alike():
    rng = np.random.default_rng(0)
    sizes, costs = (40, 400), [[1.0, 2.0], [4.0, 1.0]]  # trained on i, frames of j
    clusters = [np.arange(n) // 4 for n in sizes]
    noise = [rng.normal(0, 0.1, n) for n in sizes]
    bits = [[costs[i][j] + noise[j] for j in range(2)] for i in range(2)]
    found, matrix = agents.transfer_matrix(bits, clusters, ("a", "b"))
    assert found[0].value == pytest.approx((3 + 1) / 2) and matrix["mean"] == pytest.approx(np.array(costs), abs=0.05)
    assert (matrix["low"] < matrix["mean"]).all() and found[0].n_clusters == 110
    with pytest.raises(UserError, match="2 x 2"):
        agents.transfer_matrix(bits[:1], clusters, ("a", "b"))


def test_a_feature_without_consequences_counts_beyond_the_truth():
    pairs = Pairs(np.arange(20), np.ones(20, bool), np.full(20, 0.3), np.full(20, 0.1), np.zeros(20))
    assert agents.spurious_feature(pairs)[0].value == pytest.approx(0.2)


# ----------------------------------------------------------------------------------------------------------- ---- outcomes


def test_rewards_and_hazards_at_branches():
    p = np.zeros((S, A, V**K))
    p[..., :2] = (0.75, 0.25)
    reward, end = np.tile([0.0, 10.0], (S, A, 1)), np.tile([False, True], (S, A, 1))
    record = branches(p, p, reward=reward, terminated=end, reward_mean=np.tile([0.25, 0.5, 0.0], (S, 1)),
                      hazard=np.tile([0.25, 0.05, 0.0], (S, 1)))  # fmt: skip
    found = by_id(rewards.rewards_at_branches(record) + terminations.terminations_at_branches(record))
    assert found["rewards.branch_error"].value == pytest.approx(0.5 / 3) and found[
        "rewards.branch_bias"
    ].value == pytest.approx(0)
    assert found["terminations.branch_error"].value == pytest.approx(0.45 / 3)
    assert found["terminations.branch_ratio"].value == pytest.approx(0.1 / 0.25)
    whole = by_id(rewards.rewards_at_branches(record, signs=False))["rewards.branch_error"]
    assert whole.value == pytest.approx(2.5 - 0.25)
    bare = branches(p, p)
    bare = rewards.rewards_at_branches(bare) + terminations.terminations_at_branches(bare)
    assert all(m.value is None and m.status == "skipped" for m in bare) and len(bare) == 4


def drawn_rollouts(draw, shift=0.0, S=80, R=6, T=10, F=3, alive=None):
    """Real frames drawn around 2 (the standing frame is 0), dreams moved by shift * t."""
    moved = shift * np.arange(T)[:, None]
    everyone = np.ones((S, R, T), bool)
    return Rollouts(
        cluster=np.arange(S), real=2 + draw((S, R, T, F)), second=2 + draw((S, R, T, F)), model=2 + draw((S, R, T, F)) + moved,
        copy=np.zeros((S, F)), alive_real=everyone, alive_model=everyone if alive is None else alive,
    )  # fmt: skip


def test_survival_of_dreams_and_of_reality():
    rng = np.random.default_rng(0)

    def alive(hazard):
        return np.arange(10) < rng.geometric(hazard, (80, 6))[..., None]

    def measured(real, model):
        record = replace(drawn_rollouts(lambda shape: np.zeros(shape)), alive_real=real, alive_model=model)
        return by_id(terminations.survival(record)), terminations.survival_curves(record)

    alarms = np.zeros(2)
    for _ in range(100):
        same, curves = measured(alive(0.1), alive(0.1))
        low, high = same["terminations.survival_gap"].ci
        alarms += (same["terminations.log_rank_p"].value < 0.05, not low < 0 < high)
    assert (alarms <= 11).all(), alarms  # of 100 at a level of 5 %: a sound test has more once in 200
    assert curves["real"] == pytest.approx(0.9 ** np.arange(10), abs=0.06)
    longer, _ = measured(alive(0.2), alive(0.1))
    true = sum(0.9**t - 0.8**t for t in range(10))
    assert longer["terminations.log_rank_p"].value < 1e-6 and longer["terminations.survival_gap"].value == pytest.approx(true,
                                                                                                                         abs=0.4)
    forever, _ = measured(np.ones((80, 6, 10), bool), np.ones((80, 6, 10), bool))
    assert forever["terminations.survival_gap"].status == "not_applicable"


def test_classes_of_rewards_are_calibrated_one_by_one():
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.ones(3), 6000)
    reward = (q.cumsum(1) > rng.random((6000, 1))).argmax(1) - 1.0
    fields = dict.fromkeys(("previous", "codes", "bits", "entropy", "top", "hit"), np.zeros((6000, 1)))
    record = Scored(cluster=np.arange(6000) // 20, action=np.zeros(6000, int), reward=reward, reward_mean=q[:, 2] - q[:, 0],
                    terminated=np.zeros(6000, bool), hazard=np.zeros(6000), reward_probability=q, **fields)  # fmt: skip
    right = by_id(rewards.rewards(record))["rewards.sign_ece"].value
    flat = by_id(rewards.rewards(replace(record, reward_probability=q[:, ::-1])))["rewards.sign_ece"].value
    assert right < 0.03 and flat > 0.2
    found = by_id(rewards.rewards(replace(record, reward_probability=None)))
    assert found["rewards.sign_ece"].status == "skipped"
    hand = replace(record, reward=np.array([-1.0, 0, 0, 3, 3]), reward_mean=np.array([-0.6, 0.2, 0.9, 0.9, -0.1]))
    assert rewards.reward_confusion(hand).tolist() == [[1, 0, 0], [0, 1, 1], [0, 1, 1]]


# -------------------------------------------------------------------------------------------------------------- ---- drift


def test_a_right_model_never_drifts_and_a_moving_one_is_caught_when_it_is_half_as_bad_as_standing_still():
    rng = np.random.default_rng(0)
    right = by_id(rollouts.rollout_drift(drawn_rollouts(lambda shape: rng.normal(size=shape))))
    assert (
        right["rollouts.valid_horizon"].value == right["rollouts.median_horizon"].value == 10
        and "longer" in right["rollouts.valid_horizon"].reason
    )
    assert right["rollouts.distance"].ci[0] < 0 < right["rollouts.distance"].ci[1]
    assert right["rollouts.spread_error_ratio"].value == pytest.approx(1, abs=0.02)
    assert right["rollouts.exposure_bias"].status == "skipped"
    # without noise D(t) = 2 * 0.3 t sqrt(3) and the standing frame is at 2 * 2 sqrt(3): half of it is passed at t = 4 of 0 ..
    sure = by_id(rollouts.rollout_drift(drawn_rollouts(np.zeros, shift=0.3)))
    assert sure["rollouts.first_step_distance"].value == 0
    assert sure["rollouts.last_step_distance"].value == pytest.approx(2 * 2.7 * 3**0.5)
    assert sure["rollouts.last_step_distance"].floor == pytest.approx(4 * 3**0.5)
    assert sure["rollouts.last_step_distance"].ceiling == 0
    assert sure["rollouts.valid_horizon"].value == sure["rollouts.median_horizon"].value == 4
    assert sure["rollouts.valid_horizon"].ci == (4, 4)
    assert sure["rollouts.spread_error_ratio"].value == 0
    noisy = by_id(rollouts.rollout_drift(drawn_rollouts(lambda shape: 0.2 * rng.normal(size=shape), shift=0.3)))
    assert abs(noisy["rollouts.valid_horizon"].value - 4) <= 1 and abs(noisy["rollouts.median_horizon"].value - 4) <= 1


def test_what_has_ended_is_left_out_of_distances():
    rng = np.random.default_rng(0)
    dead = np.ones((80, 6, 10), bool)
    dead[:, 3:, 5:] = False
    record = drawn_rollouts(lambda shape: rng.normal(size=shape), alive=dead)
    record.model[:, 3:, 5:] = 100.0
    curve = rollouts.distance_curves(record)
    assert np.abs(curve["model"]).max() < 0.3 and (curve["copy"] > 1).all() and np.isnan(curve["self_feeding"]).all()
    none = np.ones((80, 6, 10), bool)
    none[:, :, 5:] = False
    record = replace(record, alive_model=none)
    found = by_id(rollouts.rollout_drift(record))
    assert found["rollouts.last_step_distance"].value is None
    assert found["rollouts.last_step_distance"].reason == "no rollouts live that long"
    assert np.isfinite(found["rollouts.distance"].value) and found["rollouts.median_horizon"].value == 10


def test_self_feeding_is_of_the_last_frame():
    own, real = np.tile([1.0, 3.0], (80, 1)), np.tile([1.0, 2.0], (80, 1))
    record = replace(drawn_rollouts(np.zeros), own_bits=own, real_bits=real)
    assert by_id(rollouts.rollout_drift(record))["rollouts.exposure_bias"].value == 1.5
