"""A run in, a report out: what can be measured of its world model, and what it says."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tokenworld.evaluation.metrics import baselines
from tokenworld.evaluation.metrics.tokenizer_measures import kmeans_baseline
from tokenworld.evaluation.probes.codes import have_equality
from tokenworld.evaluation.probes.levels import WORDS, levels_of
from tokenworld.evaluation.probes.menu import Menu
from tokenworld.evaluation.probes.other_agent import support_of
from tokenworld.evaluation.probes.stages import Stages
from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.report import specs
from tokenworld.evaluation.report.files import Report, provenance
from tokenworld.evaluation.report.files import fingerprint as weights_of
from tokenworld.evaluation.report.findings import findings
from tokenworld.evaluation.report.partial import kept, key_of
from tokenworld.evaluation.report.verdict import verdict
from tokenworld.evaluation.statistics.measured import absent
from tokenworld.evaluation.tiers import fingerprint_of, held_out_of, tier_a, tier_b, tier_c, tokenizer_only


def code_counts(run) -> baselines.CodeCounts | None:
    """What simple predictors know: statistics of the training codes; None without any, and where they cannot be counted."""
    if not (run.replay.steps and have_equality(run.world_model)):
        return None
    rows = np.arange(run.replay.rows)[None]
    train, first = run.codes(run.replay, rows).indices[0].cpu(), run.replay.gather(rows, frames=False).first[0]
    return baselines.fit(train, first, run.world_model.shapes.vocab_size)


def evaluate_world_model(
    run, *, frames: int, budget: float, seed: int = 0, data: str | None = None, simulator=None, states: int = 200,
    policies: dict[str, Any] | None = None, only: list[str] | None = None, folder: Path | None = None, least: float = 0.0,
    kmeans: bool = False,
) -> Report:  # fmt: skip
    """The evaluation of a run's world model on its held-out episodes, or on those of the folder `data` (tier A), and at
    `states` states of a `simulator` (tier B), if one is given, and on what policies earn (tier C), if `policies` is a dict
    (of further ones, by name).

    frames: about so many held-out frames · budget: seconds; a tier leaves to the next what it does not use. `only`: the
    ids that are reported. folder: of the report, where finished tiers are kept until it is written (see `partial.py`). least:
    seconds from which on a probe gets a line of the run's log. kmeans: also measure a dictionary of patches.

    Raises UserError where there is nothing to measure on.
    """
    held_out = run.held_out if data is None else held_out_of(data, run.meta)
    counts = code_counts(run)
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
        result, seconds = kept(folder, key, tier, lambda: (ran.append(tier), measure())[1])
        stages.end -= seconds - (time.monotonic() - began)  # the tiers after it have as much time as they had before
        if not ran:
            stages.kept()
        return result

    actions, levels = run.world_model.shapes.actions, levels_of(held_out, run.world_model.shapes.frame_dtype)
    names = Menu(actions).names(run.meta.get("action_meanings") or ())
    origin |= {} if actions.is_single else {"menu": [actions.label(row) for row in actions.menu()]}
    origin |= {} if levels.low is None else {"levels": WORDS}
    metrics, pictures, state = measured("A", lambda: tier_a(
        run.world_model, held_out, lambda rows: run.codes(held_out, rows), counts, frames=frames, budget=each, seed=seed,
        stages=stages, names=names, dictionary=_dictionary(run) if kmeans else None,
    ))  # fmt: skip
    if simulator is not None:
        left = stages.left - each * (policies is not None)
        more, drawn = measured("B", lambda: tier_b(
            run.world_model, simulator, states=states, budget=left, seed=seed, names=names, policy=policy,
            support=_support(run), stages=stages, levels=levels,
        ))  # fmt: skip
        metrics, pictures = metrics + more, pictures | drawn
    if policies is not None:
        left = stages.left
        more, drawn = measured("C", lambda: tier_c(
            run.world_model, policy, run.make_env, simulator, others=policies, budget=left, seed=seed, stages=stages
        ))  # fmt: skip
        metrics, pictures = metrics + more, pictures | drawn
    metrics = sorted(metrics, key=lambda metric: specs.position(metric.id))
    if only is not None:
        metrics = _chosen(metrics, only)
    source = {"folder": str(data or run.out), "episodes": held_out.episodes, "steps": held_out.steps}
    established = findings(metrics)
    return Report(
        metrics=metrics,
        findings=established,
        verdict=verdict(metrics, established),
        provenance=origin | {"data": source, "seed": seed, "frames": frames},
        capabilities={"A": "held-out episodes", "B": _branched(simulator),
                      "C": "policies that play" if policies is not None else None},
        pictures=pictures,
        state=state,
    )


def evaluate_tokenizer(run, *, frames: int, kmeans: bool = False) -> list[Metric]:
    """The metrics of a run's tokenizer alone, on about so many held-out frames."""
    dictionary = _dictionary(run) if kmeans else None
    return tokenizer_only(run.world_model, run.held_out, lambda rows: run.codes(run.held_out, rows), frames=frames,
                          dictionary=dictionary)  # fmt: skip


def _dictionary(run) -> Callable[[Tensor], Tensor | None]:
    """Frames -> those that a plain dictionary of patches makes of them, fitted on the training frames; None where the
    tokenizer has no codes of patches."""
    tokenizer = run.world_model.tokenizer
    if tokenizer.patch is None or tokenizer.V == 0:
        return lambda frames: None
    train = run.replay.frames(np.arange(run.replay.rows)[None])[0]
    return lambda frames: kmeans_baseline(train, frames, tokenizer.patch, tokenizer.V, seed=run.seed)


def _support(run):
    """How often the training data hold a frame's codes with an action; None without training data, and where codes or actions
    cannot be counted."""
    menu = Menu(run.world_model.shapes.actions)
    if not (run.replay.steps and have_equality(run.world_model) and menu.is_complete):
        return None
    rows = np.arange(run.replay.rows)[None]
    steps, codes = run.replay.gather(rows, frames=False), run.codes(run.replay, rows).indices[0].cpu().numpy()
    return support_of(codes, menu.numbers(steps.action[0]), steps.acted[0].numpy(), len(menu))


def _chosen(metrics: list[Metric], only: list[str]) -> list[Metric]:
    """The metrics that are asked for; of those that this evaluation does not have, that it does not."""
    chosen = [metric for metric in metrics if metric.id.split("@")[0] in only]
    have = {metric.id.split("@")[0] for metric in chosen}
    for id in only:
        if id not in have:
            spec = specs.by_id()[id]
            needs = "" if spec.tier == "A" else f": it takes tier={spec.tier}"
            chosen.append(absent(spec, f"it was not part of this evaluation{needs}", "skipped"))
    return sorted(chosen, key=lambda metric: specs.position(metric.id))


def _branched(simulator) -> str | None:
    if simulator is None:
        return None
    return "branches of the simulator, listed" if simulator.exact else "branches of the simulator, drawn"
