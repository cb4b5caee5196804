"""`--help` and the parser say the same: each key that a command lists is accepted, and each that it accepts is listed."""

import inspect
import re
import typing

import pytest

from tokenworld import origins
from tokenworld.cli import main as cli
from tokenworld.cli import verbs
from tokenworld.cli.arguments import SETTINGS, Key
from tokenworld.cli.help import keys_of, of_command
from tokenworld.cli.verbs.score import PLANNER
from tokenworld.cli.verbs.train import RESUME_KEYS
from tokenworld.config import compose, saved
from tokenworld.errors import UserError
from tokenworld.policies.planner import Planner
from tokenworld.storage import model_folder

VERBS = {name: verbs.load(name) for name in verbs.names()}
RECIPES = [name for name, verb in VERBS.items() if SETTINGS.keys() <= verb.HELP.settings.keys()]  # they take settings
KEYS: dict[str, Key] = {name: key for verb in VERBS.values() for name, key in verb.KEYS.items()} | RESUME_KEYS
TRAINING_SETTINGS = VERBS["train"].HELP.settings.keys() - SETTINGS.keys()
START = {  # the words that a command needs before its keys
    "train": [], "sweep": ["out=a"], "collect": [], "bench": ["imagine"], "show": [], "data": ["info", "a"],
    "compare": ["a", "b"],
    **{name: ["a"] for name, verb in VERBS.items() if verb.HELP.positional.startswith("RUN")},
}  # fmt: skip
FLAGS = [[origins.FLAG], ["--json", "a.json"], ["--yaml"]]
NAMES = [*KEYS, "policy.method", "policy.temperature", "port", "version"]


@pytest.fixture(autouse=True)
def _runs_and_recipes_are_taken_as_given(monkeypatch):
    spec = compose.compose([])
    monkeypatch.setattr(saved, "load", lambda run: spec)
    monkeypatch.setattr(model_folder, "is_model", lambda folder: False)


def value_of(name: str) -> str:
    """A value that fits a key."""
    kind = KEYS.get(name, Key(int, "", "")).kind
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)[0]
    return {int: "3", float: "0.5", str: {"recipe": "iris", "overlay": "debug", "against": "iris"}.get(name, "a")}[kind]


def accepts(words: list[str]) -> bool:
    try:
        return callable(cli.parse(words))
    except UserError:
        return False


def listed(text: str) -> set[str]:
    """The keys and flags of a help text: they begin its indented lines."""
    found = {match[1] for match in re.finditer(r"^  (--[\w-]+|[a-z][\w.]*(?==))", text, re.MULTILINE)}
    return found - {"key", *(word.partition("=")[0] for word in (*SETTINGS, *TRAINING_SETTINGS))}


@pytest.mark.parametrize("command", VERBS)
def test_help_lists_what_the_parser_accepts(command):
    start = [word for word in START[command] if word.partition("=")[0] not in VERBS[command].KEYS]
    found = set()
    for name in NAMES:
        extra = ["policy=cem"] if name.startswith("policy.") else ["out=a"] * (command == "sweep" and name != "out")
        is_setting = command in RECIPES and name.split(".")[0] in ("policy", "train")
        if not is_setting and accepts([command, *start, *extra, f"{name}={value_of(name)}"]):
            found.add(name)
    found |= {flag[0] for flag in FLAGS if accepts([command, *START[command], *flag])}
    text = of_command(command)
    assert listed(keys_of(command)) == found
    assert all(keys_of(command) in text for _ in found)


def test_help_lists_what_resume_accepts():
    text = of_command("train").split("settings of --resume RUN")[1]
    found = {name for name in NAMES if accepts(["train", "--resume", "a", f"{name}={value_of(name)}"])}
    assert listed(text) == found == {"data", "device", "train.loop.epochs", "train.loop.checkpoint_every"}


def test_help_lists_the_keywords_of_the_planner_with_their_defaults():
    defaults = {f"policy.{name}": str(p.default) for name, p in inspect.signature(Planner).parameters.items()
                if name not in ("shapes", "method")}  # fmt: skip
    assert {name: key.value for name, key in PLANNER.items()} == defaults


def test_settings_that_help_names_are_accepted():
    for command in RECIPES:
        named = re.findall(r"\b(?:env|train|backbone)(?:\.[a-z_]+)+=[\w/:.-]+", keys_of(command).replace("env.id=ID", ""))
        assert len(named) >= 4
        for word in named:
            of_gym = ["env.id=CartPole-v1"] if word.startswith("env.") and not word.startswith("env.id") else []
            assert accepts([command, *START[command], *of_gym, word]), word
    for command in ("train", "sweep"):
        words = [word.replace("NAME", "trackio") for word in TRAINING_SETTINGS]
        assert accepts([command, *START[command], *words])


@pytest.mark.parametrize("command", VERBS)
def test_lines_of_help_fit_a_terminal_and_have_their_columns(command):
    for line in of_command(command).splitlines():
        assert len(line) <= 128, line
    for line in keys_of(command).splitlines():
        assert re.match(r"  \S[^ ]*( FILE)? +\S| {24}\S|  \S{22,}$", line), line
