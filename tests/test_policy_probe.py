"""Tier C: policies that are made of one, planners that find what is best, and a run whose policies are ranked."""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tokenworld.action_space import of
from tokenworld.cli import main as cli
from tokenworld.evaluation.probes import policies as probe
from tokenworld.evaluation.report import specs
from tokenworld.evaluation.report.files import read
from tokenworld.interfaces import Codes, View
from tokenworld.world_model import WorldModel

VIEW = View(Codes(torch.zeros(1, 1, 1, dtype=torch.int64), torch.zeros(1, 1, 1, 1)), None, lambda: None)


def test_mixed_policies_act_at_random_in_their_share():
    noise = (torch.arange(40_000) + 0.5) / 40_000
    for share in (0.0, 0.3, 1.0):
        action, _ = probe.Mixed(probe.Constant(2), share, 4).act(VIEW, None, noise.unsqueeze(1))
        expected = np.full(4, share / 4) + (1 - share) * np.eye(4)[2]
        assert np.bincount(action.numpy(), minlength=4) / 40_000 == pytest.approx(expected, abs=1e-3)


def test_mixing_leaves_the_policy_its_own_whole_noise():
    """What the mixed policy draws when it acts itself is uniform again."""
    drawn = []

    class Spy(probe.Constant):
        def act(self, view, carry, noise, temperature=1.0):
            drawn.append(noise[:, 0])
            return super().act(view, carry, noise)

    noise = (torch.arange(10_000) + 0.5) / 10_000
    probe.Mixed(Spy(0), 0.25, 3).act(VIEW, None, noise.unsqueeze(1))
    own = drawn[0][noise >= 0.25]
    assert own.min() < 1e-3 and own.max() > 0.999 and own.mean() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("actions", [2, 3, 6, 18])
def test_there_are_enough_policies_to_rank(actions):
    for policy in (None, probe.Constant(0)):
        found = probe.policies_of(policy, actions)
        assert len(found) >= min(probe.POLICIES, 4 * actions + 1) and "random" in found
        assert any(name.startswith("policy") for name in found) == (policy is not None)


class Walk:
    """A simulator without chance: 3 to the right is a reward and the end, 2 to the left the end."""

    actions = 3

    def reset(self, seed):
        self.at = 0
        return np.zeros((1, 1, 1), np.uint8)

    def step(self, a):
        self.at += (-1, 0, 1)[a]
        return np.zeros((1, 1, 1), np.uint8), float(self.at == 3), self.at in (3, -2)

    def snapshot(self):
        return self.at

    def restore(self, x):
        self.at = x

    def reseed(self, k):
        pass


def test_the_planner_plans_in_the_simulator_and_leaves_it_as_it_was():
    game, rng = Walk(), np.random.default_rng(0)
    game.reset(0)
    choose = probe._in_simulator(game, rng)
    for at in (2, 1):
        game.at = at
        assert choose(None) == 2 and game.at == at
    game.at = -1  # too far to win in every sequence, but not to live
    assert choose(None) != 0


@dataclass
class Row:
    at: torch.Tensor

    def select(self, index):
        return Row(self.at[index])


class Dream:
    """The same walk as a world model."""

    shapes, device = SimpleNamespace(codes=1, actions=of(3)), torch.device("cpu")
    decoding, noise_size = SimpleNamespace(noise_size=1, has_posterior=False), 3
    split_noise, outcome = WorldModel.split_noise, WorldModel.outcome

    def step(self, state, action, noise):
        at = state.at + action - 1
        won, lost = at == 3, at == -2
        reward, terminated = SimpleNamespace(mean=won.float()), SimpleNamespace(mean=(won | lost).float())
        return SimpleNamespace(reward=reward, terminated=terminated), Row(at)


def test_the_planner_plans_in_the_model():
    rng, model = np.random.default_rng(0), Dream()
    assert probe.shoot(model, Row(torch.tensor([2])), rng) == 2
    assert probe.shoot(model, Row(torch.tensor([1])), rng) == 2
    assert probe.shoot(model, Row(torch.tensor([-1])), rng) != 0


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("tierc") / "run"
    assert cli.main(["train", "overlay=debug", f"out={out}", "device=cpu", "seed=0", "train.collect.held_out=2"]) == 0
    return out


def test_the_command_ranks_policies(run, tmp_path, monkeypatch, capsys):
    for name, small in (("EPISODES", 4), ("HORIZON", 8), ("PLANNED", 3), ("CANDIDATES", 4), ("DEPTH", 3)):
        monkeypatch.setattr(probe, name, small)
    played, measure = [], probe.policy_values

    def watched(*words, **keywords):
        values = measure(*words, **keywords)
        played.append(values.names)
        return values

    monkeypatch.setattr(probe, "policy_values", watched)
    words = ["evaluate", str(run), "tier=C", "states=2", "frames=100", "device=cpu", "metrics=M12,planning.optimism"]
    assert cli.main([*words, f"out={tmp_path / 'report'}"]) == 0
    report, _ = read(tmp_path / "report")
    found = {metric["id"]: metric for metric in report["metrics"]}
    ranks = ("spearman", "kendall", "regret", "value_error", "mmrv", "tertile_spearman")
    assert set(found) == {f"policies.{name}" for name in ranks} | {"planning.optimism"}
    assert all(metric["experimental"] and metric["tier"] == "C" for metric in found.values())
    assert found["planning.optimism"]["n_samples"] == 6 and report["capabilities"]["C"] == "policies that play"
    assert cli.main([*words, f"policies={run}", f"out={tmp_path / 'more'}"]) == 0
    assert played[1] == (str(run), *played[0])
    capsys.readouterr()
    for policy, tier, told in (("/nowhere", "C", "/nowhere is not a run or a model"), (run, "B", "add tier=C")):
        asked = [word.replace("tier=C", f"tier={tier}") for word in words]
        assert cli.main([*asked, f"policies={policy}", f"out={tmp_path / 'other'}"]) == 2
        assert told in capsys.readouterr().err
    measured = len(played)
    assert cli.main([*words[:-1], "metrics=M77", f"out={tmp_path / 'other'}"]) == 2
    assert "metrics: got M77, expected a metric id. Did you mean M7?" in capsys.readouterr().err
    assert len(played) == measured and not (tmp_path / "other").exists()  # at once, before anything is measured


def test_what_is_asked_for_and_not_measured_is_said(run, tmp_path):
    assert cli.main(["evaluate", str(run), "frames=100", "metrics=code_length.bits,M7", f"out={tmp_path / 'r'}",
                     "device=cpu"]) == 0
    found = {metric["id"]: metric for metric in read(tmp_path / "r")[0]["metrics"]}
    effects = {spec.id for spec in specs.specs() if spec.alias.startswith("M7.")}
    assert set(found) == {"code_length.bits", *effects} and found["code_length.bits"]["value"] is not None
    assert all(found[id]["status"] == "skipped" and "tier=B" in found[id]["reason"] for id in effects)


def test_real_and_dreamt_returns_stop_at_an_end():
    """A world whose every step rewards, in which one row ends with its third step and one with its fifth, in both."""
    last = np.array([3, 5])

    class Env:
        num_envs, t = 2, 0

        def reset(self, seed=None):
            self.t = 0
            return np.zeros((2, 1, 1, 1), np.uint8), {}

        def step(self, action):
            self.t += 1
            end = last == self.t
            return np.zeros((2, 1, 1, 1), np.uint8), np.full(2, 5.0), end, np.zeros(2, bool), {}

    codes = Codes(torch.zeros(2, 1, 1, dtype=torch.int64), torch.zeros(2, 1, 1, 1))

    class Ending(Dream):
        def encode(self, steps):
            return codes

        def start(self, steps):
            return SimpleNamespace(codes=codes, h=torch.zeros(2, 1)), 0

        def step(self, state, action, noise):
            ones = torch.ones(2)
            reward = SimpleNamespace(mean=ones, sample=lambda noise: ones)
            ends = SimpleNamespace(sample=lambda noise: torch.from_numpy(last == state + 1))
            return SimpleNamespace(codes=codes, h=torch.zeros(2, 1), reward=reward, terminated=ends), state + 1

    assert probe._played(Ending(), probe.Constant(0), Env(), 0).tolist() == [3, 5]
    starts = torch.zeros(2, 1, 1, 1, dtype=torch.uint8)
    assert probe._imagined_returns(Ending(), probe.Constant(0), starts, 0).tolist() == [3, 5]
