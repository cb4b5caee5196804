"""The exact world, and the evaluation evaluated on it: every planted defect is seen by what should see it, and by no other."""

import math

import numpy as np
import pytest
import torch

from tokenworld.action_space import Actions
from tokenworld.cli import main as cli
from tokenworld.envs import known_world
from tokenworld.envs.known_world import DOOR, LEFT, RIGHT, STAY, TILES, USE, World
from tokenworld.evaluation.probes import branches, histories
from tokenworld.evaluation.probes.menu import Menu
from tokenworld.evaluation.report import findings
from tokenworld.evaluation.simulators.lookup import simulator_of
from tokenworld.evaluation.simulators.tabular import Tabular
from tokenworld.evaluation.tiers import tier_b
from tokenworld.interfaces import Steps
from tokenworld.studies.known_world import numbers as known_numbers
from tokenworld.studies.known_world import planted, response, tables
from tokenworld.studies.known_world.planted import DEFECTS, oracle, world
from tokenworld.tokenizers.nearest import NearestPatches
from tokenworld.training.resume import open_run

COVERED = response.FAMILIES

# ------------------------------------------------------------------------------------------------------------- the world


def test_its_rules_by_hand():
    w = World()
    at = w.index(0, 3, 0, 0, 1)
    assert dict(_to(w, at, RIGHT)) == pytest.approx(
        {(1, o, 0, lit, 1): 0.8 * 0.25 for o in (2, 0) for lit in (0, 1)}
        | {(0, o, 0, lit, 1): 0.2 * 0.25 for o in (2, 0) for lit in (0, 1)}
    )
    assert {s[0] for s, _ in _to(w, at, LEFT)} == {0}  # a wall
    cracked = sum(p for s, p in _to(w, w.index(2, 0, 0, 0, 0), USE) if s[2] == 1)
    assert cracked == pytest.approx(0.5)
    broken = w.index(2, 0, 1, 0, 0)
    assert all(s[2] == 1 for a in range(4) for s, _ in _to(w, broken, a))  # it stays broken
    places = [(DOOR, 0, 0, 0, 1), (DOOR, 0, 0, 0, 0), (3, 0, 0, 0, 1)]
    assert [w.reward[w.index(*place), a] for place in places for a in (STAY, USE)] == [0, 1, 0, -1, 0, 0]
    assert w.hazard[w.index(DOOR, 0, 0, 0, 1), USE] == 1 and w.hazard[w.index(3, 1, 1, 1, 1), STAY] == 0.15
    assert np.allclose(w.transition.sum(-1), 1) and w.start.sum() == pytest.approx(1)
    listed = w.kernel(at, RIGHT)
    assert sum(p for p, *_ in listed) == pytest.approx(1) and sum(p for p, *_, end in listed if end) == pytest.approx(0.01)
    assert sum(p for p, _ in w.starts()) == pytest.approx(1)


def _to(w, state, action):
    row = w.transition[state, action]
    return [(tuple(w.states[s].tolist()), row[s]) for s in np.flatnonzero(row)]


def test_frames_show_the_tiles_and_nothing_else():
    """As many pictures as frames of tiles; object and shadow alike; the colour in the leftmost cell only."""
    w = World()
    pictures = {w.render(s).tobytes(): w.tiles[s].tolist() for s in range(len(w.states))}
    assert len(pictures) == len({tuple(t) for t in w.tiles.tolist()}) == 96
    assert w.render(0).shape == (3, 16, 24) and w.render(0).dtype == np.uint8
    assert (w.tiles[:, 1] == w.tiles[:, 2]).all() and ((w.tiles[:, 5] > 0) == (w.states[:, 0] == 0)).all()


def test_the_vector_environment_follows_the_kernel():
    """Frequencies of what follows one state and action, of rewards and of ends, against their probabilities."""
    env = known_world.make(num_envs=4000, max_steps=5)
    w, obs = env.world, env.reset(seed=0)[0]
    numbers = {picture.tobytes(): i for i, picture in enumerate(w.pictures)}  # the colour is hidden off the first cell
    assert all(w.start[numbers[o.tobytes()]] > 0 for o in obs)
    good = (w.states[env._state, 4] == 1).mean()
    assert abs(good - 0.65) < 4 * np.sqrt(0.65 * 0.35 / 4000)
    before = env._state.copy()
    obs, reward, terminated, truncated, _ = env.step(np.full(4000, RIGHT))
    expected = w.transition[before, RIGHT].sum(0)
    seen = np.bincount(env._state, minlength=len(w.states))
    assert (np.abs(seen - expected) <= 4.5 * np.sqrt(np.maximum(expected, 1))).all()
    assert abs(terminated.mean() - 0.01) < 0.007 and not truncated.any() and not reward.any()
    for _ in range(4):
        *_, terminated, truncated, _ = env.step(np.full(4000, STAY))
    assert (terminated | truncated).mean() > 0.9  # of five steps, but for those that began anew


def test_visits_are_those_of_play():
    w = world()
    rows = tables.transitions(w.play(w.behavior, np.random.default_rng(0), 4000))
    seen = np.bincount(rows["state"], minlength=len(w.visits)) / len(rows["state"])
    assert np.abs(seen - w.visits).max() < 0.004
    taken = np.bincount(rows["action"], minlength=4) / len(rows["action"])
    assert np.abs(taken - w.visits @ w.behavior).max() < 0.006


def test_a_real_tokenizer_has_a_code_for_every_tile():
    w = World()
    tokenizer = NearestPatches(frame_shape=(3, 16, 24), patch=8, vocab_size=32).train()
    obs = torch.from_numpy(w.pictures).unsqueeze(0)
    zero, false = torch.zeros(obs.shape[:2]), torch.zeros(obs.shape[:2], dtype=torch.bool)
    steps = Steps(obs, zero.long(), zero, false, false, false, ~false, ~false)
    tokenizer.loss(steps)
    codes = tokenizer.eval().encode(steps).indices[0].numpy()  # (S, 6)
    for k in range(6):
        assert len({(int(a), int(b)) for a, b in zip(codes[:, k], w.tiles[:, k], strict=True)}) == TILES[k]


def test_bad_settings_are_refused():
    for settings in (dict(id="KnownWorld"), dict(max_steps=0), dict(num_envs=0)):
        with pytest.raises(known_world.UserError):
            known_world.make(**settings)


# ----------------------------------------------------------------------------------------------------------- the records


@pytest.mark.parametrize("name", DEFECTS)
def test_planted_models_are_probabilities(name):
    for dose in (0.0, 0.25, 1.0):
        model = planted.planted(name, dose)
        for p in (model.transition, model.fed):
            assert p.min() >= 0 and np.allclose(p.sum(-1), 1)
        for p in (model.frame, model.detour):
            assert p.min() >= 0 and np.allclose(p.reshape(*p.shape[:2], -1).sum(-1), 1)
        assert ((model.hazard >= 0) & (model.hazard <= 1)).all()
        changed = any(not np.array_equal(a, b) for a, b in zip(vars(model).values(), vars(oracle()).values(), strict=True))
        assert changed == (dose > 0)


def test_bits_of_tiles_add_up_to_those_of_the_frame():
    w, model = world(), planted.planted("underconfident", 1.0)
    rows = tables.transitions(w.play(w.behavior, np.random.default_rng(1), 20))
    seen = tables.scored(model, rows)
    whole = model.frame[(rows["state"], rows["action"], *w.tiles[rows["after"]].T)]
    assert np.allclose(seen.bits.sum(1), -np.log2(whole))
    assert np.allclose(seen.bits_by_action[np.arange(len(whole)), rows["action"]], -np.log2(whole))


@pytest.mark.parametrize("name, dose", [("overconfident", 0.5), ("action-blind", 0.5), ("flat reward", 0.5)])
def test_expectations_are_what_large_samples_show(name, dose):
    """Every number that has an interval, within four of its half-widths of its expectation, from 500 episodes."""
    model = planted.planted(name, dose)
    exact, found = known_numbers.exact(model), known_numbers.sampled(model, 500, seed=1)
    compared = 0
    for metric in found:
        if metric.ci is None or metric.id not in exact or metric.id.split(".")[0] not in (*COVERED, "rollouts"):
            continue
        half = (metric.ci[1] - metric.ci[0]) / 2
        assert abs(metric.value - exact[metric.id]) <= 2 * half + 2e-3, metric.id
        compared += 1
    assert compared >= 20


def test_sequential_entropy_of_independent_tiles_is_the_joint_one():
    model = planted.planted("independent tokens", 1.0)
    flat = model.frame.reshape(-1, *TILES)[:50]
    joint = -np.sum(flat * np.log2(np.where(flat > 0, flat, 1)), axis=tuple(range(1, 7)))
    assert np.allclose(known_numbers.sequential_entropy(flat, flat), joint)


def test_what_few_episodes_show_of_a_tokenizer_is_underpowered():
    few, enough = (known_numbers.tokenizer_metrics(oracle(), episodes, seed=0) for episodes in (5, 12))
    assert {m.status for m in few} == {"underpowered"} and {m.status for m in enough} == {"ok"}


def test_values_are_those_of_played_returns():
    model, rng = planted.planted("forgets the color", 0.5), np.random.default_rng(0)
    for policy in (tables.policies()["door, 10% random"], tables.planned(model)):
        drawn = tables.returns(model, policy, 20_000, rng)
        exact = world().start @ tables.values(model, policy)
        assert drawn.mean() == pytest.approx(exact, abs=4 * drawn.std() / np.sqrt(20_000))


def test_plans_are_best_in_their_model():
    for name in ("forgets the color", "left and right swapped"):
        model = planted.planted(name, 1.0)
        best = world().start @ tables.values(model, tables.planned(model))
        assert all(best >= world().start @ tables.values(model, policy) - 1e-9 for policy in tables.policies().values())


# ------------------------------------------------------------------------------------------------------ what they respond to


@pytest.fixture(scope="module")
def numbers():
    return response.matrix()


def test_claims_hold_but_for_the_listed_exceptions(numbers):
    """Targets respond, in every dose no less than in a smaller one, and silent numbers stay silent."""
    found = response.claims(numbers)
    assert len(found) > 200 and {claim.defect for claim in found} == set(DEFECTS)
    failing = {(claim.defect, claim.metric, claim.kind) for claim in found if not claim.holds}
    assert failing == set(response.EXCEPTIONS)


def test_every_defect_has_its_own_signature(numbers):
    assert len(set(response.signatures(numbers).values())) == len(DEFECTS) == 21


def test_the_truth_is_faultless(numbers):
    truth = numbers["", 0.0]
    zero = ("code_length.excess_bits", "calibration.gap", "calibration.excess_entropy", "next_frame.kl",
            "next_frame.impossible_mass", "next_frame.missed_mass", "next_frame.lost_dependence",
            "rollouts.first_step_distance", "rollouts.last_step_distance",
            "action_effects.error", "action_effects.spurious", "agents.intervention_gap", "agents.transfer_gap",
            "state_identity.compression", "arrow_of_time.undo_mass", "planning.value_error",
            "planning.optimism", "planning.regret")  # fmt: skip
    assert all(abs(truth[id]) < 1e-9 for id in zero)
    assert all(truth[id] == pytest.approx(1) for id in ("tokenizer.event_recall", "terminations.hazard_ratio",
                                                        "action_effects.cosine", "memory.recall"))


def test_the_identity_of_divergence(numbers):
    """KL = calibration gap + excess entropy, for every model."""
    for found in numbers.values():
        assert found["next_frame.kl"] == pytest.approx(found["calibration.branch_gap"] + found["calibration.excess_entropy"],
                                                       abs=1e-9)


def test_some_defects_leave_the_next_frame_alone(numbers):
    """Ten of twenty-one cannot be seen in one-step code length, which is why there are other numbers."""
    blind = {name for name in DEFECTS if abs(numbers[name, 1.0]["next_frame.kl"]) < 1e-9}
    assert blind == {"termination-blind", "flat reward", "forgets the color", "depends on history", "self-feeding drift",
                     "reward sign flipped", "rewards one step late", "rewards scaled", "tokenizer drops the object",
                     "garbage off support"}  # fmt: skip


def test_silence_on_sampled_data(numbers):
    loud = [(name, metric) for name, metric, *_, silent in response.heard(numbers) if not silent]
    assert set(loud) <= {(name, metric) for name, metric, kind in response.EXCEPTIONS if kind == "silent"}


def test_few_false_alarms(numbers):
    """20 samples of the truth: of a number whose intervals miss in 7 % more than 6 misses come once in 5,000 times."""
    counts = response.false_alarms(numbers, seeds=20)
    assert len(counts) > 30 and max(counts.values()) <= 6, counts


FOUND = {  # in all of twenty samples (docs/response_matrix.md)
    "action-blind": ("action_effects.error", "action_effects.cosine", "action_effects.size_ratio",
                     "action_sensitivity.saved_bits", "next_frame.kl", "next_frame.impossible_mass"),
    "causally confused": ("agents.transfer_gap", "agents.intervention_gap", "agents.spurious_feature", "action_effects.error"),
    "left and right swapped": ("action_effects.cosine", "action_effects.error", "next_frame.kl"),
    "independent tokens": ("next_frame.lost_dependence", "next_frame.impossible_mass"),
    "overconfident": ("calibration.gap", "calibration.branch_gap", "calibration.excess_entropy"),
    "underconfident": ("calibration.gap", "calibration.branch_gap", "calibration.excess_entropy"),
    "blurred object": ("next_frame.impossible_mass", "calibration.excess_entropy", "next_frame.lost_dependence"),
    "mode dropped": ("calibration.gap", "calibration.branch_gap", "next_frame.missed_mass", "calibration.excess_entropy"),
    "termination-blind": ("terminations.branch_error", "planning.optimism"),
    "flat reward": ("rewards.branch_error", "rewards.recall"),
    "forgets the color": ("memory.recall",),
    "depends on history": ("state_identity.compression",),
    "garbage off support": ("agents.transfer_gap", "agents.intervention_gap", "action_effects.spurious"),
    "irrelevant distractor": ("next_frame.kl", "calibration.branch_gap"),
    "one action aliased": ("confusions.unexpected_bits", "action_effects.error", "next_frame.kl"),
    "reward sign flipped": ("rewards.branch_error",),
    "rewards one step late": ("rewards.branch_error", "rewards.recall"),
    "rewards scaled": ("rewards.branch_error", "rewards.slope"),
    "tokenizer drops the object": ("tokenizer.event_recall",),
}  # fmt: skip


def test_a_small_dose_is_found(numbers):
    """One sample of 1,000 frames each: what is always found."""
    found = response.power(numbers, seeds=1)
    missed = [(name, id) for name, ids in FOUND.items() for id in ids if not found[name, id]]
    assert set(FOUND) >= set(DEFECTS) - {"undoes the vase", "self-feeding drift"} and not missed



SAID = {
    "action-blind": {"ACTION_BLIND", "ACTIONS_WITHOUT_EFFECT", "IMPOSSIBLE_FRAMES"},
    "causally confused": {"CAUSALLY_CONFUSED", "READS_WHAT_HAS_NO_EFFECT"},
    "left and right swapped": {"ACTION_SWAP", "RANKS_POLICIES_WRONGLY"},
    "independent tokens": {"INCOHERENT_CODES"},
    "overconfident": {"OVERCONFIDENT"},
    "underconfident": {"UNDERCONFIDENT"},
    "blurred object": {"AVERAGING"},
    "mode dropped": {"MODE_DROPPING"},
    "termination-blind": {"ENDS_TOO_RARE", "BLIND_TO_ENDS", "OPTIMISTIC"},
    "flat reward": {"MISSES_REWARDS", "WRONG_REWARDS", "PLANS_ASTRAY"},
    "undoes the vase": {"UNDOES"},
    "forgets the color": {"FORGETS"},
    "depends on history": {"HISTORY_DEPENDENT"},
    "garbage off support": {"UNRELIABLE_OFF_SUPPORT", "SPURIOUS_EFFECTS"},
    "irrelevant distractor": {"READS_WHAT_HAS_NO_EFFECT", "MISSES_OUTCOMES"},
    "one action aliased": {"ALIASED_ACTIONS", "PAIR_TOO_ALIKE"},
    "reward sign flipped": {"REWARDS_OF_THE_WRONG_SIGN", "WRONG_REWARDS", "PLANS_ASTRAY", "OPTIMISTIC"},
    "rewards one step late": {"MISSES_REWARDS", "PLANS_ASTRAY"},
    "rewards scaled": {"REWARDS_TOO_SMALL", "PESSIMISTIC"},
    "tokenizer drops the object": {"TOKENIZER_LOSES_EVENTS"},
    "self-feeding drift": set(),  # its dreams stay nearer to reality than half of what a standing frame is off
}


@pytest.mark.parametrize("name", ["", *DEFECTS])
def test_the_verdict_names_the_defect(name):
    """What is established of each at full dose, on 100 sampled episodes; of the truth nothing is."""
    model = planted.planted(name, 1.0) if name else oracle()
    found = findings.findings(known_numbers.sampled(model, 100, seed=0, policies=True))
    codes = {finding["code"] for finding in found if finding["established"]}
    assert codes >= SAID[name] if name else not codes


def test_actions_swapped_in_half_of_the_states_are_named():
    """Not all actions are confused, and none is taken for another everywhere."""
    found = findings.findings(known_numbers.sampled(planted.planted("left and right swapped", 0.5), 100, seed=0))
    codes = {finding["code"] for finding in found if finding["established"]}
    assert {"ACTIONS_SWAPPED_IN_SOME_STATES", "TAKES_ACTIONS_FOR_OTHERS"} <= codes
    assert not {"ACTION_SWAP", "ALIASED_ACTIONS"} & codes


@pytest.mark.slow
def test_false_alarms_at_full_size(numbers):
    counts = response.false_alarms(numbers, seeds=200)
    assert max(counts.values()) <= 19, counts


@pytest.mark.slow
@pytest.mark.parametrize("name, dose", response.COVERED)
def test_intervals_cover(name, dose):
    """The families of COVERED, 500 samples of 60 episodes: 92 to 98 %, but for numbers that are the same in every sample.
    The worst of several actions has a wider interval, which may hold more."""
    covered = response.coverage(name, dose)
    checked = {id: share for id, share in covered.items() if id.split(".")[0] in COVERED and share < 1}
    worst = ("confusions.closest_pair_bits", "confusions.misattributed_bits", "confusions.unexpected_bits",
             "confusions.weakest_pair")
    assert checked and all(0.92 <= share <= (1 if id in worst else 0.98) for id, share in checked.items()), checked


# ------------------------------------------------------------------------------------------------------- as a simulator


def test_the_tabular_simulator_follows_the_kernel():
    w = World()
    simulator = Tabular(w)
    simulator.reset(3)
    here = simulator.snapshot()
    listed = simulator.branches(here, RIGHT)
    assert sum(p for p, *_ in listed) == pytest.approx(1) and simulator.exact and simulator.actions == 4
    seen: dict[tuple[bytes, bool], float] = {}
    for p, obs, _, end in listed:
        seen[obs.tobytes(), end] = seen.get((obs.tobytes(), end), 0.0) + p
    drawn: dict[tuple[bytes, bool], int] = {}
    for k in range(4000):
        simulator.restore(here)
        simulator.reseed(k)
        obs, _, end = simulator.step(RIGHT)
        drawn[obs.tobytes(), end] = drawn.get((obs.tobytes(), end), 0) + 1
    assert set(drawn) <= set(seen)
    assert all(abs(drawn.get(key, 0) / 4000 - p) < 4.5 * np.sqrt(p * (1 - p) / 4000) + 1e-3 for key, p in seen.items())


def test_a_restored_simulator_goes_on_as_the_original():
    simulator, seen = Tabular(World()), []
    simulator.reset(0)
    here = simulator.snapshot()
    for _ in range(2):
        simulator.restore(here)
        seen.append([(obs.tobytes(), r, end) for obs, r, end in (simulator.step(a) for a in (RIGHT, STAY, RIGHT, USE) * 5)])
        simulator.reset(7)
    assert seen[0] == seen[1]


def test_histories_that_meet():
    """Two ways into one state, each a true history: its frames are those that its actions bring."""
    simulator, met = Tabular(World()), 0
    for place in branches.branch_states(simulator, 20, 3, math.inf):
        found = histories._meeting(simulator, place, 6, Menu(Actions((simulator.actions,))))
        if found is None:
            continue
        one, two = found
        met += 1
        assert one.hash == two.hash and (one.obs.tobytes(), one.action.tobytes()) != (two.obs.tobytes(), two.action.tobytes())
        for history in found:
            assert np.array_equal(history.obs[-1], simulator.world.render(history.hash))
            assert len(history.action) == len(history.obs) - 1 <= 5
            simulator.restore(place.snapshot)
            simulator.reseed(0)
            seen = [simulator.step(int(a))[0] for a in history.action[-3:]]
            assert np.array_equal(np.stack(seen), history.obs[-3:])
    assert met >= 10


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Real tokens and dynamics, learnt from rendered frames of random play: a quarter of a minute."""
    out = tmp_path_factory.mktemp("known") / "run"
    words = ["recipe=known_world", "train.loop.epochs=2", "train.policy.start=9", "train.dynamics.updates=300", "seed=0"]
    assert cli.main(["train", *words, "backbone.context=4", "train.dynamics.length=6", f"out={out}", "device=cpu"]) == 0
    return out


def test_a_trained_model_approaches_the_kernel_and_a_wrong_one_is_caught(trained, tmp_path):
    """Against the exact branches: a model that learnt is near the truth; the same one under swapped actions is named."""
    run = open_run(str(trained), {"device": "cpu"})
    simulator = simulator_of(run.config["env"])
    metrics, pictures = tier_b(run.world_model, simulator, states=60, budget=120.0)
    right = {metric.id: metric for metric in metrics}
    remembered = dict(zip(pictures["memory"]["delay"], pictures["memory"]["accuracy"], strict=True))
    assert remembered[2] > 0.65 and 0.3 < remembered[10] < 0.7  # its context holds four frames, and it learnt for seconds
    assert right["state_identity.compression"].ci[0] < 0.02 and right["state_identity.distinction_auc"].ci[0] > 0.9
    assert right["arrow_of_time.undo_mass"].ci[1] < 0.05 and right["arrow_of_time.undo_mass"].n_samples >= 40
    assert right["next_frame.kl"].ci[1] < 0.5 and right["next_frame.impossible_mass"].ci[1] < 0.1
    assert right["action_effects.cosine"].ci[0] > 0.9
    embedding = next(run.world_model.decoding.action.parameters()).data  # (A, D)
    embedding[[LEFT, RIGHT]] = embedding[[RIGHT, LEFT]].clone()
    metrics, _ = tier_b(run.world_model, simulator, states=60, budget=120.0)
    wrong = {metric.id: metric for metric in metrics}
    assert wrong["next_frame.kl"].ci[0] > right["next_frame.kl"].ci[1] + 1 and wrong["action_effects.cosine"].ci[1] < 0.3
    codes = {finding["code"] for finding in findings.findings(metrics) if finding["established"]}
    assert "ACTION_SWAP" in codes
