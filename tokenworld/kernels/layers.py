"""Dropout and group norm in the formulation that is fastest where they run.

On a GPU that is PyTorch's own kernel. On a CPU dropout spends most of its time in drawing one random number per element, and
the gradient of a group norm on channels-last maps takes longer than that of the convolution next to it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    dy x over the positions of a frame."""

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
        views = [t.permute(0, 2, 3, 1).reshape(n, H * W, C) for t in (x, dy)]  # views where they are channels last
        out = dx.permute(0, 2, 3, 1)
        mean, r = mean.float().unsqueeze(-1), r.float().unsqueeze(-1)  # (n, groups, 1)
        grad_weight, grad_bias = torch.zeros(C), torch.zeros(C)
        for i in range(0, n, _GroupNorm.FRAMES):
            part = slice(i, i + _GroupNorm.FRAMES)
            a, b = (t[part] for t in views)  # x, dy (f, H*W, C)
            sums = b.sum(1, dtype=torch.float32).view(-1, groups, C // groups)  # of dy
            products = (b * a).sum(1, dtype=torch.float32).view(sums.shape)  # of dy x
            hats = (products - mean[part] * sums) * r[part]  # of dy x^
            grad_bias += sums.sum(0).flatten()
            grad_weight += hats.sum(0).flatten()
            g = weight.float().view(1, groups, -1)
            mean_dy, mean_hat = ((g * t).sum(-1, keepdim=True) / m for t in (sums, hats))  # means of g dy and g dy x^
            on_dy = (g * r[part]).expand(sums.shape)
            on_x = (-mean_hat * r[part] ** 2).expand(sums.shape)
            alone = (r[part] * (mean_hat * mean[part] * r[part] - mean_dy)).expand(sums.shape)
            on_dy, on_x, alone = (t.reshape(-1, 1, C).to(x.dtype) for t in (on_dy, on_x, alone))
            torch.addcmul(torch.addcmul(alone, a, on_x), b, on_dy, out=out[part].view(b.shape))
        return dx, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), None, None


class PackedLinear(nn.Module):
    """A linear layer whose bf16 weight lies as oneDNN wants it: `nn.Linear` lays it out again in every call, which for the
    64 rows of one pass takes as long as the product. `then`: an activation that it applies on the way."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), 64)
        self.bias, self.then = linear.bias, "none"

    def forward(self, x: Tensor) -> Tensor:
        kind = "none" if self.then == "gelu" else ""  # of GELU: the exact one
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.then, [], kind)
