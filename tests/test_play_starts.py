"""Where a dream can begin: recorded moments with their real games, and those that a person who does nothing survives."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import steps_of
from play_world import collected, make_dream

from tokenworld.action_space import Actions
from tokenworld.data.episodes import read_episodes
from tokenworld.errors import UserError
from tokenworld.play.future import draws
from tokenworld.play.hints import play_hints
from tokenworld.play.idle import SEEDS, gallery, steps_survived
from tokenworld.play.session import Session
from tokenworld.play.starts import IDLE_STEPS, Start, _Episodes, _this_episode, idle_action, moments
from tokenworld.training.resume import open_run
from tokenworld.world_model import WorldModel

pytest.importorskip("minatar")


def test_the_real_game_is_the_recorded_one(dream, play_run):
    """Given the recorded actions it shows the recorded frames, to the end of the episode."""
    episodes = list(read_episodes(play_run / "replay"))
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


def test_starts_without_a_repeatable_game(play_run):
    run = open_run(str(play_run), {"device": "cpu"})
    starts = moments(run, None, 0, count=5)
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
        moments(run, None, 0)


def test_a_frame_is_offered_once(monkeypatch):
    """As the start that lasts longest."""
    starts = {name: Start(name, steps_of(1, 2, seed=seed)) for name, seed in (("a", 0), ("b", 1), ("c", 0))}
    found = [(3, starts["a"]), (4, starts["b"]), (5, starts["c"])]
    monkeypatch.setattr("tokenworld.play.starts._replay_starts", lambda *arguments: found)
    run = SimpleNamespace(replay=SimpleNamespace(rows=1))
    assert [start.name for start in moments(run, {}, 0)] == ["c", "b"]


# ----------------------------------------------------------------------------------------------- while nobody presses a key


def test_every_start_survives_one_key_and_then_none(mortal_run):
    """With each of its seeds and after each first action; other seeds do not, or this test would say nothing."""
    mortal = make_dream(mortal_run)
    lives, others = [], []
    for i, start in enumerate(mortal.starts[:3]):
        assert start.seeds and set(start.seeds) < set(range(SEEDS))
        for seed in range(SEEDS):
            lasts = []
            for first in range(3):
                session = Session(mortal, i, seed)
                while not session.first.ended and session.t < IDLE_STEPS:
                    session.step(mortal.idle if session.t else first)
                lasts.append(session.t - session.first.ended)
            (lives if seed in start.seeds else others).append(min(lasts))
    assert set(lives) == {IDLE_STEPS} and max(others) < IDLE_STEPS


class Toy:
    """A world model by hand. Its state is a sum of the noise of codes; a game ends above 5.5, and half of action 2's steps."""

    shapes, decoding, noise_size = SimpleNamespace(actions=Actions((3,))), SimpleNamespace(noise_size=2), 4
    split_noise, outcome = WorldModel.split_noise, WorldModel.outcome

    def __init__(self, total=(0.0,)):
        self.total = torch.as_tensor(total)

    @property
    def device(self):
        return self.total.device

    def select(self, index):
        return Toy(self.total[index])

    def start(self, steps):
        return None, self

    def step(self, state, action, noise):
        after = Toy(state.total + noise[:, 1])
        ends = SimpleNamespace(sample=lambda u: (after.total > 5.5) | ((action == 2) & (u < 0.5)))
        return SimpleNamespace(reward=SimpleNamespace(sample=lambda u: u), terminated=ends), after


@pytest.mark.parametrize("rows", [96, 7])
def test_steps_survived_are_those_counted_by_hand(monkeypatch, rows):
    """Each first action and each seed has a game of its own, also where a large model has no memory for all at once."""
    monkeypatch.setattr("tokenworld.play.idle.ROWS", rows)
    expected = torch.zeros(3, SEEDS, dtype=torch.int64)
    for first in range(3):
        for seed in range(SEEDS):
            noise = [draws(Toy(), seed, t)[0] for t in range(IDLE_STEPS)]
            total, t = 0.0, 0
            while t < IDLE_STEPS:
                total += noise[t][1]
                if total > 5.5 or (t == 0 and first == 2 and noise[t][3] < 0.5):
                    break
                t += 1
            expected[first, seed] = t
    assert torch.equal(steps_survived(Toy(), Start("toy", steps_of(1, 2)), 0), expected)
    assert (expected[2] == 0).any() and (expected == IDLE_STEPS).any() and ((0 < expected) & (expected < IDLE_STEPS)).any()


def lasting(monkeypatch, table: dict) -> None:
    """Each start, by its name, lasts so many steps with so many of the seeds, and a step less with the others."""

    def survived(model, start, idle):
        steps, seeds = table[start.name]
        return torch.cat([torch.full((3, seeds), steps), torch.full((3, SEEDS - seeds), steps - 1)], 1)

    monkeypatch.setattr("tokenworld.play.idle.steps_survived", survived)


def named(names: str) -> list[Start]:
    return [Start(name, None) for name in names]


def test_the_gallery_offers_what_lasts(monkeypatch):
    table = {"a": (IDLE_STEPS, 1), "b": (IDLE_STEPS - 1, 8), "c": (IDLE_STEPS, 6), "d": (IDLE_STEPS, 8), "e": (3, 8)}
    lasting(monkeypatch, table)
    assert [(s.name, s.seeds) for s in gallery(None, named("abcde"), 0)] == [
        ("d", tuple(range(8))), ("c", tuple(range(6))), ("a", (0,))
    ]  # fmt: skip
    assert [s.name for s in gallery(None, named("cd"), 0, count=1)] == ["c"], "enough are found: no other is tried"
    assert [s.name for s in gallery(None, named("abcd"), 0, seconds=-1)] == ["a"], "time is up: only the first is tried"
    dying = gallery(None, named("eb"), 0)
    assert [(s.name, s.seeds) for s in dying] == [("b", ()), ("e", ())], "a model whose games all end can be played too"


def test_real_games_that_last_come_first(play_run, dream):
    """As counted by playing them; the game that is tried out is left as it was."""
    run = open_run(str(play_run), {"device": "cpu"})
    lengths = []
    for start in moments(run, collected(play_run), 0):
        frame, by_action = start.game.frame.copy(), []
        for first in range(3):
            game, t = start.game, 0
            while t < IDLE_STEPS and not game.step(0 if t else first)[0].ended:
                game, t = game.step(0 if t else first)[0], t + 1
            by_action.append(t)
            assert start.game.lasts(first, 0) == t
        assert np.array_equal(start.game.frame, frame)
        lengths.append(min(by_action))
    assert lengths == sorted(lengths, reverse=True) and lengths[0] == IDLE_STEPS > lengths[-1]


def test_only_what_is_in_an_episode_counts():
    """Games 0 and 1 end after steps 3 and 5; a cut after seven steps ends those that have two steps by then, one by hand."""
    episodes = _Episodes(3, np.array([[0, 1], [7, 2], [9, 3]]))
    cut = []
    for t in range(9):
        ended = np.array([t == 3, t == 5, False])
        cut.append(episodes.follow(t, ended).tolist())
    assert cut[6] == [True, False, True] and cut[8] == [False, False, False]
    assert episodes.until.tolist() == [7, 6, 7]


@pytest.mark.parametrize("names, idle", [(["NOOP", "FIRE"], 0), (["left", "noop"], 1), (["push left", "push right"], 0)])
def test_no_key_is_no_operation_where_there_is_one(names, idle):
    assert idle_action(names) == idle


@pytest.mark.parametrize(
    "metadata, C, expected",
    [
        ({}, 4, (15.0, ())),
        ({"play_fps": 4, "channels": ["a", "b"]}, 2, (4.0, ("a", "b"))),
        ({"play_fps": 1000, "channels": ["a", "b", "c"]}, 3, (30.0, ())),
        ({"play_fps": 0.01, "channels": ["a"]}, 2, (1.0, ())),
        ({"play_fps": float("nan"), "channels": "ab"}, 2, (15.0, ())),
        ({"play_fps": "4", "channels": [1, 2]}, 2, (15.0, ())),
        ({"play_fps": True}, 2, (15.0, ())),
    ],
)
def test_an_environment_names_speed_and_channels(metadata, C, expected):
    assert play_hints(metadata, C) == expected
