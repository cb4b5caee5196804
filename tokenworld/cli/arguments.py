"""What commands share: keys with their help, the recipe that words describe, the folder that they name."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenworld import origins
from tokenworld.config import compose, saved
from tokenworld.config.saved import RunSpec
from tokenworld.config.schema import CLI_KEYS, TOP
from tokenworld.errors import UserError

# ---------------------------------------------------------------------------------------------------------------------
# What a command takes, and its help


@dataclass(frozen=True)
class Key:
    """A `name=value` of the command line. kind: the annotation that a value must fit · value: what --help shows after the `=`,
    the default where there is one · text: what it does."""

    kind: Any
    value: str
    text: str


@dataclass(frozen=True)
class Help:
    """What --help says of a command. summary: its line in the list of commands · about: what it does, and examples ·
    positional: what stands after the command, before its keys · flags: words without an `=`, and what they do ·
    first, settings: what is listed before and after the keys · usages: further forms, and sections: the keys of those."""

    summary: str
    about: str
    positional: str = ""
    flags: Mapping[str, str] = field(default_factory=dict)
    first: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    usages: tuple[str, ...] = ()
    sections: Mapping[str, Mapping[str, Key]] = field(default_factory=dict)


# The keys that a run's config.yaml stores
SHARED: dict[str, Key] = {name: Key(CLI_KEYS[name], *shown) for name, shown in {
    "recipe": ("NAME", "a shipped recipe (default quickstart), or the path of your own YAML file. That file may begin with"
               " `defaults: [iris, _self_]` and then holds only what differs. Code that it names is imported: give only"
               " files that you trust"),
    "overlay": ("debug", "shrinks any recipe to seconds; or the path of a YAML file; several are merged in order"),
    "seed": ("0", "the random seed: same seed, same result"),
    "device": ("auto", "auto, cpu, cuda or mps"),
    "precision": ("fp32", "fp32 or bf16"),
    "out": ("DIR", "where to write; an existing run is never overwritten"),
    "data": ("DIR", "episodes that `tokenworld collect` wrote, if the run's own were moved or to use others"),
    "load.tokenizer": ("RUN", "a trained tokenizer (phase dynamics); the default of recipe= is then that run's recipe"),
    "load.world_model": ("RUN", "a trained world model (phase policy); phase dynamics continues its training, also on other"
                         " data of the same shapes"),
}.items()}  # fmt: skip

# The settings of a recipe that a new user needs first
SETTINGS = {
    "SECTION.KEY=VALUE": "any setting of the recipe: env.id=MinAtar/Asterix-v1 backbone.layers=4 train.loop.epochs=20",
    "env.id=ID": "ALE/NAME, MinAtar/NAME, any Gymnasium id; MODULE:ID imports the module that registers it, which may lie"
                 ' in the current folder. "env.wrappers=[PACKAGE.Wrapper]" env.kwargs.KEY=VALUE env.height=64 env.width=64',
    "~SECTION.KEY": "leave a setting at its constructor's default",
}  # fmt: skip

TRUST = {origins.FLAG: "allow imports of code that the given folders name (only if you trust their origin)"}
DEVICE = ("auto", "auto, cpu, cuda or mps, instead of the run's own device")


def shared_keys(names: str, **other: tuple[str, str]) -> dict[str, Key]:
    """The shared keys of these names; other: value and text that this command shows in their place."""
    changed = {name: dict(zip(("value", "text"), shown, strict=True)) for name, shown in other.items()}
    return {name: replace(SHARED[name], **changed.get(name, {})) for name in names.split()}


def near(word: str, known: Collection[str]) -> str:
    """ "did you mean X? ", or nothing if no known word is near."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {matches[0]}? " if matches else ""


# ---------------------------------------------------------------------------------------------------------------------
# Words -> what they ask for


def values_of(words: list[str], keys: Mapping[str, Key]) -> dict[str, Any]:
    """`name=value` words of these keys -> their values. Raises UserError for a value that does not fit."""
    return compose.cli_keys(words, {name: key.kind for name, key in keys.items()})


def recipe_of(command: str, words: list[str], keys: Mapping[str, Key]) -> tuple[RunSpec, dict[str, Any]]:
    """Parse and check the recipe that the words of a command describe, with the shared keys; return the command's own keys too.
    keys: all that the command takes besides settings of the recipe. Raises UserError."""
    compose.refuse_repeats([word for word in words if not word.startswith("overlay=")])
    names = [word.partition("=")[0] for word in words]
    for name, word in zip(names, words, strict=True):
        is_setting = name in TOP or name not in CLI_KEYS and not name.isidentifier()  # SECTION.KEY, ~SECTION
        if not is_setting and name not in keys and ("=" in word or name in CLI_KEYS):
            raise UserError(f"{command} takes no key {name}: {near(name, keys)}"
                            f"expected some of {', '.join(keys)}, or settings")  # fmt: skip
    is_own = [name in keys and name not in CLI_KEYS and "=" in word for name, word in zip(names, words, strict=True)]
    own = values_of([word for word, own in zip(words, is_own, strict=True) if own], keys)
    words = [word for word, own in zip(words, is_own, strict=True) if not own]
    given, recipe = dict(word.partition("=")[::2] for word in words), compose.DEFAULT_RECIPE
    for key in ("load.tokenizer", "load.world_model"):
        if key in given:  # training continues with the recipe it began with; a file that a run names is not opened
            theirs = saved.load(given[key]).recipe
            recipe = theirs if theirs in compose.recipes() else recipe
    from tokenworld.envs.suited import compose_suited

    return compose_suited(words, recipe), own


def run_and_keys(command: str, words: list[str], keys: Mapping[str, Key]) -> tuple[str, dict[str, Any]]:
    """The run that a command is about, and its keys (`score RUN episodes=100`). Raises UserError."""
    run, words = run_of(words, keys)
    for name in (word.partition("=")[0] for word in words):
        if name not in keys:
            raise UserError(f"{command} takes no key {name!r}: {near(name, keys)}"
                            f"expected some of {', '.join(keys)} (all other settings come from the run's config)")  # fmt: skip
    return run, values_of(words, keys)


def run_of(words: list[str], keys: Collection[str]) -> tuple[str, list[str]]:
    """The one folder of a run or model among the words, and the others. Raises UserError if its config cannot be read."""
    from tokenworld.storage import model_folder

    compose.refuse_repeats(words)
    runs, others = folders_of(words, 1, keys)
    if len(runs) != 1:
        raise UserError(f"expected the folder of one run, got {' and '.join(runs) or 'none'}: for example runs/NAME")
    if model_folder.is_model(runs[0]):
        model_folder.read(Path(runs[0]))
    else:
        saved.load(runs[0])
    return runs[0], others


def folders_of(words: Sequence[str], wanted: int, keys: Collection[str]) -> tuple[list[str], list[str]]:
    """The folders among the words, and the settings. A word with an = is a folder if folders are missing and it is one on this
    disk, first where its key is none of the command's: a folder may be called lr=0.1, even seed=3."""
    folders = [word for word in words if "=" not in word and (not word.startswith(("-", "~")) or Path(word).is_dir())]
    for candidates in (lambda word: word.partition("=")[0] not in keys, lambda word: True):
        for word in words:
            if len(folders) < wanted and "=" in word and word not in folders and candidates(word) and Path(word).is_dir():
                folders.append(word)
    return [word for word in words if word in folders], [word for word in words if word not in folders]
