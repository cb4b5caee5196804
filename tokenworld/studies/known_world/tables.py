"""The known world's records: what a probe reads from a real model and a simulator, here from tables."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from tokenworld.envs.known_world import LEFT, RIGHT, STATE, STAY, TILES, USE, choose
from tokenworld.evaluation.records import Branches, Pairs, PolicyValues, Recalls, Rollouts, Scored, Undos
from tokenworld.evaluation.statistics.divergences import IMPOSSIBLE, plogp
from tokenworld.studies.known_world.planted import Model, oracle, world

DELAYS = (2, 5, 10)  # steps for which the color is hidden
HORIZON = 40  # steps of returns
STEPS = 20  # of a rollout


# ---------------------------------------------------------------------------------------------------------------------
# Records


def transitions(episodes: list[dict]) -> dict[str, np.ndarray]:
    """Of `World.play`: state, action, after, terminated, cluster, step, (N,) each."""
    lengths = [len(e["action"]) for e in episodes]
    return {
        "state": np.concatenate([e["state"][:-1] for e in episodes]),
        "after": np.concatenate([e["state"][1:] for e in episodes]),
        "action": np.concatenate([e["action"] for e in episodes]),
        "terminated": np.concatenate([e["terminated"] for e in episodes]),
        "cluster": np.repeat(np.arange(len(episodes)), lengths),
        "step": np.concatenate([np.arange(n) for n in lengths]),
    }


def scored(model: Model, rows: dict[str, np.ndarray]) -> Scored:
    """Tier A: the model reads the tiles of the frames one after another."""
    w, s, a = world(), rows["state"], rows["action"]
    z = w.tiles[rows["after"]]  # (N, 6)
    n, rest = np.arange(len(s)), model.frame[s, a]  # (N, 5, 4, 4, 2, 2, 3)
    bits, entropy, top, hit = [], [], [], []
    for k in range(6):
        p = rest.sum(tuple(range(2, rest.ndim)))  # (N, values)
        possible = p.sum(1) > 0  # once a tile was impossible the others cost nothing more
        p = p / np.where(possible, p.sum(1), 1.0)[:, None]
        with np.errstate(divide="ignore"):
            bits.append(np.where(possible, np.minimum(-np.log2(p[n, z[:, k]]), IMPOSSIBLE), 0.0))
        entropy.append(-plogp(p).sum(1))
        top.append(p.max(1))
        hit.append(p.argmax(1) == z[:, k])
        rest = rest[n, z[:, k]]
    all_actions = model.frame[s][(n, slice(None), *z.T)]  # (N, A)
    with np.errstate(divide="ignore"):
        by_action = np.minimum(-np.log2(all_actions), IMPOSSIBLE)
    return Scored(
        cluster=rows["cluster"], previous=w.tiles[s], codes=z, action=a, bits=np.stack(bits, 1), entropy=np.stack(entropy, 1),
        top=np.stack(top, 1), hit=np.stack(hit, 1), reward=w.reward[s, a], reward_mean=model.reward[s, a],
        terminated=rows["terminated"], hazard=model.hazard[s, a], bits_by_action=by_action, behavior=w.behavior[s],
        step=rows["step"],
    )  # fmt: skip


@lru_cache(maxsize=1)
def _truth() -> dict[str, np.ndarray]:
    """All that may follow each state and action: p (S, A, J), codes (S, A, J, 6), their number (S, A, J), marginals."""
    right = oracle().frame
    S, A = right.shape[:2]
    flat = right.reshape(S, A, -1)
    J = int((flat > 0).sum(-1).max())
    number = np.argsort(-flat, -1, kind="stable")[..., :J]
    codes = np.stack(np.unravel_index(number, TILES), -1)
    return {"p": np.take_along_axis(flat, number, -1), "number": number, "codes": codes, "marginals": _marginals(right)}


def _marginals(frame: np.ndarray) -> np.ndarray:
    """(S, A, 5, 4, 4, 2, 2, 3) -> (S, A, 6, 5), unused values 0."""
    marginals = np.zeros((*frame.shape[:2], 6, max(TILES)))
    for k in range(6):
        marginals[:, :, k, : TILES[k]] = frame.sum(tuple(2 + j for j in range(6) if j != k))
    return marginals


def tables(model: Model) -> dict[str, np.ndarray]:
    """What the model says of all branches of all states, to be picked from by `branches`."""
    truth, flat = _truth(), model.frame.reshape(*model.frame.shape[:2], -1)
    with np.errstate(divide="ignore"):
        bits = -np.log2(np.take_along_axis(flat, truth["number"], -1))
    joint, marginals = -plogp(flat).sum(-1), _marginals(model.frame)
    return {"bits": bits, "entropy_q": joint, "marginal_q": marginals,
            "total_correlation_q": -plogp(marginals).sum((-2, -1)) - joint}  # fmt: skip


def branches(model: Model, table: dict, states: np.ndarray, cluster: np.ndarray, policy: np.ndarray | None = None) -> Branches:
    """Tier B at states (n,), under the behavior policy or another (S, A)."""
    w, truth = world(), _truth()
    policy = w.behavior if policy is None else policy
    J = truth["p"].shape[-1]
    candidates = np.stack([np.where(np.arange(max(TILES)) < n, np.arange(max(TILES)), -1) for n in TILES])
    return Branches(
        cluster=cluster, hash=states.astype(np.uint64), exact=True, p=truth["p"][states], codes=truth["codes"][states],
        marginal_p=truth["marginals"][states], candidates=np.broadcast_to(candidates, (len(states), *candidates.shape)),
        reward=np.repeat(w.reward[states][..., None], J, -1), terminated=np.repeat(w.hazard[states][..., None], J, -1),
        reward_mean=model.reward[states], hazard=model.hazard[states], behavior=policy[states],
        support=(w.visits[:, None] * w.behavior)[states], **{name: values[states] for name, values in table.items()},
    )  # fmt: skip


def pairs(model: Model, states: np.ndarray, cluster: np.ndarray) -> Pairs:
    """At states (n,): every action after a history with and without a detour, and each state next to another one."""
    flat, right, detour = (x.reshape(*x.shape[:2], -1)[states] for x in (model.frame, oracle().frame, model.detour))
    other = np.random.default_rng(0).permutation(len(states))
    same = js(flat, detour).ravel()
    differ = js(flat, flat[other]).ravel()
    return Pairs(
        cluster=np.tile(np.repeat(cluster, world().actions), 2),
        same=np.repeat([True, False], len(same)),
        js_model=np.concatenate([same, differ]),
        js_floor=np.zeros(2 * len(same)),
        js_true=np.concatenate([np.zeros(len(same)), js(right, right[other]).ravel()]),
    )


def lamp_pairs(model: Model) -> Pairs:
    """Contexts that differ in the lamp alone."""
    w = world()
    dark = np.flatnonzero(w.states[:, 3] == 0)
    lit = np.ravel_multi_index((w.states[dark] + [0, 0, 0, 1, 0]).T, STATE)
    sides = [
        js(*(x[states].reshape(len(states), w.actions, -1) for states in (dark, lit))).ravel()
        for x in (model.frame, oracle().frame)
    ]
    cluster = np.repeat(np.arange(len(dark)), w.actions)
    return Pairs(cluster, np.zeros(len(cluster), bool), sides[0], np.zeros(len(cluster)), sides[1])


def recalls(model: Model, per_delay: int = 200, rng: np.random.Generator | None = None) -> Recalls:
    """The color is shown, then hidden for k steps (to the right, waiting), then asked for, `per_delay` times for each k
    and color: the model's answers drawn, or without `rng` in their right proportions. Where the actor goes is told."""
    rows = []
    for k in DELAYS:
        for color in (0, 1):
            p = np.zeros(len(world().states))
            p[world().index(0, 0, 0, 0, color)] = 1
            for action, cell in [(RIGHT, 1), *[(STAY, 1)] * k, (LEFT, 0)]:
                p = p @ model.transition[:, action]
                there = p * (world().states[:, 0] == cell)
                p = there / there.sum() if there.sum() > 0 else p
            predicted = float(p[world().states[:, 4] == 1].sum())
            ones = np.arange(per_delay) < round(predicted * per_delay) if rng is None else rng.random(per_delay) < predicted
            rows += [(k, color, float(bit)) for bit in ones]
    delay, truth, answer = np.array(rows).T
    return Recalls(np.arange(len(rows)), delay.astype(int), truth, answer)


def undos(model: Model, states: np.ndarray, cluster: np.ndarray) -> Undos:
    """What the model says, over all actions, of the vases that are broken in states (n,)."""
    broken = world().states[states, 2] == 1
    whole = model.frame.sum(tuple(2 + j for j in range(6) if j != 3))[..., 0][states[broken]]  # (n, A)
    return Undos(np.repeat(cluster[broken], whole.shape[1]), whole.ravel())


# ---------------------------------------------------------------------------------------------------------------------
# Policies


@lru_cache(maxsize=1)
def other_agent() -> np.ndarray:
    """(S, A): an agent that does what the lamp does not say, and tries out using things anywhere."""
    lit = world().states[:, 3] == 1
    return np.where(lit[:, None], np.array([0.5, 0.1, 0.2, 0.2]), np.array([0.1, 0.7, 0.1, 0.1]))


@lru_cache(maxsize=1)
def policies() -> dict[str, np.ndarray]:
    """24 policies (S, A), from random ones to good ones."""
    w = world()
    cell, _, _, lamp, color = w.states.T
    at_door = cell == 4
    pure = {
        "door": np.where(at_door, USE, RIGHT),
        "good door": np.where(at_door, np.where(color == 1, USE, STAY), RIGHT),
        "good door or home": np.where(color == 1, np.where(at_door, USE, RIGHT), LEFT),
        "bad door": np.where(at_door, np.where(color == 0, USE, STAY), RIGHT),
        "lamp": np.where(at_door & (lamp == 1), USE, np.where(lamp == 1, RIGHT, LEFT)),
        "vase": np.where(cell == 2, USE, RIGHT),
        "home": np.full(len(cell), LEFT),
    }
    tables = {"random": np.full((len(cell), w.actions), 1 / w.actions), "behavior": w.behavior, "other": other_agent()}
    for name, action in pure.items():
        for e in (0.1, 0.4, 0.7):
            tables[f"{name}, {e:.0%} random"] = (1 - e) * np.eye(w.actions)[action] + e / w.actions
    return tables


def values(model: Model, policy: np.ndarray) -> np.ndarray:
    """(S,): expected return of a policy, (S, A) or (HORIZON, S, A), over the horizon; rollouts are fed with themselves."""
    steps = np.broadcast_to(policy, (HORIZON, *policy.shape[-2:]))
    V = np.zeros(len(model.reward))
    for pi in steps[::-1]:
        V = (pi * (model.reward + (1 - model.hazard) * (model.fed @ V))).sum(1)
    return V


def planned(model: Model) -> np.ndarray:
    """(HORIZON, S, A): the best policy in the model, by backward induction."""
    V, plan = np.zeros(len(model.reward)), []
    for _ in range(HORIZON):
        Q = model.reward + (1 - model.hazard) * (model.fed @ V)
        plan.append(np.eye(Q.shape[1])[(Q + 1e-12 * np.arange(Q.shape[1])[::-1]).argmax(1)])
        V = Q.max(1)
    return np.stack(plan[::-1])


def policy_values(model: Model) -> PolicyValues:
    """Tier C, exactly: the values of the starts, each as often as it is one."""
    truth, starts = oracle(), np.repeat(np.arange(len(world().start)), np.round(world().start * 160).astype(int))
    plan = planned(model)
    return PolicyValues(
        names=tuple(policies()),
        real=tuple(values(truth, pi)[starts] for pi in policies().values()),
        model=tuple(values(model, pi)[starts] for pi in policies().values()),
        oracle_planner=values(truth, planned(truth))[starts],
        model_planner=values(truth, plan)[starts],
        random=values(truth, policies()["random"])[starts],
        planner_in_model=values(model, plan)[starts],
    )


def sampled_values(model: Model, episodes: int, rng: np.random.Generator) -> PolicyValues:
    """Tier C, from `episodes` returns of each."""
    truth, plan, best = oracle(), planned(model), planned(oracle())
    return PolicyValues(
        names=tuple(policies()),
        real=tuple(returns(truth, pi, episodes, rng) for pi in policies().values()),
        model=tuple(returns(model, pi, episodes, rng) for pi in policies().values()),
        oracle_planner=returns(truth, best, episodes, rng),
        model_planner=returns(truth, plan, episodes, rng),
        random=returns(truth, policies()["random"], episodes, rng),
        planner_in_model=returns(model, plan, episodes, rng),
    )


def returns(model: Model, policy: np.ndarray, episodes: int, rng: np.random.Generator) -> np.ndarray:
    """(episodes,) returns over the horizon; policy (S, A) or (HORIZON, S, A)."""
    here = choose(np.broadcast_to(world().start, (episodes, len(world().start))), rng)
    total, alive = np.zeros(episodes), np.ones(episodes)
    for pi in np.broadcast_to(policy, (HORIZON, *policy.shape[-2:])):
        action = choose(pi[here], rng)
        total += alive * model.reward[here, action]
        alive = alive * (rng.random(episodes) >= model.hazard[here, action])
        here = choose(model.fed[here, action], rng)
    return total


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts


@lru_cache(maxsize=1)
def one_hot() -> np.ndarray:
    """(S, 20): the tiles of each state as features."""
    return np.concatenate([np.eye(n)[world().tiles[:, k]] for k, n in enumerate(TILES)], 1)


def starts_of(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(count,) states that the behavior policy visits, and (count, STEPS) the actions it then took."""
    w, rng = world(), np.random.default_rng(seed)
    state = rng.choice(len(w.visits), size=count, p=w.visits)
    here, actions = state, []
    for _ in range(STEPS):
        actions.append(choose(w.behavior[here], rng))
        here = choose(w.transition[here, actions[-1]], rng)
    return state, np.stack(actions, 1)


def exact_drift(model: Model, count: int = 64, seed: int = 0) -> np.ndarray:
    """(STEPS,) energy distance of what the model dreams to what comes, of rollouts that live, mean over `count` starts."""
    state, actions = starts_of(count, seed)
    features = one_hot()
    apart = np.sqrt(np.maximum(0, 2 * (6 - features @ features.T)))  # (S, S)
    rows = []
    sides = [np.eye(len(features))[state] for _ in range(2)]  # (count, S)
    truth = oracle()
    for t in range(STEPS):
        a = actions[:, t]
        for i, m in enumerate((truth, model)):
            kernel = m.transition if t == 0 else m.fed
            living = sides[i] * (1 if t == 0 else 1 - m.hazard[:, actions[:, t - 1]].T)
            living = living / np.maximum(living.sum(1, keepdims=True), 1e-300)
            sides[i] = np.einsum("ns,nst->nt", living, kernel[:, a].swapaxes(0, 1))
        p, q = sides
        lives = (p.sum(1) > 0.5) & (q.sum(1) > 0.5)  # a start from which all is over has no frame
        rows.append(np.mean((((2 * p - q) @ apart * q).sum(1) - (p @ apart * p).sum(1))[lives]))
    return np.array(rows)


def rollouts(model: Model, count: int = 60, each: int = 12, seed: int = 0) -> Rollouts:
    """Tier B: `count` starts, `each` real, other real and imagined rollouts of each."""
    state, actions = starts_of(count, seed)
    rng = np.random.default_rng([seed, 1])

    def roll(m: Model) -> tuple[np.ndarray, np.ndarray]:
        here, alive = np.repeat(state, each), np.ones(count * each, bool)
        frames, lived = [], []
        for t in range(STEPS):
            a = np.repeat(actions[:, t], each)
            lived.append(alive)
            alive = alive & (rng.random(len(here)) >= m.hazard[here, a])
            here = choose((m.transition if t == 0 else m.fed)[here, a], rng)
            frames.append(one_hot()[here])
        return (np.stack(x, 1).reshape(count, each, STEPS, *x[0].shape[1:]) for x in (frames, lived))

    (real, alive), (second, _), (imagined, alive_model) = roll(oracle()), roll(oracle()), roll(model)
    return Rollouts(np.arange(count), real, second, imagined, one_hot()[state], alive, alive_model)


def js(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence in bits over the last axis."""
    return (plogp(p).sum(-1) + plogp(q).sum(-1)) / 2 - plogp((p + q) / 2).sum(-1)
