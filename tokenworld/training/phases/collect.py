"""Collect real steps (IRIS, arXiv:2209.00588, algorithm 1)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from tokenworld import distributed
from tokenworld.data.collect import Collector
from tokenworld.data.episodes import Episode
from tokenworld.exploration import RandomActions, random_act
from tokenworld.imagination import Actor
from tokenworld.training.batches import log_metrics
from tokenworld.training.run import Run


def collect(
    run: Run,
    last: bool,
    *,
    steps: int = 200,
    first_steps: int = 200,
    stop: int | None = 500,
    envs: int = 1,
    temperature: float = 1.0,
    epsilon: float = 0.01,
    burn_in: int = 20,
    held_out: int = 20,
    cut: int | None = None,
    random: bool = False,
    zeta: float | None = None,
) -> None:
    """Play `steps` real steps with the policy (`first_steps` in epoch 0) until epoch `stop`; every `held_out`-th episode is
    kept from training. Until the policy has been trained, or if `random`, actions are uniform; after that, a random one begins
    with probability `epsilon` per step. With `zeta`, a random action is held for n steps with a probability that falls as n
    to the power of -zeta, so that exploration gets farther.

    An episode enters the replay when it ends; with `cut`, games in progress of at least so many steps enter it at once
    and continue as a new episode: to learn from long games before they are over. Without `cut`, `cut_unfinished` does so when
    no episode ends.
    """
    if stop is not None and run.epoch >= stop:
        return
    ensure_collector(run, envs=envs, held_out=held_out)
    steps, first_steps = (-(-n // distributed.world_size()) for n in (steps, first_steps))
    if run.count["policy"] == 0 or random:
        act = random_act(run.world_model.shapes.actions, run.rng, zeta)
    else:
        run.world_model.eval()
        run.policy.eval()
        explore = RandomActions(run.rng, run.world_model.shapes.actions, epsilon=epsilon, zeta=zeta)
        act = Actor(run.world_model, run.policy, generator=run.acting, temperature=temperature, explore=explore)
        if run.policy.needs_h or run.policy.start(1) is not None:
            act.burn_in(run.collector.recent(burn_in))
    stats = run.collector.collect(first_steps if run.epoch == 0 else steps, act)
    if cut is not None:
        run.collector.cut(cut)
    elif not stats["episodes"]:
        cut_unfinished(run, stats["steps"], -(-first_steps // run.collector.env.num_envs), hold_out=held_out > 0)
    run.count["env_steps"] += int(distributed.all_reduce_sum(torch.tensor(stats["steps"], device=run.device)))
    returns = stats["returns"]
    log_metrics(
        run,
        "collect",
        ("env_steps", "return_mean"),
        env_steps=run.count["env_steps"],
        episodes=len(returns),
        return_mean=float(np.mean(returns)) if len(returns) else None,
    )


def cut_unfinished(run: Run, steps: int, at_least: int, hold_out: bool) -> None:
    """After `steps` steps in which no game ended: if the replay is empty, have the games in progress enter it as truncated
    parts, and from then on those of `at_least` steps. hold_out: one of the first parts is kept from training."""
    is_empty = run.replay.rows == 0
    if not (is_empty or run.collector.has_cut):
        return
    games = run.collector.cut(1 if is_empty else at_least, hold_out=hold_out and run.held_out.rows == 0)
    if is_empty and games:
        run.log.say(
            f"no episode ended in {steps:,} steps of {games} game{'s' * (games > 1)}: they are stored as truncated parts;"
            f" set train.collect.cut={at_least} to do so at every collection"
        )


def ensure_collector(run: Run, *, envs: int, held_out: int) -> None:
    """Build the environments at the first call; also what a resumed run replays its actions into."""
    if run.collector is not None:
        return

    def on_episode(episode: Episode) -> None:
        number = run.replay.episodes + run.held_out.episodes
        if held_out and number % held_out == held_out - 1:
            episode = replace(episode, split="test")
        if run.writer is not None:
            run.writer.append(episode)
        run.add(episode)

    envs = max(1, envs // distributed.world_size())
    run.collector = Collector(run.make_env(envs), seed=run.play_seed, on_episode=on_episode)
