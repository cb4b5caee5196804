"""A decoding without a likelihood of a frame, as plug-ins may have: `decoding._target_=likelihood_free.Masked` in the tests."""

import torch
from torch import Tensor, nn

from tokenworld.decoding.parallel import ParallelState
from tokenworld.interfaces import Codes, Losses, Part, Prediction, Shapes, Steps
from tokenworld.nn import categorical_entropy, log_prob, mlp, sample_categorical


class Masked(nn.Module, Part):
    """Guess a frame of masked codes, keep the surer half of the guesses and guess the others again (after MaskGIT, Chang et al.
    2022, arXiv:2202.04200). The order of the guesses depends on the frame, so no product of them is its probability."""

    passes, lookahead, has_posterior, joint_draw = 1, 1, False, True

    def __init__(self, *, shapes: Shapes, action: nn.Module, temperature: float = 1.0):
        super().__init__()
        K, V, D = shapes.codes, shapes.vocab_size, shapes.dim
        self.shapes, self.noise_size = shapes, K
        self.V, self.temperature, self.weights, self.action = V, temperature, {"codes": 1.0}, action
        self.code = nn.Embedding(V + 1, D)  # the last one stands for a masked code
        self.position = nn.Parameter(torch.randn(K, D) * 0.3)
        self.seen, self.reading, self.logits = (mlp(D, out, hidden=D) for out in (D, D, V))

    def loss(self, backbone, codes: Codes, steps: Steps) -> tuple[Losses, Tensor, Codes]:
        z, after = codes.indices, codes.indices[:, 1:]
        out = self._read(backbone, z, steps.action, None, steps.first)[0][:, :-1]
        share = torch.rand(*after.shape[:2], 1, device=z.device) if self.training else 1.0
        is_masked = torch.rand(after.shape, device=z.device) < share
        nats = -log_prob(self._guess(out, torch.where(is_masked, self.V, after)), after)  # (B, T-1, K)
        return {"codes": (nats * is_masked).mean(-1)}, self._summary(out, after), codes

    def start(self, backbone, codes: Codes, steps: Steps):
        z, first = codes.indices, steps.first
        cache, h = backbone.make_cache(*z[:, 0].shape), self.position.new_zeros(len(z), self.position.shape[-1])
        if z.shape[1] > 1:
            out, cache = self._read(backbone, z[:, :-1], steps.action[:, :-1], cache, first[:, :-1])
            h = torch.where(first[:, -1:], 0, self._summary(out[:, -1], z[:, -1]))
        return Prediction(Codes(z[:, -1:]), h), ParallelState(cache, z[:, -1], first[:, -1])

    def step(self, backbone, state, action, noise, codes=None, first=None):
        out, cache = self._read(backbone, state.codes[:, None], action[:, None], state.cache, state.first[:, None])
        z = self._draw(out[:, 0], noise) if codes is None else codes.indices[:, 0]
        begins = torch.zeros_like(state.first) if first is None else first
        h = torch.where(begins[:, None], 0, self._summary(out[:, 0], z))
        return Prediction(Codes(z.unsqueeze(1)), h), ParallelState(cache, z, begins)

    def _read(self, backbone, z: Tensor, action: Tensor, cache, first: Tensor):
        return backbone(self.code(z) + self.position + self.action(action).unsqueeze(2), "full", cache, first)  # (B, T, K, D)

    def _guess(self, out: Tensor, z: Tensor) -> Tensor:
        """out (..., K, D) of the frame before, z (..., K), some of them masked -> logits (..., K, V)."""
        return self.logits(out + self.seen(self.code(z) + self.position).mean(-2, keepdim=True))

    def _draw(self, out: Tensor, noise: Tensor) -> Tensor:
        logits = self._guess(out, torch.full_like(noise, self.V, dtype=torch.int64))
        entropy, K = categorical_entropy(logits), noise.shape[1]
        is_kept = entropy <= entropy.sort(-1).values[:, (K - 1) // 2, None]
        z = sample_categorical(logits, noise, self.temperature)
        again = sample_categorical(self._guess(out, torch.where(is_kept, z, self.V)), noise, self.temperature)
        return torch.where(is_kept, z, again)

    def _summary(self, out: Tensor, z: Tensor) -> Tensor:
        return self.reading(out + self.code(z)).mean(-2)  # (..., D)
