"""What a model expects of an action before the next frame is known: means over sampled next frames."""

from __future__ import annotations

import torch

from tokenworld.world_model import WorldModel

DRAWS = 4  # sampled next frames that reward and termination are averaged over, where the heads read drawn codes


def predict_outcomes(
    world_model: WorldModel, state, action: torch.Tensor, noise: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Expected reward, probability of termination (B,) and of the reward's signs (B, 3), of taking action (B,): means over
    next frames sampled with noise (B, draws, n)."""
    B, draws, _ = noise.shape
    rows = torch.arange(B, device=action.device).repeat_interleave(draws)
    prediction, _ = world_model.step(state.select(rows), action[rows], noise.flatten(0, 1))
    reward, end = prediction.reward, prediction.terminated.mean
    return reward.mean.view(B, draws).mean(1), end.view(B, draws).mean(1), reward.signs.view(B, draws, 3).mean(1)
