"""The dream as an environment: what it does is what the world model does, and the rules of Gymnasium hold."""

import json
import shutil
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from conftest import rouse
from gymnasium.utils.env_checker import check_env

from tokenworld import DreamEnv, WorldModel, dream_env, origins
from tokenworld.cli import main as cli
from tokenworld.data.episodes import Episode
from tokenworld.data.replay import Replay
from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, Steps

FRAME = (4, 10, 10)


def starts_of(M=6, T=2, seed=0) -> Steps:
    g = torch.Generator().manual_seed(seed)
    patches = torch.randint(0, 2, (8, 4, 2, 2), generator=torch.Generator().manual_seed(1), dtype=torch.uint8) * 255
    chosen = patches[torch.randint(8, (M, T, 5, 5), generator=g)]  # (M, T, 5, 5, C, 2, 2)
    obs = chosen.permute(0, 1, 4, 2, 5, 3, 6).reshape(M, T, *FRAME)
    no = torch.zeros(M, T, dtype=torch.bool)
    return Steps(obs, torch.randint(3, (M, T), generator=g), no.float(), no, no, no, ~no, ~no)


def model_of(*words, ends=0.0):
    """Random weights, awake; `ends`: moves the logit of a termination."""
    torch.manual_seed(2)
    model = WorldModel.from_recipe("quickstart", "overlay=debug", *words, frame=FRAME, actions=3)
    model.tokenizer.train().loss(starts_of())  # it learns every patch that it sees
    rouse(model.dynamics_modules(), 0.2)
    with torch.no_grad():
        [p for p in model.termination.parameters() if p.shape == (1,)][0].add_(ends)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("dream") / "model"
    model = model_of(ends=-2.0)
    model.save_pretrained(out, starts=starts_of())
    return out


def frames_of(model, indices):
    """The frames (N, C, H, W) uint8 of codes (N, K)."""
    return model.frames(Codes(indices.unsqueeze(1)))[:, 0].numpy()


def play(env, actions, seed=3):
    """Everything that came of the actions (T, N)."""
    seen = [env.reset(seed=seed)[0]]
    told = []
    for action in actions:
        obs, reward, terminated, truncated, _ = env.step(action)
        seen.append(obs.copy())
        told.append(np.stack([reward, terminated, truncated]))
    return np.stack(seen), np.stack(told)


ACTIONS = np.random.default_rng(0).integers(0, 3, (60, 5))
LLAMA = "{model_type: llama, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 24}"
GPT2 = "{model_type: gpt2, n_embd: 16, n_layer: 2, n_head: 2, n_positions: 104}"
MODELS = [
    (),
    ("backbone.context=4", "backbone.layers=3"),
    ("overlay=pretrained", f"backbone.config={LLAMA}"),
    ("overlay=pretrained", "~backbone.config", f"backbone.config={GPT2}"),  # learned positions: all of a dream is read again
]


# ------------------------------------------------------------------------------------------------------------ the rules


def test_gymnasiums_checker_passes(folder):
    env = gymnasium.make("tokenworld/Dream-v0", model=folder, render_mode="rgb_array", horizon=7)
    check_env(env.unwrapped)
    assert env.reset(seed=1)[0].shape == FRAME and env.render().dtype == np.uint8


def test_stable_baselines_checker_passes(folder):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(gymnasium.make("tokenworld/Dream-v0", model=folder), warn=False)


def test_the_same_seed_is_the_same_dream(folder):
    model = WorldModel.from_pretrained(folder)
    one, two = (DreamEnv(model, starts_of(), 5, horizon=9) for _ in range(2))
    (obs, told), (obs2, told2) = play(one, ACTIONS), play(two, ACTIONS)
    assert np.array_equal(obs, obs2) and np.array_equal(told, told2)
    obs3, _ = play(one, ACTIONS)  # and again in the same environment
    assert np.array_equal(obs, obs3)
    assert not np.array_equal(obs, play(one, ACTIONS, seed=4)[0])


def test_dreams_end_and_begin_on_the_next_step(folder):
    env = DreamEnv(model_of(ends=-1.0), starts_of(), 5, horizon=6)
    begins = {frame.tobytes() for frame in frames_of(env.world_model, env.world_model.encode(starts_of()).indices[:, -1])}
    seen, told = play(env, ACTIONS)
    ended, length = np.zeros(5, bool), np.zeros(5, int)
    for t in range(60):
        reward, terminated, truncated = told[t]
        length = np.where(ended, 0, length + 1)
        assert not (terminated.astype(bool) & truncated.astype(bool)).any()
        for i in np.flatnonzero(ended):  # this step only began anew
            assert reward[i] == 0 and not terminated[i] and not truncated[i] and seen[t + 1, i].tobytes() in begins
        for i in np.flatnonzero(~ended):
            assert truncated[i] == (length[i] == 6 and not terminated[i])
        ended = (terminated + truncated) > 0
    assert told[:, 1].sum() > 5 and told[:, 2].sum() > 5  # both kinds of end were seen


# ------------------------------------------------------------------------------------------------- it is the world model


@pytest.mark.parametrize("words", MODELS, ids=["short", "long", "llama", "gpt2"])
def test_a_dream_is_a_rollout(words):
    """Step by step what the world model gives for the same start, actions and noise."""
    model = model_of(*words, ends=-30.0)
    starts = starts_of(1, model.backbone.context)
    env = DreamEnv(model, starts, 4, horizon=12)
    obs, told = play(env, ACTIONS[:10, :4])
    generator = torch.Generator().manual_seed(3)
    first = starts.first.clone()
    first[:, 0] = True
    whole = Steps(**{**{f: getattr(starts, f) for f in starts.__dataclass_fields__}, "first": first})
    _, state = model.start(whole[torch.zeros(4, dtype=torch.int64)])
    for t in range(10):
        noise = torch.rand(4, model.shapes.codes + 2, generator=generator)
        prediction, state = model.step(state, torch.from_numpy(ACTIONS[t, :4]), noise[:, :-2])
        frames = (model.decode(Codes(prediction.codes.indices))[:, 0].clamp(0, 1) * 255).round().to(torch.uint8)
        assert np.array_equal(frames.numpy(), obs[t + 1]), t
        assert np.allclose(prediction.reward.sample(noise[:, -2]).numpy(), told[t, 0])


@pytest.mark.parametrize("words", MODELS, ids=["short", "long", "llama", "gpt2"])
def test_a_dream_that_begins_anew_does_not_disturb_the_others(words):
    """Reading all memories again, at any step, changes no prediction."""
    model = model_of(*words, ends=-30.0)
    env = DreamEnv(model, starts_of(T=model.backbone.context), 5, horizon=25)
    env.reset(seed=3)
    here = torch.arange(5)
    for t in range(20):
        action, noise = torch.from_numpy(ACTIONS[t]), torch.rand(5, model.shapes.codes)
        kept, _ = model.step(env._state.select(here), action, noise)
        env._remember()
        again, _ = model.step(env._state.select(here), action, noise)
        assert torch.allclose(kept.score(), again.score(), atol=2e-5), t
        assert torch.allclose(kept.reward.mean, again.reward.mean, atol=2e-5), t
        env.step(ACTIONS[t])
    assert len(env._codes.indices.unique(dim=0)) > 1


@pytest.mark.parametrize("autoreset", ["next_step", "same_step"])
def test_a_dream_that_began_anew_remembers_only_itself(autoreset):
    """At every step each row predicts what the model does that reads this row's dream alone, from its start on."""
    model = model_of(ends=-1.0)
    env = DreamEnv(model, starts_of(), 5, horizon=4, autoreset=autoreset)
    env.reset(seed=3)
    here, ends = torch.arange(5), 0
    for t in range(14):
        obs, _, terminated, truncated, _ = env.step(ACTIONS[t])
        ends += (terminated | truncated).sum()
        assert np.array_equal(obs, frames_of(model, env._codes.indices[:, -1]))
        action, noise = torch.from_numpy(ACTIONS[t + 1]), torch.rand(5, model.shapes.codes)
        kept, _ = model.step(env._state.select(here), action, noise)
        for i in range(5):
            begins = env._first[i].nonzero().flatten().tolist()
            begin = begins[-1] if begins else 0  # else the start is further back than the model sees
            codes, taken = env._codes.indices[i : i + 1, begin:], env._action[i : i + 1, begin:]
            no = torch.zeros(taken.shape, dtype=torch.bool)
            first = no.clone()
            first[0, 0] = True
            _, state = model.start(
                Steps(torch.zeros(*no.shape, 0, 0, 0), taken, no.float(), no, no, first, ~no, ~no), Codes(codes)
            )
            alone, _ = model.step(state, action[i : i + 1], noise[i : i + 1])
            assert torch.allclose(kept.score()[i], alone.score()[0], atol=2e-5), (t, i)
            assert torch.allclose(kept.reward.mean[i], alone.reward.mean[0], atol=2e-5), (t, i)
    assert ends > 10


def test_dreams_may_begin_anew_in_the_same_step():
    """The same as on the next step, without the step that only begins anew; the last frame is in the info."""
    model = model_of(ends=-1.0)
    env = DreamEnv(model, starts_of(), 5, horizon=6, autoreset="same_step")
    begins = {frame.tobytes() for frame in frames_of(model, model.encode(starts_of()).indices[:, -1])}
    env.reset(seed=3)
    length = np.zeros(5, int)
    for action in ACTIONS:
        obs, _, terminated, truncated, info = env.step(action)
        length, ended = length + 1, terminated | truncated
        assert np.array_equal(truncated, (length == 6) & ~terminated)
        assert ended.any() == ("final_obs" in info)
        for i in np.flatnonzero(ended):
            assert obs[i].tobytes() in begins and info["final_obs"][i].shape == FRAME and info["_final_obs"][i]
        length[ended] = 0
    assert env.metadata["autoreset_mode"] is gymnasium.vector.AutoresetMode.SAME_STEP


def test_rewards_may_be_expected_ones():
    model = model_of(ends=-30.0)
    drawn, mean = (DreamEnv(model, starts_of(), 5, expected_reward=expected) for expected in (False, True))
    one, two = play(drawn, ACTIONS[:15])[1][:, 0], play(mean, ACTIONS[:15])[1][:, 0]
    assert set(np.unique(one)) <= {-1, 0, 1} and not set(np.unique(two)) <= {-1, 0, 1}


def test_starts_are_drawn_from_all_there_are():
    env = DreamEnv(model_of(), starts_of(6), 5, horizon=1)
    begun = {frame.tobytes() for k in range(30) for frame in env.reset(seed=k)[0]}
    assert len(begun) == 6


def test_a_dream_begins_with_the_last_frame_of_a_long_start():
    model = model_of()
    starts = starts_of(4, model.backbone.context + 3)
    begins = {frame.tobytes() for frame in frames_of(model, model.encode(starts).indices[:, -1])}
    env = DreamEnv(model, starts, 5)
    assert {frame.tobytes() for k in range(30) for frame in env.reset(seed=k)[0]} == begins and len(begins) == 4


def test_a_dream_begins_where_somebody_acted():
    """Not at an episode's last frame: what comes after it is another episode."""
    replay, model = Replay(), model_of()
    obs = starts_of(1, 2, seed=5).obs[0].numpy()
    no, zero = np.zeros(1, bool), np.zeros(1, np.int64)
    for seed in range(3):
        told = dict(action=zero, reward=zero.astype(np.float32), terminated=~no, truncated=no)
        replay.add(Episode(obs=obs, **told, seed=seed, split="train"))
    env = DreamEnv(model, replay, 5)
    steps = replace(starts_of(1, 2), obs=torch.from_numpy(obs)[None])
    expected, other = frames_of(model, model.encode(steps).indices[0])
    assert not np.array_equal(expected, other)
    for k in range(10):
        assert all(np.array_equal(frame, expected) for frame in env.reset(seed=k)[0])


def test_ends_have_a_luck_of_their_own():
    model, starts = model_of(), starts_of(1, 1)
    with torch.no_grad():
        bias = [p for p in model.termination.parameters() if p.shape == (1,)][0]
        env = DreamEnv(model, starts, 64)
        _, state = model.start(starts[torch.zeros(64, dtype=torch.int64)])
        prediction, _ = model.step(state, torch.zeros(64, dtype=torch.int64), torch.rand(64, model.shapes.codes))
        bias -= torch.logit(prediction.terminated.mean.mean())  # about every second dream ends
    starts.first[:, 0] = True
    noise = torch.rand(64, model.shapes.codes + 2, generator=torch.Generator().manual_seed(7))
    _, state = model.start(starts[torch.zeros(64, dtype=torch.int64)])
    prediction, _ = model.step(state, torch.ones(64, dtype=torch.int64), noise[:, :-2])
    env.reset(seed=7)
    _, reward, terminated, _, _ = env.step(np.ones(64, int))
    assert np.array_equal(terminated, (noise[:, -1] < prediction.terminated.mean).numpy()) and 0 < terminated.sum() < 64
    assert np.array_equal(reward, prediction.reward.sample(noise[:, -2]).numpy())


def test_a_single_dream_repeats_its_seed(folder):
    env = gymnasium.make("tokenworld/Dream-v0", model=folder, horizon=20).unwrapped

    def seen(seed):
        frames = [env.reset(seed=seed)[0]]
        for action in ACTIONS[:4, 0]:
            if not env.ended:
                frames.append(env.step(action)[0])
        return np.concatenate(frames).tobytes()

    assert seen(1) == seen(1) and len({seen(seed) for seed in range(8)}) > 4


def test_a_given_frame_begins_the_dream():
    env = DreamEnv(model_of(), starts_of(), 3)
    frames = starts_of(3, 1, seed=9).obs[:, 0].numpy()
    expected = frames_of(env.world_model, env.world_model.encode(starts_of(3, 1, seed=9)).indices[:, 0])
    obs, _ = env.reset(seed=0, options={"obs": frames})
    assert np.array_equal(obs, expected)
    obs, _ = env.reset(seed=0, options={"obs": frames[0]})
    assert np.array_equal(obs, expected[[0, 0, 0]])


def test_starts_from_episodes_in_memory_and_on_disk(tmp_path):
    replay = Replay()
    n = 12
    obs = np.random.default_rng(0).integers(0, 2, (n + 1, *FRAME)).astype(np.uint8) * 255
    no = np.zeros(n, bool)
    zero = np.zeros(n, np.int64)
    told = dict(action=zero, reward=zero.astype(np.float32), terminated=no, truncated=no)
    replay.add(Episode(obs=obs, **told, seed=0, split="train"))
    env = DreamEnv(model_of(), replay, 2)
    assert env.reset(seed=0)[0].shape == (2, *FRAME)
    assert cli.main(["collect", "overlay=debug", "steps=100", f"out={tmp_path / 'data'}"]) == 0
    assert DreamEnv(model_of(), tmp_path / "data", 2).reset(seed=0)[0].shape == (2, *FRAME)


# -------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: DreamEnv(model_of(), starts_of(), 0), "num_envs"),
        (lambda: DreamEnv(model_of(), starts_of(), 1, horizon=0), "horizon"),
        (lambda: DreamEnv(model_of(), starts_of()[:0]), "no moment"),
        (lambda: DreamEnv(model_of(), "nowhere"), "nowhere"),
        (lambda: DreamEnv(model_of(), starts_of()).reset(options={"frame": 1}), "option obs, got frame"),
        (lambda: DreamEnv(model_of(), starts_of()).reset(options={"obs": np.zeros((3, 3), np.uint8)}), "(3, 3)"),
    ],
)
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(UserError) as caught:
        call()
    assert words in str(caught.value)


def test_frames_of_another_game_are_refused():
    other = Steps(*(getattr(starts_of(), f) if f != "obs" else starts_of().obs[:, :, :1] for f in Steps.__dataclass_fields__))
    with pytest.raises(UserError, match="choose episodes of its game"):
        DreamEnv(model_of(), other)


def test_code_of_a_model_is_not_trusted_unasked(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    told = json.loads((copy / "config.json").read_text())
    told["parts"]["backbone"]["_target_"] = "no_such_package.Mine"
    (copy / "config.json").write_text(json.dumps(told))
    for load in (dream_env.load, dream_env.make):
        with pytest.raises(UserError, match="trust_remote_code=True"):
            load(copy)
        with pytest.raises(UserError, match="cannot be imported"):
            load(copy, trust_remote_code=True)
        origins._trusted.clear()


def test_a_model_without_starts_asks_for_them(tmp_path):
    model_of().save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="starts="):
        gymnasium.make("tokenworld/Dream-v0", model=tmp_path / "model")


def test_an_ended_dream_wants_a_reset(folder):
    env = gymnasium.make("tokenworld/Dream-v0", model=folder, horizon=1).unwrapped
    env.reset(seed=0)
    env.step(0)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(0)


# ---------------------------------------------------------------------------------------------------- stable-baselines3


def test_stable_baselines_sees_what_the_dream_does():
    """Ends, last frames and returns arrive; what is cut at the horizon is marked as cut."""
    from tokenworld import sb3

    model = model_of(ends=-1.0)
    plain, wrapped = (DreamEnv(model, starts_of(), 5, horizon=6, autoreset="same_step") for _ in range(2))
    dreams = sb3.Dreams(wrapped)
    dreams.seed(3)
    assert np.array_equal(plain.reset(seed=3)[0], dreams.reset())
    total, episodes = np.zeros(5), 0
    for action in ACTIONS:
        obs, reward, terminated, truncated, told = plain.step(action)
        obs2, reward2, done, infos = dreams.step(action)
        total += reward
        assert np.array_equal(obs, obs2) and np.array_equal(reward, reward2) and np.array_equal(done, terminated | truncated)
        for i in np.flatnonzero(done):
            assert np.array_equal(infos[i]["terminal_observation"], told["final_obs"][i])
            assert infos[i]["TimeLimit.truncated"] == truncated[i] and infos[i]["episode"]["r"] == total[i]
            total[i], episodes = 0, episodes + 1
    assert episodes > 20
    with pytest.raises(UserError, match="same_step"):
        sb3.Dreams(DreamEnv(model, starts_of(), 2))


@pytest.mark.slow
def test_ppo_learns_breakout_in_the_dream_alone(tmp_path):
    """Stable-Baselines3 on a world model of 41,000 real steps: at least three times random play in the real game."""
    from stable_baselines3 import PPO

    from tokenworld import Agent, dream_env
    from tokenworld.sb3 import Dreams
    from tokenworld.scores.returns import score_policy

    run, model = tmp_path / "run", tmp_path / "model"
    assert cli.main(["train", "seed=0", f"out={run}"]) == 0
    assert cli.main(["export", str(run), f"out={model}"]) == 0
    settings = dict(n_steps=32, batch_size=512, n_epochs=4, learning_rate=1e-3, gamma=0.97, ent_coef=0.01)
    for seed in range(3):
        dreams = dream_env.load(model, run / "replay", num_envs=64, horizon=16, autoreset="same_step")
        ppo = PPO("MlpPolicy", Dreams(dreams), seed=seed, policy_kwargs=dict(net_arch=[256, 128]), **settings)
        ppo.learn(100_000)
        real = Agent.from_pretrained(model).make_env(50, max_steps=10_000)
        act = lambda obs, first, ppo=ppo: torch.as_tensor(ppo.predict(obs.numpy())[0])  # noqa: E731
        result = score_policy(real, act, 3, episodes=100, seed=20_000 + seed)
        print(seed, result)
        assert result["return_ci95"][0] > 3 * result["random_return_mean"]
