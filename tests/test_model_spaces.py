"""Models of any actions as folders: format 2 holds them, format 1 stays what it was, and what does not fit is refused."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenworld import WorldModel
from tokenworld.action_space import Actions
from tokenworld.data.record_format import Episode
from tokenworld.data.replay import Replay
from tokenworld.errors import UserError
from tokenworld.interfaces import Shapes
from tokenworld.storage import model_folder

FRAME = (4, 10, 10)
SAVED = Path(__file__).resolve().parent / "saved" / "0.1.0"
KINDS = {
    "choices": Actions((3, 4)),
    "continuous": Actions((), ((-2.0, 2.0), (0.25, 0.5))),
    "mixed": Actions((3,), ((0.1, 0.3),)),
}


def model_of(actions: Actions | int) -> WorldModel:
    return WorldModel.from_recipe("quickstart", "overlay=debug", frame=FRAME, actions=actions).eval()


def starts_of(actions: Actions, length: int = 3):
    """The last step of an episode has no action: zeros, which these bounds do not hold."""
    rng, replay = np.random.default_rng(0), Replay()
    obs = rng.integers(0, 256, (6, *FRAME), np.uint8)
    action = actions.draw(torch.from_numpy(rng.random((5, actions.size)))).numpy()
    replay.add(Episode(obs, action, np.zeros(5, np.float32), np.arange(5) == 4, np.zeros(5, bool)))
    return replay.gather(np.arange(6).reshape(-1, length))


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    model_of(KINDS[request.param]).save_pretrained(folder, starts=starts_of(KINDS[request.param]))
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    model_of(KINDS["mixed"]).save_pretrained(folder, starts=starts_of(KINDS["mixed"]))
    return folder


@pytest.fixture
def copy(mixed, tmp_path) -> Path:
    return Path(shutil.copytree(mixed, tmp_path / "copy"))


def refusal(call, *args) -> str:
    with pytest.raises(UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return str(caught.value)


def edit(folder: Path, change) -> None:
    told = json.loads((folder / "config.json").read_text())
    change(told)
    (folder / "config.json").write_text(json.dumps(told))


def test_what_is_loaded_is_what_was_saved(saved, tmp_path):
    told = json.loads((saved / "config.json").read_text())
    actions = model_folder.spaces_of(told)["actions"]
    assert actions in KINDS.values() and told["format"] == 2
    as_told = {"choices": list(actions.choices), "bounds": [list(pair) for pair in actions.bounds]}
    assert told["actions"] == told["shapes"]["actions"] == as_told
    assert told["frame_dtype"] == told["shapes"]["frame_dtype"] == "uint8"
    again = WorldModel.from_pretrained(saved)
    assert again.shapes.actions == actions
    starts, expected = model_folder.read_starts(saved), starts_of(actions)
    assert all(torch.equal(a, b) for a, b in zip(vars(starts).values(), vars(expected).values(), strict=True))
    prediction, state = again.start(starts[:1])  # all acted
    again.step(state, starts.action[:1, 0], torch.rand(1, again.decoding.noise_size))
    again.save_pretrained(tmp_path / "second", starts=starts)
    for name in ("model.safetensors", "config.json", "README.md", "starts.safetensors"):
        assert (saved / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def test_a_card_names_the_parts_of_an_action(mixed):
    card = (mixed / "README.md").read_text()
    assert "- frames: 4 x 10 x 10 (channels, height, width), uint8\n" in card
    assert "- actions: 1 discrete (3) and 1 continuous parts (0..2, 0.1..0.3)\n" in card
    told = json.loads((mixed / "config.json").read_text())
    vectors = told | {"frame": [3, 1, 1], "frame_dtype": "float32", "actions": {"choices": [2], "bounds": []}}
    card = model_folder.card(vectors | {"action_meanings": ["left", "right"]}, {})
    assert "- frames: state vectors of 3 numbers\n- actions: 2 (left, right)\n" in card and "height" not in card


def test_one_action_and_bytes_are_saved_as_ever(tmp_path):
    """Against what version 0.1.0 wrote."""
    before = json.loads((SAVED / "model" / "config.json").read_text())
    starts = model_folder.read_starts(SAVED / "model")
    WorldModel.from_pretrained(SAVED / "model").save_pretrained(tmp_path / "model", starts=starts)
    text = (tmp_path / "model" / "config.json").read_text()
    now = json.loads(text)
    assert text == json.dumps(now, indent=1) + "\n" and list(now) == list(before)
    for key in ("library", "format", "frame", "actions", "shapes", "action_meanings", "figures"):
        assert json.dumps(now[key]) == json.dumps(before[key]), key
    assert (tmp_path / "model" / "starts.safetensors").read_bytes()[-1000:] == (
        SAVED / "model" / "starts.safetensors"
    ).read_bytes()[-1000:]
    lines = [(folder / "README.md").read_text().splitlines() for folder in (SAVED / "model", tmp_path / "model")]
    for word in ("- actions:", "- codes:"):
        assert len({next(line for line in each if line.startswith(word)) for each in lines}) == 1


def test_shapes_say_their_frames_where_that_is_news():
    shapes = Shapes((3, 1, 1), Actions((2,)), (1, 3), 3, 16, 8, 32, "float32")
    told = model_folder.shapes_as_json(shapes)
    assert told == asdict(shapes) | {
        "frame": [3, 1, 1], "grid": [1, 3], "actions": {"choices": [2], "bounds": []}, "frame_dtype": "float32"
    }  # fmt: skip
    config = {"format": 2, "frame": [3, 1, 1], "actions": told["actions"], "frame_dtype": "float32"}
    assert model_folder.spaces_of(config) == {"frame": (3, 1, 1), "actions": Actions((2,)), "frame_dtype": "float32"}
    assert "frame_dtype" not in model_folder.shapes_as_json(replace(shapes, frame_dtype="uint8"))


@pytest.mark.parametrize(
    "value",
    [None, 3, [], {}, {"choices": [3]}, {"choices": [], "bounds": []}, {"choices": [0], "bounds": []},
     {"choices": [2**40], "bounds": [[0, 1]]}, {"choices": [True], "bounds": [[0, 1]]}, {"choices": [3], "bounds": [[1, 0]]},
     {"choices": [3], "bounds": [[0, float("nan")]]}, {"choices": [3], "bounds": [[0, float("inf")]]},
     {"choices": [3], "bounds": [[0, 1e300]]}, {"choices": [3], "bounds": [[0, 10**400]]},
     {"choices": [3], "bounds": [[0, 1]] * 2000}, {"choices": [3] * 2000, "bounds": []}],
)  # fmt: skip
@pytest.mark.parametrize("inner", [False, True])
def test_actions_that_cannot_be_are_refused(value, inner, copy):
    edit(copy, lambda told: (told["shapes"] if inner else told).update(actions=value))
    said = refusal(WorldModel.from_pretrained, copy)
    assert "config.json is damaged, " + "shapes." * inner + "actions must be choices, whole numbers" in said


@pytest.mark.parametrize("value", [None, 8, "float64", ["uint8"], ""])
def test_types_of_frames_that_cannot_be_are_refused(value, copy):
    edit(copy, lambda told: told.update(frame_dtype=value))
    assert "frame_dtype must be uint8 or float32" in refusal(WorldModel.from_pretrained, copy)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda told: told.update(format=1), "actions must be a whole number"),
        (lambda told: told.update(actions={"choices": [4], "bounds": [[0.1, 0.3]]}), "actions"),
        (lambda told: told.update(actions={"choices": [3], "bounds": []}), "actions"),
        (lambda told: told["actions"].update(bounds=[[0.1, 0.4]]), "but its parts make actions"),
        (lambda told: told["shapes"]["actions"].update(bounds=[[0.1, 0.4]]), "but its parts make actions"),
        (lambda told: told["shapes"].update(frame_dtype="float32"), "but its parts make frame_dtype uint8"),
    ],
)
def test_configs_that_contradict_themselves_are_refused(change, said, copy):
    edit(copy, change)
    message = refusal(WorldModel.from_pretrained, copy)
    assert "config.json" in message and said in message


def test_format_2_is_refused_where_format_1_would_do(tmp_path):
    model_of(3).save_pretrained(tmp_path / "model")
    one = {"choices": [3], "bounds": []}

    def change(told):
        told.update(format=2, actions=one, frame_dtype="uint8")
        told["shapes"].update(actions=one, frame_dtype="uint8")

    edit(tmp_path / "model", change)
    assert "but its parts make actions 3" in refusal(WorldModel.from_pretrained, tmp_path / "model")


def taken(value: float, part: int):
    def change(x: torch.Tensor) -> torch.Tensor:
        x = x.clone()
        x[0, 1, part] = value
        return x

    return change


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("action", taken(0.5, 0), "it has actions (0.5, 0."),
        ("action", taken(3, 0), "expected (0..2, 0.1..0.3)"),
        ("action", taken(0.0, 1), "expected (0..2, 0.1..0.3)"),
        ("action", taken(float("nan"), 1), "nan), expected (0..2, 0.1..0.3)"),
        ("action", lambda x: x[..., :1], "actions of 1 parts"),
        ("action", lambda x: x[..., 0].long(), "action must be a tensor of 3 dimensions of float32"),
        ("action", lambda x: x.double(), "action must be a tensor of 3 dimensions of float32"),
        ("obs", lambda x: x.float(), "obs must be a tensor of 5 dimensions of uint8"),
    ],
)
def test_moments_to_begin_at_are_checked(name, change, said, copy):
    path = copy / "starts.safetensors"
    tensors = load_file(path)
    save_file(tensors | {name: change(tensors[name]).contiguous()}, path)
    assert said in (message := refusal(model_folder.read_starts, copy)) and "starts.safetensors is damaged" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_moments_of_state_vectors_are_numbers(value, copy):
    path = copy / "starts.safetensors"
    tensors = load_file(path)
    obs = torch.randn(*tensors["obs"].shape[:2], 3, 1, 1)
    edit(copy, lambda told: told.update(frame=[3, 1, 1], frame_dtype="float32"))
    save_file(tensors | {"obs": obs}, path)
    assert torch.equal(model_folder.read_starts(copy).obs, obs)
    obs[0, 1, 2] = value
    save_file(tensors | {"obs": obs}, path)
    assert "it has frames that are NaN or infinite" in refusal(model_folder.read_starts, copy)
