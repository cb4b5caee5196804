"""Comparing two evaluations: paired where states are shared, honest where not, and a gate that does not close by chance."""

from dataclasses import replace

import numpy as np
import pytest

from tokenworld.cli import main as cli
from tokenworld.errors import UserError
from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.report import compare, files

HARD = np.random.default_rng(0).normal(10, 5, 2000)  # what a state costs any model


def metric(id, value, ci=None, direction="lower", **more):
    return Metric(id, id, value, direction=direction, ci=ci, n_clusters=50, n_samples=1000, **more)


def of_rows(id, values, clusters, direction="lower", **more):
    return metric(id, float(values.mean()), (-99.0, 99.0), direction, values=values, clusters=clusters, **more)


def written(folder, metrics, state=None, env="Game", tokenizer="t", preprocessing=None):
    provenance = {"env_id": env, "weights": {"tokenizer": tokenizer, "dynamics": "d"}, "preprocessing": preprocessing}
    files.write(files.Report(metrics, [], "-", provenance, {"A": "data"}, state=state), folder)
    return folder


def bits(states, shift=0.0, seed=1, per=10):
    """(metric, states): what states cost a model that is `shift` bits worse, with noise of its own."""
    states = np.asarray(states)
    own = np.random.default_rng(seed).normal(0, 0.1, 2000)
    return of_rows("code_length.bits", (HARD + own)[states] + shift, states // per), states.astype(np.uint64)


def compared(tmp_path, a, b, **more):
    """Of metrics with their states."""
    folders = [written(tmp_path / name, [one[0]], one[1], **more) for name, one in (("a", a), ("b", b))]
    rows, remarks = compare.compare(*folders)
    return rows[0], remarks


def test_pairs_show_what_independent_intervals_hide(tmp_path):
    row, remarks = compared(tmp_path, bits(range(400)), bits(range(100, 500), 0.2, seed=2))
    assert row.verdict == "worse" and row.note == "" and row.clusters == 30 and "300 shared states" in remarks
    own = [np.random.default_rng(seed).normal(0, 0.1, 2000)[100:400] for seed in (1, 2)]
    assert row.difference == pytest.approx((own[1] - own[0]).mean() + 0.2)
    assert row.ci[0] > 0.15 and row.ci[1] < 0.25 and row.p < 1e-6 and row.harm == row.ci[0]
    row, remarks = compared(tmp_path / "apart", bits(range(400)), bits(range(500, 900), 0.2, seed=2))
    assert row.verdict == "no difference shown" and row.note == "unpaired" and row.p > 0.05
    assert "no shared state: intervals are compared, unpaired" in remarks


def test_the_interval_of_a_paired_difference_is_the_bootstraps():
    """Against the textbook's: mean and standard error of cluster means."""
    rng = np.random.default_rng(3)
    x = rng.normal(0, 1, 500)
    y = x + 0.3 + np.repeat(rng.normal(0, 0.5, 100), 5)
    value, (low, high), p, n = compare._resampled((x, np.arange(500) // 5), (y,), "lower")
    means = (y - x).reshape(100, 5).mean(1)
    half = 1.96 * means.std() / 10
    assert n == 100 and value == pytest.approx(means.mean())
    assert (low, high) == pytest.approx((means.mean() - half, means.mean() + half), abs=0.02) and p < 1e-3


def test_states_are_matched_by_hash_and_occurrence():
    a, b = (np.array(x, np.uint64) for x in ([5, 7, 5, 9, 5], [9, 5, 8, 5, 9]))
    at_a, at_b = compare._match(a, b)
    assert sorted(zip(at_a.tolist(), at_b.tolist(), strict=True)) == [(0, 1), (2, 3), (3, 0)]
    assert compare._occurrence(a).tolist() == [0, 0, 1, 0, 2] and compare._occurrence(a[:0]).tolist() == []
    assert [len(x) for x in compare._match(a, None)] == [0, 0]
    near = np.arange(1000) + 2**62  # beyond what a float tells apart; other integers are as good
    at_a, at_b = compare._match(near, near[::-1].astype(np.uint64))
    assert (at_a == np.arange(1000)).all() and (at_b == np.arange(1000)[::-1]).all()


def test_branch_states_have_their_own_hashes(tmp_path):
    """In B the branch states come in another order; paired by hash the difference is exactly one bit everywhere."""
    order = np.random.default_rng(0).permutation(100)
    kl, hash = np.random.default_rng(1).gamma(2, 3, 100), np.arange(100, dtype=np.uint64) + 10**18
    one = of_rows("next_frame.kl", kl, np.arange(100), tier="B", states=hash)
    two = of_rows("next_frame.kl", kl[order] + 1, order, tier="B", states=hash[order])
    a = written(tmp_path / "a", [one, bits(range(50))[0]], bits(range(50))[1])
    b = written(tmp_path / "b", [two, bits(range(50))[0]], bits(range(50))[1])
    found = {row.metric: row for row in compare.compare(a, b).rows}
    assert found["next_frame.kl"].difference == pytest.approx(1) and found["next_frame.kl"].ci == pytest.approx((1, 1))
    assert found["next_frame.kl"].verdict == "worse" and found["next_frame.kl"].note == ""
    assert found["code_length.bits"].difference == 0 and found["code_length.bits"].verdict == "no difference shown"


@pytest.mark.parametrize(
    "direction, a, b, verdict",
    [
        ("lower", 1.0, 2.0, "worse"), ("lower", 2.0, 1.0, "better"), ("higher", 1.0, 2.0, "better"),
        ("higher", 2.0, 1.0, "worse"), ("zero", -2.0, 1.0, "better"), ("zero", 1.0, -2.0, "worse"),
        ("zero", -1.0, 1.0, "no difference shown"), ("lower", 1.0, 1.0, "no difference shown"),
    ],
)  # fmt: skip
def test_what_is_better_depends_on_the_direction(tmp_path, direction, a, b, verdict):
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 100))
    state, clusters = np.arange(100, dtype=np.uint64), np.arange(100) // 2
    rows = [of_rows("rewards.bias", value + x, clusters, direction) for value, x in zip((a, b), noise, strict=True)]
    row, _ = compared(tmp_path, (rows[0], state), (rows[1], state))
    assert row.verdict == verdict
    told = [metric("rewards.bias", value, (value - 0.1, value + 0.1), direction) for value in (a, b)]
    row, _ = compared(tmp_path / "ci", (told[0], None), (told[1], None))
    assert row.verdict == verdict and row.note == "unpaired"


def test_intervals_alone_are_compared_by_recovered_variances(tmp_path):
    """For symmetric intervals that is the usual root of the sum of squares."""
    a, b = metric("rewards.recall", 0.5, (0.4, 0.6), "higher"), metric("rewards.recall", 0.7, (0.55, 0.85), "higher")
    row, _ = compared(tmp_path, (a, None), (b, None))
    half = np.hypot(0.1, 0.15)
    assert row.ci == pytest.approx((0.2 - half, 0.2 + half)) and row.verdict == "better"
    assert row.p == pytest.approx(0.0297, abs=1e-3)  # z = 0.2 / (0.1803 / 1.96) = 2.174
    row, _ = compared(tmp_path / "b", (a, None), (replace(b, ci=None), None))
    assert row.ci is None and row.verdict == "no difference shown"


def test_few_episodes_show_nothing(tmp_path):
    row, _ = compared(tmp_path, bits(range(40)), bits(range(40), 1.0, seed=2))
    assert row.verdict == "no difference shown" and row.note == "only 4 episodes" and row.harm == 0
    a, state = bits(range(400))
    row, _ = compared(
        tmp_path / "b", (a, state), (replace(bits(range(400), 1.0)[0], status="underpowered", reason="few"), state)
    )
    assert row.verdict == "no difference shown" and row.note == "too little data in B"


def test_other_tokenizers_are_compared_in_what_is_not_about_codes(tmp_path):
    a, state = bits(range(400))
    more = [metric("rollouts.distance", 1.0, (0.9, 1.1), tier="B"), metric("terminations.log_loss", 0.1, (0.09, 0.11)),
            metric("action_effects.error", 0.5, (0.4, 0.6), tier="B")]  # fmt: skip
    one, two = written(tmp_path / "a", [a, *more], state), written(tmp_path / "b", [a, *more], state, tokenizer="other")
    rows, remarks = compare.compare(one, two)
    assert [row.metric for row in rows] == ["rollouts.distance", "terminations.log_loss"]
    assert "tokenizers differ" in remarks[0] and "left out: code_length.bits, action_effects.error" in remarks
    assert "code_length.bits" in compare.table(rows, remarks)
    with pytest.raises(UserError, match="code_length.bits is not compared here"):
        compare.exit_code(rows, ["code_length.bits"])
    with pytest.raises(UserError, match="about Game and .* about Other: compare two models of one game"):
        compare.compare(one, written(tmp_path / "c", [a], state, env="Other"))
    _, remarks = compare.compare(one, written(tmp_path / "d", [a], state, preprocessing={"sticky": 0.25}))
    assert "prepared differently" in remarks[0]
    assert remarks[-1] == "measured in one of the two only: rollouts.distance, terminations.log_loss, action_effects.error"


def test_the_gate_counts_what_it_is_told_to_and_no_chance(tmp_path):
    row = compare.ComparisonRow("code_length.bits", "bits", "", 10.0, 10.3, 0.3, (0.2, 0.4), "worse", p=1e-8, harm=0.2,
                                clusters=50)
    fine = replace(row, metric="other.x", verdict="better", ci=(-0.4, -0.2), harm=0.0)
    assert compare.exit_code([row, fine]) == 1 and compare.exit_code([row, fine], ["other.x"]) == 0
    assert compare.exit_code([row], tolerance=0.01) == 1 and compare.exit_code([row], tolerance=0.03) == 0
    assert compare.exit_code([]) == 0
    weak = [replace(row, metric=f"M{i}.x", p=0.03) for i in range(10)]  # each would do alone
    assert compare.exit_code(weak) == 0 and compare.exit_code(weak, ["M3.x"]) == 1
    for wrong in (-0.1, float("nan")):
        with pytest.raises(UserError, match="is no share"):
            compare.exit_code([row], tolerance=wrong)


def test_a_gate_over_many_metrics_seldom_closes_by_chance():
    """Two equal models, twenty numbers, 200 times: each row alone errs in 5 %, the gate in at most as many."""
    rng, closed, alone = np.random.default_rng(0), 0, 0
    for _ in range(200):
        values = rng.normal(size=(2, 20, 40))
        rows = []
        for k in range(20):
            value, ci, p, n = compare._resampled((values[0, k], np.arange(40)), (values[1, k],), "lower")
            verdict, harm = compare._verdict("lower", ci)
            rows.append(compare.ComparisonRow(f"M{k}", "", "", 0.0, 0.0, value, ci, verdict, "", p, harm, n))
        closed += compare.exit_code(rows)
        alone += sum(row.verdict == "worse" for row in rows)
    assert closed <= 0.08 * 200 and 0.015 < alone / 4000 < 0.05


def test_the_table_says_everything(tmp_path):
    folders = [
        written(tmp_path / name, [one[0]], one[1]) for name, one in (("a", bits(range(400))), ("b", bits(range(400), 1)))
    ]
    lines = compare.table(*compare.compare(*folders)).split("\n")
    assert lines[0].split() == ["metric", "A", "B", "B", "-", "A", "95", "%", "interval", "B", "is"]
    assert lines[1].startswith("code_length.bits [code_length.bits]  ") and lines[1].endswith("worse")
    assert lines[2] == "400 shared states"
    assert lines[3] == "B: 0 better, 1 worse (code_length.bits), 0 equal (no difference shown)" and len(lines) == 4
    assert compare.table([], ["no shared state"]).endswith("no shared state; no metric is comparable")


def test_the_table_lists_what_differs_and_counts_the_rest(tmp_path, capsys):
    def several(folder, *values):
        told = [metric(id, value, (value - 0.01, value + 0.01)) for id, value in
                zip(("terminations.log_loss", "tokenizer.psnr", "terminations.survival_gap"), values, strict=True)]  # fmt: skip
        return str(written(folder, told))

    folders = several(tmp_path / "a", 1.0, 1.0, 1.0), several(tmp_path / "b", 2.0, 0.5, 1.0)
    assert cli.main(["compare", *folders]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:-2]] == ["metric", "terminations.log_loss", "tokenizer.psnr"]
    assert lines[-1] == "B: 1 better, 1 worse (terminations.log_loss), 1 equal (no difference shown)"
    assert cli.main(["compare", *folders, "rows=all"]) == 1
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:4]] == [
        "terminations.log_loss", "tokenizer.psnr", "terminations.survival_gap"]  # fmt: skip
    assert cli.main(["compare", folders[0], folders[0]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[-1] == "B: 0 better, 0 worse, 3 equal (no difference shown)"
    assert cli.main(["compare", *folders, "rows=some"]) == 2
    assert "rows=some: expected rows=all" in capsys.readouterr().err
