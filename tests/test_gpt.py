"""The GPT against an attention written out by hand, and its limits. Its contract is in test_contracts.py."""

import math

import pytest
import torch
from conftest import close, rouse

from tokenworld.backbones import ring_cache
from tokenworld.backbones.gpt import GPT
from tokenworld.errors import UserError


def by_hand(model: GPT, x, within, begins):
    """One row x (T, P, D) through the model, one query and one head at a time; `begins[t]`: an episode's first."""
    T, P, D = x.shape
    n = D // model.heads
    episode = begins.long().cumsum(0)
    frequencies = 100.0 ** (-torch.arange(n // 4) / (n // 4))

    def turn(v, t, p):  # the first quarter of pairs turns with time, the second with place; a pair is (i, i + n/2)
        angle = torch.cat([t * frequencies, p * frequencies])
        a, b = v[: n // 2], v[n // 2 :]
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()])

    places = [(t, p) for t in range(T) for p in range(P)]
    x = x.reshape(T * P, D)
    for block in model.blocks:
        q, k, v = block.qkv(block.norm1(x)).chunk(3, -1)
        mixed = torch.zeros_like(x)
        for i, (t, p) in enumerate(places):
            seen = [
                j
                for j, (s, r) in enumerate(places)
                if episode[s] == episode[t] and t - model.context < s <= t and (s < t or r <= p or within == "full")
            ]
            for head in range(model.heads):
                part = slice(head * n, (head + 1) * n)
                query = turn(q[i, part], t, p)
                score = torch.stack([query @ turn(k[j, part], *places[j]) for j in seen])
                mixed[i, part] = (score / math.sqrt(n)).softmax(0) @ v[seen, part]
        x = x + block.out(mixed)
        x = x + block.mlp(block.norm2(x))
    return model.norm(x).view(T, P, D)


@pytest.mark.parametrize("within", ["causal", "full"])
@torch.no_grad()
def test_equals_attention_by_hand(within):
    model = rouse(GPT(layers=2, heads=2, dim=16, context=3))
    x = torch.randn(1, 6, 2, 16)
    begins = torch.tensor([[False, False, False, False, True, False]])
    assert close(model(x, within, None, begins)[0][0], by_hand(model, x[0], within, begins[0]))
    nothing = torch.zeros(6, dtype=torch.bool)
    assert close(model(x, within)[0][0], by_hand(model, x[0], within, nothing))
    short = x[:, :2]  # the fast path without a mask
    assert close(model(short, within)[0][0], by_hand(model, short[0], within, nothing[:2]))


@torch.no_grad()
def test_only_time_differences_matter():
    """A rollout may go on for ever: after a thousand steps the same last steps give the same h."""
    model = rouse(GPT(layers=1, heads=2, dim=16, context=3))
    x = torch.randn(1, 3, 2, 16)
    cache, far = model.make_cache(1, 2), torch.randn(1, 1000, 2, 16)
    _, cache = model(far, "causal", cache)
    h, _ = model(x, "causal", cache)
    assert close(h[:, 2], model(x, "causal")[0][:, 2], 1e-3)


@torch.no_grad()
def test_dropout_only_in_training():
    model = rouse(GPT(layers=1, heads=2, dim=16, context=3, dropout=0.5))
    x = torch.randn(1, 3, 2, 16)
    assert torch.equal(model(x, "causal")[0], model(x, "causal")[0])
    model.train()
    assert not torch.equal(model(x, "causal")[0], model(x, "causal")[0])


def test_checkpointing_changes_memory_only():
    """The same h and the same gradients, the same dropout included, with less kept in between."""
    x, first, kept = torch.randn(2, 4, 3, 16), torch.zeros(2, 4, dtype=torch.bool), []
    gradients = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        model = GPT(layers=3, heads=2, dim=16, context=3, dropout=0.3, checkpoint=checkpoint).train()
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t):
            h = model(x, "causal", None, first)[0]
        torch.manual_seed(1)  # what is drawn afterwards does not matter
        h.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
        kept.append(sum(sizes))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))
    assert kept[1] < kept[0] / 3


@torch.no_grad()
def test_consumed_caches_are_only_noticed_in_debug(monkeypatch):
    model, x = GPT(layers=1, heads=1, dim=8, context=2), torch.randn(1, 1, 1, 8)
    monkeypatch.setattr(ring_cache, "DEBUG", False)
    cache = model.make_cache(1, 1)
    model(x, "causal", cache)
    model(x, "causal", cache)
    monkeypatch.setattr(ring_cache, "DEBUG", True)
    model(x, "causal", cache)
    with pytest.raises(AssertionError, match="consumed"):
        model(x, "causal", cache)


@pytest.mark.parametrize("keywords, name", [
    (dict(layers=0), "layers"), (dict(context=0), "context"), (dict(heads=0), "heads"),
    (dict(dim=18, heads=2), "dim=18"),
    (dict(dropout=1.0), "dropout"), (dict(dim=0), "dim"),
])  # fmt: skip
def test_bad_sizes_are_refused(keywords, name):
    with pytest.raises(UserError, match=f"backbone.*{name}"):
        GPT(**keywords)
