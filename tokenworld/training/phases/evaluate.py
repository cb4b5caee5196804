"""Evaluate the policy in the real environment, and the world model on held-out episodes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tokenworld import distributed, files, run_pictures, run_summary
from tokenworld.evaluation import assess
from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.report.files import write
from tokenworld.log import PLAIN_EVERY
from tokenworld.scores.score import score
from tokenworld.training.batches import log_metrics
from tokenworld.training.run import Run

EVALUATION_TIME_SHARE = 0.1  # fraction of the training time that the evaluation of its world model may take


def evaluate(
    run: Run,
    last: bool,
    *,
    every: int = 5,
    episodes: int = 16,
    temperature: float = 0.5,
    final_episodes: int = 100,
    final_temperature: float = 1.0,
    envs: int = 16,
    env: dict | None = None,
    kmeans: bool = False,
    frames: int = 200,
    pictures: int = 12,
) -> None:
    """Measure the policy's return in the real environment every so many epochs, and everything else in the last one.

    `env`: what differs from the training environment, e.g. {"life_loss_ends": False}. `kmeans`: measure a plain k-means
    dictionary of patches next to a patch tokenizer, on the same frames. `frames`: held-out frames that the world model is
    evaluated on each time, five times as many in the end; within a tenth of the time that the training has taken; 0: never.
    `pictures`: steps of the strip of real and imagined frames that is drawn each time, see `run_pictures.py`; 0: never.
    """
    if distributed.rank() > 0:
        return distributed.barrier()  # the first rank measures
    due = run.count["policy"] > 0 and (run.epoch + 1) % every == 0
    if due or (last and run.policy is not None and run.count["policy"] > 0):
        if last:
            episodes, temperature = final_episodes, final_temperature
        result = score(run, episodes=episodes, temperature=temperature, seed=run.seed + 10_000, envs=envs, env=env)
        run.results["eval"] = result
        run.curve.append([run.count["env_steps"], result["return_mean"], *result["return_ci95"]])
        log_metrics(run, "eval", ("return_mean",), env_steps=run.count["env_steps"], **result)
    if frames and ((run.epoch + 1) % every == 0 or last):
        evaluate_world_model(run, last, 5 * frames if last else frames, kmeans and "tokenizer" in run.phases)
    if pictures and not last and (run.epoch + 1) % every == 0:
        run_pictures.update(run, pictures)
    if last and not run.held_out.rows:
        run.log.say(
            "no episode was held out, so tokenizer and dynamics were not measured: train on more episodes, or hold out one"
            " collected episode in N with train.collect.held_out=N"
        )
    if last and run.sharded:
        run.log.say(
            "The dynamics model is sharded, so it was not evaluated."
            f" Evaluate it in one process: add load.world_model={run.out}"
        )
    distributed.barrier()


def evaluate_world_model(run: Run, last: bool, frames: int, kmeans: bool) -> None:
    """The world model's quality without a policy: a line of metrics, and in the end a report and what the summary holds."""
    if not run.held_out.steps:
        return
    if run.sharded or not run.count["dynamics"]:  # the tokenizer alone
        if last and run.count["tokenizer"]:
            _keep_tokenizer(run, assess.evaluate_tokenizer(run, frames=frames, kmeans=kmeans))
        return
    began = time.monotonic()
    budget = EVALUATION_TIME_SHARE * run.log.wall - run.seconds.get("assess", 0.0)
    if budget < 1 and not last:
        return
    report = assess.evaluate_world_model(run, frames=frames, budget=max(1.0, budget), least=PLAIN_EVERY, kmeans=kmeans and last)
    log_metrics(run, "quality", (), **{metric.id: metric.value for metric in report.metrics})
    if last:
        files.remove_unfinished(run.out / "evaluation")  # of an earlier process that was killed here
        write(report, run.out / "evaluation")
        run.log.say(report.verdict)
        if run.count["tokenizer"]:
            _keep_tokenizer(run, report.metrics)
        run.results["dynamics"] = run_summary.dynamics_entry(report.metrics)
        log_metrics(run, "dynamics_eval", ("bits_per_frame",), **run.results["dynamics"])
    run.seconds["assess"] = run.seconds.get("assess", 0.0) + time.monotonic() - began


def _keep_tokenizer(run: Run, metrics: Sequence[Metric]) -> None:
    run.results["tokenizer"] = run_summary.tokenizer_entry(metrics)
    log_metrics(run, "tokenizer_eval", ("psnr", "event_recall"), **run.results["tokenizer"])
