"""Attention, dropout and group norm of a CPU against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from tokenworld.kernels import native
from tokenworld.kernels.attention import additive, attend, attend_ring
from tokenworld.kernels.layers import Dropout, GroupNorm, drop


def qkv(L, S, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 3, n, 8, generator=generator).to(dtype).requires_grad_() for n in (L, S, S)]


@pytest.mark.parametrize("L, S", [(1, 7), (5, 7), (7, 7)])
def test_attention_is_pytorchs(L, S):
    seen = torch.rand(2, 1, L, S, generator=torch.Generator().manual_seed(1)) < 0.6
    seen[..., 0] = True
    ours, theirs = qkv(L, S), qkv(L, S)
    a = attend(*ours, additive(seen, L, torch.float32, torch.device("cpu"), False))
    b = F.scaled_dot_product_attention(*theirs, attn_mask=seen)
    assert torch.allclose(a, b, atol=1e-6)
    a.square().sum().backward()
    b.square().sum().backward()
    for x, y in zip(ours, theirs, strict=True):
        assert torch.allclose(x.grad, y.grad, atol=1e-5)


def test_causal_attention_needs_no_mask():
    q, k, v = qkv(6, 6)
    mask = additive(None, 6, torch.float32, torch.device("cpu"), True)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert torch.allclose(attend(q, k, v, mask, causal=True), expected, atol=1e-6)
    assert additive(None, 6, torch.float32, torch.device("cpu"), False) is None


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(1003, 999, requires_grad=True)  # not a multiple of eight
    y = drop(x, p)
    cut = round(256 * p) / 256
    assert (y == 0).float().mean().item() == pytest.approx(cut, abs=2e-3)
    assert y.mean().item() == pytest.approx(1, abs=3e-3)
    assert y.unique().tolist() == [0.0, pytest.approx(1 / (1 - cut))]
    # neighbours, and bytes of one random number, are independent
    zero = (y == 0).float()
    for lag in (1, 2, 7, 8):
        assert (zero[:, lag:] * zero[:, :-lag]).mean().item() == pytest.approx(cut**2, abs=3e-3)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_dropout_is_off_in_evaluation_and_repeats_with_the_seed():
    x = torch.randn(50, 50)
    module = Dropout(0.3)
    assert module.eval()(x) is x and drop(x, 0.0) is x
    module.train()
    torch.manual_seed(3)
    one = module(x)
    torch.manual_seed(3)
    assert torch.equal(one, module(x)) and not torch.equal(one, module(x))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_group_norm_has_pytorchs_gradient(layout):
    torch.manual_seed(0)
    x = (3 * torch.randn(6, 8, 5, 7) + 2).contiguous(memory_format=layout)  # 6 frames: more than one part
    ours, theirs = GroupNorm(4, 8), torch.nn.GroupNorm(4, 8).double()
    torch.nn.init.normal_(ours.weight)
    torch.nn.init.normal_(ours.bias)
    theirs.load_state_dict({name: value.double() for name, value in ours.state_dict().items()})
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    out = torch.randn(6, 8, 5, 7)
    y, z = ours(a), theirs(b)
    assert torch.allclose(y.double(), z, atol=1e-5)
    y.backward(out)
    z.backward(out.double())
    assert torch.allclose(a.grad.double(), b.grad, atol=1e-5)
    assert torch.allclose(ours.weight.grad.double(), theirs.weight.grad, atol=1e-4)
    assert torch.allclose(ours.bias.grad.double(), theirs.bias.grad, atol=1e-4)


@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-5), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("L, at", [(1, 0), (2, 3), (4, 5)])
def test_the_native_kernel_does_what_products_do(dtype, close, L, at, monkeypatch):
    if native.load_library() is None:
        pytest.skip("no compiler here")
    B, N, C, d = 3, 2, 9, 16
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    x, rotation, rings = drawn(B, L, 3, N, d), (drawn(L, d), drawn(L, d)), [drawn(B, N, C, d) for _ in range(2)]
    seen = torch.rand(B, 1, L, C, generator=generator) < 0.6
    seen[..., at] = True
    mask = additive(seen, L, dtype, x.device, False)
    ours = [ring.clone() for ring in rings]
    a = native.attend_ring(x, *rotation, mask, *ours, at)
    assert a is not None
    monkeypatch.setattr(native, "load_library", lambda: None)
    b = attend_ring(x, rotation, mask, *rings, at)
    assert torch.allclose(a.float(), b.float(), atol=close)
    for mine, theirs in zip(ours, rings, strict=True):
        assert torch.allclose(mine.float(), theirs.float(), atol=close)


def test_the_native_kernel_leaves_alone_what_it_cannot_do():
    qkv, turn = torch.randn(2, 1, 3, 2, 24), torch.randn(1, 24)  # a width that it was not compiled for
    rings, mask = [torch.zeros(2, 2, 5, 24) for _ in range(2)], torch.zeros(2, 1, 1, 5)
    assert native.attend_ring(qkv, turn, turn, mask, *rings, 0) is None
    assert native.attend_ring(qkv.requires_grad_(), turn, turn, mask, *rings, 0) is None
    assert not any(ring.any() for ring in rings)


def test_without_a_compiler_products_take_over(monkeypatch):
    native.load_library.cache_clear()
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("XDG_CACHE_HOME", "/nonexistent")
    assert native.load_library() is None
    native.load_library.cache_clear()
