"""`tokenworld score RUN`: the return of a policy in the real environment."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Literal

from tokenworld.cli.arguments import DEVICE, TRUST, Help, Key, run_and_keys, shared_keys
from tokenworld.config import compose
from tokenworld.errors import UserError

HELP = Help(
    summary="the return of a trained policy in the real environment",
    positional="RUN",
    flags=TRUST,
    about="""\
Measures the return of the policy of a run, or of an exported model, in the real environment. Actions are sampled at
temperature 1, and an episode has at most 10,000 steps. With policy=, a planner acts instead: before each step it searches
action sequences inside the world model.

examples
  tokenworld score runs/NAME episodes=100
  tokenworld score runs/NAME policy=cem episodes=10 policy.horizon=8 policy.samples=64""",
)
PLANNER = {
    "policy.horizon": Key(int, "12", "lookahead of the planner, in steps"),
    "policy.samples": Key(int, "128", "imagined futures per iteration"),
    "policy.iterations": Key(int, "3", "refits of the plan (cem)"),
    "policy.elites": Key(int, "16", "best futures that a refit keeps (cem)"),
    "policy.gamma": Key(float, "0.995", "discount per step"),
    "policy.keep": Key(float, "0.1", "fraction of the last plan that a refit keeps (cem)"),
}
OWN = {
    "episodes": Key(int, "100", "real episodes"),
    "policy": Key(Literal["cem", "shooting"], "cem|shooting", "a planner acts instead of the run's policy"),
}
KEYS = (
    OWN
    | shared_keys(
        "seed device data",
        seed=("0", "the random seed of the games and of the actions"),
        device=DEVICE,
        data=("DIR", "the run's episodes, if they were moved"),
    )
    | PLANNER
)


def parse(words: list[str]) -> Callable[[], Any]:
    compose.refuse_repeats(words)
    planner = [word for word in words if word.partition("=")[0] == "policy" or word.startswith("policy.")]
    run_folder, keys = run_and_keys("score", [word for word in words if word not in planner], KEYS)
    if planner:
        keys["policy"] = _planner(planner)
    return lambda: run(run_folder, keys)


def _planner(words: list[str]) -> dict:
    """policy=cem policy.horizon=8 ... -> the section of a planner."""
    import yaml

    from tokenworld.config import schema, targets

    given = dict(word.partition("=")[::2] for word in words)
    method = given.pop("policy", None)
    if method not in ("cem", "shooting") or "policy.method" in given:
        raise UserError(f"policy must be cem or shooting, got {method or 'none'}: "
                        f"leave policy and policy.* out for the run's own")  # fmt: skip
    try:
        section = {key.removeprefix("policy."): yaml.safe_load(value) for key, value in given.items()}
    except yaml.YAMLError:
        raise UserError(f"cannot read {' '.join(words)!r}: write for example policy=cem policy.horizon=8") from None
    section = {"_target_": "tokenworld.policies.planner.Planner", **section, "method": method}
    schema.check_keywords({}, "policy", section, targets.resolve(section["_target_"]))
    return section


def run(out: str, keys: dict) -> dict[str, Any]:
    """The return of a run's policy in the real environment: sampled, T = 1, at most 10,000 steps an episode."""
    from tokenworld.config import schema
    from tokenworld.scores import score
    from tokenworld.training.resume import open_run

    run = open_run(out, keys)
    if "policy" in keys:  # a planner needs trained dynamics and no training itself
        if not run.count["dynamics"]:
            raise UserError(f"{out} has no trained dynamics to plan in: expected a run of `train` or `train dynamics`")
        run.policy = schema.build(keys["policy"], shapes=run.world_model.shapes).to(run.device)
    elif run.policy is None or run.count["policy"] == 0:
        raise UserError(f"{out} has no trained policy to score: expected a run of `tokenworld train` or `train policy`")
    env = (run.config["train"]["evaluate"].get("env") or {}) | {"max_steps": 10_000}
    result = score.score(run, episodes=keys.get("episodes", 100), seed=keys.get("seed", 0) + 20_000, env=env)
    low, high = result["return_ci95"]
    print(json.dumps(result))
    run.log.say(
        f"{run.config['env']['id']}: return {result['return_mean']:.2f} [{low:.2f}, {high:.2f}] over"
        f" {result['episodes']} episodes; random {result['random_return_mean']:.2f}"
    )
    return result
