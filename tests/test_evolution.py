"""CMA-ES against the package `cma`, the linear controller whose parameters are its carry, and the phase that evolves it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import close, rouse

from tokenworld.action_space import Actions
from tokenworld.cli import main as cli
from tokenworld.config import compose, saved
from tokenworld.errors import UserError
from tokenworld.evaluation.probes.policies import Mixed
from tokenworld.imagination import imagine
from tokenworld.interfaces import Codes, Shapes, View
from tokenworld.policies.evolution import CMAES
from tokenworld.policies.linear import LinearController
from tokenworld.storage import checkpoint
from tokenworld.training.build import temporary_run
from tokenworld.training.phases import evolution
from tokenworld.training.resume import open_run

RECIPE = ["recipe=world_models", "overlay=debug", "device=cpu"]
LEARNS = ["train.collect.first_steps=400", "train.dynamics.updates=30", "train.dynamics.batch=16", "train.dynamics.warmup=0"]
SHAPES = Shapes((1, 8, 8), Actions((3,)), (1, 1), 1, 0, 4, 6)


def bowl(x):
    """(..., n) -> (...): an ellipsoid, lowest at 1."""
    scale = 10 ** torch.linspace(0, 1.5, x.shape[-1], dtype=torch.float64)
    return (scale * (x - 1).square()).sum(-1)


@pytest.mark.parametrize("n, population", [(5, 8), (20, 12), (4, 30), (2, 7), (300, 16)])
def test_twenty_generations_are_those_of_the_package(n, population):
    """The same normal numbers, the same samples, mean, step size, covariance and paths. (300, 16): the covariance is decomposed
    every fourth generation only. The package turns normal numbers by its eigenvectors, whose signs are no one's choice."""
    cma = pytest.importorskip("cma")
    own, rng, now = CMAES(n, 0.3), np.random.default_rng(1), {}
    theirs = cma.CMAEvolutionStrategy(np.zeros(n), 0.3, {
        "CMA_active": False, "popsize": population, "seed": 1, "verbose": -9,
        "randn": lambda *size: now["normal"] @ theirs.sm.B, "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA,
    })  # fmt: skip
    theirs.sm.C, theirs.sm.B, theirs.sm.D = np.eye(n), np.eye(n), np.ones(n)  # it begins with a little of chance in it
    for _ in range(20):
        now["normal"] = rng.normal(size=(population, n))
        samples, expected = own.ask(torch.from_numpy(now["normal"])), np.array(theirs.ask())
        assert np.allclose(samples, expected, atol=1e-7)
        theirs.tell(list(expected), [float(bowl(torch.from_numpy(x))) for x in expected])
        own.update(samples, -bowl(samples))
        for mine, other in ((own.mean, theirs.mean), (own.sigma, theirs.sigma), (own.covariance, theirs.sm.C),
                            (own.path, theirs.pc), (own.path_sigma, theirs.adapt_sigma.ps)):  # fmt: skip
            assert np.allclose(mine, other, rtol=1e-7, atol=1e-7)
    assert (own.decomposed == own.generation) and own.generation == 20 and abs(theirs.sm.C - np.eye(n)).max() > 1e-4


def test_samples_have_its_mean_and_covariance():
    torch.manual_seed(0)
    search, root = CMAES(3, 0.5), torch.randn(3, 3, dtype=torch.float64)
    search.covariance.copy_(root @ root.T)
    search.mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    search._decompose()
    samples = search.ask(torch.randn(200_000, 3))
    assert samples.dtype == torch.float64 and close(samples.mean(0), search.mean, 0.02)
    assert close(samples.T.cov(), 0.25 * root @ root.T, 0.03)


def generations(search, count, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        samples = search.ask(torch.randn(8, search.n, generator=generator, dtype=torch.float64))
        search.update(samples, -bowl(samples).round())  # with ties
    return search


def test_a_checkpoint_resumes_the_search_bit_for_bit(tmp_path):
    whole = generations(generations(CMAES(300, 0.3), 7, 0), 7, 1)
    checkpoint.save(tmp_path / "checkpoint", {"policy": generations(CMAES(300, 0.3), 7, 0)}, {})
    again = CMAES(300, 0.3)
    again.load_state_dict(checkpoint.load(tmp_path / "checkpoint")[0]["policy"])
    generations(again, 7, 1)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())
    assert not torch.equal(whole.mean, generations(CMAES(300, 0.3), 14, 0).mean) and whole.generation == 14


def test_it_finds_the_bottom():
    search = CMAES(6, 0.5)
    for seed in range(150):
        samples = search.ask(torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)))
        search.update(samples, -bowl(samples))
    assert bowl(search.mean) < 1e-6 and search.sigma < 1e-3


# ----------------------------------------------------------------------------------------------------------- controller


def view_of(B, seed=0):
    g = torch.Generator().manual_seed(seed)
    z, h = torch.randn(B, 1, 1, 4, generator=g), torch.randn(B, 6, generator=g)
    return View(Codes(vectors=z), h, None), torch.cat([z.flatten(1), h], -1)


def test_each_row_acts_by_the_parameters_in_its_carry():
    policy = LinearController(shapes=SHAPES)
    view, x = view_of(50)
    carry = torch.randn(50, 33)
    action, after = policy.act(view, carry, torch.rand(50, 0))
    by_hand = [(carry[b, 3:].view(10, 3).T @ x[b] + carry[b, :3]).argmax().item() for b in range(50)]
    assert action.tolist() == by_hand and action.dtype == torch.int64 and torch.equal(after, carry) and len(set(by_hand)) == 3
    assert torch.equal(policy.act(view, carry, torch.rand(50, 0), temperature=0.0)[0], action)
    assert policy.follow(view, carry) is carry


def test_a_continuous_part_is_the_tanh_of_its_output():
    policy = LinearController(shapes=replace(SHAPES, actions=Actions((3,), ((-2.0, 4.0),))))
    view, x = view_of(50)
    carry = torch.randn(50, 44)
    action, _ = policy.act(view, carry, torch.rand(50, 0))
    out = torch.stack([carry[b, 4:].view(10, 4).T @ x[b] + carry[b, :4] for b in range(50)])
    assert torch.equal(action[:, 0], out[:, :3].argmax(-1).float())
    assert torch.allclose(action[:, 1], 1 + 3 * out[:, 3].tanh(), atol=1e-5)


def test_it_starts_with_the_mean_of_its_search():
    policy = LinearController(shapes=SHAPES, sigma=0.7)
    policy.search.mean.normal_()
    assert torch.equal(policy.start(4), policy.search.mean.float().expand(4, 33)) and policy.search.sigma == 0.7
    assert not list(policy.parameters()) and policy.weights == {}


def test_a_policy_without_noise_is_mixed_with_random_actions():
    policy = LinearController(shapes=SHAPES)
    policy.search.mean[1] = 5.0  # a bias: always action 1
    mixed = Mixed(policy, 0.5, 3)
    action, _ = mixed.act(view_of(6000)[0], mixed.start(6000), torch.rand(6000, mixed.noise_size))
    share = torch.bincount(action, minlength=3) / 6000
    assert close(share, torch.tensor([1 / 6, 4 / 6, 1 / 6]), 0.03)


def test_what_has_no_search_or_no_losses_is_refused():
    for word in ("policy={_target_: tokenworld.policies.actor_critic.ActorCritic}", "policy.sigma=0"):
        with pytest.raises(UserError, match="got a ActorCritic|policy.sigma must be positive"):
            temporary_run(*RECIPE, "~policy", word) if "{" in word else temporary_run(*RECIPE, word)
    with pytest.raises(UserError, match="no losses to learn from by gradient.*evolve_policy"):
        temporary_run(*RECIPE, "~train.policy", "train.policy={_target_: tokenworld.training.phases.policy.train_policy}")
    with pytest.raises(UserError, match="multiple of train.policy.population, got 10 and 4: choose e.g. 8"):
        temporary_run(*RECIPE, "train.policy.batch=10", "train.policy.population=4")
    with pytest.raises(UserError, match="train.policy.population must be at least 2"):
        temporary_run(*RECIPE, "train.policy.population=1")
    with pytest.raises(UserError, match="reads vectors"):
        LinearController(shapes=replace(SHAPES, vocab_size=5))
    with pytest.raises(UserError, match="is evolved"):
        LinearController(shapes=SHAPES).loss(None)


# ---------------------------------------------------------------------------------------------------------------- phase


@pytest.fixture
def collected():
    """A run with random play in its replay, and an untrained world model whose rewards and ends depend on h."""
    run = temporary_run(*RECIPE, "seed=3", "train.collect.first_steps=300")
    run.phases["collect"](run)
    rouse(run.world_model.reward), rouse(run.world_model.termination)
    return run


def test_a_generation_is_one_rollout_with_common_starts_and_noise(collected, monkeypatch):
    run, seen = collected, []

    def watched(model, prediction, state, policy, horizon, noise, carry, *flags):
        dream = imagine(model, prediction, state, policy, horizon, noise, carry, *flags)
        seen.append((prediction, noise, carry, dream))
        return dream

    learned = []
    monkeypatch.setattr(evolution, "imagine", watched)
    monkeypatch.setattr(CMAES, "update", lambda self, samples, fitness: learned.append((samples, fitness)))
    before = run.count["policy"], run.count["imagined_steps"]
    settings = dict(batch=32, population=4, horizon=5, burn_in=2, expected_reward=False, expected_end=False)
    run.phases["policy"](run, start=0, updates=2, **settings)
    assert len(seen) == 2 and (run.count["policy"], run.count["imagined_steps"]) == (before[0] + 2, before[1] + 2 * 32 * 5)
    for (prediction, noise, carry, dream), (samples, fitness) in zip(seen, learned, strict=True):
        for x in (prediction.codes.vectors, prediction.h, noise, dream.codes.vectors[:, 0]):
            rows = x.unflatten(0, (4, 8))  # samples, rollouts
            assert all(torch.equal(rows[0], rows[s]) for s in range(4)) and len(rows[0].flatten(1).unique(dim=0)) > 1
        assert torch.equal(carry.view(4, 8, -1), samples.float().unsqueeze(1).expand(-1, 8, -1))
        gained = (dream.reward * dream.alive[:, :-1]).sum(1)
        assert not dream.alive.all() and len(fitness.unique()) > 1
        assert close(fitness, torch.stack([gained[8 * s : 8 * s + 8].mean() for s in range(4)]))
    assert not torch.equal(seen[0][1], seen[1][1]) and not torch.equal(learned[0][0], learned[1][0])


class Pays(torch.nn.Module):
    """The reward is a number that the last action moves."""

    def forward(self, h):
        return type("Reward", (), {"mean": h[..., 0]})()


def test_a_controller_learns_what_pays_in_the_dream(collected):
    run = collected
    run.world_model.reward = Pays()
    with torch.no_grad():
        run.world_model.decoding.action.table.weight.mul_(5)
    policy, settings = run.policy, dict(batch=64, population=16, horizon=6, burn_in=2, expected_reward=True)

    def dreamed():
        steps, rows = run.replay.sample(64, 2, np.random.default_rng(0), ends="acted")
        noise = torch.rand(64, 6, run.world_model.noise_size, generator=torch.Generator().manual_seed(0))
        begun = run.world_model.start(steps, run.codes(run.replay, rows))
        dream = imagine(run.world_model, *begun, policy, 6, noise, None, True)
        return (dream.reward * dream.alive[:, :-1]).sum(1)

    before = dreamed()
    run.phases["policy"](run, start=0, updates=25, **settings)
    gain = dreamed() - before
    assert gain.mean() > 5 * gain.std() / 8 and gain.mean() > 0.2 * before.std(), (before.mean(), gain.mean(), gain.std())


def test_an_evolution_that_has_not_begun_does_nothing(collected):
    before = collected.policy.search.mean.clone()
    collected.phases["policy"](collected, start=5)
    assert torch.equal(before, collected.policy.search.mean)


def test_dreams_that_are_no_numbers_are_refused(collected):
    class Broken(torch.nn.Module):
        def forward(self, h):
            return type("Reward", (), {"mean": h[..., 0] * float("nan")})()

    collected.world_model.reward = Broken()
    with pytest.raises(UserError, match="imagined rewards are not finite"):
        collected.phases["policy"](collected, start=0, expected_reward=True)


def test_controllers_of_several_temperatures_from_one_world_model(tmp_path, capsys):
    """A temperature is no part of what was learned, so a loaded decoding takes another one; its other settings it does not."""
    world = tmp_path / "world"
    words = ["train.evaluate.frames=0", "train.evaluate.pictures=0", "seed=3"]
    assert cli.main(["train", *RECIPE, *words, *LEARNS, f"out={world}"]) == 0
    dreamed = []
    for temperature in (0.1, 1.3):
        out = tmp_path / f"at{temperature}"
        more = [f"load.world_model={world}", f"decoding.temperature={temperature}", f"out={out}"]
        assert cli.main(["train", "policy", *RECIPE, *words, *more]) == 0, capsys.readouterr().err
        assert saved.load(out).cfg["decoding"]["temperature"] == temperature
        run = open_run(str(out), {})
        assert run.world_model.decoding.temperature == temperature and run.count["policy"] == 6
        assert json.loads((out / "summary.json").read_text())["eval"]["return_mean"] is not None
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        dreamed.append([line["dream_return"] for line in lines if "dream_return_best" in line])
    assert len(dreamed[0]) == 3 and dreamed[0] != dreamed[1]
    kept = open_run(str(world), {}).world_model.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in run.world_model.state_dict().items())
    assert cli.main(["train", "policy", *RECIPE, f"load.world_model={world}", "decoding.floor=0.2"]) == 2
    assert "decoding.floor=0.2 contradicts" in capsys.readouterr().err
    assert compose.compose(RECIPE).cfg["decoding"]["temperature"] == 1.15
