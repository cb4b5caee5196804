"""Build a `Run` from a config: its parts, its environment, its data and its device."""

from __future__ import annotations

import functools
import random
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tokenworld import action_space, distributed, origins
from tokenworld.config import env_section, schema, targets, values
from tokenworld.config import saved as saved_config
from tokenworld.config.saved import RunSpec
from tokenworld.data import collection
from tokenworld.data.episodes import check_trainable, load_episodes, make_meta, read_meta
from tokenworld.data.meta import difference, meanings_of
from tokenworld.envs.checked import make_checked
from tokenworld.envs.suited import check_frames, compose_suited
from tokenworld.errors import UserError
from tokenworld.kernels.memory import keep_freed_memory
from tokenworld.log import Log
from tokenworld.sinks import opening as sinks
from tokenworld.training import restore, settings
from tokenworld.training.phases import world
from tokenworld.training.restore import Saved
from tokenworld.training.run import Phase, Run
from tokenworld.world_model import WorldModel

LOADED_SECTIONS = {
    "load.tokenizer": ("tokenizer",),
    "load.world_model": ("tokenizer", "backbone", "decoding", "action", "reward", "termination"),
}


def temporary_run(*words: str) -> Run:
    """A run to look at while it learns, in a folder that goes with it, without evaluation: `run_training(run)` trains it.

    `words` are those of the command line: `temporary_run("recipe=quickstart", "overlay=minute", "device=cpu")`.
    """
    spec = compose_suited(list(words))
    out = tempfile.mkdtemp(prefix="tokenworld-")
    run = build_run(Path(out), spec, [name for name in spec.phases if name != "evaluate"], log=Log(None))
    weakref.finalize(run, shutil.rmtree, out, ignore_errors=True)
    return run


def replay_folder(out: Path, rank: int | None = None) -> Path:
    """Where a rank keeps the episodes that it collected: the first one in replay/, the others in folders of it."""
    rank = distributed.rank() if rank is None else rank
    return out / "replay" / f"rank{rank}" if rank else out / "replay"


def open_log(out: Path, wall: float = 0.0) -> Log:
    """Open the run's log; only rank 0 writes and prints."""
    return Log(out, wall=wall) if distributed.rank() == 0 else Log(None, wall=wall, silent=True)


def build_run(
    out: Path, spec: RunSpec, phases: Sequence[str] | None = None, log: Log | None = None, saved: Saved | None = None
) -> Run:
    """The parts of a run, untrained or with what load.* names, and with the episodes of `data`. phases: those of an epoch, if
    not the run's own. saved: whose weights the run will have, which are compared with its parts before these are built."""
    cfg, phases = spec.cfg, spec.phases if phases is None else phases
    seed = (spec.seed or 0) % 2**48  # any whole number is a seed; what is derived from it stays within 64 bits
    if saved is None:
        sinks.check(cfg["train"]["loop"].get("sinks"))
    settings.check_settings(cfg["train"])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    device, shard = device_of(spec.device or "auto"), cfg["train"]["loop"].get("shard", False)
    if shard and spec.phase != "dynamics":
        raise UserError("train.loop.shard splits the dynamics across processes, but a policy needs the whole model: use"
                        " `tokenworld train dynamics`, then `tokenworld train policy load.world_model=RUN` without it")
    if shard and distributed.world_size() > 1 and cfg["train"].get("dynamics", {}).get("optimizer"):
        raise UserError("train.dynamics.optimizer needs whole matrices, but train.loop.shard splits them across processes:"
                        " leave one of the two out")
    together = "dynamics" in phases and phase_of(spec, "dynamics").function is world.train_world
    if shard and together:
        raise UserError("train.loop.shard splits what train_dynamics trains, got train_world: leave train.loop.shard out")
    make_env = functools.partial(env_of, cfg)
    env = make_env(1)
    frame, actions = tuple(env.single_observation_space.shape), action_space.of(env.single_action_space)
    check_frames(cfg, env.single_observation_space)
    meta = meta_of(cfg, env, seed)
    env.close()
    loaded = restore.load_sources(spec, frame, actions) if saved is None else {}
    if saved is not None:
        saved.check_sizes(cfg, frame, actions)
    world_model = WorldModel.from_config(cfg, frame=frame, actions=actions)
    if cfg["train"]["evaluate"].get("kmeans") and world_model.tokenizer.patch is None:
        raise UserError("train.evaluate.kmeans needs a tokenizer of patches: set it to false for this tokenizer")
    if together:
        world.check(world_model)
    policy = None
    if "policy" in phases:
        section, shapes = cfg["policy"], world_model.shapes
        policy = schema.build(section, shapes=shapes) if saved is None else saved.build_policy(cfg, shapes)
        _check_memory(policy, world_model)
    for key, source in loaded.items():
        (source.put_tokenizer if key == "load.tokenizer" else source.put)(world_model)
    run = Run(
        out=out,
        seed=seed,
        device=device,
        world_model=world_model.eval(),
        policy=policy.to(device).eval() if policy is not None else None,
        make_env=make_env,
        phases={name: phase_of(spec, name) for name in phases},
        log=open_log(out) if log is None else log,
        meta=meta,
        precision=spec.precision or "fp32",
        config=cfg | {"recipe": spec.recipe},
    )
    world_model.tokenizer.to(device)
    if not shard or distributed.world_size() == 1:  # else it need not fit
        world_model.to(device)
    for key in loaded:
        run.count["tokenizer"] = 1  # trained elsewhere: prepared, and its codes are version 1
        run.count["dynamics"] += key == "load.world_model"
    if spec.data is not None:
        counts = read_data(run, spec.data)
        if saved is None:
            check_trainable(spec.data, counts, collects="collect" in phases)
    return run


def _check_memory(policy, world_model: WorldModel) -> None:
    """Refuse a policy that remembers codes on its own, where codes follow from what the dynamics remembers."""
    if world_model.decoding.has_posterior and not policy.needs_h and policy.start(1) is not None:
        raise UserError(f"policy.network has a memory of its own, but a {type(world_model.decoding).__name__} makes codes only"
                        " along with its h: set policy.network._target_=tokenworld.policies.networks.HNetwork")


def phase_of(spec: RunSpec, name: str) -> Phase:
    """A phase as the run has it: the only one that is trained begins at once and does not stop before the run."""
    section = spec.train[name]
    phase = Phase(name, targets.resolve(section["_target_"]), schema.settings_of(section))
    if name != spec.phase:
        return phase
    return replace(phase, settings=phase.settings | {key: value for key, value in {"start": 0, "stop": None}.items()
                                                     if key in phase.settings})  # fmt: skip


def env_of(cfg: dict, num_envs: int, **changes):
    return make_checked(cfg["env"], num_envs, **changes)


def meta_of(cfg: dict, env, seed: int) -> dict:
    """Return the metadata of a folder of episodes."""
    return make_meta(
        env_id=cfg["env"].get("id", cfg["env"]["_target_"]),
        frame_shape=env.single_observation_space.shape,
        frame_dtype=str(env.single_observation_space.dtype),
        actions=action_space.of(env.single_action_space),
        action_meanings=meanings_of(env.metadata, action_space.of(env.single_action_space)),
        preprocessing={key: value for key, value in cfg["env"].items() if key not in ("_target_", "id")},
        seed=seed,
    )


def read_data(run: Run, data: str) -> dict[str, int]:
    """Read the user's episodes into the replay of a run and return the counts by split.

    Raises UserError for episodes with other frames or actions.
    """
    meta, data_meta, plan = run.meta, read_meta(Path(data)), collection.read_plan(Path(data))
    different = difference(data_meta, meta, env=False)
    if different is not None:
        key, theirs, ours = different
        raise UserError(
            f"{data} holds episodes of {data_meta['env_id']} with {key} {theirs}, expected {ours} as in"
            f" {meta['env_id']}: set env.id={data_meta['env_id']} (and its preprocessing) or choose other data"
        )
    if plan is not None and plan.finished is None:
        run.log.say(f"{data} is an unfinished collection: the same `tokenworld collect` command continues it")
    return load_episodes(data, run.add, run.log.say)


def read_replay(run: Run, folder: Path) -> None:
    """Read a run's own episodes into its replay, as far as possible: its weights are complete without them."""
    if folder.is_dir():
        try:
            load_episodes(folder, run.add, run.log.say)
        except UserError as error:
            run.log.say(f"skipped: {error}")


def with_loaded_sections(spec: RunSpec) -> RunSpec:
    """What is loaded brings its own architecture, and its environment and episodes unless others are given; episodes bring
    their environment; the rest is the recipe's. A setting of the user's that this would replace is refused."""
    cfg, data = spec.cfg, spec.data
    if len(spec.loads) > 1:
        raise UserError("load.world_model includes its own tokenizer: leave out load.tokenizer")
    meta = None
    if data is not None:
        meta = read_meta(data)
        origins.check({"env": {"id": meta["env_id"], **meta["preprocessing"]}}, f"{data}/meta.json")
    for key, folder in spec.loads.items():
        theirs = saved_config.load(folder)
        schema.check(theirs.cfg)
        cfg = cfg | {name: theirs.parts[name] for name in LOADED_SECTIONS[key]}
        cfg = _with_their_env(cfg, theirs.cfg, spec.given, meta)
        if data is None and cfg["env"]["id"] == theirs.parts["env"]["id"]:
            data = _their_data(key, folder, theirs)
    if meta is not None and (meta["env_id"] != cfg["env"]["id"] or not spec.loads):
        cfg = env_section.of_data(cfg, meta)
    _refuse_contradictions(spec, cfg, data)
    # a run can be opened from any folder
    loads = {key.replace(".", "_"): _absolute(folder) for key, folder in spec.loads.items()}
    return replace(spec.with_cfg(cfg), data=data and _absolute(data), **loads)


def _absolute(folder: str) -> str:
    path = Path(folder).resolve()
    return str(path) if path.exists() else folder


def _with_their_env(cfg: dict, theirs: dict, given: Sequence[str], meta: dict | None) -> dict:
    """The environment that a loaded part was trained in, with the user's changes to it; unless other episodes are given."""
    if meta is not None and meta["env_id"] != theirs["env"]["id"]:
        return cfg
    changes = {key: value for key, value in cfg["env"].items() if any(g.split(".")[:2] == ["env", key] for g in given)}
    evaluate = cfg["train"]["evaluate"] | {"env": theirs["train"]["evaluate"].get("env")}
    cfg = cfg | {"env": theirs["env"] | changes, "train": cfg["train"] | {"evaluate": evaluate}}
    return env_section.choose(cfg, theirs["env"]["_target_"], given)


def _their_data(key: str, folder: str, theirs: RunSpec) -> str | None:
    """The episodes that a loaded part learned from, if there are any. Raises UserError if they were moved."""
    if theirs.data is not None:
        if not Path(theirs.data).is_dir():
            raise UserError(f"{key}={folder} learned from {theirs.data}, which does not exist now: add data=DIR")
        return theirs.data
    replay = Path(folder) / "replay"
    return str(replay) if replay.is_dir() else None


def _refuse_contradictions(spec: RunSpec, cfg: dict, data: str | None) -> None:
    """Refuse settings that the user gave and that the recipe `cfg`, with what is loaded, has otherwise."""
    asked, loaded = values.flatten(spec.cfg), values.flatten(cfg)
    for key in spec.given:
        if asked.get(key) != loaded.get(key):
            sources = spec.loads | ({"data": data} if data is not None else {})
            source = next(name for name in ("load.world_model", "load.tokenizer", "data") if name in sources)
            raise UserError(
                f"{key}={asked.get(key)} contradicts {source}={sources[source]}, which has {loaded.get(key)}: leave out {key}"
            )


def is_here(name: str) -> bool:
    """Can a device of this name be used on this machine?"""
    return {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}.get(name, lambda: True)()


def device_of(name: str, advice: str = "") -> torch.device:
    """The device that a command asks for, ready for use. Raises UserError where it is not here; `advice` ends the sentence."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not is_here(name):
        here = ", ".join(each for each in ("cpu", "cuda", "mps") if is_here(each))
        raise UserError(f"device={name} is not available here: expected one of {here}{advice and '; ' + advice}")
    if name == "cpu":
        keep_freed_memory()
    return distributed.start(torch.device(name))
