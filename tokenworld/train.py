"""The IRIS loop: collect, tokenizer, dynamics, policy, evaluate; one function per phase (arXiv:2209.00588, algorithm 1).

The keyword-only arguments of a phase are its settings in a recipe (`train.collect`, `train.tokenizer`, ...). `loop` runs
the phases epoch after epoch, writes a checkpoint after each, and goes on from the last one bit for bit.
"""

from __future__ import annotations

import collections
import math
import shlex
import signal
import time
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from tokenworld import distributed, files, optim, origins, run_pictures, signals
from tokenworld.costs import free_codes, warn_of_full_dictionary
from tokenworld.data.collect import Collector
from tokenworld.data.episodes import Episode
from tokenworld.errors import UserError
from tokenworld.evaluation import assess as assessment
from tokenworld.evaluation.metrics.run_summary import measure_dynamics, tokenizer_metrics
from tokenworld.evaluation.metrics.tokenizer_measures import codebook_usage, perplexity
from tokenworld.evaluation.report.files import write
from tokenworld.exploration import RandomActions, random_act
from tokenworld.imagination import Actor, Trajectory, imagine
from tokenworld.interfaces import Codes, Steps
from tokenworld.log import PLAIN_EVERY
from tokenworld.nn import total_loss
from tokenworld.run import Run
from tokenworld.scores.score import score
from tokenworld.sinks.opening import open_sinks
from tokenworld.world_model import WorldModel

ASSESSED = 0.1  # share of a training's time that the evaluation of its world model may take
PHASES = ("collect", "tokenizer", "dynamics", "policy", "evaluate")


def check_settings(phases: dict[str, dict[str, Any]]) -> None:
    """Refuse numbers that no phase can work with, before anything is created: UserError."""
    least = dict(updates=1, batch=1, window=1, length=2, horizon=1, burn_in=1, every=1, episodes=1, final_episodes=1, envs=1)
    least |= dict(epochs=1, checkpoint_every=1, accumulate=1, steps=1, first_steps=1, cut=1)
    least |= dict(start=0, stop=0, warmup=0, held_out=0, frames=0, pictures=0)
    for phase, settings in phases.items():
        optim.check(**(settings.get("optimizer") or {}))
        for key, value in settings.items():
            if isinstance(value, (str, dict, list, bool, type(None))):
                continue
            if value < least.get(key, value):
                raise UserError(f"train.{phase}.{key} must be at least {least[key]}, got {value}")
            if key in ("lr", "clip") and value <= 0:
                raise UserError(f"train.{phase}.{key} must be positive, got {value}: choose e.g. 0.001")
            if key in ("recent", "epsilon", "events") and not 0 <= value <= 1:
                raise UserError(f"train.{phase}.{key} is a share, it must lie in 0..1, got {value}")
            if key.endswith("temperature") and value < 0:
                raise UserError(f"train.{phase}.{key} must be at least 0, got {value}: choose e.g. 1.0")
        if settings.get("window", 1) > settings.get("batch", math.inf):
            raise UserError(f"train.{phase}.window must be at most train.{phase}.batch, got {settings['window']}")


def loop(
    run: Run, *, epochs: int = 600, checkpoint_every: int = 1, sinks: list[str | dict] | None = None, shard: bool = False
) -> None:
    """Epochs of all phases, from where the run stands, with a checkpoint every `checkpoint_every` epochs and at the end.

    A signal (see `signals.py`) finishes the epoch, saves and stops; a second one stops at once, and the last checkpoint stays.
    `sinks`: where numbers and pictures go too, "tensorboard", "trackio", "wandb" or sections with a `_target_`. `shard`: each
    process holds a part of the dynamics, for one that does not fit a device; only by `tokenworld train dynamics`.
    """
    run.log.steps = run.count["env_steps"]
    if run.log.path is not None:  # the first rank's
        step = run.log.steps or run.log.lines
        run.log.send_to(open_sinks(sinks, folder=run.out, recipe=run.config | {"seed": run.seed}, step=step))
    run.to_shard = shard
    with signals.finishing(run.log.say, resume_command(run)) as request:
        began_at, began = run.epoch, time.monotonic()
        while run.epoch < epochs:
            for name, phase in run.phases.items():
                started = time.monotonic()
                phase(run, run.epoch == epochs - 1)
                run.seconds[name] = run.seconds.get(name, 0.0) + time.monotonic() - started
            run.epoch += 1
            stopping = bool(distributed.total(torch.tensor(int(request.signum > 0), device=run.device)))
            if run.epoch % checkpoint_every == 0 or run.epoch == epochs or stopping:
                run.save()
            left = (time.monotonic() - began) / (run.epoch - began_at) * (epochs - run.epoch)
            run.log.say(f"epoch {run.epoch}/{epochs} · {spoken(run.news)} · {run.log.wall:.0f} s, about {left:.0f} s left")
            run.news.clear()
            if stopping:
                raise signals.Stop(request.signum or signal.SIGTERM)


def resume_command(run: Run) -> str:
    """The command line that continues this run from its last checkpoint."""
    ranks = distributed.world()
    start = "tokenworld" if ranks == 1 else f"torchrun --nproc-per-node={ranks} -m tokenworld.cli"
    words = [str(run.out), *(f"{key}={value}" for key, value in run.resume_keys.items())]
    trust = [origins.FLAG] if any(origins.names(run.config)) else []  # a run never vouches for itself
    return f"{start} train --resume {shlex.join([*words, *trust])}"


def collect(
    run: Run,
    last: bool,
    *,
    steps: int = 200,
    first_steps: int = 200,
    stop: int | None = 500,
    envs: int = 1,
    temperature: float = 1.0,
    epsilon: float = 0.01,
    burn_in: int = 20,
    held_out: int = 20,
    cut: int | None = None,
    random: bool = False,
    zeta: float | None = None,
) -> None:
    """Play `steps` real steps with the policy (`first_steps` in epoch 0) until epoch `stop`; every `held_out`-th episode is
    kept from training. Until the policy has been trained, or if `random`, actions are uniform; after that, a random one begins
    with probability `epsilon` per step. With `zeta`, a random action is held for n steps with a probability that falls as n
    to the power of -zeta, so that exploration gets farther.

    An episode enters the replay when it ends; with `cut`, games in progress of at least so many steps enter it at once, and
    go on as a new episode: to learn from long games before they are over. Without `cut`, `cut_unfinished` does so where nothing
    ends.
    """
    if stop is not None and run.epoch >= stop:
        return
    ensure_collector(run, envs=envs, held_out=held_out)
    steps, first_steps = (-(-n // distributed.world()) for n in (steps, first_steps))
    if run.count["policy"] == 0 or random:
        act = random_act(run.world_model.shapes.actions, run.rng, zeta)
    else:
        run.world_model.eval()
        run.policy.eval()
        explore = RandomActions(run.rng, run.world_model.shapes.actions, epsilon=epsilon, zeta=zeta)
        act = Actor(run.world_model, run.policy, generator=run.acting, temperature=temperature, explore=explore)
        if run.policy.needs_h or run.policy.start(1) is not None:
            act.burn_in(run.collector.recent(burn_in))
    stats = run.collector.collect(first_steps if run.epoch == 0 else steps, act)
    if cut is not None:
        run.collector.cut(cut)
    elif not stats["episodes"]:
        cut_unfinished(run, stats["steps"], -(-first_steps // run.collector.env.num_envs), hold_out=held_out > 0)
    run.count["env_steps"] += int(distributed.total(torch.tensor(stats["steps"], device=run.device)))
    returns = stats["returns"]
    report(
        run,
        "collect",
        ("env_steps", "return_mean"),
        env_steps=run.count["env_steps"],
        episodes=len(returns),
        return_mean=float(np.mean(returns)) if len(returns) else None,
    )


def cut_unfinished(run: Run, steps: int, at_least: int, hold_out: bool) -> None:
    """After `steps` steps in which no game ended: if the replay is empty, have the games in progress enter it as truncated
    parts, and from then on those of `at_least` steps. hold_out: one of the first parts is kept from training."""
    is_empty = run.replay.rows == 0
    if not (is_empty or run.collector.has_cut):
        return
    games = run.collector.cut(1 if is_empty else at_least, hold_out=hold_out and run.held_out.rows == 0)
    if is_empty and games:
        run.log.say(
            f"no episode ended in {steps:,} steps of {games} game{'s' * (games > 1)}: they enter as truncated parts;"
            f" set train.collect.cut={at_least} to do so at every collection"
        )


def ensure_collector(run: Run, *, envs: int, held_out: int) -> None:
    """Build the environments at the first call; also what a resumed run replays its actions into."""
    if run.collector is not None:
        return

    def on_episode(episode: Episode) -> None:
        number = run.replay.episodes + run.held_out.episodes
        if held_out and number % held_out == held_out - 1:
            episode = replace(episode, split="test")
        if run.writer is not None:
            run.writer.append(episode)
        run.add(episode)

    envs = max(1, envs // distributed.world())
    run.collector = Collector(run.make_env(envs), seed=run.play_seed, on_episode=on_episode)


def train_tokenizer(
    run: Run,
    last: bool,
    *,
    start: int = 5,
    stop: int | None = None,
    updates: int = 200,
    batch: int = 256,
    window: int = 1,
    lr: float = 1e-4,
    clip: float = 10.0,
    recent: float = 0.0,
    accumulate: int = 1,
) -> None:
    """Updates on uniformly drawn frames (window 1) or on windows of consecutive ones; from epoch `start` up to `stop`.

    `recent`: the share of a batch that is drawn from the newest tenth of the replay. `accumulate`: parts in which a batch
    is computed, to save memory; the gradient is that of the whole batch, a running mean of a codebook moves once per part.
    A tokenizer without parameters learns in `loss` itself and needs no step.
    """
    if run.epoch < start or (stop is not None and run.epoch >= stop):
        return
    tokenizer = run.world_model.tokenizer
    optimizer = run.optimizer("tokenizer", tokenizer, lr) if any(True for _ in tokenizer.parameters()) else None
    if run.count["tokenizer"] == 0 and hasattr(tokenizer, "prepare"):
        steps, _ = run.replay.sample(min(2048, run.replay.rows), 1, run.rng)
        tokenizer.prepare(steps.to(run.device))
    tokenizer.train()
    loss_of = tokenizer.loss if optimizer is None else run.loss("tokenizer", tokenizer, tokenizer.loss)
    windows = distributed.share(batch // window, "the windows of a batch of train.tokenizer")
    batches = run.batches(updates, windows, window, recent=recent)
    seen: dict[str, Any] = {}
    free = free_codes(tokenizer)

    def learn(steps: Steps):
        for part in parts(len(steps.obs), accumulate):
            with run.autocast():
                seen["losses"], seen["codes"] = loss_of(steps[part])
                seen["loss"] = total_loss(seen["losses"], tokenizer.weights)
            yield seen["loss"] * (len(steps.obs[part]) / len(steps.obs))

    for steps, _ in progress(run, batches, updates, "tokenizer"):
        if optimizer is None:
            collections.deque(learn(everyones(steps.to(run.device))), maxlen=0)
            run.count["tokenizer"] += 1
        else:
            run.update("tokenizer", optimizer, learn(steps.to(run.device)), clip)
    tokenizer.eval()
    if hasattr(tokenizer, "refit") and (last or (stop is not None and run.epoch == stop - 1)):
        tokenizer.refit(steps.to(run.device) for steps, _ in run.replay.windows(1, 256))
        distributed.alike(tokenizer)
    warn_of_full_dictionary(run, free)
    V = tokenizer.V
    report(
        run,
        "tokenizer",
        ("loss",),
        updates=run.count["tokenizer"],
        loss=finite(seen["loss"], "tokenizer"),
        **{name: value.mean() for name, value in seen["losses"].items()},
        codebook_usage=codebook_usage(seen["codes"].indices, V),
        perplexity=perplexity(seen["codes"].indices, V),
    )


def train_dynamics(
    run: Run,
    last: bool,
    *,
    start: int = 25,
    stop: int | None = None,
    updates: int = 200,
    batch: int = 64,
    length: int = 20,
    lr: float = 1e-4,
    weight_decay: float = 0.01,
    warmup: int = 0,
    clip: float = 10.0,
    recent: float = 0.0,
    accumulate: int = 1,
    optimizer: dict | None = None,
) -> None:
    """Updates of backbone, decoding and heads on `batch` windows of `length` steps; the tokenizer is frozen here.

    `recent`: the share of a batch that is drawn from the newest tenth of the replay. `accumulate`: parts in which a batch
    is computed, to save memory; the gradient is that of the whole batch. `optimizer`: keywords of `tokenworld.optim.make`:
    {muon: 0.02, average: 0.98}.
    """
    if run.epoch < start or (stop is not None and run.epoch >= stop):
        return
    model, modules = run.world_model, run.world_model.dynamics_modules()
    if run.count["dynamics"] == 0 and hasattr(model.decoding, "prepare"):
        steps, rows = run.replay.sample(min(4096, run.replay.rows), 2, run.rng)
        model.decoding.prepare(run.codes(run.replay, rows), steps.to(run.device))
    model.share_codebook()
    if run.to_shard:
        run.shard()
    optimizer = run.optimizer("dynamics", modules, lr, weight_decay)
    model.tokenizer.eval()
    modules.train()
    loss_of = model.forward if run.sharded else run.loss("dynamics", modules, model.forward)
    batch = distributed.share(batch, "train.dynamics.batch")
    seen: dict[str, Any] = {}

    def learn(steps: Steps, codes: Codes):
        for part in parts(batch, accumulate):
            with run.autocast():
                losses = loss_of(steps[part], Codes(codes.indices[part]))
                loss = total_loss(losses, model.weights, steps[part], steps)
            seen.update(losses=losses, steps=steps[part])
            yield loss

    batches = run.batches(updates, batch, length, recent=recent, frames=False)
    with optim.learning(optimizer):
        for steps, rows in progress(run, batches, updates, "dynamics"):
            optim.set_rate(optimizer, lr, min(1.0, (run.count["dynamics"] + 1) / max(warmup, 1)))
            steps, codes = steps.to(run.device), run.codes(run.replay, rows)
            run.update("dynamics", optimizer, learn(steps, codes), clip)
    modules.eval()
    report(
        run,
        "dynamics",
        ("loss",),
        updates=run.count["dynamics"],
        loss=finite(total_loss(seen["losses"], model.weights, seen["steps"]), "dynamics"),
        **{name: total_loss({name: value}, {name: 1.0}, seen["steps"]) for name, value in seen["losses"].items()},
    )


def train_policy(
    run: Run,
    last: bool,
    *,
    start: int = 50,
    updates: int = 200,
    batch: int = 64,
    horizon: int = 20,
    burn_in: int = 20,
    lr: float = 1e-4,
    clip: float = 10.0,
    expected_reward: bool = False,
    recent: float = 0.0,
    events: float = 0.0,
) -> None:
    """Dreams of `horizon` steps from real states, and updates on them. No real reward and no real action is learned from.

    `recent`: the share of dreams that start in the newest tenth of the replay. `events`: the share that start at most `horizon`
    steps before a reward or a termination, so that a policy meets what is rare often enough to learn from it; real
    rewards choose the starts, nothing else, and the reported `dream_return` is higher than from all states.
    """
    if run.epoch < start:
        return
    model, policy = run.dreamer(), run.policy
    optimizer = run.optimizer("policy", policy, lr)
    K = model.shapes.codes
    gained = []
    loss_of, own = run.loss("policy", policy, policy.loss), distributed.share(batch, "train.policy.batch")
    starts = dict(recent=recent, events=events, within=horizon)
    batches = run.batches(updates, own, burn_in, ends="acted", **starts, frames=False)
    for steps, rows in progress(run, batches, updates, "policy"):
        steps, codes = steps.to(run.device), run.codes(run.replay, rows)
        policy.eval()
        noise = distributed.rows(torch.rand(batch, horizon, K + 3, generator=run.generator, device=run.device))
        prediction, state = model.start(steps, codes)
        carry = burned_in(model, policy, steps, codes)
        dream = imagine(model, prediction, state, policy, horizon, noise, carry, expected_reward)
        policy.train()
        for losses in policy.updates(dream, run.shuffler, loss_of):
            loss = total_loss(losses, policy.weights)
            run.update("policy", optimizer, [loss], clip)
            policy.track()
        run.count["imagined_steps"] += batch * horizon
        gained.append(distributed.total((dream.reward * dream.alive[:, :-1]).sum()) / batch)
    policy.eval()
    report(
        run,
        "policy",
        ("dream_return",),
        updates=run.count["policy"],
        imagined_steps=run.count["imagined_steps"],
        loss=finite(loss, "policy"),
        dream_return=torch.stack(gained).mean(),
        **{name: value.mean() for name, value in losses.items()},
    )


def train_policy_model_free(
    run: Run,
    last: bool,
    *,
    start: int = 0,
    batch: int = 128,
    horizon: int = 15,
    lr: float = 1e-4,
    clip: float = 10.0,
) -> None:
    """A control: the same policy learns from the newest real transitions instead of dreams, each in one lesson.

    Put it in the place of `train_policy` (train.policy._target_) to see what the dream adds at equal numbers of real steps.
    """
    if run.epoch < start:
        return
    policy, replay = run.policy, run.replay
    optimizer = run.optimizer("policy", policy, lr)
    fresh, run.learnt_rows = replay.rows - run.learnt_rows, replay.rows
    count = fresh // (horizon + 1)
    if policy.needs_h or policy.start(1) is not None:
        raise UserError("train_policy_model_free learns without memory: set policy.view=codes or frame")
    if distributed.world() > 1:
        raise UserError(f"train_policy_model_free learns in one process, got {distributed.world()}: run it without torchrun")
    if count == 0:
        return
    rows = replay.rows - count * (horizon + 1) + np.arange(count * (horizon + 1)).reshape(-1, horizon + 1)  # (n, H+1)
    policy.train()
    for part in np.array_split(rows, max(1, count // batch)):
        steps, codes = replay.gather(part).to(run.device), run.codes(replay, part)
        over = ~steps.acted[:, :-1] | steps.terminated[:, :-1]  # nothing flows back over the border of two episodes
        frames = run.world_model.decode(codes) if policy.needs_pixels else None  # what a policy sees in a rollout, too
        real = Trajectory(
            codes.indices, None, steps.action[:, :-1], steps.reward[:, :-1], over, steps.acted, frames=frames, carry=None
        )
        for losses in policy.updates(real, run.shuffler):
            run.update("policy", optimizer, [total_loss(losses, policy.weights)], clip)
            policy.track()
    policy.eval()
    report(run, "policy", (), updates=run.count["policy"])


@torch.no_grad()
def burned_in(model: WorldModel, policy, steps: Steps, codes: Codes) -> Any:
    """The policy's memory after all but the last frame of steps (B, T), seen as reconstructions."""
    carry = policy.start(steps.obs.shape[0])
    if carry is None:
        return None
    fresh = carry
    for t in range(steps.obs.shape[1] - 1):
        view = model.view_of(Codes(codes.indices[:, t : t + 1]))
        carry = policy.follow(view, torch.where(steps.first[:, t].view(-1, *[1] * (carry.ndim - 1)), fresh, carry))
    return torch.where(steps.first[:, -1].view(-1, *[1] * (carry.ndim - 1)), fresh, carry)


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
    """The policy's return in the real environment every so many epochs, and everything there is to measure in the last.

    `env`: what differs from the training environment, e.g. {"life_loss_ends": False}. `kmeans`: measure a plain k-means
    dictionary of patches beside a patch tokenizer, on the same frames. `frames`: held-out frames that the world model is
    evaluated on each time, five times as many in the end; within a tenth of the time that the training has taken; 0: never.
    `pictures`: steps of the strip of real and imagined frames that is drawn each time, see `album.py`; 0: never.
    """
    if distributed.rank() > 0:
        return distributed.wait()  # the first rank measures
    due = run.count["policy"] > 0 and (run.epoch + 1) % every == 0
    if due or (last and run.policy is not None and run.count["policy"] > 0):
        if last:
            episodes, temperature = final_episodes, final_temperature
        result = score(run, episodes=episodes, temperature=temperature, seed=run.seed + 10_000, envs=envs, env=env)
        run.results["eval"] = result
        run.curve.append([run.count["env_steps"], result["return_mean"], *result["return_ci95"]])
        report(run, "eval", ("return_mean",), env_steps=run.count["env_steps"], **result)
    if frames and ((run.epoch + 1) % every == 0 or last):
        assess(run, last, 5 * frames if last else frames)
    if pictures and not last and (run.epoch + 1) % every == 0:
        run_pictures.update(run, pictures)
    if last:
        if not run.held_out.rows:
            run.log.say(
                "no episode was held out, so tokenizer and dynamics are not measured: train on more episodes, or hold out one"
                " in N of those that are collected: train.collect.held_out=N"
            )
        if run.count["tokenizer"] and run.held_out.rows:
            run.results["tokenizer"] = tokenizer_metrics(run, kmeans=kmeans and "tokenizer" in run.phases)
            report(run, "tokenizer_eval", ("psnr", "event_recall"), **run.results["tokenizer"])
        if run.sharded:
            run.log.say(f"no process holds the dynamics whole, so it is not measured: go on with load.world_model={run.out}")
        elif run.count["dynamics"] and run.held_out.rows:
            run.results["dynamics"] = measure_dynamics(run)
            report(run, "dynamics_eval", ("bits_per_frame",), **run.results["dynamics"])
    distributed.wait()


def assess(run: Run, last: bool, frames: int) -> None:
    """The world model's quality without a policy: a line of metrics, and in the end a report."""
    if run.sharded or not run.count["dynamics"] or not run.held_out.steps:
        return
    began = time.monotonic()
    budget = ASSESSED * run.log.wall - run.seconds.get("assess", 0.0)
    if budget < 1 and not last:
        return
    found = assessment.assess(run, frames=frames, budget=max(1.0, budget), least=PLAIN_EVERY)
    report(run, "quality", (), **{metric.id: metric.value for metric in found.metrics})
    if last:
        files.remove_unfinished(run.out / "evaluation")  # of an earlier process that was killed here
        write(found, run.out / "evaluation")
        run.log.say(found.verdict)
    run.seconds["assess"] = run.seconds.get("assess", 0.0) + time.monotonic() - began


def report(run: Run, phase: str, shown: tuple[str, ...] = (), **numbers: Any) -> None:
    """A line of metrics; the numbers named in `shown` also appear in the epoch's closing line."""
    run.log.steps = run.count["env_steps"]
    run.log.metrics(phase, epoch=run.epoch, **numbers)
    run.news |= {f"{phase} {name}".removesuffix(" loss"): numbers[name] for name in shown if numbers[name] is not None}


def spoken(news: dict[str, float]) -> str:
    return ", ".join(f"{name} {float(value):.4g}" for name, value in news.items()) or "nothing was due"


def progress(run: Run, batches, total: int, label: str):
    """The batches, with a progress bar around them."""
    with run.log.progress(total, f"epoch {run.epoch + 1} {label}") as bar:
        for batch in batches:
            yield batch
            bar.update()


def parts(batch: int, accumulate: int) -> list[slice]:
    """A batch in `accumulate` parts, as equal as can be."""
    ends = [round(i * batch / accumulate) for i in range(accumulate + 1)]
    return [slice(*ends[i : i + 2]) for i in range(accumulate) if ends[i] < ends[i + 1]]


def everyones(steps: Steps) -> Steps:
    """The steps of all ranks."""
    return Steps(**{f.name: distributed.gathered(getattr(steps, f.name)) for f in fields(steps)})


def finite(loss: torch.Tensor, what: str) -> float:
    """The loss as a number. Raises UserError when learning has diverged: the last checkpoint is from before."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise UserError(
            f"the {what} loss is {value}: training diverged, expected a finite number;"
            f" start again with a smaller train.{what}.lr or train.{what}.clip (the last checkpoint is from before)"
        )
    return value
