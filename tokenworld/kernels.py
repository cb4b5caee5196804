"""Attention, dropout and group norm in the formulation that is fastest where they run.

On a GPU that is PyTorch's own kernel. On a CPU its fused attention loses to two matrix products for few queries and short
sequences (measured: 5 times for one query over 170 keys in bf16, 2 to 4 times in training with dropout), dropout spends
most of its time in drawing one random number per element, and the gradient of a group norm on channels-last maps takes
longer than that of the convolution beside it.
"""

from __future__ import annotations

import mmap

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenworld import native

HUGE = 2 << 20  # bytes of a huge page


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, causal: bool = False, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v: q (B, N, L, d), k and v (B, N, S, d), mask as `additive` makes it -> (B, N, L, d).

    causal: the mask is that of L = S positions in order, and `mask` may be None.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal and mask is None)
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (B, N, L, S)
    if mask is not None:
        scores += mask
    return drop(scores.softmax(-1), dropout) @ v


def attend_ring(
    qkv: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor, keys: Tensor, values: Tensor, write: int | Tensor
) -> Tensor:
    """Turn queries and keys, write keys and values into their rings, attend over the rings: qkv (B, L, 3, N, d) of one step,
    rotation (L, d) twice, mask (B, 1, 1 or L, C), keys and values (B, N, C, d); `write`: the slot of the first position, or
    those of all -> (B, L, N * d)."""
    B, L, _, N, d = qkv.shape
    if isinstance(write, int):
        a = native.attend_ring(qkv, *rotation, mask, keys, values, write)
        if a is not None:
            return a
    q, k = rotate(qkv[:, :, :2].transpose(1, 3), rotation).unbind(2)  # (B, N, L, d)
    write_ring(keys, write, k)
    write_ring(values, write, qkv[:, :, 2].transpose(1, 2))
    return attend(q, keys.to(q.dtype), values.to(q.dtype), mask).transpose(1, 2).reshape(B, L, N * d)


def ring_memory(shape: tuple[int, ...], C: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros (B, N, C, d) at the front of memory for shape (B, N, S, d): on Linux in huge pages, where a processor looks up
    fewer addresses."""
    B, N, S, d = shape
    count = B * N * S * d
    if device.type == "cpu" and count * dtype.itemsize >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        memory = mmap.mmap(-1, count * dtype.itemsize, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        whole = torch.frombuffer(memory, dtype=dtype, count=count)
    else:
        whole = torch.zeros(count, dtype=dtype, device=device)
    return whole[: B * N * C * d].view(B, N, C, d)


def write_ring(ring: Tensor, at: int | Tensor, x: Tensor) -> None:
    """x (B, N, p, d) into the slots of a ring that begin at, or are listed in, `at`."""
    if isinstance(at, int):
        ring.narrow(2, at, x.shape[2]).copy_(x)
    else:
        ring.index_copy_(2, at, x.to(ring.dtype))


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding (RoFormer, arXiv:2104.09864): x (..., L, d), pairs are the two halves of the head; rotation: cosines
    and sines (L, d), the first half of the sines negative."""
    cos, sin = rotation
    half = x.shape[-1] // 2
    turned = torch.cat([x[..., half:], x[..., :half]], -1)
    return torch.addcmul(x * cos, turned, sin)


def computed_in(x: Tensor) -> torch.dtype:
    """The type of matrix products with x: its own, or that of an autocast around."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if kind != "meta" and torch.is_autocast_enabled(kind) else x.dtype


def additive(seen: Tensor | None, L: int, dtype: torch.dtype, device: torch.device, causal: bool) -> Tensor | None:
    """What to add to the scores: 0 where a query sees a key and -inf where not."""
    if seen is None:
        if not causal or device.type != "cpu":
            return None
        seen = torch.ones(L, L, dtype=torch.bool, device=device).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))


def drop(x: Tensor, p: float) -> Tensor:
    """Dropout: each element is zero with probability p, on a CPU rounded to 1/256; what stays is scaled up.

    A CPU draws eight elements' bytes with one random number.
    """
    if p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    n, cut = x.numel(), round(256 * p)
    draws = torch.empty(-(-n // 8), dtype=torch.int64).random_(-(2**63), None).view(torch.uint8)[:n]
    return x * (draws.view(x.shape) >= cut).to(x.dtype).mul_(256 / (256 - cut))


class Dropout(nn.Module):
    """`drop` in training."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return drop(x, self.p) if self.training else x


class GroupNorm(nn.GroupNorm):
    """`nn.GroupNorm` (Wu and He 2018) with a gradient of its own on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled() and x.ndim == 4:
            return _GroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(x)


class _GroupNorm(torch.autograd.Function):
    """With m values in a group, x^ = (x - mean) r and y = g x^ + b:  dx = r (g dy - mean(g dy) - x^ mean(g dy x^)), which
    is dy times a number per channel, plus x times one per group, plus one per group. All it needs are the sums of dy and
    dy x over the places of a frame."""

    FRAMES = 4  # at once, so that the passes over them stay in the cache

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        n, C, H, W = x.shape
        y, mean, r = torch.native_group_norm(x, weight, bias, n, C, H * W, groups, eps)  # mean, r (n, groups)
        ctx.save_for_backward(x, weight, mean, r)
        return y

    @staticmethod
    def backward(ctx, dy: Tensor):
        x, weight, mean, r = ctx.saved_tensors
        n, C, H, W = x.shape
        groups, m = mean.shape[1], C // mean.shape[1] * H * W
        dx = torch.empty_like(x)
        places = [t.permute(0, 2, 3, 1).reshape(n, H * W, C) for t in (x, dy)]  # views where they are channels last
        out = dx.permute(0, 2, 3, 1)
        mean, r = mean.float().unsqueeze(-1), r.float().unsqueeze(-1)  # (n, groups, 1)
        grad_weight, grad_bias = torch.zeros(C), torch.zeros(C)
        for i in range(0, n, _GroupNorm.FRAMES):
            part = slice(i, i + _GroupNorm.FRAMES)
            a, b = (t[part] for t in places)  # x, dy (f, H*W, C)
            sums = b.sum(1, dtype=torch.float32).view(-1, groups, C // groups)  # of dy
            products = (b * a).sum(1, dtype=torch.float32).view(sums.shape)  # of dy x
            hats = (products - mean[part] * sums) * r[part]  # of dy x^
            grad_bias += sums.sum(0).flatten()
            grad_weight += hats.sum(0).flatten()
            g = weight.float().view(1, groups, -1)
            one, two = ((g * t).sum(-1, keepdim=True) / m for t in (sums, hats))  # means of g dy and g dy x^
            on_dy = (g * r[part]).expand(sums.shape)
            on_x = (-two * r[part] ** 2).expand(sums.shape)
            alone = (r[part] * (two * mean[part] * r[part] - one)).expand(sums.shape)
            on_dy, on_x, alone = (t.reshape(-1, 1, C).to(x.dtype) for t in (on_dy, on_x, alone))
            torch.addcmul(torch.addcmul(alone, a, on_x), b, on_dy, out=out[part].view(b.shape))
        return dx, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None, None
