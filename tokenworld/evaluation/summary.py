"""What a run has learnt, measured: `summary.json` and the pictures of a run folder.

The functions take the `Run` of `tokenworld.run`; they read it and change nothing but its cached codes and results.
"""

from __future__ import annotations

import difflib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenworld import files
from tokenworld.errors import UserError
from tokenworld.evaluation import album, codelength
from tokenworld.evaluation.agent_probe import support_of
from tokenworld.evaluation.dynamics import dynamics_metrics
from tokenworld.evaluation.evaluate import fingerprint_of, held_out_of, tier_a, tier_b, tier_c
from tokenworld.evaluation.explained import EXPLAINED
from tokenworld.evaluation.findings import findings
from tokenworld.evaluation.measured import absent
from tokenworld.evaluation.partial import kept, key_of
from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.report import Report, provenance
from tokenworld.evaluation.report import fingerprint as weights_of
from tokenworld.evaluation.returns import scored
from tokenworld.evaluation.stages import Stages
from tokenworld.evaluation.tokens import codebook_usage, events, kmeans_baseline, perplexity, psnr
from tokenworld.evaluation.verdict import verdict
from tokenworld.imagination import Actor
from tokenworld.interfaces import Codes


def score(
    run, *, episodes: int, temperature: float = 1.0, seed: int = 0, envs: int = 16, env: dict | None = None
) -> dict[str, Any]:
    """The policy's return beside a uniform policy's, over whole real episodes, with 95 % intervals."""
    run.world_model.eval()
    run.policy.eval()
    env = run.make_env(min(envs, episodes), **(env or {}))
    generator = torch.Generator(run.device).manual_seed(seed)
    actor = Actor(run.world_model, run.policy, generator=generator, temperature=temperature)
    with run.log.progress(episodes, "evaluate") as bar:
        result = scored(env, actor, run.world_model.shapes.actions, episodes=episodes, seed=seed, progress=bar.update)
    env.close()
    run.results["random"] = result["random_return_mean"]
    return result | {"temperature": temperature}


@torch.no_grad()
def tokenizer_metrics(run, limit: int = 4096, kmeans: bool = False) -> dict[str, Any]:
    """PSNR, event recall and precision, codebook usage on at most `limit` held-out frames.

    `kmeans` adds the same numbers of a plain dictionary of as many patches of the same size, fitted on the training frames.
    """
    model = run.world_model.eval()
    rows = np.arange(min(limit, run.held_out.rows))
    steps = run.held_out.gather(rows[None])
    codes = run.codes(run.held_out, rows[None])
    frames = steps.obs[0]
    decoded = torch.cat([model.decode(Codes(part)).cpu()[0] for part in codes.indices.split(256, 1)])
    decoded = (decoded.clamp(0, 1) * 255).round().to(torch.uint8)
    tokenizer = model.tokenizer
    result = {
        **fidelity(frames, decoded, steps.first[0]),
        "codebook_usage": codebook_usage(codes.indices.cpu(), tokenizer.V),
        "perplexity": perplexity(codes.indices.cpu(), tokenizer.V),
    }
    if kmeans:
        train = run.replay.frames(np.arange(run.replay.rows)[None])[0]
        dictionary = kmeans_baseline(train, frames, tokenizer.patch, tokenizer.V, seed=run.seed)
        result["kmeans"] = fidelity(frames, dictionary, steps.first[0])
    return result


def fidelity(frames: torch.Tensor, decoded: torch.Tensor, first: torch.Tensor) -> dict[str, float | None]:
    """Of decoded frames (N, C, H, W) uint8 beside the real ones, first (N,): does the picture and its motion survive?"""
    found = events(frames, decoded, first)
    return {
        "psnr": min(psnr(frames, decoded), 100.0),  # equal frames would be infinite
        "event_recall": found["recall"],
        "event_precision": found["precision"],
    }


@torch.no_grad()
def measure_dynamics(run, limit: int = 4096, windows: int = 64) -> dict[str, float | None]:
    """Code lengths and heads on held-out episodes, beside baselines fitted on the training codes."""
    counts = code_counts(run)
    length = max(2, math.ceil(min(limit, run.held_out.rows) / windows))
    rows = np.arange(min(limit, run.held_out.rows) // length * length).reshape(-1, length)
    steps = run.held_out.gather(rows).to(run.device)
    return dynamics_metrics(run.world_model.eval(), steps, run.codes(run.held_out, rows), counts)


def code_counts(run) -> codelength.CodeCounts:
    """What simple predictors know: statistics of the training codes."""
    rows = np.arange(run.replay.rows)[None]
    train, first = run.codes(run.replay, rows).indices[0].cpu(), run.replay.gather(rows, frames=False).first[0]
    return codelength.fit(train, first, run.world_model.shapes.vocab_size)


def assess(
    run, *, frames: int, budget: float, seed: int = 0, data: str | None = None, simulator=None, states: int = 200,
    policies: dict[str, Any] | None = None, only: list[str] | None = None, folder: Path | None = None, least: float = 0.0,
) -> Report:  # fmt: skip
    """The evaluation of a run's world model on its held-out episodes, or on those of the folder `data` (tier A), and at
    `states` states of a `simulator` (tier B), if one is given, and on what policies earn (tier C), if `policies` is a dict
    (of further ones, by name).

    frames: about so many held-out frames · budget: seconds; a tier leaves to the next what it does not use. `only`: the
    ids that are reported. folder: of the report, where finished tiers are kept until it is written (see `partial.py`). least:
    seconds from which on a probe gets a line of the run's log. Raises UserError where there is nothing to measure on.
    """
    held_out = run.held_out if data is None else held_out_of(data, run.meta)
    counts = code_counts(run) if run.replay.steps else None
    policy = run.policy if run.count["policy"] else None
    stages, each = Stages(run.log, budget, least=least), budget / (1 + (simulator is not None) + (policies is not None))
    origin = provenance(run)
    key = None if folder is None else key_of(
        run=origin, data=fingerprint_of(held_out), train=fingerprint_of(run.replay, frames=False), frames=frames, seed=seed,
        budget=budget, states=states, env=run.config["env"], policy=policy and weights_of(policy), simulator=bool(simulator),
        policies=policies and {name: weights_of(each) for name, each in policies.items()}, tiers=policies is not None,
    )  # fmt: skip

    def measured(tier: str, measure: Callable[[], tuple]) -> tuple:
        began, stages.tier, ran = time.monotonic(), tier, []
        found, seconds = kept(folder, key, tier, lambda: (ran.append(tier), measure())[1])
        stages.end -= seconds - (time.monotonic() - began)  # the tiers after it have as much time as they had before
        if not ran:
            stages.kept()
        return found

    names = run.meta.get("action_meanings") or ()
    metrics, pictures, state = measured("A", lambda: tier_a(
        run.world_model, held_out, lambda rows: run.codes(held_out, rows), counts, frames=frames, budget=each, seed=seed,
        stages=stages, names=names,
    ))  # fmt: skip
    if simulator is not None:
        left = stages.left - each * (policies is not None)
        more, drawn = measured("B", lambda: tier_b(
            run.world_model, simulator, states=states, budget=left, seed=seed, names=names, policy=policy,
            support=_support(run), stages=stages,
        ))  # fmt: skip
        metrics, pictures = metrics + more, pictures | drawn
    if policies is not None:
        left = stages.left
        more, drawn = measured("C", lambda: tier_c(
            run.world_model, policy, run.make_env, simulator, others=policies, budget=left, seed=seed, stages=stages
        ))  # fmt: skip
        metrics, pictures = metrics + more, pictures | drawn
    if only is not None:
        metrics = _chosen(metrics, only)
    source = {"folder": str(data or run.out), "episodes": held_out.episodes, "steps": held_out.steps}
    found = findings(metrics)
    return Report(
        metrics=metrics,
        findings=found,
        verdict=verdict(metrics, found),
        provenance=origin | {"data": source, "seed": seed, "frames": frames},
        capabilities={"A": "held-out episodes", "B": _branched(simulator),
                      "C": "policies that play" if policies is not None else None},
        pictures=pictures,
        state=state,
    )


def _support(run):
    """How often the training data hold a frame's codes with an action; None without training data."""
    if not run.replay.steps:
        return None
    rows = np.arange(run.replay.rows)[None]
    steps, codes = run.replay.gather(rows, frames=False), run.codes(run.replay, rows).indices[0].cpu().numpy()
    return support_of(codes, steps.action[0].numpy(), steps.acted[0].numpy(), run.world_model.shapes.actions)


def chosen_ids(words: str) -> list[str]:
    """metrics=M7,M12.regret -> the numbers that are named, or whose row is. Raises UserError for a word that names none."""
    rows = {id.split(".")[0] for id in EXPLAINED}
    for word in words.split(","):
        if word not in EXPLAINED and word not in rows:
            near = difflib.get_close_matches(word, [*EXPLAINED, *sorted(rows)], n=1, cutoff=0.0)[0]
            raise UserError(f"metrics={word} is no number and no row of numbers: did you mean {near}?")
    return [id for id in EXPLAINED if id in words.split(",") or id.split(".")[0] in words.split(",")]


def _chosen(metrics: list[Metric], only: list[str]) -> list[Metric]:
    """The metrics that are asked for; of those that this evaluation does not have, that it does not."""
    found = [metric for metric in metrics if metric.id.split("@")[0] in only]
    have = {metric.id.split("@")[0] for metric in found}
    why = "it was not part of this evaluation: M3 and M7 to M11 take tier=B, M12 and M13 tier=C"
    return found + [absent(id, id, why, "skipped") for id in only if id not in have]


def _branched(simulator) -> str | None:
    if simulator is None:
        return None
    return "branches of the simulator, listed" if simulator.exact else "branches of the simulator, drawn"


def summary(run, config: dict) -> dict[str, Any]:
    """What `summary.json` says: null for what was not measured."""
    nothing = dict.fromkeys
    return {
        "recipe": config.get("recipe"),
        "seed": run.seed,
        "env_id": run.meta.get("env_id"),
        "env_steps": run.count["env_steps"],
        "imagined_steps": run.count["imagined_steps"],
        "updates": {name: run.count[name] for name in ("tokenizer", "dynamics", "policy")},
        "wall_seconds": {"total": run.log.wall, **run.seconds},
        "eval": nothing(["return_mean", "return_ci95", "episodes", "random_return_mean"]) | run.results.get("eval", {}),
        "tokenizer": nothing(["psnr", "event_recall", "event_precision", "codebook_usage"]) | run.results.get("tokenizer", {}),
        "dynamics": nothing(
            [
                "bits_per_frame",
                "bits_per_frame_copy_last",
                "bits_per_frame_unigram",
                "bits_per_frame_bigram",
                "bits_per_changed_token",
                "bits_per_changed_token_unigram",
                "reward_event_f1",
                "termination_brier_skill",
            ]
        )
        | run.results.get("dynamics", {}),
    }


def write_summary(run, config: dict) -> dict[str, Any]:
    """The pictures of a finished run, and last its summary.json, which says that it is finished."""
    result = summary(run, config)
    if run.curve:
        album.save_learning_curve(run)
    album.save_film(run)
    files.write(run.out / "summary.json", json.dumps(result, indent=2) + "\n")
    return result
