"""From a config to a `Run`: a new one, one that goes on from its checkpoint, or a finished one to look at."""

from __future__ import annotations

import functools
import inspect
import random
import shutil
import tempfile
import weakref
from pathlib import Path

import numpy as np
import torch

from tokenworld import distributed, folders, origins, restore
from tokenworld import train as training
from tokenworld.config import compose, env_section, schema, targets, values
from tokenworld.config import saved as saved_config
from tokenworld.costs import warn_of_costs
from tokenworld.data import collection
from tokenworld.data.episodes import EpisodeWriter, check_trainable, load_episodes, make_meta, read_episodes, read_meta
from tokenworld.data.meta import meanings_of
from tokenworld.envs.checked import make_checked
from tokenworld.errors import UserError
from tokenworld.kernels.memory import keep_freed_memory
from tokenworld.log import Log
from tokenworld.restore import Saved
from tokenworld.run import Run
from tokenworld.sinks import opening as sinks
from tokenworld.storage import checkpoint, model_folder
from tokenworld.world_model import WorldModel

MODEL_SECTIONS = ("tokenizer", "backbone", "decoding", "action", "reward", "termination")


def new_run(cfg: dict, cli: dict, phases: tuple[str, ...], out: Path | None = None) -> Run:
    """A run in the folder `out`, which is empty or holds a run of the same config: that one is resumed. None: as `cli` says."""
    device_of(cli.get("device", "auto"))
    out = Path(cli["out"]) if out is None else out
    if distributed.agreed((out / "config.yaml").is_file()):
        return resumed(out, cfg, cli, phases)
    with folders.emptied_on_error(out):
        if distributed.rank() == 0:
            saved_config.save(out / "config.yaml", cfg, cli)  # first: a run that is killed from here on can be gone on with
        run = built(out, cfg, cli, phases)
        if "collect" in phases:
            run.writer = EpisodeWriter(_folder(out), run.meta)
        warn_of_costs(run, cfg["train"])
    return run


def temporary_run(*words: str) -> Run:
    """A run to look at while it learns, in a folder that goes with it, without evaluation: `run.loop()` trains it.

    `words` are those of the command line: `temporary_run("recipe=quickstart", "overlay=minute", "device=cpu")`.
    """
    cfg, cli = compose.compose(list(words))
    schema.check(cfg)
    out = tempfile.mkdtemp(prefix="tokenworld-")
    run = built(Path(out), cfg, cli, tuple(name for name in training.PHASES if name != "evaluate"), log=Log(None))
    weakref.finalize(run, shutil.rmtree, out, ignore_errors=True)
    return run


def opened(out: str, keys: dict) -> tuple[Run, dict, dict]:
    """A finished or stopped run, or an exported model, to look at: weights, counters and, of a run, held-out episodes.
    Nothing is written to its folder. Its own device, where it is not here, and its episodes, where they were moved, are done
    without; the log says so."""
    if model_folder.is_model(out):
        return _opened_model(Path(out), keys)
    cfg, cli = saved_config.load(out)
    schema.check(cfg)
    saved, log = restore.load(out), Log(None)
    if "device" not in keys and not is_here(cli.get("device", "auto")):
        log.say(f"{out} was trained with device={cli.pop('device')}, which is not here: using {device_of('auto')}")
    if "data" not in keys and not Path(cli.get("data", ".")).is_dir():
        log.say(f"{out} learned from {cli.pop('data')}, which is not there now: if its episodes are needed, add data=DIR")
    cli = cli | {key: keys[key] for key in ("device", "precision", "data") if key in keys}
    phases = (cli["phase"], "evaluate") if "phase" in cli else training.PHASES
    run = built(Path(out), cfg, cli, phases, log=log, saved=saved)
    restore.put_run(run, saved)
    _read_replay(run, Path(out) / "replay")
    return run, cfg, cli


def _opened_model(folder: Path, keys: dict) -> tuple[Run, dict, dict]:
    """An exported model as a run without episodes."""
    world_model = WorldModel.from_pretrained(folder)  # all that can be wrong with it is said here
    told = world_model.config
    if not isinstance(told.get("training"), dict) or "env" not in told["parts"]:
        raise UserError(f"{folder} was saved without the settings of a run: use it in Python, or give a `tokenworld export`")
    cfg = told["parts"] | {"train": told["training"]}
    phases = ("policy", "evaluate") if "policy" in cfg else ("evaluate",)
    for phase in training.PHASES:
        schema.check_section(cfg, f"train.{phase}")
    # what it is scored in was checked when it was loaded; the training's own words for it were not
    cfg["train"] = cfg["train"] | {"evaluate": cfg["train"]["evaluate"] | {"env": told.get("score_env") or {}}}
    cli = {"recipe": folder.name} | {key: keys[key] for key in ("device", "precision", "data") if key in keys}
    policy = model_folder.stored(folder / "policy.safetensors", "policy") if "policy" in cfg else None
    saved = Saved(model_folder.stored(folder / "model.safetensors"), policy)
    run = built(folder, cfg, {key: value for key, value in cli.items() if key != "data"}, phases, log=Log(None), saved=saved)
    saved.put(run.world_model, run.policy)
    figures = told.get("figures") or {}
    run.count |= {"tokenizer": 1, "dynamics": 1, "policy": int(run.policy is not None)}
    run.count["env_steps"] = figures.get("env_steps") or 0
    run.results = {"eval": figures["score"]} if figures.get("score") else {}
    if "data" in cli:
        _read_data(run, cli["data"])
    return run, cfg, cli


def _folder(out: Path, rank: int | None = None) -> Path:
    """Where a rank keeps the episodes that it collected: the first one in replay/, the others in folders of it."""
    rank = distributed.rank() if rank is None else rank
    return out / "replay" / f"rank{rank}" if rank else out / "replay"


def resumed(out: Path, cfg: dict, cli: dict, phases: tuple[str, ...]) -> Run:
    """A run as its last checkpoint has it. With as many ranks as wrote it, it goes on bit for bit (on a CPU); with another
    number the episodes on disk are dealt out anew, games in progress are lost, and what each rank draws is drawn anew."""
    if "data" in cli and not Path(cli["data"]).is_dir():
        raise UserError(f"{out} learns from episodes in {cli['data']}, which is not there now: tell where they are,"
                        f" tokenworld train --resume {out} data=DIR")  # fmt: skip
    device_of(cli.get("device", "auto"), f"add device=cpu: tokenworld train --resume {out} device=cpu")
    if not distributed.agreed(checkpoint.exists(out / "checkpoint")):
        return _started_over(out, cfg, cli, phases)
    sinks.check(cfg["train"]["loop"].get("sinks"))
    saved = restore.load(out)
    state, where = saved.state, out / "checkpoint" / checkpoint.STATE
    run = built(out, cfg, cli, phases, log=_log(out, wall=state["wall"]), saved=saved)
    restore.put_run(run, saved)
    restore.put_optimizers(run, saved)
    restore.check_ranks(run, state["ranks"], where)
    ranks, same = state["ranks"], len(state["ranks"]) == distributed.world()
    run.spread = state["spread"] or not same
    run.log.truncate(state["log_lines"])
    _reopen(run, [each["writer"] for each in ranks])
    run.seed_ranks()
    own = ranks[distributed.rank()] if same else ranks[0]
    restore.put_generators(run, own, ranks[0]["generator"], ranks[0]["shuffler"], same)
    if same:
        _restore_rank(run, own)
    run.log.say(f"resumed {out} after epoch {run.epoch}")
    return run


def _started_over(out: Path, cfg: dict, cli: dict, phases: tuple[str, ...]) -> Run:
    """A run that was killed before its first checkpoint, from its start in the same folder."""
    aside, refused = None, None
    if distributed.rank() == 0:
        try:
            aside = folders.start_over(out, cfg["train"]["loop"].get("checkpoint_every", 1))
        except UserError as error:
            refused = str(error)
    refused = distributed.agreed(refused)
    if refused:
        raise UserError(refused)
    run = built(out, cfg, cli, phases)
    if aside is not None:
        run.log.say(f"{out} had no checkpoint yet and starts over; what it had written is kept in {aside}")
    if "collect" in phases:
        run.writer = EpisodeWriter(_folder(out), run.meta)
    return run


def _reopen(run: Run, positions: list[dict | None]) -> None:
    """Cut the episodes on disk back to what the checkpoint knows of, read this rank's share, and go on writing."""
    if positions[0] is None:
        return
    if distributed.rank() == 0:
        for rank, position in enumerate(positions):
            EpisodeWriter.open_at(_folder(run.out, rank), position, meta=run.meta, say=run.log.say).close()
    distributed.wait()
    if run.spread:
        number = 0
        for rank in range(len(positions)):
            for episode in read_episodes(_folder(run.out, rank)):
                if number % distributed.world() == distributed.rank():
                    run.add(episode)
                number += 1
    else:
        _read_replay(run, _folder(run.out))
    distributed.wait()  # all have read before one writes
    run.writer = EpisodeWriter(_folder(run.out), run.meta)


def _restore_rank(run: Run, own: dict) -> None:
    """What a rank alone knows: its games, and the codes of its episodes."""
    run.learnt_rows = min(own["learnt_rows"], run.replay.rows)
    games = restore.collector_state(own)
    if games is not None and "collect" in run.phases:
        run.play_seed = games["seed"]
        keywords = run.phases["collect"].keywords
        defaults = inspect.signature(run.phases["collect"].func).parameters
        training.ensure_collector(run, **{k: keywords.get(k, defaults[k].default) for k in ("envs", "held_out")})
        if dropped := run.collector.load_state_dict(games):
            run.log.say(dropped)
    if not run.spread:
        saved = own["code_cache"]
        if not all([run.replay.load_code_state(saved["replay"]), run.held_out.load_code_state(saved["held_out"])]):
            run.log.say("the saved codes are of other episodes than those that can be read: the frames are encoded again")
    restore.put_global_generators(run, own)


def _log(out: Path, wall: float = 0.0) -> Log:
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
    training.check_settings(cfg["train"])
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
    if cfg["train"]["evaluate"].get("kmeans") and not hasattr(world_model.tokenizer, "patch"):
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
        log=_log(out) if log is None else log,
        meta=meta,
        precision=cli.get("precision", "fp32"),
    )
    world_model.tokenizer.to(device)
    if not shard or distributed.world() == 1:  # else it need not fit
        world_model.to(device)
    section = {key: value for key, value in cfg["train"]["loop"].items() if key != "_target_"}
    run.config, run.loop = cfg | {"recipe": cli["recipe"]}, functools.partial(training.loop, run, **section)
    for key in loaded:
        run.count["tokenizer"] = 1  # trained elsewhere: prepared, and its codes are version 1
        run.count["dynamics"] += key == "load.world_model"
    if "data" in cli:
        counts = _read_data(run, cli["data"])
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


def _read_data(run: Run, data: str) -> dict[str, int]:
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


def _read_replay(run: Run, folder: Path) -> None:
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
