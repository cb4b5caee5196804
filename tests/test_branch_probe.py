"""Tier B: what a model says at branches, against brute force over all frames of a tiny one; simulators."""

import itertools
import json
import math
import re
import time

import gymnasium
import numpy as np
import pytest
import torch

from tokenworld.cli import main as cli
from tokenworld.envs.checked import make_checked
from tokenworld.errors import UserError
from tokenworld.evaluation.probes import branches, filmstrips
from tokenworld.evaluation.report import compare
from tokenworld.evaluation.simulators import replayed
from tokenworld.evaluation.simulators.interface import Branchable
from tokenworld.evaluation.simulators.lookup import simulator_of
from tokenworld.evaluation.simulators.minatar import MinAtar
from tokenworld.evaluation.statistics import divergences
from tokenworld.interfaces import Codes
from tokenworld.world_model import WorldModel, frames_as_steps

V, K, A = 3, 4, 3


def tiny(decoding="parallel.Parallel"):
    torch.manual_seed(0)
    model = WorldModel.from_recipe(
        "quickstart", "~decoding", f"decoding={{_target_: tokenworld.decoding.{decoding}}}", "backbone.dim=16",
        "backbone.layers=2", "backbone.context=2",
        f"tokenizer.vocab_size={V}", "tokenizer.patch=5", frame=(4, 10, 10), actions=A,
    ).eval()  # fmt: skip
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return model


class Dial:
    """Three frames that differ in a corner; an action a shows frame a with probability 3/4, else frame 0."""

    exact, actions = True, A

    def __init__(self):
        self.at = 0

    def obs(self, at):
        frame = np.zeros((4, 10, 10), np.uint8)
        frame[at] = 255
        return frame

    def reset(self, seed):
        self.at, self.rng = 0, np.random.default_rng(seed)
        return self.obs(0)

    def step(self, a):
        self.at = a if self.rng.random() < 0.75 else 0
        return self.obs(self.at), float(a == 2), False

    def snapshot(self):
        return self.at

    def restore(self, x):
        self.at = x
        return self.obs(x)

    def reseed(self, k):
        self.rng = np.random.default_rng(k)

    def state_hash(self):
        return self.at

    def branches(self, x, a):
        return [(0.75, self.obs(a), float(a == 2), False), (0.25, self.obs(0), float(a == 2), False)]


def by_frame(steps):
    """Codes 0 for frame 0 and 1 for the others."""
    first = (steps.obs.flatten(2).float().argmax(-1) // 100)[..., None]
    return Codes(first.repeat(1, 1, K).clamp(max=1))


@pytest.mark.parametrize("decoding", ["parallel.Parallel", "autoregressive.Autoregressive"])
def test_what_the_model_says_is_what_it_would_draw(decoding, monkeypatch):
    model = tiny(decoding)
    place = branches.branch_states(Dial(), 1, 2, math.inf)[0]
    state = branches.read_state(model, place, torch.device("cpu"))
    frames = torch.tensor(list(itertools.product(range(V), repeat=K)))  # all of them
    exact = {}
    for a in range(A):
        bits = branches.score_frames(model, state, torch.full((len(frames),), a), frames)
        exact[a] = np.exp2(-bits)
        assert exact[a].sum() == pytest.approx(1, abs=1e-4)
    assert abs(exact[0] - exact[1]).max() > 1e-3
    monkeypatch.setattr(branches, "DRAWS", 256)
    own = branches.own_distribution(model, state, torch.arange(A), key=0)
    for a in range(A):
        entropy = -(exact[a] * np.log2(exact[a])).sum()
        assert own["entropy"][a] == pytest.approx(entropy, abs=0.1)
        for k in range(K):
            marginal = [exact[a][(frames[:, k] == v).numpy()].sum() for v in range(V)]
            assert own["mean"][a, k] == pytest.approx(marginal, abs=0.05)


def test_branches_that_tokenise_alike_are_one():
    model, dial = tiny(), Dial()
    model.tokenizer.encode = by_frame
    places = branches.branch_states(dial, 12, 2, math.inf)
    found = branches.branches(model, dial, places, math.inf)
    assert found.exact and found.p.shape[:2] == (12, A) and found.p.sum(-1) == pytest.approx(np.ones((12, A)))
    assert (found.p[:, 0] == [1, 0][: found.p.shape[2]]).all()  # both branches of action 0 show frame 0
    assert found.p[:, 1].max(-1) == pytest.approx(0.75 * np.ones(12))
    assert (found.p[:, 2] > 0).sum(-1).max() == 2 and (found.reward[:, 2][found.p[:, 2] > 0] == 1).all()
    q = np.where(found.p > 0, np.exp2(-found.bits), 0).sum(-1)
    assert (q <= 1 + 1e-6).all() and (found.marginal_p.sum(-1) <= 1 + 1e-9).all()
    assert len(np.unique(found.cluster)) == 3  # four states of an episode


def test_branches_that_tokenise_alike_share_reward_and_end():
    """Of action 0 three quarters reward and end, which no frame shows; of action 1 the rarer frame does."""

    class Secret(Dial):
        def branches(self, x, a):
            often, rare = (0.75, self.obs(a), float(a == 0), a == 0), (0.25, self.obs(0), float(a == 1), a == 1)
            return [often, rare]

    model, dial = tiny(), Secret()
    model.tokenizer.encode = by_frame
    found = branches.branches(model, dial, branches.branch_states(dial, 4, 2, math.inf), math.inf)
    for s in range(4):
        for a, expected in ((0, [(1.0, 0.75)]), (1, [(0.25, 1.0), (0.75, 0.0)]), (2, [(0.25, 0.0), (0.75, 0.0)])):
            used = found.p[s, a] > 0
            for told in (found.reward, found.terminated):
                pairs = sorted(zip(found.p[s, a][used], told[s, a][used], strict=True))
                assert np.array(pairs) == pytest.approx(np.array(expected))


def test_filmstrips_show_the_worst_states_frame_by_frame():
    model, dial = tiny(), Dial()
    places = branches.branch_states(dial, 12, 2, math.inf)
    found = branches.branches(model, dial, places, math.inf)
    films, divergence = filmstrips.worst(model, dial, places, found, ("a", "b", "c")), divergences.kl(found)
    assert [film.kl for film in films] == pytest.approx(sorted(divergence.max(1), reverse=True)[:8])
    for film in films:
        for frame, p, q in zip(film.frames, film.p, film.q, strict=True):
            codes = model.encode(frames_as_steps(torch.from_numpy(frame)[None])).indices[0, 0].numpy()
            s, a = next((s, a) for s, a in np.argwhere(np.isclose(divergence, film.kl)) if "abc"[a] == film.words[-1])
            j = np.flatnonzero((found.codes[s, a] == codes).all(1) & (found.p[s, a] > 0))[0]
            assert p == found.p[s, a, j] and q == pytest.approx(np.exp2(-found.bits[s, a, j]))
        assert film.samples.shape == (4, 4, 10, 10) and film.context.shape == (2, 4, 10, 10)
    assert filmstrips.worst(model, dial, places, found, deadline=time.monotonic() - 1) == []


def test_the_budget_ends_between_places():
    model, dial = tiny(), Dial()
    places = branches.branch_states(dial, 8, 2, math.inf)
    assert len(branches.branches(model, dial, places, time.monotonic() - 1).p) == 1
    assert len(branches.rollouts(model, dial, places, steps=3, each=2, deadline=time.monotonic() - 1).real) == 1
    assert branches.branch_states(dial, 8, 2, time.monotonic() - 1) == []


def test_rollouts_share_actions_and_real_ones_differ_by_chance_only():
    places = branches.branch_states(Dial(), 4, 2, math.inf)
    rolled = branches.rollouts(tiny(), Dial(), places, steps=5, each=6, deadline=math.inf)
    assert rolled.real.shape == rolled.second.shape == rolled.model.shape == (4, 6, 5, 400)
    assert rolled.alive_real.all() and rolled.alive_model.shape == (4, 6, 5) and rolled.alive_model[:, :, 0].all()
    assert np.ptp(rolled.real, axis=1).max() > 0 and not np.array_equal(rolled.real, rolled.second)


# ----------------------------------------------------------------------------------------------------------- simulators


def test_a_simulator_that_forgets_is_refused():
    class Leaky(MinAtar):
        """Keeps the action that a sticky step repeats outside its snapshot."""

        def restore(self, x):
            last = self.game.last_action
            obs = super().restore(x)
            self.game.last_action = last
            return obs

    with pytest.raises(UserError, match="cannot be branched"):
        Leaky(id="MinAtar/Breakout-v1", sticky=0.9)
    with pytest.raises(UserError, match="env._target_=tokenworld.envs.atari.make"):
        simulator_of({"_target_": "tokenworld.envs.gym.make", "id": "ALE/Pong-v5"})


def test_the_simulator_of_an_atari_recipe_lists_its_branches():
    env = {"_target_": "tokenworld.envs.atari.make", "id": "ALE/Breakout-v5", "sticky": 0.25, "max_steps": 100}
    simulator = simulator_of(env)
    place = branches.branch_states(simulator, 1, 2, math.inf)[0]
    listed = simulator.branches(place.snapshot, 1)
    assert simulator.exact and 1 <= len(listed) <= 5 and sum(p for p, *_ in listed) == pytest.approx(1)


def test_evaluate_at_branches(tmp_path):
    assert cli.main(["train", "overlay=debug", "device=cpu", f"out={tmp_path / 'run'}", "train.collect.held_out=3"]) == 0
    assert cli.main(["evaluate", str(tmp_path / "run"), "tier=B", "states=12", "frames=50", f"out={tmp_path / 'report'}"]) == 0
    told = json.loads((tmp_path / "report" / "report.json").read_text())
    found = {metric["id"]: metric for metric in told["metrics"]}
    assert told["capabilities"]["B"] == "branches of the simulator, drawn"
    for name in ("calibration.excess_entropy", "next_frame.kl", "next_frame.impossible_mass", "action_effects.error",
                 "rewards.branch_error", "rollouts.distance", "proxies.c2st@1"):
        assert found[name]["value"] is not None and found[name]["tier"] == "B", found[name]
    assert found["next_frame.kl"]["value"] == pytest.approx(found["calibration.branch_gap"]["value"]
                                                            + found["calibration.excess_entropy"]["value"], abs=1e-6)
    with np.load(tmp_path / "report" / "states.npz") as rows:
        shared = {name.removesuffix("/state") for name in rows.files if name.endswith("/state")}
        assert {"next_frame.kl", "calibration.excess_entropy", "rewards.branch_error", "action_effects.spurious",
                "next_frame.energy_distance", "action_sensitivity.saved_bits"} <= shared
        assert all(len(rows[f"{name}/state"]) == len(rows[name]) for name in shared) and len(rows["next_frame.kl/state"]) == 12
    assert found["proxies.self_consistency"]["value"] is not None and found["arrow_of_time.auc_gap"]["tier"] == "B"
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count('class="branching"') == 8 and len(page) < 5_000_000
    assert "Calibration plane" in page and "What pairs of actions do in the world" in page
    assert re.search(r"Actions: 0 \w+, 1 \w+", page), "the names of the actions"


def test_branch_states_are_compared_one_by_one(tmp_path):
    """Two evaluations branch the same states: the difference of a model to itself is 0, paired, also where actions differ."""
    run = tmp_path / "run"
    assert cli.main(["train", "overlay=debug", "device=cpu", f"out={run}", "train.collect.held_out=3"]) == 0
    for name in ("a", "b"):
        assert cli.main(["evaluate", str(run), "tier=B", "states=12", "frames=50", f"out={tmp_path / name}"]) == 0
    rows = {row.metric: row for row in compare.compare(tmp_path / "a", tmp_path / "b").rows}
    for id in ("calibration.branch_gap", "calibration.excess_entropy", "next_frame.kl", "next_frame.missed_mass",
               "terminations.branch_error", "action_sensitivity.saved_bits", "action_effects.spurious"):
        assert "unpaired" not in rows[id].note and rows[id].difference == 0, rows[id]


# ------------------------------------------------------------------------------------------------------- played again


class Roll(gymnasium.Env):
    """A die: its eyes are the picture; action 1 adds one. `outside` rolls it with numbers that no seed repeats."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 4), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, outside=False):
        self.outside = np.random.default_rng() if outside else None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.look(0), {}

    def step(self, action):
        eyes = (self.outside or self.np_random).integers(6) + 10 * action
        return self.look(eyes), float(action), False, False, {}

    def look(self, eyes):
        return np.full((4, 4), eyes, np.uint8)


gymnasium.register("Roll-v0", Roll, max_episode_steps=50)


def test_an_environment_is_branched_by_playing_it_again():
    simulator = simulator_of({"_target_": "tokenworld.envs.gym.make", "id": "Roll-v0"})
    assert isinstance(simulator, replayed.ReplaySimulator) and not simulator.exact and simulator.branches(None, 0) is None
    simulator.reset(3)
    path = [simulator.step(a)[0].copy() for a in (0, 1, 0)]
    here = simulator.snapshot()
    simulator.reset(9)
    assert np.array_equal(simulator.restore(here), path[-1])
    drawn = []
    for k in (0, 0, *range(1, 30)):
        simulator.restore(here)
        simulator.reseed(k)
        drawn.append(int(simulator.step(1)[0][0, 0, 0]))
    assert drawn[0] == drawn[1] and set(drawn) == set(range(10, 16))  # the six eyes, and one more
    simulator.restore(here)
    simulator.reseed(5)
    seen = [simulator.step(0)[0].copy() for _ in range(3)]
    later = simulator.snapshot()  # holds the reseeding
    assert np.array_equal(simulator.restore(later), seen[-1])


class Counting(Branchable):
    """A simulator of Counter-v0 that its environment offers itself; what a plug-in has to write."""

    exact, actions = True, 2

    def __init__(self, *, id, limit=9, kwargs=None):
        self.id, self.limit, self.state = id, (kwargs or {}).get("limit", limit), 0

    def _obs(self):
        return np.full((1, 4, 4), self.state, np.uint8)

    def reset(self, seed=None):
        self.state = 0
        return self._obs()

    def snapshot(self):
        return self.state

    def restore(self, x):
        self.state = x
        return self._obs()

    def step(self, a):
        self.state = min(self.state + a, self.limit)
        return self._obs(), 0.0, False

    def reseed(self, k):
        pass

    def branches(self, x, a):
        return [(1.0, np.full((1, 4, 4), min(x + a, self.limit), np.uint8), 0.0, False)]

    def state_hash(self):
        return self.state


OFFERED = (Counting, None, "os.system", "tokenworld.evaluation.simulators.minatar.no_such")


class Counter(Roll):
    def __init__(self, limit=9, offered=0):
        super().__init__()
        self.metadata = {"simulator": OFFERED[offered]}


@pytest.mark.parametrize("processes", [False, True])
def test_an_environment_offers_its_own_simulator(processes):
    gymnasium.register("Counter-v0", Counter, max_episode_steps=50)
    env = {"_target_": "tokenworld.envs.gym.make", "id": "Counter-v0", "kwargs": {"limit": 5}}
    make_checked(env | {"processes": processes}, 2).close()
    simulator = simulator_of(env)
    assert isinstance(simulator, Counting) and simulator.limit == 5
    refusals = ("offers no simulator", "expected a function, or the name of one", "which is not there")
    for offered, words in enumerate(refusals, start=1):
        with pytest.raises(UserError, match=words):
            simulator_of(env | {"kwargs": {"offered": offered}})


def test_what_no_seed_repeats_cannot_be_played_again():
    gymnasium.register("Outside-v0", lambda: Roll(outside=True), max_episode_steps=50)
    with pytest.raises(UserError, match="Outside-v0 cannot be branched: "):
        simulator_of({"_target_": "tokenworld.envs.gym.make", "id": "Outside-v0"})
