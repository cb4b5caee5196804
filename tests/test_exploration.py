"""Random actions: how long each is held, and how they mix with a policy's."""

import numpy as np
import pytest
import torch

from tokenworld.cli import main as cli
from tokenworld.exploration import RandomActions, random_act
from tokenworld.training import build


def runs(actions):
    """The lengths of runs of equal actions, of actions (T, N); the last of each game is cut, and left out."""
    ends = [torch.cat([(a[1:] != a[:-1]).nonzero()[:, 0] + 1, torch.tensor([len(a)])]) for a in actions.T]
    return torch.cat([torch.diff(e, prepend=torch.zeros(1, dtype=torch.long))[:-1] for e in ends])


def test_random_act_is_uniform():
    act = random_act(4, np.random.default_rng(0))
    actions = act(torch.zeros(8000, 1, 1, 1, dtype=torch.uint8), torch.zeros(8000, dtype=torch.bool))
    counts = np.bincount(actions.numpy(), minlength=4)
    assert actions.dtype == torch.int64 and len(counts) == 4 and abs(counts - 2000).max() < 150


def test_random_play_holds_actions_for_steps_of_a_zeta_distribution():
    act = random_act(1000, np.random.default_rng(0), zeta=2.0)  # of so many actions no two in a row are the same
    lengths = runs(torch.stack([act(None, torch.zeros(64)) for _ in range(500)]))
    total = np.pi**2 / 6
    for n in (1, 2, 3):
        assert (lengths == n).float().mean().item() == pytest.approx(n**-2 / total, abs=0.02)
    assert lengths.max() > 100


def test_random_play_without_zeta_draws_one_action_per_step():
    act = random_act(5, np.random.default_rng(3))
    drawn = np.random.default_rng(3)
    assert all(act(None, torch.zeros(4)).tolist() == drawn.integers(5, size=4).tolist() for _ in range(10))


def test_a_random_action_among_chosen_ones_begins_with_epsilon_and_is_held():
    explore = RandomActions(np.random.default_rng(0), 1000, epsilon=0.01, zeta=3.0)
    actions = np.stack([explore(np.full(64, -1)) for _ in range(2000)])  # (T, N), -1 where the policy chooses
    held = actions >= 0
    begins = held & ~np.concatenate([np.zeros((1, 64), bool), actions[1:] == actions[:-1]])
    assert begins.sum() / (~held | begins).sum() == pytest.approx(0.01, rel=0.1)
    mean = (np.arange(1, 10**6) ** -2.0).sum() / (np.arange(1, 10**6) ** -3.0).sum()  # steps of an action, zeta = 3
    assert held.sum() / begins.sum() == pytest.approx(mean, rel=0.1)


def test_without_zeta_a_random_action_lasts_one_step():
    explore = RandomActions(np.random.default_rng(0), 1000, epsilon=0.05)
    held = np.stack([explore(np.full(64, -1)) for _ in range(1000)]) >= 0
    assert held.mean() == pytest.approx(0.05, rel=0.1)
    assert (held[1:] & held[:-1]).mean() == pytest.approx(0.05**2, rel=0.3)  # independent of the step before


def test_epsilon_zero_leaves_the_chosen_actions():
    explore = RandomActions(np.random.default_rng(0), 4, epsilon=0.0, zeta=2.0)
    assert all((explore(np.arange(4)) == np.arange(4)).all() for _ in range(100))


@pytest.mark.parametrize("zeta, least, most", [(1.5, 0.6, 1.0), (None, 0.0, 0.35)])
def test_random_actions_are_held_while_a_policy_plays_too(zeta, least, most):
    """With epsilon 1 all actions are random ones; of six single ones every sixth is the same as the one before."""
    run = build.temporary_run("overlay=debug", "device=cpu")
    run.count["policy"] = 1  # as after the first training of the policy
    run.phases["collect"](run, False, first_steps=600, epsilon=1.0, zeta=zeta)
    steps = run.replay.gather(np.arange(run.replay.rows)[None])
    follows = steps.acted[0, 1:] & steps.acted[0, :-1]
    same = (steps.action[0, 1:] == steps.action[0, :-1])[follows].float().mean().item()
    assert follows.sum() > 200 and least < same < most


@pytest.mark.parametrize("zeta", ["1.0", "-2", "0.5"])
def test_an_impossible_zeta_is_refused_before_anything_is_created(zeta, tmp_path, capsys):
    assert cli.main(["train", "overlay=debug", f"train.collect.zeta={zeta}", f"out={tmp_path / 'run'}"]) == 2
    assert "train.collect.zeta must be above 1, got" in capsys.readouterr().err and not (tmp_path / "run").exists()
