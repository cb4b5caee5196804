"""Train the policy in imagined rollouts only."""

from __future__ import annotations

import torch

from tokenworld import distributed
from tokenworld.imagination import burn_in_policy, imagine
from tokenworld.nn import total_loss
from tokenworld.training.batches import check_finite, log_metrics, progress
from tokenworld.training.run import Run


def train_policy(
    run: Run,
    last: bool,
    *,
    start: int = 50,
    updates: int = 200,
    batch: int = 64,
    horizon: int = 20,
    burn_in: int = 20,
    lr: float = 1e-4,
    clip: float = 10.0,
    expected_reward: bool = False,
    expected_end: bool = False,
    recent: float = 0.0,
    events: float = 0.0,
) -> None:
    """Train the policy on imagined rollouts of `horizon` steps from real states, never on real rewards or real actions.

    `expected_reward`, `expected_end`: means in place of draws, see `imagine`. `recent`: the fraction of rollouts that start in
    the newest tenth of the replay. `events`: the fraction that start at most `horizon` steps before a reward or a termination.
    Real rewards only choose the starts; the reported `dream_return` is higher than from all states.
    """
    if run.epoch < start:
        return
    model, policy = run.imagination_model(), run.policy
    optimizer = run.optimizer("policy", lr)
    noise_size, gained = model.noise_size + policy.noise_size, []
    loss_of, own = run.loss("policy", policy.loss), distributed.split_evenly(batch, "train.policy.batch")
    starts = dict(recent=recent, events=events, within=horizon)
    batches = run.batches(updates, own, burn_in, ends="acted", **starts, frames=False)
    for steps, rows in progress(run, batches, updates, "policy"):
        steps, codes = steps.to(run.device), run.codes(run.replay, rows)
        policy.eval()
        noise = distributed.local_rows(torch.rand(batch, horizon, noise_size, generator=run.generator, device=run.device))
        prediction, state = model.start(steps, codes)
        carry = burn_in_policy(model, policy, steps, codes)
        dream = imagine(model, prediction, state, policy, horizon, noise, carry, expected_reward, expected_end)
        policy.train()
        for losses in policy.updates(dream, run.shuffler, loss_of):
            loss = total_loss(losses, policy.weights)
            run.update("policy", optimizer, [loss], clip)
            policy.track()
        run.count["imagined_steps"] += batch * horizon
        gained.append(distributed.all_reduce_sum((dream.reward * dream.alive[:, :-1]).sum()) / batch)
    policy.eval()
    log_metrics(
        run,
        "policy",
        ("dream_return",),
        updates=run.count["policy"],
        imagined_steps=run.count["imagined_steps"],
        loss=check_finite(loss, "policy"),
        dream_return=torch.stack(gained).mean(),
        **{name: value.mean() for name, value in losses.items()},
    )
