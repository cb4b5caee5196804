"""Recipes: composed, refused in one sentence when wrong, built; a loaded config cannot name code outside tokenworld."""

import dataclasses
import sys
import types
from typing import Literal

import pytest

from tokenworld import origins
from tokenworld.cli.main import main
from tokenworld.config import compose, renamed, saved, schema, targets
from tokenworld.errors import UserError


class Part:
    """A stand-in for a part in somebody else's package."""

    def __init__(
        self,
        *,
        K: int,
        vocab_size: int = 512,
        lr: float = 1e-3,
        kind: Literal["vq", "fsq"] = "vq",
        path: str | None = None,
        heights: list[int] | None = None,
        levels: tuple[int, int] = (1, 2),
        on: bool = True,
    ):
        self.values = dict(K=K, vocab_size=vocab_size, lr=lr, kind=kind, path=path, heights=heights, levels=levels)
        self.on = on


class Other:
    def __init__(self, *, horizon: int = 5, num_envs: int = 1):
        self.horizon = horizon


@pytest.fixture
def plugin(monkeypatch):
    module = types.ModuleType("somebodys_package")
    module.Part, module.Other = Part, Other
    monkeypatch.setitem(sys.modules, "somebodys_package", module)


@pytest.fixture
def recipe(tmp_path, plugin):
    """A complete recipe of stand-ins, in a file of the user's own."""
    lines = [f"{name}: {{_target_: somebodys_package.Part}}" for name in targets.PARTS if name != "policy"]
    lines += ["policy: {_target_: somebodys_package.Other, horizon: 5}", "train:"]
    lines += [f"  {phase}: {{_target_: somebodys_package.Part, lr: 0.5}}" for phase in schema.TRAIN]
    path = tmp_path / "mine.yaml"
    path.write_text("\n".join(lines).replace("tokenizer: {_target_: somebodys_package.Part}",
                                             "tokenizer: {_target_: somebodys_package.Part, vocab_size: 64}"))
    return f"recipe={path}"


def refusal(words) -> str:
    with pytest.raises(UserError) as caught:
        cfg = compose.compose(words).cfg
        schema.check(cfg)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_overrides_and_own_keys_are_told_apart(recipe):
    words = ["tokenizer.vocab_size=7", "seed=3", "load.tokenizer=runs/a=b", "tokenizer.kind=fsq"]
    spec = compose.compose([recipe, *words])
    schema.check(spec.cfg)
    assert spec.parts["tokenizer"] == {"_target_": "somebodys_package.Part", "vocab_size": 7, "kind": "fsq"}
    assert spec.seed == 3 and spec.loads == {"load.tokenizer": "runs/a=b"} and spec.out is None
    assert set(spec.cfg) == {*targets.PARTS, "train"}


def test_a_key_can_be_removed(recipe):
    cfg = compose.compose([recipe, "~tokenizer.vocab_size"]).cfg
    assert "vocab_size" not in cfg["tokenizer"]
    assert "removes nothing" in refusal([recipe, "~tokenizer.nothing"])


@pytest.mark.parametrize(
    "word",
    ["lr=2", "lr=1e-4", "kind=fsq", "path=null", "path=a/b", "heights=[8]", "heights=null", "levels=[3,4]", "on=false"],
)
def test_right_types_pass(recipe, word):
    cfg = compose.compose([recipe, f"tokenizer.{word}"]).cfg
    schema.check(cfg)


@pytest.mark.parametrize(
    "word", ["vocab_size=abc", "vocab_size=1.5", "vocab_size=true", "vocab_size=null", "lr=abc", "lr=.nan", "lr=false",
             "kind=gfsq", "path=3", "heights=8", "heights=[a]", "levels=[1,2,3]", "on=1"],
)  # fmt: skip
def test_wrong_types_are_refused_with_name_and_value(recipe, word):
    key, _, value = word.partition("=")
    message = refusal([recipe, f"tokenizer.{word}"])
    assert f"tokenizer.{key} must be" in message and "got" in message


def test_misspelt_keys_get_the_nearest_name(recipe):
    assert "did you mean tokenizer.vocab_size?" in refusal([recipe, "tokenizer.vocab_sise=3"])
    assert "did you mean tokenizer?" in refusal([recipe, "tokeniser.vocab_size=3"])
    assert "did you mean train.dynamics?" in refusal([recipe, "train.dynamic.lr=3"])
    assert "did you mean seed?" in refusal([recipe, "sed=1"])


def test_a_key_of_another_section_is_named_in_full(recipe):
    assert "did you mean policy.horizon?" in refusal([recipe, "tokenizer.horizon=3"])
    assert "did you mean policy.horizon?" in refusal([recipe, "horizon=3"])


def test_numbers_that_follow_from_others_are_refused(recipe):
    assert "tokenizer.K follows from the other parts" in refusal([recipe, "tokenizer.K=3"])
    assert "policy.num_envs follows from the other parts" in refusal([recipe, "policy.num_envs=3"])


@pytest.mark.parametrize("word", ["seed=abc", "seed=-1", "steps=0", "device=gpu", "precision=fp16", "out=", "nonsense",
                                  "tokenizer.lr=1,2", "tokenizer=abc", "train=3", "tokenizer.lr=[", "+a.b=1"])
def test_bad_words_are_one_sentence(recipe, word):
    assert refusal([recipe, word])


def test_unknown_recipe_and_overlay(recipe):
    assert "there is no recipe 'quikstart': did you mean quickstart?" in refusal(["recipe=quikstart"])
    assert "there is no overlay 'debgu': did you mean debug?" in refusal([recipe, "overlay=debgu"])
    assert "is not a file" in refusal(["recipe=no/such.yaml"])


def test_an_overlay_changes_what_the_recipe_takes_and_refuses_what_nothing_takes(recipe, tmp_path):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("policy: {horizon: 2}\ntrain: {loop: {lr: 7.0}}")
    bad.write_text("train: {loop: {rl: 7.0}}")
    cfg = compose.compose([recipe, f"overlay={good}", "policy.horizon=3"]).cfg
    assert cfg["train"]["loop"]["lr"] == 7.0 and cfg["policy"]["horizon"] == 3, "the command line comes last"
    message = refusal([recipe, f"overlay={bad}"])
    assert "sets train.loop.rl, which neither the recipe nor any class of tokenworld takes there" in message
    assert "did you mean train.loop.lr?" in message


def test_a_recipe_may_start_from_a_shipped_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("defaults: [quickstart, _self_]\nbackbone: {layers: 7}")
    cfg = compose.compose([f"recipe={path}"]).cfg
    shipped = compose.compose(["recipe=quickstart"]).cfg
    assert cfg["backbone"]["layers"] == 7 and cfg["tokenizer"] == shipped["tokenizer"]


def test_build_passes_values_and_what_code_knows(recipe):
    cfg = compose.compose([recipe, "tokenizer.levels=[3,4]", "tokenizer.heights=[1]"]).cfg
    part = schema.build(cfg["tokenizer"], K=9, unknown_to_this_part=1)
    assert part.values["K"] == 9 and part.values["vocab_size"] == 64
    assert part.values["levels"] == (3, 4) and part.values["heights"] == [1], "lists become tuples where asked for"


@pytest.mark.parametrize(
    "target",
    ["os.system", "tokenworld.config.os.system", "tokenworld.training.loop.torch.load", "tokenworld.heads.torch.load",
     "tokenworld.backbones.gpt.nn.Linear", "builtins.eval", "subprocess.Popen", "somebodys_package.Part",
     "tokenworld.heads.UserError", "tokenworld.config.schema.build", "tokenworld.heads", "tokenworld.heads.__loader__"],
)  # fmt: skip
def test_a_loaded_config_names_parts_of_tokenworld_only(plugin, target):
    with pytest.raises(UserError):
        targets.resolve(target)
    with pytest.raises(UserError):
        schema.build({"_target_": target})


def test_an_untrusted_package_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_package.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="trust"):
        targets.resolve("evil_package.Part")
    assert "evil_package" not in sys.modules


def test_trust_opens_what_it_names_and_nothing_else(plugin):
    origins.trust({"tokenizer": {"_target_": "somebodys_package.Part"}})
    assert targets.resolve("somebodys_package.Part") is Part
    with pytest.raises(UserError):
        targets.resolve("somebodys_package.Other")


def test_a_part_in_the_wrong_section_is_refused(recipe):
    assert "tokenizer._target_ must name something in tokenworld.tokenizers" in refusal(
        [recipe, "tokenizer._target_=tokenworld.heads.SignReward"])


def test_a_target_that_is_not_there(recipe):
    message = refusal([recipe, "reward._target_=tokenworld.heads.SignReword"])
    assert "did you mean tokenworld.heads.SignReward?" in message
    assert "cannot be imported" in refusal([recipe, "reward._target_=no_such_package.Thing"])


def test_saved_and_loaded_again(recipe, tmp_path):
    spec = compose.compose([recipe, "tokenizer.lr=1e-5", "seed=2"])
    saved.save(tmp_path / "config.yaml", spec)
    assert saved.load(tmp_path) == spec == saved.load(tmp_path / "config.yaml")
    assert "torch" in (tmp_path / "config.yaml").read_text(), "package versions"


@pytest.mark.parametrize("content", [None, "a: [", "- 1", "tokenizer: {}", "!!python/object/apply:os.system ['true']"])
def test_a_folder_that_is_no_run(tmp_path, content):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError, match="config"):
        saved.load(tmp_path)


def test_difference_lists_both_sides():
    assert saved.difference({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 3}}) == [("a.c", 2, None), ("a.d", None, 3)]


@pytest.mark.parametrize("name", compose.recipes())
@pytest.mark.parametrize("overlay", [[], ["overlay=debug"]], ids=["full", "debug"])
def test_every_shipped_recipe_is_right(name, overlay):
    cfg = compose.compose([f"recipe={name}", *overlay]).cfg
    schema.check(cfg)


WRONG = [("train.policy.recent", "0.0"), ("train.collect.envs", "1"), ("decoding.prior", "true")]


@pytest.mark.parametrize("key, example", WRONG)
def test_a_wrong_type_is_refused_with_an_example_of_the_right_one(key, example, tmp_path, capsys):
    assert main(["train", "overlay=debug", f"{key}=wrong", f"out={tmp_path / 'run'}"]) == 2
    assert capsys.readouterr().err.rstrip().endswith(f"for example {key}={example}")


def test_names_that_were_moved_name_the_same_things():
    for old, new in targets.MOVED.items():
        assert targets.resolve(old) is targets.resolve(new)
    collect = [{"_target_": "tokenworld.train.collect"}]
    old = {"train": {"loop": {"_target_": "tokenworld.train.loop", "epochs": 3}, "sinks": collect}}
    assert targets.with_new_names(old) == {
        "train": {
            "loop": {"_target_": "tokenworld.training.loop.run_epochs", "epochs": 3},
            "sinks": [{"_target_": "tokenworld.training.phases.collect.collect"}],
        }
    }
    recipe = compose.compose(["train.collect._target_=tokenworld.train.collect"]).cfg
    schema.check(recipe)


def test_a_spec_has_the_same_file_whatever_the_order_of_its_words(tmp_path):
    words = ["recipe=quickstart", "overlay=debug", "seed=2", "device=cpu", "out=a", "tokenizer.lr=1e-5"]
    for name, order in (("a.yaml", words), ("b.yaml", words[::-1])):
        saved.save(tmp_path / name, compose.compose(order))
    assert (tmp_path / "a.yaml").read_bytes() == (tmp_path / "b.yaml").read_bytes()
    spec = saved.load(tmp_path / "a.yaml")
    assert list(spec.command) == ["recipe", "overlay", "seed", "device", "out", "given"]
    changed = spec.with_settings({"train.loop.epochs": 99})
    assert changed.train["loop"]["epochs"] == 99 != spec.train["loop"]["epochs"]
    assert changed.given == ("tokenizer.lr", "train.loop.epochs") and changed.seed == 2


def test_a_recipe_of_an_earlier_version_is_read_with_the_names_of_today(tmp_path):
    spec = compose.compose(["recipe=quickstart"])
    path = tmp_path / "config.yaml"
    saved.save(path, spec)
    text = path.read_text()
    network = "  network:\n    _target_: tokenworld.policies.networks.FrameNetwork\n    hidden: 256\n"
    old = text.replace(network, "  view: frame\n  hidden: 256\n").replace("  normalize: ", "  normalise: ")
    old = old.replace("  update_epochs: ", "  passes: ").replace("command:\n", "command:\n  given:\n  - policy.view\n")
    assert old.count("\n") == text.count("\n") + 1
    path.write_text(old)
    assert saved.load(path) == dataclasses.replace(spec, given=("policy.network._target_",))
    mine = {"policy": {"_target_": "mine.Policy", "view": "frame", "passes": 2}}
    assert renamed.with_new_keys(mine) == mine  # a plug-in's own


@pytest.mark.parametrize("word, expected", [
    ("policy.view=codes", "policy.network._target_: write policy.network._target_=tokenworld.policies.networks.CodesNetwork"),
    ("policy.passes=2", "policy.passes is now policy.update_epochs: write policy.update_epochs=2"),
    ("policy.network.hiden=3", "unknown key policy.network.hiden: did you mean policy.network.hidden"),
    ("policy.network.hidden=x", "policy.network.hidden must be a whole number"),
    ("policy.network._target_=tokenworld.heads.SignReward", "must name something in tokenworld.policies"),
    ("policy.network._target_=os.system", "unknown key policy.network.hidden.*os.system takes"),
    ("policy.network._target_=3", "must name a class"),
])  # fmt: skip
def test_the_section_of_a_network_is_checked(word, expected):
    with pytest.raises(UserError, match=expected):
        schema.check(compose.compose(["recipe=quickstart", word]).cfg)
