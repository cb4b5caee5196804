"""The contract of policies, for every file of policies/; then what actor_critic.py alone has."""

import copy
from dataclasses import replace

import pytest
import torch
from conftest import close, each, network, rouse, shapes

from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, Trajectory, View
from tokenworld.nn import total_loss
from tokenworld.policies.actor_critic import ActorCritic
from tokenworld.policies.returns import lambda_return

H = 5


def dream(policy, batch=6, seed=0, alive=None):
    """A random trajectory that the policy might have been handed."""
    g = torch.Generator().manual_seed(seed)
    s = shapes()
    alive = torch.ones(batch, H + 1, dtype=torch.bool) if alive is None else alive
    return Trajectory(
        codes=Codes(torch.randint(s.vocab_size, (batch, H + 1, s.codes), generator=g)),
        h=torch.randn(batch, H + 1, s.dim, generator=g),
        action=torch.randint(s.actions.choices[0], (batch, H), generator=g),
        reward=torch.randn(batch, H, generator=g),
        terminated=alive[:, :-1] & ~alive[:, 1:],
        alive=alive,
        frames=torch.rand(batch, H + 1, *s.frame, generator=g),
        carry=policy.start(batch),
    )


def view_of(trajectory, t):
    return View(trajectory.codes[:, t : t + 1], trajectory.h[:, t], lambda: trajectory.frames[:, t])


def bandit(policy, seed, batch=64):
    """One step from one state, in which action 1 pays."""
    g = torch.Generator().manual_seed(seed)
    s = shapes(A=2)
    z, h, frames = torch.zeros(batch, 2, s.codes).long(), torch.zeros(batch, 2, s.dim), torch.zeros(batch, 2, *s.frame)
    carry = policy.start(batch)
    action, _ = policy.act(View(Codes(z[:, :1]), h[:, 0], lambda: frames[:, 0]), carry, torch.rand(batch, 1, generator=g))
    ends = torch.ones(batch, 1, dtype=torch.bool)
    alive = torch.cat([ends, ~ends], 1)
    return Trajectory(Codes(z), h, action[:, None], action[:, None].float(), ends, alive, frames, carry)


@pytest.mark.parametrize("part", each("policies"))
class TestPolicy:
    def test_act(self, part):
        policy = rouse(part(shapes=shapes()))
        seen = dream(policy, 64)
        noise, carry = torch.rand(64, 1), policy.start(64)
        action, after = policy.act(view_of(seen, 0), carry, noise)
        assert action.shape == (64,) and action.dtype == torch.int64 and not action.requires_grad
        assert set(action.tolist()) == {0, 1, 2}
        assert torch.equal(policy.act(view_of(seen, 0), carry, noise)[0], action)
        assert (after is None) == (carry is None)

    def test_losses_have_weights_and_gradient(self, part):
        policy = rouse(part(shapes=shapes())).train()
        losses = policy.loss(dream(policy))
        assert losses.keys() == policy.weights.keys()
        total_loss(losses, policy.weights).backward()
        for name, parameter in policy.named_parameters():
            if parameter.requires_grad:
                grad = parameter.grad
                assert grad is not None and grad.isfinite().all() and grad.abs().max() > 0, name

    def test_what_follows_a_termination_does_not_count(self, part):
        """Neither what was seen nor what was gained after the end changes loss or gradient."""
        policy = rouse(part(shapes=shapes())).train()
        alive = torch.ones(6, H + 1, dtype=torch.bool)
        alive[2, 3:] = alive[4, 1:] = False
        one, other = dream(policy, alive=alive), dream(policy, alive=alive, seed=1)

        def spoilt(a, b, n):
            dead = ~alive[:, :n].view(6, n, *[1] * (a.ndim - 2))
            return torch.where(dead, b, a)

        two = replace(one, codes=Codes(spoilt(one.codes.indices, other.codes.indices, H + 1)), **{
            name: spoilt(getattr(one, name), getattr(other, name), getattr(one, name).shape[1])
            for name in ("h", "action", "reward", "terminated", "frames")
        })  # fmt: skip
        grads = []
        for trajectory in (one, two):
            policy.zero_grad()
            loss = total_loss(policy.loss(trajectory), policy.weights)
            loss.backward()
            grads.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
        assert close(*grads, 1e-6) and grads[0].abs().max() > 0

    def test_the_better_arm_is_chosen(self, part):
        policy = part(shapes=shapes(A=2)).train()
        optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
        for update in range(30):
            trajectory = bandit(policy, update)
            for losses in policy.updates(trajectory, torch.Generator().manual_seed(update)):
                optimizer.zero_grad()
                total_loss(losses, policy.weights).backward()
                optimizer.step()
        assert bandit(policy, 99).action.float().mean() > 0.9


# --------------------------------------------------------------------------------------------------------- actor-critic

VIEWS = ["pixels", "frame", "codes", "codes_h", "h"]


def build(**keywords) -> ActorCritic:
    return ActorCritic(shapes=shapes(), **{"network": network("pixels"), **keywords})


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("keywords", [
    dict(update_epochs=1), dict(update_epochs=4, minibatches=2, normalize="advantages"),
    dict(normalize="returns", target_decay=0.9),
], ids=["reinforce", "clipped", "scaled"])  # fmt: skip
def test_the_better_arm_is_chosen_by_every_view(view, keywords):
    policy = ActorCritic(shapes=shapes(A=2), network=network(view), **keywords).train()
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], lr=1e-2)
    for update in range(20):
        for losses in policy.updates(bandit(policy, update), torch.Generator().manual_seed(update)):
            optimizer.zero_grad()
            total_loss(losses, policy.weights).backward()
            optimizer.step()
            policy.track()
    assert bandit(policy, 99).action.float().mean() > 0.85


@pytest.mark.parametrize("view", VIEWS)
def test_sequence_equals_repeated_forward(view):
    policy = rouse(build(network=network(view)))
    seen = dream(policy)
    carry = policy.start(6)
    for t in range(2):  # a burn-in, so that the carry is not the fresh one
        carry = policy.follow(view_of(dream(policy, seed=1), t), carry)
    whole = policy.network.forward_sequence(policy.network.read_trajectory(seen), carry)
    for t in range(H + 1):
        features, carry = policy.network(policy.network.read_view(view_of(seen, t)), carry)
        assert close(features, whole[:, t], 1e-5), t
    if carry is not None:
        fresh = policy.network.forward_sequence(policy.network.read_trajectory(seen), policy.start(6))
        assert not close(fresh, whole, 1e-3)  # the carry matters


@pytest.mark.parametrize("view", VIEWS)
def test_the_logp_of_a_lesson_is_that_of_the_action_taken(view):
    """Actions follow softmax of the same logits that `loss` scores: act and loss see the same step."""
    policy = rouse(build(network=network(view)), 0.5)
    one = dream(policy, batch=1)
    N = 2000
    many = replace(one, codes=one.codes.map(lambda x: x.expand(N, *x.shape[1:])), **{
        name: getattr(one, name).expand(N, *getattr(one, name).shape[1:]) for name in ("h", "frames")
    })  # fmt: skip
    carry = policy.start(N)
    for t in range(H):
        action, carry = policy.act(view_of(many, t), carry, ((torch.arange(N) + 0.5) / N).unsqueeze(1))
        for a in range(3):
            logp = policy.batch_of(replace(one, action=torch.full((1, H), a))).logp[0, t]
            assert abs((action == a).float().mean() - logp.exp()) < 2 / N


def test_a_lesson_is_without_gradient_and_right():
    policy = rouse(build(gamma=0.9, lambda_=0.8))
    policy.requires_grad_(True)
    alive = torch.ones(6, H + 1, dtype=torch.bool)
    alive[2, 3:] = False
    trajectory = dream(policy, alive=alive)
    batch = policy.batch_of(trajectory)
    assert not any(x.requires_grad for x in (batch.returns, batch.advantage, batch.logp))
    value = policy.critic(policy.network.forward_sequence(trajectory.frames, trajectory.carry)).mean
    for b in range(6):
        last = value[b, H]
        for t in reversed(range(H)):
            ahead = 0.0 if trajectory.terminated[b, t] else 0.9 * (0.2 * value[b, t + 1] + 0.8 * last)
            last = trajectory.reward[b, t] + ahead
            assert close(batch.returns[b, t], last, 1e-4) and close(batch.advantage[b, t], last - value[b, t], 1e-4)


def test_advantages_are_standardised_over_what_counts():
    policy = rouse(build(network=network("codes"), normalize="advantages"))
    alive = torch.ones(6, H + 1, dtype=torch.bool)
    alive[2, 2:] = alive[4, 1:] = False
    trajectory = dream(policy, alive=alive)
    batch = policy.batch_of(replace(trajectory, reward=torch.where(alive[:, :-1], trajectory.reward, 50.0)))
    counts = batch.advantage[batch.alive]
    assert torch.equal(batch.alive, alive[:, :-1])  # the step that ends an episode counts, what follows does not
    assert abs(counts.mean()) < 1e-5 and abs(counts.std(correction=0) - 1) < 1e-4


@pytest.mark.parametrize("view", VIEWS)
def test_places_are_told_apart(view):
    """The same codes, or pixels, or numbers of h, in another order are another frame."""
    policy = rouse(build(network=network(view)))
    seen = dream(policy)
    order = torch.tensor([1, 2, 0])
    other = replace(seen, codes=seen.codes.map(lambda z: z[..., order]), frames=seen.frames.flip(-1), h=seen.h.flip(-1))
    logits = [policy.actor(policy.network.forward_sequence(policy.network.read_trajectory(x), x.carry)) for x in (seen, other)]
    assert ((logits[0] - logits[1]).abs().amax(-1) > 1e-4).float().mean() > 0.8


def test_losses_by_hand():
    policy = rouse(build(entropy=0.3))
    batch = policy.batch_of(dream(policy))
    features = policy.network.forward_sequence(batch.seen, batch.carry)[:, :-1]
    logp, value = policy.actor(features).log_softmax(-1), policy.critic(features).mean
    losses = policy.loss(batch)
    taken = logp.gather(-1, batch.action[..., None])[..., 0]
    assert close(losses["actor"], -(taken * batch.advantage).mean())
    assert close(losses["critic"], (value - batch.returns).square().mean())
    assert close(losses["entropy"], 0.3 * (logp.exp() * logp).sum(-1).mean()) and losses["entropy"] < 0


def test_a_distribution_over_returns_is_kept_close_to_the_slow_critic():
    """Its targets are its own values, not the copy's; the loss is the cross-entropy to the return and to the copy's mean."""
    policy = rouse(build(network=network("h"), value="twohot", target_decay=0.5))
    seen = dream(policy)
    batch = policy.batch_of(seen)
    features = policy.network.forward_sequence(seen.h, None)
    own, slow = policy.critic(features), policy.slow[1](policy.slow[0].forward_sequence(seen.h, None))
    assert not close(own.mean, slow.mean, 1e-2)
    returns = lambda_return(seen.reward, seen.terminated, own.mean, gamma=policy.gamma, lambda_=policy.lambda_)
    assert close(batch.returns, returns) and close(batch.slow, slow.mean[:, :-1])
    value = policy.critic(features[:, :-1])
    assert close(policy.loss(batch)["critic"], (value.loss(batch.returns) + value.loss(batch.slow)).mean())


def test_a_new_distribution_over_returns_says_zero_and_learns_a_large_one():
    policy = build(network=network("h"), value="twohot")
    assert (policy.critic(torch.randn(9, 16)).mean == 0).all()
    optimizer = torch.optim.Adam(policy.critic.parameters(), lr=0.05)
    x = torch.ones(1, 16)
    for _ in range(200):
        optimizer.zero_grad()
        policy.critic(x).loss(torch.tensor([300.0])).sum().backward()
        optimizer.step()
    assert 280 < policy.critic(x).mean < 320


@pytest.mark.parametrize("keywords", [{}, dict(normalize="advantages", update_epochs=2), dict(normalize="returns")])
def test_probable_ends_that_are_certain_are_ends(keywords):
    """With probabilities 0 and 1 the losses are those of drawn ends; in between, what follows counts in part."""
    alive = torch.ones(6, H + 1, dtype=torch.bool)
    alive[2, 3:] = alive[4, 1:] = False
    losses = []
    for soft in (lambda x: x, lambda x: x.float(), lambda x: x.float() * 0.5 + 0.25):
        policy = rouse(build(network=network("h"), **keywords))
        seen = dream(policy, alive=alive)
        losses.append(policy.loss(replace(seen, alive=soft(seen.alive), terminated=soft(seen.terminated))))
        torch.manual_seed(0)
    assert all(close(losses[0][name], losses[1][name], 1e-6) for name in losses[0])
    assert not close(losses[0]["critic"], losses[2]["critic"], 1e-3)


def test_the_entropy_loss_flattens_the_policy():
    policy = rouse(build(entropy=1.0), 0.5)
    trajectory = dream(policy)
    before = policy.loss(trajectory)["entropy"]
    before.backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.grad is not None:
                parameter.sub_(1e-3 * parameter.grad)
    assert policy.loss(trajectory)["entropy"] < before  # the loss is minus the entropy


@pytest.mark.parametrize("shift, advantage, flows", [
    (1.0, 1.0, False), (-1.0, -1.0, False), (1.0, -1.0, True), (-1.0, 1.0, True), (0.1, 1.0, True), (-0.1, -1.0, True),
])  # fmt: skip
def test_a_clipped_ratio_has_no_gradient(shift, advantage, flows):
    """ratio = new / old = e^shift, clip 0.2: nothing is gained by going further the same way, all by coming back."""
    policy = rouse(build(network=network("codes"), update_epochs=4))
    batch = policy.batch_of(dream(policy))
    batch = replace(batch, logp=batch.logp - shift, advantage=torch.full_like(batch.advantage, advantage))
    loss = policy.loss(batch)["actor"]
    bound = min(torch.e**shift * advantage, max(0.8, min(1.2, torch.e**shift)) * advantage)
    assert close(loss, torch.tensor(-bound))
    loss.backward()
    assert (policy.actor.weight.grad.abs().max() > 1e-4) == flows


def test_a_pass_raises_what_gained():
    """One clipped update on one action with a positive advantage makes it more probable, with a negative one less."""
    for sign in (1.0, -1.0):
        policy = rouse(build(network=network("codes"), update_epochs=4))
        batch = policy.batch_of(dream(policy, batch=1))
        batch = replace(batch, advantage=torch.full_like(batch.advantage, sign))
        policy.loss(batch)["actor"].backward()
        with torch.no_grad():
            policy.actor.bias.sub_(0.01 * policy.actor.bias.grad)
        assert (policy.batch_of(dream(policy, batch=1)).logp.sum() - batch.logp.sum()) * sign > 0


def test_minibatches_cover_the_dream_once_a_pass():
    policy = rouse(build(network=network("codes_h"), update_epochs=2, minibatches=3))
    trajectory = dream(policy)
    batch, seen = policy.batch_of(trajectory), []
    policy.loss = lambda part: seen.append(part) or {}
    list(policy.updates(trajectory, torch.Generator().manual_seed(0)))
    assert len(seen) == 6
    for part in (seen[:3], seen[3:]):
        rows = torch.cat([p.returns for p in part])
        assert torch.equal(rows.sort(0).values, batch.returns.sort(0).values)
        h = torch.cat([p.seen[1] for p in part])
        assert torch.equal(h.sort(0).values, batch.seen[1].sort(0).values)


def test_the_target_critic_follows():
    policy = rouse(build(network=network("codes"), target_decay=0.9))
    before = copy.deepcopy(policy.slow[1].weight)
    with torch.no_grad():
        policy.critic.weight.add_(1)
    expected = 0.9 * before + 0.1 * policy.critic.weight
    policy.track()
    assert close(policy.slow[1].weight, expected) and not policy.slow[1].weight.requires_grad


@pytest.mark.parametrize("keywords", [
    dict(gamma=1.5), dict(lambda_=-0.1), dict(target_decay=1.0), dict(update_epochs=0), dict(minibatches=0),
    dict(network=network("codes", 0)),
], ids=str)  # fmt: skip
def test_bad_values_are_refused(keywords):
    with pytest.raises(UserError, match=f"policy.*{next(iter(keywords))}"):
        build(**keywords)
