"""The recurrent state-space model over a recurrent backbone and, where its posterior reads the frame alone, a transformer."""

from dataclasses import replace

import pytest
import torch
from conftest import close, rouse, steps_of

from tokenworld.action_space import Actions
from tokenworld.actions import ActionTable
from tokenworld.backbones.gpt import GPT
from tokenworld.backbones.recurrent import Recurrent
from tokenworld.decoding.rssm import RSSM
from tokenworld.decoding.single import Single
from tokenworld.errors import UserError
from tokenworld.heads import SignReward, Termination
from tokenworld.interfaces import Codes, Shapes
from tokenworld.nn import copy_for_inference, total_loss
from tokenworld.tokenizers.categorical import Categorical
from tokenworld.tokenizers.continuous import Continuous
from tokenworld.world_model import WorldModel

B, LONG = 3, 11
FIRST = [(0, 0), (1, 5), (2, 1), (2, 9)]
SHAPES = Shapes((2, 10, 8), Actions((3,)), (2, 2), 4, 0, 8, 16)
MODES = pytest.mark.parametrize("body, posterior", [("rnn", "frame_and_state"), ("rnn", "frame"), ("gpt", "frame")])


def dynamics(body, posterior, **keywords):
    body = Recurrent(dim=16, context=4) if body == "rnn" else GPT(layers=2, heads=2, dim=16, context=4)
    head = RSSM(shapes=SHAPES, action=ActionTable(actions=3, dim=16), groups=3, classes=5, hidden=16, posterior=posterior,
                **keywords)  # fmt: skip
    return rouse(body), rouse(head), Codes(vectors=torch.randn(B, LONG, 4, 8)), steps_of(B, LONG, first=FIRST)


@MODES
@pytest.mark.parametrize("start", [1, 2, 7])
@torch.no_grad()
def test_loss_equals_start_and_step(body, posterior, start):
    body, head, codes, steps = dynamics(body, posterior)
    losses, h, read = head.loss(body, codes, steps)
    assert h.shape == (B, LONG - 1, head.shapes.dim) and all(loss.shape == (B, LONG - 1) for loss in losses.values())
    p, state = head.start(body, codes[:, :start], steps[:, :start])
    seen = [p]
    for t in range(start, LONG):
        p, state = head.step(body, state, steps.action[:, t - 1], None, codes[:, t : t + 1], steps.first[:, t])
        seen.append(p)
    got = torch.stack([p.h for p in seen], 1)
    assert close(got[:, 1:], h[:, start - 1 :])
    assert torch.equal(torch.cat([p.codes.indices for p in seen], 1), read.indices[:, start - 1 :])
    assert close(torch.cat([p.codes.vectors for p in seen], 1), read.vectors[:, start - 1 :])


@MODES
@torch.no_grad()
def test_an_episode_alone(body, posterior):
    body, head, codes, steps = dynamics(body, posterior)
    losses, h, _ = head.loss(body, codes, steps)
    alone, alone_h, _ = head.loss(body, codes[1:2, 5:], steps[1:2, 5:])
    assert close(h[1:2, 5:], alone_h) and all(close(losses[name][1:2, 5:], alone[name]) for name in losses)


@MODES
@torch.no_grad()
def test_reading_back_what_was_drawn(body, posterior):
    body, head, codes, steps = dynamics(body, posterior)
    _, state = head.start(body, codes, steps)
    drawn, _ = head.step(body, state.select(torch.arange(B)), steps.action[:, 0], torch.rand(B, head.noise_size))
    read, _ = head.step(body, state, steps.action[:, 0], None, drawn.codes)
    assert torch.equal(drawn.h, read.h) and close(drawn.score(), read.score())


@MODES
@torch.no_grad()
def test_in_bf16(body, posterior):
    body, head, codes, steps = dynamics(body, posterior)
    body, head = copy_for_inference(body), copy_for_inference(head)
    _, state = head.start(body, codes, steps)
    p, _ = head.step(body, state, steps.action[:, 0], torch.rand(B, 3))
    assert p.h.dtype == torch.bfloat16 and p.score().dtype == torch.float32 and p.h.isfinite().all()


def test_a_transformer_cannot_scan():
    _, head, codes, steps = dynamics("rnn", "frame_and_state")
    with pytest.raises(UserError, match="backbone recurrent"):
        head.loss(GPT(layers=1, heads=2, dim=16, context=4), codes, steps)


@pytest.mark.parametrize("rep", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["single", "rssm"])
def test_joint_gradient_of_the_dynamics_alone(kind, rep):
    """With rep = 0 it still comes through what the dynamics reads: the sample that enters the next step."""
    frame, action, kl = (2, 10, 8), ActionTable(actions=3, dim=16), {"dyn": 1.0, "rep": rep}
    if kind == "single":
        tokenizer, body = Categorical(frame_shape=frame, groups=4, classes=4, channels=8), GPT(layers=1, heads=2, dim=16)
        make = Single
    else:
        tokenizer, body = Continuous(frame_shape=frame, channels=8, dim=8), Recurrent(dim=16)
        make = RSSM
    shapes = Shapes(frame, Actions((3,)), tokenizer.grid, tokenizer.K, tokenizer.V, tokenizer.E, 16)
    head = make(shapes=shapes, action=action, kl=kl, free_nats=0.0)
    D = head.shapes.dim
    model = WorldModel(tokenizer=tokenizer, backbone=body, decoding=head, reward=SignReward(dim=D, hidden=8),
                       termination=Termination(dim=D, hidden=8)).train()  # fmt: skip
    steps = steps_of(4, 6, frame=frame)
    losses = {name: loss for name, loss in model.joint_loss(steps).items() if name in ("dyn", "rep")}
    total_loss(losses, head.weights, steps).backward()
    grad = next(p.grad for name, p in tokenizer.named_parameters() if "encoder" in name and p.ndim > 1)
    assert grad is not None and grad.abs().max() > 0


def drawn(head, body, state, actions, noise):
    """Codes (B, H, G) and h (B, H, D) of imagined steps."""
    out = []
    for t in range(noise.shape[1]):
        p, state = head.step(body, state, actions[:, t], noise[:, t])
        out.append(p)
    return torch.cat([p.codes.indices for p in out], 1), torch.stack([p.h for p in out], 1)


@MODES
@torch.no_grad()
def test_the_past_matters_and_the_future_does_not(body, posterior):
    body, head, codes, steps = dynamics(body, posterior)
    steps = steps_of(B, LONG)  # one episode
    _, h, read = head.loss(body, codes, steps)
    action = steps.action.clone()
    action[:, 4] = (action[:, 4] + 1) % 3
    _, other_h, other = head.loss(body, codes, replace(steps, action=action))
    assert torch.equal(other_h[:, :4], h[:, :4]) and ((other_h - h).abs().amax(-1)[:, 4] > 1e-4).all()
    changed = (other.logits - read.logits).abs().amax((-1, -2))[:, 5]  # of a frame that is the same
    assert (changed > 1e-5).all() if posterior == "frame_and_state" else (changed == 0).all()
    moved = codes.vectors.clone()
    moved[:, 4] += 3 * torch.randn(4, 8)
    _, other_h, other = head.loss(body, Codes(vectors=moved), steps)
    assert torch.equal(other_h[:, :3], h[:, :3]) and torch.equal(other.indices[:, :4], read.indices[:, :4])
    assert ((other.logits - read.logits).abs().amax((-1, -2))[:, 4] > 1e-4).all()


@MODES
@torch.no_grad()
def test_noise_decides_and_branches_do_not_interact(body, posterior):
    body, head, codes, steps = dynamics(body, posterior)
    actions, noise = torch.randint(3, (B, 4)), torch.rand(B, 4, head.noise_size)
    fresh = lambda: head.start(body, codes, steps)[1]  # noqa: E731
    z, h = drawn(head, body, fresh(), actions, noise)
    again, _ = drawn(head, body, fresh(), actions, noise)
    other, _ = drawn(head, body, fresh(), actions, torch.rand(B, 4, head.noise_size))
    assert torch.equal(z, again) and not torch.equal(z, other)
    index, state = torch.tensor([2, 0, 2, 1]), fresh()
    branch = state.select(index)
    z_branch, h_branch = drawn(head, body, branch, actions[index], noise[index])
    z_state, _ = drawn(head, body, state, actions, noise)
    assert torch.equal(z_state, z) and torch.equal(z_branch, z[index]) and close(h_branch, h[index])


@torch.no_grad()
def test_rows_of_a_state_are_replaced():
    body, head, codes, steps = dynamics("rnn", "frame_and_state")
    other_codes = Codes(vectors=torch.randn(2, 5, 4, 8))
    _, other = head.start(body, other_codes, steps_of(2, 5, first=[(0, 0), (1, 4)]))
    _, state = head.start(body, codes, steps)
    mixed = state.put(torch.tensor([2, 0]), other)
    actions, noise = torch.randint(3, (B, 3)), torch.rand(B, 3, head.noise_size)
    z, h = drawn(head, body, mixed, actions, noise)
    for row, (source, i) in enumerate(((other, 1), (state, 1), (other, 0))):
        z_alone, h_alone = drawn(head, body, source.select(torch.tensor([i])), actions[row : row + 1], noise[row : row + 1])
        assert torch.equal(z[row], z_alone[0]) and close(h[row], h_alone[0])


@torch.no_grad()
def test_memory_has_no_end_and_a_window_has():
    """The first frame matters to the last prediction, unless an episode began since; not to a transformer with a window."""
    T = 14
    for body, posterior, remembers in (("rnn", "frame_and_state", True), ("rnn", "frame", True), ("gpt", "frame", False)):
        body, head, _, _ = dynamics(body, posterior)
        if remembers:
            body.norm.bias[-16:] -= 3  # the update gate: random weights forget
        codes, steps = Codes(vectors=torch.randn(8, T, 4, 8)), steps_of(8, T)
        begun = steps_of(8, T, first=[(i, 9) for i in range(8)])
        vectors = codes.vectors.clone()
        vectors[:, 0] += 3 * torch.randn(8, 4, 8)
        differences = [(head.start(body, codes, each)[0].h - head.start(body, Codes(vectors=vectors), each)[0].h).abs().max()
                       for each in (steps, begun)]  # fmt: skip
        assert (differences[0] > 0) == remembers and differences[1] == 0, (posterior, differences)


@torch.no_grad()
def test_temperature_and_free_nats():
    body, head, codes, steps = dynamics("rnn", "frame", temperature=0.0)
    p, _ = head.step(body, head.start(body, codes, steps)[1], steps.action[:, 0], torch.rand(B, 3))
    assert torch.equal(p.score().argmax(-1), p.codes.indices[:, 0])
    body, head, codes, steps = dynamics("rnn", "frame", free_nats=0.0)
    exact = head.loss(body, codes, steps)[0]["dyn"]
    head.free_nats = float(exact.median())
    assert close(head.loss(body, codes, steps)[0]["dyn"], exact.clamp(min=head.free_nats))  # of each step


def test_a_deterministic_world_is_learned_and_imagined():
    """A counter that each action moves on by 1 or 2, of 6 states: what is imagined decodes to the state that comes."""
    torch.manual_seed(0)
    shapes = Shapes((1, 8, 8), Actions((2,)), (1, 1), 1, 0, 6, 32)
    body = Recurrent(dim=32, context=4)
    head = RSSM(shapes=shapes, action=ActionTable(actions=2, dim=32), groups=4, classes=4, hidden=32, free_nats=0.0)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=5e-3)

    def world(rows, T, seed):
        steps = steps_of(rows, T, A=2, first=[(i, 0) for i in range(rows)], seed=seed)
        state = torch.cat([torch.zeros(rows, 1), (1 + steps.action).cumsum(1)], 1).long()[:, :-1] % 6
        return Codes(vectors=torch.nn.functional.one_hot(state, 6).float().unsqueeze(2)), steps

    for update in range(250):
        codes, steps = world(32, 6, update)
        losses, _, read = head.loss(body, codes, steps)
        error = (read.vectors - codes.vectors).square().sum((-1, -2)).mean()
        loss = losses["dyn"].mean() + 0.1 * losses["rep"].mean() + 5 * error
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    body.eval(), head.eval()
    codes, steps = world(64, 16, 999)
    with torch.no_grad():
        _, state = head.start(body, codes[:, :2], steps[:, :2])
        errors = []
        for t in range(2, 16):
            p, state = head.step(body, state, steps.action[:, t - 1], torch.rand(64, 4))
            errors.append((p.codes.vectors - codes.vectors[:, t : t + 1]).square().mean())
    assert torch.stack(errors).mean().sqrt() < 0.15, torch.stack(errors).sqrt()
