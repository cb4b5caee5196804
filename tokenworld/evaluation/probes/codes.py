"""What the codes of a world model can be asked: are those of equal frames equal, is their probability that of a frame?

Codes are indices of a deterministic tokenizer, vectors without indices, or draws from a posterior that the decoding computes of
what the tokenizer returned and of all that it has read before.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenworld.evaluation.probes.levels import BYTES, Levels
from tokenworld.evaluation.statistics.metric_spec import NO_LIKELIHOOD, OF_POSTERIOR
from tokenworld.interfaces import Backbone, Codes, Prediction
from tokenworld.nn import kl_categorical
from tokenworld.world_model import WorldModel

LONGEST = 400  # steps of an episode that a probe reads at most
SIDE, LEVELS = 16, 8  # of the tiles of a frame: at most SIDE x SIDE, of so many values


def history_of(backbone: Backbone, most: int | None = None) -> int:
    """How many frames a model has to have read before it is asked: its context, or at most `most`; all of an episode where
    the memory has no limit, since a cut history would not test it."""
    if backbone.scans:
        return max(LONGEST, backbone.context)
    return backbone.context if most is None else min(backbone.context, most)


def have_equality(world_model: WorldModel) -> bool:
    """Do equal frames have equal codes, so that codes can be counted and compared in place of frames?"""
    return world_model.tokenizer.V > 0 and not world_model.decoding.has_posterior


def have_likelihood(world_model: WorldModel, prediction: Prediction) -> bool:
    """Is the probability of a prediction's codes that of the frame?"""
    return prediction.score is not None and not world_model.decoding.has_posterior


def why_no_likelihood(world_model: WorldModel) -> str:
    return OF_POSTERIOR if world_model.decoding.has_posterior else NO_LIKELIHOOD


def posterior_bits(prediction: Prediction) -> Tensor | None:
    """KL(q || p) in bits (B,) between the posterior of a frame that was read and the prediction, a sum over codes; None where
    one of them is not known."""
    if prediction.score is None or prediction.codes.logits is None:
        return None
    q, p = prediction.codes.logits[:, 0].float().log_softmax(-1), prediction.score().float().log_softmax(-1)  # (B, K, V)
    return kl_categorical(q, p).sum(-1) / math.log(2)


def comparable(world_model: WorldModel, codes: Codes, levels: Levels = BYTES) -> Tensor:
    """codes with T = 1 -> (B, K) integers that are equal where frames are: the codes themselves, or tiles of decoded frames."""
    return codes.indices[:, 0] if have_equality(world_model) else tiles(levels(world_model.frames(codes)[:, 0]))


def tiles(frames: Tensor) -> Tensor:
    """Frames (B, C, H, W) uint8 -> (B, F) uint8: the mean of each tile in 8 levels."""
    shrunk = shrink(frames.unsqueeze(1).cpu().numpy())[:, 0]
    return torch.from_numpy((shrunk * (LEVELS - 1)).round().astype(np.uint8))


def shrink(frames: np.ndarray) -> np.ndarray:
    """(n, T, C, H, W) uint8 -> (n, T, F) float32 in 0..1, of at most SIDE x SIDE pixels."""
    n, T, C, H, W = frames.shape
    x = torch.from_numpy(np.ascontiguousarray(frames)).flatten(0, 1).float() / 255
    if max(H, W) > SIDE:
        x = F.interpolate(x, size=(min(H, SIDE), min(W, SIDE)), mode="area")
    return x.reshape(n, T, -1).numpy()
