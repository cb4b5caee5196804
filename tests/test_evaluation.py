"""The evaluation: intervals and metrics against values by hand, the probe against brute force, the report as people meet it."""

import json
import math
import re
import socket
from dataclasses import replace

import numpy as np
import pytest
import torch

from tokenworld.cli import main as cli
from tokenworld.errors import UserError
from tokenworld.evaluation.metrics import action_sensitivity, calibration, code_length, rewards, rollouts, terminations
from tokenworld.evaluation.probes import held_out
from tokenworld.evaluation.records import Drift, Metric, Scored
from tokenworld.evaluation.report import compare, files, specs
from tokenworld.evaluation.report.findings import findings
from tokenworld.evaluation.report.verdict import verdict
from tokenworld.evaluation.statistics import intervals
from tokenworld.interfaces import Codes
from tokenworld.nn import logprob
from tokenworld.world_model import WorldModel

# ------------------------------------------------------------------------------------------------------------ intervals


def test_intervals_of_proportions_are_the_tables():
    assert intervals.clopper_pearson(0, 10) == pytest.approx((0, 0.3085), abs=1e-4)
    assert intervals.clopper_pearson(3, 10) == pytest.approx((0.0667, 0.6525), abs=1e-4)
    assert intervals.clopper_pearson(10, 10) == pytest.approx((0.6915, 1), abs=1e-4)
    assert intervals.wilson(3, 10) == pytest.approx((0.1078, 0.6032), abs=1e-4)
    assert intervals.agresti_caffo(8, 10, 3, 10) == pytest.approx((0.0545, 0.7788), abs=1e-4)
    assert intervals.rule_of_three(300) == 0.01
    assert intervals.normal_quantile(0.975) == pytest.approx(1.959964, abs=1e-5)
    assert intervals.normal_quantile(0.025) == pytest.approx(-1.959964, abs=1e-5)
    assert intervals.holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])


def test_survival_counts_only_those_still_seen():
    survival = intervals.kaplan_meier(np.array([1, 2, 2, 3]), np.array([True, True, False, True]), 3)
    assert survival.tolist() == pytest.approx([1, 3 / 4, 3 / 4 * 2 / 3, 0])


def test_the_cluster_bootstrap_covers_where_rows_of_a_cluster_are_alike():
    rng, covered, naive = np.random.default_rng(1), 0, 0
    for i in range(500):
        centre = rng.normal(1.0, 1.0, 60)
        cluster = np.repeat(np.arange(60), 8)
        rows = centre[cluster] + rng.normal(0, 0.3, len(cluster))
        _, (low, high), n = intervals.ratio(rows, None, cluster, seed=i)
        assert n == 60
        covered += low <= 1 <= high
        _, (low, high), _ = intervals.ratio(rows, None, np.arange(len(rows)), seed=i)
        naive += low <= 1 <= high
    assert 0.92 <= covered / 500 <= 0.98
    assert naive / 500 < 0.8  # rows as if they were independent: what clusters are for


def test_a_ratio_is_of_sums_and_any_statistic_has_an_interval():
    cluster, top, bottom = np.array([0, 0, 1, 2]), np.array([1.0, 2, 3, 4]), np.array([1.0, 1, 2, 0])
    value, _, n = intervals.ratio(top, bottom, cluster)
    assert (value, n) == (2.5, 3)
    same, _, _ = intervals.statistic(lambda w: (w @ top) / max(w @ bottom, 1e-9), cluster)
    assert same == 2.5


# -------------------------------------------------------------------------------------------------------------- metrics

V, K, A = 4, 3, 3


def scored(n=3000, sharpen=1.0, heed=True, hazard=1.0, seed=0):
    """A world in which action a makes code a likelier, and a model of it that is sharpened, deaf, or blind to ends."""
    rng = np.random.default_rng(seed)
    cluster, action = np.arange(n) // 20, rng.integers(A, size=n)
    truth = np.full((A, V), 0.1)
    truth[np.arange(A), np.arange(A)] = 0.7
    codes = np.array([[rng.choice(V, p=truth[a]) for _ in range(K)] for a in action])
    q = truth if heed else np.repeat(truth.mean(0, keepdims=True), A, 0)
    q = q**sharpen / (q**sharpen).sum(1, keepdims=True)
    mine = q[action][:, None].repeat(K, 1)  # (n, K, V)
    logq = np.log2(q)
    end = rng.permutation(n) < n // 20
    return Scored(
        cluster=cluster, previous=np.roll(codes, 1, 0), codes=codes, action=action,
        bits=-np.log2(np.take_along_axis(mine, codes[..., None], -1)[..., 0]),
        entropy=-(mine * np.log2(mine)).sum(-1), top=mine.max(-1), hit=mine.argmax(-1) == codes,
        reward=(codes[:, 0] == 0).astype(float), reward_mean=(codes[:, 0] == 0) * 0.9, terminated=end,
        hazard=np.full(n, 0.05 * hazard), bits_by_action=-logq[:, codes].sum(-1).T, step=np.arange(n) % 20,
    )  # fmt: skip


def by_id(metrics):
    return {metric.id: metric for metric in metrics}


def test_code_length_and_calibration_of_the_true_model():
    record = scored()
    found = by_id(code_length.code_length(record, {"uniform": np.full((3000, K), 2.0)}) + calibration.calibration(record))
    entropy = K * -(0.7 * math.log2(0.7) + 0.3 * math.log2(0.1))
    assert found["code_length.bits"].value == pytest.approx(entropy, abs=0.06) and found["code_length.bits"].floor == 6
    assert found["code_length.saved_bits"].value == pytest.approx(6 - found["code_length.bits"].value)
    low, high = found["calibration.gap"].ci
    assert low < 0 < high and found["calibration.gap_p"].value > 0.01 and found["calibration.kce_p"].value > 0.01
    assert found["calibration.entropy"].value == pytest.approx(entropy)
    assert found["code_length.bits"].n_clusters == 150


@pytest.mark.parametrize("sharpen, sign", [(2.0, 1), (0.5, -1)])
def test_a_sharpened_model_is_overconfident_and_a_flat_one_underconfident(sharpen, sign):
    found = by_id(calibration.calibration(scored(sharpen=sharpen)))
    low, high = found["calibration.gap"].ci
    assert (low if sign > 0
            else -high) > 0.05 and found["calibration.gap_p"].value < 1e-6 and found["calibration.kce_p"].value < 0.01


def test_a_deaf_model_is_calibrated_and_still_found_out():
    record = scored(heed=False)
    found = by_id(calibration.calibration(record) + action_sensitivity.action_sensitivity(record))
    assert found["calibration.gap"].ci[0] < 0 < found["calibration.gap"].ci[1]
    assert found["action_sensitivity.saved_bits"].value == 0 and found["action_sensitivity.blind_states"].value == 1
    heeding = by_id(action_sensitivity.action_sensitivity(scored()))
    assert heeding["action_sensitivity.saved_bits"].ci[0] > 1 and heeding["action_sensitivity.blind_states"].value < 0.1
    assert heeding["action_sensitivity.inverse_accuracy"].ci[0] > 0.6 > heeding["action_sensitivity.inverse_accuracy"].floor


def test_the_interval_of_what_actions_save_redraws_how_often_each_was_taken():
    """Against the same draws of episodes row by row; episodes have habits, so that the shares of actions matter."""
    rng = np.random.default_rng(4)
    cluster = np.repeat(np.arange(30), 10)
    action = np.where(rng.random(300) < 0.8, cluster % 2, 2)
    bits = np.array([1.0, 6.0, 20.0]) + rng.random((300, 3))
    record = replace(scored(300), cluster=cluster, action=action, bits_by_action=bits)
    found = by_id(action_sensitivity.action_sensitivity(record))["action_sensitivity.saved_bits"]
    own, drawn, fixed = bits[np.arange(300), action], [], []
    for weights in intervals.draws_of(30)[:, cluster]:  # how often each row is in a draw
        shares = np.bincount(action, weights, minlength=3) / weights.sum()
        drawn.append(np.average(bits @ shares - own, weights=weights))
        fixed.append(np.average(bits @ (np.bincount(action) / 300) - own, weights=weights))
    assert found.ci == pytest.approx(intervals.percentile(np.array(drawn), clusters=30))
    assert found.ci != pytest.approx(intervals.percentile(np.array(fixed), clusters=30), abs=0.05)


def test_hazards_are_compared_with_how_often_episodes_end():
    right, low = (by_id(terminations.terminations(scored(hazard=h))) for h in (1.0, 0.1))
    assert right["terminations.hazard_ratio"].ci[0] < 1 < right["terminations.hazard_ratio"].ci[1]
    assert low["terminations.hazard_ratio"].ci[1] < 0.2
    assert low["terminations.log_loss"].value > low["terminations.log_loss"].floor
    assert right["terminations.brier_skill"].value == pytest.approx(0, abs=0.01)
    bins = terminations.hazard_reliability(scored())
    assert bins["count"].sum() == 3000 and (bins["low"] <= bins["frequency"]).all()


def test_numbers_that_are_not_finite_are_called_invalid():
    """Of damaged weights, or a training that diverged."""
    record = scored()
    hazard = record.hazard.copy()
    hazard[7] = np.nan
    found = terminations.terminations(replace(record, hazard=hazard, terminated=np.arange(len(hazard)) % 500 == 0))
    assert [(each.value, each.status) for each in found] == [(None, "invalid")] * 3 + [(None, "skipped")]
    assert all("not finite" in each.reason for each in found[:3])


def test_reward_events_may_be_two_steps_off_but_not_in_another_episode():
    record = scored(n=40)
    real, told = np.zeros(40), np.zeros(40)
    real[[5, 19]], told[[7, 20]] = 1, 1  # the second prediction is in the next episode
    record = Scored(**{**record.__dict__, "reward": real, "reward_mean": told})
    found = by_id(rewards.rewards(record))
    assert found["rewards.recall"].value == 0.5 and found["rewards.precision"].value == 0.5
    assert found["rewards.recall"].status == "underpowered"
    assert found["rewards.delay"].status == found["rewards.slope"].status == "underpowered"
    none = by_id(rewards.rewards(Scored(**{**record.__dict__, "reward": np.zeros(40)})))
    assert none["rewards.recall"].status == "not_applicable" and none["rewards.recall"].value is None


def test_the_f1_of_events_counts_exact_steps():
    real, predicted = np.zeros(40), np.zeros(40)
    real[[3, 9, 20]], predicted[[3, 10, 20, 30]] = 1, 0.9
    record = replace(scored(40), reward=real, reward_mean=predicted)
    assert by_id(rewards.rewards(record))["rewards.event_f1"].value == pytest.approx(2 * 2 / (3 + 4))
    none = by_id(rewards.rewards(replace(record, reward=np.zeros(40))))["rewards.event_f1"]
    assert none.value is None and none.status == "not_applicable"


def test_each_simple_predictor_has_its_code_length():
    record = scored(500)
    bits = {"copy_last": np.full(record.bits.shape, 2.0), "unigram": np.where(record.previous != record.codes, 5.0, 1.0)}
    found = by_id(code_length.of_predictors(record, bits))
    K = record.bits.shape[1]
    assert found["code_length.baseline_bits@copy_last"].value == pytest.approx(2 * K)
    assert found["code_length.baseline_changed_bits@copy_last"].value == pytest.approx(2)
    assert found["code_length.baseline_changed_bits@unigram"].value == pytest.approx(5)
    assert found["code_length.baseline_bits@unigram"].value == pytest.approx(bits["unigram"].sum(1).mean())


def rewarded(told, real, signs=True):
    """Rewards of 60 episodes of 20 steps: real and predicted rewards (20,) of each."""
    n, zero = 1200, np.zeros((1200, 1))
    record = Scored(
        cluster=np.repeat(np.arange(60), 20), step=np.tile(np.arange(20), 60), reward=np.tile(real, 60).astype(float),
        reward_mean=np.tile(told, 60).astype(float), previous=zero, codes=zero, action=np.zeros(n, int), bits=zero,
        entropy=zero, top=zero, hit=zero, terminated=np.zeros(n, bool), hazard=np.zeros(n),
    )  # fmt: skip
    metrics = rewards.rewards(record, signs)
    codes = {finding["code"] for finding in findings(metrics) if finding["established"]}
    return {m.id.removeprefix("rewards."): m.value for m in metrics}, codes


def test_rewards_of_the_wrong_sign_size_or_time_are_named():
    real = np.zeros(20)
    real[[3, 12]] = 1.0, -1.0
    real[7] = 1.0
    right, codes = rewarded(real, real)
    assert codes == set() and [right[name] for name in ("recall", "precision", "bias", "slope", "delay")] == [1, 1, 0, 1, 0]
    flipped, codes = rewarded(-real, real)
    assert flipped["recall"] == flipped["precision"] == 0 and flipped["slope"] == -1 and flipped["delay"] == 0
    assert {"REWARDS_OF_THE_WRONG_SIGN", "MISSES_REWARDS", "INVENTS_REWARDS"} <= codes
    late, codes = rewarded(np.roll(real, 1), real)
    assert late["delay"] == 1 and late["slope"] == 0 and late["recall"] == 1 and "REWARDS_LATE" in codes
    early, codes = rewarded(np.roll(real, -1), real)
    assert early["delay"] == -1 and "REWARDS_EARLY" in codes
    halved, codes = rewarded(0.6 * real, real)
    assert halved["slope"] == pytest.approx(1 / 0.6) and "REWARDS_TOO_SMALL" in codes and halved["recall"] == 1
    large, codes = rewarded(real, 3 * real, signs=False)
    assert large["slope"] == 3 and "REWARDS_TOO_SMALL" in codes  # of a head that learns more than signs
    small, codes = rewarded(real, 0.1 * real)
    assert small["recall"] == 1 and codes == set()  # the signs of small rewards are events too


def test_an_end_that_is_announced_one_step_late_is_named():
    n, zero = 1200, np.zeros((1200, 1))
    end = np.tile(np.arange(20) == 19, 60)
    record = Scored(
        cluster=np.repeat(np.arange(60), 20), step=np.tile(np.arange(20), 60), reward=np.zeros(n), reward_mean=np.zeros(n),
        previous=zero, codes=zero, action=np.zeros(n, int), bits=zero, entropy=zero, top=zero, hit=zero, terminated=end,
        hazard=np.full(n, 0.001), hazard_after=np.where(end, 0.9, np.nan),
    )  # fmt: skip
    codes = {f["code"] for f in findings(terminations.terminations(record)) if f["established"]}
    assert codes == {"ENDS_LATE", "ENDS_TOO_RARE", "BLIND_TO_ENDS"}
    right = terminations.terminations(replace(record, hazard=np.where(end, 0.99, 0.0001)))
    assert by_id(right)["terminations.hazard_after"].value == pytest.approx(0.9)
    assert by_id(right)["terminations.hazard_after"].n_samples == 60
    assert not any(f["established"] for f in findings(right))


def test_the_energy_score_prefers_the_right_spread():
    rng = np.random.default_rng(0)
    S, M, T = 200, 8, 3

    def with_futures(model, real):
        return Drift(np.arange(S), real, model, np.full((S, 1), 2), np.ones((S, T)), np.ones((S, T)))

    real = rng.integers(2, size=(S, T, 1))
    right = with_futures(rng.integers(2, size=(S, M, T, 1)), real)
    sure = with_futures(np.zeros((S, M, T, 1), int), real)
    assert rollouts.energy_scores(right)[0].mean() < rollouts.energy_scores(sure)[0].mean() - 0.1
    assert rollouts.energy_scores(right)[1].mean() == 1  # the standing frame is always wrong
    found = by_id(rollouts.horizon(right))
    assert found["rollouts.held_out_horizon"].value == T and "longer than" in found["rollouts.held_out_horizon"].reason


# ---------------------------------------------------------------------------------------------------------------- probe


def awake_model(decoding: str) -> WorldModel:
    """Tiny, of random weights that are far from their start: four codes out of five."""
    torch.manual_seed(0)
    model = WorldModel.from_recipe(
        "quickstart", "~decoding", f"decoding={{_target_: tokenworld.decoding.{decoding}}}", "backbone.dim=16",
        "backbone.layers=2", "backbone.context=2",
        "tokenizer.vocab_size=5", "tokenizer.patch=5", frame=(1, 10, 10), actions=3,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize("part, name", [("decoding", "codes"), ("reward", "rewards"), ("termination", "terminations")])
def test_a_model_whose_predictions_are_no_numbers_is_refused(part, name):
    """Finite weights can be so large that sums of them are not: of a damaged file, or a training that diverged."""
    from conftest import steps_of

    model = awake_model("parallel.Parallel")
    for parameter in getattr(model, part).parameters():
        parameter.data.copy_(torch.empty_like(parameter).normal_(std=3e38).clamp_(-3e38, 3e38))
    codes = Codes(torch.randint(0, 5, (2, 6, 4)))
    steps, episodes = steps_of(2, 6, first=[(0, 0), (1, 0), (1, 3)]), np.array([[0] * 6, [1] * 3 + [2] * 3])
    with pytest.raises(UserError, match=f"predicts {name} that are NaN or infinite at .* of 9 held-out .*weights are damaged"):
        held_out.score_held_out(model, steps, codes, episodes)


@pytest.mark.parametrize("decoding", ["autoregressive.Autoregressive", "parallel.Parallel"])
def test_the_probe_asks_for_the_step_after_an_end(decoding):
    """In the one row that ends its episode within the window, and nowhere else; other rows are as they were without it."""
    from conftest import steps_of

    model = awake_model(decoding)
    steps = steps_of(2, 6, first=[(0, 0), (1, 0), (1, 3)])
    last = torch.zeros(2, 6, dtype=torch.bool)
    last[1, 1] = True  # followed by its last frame at 2, after which the next episode begins
    steps = replace(steps, terminated=last, acted=steps.acted & ~last.roll(1, 1))
    record = held_out.score_held_out(
        model, steps, Codes(torch.randint(0, 5, (2, 6, 4))), np.array([[0] * 6, [1] * 3 + [2] * 3])
    )
    ended = record.terminated
    assert ended.sum() == 1 and np.isfinite(record.hazard_after).tolist() == ended.tolist()
    assert 0 <= record.hazard_after[ended][0] <= 1 and np.isfinite(record.hazard).all()
    if decoding == "autoregressive.Autoregressive":  # the other's random hazards are all 1
        assert record.hazard_after[ended][0] != pytest.approx(record.hazard[ended][0], abs=1e-6)


@pytest.mark.parametrize("decoding", ["autoregressive.Autoregressive", "parallel.Parallel"])
def test_the_probe_scores_what_decoding_scores(decoding):
    model = awake_model(decoding)
    from conftest import steps_of

    steps = steps_of(2, 6, first=[(0, 0), (1, 0), (1, 3)])
    codes = Codes(torch.randint(0, 5, (2, 6, 4)))
    record = held_out.score_held_out(model, steps, codes, np.array([[0] * 6, [1] * 3 + [2] * 3]))
    loss, _, _ = model.decoding.loss(model.backbone, codes, steps)
    real = (steps.acted[:, :-1] & steps.valid[:, 1:] & ~steps.first[:, 1:]).numpy()
    assert len(record.bits) <= real.sum() + 2
    assert np.allclose(record.bits_by_action[np.arange(len(record.action)), record.action], record.bits.sum(1), atol=1e-4)
    assert (record.entropy >= 0).all() and (record.entropy <= math.log2(5) + 1e-6).all()
    signs = record.reward_probability
    assert np.allclose(signs.sum(1), 1) and np.allclose(signs[:, 2] - signs[:, 0], record.reward_mean, atol=1e-5)
    row = np.flatnonzero(record.cluster == 0)
    nats = loss["codes"][0].detach().numpy() * 4  # a mean over codes
    assert np.allclose(record.bits[row].sum(1) * math.log(2), nats[-len(row) :], atol=1e-3)


@pytest.mark.parametrize("decoding", ["autoregressive.Autoregressive", "parallel.Parallel"])
def test_imagined_bits_are_those_of_the_frames_that_were_drawn(decoding):
    """The first dreamt frame, scored by teacher forcing in the same state."""
    model = awake_model(decoding)
    from conftest import steps_of

    steps, codes = steps_of(2, 5, first=[(0, 0), (1, 0)]), Codes(torch.randint(0, 5, (2, 5, 4)))
    record = held_out.drift(model, steps, codes, np.array([[0] * 5, [1] * 5]), context=2, futures=3)
    assert record.imagined_bits.shape == record.model.shape[:3] == (2, 3, 3)
    _, state = model.start(steps[:, :2], Codes(codes.indices[:, :2]))
    for m in range(3):
        drawn = Codes(torch.from_numpy(record.model[:, m, :1]))
        told, _ = model.decoding.step(model.backbone, state.select(torch.arange(2)), steps.action[:, 1], None, drawn)
        bits = -logprob(told).sum(-1).detach().numpy() / math.log(2)
        assert np.allclose(record.imagined_bits[:, m, 0], bits, atol=1e-4)


# --------------------------------------------------------------------------------------------------------------- report


def metric(id, value, ci, status="ok", **more):
    return Metric(id, id, value, ci=ci, status=status, n_clusters=50, n_samples=1000, **more)


@pytest.mark.parametrize("rule", specs.rules(), ids=lambda rule: rule.code)
def test_a_finding_needs_its_whole_interval(rule):
    grid = [(x, x + 0.001) for x in np.linspace(-3, 12, 3001)]
    holding = [ci for ci in grid if rule.holds(*ci)]
    excluded = [ci for ci in grid if rule.fails(*ci)]
    assert holding and excluded and not set(holding) & set(excluded)
    anchors = dict(floor=0.0, ceiling=1.0) if rule.bound.skill else dict(floor=1.0, ceiling=0.0)  # each makes it the value
    for ci, established in ((holding[0], True), (excluded[0], False), ((-3.0, 12.0), None)):
        found = {f["code"]: f for f in findings([metric(rule.metric, sum(ci) / 2, ci, **anchors)])}
        assert found[rule.code]["established"] is established
        assert bool(found[rule.code]["text"]) == (established is not False)
    few = {f["code"]: f for f in findings([metric(rule.metric, 0.0, holding[0], status="underpowered", **anchors)])}
    assert few[rule.code]["established"] is None


def made(**more):
    metrics = [
        metric("calibration.gap", 0.8, (0.6, 1.0)), metric("action_sensitivity.saved_bits", 0.0, (0.0, 0.01)),
        metric("rollouts.held_out_horizon", 9.0, (7.0, 11.0)),
        metric("terminations.brier_skill", 0.5, (0.3, 0.6), floor=0.0, ceiling=1.0),
        Metric("rewards.recall", "reward", None, status="not_applicable", reason="there are no rewards"),
        metric("code_length.bits", 3.0, (2.0, 4.0), values=np.arange(4.0), clusters=np.array([0, 0, 1, 1])),
    ]  # fmt: skip
    found = findings(metrics)
    keys = dict(metrics=metrics, findings=found, verdict=verdict(metrics, found), capabilities={"A": "data", "B": None})
    keys |= dict(provenance={"env_id": "<script>alert(1)</script>", "seed": 0}, pictures={"surprise": np.ones((2, 2))})
    return files.Report(**(keys | more))


def test_the_verdict_is_one_sentence_of_what_is_established():
    assert made().verdict == (
        "Not judged: rewards (there are no rewards), what actions really do and whole rollouts (tier B was not run), policies "
        "and planning (tier C was not run); overconfident (+0.80 bits a frame) [limit: above 0.05], ignores its actions "
        "[limit: below 0.1]; rollouts as a whole stay near reality for 9 steps."
    )


def test_a_report_comes_back_as_it_was_written(tmp_path):
    files.write(made(), tmp_path)
    told, rows = files.read(tmp_path)
    assert told["verdict"] == made().verdict and told["schema"] == 2
    entry = {m["id"]: m for m in told["metrics"]}["terminations.brier_skill"]
    assert entry["skill"] == 0.5 and entry["ci"] == [0.3, 0.6]
    assert rows["code_length.bits"].tolist() == [0, 1, 2, 3] and rows["code_length.bits/cluster"].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda r: r.pop("metrics"), "it has no metrics"),
        (lambda r: r.update(schema=7), "it has schema 7, expected 2"),
        (lambda r: r["metrics"][0].update(status="fine"), "has status 'fine'"),
        (lambda r: r["metrics"][0].update(value=None), "status ok and value None"),
    ],
)
def test_a_broken_report_is_named(change, said, tmp_path):
    files.write(made(), tmp_path)
    told = json.loads((tmp_path / "report.json").read_text())
    change(told)
    (tmp_path / "report.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=said):
        files.read(tmp_path)
    with pytest.raises(UserError, match="there is no report"):
        files.read(tmp_path / "nowhere")


def test_the_page_stands_alone_and_trusts_nothing(tmp_path):
    files.write(made(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r"(src|href)=", page) and "@import" not in page and "url(http" not in page
    assert len(page) < 5_000_000 and page.count("<svg") == page.count("</svg>") == page.count("<title>") - 1


def test_evaluate_a_run_without_a_network(tmp_path, monkeypatch, capsys):
    words = ["overlay=debug", "device=cpu", f"out={tmp_path / 'run'}"]
    words += ["train.collect.held_out=3", "train.collect.first_steps=400"]
    assert cli.main(["train", *words]) == 0

    def refused(*_, **__):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refused)
    capsys.readouterr()
    assert cli.main(["evaluate", str(tmp_path / "run"), "frames=200"]) == 0
    told, rows = files.read(tmp_path / "run" / "evaluation")
    assert told["verdict"] in capsys.readouterr().out
    found = {m["id"]: m for m in told["metrics"]}
    assert found["code_length.bits"]["value"] > 0 and found["action_sensitivity.saved_bits"]["value"] is not None
    assert len(rows["code_length.bits"]) > 50
    assert told["provenance"]["data"]["steps"] > 0 and told["capabilities"]["B"] is None
    assert cli.main(["evaluate", str(tmp_path / "run"), "frames=200", f"data={tmp_path / 'run' / 'replay'}"]) == 0
    run = str(tmp_path / "run")
    assert cli.main(["evaluate", run, "frames=200", f"out={tmp_path / 'again'}", "seed=1"]) == 0
    capsys.readouterr()
    assert cli.main(["compare", f"{run}/evaluation", str(tmp_path / "again")]) == 0
    assert "shared states" in capsys.readouterr().out
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert cli.main(["evaluate", str(tmp_path / "run"), f"out={tmp_path / 'full'}"]) == 2
    assert "no file was overwritten" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------- comparison


def written(folder, shift=0.0, states=range(400), env="Game", tokenizer="t", recall=(0.5, (0.4, 0.6))):
    """A report whose bits are hard states' plus a shift."""
    states = np.array(list(states))
    hard, own = np.random.default_rng(0).normal(10, 5, 1000), np.random.default_rng(int(10 * shift) + 20).normal(0, 0.1, 1000)
    bits = (hard + own)[states] + shift
    metrics = [
        metric("code_length.bits", bits.mean(), (9.0, 11.0), values=bits, clusters=states // 10),
        metric("rewards.recall", *recall, direction="higher"),
    ]  # fmt: skip
    files.write(
        made(metrics=metrics, findings=[], state=states.astype(np.uint64),
             provenance={"env_id": env, "weights": {"tokenizer": tokenizer, "dynamics": "d"}}), folder)  # fmt: skip
    return folder


def test_shared_states_show_what_intervals_cannot(tmp_path):
    a = written(tmp_path / "a")
    for shift, said, code in ((0.5, "worse", 1), (-0.5, "better", 0), (0.0, "no difference shown", 0)):
        b = written(tmp_path / f"b{shift}", shift, states=range(100, 500))
        rows, remarks = compare.compare(a, b)
        row = {row.metric: row for row in rows}["code_length.bits"]
        assert row.verdict == said and remarks == ["300 shared states"]
        assert row.difference == pytest.approx(shift, abs=0.05) and row.ci[1] - row.ci[0] < 0.1
        assert compare.exit_code(rows) == code == cli.main(["compare", str(a), str(b)])
        assert compare.exit_code(rows, ["rewards.recall"]) == 0


def test_what_is_not_shared_is_compared_by_intervals_and_said(tmp_path, capsys):
    a, b = written(tmp_path / "a"), written(tmp_path / "b", 0.5, range(500, 900), recall=(0.8, (0.7, 0.9)))
    rows, remarks = compare.compare(a, b)
    found = {row.metric: row for row in rows}
    assert found["code_length.bits"].note == found["rewards.recall"].note == "unpaired" and "no shared state" in remarks[0]
    assert found["code_length.bits"].verdict == "no difference shown" and found["rewards.recall"].verdict == "better"
    rows, remarks = compare.compare(a, written(tmp_path / "c", tokenizer="other"))
    assert [row.metric for row in rows] == ["rewards.recall"] and "not comparable" in remarks[0]
    assert cli.main(["compare", str(a), str(written(tmp_path / "d", env="Other"))]) == 2
    assert "two models of one game" in capsys.readouterr().err
    assert cli.main(["compare", str(a), str(b), "metrics=M9.x"]) == 2 and "not compared here" in capsys.readouterr().err
    assert cli.main(["compare", str(a)]) == 2
