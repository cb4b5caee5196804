"""Compose a recipe from the words of the command line: YAML composed by Hydra, with overlays and settings merged over it."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tokenworld import files, origins
from tokenworld.config import env_section, overlay_keys
from tokenworld.config.saved import RunSpec
from tokenworld.config.schema import CLI_KEYS
from tokenworld.config.targets import PARTS
from tokenworld.config.values import did_you_mean, fits, flatten, words_for
from tokenworld.errors import UserError

DEFAULT_RECIPE = "quickstart"


def recipe_dir() -> Path:
    """The folder of the shipped recipes: inside an installed package, next to it in a source checkout."""
    here = Path(__file__).resolve().parent.parent
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def recipes() -> list[str]:
    return sorted(path.stem for path in recipe_dir().glob("*.yaml"))


def compose(words: list[str], recipe: str = DEFAULT_RECIPE) -> RunSpec:
    """`key=value` words -> the resolved recipe, and the keys of the command line that a run stores.

    `recipe=` names a shipped recipe or a YAML file of the user's. `overlay=` merges a file over it, several in their order:
    keys that the recipe's classes do not take are left out, and where it names another class for a part, its section replaces
    the recipe's.
    `~key` removes a key. The id of the environment decides which function makes it. What the words name may be imported from
    now on (see `origins`). Raises UserError; does not check the recipe (see `check`).
    """
    cli, overrides, given = {"recipe": recipe}, [], []
    refuse_repeats([word for word in words if not word.startswith("overlay=")])
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in CLI_KEYS:
            value = _cli_value(key, value)
            cli[key] = f"{cli[key]},{value}" if key == "overlay" and key in cli else value
        elif equals and key and not key.startswith(("+", "~", "-")):
            overrides.append("++" + word)  # a keyword that the recipe leaves at its default may be given too
        elif key.startswith("~"):
            overrides.append(word)
        else:
            raise UserError(f"cannot read {word!r}: expected key=value, for example {_example_override(word)}")
        if key not in CLI_KEYS:
            given.append(key.lstrip("~"))
    if given:
        cli["given"] = sorted(given)  # so that nothing the user set is silently replaced by what is loaded
    cfg, maker, overlaid = _hydra(cli["recipe"], split_paths(cli.get("overlay", "")), overrides)
    origins.trust(cfg)
    return RunSpec.of(env_section.choose(cfg, maker, [*given, *overlaid]), cli)


def refuse_repeats(words: list[str]) -> None:
    """Raises UserError for a key that is given twice: the first one would be dropped silently. (`~key key=value` is no
    repeat: the section is removed before the new one is set.)"""
    keys = [word.partition("=")[0] for word in words if "=" in word or word.startswith("~")]
    for key in keys:
        if keys.count(key) > 1:
            both = " and ".join(word for word in words if word.partition("=")[0] == key)
            raise UserError(f"{key} is given twice, {both}: leave one of them out")


def split_paths(text: str) -> list[str]:
    """`a,b` -> [a, b]; a part with commas that is a path on this disk stays whole."""
    words, paths = text.split(",") if text else [], []
    while words:
        longest = next((n for n in range(len(words), 1, -1) if Path(",".join(words[:n])).exists()), 1)
        paths.append(",".join(words[:longest]))
        words = words[longest:]
    return paths


def cli_keys(words: list[str], kinds: Mapping[str, Any]) -> dict:
    """`name=value` words of a command that are no settings of a recipe (`score RUN episodes=100`). Raises UserError."""
    return {key: _cli_value(key, value, kinds) for key, _, value in (word.partition("=") for word in words)}


def _example_override(word: str) -> str:
    near = difflib.get_close_matches(word.lstrip("+-"), list(CLI_KEYS), n=1)
    return f"{near[0]}=..." if near else "recipe=iris or tokenizer.vocab_size=512"


def _cli_value(key: str, text: str, kinds: Mapping[str, Any] = CLI_KEYS) -> Any:
    value: Any = text
    if kinds[key] is int:
        try:
            value = int(text)
        except ValueError:
            raise UserError(f"{key} must be a whole number, got {text!r}: write for example {key}=1") from None
        if value < (0 if key == "seed" else 1):
            raise UserError(f"{key} must be at least {0 if key == 'seed' else 1}, got {value}: write e.g. {key}=1")
    if not text or not fits(value, kinds[key]):
        choices = typing.get_args(kinds[key]) if typing.get_origin(kinds[key]) is Literal else ("NAME",)
        raise UserError(f"{key} must be {words_for(kinds[key])}, got {text!r}: write for example {key}={choices[0]}")
    return value


def _hydra(recipe: str, overlays: list[str], overrides: list[str]) -> tuple[dict, str | None, list[str]]:
    """The recipe, its overlays merged over it, the overrides applied: plain dicts and lists; what makes the environment before
    the overrides; the keys that the overlays set."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = _yaml_path(recipe, "recipe", recipe_dir())
    search = f"hydra.searchpath=['file://{recipe_dir()}']"  # a user's recipe may say `defaults: [iris, _self_]`
    try:
        with initialize_config_dir(str(path.parent), version_base="1.3"):
            cfg = hydra_compose(path.stem, overrides=[search])
        OmegaConf.set_struct(cfg, False)
        overlaid: list[str] = []
        for overlay in overlays:
            cfg, keys = _apply_overlay(cfg, overlay)
            overlaid += keys
        if "command" in cfg:
            raise UserError(f"{path} is the config of a run, not a recipe: resume that run with --resume, or copy the sections"
                            " that you want to keep to your own file")  # fmt: skip
        maker = OmegaConf.select(cfg, "env._target_")
        for override in OverridesParser.create().parse_overrides(overrides):
            if override.is_sweep_override():
                raise UserError(f"{override.input_line.lstrip('+')} names several values: give one, or a list [a,b]")
            if override.is_delete():
                _delete(cfg, override.key_or_group)
            else:
                OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True, force_add=True)
        return OmegaConf.to_container(cfg, resolve=True), maker, overlaid
    except (HydraException, OmegaConfBaseException, YAMLError, OSError, UnicodeDecodeError, RecursionError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:200]
        words = " ".join(word.lstrip("+") for word in overrides)
        raise UserError(f"recipe {recipe!r} with [{words}] cannot be read: {reason}") from None


def _apply_overlay(cfg: Any, overlay: str) -> tuple[Any, list[str]]:
    """A composed recipe with an overlay merged over it, and the keys that the overlay sets."""
    from omegaconf import OmegaConf

    over = OmegaConf.load(_yaml_path(overlay, "overlay", recipe_dir() / "overlay"))
    if not OmegaConf.is_dict(over):
        raise UserError(f"overlay {overlay} must hold sections such as train: or env:, got a list: write key: value")
    for name in over:
        section = over[name]
        other = OmegaConf.is_dict(section) and section.get("_target_")
        if other and name in PARTS and other != OmegaConf.select(cfg, f"{name}._target_"):
            cfg[name] = section  # another class: its keywords are not those of the one that it replaces
            if name == "env" and OmegaConf.select(cfg, "train.evaluate.env") is not None:
                cfg.train.evaluate.env = {}  # changes to the keywords of the other one
    plain = overlay_keys.fitting(OmegaConf.to_container(over), OmegaConf.to_container(cfg), f"overlay {overlay}")
    return OmegaConf.merge(cfg, OmegaConf.create(plain)), list(flatten(plain))


def _yaml_path(name: str, kind: str, folder: Path) -> Path:
    """A shipped file by its name, or the user's own by its path."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = files.user_path(name).resolve()
        if path.is_file():
            return path
        raise UserError(f"{kind}={name} is not a file: give the path of a YAML file or one of {_listing(folder)}")
    if (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    raise UserError(f"there is no {kind} {name!r}: {did_you_mean(name, known)}expected one of {_listing(folder)}"
                      f" or the path of a YAML file")


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))


def _delete(cfg, key: str) -> None:
    *parents, last = key.split(".")
    for name in parents:
        cfg = cfg.get(name) if hasattr(cfg, "get") else None
    if cfg is None or last not in cfg:
        raise UserError(f"~{key} removes nothing: the recipe has no {key}")
    del cfg[last]
