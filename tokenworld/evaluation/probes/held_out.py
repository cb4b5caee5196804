"""Tier A: what a world model says of held-out experience, as the records that metrics read.

The frames are read by teacher forcing through `decoding.step(codes=...)`, the same code path that imagination, play and
branch scoring use. Rewards and terminations are predicted before the next frame is known.
"""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from torch import Tensor

from tokenworld.errors import UserError
from tokenworld.evaluation.probes.codes import comparable, have_likelihood, history_of, posterior_bits
from tokenworld.evaluation.probes.levels import BYTES, Levels
from tokenworld.evaluation.probes.lookahead import predict_outcomes
from tokenworld.evaluation.probes.menu import Menu
from tokenworld.evaluation.probes.stages import Tick, unseen
from tokenworld.evaluation.records import Drift, Scored, Steered
from tokenworld.evaluation.statistics import draws
from tokenworld.interfaces import Codes, Prediction, Steps
from tokenworld.nn import logprob
from tokenworld.world_model import WorldModel

FORKS = 512  # rows of a step under other actions, at once
MOST_FORKS = 9000  # in all: with many actions only every so many steps are scored under each
OF_LIKELIHOOD = ("bits", "entropy", "top", "hit", "bits_by_action")  # fields of `Scored`
DRAWS = 8  # frames over which reward and termination are averaged, where the heads read drawn codes


@torch.no_grad()
def score_held_out(
    world_model: WorldModel,
    steps: Steps,
    codes: Codes,
    episode: np.ndarray,
    state_of: np.ndarray | None = None,
    deadline: float = math.inf,
    tick: Tick = unseen,
) -> Scored:
    """Windows of consecutive held-out rows, steps (B, T) with codes (B, T, K), their episodes and states (B, T) -> `Scored`.

    bits_by_action is nan in rows that were not scored under each action. Fields that take a likelihood are None without one.
    The first context - 1 steps of a window are only read. What is drawn at a row follows from its state alone (see `draws.py`).
    Once something is scored it stops, between steps, when time.monotonic() passes `deadline`. Raises UserError where a
    prediction is no finite number.
    """
    device = steps.action.device
    prediction, state = world_model.start(steps[:, :1], codes[:, :1])
    B, T = codes.shape
    n = world_model.decoding.noise_size
    drawn_at = np.arange(B * T).reshape(B, T) if state_of is None else state_of
    warm = min(history_of(world_model.backbone) - 1, T // 2)
    begun = steps.first[:, 0].clone()  # the row's window has seen its episode's beginning
    at = _starts(steps, episode)
    menu = Menu(world_model.shapes.actions)
    A = menu.columns
    every = max(1, round(B * (T - warm) * A / MOST_FORKS))
    rows: dict[str, list[Tensor]] = {}
    hazards: list[Tensor] = []  # (B,) of each step, nan where it was not asked for
    kept: list[Tensor] = []  # (B,) bool of each step: which rows were scored
    for t in range(T - 1):
        action, following, first = steps.action[:, t], codes[:, t + 1 : t + 2], steps.first[:, t + 1]
        begun = begun | steps.first[:, t]
        real = steps.acted[:, t] & steps.valid[:, t + 1] & (begun | (t >= warm))
        if rows and time.monotonic() > deadline:
            break
        tick()
        values: dict[str, Tensor] = {}
        over = steps.terminated[:, t - 1] if t else torch.zeros_like(real)  # its last frame, after which nothing was done
        forks = _under_each_action(world_model, state, action, following, real, menu) if real.any() and t % every == 0 else None
        if world_model.decoding.lookahead and (real | over).any():
            predictions = predict_outcomes(world_model, state, action, draws.uniform(drawn_at[:, t], (DRAWS, n), device=device))
            values["reward_mean"], values["hazard"], values["reward_probability"] = predictions
        before = prediction.codes
        prediction, state = world_model.decoding.step(world_model.backbone, state, action, None, following, first)
        if not world_model.decoding.lookahead:
            reward = world_model.reward(prediction.h)
            values["reward_mean"], values["reward_probability"] = reward.mean, reward.signs
            values["hazard"] = world_model.termination(prediction.h).mean
        hazards.append(values["hazard"] if "hazard" in values else torch.full_like(steps.reward[:, t], math.nan))
        kept.append(real)
        if not real.any():
            continue
        values |= _of_codes(world_model, before, prediction)
        if "bits" in values:
            values["bits_by_action"] = torch.full((int(real.sum()), A), math.nan) if forks is None else forks
        if menu.is_complete:
            values["action"] = torch.as_tensor(menu.numbers(action))
        values |= {
            "reward": steps.reward[:, t],
            "terminated": steps.terminated[:, t],
            "cluster": torch.from_numpy(episode[:, t]),
            "step": torch.from_numpy(at[:, t]),
        }
        if state_of is not None:
            values["state"] = torch.from_numpy(state_of[:, t].astype(np.int64))
        for name, x in values.items():
            rows.setdefault(name, []).append(x[real].cpu() if len(x) == B else x.cpu())
    rows["hazard_after"] = _one_later(hazards, kept, steps.terminated)
    unknown = dict.fromkeys(("previous", "codes", "action", *OF_LIKELIHOOD))
    scored = Scored(**unknown | {name: _array(torch.cat(parts)) for name, parts in rows.items()})
    codes_said = {} if scored.bits is None else {"codes": scored.bits.sum(-1)}
    _check_finite(codes_said | {"rewards": scored.reward_mean, "terminations": scored.hazard})
    return scored


def _of_codes(world_model: WorldModel, before: Codes, prediction: Prediction) -> dict[str, Tensor]:
    """The codes of a frame that was read and of the one before it, and what the prediction says of them."""
    if prediction.codes.indices is None:
        return {}
    z = prediction.codes.indices[:, 0]
    values = {"previous": before.indices[:, 0], "codes": z}
    if have_likelihood(world_model, prediction):
        return values | _bits(prediction.score(), z)
    bits = posterior_bits(prediction) if world_model.decoding.has_posterior else None
    return values if bits is None else values | {"posterior_bits": bits}


def _bits(logits: Tensor, z: Tensor) -> dict[str, Tensor]:
    """What logits (B, K, V) say of the codes z (B, K) that followed, (B, K) each; named as in `Scored`."""
    logp = logits.float().log_softmax(-1) / math.log(2)  # (B, K, V)
    return {
        "bits": -logp.gather(-1, z.unsqueeze(-1)).squeeze(-1),
        "entropy": -(logp.exp2() * logp.clamp(min=-1e9)).sum(-1),
        "top": logp.amax(-1).exp2(),
        "hit": logp.argmax(-1) == z,
    }


def _one_later(hazards: list[Tensor], kept: list[Tensor], terminated: Tensor) -> list[Tensor]:
    """For each step the hazards (n,) one step later, in the n rows that were kept: nan where the episode went on, or where the
    window stops. terminated (B, T)."""
    unknown = torch.full_like(hazards[0], math.nan)
    later = [*hazards[1:], unknown]
    return [torch.where(terminated[:, t], later[t], unknown)[real].cpu() for t, real in enumerate(kept)]


def _check_finite(predictions: dict[str, np.ndarray]) -> None:
    for name, values in predictions.items():
        if wrong := int((~np.isfinite(values)).sum()):
            raise UserError(
                f"the model predicts {name} that are NaN or infinite at {wrong} of {len(values)} held-out steps, expected"
                " numbers: its weights are damaged (restore them from a copy) or its training diverged (use a smaller lr)"
            )


def _under_each_action(
    world_model: WorldModel, state, taken: Tensor, following: Codes, real: Tensor, menu: Menu
) -> Tensor | None:
    """(n, A): bits of the frame that followed in the n rows marked real, had each action been taken there: those of the
    menu, or those and `taken` (B,) or (B, A). None without a likelihood."""
    if world_model.decoding.has_posterior:
        return None
    A, index = menu.columns, torch.nonzero(real).squeeze(1)
    parts = []
    for rows in index.split(max(1, FORKS // A)):
        forks = rows.repeat_interleave(A)
        action = menu.alternatives(taken[rows])
        prediction, _ = world_model.decoding.step(world_model.backbone, state.select(forks), action, None, following[forks])
        if prediction.score is None:
            return None
        parts.append(-logprob(prediction).sum(-1).view(-1, A) / math.log(2))
    return torch.cat(parts)


@torch.no_grad()
def drift(
    world_model: WorldModel, steps: Steps, codes: Codes, episode: np.ndarray, *, context: int, futures: int,
    state_of: np.ndarray | None = None, levels: Levels = BYTES, tick: Tick = unseen,
) -> Drift:  # fmt: skip
    """Starts after `context` held-out steps, `futures` dreams from each under the real actions: steps (S, context + T).

    Only windows within one episode say something: the caller chooses them. state_of (S,): the state of each start, from which
    all follows that is drawn there.
    """
    device, n = steps.action.device, world_model.decoding.noise_size
    S, T = len(steps.action), steps.action.shape[1] - context
    noise = draws.uniform(np.arange(S) if state_of is None else state_of, (T, futures, n), device=device)
    last, state = world_model.start(steps[:, :context], codes[:, :context])
    real = state.select(torch.arange(S, device=device))
    dream = state.select(torch.arange(S, device=device).repeat_interleave(futures))
    came, drawn, own_bits, real_bits, imagined_bits = [], [], [], [], []
    for t in range(T):
        action, following = steps.action[:, context - 1 + t], codes[:, context + t : context + t + 1]
        many = action.repeat_interleave(futures, 0)
        after_real, real = world_model.decoding.step(world_model.backbone, real, action, None, following)
        came.append(comparable(world_model, after_real.codes, levels))
        is_scored = have_likelihood(world_model, after_real)
        if is_scored and t > 0:  # the real frame after an imagined past, and the real frame after the real past
            first_rows = torch.arange(S, device=device) * futures
            after_dream, _ = world_model.decoding.step(world_model.backbone, dream.select(first_rows), action, None, following)
        prediction, dream = world_model.step(dream, many, noise[:, t].flatten(0, 1))
        drawn.append(comparable(world_model, prediction.codes, levels).view(S, futures, -1))
        if is_scored:
            real_bits.append(-logprob(after_real).sum(-1) / math.log(2))
            own_bits.append(-logprob(after_dream).sum(-1) / math.log(2) if t > 0 else real_bits[0])
            imagined_bits.append(-logprob(prediction).sum(-1).view(S, futures) / math.log(2))
        tick()
    return Drift(
        cluster=episode[:, context],
        real=_array(torch.stack(came, 1)),
        model=_array(torch.stack(drawn, 2)),
        copy=_array(comparable(world_model, last.codes, levels)),
        own_bits=_array(torch.stack(own_bits, 1)) if own_bits else None,
        real_bits=_array(torch.stack(real_bits, 1)) if real_bits else None,
        imagined_bits=_array(torch.stack(imagined_bits, 2)) if imagined_bits else None,
    )


@torch.no_grad()
def steered(
    world_model: WorldModel, steps: Steps, codes: Codes, frames: Tensor, episode: np.ndarray, *, futures: int,
    state_of: np.ndarray | None = None, levels: Levels = BYTES,
) -> Steered:  # fmt: skip
    """The frames S starts later, imagined under the real actions and under random ones: steps (S, context + T), frames
    (S, C, H, W) those of the last step, of which alone the errors are. Other arguments as in `drift`."""
    device, (S, T) = steps.action.device, steps.reward.shape
    H = T - codes.shape[1]
    states = np.arange(S) if state_of is None else state_of
    noise = draws.uniform(states, (H, futures, world_model.decoding.noise_size), 2, device).transpose(1, 2)  # (S, M, H, n)
    chosen = [draws.actions(state, world_model.shapes.actions, (futures, H), 2) for state in states.tolist()]
    random, frames = torch.from_numpy(np.stack(chosen)).to(device), levels(frames)  # (S, M, H) or (S, M, H, A)
    real = steps.action[:, None, T - H - 1 : T - 1].expand_as(random)
    _, state = world_model.start(steps[:, : T - H], codes)
    errors = []
    for actions in (real, random):
        prediction = world_model.rollout(state, actions, noise)[-1]
        imagined = levels(world_model.frames(prediction.codes)[:, 0].cpu()).view(S, futures, *frames.shape[1:])
        errors.append(_array((imagined.double() - frames.unsqueeze(1).double()).square().flatten(2).mean(-1)))
    return Steered(episode[:, -1], H, *errors)


def _starts(steps: Steps, episode: np.ndarray) -> np.ndarray:
    """(B, T): a number for each row that rises by one from step to step within an episode."""
    first = steps.first.cpu().numpy()
    at = np.zeros(episode.shape, np.int64)
    for t in range(1, at.shape[1]):
        at[:, t] = np.where(first[:, t], 0, at[:, t - 1] + 1)
    return at + 1_000_000 * np.arange(len(at))[:, None] * (~first.cumsum(1).astype(bool))  # windows do not know each other


def _array(x: Tensor) -> np.ndarray:
    return x.double().cpu().numpy() if x.is_floating_point() else x.cpu().numpy()
