"""How well a world model predicts held-out experience, teacher-forced: code lengths, reward events, terminations."""

from __future__ import annotations

import math

import torch

from tokenworld.evaluation.metrics import baselines
from tokenworld.evaluation.probes.lookahead import DRAWS, predicted
from tokenworld.interfaces import Codes, Steps
from tokenworld.nn import logprob
from tokenworld.world_model import WorldModel

EVENT = 0.5  # a reward event is a reward further from zero than this; the head predicts one where its mean is


@torch.no_grad()
def dynamics_metrics(
    world_model: WorldModel, held_out: Steps, codes: Codes, counts: baselines.CodeCounts
) -> dict[str, float | None]:
    """The `dynamics` entry of a run's summary, from consecutive windows of held-out experience (B, T) and their codes.

    Reward and termination are predicted before the next frame is known: where h has seen the next codes (`lookahead`), they
    are means over sampled ones. Bits are sums over the K codes of a frame, means over all frames that have a predecessor in
    their window and episode.
    The baselines (`counts`) are scored on the same frames. None where nothing was there to measure.
    """
    nats, reward, ends, targets, previous, current = [], [], [], [], [], []
    generator = torch.Generator(codes.indices.device).manual_seed(0)
    _, state = world_model.start(held_out[:, :1], Codes(codes.indices[:, :1]))
    T = held_out.obs.shape[1]
    for t in range(T - 1):
        action, following, first = held_out.action[:, t], Codes(codes.indices[:, t + 1 : t + 2]), held_out.first[:, t + 1]
        real = held_out.acted[:, t] & held_out.valid[:, t + 1]
        if world_model.decoding.lookahead:
            noise = torch.rand(len(action) * DRAWS, world_model.shapes.codes, generator=generator, device=action.device)
            reward_mean, end_mean, _ = predicted(world_model, state, action, noise.view(len(action), DRAWS, -1))
        prediction, state = world_model.decoding.step(world_model.backbone, state, action, None, following, first)
        if not world_model.decoding.lookahead:
            reward_mean, end_mean = world_model.reward(prediction.h).mean, world_model.termination(prediction.h).mean
        if prediction.score is not None:
            nats.append(logprob(prediction)[real].cpu())
        reward.append(reward_mean[real].cpu())
        ends.append(end_mean[real].cpu())
        targets.append(torch.stack([held_out.reward[real, t], held_out.terminated[real, t].float()], 1).cpu())
        previous.append(codes.indices[real, t].cpu())
        current.append(codes.indices[real, t + 1].cpu())
    previous, current, targets = torch.cat(previous), torch.cat(current), torch.cat(targets)
    if len(current) == 0:
        return {}
    bits = -torch.cat(nats) / math.log(2) if nats else None  # (N, K)
    unigram = baselines.bits_unigram(counts, previous, current)
    return {
        "bits_per_frame": None if bits is None else bits.sum(1).mean().item(),
        "bits_per_frame_copy_last": baselines.bits_copy_last(counts, previous, current).sum(1).mean().item(),
        "bits_per_frame_unigram": unigram.sum(1).mean().item(),
        "bits_per_frame_bigram": baselines.bits_bigram(counts, previous, current).sum(1).mean().item(),
        "bits_per_changed_token": None if bits is None else baselines.bits_per_changed_token(bits, previous, current),
        "bits_per_changed_token_unigram": baselines.bits_per_changed_token(unigram, previous, current),
        "reward_event_f1": f1(torch.cat(reward).abs() > EVENT, targets[:, 0].abs() > EVENT),
        "termination_brier_skill": brier_skill(torch.cat(ends), targets[:, 1]),
    }


def f1(predicted: torch.Tensor, real: torch.Tensor) -> float | None:
    """2 TP / (2 TP + FP + FN) of two bool tensors; None if there is no event to find."""
    if not real.any():
        return None
    hits = (predicted & real).sum()
    return (2 * hits / (predicted.sum() + real.sum())).item()


def brier_skill(probability: torch.Tensor, outcome: torch.Tensor) -> float | None:
    """1 - Brier score / that of always saying the base rate: 1 is perfect, 0 is no better; None if all outcomes agree."""
    rate = outcome.float().mean()
    if rate in (0, 1):
        return None
    return (1 - (probability - outcome).square().mean() / (rate * (1 - rate))).item()
