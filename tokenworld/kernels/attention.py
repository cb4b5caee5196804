"""Attention in the formulation that is fastest where it runs.

On a GPU that is PyTorch's own kernel. On a CPU its fused attention loses to two matrix products for few queries and short
sequences (measured: 5 times for one query over 170 keys in bf16, 2 to 4 times in training with dropout).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenworld.kernels import native
from tokenworld.kernels.layers import drop


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


def compute_dtype(x: Tensor) -> torch.dtype:
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
