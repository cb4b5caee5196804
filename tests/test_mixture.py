"""The mixture density decoding over a recurrent backbone and a transformer, and the variational autoencoder that it reads."""

import pytest
import torch
from conftest import close, rouse, steps_of
from torch.distributions import Categorical, MixtureSameFamily, Normal, kl_divergence

from tokenworld.action_space import Actions
from tokenworld.actions import ActionTable
from tokenworld.backbones.gpt import GPT
from tokenworld.backbones.recurrent import Recurrent
from tokenworld.decoding.mixture import Mixture
from tokenworld.errors import UserError
from tokenworld.heads import SignReward, Termination
from tokenworld.imagination import imagine
from tokenworld.interfaces import Codes, Shapes
from tokenworld.nn import copy_for_inference, normal_of
from tokenworld.policies.linear import LinearController
from tokenworld.tokenizers.vae import VAE
from tokenworld.world_model import WorldModel

B, LONG, K, E = 3, 11, 2, 3
FIRST = [(0, 0), (1, 5), (2, 1), (2, 9)]
SHAPES = Shapes((2, 10, 8), Actions((3,)), (1, K), K, 0, E, 16)
BODIES = pytest.mark.parametrize("body", ["rnn", "gpt"])


def dynamics(body, shapes=SHAPES, **keywords):
    body = Recurrent(dim=16, context=4) if body == "rnn" else GPT(layers=2, heads=2, dim=16, context=4)
    head = Mixture(shapes=shapes, action=ActionTable(actions=3, dim=16), **{"mixtures": 3, **keywords})
    return rouse(body), rouse(head), Codes(vectors=torch.randn(B, LONG, K, E)), steps_of(B, LONG, first=FIRST)


def distribution(head, h):
    """Of each dimension of z, in torch's own words."""
    logits, mean, deviation = head._mixture(h)
    return MixtureSameFamily(Categorical(logits=logits), Normal(mean, deviation))


def drawn(head, body, state, actions, noise):
    """Steps with these actions (B, H) and noise (B, H, n) -> z (B, H, K, E), h (B, H, D)."""
    predictions = []
    for t in range(actions.shape[1]):
        prediction, state = head.step(body, state, actions[:, t], noise[:, t])
        predictions.append(prediction)
    return torch.cat([p.codes.vectors for p in predictions], 1), torch.stack([p.h for p in predictions], 1)


@BODIES
@pytest.mark.parametrize("start", [1, 2, 7])
@torch.no_grad()
def test_loss_equals_start_and_step(body, start):
    """The same h whether a window is read at once or step by step, over episodes' borders, and the density that torch gives."""
    body, head, codes, steps = dynamics(body)
    losses, h, same = head.loss(body, codes, steps)
    assert same is codes and h.shape == (B, LONG, 16) and losses.keys() == head.weights.keys()
    nats = -distribution(head, h[:, :-1]).log_prob(codes.vectors[:, 1:].flatten(2)).mean(-1)
    assert losses["codes"].shape == (B, LONG - 1) and close(losses["codes"], nats)
    p, state = head.start(body, codes[:, :start], steps[:, :start])
    seen = [p]
    for t in range(start, LONG):
        p, state = head.step(body, state, steps.action[:, t - 1], None, codes[:, t : t + 1], steps.first[:, t])
        assert torch.equal(p.codes.vectors, codes.vectors[:, t : t + 1]) and p.score is None
        seen.append(p)
    got, real = torch.stack([p.h for p in seen], 1)[:, 1:], steps.acted[:, start - 1 : -1]
    assert close(got[real], h[:, start - 1 : -1][real]) and (got[~real] == 0).all()
    assert (start > 1) == bool(seen[0].h.any())


@BODIES
@torch.no_grad()
def test_an_episode_alone(body):
    body, head, codes, steps = dynamics(body)
    losses, h, _ = head.loss(body, codes, steps)
    alone, alone_h, _ = head.loss(body, codes[1:2, 5:], steps[1:2, 5:])
    assert close(h[1:2, 5:], alone_h) and close(losses["codes"][1:2, 5:], alone["codes"])


@BODIES
@torch.no_grad()
def test_actions_and_frames_matter_from_their_step_on(body):
    body, head, codes, steps = dynamics(body)
    steps.first[:] = False
    losses, h, _ = head.loss(body, codes, steps)
    action, vectors = steps.action.clone(), codes.vectors.clone()
    action[:, 4] = (action[:, 4] + 1) % 3
    steps.action.copy_(action)
    other, other_h, _ = head.loss(body, codes, steps)
    assert torch.equal(h[:, :4], other_h[:, :4]) and ((h - other_h).abs().amax(-1)[:, 4] > 1e-3).all()
    assert torch.equal(losses["codes"][:, :4], other["codes"][:, :4])
    vectors[:, 6] += 1
    third, third_h, _ = head.loss(body, Codes(vectors=vectors), steps)
    assert torch.equal(other_h[:, :6], third_h[:, :6]) and ((other_h - third_h).abs().amax(-1)[:, 6] > 1e-3).all()
    assert torch.equal(other["codes"][:, :5], third["codes"][:, :5])  # entry 5 is that of frame 6


@pytest.mark.parametrize("temperature", [0.25, 1.0, 1.5])
@torch.no_grad()
def test_temperature_divides_logits_and_multiplies_variances(temperature):
    body, head, codes, steps = dynamics("rnn", temperature=temperature)
    N = 60_000
    state = head.start(body, codes[:1, :3], steps[:1, :3])[1].select(torch.zeros(N).long())
    noise = torch.rand(N, head.noise_size, generator=torch.Generator().manual_seed(1))
    prediction, _ = head.step(body, state, torch.zeros(N).long(), noise)
    logits, mean, deviation = head._mixture(prediction.h[:1])
    scaled = MixtureSameFamily(Categorical(logits=logits / temperature), Normal(mean, deviation * temperature**0.5))
    z = prediction.codes.vectors[:, 0].flatten(1)  # (N, Z)
    spread = scaled.variance[0].sqrt()
    assert ((z.mean(0) - scaled.mean[0]).abs() < 0.02 * spread + 1e-3).all()
    assert ((z.std(0) / spread - 1).abs() < 0.02).all()
    share = (z < scaled.mean[0]).float().mean(0)
    assert ((share - scaled.cdf(scaled.mean)[0]).abs() < 0.01).all()


@torch.no_grad()
def test_a_colder_dream_is_narrower_and_the_coldest_is_one_point():
    spreads = []
    for temperature in (0.0, 0.1, 1.0):
        torch.manual_seed(0)
        body, head, codes, steps = dynamics("rnn", temperature=temperature)
        state = head.start(body, codes[:1, :3], steps[:1, :3])[1].select(torch.zeros(500).long())
        prediction, _ = head.step(body, state, torch.zeros(500).long(), torch.rand(500, head.noise_size))
        z = prediction.codes.vectors[:, 0].flatten(1)
        spreads.append(z.std(0).mean())
        if temperature == 0:
            logits, mean, _ = head._mixture(prediction.h[0])
            assert close(z[0], mean.gather(-1, logits.argmax(-1, keepdim=True)).squeeze(-1))
    assert spreads[0] == 0 and 0 < spreads[1] < 0.7 * spreads[2]


@torch.no_grad()
def test_each_dimension_has_its_own_two_numbers():
    body, head, codes, steps = dynamics("rnn")
    state = head.start(body, codes[:1, :3], steps[:1, :3])[1].select(torch.zeros(64).long())
    noise, action = torch.rand(64, head.noise_size), torch.zeros(64).long()

    def z(noise):
        return head.step(body, state, action, noise)[0].codes.vectors.flatten(1)

    assert torch.equal(z(noise), z(noise))
    for n in range(head.noise_size):
        other = noise.clone()
        other[:, n] = (other[:, n] + 0.5) % 1
        moved = (z(other) != z(noise)).any(0)
        assert moved.nonzero().flatten().tolist() == [n % (K * E)]
    edge = z(torch.cat([torch.zeros(32, head.noise_size), torch.ones(32, head.noise_size)]))
    assert edge.isfinite().all() and normal_of(torch.tensor([0.0, 0.5, 0.8413447])).tolist()[1:] == pytest.approx([0, 1])


@BODIES
@torch.no_grad()
def test_branches_do_not_interact(body):
    body, head, codes, steps = dynamics(body)
    index, actions = torch.tensor([2, 0, 2, 1]), torch.randint(3, (B, 4))
    noise = torch.rand(B, 4, head.noise_size)

    def fresh():
        return head.start(body, codes, steps)[1]

    z, h = drawn(head, body, fresh(), actions, noise)
    state = fresh()
    z_branch, h_branch = drawn(head, body, state.select(index), actions[index], noise[index])
    assert close(z_branch, z[index]) and close(h_branch, h[index])
    assert close(drawn(head, body, state, actions, noise)[0], z)


@torch.no_grad()
def test_rows_of_a_state_are_replaced():
    body, head, codes, steps = dynamics("rnn")
    _, other = head.start(body, Codes(vectors=torch.randn(2, 5, K, E)), steps_of(2, 5, first=[(0, 0), (1, 4)]))
    _, state = head.start(body, codes, steps)
    mixed = state.put(torch.tensor([2, 0]), other)
    actions, noise = torch.randint(3, (B, 3)), torch.rand(B, 3, head.noise_size)
    z, _ = drawn(head, body, mixed, actions, noise)
    for row, (source, i) in enumerate(((other, 1), (state, 1), (other, 0))):
        alone, _ = drawn(head, body, source.select(torch.tensor([i])), actions[row : row + 1], noise[row : row + 1])
        assert close(z[row], alone[0])


def test_both_outcomes_of_chance_are_drawn_and_none_between_them():
    """The next number is +1 or -1 whatever came before, the second one follows the action."""
    torch.manual_seed(0)
    shapes = Shapes((1, 8, 8), Actions((3,)), (1, 1), 1, 0, 2, 16)
    body, head = Recurrent(dim=16, context=4), Mixture(shapes=shapes, action=ActionTable(actions=3, dim=16))
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-2)
    for update in range(200):
        steps = steps_of(32, 6, seed=update)
        coin = torch.randint(2, (32, 6), generator=torch.Generator().manual_seed(update)) * 2.0 - 1
        after = torch.nn.functional.pad(steps.action[:, :-1].float(), (1, 0)) - 1
        codes = Codes(vectors=torch.stack([coin, after], -1).unsqueeze(2))
        loss = head.loss(body, codes, steps)[0]["codes"][:, 1:].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    body.eval(), head.eval()
    with torch.no_grad():
        _, state = head.start(body, codes[:1, :4], steps[:1, :4])
        action = torch.arange(300) % 3
        prediction, _ = head.step(body, state.select(torch.zeros(300).long()), action, torch.rand(300, head.noise_size))
    drawn_coin, drawn_after = prediction.codes.vectors[:, 0, 0].unbind(-1)
    assert ((drawn_coin.abs() - 1).abs() < 0.4).float().mean() > 0.97 and 0.35 < (drawn_coin > 0).float().mean() < 0.65
    assert ((drawn_after - (action - 1)).abs() < 0.4).float().mean() > 0.97


@torch.no_grad()
def test_a_narrow_world_has_no_density_without_bound():
    """A dimension that never varies costs no more than that of the least standard deviation."""
    _, head, _, _ = dynamics("rnn", floor=0.1)
    head.out.bias[2 * K * E * 3 :] -= 50  # logarithms of deviations
    assert torch.isclose(head._mixture(torch.randn(4, 16))[2].min(), torch.tensor(0.1))


def test_what_cannot_be_is_refused():
    action = ActionTable(actions=3, dim=16)
    with pytest.raises(UserError, match="codes with indices.*tokenizer vae"):
        Mixture(shapes=Shapes((2, 10, 8), Actions((3,)), (1, 2), 2, 5, 3, 16), action=action)
    for keywords in (dict(mixtures=0), dict(floor=0.0), dict(temperature=-1.0)):
        with pytest.raises(UserError, match=next(iter(keywords))):
            Mixture(shapes=SHAPES, action=action, **keywords)
    with pytest.raises(UserError, match="learns from frames alone"):
        VAE(frame_shape=(1, 8, 8)).loss(steps_of(1, 1, frame=(1, 8, 8)), Codes(vectors=torch.zeros(1, 1, 1, 32)))
    with pytest.raises(UserError, match="no codebook"):
        VAE(frame_shape=(1, 8, 8)).embed(torch.zeros(1, 1, 1).long())
    for keywords in (dict(dim=0), dict(free_nats=-1.0)):
        with pytest.raises(UserError, match=next(iter(keywords))):
            VAE(frame_shape=(1, 8, 8), **keywords)


# ------------------------------------------------------------------------------------------------------ the autoencoder


@torch.no_grad()
def test_the_divergence_is_that_of_normal_distributions_and_has_a_floor():
    steps = steps_of(4, 2, frame=(2, 10, 8))
    vae = rouse(VAE(frame_shape=(2, 10, 8), dim=4, channels=8, free_nats=0.0))
    mean, log_variance = vae._posterior(steps.obs)
    exact = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(0.0, 1.0)).sum(-1)
    assert close(vae.loss(steps)[0]["kl"], exact) and torch.equal(vae.encode(steps).vectors, mean.unsqueeze(2))
    vae.free_nats = float(exact.median()) / 4  # per dimension
    assert close(vae.loss(steps)[0]["kl"], exact.clamp(min=float(exact.median())))


def test_z_is_sampled_while_it_learns():
    steps = steps_of(2000, 1, frame=(1, 8, 8))
    steps.obs[:] = steps.obs[:1]  # the same frame
    vae = rouse(VAE(frame_shape=(1, 8, 8), dim=4, channels=8)).train()
    mean, log_variance = vae._posterior(steps.obs[:1])
    z = vae.loss(steps)[1].vectors.flatten(1)
    assert ((z.mean(0) - mean[0, 0]).abs() < 0.1 * (log_variance[0, 0] / 2).exp()).all()
    assert ((z.std(0) / (log_variance[0, 0] / 2).exp() - 1).abs() < 0.08).all()
    assert close(vae.encode(steps).vectors[0, 0, 0], mean[0, 0])


def test_a_copy_in_bf16_dreams_about_the_same():
    """A world model of these parts imagines with a linear controller, in both precisions."""
    torch.manual_seed(0)
    vae = VAE(frame_shape=(2, 10, 8), dim=6, channels=8)
    shapes = Shapes((2, 10, 8), Actions((3,)), (1, 1), 1, 0, 6, 16)
    body, head, _, _ = dynamics("rnn", shapes)
    heads = {"reward": SignReward(dim=16, hidden=8), "termination": Termination(dim=16, hidden=8)}
    model = rouse(WorldModel(tokenizer=vae, backbone=body, decoding=head, **heads), 0.1)
    steps = steps_of(4, 3, frame=(2, 10, 8))
    policy = LinearController(shapes=model.shapes)
    policy.search.mean.normal_(generator=torch.Generator().manual_seed(0))
    noise = torch.rand(4, 3, model.noise_size)
    codes = model.encode(steps)
    exact, rough = (imagine(each, *each.start(steps, codes), policy, 3, noise) for each in (model, copy_for_inference(model)))
    assert exact.h.dtype == rough.h.dtype == torch.float32
    assert (exact.h[:, 1] - rough.h[:, 1]).abs().max() < 0.1 and exact.codes.vectors.isfinite().all()
    frames = copy_for_inference(model).decode(rough.codes)
    assert frames.shape == (4, 4, 2, 10, 8) and (frames.float() - model.decode(rough.codes)).abs().max() < 0.1
