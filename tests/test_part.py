"""The base of all parts: hooks with defaults, which callers call without asking whether they are there."""

import ast
import sys
import types

import pytest
import torch
from conftest import discover
from test_house_rules import SOURCES
from torch import nn

from tokenworld import origins
from tokenworld.actions import ActionTable, ShuffledAction
from tokenworld.config import schema
from tokenworld.errors import UserError
from tokenworld.heads import SignReward, Termination, TwoHotReward
from tokenworld.interfaces import Part
from tokenworld.optim import make

HOOKS = {name for name in vars(Part) if not name.startswith("_")}


class Bare(nn.Module, Part):
    def __init__(self, *, scale: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((2, 2), scale))


class Lone(nn.Module):
    """A part without the base."""

    def __init__(self):
        super().__init__()


class Shadowed(Bare):
    """Its submodule would be hidden by the default of a hook."""

    def __init__(self):
        super().__init__()
        self.attention = nn.Linear(2, 2)


@pytest.fixture
def plugin(monkeypatch):
    module = types.ModuleType("somebodys_parts")
    for one in (Bare, Lone, Shadowed):
        setattr(module, one.__name__, one)
        origins.trust({"tokenizer": {"_target_": f"somebodys_parts.{one.__name__}"}})
    monkeypatch.setitem(sys.modules, "somebodys_parts", module)


def test_every_shipped_part_has_the_base():
    made = [part.make for folder in ("tokenizers", "backbones", "decoding", "policies") for part in discover(folder)]
    for one in [*made, ActionTable, ShuffledAction, SignReward, TwoHotReward, Termination]:
        assert one.__mro__.index(nn.Module) < one.__mro__.index(Part), one


def test_the_defaults_say_that_there_is_nothing():
    part = Bare()
    assert (part.patch, part.receptive_field, part.temperature, part.signs_only) == (None, None, None, False)
    assert part.parameter_groups() is part.portable() is part.codes_in_use() is None
    assert part.attention(torch.zeros(1, 1, 1, 2), "full") is None
    part.set_codebook(torch.zeros(3, 2), 3)
    assert part.state_dict().keys() == {"weight"}


def test_the_default_hooks_draw_nothing():
    """A drawn batch would move the random stream that all later batches come from."""

    def sample():
        raise AssertionError("drawn")

    def batches():
        raise AssertionError("drawn")
        yield

    Bare().prepare(sample)
    Bare().finalize(batches())


def test_a_rate_of_its_own_is_asked_of_every_part_within():
    class Slow(Bare):
        def parameter_groups(self):
            return [(0.1, [self.weight])]

    groups = make(nn.ModuleList([nn.Linear(2, 2), Bare(), nn.Sequential(Slow())]), lr=1.0, weight_decay=0.0).param_groups
    assert sorted((group["lr"], len(group["params"])) for group in groups) == [(0.1, 1), (1.0, 1), (1.0, 2)]


def test_a_plug_in_with_the_base_is_built(plugin):
    assert schema.build({"_target_": "somebodys_parts.Bare", "scale": 3.0}).weight[0, 0] == 3


def test_a_plug_in_without_the_base_is_refused(plugin):
    with pytest.raises(UserError, match=r"got Module: write class Lone\(nn.Module, Part\)"):
        schema.build({"_target_": "somebodys_parts.Lone"})


def test_a_submodule_that_a_hook_would_hide_is_refused(plugin):
    with pytest.raises(UserError, match="submodule with the name of a hook .*, attention: give it another name"):
        schema.build({"_target_": "somebodys_parts.Shadowed"})


def calls_of(tree: ast.AST):
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]


def test_no_caller_asks_whether_a_hook_is_there():
    old = {"reach", "refit", "ahead", "used"}  # the names that hooks had
    for module, path in SOURCES.items():
        for call in calls_of(ast.parse(path.read_text(encoding="utf-8"))):
            if call.func.id in ("hasattr", "getattr") and len(call.args) > 1 and isinstance(call.args[1], ast.Constant):
                assert call.args[1].value not in HOOKS | old, f"{module}:{call.lineno}"


def test_every_hook_has_a_caller():
    read = set()
    for module, path in SOURCES.items():
        if module != "tokenworld.interfaces":
            nodes = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Attribute)]
            read |= {node.attr for node in nodes if not (isinstance(node.value, ast.Name) and node.value.id == "self")}
    assert HOOKS and HOOKS <= read, HOOKS - read
