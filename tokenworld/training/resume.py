"""Start a run, resume one from its checkpoint, or open a finished one for reading."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tokenworld import distributed
from tokenworld.config import saved as saved_config
from tokenworld.config import schema
from tokenworld.config.saved import RunSpec
from tokenworld.data.episodes import EpisodeWriter, read_episodes
from tokenworld.errors import UserError
from tokenworld.log import Log
from tokenworld.sinks import opening as sinks
from tokenworld.storage import checkpoint, model_folder
from tokenworld.training import folders, restore
from tokenworld.training.build import build_run, device_of, is_here, open_log, read_data, read_replay, replay_folder
from tokenworld.training.costs import warn_of_costs
from tokenworld.training.phases import collect
from tokenworld.training.restore import Saved
from tokenworld.training.run import Run
from tokenworld.world_model import WorldModel


def start_run(spec: RunSpec, out: Path | None = None) -> Run:
    """A run in the folder `out`, which is empty or holds a run of the same config: that one is resumed. None: the spec's."""
    device_of(spec.device or "auto")
    out = Path(spec.out) if out is None else out
    if distributed.broadcast((out / "config.yaml").is_file()):
        return resume_run(out, spec)
    with folders.emptying_on_error(out):
        if distributed.rank() == 0:
            saved_config.save(out / "config.yaml", spec)  # first: a run killed from here on can be resumed
        run = build_run(out, spec)
        if "collect" in run.phases:
            run.writer = EpisodeWriter(replay_folder(out), run.meta)
        warn_of_costs(run, spec.train)
    return run


def open_run(out: str, keys: dict) -> Run:
    """Open a finished or stopped run, or an exported model, for reading: weights, counters and, of a run, held-out episodes.

    Its folder is not written to. If its device is not available or its episodes were moved, the log says so.
    """
    if model_folder.is_model(out):
        return _open_model(Path(out), keys)
    spec = saved_config.load(out)
    schema.check(spec.cfg)
    saved, log = restore.load(out), Log(None)
    if "device" not in keys and not is_here(spec.device or "auto"):
        log.say(f"{out} was trained with device={spec.device}, which is not available here: using {device_of('auto')}")
        spec = replace(spec, device=None)
    if "data" not in keys and spec.data is not None and not Path(spec.data).is_dir():
        log.say(f"{out} learned from {spec.data}, which does not exist now: add data=DIR if its episodes are needed")
        spec = replace(spec, data=None)
    run = build_run(Path(out), replace(spec, **_of_run(keys)), log=log, saved=saved)
    restore.put_run(run, saved)
    read_replay(run, Path(out) / "replay")
    return run


def _of_run(keys: dict) -> dict[str, str]:
    """The keys of a command that change how a run is opened."""
    return {key: keys[key] for key in ("device", "precision", "data") if key in keys}


def _open_model(folder: Path, keys: dict) -> Run:
    """Open an exported model as a run without episodes."""
    world_model = WorldModel.from_pretrained(folder)  # all that can be wrong with it is said here
    config = world_model.config
    if not isinstance(config.get("training"), dict) or "env" not in config["parts"]:
        raise UserError(f"{folder} was saved without the settings of a run: use it in Python, or give a `tokenworld export`")
    cfg = config["parts"] | {"train": config["training"]}
    phases = ("policy", "evaluate") if "policy" in cfg else ("evaluate",)
    for phase in schema.TRAIN:
        if phase in cfg["train"] or phase not in schema.OPTIONAL:
            schema.check_section(cfg, f"train.{phase}")
    # what it is scored in was checked when it was loaded; the training's own words for it were not
    cfg["train"] = cfg["train"] | {"evaluate": cfg["train"]["evaluate"] | {"env": config.get("score_env") or {}}}
    policy = model_folder.read_weights(folder / "policy.safetensors", "policy") if "policy" in cfg else None
    saved = Saved(model_folder.read_weights(folder / "model.safetensors"), policy)
    spec = replace(RunSpec.of(cfg, {"recipe": folder.name}), **_of_run(keys) | {"data": None})
    run = build_run(folder, spec, phases, log=Log(None), saved=saved)
    saved.put(run.world_model, run.policy)
    figures = config.get("figures") or {}
    run.count |= {"tokenizer": 1, "dynamics": 1, "policy": int(run.policy is not None)}
    run.count["env_steps"] = figures.get("env_steps") or 0
    run.results = {"eval": figures["score"]} if figures.get("score") else {}
    if "data" in keys:
        read_data(run, keys["data"])
    return run


def resume_run(out: Path, spec: RunSpec) -> Run:
    """A run as its last checkpoint has it. With as many ranks as wrote it, it continues bit for bit (on a CPU); with another
    number the episodes on disk are redistributed, games in progress are lost, and each rank draws from a new seed."""
    if spec.data is not None and not Path(spec.data).is_dir():
        raise UserError(f"{out} learns from episodes in {spec.data}, which does not exist now: give their folder,"
                        f" tokenworld train --resume {out} data=DIR")  # fmt: skip
    device_of(spec.device or "auto", f"add device=cpu: tokenworld train --resume {out} device=cpu")
    if not distributed.broadcast(checkpoint.exists(out / "checkpoint")):
        return _start_over(out, spec)
    sinks.check(spec.train["loop"].get("sinks"))
    saved = restore.load(out)
    state, where = saved.state, out / "checkpoint" / checkpoint.STATE
    run = build_run(out, spec, log=open_log(out, wall=state["wall"]), saved=saved)
    restore.put_run(run, saved)
    restore.put_optimizers(run, saved)
    restore.check_ranks(run, state["ranks"], where)
    ranks, same = state["ranks"], len(state["ranks"]) == distributed.world_size()
    run.is_redistributed = state["spread"] or not same
    run.log.truncate(state["log_lines"])
    _reopen(run, [each["writer"] for each in ranks])
    run.seed_ranks()
    own = ranks[distributed.rank()] if same else ranks[0]
    restore.put_generators(run, own, ranks[0]["generator"], ranks[0]["shuffler"], same)
    if same:
        _restore_rank(run, own)
    run.log.say(f"resumed {out} after epoch {run.epoch}")
    return run


def _start_over(out: Path, spec: RunSpec) -> Run:
    """A run that was killed before its first checkpoint, from its start in the same folder."""
    aside, refused = None, None
    if distributed.rank() == 0:
        try:
            aside = folders.start_over(out, spec.train["loop"].get("checkpoint_every", 1))
        except UserError as error:
            refused = str(error)
    refused = distributed.broadcast(refused)
    if refused:
        raise UserError(refused)
    run = build_run(out, spec)
    if aside is not None:
        run.log.say(f"{out} had no checkpoint yet and starts over; its earlier files are kept in {aside}")
    if "collect" in run.phases:
        run.writer = EpisodeWriter(replay_folder(out), run.meta)
    return run


def _reopen(run: Run, positions: list[dict | None]) -> None:
    """Cut the episodes on disk back to what the checkpoint knows of, read this rank's share, and continue writing."""
    if positions[0] is None:
        return
    if distributed.rank() == 0:
        for rank, position in enumerate(positions):
            EpisodeWriter.open_at(replay_folder(run.out, rank), position, meta=run.meta, say=run.log.say).close()
    distributed.barrier()
    if run.is_redistributed:
        number = 0
        for rank in range(len(positions)):
            for episode in read_episodes(replay_folder(run.out, rank)):
                if number % distributed.world_size() == distributed.rank():
                    run.add(episode)
                number += 1
    else:
        read_replay(run, replay_folder(run.out))
    distributed.barrier()  # all have read before one writes
    run.writer = EpisodeWriter(replay_folder(run.out), run.meta)


def _restore_rank(run: Run, own: dict) -> None:
    """What a rank alone knows: its games, and the codes of its episodes."""
    run.rows_used = min(own["learnt_rows"], run.replay.rows)
    games = restore.collector_state(own)
    if games is not None and "collect" in run.phases:
        run.play_seed = games["seed"]
        settings = run.phases["collect"].settings
        collect.ensure_collector(run, envs=settings["envs"], held_out=settings["held_out"])
        if dropped := run.collector.load_state_dict(games):
            run.log.say(dropped)
    if not run.is_redistributed:
        saved = own["code_cache"]
        if not all([run.replay.load_code_state(saved["replay"]), run.held_out.load_code_state(saved["held_out"])]):
            run.log.say("the saved codes belong to other episodes than those on disk: the frames are encoded again")
    restore.put_global_generators(run, own)
