"""The tokenizer and the dynamics of a run, for its summary."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from tokenworld.evaluation.assess import code_counts
from tokenworld.evaluation.metrics.run_dynamics import dynamics_metrics
from tokenworld.evaluation.metrics.tokenizer_measures import codebook_usage, events, kmeans_baseline, perplexity, psnr
from tokenworld.interfaces import Codes


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
    decoded = torch.cat([model.frames(Codes(part)).cpu()[0] for part in codes.indices.split(256, 1)])
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
