"""The results of a run: `summary.json` and the pictures of a run folder.

The functions take the `Run` of `tokenworld.training.run`; they read it and change nothing but its cached codes and results.
"""

from __future__ import annotations

import json
from typing import Any

from tokenworld import files, run_pictures


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
        run_pictures.save_learning_curve(run)
    run_pictures.save_film(run)
    files.write(run.out / "summary.json", json.dumps(result, indent=2) + "\n")
    return result
