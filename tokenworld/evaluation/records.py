"""What the evaluation measures and what it measures on: plain arrays, so that every metric is a pure function of them.

A *probe* fills these records from a world model and data (tier A), a simulator that can be branched (tier B) or policies
with known returns (tier C); a tabular world fills the same ones from its exact kernel. Everything is numpy, code lengths
and entropies are in bits, probabilities float64. A field that may be None is not known: bits and the model's probabilities of
codes are None if the decoding gives no likelihood.

    N transitions · S branch states · A actions · J branches of a (state, action) · K codes per frame · V codebook size
    T steps of a rollout · R real and M model rollouts from one start · F features of a frame

`cluster` names the source episode of a row: intervals resample clusters, never rows.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

Array = np.ndarray
SHOWN, SAMPLES = 8, 4  # branch states that are drawn as pictures, frames of the model for each


@dataclass(frozen=True)
class Metric:
    """One number of a report, with what is needed to believe it. `value` is None unless status is "ok" or "underpowered"."""

    id: str  # that of its `statistics.metric_spec.MetricSpec`; of a variant followed by "@" and which
    name: str  # for people: "Calibration gap"
    value: float | None
    unit: str = ""
    direction: Literal["lower", "higher", "zero", "none"] = "lower"  # what is good
    ci: tuple[float, float] | None = None
    level: float = 0.95
    n_clusters: int = 0
    n_samples: int = 0
    floor: float | None = None  # what a baseline without a model reaches
    ceiling: float | None = None  # the best that is possible here
    tier: Literal["A", "B", "C"] = "A"
    status: Literal["ok", "underpowered", "not_applicable", "skipped", "invalid"] = "ok"
    reason: str = ""  # why it is not ok, in one sentence
    experimental: bool = False
    seconds: float = 0.0
    values: Any = None  # (n,) per-row values, for paired comparisons; not part of the JSON
    clusters: Any = None  # (n,) the episode of each
    states: Any = None  # (n,) uint64, which state each row is, where rows are not those of the report

    @property
    def skill(self) -> float | None:
        """(floor - value) / (floor - ceiling), unclipped: 0 at the floor, 1 at the ceiling."""
        return None if self.value is None else self._skill(self.value)

    @property
    def skill_ci(self) -> tuple[float, float] | None:
        """The interval of the skill, low end first."""
        if self.ci is None or self.skill is None:
            return None
        bounds = [self._skill(end) for end in self.ci]
        if self.direction == "zero" and self.ci[0] <= 0 <= self.ci[1]:
            bounds.append(self._skill(0.0))  # the best of the interval is inside it
        return min(bounds), max(bounds)

    def _skill(self, value: float) -> float | None:
        if self.floor is None or self.ceiling is None or self.floor == self.ceiling:
            return None
        value = abs(value) if self.direction == "zero" else value  # floors of what is good at zero are sizes
        return (self.floor - value) / (self.floor - self.ceiling)


@dataclass(frozen=True)
class Reconstructions:
    """Tier A: N held-out frames and what the tokenizer makes of them, as torch tensors on the CPU."""

    cluster: Array  # (N,) int, the episode
    frames: Any  # (N, C, H, W) uint8, state vectors as levels
    decoded: Any  # (N, C, H, W) uint8, decode(encode(frame))
    first: Any  # (N,) bool: it starts an episode
    codes: Any  # (N, K) int; None: they have no indices
    vocab_size: int


@dataclass(frozen=True)
class Scored:
    """Tier A: N held-out transitions, teacher-forced. Row n is (context h, action a) -> the next frame."""

    cluster: Array  # (N,) int, the episode
    previous: Array | None  # (N, K) int, the codes before; None: they have no indices
    codes: Array | None  # (N, K) int, the codes that followed
    action: Array | None  # (N,) int; None: they have no numbers, and that of each row is column 0 of `bits_by_action`
    bits: Array | None  # (N, K): -log2 q(z^j | z^<j, h, a)
    entropy: Array | None  # (N, K): H(q(. | z^<j, h, a)), along the data
    top: Array | None  # (N, K): the largest probability of q(. | z^<j, h, a)
    hit: Array | None  # (N, K) bool: its code was the one that followed
    reward: Array  # (N,) what the environment gave
    reward_mean: Array  # (N,) E[r], predicted before the frame is known
    terminated: Array  # (N,) bool
    hazard: Array  # (N,) predicted probability of termination
    bits_by_action: Array | None = None  # (N, A): bits of the whole frame had each action been taken
    behavior: Array | None = None  # (N, A): probability that the behavior policy gave each action, if known
    step: Array | None = None  # (N,) int: the step of the row in its episode
    state: Array | None = None  # (N,) uint64: which state it is, alike in every evaluation on the same data
    reward_probability: Array | None = None  # (N, 3): predicted probability of a negative, of no and of a positive reward
    posterior_bits: Array | None = None  # (N,): KL(q || p) of the posterior of the frame that followed and the prediction
    hazard_after: Array | None = None  # (N,): where the episode ended, the hazard predicted one step later; nan elsewhere

    def under_each_action(self) -> Scored:
        """The rows that were scored under each action; all, where none was."""
        if self.bits_by_action is None:
            return self
        there = ~np.isnan(self.bits_by_action).any(1)
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Scored(**{name: x if x is None else x[there] for name, x in values.items()})


@dataclass(frozen=True)
class Branches:
    """Tier B: S cloned states, every action taken in each, and the J next frames that can come of it.

    Branches that tokenize alike are one branch (of equal frames, without codes). Unused ones have p = 0. For enumerated
    simulators p is exact and H_p its entropy; for sampled ones p = 1 / J' over distinct draws is an estimate (`exact` false).
    """

    cluster: Array  # (S,)
    hash: Array  # (S,) uint64, of the simulator's state and all that led to it: pairs states of two evaluations
    exact: bool
    p: Array  # (S, A, J)
    codes: Array | None  # (S, A, J, K) int; None: equal frames need not have equal ones
    bits: Array | None  # (S, A, J): -log2 q(codes | h, a), joint over the frame
    entropy_q: Array | None  # (S, A): joint entropy of q, exact or estimated from draws
    marginal_p: Array | None  # (S, A, K, C): true probabilities of C listed candidate codes per position, the rest is none
    marginal_q: Array | None  # (S, A, K, C): the model's
    candidates: Array | None  # (S, K, C) int: which codes; -1 unused. The model's mass outside them is 1 - sum over C
    total_correlation_q: Array | None = None  # (S, A): sum_j H(q_j) - H(q)
    reward: Array | None = None  # (S, A, J)
    terminated: Array | None = None  # (S, A, J): the probability that the episode ends with it
    reward_mean: Array | None = None  # (S, A) the model's
    hazard: Array | None = None  # (S, A) the model's
    behavior: Array | None = None  # (S, A) probability of each action under the policy that chose the states
    at_random: Array | None = None  # (A,) probability of each action where they are set at random; None: alike
    support: Array | None = None  # (S, A) how often training data hold this (context, action), or a density that orders alike


@dataclass(frozen=True)
class Rollouts:
    """Tier B: S starts; R real and M imagined rollouts of T steps from each, all under the same actions of that start."""

    cluster: Array  # (S,)
    real: Array  # (S, R, T, F) float32, features of the frames (pixels weighted by how often they change, or one-hot codes)
    second: Array  # (S, R, T, F): other real rollouts, the ceiling
    model: Array  # (S, M, T, F)
    copy: Array  # (S, F): the last frame before the rollout, the floor
    alive_real: Array  # (S, R, T) bool: not ended before this step
    alive_model: Array  # (S, M, T) bool
    own_bits: Array | None = None  # (S, T): bits of the real frame t given a context that the model generated
    real_bits: Array | None = None  # (S, T): given the real context
    hash: Array | None = None  # (S,) uint64, as in `Branches`


@dataclass(frozen=True)
class Drift:
    """Tier A: S starts in held-out data, M imagined rollouts of T steps from each under the real actions, the real future.

    A frame is K codes or, where equal frames need not have equal codes, K tiles of 8 levels of the decoded frame.
    """

    cluster: Array  # (S,)
    real: Array  # (S, T, K) int
    model: Array  # (S, M, T, K) int
    copy: Array  # (S, K) int: the last frame before the rollout, the floor
    own_bits: Array | None  # (S, T): bits of the real frame t after t imagined frames; None without a likelihood
    real_bits: Array | None  # (S, T): after the real ones
    imagined_bits: Array | None = None  # (S, M, T): of the model's own frames, as it drew them


@dataclass(frozen=True)
class Steered:
    """Tier A: S starts in held-out data, M imagined rollouts from each under the real actions, and M with the same random
    numbers under random actions: how far both are from the real frame after the last step, as mean squared errors of bytes."""

    cluster: Array  # (S,)
    steps: int
    real_actions: Array  # (S, M)
    random_actions: Array  # (S, M)


@dataclass(frozen=True)
class Pairs:
    """Tier B: pairs of histories. JS divergences in bits of what follows them under the same action."""

    cluster: Array  # (N,)
    same: Array  # (N,) bool: both histories lead to the same simulator state
    js_model: Array  # (N,): JS(q(. | h1, a), q(. | h2, a))
    js_floor: Array  # (N,): between two estimates of the same q (0 where q is exact)
    js_true: Array  # (N,): between the true conditionals
    state: Array | None = None  # (N,) uint64: which pair it is


@dataclass(frozen=True)
class Recalls:
    """A bit was planted, hidden for k steps and asked for."""

    cluster: Array  # (N,)
    delay: Array  # (N,) int, k
    truth: Array  # (N,) 0 or 1
    answer: Array  # (N,): probability of 1 that the model gave at the reappearance
    return_distance: Array | None = None  # (N,) distance of the end frame to the start after an action and its inverse
    return_distance_real: Array | None = None


@dataclass(frozen=True)
class Undos:
    """Opportunities to undo what cannot be undone, and the model's mass on doing so."""

    cluster: Array  # (N,)
    mass: Array  # (N,): the model's probability of leaving the absorbing predicate in one step
    auc_real: float | None = None  # of one precedence classifier, on real pairs
    auc_model: float | None = None  # on imagined pairs
    auc_gap_ci: tuple[float, float] | None = None  # interval of their difference


@dataclass(frozen=True)
class PolicyValues:
    """Tier C: P policies, their returns over the same horizon in the real environment and in the model."""

    names: tuple[str, ...]
    real: tuple[Array, ...]  # per policy: returns of its episodes
    model: tuple[Array, ...]
    oracle_planner: Array | None = None  # returns of a planner that plans in the simulator
    model_planner: Array | None = None  # of the same planner, planning in the model
    random: Array | None = None  # of the random policy
    planner_in_model: Array | None = None  # what the model promised its planner


@dataclass(frozen=True)
class Branching:
    """A branch state and an action as pictures: frames (n, C, H, W) uint8, or float32 of state vectors with their limits."""

    words: str  # which state, which action
    kl: float  # bits
    context: Any  # (T, C, H, W)
    frames: Any  # (J, C, H, W): what can come, the likeliest first
    p: Any  # (J,) true probabilities
    q: Any  # (J,) the model's
    samples: Any  # (M, C, H, W): the model's own frames
    changed: Any = None  # (h, w) bool: the codes that differ between what can come
    limits: Any = None  # low, high (C, 1, 1): the range of each number of a state vector
