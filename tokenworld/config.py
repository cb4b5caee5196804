"""Recipes: YAML composed by Hydra, checked against the constructors it names, and parts built from it.

A recipe has one section per part (`_target_` names the class, the other keys are its keywords) and a `train` section
with one entry per phase, of the same form. Constructor keywords are the schema: nothing here lists a part's options.
This module imports neither torch nor Hydra, so that the command line can answer `--help` at once.
"""

from __future__ import annotations

import copy
import difflib
import functools
import inspect
import math
import subprocess
import types
import typing
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from tokenworld import env_section, files, origins
from tokenworld.errors import UserError, first_line
from tokenworld.keys import KEYS
from tokenworld.targets import PARTS, is_part, resolve

DEFAULT_RECIPE = "quickstart"

PHASES = ("loop", "collect", "tokenizer", "dynamics", "policy", "evaluate")
DEEPEST, MOST_VALUES, MOST_BYTES = 12, 10_000, 2**20  # of a config; the shipped ones have about 100 values

# Keys that belong to one command, not to a recipe; the annotations are checked like those of a constructor.
CLI_KEYS: dict[str, Any] = {name: key.kind for name, key in KEYS.items() if name != "policy"}  # a section of a recipe

# Keywords that code passes although they have a default.
BY_CODE = frozenset({"num_envs"})

# Targets outside tokenworld that the user named in a recipe or on the command line, or vouched for (see `trust`).
_trusted: set[str] = set()


# ---------------------------------------------------------------------------------------------------------------------
# Composing


def recipe_dir() -> Path:
    """The folder of the shipped recipes: inside an installed package, beside it in a source checkout."""
    here = Path(__file__).resolve().parent
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def recipes() -> list[str]:
    return sorted(path.stem for path in recipe_dir().glob("*.yaml"))


def compose(words: list[str], recipe: str = DEFAULT_RECIPE) -> tuple[dict, dict]:
    """`key=value` words -> the resolved recipe (a nested dict), the command line's own keys (those given, and recipe).

    `recipe=` names a shipped recipe or a YAML file of the user's. `overlay=` merges a file over it, several in their order; it
    may only set keys that the recipe has, but where it names another class for a part, its section replaces the recipe's.
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
    return env_section.choose(cfg, maker, [*given, *overlaid]), cli


def refuse_repeats(words: list[str]) -> None:
    """Raises UserError for a key that is given twice: the first one would be dropped without a word. (`~key key=value` is no
    repeat: the section is removed before the new one is set.)"""
    keys = [word.partition("=")[0] for word in words if "=" in word or word.startswith("~")]
    for key in keys:
        if keys.count(key) > 1:
            both = " and ".join(word for word in words if word.partition("=")[0] == key)
            raise UserError(f"{key} is given twice, {both}: leave one of them out")


def split_paths(text: str) -> list[str]:
    """`a,b` -> [a, b]; a part with commas that is a path on this disk stays whole."""
    words, found = text.split(",") if text else [], []
    while words:
        longest = next((n for n in range(len(words), 1, -1) if Path(",".join(words[:n])).exists()), 1)
        found.append(",".join(words[:longest]))
        words = words[longest:]
    return found


def cli_keys(words: list[str], kinds: dict[str, Any] = CLI_KEYS) -> dict:
    """The command line's own keys where no recipe is composed (`score RUN episodes=100`). Raises UserError."""
    return {key: _cli_value(key, value, kinds) for key, _, value in (word.partition("=") for word in words)}


def _example_override(word: str) -> str:
    near = difflib.get_close_matches(word.lstrip("+-"), list(CLI_KEYS), n=1)
    return f"{near[0]}=..." if near else "recipe=iris or tokenizer.vocab_size=512"


def _cli_value(key: str, text: str, kinds: dict[str, Any] = CLI_KEYS) -> Any:
    value: Any = text
    if kinds[key] is int:
        try:
            value = int(text)
        except ValueError:
            raise UserError(f"{key} must be a whole number, got {text!r}: write for example {key}=1") from None
        if value < (0 if key == "seed" else 1):
            raise UserError(f"{key} must be at least {0 if key == 'seed' else 1}, got {value}: write e.g. {key}=1")
    if not text or not _fits(value, kinds[key]):
        choices = typing.get_args(kinds[key]) if typing.get_origin(kinds[key]) is Literal else ("NAME",)
        raise UserError(f"{key} must be {_words(kinds[key])}, got {text!r}: write for example {key}={choices[0]}")
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
            cfg, keys = _overlaid(cfg, overlay)
            overlaid += keys
        if "command" in cfg:
            raise UserError(f"{path} is the config of a run, not a recipe: continue that run by --resume, or copy the sections"
                            " that you want to keep to a file of your own")  # fmt: skip
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


def _overlaid(cfg: Any, overlay: str) -> tuple[Any, list[str]]:
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
    plain = OmegaConf.to_container(over)
    _refuse_new_keys(plain, OmegaConf.to_container(cfg), f"overlay {overlay}", "")
    return OmegaConf.merge(cfg, over), list(flatten(plain))


def _yaml_path(name: str, kind: str, folder: Path) -> Path:
    """A shipped file by its name, or the user's own by its path."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = files.user_path(name).resolve()
        if path.is_file():
            return path
        raise UserError(f"{kind}={name} is no file: give the path of a YAML file or one of {_listing(folder)}")
    if (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    raise UserError(f"there is no {kind} {name!r}: {_did_you_mean(name, known)}expected one of {_listing(folder)}"
                      f" or the path of a YAML file")


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))


def _refuse_new_keys(over: dict, base: dict, source: str, prefix: str) -> None:
    for key, value in over.items():
        if prefix.startswith("env."):
            return  # another environment takes other keys: `check` compares them with what makes it
        if key not in base:
            raise UserError(f"{source} sets {prefix}{key}, which the recipe lacks: "
                              f"{_did_you_mean(key, list(base), prefix)}an overlay only changes what is there")
        if isinstance(value, dict) and isinstance(base[key], dict):
            _refuse_new_keys(value, base[key], source, f"{prefix}{key}.")


def _delete(cfg, key: str) -> None:
    *parents, last = key.split(".")
    for name in parents:
        cfg = cfg.get(name) if hasattr(cfg, "get") else None
    if cfg is None or last not in cfg:
        raise UserError(f"~{key} removes nothing: the recipe has no {key}")
    del cfg[last]


# ---------------------------------------------------------------------------------------------------------------------
# Checking


def check(cfg: dict) -> None:
    """Refuse a recipe that cannot be right before anything is created: UserError, one sentence for the first fault."""
    check_values(cfg, "the recipe")
    for key in cfg:
        if key not in PARTS and key not in ("train", "meta"):
            raise UserError(_unknown(cfg, key, "", [*PARTS, "train", *CLI_KEYS]))
    for name in PARTS:
        check_section(cfg, name)
    own = cfg["env"]["_target_"].startswith("tokenworld.")  # what a plug-in makes need not have an id
    if own and (not isinstance(cfg["env"].get("id"), str) or not cfg["env"]["id"]):
        raise UserError(f"env.id must name an environment, got {cfg['env'].get('id')!r}: write for example env.id=CartPole-v1")
    train = cfg.get("train")
    if not isinstance(train, dict):
        raise UserError(f"the recipe needs a section train with the phases {', '.join(PHASES)}, got {train!r}")
    for key in train:
        if key not in PHASES:
            raise UserError(_unknown(cfg, key, "train.", list(PHASES)))
    for phase in PHASES:
        check_section(cfg, f"train.{phase}")
    _check_evaluation_env(cfg)
    _check_optimizer(cfg)
    _check_random_play(cfg)


def _check_evaluation_env(cfg: dict) -> None:
    """What train.evaluate.env changes must be keywords of the environment: else the first evaluation would fail."""
    changes = cfg["train"]["evaluate"].get("env") or {}
    if "_target_" in changes:
        raise UserError("train.evaluate.env changes keywords of env, got a _target_: remove it, or set env._target_")
    check_keywords(cfg, "train.evaluate.env", cfg["env"] | changes, resolve(cfg["env"]["_target_"]))


def _check_random_play(cfg: dict) -> None:
    zeta = cfg["train"]["collect"].get("zeta")
    if zeta is not None and not zeta > 1:  # the distribution has no sum
        raise UserError(f"train.collect.zeta must be above 1, got {zeta}: choose e.g. 2.0, or null for one step per action")


def _check_optimizer(cfg: dict) -> None:
    from tokenworld import optim  # torch comes with it, and is not needed before parts are checked

    settings = cfg["train"]["dynamics"].get("optimizer") or {}
    if "_target_" in settings:
        raise UserError("train.dynamics.optimizer takes keywords of tokenworld.optim.make, got a _target_: remove it")
    check_keywords(cfg, "train.dynamics.optimizer", {"_target_": "tokenworld.optim.make"} | settings, optim.make)


def check_values(config: Any, source: Any, depth: int = 0) -> int:
    """The number of values in a config. Raises UserError unless all are words, finite numbers, true, false, null,
    and lists and sections of these with words as keys: in a damaged or forged file anything can stand."""
    if depth > DEEPEST:
        raise UserError(f"{source} is nested more than {DEEPEST} deep: expected sections with keys and values")
    if isinstance(config, dict):
        wrong = [key for key in config if not isinstance(key, str)]
        if wrong:
            raise UserError(f"{source} has the key {wrong[0]!r}: expected words as keys")
        config = list(config.values())
    if isinstance(config, (list, tuple)):
        count = 1
        for value in config:
            count += check_values(value, source, depth + 1)
            if count > MOST_VALUES:
                raise UserError(f"{source} has more than {MOST_VALUES:,} values: expected the sections of a recipe")
        return count
    if isinstance(config, bool) or config is None or isinstance(config, str):
        return 1
    if isinstance(config, int) and abs(config) < 2**128 or isinstance(config, float) and math.isfinite(config):
        return 1
    raise UserError(f"{source} has the value {str(config)[:40]!s}: expected words, true, false, null or finite numbers")


def check_section(cfg: dict, name: str) -> None:
    """One section, `tokenizer` or `train.loop`: its class comes from the right folder and takes its keys."""
    parent, _, key = name.rpartition(".")
    section, folder = (cfg[parent] if parent else cfg).get(key), PARTS[name] if name in PARTS else "train"
    if not isinstance(section, dict) or not isinstance(section.get("_target_"), str):
        raise UserError(f"{name} must be a section with a _target_, got {section!r}: "
                          f"name the class, for example {name}._target_=tokenworld.{folder}...")
    target = section["_target_"]
    build = resolve(target)
    if target.startswith("tokenworld.") and not is_part(build, (folder,)):
        raise UserError(f"{name}._target_ must name something in tokenworld.{folder}, got {target}")
    check_keywords(cfg, name, section, build)


def check_keywords(cfg: dict, name: str, section: dict, build: Callable) -> None:
    """Keys and types of one section against the signature of what it names."""
    keywords = inspect.signature(build, eval_str=True).parameters
    anything = any(p.kind is p.VAR_KEYWORD for p in keywords.values())
    named = {key: p for key, p in keywords.items() if p.kind is p.KEYWORD_ONLY or p.kind is p.POSITIONAL_OR_KEYWORD}
    settable = [key for key, p in named.items() if not _is_by_code(p)]
    for key, value in section.items():
        if key == "_target_":
            continue
        if key in named and key not in settable:
            raise UserError(f"{name}.{key} follows from the other parts and is passed by code, got {value!r}: "
                              f"remove it from the recipe")
        if key not in settable and not anything:
            raise UserError(_unknown(cfg, key, f"{name}.", settable, section["_target_"]))
        if key in settable and not _fits(value, keywords[key].annotation):
            default = keywords[key].default
            hint = "" if default is inspect.Parameter.empty else f": for example {name}.{key}={_yaml_word(default)}"
            raise UserError(f"{name}.{key} must be {_words(keywords[key].annotation)}, got {value!r}{hint}")


def _is_by_code(keyword: inspect.Parameter) -> bool:
    """A keyword without a default follows from other parts (shapes, frame_shape, ...): a recipe cannot set it."""
    return keyword.default is keyword.empty or keyword.name in BY_CODE


def _unknown(cfg: dict, key: str, prefix: str, valid: list[str], owner: str = "the recipe") -> str:
    """One sentence on a key that nothing reads: the same key elsewhere, else the nearest name here."""
    others = [path for path in flatten(cfg) if path.endswith(f".{key}") and path != f"{prefix}{key}"]
    if others and not difflib.get_close_matches(key, valid, n=1, cutoff=0.8):
        hint = f"did you mean {' or '.join(others)}? "
    else:
        hint = _did_you_mean(key, valid, prefix)
    return f"unknown key {prefix}{key}: {hint}{owner} takes {', '.join(valid)}"


def _did_you_mean(key: str, valid: list[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    return f"did you mean {prefix}{near[0]}? " if near else ""


def _fits(value: Any, kind: Any) -> bool:
    """Is a YAML value of the annotated type? An int is a float, a list is a tuple, a bool is neither int nor float."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is inspect.Parameter.empty or kind is Any:
        return True
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in args)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in args)
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            return False
        if origin is tuple and Ellipsis not in args:
            return len(value) == len(args) and all(_fits(v, a) for v, a in zip(value, args, strict=True))
        return all(_fits(v, args[0]) for v in value)
    if origin is dict or kind is dict:
        return isinstance(value, dict)
    if kind in (None, types.NoneType):
        return value is None
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind in (bool, str, list, tuple):
        return isinstance(value, (list, tuple)) if kind in (list, tuple) else isinstance(value, kind)
    return False  # any other type cannot be written in YAML: such a keyword is passed by code


def _words(kind: Any) -> str:
    """An annotation as words for a person."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    simple = {int: "a whole number", float: "a number", str: "a word", bool: "true or false", None: "null"}
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(option) for option in args)
    if kind is types.NoneType:
        return "null"
    if origin in (list, tuple) and args:
        count = f"{len(args)} items, each " if origin is tuple and Ellipsis not in args else ""
        return f"a list of {count}{_words(args[0])}"
    return simple.get(kind, f"a {getattr(kind, '__name__', kind)}")


def _yaml_word(value: Any) -> str:
    if value is None or isinstance(value, bool):  # 0 and 1 are numbers, though they equal False and True
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if value.__hash__ else str(list(value))


# ---------------------------------------------------------------------------------------------------------------------
# Building


def build(section: dict, **by_code) -> Any:
    """The part that a section describes; `by_code` are the keywords that follow from other parts. Raises UserError.

    Only those of `by_code` that the constructor takes are passed: a plug-in need not know what it has no use for.
    """
    target = resolve(section["_target_"])
    name = section["_target_"].rpartition(".")[2]
    check_keywords({name: section}, name, section, target)
    keywords = inspect.signature(target, eval_str=True).parameters
    given = {key: _as_annotated(value, keywords.get(key)) for key, value in section.items() if key != "_target_"}
    anything = any(p.kind is p.VAR_KEYWORD for p in keywords.values())
    given |= {key: value for key, value in by_code.items() if key in keywords or anything}
    missing = [k for k, p in keywords.items() if p.default is p.empty and p.kind is p.KEYWORD_ONLY and k not in given]
    if missing:
        raise UserError(f"{section['_target_']} has keywords without a default that nothing passes, "
                          f"{', '.join(missing)}: give them defaults to set them in a recipe")
    origins.check(section, section["_target_"])
    try:
        return target(**given)
    except UserError:
        raise
    except Exception as error:
        if not is_part(target, tuple(PARTS.values())):
            raise  # whoever wrote a plug-in needs the traceback
        settings = ", ".join(f"{key}={_yaml_word(value)}" for key, value in section.items() if key != "_target_")
        raise UserError(f"{section['_target_']} cannot be made with {settings[:300]}"
                        f" ({type(error).__name__}: {first_line(error)}): change one of these settings") from error


def _as_annotated(value: Any, keyword: inspect.Parameter | None) -> Any:
    """YAML has no tuples: a list becomes one where the constructor asks for a tuple."""
    if keyword is None or not isinstance(value, list):
        return value
    options = [keyword.annotation, *typing.get_args(keyword.annotation)]
    return tuple(value) if any(o is tuple or typing.get_origin(o) is tuple for o in options) else value


# ---------------------------------------------------------------------------------------------------------------------
# Saving


def save(path: Path | str, cfg: dict, cli: dict) -> None:
    """Write the resolved recipe, the command line's own keys (`command`) and where it ran (`meta`) as YAML.

    Raises UserError where the disk refuses.
    """
    import yaml

    body = {key: value for key, value in cfg.items() if key != "meta"} | {"command": cli, "meta": meta()}
    files.write(path, yaml.safe_dump(body, sort_keys=False))


def load(path: Path | str) -> tuple[dict, dict]:
    """(cfg, cli) as `save` wrote them; `path` is the file or its folder; the recipe is not checked yet (see `check`).

    Raises UserError for a damaged file, and for one that names code from outside tokenworld that is not trusted.
    """
    path = Path(path)
    file = path / "config.yaml" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path} is no run or model: expected a folder with a config.yaml")
    cfg = _read_yaml(file)
    if not isinstance(cfg, dict) or not isinstance(cfg.get("command"), dict):
        raise UserError(f"{file} is not the config of a run: expected the sections of a recipe and `command`")
    check_values(cfg, file)
    cli = cfg.pop("command")
    cfg.pop("meta", None)
    kinds = CLI_KEYS | {"given": list[str], "phase": Literal["tokenizer", "dynamics", "policy"]}
    for key, value in cli.items():
        if key not in kinds or not _fits(value, kinds[key]) or kinds[key] is int and value < 0:
            raise UserError(f"{file} says command.{key}: {value!r}, expected"
                            f" {_words(kinds[key]) if key in kinds else 'no such key'}: restore it from a copy")
    if "recipe" not in cli:
        raise UserError(f"{file} says no command.recipe: restore it from a copy")
    origins.check(cfg, file)
    return cfg, cli


def _read_yaml(file: Path) -> Any:
    import yaml

    try:
        if file.stat().st_size > MOST_BYTES:
            raise UserError(f"{file} has {file.stat().st_size:,} bytes: a config has at most {MOST_BYTES:,}")
        return _loader()(file.read_text(encoding="utf-8")).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: bytes that are no text, 2026-02-30
        raise UserError(f"{file} is damaged ({first_line(error)}): restore it from a copy") from None


@functools.cache
def _loader() -> type:
    """YAML's safe loader without the keys `<<`, which can make a few bytes millions of values; `save` writes none."""
    import yaml

    class Loader(yaml.SafeLoader):
        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise yaml.YAMLError("it merges mappings by <<, expected plain ones")

    return Loader


def meta() -> dict:
    """What produced a run: package versions and, in a checkout, the commit."""
    import platform

    found = {"python": platform.python_version()}
    for name in ("tokenworld", "torch", "numpy", "gymnasium", "ale-py", "minatar", "transformers",
                 "vector-quantize-pytorch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return {"versions": found, "git": _git_hash()}


def _git_hash() -> str | None:
    """The commit of the checkout that this file is in, `-dirty` if changed; None for an installed package."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        call = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        answer = subprocess.run(call, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def with_settings(cfg: dict, settings: dict[str, Any]) -> dict:
    """A copy of a recipe with some settings changed, {"train.loop.epochs": 40}."""
    cfg = copy.deepcopy(cfg)
    for key, value in settings.items():
        *sections, last = key.split(".")
        functools.reduce(dict.__getitem__, sections, cfg)[last] = value
    return cfg


def difference(cfg: dict, other: dict) -> list[tuple[str, Any, Any]]:
    """(dotted key, here, there) for each key in which two recipes differ; None where one lacks it."""
    here, there = flatten(cfg), flatten(other)
    keys = [*here, *(key for key in there if key not in here)]
    return [(key, here.get(key), there.get(key)) for key in keys if here.get(key) != there.get(key)]


def flatten(cfg: dict, prefix: str = "") -> dict[str, Any]:
    """{"tokenizer.vocab_size": 512, ...}"""
    flat: dict[str, Any] = {}
    for key, value in cfg.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
