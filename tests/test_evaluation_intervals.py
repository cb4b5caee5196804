"""Intervals and orders: against tables, slow references, other libraries where they are installed, and simulated coverage."""

import math

import numpy as np
import pytest

from tokenworld.evaluation.statistics import intervals, ranking

SETS = 500


def test_the_incomplete_beta_sums_binomials():
    for k, n, p in [(3, 10, 0.2), (1, 7, 0.9), (50, 100, 0.5), (99, 100, 0.99), (1, 1, 0.3), (400, 1000, 0.37)]:
        whole = sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k, n + 1))
        assert intervals.binomial_tail(k, n, p) == pytest.approx(whole, rel=1e-10)
    x = (np.arange(200_000) + 0.5) / 200_000  # no whole numbers: the midpoint rule
    density = x**1.5 * (1 - x) ** 3
    assert intervals.incomplete_beta(2.5, 4, 0.3) == pytest.approx(density[x < 0.3].sum() / density.sum(), rel=1e-8)
    assert (intervals.binomial_tail(0, 5, 0.3), intervals.binomial_tail(6, 5, 0.3)) == (1, 0)


def test_beta_and_clopper_pearson_agree_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for a, b, x in [(0.5, 0.5, 0.1), (2.5, 4, 0.3), (300, 2, 0.99), (5000, 5000, 0.51), (1, 100000, 1e-5)]:
        assert intervals.incomplete_beta(a, b, x) == pytest.approx(stats.beta.cdf(x, a, b), rel=1e-8)
    for k, n in [(0, 12), (1, 12), (7, 12), (12, 12), (3, 100000), (2.5, 5)]:
        low, high = intervals.clopper_pearson(k, n)
        assert low == pytest.approx(stats.beta.ppf(0.025, k, n - k + 1) if k else 0, abs=1e-9)
        assert high == pytest.approx(stats.beta.ppf(0.975, k + 1, n - k) if k < n else 1, abs=1e-9)


def test_bca_of_a_skewed_mean_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    x = np.random.default_rng(0).lognormal(0, 1, 60)
    _, (low, high), _ = intervals.ratio(x, None, np.arange(60), method="bca")
    other = stats.bootstrap((x,), np.mean, n_resamples=20000, method="BCa", rng=np.random.default_rng(1)).confidence_interval
    _, (plain, _), _ = intervals.ratio(x, None, np.arange(60))
    assert (low, high) == pytest.approx((other.low, other.high), rel=0.03)
    assert low > plain + 0.02  # which the percentile interval does not


def test_the_cluster_bootstrap_covers():
    """Ratios of sums over clusters of unequal size whose rows are alike: percentile, BCa, differences and columns."""
    rng = np.random.default_rng(1)
    truth, hits = 0.5, {"percentile": 0, "bca": 0, "difference": 0, "rows": 0}
    for _ in range(SETS):
        sizes = rng.integers(2, 12, 60)
        cluster = np.repeat(np.arange(60), sizes)
        level = rng.beta(2, 2, 60)[cluster]
        rows = (rng.random(len(cluster)) < level).astype(float)
        for method in ("percentile", "bca"):
            _, (low, high), n = intervals.ratio(rows, None, cluster, method=method)
            hits[method] += low <= truth <= high
            assert n == 60
        half = cluster < 30
        _, (low, high), _ = intervals.difference(rows[half], cluster[half], rows[~half], cluster[~half])
        hits["difference"] += low <= 0 <= high
        _, (low, high), _ = intervals.ratio(rows, None, np.arange(len(rows)))
        hits["rows"] += low <= truth <= high
    rate = {name: n / SETS for name, n in hits.items()}
    assert 0.92 <= rate["percentile"] <= 0.98 and 0.92 <= rate["bca"] <= 0.98, rate
    assert 0.90 <= rate["difference"] <= 0.98, rate  # 30 clusters a side
    assert rate["rows"] < 0.9, rate  # what clusters are for


def test_columns_are_ratios_drawn_together():
    rng = np.random.default_rng(0)
    top, bottom, cluster = rng.normal(size=(40, 3)), rng.random((40, 3)) + 0.1, np.arange(40) // 4
    value, low, high = intervals.columns(top, bottom, cluster)
    for d in range(3):
        one, (a, b), _ = intervals.ratio(top[:, d], bottom[:, d], cluster)
        assert (value[d], low[d], high[d]) == pytest.approx((one, a, b))


def test_a_ratio_over_nothing_is_nan():
    value, (low, high), _ = intervals.ratio(np.ones(4), np.zeros(4), np.arange(4))
    assert math.isnan(value) and math.isnan(low) and math.isnan(high)


def test_the_martingale_test_keeps_its_level_and_finds_a_drift():
    rng = np.random.default_rng(0)
    level, power = 0, 0
    for _ in range(SETS):
        cluster = np.repeat(np.arange(80), 10)
        scale = np.exp(rng.normal(0, 0.5, 80))[cluster] * np.where(np.arange(800) % 10 > 5, 2.0, 1.0)
        steps = scale * rng.choice([-0.5, 0.5], 800)
        level += intervals.zero_mean_p(steps, cluster) < 0.05
        power += intervals.zero_mean_p(steps + 0.15, cluster) < 0.05
    assert 0.03 <= level / SETS <= 0.075 and power / SETS > 0.9
    assert intervals.zero_mean_z(np.ones(4), np.array([0, 0, 1, 1])) == pytest.approx(4 / math.sqrt(8))


def test_weighted_survival_is_survival_of_repeated_rows():
    time, event = np.array([1, 2, 2, 3, 5]), np.array([1, 1, 0, 1, 0], bool)
    weights = np.array([[2, 0, 1, 3, 1], [1, 1, 1, 1, 1]])
    both = intervals.kaplan_meier(time, event, 5, weights)
    rows = np.repeat(np.arange(5), weights[0])
    assert both[0] == pytest.approx(intervals.kaplan_meier(time[rows], event[rows], 5))
    assert both[1] == pytest.approx([1, 4 / 5, 3 / 5, 3 / 10, 3 / 10, 3 / 10])


def test_log_rank_by_hand_and_against_scipy():
    # at 1 two of four are at risk in group 1, which loses one; at 2 one of three, which is lost: U = 1 - 1/2 + 1 - 1/3
    time, event, group = np.array([1, 2, 3, 3]), np.array([1, 1, 0, 0], bool), np.array([1, 1, 0, 0], bool)
    z, p = intervals.log_rank(time, event, group, np.arange(4))
    terms = np.array([0.5 - 0.5 / 4, 2 / 3 - 0.5 / 4 - (2 / 3) / 3] + 2 * [0.5 / 4 + (1 / 3) / 3])
    assert z == pytest.approx(terms.sum() / math.sqrt(np.square(terms).sum())) and p == pytest.approx(math.erfc(z / 2**0.5))
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    time = np.minimum(np.concatenate([rng.geometric(0.1, 300), rng.geometric(0.12, 300)]), 20)
    group = np.arange(600) >= 300
    z, _ = intervals.log_rank(time, time < 20, group, np.arange(600))
    x, y = (stats.CensoredData.right_censored(time[g], time[g] == 20) for g in (group, ~group))
    assert abs(z) == pytest.approx(abs(stats.logrank(x, y).statistic), rel=0.05) and z > 0


def test_log_rank_keeps_its_level_where_groups_share_their_clusters():
    rng, alarms, naive = np.random.default_rng(2), 0, 0
    for _ in range(SETS):
        start = np.repeat(np.arange(40), 8)
        group = np.arange(320) // 4 % 2 == 1 if _ % 2 else np.repeat(rng.permutation(40) < 20, 8)
        hazard = rng.beta(1, 6, 40)[start]
        time = np.minimum(rng.geometric(np.maximum(hazard, 1e-3)), 15)
        alarms += intervals.log_rank(time, time < 15, group, start)[1] < 0.05
        naive += intervals.log_rank(time, time < 15, group, np.arange(320))[1] < 0.05
    assert alarms / SETS < 0.085 and naive / SETS > 0.1


def test_the_area_under_the_curve_counts_pairs():
    rng = np.random.default_rng(0)
    score, positive, weights = rng.integers(0, 6, 40) / 5, rng.random(40) < 0.4, rng.integers(0, 3, (3, 40))
    for w in weights:
        total = hits = 0.0
        for i in np.flatnonzero(positive):
            for j in np.flatnonzero(~positive):
                total += w[i] * w[j]
                hits += w[i] * w[j] * ((score[i] > score[j]) + 0.5 * (score[i] == score[j]))
        assert ranking.auc(score, positive, w) == pytest.approx(hits / total)
    assert ranking.auc(score, positive, weights).shape == (3,)
    assert np.isnan(ranking.auc(score, np.zeros(40, bool)))


def test_rank_correlations_by_hand_and_against_scipy():
    x, y = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 4, 3, 5])
    assert ranking.spearman(x, y) == pytest.approx(1 - 6 * 4 / (5 * 24)) and ranking.kendall(x, y) == pytest.approx(0.6)
    assert np.isnan(ranking.spearman(x, np.ones(5))) and np.isnan(ranking.kendall(np.ones(5), x))
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 6, (4, 30)).astype(float), rng.integers(0, 6, (4, 30)).astype(float)
    for i in range(4):
        assert ranking.spearman(a, b)[i] == pytest.approx(stats.spearmanr(a[i], b[i]).statistic)
        assert ranking.kendall(a, b)[i] == pytest.approx(stats.kendalltau(a[i], b[i]).statistic)
        assert ranking.ranks(a)[i] == pytest.approx(stats.rankdata(a[i]))


def test_few_clusters_widen_an_interval_as_students_t_does():
    drawn = np.random.default_rng(0).normal(size=400_000)
    low, high = intervals.percentile(drawn, clusters=10)
    wide = 2.262 * math.sqrt(10 / 9)  # t of 9 degrees of freedom; the bootstrap's own spread is too small by the root
    assert high == pytest.approx(wide, abs=0.03) and low == pytest.approx(-wide, abs=0.03)
    assert intervals.percentile(drawn) == pytest.approx((-1.96, 1.96), abs=0.02)


def test_a_share_of_clustered_rows_counts_them_as_fewer():
    """Rows alone: Wilson's interval; clusters of ten alike: that of a tenth of the rows, about; no variance: of all rows."""
    rng = np.random.default_rng(0)
    hit, asked = rng.random(4000) < 0.3, np.ones(4000, bool)
    low, high = intervals.clustered_wilson(hit, asked, np.arange(4000))
    assert (low, high) == pytest.approx(intervals.wilson(hit.sum(), 4000), abs=0.003)
    blocks, ten = np.repeat(rng.random(400) < 0.3, 10), np.repeat(np.arange(400), 10)
    low, high = intervals.clustered_wilson(blocks, asked, ten)
    expected = intervals.wilson(blocks.mean() * 400, 400)
    assert (low, high) == pytest.approx(expected, abs=0.01)
    assert intervals.clustered_wilson(np.ones(20), np.ones(20), np.arange(20)) == intervals.wilson(20, 20)


def test_student_quantiles():
    stats = pytest.importorskip("scipy.stats")
    for p in (0.6, 0.975, 0.025, 0.999):
        for freedom in (1, 4, 59):
            assert intervals.student_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-6)
