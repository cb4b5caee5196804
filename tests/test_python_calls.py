"""What people pass from Python: NumPy's and PyTorch's numbers and arrays work, what cannot be is one sentence, as on the
command line."""

import numpy as np
import pytest
import torch

from tokenworld import Agent, WorldModel, dream_env
from tokenworld.cli import main as cli
from tokenworld.errors import UserError
from tokenworld.imagination import imagine
from tokenworld.interfaces import Codes
from tokenworld.nn import check_device
from tokenworld.policies.planner import Planner
from tokenworld.world_model import frames_as_steps

FRAME, A = (4, 10, 10), 3
SEEDS = [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), np.int32(3)]
NO_SEEDS = [-1, np.int64(-1), 1.5, 3.0, "3", True, [3], 2**64, np.float32(3), torch.tensor(3.0), torch.tensor([1, 2])]
NO_COUNTS = [0, -1, 1.5, "a", None, True, [4], np.float64(2), float("nan")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("calls")
    assert cli.main(["train", "overlay=debug", "device=cpu", f"out={out / 'run'}"]) == 0
    assert cli.main(["export", str(out / "run"), f"out={out / 'model'}"]) == 0
    return out / "model"


@pytest.fixture(scope="module")
def agent(folder):
    return Agent.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    return WorldModel.from_pretrained(folder)


def frame(*shape):
    return (np.random.default_rng(0).random((*shape, *FRAME)) < 0.2).astype(np.uint8) * 255


def refuse(call, *words):
    with pytest.raises(UserError) as told:
        call()
    said = str(told.value)
    assert all(word in said for word in words) and "\n" not in said and len(said) < 400, said


# --------------------------------------------------------------------------------------------------------------- frames

LAYOUTS = {
    "flipped": lambda x: x[:, ::-1][:, ::-1][..., ::-1][..., ::-1],
    "flipped once": lambda x: np.ascontiguousarray(x[..., ::-1])[..., ::-1],
    "of another order": np.asfortranarray,
    "every other": lambda x: np.repeat(x, 2, -1)[..., ::2],
    "of a tensor": torch.from_numpy,
    "of a list": np.ndarray.tolist,
    "bools": lambda x: x > 0,
    "channels last": lambda x: np.moveaxis(x, 0, -1),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_frames_of_any_memory_layout_are_the_same_frame(agent, name):
    plain, given = frame(), LAYOUTS[name](frame())
    if name == "of a list":
        given = np.array(given, np.uint8)
    agent.reset(seed=5)
    expected = [agent.act(plain) for _ in range(5)]
    agent.reset(seed=5)
    assert [agent.act(given) for _ in range(5)] == expected


@pytest.mark.filterwarnings("error")
def test_frames_that_cannot_be_written_are_read_and_left_alone(agent):
    given = frame(2)
    given.flags.writeable = False
    agent.reset()
    assert agent.act(given[:, :, ::-1], first=np.array([True, False, True])[::2]).shape == (2,)
    assert (given == frame(2)).all()


@pytest.mark.parametrize("wrong", [
    frame().astype(np.float32), frame().astype(np.int64), frame()[:, :9], frame()[:3], frame(0), frame(2, 2), "frame", None, 3,
    [[1, 2], [3]], np.zeros(FRAME, object), np.zeros(FRAME, "U1"),
])  # fmt: skip
def test_frames_that_cannot_be_are_refused(agent, wrong):
    agent.reset()
    refuse(lambda: agent.act(wrong), "obs")


# ---------------------------------------------------------------------------------------------------- seeds and numbers


@pytest.mark.parametrize("seed", SEEDS, ids=lambda s: f"{type(s).__module__}.{type(s).__name__}")
def test_whole_numbers_of_any_library_are_seeds(folder, seed):
    actions = []
    for each in (3, seed):
        agent = Agent.from_pretrained(folder, seed=each)
        actions.append([agent.act(frame()) for _ in range(8)])
        agent.reset(each)
        actions.append([agent.act(frame()) for _ in range(8)])
    assert all(each == actions[0] for each in actions)
    dreams, one = dream_env.load(folder, num_envs=np.int64(2), horizon=torch.tensor(5)), dream_env.make(folder)
    assert (dreams.reset(seed=seed)[0] == dreams.reset(seed=3)[0]).all()
    assert (one.reset(seed=seed)[0] == one.reset(seed=3)[0]).all()


@pytest.mark.parametrize("seed", NO_SEEDS, ids=repr)
def test_what_is_no_seed_is_refused(folder, agent, seed):
    for call in (lambda: Agent.from_pretrained(folder, seed=seed), lambda: agent.reset(seed), lambda: agent.score(1, seed=seed),
                 lambda: dream_env.load(folder).reset(seed=seed), lambda: dream_env.make(folder).reset(seed=seed)):  # fmt: skip
        refuse(call, "seed must be")


@pytest.mark.parametrize("count", NO_COUNTS, ids=repr)
def test_what_is_no_number_of_things_is_refused(folder, agent, count):
    refuse(lambda: agent.score(episodes=count), "episodes must be")
    refuse(lambda: agent.score(episodes=1, envs=count), "envs must be")
    refuse(lambda: agent.make_env(count), "num_envs must be")
    refuse(lambda: dream_env.load(folder, num_envs=count), "num_envs must be")
    refuse(lambda: dream_env.load(folder, horizon=count), "horizon must be")
    refuse(lambda: WorldModel.from_recipe("quickstart", "overlay=debug", frame=FRAME, actions=count), "actions must be")


def test_a_score_takes_numbers_of_any_library(agent):
    assert agent.score(np.int64(2), seed=np.int64(1), envs=torch.tensor(2)) == agent.score(2, seed=1, envs=2)


SIZES = [(0, 10, 10), (4, 10), (4, 10, 10, 1), (4, -10, 10), (4, 10.0, 10), "abc", 4, None, ()]
ELSEWHERE = ["nonsense", "cuda:99", "mps:9", "", None, "xpu", 99, "cpu:x"] + ["cuda"] * (not torch.cuda.is_available())


@pytest.mark.parametrize("wrong", SIZES, ids=repr)
def test_sizes_of_frames_that_cannot_be_are_refused(wrong):
    refuse(lambda: WorldModel.from_recipe("quickstart", "overlay=debug", frame=wrong, actions=3), "frame")


def test_sizes_of_any_library_work():
    sizes = np.array(FRAME)
    assert WorldModel.from_recipe("quickstart", "overlay=debug", frame=sizes, actions=np.int64(3)).shapes.frame == FRAME


@pytest.mark.parametrize("temperature", [-1, "hot", None, float("nan"), float("inf"), [1.0]], ids=repr)
def test_temperatures_that_cannot_be_are_refused(folder, temperature):
    refuse(lambda: Agent.from_pretrained(folder, temperature=temperature), "temperature must be")


# -------------------------------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("name", ELSEWHERE, ids=repr)
def test_devices_that_are_not_there_are_refused(folder, name):
    refuse(lambda: check_device(name), "expected one of cpu")
    refuse(lambda: Agent.from_pretrained(folder, device=name), "expected one of cpu")
    refuse(lambda: dream_env.load(folder, device=name), "expected one of cpu")


def test_devices_that_are_there():
    assert check_device("cpu") == check_device(torch.device("cpu")) == torch.device("cpu")


# ------------------------------------------------------------------------------------------------------ the world model


@pytest.mark.parametrize("wrong, words", [
    (torch.rand(1, *FRAME), "multiply values in 0..1 by 255"), (torch.zeros(1, *FRAME, dtype=torch.int64), "torch.uint8"),
    (torch.zeros(FRAME, dtype=torch.uint8), "expected (B, C, H, W)"), (frame(1), "torch.Tensor"), (None, "torch.Tensor"),
])  # fmt: skip
def test_frames_of_a_model_are_bytes(model, wrong, words):
    refuse(lambda: frames_as_steps(wrong), words)
    _, state = model.start(frames_as_steps(torch.from_numpy(frame(1))))
    refuse(lambda: model.observe(state, torch.tensor([0]), wrong, torch.tensor([False])), words)


def test_frames_of_a_model_have_its_shape(model):
    last = torch.from_numpy(np.ascontiguousarray(np.moveaxis(frame(1), 1, -1)))
    small = torch.zeros(1, 4, 9, 10, dtype=torch.uint8)
    for call in (model.start, model.encode):
        refuse(lambda call=call: call(frames_as_steps(last)), "channels come first", "(4, 10, 10)")
        refuse(lambda call=call: call(frames_as_steps(small)), "as in training", "(4, 10, 10)")
    refuse(lambda: model.start(frames_as_steps(torch.from_numpy(frame(2)), torch.ones(3, dtype=torch.bool))), "first")
    refuse(lambda: model.start(frames_as_steps(torch.from_numpy(frame(2)), torch.ones(2))), "first")


@pytest.mark.parametrize("action", [
    torch.tensor([9, 0]), torch.tensor([-1, 0]), torch.tensor([0]), torch.tensor([0, 0, 0]), torch.tensor([[0], [0]]),
    torch.tensor(0), torch.tensor([0.0, 1.0]), torch.tensor([True, False]), [0, 0], np.zeros(2, int), 0, None,
], ids=lambda x: str(x).replace("\n", " "))  # fmt: skip
def test_actions_that_cannot_be_are_refused(model, action):
    obs, first = torch.from_numpy(frame(2)), torch.zeros(2, dtype=torch.bool)
    _, state = model.start(frames_as_steps(obs))
    refuse(lambda: model.step(state, action, torch.rand(2, model.shapes.codes)), "actions must be")
    refuse(lambda: model.observe(state, action, obs, first), "actions must be")
    many = torch.stack([action, action], -1)[..., None] if isinstance(action, torch.Tensor) else action
    refuse(lambda: model.rollout(state, many, torch.rand(2, 2, 1, model.shapes.codes)), "actions must be")
    dreams = dream_env.DreamEnv(model, frames_as_steps(obs), 2)
    dreams.reset(seed=0)
    if not isinstance(action, (list, np.ndarray)):
        refuse(lambda: dreams.step(action), "actions must be 2 whole numbers in 0..2")
    prediction, _ = model.step(state, torch.tensor([0, 1]), torch.rand(2, model.shapes.codes))  # it can still be used
    assert prediction.codes.indices.shape == (2, 1, model.shapes.codes)


def test_noise_that_cannot_be_is_refused(model):
    K = model.shapes.codes
    prediction, state = model.start(frames_as_steps(torch.from_numpy(frame(2))))
    action = torch.tensor([0, 1])
    for wrong in (torch.rand(2, K + 1), torch.rand(1, K), torch.rand(K), torch.zeros(2, K, dtype=torch.int64), None, 0.5):
        refuse(lambda wrong=wrong: model.step(state, action, wrong), "noise must be", f"(2, {K})")
    actions = torch.zeros(2, 3, 4, dtype=torch.int64)
    for wrong in (torch.rand(2, 3, 4), torch.rand(2, 4, 3, K), torch.rand(2, 3, 4, K + 1)):
        refuse(lambda wrong=wrong: model.rollout(state, actions, wrong), "noise must be", f"(2, 3, 4, {K})")
    planner = Planner(shapes=model.shapes, horizon=2, samples=4, iterations=1, elites=2)
    for wrong in (torch.rand(2, 3, K), torch.rand(2, 4, K + 3), torch.rand(1, 3, K + 3)):
        refuse(lambda wrong=wrong: imagine(model, prediction, state, planner, 3, wrong), "noise must be")
    assert len(model.rollout(state, actions, torch.rand(2, 3, 4, K))) == 4


def test_codes_that_cannot_be_are_refused(model):
    K, V = model.shapes.codes, model.shapes.vocab_size
    flat, real = torch.zeros(1, K, dtype=torch.int64), torch.zeros(1, 1, K)
    for wrong in (torch.full((1, 1, K), V), torch.full((1, 1, K), -1), flat, real):
        refuse(lambda wrong=wrong: model.decode(Codes(wrong)), "codes must be")
        refuse(lambda wrong=wrong: model.start(frames_as_steps(torch.from_numpy(frame(1))), Codes(wrong)), "codes must be")


def test_a_dream_env_says_what_it_cannot_do(model, folder):
    for starts in (3, [1], np.zeros((2, *FRAME), np.uint8)):
        refuse(lambda starts=starts: dream_env.DreamEnv(model, starts), "starts must be")
    steps = frames_as_steps(torch.from_numpy(frame(2)))
    refuse(lambda: dream_env.DreamEnv(model, steps).step([0]), "call reset()")
    dreams = dream_env.DreamEnv(model, steps, 2)
    for wrong in ([1], "obs", 3):
        refuse(lambda wrong=wrong: dreams.reset(options=wrong), "options")
    refuse(lambda: dreams.reset(options={3: 1}), "option obs")
    obs, _ = dreams.reset(seed=1, options={"obs": frame()[:, ::-1]})
    assert obs.shape == (2, *FRAME)
    for wrong in ([0, 1.0], ["a", "b"], [0], [0, 3], [[0, 1]], [None, 0], [[0], [1, 2]]):
        refuse(lambda wrong=wrong: dreams.step(wrong), "actions must be")
    assert dreams.step((np.int8(0), 1))[0].shape == (2, *FRAME)
