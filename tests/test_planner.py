"""Planners in an exact tabular world, whose optimum is known."""

import functools
import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from conftest import shapes

from tokenworld import cli, commands, config
from tokenworld.interfaces import UserError, View
from tokenworld.policies.planner import Planner, expected_returns


@dataclass
class Mean:
    mean: torch.Tensor


def step(reward, terminated):
    return SimpleNamespace(reward=Mean(torch.tensor(reward)), terminated=Mean(torch.tensor(terminated)))


# Places 0..3 and the end 4. The way 0, 2, 1 from place 0 leads to 10; action 1 takes 1 and ends; all else leads back to 0.
NEXT = torch.tensor([[1, 4, 0], [0, 4, 2], [0, 3, 0], [0, 0, 0], [4, 4, 4]])
REWARD = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 10.0, 0.0], [0.0, 0.0, 0.0], [100.0, 100.0, 100.0]])
BEST = {0: 0, 1: 2, 2: 1}


def dream(place, actions, noise):
    """Futures from place (B,): after the end every step would pay 100, if it counted."""
    B, S, H = actions.shape
    place, out = place.repeat_interleave(S), []
    for t in range(H):
        a = actions[:, :, t].flatten()
        reward, place = REWARD[place, a], NEXT[place, a]
        out.append(SimpleNamespace(reward=Mean(reward), terminated=Mean((place == 4).float())))
    return out


def view(*places):
    return View(None, None, None, functools.partial(dream, torch.tensor(places)))


def planner(method="cem", **keywords):
    return Planner(shapes=shapes(), method=method, **{"horizon": 4, "samples": 200, "elites": 10, "gamma": 0.9, **keywords})


@pytest.mark.parametrize("method", ["cem", "shooting"])
def test_the_optimal_first_action_is_found_from_every_place(method):
    policy = planner(method)
    action, _ = policy.act(view(*BEST), policy.start(3), torch.tensor([0.1, 0.5, 0.9]))
    assert action.tolist() == list(BEST.values())


@pytest.mark.parametrize("method", ["cem", "shooting"])
def test_rows_plan_independently_and_a_seed_repeats(method):
    policy, noise = planner(method, samples=20, elites=4), torch.tensor([0.3, 0.7])
    both = policy.search(view(0, 1).dream, policy.start(2), noise)
    again = policy.search(view(0, 1).dream, policy.start(2), noise)
    alone = policy.search(view(1).dream, policy.start(1), noise[1:])
    assert all(torch.equal(a, b) for a, b in zip(both, again, strict=True))
    assert all(torch.equal(a[1:], b) for a, b in zip(both, alone, strict=True))


def test_a_plan_moves_on_by_one_step():
    policy = planner(horizon=3)
    plan = torch.eye(3).unsqueeze(0)  # 0, then 1, then 2
    after = policy.follow(None, plan)
    assert torch.allclose(after[0], torch.tensor([[0.0, 1, 0], [0, 0, 1], [1 / 3] * 3]))
    refit, _ = planner(iterations=1, samples=1, elites=1, keep=0.0).search(
        view(0).dream, torch.eye(3)[[0, 2, 1, 1]][None], torch.zeros(1)
    )
    assert refit[0].argmax(-1).tolist() == [0, 2, 1, 1]  # a search begins with the plan it is given


def test_returns_by_hand():
    futures = [step([1.0, 1.0], [0.0, 0.25]), step([2.0, 2.0], [1.0, 0.0]), step([7.0, 4.0], [0.0, 0.0])]
    expected = [1 + 0.5 * 2, 1 + 0.5 * 0.75 * 2 + 0.25 * 0.75 * 4]  # the step that ends counts, what follows does not
    assert torch.allclose(expected_returns(futures, 0.5), torch.tensor(expected))


@pytest.mark.parametrize(
    "keywords, words", [(dict(elites=300), "elites"), (dict(horizon=0), "horizon"), (dict(gamma=2.0), "gamma")]
)
def test_impossible_settings_are_refused(keywords, words):
    with pytest.raises(UserError, match=words):
        planner(**keywords)
    with pytest.raises(UserError, match="nothing to train"):
        planner().loss(None)


def test_score_plays_by_a_planner(tmp_path, capsys):
    out = tmp_path / "run"
    cfg, keys = config.compose(
        ["overlay=debug", f"out={out}", "device=cpu", "train.policy.start=99", "train.evaluate.every=99"]
    )
    commands.train(cfg, keys)
    capsys.readouterr()
    small = ["policy.horizon=2", "policy.samples=4", "policy.elites=2", "policy.iterations=1", "episodes=1", "device=cpu"]
    for method in ("cem", "shooting"):
        assert cli.main(["score", str(out), f"policy={method}", *small]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[0])["episodes"] == 1
    for word, told in (
        ("policy=cm", "cem or shooting"),
        ("policy.horizons=2", "policy.horizon"),
        ("policy.samples=x", "whole"),
    ):
        words = ["score", str(out), *(["policy=cem"] if word.startswith("policy.") else []), word]
        assert cli.main(words) == 2 and told in capsys.readouterr().err
