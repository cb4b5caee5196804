"""Playing in a dream: the same actions are the same dream, futures do not disturb each other, nobody else can connect."""

import copy
import functools
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Browser, wait_for
from conftest import steps_of

from tokenworld import checkpoint, cli, viz
from tokenworld.building import opened
from tokenworld.data.episodes import read_episodes
from tokenworld.errors import UserError
from tokenworld.imagination import imagine
from tokenworld.interfaces import Codes, Steps
from tokenworld.play import server
from tokenworld.play.future import KEPT, Dream, Future, _tempered
from tokenworld.play.session import Session
from tokenworld.play.starts import _this_episode, gallery
from tokenworld.policies.actor_critic import ActorCritic
from tokenworld.policies.planner import Planner

pytest.importorskip("minatar")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run that was trained for moments; its termination head is set so that no dream ends by itself."""
    out = tmp_path_factory.mktemp("play") / "run"
    assert cli.main(["train", "overlay=debug", f"out={out}", "train.collect.first_steps=400"]) == 0
    modules, state = checkpoint.load(out / "checkpoint")
    (bias,) = (
        key for key in modules["dynamics"] if re.fullmatch(r"3\..*\.bias", key) and modules["dynamics"][key].shape == (1,)
    )
    modules["dynamics"][bias] -= 30
    checkpoint.save(out / "checkpoint", modules, state)
    return out


@pytest.fixture(scope="module")
def dream(folder):
    run, _, _ = opened(str(folder), {"device": "cpu"})
    starts = gallery(run, checkpoint.load(folder / "checkpoint")[1]["ranks"][0]["collector"])
    return Dream(run.world_model.eval(), starts, run.meta["action_meanings"], run.policy, name="a run")


ACTIONS = np.random.default_rng(0).integers(0, 3, 80).tolist()


def played(dream, actions, seed=0, temperature=None, start=0):
    session = Session(dream, start, seed)
    for action in actions:
        session.step(action, temperature)
    return session


def same(a, b) -> bool:
    """Two futures, in everything that is seen of them."""
    fields = ("action", "reward", "p_end", "ended", "temperature")
    return len(a.moments) == len(b.moments) and all(
        np.array_equal(x.frame, y.frame)
        and torch.equal(x.codes, y.codes)
        and np.array_equal(x.surprise, y.surprise)
        and all(getattr(x, name) == getattr(y, name) for name in fields)
        for x, y in zip(a.moments, b.moments, strict=True)
    )


# ------------------------------------------------------------------------------------------------------------ the dream


def test_steps_are_those_of_the_world_model(dream):
    """Against the model stepped by hand, and each surprise against the loss of teacher forcing on the same codes."""
    model, session = dream.world_model, played(dream, ACTIONS[:3], seed=5)
    start = dream.starts[0].steps
    _, state = model.start(start)
    K = model.shapes.codes
    codes = [model.encode(start).indices]
    for t, action in enumerate(ACTIONS[:3]):
        noise = torch.rand(1, K + 3, generator=torch.Generator().manual_seed(5 * 1_000_003 + t))
        prediction, state = model.step(state, torch.tensor([action]), noise[:, :K])
        moment = session.first.moments[t + 1]
        assert torch.equal(moment.codes, prediction.codes.indices[0, 0])
        expected = (model.decode(prediction.codes)[0, 0] * 255).round().to(torch.uint8)
        assert np.array_equal(moment.frame, expected.numpy())
        assert moment.reward == prediction.reward.sample(noise[:, K]).item()
        codes.append(prediction.codes.indices)
    z, T = torch.cat(codes, 1), start.obs.shape[1]
    taken = torch.cat([start.action[:, :-1], torch.tensor([ACTIONS[:3]]), torch.zeros(1, 1, dtype=torch.int64)], 1)
    no = torch.zeros(z.shape[:2], dtype=torch.bool)
    first = torch.cat([start.first, no[:, T:]], 1)
    steps = Steps(torch.zeros(*z.shape[:2], 1, 1, 1), taken, no.float(), no, no, first, ~no, ~no)
    with torch.no_grad():
        losses, _ = model.decoding.loss(model.backbone, Codes(z), steps)
    bits = losses["codes"][0, -3:] * K / np.log(2)
    assert np.allclose([m.surprise.sum() for m in session.first.moments[1:]], bits.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("temperature", [None, 3.0])
def test_rewound_and_played_again_is_the_same(dream, temperature):
    """Also from a time whose state was not kept."""
    session, again = (played(dream, ACTIONS, temperature=temperature) for _ in range(2))
    t = len(ACTIONS) - KEPT - 3
    assert t not in again.first.memories and t % KEPT
    again.rewind(t)
    assert again.length == len(ACTIONS), "looking back forgets nothing"
    for action in ACTIONS[t:]:
        again.step(action, temperature)
    assert same(session.first, again.first)
    other = played(dream, ACTIONS, seed=1)
    assert not same(session.first, other.first), "the seed must matter, or this test says nothing"
    again.rewind(t)
    again.step((ACTIONS[t] + 1) % 3)
    assert again.length == t + 1, "a step in the past forgets what came after"


def test_a_branch_differs_by_its_action_only(dream):
    control, session = played(dream, ACTIONS[:20]), played(dream, ACTIONS[:20])
    session.branch(12, ACTIONS[12])
    assert same(session.second, control.first), "the same action with the same luck is the same future"
    session.branch(12, (ACTIONS[12] + 1) % 3)
    assert same(session.first, control.first), "a branch leaves the first future alone"
    assert session.second.moments[:13] == session.first.moments[:13] and len(session.second.moments) == 21
    assert [m.action for m in session.second.moments[14:]] == ACTIONS[13:20]
    assert not same(session.second, session.first)
    for each in (session, control):
        each.step(ACTIONS[20])
        each.step(ACTIONS[21], 2.0)
    assert same(session.first, control.first) and len(session.second.moments) == 23
    session.rewind(12)
    session.step(0)
    assert session.second is None, "before it leaves the first there is no second future"


def test_a_branch_at_the_last_step_leaves_the_first_future_its_state(dream):
    control, session = played(dream, ACTIONS[:6]), played(dream, ACTIONS[:6])
    session.branch(5, (ACTIONS[5] + 1) % 3)
    for each in (session, control):
        each.step(ACTIONS[6])
    assert same(session.first, control.first) and not same(session.first, session.second)


def test_sessions_share_nothing_but_weights(dream):
    weights = [p.clone() for p in dream.world_model.parameters()]
    alone = [played(dream, ACTIONS[:15], seed, temperature, seed) for seed, temperature in ((0, 0.5), (1, 2.0))]
    together = [Session(dream, seed, seed) for seed in (0, 1)]
    for action in ACTIONS[:15]:
        for session, temperature in zip(together, (0.5, 2.0), strict=True):
            session.step(action, temperature)
    assert all(same(a.first, b.first) for a, b in zip(alone, together, strict=True))
    assert dream.world_model.decoding.temperature == dream.temperature == 1.0
    assert all(torch.equal(p, q) for p, q in zip(weights, dream.world_model.parameters(), strict=True))


def test_temperature_zero_has_no_luck_and_shares_the_weights(dream):
    greedy = [played(dream, ACTIONS[:10], seed, 0.0) for seed in (0, 1)]
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(greedy[0].first.moments, greedy[1].first.moments, strict=True))
    twin = _tempered(dream.world_model, 0.25)
    assert twin.decoding.temperature == 0.25 and dream.world_model.decoding.temperature == 1.0
    assert all(p is q for p, q in zip(twin.parameters(), dream.world_model.parameters(), strict=True))


def test_the_policy_chooses_and_is_repeated(dream):
    session = played(dream, ["policy"] * 6, seed=3)
    assert all(m.by == "policy" for m in session.first.moments[1:])
    by_hand = played(dream, [m.action for m in session.first.moments[1:]], seed=3)
    assert same(session.first, by_hand.first) and not any(m.by for m in by_hand.first.moments)
    with pytest.raises(UserError, match="no trained policy"):
        Session(replace(dream, policy=None)).step("policy")


def test_a_planner_chooses_and_is_repeated(dream):
    """It takes what its search finds from here, and the dream that it searched in is not changed by that."""
    planner = Planner(shapes=dream.world_model.shapes, horizon=4, samples=16, iterations=2, elites=4)
    planned = replace(dream, planner=planner)
    session = played(planned, ["planner"] * 5, seed=3)
    assert all(m.by == "planner" for m in session.first.moments[1:])
    by_hand = played(dream, [m.action for m in session.first.moments[1:]], seed=3)
    assert same(session.first, by_hand.first)
    again = Session(planned)
    again.restore(session.script())
    assert same(session.first, again.first) and again.script() == session.script()
    future = session.first
    memory = future._memory(2)
    state = functools.partial(dream.world_model.rollout, memory.state)
    view = replace(dream.world_model.view_of(memory.codes, memory.h), dream=state)
    assert future.moments[3].action == int(planner.act(view, planner.start(1), future._noise(2)[:, -1])[0])
    with pytest.raises(UserError, match="no trained planner"):
        Session(dream).step("planner")


def test_each_search_of_a_planner_has_a_seed_of_its_own(dream):
    seen = []
    planner = SimpleNamespace(
        start=lambda batch: None, act=lambda view, carry, noise: (torch.tensor([1]), seen.append(noise.item()))
    )
    session = played(replace(dream, planner=planner), ["planner"] * 4, seed=3)
    assert [m.action for m in session.first.moments[1:]] == [1] * 4 and len(set(seen)) == 4
    K = dream.world_model.shapes.codes
    drawn = [torch.rand(1, K + 3, generator=torch.Generator().manual_seed(3 * 1_000_003 + t)) for t in range(4)]
    assert seen == [noise[0, -1].item() for noise in drawn]


def test_the_policy_dreams_as_in_imagination(dream):
    """With the same noise `imagine` gives the same actions, codes, rewards and ends; the policy remembers what it saw."""
    model, K, H = copy.deepcopy(dream.world_model), dream.world_model.shapes.codes, 16
    policy = ActorCritic(shapes=model.shapes, view="pixels", hidden=8).eval()
    with torch.no_grad():
        list(model.termination.parameters())[-1].add_(27)  # ends are probable, but not certain
        for parameter in (*policy.actor.parameters(), *policy.network.lstm.parameters()):
            parameter.normal_()
    start = max(dream.starts, key=lambda start: start.steps.obs.shape[1])
    codes, T = model.encode(start.steps), start.steps.obs.shape[1]
    assert T > 1 and not torch.equal(codes.indices[:, 0], codes.indices[:, -1])
    forgot = ended = 0
    for seed in range(12):
        noise = [torch.rand(1, K + 3, generator=torch.Generator().manual_seed(seed * 1_000_003 + t)) for t in range(H)]
        carry = policy.start(1)
        for t in range(T - 1):
            carry = policy.follow(model.view_of(Codes(codes.indices[:, t : t + 1])), carry)
        out = imagine(model, *model.start(start.steps, codes), policy, H, torch.stack(noise, 1), carry)
        blank = imagine(model, *model.start(start.steps, codes), policy, H, torch.stack(noise, 1), policy.start(1))
        session = Session(replace(dream, world_model=model, policy=policy, starts=[start]), 0, seed)
        assert np.array_equal(session.first.moments[0].frame, (model.decode(Codes(codes.indices[:, -1:]))[0, 0] * 255).round())
        while not session.first.ended and session.t < H:
            session.step("policy")
        moments, n = session.first.moments, session.t
        assert [m.action for m in moments[1:]] == out.action[0, :n].tolist()
        assert torch.equal(torch.stack([m.codes for m in moments]), out.indices[0, : n + 1])
        assert [m.reward for m in moments[1:]] == out.reward[0, :n].tolist()
        assert [m.ended for m in moments[1:]] == out.terminated[0, :n].tolist()
        forgot, ended = forgot + (not torch.equal(out.action, blank.action)), ended + (0 < n < H)
    assert forgot and 0 < ended < 12, "memory and ends must matter, or this test says nothing"


def test_expected_rewards_are_means(dream):
    session = played(replace(dream, expected_reward=True), ACTIONS[:3], seed=5)
    _, state = dream.world_model.start(dream.starts[0].steps)
    for t, action in enumerate(ACTIONS[:3]):
        noise = torch.rand(1, dream.world_model.shapes.codes + 3, generator=torch.Generator().manual_seed(5 * 1_000_003 + t))
        prediction, state = dream.world_model.step(state, torch.tensor([action]), noise[:, :-3])
        assert (
            session.first.moments[t + 1].reward
            == prediction.reward.mean.item()
            != prediction.reward.sample(noise[:, -3]).item()
        )


class Counter:
    """A real game without an end, whose every step rewards and which keeps the actions it was sent."""

    ended = False

    def __init__(self, actions=()):
        self.actions, self.frame = actions, np.full((4, 10, 10), len(actions), np.uint8)

    def step(self, action):
        return Counter((*self.actions, action)), 1.0


@pytest.fixture
def counted(dream, monkeypatch):
    """The dream beside a game that counts; action 2 ends it, and the reward of an action is one more than its number."""
    advance = Future._advance

    def ruled(self, memory, t, action, temperature):
        after, moment = advance(self, memory, t, action, temperature)
        return after, replace(moment, ended=action == 2, reward=action + 1.0)

    monkeypatch.setattr(Future, "_advance", ruled)
    policy = copy.deepcopy(dream.policy)
    with torch.no_grad():
        policy.actor.bias[2] -= 100  # it does not choose to end
    return replace(dream, policy=policy, starts=[replace(start, game=Counter()) for start in dream.starts])


def restored(session):
    again = Session(session.dream)
    again.restore(json.loads(json.dumps(session.script())))
    assert again.view()[0] == session.view()[0]
    assert same(again.first, session.first) and (session.second is None or same(again.second, session.second))
    return again


def test_each_future_has_its_own_end(counted):
    session = played(counted, [0, 1, 0, 1])
    session.branch(1, 2)
    assert [len(f.moments) for f in session._futures()] == [5, 3], "what has ended takes no later actions"
    session.step(1)
    assert [len(f.moments) for f in session._futures()] == [6, 3] and session.length == session.t == 5
    restored(session)
    session = played(counted, [0, 2])
    session.branch(1, 0)
    session.step(1)
    assert [len(f.moments) for f in session._futures()] == [3, 4] and session.length == session.t == 3
    assert session.real[-1][0].actions == (0, 2), "the real game goes with the first future"
    restored(session)
    session.step(2)
    with pytest.raises(UserError, match="has ended"):
        session.step(0)
    session.rewind(3)
    session.step(1)
    restored(session)
    session.unbranch()
    assert session.t == session.length == 2 and session.log == [(0, 1.0), (2, 1.0)]
    restored(session)


def test_what_was_rewound_is_forgotten_everywhere(counted):
    session = played(counted, [0, 1, 1, 0, 1, 0, 0, 1])
    session.branch(2, 0)
    session.step("policy")
    session.rewind(5)
    session.step(1, 2.0)
    assert session.length == 6 and len(session.log) == 6 and session.log[-1] == (1, 2.0)
    assert [game.actions for game, _ in session.real][-1] == (0, 1, 1, 0, 1, 1) and len(session.real) == 7
    assert session.parting.repeats == 5, "the sixth key went to both futures"
    for action in ("policy", "policy", 0, 1):
        session.step(action)
    restored(session)
    session.rewind(1)
    session.branch(4, 0)
    assert session.t == 5, "what is shown is where they part"


def test_a_branch_keeps_temperatures(dream):
    session = Session(dream)
    for action, temperature in zip(ACTIONS[:6], (0.3, 2.0, 0.5, 4.0, 1.0, 0.2), strict=True):
        session.step(action, temperature)
    session.branch(1, ACTIONS[1])
    assert same(session.first, session.second)


def test_what_is_told_adds_up(counted):
    session = played(counted, [0, 1, 1, 0])
    session.branch(1, 0)
    for t, (mine, other) in enumerate([(0, 0), (1, 1), (3, 2), (5, 4), (6, 5)]):
        session.rewind(t)
        told, pictures = session.view()
        assert (told["dream"]["return"], told["branch"]["return"], told["real"]["return"]) == (mine, other, t)
        assert told["panes"] == ["dream", "branch", "real"] and len(pictures) == 3
        assert np.array_equal(pictures[2], viz.to_rgb(session.real[t][0].frame, scale=1))
        assert np.array_equal(pictures[1], viz.to_rgb(session.second.moments[t].frame, scale=1))
    lines = told["timeline"]
    assert lines["dream"]["reward"] == [1, 2, 2, 1] and lines["branch"]["reward"] == [1, 1, 2, 1]
    bits = [m.surprise.sum() for m in session.second.moments[1:]]
    assert lines["branch"]["bits"] == pytest.approx(bits, abs=1e-3)


def test_a_dream_has_a_longest_length(dream, monkeypatch):
    monkeypatch.setattr("tokenworld.play.session.LONGEST", 3)
    session = played(dream, [0, 1, 0])
    with pytest.raises(UserError, match="at most 3 steps"):
        session.step(0)
    script = session.script()
    with pytest.raises(UserError, match="this script has 4"):
        session.restore(script | {"log": [[0, 1.0]] * 4})
    assert session.script() == script


def test_the_recipe_has_a_temperature(dream):
    cool = replace(dream, world_model=_tempered(dream.world_model, 0.25))
    assert played(cool, [0]).first.moments[1].temperature == 0.25
    assert same(played(cool, ACTIONS[:5]).first, played(dream, ACTIONS[:5], temperature=0.25).first)


def test_the_end_is_an_end(dream):
    model = copy.deepcopy(dream.world_model)
    with torch.no_grad():
        list(model.termination.parameters())[-1].add_(60)
    session = Session(replace(dream, world_model=model))
    session.step(0, 0.5)
    assert session.first.ended and session.first.moments[1].p_end > 0.999
    with pytest.raises(UserError, match="has ended"):
        session.step(0, 0.5)
    session.rewind(0)
    session.step(1, 0.5)
    assert session.length == 1 and session.first.moments[1].action == 1


def test_keeping_the_second_future(dream):
    session = played(dream, [0] * 6)
    session.branch(2, 1)
    second = session.second
    session.adopt()
    assert session.first is second and session.second is None
    assert [m.action for m in session.first.moments[1:]] == [0, 0, 1, 0, 0, 0]
    game = dream.starts[0].game
    for (real, _), action in zip(session.real[1:], [0, 0, 1, 0, 0, 0], strict=True):
        game, _ = game.step(action)
        assert np.array_equal(real.frame, game.frame)
    with pytest.raises(UserError, match="branch first"):
        session.adopt()


def test_a_script_makes_the_same_dream_again(dream):
    session = Session(dream, 2, 9)
    for action, temperature in ((1, 1.0), ("policy", 0.7), (2, 1.5), ("policy", 1.0)):
        session.step(action, temperature)
    session.branch(1, 0)
    for action in ("policy", 2, "policy"):
        session.step(action, 1.2)
    session.rewind(5)
    again = Session(dream)
    again.restore(json.loads(json.dumps(session.script())))
    assert same(session.first, again.first) and same(session.second, again.second)
    assert [m.by for m in again.first.moments] == [m.by for m in session.first.moments]
    assert [m.by for m in session.first.moments[1:]] == [None, "policy", None, "policy", "policy", None, "policy"]
    a, b = session.view(), again.view()
    assert a[0] == b[0] and all(np.array_equal(x, y) for x, y in zip(a[1], b[1], strict=True))
    for wrong in (None, {}, {"start": 0}, {"start": 0, "seed": 0, "log": [[7, 1.0]], "t": 0, "branch": None}):
        with pytest.raises(UserError):
            again.restore(wrong)


@pytest.mark.parametrize(
    "call, part",
    [
        (lambda s: s.step(3), "action must be a whole number from 0 to 2"),
        (lambda s: s.step(True), "action must"),
        (lambda s: s.step(0, float("nan")), "temperature must"),
        (lambda s: s.step(0, 9), "temperature must"),
        (lambda s: s.rewind(3), "t must"),
        (lambda s: s.rewind(-1), "t must"),
        (lambda s: s.begin(99), "start must"),
        (lambda s: s.begin(1, -1), "seed must"),
        (lambda s: s.begin(1, 2**31 + 1), "seed must"),
        (lambda s: s.branch(2, 0), "t must"),
        (lambda s: s.branch(0, "x"), "action must"),
    ],
)
def test_wrong_wishes_change_nothing(dream, call, part):
    session = played(dream, [0, 1])
    before = session.view()[0]
    with pytest.raises(UserError, match=part):
        call(session)
    assert session.view()[0] == before
    with pytest.raises(UserError, match="take one first"):
        Session(dream).branch(0, 0)


# ---------------------------------------------------------------------------------------------------------- the gallery


def test_the_real_game_is_the_recorded_one(dream, folder):
    """Given the recorded actions it shows the recorded frames, to the end of the episode."""
    episodes = list(read_episodes(folder / "replay"))
    assert len(dream.starts) == 12
    for start in dream.starts:
        frames, actions = start.steps.obs[0].numpy(), start.steps.action[0].numpy()
        T = len(frames)
        found = ends = 0
        for episode in episodes:
            for t in range(len(episode.action) - T + 1):
                alike = np.array_equal(episode.obs[t : t + T], frames) and np.array_equal(
                    episode.action[t : t + T - 1], actions[:-1]
                )
                if not alike or bool(start.steps.first[0, 0]) != (t == 0):
                    continue
                game, rest = start.game, range(t + T - 1, len(episode.action))
                path = []
                for i in rest:
                    game, reward = game.step(int(episode.action[i]))
                    path.append((np.array_equal(game.frame, episode.obs[i + 1]), reward == episode.reward[i]))
                found += all(map(all, path)) and game.ended == episode.terminated[-1]
                if game.ended:
                    after, reward = game.step(1)
                    ends += after is game and reward == 0
        assert found, start.name
        assert ends or not game.ended, "after the end there is nothing"


def test_a_start_has_the_frames_of_one_episode():
    """The one that its last frame is in; a window inside an episode stays whole."""
    steps = steps_of(1, 6, first=[(0, 1), (0, 3)], frame=(1, 2, 2))
    assert torch.equal(_this_episode(steps).obs, steps.obs[:, 3:])
    assert _this_episode(steps[:, 4:]).obs.shape[1] == 2


def test_starts_without_a_repeatable_game(folder):
    run, _, _ = opened(str(folder), {"device": "cpu"})
    starts = gallery(run, None, count=5)
    assert len(starts) == 5 and all(start.game is None for start in starts)
    held_out = run.held_out.rows > 0
    frames = (run.held_out if held_out else run.replay).frames(np.arange((run.held_out if held_out else run.replay).rows))
    for start in starts:
        assert start.steps.acted[0, -1] and not start.steps.first[0, 1:].any()
        kind, _, row = start.name.split()
        row, T = int(row.replace(",", "")), start.steps.obs.shape[1]
        assert kind == ("held-out" if held_out else "recorded") and torch.equal(
            start.steps.obs[0], frames[row + 1 - T : row + 1]
        )
        assert T == run.world_model.backbone.context or start.steps.first[0, 0]
    run.replay, run.held_out = type(run.replay)(), type(run.held_out)()
    with pytest.raises(UserError, match="data=DIR"):
        gallery(run, None)


# --------------------------------------------------------------------------------------------------------------- saving


def test_what_is_saved_is_what_was_seen(dream):
    from PIL import Image

    session = played(dream, ACTIONS[:7], seed=9, start=1)
    session.branch(3, (ACTIONS[3] + 1) % 3)
    arrays = np.load(io.BytesIO(session.npz()), allow_pickle=False)
    assert np.array_equal(arrays["obs"], np.stack([m.frame for m in session.first.moments]))
    for name, field in (("reward", "reward"), ("p_end", "p_end"), ("terminated", "ended"), ("temperature", "temperature")):
        assert np.allclose(arrays[name], [getattr(m, field) for m in session.first.moments[1:]]), name
        assert np.allclose(arrays[f"branch_{name}"], [getattr(m, field) for m in session.second.moments[1:]]), name
    assert (arrays["seed"], arrays["start"]) == (9, 1)
    assert arrays["action"].tolist() == ACTIONS[:7] and arrays["branch_at"] == 3
    assert arrays["surprise_bits"].shape == (7, *dream.world_model.shapes.grid)
    assert np.array_equal(arrays["branch_obs"][:4], arrays["obs"][:4]) and len(arrays["real_obs"]) == 8
    gif = Image.open(io.BytesIO(session.gif()))
    assert gif.size == (3 * 200 + 2 * 4, 200) and gif.n_frames > 1
    shown = [[f.at(t).frame.tobytes() for f in session._futures()] + [session.real[t][0].frame.tobytes()] for t in range(8)]
    assert gif.n_frames == 1 + sum(a != b for a, b in zip(shown, shown[1:], strict=False))  # equal neighbours are one frame


# --------------------------------------------------------------------------------------------------------------- server

TOKEN = "secret"
ORIGIN = {"origin": "http://127.0.0.1:8642"}


@pytest.fixture
def client(dream):
    pytest.importorskip("starlette")
    pytest.importorskip("httpx")
    from starlette.testclient import TestClient

    return TestClient(server.make_app(dream, TOKEN), base_url="http://127.0.0.1:8642")


def unpacked(message: bytes) -> tuple[dict, bytes]:
    (size,) = struct.unpack_from("<I", message)
    return json.loads(message[4 : 4 + size]), message[4 + size :]


def asked(websocket, **message) -> tuple[dict, bytes]:
    websocket.send_json(message)
    return unpacked(websocket.receive_bytes())


def test_the_page_needs_its_token_and_this_machine(client):
    good = client.get(f"/?token={TOKEN}")
    assert good.status_code == 200 and "NONCE" not in good.text
    policy = good.headers["content-security-policy"]
    nonce = re.search(r"'nonce-([^']+)'", policy)[1]
    assert "default-src 'none'" in policy and f'<script nonce="{nonce}">' in good.text
    assert nonce not in client.get(f"/?token={TOKEN}").text
    assert good.headers["cache-control"] == "no-store" and good.headers["referrer-policy"] == "no-referrer"
    for url in ("/", "/?token=", "/?token=secreu", "/?token=%C3%A9"):
        assert client.get(url).status_code == 403
    assert client.get(f"/?token={TOKEN}", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get(f"/?token={TOKEN}", headers={"host": "evil.example:8642"}).status_code == 403
    assert client.get(f"/?token={TOKEN}", headers={"host": "localhost:8642"}).status_code == 200


OWN = ["localhost:8642", "localhost:9000", "127.0.0.1:9000", "[::1]:9000", "localhost"]
FOREIGN = ["evil.example:8642", "evil.example",
           "localhost.evil.example:9000", "127.0.0.1.evil.example", "evil.example:localhost",
           "127.0.0.2:8642", "localhost:8642@evil.example", "", "localhost:99999999"]  # fmt: skip


@pytest.mark.parametrize("host", OWN)
def test_another_local_port_leads_here_too(client, host):
    """As `ssh -L 9000:localhost:8642` makes it: the browser knows the port 9000 only."""
    assert client.get(f"/?token={TOKEN}", headers={"host": host}).status_code == 200
    assert client.get("/?token=wrong", headers={"host": host}).status_code == 403
    own = {"host": host, "origin": f"http://{host}"}
    with client.websocket_connect(f"ws://127.0.0.1:8642/socket?token={TOKEN}", headers=own) as websocket:
        assert "hello" in unpacked(websocket.receive_bytes())[0]
    said = client.get(f"/?token={TOKEN}", headers={**own, "origin": "http://localhost:1"})
    assert said.status_code == 403 and said.text.startswith("403: another page") and said.text.count("\n") == 1


@pytest.mark.parametrize("host", FOREIGN)
def test_another_name_of_this_machine_is_refused(client, host):
    """A page of a name that was bound to 127.0.0.1 sends its own name, whatever the port, and is its own origin."""
    from starlette.testclient import WebSocketDenialResponse

    said = client.get(f"/?token={TOKEN}", headers={"host": host})
    assert said.status_code == 403 and "localhost" in said.text and said.text.count("\n") == 1
    with pytest.raises(WebSocketDenialResponse) as refused:
        address = f"ws://127.0.0.1:8642/socket?token={TOKEN}"
        client.websocket_connect(address, headers={"host": host, "origin": f"http://{host}"}).__enter__()
    assert refused.value.status_code == 403 and "localhost" in refused.value.text


@pytest.mark.parametrize(
    "token, headers",
    [
        ("wrong", ORIGIN),
        (TOKEN, {}),
        (TOKEN, {"origin": "null"}),
        (TOKEN, {"origin": "http://evil.example"}),
        (TOKEN, {"origin": "http://127.0.0.1:8643"}),
        (TOKEN, {**ORIGIN, "host": "evil.example:8642"}),
    ],
)
def test_the_socket_refuses_strangers(client, token, headers):
    from starlette.websockets import WebSocketDisconnect

    with pytest.raises(WebSocketDisconnect):  # before it was accepted, which a server turns into 403
        with client.websocket_connect(f"ws://127.0.0.1:8642/socket?token={token}", headers=headers) as websocket:
            websocket.receive_bytes()


def test_two_tabs_are_two_dreams(client, dream):
    address = f"ws://127.0.0.1:8642/socket?token={TOKEN}"
    with client.websocket_connect(address, headers=ORIGIN) as a, client.websocket_connect(address, headers=ORIGIN) as b:
        for tab in (a, b):
            hello, pictures = unpacked(tab.receive_bytes())
            assert hello["actions"] == dream.actions and len(pictures) == len(dream.starts) * 10 * 10 * 3
        asked(a, op="begin", start=0, seed=4)
        asked(b, op="begin", start=1, seed=5)
        for action in ACTIONS[:5]:
            told_a, body = asked(a, op="step", action=action)
            told_b, _ = asked(b, op="step", action=2 - action, temperature=0.5)
        assert told_a["t"] == told_b["t"] == 5 and (told_a["seed"], told_b["seed"]) == (4, 5)
        expected = played(dream, ACTIONS[:5], seed=4)
        assert body[: 10 * 10 * 3] == viz.to_rgb(expected.first.moments[-1].frame, scale=1).tobytes()
        assert told_a["dream"]["bits"] == pytest.approx(float(expected.first.moments[-1].surprise.sum()), abs=1e-3)
        for wrong in ("{", "[]", '{"op":"quit"}', '{"op":"step","action":99}', "[" * 100000, '{"op":"save","kind":"exe"}'):
            a.send_text(wrong)
            assert json.loads(a.receive_text())["error"]
        assert asked(a, op="rewind", t=2)[0]["t"] == 2
        assert asked(b, op="step", action=0)[0]["t"] == 6
        told, content = asked(a, op="save", kind="npz")
        assert told["file"].endswith(".npz") and told["bytes"] == len(content)
        assert np.load(io.BytesIO(content))["action"].tolist() == ACTIONS[:5]


def told_by(session, **message) -> dict:
    answer = server.answer_to(session, json.dumps(message))
    return json.loads(answer) if isinstance(answer, str) else unpacked(answer)[0]


def test_messages_do_what_they_say(dream):
    session = Session(dream)
    for action in (0, 2, 1):
        told = told_by(session, op="step", action=action, temperature=2.0)
        assert told["dream"]["action"] == action and told["script"]["last"] == [action, 2.0]
    assert told_by(session, op="branch", t=0, action=1)["script"]["branch"] == [0, 1, 3]
    assert told_by(session, op="unbranch")["panes"] == ["dream", "real"]
    told_by(session, op="branch", t=1, action=0)
    assert told_by(session, op="adopt")["script"]["log"] == [[0, 2.0], [0, 2.0], [1, 2.0]]
    told = told_by(session, op="begin", start=1, seed=6)
    assert (told["start"], told["seed"], told["length"]) == (1, 6, 0)


@pytest.mark.parametrize("op", [[], {}, 3, None, ["step"]])
@pytest.mark.parametrize("kind", [[], {}, 3, None])
def test_words_of_any_type_are_answered(dream, op, kind):
    session = Session(dream)
    assert "op must be one of" in told_by(session, op=op)["error"]
    assert "kind must be one of" in told_by(session, op="save", kind=kind)["error"]


LOG = [[0, 1.0], [1, 1.0]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"log": [[0, 1.0], [9, 1.0]]},
        {"branch": [0, 1, "2"]},
        {"branch": [0, 1, None]},
        {"branch": [0, 1, []]},
        {"branch": [0, 1, -1]},
        {"branch": [0, 1, 9]},
        {"branch": "abc"},
        {"branch": 5},
        {"branch": [[], {}, 2]},
        {"log": [[[], 1.0]]},
        {"log": [[0, {}]]},
        {"t": "1"},
        {"start": {}},
        {"seed": []},
    ],
)
def test_a_wrong_script_begins_a_new_dream(dream, wrong):
    session = played(dream, [0, 1, 1], start=2)
    script = {"start": 1, "seed": 0, "log": LOG, "branch": None, "t": 2}
    assert told_by(session, op="restore", script=script)["t"] == 2
    assert told_by(session, op="restore", script=script | wrong)["error"]
    assert (session.start, session.length, session.second) == (0, 0, None)
    assert told_by(session, op="step", action=0)["t"] == 1


def test_a_tab_too_many_waits_for_another_to_close(client, monkeypatch):
    from starlette.websockets import WebSocketDisconnect

    monkeypatch.setattr(server, "VIEWERS", 1)
    address = f"ws://127.0.0.1:8642/socket?token={TOKEN}"
    for _ in range(2):
        with client.websocket_connect(address, headers=ORIGIN) as one:
            one.receive_bytes()
            with client.websocket_connect(address, headers=ORIGIN) as other, pytest.raises(WebSocketDisconnect) as told:
                other.receive_bytes()
            assert told.value.code == 1013 and "close a tab" in told.value.reason
            assert asked(one, op="step", action=0)[0]["t"] == 1


def test_the_token_is_kept_for_its_user_only(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    token, file = server.remembered_token(), tmp_path / "tokenworld" / "play.token"
    assert len(token) == 43 and server.remembered_token() == token
    assert file.stat().st_mode & 0o777 == 0o600
    file.chmod(0o644)
    assert server.remembered_token() != token, "others may have read it"
    file.write_text("short")
    assert len(server.remembered_token()) == 43
    monkeypatch.setenv("XDG_STATE_HOME", str(file))  # no folder can be made here
    assert server.remembered_token() != server.remembered_token()


def test_what_is_missing_is_one_sentence(folder, monkeypatch, capsys):
    pytest.importorskip("uvicorn")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["play", str(folder), f"port={port}"]) == 2
        assert f"port {port} cannot be used" in capsys.readouterr().err
    assert cli.main(["play", str(folder), "port=99999"]) == 2
    assert "from 1 to 65535" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert cli.main(["play", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "pip install tokenworld[play]" in said and said.count("\n") == 1


# -------------------------------------------------------------------------------------------------------------- browser


class Served:
    """`tokenworld play` in a process of its own."""

    def __init__(self, folder: Path, port: int, state: Path):
        env = os.environ | {"XDG_STATE_HOME": str(state), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-m", "tokenworld.cli", "play", str(folder), f"port={port}", "device=cpu"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=Path(__file__).parent.parent)
        self.url = re.search(r"http://\S+", self.process.stdout.readline())[0]
        wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1).close() is None, 20)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


def test_a_real_server_answers_403(folder, tmp_path):
    pytest.importorskip("uvicorn")
    client = pytest.importorskip("websockets.sync.client")
    from websockets.exceptions import ConnectionClosed, InvalidStatus

    served = Served(folder, port := free_port(), tmp_path)
    address, own = served.url.replace("http", "ws").replace("/?", "/socket?"), f"http://127.0.0.1:{port}"
    try:
        for url, origin in ((address[:-1], own), (address, None), (address, "http://evil.example")):
            with pytest.raises(InvalidStatus) as refused, client.connect(url, origin=origin):
                pass
            assert refused.value.response.status_code == 403
        with client.connect(address, origin=own) as websocket:
            assert "hello" in unpacked(websocket.recv(timeout=10))[0]
            websocket.send("x" * (server.LARGEST + 1))
            with pytest.raises(ConnectionClosed) as closed:
                websocket.recv(timeout=10)
            assert closed.value.rcvd.code == 1009  # too big
        with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port), 2):  # nothing listens on other addresses
            pass
    finally:
        served.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium to open the page with")
def test_a_person_plays_in_a_browser(folder, tmp_path):
    pytest.importorskip("uvicorn")
    pytest.importorskip("websockets")
    served = Served(folder, port := free_port(), tmp_path)
    (tmp_path / "profile").mkdir()
    browser = Browser(tmp_path / "profile")
    try:
        step = "+document.body.dataset.t"
        browser("Page.navigate", url=served.url)
        browser.until("document.body?.dataset.t === '0'", 30)
        before = browser.eval("document.querySelector('.dream canvas').toDataURL()")
        for t in range(8):  # paused: an action key is one step
            browser.key("ArrowLeft", 37)
            browser.until(f"{step} === {t + 1}")
        assert browser.eval("script.log.every((entry) => entry[0] === world.actions.indexOf('LEFT'))")
        assert browser.eval("document.querySelector('.dream canvas').toDataURL()") != before
        browser.eval("$('fps').value = 30")
        browser.type("p")
        browser.until(f"{step} > 9")
        frames, began = browser.eval("+document.body.dataset.frames"), time.monotonic()
        browser.key("ArrowRight", 39, hold=1.0)
        rate = (browser.eval("+document.body.dataset.frames") - frames) / (time.monotonic() - began)
        for _ in range(15):  # while playing
            browser.key("ArrowRight", 39)
        latency = browser.until("+document.body.dataset.latency")
        browser.type("p")
        browser.until("!playing && !waiting")
        assert browser.eval("script.log.filter((e) => e[0] === world.actions.indexOf('RIGHT')).length") >= 12
        time.sleep(0.3)
        length = browser.eval(step)
        time.sleep(0.3)
        assert browser.eval(step) == length, "paused"
        browser.eval("document.getElementById('t').value = 5; document.getElementById('t').oninput()")
        browser.until(f"{step} === 5")
        browser.type("b")
        browser.until("armed")
        browser.key("ArrowRight", 39)
        browser.until("seen.branch && !waiting && document.querySelectorAll('figure').length === 3")
        assert browser.eval("seen.branch.at === 5 && seen.length") == length
        browser.type("m")
        assert browser.eval("driver") == "policy"
        browser.type("m")
        assert browser.eval("driver") == "planner" and "Planner" in browser.eval("$('driver').textContent")
        browser.eval(f"rewind({length})")
        browser.until(f"{step} === {length}")
        browser.type(".")  # the planner's step, and what one is asked who leaves the future there
        browser.until(f"{step} === {length + 1} && !waiting")
        assert browser.eval("script.log.at(-1)[0]") == "planner"
        browser.eval(f"rewind({length})")
        browser.until(f"{step} === {length}")
        browser.type("b")
        assert "instead of the planner's" in browser.eval("document.body.innerText")
        browser.key("Escape", 27)
        browser.type("m")
        assert browser.eval("driver === null")
        browser.type("o")
        assert browser.eval("!document.querySelectorAll('.dream canvas')[1].hidden")
        browser.eval(f"rewind({length})")
        browser.until(f"{step} === {length}")
        for width, height in ((400, 1500), (900, 1000), (1600, 1000)):
            browser.screenshot(tmp_path / f"play-{width}.png", width, height)
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        browser("Emulation.setEmulatedMedia", features=dark)
        browser.screenshot(tmp_path / "play-dark.png", 1600, 1000)
        for letter, kind in (("d", "npz"), ("s", "gif")):
            browser.type(letter)
            file = wait_for(lambda k=kind: next(iter((tmp_path / "profile").glob(f"dream-*.{k}")), None), 15, kind)
            wait_for(lambda f=file: f.stat().st_size, 5)
        arrays = np.load(next((tmp_path / "profile").glob("*.npz")), allow_pickle=False)
        assert len(arrays["action"]) == length + 1 and arrays["by_planner"].tolist() == [False] * length + [True]
        assert arrays["action"][:8].tolist() == [1] * 8 and arrays["branch_at"] == 5
        foreign = {
            e["params"]["request"]["url"].split(":")[0] for e in browser.events if e["method"] == "Network.requestWillBeSent"
        }
        assert foreign <= {"http", "data", "blob"} and not browser.problems()
        shown = browser.eval("document.querySelector('.branch canvas').toDataURL()")
        served.kill()
        browser.until("document.body.dataset.link === 'off'")
        assert "disconnected" in browser.eval("document.getElementById('link').textContent")
        served = Served(folder, port, tmp_path)
        browser.until(f"document.body.dataset.link === 'on' && {step} === {length} && seen.branch && !waiting", 20)
        assert browser.eval("document.querySelector('.branch canvas').toDataURL()") == shown, "the dream goes on where it was"
        print(f"{rate:.1f} frames/s of 30 wanted, {latency:.0f} ms from key to frame")
        assert latency < 250 and rate > 15
    finally:
        browser.close()
        served.kill()
