"""Heads: their values and losses by hand."""

import math

import pytest
import torch
from conftest import close

from tokenworld.errors import UserError
from tokenworld.heads import Bernoulli, Sign, SignReward, Termination, TwoHot, TwoHotReward
from tokenworld.nn import symexp, symlog

N = 4000
EVEN = (torch.arange(N) + 0.5) / N  # evenly spread noise: frequencies are right up to 1 / N


def test_sign_by_hand():
    p = torch.tensor([0.2, 0.5, 0.3])  # of -1, 0, 1
    head = Sign(p.log())
    assert close(head.mean, torch.tensor(0.1))
    for reward, probability in [(-7.0, 0.2), (0.0, 0.5), (0.25, 0.3), (4.0, 0.3)]:
        assert close(head.loss(torch.tensor(reward)), torch.tensor(-math.log(probability)))
    assert close(head.signs, p)
    sample = Sign(p.log().expand(N, 3)).sample(EVEN)
    assert [round((sample == v).float().mean().item(), 3) for v in (-1, 0, 1)] == [0.2, 0.5, 0.3]


def test_symlog_and_back():
    x = torch.tensor([-1000.0, -1.0, -0.01, 0.0, 0.5, 3.0, 1e6])
    assert close(symexp(symlog(x)), x, 1e-4)
    assert close(symlog(torch.tensor([math.e - 1, 1 - math.e])), torch.tensor([1.0, -1.0]))


CENTRES = symexp(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]))


def test_two_hot_loss_by_hand():
    logp = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25]).log()
    head = TwoHot(logp, CENTRES)
    assert close(head.loss(CENTRES[3]), -logp[3])  # on a centre
    between = symexp(torch.tensor(1.25))
    assert close(head.loss(between), -(0.75 * logp[3] + 0.25 * logp[4]))
    assert close(head.loss(symexp(torch.tensor(-0.1))), -(0.1 * logp[1] + 0.9 * logp[2]))
    assert close(head.loss(torch.tensor(1e9)), -logp[4]) and close(head.loss(torch.tensor(-1e9)), -logp[0])
    assert close(TwoHot(logp.expand(5, 5), CENTRES).loss(CENTRES), -logp)


def test_two_hot_mean_is_of_rewards():
    p = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25])
    assert close(TwoHot(p.log(), CENTRES).mean, (p * CENTRES).sum())
    assert close(TwoHot(p.log(), CENTRES).signs, torch.stack([p[:2].sum(), p[2], p[3:].sum()]))
    sample = TwoHot(p.log().expand(N, 5), CENTRES).sample(EVEN)
    assert abs(sample.mean() - (p * CENTRES).sum()) < 0.01 and set(sample.tolist()) <= set(CENTRES.tolist())


@pytest.mark.parametrize("target", [0.0, 1.0, -3.0, 0.37, 250.0])
def test_two_hot_learns_its_target(target):
    """At its minimum the loss is the entropy of the two bins' shares, and their symlog mean is the target."""
    head = TwoHotReward(dim=4, hidden=8, bins=41, limit=8.0)
    h, goal = torch.ones(1, 4), torch.tensor([target])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        loss = head(h).loss(goal).sum()
        loss.backward()
        optimizer.step()
    p = head(h).logits.softmax(-1)[0]
    assert abs((p * symlog(head.centres)).sum() - symlog(goal)) < 0.03
    z = symlog(goal) / 0.4  # bins apart
    share = (z - z.floor()).item()
    floor = -sum(q * math.log(q) for q in (share, 1 - share) if q > 1e-6)
    assert abs(loss.item() - floor) < 0.02


def test_bernoulli_by_hand():
    head = Bernoulli(torch.tensor(0.3).logit())
    assert close(head.mean, torch.tensor(0.3))
    assert close(head.loss(torch.tensor(True)), torch.tensor(-math.log(0.3)))
    assert close(head.loss(torch.tensor(False)), torch.tensor(-math.log(0.7)))
    sample = Bernoulli(torch.tensor(0.3).logit().expand(N)).sample(EVEN)
    assert sample.dtype == torch.bool and abs(sample.float().mean() - 0.3) < 1e-3


@pytest.mark.parametrize("head, start", [(SignReward, 0.0), (TwoHotReward, 0.0), (Termination, 0.5)])
def test_heads_keep_shapes_and_start_at_their_prior(head, start):
    out = head(dim=6, hidden=8)(torch.randn(2, 3, 6))
    assert out.mean.shape == out.sample(torch.rand(2, 3)).shape == out.loss(torch.zeros(2, 3)).shape == (2, 3)
    assert close(out.mean, torch.full((2, 3), start), 1e-3 if head is not TwoHotReward else 1e3)


@pytest.mark.parametrize("bins", [2, 1, 4])
def test_an_even_number_of_bins_is_refused(bins):
    with pytest.raises(UserError, match=f"reward.bins.*got {bins}"):
        TwoHotReward(dim=4, bins=bins)
