"""Nearest-neighbor patches (Dedieu et al. 2025, arXiv:2502.01591): a dictionary that grows and never changes.

A patch that no code resembles becomes a code itself, and a code once given keeps its meaning, so that the dynamics never
has to learn a word twice. Exact for games drawn on a grid, whose patches are few. Differs: the most frequent new patch of a
batch is added first; when the dictionary is full, a new patch takes its nearest code.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenworld.interfaces import Codes, Losses, Part, Steps
from tokenworld.tokenizers.patches import cut, distinct, hash_weights, join
from tokenworld.tokenizers.quantizers import check


class NearestPatches(nn.Module, Part):
    """Frames (C, H, W) to K = h * w codes, one per patch of the frame; nothing in it is learned by gradient.

    patch: side in pixels · threshold: root mean square difference of pixels in 0..1, beyond which a patch is new: 0 keeps
    every patch that ever was seen. A code's vector is its patch in 0..1, so E = C * patch * patch.
    """

    context, joint = 0, False

    def __init__(
        self,
        *,
        frame_shape: tuple[int, int, int],
        patch: int = 2,
        vocab_size: int = 256,
        threshold: float = 0.0,
    ) -> None:
        super().__init__()
        C, H, W = frame_shape
        check(
            1 <= patch <= min(H, W),
            f"tokenizer.patch must lie in 1..{min(H, W)} for frames of {H}x{W}",
            patch,
            f"choose e.g. {min(2, H, W)}",
        )
        check(vocab_size >= 2, "tokenizer.vocab_size must be at least 2", vocab_size, "choose e.g. 256")
        check(0 <= threshold < 1, "tokenizer.threshold must lie in [0, 1)", threshold, "choose 0 for exact patches")
        self.frame_shape, self.patch, self.threshold = (C, H, W), patch, threshold
        self.grid = (-(-H // patch), -(-W // patch))
        self.K, self.V, self.E = self.grid[0] * self.grid[1], vocab_size, C * patch * patch
        self.weights = {"l2": 1.0}
        self.register_buffer("codebook", torch.zeros(vocab_size, self.E, dtype=torch.uint8))
        self.register_buffer("used", torch.zeros((), dtype=torch.int64))  # the codes given so far are 0..used-1
        self.register_buffer("hash_weights", hash_weights(self.E), persistent=False)
        self.register_load_state_dict_post_hook(_check_used)

    @torch.no_grad()
    def encode(self, steps: Steps) -> Codes:
        """obs (B, T, C, H, W) uint8 -> indices (B, T, K), vectors (B, T, K, E). Adds no code."""
        patches = cut(steps.obs, self.patch)  # (B, T, K, E)
        different, inverse, _ = self._distinct(patches)
        indices = self._nearest(different)[1][inverse].view(patches.shape[:3])
        return Codes(indices=indices, vectors=self.embed(indices))

    def embed(self, indices: Tensor) -> Tensor:
        """indices (B, T, K) -> code vectors (B, T, K, E): the patches, in 0..1."""
        return F.embedding(indices, self.codebook).float() / 255

    def decode(self, codes: Codes, past: Tensor | None = None) -> Tensor:
        """codes -> obs (B, T, C, H, W) float in 0..1; codes with vectors only are taken for patches."""
        patches = codes.vectors.clamp(0, 1) if codes.indices is None else self.embed(codes.indices)
        return join(patches, self.patch, self.frame_shape)

    @torch.no_grad()
    def loss(self, steps: Steps) -> tuple[Losses, Codes]:
        """{"l2": (B, T)}, the squared error of pixels in 0..1, without gradient. In train mode new patches become codes."""
        patches = cut(steps.obs, self.patch)  # (B, T, K, E)
        different, inverse, count = self._distinct(patches)
        if self.training:
            self._extend(different, count)
        distance, indices = self._nearest(different)
        indices = indices[inverse].view(patches.shape[:3])
        return {"l2": distance[inverse].view(patches.shape[:3]).mean(-1)}, Codes(indices, self.embed(indices))

    def codes_in_use(self) -> int:
        return int(self.used)

    def _extend(self, patches: Tensor, count: Tensor) -> None:
        """Give codes to what is new among distinct patches (n, E), seen `count` (n,) times, as long as there are any."""
        new = patches[count.argsort(descending=True, stable=True)]
        if self.used > 0:
            new = new[self._nearest(new)[0] > self.threshold**2]
        while len(new) and self.used < self.V:
            self.codebook[self.used] = new[0].to(torch.uint8)
            self.used += 1
            new = new[((new - new[0]) / 255).square().mean(-1) > self.threshold**2]

    def _nearest(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (n, E) 0..255 -> mean squared difference in 0..1 to their nearest code, and its index (n,)."""
        codebook = self.codebook.float()
        distance = codebook.square().sum(-1) - 2 * patches @ codebook.T  # (n, V); what is missing is the same for all
        given = torch.arange(self.V, device=patches.device) < self.used.clamp(min=1)
        index = distance.masked_fill(~given, torch.inf).argmin(-1)
        return ((patches - codebook[index]) / 255).square().mean(-1), index

    def _distinct(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Patches (B, T, K, E) -> the n distinct ones (n, E), which of them each is (B*T*K,), their counts (n,)."""
        rows = patches.reshape(-1, self.E)
        row, inverse, count = distinct(rows.double() @ self.hash_weights)
        return rows[row], inverse, count


def _check_used(tokenizer: NearestPatches, _) -> None:
    used = int(tokenizer.used)
    check(0 <= used <= tokenizer.V, f"tokenizer.used must lie in 0..{tokenizer.V}", used, "restore the weights from a copy")


TINY = dict(patch=5, vocab_size=16)
