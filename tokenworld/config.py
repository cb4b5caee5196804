"""Recipes: YAML composed by Hydra, checked against the constructors it names, and parts built from it.

A recipe has one section per part (`_target_` names the class, the other keys are its keywords) and a `train` section
with one entry per phase, of the same form. Constructor keywords are the schema: nothing here lists a part's options.
This module imports neither torch nor Hydra, so that the command line can answer `--help` at once.
"""

from __future__ import annotations

import difflib
import inspect
import math
import subprocess
import types
import typing
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

from tokenworld import files

DEFAULT_RECIPE = "quickstart"

# A part's section -> the module or folder of tokenworld that its class must come from.
PARTS = {
    "env": "envs",
    "tokenizer": "tokenizers",
    "backbone": "backbones",
    "decoding": "decoding",
    "action": "actions",
    "reward": "heads",
    "termination": "heads",
    "policy": "policies",
}
PHASES = ("loop", "collect", "tokenizer", "dynamics", "policy", "evaluate")

# Keys that belong to one command, not to a recipe; the annotations are checked like those of a constructor.
CLI_KEYS: dict[str, Any] = {
    "recipe": str,
    "overlay": str,
    "out": str,
    "data": str,
    "seed": int,
    "steps": int,
    "episodes": int,
    "repeats": int,
    "jobs": int,
    "port": int,
    "frames": int,
    "budget": int,
    "states": int,
    "tier": Literal["A", "B", "C"],
    "metrics": str,
    "repo": str,
    "private": Literal["true", "false"],
    "policies": str,
    "device": Literal["auto", "cpu", "cuda", "mps"],
    "precision": Literal["fp32", "bf16"],
    "load.tokenizer": str,
    "load.world_model": str,
}

# Keywords that code passes although they have a default.
BY_CODE = frozenset({"num_envs"})

# Targets outside tokenworld that the user named in a recipe or on the command line, or vouched for (see `trust`).
_trusted: set[str] = set()


def _user_error(message: str) -> Exception:
    """A UserError; imported here because `interfaces` imports torch."""
    from tokenworld.errors import UserError

    return UserError(message)


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

    `recipe=` names a shipped recipe or a YAML file of the user's. `overlay=` merges a file over it; it may only set
    keys that the recipe has, but where it names another class for a part, its section replaces the recipe's. `~key`
    removes a key. Raises UserError; does not check the recipe (see `check`).
    """
    cli, overrides, given = {"recipe": recipe}, [], []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in CLI_KEYS:
            cli[key] = _cli_value(key, value)
        elif equals and key and not key.startswith(("+", "~", "-")):
            overrides.append("++" + word)  # a keyword that the recipe leaves at its default may be given too
        elif key.startswith("~"):
            overrides.append(word)
        else:
            raise _user_error(f"cannot read {word!r}: expected key=value, for example {_example_override(word)}")
        if key not in CLI_KEYS:
            given.append(key.lstrip("~"))
    if given:
        cli["given"] = sorted(given)  # so that nothing the user set is silently replaced by what is loaded
    cfg = _hydra(cli["recipe"], cli.get("overlay"), overrides)
    trust(cfg)
    return cfg, cli


def trust(cfg: dict) -> None:
    """Let `resolve` import what this recipe names: the user wrote it, or passed trust_remote_code=True."""
    _trusted.update(str(value) for key, value in flatten(cfg).items() if key.endswith("._target_"))


def cli_keys(words: list[str]) -> dict:
    """The command line's own keys where no recipe is composed (`score RUN episodes=100`). Raises UserError."""
    return {key: _cli_value(key, value) for key, _, value in (word.partition("=") for word in words)}


def _example_override(word: str) -> str:
    near = difflib.get_close_matches(word.lstrip("+-"), list(CLI_KEYS), n=1)
    return f"{near[0]}=..." if near else "recipe=iris or tokenizer.vocab_size=512"


def _cli_value(key: str, text: str) -> Any:
    value: Any = text
    if CLI_KEYS[key] is int:
        try:
            value = int(text)
        except ValueError:
            raise _user_error(f"{key} must be a whole number, got {text!r}: write for example {key}=1") from None
        if value < (0 if key == "seed" else 1):
            raise _user_error(f"{key} must be at least {0 if key == 'seed' else 1}, got {value}: write e.g. {key}=1")
    if not text or not _fits(value, CLI_KEYS[key]):
        raise _user_error(f"{key} must be {_words(CLI_KEYS[key])}, got {text!r}: write for example {_example(key)}")
    return value


def _example(key: str) -> str:
    kind = CLI_KEYS[key]
    return f"{key}={typing.get_args(kind)[0] if typing.get_origin(kind) is Literal else 'NAME'}"


def _hydra(recipe: str, overlay: str | None, overrides: list[str]) -> dict:
    """The recipe, its overlay merged over it, the overrides applied: plain dicts and lists."""
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
        if overlay is not None:
            over = OmegaConf.load(_yaml_path(overlay, "overlay", recipe_dir() / "overlay"))
            for name in over if OmegaConf.is_dict(over) else ():
                section = over[name]
                other = OmegaConf.is_dict(section) and section.get("_target_")
                if other and name in PARTS and other != OmegaConf.select(cfg, f"{name}._target_"):
                    cfg[name] = section  # another class: its keywords are not those of the one that it replaces
            _refuse_new_keys(OmegaConf.to_container(over), OmegaConf.to_container(cfg), f"overlay {overlay}", "")
            cfg = OmegaConf.merge(cfg, over)
        for override in OverridesParser.create().parse_overrides(overrides):
            if override.is_sweep_override():
                raise _user_error(f"{override.input_line.lstrip('+')} names several values: give one, or a list [a,b]")
            if override.is_delete():
                _delete(cfg, override.key_or_group)
            else:
                OmegaConf.update(cfg, override.key_or_group, override.value(), merge=True, force_add=True)
        return OmegaConf.to_container(cfg, resolve=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        reason = " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:200]
        words = " ".join(word.lstrip("+") for word in overrides)
        raise _user_error(f"recipe {recipe!r} with [{words}] cannot be read: {reason}") from None


def _yaml_path(name: str, kind: str, folder: Path) -> Path:
    """A shipped file by its name, or the user's own by its path."""
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name).expanduser().resolve()
        if path.is_file():
            return path
        raise _user_error(f"{kind}={name} is no file: give the path of a YAML file or one of {_listing(folder)}")
    if (folder / f"{name}.yaml").is_file():
        return folder / f"{name}.yaml"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    raise _user_error(f"there is no {kind} {name!r}: {_did_you_mean(name, known)}expected one of {_listing(folder)}"
                      f" or the path of a YAML file")


def _listing(folder: Path) -> str:
    return ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))


def _refuse_new_keys(over: dict, base: dict, source: str, prefix: str) -> None:
    for key, value in over.items():
        if key not in base:
            raise _user_error(f"{source} sets {prefix}{key}, which the recipe lacks: "
                              f"{_did_you_mean(key, list(base), prefix)}an overlay only changes what is there")
        if isinstance(value, dict) and isinstance(base[key], dict):
            _refuse_new_keys(value, base[key], source, f"{prefix}{key}.")


def _delete(cfg, key: str) -> None:
    *parents, last = key.split(".")
    for name in parents:
        cfg = cfg.get(name) if hasattr(cfg, "get") else None
    if cfg is None or last not in cfg:
        raise _user_error(f"~{key} removes nothing: the recipe has no {key}")
    del cfg[last]


# ---------------------------------------------------------------------------------------------------------------------
# Checking


def check(cfg: dict) -> None:
    """Refuse a recipe that cannot be right before anything is created: UserError, one sentence for the first fault."""
    for key in cfg:
        if key not in PARTS and key not in ("train", "meta"):
            raise _user_error(_unknown(cfg, key, "", [*PARTS, "train", *CLI_KEYS]))
    for name in PARTS:
        check_section(cfg, name)
    train = cfg.get("train")
    if not isinstance(train, dict):
        raise _user_error(f"the recipe needs a section train with the phases {', '.join(PHASES)}, got {train!r}")
    for key in train:
        if key not in PHASES:
            raise _user_error(_unknown(cfg, key, "train.", list(PHASES)))
    for phase in PHASES:
        check_section(cfg, f"train.{phase}")


def check_section(cfg: dict, name: str) -> None:
    """One section, `tokenizer` or `train.loop`: its class comes from the right folder and takes its keys."""
    parent, _, key = name.rpartition(".")
    section, folder = (cfg[parent] if parent else cfg).get(key), PARTS[name] if name in PARTS else "train"
    if not isinstance(section, dict) or not isinstance(section.get("_target_"), str):
        raise _user_error(f"{name} must be a section with a _target_, got {section!r}: "
                          f"name the class, for example {name}._target_=tokenworld.{folder}...")
    target = section["_target_"]
    build = resolve(target)
    if target.startswith("tokenworld.") and not _is_part(build, (folder,)):
        raise _user_error(f"{name}._target_ must name something in tokenworld.{folder}, got {target}")
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
            raise _user_error(f"{name}.{key} follows from the other parts and is passed by code, got {value!r}: "
                              f"remove it from the recipe")
        if key not in settable and not anything:
            raise _user_error(_unknown(cfg, key, f"{name}.", settable, section["_target_"]))
        if key in settable and not _fits(value, keywords[key].annotation):
            default = keywords[key].default
            hint = "" if default is inspect.Parameter.empty else f": for example {name}.{key}={_yaml_word(default)}"
            raise _user_error(f"{name}.{key} must be {_words(keywords[key].annotation)}, got {value!r}{hint}")


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
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if value.__hash__ else str(list(value))


# ---------------------------------------------------------------------------------------------------------------------
# Building


def resolve(target: str, *, trusted: bool = False) -> Callable:
    """The class or function that `_target_` names. Raises UserError.

    Untrusted (a loaded model): nothing outside the part folders of tokenworld is even imported, and what is found must
    have been defined there, so that `tokenworld.train.os.system` names nothing.
    """
    own = tuple({*PARTS.values(), "data", "train"})
    trusted = trusted or target in _trusted
    if not trusted and not target.startswith(tuple(f"tokenworld.{folder}." for folder in own)):
        raise _user_error(f"_target_ must name a part of tokenworld in a loaded model, got {target}: "
                          f"pass --trust-remote-code (trust_remote_code=True) if you trust where it came from")
    found, error = _find(target)
    if found is None:
        near = _nearest_target(target)
        raise _user_error(f"_target_ {target} cannot be imported ({error}){near and f': did you mean {near}?'}")
    if not (inspect.isclass(found) or inspect.isfunction(found) or trusted and callable(found)):
        raise _user_error(f"_target_ must name a class or a function, got {target}, which is {type(found).__name__}")
    if not trusted and not _is_part(found, own):
        raise _user_error(f"_target_ must name something defined in a part of tokenworld, got {target}, "
                          f"which is defined in {found.__module__}")
    return found


def _find(target: str) -> tuple[Any, str]:
    """Import the longest module prefix, then walk the attributes; the reason if that leads nowhere."""
    words = target.split(".")
    if not all(word.isidentifier() for word in words) or len(words) < 2:
        return None, "expected package.module.Name"
    for cut in range(len(words) - 1, 0, -1):
        name = ".".join(words[:cut])
        try:
            found: Any = import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
                continue  # that prefix is no module: try a shorter one
            return None, f"{error}"
        except ImportError as error:
            return None, f"{error}"
        for word in words[cut:]:
            if not hasattr(found, word):
                return None, f"{found.__name__} has no {word}"
            found = getattr(found, word)
        return found, ""
    return None, f"there is no module {words[0]}"


def _nearest_target(target: str) -> str:
    """The nearest public name in the same module, if the module is there."""
    module, _, name = target.rpartition(".")
    try:
        names = [n for n, v in vars(import_module(module)).items() if getattr(v, "__module__", None) == module]
    except ImportError:
        return ""
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"{module}.{near[0]}" if near else ""


def _is_part(found: Any, folders: tuple[str, ...]) -> bool:
    module = getattr(found, "__module__", None) or ""
    return any(module == f"tokenworld.{folder}" or module.startswith(f"tokenworld.{folder}.") for folder in folders)


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
        raise _user_error(f"{section['_target_']} has keywords without a default that nothing passes, "
                          f"{', '.join(missing)}: give them defaults to set them in a recipe")
    return target(**given)


def _as_annotated(value: Any, keyword: inspect.Parameter | None) -> Any:
    """YAML has no tuples: a list becomes one where the constructor asks for a tuple."""
    if keyword is None or not isinstance(value, list):
        return value
    options = [keyword.annotation, *typing.get_args(keyword.annotation)]
    return tuple(value) if any(o is tuple or typing.get_origin(o) is tuple for o in options) else value


# ---------------------------------------------------------------------------------------------------------------------
# Saving


def save(path: Path | str, cfg: dict, cli: dict) -> None:
    """Write the resolved recipe, the command line's own keys (`command`) and where it ran (`meta`) as YAML."""
    import yaml

    body = {key: value for key, value in cfg.items() if key != "meta"} | {"command": cli, "meta": meta()}
    files.write(path, yaml.safe_dump(body, sort_keys=False))


def load(path: Path | str) -> tuple[dict, dict]:
    """(cfg, cli) as `save` wrote them; `path` is the file or the folder that holds `config.yaml`. Not checked yet."""
    import yaml

    path = Path(path)
    file = path / "config.yaml" if path.is_dir() else path
    if not file.is_file():
        raise _user_error(f"{path} is no run or model: expected a folder with a config.yaml")
    try:
        cfg = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _user_error(f"{file} is damaged ({str(error).splitlines()[0]}): restore it from a copy") from None
    if not isinstance(cfg, dict) or not isinstance(cfg.get("command"), dict):
        raise _user_error(f"{file} is not the config of a run: expected the sections of a recipe and `command`")
    cli = cfg.pop("command")
    cfg.pop("meta", None)
    return cfg, cli


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
