"""Planning in imagined rollouts: random shooting and the cross-entropy method over action sequences (PETS, arXiv:1805.12114;
PlaNet, arXiv:1811.04551, algorithm 2).

Faithful: receding horizon, refitting to the elites, the first action of the last distribution. Different: actions are
discrete, so a plan is a categorical distribution per step; it is warm-started by the last plan moved on by one step; rewards
are expected ones, weighted by the probability of being alive. It acts on `view.dream` and has nothing to train.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenworld.errors import UserError
from tokenworld.interfaces import Losses, Part, Shapes, View
from tokenworld.nn import sample_categorical


class Planner(nn.Module, Part):
    """Acts by the best of `samples` imagined futures per iteration. `method`: "cem", or "shooting" (one iteration, from
    uniformly drawn actions, and the best future's first action). `keep` is the share of the last distribution in a refit."""

    needs_pixels, needs_h, noise_size = False, True, 1

    def __init__(
        self,
        *,
        shapes: Shapes,
        method: Literal["cem", "shooting"] = "cem",
        horizon: int = 12,
        samples: int = 128,
        iterations: int = 3,
        elites: int = 16,
        gamma: float = 0.995,
        keep: float = 0.1,
    ):
        super().__init__()
        if min(horizon, samples, iterations, elites) < 1:
            raise UserError(
                "policy.horizon, samples, iterations and elites must be at least 1,"
                f" got {horizon}, {samples}, {iterations} and {elites}"
            )
        if method == "cem" and elites > samples:
            raise UserError(f"policy.elites must be at most policy.samples, got {elites} of {samples}: choose fewer elites")
        if not (0 <= gamma <= 1 and 0 <= keep < 1):
            raise UserError(f"policy.gamma must lie in 0..1 and policy.keep at least 0 and below 1, got {gamma} and {keep}")
        self.A = shapes.actions
        self.method, self.horizon, self.samples, self.elites = method, horizon, samples, elites
        self.iterations = iterations if method == "cem" else 1
        self.gamma, self.keep = gamma, keep
        self.weights: dict[str, float] = {}
        self.register_buffer("uniform", torch.full((horizon, shapes.actions), 1 / shapes.actions), persistent=False)

    def start(self, batch: int) -> Tensor:
        """The plan before anything is known: every action equally probable, (B, H, A)."""
        return self.uniform.repeat(batch, 1, 1)

    def follow(self, view: View, carry: Tensor) -> Tensor:
        """The plan for the next step: moved on by one, with nothing known of its new last step."""
        return torch.cat([carry[:, 1:], self.uniform[-1:].expand(len(carry), 1, self.A)], 1)

    @torch.no_grad()
    def act(self, view: View, carry: Tensor, noise: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """noise (B, 1) uniform, the seed of each row's search -> action (B,), the plan to begin the next search with. A
        planner takes the best action it found, whatever the temperature."""
        plan, best = self.search(view.dream, carry, noise[:, 0])
        action = best[:, 0] if self.method == "shooting" else plan[:, 0].argmax(-1)
        return action, self.follow(view, plan)

    @torch.no_grad()
    def search(self, dream: Any, plan: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """From the distribution `plan` (B, H, A) to the refitted one (B, H, A) and the best sequence seen (B, H)."""
        B, H, S = len(plan), self.horizon, self.samples
        generators = [torch.Generator(noise.device).manual_seed(int(seed * 2**24)) for seed in noise.tolist()]
        most = torch.full((B,), -torch.inf, device=noise.device)
        best = plan.argmax(-1)  # (B, H)
        for _ in range(self.iterations):
            # a row draws from its own generator: its plan does not depend on the other rows
            drawn = torch.stack([torch.rand(S, H, dream.noise_size + 1, generator=g, device=noise.device) for g in generators])
            logits = plan.log().unsqueeze(1).expand(B, S, H, self.A)
            actions = sample_categorical(logits, drawn[..., -1])  # (B, S, H)
            returns = expected_returns(dream(actions, drawn[..., :-1]), self.gamma).view(B, S)
            top, index = returns.max(1)
            best = torch.where((top > most).unsqueeze(1), actions[torch.arange(B), index], best)
            most = torch.maximum(most, top)
            if self.method == "cem":
                elite = returns.topk(self.elites, 1).indices  # (B, elites)
                chosen = actions.gather(1, elite.unsqueeze(-1).expand(-1, -1, H))
                counts = nn.functional.one_hot(chosen, self.A).float().mean(1)  # (B, H, A)
                plan = self.keep * plan + (1 - self.keep) * counts
        return plan, best

    def loss(self, imagined: Any) -> Losses:
        raise UserError("a planner has no weights to train, got an imagined rollout: use it to act, score RUN policy=cem")

    def updates(self, imagined: Any, generator: torch.Generator, loss: Any = None):
        return self.loss(imagined)

    def track(self) -> None:
        """It has no slow copies."""


def expected_returns(predictions: list, gamma: float) -> Tensor:
    """sum_t gamma^t P(alive before t) E[r_t] of H predictions of N rows each -> (N,). The terminating step still counts."""
    total, weight = 0.0, 1.0
    for prediction in predictions:
        total = total + weight * prediction.reward.mean
        weight = weight * gamma * (1 - prediction.terminated.mean)
    return total
