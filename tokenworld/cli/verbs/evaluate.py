"""`tokenworld evaluate RUN`: measure a world model, and write a report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenworld import files
from tokenworld.cli.arguments import DEVICE, TRUST, Help, Key, run_and_keys, shared_keys
from tokenworld.errors import UserError

if TYPE_CHECKING:
    from tokenworld.evaluation.report.files import Report
    from tokenworld.training.run import Run

HELP = Help(
    summary="measure a world model without reinforcement learning: a verdict, metrics, a page",
    positional="RUN",
    flags=TRUST,
    about="""\
Measures the world model of a run, or an exported model, on held-out episodes: the run's own, or the test episodes of
data=DIR (all episodes if it has no test episodes). It needs no policy and no real environment. It measures the loss of the
tokenizer, code lengths against simple predictors, calibration, action sensitivity, rewards, terminations, and how long an
imagined rollout matches the real episode. Every metric has a 95% interval over episodes. The report gives the reason for
each missing metric. Writes report.json, states.npz and report.html, one file that opens without a network.

tier=B also branches the simulator (Atari, MinAtar, the known world; other environments are replayed from their seed). It
takes every action from the same states and compares the outcomes with the model's predictions: impossible frames, missed
frames, the effects of actions, whole futures, the run's policy against another agent.
tier=C also plays about twenty policies (the run's own, mixed with random actions in many fractions, and constant ones), in
the real environment and in imagined rollouts. Does the model rank them correctly? How much return does a planner lose by
planning in the model?

examples
  tokenworld evaluate runs/NAME
  tokenworld evaluate runs/NAME tier=B
  tokenworld evaluate runs/NAME tier=C metrics=calibration,policies,M13
  tokenworld evaluate dyn data=data/breakout frames=5000 out=reports/breakout""",
)
KEYS = {
    "tier": Key(Literal["A", "B", "C"], "A", "A: held-out episodes; B: also branches of the simulator; C: also policies"),
    "frames": Key(int, "2000", "held-out frames to measure on"),
    "states": Key(int, "200", "states to branch from (tier B)"),
    "budget": Key(int, "3", "minutes (10 with a simulator); a metric that does not fit uses fewer states or is skipped"),
    "metrics": Key(str, "ID,ID", "only these metrics, or families of them; default: all of the tier"),
    "policies": Key(str, "RUN,RUN", "runs whose policies are also played (tier C); they must read pixels or share this run's"
                    " tokenizer"),
} | shared_keys(
    "data seed out device",
    data=("DIR", "held-out episodes: the test episodes of this folder, or all if it has none"),
    seed=("0", "the random seed that chooses the frames and states"),
    out=("RUN/evaluation", "the folder of the report"),
    device=DEVICE,
)  # fmt: skip


def parse(words: list[str]) -> Callable[[], Any]:
    run_folder, keys = run_and_keys("evaluate", words, KEYS)
    return lambda: run(run_folder, keys)


def run(out: str, keys: dict) -> Report:
    """Measure a run's world model on held-out episodes, with tier=B also at branches of its simulator, with tier=C also on the
    returns of policies. Writes report.json, states.npz and report.html, and prints one line."""
    from tokenworld.evaluation.report import partial, specs
    from tokenworld.evaluation.report.files import check_folder, write
    from tokenworld.log import Log

    tier = keys.get("tier", "A")
    only = specs.select(keys["metrics"]) if "metrics" in keys else None
    if "policies" in keys and tier != "C":
        raise UserError(f"policies= needs tier=C, got tier={tier}: add tier=C")
    folder = Path(keys.get("out", Path(out) / "evaluation"))
    with files.locking(folder):
        check_folder(folder)
        report = _measure(out, keys, tier, only, folder)
        print(report.verdict, flush=True)
        files.write_or_rescue(folder, lambda target: write(report, target))
        partial.remove(folder)
    measured = sum(metric.value is not None for metric in report.metrics)
    Log(None).say(f"{measured} of {len(report.metrics)} metrics measured: {folder}/report.html")
    return report


def _measure(out: str, keys: dict, tier: str, only: list[str] | None, folder: Path) -> Report:
    from tokenworld.evaluation import assess
    from tokenworld.evaluation.simulators.lookup import simulator_of
    from tokenworld.training.resume import open_run

    run = open_run(out, {key: value for key, value in keys.items() if key != "data"})
    if not run.count["dynamics"]:
        raise UserError(f"{out} has no trained dynamics to evaluate: expected a run of `train` or `train dynamics`")
    others = _policies(run, keys["policies"]) if "policies" in keys else {}
    simulator = None
    try:
        simulator = simulator_of(run.config["env"]) if tier in "BC" else None
    except UserError as error:
        if tier == "B":
            raise
        run.log.say(f"{error}; policies are still measured")
    minutes, frames, seed = keys.get("budget", 10 if simulator else 3), keys.get("frames", 2000), keys.get("seed", 0)
    return assess.evaluate_world_model(
        run, frames=frames, budget=60.0 * minutes, seed=seed, data=keys.get("data"), simulator=simulator,
        states=keys.get("states", 200), policies=others if tier == "C" else None,
        only=only, folder=folder,
    )  # fmt: skip


def _policies(run: Run, folders: str) -> dict[str, Any]:
    """Return the policies of other runs by name. Raises UserError for a policy that cannot read this run's frames."""
    from tokenworld.evaluation.report.files import fingerprint
    from tokenworld.training.resume import open_run

    policies = {}
    for folder in folders.split(","):
        other = open_run(folder, {})
        if not other.count["policy"]:
            raise UserError(f"policies={folder} has no trained policy: expected a run of `tokenworld train` or `train policy`")
        same = fingerprint(other.world_model.tokenizer) == fingerprint(run.world_model.tokenizer)
        if other.world_model.shapes.actions != run.world_model.shapes.actions or other.policy.needs_h:
            why = "reads its own world model's summary" if other.policy.needs_h else "has other actions"
            raise UserError(f"policies={folder} cannot play here, its policy {why}: expected one that reads codes or pixels")
        if not (same or other.policy.needs_pixels):
            raise UserError(f"policies={folder} reads codes of another tokenizer: expected this run's, or a policy on pixels")
        policies[folder] = other.policy
    return policies
