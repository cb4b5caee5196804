"""Score the policy of a run in the real environment, with random play for comparison."""

from __future__ import annotations

from typing import Any

import torch

from tokenworld.imagination import Actor
from tokenworld.scores.returns import score_policy


def score(
    run, *, episodes: int, temperature: float = 1.0, seed: int = 0, envs: int = 16, env: dict | None = None
) -> dict[str, Any]:
    """Return the score of the policy and of a uniform policy, over whole real episodes, with 95 % intervals."""
    run.world_model.eval()
    run.policy.eval()
    env = run.make_env(min(envs, episodes), **(env or {}))
    generator = torch.Generator(run.device).manual_seed(seed)
    actor = Actor(run.world_model, run.policy, generator=generator, temperature=temperature)
    with run.log.progress(episodes, "evaluate") as bar:
        actions = run.world_model.shapes.actions
        result = score_policy(env, actor, actions, episodes=episodes, seed=seed, progress=bar.update)
    env.close()
    run.results["random"] = result["random_return_mean"]
    return result | {"temperature": temperature}
