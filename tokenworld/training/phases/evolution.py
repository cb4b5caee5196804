"""Evolve the policy in imagined rollouts only (World Models, arXiv:1803.10122, section 2.3 and appendix A.4)."""

from __future__ import annotations

from typing import Any

import torch

from tokenworld import distributed
from tokenworld.errors import UserError
from tokenworld.imagination import imagine
from tokenworld.interfaces import Prediction
from tokenworld.policies.evolution import CMAES
from tokenworld.training.batches import log_metrics, progress
from tokenworld.training.run import Run


def evolve_policy(
    run: Run,
    last: bool,
    *,
    start: int = 50,
    updates: int = 10,
    batch: int = 256,
    population: int = 32,
    horizon: int = 100,
    burn_in: int = 8,
    expected_reward: bool = False,
    expected_end: bool = False,
    recent: float = 0.0,
    events: float = 0.0,
) -> None:
    """Evolve a policy whose parameters are its carry (`LinearController`) by `updates` generations, without a gradient.

    A generation is one imagined rollout of `batch` rows: each of the `population` samples has `batch` / `population` of them.
    All samples begin in the same real states and share the noise of the rollout (common random numbers), so that fitness, the
    mean over the sample's rollouts of the rewards while alive, differs by what the sample does. `expected_reward`,
    `expected_end`, `recent`, `events`: as in `train_policy`.
    """
    if run.epoch < start:
        return
    model, policy = run.imagination_model(), run.policy.eval()
    search, rollouts = search_of(policy), batch // population
    own = distributed.split_evenly(rollouts, "train.policy.batch / population")
    noise_size = model.noise_size + policy.noise_size
    index = torch.arange(own, device=run.device).repeat(population)  # row s * own + r is rollout r of sample s
    starts = dict(recent=recent, events=events, within=horizon)
    batches = run.batches(updates, own, burn_in, ends="acted", **starts, frames=False)
    seen: list[torch.Tensor] = []
    for steps, rows in progress(run, batches, updates, "policy"):
        steps, codes = steps.to(run.device), run.codes(run.replay, rows)
        noise = distributed.local_rows(torch.rand(rollouts, horizon, noise_size, generator=run.generator, device=run.device))
        normal = torch.randn(population, search.n, generator=run.generator, device=run.device, dtype=torch.float64)
        samples = search.ask(normal)
        prediction, state = model.start(steps, codes)
        prediction = Prediction(prediction.codes[index], prediction.h[index])
        carry = samples.float().repeat_interleave(own, 0)  # (population * own, n)
        dream = imagine(model, prediction, state.select(index), policy, horizon, noise.repeat(population, 1, 1), carry,
                        expected_reward, expected_end)  # fmt: skip
        gained = (dream.reward * dream.alive[:, :-1]).sum(1).view(population, own)
        fitness = distributed.all_reduce_sum(gained.sum(1)) / rollouts  # (population,)
        if not fitness.isfinite().all():
            raise UserError("imagined rewards are not finite: the dynamics diverged, train it again with a smaller"
                            " train.dynamics.lr or train.dynamics.clip")  # fmt: skip
        search.update(samples, fitness)
        run.count["policy"] += 1
        run.count["imagined_steps"] += batch * horizon
        seen.append(fitness)
    fitness = torch.stack(seen)  # (updates, population)
    log_metrics(
        run,
        "policy",
        ("dream_return",),
        updates=run.count["policy"],
        imagined_steps=run.count["imagined_steps"],
        dream_return=fitness.mean(),
        dream_return_best=fitness.max(1).values.mean(),
        sigma=search.sigma,
    )


def search_of(policy: Any) -> CMAES:
    """The search over the parameters of a policy. Raises UserError for a policy without one."""
    search = next((part for part in policy.children() if isinstance(part, CMAES)), None)
    if search is None:
        raise UserError(f"evolve_policy evolves a policy whose parameters are searched, got a {type(policy).__name__}: choose"
                        " policy._target_=tokenworld.policies.linear.LinearController, or train.policy._target_="
                        "tokenworld.training.phases.policy.train_policy")  # fmt: skip
    return search


def check(policy: Any, settings: dict[str, Any]) -> None:
    """Refuse what cannot be evolved before anything is created. Raises UserError."""
    search_of(policy)
    batch, population = settings["batch"], settings["population"]
    if batch % population:
        raise UserError(f"train.policy.batch must be a multiple of train.policy.population, got {batch} and {population}:"
                        f" choose e.g. {max(1, batch // population) * population}")  # fmt: skip
