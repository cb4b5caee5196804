"""The evaluation of a world model: records are filled, metrics read them. Tier A needs held-out experience, tier B a simulator.

Nothing falls back silently: what could not be measured is in the report with the reason.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenworld.data.episodes import read_episodes, read_meta
from tokenworld.data.meta import difference
from tokenworld.data.replay import Replay
from tokenworld.envs.known_world import World
from tokenworld.errors import UserError
from tokenworld.evaluation.metrics import baselines
from tokenworld.evaluation.metrics.delta_psnr import DELTA, STEPS
from tokenworld.evaluation.metrics.next_frame import KL
from tokenworld.evaluation.metrics.policies import SPEARMAN
from tokenworld.evaluation.metrics.rollouts import HELD_OUT_HORIZON
from tokenworld.evaluation.probes import branches as branch_probe
from tokenworld.evaluation.probes import filmstrips as film_probe
from tokenworld.evaluation.probes import held_out as held_out_probe
from tokenworld.evaluation.probes import histories, known_world, other_agent, policies
from tokenworld.evaluation.probes.codes import have_equality, history_of, why_no_likelihood
from tokenworld.evaluation.probes.levels import BYTES, Levels, levels_of
from tokenworld.evaluation.probes.menu import Menu
from tokenworld.evaluation.probes.stages import Stages, Tick, unseen
from tokenworld.evaluation.records import SHOWN, Branches, Metric, Reconstructions
from tokenworld.evaluation.report import specs
from tokenworld.evaluation.statistics.measured import absent
from tokenworld.evaluation.statistics.metric_spec import NO_LIKELIHOOD
from tokenworld.interfaces import Codes, Steps
from tokenworld.world_model import WorldModel

SHORTEST = 32  # steps of a window, at least, if there are as many
STARTS, FUTURES, HORIZON = 64, 4, 20  # rollouts of the drift curve
ROLLOUTS = 40  # branch states from which whole futures are compared
SHARE = 0.6  # of the budget that may be gone before the rollouts begin


class Evaluation:
    """The records of a tier that are filled so far, with the metrics and the arrays of pictures that follow from them.

    settings: further arguments of measuring functions, by the names of their parameters. Without a likelihood (set
    `has_likelihood`) the metrics that take one are not applicable, for the reason `no_likelihood`, and the records that take
    one may be None.
    """

    def __init__(self, stages: Stages, no_likelihood: str = NO_LIKELIHOOD, **settings: Any):
        self.stages, self.given, self.has_likelihood = stages, settings | {"no_likelihood": no_likelihood}, True
        self.metrics: list[Metric] = []
        self.pictures: dict[str, Any] = {}
        self._called: set[Callable] = set()

    def fill(self, name: str, **records: Any) -> None:
        """Call every measuring function that these records make possible: a line of the progress with this name."""
        self.given |= records
        measures = [function for function in specs.measures(self.given) if function not in self._called]
        self._called |= set(measures)
        with self.stages.probe(name, len(measures)) as tick:
            for function in measures:
                self.metrics += _timed(lambda function=function: _at(records, self._call(function)))
                tick()
        for picture, function in specs.pictures(self.given).items():
            if function not in self._called and (self.has_likelihood or not specs.takes_likelihood(function)):
                self._called.add(function)
                arrays = specs.call(function, self.given)
                if arrays is not None:
                    self.pictures[picture] = arrays

    def _call(self, function: Callable) -> list[Metric]:
        if self.has_likelihood or not specs.takes_likelihood(function):
            return specs.call(function, self.given)
        return [absent(spec, self.given["no_likelihood"]) for spec in specs.of_likelihood(function)]


def tier_a(
    world_model: WorldModel,
    held_out: Replay,
    codes_of: Callable[[np.ndarray], Codes],
    counts: baselines.CodeCounts | None,
    *,
    frames: int = 2000,
    budget: float = 180.0,
    seed: int = 0,
    stages: Stages | None = None,
    names: Sequence[str] = (),
    dictionary: Callable[[Tensor], Tensor | None] | None = None,
) -> tuple[list[Metric], dict[str, Any], np.ndarray]:
    """Metrics of tier A on about `frames` held-out frames, the arrays that pictures need, and the states (N,) that metrics
    have values of. `counts` are of training codes, `names` of the actions.
    dictionary: frames (N, C, H, W) uint8 -> those that a plain dictionary of patches makes of them.

    frames, budget and seed choose the rows. A value of a row depends on the model and the row's state alone, the number of a
    row of a data set: shares of actions are those of all held-out data, the simple predictor to beat is the best one on the
    training codes, and what is drawn at a state follows from its number (`draws.py`).

    Ends within `budget` seconds, give or take one step of all windows. Raises UserError where nothing was held out.
    """
    began, stages = time.monotonic(), stages or Stages()
    if held_out.steps == 0:
        raise UserError("there is no held-out step to measure on: add data=DIR, a folder that `tokenworld collect` wrote")
    world_model.eval()
    device = world_model.device
    everything = held_out.gather(np.arange(held_out.rows)[None], frames=False)[0]
    first = everything.first.numpy()
    episode, data = np.cumsum(first), fingerprint(everything)
    taken = Menu(world_model.shapes.actions).counts(everything.action[everything.acted])
    levels = levels_of(held_out, world_model.shapes.frame_dtype)
    evaluation = Evaluation(stages, why_no_likelihood(world_model), taken=taken, names=names,
                            signs=world_model.reward.signs_only, grid=world_model.shapes.grid)  # fmt: skip
    with stages.probe("tokenizer"):
        reconstructions = _reconstructions(world_model, held_out, codes_of, episode, frames, levels)
    evaluation.fill("metrics of the tokenizer", reconstructions=reconstructions)
    _compare_with_dictionary(evaluation, reconstructions, dictionary)

    rows = _windows(held_out.rows, frames, history_of(world_model.backbone))
    steps = held_out.gather(rows, frames=False).to(device)
    with stages.probe("held-out frames under each action", rows.shape[1] - 1, "steps of all windows") as tick:
        scored = held_out_probe.score_held_out(
            world_model, steps, codes_of(rows), episode[rows], data + rows, deadline=began + SHARE * budget, tick=tick
        )
    simple = {} if have_equality(world_model) else None
    if counts is not None:
        previous, current = torch.from_numpy(scored.previous), torch.from_numpy(scored.codes)
        for name in ("copy_last", "unigram", "bigram"):
            simple[name] = getattr(baselines, f"bits_{name}")(counts, previous, current).double().numpy()
    evaluation.has_likelihood = scored.bits is not None
    evaluation.fill("metrics of held-out frames", scored=scored, baselines=simple, against=counts and counts.best)

    metrics, pictures = evaluation.metrics, evaluation.pictures
    if time.monotonic() - began > SHARE * budget:
        reason = f"the budget of {budget:.0f} s was used up before: give more, or measure fewer frames"
        return [*metrics, *(absent(spec, reason, "skipped") for spec in (HELD_OUT_HORIZON, DELTA))], pictures, scored.state
    most = min(STARTS, max(8, frames // 8))
    with stages.probe("imagined rollouts and held-out episodes", HORIZON, "steps") as tick:
        imagined = _imagined(world_model, held_out, codes_of, first, episode, data, most, seed, levels, tick)
    if isinstance(imagined, str):
        return [*metrics, *(absent(spec, imagined) for spec in (HELD_OUT_HORIZON, DELTA))], pictures, scored.state
    evaluation.fill("metrics of imagined rollouts", **imagined)
    return metrics, pictures, scored.state


def tokenizer_only(
    world_model: WorldModel, held_out: Replay, codes_of: Callable[[np.ndarray], Codes], *, frames: int,
    dictionary: Callable[[Tensor], Tensor | None] | None = None,
) -> list[Metric]:  # fmt: skip
    """The metrics of a tokenizer whose dynamics is not trained, or not whole in this process; arguments as in `tier_a`."""
    world_model.eval()
    episode = np.cumsum(held_out.gather(np.arange(held_out.rows)[None], frames=False)[0].first.numpy())
    evaluation, levels = Evaluation(Stages()), levels_of(held_out, world_model.shapes.frame_dtype)
    reconstructions = _reconstructions(world_model, held_out, codes_of, episode, frames, levels)
    evaluation.fill("metrics of the tokenizer", reconstructions=reconstructions)
    _compare_with_dictionary(evaluation, reconstructions, dictionary)
    return evaluation.metrics


def _compare_with_dictionary(
    evaluation: Evaluation, reconstructions: Reconstructions, dictionary: Callable[[Tensor], Tensor | None] | None
) -> None:
    if dictionary is not None:
        decoded = dictionary(reconstructions.frames)
        record = None if decoded is None else replace(reconstructions, decoded=decoded)
        evaluation.fill("metrics of a dictionary of patches", dictionary_reconstructions=record)


def tier_b(
    world_model: WorldModel, simulator, *, states: int, budget: float, seed: int = 0, names: Sequence[str] = (), policy=None,
    support: Callable[[np.ndarray], np.ndarray] | None = None, stages: Stages | None = None, levels: Levels = BYTES,
) -> tuple[list[Metric], dict[str, Any]]:  # fmt: skip
    """Metrics at `states` branch states of a simulator (see `simulators/interface.py`), under random play, and arrays for
    pictures. names: of the actions · policy: with it a quarter as many states of its play · support: as in
    `other_agent.branches_of_policy` · levels: of frames that are state vectors.

    Two thirds of `budget` seconds are for the branches, the rest for rollouts; what does not fit is left out, and counted.
    """
    began, stages = time.monotonic(), stages or Stages()
    world_model.eval()
    context = history_of(world_model.backbone, branch_probe.READ)
    with stages.probe("branch states of random play", states, "states") as tick:
        places = branch_probe.branch_states(simulator, states, context, began + budget / 6, seed, tick=tick)
    if not places:
        least = min(context, branch_probe.READ)
        reason = f"no episode of random play is longer than the {least} frames that are read before a branch"
        return [absent(KL, reason)], {}
    evaluation = Evaluation(stages, why_no_likelihood(world_model), names=names, signs=world_model.reward.signs_only,
                            parts=Menu(simulator.actions).parts())  # fmt: skip
    with stages.probe("every action at branch states", len(places), "states") as tick:
        branches = branch_probe.branches(world_model, simulator, places, began + budget * 2 / 3, tick=tick)
    evaluation.has_likelihood = branches.bits is not None
    evaluation.fill("metrics of branches", branches=branches)
    if evaluation.has_likelihood:
        with stages.probe("pictures of the worst branch states", SHOWN) as tick:
            evaluation.pictures["filmstrips"] = film_probe.worst(
                world_model, simulator, places, branches, names, began + budget * 0.75, seed, tick, levels
            )
    spread = places[:: max(1, len(places) // ROLLOUTS)][:ROLLOUTS]
    with stages.probe("whole futures of branch states", len(spread), "states") as tick:
        rolled = branch_probe.rollouts(
            world_model, simulator, spread, steps=HORIZON, each=FUTURES * 2, deadline=began + budget, levels=levels,
            tick=tick,
        )  # fmt: skip
    is_known = isinstance(getattr(simulator, "world", None), World)  # it answers questions that no other simulator does
    begins = np.array([branch_state.key for branch_state in spread[: len(rolled.real)]], np.uint64)
    evaluation.fill("metrics of futures", rollouts=replace(rolled, hash=begins))
    if not evaluation.has_likelihood:
        evaluation.fill("metrics of agents and histories", own_branches=None, history_pairs=None)
        if is_known:
            with stages.probe("questions to the known world"):
                recalls = known_world.recalls(world_model, simulator.world, seed)
            evaluation.fill("metrics of the known world", recalls=recalls, undos=None)
        return evaluation.metrics, evaluation.pictures
    mine = None
    if policy is not None:
        count = max(8, states // 4)
        with stages.probe("every action at states of the run's policy", count, "states") as tick:
            mine = other_agent.branches_of_policy(
                world_model, policy, simulator, count=count, context=context, deadline=began + budget, support=support,
                seed=seed, tick=tick,
            )  # fmt: skip
    evaluation.fill("metrics of agents", **_of_two_agents(mine, branches))
    with stages.probe("pairs of histories", 2 * histories.PAIRS) as tick:
        pairs = histories.pairs(world_model, simulator, places, branches, began + budget, seed, tick=tick)
    if pairs is not None:
        evaluation.fill("metrics of histories", history_pairs=pairs)
    if is_known:
        with stages.probe("questions to the known world"):
            recalls = known_world.recalls(world_model, simulator.world, seed)
            undos = known_world.undos(world_model, simulator, began + budget, seed)
        evaluation.fill("metrics of the known world", recalls=recalls, undos=undos)
    return evaluation.metrics, evaluation.pictures


def _of_two_agents(mine: Branches | None, random_play: Branches) -> dict[str, Branches]:
    """Records: branches of the run's policy and of another agent, random play; without the first, of random play alone."""
    if mine is None:
        return {"own_branches": random_play}
    behavior = np.full(random_play.p.shape[:2], 1 / random_play.p.shape[1])
    return {"own_branches": mine, "other_branches": replace(random_play, behavior=behavior)}


def tier_c(
    world_model: WorldModel, policy, make_env, simulator=None, *, others: dict, budget: float, seed: int = 0,
    stages: Stages | None = None,
):  # fmt: skip
    """Metrics of tier C of the run's policy (or None), of those made from it, and of `others` by name, in `budget` seconds, and
    arrays for pictures."""
    world_model.eval()
    stages = stages or Stages()
    values = policies.policy_values(
        world_model, policy, make_env, simulator, others=others, deadline=time.monotonic() + budget, seed=seed, stages=stages
    )
    if values is None:
        reason = f"the budget of {budget:.0f} s was over before three policies had played"
        return [absent(SPEARMAN, reason, "skipped")], {}
    evaluation = Evaluation(stages)
    evaluation.fill("metrics of policies", policy_values=values)
    return evaluation.metrics, evaluation.pictures


def fingerprint(steps: Steps) -> int:
    """A number for a series of steps, from what was done and what came of it; leaves room for counting the rows."""
    digest = hashlib.sha256()
    for x in (steps.action, steps.reward, steps.terminated, steps.first):
        digest.update(x.numpy().tobytes())
    return int.from_bytes(digest.digest()[:5], "big") << 22


def fingerprint_of(replay: Replay, frames: bool = True) -> str:
    """The hash of all steps of a replay, of their frames too."""
    digest = hashlib.sha256(str(replay.rows).encode())
    for rows in np.array_split(np.arange(replay.rows), 1 + replay.rows // 1024):
        if len(rows):
            digest.update(str(fingerprint(replay.gather(rows[None], frames=False)[0])).encode())
            digest.update(np.ascontiguousarray(replay.frames(rows).numpy()) if frames else b"")
    return digest.hexdigest()


def held_out_of(data: str, meta: dict) -> Replay:
    """The test episodes of a folder that `collect` wrote, or all where none is one. Raises UserError for another game."""
    if different := difference(read_meta(data), meta):
        key, theirs, ours = different
        raise UserError(f"{data} has {key} {theirs}, the model knows {ours}: choose data of its own game")
    replays = {"train": Replay(), "test": Replay()}
    for episode in read_episodes(data):
        replays[episode.split].add(episode)
    return replays["test"] if replays["test"].rows else replays["train"]


def _reconstructions(
    world_model: WorldModel, held_out: Replay, codes_of, episode: np.ndarray, frames: int, levels: Levels = BYTES
) -> Reconstructions:
    rows = np.arange(min(frames, held_out.rows))
    steps, codes, V = held_out.gather(rows[None]), codes_of(rows[None]), world_model.tokenizer.V
    read = world_model.posterior(steps.to(world_model.device), codes)
    decoded = torch.cat([world_model.frames(read[:, t : t + 256]).cpu()[0] for t in range(0, len(rows), 256)])
    real, decoded = levels(steps.obs[0]), levels(decoded)
    return Reconstructions(episode[rows], real, decoded, steps.first[0], codes.indices[0].cpu() if V else None, V)


def _windows(rows: int, frames: int, context: int) -> np.ndarray:
    """Windows (B, T) of consecutive rows, spread over all of them, in which about `frames` frames are scored."""
    T = min(rows, max(SHORTEST, 4 * context))
    B = max(1, min(rows // T, -(-frames // max(1, T - context))))
    starts = np.linspace(0, rows // T - 1, B).round().astype(int) * T
    return starts[:, None] + np.arange(T)


def _imagined(world_model, held_out, codes_of, first, episode, data, most, seed, levels=BYTES, tick: Tick = unseen):
    """Records of imagined rollouts from starts spread over the episodes that are long enough, or a sentence why there are
    none. They read `context` frames of the episode, and all before that where the memory has no limit."""
    history = history_of(world_model.backbone, branch_probe.READ)
    context = min(history, branch_probe.READ)
    lengths = np.diff(np.append(np.flatnonzero(first), len(first)))
    T = int(min(HORIZON, lengths.max() - context))
    if T < 2:
        return f"no held-out episode is longer than the {context} frames that are read before a rollout"
    begins = np.flatnonzero(first)[lengths >= context + T]
    spare = lengths[lengths >= context + T] - context - T
    rng = np.random.default_rng(seed)
    starts = [b + rng.integers(s + 1) for _ in range(-(-most // len(begins))) for b, s in zip(begins, spare, strict=True)]
    chosen = np.sort(rng.permutation(np.unique(starts))[:most])
    rows = np.maximum(chosen[:, None] + np.arange(context - history, context + T), 0)  # row 0 again: it begins an episode
    steps, codes = held_out.gather(rows, frames=False).to(world_model.device), codes_of(rows)
    common = dict(futures=FUTURES, state_of=data + chosen, levels=levels)
    drift = held_out_probe.drift(world_model, steps, codes, episode[rows], context=history, tick=tick, **common)
    end = history + min(T, STEPS)
    frames = held_out.frames(rows[:, end - 1])
    steered = held_out_probe.steered(world_model, steps[:, :end], codes[:, :history], frames, episode[rows[:, :end]], **common)
    return {"drift": drift, "steered": steered}


def _at(records: dict[str, Any], metrics: list[Metric]) -> list[Metric]:
    """The metrics whose rows are the branch states of the first record, with these states."""
    states = getattr(next(iter(records.values())), "hash", None)
    rows = -1 if states is None else len(states)
    return [
        replace(m, states=states) if m.values is not None and m.states is None and len(m.values) == rows else m for m in metrics
    ]


def _timed(measure: Callable[[], list[Metric]]) -> list[Metric]:
    began = time.monotonic()
    metrics = measure()
    return [replace(metric, seconds=round((time.monotonic() - began) / len(metrics), 3)) for metric in metrics]
