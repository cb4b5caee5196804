"""Planners in an exact tabular world, whose optimum is known."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from conftest import shapes

from tokenworld.cli import main as cli
from tokenworld.cli.verbs import train as train_verb
from tokenworld.config import compose
from tokenworld.errors import UserError
from tokenworld.interfaces import View
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


@dataclass
class Dream:
    place: torch.Tensor
    noise_size: int = 3

    def __call__(self, actions, noise):
        assert noise.shape == (*actions.shape, self.noise_size)
        return dream(self.place, actions, noise)


def view(*places):
    return View(None, None, None, Dream(torch.tensor(places)))


def planner(method="cem", **keywords):
    return Planner(shapes=shapes(), method=method, **{"horizon": 4, "samples": 200, "elites": 10, "gamma": 0.9, **keywords})


@pytest.mark.parametrize("method", ["cem", "shooting"])
def test_the_optimal_first_action_is_found_from_every_place(method):
    policy = planner(method)
    action, _ = policy.act(view(*BEST), policy.start(3), torch.tensor([[0.1], [0.5], [0.9]]))
    assert action.tolist() == list(BEST.values())


@pytest.mark.parametrize("method", ["cem", "shooting"])
def test_rows_plan_independently_and_a_seed_repeats(method):
    policy, noise = planner(method, samples=20, elites=4), torch.tensor([0.3, 0.7])
    both = policy.search(view(0, 1).dream, policy.start(2), noise)
    again = policy.search(view(0, 1).dream, policy.start(2), noise)
    alone = policy.search(view(1).dream, policy.start(1), noise[1:])
    assert all(torch.equal(a, b) for a, b in zip(both, again, strict=True))
    assert all(torch.equal(a[1:], b) for a, b in zip(both, alone, strict=True))


class Spy:
    """A dream that remembers what it was asked and pays random sums."""

    noise_size = shapes().codes

    def __init__(self, seed=0):
        self.asked, self.returns, self.g = [], [], torch.Generator().manual_seed(seed)

    def __call__(self, actions, noise):
        B, S, H = actions.shape
        assert noise.shape == (B, S, H, self.noise_size)
        rewards = torch.rand(H, B * S, generator=self.g)
        self.asked.append((actions, noise))
        self.returns.append(rewards.sum(0).view(B, S))
        return [SimpleNamespace(reward=Mean(reward), terminated=Mean(torch.zeros(B * S))) for reward in rewards]


def test_every_refit_by_hand():
    """Each iteration: shares of the elites' actions, mixed with the last distribution; the best of all iterations is told."""
    B, S, n, keep = 4, 12, 3, 0.25
    policy, dream = planner(samples=S, elites=n, keep=keep, iterations=4, gamma=1.0), Spy()
    plan, best = policy.search(dream, policy.start(B), torch.tensor([0.2, 0.4, 0.6, 0.8]))
    assert len(dream.asked) == 4
    expected = torch.full((B, 4, 3), 1 / 3)
    for (actions, _), returns in zip(dream.asked, dream.returns, strict=True):
        for b in range(B):
            elite = sorted(range(S), key=lambda s, b=b, returns=returns: -returns[b, s])[:n]
            for t in range(4):
                for a in range(3):
                    share = sum(actions[b, s, t].item() == a for s in elite) / n
                    expected[b, t, a] = keep * expected[b, t, a] + (1 - keep) * share
    assert torch.allclose(plan, expected, atol=1e-6)
    for b in range(B):
        tried = [(returns[b, s].item(), actions[b, s].tolist())
                 for (actions, _), returns in zip(dream.asked, dream.returns, strict=True) for s in range(S)]  # fmt: skip
        assert best[b].tolist() == max(tried)[1]
    assert any(dream.returns[-1][b].max() < max(r[b].max() for r in dream.returns) for b in range(B))


def test_shooting_draws_uniformly_once():
    policy, dream = planner("shooting", samples=3000, iterations=3), Spy()
    policy.search(dream, policy.start(1), torch.tensor([0.4]))
    ((actions, noise),) = dream.asked
    assert torch.allclose(torch.bincount(actions.flatten()) / actions.numel(), torch.full((3,), 1 / 3), atol=0.02)
    for k in range(noise.shape[-1]):  # the luck of the dream has nothing to do with the actions
        agree = ((noise[..., k] * 3).long() == actions).float().mean()
        assert abs(agree - 1 / 3) < 0.03


def test_the_seed_of_a_search_matters_and_its_plan_is_carried_on():
    policy, drawn = planner(samples=20, elites=4), []
    for seed in (0.3, 0.31):
        dream, noise = Spy(), torch.tensor([[seed]])
        action, carry = policy.act(View(None, None, None, dream), policy.start(1), noise)
        plan, _ = policy.search(Spy(), policy.start(1), noise[:, 0])
        assert action.item() == plan[0, 0].argmax() and torch.equal(carry[:, :-1], plan[:, 1:])
        drawn.append(dream.asked[0])
    assert all(not torch.equal(one, other) for one, other in zip(*drawn, strict=True))


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
    "keywords, words",
    [(dict(elites=300), "elites"), (dict(horizon=0), "horizon"), (dict(gamma=2.0), "gamma"), (dict(keep=1.0), "keep")],
)
def test_impossible_settings_are_refused(keywords, words):
    with pytest.raises(UserError, match=words):
        planner(**keywords)
    with pytest.raises(UserError, match="no weights to train"):
        planner().loss(None)


def test_score_plays_by_a_planner(tmp_path, capsys):
    out = tmp_path / "run"
    spec = compose.compose(
        ["overlay=debug", f"out={out}", "device=cpu", "train.policy.start=99", "train.evaluate.every=99"]
    )
    train_verb.run(spec)
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
