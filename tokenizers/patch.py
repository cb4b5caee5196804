"""A patch tokenizer: one code per square patch, encoded and decoded by small networks that all positions share.

Frames of games repeat themselves: a few thousand distinct patches make up hours of play, and what matters (a ball of
four pixels) is rare. A convolutional tokenizer spends its capacity on the background and smears the ball. Here each
distinct patch of a batch counts by its `rarity`-tempered frequency, the networks see only what differs from the
background, and after training each decoder entry (position, code) is set to the mean of the patches that it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, Losses, Part, Steps
from tokenworld.nn import in_fp32
from tokenworld.tokenizers.patches import cut, distinct, hash_weights, join
from tokenworld.tokenizers.quantizers import Kind, Quantizer, check
from tokenworld.tokenizers.vqvae import pixel_weights

TABLE_LIMIT = 2**27  # bytes of the decoder's table, K * V * C * patch * patch


class PatchTokenizer(nn.Module, Part):
    """Frames (C, H, W) to K = h * w codes, one per patch; a frame that the patch does not divide is padded with zeros.

    Decoding indices is one gather from a table of all (position, code) pairs, built when first needed.

    patch: side in pixels · dim: width E of the code vectors · hidden, layers: of both networks · commitment, l1, l2:
    loss weights · change_weight: weight in l1 and l2 of pixels that differ from the previous frame (batches with T >=
    2) · rarity: 0 weighs patches as they come, 1 weighs each distinct patch of a batch alike.
    """

    context, joint = 0, False

    def __init__(
        self,
        *,
        frame_shape: tuple[int, int, int],
        patch: int = 8,
        vocab_size: int = 512,
        dim: int = 64,
        hidden: int = 256,
        layers: int = 2,
        quantizer: Kind = "vq",
        commitment: float = 0.25,
        l1: float = 0.0,
        l2: float = 1.0,
        change_weight: float = 1.0,
        rarity: float = 0.7,
    ) -> None:
        super().__init__()
        C, H, W = frame_shape
        check(
            1 <= patch <= min(H, W),
            f"tokenizer.patch must lie in 1..{min(H, W)} for frames of {H}x{W}",
            patch,
            f"choose e.g. {min(8, H, W)}",
        )
        check(hidden >= 1, "tokenizer.hidden must be at least 1", hidden, "choose e.g. 256")
        check(layers >= 1, "tokenizer.layers must be at least 1", layers, "choose e.g. 2")
        check(
            min(commitment, l1, l2) >= 0,
            "tokenizer.commitment, l1 and l2 must not be negative",
            (commitment, l1, l2),
            "choose 0 or more",
        )
        check(
            change_weight > 0,
            "tokenizer.change_weight must be positive",
            change_weight,
            "choose 1 to weigh all pixels alike",
        )
        check(0 <= rarity <= 1, "tokenizer.rarity must lie in 0..1", rarity, "choose e.g. 0.7")
        self.quantizer = Quantizer(kind=quantizer, vocab_size=vocab_size, dim=dim)
        self.frame_shape, self.patch = (C, H, W), patch
        self.grid = (-(-H // patch), -(-W // patch))
        self.K, self.V, self.E = self.grid[0] * self.grid[1], vocab_size, dim
        self.pixels = C * patch * patch
        size = self.K * self.V * self.pixels
        if size > TABLE_LIMIT:
            raise UserError(
                f"tokenizer.patch {patch} and tokenizer.vocab_size {vocab_size} must need a table of at most "
                f"{TABLE_LIMIT // 2**20} MB, got {size / 2**20:.0f} MB: choose a larger patch or a smaller vocabulary"
            )
        self.weights = {"l1": l1, "l2": l2} | {
            name: commitment if name == "commitment" else 1.0 for name in self.quantizer.losses
        }
        if "entropy" in self.weights:
            self.weights["entropy"] = 0.1  # the library's own default
        self.change_weight, self.rarity = change_weight, rarity

        self.encoder = PositionedMLP(self.K, self.pixels, hidden, layers, dim)
        self.decoder = PositionedMLP(self.K, dim, hidden, layers, self.pixels)
        self.register_buffer("background", torch.zeros(self.K, self.pixels))  # 0..1
        self.register_buffer("entries", torch.zeros(self.K, self.V, self.pixels, dtype=torch.uint8))
        self.register_buffer("refitted", torch.zeros(self.K, self.V, dtype=torch.bool))
        self.register_buffer("hash_weights", hash_weights(self.pixels + 1), persistent=False)
        self._table_of: tuple | None = None  # the parameters' versions that `entries` was built from

    # --- the interface ---

    @torch.no_grad()
    def encode(self, steps: Steps) -> Codes:
        """obs (B, T, C, H, W) uint8 -> indices (B, T, K), vectors (B, T, K, E). No gradient, no codebook update."""
        with in_fp32(steps.obs.device):
            patches = cut(steps.obs, self.patch)  # (B, T, K, pixels)
            B, T, K, _ = patches.shape
            distinct, position, inverse, _ = self._distinct(patches)
            x = self.encoder(self._center(distinct, position), position)  # (n, E)
            vectors, indices, _ = self.quantizer(x[None], freeze=True)
            return Codes(
                indices=indices[0][inverse].reshape(B, T, K),
                vectors=self.embed(indices[0])[inverse].reshape(B, T, K, -1),
            )

    def embed(self, indices: Tensor) -> Tensor:
        """indices (B, T, K) -> code vectors (B, T, K, E)."""
        return self.quantizer.embed(indices)

    def decode(self, codes: Codes, past: Tensor | None = None) -> Tensor:
        """codes -> obs (B, T, C, H, W) float in 0..1.

        Indices are looked up in the table, without gradient. Codes with vectors only go through the decoder, with it.
        """
        if codes.indices is None:
            B, T, K, E = codes.vectors.shape
            position = torch.arange(K, device=codes.vectors.device).repeat(B * T)
            out = self._decode(codes.vectors.reshape(-1, E), position)  # (B*T*K, pixels)
            return join(out.reshape(B, T, K, -1).clamp(0, 1), self.patch, self.frame_shape)
        self._fill_table()
        row = codes.indices + self.V * torch.arange(self.K, device=codes.indices.device)  # (B, T, K)
        patches = F.embedding(row, self.entries.reshape(self.K * self.V, -1)).float() / 255
        return join(patches, self.patch, self.frame_shape)

    def loss(self, steps: Steps) -> tuple[Losses, Codes]:
        """l1, l2 (B, T) of pixels 0..1 and the quantizer's losses (). In train mode it moves the codebook."""
        patches = cut(steps.obs, self.patch)  # (B, T, K, pixels)
        B, T, K, _ = patches.shape
        distinct, position, inverse, count = self._distinct(patches)
        x = self.encoder(self._center(distinct, position), position)  # (n, E)
        vectors, indices, losses = self.quantizer(x[None])
        error = self._decode(vectors[0], position) - distinct / 255  # (n, pixels)
        if self.training:
            self._table_of = None
            self.refitted.zero_()

        weight = count**-self.rarity
        weight = weight / weight[inverse].mean()  # (n,), so that its mean over all patches is 1
        if self.change_weight == 1:
            l1, l2 = ((power.mean(-1) * weight)[inverse].reshape(B, T, K) for power in (error.abs(), error.square()))
        else:
            changed = cut(pixel_weights(steps, self.change_weight).expand(steps.obs.shape), self.patch) * weight[
                inverse
            ].reshape(B, T, K, 1)
            l1, l2 = (
                (power[inverse].reshape(patches.shape) * changed).mean(-1) for power in (error.abs(), error.square())
            )
        losses = {"l1": l1.mean(-1), "l2": l2.mean(-1)} | losses  # (B, T)
        codes = Codes(indices=indices[0][inverse].reshape(B, T, K), vectors=vectors[0][inverse].reshape(B, T, K, -1))
        return losses, codes

    # --- before the first and after the last update ---

    @torch.no_grad()
    def prepare(self, sample: Callable[[], tuple[Steps, Codes | None]]) -> None:
        """Take the background (median frame) and the first codebook from (B, T) frames; before the first update."""
        patches = cut(sample()[0].obs, self.patch)
        self.background.copy_(patches.flatten(0, 1).median(0).values / 255)
        distinct, position, _, _ = self._distinct(patches)
        self.quantizer.start_from(self.encoder(self._center(distinct, position), position))
        self._table_of = None
        self.refitted.zero_()

    @torch.no_grad()
    def finalize(self, batches: Iterable[Steps]) -> None:
        """Set each used entry (position, code) of the decoder's table to its mean patch; after the last update.

        The next `loss` in train mode forgets it, since the codes then mean something else.
        """
        total = torch.zeros(self.K * self.V, self.pixels, dtype=torch.float64, device=self.entries.device)
        count = torch.zeros(self.K * self.V, dtype=torch.float64, device=self.entries.device)
        for steps in batches:
            patches = cut(steps.obs, self.patch)
            row = self.encode(steps).indices + self.V * torch.arange(self.K, device=self.entries.device)
            total.index_add_(0, row.flatten(), patches.reshape(-1, self.pixels).double())
            count.index_add_(0, row.flatten(), torch.ones_like(row.flatten(), dtype=torch.float64))
        used = count > 0
        self.entries.view(-1, self.pixels)[used] = (total[used] / count[used, None]).round().to(torch.uint8)
        self.refitted.copy_(used.reshape(self.K, self.V))
        self._table_of = None

    # --- inside ---

    def _distinct(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Patches (B, T, K, pixels) 0..255 -> the n distinct (patch, position) pairs (n, pixels), (n,), their index for
        each patch (B*T*K,), how often each occurs (n,). Most patches of a game are copies of each other: this is what
        makes it fast."""
        B, T, K, D = patches.shape
        position = torch.arange(K, device=patches.device).repeat(B * T)
        hashes = (patches.reshape(-1, D).double() @ self.hash_weights[:D]) + position * self.hash_weights[D]
        row, inverse, count = distinct(hashes)
        return patches.reshape(-1, D)[row], position[row], inverse, count

    def _center(self, patches: Tensor, position: Tensor) -> Tensor:
        """Patches (n, pixels) 0..255 minus the background of their positions, in -1..1."""
        return patches / 255 - self.background[position]

    def _decode(self, vectors: Tensor, position: Tensor) -> Tensor:
        """Code vectors (n, E) at positions (n,) -> pixels (n, pixels), about 0..1."""
        return self.decoder(vectors, position) + self.background[position]

    @torch.no_grad()
    def _fill_table(self) -> None:
        """Bring `entries` up to date with the networks, except where they were refitted."""
        version = tuple(parameter._version for parameter in self.parameters())
        if self._table_of == version:
            return
        with in_fp32(self.entries.device):
            codebook = self.quantizer.codebook
            for k in range(self.K):
                position = torch.full((self.V,), k, device=codebook.device)
                out = (self._decode(codebook, position).clamp(0, 1) * 255).round().to(torch.uint8)
                self.entries[k] = torch.where(self.refitted[k, :, None], self.entries[k], out)
        self._table_of = version

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        self._table_of = None
        super()._load_from_state_dict(*args, **kwargs)


class PositionedMLP(nn.Module):
    """(n, input) at positions (n,) -> (n, output); the position enters as a learned bias of the first layer."""

    def __init__(self, positions: int, input: int, hidden: int, layers: int, output: int) -> None:
        super().__init__()
        self.inward = nn.Linear(input, hidden)
        self.position = nn.Embedding(positions, hidden)
        nn.init.normal_(self.position.weight, std=0.1)
        self.inner = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(layers - 1))
        self.outward = nn.Linear(hidden, output)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        x = F.silu(self.inward(x) + self.position(position))
        for layer in self.inner:
            x = x + F.silu(layer(x))
        return self.outward(x)


TINY = dict(patch=4, vocab_size=8, dim=8, hidden=16)
