"""Every number that the evaluation has of a model of the known world, in expectation and as it is measured.

`exact`: over states as often as the behavior policy visits them, and over all that may follow. `sampled`: with intervals,
from a few episodes, as an evaluation of a real model has them. Both go through the metrics themselves, but for those of
held-out data (code length, calibration, rewards, terminations, actions) and of rollouts, whose expectations are written down
here independently.
"""

from __future__ import annotations

import numpy as np
import torch

from tokenworld.envs.known_world import SIDE, TILES, draw
from tokenworld.evaluation.metrics import (
    action_effects,
    action_sensitivity,
    agents,
    arrow_of_time,
    calibration,
    code_length,
    confusions,
    memory,
    next_frame,
    planning,
    rewards,
    state_identity,
    terminations,
    tokenizer,
)
from tokenworld.evaluation.metrics import policies as policy_metrics
from tokenworld.evaluation.metrics import rollouts as rollout_metrics
from tokenworld.evaluation.records import Branches, Metric, Reconstructions
from tokenworld.evaluation.statistics.divergences import IMPOSSIBLE, plogp
from tokenworld.studies.known_world import tables
from tokenworld.studies.known_world.planted import Model, oracle, world

POPULATION = 4000  # rows that stand for all visits
GROUPS = 50  # their clusters: intervals of an expectation mean nothing


def exact(model: Model) -> dict[str, float]:
    """Every number of the model in expectation, by id; nan where it has none."""
    rows, theirs = _population(world().visits), _population(world().visits_of(tables.other_agent()))
    table, cluster = tables.tables(model), np.arange(POPULATION) % GROUPS
    mine = tables.branches(model, table, rows, cluster)
    other = tables.branches(model, table, theirs, cluster, tables.other_agent())
    states = np.arange(len(world().states))
    metrics = _of_branches(mine, other)
    metrics += agents.spurious_feature(tables.lamp_pairs(model))
    metrics += state_identity.state_identity(tables.pairs(model, states, states))
    metrics += memory.recall(tables.recalls(model)) + arrow_of_time.irreversibility(tables.undos(model, states, states))
    V, W = (np.stack([tables.values(m, pi)[rows] for pi in tables.policies().values()]) for m in (oracle(), model))
    values = tables.policy_values(model)
    metrics += policy_metrics.policy_agreement(values) + planning.planning(values) + planning.value_equivalence(V, W, cluster)
    metrics += tokenizer_metrics(model, episodes=40, seed=0)
    numbers = {m.id: np.nan if m.value is None else float(m.value) for m in metrics} | expectations(model)
    curve = tables.exact_drift(model)
    return numbers | {"rollouts.first_step_distance": float(curve[0]), "rollouts.last_step_distance": float(curve[-1]),
                      "rollouts.distance": float(curve.mean())}


def sampled(model: Model, episodes: int = 60, seed: int = 0, *, rollouts: bool = True, policies: bool = False) -> list[Metric]:
    """The same numbers with intervals, from `episodes` episodes of the behavior policy and as many of another agent; on
    demand from rollouts and from the returns of policies."""
    w, rng = world(), np.random.default_rng([seed, 2])
    rows = tables.transitions(w.play(w.behavior, rng, episodes))
    theirs = tables.transitions(w.play(tables.other_agent(), rng, episodes))
    table, seen = tables.tables(model), tables.scored(model, rows)
    mine = tables.branches(model, table, rows["state"], rows["cluster"])
    other = tables.branches(model, table, theirs["state"], theirs["cluster"], tables.other_agent())
    entropy = _entropy(oracle().frame)[rows["state"], rows["action"]]
    metrics = code_length.code_length(seen, {}, entropy=entropy) + calibration.calibration(seen)
    metrics += rewards.rewards(seen) + terminations.terminations(seen)
    metrics += action_sensitivity.action_sensitivity(seen)
    metrics += confusions.confused_actions(seen) + _of_branches(mine, other)
    some = rng.permutation(len(rows["state"]))[:200]
    metrics += agents.spurious_feature(tables.lamp_pairs(model))
    metrics += state_identity.state_identity(tables.pairs(model, rows["state"][some], rows["cluster"][some]))
    metrics += memory.recall(tables.recalls(model, 50, rng))
    metrics += arrow_of_time.irreversibility(tables.undos(model, rows["state"], rows["cluster"]))
    metrics += tokenizer_metrics(model, episodes, seed)
    if rollouts:
        metrics += rollout_metrics.rollout_drift(tables.rollouts(model, seed=seed))
    if policies:
        values = tables.sampled_values(model, 60, rng)
        metrics += policy_metrics.policy_agreement(values) + planning.planning(values)
    return metrics


def _of_branches(mine: Branches, other: Branches) -> list[Metric]:
    return [*calibration.dispersion(mine), *next_frame.branch_fidelity(mine), *rewards.rewards_at_branches(mine),
            *terminations.terminations_at_branches(mine), *action_effects.counterfactual_effects(mine),
            *confusions.confused_effects(mine),
            *agents.causal_gap(mine, other)]  # fmt: skip


def tokenizer_metrics(model: Model, episodes: int, seed: int) -> list[Metric]:
    """Metrics of frames of play, as the model's tokenizer gives them back."""
    w, rng = world(), np.random.default_rng([seed, 3])
    rows = tables.transitions(w.play(w.behavior, rng, episodes))
    z = w.tiles[rows["state"]]
    seen, decoded = draw(z), draw(z)
    lost = rng.random(len(z))[:, None] >= model.kept  # (N, 6)
    for k in range(6):
        y, x = k // 3 * SIDE, k % 3 * SIDE
        decoded[lost[:, k], :, y : y + SIDE, x : x + SIDE] = 16  # an empty tile
    first = torch.from_numpy(rows["step"] == 0)
    frames, given = torch.from_numpy(seen), torch.from_numpy(decoded)
    return tokenizer.tokenizer_ceiling(Reconstructions(rows["cluster"], frames, given, first, torch.from_numpy(z), max(TILES)))


def expectations(model: Model) -> dict[str, float]:
    """The metrics of held-out data as sums over states, actions and frames."""
    w, truth = world(), oracle()
    weight = w.visits[:, None] * w.behavior  # (S, A)
    S, A = weight.shape
    p, q = (m.frame.reshape(S, A, -1) for m in (truth, model))
    with np.errstate(divide="ignore"):
        bits = np.minimum(-np.log2(q), IMPOSSIBLE)
    paid = (p * bits).sum(-1)
    announced = sequential_entropy(truth.frame.reshape(S * A, *TILES), model.frame.reshape(S * A, *TILES)).reshape(S, A)
    total = float((weight * paid).sum())
    return {
        "code_length.bits": total,
        "code_length.excess_bits": total - float((weight * _entropy(truth.frame)).sum()),
        "calibration.gap": total - float((weight * announced).sum()),
        "terminations.hazard_ratio": float((weight * model.hazard).sum() / (weight * w.hazard).sum()),
        "confusions.unexpected_bits": _unannounced(weight, paid - announced),
        **_of_rewards(weight, model.reward),
        **_of_actions(weight, p, bits),
    }


def _of_rewards(weight: np.ndarray, reward_mean: np.ndarray) -> dict[str, float]:
    """Of predicted rewards (S, A), visited with weight (S, A). An event ends its episode: no other is near."""
    gave = world().reward
    event, square = np.abs(gave) > rewards.EVENT, float((weight * reward_mean**2).sum())
    predicted = (np.abs(reward_mean) > rewards.EVENT) & (np.sign(reward_mean) == np.sign(gave))
    return {
        "rewards.recall": float((weight * event * predicted).sum() / (weight * event).sum()),
        "rewards.bias": float((weight * (reward_mean - gave)).sum()),
        "rewards.slope": float((weight * reward_mean * gave).sum()) / square if square else np.nan,
    }


def _unannounced(weight: np.ndarray, gap: np.ndarray) -> float:
    """confusions.unexpected_bits from the surprise paid beyond the announced, (S, A)."""
    each, mass = (weight * gap).sum(0), weight.sum(0)  # (A,)
    return float((each / mass - (each.sum() - each) / (mass.sum() - mass)).max())


def _of_actions(weight: np.ndarray, p: np.ndarray, bits: np.ndarray) -> dict[str, float]:
    """Of actions, from what follows, p (S, A, Z), and its price under each action, bits (S, A, Z)."""
    A = weight.shape[1]
    under = np.einsum("saz,sbz->sab", p, bits)  # bits of what follows a, had b been done
    saved = under @ weight.sum(0) - np.einsum("saa->sa", under)
    mean = np.einsum("sa,sab->ab", weight, under) / weight.sum(0)[:, None]
    size = np.abs(bits[:, :, None] - bits[:, None])  # (S, A, A, Z)
    apart = np.einsum("sa,sabz,saz->ab", weight, size, p)
    pairs = np.triu_indices(A, 1)
    log_posterior = np.log2(np.maximum(world().behavior, 1e-300))[:, :, None] - bits  # (S, A, Z)
    posterior = np.exp2(log_posterior - log_posterior.max(1, keepdims=True))
    joint = weight[:, :, None] * p
    announced = (posterior / posterior.sum(1, keepdims=True)).max(1)  # (S, Z)
    best = log_posterior >= log_posterior.max(1, keepdims=True) - action_sensitivity.TIE
    return {
        "action_sensitivity.saved_bits": float((weight * saved).sum()),
        "confusions.misattributed_bits": float((np.diag(mean)[:, None] - mean)[~np.eye(A, dtype=bool)].max()),
        "confusions.closest_pair_bits": float(((apart + apart.T)[pairs] / np.add.outer(weight.sum(0),
                                                                                       weight.sum(0))[pairs]).min()),
        "confusions.inverse_gap": float((joint * (announced[:, None] - best / best.sum(1, keepdims=True))).sum()),
    }


def sequential_entropy(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """(n, *TILES) each -> (n,): the entropies of q's tiles one after another, given those that p brought before."""
    total = np.zeros(len(p))
    for k in range(6):
        before = p.sum(tuple(range(k + 1, 7)))  # (n, *TILES[:k])
        joint = q.sum(tuple(range(k + 2, 7)))  # (n, *TILES[:k + 1])
        sums = joint.sum(-1, keepdims=True)
        given = joint / np.where(sums > 0, sums, 1.0)
        total += (before * -plogp(given).sum(-1)).reshape(len(p), -1).sum(1)
    return total


def _population(visits: np.ndarray) -> np.ndarray:
    """(POPULATION,) states, each as often as it is visited: the largest remainders are rounded up."""
    count = np.floor(visits * POPULATION).astype(int)
    count[np.argsort(count - visits * POPULATION, kind="stable")[: POPULATION - count.sum()]] += 1
    return np.repeat(np.arange(len(visits)), count)


def _entropy(frame: np.ndarray) -> np.ndarray:
    return -plogp(frame.reshape(*frame.shape[:2], -1)).sum(-1)
