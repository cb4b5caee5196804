"""A control: train the policy on real transitions."""

from __future__ import annotations

import numpy as np

from tokenworld import distributed
from tokenworld.errors import UserError
from tokenworld.interfaces import Trajectory
from tokenworld.nn import total_loss
from tokenworld.training.batches import log_metrics
from tokenworld.training.run import Run


def train_policy_model_free(
    run: Run,
    last: bool,
    *,
    start: int = 0,
    batch: int = 128,
    horizon: int = 15,
    lr: float = 1e-4,
    clip: float = 10.0,
) -> None:
    """Train the policy on the newest real transitions instead of imagined ones, each transition once: a control.

    Use it instead of `train_policy` (train.policy._target_) to see what imagined rollouts add at equal numbers of real steps.
    """
    if run.epoch < start:
        return
    policy, replay = run.policy, run.replay
    optimizer = run.optimizer("policy", lr)
    fresh, run.rows_used = replay.rows - run.rows_used, replay.rows
    count = fresh // (horizon + 1)
    if policy.needs_h or policy.start(1) is not None:
        raise UserError("train_policy_model_free learns without memory: set policy.network._target_ to"
                        " tokenworld.policies.networks.CodesNetwork or .FrameNetwork")
    if run.world_model.decoding.has_posterior:
        raise UserError("train_policy_model_free reads the codes of real frames, which this decoding makes only along with h:"
                        " use train_policy")
    if distributed.world_size() > 1:
        raise UserError(f"train_policy_model_free learns in one process, got {distributed.world_size()}:"
                        " run it without torchrun")
    if count == 0:
        return
    rows = replay.rows - count * (horizon + 1) + np.arange(count * (horizon + 1)).reshape(-1, horizon + 1)  # (n, H+1)
    policy.train()
    for part in np.array_split(rows, max(1, count // batch)):
        steps, codes = replay.gather(part).to(run.device), run.codes(replay, part)
        over = ~steps.acted[:, :-1] | steps.terminated[:, :-1]  # nothing flows back over the border of two episodes
        frames = run.world_model.decode(codes) if policy.needs_pixels else None  # what a policy sees in a rollout, too
        real = Trajectory(
            codes, None, steps.action[:, :-1], steps.reward[:, :-1], over, steps.acted, frames=frames, carry=None
        )
        for losses in policy.updates(real, run.shuffler):
            run.update("policy", optimizer, [total_loss(losses, policy.weights)], clip)
            policy.track()
    policy.eval()
    log_metrics(run, "policy", (), updates=run.count["policy"])
