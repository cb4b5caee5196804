"""Planning in imagined rollouts: random shooting and the cross-entropy method over action sequences (PETS, arXiv:1805.12114;
PlaNet, arXiv:1811.04551, algorithm 2).

Faithful: receding horizon, refitting to the elites, the first action of the last distribution. Different: a plan has a
categorical distribution for each discrete part of each step's action, and a normal one, within the bounds, for each continuous
part; it is warm-started by the last plan moved on by one step; rewards are expected ones, weighted by the probability of being
alive. It acts on `view.dream` and has nothing to train.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenworld.errors import UserError
from tokenworld.interfaces import Losses, Part, Shapes, View
from tokenworld.nn import normal_of, sample_categorical


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
        self.actions = shapes.actions
        choices, continuous = self.actions.choices, len(self.actions.bounds)
        self.sizes = [*choices, continuous, continuous]  # probabilities of each discrete part; means, deviations
        self.method, self.horizon, self.samples, self.elites = method, horizon, samples, elites
        self.iterations = iterations if method == "cem" else 1
        self.gamma, self.keep = gamma, keep
        self.weights: dict[str, float] = {}
        unknown = [torch.full((horizon, n), 1 / n) for n in choices]
        unknown += [torch.zeros(horizon, continuous), torch.ones(horizon, continuous)]
        self.register_buffer("unknown", torch.cat(unknown, -1), persistent=False)  # (H, X), X the sum of sizes

    def start(self, batch: int) -> Tensor:
        """The plan before anything is known: every value equally probable, or around the middle, (B, H, X)."""
        return self.unknown.repeat(batch, 1, 1)

    def follow(self, view: View, carry: Tensor) -> Tensor:
        """The plan for the next step: moved on by one, with nothing known of its new last step."""
        return torch.cat([carry[:, 1:], self.unknown[-1:].repeat(len(carry), 1, 1)], 1)

    @torch.no_grad()
    def act(self, view: View, carry: Tensor, noise: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """noise (B, 1) uniform, the seed of each row's search -> action (B,) or (B, A), the plan to begin the next search
        with. A planner takes the best action it found, whatever the temperature."""
        plan, best = self.search(view.dream, carry, noise[:, 0])
        action = best[:, 0] if self.method == "shooting" else self._most_probable(plan)[:, 0]
        return action, self.follow(view, plan)

    @torch.no_grad()
    def search(self, dream: Any, plan: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """From the distribution `plan` (B, H, X) to the refitted one and the best sequence seen (B, H) or (B, H, A)."""
        B, H, S = len(plan), self.horizon, self.samples
        generators = [torch.Generator(noise.device).manual_seed(int(seed * 2**24)) for seed in noise.tolist()]
        most = torch.full((B,), -torch.inf, device=noise.device)
        best, rows, size = self._most_probable(plan), torch.arange(B, device=noise.device), dream.noise_size
        for _ in range(self.iterations):
            # a row draws from its own generator: its plan does not depend on the other rows
            shape = S, H, size + self.actions.size
            drawn = torch.stack([torch.rand(shape, generator=g, device=noise.device) for g in generators])
            actions = self._sample(plan.unsqueeze(1).expand(B, S, H, -1), drawn[..., size:])  # (B, S, H) or (B, S, H, A)
            returns = expected_returns(dream(actions, drawn[..., :size]), self.gamma).view(B, S)
            top, index = returns.max(1)
            best = torch.where((top > most).view(B, *[1] * (best.ndim - 1)), actions[rows, index], best)
            most = torch.maximum(most, top)
            if self.method == "cem":
                elite = returns.topk(self.elites, 1).indices  # (B, elites)
                plan = self.keep * plan + (1 - self.keep) * self._fit(actions[rows[:, None], elite])
        return plan, best

    def _sample(self, plan: Tensor, noise: Tensor) -> Tensor:
        """plan (..., X), uniform noise (..., A) -> actions (...) or (..., A)."""
        *probabilities, mean, deviation = plan.split(self.sizes, -1)
        discrete = [sample_categorical(p.log(), noise[..., i]) for i, p in enumerate(probabilities)]
        scaled = (mean + deviation * normal_of(noise[..., len(probabilities) :])).clamp(-1, 1)
        return self._join(discrete, scaled)

    def _most_probable(self, plan: Tensor) -> Tensor:
        """plan (..., X) -> actions."""
        *probabilities, mean, _ = plan.split(self.sizes, -1)
        return self._join([p.argmax(-1) for p in probabilities], mean)

    def _join(self, discrete: list[Tensor], scaled: Tensor) -> Tensor:
        values = torch.stack(discrete, -1) if discrete else scaled[..., :0]
        return self.actions.join(values, self.actions.unscale(scaled))

    def _fit(self, actions: Tensor) -> Tensor:
        """The plan (B, H, X) that actions (B, elites, H) or (B, elites, H, A) are samples of."""
        discrete, continuous = self.actions.split(actions)
        shares = [nn.functional.one_hot(discrete[..., i], n).float().mean(1) for i, n in enumerate(self.actions.choices)]
        scaled = self.actions.scale(continuous)
        mean = scaled.mean(1)
        return torch.cat([*shares, mean, (scaled - mean.unsqueeze(1)).square().mean(1).sqrt()], -1)

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
