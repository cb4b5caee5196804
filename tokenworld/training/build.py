"""From a config to a `Run`: its parts, its environment, its data and its device."""

from __future__ import annotations

import functools
import random
import shutil
import tempfile
import weakref
from pathlib import Path

import numpy as np
import torch

from tokenworld import distributed, origins
from tokenworld.config import compose, env_section, schema, targets, values
from tokenworld.config import saved as saved_config
from tokenworld.data import collection
from tokenworld.data.episodes import check_trainable, load_episodes, make_meta, read_meta
from tokenworld.data.meta import meanings_of
from tokenworld.envs.checked import make_checked
from tokenworld.errors import UserError
from tokenworld.kernels.memory import keep_freed_memory
from tokenworld.log import Log
from tokenworld.sinks import opening as sinks
from tokenworld.training import loop, restore, settings
from tokenworld.training.restore import Saved
from tokenworld.training.run import Run
from tokenworld.world_model import WorldModel

MODEL_SECTIONS = ("tokenizer", "backbone", "decoding", "action", "reward", "termination")


def temporary_run(*words: str) -> Run:
    """A run to look at while it learns, in a folder that goes with it, without evaluation: `run.loop()` trains it.

    `words` are those of the command line: `temporary_run("recipe=quickstart", "overlay=minute", "device=cpu")`.
    """
    cfg, cli = compose.compose(list(words))
    schema.check(cfg)
    out = tempfile.mkdtemp(prefix="tokenworld-")
    run = built(Path(out), cfg, cli, tuple(name for name in schema.PHASES if name != "evaluate"), log=Log(None))
    weakref.finalize(run, shutil.rmtree, out, ignore_errors=True)
    return run


def replay_folder(out: Path, rank: int | None = None) -> Path:
    """Where a rank keeps the episodes that it collected: the first one in replay/, the others in folders of it."""
    rank = distributed.rank() if rank is None else rank
    return out / "replay" / f"rank{rank}" if rank else out / "replay"


def open_log(out: Path, wall: float = 0.0) -> Log:
    """The run's log; only the first rank writes and speaks."""
    return Log(out, wall=wall) if distributed.rank() == 0 else Log(None, wall=wall, silent=True)


def built(
    out: Path, cfg: dict, cli: dict, phases: tuple[str, ...], log: Log | None = None, saved: Saved | None = None
) -> Run:
    """The parts of a run, untrained or with what load.* names, and with the episodes of `data`. saved: whose weights the run
    will have, which are compared with its parts before these are built."""
    seed = cli.get("seed", 0) % 2**48  # any whole number is a seed; what is derived from it stays within 64 bits
    if saved is None:
        sinks.check(cfg["train"]["loop"].get("sinks"))
    settings.check_settings(cfg["train"])
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    device, shard = device_of(cli.get("device", "auto")), cfg["train"]["loop"].get("shard", False)
    if shard and cli.get("phase") != "dynamics":
        raise UserError("train.loop.shard keeps a part of the dynamics in each process, and a policy needs it whole: use"
                        " `tokenworld train dynamics`, then `tokenworld train policy load.world_model=RUN` without it")
    if shard and distributed.world() > 1 and cfg["train"]["dynamics"].get("optimizer"):
        raise UserError("train.dynamics.optimizer needs whole matrices, and train.loop.shard keeps a part of each in each"
                        " process: leave one of the two out")
    make_env = functools.partial(env_of, cfg)
    env = make_env(1)
    frame, actions = tuple(env.single_observation_space.shape), int(env.single_action_space.n)
    meta = meta_of(cfg, env, seed)
    env.close()
    loaded = restore.loaded(cfg, cli, frame, actions) if saved is None else {}
    if saved is not None:
        saved.check_sizes(cfg, frame, actions)
    world_model = WorldModel.from_config(cfg, frame=frame, actions=actions)
    if cfg["train"]["evaluate"].get("kmeans") and world_model.tokenizer.patch is None:
        raise UserError("train.evaluate.kmeans compares with a tokenizer of patches: set it to false for this tokenizer")
    policy = None
    if "policy" in phases:
        section, shapes = cfg["policy"], world_model.shapes
        policy = schema.build(section, shapes=shapes) if saved is None else saved.build_policy(cfg, shapes)
    for key, found in loaded.items():
        (found.put_tokenizer if key == "load.tokenizer" else found.put)(world_model)
    bound = {}
    for name in phases:
        section = {key: value for key, value in cfg["train"][name].items() if key != "_target_"}
        if "phase" in cli and name == cli["phase"]:
            section |= {"start": 0, "stop": None} if name != "policy" else {"start": 0}
        bound[name] = functools.partial(targets.resolve(cfg["train"][name]["_target_"]), **section)
    run = Run(
        out=out,
        seed=seed,
        device=device,
        world_model=world_model.eval(),
        policy=policy.to(device).eval() if policy is not None else None,
        make_env=make_env,
        phases=bound,
        log=open_log(out) if log is None else log,
        meta=meta,
        precision=cli.get("precision", "fp32"),
    )
    world_model.tokenizer.to(device)
    if not shard or distributed.world() == 1:  # else it need not fit
        world_model.to(device)
    section = {key: value for key, value in cfg["train"]["loop"].items() if key != "_target_"}
    run.config, run.loop = cfg | {"recipe": cli["recipe"]}, functools.partial(loop.run_epochs, run, **section)
    for key in loaded:
        run.count["tokenizer"] = 1  # trained elsewhere: prepared, and its codes are version 1
        run.count["dynamics"] += key == "load.world_model"
    if "data" in cli:
        counts = read_data(run, cli["data"])
        if saved is None:
            check_trainable(cli["data"], counts, collects="collect" in phases)
    return run


def env_of(cfg: dict, num_envs: int, **changes):
    return make_checked(cfg["env"], num_envs, **changes)


def meta_of(cfg: dict, env, seed: int) -> dict:
    """What a folder of episodes says of itself."""
    return make_meta(
        env_id=cfg["env"].get("id", cfg["env"]["_target_"]),
        frame_shape=env.single_observation_space.shape,
        action_count=env.single_action_space.n,
        action_meanings=meanings_of(env.metadata, int(env.single_action_space.n)),
        preprocessing={key: value for key, value in cfg["env"].items() if key not in ("_target_", "id")},
        seed=seed,
    )


def read_data(run: Run, data: str) -> dict[str, int]:
    """The user's episodes into a run's memory; what each split has. Raises UserError for those of other frames or actions."""
    meta, found, plan = run.meta, read_meta(Path(data)), collection.read_plan(Path(data))
    for key in ("frame_shape", "action_count"):
        if found[key] != meta[key]:
            raise UserError(
                f"{data} holds episodes of {found['env_id']} with {key} {found[key]}, expected {meta[key]} as in"
                f" {meta['env_id']}: set env.id={found['env_id']} (and its preprocessing) or choose other data"
            )
    if plan is not None and plan.finished is None:
        run.log.say(f"{data} is an unfinished collection: the same `tokenworld collect` command continues it")
    return load_episodes(data, run.add, run.log.say)


def read_replay(run: Run, folder: Path) -> None:
    """A run's own episodes into its memory, as far as they can be read: its weights are whole without them."""
    if folder.is_dir():
        try:
            load_episodes(folder, run.add, run.log.say)
        except UserError as error:
            run.log.say(f"skipped: {error}")


def with_loaded_sections(cfg: dict, cli: dict) -> tuple[dict, dict]:
    """What is loaded brings its own architecture, and its environment and episodes unless others are given; episodes bring
    their environment; the rest is the recipe's. A setting of the user's that this would replace is refused."""
    asked = values.flatten(cfg)
    if "load.tokenizer" in cli and "load.world_model" in cli:
        raise UserError("load.world_model brings its own tokenizer: leave out load.tokenizer")
    meta = None
    if "data" in cli:
        meta = read_meta(cli["data"])
        origins.check({"env": {"id": meta["env_id"], **meta["preprocessing"]}}, f"{cli['data']}/meta.json")
    for key, sections in (("load.tokenizer", ("tokenizer",)), ("load.world_model", MODEL_SECTIONS)):
        if key in cli:
            theirs, their_cli = saved_config.load(cli[key])
            schema.check(theirs)
            cfg = cfg | {name: theirs[name] for name in sections}
            cfg = _with_their_env(cfg, theirs, cli.get("given", []), meta)
            if "data" not in cli and cfg["env"]["id"] == theirs["env"]["id"]:
                cli = _with_their_data(cli, key, their_cli)
    if meta is not None and (meta["env_id"] != cfg["env"]["id"] or not {"load.tokenizer", "load.world_model"} & set(cli)):
        cfg = env_section.of_data(cfg, meta)
    _refuse_contradictions(asked, values.flatten(cfg), cli)
    # a run can be opened from any folder
    folders = {key: str(Path(cli[key]).resolve()) for key in ("data", "load.tokenizer", "load.world_model") if key in cli}
    return cfg, cli | {key: folder for key, folder in folders.items() if Path(folder).exists()}


def _with_their_env(cfg: dict, theirs: dict, given: list[str], meta: dict | None) -> dict:
    """The environment that a loaded part was trained in, with the user's changes to it; unless other episodes are given."""
    if meta is not None and meta["env_id"] != theirs["env"]["id"]:
        return cfg
    changes = {key: value for key, value in cfg["env"].items() if any(g.split(".")[:2] == ["env", key] for g in given)}
    evaluate = cfg["train"]["evaluate"] | {"env": theirs["train"]["evaluate"].get("env")}
    cfg = cfg | {"env": theirs["env"] | changes, "train": cfg["train"] | {"evaluate": evaluate}}
    return env_section.choose(cfg, theirs["env"]["_target_"], given)


def _with_their_data(cli: dict, key: str, their_cli: dict) -> dict:
    """The episodes that a loaded part learned from. Raises UserError if they were moved."""
    if "data" in their_cli:
        if not Path(their_cli["data"]).is_dir():
            raise UserError(f"{key}={cli[key]} learned from {their_cli['data']}, which is not there now: add data=DIR")
        return {"data": their_cli["data"]} | cli
    replay = Path(cli[key]) / "replay"
    return {"data": str(replay)} | cli if replay.is_dir() else cli


def _refuse_contradictions(asked: dict, loaded: dict, cli: dict) -> None:
    for key in cli.get("given", []):
        if asked.get(key) != loaded.get(key):
            source = next(name for name in ("load.world_model", "load.tokenizer", "data") if name in cli)
            raise UserError(
                f"{key}={asked.get(key)} contradicts {source}={cli[source]}, which has {loaded.get(key)}: leave out {key}"
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
