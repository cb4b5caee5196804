"""The evaluation of a world model: records are filled, metrics read them. Tier A needs held-out experience, tier B a simulator.

Nothing falls back silently: what could not be measured is in the report with the reason.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from tokenworld.data.episodes import read_episodes, read_meta
from tokenworld.data.replay import Replay
from tokenworld.envs.known_world import World
from tokenworld.errors import UserError
from tokenworld.evaluation.metrics import (
    agents,
    arrow_of_time,
    baselines,
    confusions,
    next_frame,
    proxies,
    rewards_and_terminations,
)
from tokenworld.evaluation.metrics.action_effects import IDS as EFFECTS
from tokenworld.evaluation.metrics.action_effects import counterfactual_effects, effect_matrices
from tokenworld.evaluation.metrics.action_sensitivity import IDS as SENSITIVITY
from tokenworld.evaluation.metrics.action_sensitivity import action_sensitivity
from tokenworld.evaluation.metrics.agents import by_support, causal_gap
from tokenworld.evaluation.metrics.arrow_of_time import irreversibility
from tokenworld.evaluation.metrics.calibration import IDS as CALIBRATION
from tokenworld.evaluation.metrics.calibration import calibration, dispersion
from tokenworld.evaluation.metrics.code_length import IDS as CODE_LENGTH
from tokenworld.evaluation.metrics.code_length import code_length
from tokenworld.evaluation.metrics.confusions import confused_actions, confused_effects
from tokenworld.evaluation.metrics.memory import IDS as MEMORY
from tokenworld.evaluation.metrics.memory import recall, recall_by_delay
from tokenworld.evaluation.metrics.next_frame import branch_fidelity, frame_distance
from tokenworld.evaluation.metrics.planning import planning
from tokenworld.evaluation.metrics.policies import policy_agreement
from tokenworld.evaluation.metrics.rewards_and_terminations import at_branches
from tokenworld.evaluation.metrics.rollouts import curves, distance_curves, horizon, rollout_drift
from tokenworld.evaluation.metrics.state_identity import IDS as STATE_IDENTITY
from tokenworld.evaluation.metrics.state_identity import state_identity
from tokenworld.evaluation.metrics.tokenizer import tokenizer_ceiling
from tokenworld.evaluation.probes import branches as branch_probe
from tokenworld.evaluation.probes import filmstrips as film_probe
from tokenworld.evaluation.probes import held_out as held_out_probe
from tokenworld.evaluation.probes import histories, known_world, other_agent, policies
from tokenworld.evaluation.probes.stages import Stages, Tick, unseen
from tokenworld.evaluation.records import SHOWN, Branches, Metric, Scored
from tokenworld.evaluation.statistics import intervals  # fmt: skip
from tokenworld.evaluation.statistics.measured import absent
from tokenworld.evaluation.statistics.reliability import reliability
from tokenworld.interfaces import Codes, Steps
from tokenworld.world_model import WorldModel

SHORTEST = 32  # steps of a window, at least, if there are as many
STARTS, FUTURES, HORIZON = 64, 4, 20  # dreams of the drift curve
ROLLOUTS = 40  # branch states from which whole futures are compared
SHARE = 0.6  # of the budget that may be gone before the dreams begin
NO_LIKELIHOOD = "the decoding gives no likelihood of a frame"
OF_LIKELIHOOD = {  # the metrics of each tier that take one
    "A": (*CODE_LENGTH, *CALIBRATION[:6], *SENSITIVITY, *confusions.OF_DATA, "M4.self_feeding", "M15.self_consistency"),
    "B": (*CALIBRATION[6:], *next_frame.IDS[:4], *EFFECTS, *confusions.IDS[len(confusions.OF_DATA):], *agents.NAMES,
          *STATE_IDENTITY),
    "known world": (*MEMORY, "M11.undo"),
}  # fmt: skip


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
) -> tuple[list[Metric], dict[str, Any], np.ndarray]:
    """Metrics M0 to M6 on about `frames` held-out frames, the arrays that pictures need, and the states (N,) that metrics
    have values of. `counts` are of training codes, `names` of the actions.

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
    with stages.probe("tokenizer"):
        metrics = _timed(lambda: _tokenizer(world_model, held_out, codes_of, episode, frames))

    rows = _windows(held_out.rows, frames, world_model.backbone.context)
    steps = held_out.gather(rows, frames=False).to(device)
    with stages.probe("held-out frames under each action", rows.shape[1] - 1, "steps of all windows") as tick:
        scored = held_out_probe.score_held_out(
            world_model, steps, codes_of(rows), episode[rows], data + rows, deadline=began + SHARE * budget, tick=tick
        )
    simple, taken = {}, np.bincount(everything.action[everything.acted].numpy(), minlength=world_model.shapes.actions)
    if counts is not None:
        previous, current = torch.from_numpy(scored.previous), torch.from_numpy(scored.codes)
        for name in ("copy_last", "unigram", "bigram"):
            simple[name] = getattr(baselines, f"bits_{name}")(counts, previous, current).double().numpy()
    measures = (
        lambda: rewards_and_terminations.rewards(scored, world_model.reward.signs_only),
        lambda: rewards_and_terminations.terminations(scored),
    )
    if scored.bits is None:
        metrics += _without_likelihood("A")
    else:
        measures = (
            lambda: code_length(scored, simple, against=counts and counts.best),
            lambda: calibration(scored),
            lambda: _at(forked(scored).state, action_sensitivity(forked(scored), taken)),
            lambda: _at(forked(scored).state, confused_actions(forked(scored), taken, names)),
            *measures,
        )
    metrics += _measured(stages, "metrics of held-out frames", measures)
    pictures = _pictures(scored, world_model.shapes.grid)
    if time.monotonic() - began > SHARE * budget:
        reason = f"the budget of {budget:.0f} s was used up before: give more, or measure fewer frames"
        metrics.append(Metric("M4.horizon", "Valid horizon", None, "steps", "higher", status="skipped", reason=reason))
        return metrics, pictures, scored.state
    most = min(STARTS, max(8, frames // 8))
    with stages.probe("imagined rollouts beside held-out episodes", HORIZON, "steps") as tick:
        found = _drift(world_model, held_out, codes_of, first, episode, data, most, seed, tick)
    if isinstance(found, str):
        metrics.append(Metric("M4.horizon", "Valid horizon", None, "steps", "higher", status="not_applicable", reason=found))
    else:
        own_frames = (lambda: []) if found.dreamt_bits is None else (lambda: proxies.own_frames(found))
        metrics += _measured(stages, "metrics of imagined rollouts", [lambda: horizon(found) + own_frames()])
        pictures["drift"] = curves(found)
    return metrics, pictures, scored.state


def _pictures(scored: Scored, grid: tuple[int, int]) -> dict[str, Any]:
    """The arrays of the pictures of held-out frames."""
    pictures: dict[str, Any] = {}
    if scored.bits is not None:
        pictures["top_reliability"] = reliability(scored.top.ravel(), scored.hit.ravel())
        pictures["surprise"] = scored.bits.mean(0).reshape(grid)
    if (np.abs(scored.reward) > rewards_and_terminations.EVENT).any():
        pictures["reward_confusion"] = rewards_and_terminations.reward_confusion(scored)
    if scored.terminated.any():
        pictures["hazard_reliability"] = rewards_and_terminations.hazard_reliability(scored)
    return pictures


def tier_b(
    world_model: WorldModel, simulator, *, states: int, budget: float, seed: int = 0, names: Sequence[str] = (), policy=None,
    support: Callable[[np.ndarray], np.ndarray] | None = None, stages: Stages | None = None,
) -> tuple[list[Metric], dict[str, Any]]:  # fmt: skip
    """Metrics at `states` branch states of a simulator (see `simulators/interface.py`), under random play, and arrays for
    pictures. names: of the actions · policy: with it a quarter as many states of its play, for M8 · support: as in
    `other_agent.branches_of_policy`.

    Two thirds of `budget` seconds are for the branches, the rest for rollouts; what does not fit is left out, and counted.
    """
    began, stages = time.monotonic(), stages or Stages()
    world_model.eval()
    context = min(world_model.backbone.context, 8)
    with stages.probe("branch states of random play", states, "states") as tick:
        places = branch_probe.places(simulator, states, context, began + budget / 6, seed, tick=tick)
    if not places:
        reason = f"no episode of random play is longer than the {context} frames that are read before a branch"
        return [absent("M3.kl", "KL divergence of the next frame", reason, tier="B")], {}
    signs = world_model.reward.signs_only
    with stages.probe("every action at branch states", len(places), "states") as tick:
        branches = branch_probe.branches(world_model, simulator, places, began + budget * 2 / 3, tick=tick)
    of_branches, pictures = (lambda branches: at_branches(branches, signs),), {}
    if branches.bits is not None:
        confused = lambda branches: confused_effects(branches, names)  # noqa: E731
        of_branches = (dispersion, branch_fidelity, counterfactual_effects, confused, *of_branches)
    metrics = _measured(
        stages, "metrics of branches", [lambda measure=m: _at(branches.hash, measure(branches)) for m in of_branches]
    )
    if branches.bits is not None:
        pictures |= {"effects": effect_matrices(branches) | {"actions": names}, "plane": _plane(metrics)}
        with stages.probe("pictures of the worst branch states", SHOWN) as tick:
            pictures["filmstrips"] = film_probe.worst(
                world_model, simulator, places, branches, names, began + budget * 0.75, seed, tick
            )
    spread = places[:: max(1, len(places) // ROLLOUTS)][:ROLLOUTS]
    with stages.probe("whole futures of branch states", len(spread), "states") as tick:
        rolled = branch_probe.rollouts(
            world_model, simulator, spread, steps=HORIZON, each=FUTURES * 2, deadline=began + budget, tick=tick
        )
    begins = np.array([place.key for place in spread[: len(rolled.real)]], np.uint64)
    of_futures = (rollout_drift, frame_distance, rewards_and_terminations.survival, arrow_of_time.of_rollouts, _told_apart)
    metrics += _measured(stages, "metrics of futures", [lambda measure=m: _at(begins, measure(rolled)) for m in of_futures])
    pictures["distance"] = distance_curves(rolled)
    if not (rolled.alive_real.all() and rolled.alive_model.all()):
        pictures["survival"] = rewards_and_terminations.survival_curves(rolled)
    is_known = isinstance(getattr(simulator, "world", None), World)
    if branches.bits is None:
        return metrics + _without_likelihood("B") + (_without_likelihood("known world") if is_known else []), pictures
    more, drawn = _by_likelihood(
        world_model, simulator, places, branches, policy, support, count=max(8, states // 4), context=context,
        deadline=began + budget, seed=seed, stages=stages,
    )  # fmt: skip
    metrics, pictures = metrics + more, pictures | drawn
    if is_known:  # questions that only the known world answers
        with stages.probe("questions to the known world"):
            asked = known_world.recalls(world_model, simulator.world, seed)
            undone = irreversibility(known_world.undos(world_model, simulator, began + budget, seed))
        metrics += recall(asked) + [metric for metric in undone if metric.id == "M11.undo"]  # its arrow: from rollouts
        pictures["memory"] = recall_by_delay(asked)
    return metrics, pictures


def _by_likelihood(
    world_model: WorldModel, simulator, places, branches: Branches, policy, support, *, count: int, context: int,
    deadline: float, seed: int, stages: Stages,
) -> tuple[list[Metric], dict[str, Any]]:  # fmt: skip
    """M8 at `count` states of the policy beside those of random play, and M9 of pairs of histories."""
    metrics, pictures = [], {}
    if policy is None:
        metrics += causal_gap(branches)
    else:
        with stages.probe("every action at states of the run's policy", count, "states") as tick:
            mine = other_agent.branches_of_policy(
                world_model, policy, simulator, count=count, context=context, deadline=deadline, support=support, seed=seed,
                tick=tick,
            )  # fmt: skip
        metrics += _of_two_agents(mine, branches)
        if mine is not None and mine.support is not None:
            pictures["support"] = by_support(mine, parts=5)
    with stages.probe("pairs of histories", 2 * histories.PAIRS) as tick:
        two = histories.pairs(world_model, simulator, places, branches, deadline, seed, tick=tick)
    if two is not None:
        metrics += _timed(lambda: state_identity(two))
    return metrics, pictures


def _without_likelihood(part: str) -> list[Metric]:
    """The metrics of `OF_LIKELIHOOD`, as not applicable."""
    names, tier = agents.NAMES | confusions.NAMES, "A" if part == "A" else "B"
    return [absent(id, names.get(id, id), NO_LIKELIHOOD, tier=tier) for id in OF_LIKELIHOOD[part]]


def _of_two_agents(mine: Branches | None, other: Branches) -> list[Metric]:
    """M8 at branches of the run's policy, and at those of random play."""
    if mine is None:
        return causal_gap(other)
    return causal_gap(mine, replace(other, behaviour=np.full(other.p.shape[:2], 1 / other.p.shape[1])))


def _told_apart(rolled) -> list[Metric]:
    return [replace(metric, tier="B") for metric in proxies.c2st_by_length(rolled)]


def tier_c(
    world_model: WorldModel, policy, make_env, simulator=None, *, others: dict, budget: float, seed: int = 0,
    stages: Stages | None = None,
):  # fmt: skip
    """M12 and M13 of the run's policy (or None), of those made from it, and of `others` by name, in `budget` seconds; arrays
    for a picture."""
    world_model.eval()
    stages = stages or Stages()
    values = policies.policy_values(
        world_model, policy, make_env, simulator, others=others, deadline=time.monotonic() + budget, seed=seed, stages=stages
    )
    if values is None:
        reason = f"the budget of {budget:.0f} s was over before three policies had played"
        return [absent("M12.spearman", "Rank correlation of policies", reason, "skipped", tier="C", experimental=True)], {}
    metrics = _measured(stages, "metrics of policies", [lambda: policy_agreement(values), lambda: planning(values)])
    bounds = [[intervals.ratio(x, None, np.arange(len(x)))[1] for x in side] for side in (values.real, values.model)]
    drawn = {"names": values.names, "real": np.array([x.mean() for x in values.real]),
             "model": np.array([x.mean() for x in values.model]), "real_ci": np.array(bounds[0]),
             "model_ci": np.array(bounds[1])}  # fmt: skip
    return metrics, {"policies": drawn}


def _plane(metrics: list[Metric]) -> dict[str, float]:
    by_id = {metric.id: metric.value for metric in metrics}
    return {"dcal": by_id.get("M2.dcal_joint"), "dh": by_id.get("M2.dh")}


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
    found = read_meta(data)
    for key in ("env_id", "frame_shape", "action_count"):
        if found[key] != meta[key]:
            raise UserError(f"{data} has {key} {found[key]}, the model knows {meta[key]}: choose data of its own game")
    replays = {"train": Replay(), "test": Replay()}
    for episode in read_episodes(data):
        replays[episode.split].add(episode)
    return replays["test"] if replays["test"].rows else replays["train"]


def _tokenizer(world_model: WorldModel, held_out: Replay, codes_of, episode: np.ndarray, frames: int) -> list[Metric]:
    rows = np.arange(min(frames, held_out.rows))
    steps, codes = held_out.gather(rows[None]), codes_of(rows[None])
    decoded = torch.cat([world_model.frames(Codes(part)).cpu()[0] for part in codes.indices.split(256, 1)])
    indices = codes.indices[0].cpu()
    return tokenizer_ceiling(steps.obs[0], decoded, steps.first[0], episode[rows], indices, world_model.shapes.vocab_size)


def forked(scored: Scored) -> Scored:
    """The rows that were scored under each action."""
    there = ~np.isnan(scored.bits_by_action).any(1)
    values = {f.name: getattr(scored, f.name) for f in fields(scored)}
    return Scored(**{name: x if x is None else x[there] for name, x in values.items()})


def _windows(rows: int, frames: int, context: int) -> np.ndarray:
    """Windows (B, T) of consecutive rows, spread over all of them, in which about `frames` frames are scored."""
    T = min(rows, max(SHORTEST, 4 * context))
    B = max(1, min(rows // T, -(-frames // max(1, T - context))))
    starts = np.linspace(0, rows // T - 1, B).round().astype(int) * T
    return starts[:, None] + np.arange(T)


def _drift(world_model, held_out, codes_of, first, episode, data, most, seed, tick: Tick = unseen):
    """Dreams from starts spread over the episodes that are long enough, or a sentence why there are none."""
    context = min(world_model.backbone.context, 8)
    lengths = np.diff(np.append(np.flatnonzero(first), len(first)))
    T = int(min(HORIZON, lengths.max() - context))
    if T < 2:
        return f"no held-out episode is longer than the {context} frames that are read before a dream"
    begins = np.flatnonzero(first)[lengths >= context + T]
    spare = lengths[lengths >= context + T] - context - T
    rng = np.random.default_rng(seed)
    starts = [b + rng.integers(s + 1) for _ in range(-(-most // len(begins))) for b, s in zip(begins, spare, strict=True)]
    chosen = np.sort(rng.permutation(np.unique(starts))[:most])
    rows = chosen[:, None] + np.arange(context + T)
    device = world_model.device
    steps = held_out.gather(rows, frames=False).to(device)
    return held_out_probe.drift(
        world_model, steps, codes_of(rows), episode[rows], context=context, futures=FUTURES, state_of=data + chosen,
        tick=tick,
    )  # fmt: skip


def _at(states: np.ndarray | None, metrics: list[Metric]) -> list[Metric]:
    """The metrics whose rows are these states, told which."""
    rows = -1 if states is None else len(states)
    return [replace(m, states=states) if m.values is not None and len(m.values) == rows else m for m in metrics]


def _measured(stages: Stages, name: str, measures: Sequence[Callable[[], list[Metric]]]) -> list[Metric]:
    """The metrics of a group, which is one line of the progress."""
    metrics: list[Metric] = []
    with stages.probe(name, len(measures)) as tick:
        for measure in measures:
            metrics += _timed(measure)
            tick()
    return metrics


def _timed(measure: Callable[[], list[Metric]]) -> list[Metric]:
    began = time.monotonic()
    found = measure()
    return [replace(metric, seconds=round((time.monotonic() - began) / len(found), 3)) for metric in found]
