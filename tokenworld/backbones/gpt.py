"""GPT: a causal or block-causal transformer with sliding context (minGPT-like, as in IRIS, arXiv:2209.00588).

Faithful: pre-norm blocks, GELU, four-fold MLP, dropout. Differs: rotary positions instead of learned ones, and a band
mask of `context` steps instead of IRIS's flush of the whole history when the context is full, so that a rollout may go
on without limit and the cached result equals the uncached one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as checkpointed

from tokenworld.backbones.ring_cache import RingCache
from tokenworld.errors import UserError
from tokenworld.interfaces import Part
from tokenworld.kernels.attention import additive, attend, attend_ring, compute_dtype, rotate, write_ring
from tokenworld.kernels.layers import Dropout
from tokenworld.kernels.memory import ring_memory


class GPT(nn.Module, Part):
    """x (B, T, P, D) -> h (B, T, P, D). Raises UserError on sizes that do not fit together.

    checkpoint: keep only what enters each block for the gradient and compute the block again (Chen et al. 2016,
    arXiv:1604.06174): memory of one block instead of all, for a third more time.
    """

    def __init__(
        self,
        *,
        layers: int = 10,
        heads: int = 4,
        dim: int = 256,
        context: int = 20,
        dropout: float = 0.0,
        checkpoint: bool = False,
    ):
        super().__init__()
        if layers < 1 or context < 1:
            raise UserError(f"backbone.layers and backbone.context must be at least 1, got {layers} and {context}")
        if heads < 1 or dim < 1 or dim % (4 * heads):
            raise UserError(
                f"backbone.dim must be a multiple of 4 x heads (rotary pairs), got dim={dim} and heads={heads}:"
                f" choose e.g. dim={max(1, dim // (4 * max(heads, 1))) * 4 * max(heads, 1)}"
            )
        if not 0 <= dropout < 1:
            raise UserError(f"backbone.dropout must be at least 0 and below 1, got {dropout}")
        self.D, self.context, self.heads, self.checkpoint = dim, context, heads, checkpoint
        self.receptive_field = layers * (context - 1) + 1  # steps that an output depends on: each layer looks back further
        self.drop = Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        for block in self.blocks:
            for linear, share in ((block.qkv, 1), (block.mlp[0], 1), (block.out, 2 * layers), (block.mlp[2], 2 * layers)):
                # scaled by width, so that small models learn as fast as large ones; branches start small (GPT-2)
                nn.init.normal_(linear.weight, std=(linear.in_features * share) ** -0.5)
                nn.init.zeros_(linear.bias)
        quarter = dim // heads // 4
        self.register_buffer("frequencies", 100.0 ** (-torch.arange(quarter) / max(quarter, 1)), persistent=False)

    def forward(
        self, x: Tensor, within: str, cache: RingCache | None = None, first: Tensor | None = None, keep: bool = True
    ):
        """x (B, T, P, D), within "causal" or "full", first (B, T) -> h like x, cache (None if none came in).
        keep=False: x, of one step, is forgotten."""
        assert within in ("causal", "full"), within
        B, T, P, D = x.shape
        if cache is None:
            steps = torch.arange(T, device=x.device)
            positions_of_step = torch.arange(P, device=x.device)
            step_of, position_of = steps.repeat_interleave(P), positions_of_step.repeat(T)  # (L,), (L,)
            mask = self._mask_uncached(T, P, within, first, x.device)
            h = self._blocks(x.reshape(B, T * P, D), step_of, position_of, mask, causal=mask is None)
            return h.reshape(B, T, P, D), None
        return self._run_cached(x, within, cache, first, keep)

    def make_cache(self, batch: int, positions: int, dtype: torch.dtype | None = None) -> RingCache:
        """An empty cache for `batch` rows of steps with `positions` (P) each."""
        weight = self.norm.weight
        S = self.context * positions
        shape, C = (batch, self.heads, S, self.D // self.heads), S if weight.is_cuda else 0
        zeros = [ring_memory(shape, C, dtype or weight.dtype, weight.device) for _ in range(2 * len(self.blocks))]
        long = dict(dtype=torch.int64, device=weight.device)
        n = len(self.blocks)
        return RingCache(zeros[:n], zeros[n:], torch.zeros((), **long), torch.zeros(batch, **long), positions, 0, S)

    @torch.no_grad()
    def attention(self, x: Tensor, within: str, first: Tensor | None = None) -> Tensor:
        """Where each position of x (B, T, P, D) looks: shares (B, layers, N, L, L), query before key, that add up to 1."""
        B, T, P, D = x.shape
        position = torch.arange(T * P, device=x.device)
        mask = self._mask_uncached(T, P, within, first, x.device)
        mask = position <= position[:, None] if mask is None else mask  # (L, L) or (B, 1, L, L)
        x, rotation, shares = x.reshape(B, T * P, D), self._rotation(position // P, position % P, compute_dtype(x)), []
        added = additive(mask, T * P, compute_dtype(x), x.device, False)
        for block in self.blocks:
            qkv = block.qkv(block.norm1(x)).view(B, T * P, 3, self.heads, D // self.heads)
            q, k = rotate(qkv[:, :, :2].transpose(1, 3), rotation).unbind(2)  # (B, N, L, D/N)
            scores = (q @ k.transpose(-1, -2)).float() * q.shape[-1] ** -0.5  # (B, N, L, L)
            shares.append(scores.masked_fill(~mask, -torch.inf).softmax(-1))
            x = block(x, rotation, added, False, None)
        return torch.stack(shares, 1)

    def _run_cached(self, x: Tensor, within: str, cache: RingCache, first: Tensor | None, keep: bool):
        assert cache.alive, "this state was consumed by a step: keep a copy with state.select(index) before stepping"
        B, T, p, D = x.shape
        P, S = cache.positions, cache.S
        cache.reserve(T * p)
        C = cache.keys[0].shape[2]
        assert T == 1 or p == P and keep, (x.shape, P)
        index = cache.cursor + torch.arange(T * p, device=x.device)  # (L,) absolute positions of x
        step_of, position_of = index // P, index % P
        if first is not None:  # the row's episode begins at the last step of x that is marked first
            marked = torch.where(first, step_of.view(T, p)[:, 0], -1).amax(1)  # (B,)
        if T == 1:
            # Write, then attend over the ring: what one step overwrites has just left the band.
            start = cache.start if first is None else torch.maximum(cache.start, marked)
            slots = torch.arange(C, device=x.device)
            newest = cache.cursor + p - 1
            key_index = newest - (newest - slots) % S  # (C,) the absolute position that each slot holds
            mask = self._mask(key_index, index, start, P, within)  # (B, 1, 1 or p, C)
            at = cache.read % S  # a CPU copies faster to an index that the host knows
            write = at if x.device.type == "cpu" and at + p <= S else index % S
            ring = (cache.keys, cache.values, write, None)
        else:
            # Attend over ring + x, then write: early queries still need what the late ones overwrite.
            slots = torch.arange(C if cache.filled else 0, device=x.device)
            newest = cache.cursor - 1
            old_index = newest - (newest - slots) % S
            key_index = torch.cat([old_index, index])
            if first is None:
                start = cache.start
                mask = self._mask(key_index, index, start, P, within)
            else:
                start = torch.maximum(cache.start, marked)
                begun = torch.where(first, step_of.view(T, p)[:, 0], -1).cummax(1).values  # (B, T)
                begun = torch.maximum(begun, cache.start[:, None]).repeat_interleave(p, 1)  # (B, L)
                mask = self._mask(key_index, index, begun, P, within)
            slotted = min(T * p, S)  # only the last S positions have a slot
            ring = (cache.keys, cache.values, index[-slotted:] % S, slots)
        h = self._blocks(x.reshape(B, T * p, D), step_of, position_of, mask, ring=ring)
        return h.reshape(B, T, p, D), cache.advance(T * p, start) if keep else cache

    def _mask(self, key_index: Tensor, index: Tensor, start: Tensor, P: int, within: str) -> Tensor:
        """keys (S,), queries (L,), start (B,) or (B, L) -> bool (B, 1, 1 or L, S), true where a query sees a key."""
        key_step, step = key_index // P, (index // P).unsqueeze(-1)
        key_limit, limit = (key_index, index.unsqueeze(-1)) if within == "causal" else (key_step, step)
        if within == "full" and start.ndim == 1 and len(index) <= P:
            limit, step = limit[-1:], step[-1:]  # one step: all its queries see the same keys
        seen = (key_limit <= limit) & (key_step > step - self.context) & (key_index >= 0)  # (1 or L, S)
        start = start.view(start.shape[0], 1, -1, 1)
        return seen & (key_step >= start)

    def _mask_uncached(self, T: int, P: int, within: str, first: Tensor | None, device) -> Tensor | None:
        if first is None and within == "causal" and T <= self.context:
            return None
        position = torch.arange(T * P, device=device)
        step = position // P
        limit = position if within == "causal" else step
        seen = (limit <= limit[:, None]) & (step > step[:, None] - self.context)  # (L, L)
        if first is None:
            return seen
        episode = first.cumsum(1).repeat_interleave(P, 1)  # (B, L)
        return (seen & (episode[:, None, :] == episode[:, :, None])).unsqueeze(1)  # (B, 1, L, L)

    def _blocks(self, x: Tensor, step_of: Tensor, position_of: Tensor, mask, *, causal: bool = False, ring=None) -> Tensor:
        dtype = compute_dtype(x)
        rotation = self._rotation(step_of, position_of, dtype)
        mask = additive(mask, x.shape[1], dtype, x.device, causal)
        x = self.drop(x)
        for i, block in enumerate(self.blocks):
            layer = None if ring is None else (ring[0][i], ring[1][i], ring[2], ring[3])
            if self.checkpoint and torch.is_grad_enabled():
                x = checkpointed(block, x, rotation, mask, causal, layer, use_reentrant=False)
            else:
                x = block(x, rotation, mask, causal, layer)
        return self.norm(x)

    def _rotation(self, step_of: Tensor, position_of: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Half of each head turns with the time step, half with the position in the step: (L, D/N) cosines and sines."""
        turns = torch.stack([step_of, position_of]).to(torch.float32)  # (2, L)
        angle = (turns[:, :, None] * self.frequencies).transpose(0, 1).flatten(1)  # (L, 2 * D/N/4)
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([cos, cos], -1).to(dtype), torch.cat([-sin, sin], -1).to(dtype)  # (L, D/N) each


class Block(nn.Module):
    """Attention with fused projections, then an MLP, each behind a norm and added to the stream."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.drop = Dropout(dropout)

    def forward(self, x: Tensor, rotation, mask: Tensor | None, causal: bool, layer) -> Tensor:
        B, L, D = x.shape
        qkv = self.qkv(self.norm1(x)).view(B, L, 3, self.heads, D // self.heads)
        if layer is not None and layer[3] is None:  # one step: into the ring, then over the ring
            a = attend_ring(qkv, rotation, mask, *layer[:3])
        else:
            q, k = rotate(qkv[:, :, :2].transpose(1, 3), rotation).unbind(2)  # (B, N, L, D/N)
            v = qkv[:, :, 2].transpose(1, 2)
            if layer is not None:
                k, v = self._through_ring(k, v, *layer)
            dropout = self.dropout if self.training else 0.0
            a = attend(q, k, v, mask, causal=causal, dropout=dropout).transpose(1, 2).reshape(B, L, D)
        x = x + self.drop(self.out(a))
        return x + self.drop(self.mlp(self.norm2(x)))

    def _through_ring(self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, write: Tensor, old: Tensor):
        """Many steps attend over ring and x; then x goes into the ring."""
        seen = [t.contiguous() for t in (k, v)]
        if len(old):
            seen = [torch.cat([ring.to(t.dtype), t], 2) for ring, t in ((keys, k), (values, v))]
        for ring, t in ((keys, k), (values, v)):
            write_ring(ring, write, t[:, :, -len(write) :])
        return seen


TINY = dict(layers=2, heads=2, dim=16, context=4)
