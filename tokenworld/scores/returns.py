"""Measure returns of a policy in the real environment, with intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tokenworld.action_space import Actions
from tokenworld.exploration import random_act


def episode_returns(env, act: Callable, episodes: int, seed: int, progress: Callable[[int], None] | None = None):
    """Play whole episodes and return their undiscounted returns and lengths, `(episodes,)` each.

    Each of the N rows of the env plays a fixed number of episodes, so short episodes are not overrepresented.
    `act(obs (N, C, H, W), first (N,)) -> (N,) or (N, A)`; the env autoresets on the next step.
    """
    N = env.num_envs
    quota = np.full(N, episodes // N) + (np.arange(N) < episodes % N)
    obs, _ = env.reset(seed=seed)
    first, ended = np.ones(N, bool), np.zeros(N, bool)
    running, length = np.zeros(N), np.zeros(N, int)
    returns, lengths = [], []
    while quota.any():
        actions = act(torch.from_numpy(np.ascontiguousarray(obs)), torch.from_numpy(first)).numpy()
        obs, reward, terminated, truncated, _ = env.step(actions)
        first = ended.copy()  # the step after an end only resets: its reward does not count
        running, length = np.where(ended, 0.0, running + reward), np.where(ended, 0, length + 1)
        ended = (terminated | truncated) & ~first
        for i in np.flatnonzero(ended & (quota > 0)):
            returns.append(running[i])
            lengths.append(length[i])
            quota[i] -= 1
            if progress is not None:
                progress(1)
    return np.array(returns), np.array(lengths)


def score_policy(
    env, act: Callable, actions: Actions | int, *, episodes: int, seed: int, progress: Callable | None = None
) -> dict[str, Any]:
    """Score `act` over whole episodes, with a 95 % interval, and uniform random play from the same seed."""
    returns, lengths = episode_returns(env, act, episodes, seed, progress)
    random_returns, _ = episode_returns(env, random_act(actions, np.random.default_rng(seed)), episodes, seed)
    mean, interval = mean_ci95(returns)
    return {
        "return_mean": mean,
        "return_ci95": interval,
        "episodes": episodes,
        "random_return_mean": float(random_returns.mean()),
        "length_mean": float(lengths.mean()),
    }


def mean_ci95(values: np.ndarray, seed: int = 0, draws: int = 10_000) -> tuple[float, list[float]]:
    """Return the mean and its 95 % percentile-bootstrap interval over independent episodes."""
    values = np.asarray(values, float)
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(draws, len(values)))].mean(1)
    return float(values.mean()), [float(x) for x in np.percentile(means, [2.5, 97.5])]
