"""Models of the known world with one planted defect each, in doses: what an evaluation must find, and must not.

A model here is a table: what it says of the next frame, of reward and termination, and how its own rollouts go on. A dose is
the share of the visited states that have the defect (so that a model which averages is calibrated at any dose), but for
temperatures, whose logarithm is dosed, and for defects of a memory or of rollouts, which are dosed per step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tokenworld.envs.known_world import LEFT, RIGHT, STATE, STAY, TILES, World

EPSILON = 2.0**-20  # what a softmax leaves of an outcome that a model has ruled out
SLIPS = 0.3  # probability in one step that a broken vase heals, and that a drifting rollout loses its actor


@dataclass(frozen=True)
class Model:
    """What a world model says, of S states and A actions.

    frame (S, A, 5, 4, 4, 2, 2, 3): joint probabilities of the next frame's tiles · transition (S, A, S): how its rollouts go
    on · fed: the same after a frame of its own · detour: like frame, after a history with a detour · reward, hazard (S, A) ·
    kept (6,): the share of the frames in which the tokenizer keeps each tile.
    """

    frame: np.ndarray
    transition: np.ndarray
    fed: np.ndarray
    detour: np.ndarray
    reward: np.ndarray
    hazard: np.ndarray
    kept: np.ndarray


@lru_cache(maxsize=1)
def world() -> World:
    return World()


def frames_of(transition: np.ndarray, tiles: np.ndarray) -> np.ndarray:
    """(S, A, S) to states -> (S, A, 5, 4, 4, 2, 2, 3) to frames, tiles (S, 6)."""
    S, A, _ = transition.shape
    number = np.ravel_multi_index(tiles.T, TILES)
    frames = np.zeros((int(np.prod(TILES)), S * A))
    np.add.at(frames, number, transition.reshape(S * A, -1).T)
    return frames.T.reshape(S, A, *TILES)


def oracle() -> Model:
    """The truth."""
    return _of(world().transition)


def _of(transition: np.ndarray, **more) -> Model:
    """The model of a kernel, right in all that `more` does not name."""
    frame, w = frames_of(transition, world().tiles), world()
    right = dict(frame=frame, transition=transition, fed=transition, detour=frame, reward=w.reward, hazard=w.hazard)
    return Model(**{**right, "kept": np.ones(6, bool), **more})


def affected(dose: float) -> np.ndarray:
    """(S,) bool: states with the share `dose` of all visits, the same ones and more at a higher dose. States that differ in
    the lamp alone go together: what is averaged over the lamp must be so in both."""
    w, group = world(), np.ravel_multi_index((world().states[:, [0, 1, 2, 4]]).T, (5, 4, 2, 2))
    share = np.bincount(group, weights=w.visits)
    order = np.random.default_rng(0).permutation(len(share))
    reached = np.cumsum(share[order])
    chosen = order[reached <= dose + 1e-9] if dose < 1 else order
    return np.isin(group, chosen)


def _where(dose: float, wrong: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`wrong` in the affected states, `right` elsewhere; (S, ...)."""
    return np.where(affected(dose).reshape(-1, *(1,) * (right.ndim - 1)), wrong, right)


def _averaged(policy: np.ndarray) -> np.ndarray:
    """The kernel without its action: what follows a policy (S, A), whatever is done."""
    T = world().transition
    return np.repeat(np.einsum("sa,sat->st", policy, T)[:, None], T.shape[1], 1)


def action_blind(dose: float) -> Model:
    """Ignores the action, and the lamp too: what comes of the behavior on average over the lamp."""
    policy = world().behavior.reshape(*STATE, -1)
    policy = np.broadcast_to(policy.mean(3, keepdims=True), policy.shape).reshape(world().behavior.shape)
    return _of(_where(dose, _averaged(policy), world().transition))


def causally_confused(dose: float) -> Model:
    """Reads the lamp, which tells what the behavior will do, instead of the action."""
    return _of(_where(dose, _averaged(world().behavior), world().transition))


def swapped(dose: float) -> Model:
    """Left and right confused."""
    order = np.arange(world().actions)
    order[[LEFT, RIGHT]] = RIGHT, LEFT
    return _of(_where(dose, world().transition[:, order], world().transition))


def aliased(dose: float) -> Model:
    """Left does what staying does: one action for two."""
    order = np.arange(world().actions)
    order[LEFT] = STAY
    return _of(_where(dose, world().transition[:, order], world().transition))


def independent_tokens(dose: float) -> Model:
    """Every tile right, none drawn with another."""
    right = frames_of(world().transition, world().tiles)
    product = np.ones_like(right)
    for k in range(6):
        product = product * right.sum(tuple(2 + j for j in range(6) if j != k), keepdims=True)
    return _of(world().transition, frame=_where(dose, product, right), detour=_where(dose, product, right))


def _tempered(temperature: float) -> Model:
    T = np.where(world().transition > 0, world().transition, 0.0) ** (1 / temperature)
    return _of(T / T.sum(-1, keepdims=True))


def overconfident(dose: float) -> Model:
    """Sharpened to temperature 0.25."""
    return _tempered(0.25**dose)


def underconfident(dose: float) -> Model:
    """Flattened to temperature 4."""
    return _tempered(4.0**dose)


def _redistributed(coordinate: int, to: np.ndarray, dose: float) -> Model:
    """One coordinate of the state follows `to` (before, after) whatever the world says; the others are right."""
    T = world().transition.reshape(len(world().states), -1, *STATE)
    others = T.sum(2 + coordinate, keepdims=True)
    before = world().states[:, coordinate]
    shape = [len(before), 1, *(1,) * 5]
    shape[2 + coordinate] = to.shape[1]
    return _of(_where(dose, (others * to[before].reshape(shape)).reshape(world().transition.shape), world().transition))


def blurred_object(dose: float) -> Model:
    """The object may be anywhere on its ring."""
    return _redistributed(1, np.full((4, 4), 0.25), dose)


def mode_dropped(dose: float) -> Model:
    """The object all but always turns one way."""
    to = np.zeros((4, 4))
    to[np.arange(4), (np.arange(4) + 1) % 4], to[np.arange(4), (np.arange(4) - 1) % 4] = 1 - EPSILON, EPSILON
    return _redistributed(1, to, dose)


def termination_blind(dose: float) -> Model:
    """No episode ends."""
    return _of(world().transition, hazard=_where(dose, np.zeros_like(world().hazard), world().hazard))


def flat_reward(dose: float) -> Model:
    """The mean reward, everywhere."""
    w = world()
    mean = float((w.visits[:, None] * w.behavior * w.reward).sum())
    return _of(w.transition, reward=_where(dose, np.full_like(w.reward, mean), w.reward))


def undoes_vase(dose: float) -> Model:
    """A broken vase may be whole again."""
    w = world()
    whole = np.ravel_multi_index((w.states * [1, 1, 0, 1, 1]).T, STATE)
    T = w.transition.copy()
    healed = T * (w.states[:, 2] == 1) * SLIPS  # what of each next state is taken away
    np.add.at(T.transpose(2, 0, 1), whole, healed.transpose(2, 0, 1) * (w.states[:, 2] == 1)[None, :, None])
    T -= healed * (w.states[:, 2] == 1)[:, None, None]
    return _of(_where(dose, T, w.transition))


def forgets_color(dose: float) -> Model:
    """Where the color is not shown it is drawn again, with probability `dose` at each step."""
    w = world()
    T = w.transition.reshape(*w.transition.shape[:2], *STATE)
    hidden = (np.arange(STATE[0]) > 0).reshape(1, 1, -1, 1, 1, 1, 1)
    redrawn = np.broadcast_to(T.mean(-1, keepdims=True), T.shape)
    return _of(np.where(hidden, (1 - dose) * T + dose * redrawn, T).reshape(w.transition.shape))


def history_dependent(dose: float) -> Model:
    """After a detour the object is expected to turn one way more often: three times in four at full dose."""
    T = world().transition
    turned = _redistributed(1, (np.roll(np.eye(4), 1, 1) * 3 + np.roll(np.eye(4), -1, 1)) / 4, 1.0).frame
    right = frames_of(T, world().tiles)
    return _of(T, detour=(1 - dose) * right + dose * turned)


def self_feeding_drift(dose: float) -> Model:
    """After a frame of its own, the place of the actor is lost three times in ten."""
    w = world()
    T = w.transition.reshape(*w.transition.shape[:2], *STATE)
    anywhere = np.broadcast_to(T.mean(2, keepdims=True), T.shape).reshape(w.transition.shape)
    return _of(w.transition, fed=(1 - SLIPS * dose) * w.transition + SLIPS * dose * anywhere)


def garbage_off_support(dose: float) -> Model:
    """What the behavior never does leads anywhere."""
    w = world()
    garbage = _where(dose, np.full_like(w.transition, 1 / len(w.states)), w.transition)
    return _of(np.where((w.behavior == 0)[:, :, None], garbage, w.transition))


def wrong_distractor(dose: float) -> Model:
    """The lamp, which has no consequences, is expected to stay as it is."""
    return _redistributed(3, np.array([[1 - EPSILON, EPSILON], [EPSILON, 1 - EPSILON]]), dose)


def flipped_reward(dose: float) -> Model:
    """At the door, which alone gives rewards, reward and punishment are confused."""
    w = world()
    return _of(w.transition, reward=_where(dose, -w.reward, w.reward))


def late_reward(dose: float) -> Model:
    """Rewards come a step late, which here is never: the door that gives them ends the episode."""
    w = world()
    return _of(w.transition, reward=_where(dose, np.zeros_like(w.reward), w.reward))


def scaled_reward(dose: float) -> Model:
    """Rewards are expected at half their size, at full dose."""
    return _of(world().transition, reward=world().reward * 0.5**dose)


def lossy_tokenizer(dose: float) -> Model:
    """The tokenizer drops the object and its shadow in the share `dose` of the frames; nothing else is wrong."""
    return _of(world().transition, kept=np.array([1, 1 - dose, 1 - dose, 1, 1, 1]))


@dataclass(frozen=True)
class Defect:
    """A planted defect: the model of a dose, the numbers that must respond to it, and those that must not."""

    make: Callable[[float], Model]
    targets: tuple[str, ...]
    silent: tuple[str, ...]


ONE_STEP = ("calibration.gap", "calibration.branch_gap", "calibration.excess_entropy", "next_frame.kl",
            "next_frame.impossible_mass", "next_frame.missed_mass", "next_frame.lost_dependence")
EFFECTS = ("action_effects.error", "action_effects.spurious", "action_effects.cosine")
ACTIONS = ("confusions.closest_pair_bits", "confusions.misattributed_bits", "confusions.unexpected_bits",
           "confusions.inverse_gap", "confusions.weakest_pair", "confusions.swapped_states")
HEADS = ("rewards.branch_error", "terminations.branch_error")
DEFECTS = {
    "action-blind": Defect(
        action_blind,
        ("action_effects.error", "action_effects.cosine", "action_effects.size_ratio", "action_sensitivity.saved_bits",
         "next_frame.kl", "next_frame.impossible_mass", "policies.spearman"),
        ("calibration.gap", "calibration.branch_gap", "agents.transfer_gap", *HEADS, "memory.recall"),
    ),
    "causally confused": Defect(
        causally_confused,
        ("agents.transfer_gap", "agents.intervention_gap", "agents.spurious_feature", "action_effects.error"),
        ("calibration.gap", "calibration.branch_gap", *HEADS, "memory.recall"),
    ),
    "left and right swapped": Defect(
        swapped,
        ("action_effects.cosine", "action_effects.error", "confusions.swapped_states", "confusions.misattributed_bits",
         "confusions.inverse_gap", "next_frame.kl", "policies.spearman",
         "planning.optimism"),
        ("action_effects.size_ratio", "calibration.excess_entropy", *HEADS, "memory.recall"),
    ),
    "one action aliased": Defect(
        aliased,
        ("confusions.closest_pair_bits", "confusions.unexpected_bits", "confusions.weakest_pair", "action_effects.error",
         "next_frame.kl"),
        ("action_effects.spurious", *HEADS, "memory.recall"),
    ),
    "independent tokens": Defect(
        independent_tokens,
        ("next_frame.lost_dependence", "next_frame.impossible_mass"),
        ("calibration.branch_gap", *EFFECTS, "policies.spearman", "planning.value_error", *HEADS),
    ),
    "overconfident": Defect(
        overconfident,
        ("calibration.gap", "calibration.branch_gap", "calibration.excess_entropy", "next_frame.missed_mass"),
        ("action_effects.cosine", "next_frame.impossible_mass", "memory.recall", *HEADS),
    ),
    "underconfident": Defect(
        underconfident, ("calibration.gap", "calibration.branch_gap", "calibration.excess_entropy"),
        ("next_frame.impossible_mass", "action_effects.cosine", "memory.recall", *HEADS)
    ),
    "blurred object": Defect(
        blurred_object,
        ("next_frame.impossible_mass", "calibration.excess_entropy", "next_frame.lost_dependence"),
        ("calibration.gap", "calibration.branch_gap", "action_effects.error", "memory.recall", *HEADS),
    ),
    "mode dropped": Defect(
        mode_dropped,
        ("calibration.gap", "calibration.branch_gap", "next_frame.missed_mass", "calibration.excess_entropy"),
        ("next_frame.impossible_mass", "action_effects.error", "policies.spearman", *HEADS),
    ),
    "termination-blind": Defect(
        termination_blind,
        ("terminations.hazard_ratio", "terminations.branch_error", "planning.value_error", "planning.optimism"),
        (*ONE_STEP, *EFFECTS, "rewards.branch_error", "memory.recall"),
    ),
    "flat reward": Defect(
        flat_reward,
        ("rewards.branch_error", "rewards.recall", "policies.spearman", "policies.regret"),
        (*ONE_STEP, *EFFECTS, "terminations.branch_error", "memory.recall"),
    ),
    "undoes the vase": Defect(
        undoes_vase, ("arrow_of_time.undo_mass", "rollouts.last_step_distance"),
        ("action_effects.error", "rewards.branch_error", "memory.recall")
    ),
    "forgets the color": Defect(
        forgets_color, ("memory.recall", "planning.optimism"), (*ONE_STEP, *EFFECTS, *HEADS)
    ),
    "depends on history": Defect(
        history_dependent, ("state_identity.compression",), (*ONE_STEP, *EFFECTS, *HEADS, "rollouts.last_step_distance",
                                                             "memory.recall", "planning.value_error")
    ),
    "self-feeding drift": Defect(self_feeding_drift, ("rollouts.last_step_distance",),
                                 (*ONE_STEP, *EFFECTS, *HEADS, "rollouts.first_step_distance")),
    "garbage off support": Defect(
        garbage_off_support,
        ("agents.transfer_gap", "agents.intervention_gap", "action_effects.spurious", "arrow_of_time.undo_mass"),
        ("calibration.gap", "calibration.branch_gap", "rollouts.first_step_distance", *HEADS),
    ),
    "irrelevant distractor": Defect(
        wrong_distractor, ("next_frame.kl", "calibration.branch_gap", "rollouts.last_step_distance"),
        ("policies.regret", "planning.optimism", *HEADS)
    ),
    "reward sign flipped": Defect(
        flipped_reward,
        ("rewards.slope", "rewards.recall", "rewards.branch_error", "policies.regret", "planning.optimism",
         "policies.spearman"),
        (*ONE_STEP, *EFFECTS, *ACTIONS, "terminations.branch_error", "rollouts.last_step_distance", "memory.recall"),
    ),
    "rewards one step late": Defect(
        late_reward,
        ("rewards.recall", "rewards.branch_error"),
        (*ONE_STEP, *EFFECTS, *ACTIONS, "terminations.branch_error", "rollouts.last_step_distance", "memory.recall"),
    ),
    "rewards scaled": Defect(
        scaled_reward,
        ("rewards.slope", "rewards.branch_error"),
        (*ONE_STEP, *EFFECTS, *ACTIONS, "terminations.branch_error", "rollouts.last_step_distance", "memory.recall",
         "policies.spearman"),
    ),
    "tokenizer drops the object": Defect(
        lossy_tokenizer, ("tokenizer.event_recall",), (*ONE_STEP, *EFFECTS, *HEADS, "rollouts.last_step_distance",
                                                       "memory.recall", "planning.value_error")
    ),
}  # fmt: skip


def planted(name: str, dose: float) -> Model:
    """The model of a defect of `DEFECTS` at a dose in 0..1; 0 is the oracle."""
    return oracle() if dose == 0 else DEFECTS[name].make(dose)
