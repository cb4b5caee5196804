"""Dreams and agents of environments with state vectors and continuous actions, for whatever learns in an environment."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from tokenworld.agent import Agent
from tokenworld.dream_env import Dream, DreamEnv
from tokenworld.errors import UserError
from tokenworld.training.build import temporary_run
from tokenworld.training.run import run_training


@pytest.fixture(scope="module")
def run():
    """A pendulum that has hardly learned."""
    run = temporary_run("recipe=pendulum", "overlay=debug", "device=cpu")
    run_training(run)
    return run


def test_gymnasiums_checker_passes(run):
    dream = Dream(DreamEnv(run.world_model, run.replay, 1, horizon=30))
    assert dream.action_space == gymnasium.spaces.Box(-2.0, 2.0, (1,)) and dream.observation_space.shape == (3, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it asks for a render mode and for bounded observations
        check_env(dream, skip_render_check=True)


def test_many_dreams_take_continuous_actions(run):
    env = DreamEnv(run.world_model, run.replay, 5, horizon=6)
    paths = []
    for _ in range(2):
        obs, _ = env.reset(seed=1)
        rng, path = np.random.default_rng(0), [obs]
        for _ in range(20):
            obs, reward, terminated, truncated, _ = env.step(rng.uniform(-2, 2, (5, 1)).astype(np.float32))
            path += [obs, reward, terminated | truncated]
        paths.append(path)
    assert all(np.array_equal(a, b) for a, b in zip(*paths, strict=True))
    ended = any(x.any() for x in paths[0][3::3])
    assert ended and obs.shape == (5, 3, 1, 1) and obs.dtype == np.float32
    start = run.replay.frames(np.zeros((1, 1), np.int64))[0, 0].numpy()
    obs, _ = env.reset(options={"obs": start})
    centers = run.world_model.tokenizer.centers.numpy()
    width = (centers[:, 1] - centers[:, 0])[:, None, None]
    assert (np.abs(obs - start) <= width).all()


@pytest.mark.parametrize("actions", [np.full((5, 1), 2.5), np.full((5, 1), np.nan), np.zeros((4, 1)), "left"])
def test_actions_outside_the_space_are_refused(run, actions):
    env = DreamEnv(run.world_model, run.replay, 5)
    env.reset(seed=0)
    with pytest.raises(UserError, match=r"actions must be 5 of Box\(-2.0, 2.0, \(1,\)"):
        env.step(actions)


def test_an_agent_takes_state_vectors_and_returns_torques(run, tmp_path):
    run.world_model.config["parts"] |= {"env": run.config["env"]}
    agent = Agent(run.world_model, run.policy)
    env = agent.make_env(3)
    obs, _ = env.reset(seed=0)
    actions = agent.act(obs)
    assert actions.shape == (3, 1) and actions.dtype == np.float32 and (np.abs(actions) <= 2).all()
    env.step(actions)
    env.close()
    single = Agent(run.world_model, run.policy)
    plain = gymnasium.make("Pendulum-v1")
    seen, _ = plain.reset(seed=0)
    action = single.act(seen)
    assert action.shape == (1,) and plain.action_space.contains(action)
    with pytest.raises(UserError, match="expected state vectors of 3 numbers"):
        single.act(np.zeros((8, 8, 3), np.uint8))
    agent.save_pretrained(tmp_path / "model", starts=run.replay.sample(2, 3, np.random.default_rng(0))[0])
    again = Agent.from_pretrained(tmp_path / "model")
    assert again.world_model.shapes == run.world_model.shapes
    again.reset(0), agent.reset(0)
    assert np.array_equal(again.act(obs), agent.act(obs))


def test_stable_baselines_learns_in_continuous_dreams(run):
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_checker import check_env as check

    from tokenworld.sb3 import Dreams

    dreams = DreamEnv(run.world_model, run.replay, 4, horizon=8, autoreset="same_step")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(Dream(DreamEnv(run.world_model, run.replay, 1)))
    learner = PPO("MlpPolicy", Dreams(dreams), n_steps=16, batch_size=32, n_epochs=1, device="cpu", seed=0)
    before = [p.detach().clone() for p in learner.policy.parameters()]
    learner.learn(128)
    assert any(not (a == b).all() for a, b in zip(before, learner.policy.parameters(), strict=True))
