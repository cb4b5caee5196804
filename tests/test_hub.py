"""Models as folders: what is loaded is what was saved, what does not fit is named, and nothing of a folder is executed."""

import errno
import json
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import each_recipe, network
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel

from tokenworld import Agent, WorldModel
from tokenworld.action_space import Actions
from tokenworld.cli import main as cli
from tokenworld.errors import UserError
from tokenworld.imagination import Actor
from tokenworld.policies.actor_critic import ActorCritic
from tokenworld.policies.planner import Planner
from tokenworld.scores.returns import episode_returns
from tokenworld.storage import hub, model_folder

FRAMES = {"known_world": (3, 10, 10), "quickstart": (4, 10, 10), "pendulum": (3, 1, 1)}
FRAME = (4, 10, 10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run of moments, exported."""
    out = tmp_path_factory.mktemp("hub")
    assert cli.main(["train", "overlay=debug", f"out={out / 'run'}", "train.collect.first_steps=400"]) == 0
    assert cli.main(["export", str(out / "run"), f"out={out / 'model'}"]) == 0
    return out / "model"


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def logits(model: WorldModel) -> torch.Tensor:
    """Of a dream's first step, with a reward, whatever the weights are."""
    C, H, W = model.shapes.frame
    g = torch.Generator().manual_seed(3)
    frames = torch.randint(0, 256, (2, 3, C, H, W), generator=g, dtype=torch.uint8)
    frames = frames.to(getattr(torch, model.shapes.frame_dtype))
    from conftest import steps_of

    steps = steps_of(2, 3, A=model.shapes.actions.choices[0], first=[(0, 0), (1, 0)])
    steps = type(steps)(**{**{f: getattr(steps, f) for f in steps.__dataclass_fields__}, "obs": frames})
    _, state = model.start(steps)
    noise = torch.rand(2, model.decoding.noise_size, generator=g)
    prediction, _ = model.step(state, torch.zeros(2, dtype=torch.int64), noise)
    drawn = prediction.codes.vectors if prediction.score is None else prediction.score()
    return torch.cat([drawn.flatten(), prediction.reward.mean, prediction.terminated.mean])


def refusal(call, *args, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit(folder: Path, change) -> None:
    told = json.loads((folder / "config.json").read_text())
    change(told)
    (folder / "config.json").write_text(json.dumps(told))


# ---------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("recipe", each_recipe())
def test_what_is_loaded_is_what_was_saved(recipe, tmp_path):
    frame = FRAMES.get(recipe, (3, 64, 64))
    model = WorldModel.from_recipe(recipe, "overlay=debug", frame=frame, actions=3).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.save_pretrained(tmp_path / "model")
    again = WorldModel.from_pretrained(tmp_path / "model")
    assert not again.training and again.shapes == model.shapes
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert torch.equal(logits(model), logits(again))
    again.save_pretrained(tmp_path / "second")
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3", "gpt_neox", "mistral"])
@pytest.mark.parametrize("mode", ["full", "lora"])
def test_a_pretrained_backbone_is_rebuilt_without_its_files(kind, mode, tmp_path):
    sizes = dict(n_layer=1, n_head=2, n_embd=16, n_positions=128) if kind == "gpt2" else dict(
        num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, hidden_size=16, intermediate_size=24
    )  # fmt: skip
    if kind == "qwen3":
        sizes["head_dim"] = 8
    AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=11, **sizes)).save_pretrained(tmp_path / "language")
    words = [f"backbone.path={tmp_path / 'language'}", "backbone.config=null", f"backbone.train_mode={mode}"]
    model = WorldModel.from_recipe("quickstart", "overlay=pretrained", *words, frame=FRAME, actions=3).eval()
    expected = logits(model)
    model.save_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "language")
    assert torch.equal(expected, logits(WorldModel.from_pretrained(tmp_path / "model")))


def test_an_exported_agent_acts_as_its_run(folder):
    run = folder.parent / "run"
    agent = Agent.from_pretrained(folder)
    from tokenworld.training.resume import open_run

    opened_run = open_run(str(run), {"device": "cpu"})
    played = []
    for world_model, policy in ((agent.world_model, agent.policy), (opened_run.world_model.eval(), opened_run.policy.eval())):
        actor = Actor(world_model, policy, generator=torch.Generator().manual_seed(1))
        env = agent.make_env(4, max_steps=30)
        played.append(episode_returns(env, actor, 8, seed=2))
        env.close()
    assert all(np.array_equal(a, b) for a, b in zip(*played, strict=True)) and played[0][1].sum() > 8
    result = agent.score(episodes=3)
    assert result["episodes"] == 3 and result == Agent.from_pretrained(folder).score(episodes=3)


def test_an_export_says_what_it_is(folder):
    told, card = json.loads((folder / "config.json").read_text()), (folder / "README.md").read_text()
    assert told["action_meanings"] == ["NOOP", "LEFT", "RIGHT"] and told["parts"]["env"]["sticky"] == 0.1
    figures = told["figures"]
    assert f"**{figures['score']['return_mean']:.2f}**" in card and figures["verdict"] in card
    assert all(metric["id"] in card for metric in figures["metrics"]) and len(figures["metrics"]) > 5
    starts = model_folder.read_starts(folder)
    context = WorldModel.from_pretrained(folder).backbone.context
    assert starts.obs.shape[1:] == (context, *FRAME) and len(starts.obs) > 1 and bool(starts.acted[:, -1].all())
    assert sorted(path.name for path in folder.iterdir()) == sorted(model_folder.FILES)


# --------------------------------------------------------------------------------------------------------------- acting


def test_frames_come_in_every_usual_form(folder):
    agent = Agent.from_pretrained(folder, temperature=0)
    frame = agent.make_env(1).reset(seed=0)[0][0]  # (4, 10, 10) bytes
    action = agent.act(frame)
    assert isinstance(action, int) and 0 <= action < 3
    for other in (frame.transpose(1, 2, 0), frame.astype(bool), frame.transpose(1, 2, 0) > 0, torch.from_numpy(frame)):
        agent.reset()
        assert agent.act(other) == action
    assert "call reset()" in refusal(agent.act, np.stack([frame] * 5))
    agent.reset()
    many = agent.act(np.stack([frame] * 5))
    assert many.shape == (5,) and (many == action).all()


def test_the_same_seed_acts_alike(folder):
    frames = torch.randint(0, 2, (40, *FRAME), dtype=torch.uint8) * 255
    one, two, other = (Agent.from_pretrained(folder, seed=seed) for seed in (1, 1, 2))
    choose = lambda agent: [agent.act(frame) for frame in frames]  # noqa: E731
    first = choose(one)
    assert first == choose(two) and first != choose(other)
    one.reset(seed=1)
    assert first == choose(one)


def test_a_planner_is_an_agent_too(folder):
    model = WorldModel.from_pretrained(folder)
    agent = Agent(model, Planner(shapes=model.shapes, horizon=2, samples=4, iterations=1, elites=2))
    obs = agent.make_env(2).reset(seed=0)[0]
    assert agent.act(obs).shape == (2,)


@pytest.mark.parametrize("obs", [np.zeros((210, 160, 3), np.uint8), np.zeros(FRAME, np.float32), np.zeros((10, 10), np.uint8)])
def test_frames_that_are_not_its_own_are_refused(folder, obs):
    message = refusal(Agent.from_pretrained(folder).act, obs)
    assert str(tuple(obs.shape)) in message and "(4, 10, 10)" in message and "make_env" in message


def test_which_rows_begin_an_episode(folder):
    agent = Agent.from_pretrained(folder)
    frames = np.zeros((3, *FRAME), np.uint8)
    assert "(3,)" in refusal(agent.act, frames, first=[True, False])
    agent.act(frames, first=[True] * 3)


def roused(folder: Path) -> tuple[WorldModel, torch.nn.Module]:
    """The model and a policy whose weights make memory and frames matter."""
    model = WorldModel.from_pretrained(folder)
    policy = ActorCritic(shapes=model.shapes, network=network("pixels", 8))
    with torch.no_grad():
        for p in (*policy.actor.parameters(), *policy.network.lstm.parameters()):
            p.normal_()
    return model, policy


def chances(agent: Agent) -> list[torch.Tensor]:
    """What its policy will have thought of each action, (rows, A) per call."""
    seen, forward = [], agent.policy.actor.forward
    agent.policy.actor.forward = lambda x: seen.append(forward(x)) or seen[-1]
    return seen


def test_an_agent_remembers_each_episode_for_itself(folder):
    """A row that begins an episode acts as one that has seen nothing; the others go on; bits are bright bytes."""
    agent = Agent(*roused(folder))
    thought = chances(agent)
    frames = torch.randint(0, 2, (4, 3, *FRAME), dtype=torch.uint8) * 255  # 4 steps of 3 rows
    for t in range(3):
        agent.act(frames[t])
    agent.act(frames[3], first=[False, True, False])
    went_on = thought[3]
    agent.reset()
    agent.act(frames[3])
    anew = thought[4]
    assert torch.allclose(went_on[1], anew[1], atol=1e-5)
    for row in (0, 2):
        agent.reset()
        for t in range(4):
            agent.act(frames[t, row])
        assert torch.allclose(thought[-1][0], went_on[row], atol=1e-5)
        assert not torch.allclose(went_on[row], anew[row], atol=1e-2), "memory must matter, or this test says nothing"
    agent.reset()
    agent.act(frames[3].numpy() > 0)
    agent.reset()
    agent.act(frames[3].permute(0, 2, 3, 1))
    assert all(torch.allclose(other, anew, atol=1e-5) for other in thought[-2:])


def test_temperature_and_seed_reach_the_choice(folder):
    model, policy = roused(folder)
    frame = np.zeros((400, *FRAME), np.uint8)
    agents = [Agent(model, policy, temperature=temperature) for temperature in (0, 0.5, 1.0)]
    thought = chances(agents[0])
    chosen = [np.bincount(agent.act(frame), minlength=3) / 400 for agent in agents]
    logits = thought[0][0]
    assert chosen[0][logits.argmax()] == 1
    for shares, temperature in zip(chosen[1:], (0.5, 1.0), strict=True):
        assert shares == pytest.approx((logits / temperature).softmax(-1).numpy(), abs=0.1)
    assert "from 0" in refusal(Agent, model, policy, temperature=-1)


def test_a_score_is_of_its_agent_and_seed(folder, monkeypatch):
    from tokenworld import agent as module

    asked = []
    monkeypatch.setattr(
        module, "score_policy", lambda env, act, actions, **words: asked.append((env, act, actions, words)) or {}
    )
    agent = Agent.from_pretrained(folder, temperature=0.25)
    agent.world_model.config["score_env"] = {"sticky": 0.0}
    made, make = [], agent.make_env
    agent.make_env = lambda num, **changes: made.append((num, changes)) or make(num, **changes)
    drawn = []
    for seed in (3, 4):
        assert agent.score(episodes=5, seed=seed) == {"temperature": 0.25}
        env, actor, actions, words = asked[-1]
        assert env.num_envs == 5 and actor.temperature == 0.25 and actions == Actions((3,))
        drawn.append((words["seed"], actor.generator.initial_seed()))
        assert words["episodes"] == 5
    assert made[0] == (5, {"max_steps": 10_000, "sticky": 0.0})
    assert drawn[0][0] != drawn[1][0] and drawn[0][1] != drawn[1][1]
    assert "at least 1" in refusal(agent.score, episodes=0)


def test_an_export_has_what_was_trained_and_held_out(folder, tmp_path, capsys):
    """A run that never trained its policy is a world model alone; dreams begin at episodes that training did not see."""
    from tokenworld.training.resume import open_run

    words = ["train", "overlay=debug", "train.collect.held_out=2", "train.policy.start=99", "train.evaluate.every=99"]
    assert cli.main([*words, f"out={tmp_path / 'run'}"]) == 0
    assert cli.main(["export", str(tmp_path / "run"), f"out={tmp_path / 'model'}"]) == 0
    assert "world model of" in capsys.readouterr().out and not (tmp_path / "model" / "policy.safetensors").exists()
    assert "without a policy" in refusal(Agent.from_pretrained, tmp_path / "model")
    run = open_run(str(tmp_path / "run"), {"device": "cpu"})
    seen, unseen = ({frame.tobytes() for frame in r.frames(np.arange(r.rows)).numpy()} for r in (run.replay, run.held_out))
    last = [frame.tobytes() for frame in model_folder.read_starts(tmp_path / "model").obs[:, -1].numpy()]
    assert set(last) <= unseen and not set(last) <= seen


def test_what_a_hub_is_asked(tmp_path, monkeypatch):
    """Only a model's own files, of the revision that was asked for, with the token that was given."""
    import huggingface_hub
    from huggingface_hub import constants

    asked = []

    def snapshot(id, *, local_files_only=False, **words):
        asked.append((id, local_files_only, words))
        if local_files_only:
            raise OSError("nothing here")
        return str(tmp_path)

    class Hub:
        def model_info(self, id, timeout, **words):
            asked.append((id, None, words))

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert hub.find("somebody/model", revision="v2", token="t", cache_dir="c") == tmp_path
    words = {"allow_patterns": list(model_folder.FILES), "revision": "v2", "token": "t", "cache_dir": "c"}
    assert asked == [
        ("somebody/model", True, words),
        ("somebody/model", None, {"revision": "v2", "token": "t"}),
        ("somebody/model", False, words),
    ]
    asked.clear()
    assert "only local files" in refusal(hub.find, "somebody/model", local_files_only=True) and len(asked) == 1


# -------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("part", ["tokenizer", "backbone", "reward", "policy", "env"])
@pytest.mark.parametrize(
    "target", ["os.system", "tokenworld.config.os.system", "tokenworld.heads.torch.load", "tokenworld.training.loop.run_epochs"]
)
def test_nothing_from_outside_is_resolved(copy, part, target, monkeypatch):
    import os

    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("executed"))
    edit(copy, lambda told: told["parts"].update({part: {"_target_": target, "command": "touch executed"}}))
    for load in (WorldModel.from_pretrained, Agent.from_pretrained):
        message = refusal(load, copy)
        assert target in message or "tokenworld.training" in message


def test_a_module_that_gymnasium_would_import_is_refused(copy):
    edit(copy, lambda told: told["parts"].update(env={"_target_": "tokenworld.envs.gym.make", "id": "antigravity:Env-v0"}))
    assert "antigravity:Env-v0" in refusal(Agent.from_pretrained, copy)


@pytest.mark.parametrize("changes", [{"id": "antigravity:Env-v0"}, {"_target_": "tokenworld.envs.gym.make"}, "no"])
def test_nor_by_what_it_is_scored_in(copy, changes):
    edit(copy, lambda told: told.update(score_env=changes))
    assert str(changes.get("id", "score_env") if isinstance(changes, dict) else changes) in refusal(Agent.from_pretrained, copy)


def test_nor_by_what_the_training_was_scored_in(copy, capsys):
    """The commands, too, play in the environment that was checked."""
    changes = {"id": "antigravity:Env-v0"}
    edit(copy, lambda told: told["training"]["evaluate"].update(env=changes))
    assert cli.main(["score", str(copy), "episodes=2"]) == 0
    assert "MinAtar/Breakout-v1: return" in "".join(capsys.readouterr())
    edit(copy, lambda told: told.update(training="no"))
    assert cli.main(["score", str(copy)]) == 2 and "training must be a section" in capsys.readouterr().err


def test_a_policy_that_the_config_does_not_name_is_not_saved(folder, tmp_path):
    model = WorldModel.from_pretrained(folder)
    agent = Agent(model, Planner(shapes=model.shapes, horizon=2, samples=4, iterations=1, elites=2))
    assert "Planner" in refusal(agent.save_pretrained, tmp_path / "x") and not (tmp_path / "x").exists()
    del model.config["parts"]["policy"]
    assert "names None" in refusal(model.save_pretrained, tmp_path / "x", policy=Agent.from_pretrained(folder).policy)


def test_trust_opens_an_environment_in_a_module_of_its_own(copy):
    edit(copy, lambda told: told["parts"].update(env={"_target_": "tokenworld.envs.gym.make", "id": "no_such_module:Env-v0"}))
    agent = Agent.from_pretrained(copy, trust_remote_code=True)
    assert "the module no_such_module was not found" in refusal(agent.make_env)


def test_trust_opens_what_the_config_names(copy, tmp_path, monkeypatch):
    package = tmp_path / "somebodys.py"
    package.write_text("from tokenworld.backbones.gpt import GPT\nclass Mine(GPT):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    edit(copy, lambda told: told["parts"]["backbone"].update(_target_="somebodys.Mine"))
    assert "trust_remote_code=True" in refusal(WorldModel.from_pretrained, copy)
    model = WorldModel.from_pretrained(copy, trust_remote_code=True)
    assert type(model.backbone).__name__ == "Mine"


def test_weights_that_do_not_fit_are_named(copy):
    path = copy / "model.safetensors"
    whole = load_file(path)
    key = next(key for key in whole if key.startswith("backbone.") and whole[key].ndim == 2)
    save_file(whole | {key: whole[key][:-1].contiguous()}, path)
    message = refusal(WorldModel.from_pretrained, copy)
    shape = tuple(whole[key].shape)
    assert f"backbone: {key.partition('.')[2]}" in message
    assert str(shape) in message and str((shape[0] - 1, shape[1])) in message
    save_file({k: v for k, v in whole.items() if k != key}, path)
    message = refusal(WorldModel.from_pretrained, copy)
    assert "lacks" in message and f"backbone: {key.partition('.')[2]}" in message and str(shape) in message
    save_file(whole | {"backbone.extra": torch.zeros(3)}, path)
    assert "backbone: extra (3,)" in refusal(WorldModel.from_pretrained, copy)


def test_another_vocabulary_is_named(copy):
    edit(copy, lambda told: told["parts"]["tokenizer"].update(vocab_size=16))
    message = refusal(WorldModel.from_pretrained, copy)
    assert "vocab_size" in message and "16" in message
    edit(copy, lambda told: told["shapes"].update(vocab_size=16))
    message = refusal(WorldModel.from_pretrained, copy)  # both agree, the weights do not
    assert "tokenizer" in message and "(16," in message


def test_the_policys_weights_are_its_own(copy):
    path = copy / "policy.safetensors"
    whole = load_file(path)
    save_file(whole | {"actor.bias": torch.zeros(7)}, path)
    message = refusal(Agent.from_pretrained, copy)
    assert "policy: actor.bias" in message and "(7,)" in message and "(3,)" in message
    path.unlink()
    assert "policy.safetensors is missing" in refusal(Agent.from_pretrained, copy)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"library": "tokenworld"}', '{"library": "tokenworld", "format": 1}']
)
def test_damaged_configs(copy, content):
    (copy / "config.json").write_text(content)
    assert "config.json" in refusal(WorldModel.from_pretrained, copy)


@pytest.mark.parametrize(
    "change, words",
    [({"library": "other"}, "not the config of a tokenworld model"), ({"format": 3}, "format 3, this version reads 1 and 2")],
)
def test_configs_of_others_and_of_later_versions(copy, change, words):
    edit(copy, lambda told: told.update(change))
    assert words in refusal(WorldModel.from_pretrained, copy)


def test_truncated_weights(copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors cannot be read" in refusal(WorldModel.from_pretrained, copy)
    (copy / "starts.safetensors").write_bytes(b"nothing")
    assert "starts.safetensors cannot be read" in refusal(model_folder.read_starts, copy)


def test_models_that_are_not_there(tmp_path, monkeypatch):
    from huggingface_hub import constants

    def blocked(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    monkeypatch.setattr(socket.socket, "connect", blocked)
    message = refusal(WorldModel.from_pretrained, "nobody/nothing")
    assert "nobody/nothing, which is not a folder," in message and "check the name" in message
    assert "only local files" in refusal(WorldModel.from_pretrained, "nobody/nothing", local_files_only=True)
    assert "nor a hub id" in refusal(WorldModel.from_pretrained, tmp_path / "missing")
    assert "has no config.json" in refusal(WorldModel.from_pretrained, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(WorldModel.from_pretrained, "nobody/nothing")


def test_a_model_put_together_by_hand_is_not_saved(folder, tmp_path):
    model = WorldModel.from_pretrained(folder)
    model.config = {}
    assert "from_config" in refusal(model.save_pretrained, tmp_path / "x") and not (tmp_path / "x").exists()


def test_a_folder_of_something_else_is_left_alone(folder, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "no file was overwritten" in refusal(WorldModel.from_pretrained(folder).save_pretrained, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_of_another_library_is_left_alone(folder, tmp_path):
    """It also has a config.json and a model.safetensors, which the first save would have replaced."""
    AutoModel.from_config(AutoConfig.for_model("gpt2", vocab_size=7, n_layer=1, n_head=1, n_embd=8)).save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "no file was overwritten" in refusal(WorldModel.from_pretrained(folder).save_pretrained, tmp_path)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_model_without_a_policy_replaces_one_with(copy):
    model = WorldModel.from_pretrained(copy)
    model.save_pretrained(copy)
    assert sorted(path.name for path in copy.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert "without a policy" in refusal(Agent.from_pretrained, copy)
    assert model_folder.read_starts(copy) is None
    assert torch.equal(logits(WorldModel.from_pretrained(copy)), logits(model))


def test_a_full_disk_leaves_the_old_model(copy, monkeypatch):
    model, before = WorldModel.from_pretrained(copy), {path.name: path.read_bytes() for path in copy.iterdir()}
    write = Path.write_bytes

    def full(self, content):
        if "model.safetensors" in self.name:
            write(self, content[:10])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left" in refusal(model.save_pretrained, copy)
    assert before == {path.name: path.read_bytes() for path in copy.iterdir()}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES])
@pytest.mark.parametrize("owner, name", [(Path, "write_bytes"), (os, "fsync"), (os, "replace")])
def test_a_disk_that_refuses_is_one_sentence(copy, tmp_path, monkeypatch, number, owner, name):
    """Wherever it refuses, the folder of a model stays one, and a new folder can be written by the same call later."""
    model, original = WorldModel.from_pretrained(copy), getattr(owner, name)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    for dir in (copy, tmp_path / "new"):
        calls = []

        def refuses(*args, calls=calls):
            calls.append(args)
            if len(calls) == 1:
                raise OSError(number, os.strerror(number))
            return original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, refuses)
            assert os.strerror(number) in refusal(model.save_pretrained, dir)
    assert before == {path.name: path.read_bytes() for path in copy.iterdir()}
    model.save_pretrained(tmp_path / "new")
    assert torch.equal(logits(WorldModel.from_pretrained(tmp_path / "new")), logits(model))


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours runs after it."""


def killing(patch, kill_at: int) -> list:
    """Die at the file operation number `kill_at`; the list grows by those that happened."""
    done: list = []

    def counted(owner, name):
        original = getattr(owner, name)

        def operation(*args, **keywords):
            if len(done) >= kill_at:
                raise Killed
            done.append(name)
            return original(*args, **keywords)

        patch.setattr(owner, name, operation)

    for owner, name in ((os, "replace"), (os, "fsync"), (Path, "write_bytes")):
        counted(owner, name)
    patch.setattr(Path, "unlink", lambda *_, **__: None)  # the dead clean nothing up
    return done


def test_a_save_that_was_killed_can_be_done_again(folder, tmp_path, monkeypatch):
    model = WorldModel.from_pretrained(folder)
    expected = logits(model)
    for kill_at in range(30):
        dir = tmp_path / str(kill_at)
        with monkeypatch.context() as patch:
            done = killing(patch, kill_at)
            try:
                model.save_pretrained(dir)
            except Killed:
                pass
        finished = len(done) < kill_at
        model.save_pretrained(dir)
        assert sorted(path.name for path in dir.iterdir()) == ["README.md", "config.json", "model.safetensors"]
        assert torch.equal(logits(WorldModel.from_pretrained(dir)), expected)
        if finished:
            break
    assert finished and kill_at > 8


@pytest.mark.parametrize("names", [[".tmp-7-model.safetensors", ".tmp-8-config.json"], [".tmp-7-model.safetensors", ".lock"]])
def test_what_a_killed_save_left_is_not_something_else(folder, tmp_path, names):
    for name in names:
        (tmp_path / name).write_bytes(b"half")
    WorldModel.from_pretrained(folder).save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - {".lock"} == {"README.md", "config.json", "model.safetensors"}
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "config.json").unlink()
    assert "no file was overwritten" in refusal(WorldModel.from_pretrained(folder).save_pretrained, tmp_path)


# --------------------------------------------------------------------------------------------------------- command line


def test_export_overwrites_nothing_and_needs_a_model(folder, tmp_path, capsys):
    run = folder.parent / "run"
    shutil.copytree(folder, tmp_path / "mine")
    (tmp_path / "mine" / "README.md").write_text("mine")
    said = "exists and is not empty, no file was overwritten"
    assert cli.main(["export", str(run), f"out={tmp_path / 'mine'}"]) == 2 and said in capsys.readouterr().err
    assert (tmp_path / "mine" / "README.md").read_text() == "mine"
    assert cli.main(["push", str(run)]) == 2 and "repo=user/name" in capsys.readouterr().err


def test_push_uploads_what_export_writes(folder, monkeypatch, capsys):
    import huggingface_hub

    uploaded = {}

    class Hub:
        def __init__(self, token=None):
            pass

        def create_repo(self, repo, private, exist_ok):
            uploaded.update(repo=repo, private=private)
            return type("Address", (), {"repo_id": repo})

        def upload_folder(self, repo_id, folder_path, allow_patterns, **_):
            uploaded.update({path.name: path.read_bytes() for path in folder_path.iterdir() if path.name in allow_patterns})

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert cli.main(["push", str(folder.parent / "run"), "repo=somebody/breakout", "private=true"]) == 0
    assert "somebody/breakout" in capsys.readouterr().out and uploaded.pop("repo") == "somebody/breakout"
    assert uploaded.pop("private") is True
    assert uploaded == {name: (folder / name).read_bytes() for name in model_folder.FILES}


def test_a_push_without_a_network_says_so(folder, monkeypatch, capsys):
    def blocked(*_, **__):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    monkeypatch.setattr(socket.socket, "connect", blocked)
    assert cli.main(["push", str(folder.parent / "run"), "repo=somebody/breakout"]) == 2
    assert "repo=somebody/breakout cannot be written on the hub" in capsys.readouterr().err


def test_commands_take_an_exported_model_for_a_run(folder, tmp_path, capsys):
    """score and evaluate give what they give for the run; what needs episodes asks for them."""
    run, results = folder.parent / "run", []
    data = ["data=" + str(run / "replay")]
    for where in (run, folder):
        capsys.readouterr()
        assert cli.main(["score", str(where), "episodes=4"]) == 0
        results.append(capsys.readouterr().out.splitlines()[0])
        out = tmp_path / where.name
        assert cli.main(["evaluate", str(where), *data, f"out={out}", "frames=200", "metrics=M1"]) == 0
        told = json.loads((out / "report.json").read_text())
        results.append([metric["value"] for metric in told["metrics"] if metric["id"] == "code_length.bits"])
    assert results[0] == results[2] and results[1] == results[3] and results[1][0] > 0
    assert cli.main(["dream", str(folder), f"out={tmp_path / 'dream.png'}", *data]) == 0
    capsys.readouterr()
    for words in (["dream", str(folder)], ["evaluate", str(folder)], ["play", str(folder)]):
        assert cli.main(words) == 2
        assert "add data=DIR" in capsys.readouterr().err


def test_a_tampered_model_is_refused_by_commands(copy, capsys):
    edit(copy, lambda told: told["training"]["collect"].update(_target_="os.system"))
    assert cli.main(["score", str(copy)]) == 2 and "os.system" in capsys.readouterr().err
    edit(copy, lambda told: told.pop("training"))
    assert cli.main(["score", str(copy)]) == 2 and "tokenworld export" in capsys.readouterr().err
