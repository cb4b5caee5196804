"""The results of a run: `summary.json` and the pictures of a run folder.

The functions take the `Run` of `tokenworld.training.run`; they read it and change nothing but its cached codes and results.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenworld import files, run_pictures
from tokenworld.evaluation.metrics import code_length, rewards, terminations, tokenizer
from tokenworld.evaluation.records import Metric

TOKENIZER = {  # key of summary.json -> the metric that it holds
    "psnr": tokenizer.PSNR,
    "event_recall": tokenizer.RECALL,
    "event_precision": tokenizer.PRECISION,
    "codebook_usage": tokenizer.USAGE,
    "perplexity": tokenizer.PERPLEXITY,
}
KMEANS = {
    "psnr": tokenizer.DICTIONARY_PSNR,
    "event_recall": tokenizer.DICTIONARY_RECALL,
    "event_precision": tokenizer.DICTIONARY_PRECISION,
}
DYNAMICS = {
    "bits_per_frame": code_length.BITS,
    **{f"bits_per_frame_{name}": code_length.BASELINE_BITS.variant(name, "") for name in ("copy_last", "unigram", "bigram")},
    "bits_per_changed_token": code_length.CHANGED,
    "bits_per_changed_token_unigram": code_length.BASELINE_CHANGED.variant("unigram", ""),
    "reward_event_f1": rewards.EVENT_F1,
    "termination_brier_skill": terminations.BRIER,
}


def tokenizer_entry(metrics: Sequence[Metric]) -> dict[str, Any]:
    """What summary.json says of the tokenizer."""
    values = {metric.id: metric.value for metric in metrics}
    entry: dict[str, Any] = {key: values.get(spec.id) for key, spec in TOKENIZER.items()}
    if tokenizer.DICTIONARY_PSNR.id in values:
        entry["kmeans"] = {key: values.get(spec.id) for key, spec in KMEANS.items()}
    return entry


def dynamics_entry(metrics: Sequence[Metric]) -> dict[str, Any]:
    """What summary.json says of the dynamics."""
    values = {metric.id: metric.value for metric in metrics}
    return {key: values.get(spec.id) for key, spec in DYNAMICS.items()}


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
        "tokenizer": nothing([key for key in TOKENIZER if key != "perplexity"]) | run.results.get("tokenizer", {}),
        "dynamics": nothing(DYNAMICS) | run.results.get("dynamics", {}),
    }


def write_summary(run, config: dict) -> dict[str, Any]:
    """The pictures of a finished run, and last its summary.json, which says that it is finished."""
    result = summary(run, config)
    if run.curve:
        run_pictures.save_learning_curve(run)
    run_pictures.save_film(run)
    files.write(run.out / "summary.json", json.dumps(result, indent=2) + "\n")
    return result
