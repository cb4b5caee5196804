"""Statistics over seeds and games by hand, and the published scores against what their papers say of them."""

import numpy as np
import pytest

from tokenworld.scores import aggregate, published


@pytest.mark.parametrize(
    "values, expected",
    [
        ([1, 2, 3, 4], 2.5),
        ([100, 3, 2, -50], 2.5),  # a quarter at each end says nothing
        ([1, 2, 3, 4, 5, 6, 7, 80], 4.5),
        ([0, 1, 2, 3, 4, 5, 60], 3.0),  # 7 // 4 = 1 at each end: the mean of 1..5
        ([1, 2, 6], 3.0),  # too few to leave any out
    ],
)
def test_interquartile_mean(values, expected):
    assert aggregate.interquartile_mean(np.array(values, float)) == pytest.approx(expected)


def test_statistics_are_of_games_and_the_iqm_of_runs():
    found = aggregate.over_games({"a": [0, 0, 0, 8], "b": [1, 1, 1, 1], "c": [9, 9, 9, 9]})
    assert found["mean"]["value"] == pytest.approx((2 + 1 + 9) / 3)
    assert found["median"]["value"] == pytest.approx(2)
    # sorted 0 0 0 1 1 1 1 8 9 9 9 9, without three at each end
    assert found["iqm"]["value"] == pytest.approx((1 + 1 + 1 + 1 + 8 + 9) / 6)
    for one in found.values():
        assert one["ci95"][0] <= one["value"] <= one["ci95"][1]


def test_the_interval_of_a_constant_is_that_constant():
    for one in aggregate.over_games({"a": [2, 2, 2], "b": [2, 2]}).values():
        assert one == {"value": 2.0, "ci95": [2.0, 2.0]}
    assert aggregate.over_seeds([3, 3, 3]) == {"value": 3.0, "ci95": [3.0, 3.0]}


def test_one_run_has_no_interval():
    assert aggregate.over_seeds([3]) == {"value": 3.0, "ci95": None}
    assert all(one["ci95"] is None for one in aggregate.over_games({"a": [1, 2], "b": [5]}).values())


def test_resampling_keeps_games_apart():
    """Games far apart: the mean would move by tens if a run of one could stand for the other."""
    games = [np.array([0.0, 1.0]), np.array([100.0, 101.0, 102.0])]
    small, large = aggregate.resample(games, 500, np.random.default_rng(0))
    assert small.shape == (500, 2) and large.shape == (500, 3)
    assert set(small.ravel()) == {0.0, 1.0} and set(large.ravel()) == {100.0, 101.0, 102.0}
    low, high = aggregate.over_games({"a": [0, 0], "b": [100, 100]})["mean"]["ci95"]
    assert low == high == 50


def test_the_interval_of_two_runs_is_known():
    """The mean of two draws from {0, 1} is 0, 1/2 or 1 with 1/4, 1/2, 1/4; two such games: 0 has 1/16, above 2.5 %."""
    assert aggregate.over_seeds([0, 1])["ci95"] == [0.0, 1.0]
    assert aggregate.over_games({"a": [0, 1], "b": [0, 1]})["mean"]["ci95"] == [0.0, 1.0]
    eight = aggregate.over_games({str(i): [0, 1] for i in range(8)})["mean"]["ci95"]
    # 16 coins: P(at most 3 heads) = 1.06 %, P(at most 4) = 3.84 %
    assert eight == [4 / 16, 12 / 16]


def test_published_tables_are_complete():
    data = published.atari100k()
    assert len(data["scores"]) == 26 and all(human > random for random, human in data["scores"].values())
    for name, system in data["systems"].items():
        assert "arXiv:" in system["source"]
        if "runs" in system:
            assert system["runs"].keys() == data["scores"].keys(), name
            assert {len(runs) for runs in system["runs"].values()} == {5}, name
        else:
            assert system["means"].keys() < data["scores"].keys()


@pytest.mark.parametrize(
    "system, mean, median",
    [("IRIS", 1.046, 0.289), ("delta-IRIS", 1.383, 0.594), ("DIAMOND", 1.459, 0.373), ("Simulus", 1.645, 0.982)],
)
def test_published_scores_give_the_published_aggregates(system, mean, median):
    found = published.over_published_games(system, list(published.atari100k()["scores"]))
    assert found["mean"]["value"] == pytest.approx(mean, abs=5e-4)
    assert found["median"]["value"] == pytest.approx(median, abs=5e-4)


def test_published_on_some_games():
    # Pong: IRIS' seeds have mean 14.6, which is the human's score; Boxing 70.06
    assert published.human_normalized_score("Pong", 14.6) == 1.0 and published.human_normalized_score("Pong", -20.7) == 0.0
    iris = published.over_published_games("IRIS", ["Pong", "Boxing"])
    assert iris["mean"]["value"] == pytest.approx((1 + (70.06 - 0.1) / 12) / 2)
    storm = published.over_published_games("STORM", ["Pong", "Boxing"])
    assert storm["mean"]["value"] == pytest.approx(((11.3 + 20.7) / 35.3 + (79.7 - 0.1) / 12) / 2)
    assert storm["mean"]["ci95"] is None and storm["iqm"]["value"] is None
    assert published.over_published_games("STORM", ["Pong", "Alien"]) is None
    assert published.over_published_games("STORM", list(published.atari100k()["scores"]))["median"]["value"] == 0.584


def test_games_of_other_suites_are_other_games():
    assert published.game_of("ALE/Breakout-v5") == "Breakout"
    assert published.game_of("MinAtar/Breakout-v1") is None and published.game_of("ALE/Skiing-v5") is None
