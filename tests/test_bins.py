"""State vectors as tokens: bins, the policy network that reads decoded vectors, and the overlay that brings both."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import steps_of

from tokenworld.action_space import Actions
from tokenworld.config import compose, schema
from tokenworld.envs.suited import compose_suited
from tokenworld.errors import UserError
from tokenworld.interfaces import Shapes
from tokenworld.policies.networks import RunningNorm, VectorNetwork
from tokenworld.tokenizers.bins import Bins
from tokenworld.training.build import temporary_run


def fitted(numbers: torch.Tensor, **keywords) -> Bins:
    """Bins fitted to numbers (n, M)."""
    steps = replace(steps_of(len(numbers), 1), obs=numbers[:, None, :, None, None])
    tokenizer = Bins(frame_shape=(numbers.shape[1], 1, 1), **keywords)
    tokenizer.prepare(lambda: (steps, None))
    return tokenizer.eval()


def decoded(tokenizer: Bins, numbers: torch.Tensor) -> torch.Tensor:
    steps = replace(steps_of(len(numbers), 1), obs=numbers[:, None, :, None, None])
    return tokenizer.decode(tokenizer.encode(steps))[:, 0, :, 0, 0]


NUMBERS = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.01, 1.0, 500.0])


@pytest.mark.parametrize("spacing", ["uniform", "quantile", "symlog"])
def test_numbers_of_any_size_come_back(spacing):
    tokenizer = fitted(NUMBERS, bins=256, spacing=spacing)
    limit = 0.1 if spacing == "quantile" else 0.05  # its last bins are wide
    error = (decoded(tokenizer, NUMBERS) - NUMBERS).square().mean(0).sqrt() / NUMBERS.std(0)
    assert (error < limit).all(), error
    assert (tokenizer.edges.diff(dim=1) > 0).all() and (tokenizer.centers.diff(dim=1) > 0).all()


def test_bins_of_one_number_are_not_those_of_another():
    tokenizer = fitted(NUMBERS, bins=64)
    width = tokenizer.centers[:, 1] - tokenizer.centers[:, 0]
    assert 50 < width[1] / width[0] < 200 and 250 < width[2] / width[1] < 1000


def test_quantiles_hold_equally_many():
    steps = replace(steps_of(len(NUMBERS), 1), obs=NUMBERS[:, None, :, None, None])
    codes = fitted(NUMBERS, bins=20, spacing="quantile").encode(steps).indices
    counts = torch.stack([torch.bincount(codes[..., m].flatten(), minlength=20) for m in range(3)])
    assert counts.min() > 150 and counts.max() < 250


def test_whole_numbers_are_kept_apart():
    numbers = torch.randint(0, 5, (1000, 1), generator=torch.Generator().manual_seed(1)).float()
    for spacing in ("uniform", "quantile", "symlog"):
        out = decoded(fitted(numbers, bins=64, spacing=spacing), numbers)
        assert (out.round() == numbers).all(), spacing


def test_what_lies_beyond_takes_the_last_bin_and_a_margin_leaves_room():
    numbers = torch.linspace(-1, 1, 100)[:, None]
    far = torch.tensor([[-50.0], [1.9], [50.0]])
    wide, tight = (decoded(fitted(numbers, bins=100, margin=margin), far).flatten().tolist() for margin in (0.5, 0.0))
    assert wide == pytest.approx([-1.98, 1.9, 1.98], abs=0.02) and tight == pytest.approx([-0.99, 0.99, 0.99], abs=0.01)


def test_a_constant_number_is_no_trouble():
    numbers = torch.full((50, 1), 3.25)
    for spacing in ("uniform", "quantile", "symlog"):
        assert torch.allclose(decoded(fitted(numbers, spacing=spacing), numbers), numbers, atol=1e-3)


def test_near_codes_have_near_vectors():
    codebook = Bins(frame_shape=(2, 1, 1), bins=64).codebook
    distance = torch.cdist(codebook, codebook)
    assert (distance[:, 1:] - distance[:, :-1])[0, :4].min() > 0 and (distance.diagonal(1) < 0.5).all()
    assert (distance + torch.eye(64) * 9).min() > 0.05, "no two codes share a vector"


@pytest.mark.parametrize("keywords, words", [
    (dict(frame_shape=(3, 8, 8)), "reads vectors of numbers"),
    (dict(frame_shape=(3, 1, 1), bins=1), "tokenizer.bins must be at least 2"),
    (dict(frame_shape=(3, 1, 1), margin=-1.0), "tokenizer.margin must be at least 0"),
])  # fmt: skip
def test_bins_that_cannot_be(keywords, words):
    with pytest.raises(UserError, match=words):
        Bins(**keywords)


def test_a_policy_sees_numbers_in_units_of_their_spread():
    torch.manual_seed(0)
    norm = RunningNorm(3).train()
    for _ in range(50):
        norm(NUMBERS[torch.randint(4000, (256,))] + torch.tensor([0.0, 5.0, 0.0]))
    out = norm.eval()(NUMBERS + torch.tensor([0.0, 5.0, 0.0]))
    assert out.mean(0).abs().max() < 0.2 and (out.std(0) - 1).abs().max() < 0.2
    before = norm.mean.clone()
    norm(NUMBERS + 100)
    assert torch.equal(norm.mean, before), "acting changes nothing"


def test_a_network_of_vectors_refuses_pictures():
    with pytest.raises(UserError, match="reads state vectors, got frames"):
        VectorNetwork(shapes=Shapes((3, 8, 8), Actions((2,)), (1, 1), 1, 8, 1, 8))


def test_an_environment_with_numbers_brings_the_overlay():
    assert compose_suited(["env.id=CartPole-v1"]).overlay == "vectors"
    spec = compose_suited(["env.id=CartPole-v1", "overlay=debug", "policy.network.hidden=20"])
    assert spec.overlay == "vectors,debug" and spec.cfg["policy"]["network"]["hidden"] == 20
    assert compose_suited(["env.id=MinAtar/Breakout-v1"]).overlay is None
    own = compose_suited(["env.id=CartPole-v1", "tokenizer._target_=tokenworld.tokenizers.nearest.NearestPatches"])
    assert own.overlay is None, "what the user chose stays"


def test_the_vectors_overlay_is_whole():
    spec = compose.compose(["overlay=vectors", "env.id=Pendulum-v1"])
    schema.check(spec.cfg)
    assert spec.cfg["tokenizer"]["_target_"].endswith("Bins") and "patch" not in spec.cfg["tokenizer"]


@pytest.mark.parametrize("words, said", [
    (["env.id=CartPole-v1", "tokenizer._target_=tokenworld.tokenizers.nearest.NearestPatches"],
     "env.id=CartPole-v1 has state vectors of 4 numbers, but the tokenizer"),
    (["overlay=vectors"], r"env.id=MinAtar/Breakout-v1 has pictures \(4, 10, 10\), but the tokenizer"),
])  # fmt: skip
def test_a_tokenizer_of_other_frames_is_refused(words, said):
    with pytest.raises(UserError, match=said):
        temporary_run(*words, "overlay=debug")


@pytest.mark.parametrize("id, size", [("Pendulum-v1", (3,)), ("CartPole-v1", (4,))])
def test_the_loop_trains_on_vectors(id, size):
    from tokenworld.training.run import run_training

    run = temporary_run(f"env.id={id}", "overlay=debug")
    run_training(run)
    assert run.world_model.shapes.frame == (*size, 1, 1) and run.world_model.shapes.frame_dtype == "float32"
    steps = run.replay.sample(4, 3, np.random.default_rng(0))[0]
    assert steps.obs.dtype == torch.float32 and steps.action.shape[2:] == run.world_model.shapes.actions.row
    codes = run.world_model.encode(steps)
    assert (run.world_model.frames(codes) - steps.obs).abs().median() < 0.1
