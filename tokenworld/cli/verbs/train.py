"""`tokenworld train`: the whole loop, one phase of it, or the rest of a run that stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenworld import files, signals
from tokenworld.cli.arguments import SETTINGS, TRUST, Help, Key, near, recipe_of, run_of, shared_keys, values_of
from tokenworld.config.saved import RunSpec
from tokenworld.errors import UserError

if TYPE_CHECKING:
    from tokenworld.training.run import Run

PHASES = ("tokenizer", "dynamics", "policy")
KEYS = shared_keys(
    "recipe overlay seed device precision out data load.tokenizer load.world_model",
    data=("DIR", "episodes to learn from (phases tokenizer, dynamics, policy; the whole loop starts with them)"),
)
# Settings that a run may change on its way
CHANGES = {
    "train.loop.epochs": Key(int, "N", "total number of epochs: a larger number trains a finished run longer"),
    "train.loop.checkpoint_every": Key(int, "1", "epochs between two checkpoints"),
}
RESUME_KEYS = (
    shared_keys(
        "data device",
        data=("DIR", "the folder that holds its episodes now"),
        device=("auto", "the device to use this time: auto, cpu, cuda or mps"),
    )
    | CHANGES
)
HELP = Help(
    summary="the whole loop (collect, tokenizer, dynamics, policy), or one phase of it",
    positional="[tokenizer|dynamics|policy]",
    usages=("tokenworld train --resume RUN [key=value ...]",),
    settings=SETTINGS | {
        "train.loop.sinks=[NAME]": "also log numbers and pictures to tensorboard, trackio or wandb (each an extra), or to"
                                   ' your own sink, "train.loop.sinks=[{_target_:PACKAGE.Sink,KEY:VALUE}]"',
        "train.evaluate.pictures=12": "steps of real, reconstructed and imagined frames that each evaluation saves to"
                                      " RUN/pictures; 0: none",
    },
    flags=TRUST,
    sections={"settings of --resume RUN (the resumed run is bit-identical on a CPU)": RESUME_KEYS},
    about="""\
Without a phase: trains the whole loop, from an empty replay to a policy scored in the real environment. With a phase:
trains that part alone, on episodes that `tokenworld collect` wrote. Press Ctrl-C once (or send SIGTERM or SIGUSR1) to
save and stop. The command to resume is printed.

examples
  tokenworld train seed=1
  tokenworld train recipe=iris env.id=ALE/Breakout-v5
  tokenworld train env.id=my_game:Mine-v0 env.height=32 env.width=32 tokenizer.patch=8 out=mine
  tokenworld train --resume runs/NAME train.loop.epochs=40
  tokenworld collect recipe=atari_small env.id=ALE/Pong-v5 steps=5000 out=data/pong
  tokenworld train tokenizer recipe=atari_small data=data/pong out=tok
  tokenworld train dynamics recipe=atari_small data=data/pong load.tokenizer=tok out=dyn
  tokenworld train policy load.world_model=dyn""",
)  # fmt: skip


def parse(words: list[str]) -> Callable[[], Any]:
    if "--resume" in words:
        return _parse_resume(words)
    phase = None
    if words and "=" not in words[0] and not words[0].startswith(("-", "~")):
        phase, *words = words
        if phase not in PHASES:
            raise UserError(f"there is no phase {phase!r} to train: {near(phase, PHASES)}expected {', '.join(PHASES)}, "
                            f"or none for the whole loop")  # fmt: skip
    spec, _ = recipe_of("train", words, KEYS)
    if phase is not None:
        return lambda: run_phase(phase, spec)
    return lambda: run(spec)


def _parse_resume(words: list[str]) -> Callable[[], Any]:
    """Parse `train --resume RUN`: the run, the folder of its episodes, its device and its number of epochs."""
    folder, words = run_of([word for word in words if word != "--resume"], RESUME_KEYS)
    for key in (word.partition("=")[0] for word in words):
        if key not in RESUME_KEYS:
            raise UserError(f"a resumed run keeps its settings, got {key!r}: expected some of {', '.join(RESUME_KEYS)}; "
                            f"to change others, start a new run with load.world_model={folder}")  # fmt: skip
    given = values_of(words, RESUME_KEYS)
    keys = {name: value for name, value in given.items() if name not in CHANGES}
    changes = {name: value for name, value in given.items() if name in CHANGES}
    return lambda: resume(folder, keys, changes)


def run(spec: RunSpec) -> dict[str, Any]:
    """The whole loop. With `data`, the replay starts from a folder of episodes."""
    from tokenworld.training.build import with_loaded_sections

    return _begin(with_loaded_sections(spec))


def run_phase(phase: str, spec: RunSpec) -> dict[str, Any]:
    """One phase alone, for all of the recipe's epochs, on episodes from disk."""
    from tokenworld.training.build import with_loaded_sections

    spec = with_loaded_sections(spec)
    if phase not in spec.train:
        raise UserError(f"recipe {spec.recipe} has no phase train.{phase}: expected one of {', '.join(_trained(spec))}")
    if spec.data is None:
        raise UserError(f"train {phase} learns from episodes on disk, got no data: add data=DIR, a folder that `collect` wrote")
    if phase == "dynamics" and not spec.loads and "tokenizer" in spec.train:
        raise UserError("train dynamics needs a trained tokenizer: add load.tokenizer=RUN, the out= of `train tokenizer`, or"
                        " load.world_model=RUN to continue a trained dynamics")  # fmt: skip
    if phase == "policy" and spec.load_world_model is None:
        raise UserError("train policy needs a trained world model: add load.world_model=RUN, the out= of `train dynamics`")
    return _begin(replace(spec, phase=phase))


def _trained(spec: RunSpec) -> list[str]:
    return [phase for phase in PHASES if phase in spec.train]


def resume(out: str, keys: dict | None = None, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Continue a run from its last checkpoint. keys: where its episodes are now (data), and another device, for this time.
    changes: settings of the recipe that the run keeps from now on."""
    from tokenworld import distributed
    from tokenworld.config import saved, schema
    from tokenworld.training import folders
    from tokenworld.training.build import device_of
    from tokenworld.training.resume import resume_run

    keys, changes = keys or {}, changes or {}
    spec = saved.load(out)
    if "data" in keys:
        spec = replace(spec, data=str(Path(keys["data"]).resolve()))
    if changes:
        spec = spec.with_settings(changes)
    schema.check(spec.cfg)
    device = {"device": keys["device"]} if "device" in keys else {}
    here = replace(spec, **device)
    advice = f"add device=cpu: tokenworld train --resume {out} device=cpu"
    device_of(here.device or "auto", advice)  # joins the other processes, if there are any
    with folders.locking(Path(out)):
        run = resume_run(Path(out), here)
        run.resume_keys = device
        epochs = spec.train["loop"].get("epochs")
        if "train.loop.epochs" in changes and epochs < run.epoch:
            raise UserError(f"{out} has trained {run.epoch} epochs, got train.loop.epochs={epochs}: give at least {run.epoch}")
        if ("data" in keys or changes) and distributed.rank() == 0:
            saved.save(Path(out) / "config.yaml", spec)
        return _fit(run)


def _begin(spec: RunSpec) -> dict[str, Any]:
    """Train in the folder that the command line names, or in a new one."""
    from tokenworld.training import folders
    from tokenworld.training.build import device_of
    from tokenworld.training.resume import start_run

    device_of(spec.device or "auto")  # joins the other processes, if there are any
    with folders.claiming(spec) as out:
        return _fit(start_run(spec, out))


def _fit(run: Run) -> dict[str, Any]:
    """Run the loop to its end, then write summary and pictures. Every interruption prints how to resume."""
    from tokenworld import distributed, run_summary
    from tokenworld.training import loop
    from tokenworld.training.run import run_training

    try:
        run_training(run)
        result = run_summary.write_summary(run, run.config) if distributed.rank() == 0 else {}
    except KeyboardInterrupt:
        run.log.say(f"stopped after epoch {run.epoch}; resume with: {loop.resume_command(run)}")
        raise
    except (UserError, OSError, EOFError, RuntimeError) as error:
        reason = _reason(run, error)
        if reason is None:
            raise
        raise UserError(reason) from error
    finally:
        with contextlib.suppress(OSError, UserError):  # what a checkpoint counts on is on the disk since then
            if run.writer is not None:
                run.writer.close()
        run.log.close()
    distributed.stop()
    if not result:
        return {}
    measured = result["eval"]["return_mean"]
    what = "" if measured is None else (
        f"return {measured:.2f} [{result['eval']['return_ci95'][0]:.2f}, {result['eval']['return_ci95'][1]:.2f}],"
        f" random {result['eval']['random_return_mean']:.2f}; "
    )
    print(f"{what}{result['wall_seconds']['total']:.0f} s; weights, metrics and pictures: {run.out}/summary.json")
    return result


def _reason(run: Run, error: Exception) -> str | None:
    """Say in one sentence why training ended and how to resume it; return None for a bug of the program."""
    from tokenworld import distributed
    from tokenworld.storage import checkpoint
    from tokenworld.training import loop

    if isinstance(error, UserError):
        reason = str(error)
    elif distributed.is_lost(error):
        reason = "another process of this training has ended"
    elif signals.is_lost_process(error):
        reason = f"a process of the environment {run.meta['env_id']} has ended (out of memory, or killed)"
    elif isinstance(error, OSError):
        reason = files.explain(error)
    else:
        return None
    # without a checkpoint, the sentence of a setting that does not work is its own advice
    is_resumable = not isinstance(error, UserError) or checkpoint.exists(run.out / "checkpoint")
    return f"{reason}; resume with: {loop.resume_command(run)}" if is_resumable else reason
