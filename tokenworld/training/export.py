"""A run's model, with its figures and some real moments, as a folder for others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tokenworld.errors import UserError
from tokenworld.evaluation.report.files import figures as report_figures
from tokenworld.training.resume import open_run

STARTS = 64  # real moments that an exported model brings along


def write_model(out: str, folder: Path, keys: dict) -> str:
    """Write a run's model with its figures and some real moments to start dreams from; return a description."""
    run = open_run(out, {"device": "cpu"} | {key: keys[key] for key in ("device", "data") if key in keys})
    if not run.count["dynamics"]:
        raise UserError(f"{out} has no trained dynamics to export: expected a run of `train` or `train dynamics`")
    model, policy = run.world_model, run.policy if run.count["policy"] else None
    figures: dict[str, Any] = {"env_steps": run.count["env_steps"]}
    if run.results.get("eval"):
        figures["score"] = run.results["eval"]
    if (Path(out) / "evaluation" / "report.json").is_file():
        try:
            figures |= report_figures(Path(out) / "evaluation")
        except UserError as error:
            run.log.say(f"{error}; the model is exported without these figures")
    model.config |= {
        "action_meanings": run.meta["action_meanings"],
        "score_env": run.config["train"]["evaluate"].get("env") or {},
        "training": run.config["train"],
        "figures": figures,
    }
    replay, starts = run.held_out if run.held_out.rows else run.replay, None
    if replay.rows:
        starts = replay.sample(STARTS, model.backbone.context, np.random.default_rng(run.seed), ends="acted")[0]
    model.save_pretrained(folder, policy=policy, starts=starts)
    return f"world model{' and policy' if policy is not None else ''} of {run.config['env']['id']}"
