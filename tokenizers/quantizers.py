"""Vectors to integers and back: vector-quantize-pytorch behind one uniform call.

The library has a quantizer per file and a different call per quantizer. Here they share one call on (b, n, E), one loss
dictionary, and one rule about state: nothing moves unless the caller is training and did not ask to freeze.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vector_quantize_pytorch import FSQ, LFQ, VectorQuantize

from tokenworld.errors import UserError
from tokenworld.nn import in_fp32

Kind = Literal["vq", "vq_mse", "cosine", "fsq", "lfq"]

DEAD = 0.03  # a code whose running count per batch falls below this is dead ...
REVIVED = 0.05  # ... and comes back as a vector of the batch with this count: some 50 batches to find users


class Quantizer(nn.Module):
    """A codebook of V vectors of width E.

    kind: `vq` nearest neighbor, codebook a running mean of its users, dead codes revived (van den Oord et al. 2017,
    appendix A.1) · `vq_mse` nearest neighbor, codebook learned by its own MSE (eq. 3 there; IRIS) · `cosine` as `vq`
    on the unit sphere · `fsq` finite scalar quantization (Mentzer et al. 2023) · `lfq` lookup-free quantization (Yu et
    al. 2023). The last two have no codebook to learn: their vectors are a linear map of a fixed grid.

    `losses` names the entries of the loss dictionary of this kind.
    """

    def __init__(
        self,
        *,
        kind: Kind = "vq",
        vocab_size: int = 512,
        dim: int = 64,
        decay: float = 0.99,
        levels: list[int] | None = None,
    ) -> None:
        super().__init__()
        check(vocab_size >= 2, "tokenizer.vocab_size must be at least 2", vocab_size, "choose e.g. 512")
        check(dim >= 1, "tokenizer.dim must be at least 1", dim, "choose e.g. 64")
        check(0 <= decay < 1, "tokenizer.decay must lie in [0, 1)", decay, "choose e.g. 0.99")
        check(
            kind in get_args(Kind),
            f"tokenizer.quantizer must be one of {', '.join(get_args(Kind))}",
            repr(kind),
            "choose vq",
        )
        check(levels is None or kind == "fsq", "levels belong to quantizer fsq", levels, "leave them out")
        self.kind, self.V, self.E = kind, vocab_size, dim

        if kind == "fsq":
            self.vq = FSQ(levels=levels or fsq_levels(vocab_size), dim=dim)
            check(
                self.vq.codebook_size == vocab_size,
                f"the product of levels must be vocab_size {vocab_size}",
                levels,
                "change one",
            )
            self.losses: tuple[str, ...] = ()
        elif kind == "lfq":
            power = vocab_size & (vocab_size - 1) == 0
            check(power, "tokenizer.vocab_size must be a power of 2 for quantizer lfq", vocab_size, "choose e.g. 512")
            self.vq = LFQ(dim=dim, codebook_size=vocab_size, commitment_loss_weight=1.0)
            self.losses = ("entropy", "commitment")
        else:
            learned = kind == "vq_mse"
            self.vq = VectorQuantize(
                dim=dim,
                codebook_size=vocab_size,
                decay=decay,
                use_cosine_sim=kind == "cosine",
                learnable_codebook=learned,
                ema_update=not learned,
                threshold_ema_dead_code=0 if learned else DEAD,
                commitment_weight=0.0,  # ours, below: the library drops it in eval mode
                rotation_trick=False,
            )
            self.vq._codebook.reset_cluster_size = (
                REVIVED  # at the library's default, dead codes are redrawn on every batch
            )
            self.losses = ("codebook", "commitment") if learned else ("commitment",)
            if learned:
                nn.init.uniform_(self.vq._codebook.embed, -1 / vocab_size, 1 / vocab_size)

    def forward(self, x: Tensor, *, freeze: bool = False) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """x (b, n, E) -> code vectors (b, n, E) with straight-through gradient, indices (b, n) int64, losses ().

        In train mode the running-mean kinds move their codebook, unless `freeze`. Always in fp32, also under autocast.
        """
        with in_fp32(x.device):
            x = x.float()
            if self.kind == "fsq":
                quantized, indices = self.vq(x)
                return quantized, indices.long(), {}
            if self.kind == "lfq":
                # It has no running state; its train mode only switches its losses and its gradient on.
                self.vq.train(not freeze)
                (quantized, indices, _), parts = self.vq(x, return_loss_breakdown=True)
                entropy = parts.per_sample_entropy - parts.batch_entropy
                return quantized, indices.long(), {"entropy": entropy, "commitment": parts.commitment}
            if self.kind == "cosine":
                x = F.normalize(x, dim=-1)
            # Read before the call moves the codebook: the gradient belongs to the vectors that were chosen.
            codebook = self.codebook if self.kind == "vq_mse" else self.codebook.clone()
            _, indices, _ = self.vq(x.detach(), freeze_codebook=freeze)
            codes = F.embedding(indices, codebook)
            losses = {"commitment": F.mse_loss(x, codes.detach())}
            if self.kind == "vq_mse":
                losses["codebook"] = F.mse_loss(codes, x.detach())
            return x + (codes - x).detach(), indices, losses

    @property
    def codebook(self) -> Tensor:
        """The V code vectors, (V, E)."""
        if self.kind in ("fsq", "lfq"):
            return self.embed(
                torch.arange(
                    self.V, device=self.vq.implicit_codebook.device if self.kind == "fsq" else self.vq.codebook.device
                )
            )
        return self.vq.codebook

    def embed(self, indices: Tensor) -> Tensor:
        """indices (...) int64 -> code vectors (..., E)."""
        if self.kind not in ("fsq", "lfq"):
            return F.embedding(indices, self.codebook)
        # Flattened, because the library takes three dimensions for an image and moves channels.
        with in_fp32(indices.device):
            return self.vq.indices_to_codes(indices.reshape(1, -1)).reshape(*indices.shape, self.E)

    @torch.no_grad()
    def start_from(self, x: Tensor) -> None:
        """Move the codebook onto data: x (n, E), its rows drawn at random, all of them first if there are fewer than V.

        The codes beyond the data keep a little noise, so that no two are equal. A no-op for `fsq` and `lfq`.
        """
        if self.kind in ("fsq", "lfq"):
            return
        order = torch.cat([torch.randperm(len(x), device=x.device) for _ in range(-(-self.V // len(x)))])[: self.V]
        codes = x[order].float()
        repeated = torch.arange(self.V, device=x.device) >= len(x)
        codes[repeated] += 0.01 * codes.std() * torch.randn_like(codes[repeated])
        if self.kind == "cosine":
            codes = F.normalize(codes, dim=-1)
        book = self.vq._codebook
        book.embed.data.copy_(codes[None])
        book.cluster_size.fill_(REVIVED)
        book.embed_avg.copy_(codes[None] * REVIVED)


def fsq_levels(vocab_size: int) -> list[int]:
    """The fewest levels of 4..8 (else 3..8) whose product is vocab_size, as equal as possible: 512 -> [8, 8, 8]."""
    for smallest in (4, 3):
        candidates = sorted(_factors(vocab_size, 8, smallest), key=lambda levels: (len(levels), levels))
        if candidates:
            return candidates[0]
    raise UserError(
        f"tokenizer.vocab_size must be a product of levels 3..8 for quantizer fsq, got {vocab_size}: choose e.g. 512"
    )


def _factors(n: int, largest: int, smallest: int) -> list[list[int]]:
    """All falling lists of factors smallest..largest with product n."""
    if n == 1:
        return [[]]
    usable = [f for f in range(largest, smallest - 1, -1) if n % f == 0]
    return [[f, *rest] for f in usable for rest in _factors(n // f, f, smallest)]


def check(condition: bool, expected: str, got: object, advice: str) -> None:
    """Raise a UserError `expected, got ...: advice` unless the condition holds."""
    if not condition:
        raise UserError(f"{expected}, got {got}: {advice}")
