"""The recurrent state-space model over a recurrent backbone and, where its posterior reads the frame alone, a transformer."""

import pytest
import torch
from conftest import close, rouse, steps_of

from tokenworld.actions import DiscreteAction
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
SHAPES = Shapes((2, 10, 8), 3, (2, 2), 4, 0, 8, 16)
MODES = pytest.mark.parametrize("body, posterior", [("rnn", "frame_and_state"), ("rnn", "frame"), ("gpt", "frame")])


def dynamics(body, posterior, **keywords):
    body = Recurrent(dim=16, context=4) if body == "rnn" else GPT(layers=2, heads=2, dim=16, context=4)
    head = RSSM(shapes=SHAPES, action=DiscreteAction(actions=3, dim=16), groups=3, classes=5, hidden=16, posterior=posterior,
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
    frame, action, kl = (2, 10, 8), DiscreteAction(actions=3, dim=16), {"dyn": 1.0, "rep": rep}
    if kind == "single":
        tokenizer, body = Categorical(frame_shape=frame, groups=4, classes=4, channels=8), GPT(layers=1, heads=2, dim=16)
        make = Single
    else:
        tokenizer, body = Continuous(frame_shape=frame, channels=8, dim=8), Recurrent(dim=16)
        make = RSSM
    shapes = Shapes(frame, 3, tokenizer.grid, tokenizer.K, tokenizer.V, tokenizer.E, 16)
    head = make(shapes=shapes, action=action, kl=kl, free_nats=0.0)
    D = head.shapes.dim
    model = WorldModel(tokenizer=tokenizer, backbone=body, decoding=head, reward=SignReward(dim=D, hidden=8),
                       termination=Termination(dim=D, hidden=8)).train()  # fmt: skip
    steps = steps_of(4, 6, frame=frame)
    losses = {name: loss for name, loss in model.joint_loss(steps).items() if name in ("dyn", "rep")}
    total_loss(losses, head.weights, steps).backward()
    grad = next(p.grad for name, p in tokenizer.named_parameters() if "encoder" in name and p.ndim > 1)
    assert grad is not None and grad.abs().max() > 0
