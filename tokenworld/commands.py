"""What each command of the command line does: build what a config names (`training/build.py`) and hand it to the phases."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tokenworld import distributed, files, run_summary, signals
from tokenworld.bench import rows as benching
from tokenworld.config import saved as saved_config
from tokenworld.config import schema, values
from tokenworld.data import collection
from tokenworld.data.describe import describe
from tokenworld.errors import UserError
from tokenworld.evaluation import assess
from tokenworld.evaluation.probes.film import film_of, title_of
from tokenworld.evaluation.report import compare as comparing
from tokenworld.evaluation.report import film_drawing, partial
from tokenworld.evaluation.report.files import Report, check_folder, fingerprint, write
from tokenworld.evaluation.report.files import figures as report_figures
from tokenworld.evaluation.simulators.lookup import simulator_of
from tokenworld.log import Log
from tokenworld.policies.planner import Planner
from tokenworld.scores import score as scoring
from tokenworld.storage import checkpoint, hub, model_folder
from tokenworld.training import folders, loop, restore
from tokenworld.training.build import built, device_of, env_of, meta_of, with_loaded_sections
from tokenworld.training.resume import new_run, opened, resumed
from tokenworld.training.run import Run
from tokenworld.viz.frames import save_gif, save_png

STARTS = 64  # real moments that an exported model brings along


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def train(cfg: dict, cli: dict) -> dict[str, Any]:
    """The whole loop. With `data`, the replay starts from a folder of episodes."""
    cfg, cli = with_loaded_sections(cfg, cli)
    return _begun(cfg, cli, schema.PHASES)


def train_phase(phase: str, cfg: dict, cli: dict) -> dict[str, Any]:
    """One phase alone, for all of the recipe's epochs, on episodes from disk."""
    cfg, cli = with_loaded_sections(cfg, cli)
    if "data" not in cli:
        raise UserError(f"train {phase} learns from episodes on disk, got no data: add data=DIR, a folder that `collect` wrote")
    if phase == "dynamics" and not {"load.tokenizer", "load.world_model"} & set(cli):
        raise UserError("train dynamics needs a trained tokenizer: add load.tokenizer=RUN, the out= of `train tokenizer`, or"
                        " load.world_model=RUN to continue a trained dynamics")  # fmt: skip
    if phase == "policy" and "load.world_model" not in cli:
        raise UserError("train policy needs a trained world model: add load.world_model=RUN, the out= of `train dynamics`")
    return _begun(cfg, cli | {"phase": phase}, (phase, "evaluate"))


def resume(out: str, keys: dict | None = None, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Continue a run from its last checkpoint. keys: where its episodes are now (data), and another device, for this time.
    changes: settings of the recipe that the run keeps from now on."""
    keys, changes = keys or {}, changes or {}
    cfg, cli = saved_config.load(out)
    if "data" in keys:
        cli["data"] = str(Path(keys["data"]).resolve())
    if changes:
        cfg = saved_config.with_settings(cfg, changes)
        cli["given"] = sorted({*cli.get("given", []), *changes})
    schema.check(cfg)
    phases = (cli["phase"], "evaluate") if "phase" in cli else schema.PHASES
    device = {"device": keys["device"]} if "device" in keys else {}
    advice = f"add device=cpu: tokenworld train --resume {out} device=cpu"
    device_of((cli | device).get("device", "auto"), advice)  # joins the other processes, if there are any
    with folders.locked(Path(out)):
        run = resumed(Path(out), cfg, cli | device, phases)
        run.resume_keys = device
        epochs = cfg["train"]["loop"].get("epochs")
        if "train.loop.epochs" in changes and epochs < run.epoch:
            raise UserError(f"{out} has trained {run.epoch} epochs, got train.loop.epochs={epochs}: give at least {run.epoch}")
        if ("data" in keys or changes) and distributed.rank() == 0:
            saved_config.save(Path(out) / "config.yaml", cfg, cli)
        return _fit(run)


def sweep(out: Path, members: list, jobs: int, words: list[str]) -> int:
    """Train every run of a grid, after each of its settings has been built once as a trial; the exit code."""
    from tokenworld import sweep as sweeping  # needs POSIX, which the rest does not

    tried: list[dict] = []
    for i, member in enumerate(members):
        cfg, cli = with_loaded_sections(member.cfg, member.cli)
        members[i] = replace(member, cfg=cfg, cli=cli)
        device_of(cli.get("device", "auto"))
        if cfg not in tried:
            tried.append(cfg)
            keys = {key: value for key, value in cli.items() if key != "data"} | {"device": "cpu"}
            built(member.out, cfg, keys, schema.PHASES, log=Log(None))
    return sweeping.sweep(out, members, jobs, words)


def collect(cfg: dict, cli: dict) -> dict[str, Any]:
    """Random play into a folder of episodes: `steps` for training and a fifth as many (at least 1,000) from other seeds to
    test on. The same command continues a collection that was interrupted, and leaves a finished one as it is."""
    if "out" not in cli:
        raise UserError("collect writes to a folder, got no out: add out=DIR, for example out=data/breakout")
    out, seed, steps = Path(cli["out"]), cli.get("seed", 0), cli.get("steps", 5000)
    command = json.loads(json.dumps(values.flatten({"env": cfg["env"], "seed": seed, "steps": steps})))
    log, plan = Log(None), collection.check_folder(out, command)
    if plan is not None and plan.finished is not None:
        return _collected_before(out, plan, log)
    make_env = functools.partial(env_of, cfg)
    env = make_env(1)
    meta = meta_of(cfg, env, seed)
    env.close()
    wanted = {"train": steps, "test": max(1000, steps // 5)}
    held = collection.collect_episodes(out, make_env, meta, command, wanted, log)
    log.say(f"collected {held['train']} training and {held['test']} test steps of {cfg['env']['id']}: {out}")
    return wanted


def _collected_before(out: Path, plan: collection.Plan, log: Log) -> dict[str, int]:
    """What a finished collection holds. Raises UserError if that is no longer all of it."""
    found = describe(out)
    if found["damage"] or found["problems"]:
        what = "; ".join([*found["problems"], *found["damage"]][:2])
        raise UserError(f"{out} was collected by this command and is damaged since ({what}): choose another out=DIR")
    steps = plan.finished
    log.say(f"collected before, by the same command: {steps['train']} training and {steps['test']} test steps: {out}")
    return plan.wanted


def score(out: str, keys: dict) -> dict[str, Any]:
    """The return of a run's policy in the real environment: sampled, T = 1, at most 10,000 steps an episode."""
    run, cfg, _ = opened(out, keys)
    if "policy" in keys:  # a planner, which needs the dynamics and no training of its own
        if not run.count["dynamics"]:
            raise UserError(f"{out} has no trained dynamics to plan in: expected a run of `train` or `train dynamics`")
        run.policy = schema.build(keys["policy"], shapes=run.world_model.shapes).to(run.device)
    elif run.policy is None or run.count["policy"] == 0:
        raise UserError(f"{out} has no trained policy to score: expected a run of `tokenworld train` or `train policy`")
    env = (cfg["train"]["evaluate"].get("env") or {}) | {"max_steps": 10_000}
    result = scoring.score(run, episodes=keys.get("episodes", 100), seed=keys.get("seed", 0) + 20_000, env=env)
    low, high = result["return_ci95"]
    print(json.dumps(result))
    run.log.say(
        f"{cfg['env']['id']}: return {result['return_mean']:.2f} [{low:.2f}, {high:.2f}] over {result['episodes']} episodes;"
        f" random {result['random_return_mean']:.2f}"
    )
    return result


def evaluate(out: str, keys: dict) -> Report:
    """Measure a run's world model on held-out episodes, with tier=B also at branches of its simulator, with tier=C also on what
    policies earn: report.json, states.npz, report.html and one line."""
    tier = keys.get("tier", "A")
    only = assess.chosen_ids(keys["metrics"]) if "metrics" in keys else None
    if "policies" in keys and tier != "C":
        raise UserError(f"policies= play in tier C, got tier={tier}: add tier=C")
    folder = Path(keys.get("out", Path(out) / "evaluation"))
    with files.locked(folder):
        check_folder(folder)
        report = _measured(out, keys, tier, only, folder)
        print(report.verdict, flush=True)
        files.rescued(folder, lambda place: write(report, place))
        partial.remove(folder)
    measured = sum(metric.value is not None for metric in report.metrics)
    Log(None).say(f"{measured} of {len(report.metrics)} numbers measured: {folder}/report.html")
    return report


def _measured(out: str, keys: dict, tier: str, only: list[str] | None, folder: Path) -> Report:
    run, cfg, _ = opened(out, {key: value for key, value in keys.items() if key != "data"})
    if not run.count["dynamics"]:
        raise UserError(f"{out} has no trained dynamics to evaluate: expected a run of `train` or `train dynamics`")
    others = _policies(run, keys["policies"]) if "policies" in keys else {}
    simulator = None
    try:
        simulator = simulator_of(cfg["env"]) if tier in "BC" else None
    except UserError as error:
        if tier == "B":
            raise
        run.log.say(f"{error}; policies are measured all the same")
    minutes, frames, seed = keys.get("budget", 10 if simulator else 3), keys.get("frames", 2000), keys.get("seed", 0)
    return assess.assess(
        run, frames=frames, budget=60.0 * minutes, seed=seed, data=keys.get("data"), simulator=simulator,
        states=keys.get("states", 200), policies=others if tier == "C" else None,
        only=only, folder=folder,
    )  # fmt: skip


def _policies(run: Run, folders: str) -> dict[str, Any]:
    """The policies of other runs, by name. Raises UserError for one that could not see this run's frames."""
    found = {}
    for folder in folders.split(","):
        other, *_ = opened(folder, {})
        if not other.count["policy"]:
            raise UserError(f"policies={folder} has no trained policy: expected a run of `tokenworld train` or `train policy`")
        same = fingerprint(other.world_model.tokenizer) == fingerprint(run.world_model.tokenizer)
        if other.world_model.shapes.actions != run.world_model.shapes.actions or other.policy.needs_h:
            why = "reads its own world model's summary" if other.policy.needs_h else "has other actions"
            raise UserError(f"policies={folder} cannot play here, its policy {why}: expected one that looks at codes or pixels")
        if not (same or other.policy.needs_pixels):
            raise UserError(f"policies={folder} reads codes of another tokenizer: expected this run's, or a policy on pixels")
        found[folder] = other.policy
    return found


def compare(a: str, b: str, metrics: list[str] | None, every: bool = False) -> int:
    """Two evaluations beside each other, every: also where no difference is shown; the exit code."""
    rows, remarks = comparing.compare(Path(a), Path(b))
    code = comparing.exit_code(rows, metrics)
    print(comparing.table(rows, remarks, every))
    return code


def dream(out: str, keys: dict) -> Path:
    """A gif (or png) of real, reconstructed and imagined frames from the same start and actions."""
    path = files.followed(keys["out"]) if "out" in keys else Path(out) / "dream.gif"
    if path.suffix not in (".gif", ".png"):
        raise UserError(f"out must end in .gif or .png, got {path}: write for example out=dream.gif")
    files.check_replaceable(path)
    run, _, cli = opened(out, keys)
    held_out = run.held_out if run.held_out.rows else run.replay
    if not held_out.rows:
        raise UserError(f"{out} has no episodes to start a dream from: add data=DIR, a folder that `collect` wrote")
    film = film_of(
        run, held_out, steps=keys.get("steps", 40), seed=keys.get("seed", 0), dynamics=run.count["dynamics"] > 0,
        title=title_of(run),
    )  # fmt: skip
    if path.suffix == ".gif":
        files.rescued(path, lambda place: save_gif(place, film_drawing.video(film), fps=4))
    else:
        files.rescued(path, lambda place: save_png(place, film_drawing.strip(film)))
    run.log.say(f"{' | '.join(film.rows)}, {len(film)} frames: {path}")
    return path


def export(out: str, keys: dict) -> Path:
    """A run's world model and policy as a folder that `WorldModel.from_pretrained` and `Agent.from_pretrained` load."""
    folder = Path(keys["out"]) if "out" in keys else Path(out) / "model"
    with files.filling(folder, model_folder.FILES, last=model_folder.CONFIG) as stage:
        what = _exported(out, stage, keys)
    print(f"{what}, {sum(file.stat().st_size for file in folder.iterdir()) / 2**20:.1f} MB: {folder}")
    return folder


def push(out: str, keys: dict) -> str:
    """`export` to the Hugging Face hub."""
    if "repo" not in keys:
        raise UserError("push needs to know where to, got no repo: add repo=user/name")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        what = _exported(out, folder, keys)
        address = hub.push(folder, keys["repo"], private=keys.get("private") == "true")
    print(f"{what}: {address}")
    return address


def _exported(out: str, folder: Path, keys: dict) -> str:
    """Write a run's model with its figures and some real moments to begin dreams at; what it is, in words."""
    run, cfg, _ = opened(out, {"device": "cpu"} | {key: keys[key] for key in ("device", "data") if key in keys})
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
            run.log.say(f"{error}; the model goes without these figures")
    model.config |= {
        "action_meanings": run.meta["action_meanings"],
        "score_env": cfg["train"]["evaluate"].get("env") or {},
        "training": cfg["train"],
        "figures": figures,
    }
    replay, starts = run.held_out if run.held_out.rows else run.replay, None
    if replay.rows:
        starts = replay.sample(STARTS, model.backbone.context, np.random.default_rng(run.seed), ends="acted")[0]
    model.save_pretrained(folder, policy=policy, starts=starts)
    return f"world model{' and policy' if policy is not None else ''} of {cfg['env']['id']}"


def play(out: str, keys: dict) -> None:
    """Serve the page on which a person plays in a run's world model, until Ctrl-C."""
    from tokenworld.play import server  # its packages are an extra
    from tokenworld.play.future import Dream
    from tokenworld.play.hints import play_hints
    from tokenworld.play.idle import gallery
    from tokenworld.play.starts import idle_action, moments

    port = keys.get("port", server.PORT)
    server.check(port)
    run, cfg, _ = opened(out, {key: value for key, value in keys.items() if key != "port"})
    if not run.count["dynamics"]:
        raise UserError(f"{out} has no trained dynamics to dream with: expected a run of `train` or `train dynamics`")
    A, C, saved = run.world_model.shapes.actions, run.world_model.shapes.frame[0], Path(out) / "checkpoint"
    collected = restore.collector_of(out, A) if checkpoint.exists(saved) else None
    actions = run.meta["action_meanings"] or [f"action {a}" for a in range(A)]
    idle, world_model, env = idle_action(actions), run.world_model.eval(), run.make_env(1)
    fps, channels = play_hints(env.metadata, C)
    env.close()
    dream = Dream(
        world_model,
        gallery(world_model, moments(run, collected, idle), idle),
        actions,
        run.policy if run.count["policy"] else None,
        Planner(shapes=run.world_model.shapes, horizon=8, samples=32, iterations=2, elites=4).to(run.device),
        expected_reward=cfg["train"]["policy"].get("expected_reward", False),
        name=f"{cfg['env']['id']}, {out}",
        fps=fps,
        channels=channels,
    )
    server.serve(dream, port)


def bench(what: str, cfg: dict, cli: dict, json_file: str | None = None) -> dict[str, Any]:
    """How fast a recipe runs on this machine, and how far from the best this machine could do. json_file: "-" is stdout, where
    the figures then take the place of the table."""
    benching.check(what)
    if json_file not in (None, "-"):
        files.check_replaceable(json_file)
        json_file = files.followed(json_file)
    with tempfile.TemporaryDirectory() as folder:
        run = built(Path(folder), cfg, cli, schema.PHASES, log=Log(None))
        run.phases["collect"](run, False, steps=benching.REAL_STEPS, first_steps=benching.REAL_STEPS, random=True)
        run.collector.cut()
        result = benching.bench(what, run, cli.get("repeats", 5))
    print(json.dumps(result, indent=1) if json_file == "-" else benching.table(result), flush=True)
    if json_file not in (None, "-"):
        files.rescued(json_file, lambda place: files.write(place, json.dumps(result, indent=1) + "\n"))
        run.log.say(f"written: {json_file}")
    return result


def data_info(folder: str) -> dict[str, Any]:
    """Episodes, steps, spaces, returns, size and integrity of a folder of episodes."""
    found = describe(folder)
    C, H, W = found["frame_shape"]
    actions = f"{found['action_count']} actions"
    if found["action_meanings"]:
        actions += f" ({', '.join(found['action_meanings'])})"
    print(f"{folder}: {found['env_id']}, frames {C} x {H} x {W} (channels, height, width), {actions}")
    for name, split in found["splits"].items():
        if split["episodes"]:
            low, mean, high = split["return_min"], split["return_mean"], split["return_max"]
            print(
                f"{name}: {split['episodes']} episodes, {split['steps']} steps, {split['terminated']} terminated;"
                f" return {mean:.2f} (from {low:g} to {high:g})"
            )
    damage = [f"{found['corrupt']:,} corrupt, {found['torn']:,} torn"] if found["damage"] else []
    state = "; ".join([*damage, *found["problems"]]) or "intact"
    print(f"{found['bytes'] / 2**20:.1f} MB in {found['shards']} files, {state}")
    for line in found["damage"]:
        print(f"skipped: {line}")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# The loop around them


def _begun(cfg: dict, cli: dict, phases: tuple[str, ...]) -> dict[str, Any]:
    """Train in the folder that the command line names, or in a new one."""
    device_of(cli.get("device", "auto"))  # joins the other processes, if there are any
    with folders.claimed(cfg, cli) as out:
        return _fit(new_run(cfg, cli, phases, out))


def _fit(run: Run) -> dict[str, Any]:
    """Run the loop to its end, then write summary and pictures. Whatever ends it says how to resume."""
    try:
        run.loop()
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
    """Why a training ended and how to resume it, in one sentence; None for an error of the program's own."""
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
