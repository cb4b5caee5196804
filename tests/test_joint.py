"""Training tokenizer and dynamics together: which gradients flow, which frames count, codes that are new after each update."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import rouse, steps_of

from tokenworld import DreamEnv
from tokenworld.config import compose, schema
from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, State
from tokenworld.nn import balanced_kl, compact, concat, kl_categorical, masked_mean, put, total_loss, uniform_mix
from tokenworld.training.build import temporary_run
from tokenworld.training.run import run_training
from tokenworld.world_model import WorldModel

FRAME = (2, 10, 10)
SMALL = ["overlay=debug", "tokenizer.channels=4"]


def model_of(*words) -> WorldModel:
    return WorldModel.from_recipe("storm", *SMALL, *words, frame=FRAME, actions=3).train()


def frames(B=3, T=6, first=((0, 0), (1, 3))):
    return steps_of(B, T, first=list(first), frame=FRAME)


def encoder_gradient(model, weights, steps) -> float:
    """The largest gradient in the encoder, of the losses that have a weight."""
    model.zero_grad()
    losses = model.joint_loss(steps)
    total = {name: weights.get(name, 0.0) for name in losses}
    total_loss(losses, total, steps, of_frames=model.tokenizer.weights).backward()
    grads = [p.grad.abs().max() for name, p in model.tokenizer.named_parameters() if "encoder" in name and p.grad is not None]
    return float(max(grads))


@pytest.mark.parametrize("loss", ["dyn", "rep", "reward", "termination", "pixels"])
def test_every_loss_reaches_the_encoder(loss):
    """The dynamics' losses alone shape the codes, also through what the backbone reads."""
    model = model_of("decoding.free_nats=0.0")
    with torch.no_grad():
        for head in (model.reward, model.termination):
            head.net[-1].weight.normal_()  # it begins at zero
    assert encoder_gradient(model, {loss: 1.0}, frames()) > 1e-6


def test_terminal_frames_are_reconstructed():
    """A terminal frame has no action, and its reconstruction counts: how it looks is what an end looks like."""
    steps = frames(first=((0, 0), (1, 3)))  # the frame before the border has no action
    assert not steps.acted[1, 2] and steps.valid.all()
    model = model_of().eval()
    only = {name: float(name == "pixels") for name in model.weights | model.tokenizer.weights}

    def loss(obs):
        with torch.no_grad():
            changed = replace(steps, obs=obs)
            return total_loss(model.joint_loss(changed), only, changed, of_frames=model.tokenizer.weights)

    other = steps.obs.clone()
    other[1, 2] = 255 - other[1, 2]
    assert loss(other) != loss(steps.obs)
    per_frame = torch.arange(18.0).view(3, 6)
    assert masked_mean(per_frame, steps, of_frames=True) == per_frame.mean()
    assert masked_mean(per_frame, steps) == per_frame[steps.acted].mean()


def test_codes_in_the_replay_follow_every_update():
    """After each epoch of joint training the codes of stored frames are those of the encoder as it is now."""
    run = temporary_run("recipe=storm", *SMALL, "seed=1", "device=cpu")
    run.phases["collect"](run)
    rows = np.arange(20)[None]
    before = run.codes(run.replay, rows)
    for _ in range(5):
        run.phases["dynamics"](run, lr=0.3)
    fresh = run.world_model.encode(run.replay.gather(rows))
    assert torch.equal(run.codes(run.replay, rows).indices, fresh.indices)
    assert not torch.equal(before.indices, fresh.indices)
    assert run.count["tokenizer"] == run.count["dynamics"] == 10


def test_one_optimizer_trains_both_and_comes_back(tmp_path):
    run = temporary_run("recipe=storm", *SMALL, "seed=1", "device=cpu")
    before = {name: x.clone() for name, x in run.world_model.named_parameters()}
    run_training(run)
    assert set(run.optimizers) == {"world", "policy"}
    still = [name for name, x in run.world_model.named_parameters() if torch.equal(x, before[name])]
    assert not still, still


def test_what_cannot_learn_together_is_refused():
    world = "train.dynamics._target_=tokenworld.training.phases.world.train_world"
    with pytest.raises(UserError, match="a NearestPatches cannot: choose another tokenizer"):
        temporary_run("recipe=quickstart", "overlay=debug", world)
    with pytest.raises(UserError, match="train.loop.shard"):
        temporary_run("recipe=storm", *SMALL, "train.loop.shard=true")
    apart = "train.dynamics._target_=tokenworld.training.phases.dynamics.train_dynamics"
    run = temporary_run("recipe=storm", *SMALL, apart, "seed=1")
    run.phases["collect"](run)
    with pytest.raises(UserError, match="set decoding.kl=null"):
        run.phases["dynamics"](run)


def test_a_recipe_lacks_phases():
    spec = compose.compose(["recipe=storm"])
    assert spec.phases == ("collect", "dynamics", "policy", "evaluate")
    alone = compose.compose(["recipe=storm", "~policy", "~train.policy"])
    schema.check(alone.cfg)
    assert alone.phases == ("collect", "dynamics", "evaluate")
    with pytest.raises(UserError, match="no section policy"):
        schema.check(compose.compose(["recipe=storm", "~policy"]).cfg)
    with pytest.raises(UserError, match="train.collect must be a section"):
        schema.check(compose.compose(["recipe=storm", "~train.collect"]).cfg)


def test_without_a_policy_a_run_ends_with_a_world_model(tmp_path):
    run = temporary_run("recipe=storm", *SMALL, "~policy", "~train.policy", "seed=1", "device=cpu")
    run_training(run)
    assert run.policy is None and run.count["dynamics"] > 0 and run.count["policy"] == 0


# ---------------------------------------------------------------------------------------------------------------- codes


def test_codes_are_indexed_and_moved_whole():
    codes = Codes(torch.arange(24).view(2, 4, 3), torch.rand(2, 4, 3, 5), torch.rand(2, 4, 3, 7))
    part = codes[:, 1:3]
    assert all(torch.equal(getattr(part, name), getattr(codes, name)[:, 1:3]) for name in ("indices", "vectors", "logits"))
    assert Codes(codes.indices)[0].vectors is None and codes.shape == (2, 4) and Codes(vectors=codes.vectors).shape == (2, 4)
    whole = concat([codes[:, :1], codes[:, 1:]])
    assert all(torch.equal(getattr(whole, name), getattr(codes, name)) for name in ("indices", "vectors", "logits"))
    assert compact(codes).vectors is None and compact(Codes(vectors=codes.vectors)).vectors is codes.vectors
    changed = put(codes, torch.tensor([1]), codes[:1])
    assert torch.equal(changed.indices, codes.indices[[0, 0]]) and torch.equal(changed.vectors, codes.vectors[[0, 0]])


def test_vectors_without_indices_are_kept_in_the_replay():
    """As they were made, bit for bit, encoded once per version, and in a checkpoint."""
    run = temporary_run("recipe=storm", *SMALL, "seed=1", "device=cpu")
    run.phases["collect"](run)
    replay, rows, calls = run.replay, np.arange(12).reshape(3, 4), []

    def encode(steps):
        calls.append(len(steps.obs))
        return Codes(vectors=steps.obs.flatten(2).float()[..., :6].unflatten(-1, (2, 3)) / 7)

    expected = replay.gather(rows).obs.flatten(2).float()[..., :6].unflatten(-1, (2, 3)) / 7
    codes = replay.codes(rows, encode, 50)
    assert codes.indices is None and torch.equal(codes.vectors, expected) and codes.vectors.shape == (3, 4, 2, 3)
    assert torch.equal(replay.codes(rows, encode, 50).vectors, expected) and sum(calls) == 12
    state = replay.code_state()
    replay.codes(rows, lambda steps: Codes(steps.obs.flatten(2)[..., :2].long()), 51)
    assert replay.load_code_state(state) and torch.equal(replay.codes(rows, encode, 50).vectors, expected) and sum(calls) == 12


# ------------------------------------------------------------------------------------------------------- KL divergences


def test_balanced_kl_by_hand():
    """Each direction moves its own side; free nats of each step, or of the mean over the steps that count."""
    torch.manual_seed(0)
    q, p = (torch.randn(2, 3, 4, 5, requires_grad=True) for _ in range(2))
    losses = balanced_kl(uniform_mix(q, 0.01), uniform_mix(p, 0.01), 0.0)
    by_hand = torch.distributions.kl_divergence(*(torch.distributions.Categorical(
        probs=x.softmax(-1) * 0.99 + 0.01 / 5) for x in (q, p))).sum(-1)  # fmt: skip
    assert torch.allclose(losses["dyn"], by_hand, atol=1e-5) and torch.allclose(losses["rep"], by_hand, atol=1e-5)
    for name, still, moved in (("dyn", q, p), ("rep", p, q)):
        grads = torch.autograd.grad(losses[name].sum(), (still, moved), retain_graph=True, allow_unused=True)
        assert grads[0] is None and grads[1].abs().max() > 1e-3
    level = float(by_hand.detach().median())
    free = balanced_kl(uniform_mix(q, 0.01), uniform_mix(p, 0.01), level)["dyn"]
    assert torch.allclose(free, by_hand.clamp(min=level), atol=1e-5)
    mask = torch.tensor([[True, True, False], [False, True, True]])
    mean = float(by_hand[mask].mean().detach())
    above, below = (balanced_kl(uniform_mix(q, 0.01), uniform_mix(p, 0.01), mean + d, mask)["dyn"] for d in (-0.01, 0.01))
    assert torch.allclose(above, by_hand, atol=1e-5) and torch.allclose(below, torch.full((2, 3), mean + 0.01))
    assert kl_categorical(q.log_softmax(-1), q.log_softmax(-1)).abs().max() < 1e-6


# ---------------------------------------------------------------------------------------------- recurrent states in a dream

RECURRENT = ["~backbone", "backbone={_target_: tokenworld.backbones.recurrent.Recurrent, dim: 32, context: 3}"]


@pytest.mark.parametrize("recipe, words", [("dreamer_v3", []), ("storm", RECURRENT)])
def test_dreams_restart_alike_whether_rows_are_replaced_or_read_again(recipe, words, monkeypatch):
    model = rouse(WorldModel.from_recipe(recipe, *SMALL, *words, frame=FRAME, actions=3), 0.05)
    starts = frames(6, 3, first=())

    def dreams(can_put):
        env = DreamEnv(model, starts, 4, horizon=3)
        seen = [env.reset(seed=5)[0]]
        if not can_put:
            monkeypatch.setattr(type(env._state), "put", State.put)
        for t in range(9):
            obs, reward, *_ = env.step(np.array([0, 1, 2, t % 3]))
            seen += [obs, reward]
        return seen

    assert all(np.allclose(a, b, atol=1) for a, b in zip(dreams(True), dreams(False), strict=True))


def test_policies_that_need_codes_without_the_dynamics_are_refused():
    memory = "policy.network._target_=tokenworld.policies.networks.PixelNetwork"
    with pytest.raises(UserError, match="HNetwork"):
        temporary_run("recipe=dreamer_v3", *SMALL, memory)
    model_free = "train.policy={_target_: tokenworld.training.phases.model_free.train_policy_model_free, batch: 4, horizon: 3}"
    codes = "policy.network._target_=tokenworld.policies.networks.FrameNetwork"
    run = temporary_run("recipe=dreamer_v3", *SMALL, "~train.policy", model_free, codes)
    run.phases["collect"](run)
    with pytest.raises(UserError, match="only along with h"):
        run.phases["policy"](run)
