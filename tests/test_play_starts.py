"""Where a dream can begin: recorded moments with their real games, and those that a person who does nothing survives."""


import numpy as np
import pytest
import torch
from conftest import steps_of

from tokenworld.building import opened
from tokenworld.data.episodes import read_episodes
from tokenworld.errors import UserError
from tokenworld.play.starts import _this_episode, moments

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
    run, _, _ = opened(str(play_run), {"device": "cpu"})
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
