"""Whatever a model's folder or a run's checkpoint holds, it is loaded whole or refused in one sentence, soon and in bounds."""

import copy
import hashlib
import json
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
import yaml
from conftest import each_recipe
from safetensors.torch import load_file, save_file

from tokenworld import Agent, WorldModel, dream_env
from tokenworld.action_space import Actions
from tokenworld.cli import main as cli
from tokenworld.config import compose
from tokenworld.errors import UserError
from tokenworld.storage import model_folder
from tokenworld.storage.weights import Stored, sketch

SECONDS, MEMORY = 20, 512 * 2**20
LOADERS = {"world model": WorldModel.from_pretrained, "agent": Agent.from_pretrained, "dream": dream_env.load}


@pytest.fixture(autouse=True)
def _grad():
    yield
    assert torch.is_grad_enabled() and torch.get_default_device().type == "cpu"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A run of moments, and its exported model."""
    out = tmp_path_factory.mktemp("loading")
    words = ["overlay=debug", "device=cpu", "train.collect.first_steps=300", "train.collect.held_out=3"]
    assert cli.main(["train", *words, f"out={out / 'run'}"]) == 0
    assert cli.main(["export", str(out / "run"), f"out={out / 'model'}"]) == 0
    return out


@pytest.fixture
def model(folders, tmp_path):
    return Path(shutil.copytree(folders / "model", tmp_path / "model"))


@pytest.fixture
def run(folders, tmp_path):
    return Path(shutil.copytree(folders / "run", tmp_path / "run"))


def refusal(call, *args, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def said(capsys, *words) -> tuple[int, str]:
    """Exit code and message of a command."""
    capsys.readouterr()
    code = cli.main([str(word) for word in words])
    return code, capsys.readouterr().err


def policy_of(run: Path, out: Path) -> list:
    """Train a policy in the world model of a run."""
    return ["train", "policy", "overlay=debug", f"load.world_model={run}", f"data={run / 'replay'}", f"out={out}"]


def peak() -> int:
    """The most memory that this process had since the last call, bytes; 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    kilobytes = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * kilobytes


def bounded(call, *args) -> str:
    """What a refusal says, which takes neither long nor much memory."""
    peak()
    before, began = peak(), time.process_time()
    message = refusal(call, *args)
    assert time.process_time() - began < SECONDS and peak() - before < MEMORY
    return message


def edited(folder: Path, key: str, value) -> None:
    """Change one value of a config.json or config.yaml."""
    path = folder / "config.json" if (folder / "config.json").exists() else folder / "config.yaml"
    told = json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    *parents, last = key.split(".")
    section = told
    for name in parents:
        section = section[name]
    section[last] = value
    path.write_text(json.dumps(told))  # JSON is YAML


# ---------------------------------------------------------------------------------------------------------------- sizes

NETWORKS = "tokenworld.policies.networks."
SIZES = [
    ("backbone.layers", 2_000_000),
    ("backbone.layers", 300_000_000),
    ("backbone.dim", 200_000),
    ("backbone.context", 9_000_000),
    ("backbone.context", 2**40),
    ("tokenizer.vocab_size", 9_000_000),
    ("tokenizer.vocab_size", 2**62),
    ("reward.hidden", 9_000_000),
    ("termination.hidden", 2**31),
]


@pytest.mark.parametrize("key, value", SIZES)
@pytest.mark.parametrize("loader", ["world model", "dream"])
def test_sizes_in_a_config_are_compared_with_the_weights_first(model, key, value, loader):
    edited(model, f"parts.{key}", value)
    assert "config.json" in bounded(LOADERS[loader], model)


@pytest.mark.parametrize("key, value", [
    ("policy.network.hidden", 3_000_000), ("policy.network.hidden", 2**33),
    ("policy.network._target_", NETWORKS + "CodesAndHNetwork"),
])  # fmt: skip
def test_sizes_of_a_policy_too(model, key, value):
    edited(model, f"parts.{key}", value)
    assert "policy" in bounded(Agent.from_pretrained, model)
    assert WorldModel.from_pretrained(model).shapes.actions == Actions((3,))


@pytest.mark.parametrize(
    "key, value",
    [
        ("frame", [4, 60_000, 60_000]),
        ("frame", [60_000, 10, 10]),
        ("frame", [4, 10, 2**70]),
        ("frame", [4, -10, 10]),
        ("actions", 900_000_000),
        ("actions", 0),
        ("actions", True),
        ("shapes", {"codes": 10**9}),
        ("shapes", None),
    ],
)
def test_frames_actions_and_shapes_are_bounded(model, key, value):
    edited(model, key, value)
    message = bounded(WorldModel.from_pretrained, model)
    assert "config.json" in message and len(message) < 600


def with_language_model(folder: Path, **sizes) -> WorldModel:
    """A world model around a tiny GPT-2, saved to a folder."""
    cfg = compose.compose(["recipe=quickstart", "overlay=debug"]).cfg
    sizes = {"model_type": "gpt2", "n_layer": 1, "n_positions": 256} | sizes
    cfg["backbone"] = {"_target_": "tokenworld.backbones.pretrained.Pretrained", "config": sizes, "context": 2}
    world = WorldModel.from_config(cfg, frame=(4, 10, 10), actions=3)
    world.save_pretrained(folder)
    return world


@pytest.mark.parametrize("sizes", [{"n_layer": 9_000_000}, {"n_embd": 400_000}, {"n_positions": 9_000_000}])
def test_sizes_of_a_language_model_in_a_config(tmp_path, sizes):
    world = with_language_model(tmp_path / "model", n_head=2, n_embd=16)
    assert WorldModel.from_pretrained(tmp_path / "model").backbone.D == world.backbone.D
    for key, value in sizes.items():
        edited(tmp_path / "model", f"parts.backbone.config.{key}", value)
    assert "config.json" in bounded(WorldModel.from_pretrained, tmp_path / "model")


def test_masks_that_weights_do_not_have_are_bounded():
    """A table of positions is small where vectors are, the mask of all pairs of them is not."""

    class Masked(torch.nn.Module):
        def __init__(self, positions: int):
            super().__init__()
            self.table = torch.nn.Embedding(positions, 2)
            self.register_buffer("mask", torch.ones(positions, positions, dtype=torch.bool).tril(), persistent=False)

    sections = [{"_target_": "tokenworld.backbones.gpt.GPT"}]
    for positions in (200, 70_000):
        stored = Stored({"table.weight": torch.zeros(positions, 2)}, Path("w"), "config.json", "restore it", "", "backbone")
        if positions == 200:
            assert stored.build_fitting(lambda: Masked(200), sections).mask.sum() == 200 * 201 / 2
        else:
            assert "MB of masks and tables" in bounded(stored.build_fitting, lambda: Masked(70_000), sections)


@pytest.mark.parametrize("key, value", [*SIZES[:4], ("policy.network.hidden", 3_000_000)])
def test_sizes_in_the_config_of_a_run(run, key, value, capsys, tmp_path):
    edited(run, key, value)
    edited(run, "train.loop.epochs", 5)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    for words in (["score", run, "episodes=2"], ["train", "--resume", run], ["export", run, f"out={tmp_path / 'out'}"]):
        peak()
        start, began = peak(), time.process_time()
        code, err = said(capsys, *words)
        assert code == 2 and "Traceback" not in err and "config.yaml" in err
        assert time.process_time() - began < SECONDS and peak() - start < MEMORY
    assert all(path.read_bytes() == content for path, content in before.items()) and not (tmp_path / "out").exists()
    if not key.startswith("policy"):
        code, err = said(capsys, *policy_of(run, tmp_path / "new"))
        assert code == 2 and "config.yaml" in err and not (tmp_path / "new" / "checkpoint").exists()


@pytest.mark.parametrize(
    "change, told",
    [
        (("backbone.dim", 64), ("backbone: blocks.0.norm1.weight", "(32,)", "(64,)")),
        (("backbone.layers", 2), ("lacks", "backbone: blocks.1.")),
        (("tokenizer.vocab_size", 64), ("tokenizer: codebook", "(32, 16)", "(64, 16)")),
        (("policy.network._target_", NETWORKS + "PixelNetwork"), ("policy: network.cnn.0.weight",)),
        (("policy.network.hidden", 48), ("policy: ", "48")),
        (("env.id", "MinAtar/Asterix-v1"), ("decoding: action.table.weight", "(3, 32)", "(5, 32)")),
    ],
)
def test_an_edited_config_of_a_run_is_one_sentence(run, change, told, capsys):
    edited(run, *change)
    edited(run, "train.loop.epochs", 5)
    for words in (["score", run, "episodes=2"], ["train", "--resume", run]):
        code, err = said(capsys, *words)
        assert code == 2 and err.count("\n") == 1 and all(word in err for word in told), err


def test_building_without_memory_draws_nothing(folders):
    stored = model_folder.read_weights(folders / "model" / "model.safetensors")
    told = model_folder.read(folders / "model")
    before = torch.get_rng_state()
    model_folder.check_sizes(WorldModel, told["parts"], stored, frame=tuple(told["frame"]), actions=told["actions"])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("recipe", each_recipe())
def test_every_recipe_can_be_built_without_memory(recipe):
    frame = {"known_world": (3, 10, 10), "quickstart": (4, 10, 10), "pendulum": (3, 1, 1)}.get(recipe, (3, 64, 64))
    for words in ([], ["overlay=pretrained"]):
        cfg = compose.compose([f"recipe={recipe}", *words]).cfg
        model = sketch(lambda cfg=cfg: WorldModel.from_config(cfg, frame=frame, actions=3), 1)
        assert all(x.is_meta for x in model.state_dict().values())


# ------------------------------------------------------------------------------------------------------------ finiteness


def spoil(path: Path, key_end: str, value: float) -> str:
    tensors = load_file(path)
    key = next(key for key in tensors if key.endswith(key_end))
    tensors[key].view(-1)[0] = value
    save_file(tensors, path, metadata={"format": "pt"})
    return key


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(model, value):
    spoil(model / "model.safetensors", "qkv.weight", value)
    for load in LOADERS.values():
        assert "NaN or infinite" in (message := refusal(load, model)) and "backbone: blocks.0.qkv.weight" in message


def test_a_policy_that_is_not_finite_is_named(model):
    spoil(model / "policy.safetensors", "actor.bias", float("nan"))
    assert "policy: actor.bias" in refusal(Agent.from_pretrained, model)


def restamp(run: Path) -> None:
    """Make the checksums of a checkpoint right."""
    path = run / "checkpoint" / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        content = (run / "checkpoint" / name).read_bytes()
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_text(json.dumps(manifest))


def test_a_training_that_diverged_says_so(run, capsys, tmp_path):
    spoil(run / "checkpoint" / "dynamics.safetensors", "blocks.0.out.weight", float("inf"))
    restamp(run)
    for words in (["train", "--resume", run, "train.loop.epochs=5"], ["score", run], policy_of(run, tmp_path / "new")):
        code, err = said(capsys, *words)
        assert code == 2 and "backbone: blocks.0.out.weight" in err and "training diverged" in err


@pytest.mark.parametrize("used", [-5, 33, 2**40])
def test_a_number_of_codes_that_a_dictionary_cannot_have(model, used):
    tensors = load_file(model / "model.safetensors")
    tensors["tokenizer.used"].fill_(used)
    save_file(tensors, model / "model.safetensors")
    assert f"0..32, got {used}" in refusal(WorldModel.from_pretrained, model)


@pytest.mark.parametrize(
    "name, change",
    [
        ("reward", lambda x: x + float("nan")),
        ("action", lambda x: x + 3),
        ("action", lambda x: x.int()),
        ("first", lambda x: x[:, 1:]),
        ("obs", lambda x: x[..., 1:]),
        ("obs", lambda x: x.float()),
        ("valid", None),
    ],
)
def test_moments_to_begin_at_are_checked(model, name, change):
    path = model / "starts.safetensors"
    tensors = load_file(path)
    own = tensors.pop(name)
    save_file(tensors | ({} if change is None else {name: change(own).contiguous()}), path)
    assert "starts.safetensors is damaged" in refusal(model_folder.read_starts, model)
    assert "starts.safetensors is damaged" in refusal(dream_env.load, model)


# -------------------------------------------------------------------------------------------------------------- configs


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"library": "tokenworld", "format": 1, "format": 1}',
        '{"library": "tokenworld", "format": ' + "9" * 5000 + "}",
        '{"library": "tokenworld", "format": true}',
        '{"library": "tokenworld", "format": 1, "parts": null}',
    ],
)
def test_configs_that_json_can_be(model, content):
    (model / "config.json").write_text(content)
    assert "config.json is damaged" in refusal(WorldModel.from_pretrained, model)


# ------------------------------------------------------------------------------------------------------------- mutations

ODD = [None, -1, 2**40, 2**200, 1.5, float("nan"), "x", "", [], {}, [1], {"a": 1}, True, torch.zeros(3), torch.zeros(2, 2)]


def places(value, path=()):
    """Where in a state a value lies; of long lists the ends."""
    if isinstance(value, (dict, list, tuple)):
        items = list(value.items() if isinstance(value, dict) else enumerate(value))
        for key, each in items if isinstance(value, dict) else items[:2] + items[-1:]:
            yield from places(each, (*path, key))
    yield path


def at(value, path):
    for key in path:
        value = value[key]
    return value


def put(value, path, new):
    if not path:
        return new
    if isinstance(value, tuple):
        return tuple(put(each, path[1:], new) if i == path[0] else each for i, each in enumerate(value))
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


def mutated(value, rng):
    choices = list(ODD)
    if torch.is_tensor(value):
        more = [value.double(), value.float() * float("nan"), -value.float(), value[None], value.long() + 100]
        choices += 2 * more + [value.flatten()[:1].expand(10**9)] * (value.numel() > 0)
    elif isinstance(value, int) and not isinstance(value, bool):
        choices += 4 * [value + 1, value - 1, -value, value * 1000, float(value)]
    elif isinstance(value, list):
        choices += [value[:-1], value + value, tuple(value)]
    elif isinstance(value, dict) and value:
        gone = rng.choice(list(value))
        choices += 3 * [{key: each for key, each in value.items() if key != gone}]
    return rng.choice(choices)


def damaged(content: bytes, rng) -> bytes:
    """Bits flipped, the end cut off, bytes doubled or moved."""
    content, where = bytearray(content), rng.randrange(min(len(content), rng.choice([800, 10**9])))
    kind = rng.choice(["flip", "flip", "cut", "double", "swap"])
    if kind == "flip":
        content[where] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[where:]
    elif kind == "double":
        content[where:where] = content[where : where + 40]
    else:
        other = rng.randrange(len(content))
        content[where], content[other] = content[other], content[where]
    return bytes(content)


def mutate(run: Path, seed: int) -> None:
    """A checkpoint of which one value or some bytes are other ones, and whose checksums are right."""
    rng = random.Random(seed)
    path = run / "checkpoint" / "state.pt"
    if seed % 3:
        state = torch.load(path, weights_only=True)
        place = rng.choice(list(places(state)))
        place = place[: rng.randint(1, len(place))] if place else place
        torch.save(put(state, place, mutated(copy.deepcopy(at(state, place)), rng)), path)
    else:
        path = rng.choice([path, path, path.with_name("dynamics.safetensors"), path.with_name("policy.safetensors")])
        path.write_bytes(damaged(path.read_bytes(), rng))
    restamp(run)


def check_mutation(folders, tmp_path, seed, capsys):
    run = tmp_path / "mutated"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(folders / "run", run)
    mutate(run, seed)
    words = ["train", "--resume", run, "train.loop.epochs=4"] if seed % 4 else ["score", run, "episodes=2"]
    code, err = said(capsys, *words)
    assert code in (0, 2) and "Traceback" not in err, (seed, err[-3000:])
    if code == 2:
        assert err.count("\n") <= 1 + err.count("skipped: "), (seed, err)


@pytest.mark.parametrize("seed", range(24))
def test_a_mutated_checkpoint_is_loaded_or_refused_in_one_sentence(folders, tmp_path, seed, capsys):
    check_mutation(folders, tmp_path, seed, capsys)


@pytest.mark.slow
def test_500_mutated_checkpoints(folders, tmp_path, capsys):
    for seed in range(100, 600):
        check_mutation(folders, tmp_path, seed, capsys)


@pytest.mark.parametrize("seed", range(40))
def test_a_mutated_model_is_loaded_or_refused_in_one_sentence(model, seed):
    rng = random.Random(seed)
    if seed % 2:
        told = json.loads((model / "config.json").read_text())
        place = rng.choice([place for place in places(told) if len(place) <= rng.randint(1, 6)])
        new = mutated(copy.deepcopy(at(told, place)), rng)
        (model / "config.json").write_text(json.dumps(put(told, place, None if torch.is_tensor(new) else new)))
    else:
        path = model / rng.choice(["config.json", "model.safetensors", "policy.safetensors", "starts.safetensors"])
        path.write_bytes(damaged(path.read_bytes(), rng))
    for load in LOADERS.values():
        try:
            load(model)
        except UserError as error:
            assert "\n" not in str(error)


# ---------------------------------------------------------------------------------------- optimizers and random generators


def change_state(run: Path, change) -> None:
    path = run / "checkpoint" / "state.pt"
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    restamp(run)


@pytest.mark.parametrize("key", ["collector", "writer", "groups"])
def test_a_checkpoint_without_an_optional_key_is_read_or_refused(folders, tmp_path, key, capsys):
    run = tmp_path / "run"
    shutil.copytree(folders / "run", run)
    change_state(run, lambda state: (state.pop(key, None), state["ranks"][0].pop(key, None)))
    for words in (["score", run, "episodes=2"], ["train", "--resume", run, "train.loop.epochs=4"]):
        code, err = said(capsys, *words)
        assert code in (0, 2) and "Traceback" not in err, err


def test_moments_that_are_not_finite_start_again(run, capsys):
    def spoil_moments(state):
        state["optimizers"]["dynamics"]["state"][0]["exp_avg_sq"].fill_(float("inf"))

    change_state(run, spoil_moments)
    code, err = said(capsys, "train", "--resume", run, "train.loop.epochs=5")
    assert code == 0 and "dynamics optimizer is not finite" in err


@pytest.mark.parametrize("size", [16, 44, 0, 5055])
def test_random_states_of_another_device_are_replaced_with_a_sentence(run, capsys, size):
    """16 bytes are a CUDA generator's; a CPU's has 5,056."""

    def other_device(state):
        for rank in state["ranks"]:
            rank["generator"] = rank["acting"] = torch.zeros(size, dtype=torch.uint8)
            rank["rng"]["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * 2

    change_state(run, other_device)
    finals = []
    for name in ("one", "two"):
        other = shutil.copytree(run, run.with_name(name))
        code, err = said(capsys, "train", "--resume", other, "train.loop.epochs=5")
        assert code == 0 and err.count("the saved random state does not fit the device cpu") == 1
        finals.append(load_file(other / "checkpoint" / "policy.safetensors"))
    assert all(torch.equal(x, finals[1][key]) for key, x in finals[0].items()), "the replacement follows from seed and epoch"


def test_nothing_is_cut_off_before_a_state_is_refused(run, capsys):
    """Metrics and episodes after the checkpoint stay where its own state cannot be used."""

    def no_such_action(state):
        state["ranks"][0]["collector"]["actions"][0] = 200

    change_state(run, no_such_action)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"phase": "collect", "epoch": 3}\n')
    before = (run / "metrics.jsonl").read_bytes()
    code, err = said(capsys, "train", "--resume", run, "train.loop.epochs=5")
    assert code == 2 and "actions 0..200" in err and (run / "metrics.jsonl").read_bytes() == before


def test_a_state_that_would_take_more_memory_than_its_file(run, capsys):
    import zipfile

    path = run / "checkpoint" / "state.pt"
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    restamp(run)
    code, err = said(capsys, "score", run)
    assert code == 2 and "compressed" in err
    os.remove(path)
    torch.save({"x": torch.zeros(1).expand(2**40)}, path)
    restamp(run)
    code, err = said(capsys, "score", run)
    assert code == 2 and "larger than its memory" in err
    path.write_bytes(b"\x80\x02c__builtin__\nbytearray\nJ\xff\xff\xff\x7f\x85R.")
    restamp(run)
    code, err = said(capsys, "score", run)
    assert code == 2 and "not an archive" in err
