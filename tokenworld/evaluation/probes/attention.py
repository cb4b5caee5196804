"""Where the backbone looks: attention maps of real steps, by place in the frame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, Steps
from tokenworld.world_model import WorldModel


@torch.no_grad()
def attention(world_model: WorldModel, steps: Steps, codes: Codes | None = None) -> Tensor:
    """Attention while the dynamics reads steps (B, T): shares (B, layers, N, T, P, T, P), from a step's position to another's.

    The K codes of a step come first, the action last, P = K + 1. A row of the last two dimensions adds up to 1. Raises
    UserError for a backbone that does not tell.
    """
    backbone = world_model.backbone
    given: list[Any] = []
    hook = backbone.register_forward_pre_hook(lambda module, arguments: given.append(arguments))
    try:
        world_model(steps, codes)
    finally:
        hook.remove()
    x, within, _, first = given[0]  # what the decoding has made of codes and actions
    B, T, P, _ = x.shape
    shares = backbone.attention(x, within, first)  # (B, layers, N, T*P, T*P)
    if shares is None:
        raise UserError(f"{type(backbone).__name__} does not tell where it looks: expected tokenworld.backbones.gpt.GPT")
    return shares.unflatten(-1, (T, P)).unflatten(3, (T, P))
