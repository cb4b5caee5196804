"""Actor-critic in imagination (IRIS, arXiv:2209.00588, appendix A.3; DreamerV3's return scale; PPO's reuse, arXiv:1707.06347).

Faithful to IRIS at the defaults: REINFORCE with a value baseline on lambda-returns, entropy bonus, one update per dream.
Options: advantages scaled by the spread of returns or standardized, a slow target critic, several clipped passes over a dream,
a critic that predicts a distribution over returns (DreamerV3).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenworld import distributed
from tokenworld.config import schema
from tokenworld.errors import UserError
from tokenworld.interfaces import Losses, Part, Shapes, Trajectory, View
from tokenworld.policies.categoricals import Categoricals
from tokenworld.policies.returns import ReturnScale, lambda_return, weigh
from tokenworld.policies.values import VALUES, zero


@dataclass(frozen=True)
class PolicyBatch:
    """An imagined trajectory with its returns and advantages, fixed before the first update: everything without gradient."""

    seen: Any  # what the network reads, H+1 steps
    carry: Any
    action: Tensor  # (B, H), or (B, H, A)
    logp: Tensor  # (B, H) of the actions, by the policy that took them
    returns: Tensor  # (B, H) lambda-returns
    advantage: Tensor  # (B, H)
    alive: Tensor  # (B, H) bool, or weights
    slow: Tensor | None = None  # (B, H) values of the slow critic, to which a distribution over returns is kept close

    def rows(self, index: Tensor) -> PolicyBatch:
        return PolicyBatch(*(_rows(getattr(self, name), index) for name in self.__dataclass_fields__))


class ActorCritic(nn.Module, Part):
    """A categorical policy, for each part of the action, and a value on one network.

    bins: values that a continuous part of the action may take · network: its section (see `networks.py`), IRIS's if None ·
    value: the critic predicts one number, or a distribution over returns in bins · target_decay: of a slow copy of the critic;
    0: none. With one number its values are the targets; a distribution is kept close to its mean (DreamerV3, appendix B).
    """

    def __init__(
        self,
        *,
        shapes: Shapes,
        network: dict | None = None,
        gamma: float = 0.995,
        lambda_: float = 0.95,
        entropy: float = 0.001,
        normalize: Literal["none", "returns", "advantages"] = "none",
        value: Literal["point", "twohot"] = "point",
        target_decay: float = 0.0,
        update_epochs: int = 1,
        minibatches: int = 1,
        clip: float = 0.2,
        bins: int = 15,
    ):
        super().__init__()
        if not (0 <= gamma <= 1 and 0 <= lambda_ <= 1):
            raise UserError(f"policy.gamma and policy.lambda_ must lie in 0..1, got {gamma} and {lambda_}")
        if not 0 <= target_decay < 1:
            raise UserError(f"policy.target_decay must be at least 0 (no target critic) and below 1, got {target_decay}")
        if update_epochs < 1 or minibatches < 1:
            raise UserError(f"policy.update_epochs and minibatches must be at least 1, got {update_epochs} and {minibatches}")
        self.network = schema.build(network or {"_target_": "tokenworld.policies.networks.PixelNetwork"}, shapes=shapes)
        self.needs_pixels, self.needs_h = self.network.needs_pixels, self.network.needs_h
        self.choice, self.noise_size = Categoricals(shapes.actions, bins), shapes.actions.size
        self.actor = nn.Linear(self.network.features, self.choice.size)
        zero(self.actor)
        self.value, self.critic = value, VALUES[value](self.network.features)
        self.gamma, self.lambda_, self.entropy = gamma, lambda_, entropy
        self.normalize, self.target_decay, self.clip = normalize, target_decay, clip
        self.update_epochs, self.minibatches = update_epochs, minibatches
        self.weights = {"actor": 1.0, "critic": 0.5 if update_epochs > 1 else 1.0, "entropy": 1.0}
        self.scale = ReturnScale()
        self.slow = None
        if target_decay > 0:
            self.slow = copy.deepcopy(nn.ModuleList([self.network, self.critic])).requires_grad_(False)

    def start(self, batch: int) -> Any:
        return self.network.start(batch)

    @torch.no_grad()
    def act(self, view: View, carry: Any, noise: Tensor, temperature: float = 1.0) -> tuple[Tensor, Any]:
        """noise (B, A) uniform -> action (B,) or (B, A), carry. Temperature 0 takes the most probable values."""
        features, carry = self.network(self.network.read_view(view), carry)
        return self.choice.sample(self.actor(features), noise, temperature), carry

    @torch.no_grad()
    def follow(self, view: View, carry: Any) -> Any:
        """Only update the memory: burn-in on the steps before an imagined rollout."""
        return self.network(self.network.read_view(view), carry)[1]

    @torch.no_grad()
    def batch_of(self, imagined) -> PolicyBatch:
        """Returns and advantages of a `Trajectory`, before anything is learned from it."""
        seen = self.network.read_trajectory(imagined)
        features = self.network.forward_sequence(seen, imagined.carry)  # (B, H+1, F)
        value, slow = self.critic(features).mean, None
        if self.slow is not None:
            slow = self.slow[1](self.slow[0].forward_sequence(seen, imagined.carry)).mean
            value, slow = (slow, None) if self.value == "point" else (value, slow[:, :-1])
        returns = lambda_return(imagined.reward, imagined.terminated, value, gamma=self.gamma, lambda_=self.lambda_)
        alive = imagined.alive[:, :-1]
        advantage = returns - value[:, :-1]
        if self.normalize == "returns":
            self.scale.update(distributed.all_gather(returns)[distributed.all_gather(alive) > 0])
            advantage = advantage / self.scale.scale()
        elif self.normalize == "advantages":
            count = distributed.all_reduce_sum(alive.sum()).clamp(min=1)
            mean = distributed.all_reduce_sum(weigh(advantage, alive).sum()) / count
            spread = distributed.all_reduce_sum(weigh((advantage - mean) ** 2, alive).sum()) / count
            advantage = (advantage - mean) / (spread.sqrt() + 1e-8)
        logp = self.choice.log_prob(self.actor(features[:, :-1]), imagined.action)
        return PolicyBatch(seen, imagined.carry, imagined.action, logp, returns, advantage, alive, slow)

    def loss(self, imagined: Trajectory | PolicyBatch) -> Losses:
        """Losses (), means over the steps that count, of a `Trajectory` or of a `PolicyBatch` made from it."""
        batch = imagined if isinstance(imagined, PolicyBatch) else self.batch_of(imagined)
        features = self.network.forward_sequence(batch.seen, batch.carry)[:, :-1]
        logits, value = self.actor(features), self.critic(features)
        logp = self.choice.log_prob(logits, batch.action)
        if self.update_epochs == 1:
            gain = logp * batch.advantage
        else:
            ratio = (logp - batch.logp).exp()
            clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
            gain = torch.minimum(ratio * batch.advantage, clipped * batch.advantage)
        critic = value.loss(batch.returns) if batch.slow is None else value.loss(batch.returns) + value.loss(batch.slow)
        return {
            "actor": self._mean(-gain, batch.alive),
            "critic": self._mean(critic, batch.alive),
            "entropy": self._mean(-self.entropy * self.choice.entropy(logits), batch.alive),
        }

    def updates(self, imagined: Trajectory, generator: torch.Generator, loss: Callable | None = None) -> Iterator[Losses]:
        """Losses to step on, one after the other: `update_epochs` times through the dream in `minibatches` parts, which on
        several ranks are parts of all their dreams together. `loss`: what to call in place of self.loss."""
        loss = self.loss if loss is None else loss
        batch = self.batch_of(imagined)
        B = batch.action.shape[0]
        for _ in range(self.update_epochs):
            if self.minibatches == 1:
                yield loss(batch)
                continue
            for part in torch.randperm(B * distributed.world_size(), generator=generator).chunk(self.minibatches):
                yield loss(batch.rows(distributed.local_index(part, B).to(batch.action.device)))

    @torch.no_grad()
    def track(self) -> None:
        """Move the target critic, after each optimizer step."""
        if self.slow is not None:
            for slow, fast in zip(
                self.slow.parameters(), nn.ModuleList([self.network, self.critic]).parameters(), strict=True
            ):
                slow.lerp_(fast, 1 - self.target_decay)

    @staticmethod
    def _mean(x: Tensor, alive: Tensor) -> Tensor:
        return distributed.mean(weigh(x, alive).sum(), alive.sum())


def _rows(x: Any, index: Tensor) -> Any:
    if isinstance(x, tuple):
        return tuple(_rows(item, index) for item in x)
    return None if x is None else x[index]


TINY = dict(network={"_target_": "tokenworld.policies.networks.PixelNetwork", "hidden": 16})
