"""Steps made of single frames, for a model that looks at the world frame by frame."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenworld import arguments
from tokenworld.action_space import Actions
from tokenworld.interfaces import Steps

NUMBERED = Actions()


def frames_as_steps(obs: Tensor, first: Tensor | None = None, actions: Actions = NUMBERED) -> Steps:
    """Single frames obs (B, C, H, W) as Steps with T = 1 and zeros for the action. Raises UserError for another type."""
    arguments.frames(obs)
    B = obs.shape[0]
    if first is not None:
        arguments.flags("first", first, B)
    false = torch.zeros(B, 1, dtype=torch.bool, device=obs.device)
    first = ~false if first is None else first.view(B, 1)
    zero = torch.zeros(B, 1, device=obs.device)
    action = actions.zero(B, 1, device=obs.device)
    return Steps(obs.unsqueeze(1), action, zero, false, false, first, false, ~false)
