"""Playing in a dream: the same actions are the same dream, futures do not disturb each other."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import network
from play_world import ACTIONS, played, same

from tokenworld.errors import UserError
from tokenworld.imagination import Ahead, imagine
from tokenworld.interfaces import Codes, Steps
from tokenworld.play.future import KEPT, Future, _tempered
from tokenworld.play.session import Session
from tokenworld.policies.actor_critic import ActorCritic
from tokenworld.policies.planner import Planner
from tokenworld.viz.frames import to_rgb

pytest.importorskip("minatar")


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
        assert torch.equal(moment.codes.indices, prediction.codes.indices[0, 0])
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
        losses, _, _ = model.decoding.loss(model.backbone, Codes(z), steps)
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
    pairs = zip(greedy[0].first.moments, greedy[1].first.moments, strict=True)
    assert all(torch.equal(a.codes.indices, b.codes.indices) for a, b in pairs)
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
    state = Ahead(dream.world_model, memory.state)
    view = replace(dream.world_model.view_of(memory.codes, memory.h), dream=state)
    assert future.moments[3].action == int(planner.act(view, planner.start(1), future._noise(2)[:, -1:])[0])
    with pytest.raises(UserError, match="no trained planner"):
        Session(dream).step("planner")


def test_each_search_of_a_planner_has_a_seed_of_its_own(dream):
    seen = []
    planner = SimpleNamespace(
        noise_size=1,
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
    policy = ActorCritic(shapes=model.shapes, network=network("pixels", 8)).eval()
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
        assert torch.equal(torch.stack([m.codes.indices for m in moments]), out.codes.indices[0, : n + 1])
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


def test_a_real_game_ends_once(counted):
    """Where it ended is told at all later times too, whatever step is looked at; before it has not ended."""

    class Ending(Counter):
        def step(self, action):
            after = Ending((*self.actions, action))
            after.ended = len(after.actions) == 2
            return after, 1.0

    session = played(replace(counted, starts=[replace(counted.starts[0], game=Ending())]), [0, 1, 0, 1, 0])
    for t, (step, ended) in enumerate([(0, False), (1, False), (2, True), (2, True), (2, True), (2, True)]):
        session.rewind(t)
        real = session.view()[0]["real"]
        assert (real["t"], real["ended"], real["return"]) == (step, ended, step)
    session.rewind(1)
    session.step(0)
    assert session.real[-1][0].actions == (0, 0) and session.view()[0]["real"]["ended"]


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
        assert np.array_equal(pictures[2], to_rgb(session.real[t][0].frame, scale=1))
        assert np.array_equal(pictures[1], to_rgb(session.second.moments[t].frame, scale=1))
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
