"""The composed world model: its losses and masks, state as a value, and what of the real world reaches a policy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import close, discover, network, rouse, steps_of

from tokenworld import optim
from tokenworld.action_space import Actions
from tokenworld.actions import ActionTable
from tokenworld.backbones.gpt import GPT
from tokenworld.config import compose
from tokenworld.decoding.mixture import Mixture
from tokenworld.heads import SignReward, Termination
from tokenworld.imagination import Actor, burn_in_policy
from tokenworld.interfaces import Codes, Shapes
from tokenworld.nn import logprob, masked_mean, sample_categorical, total_loss
from tokenworld.policies.actor_critic import ActorCritic
from tokenworld.tokenizers.patch import PatchTokenizer
from tokenworld.training import resume
from tokenworld.world_model import WorldModel, frames_as_steps

FRAME = (1, 4, 6)  # 2 x 3 patches
B, T = 3, 11
FIRST = [(0, 0), (1, 5), (2, 1), (2, 9)]


# with codes that have indices
OF_INDICES = [p for p in discover("decoding") if not p.make.has_posterior and p.make is not Mixture]


@pytest.fixture(params=OF_INDICES, ids=lambda part: part.name.split(".")[-1])
def model(request):
    tokenizer = PatchTokenizer(frame_shape=FRAME, patch=2, vocab_size=8, dim=8, hidden=16)
    shapes = Shapes(FRAME, Actions((3,)), tokenizer.grid, tokenizer.K, 8, 8, 16)
    parts = dict(
        tokenizer=tokenizer,
        backbone=GPT(layers=2, heads=2, dim=16, context=4),
        decoding=request.param(shapes=shapes, action=ActionTable(actions=3, dim=16)),
        reward=SignReward(dim=16, hidden=8),
        termination=Termination(dim=16, hidden=8),
    )
    return rouse(WorldModel(**parts))


def real(first=FIRST, rows=B, seed=0):
    return steps_of(rows, T, first=first, frame=FRAME, seed=seed)


def loss_of(model, steps):
    return total_loss(model(steps), model.weights, steps)


# --------------------------------------------------------------------------------------------------------------- losses


def test_losses_and_their_weights(model):
    steps = real()
    losses = model(steps)
    assert losses.keys() == model.weights.keys()
    assert losses["reward"].shape == losses["termination"].shape == (B, T - model.decoding.lookahead)
    for missing in model.weights:
        with pytest.raises(AssertionError):
            total_loss(losses, {name: w for name, w in model.weights.items() if name != missing}, steps)
    with pytest.raises(AssertionError):
        total_loss(losses, model.weights | {"extra": 1.0}, steps)


def test_total_loss_by_hand():
    steps = real(rows=2, first=[(0, 3)])
    steps.valid[1, 8:] = False
    losses = {"a": torch.rand(2, T - 1), "b": torch.rand(2, T), "c": torch.tensor(5.0)}
    got = total_loss(losses, {"a": 1.0, "b": 0.5, "c": 2.0}, steps)
    counts = [(b, t) for b in range(2) for t in range(T) if not (b == 0 and t == 2) and not (b == 1 and t >= 8)]
    a = [losses["a"][at] for at in counts if at[1] < T - 1 and at != (1, 7)]  # frame 8 of row 1 is padding
    b = [losses["b"][at] for at in counts]
    assert close(got, sum(a) / len(a) + 0.5 * sum(b) / len(b) + 10)
    nothing = replace(steps, valid=torch.zeros_like(steps.valid))
    assert masked_mean(torch.full((2, T), float("nan")), nothing) == 0


@torch.no_grad()
def test_rows_without_an_action_do_not_count(model):
    """An episode's last row: neither its reward, nor its end, nor its action. And no row's truncation."""
    steps = real()
    expected = loss_of(model, steps)
    dead = ~steps.acted
    assert dead.sum() == 3
    for other in (
        dict(reward=torch.where(dead, 1 - steps.reward, steps.reward)),
        dict(terminated=steps.terminated ^ dead),
        dict(action=torch.where(dead, (steps.action + 1) % 3, steps.action)),
        dict(truncated=~steps.truncated),  # nobody predicts the time limit
    ):
        assert torch.equal(loss_of(model, replace(steps, **other)), expected)
    live = steps.acted.nonzero()[4]
    reward = steps.reward.clone()
    reward[tuple(live)] = (reward[tuple(live)] + 2) % 3 - 1
    assert not torch.equal(loss_of(model, replace(steps, reward=reward)), expected)


@torch.no_grad()
def test_padding_does_not_count(model):
    steps = real(first=())
    padded = replace(steps, valid=steps.valid & (torch.arange(T) < 7))
    expected = loss_of(model, padded)
    obs = torch.cat([steps.obs[:, :8], 255 - steps.obs[:, 8:]], 1)
    other = replace(padded, obs=obs, reward=steps.reward * (torch.arange(T) < 7))
    assert close(loss_of(model, other), expected, 1e-6)


def test_reward_and_end_belong_to_their_own_step(model):
    """reward[t] and terminated[t] are read in the h that has seen action t and frame t (or t + lookahead), nothing later."""
    steps = real(first=())
    for name, t in (("reward", 4), ("termination", 6)):
        h = model.decoding.loss(model.backbone, model.encode(steps), steps)[1]
        head = getattr(model, name)
        target = steps.reward if name == "reward" else steps.terminated
        assert close(model(steps)[name][:, t], head(h[:, t]).loss(target[:, t]), 1e-6)
        action = steps.action.clone()
        action[:, t] = (action[:, t] + 1) % 3
        moved = (model(replace(steps, action=action))[name] - model(steps)[name]).abs()
        assert (moved[:, :t] == 0).all() and (moved[:, t] > 0).all()
        codes = model.encode(steps)
        z = codes.indices.clone()
        z[:, t + 1] = (z[:, t + 1] + 1) % 8
        moved = (model(steps, Codes(z))[name] - model(steps, codes)[name]).abs()
        seen = t + 1 - model.decoding.lookahead  # the first step whose h has seen frame t + 1
        assert (moved[:, :seen] == 0).all() and (moved[:, seen : t + 2] > 0).all()


def test_the_dynamics_loss_trains_all_but_the_tokenizer(model):
    steps = real()
    model.train()
    before = {name: value.clone() for name, value in model.tokenizer.state_dict().items()}
    loss_of(model, steps).backward()
    assert all(p.grad is None for p in model.tokenizer.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.tokenizer.state_dict().items())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.dynamics_modules().parameters())
    own, theirs = {id(p) for p in model.dynamics_modules().parameters()}, {id(p) for p in model.tokenizer.parameters()}
    assert not own & theirs and own | theirs == {id(p) for p in model.parameters()}


# ---------------------------------------------------------------------------------------------------------------- state


def same(one, two, atol=2e-5):
    return (
        torch.equal(one.codes.indices, two.codes.indices)
        and close(one.h, two.h, atol)
        and close(one.reward.mean, two.reward.mean, atol)
        and close(one.terminated.mean, two.terminated.mean, atol)
    )


def test_rollout_equals_repeated_step(model):
    steps, S, H = real(first=()), 2, 6
    actions, noise = torch.randint(3, (B, S, H)), torch.rand(B, S, H, 6)
    _, state = model.start(steps)
    rolled = model.rollout(state, actions, noise)
    assert len(rolled) == H and rolled[0].h.shape == (B * S, 16)
    again = model.rollout(state, actions, noise)  # the argument stays usable
    assert all(same(a, b) for a, b in zip(rolled, again, strict=True))
    for b in range(B):
        for s in range(S):
            _, state = model.start(steps[b : b + 1])
            for t in range(H):
                prediction, state = model.step(state, actions[b, s, t : t + 1], noise[b, s, t : t + 1])
                row = rolled[t]
                assert torch.equal(prediction.codes.indices[0], row.codes.indices[b * S + s])
                assert close(prediction.h[0], row.h[b * S + s])


def test_step_agrees_with_the_losses(model):
    """What `observe` predicts while real frames come in is what `forward` scores: h, reward and end."""
    steps = real()
    h = model.decoding.loss(model.backbone, model.encode(steps), steps)[1]
    _, state = model.start(steps[:, :1])
    for t in range(1, T):
        prediction, state = model.observe(state, steps.action[:, t - 1], steps.obs[:, t], steps.first[:, t])
        on = ~steps.first[:, t]
        assert close(prediction.h[on], h[:, t - 1][on]) and (prediction.h[~on] == 0).all()
        assert close(prediction.reward.mean[on], model.reward(h[:, t - 1]).mean[on])
        assert close(prediction.terminated.mean[on], model.termination(h[:, t - 1]).mean[on])


def test_a_new_episode_begins_afresh(model):
    """Rows with `first` go on as if nothing had been before; the other rows go on as if nothing had happened."""
    steps, later = real(first=()), real(first=(), seed=1)
    _, state = model.start(steps)
    _, state = model.observe(state, steps.action[:, -1], later.obs[:, 0], torch.tensor([False, True, False]))
    _, fresh = model.start(later[1:2, :1])
    joined = torch.cat([steps.obs, later.obs], 1)
    whole = replace(steps_of(B, 2 * T, frame=FRAME), obs=joined, action=torch.cat([steps.action, later.action], 1))
    h = model.decoding.loss(model.backbone, model.encode(whole), whole)[1]
    for t in range(1, T):
        frame, none = later.obs[:, t], torch.zeros(B, dtype=torch.bool)
        got, state = model.observe(state, later.action[:, t - 1], frame, none)
        expected, fresh = model.observe(fresh, later.action[1:2, t - 1], frame[1:2], none[:1])
        assert close(got.h[1:2], expected.h) and close(logprob(got)[1:2], logprob(expected))
        assert close(got.h[[0, 2]], h[[0, 2], T + t - 1])


def test_start_from_codes_or_frames(model):
    steps = real()
    one, _ = model.start(steps)
    two, _ = model.start(steps, model.encode(steps))
    assert torch.equal(one.h, two.h) and torch.equal(one.codes.indices, two.codes.indices)
    assert torch.equal(model.view(one).decode(), model.decode(Codes(one.codes.indices))[:, 0])


# ------------------------------------------------------------------------------------------------------------------- nn


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_by_inverse_cdf(temperature):
    logits, N = torch.tensor([2.0, 0.0, -1.0, 0.5]), 10_000
    noise = (torch.arange(N) + 0.5) / N
    index = sample_categorical(logits.expand(N, 4), noise, temperature)
    assert close(torch.bincount(index, minlength=4) / N, (logits / temperature).softmax(-1), 2 / N)
    assert (index.diff() >= 0).all()


def test_sampling_at_the_edges():
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]]).expand(3, 5)
    assert sample_categorical(logits, torch.tensor([0.0, 0.49999, 1 - 2**-24])).tolist() == [1, 1, 3]
    assert sample_categorical(torch.tensor([[1.0, 3.0, 2.0]]), torch.tensor([0.999]), 0).tolist() == [1]


def test_only_linear_weights_decay(model):
    groups = optim.make(model.dynamics_modules(), lr=1e-3, weight_decay=0.1).param_groups
    decayed = {id(p) for group in groups if group["weight_decay"] for p in group["params"]}
    names = {name for name, p in model.dynamics_modules().named_parameters() if id(p) in decayed}
    assert any("qkv.weight" in name for name in names)
    assert not any(part in name for name in names for part in ("norm", "bias", "code.", "table", "place"))
    assert sum(len(group["params"]) for group in groups) == len(list(model.dynamics_modules().parameters()))


# ---------------------------------------------------------------------------------------------- where rewards come from


def prepared(out):
    """A tiny run with a trained tokenizer and dynamics, about to train its policy."""
    pytest.importorskip("minatar")
    spec = compose.compose(["recipe=quickstart", "overlay=debug", "seed=1", "device=cpu", f"out={out}"])
    run = resume.start_run(spec)
    for name in ("collect", "tokenizer", "dynamics"):
        run.phases[name](run, False)
    run.epoch = 1
    return run


def taught(run):
    run.phases["policy"](run, False)
    assert run.count["policy"] > 0
    return torch.cat([p.detach().flatten() for p in run.policy.parameters()])


def test_a_real_reward_reaches_the_policy_only_through_the_reward_head(tmp_path):
    """Other real rewards and terminations in the replay: bit-equal policies. Another reward head: another policy.

    Where rollouts start is the same in all: `train.policy.events` chooses more starts near real events."""
    same, spoilt, other = (prepared(tmp_path / name) for name in ("same", "spoilt", "other"))
    for run in (same, spoilt, other):
        run.replay.sample(8, 1, np.random.default_rng(0), ends="acted", events=1.0)  # the replay now knows its events
    untaught = torch.cat([p.detach().flatten() for p in same.policy.parameters()])
    arrays = spoilt.replay._arrays
    arrays["reward"][:] = 100.0 - arrays["reward"]
    for name in ("terminated", "truncated"):
        arrays[name][:] = ~arrays[name]
    with torch.no_grad():
        for parameter in other.world_model.reward.parameters():
            parameter.add_(torch.randn_like(parameter))
    expected = taught(same)
    assert not torch.equal(expected, untaught)
    assert torch.equal(taught(spoilt), expected)
    assert not torch.equal(taught(other), expected)


def test_the_bf16_copy_dreams_nearly_the_same():
    """Same noise, nearly the same dream; the original is untouched, and the copy does not encode."""
    model = WorldModel.from_recipe("iris", "overlay=debug", "backbone.dim=64", frame=(3, 64, 64), actions=3).eval()
    rouse(model.dynamics_modules())
    twin = model.in_bf16()
    steps = frames_as_steps(torch.zeros(64, 3, 64, 64, dtype=torch.uint8))
    codes = Codes(torch.randint(0, 32, (64, 1, 16)))
    dreams = []
    for each in (model, twin):
        _, state = each.start(steps, codes)
        prediction, _ = each.step(state, torch.zeros(64, dtype=torch.int64), torch.full((64, 16), 0.5))
        dreams.append(prediction)
    a, b = (dream.codes.indices for dream in dreams)
    assert (a == b).float().mean() > 0.8
    assert (dreams[0].reward.mean - dreams[1].reward.mean).abs().max() < 0.1
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert twin.decode(dreams[1].codes).dtype == torch.float32


@torch.no_grad()
def test_a_policys_memory_begins_with_the_episode(model):
    """Burnt in before a dream or in play: the memory of a row is that of its last episode alone."""
    policy = ActorCritic(shapes=model.shapes, network=network("pixels", 8)).eval()
    for parameter in policy.network.lstm.parameters():
        parameter.normal_()
    steps = real([*FIRST, (3, T - 1)], rows=4)
    codes = model.encode(steps)
    actor = Actor(model, policy, generator=torch.Generator())
    actor.burn_in(steps)
    memory = burn_in_policy(model, policy, steps, codes)

    def after(row, begin):
        carry = policy.start(1)
        for t in range(begin, T - 1):
            carry = policy.follow(model.view_of(Codes(codes.indices[row : row + 1, t : t + 1])), carry)
        return carry[0]

    for row, begin in ((0, 0), (1, 5), (2, 9)):
        assert close(memory[row], after(row, begin)) and close(actor.carry[row], after(row, begin))
    assert not close(after(2, 9), after(2, 0), 1e-2), "memory must matter, or this test says nothing"
    assert torch.equal(memory[3], policy.start(1)[0])  # the frame to go on from is the first of its episode


def test_single_frames_begin_an_episode_where_they_are_said_to():
    obs = torch.zeros(3, *FRAME, dtype=torch.uint8)
    assert frames_as_steps(obs).first.tolist() == [[True]] * 3
    assert frames_as_steps(obs, torch.tensor([True, False, True])).first.tolist() == [[True], [False], [True]]
