"""Shared by several parts: an MLP, the inverse-CDF sampler, the only function that weights losses."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenworld import distributed
from tokenworld.errors import UserError, first_line
from tokenworld.interfaces import Codes, Losses, Prediction, Steps
from tokenworld.kernels.layers import PackedLinear


def in_fp32(device: torch.device):
    """A context without autocast; on the meta device, where FLOPs are counted, there is none to switch off."""
    return contextlib.nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class ExactLinear(nn.Linear):
    """A linear layer in fp32, whatever is around it: for logits, whose error in bf16 is a few per cent of a probability."""

    def forward(self, x: Tensor, rows: int | None = None, extra: Tensor | None = None) -> Tensor:
        """rows: compute the first so many outputs · extra `(rows, in)`: added to the weight."""
        with in_fp32(x.device):
            weight = self.weight[:rows].float()
            return F.linear(x.float(), weight if extra is None else weight + extra, self.bias[:rows].float())


class CodeEmbedding(nn.Embedding):
    """Codes `(...)` of V -> `(..., D)`. With E > 0 a linear map of the code vector is added to each embedding, so that codes
    with similar vectors share what is learned."""

    def __init__(self, V: int, D: int, E: int = 0):
        super().__init__(V, D)
        self.from_vector = None
        if E:
            self.from_vector = nn.Linear(E, D)
            nn.init.normal_(self.from_vector.weight, std=0.3)

    def forward(self, z: Tensor, codebook: Tensor | None = None) -> Tensor:
        """codebook `(n, E)`: the vectors of codes 0..n-1, which include all of z."""
        if self.from_vector is None:
            return super().forward(z)
        return F.embedding(z, self.weight[: len(codebook)] + self.from_vector(codebook))


def mlp(dim_in: int, dim_out: int, *, hidden: int, zero_last: bool = False, exact: bool = False) -> nn.Sequential:
    """Linear, SiLU, Linear. `zero_last` starts it at zero, so that a fresh head predicts its prior (DreamerV3); `exact`: the
    last layer is an `ExactLinear`."""
    if hidden < 1:
        raise UserError(f"hidden must be at least 1, got {hidden}: choose e.g. 128")
    last = (ExactLinear if exact else nn.Linear)(hidden, dim_out)
    if zero_last:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(dim_in, hidden), nn.SiLU(), last)


def copy_for_inference(module: nn.Module) -> nn.Module:
    """A frozen copy in bf16, for dreams: half the bytes, and on a CPU with linear layers laid out for it once."""
    twin = copy.deepcopy(module).requires_grad_(False).eval().to(torch.bfloat16)
    for parent in list(twin.modules()):
        before = None
        for name, child in parent.named_children():
            if type(child) is nn.Linear and child.weight.device.type == "cpu":
                setattr(parent, name, PackedLinear(child))
            elif isinstance(child, nn.GELU) and isinstance(before, PackedLinear):
                before.then = "gelu"
                setattr(parent, name, nn.Identity())
            elif isinstance(child, nn.Conv2d):
                child.to(memory_format=torch.channels_last)
            before = getattr(parent, name)
    return twin


def check_device(name: torch.device | str | int) -> torch.device:
    """The device of this name. Raises UserError, which lists the devices of this machine, where it is not there."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *["mps"] * torch.backends.mps.is_available()]
        raise UserError(
            f"device={name} is not available here ({first_line(error)}): expected one of {', '.join(there)}"
        ) from None
    return device


def sample_categorical(logits: Tensor, noise: Tensor, temperature: float = 1.0) -> Tensor:
    """Inverse-CDF sampling in fp32: logits (..., V), noise (...) uniform in [0, 1) -> indices (...) int64.

    The noise is an argument so that sampling can be compiled and repeated. Temperature 0 takes the most probable index.
    """
    if temperature == 0:
        return logits.argmax(-1)
    cdf = (logits.float() / temperature).softmax(-1).cumsum(-1)
    threshold = noise.unsqueeze(-1).float() * cdf[..., -1:]  # the sum is only nearly 1
    # `right`: an index of probability zero is never drawn, not even by noise 0
    return torch.searchsorted(cdf, threshold, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)


def normal_of(noise: Tensor) -> Tensor:
    """Standard normal numbers in fp32 by the inverse CDF of noise (...), uniform in [0, 1); none is infinite."""
    return torch.special.ndtri(noise.float().clamp(2**-24, 1 - 2**-24))  # the numbers next to 0 and 1 that fp32 draws hold


def symlog(x: Tensor) -> Tensor:
    """sign(x) ln(1 + |x|) (DreamerV3, eq. 9)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of symlog."""
    return x.sign() * x.abs().expm1()


def log_prob(logits: Tensor, index: Tensor) -> Tensor:
    """Log-probability in nats: logits (..., V), index (...) int64 -> (...) fp32."""
    return logits.float().log_softmax(-1).gather(-1, index.unsqueeze(-1)).squeeze(-1)


def uniform_mix(logits: Tensor, share: float) -> Tensor:
    """Log-probabilities (..., V) in fp32 of softmax(logits) with a share of the uniform distribution mixed in: no class becomes
    impossible, so KL divergences stay finite (DreamerV3, arXiv:2301.04104)."""
    if not share:
        return logits.float().log_softmax(-1)
    return (logits.float().softmax(-1) * (1 - share) + share / logits.shape[-1]).log()


def straight_through(logits: Tensor, index: Tensor) -> Tensor:
    """logits (..., V), index (...) -> one-hot vectors (..., V) with the gradient of the probabilities (Bengio et al. 2013,
    arXiv:1308.3432)."""
    p = logits.softmax(-1)
    return F.one_hot(index, logits.shape[-1]).to(p.dtype) + (p - p.detach())


def kl_categorical(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats of log-probabilities (..., V)."""
    return (p.exp() * (p - q)).sum(-1)


def check_kl(kl: dict) -> dict[str, float]:
    """The weights of the two directions of a KL divergence, {"dyn", "rep"}. Raises UserError."""
    if set(kl) != {"dyn", "rep"} or not all(isinstance(x, (int, float)) and x >= 0 for x in kl.values()):
        raise UserError(f"decoding.kl must have the weights dyn and rep, each at least 0, got {kl}: for example"
                        " decoding.kl={dyn: 0.5, rep: 0.1}")  # fmt: skip
    return {name: float(kl[name]) for name in ("dyn", "rep")}


def balanced_kl(posterior: Tensor, prior: Tensor, free_nats: float, mask: Tensor | None = None) -> Losses:
    """KL(posterior || prior) of log-probabilities (B, T, K, V), summed over K, once with a gradient of the prior only and once
    of the posterior only: {"dyn", "rep": (B, T)} (DreamerV2, arXiv:2010.02193, section 2.2).

    Below `free_nats` there is no gradient: of each step, or of the mean over the steps of `mask` (B, T)."""
    losses = {}
    for name, q, p in (("dyn", posterior.detach(), prior), ("rep", posterior, prior.detach())):
        kl = kl_categorical(q, p).sum(-1)
        level = kl if mask is None else torch.where(mask, kl, 0).sum() / mask.sum().clamp(min=1)
        losses[name] = torch.where(level > free_nats, kl, torch.full_like(kl, free_nats))
    return losses


def categorical_entropy(logits: Tensor) -> Tensor:
    """Entropy in nats over the last dimension."""
    logp = logits.float().log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)


def compact(codes: Codes) -> Codes:
    """What has to be kept of a tokenizer's codes: the indices, from which it makes the vectors, or vectors without indices."""
    return Codes(vectors=codes.vectors) if codes.indices is None else Codes(codes.indices)


def concat(parts: Sequence[Codes]) -> Codes:
    """Codes of consecutive steps, each (B, T, ...), as those of all steps."""
    fields = zip(*(vars(part).values() for part in parts), strict=True)
    return Codes(*(None if tensors[0] is None else torch.cat(tensors, 1) for tensors in fields))


def put(codes: Codes, rows: Tensor, other: Codes) -> Codes:
    """Codes with those of `other` in place of some rows."""
    pairs = zip(vars(codes).values(), vars(other).values(), strict=True)
    return Codes(*(None if x is None else x.index_copy(0, rows, y) for x, y in pairs))


def logprob(prediction: Prediction) -> Tensor | None:
    """Log-probability `(B, K)` of a prediction's codes in nats; None without a likelihood. Computed only when asked for."""
    return None if prediction.score is None else log_prob(prediction.score(), prediction.codes.indices[:, 0])


def entropy(prediction: Prediction) -> Tensor | None:
    """Entropy `(B, K)` in nats of each code given those before it; None without a likelihood."""
    return None if prediction.score is None else categorical_entropy(prediction.score())


def total_loss(
    losses: Losses, weights: dict[str, float], steps: Steps | None = None, whole: Steps | None = None,
    of_frames: Collection[str] = (),
) -> Tensor:  # fmt: skip
    """Mask and weight all losses, only here: the sum over names of weight x mean over real transitions.

    A (B, T) or (B, T-1) loss counts only where `valid` and `acted`; a () loss counts as it is. `whole`: the batch of which
    `steps` are some rows; the means are then over the whole batch, so that the losses of its parts add up to its loss.
    of_frames: losses (B, T) of frames, which count wherever `valid`: a terminal frame has no action, and is learned too.
    On several ranks the average over them is the mean over all of their batches.
    """
    assert losses.keys() == weights.keys(), (sorted(losses), sorted(weights))
    total = torch.zeros((), device=next(iter(losses.values())).device)
    for name, loss in losses.items():
        total = total + weights[name] * masked_mean(loss, steps, whole, name in of_frames)
    return total


def masked_mean(loss: Tensor, steps: Steps | None, whole: Steps | None = None, of_frames: bool = False) -> Tensor:
    """Mean of a (B, T') loss over the steps that are valid and, unless `of_frames`, acted (T' <= T); a () loss is returned as
    it is."""
    whole = steps if whole is None else whole
    if loss.ndim == 0 or steps is None:
        share = 1.0 if steps is None else len(steps.valid) / len(whole.valid)
        return loss.mean() * share
    mask, counted = (x.valid if of_frames else loss_mask(x, loss.shape[1]) for x in (steps, whole))
    return distributed.mean(torch.where(mask, loss, 0).sum(), counted.sum())


def loss_mask(steps: Steps, length: int) -> Tensor:
    """Which entries of a (B, length) loss count: a loss on the next frame needs one."""
    mask = steps.valid & steps.acted
    return mask if length == mask.shape[1] else mask[:, :-1] & steps.valid[:, 1:]
