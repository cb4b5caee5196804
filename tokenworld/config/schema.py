"""Recipes checked against the constructors that they name, and parts built from them.

A recipe has one section per part (`_target_` names the class, the other keys are its keywords) and a `train` section
with one entry per phase, of the same form. Constructor keywords are the schema: nothing here lists a part's options.
This folder imports neither torch nor Hydra at its top, so that the command line can answer `--help` at once.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any, Literal

from tokenworld import origins
from tokenworld.config.renamed import new_word
from tokenworld.config.targets import MOVED, PARTS, is_part, resolve
from tokenworld.config.values import as_annotated, check_values, did_you_mean, fits, flatten, words_for, yaml_word
from tokenworld.errors import UserError, first_line

PHASES = ("collect", "tokenizer", "dynamics", "policy", "evaluate")  # in the order of an epoch
TRAIN = ("loop", *PHASES)  # the sections of `train`
OPTIONAL = ("tokenizer", "dynamics", "policy")  # phases that a recipe may lack: they do not run
TOP = (*PARTS, "train", "meta")  # the sections of a recipe; what made it is no setting
# Keys of the command line that config.yaml stores next to the recipe; the annotations are checked like those of a constructor.
CLI_KEYS: dict[str, Any] = {
    "recipe": str,
    "overlay": str,
    "seed": int,
    "device": Literal["auto", "cpu", "cuda", "mps"],
    "precision": Literal["fp32", "bf16"],
    "out": str,
    "data": str,
    "load.tokenizer": str,
    "load.world_model": str,
}
# Keywords that code passes although they have a default.
BY_CODE = frozenset({"num_envs"})


def check(cfg: dict) -> None:
    """Refuse a recipe that cannot be right before anything is created: UserError, one sentence for the first fault."""
    check_values(cfg, "the recipe")
    for key in cfg:
        if key not in TOP:
            raise UserError(_unknown(cfg, key, "", [*PARTS, "train", *CLI_KEYS]))
    for name in PARTS:
        if name in cfg or name != "policy":
            check_section(cfg, name)
    own = cfg["env"]["_target_"].startswith("tokenworld.")  # what a plug-in makes need not have an id
    if own and (not isinstance(cfg["env"].get("id"), str) or not cfg["env"]["id"]):
        raise UserError(f"env.id must name an environment, got {cfg['env'].get('id')!r}: write for example env.id=CartPole-v1")
    train = cfg.get("train")
    if not isinstance(train, dict):
        raise UserError(f"the recipe needs a section train with the phases {', '.join(TRAIN)}, got {train!r}")
    for key in train:
        if key not in TRAIN:
            raise UserError(_unknown(cfg, key, "train.", list(TRAIN)))
    for phase in TRAIN:
        if phase in train or phase not in OPTIONAL:
            check_section(cfg, f"train.{phase}")
    if "policy" in train and "policy" not in cfg:
        raise UserError("train.policy trains a policy, but the recipe has no section policy: add one, or remove train.policy")
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

    settings = cfg["train"].get("dynamics", {}).get("optimizer") or {}
    if "_target_" in settings:
        raise UserError("train.dynamics.optimizer takes keywords of tokenworld.optim.make, got a _target_: remove it")
    check_keywords(cfg, "train.dynamics.optimizer", {"_target_": "tokenworld.optim.make"} | settings, optim.make)


def check_section(cfg: dict, name: str) -> None:
    """One section, `tokenizer` or `train.loop`: its class comes from the right folder and takes its keys."""
    parent, _, key = name.rpartition(".")
    section = (cfg[parent] if parent else cfg).get(key)
    folder = PARTS[name] if name in PARTS else "training.loop" if name == "train.loop" else "training.phases"
    if not isinstance(section, dict) or not isinstance(section.get("_target_"), str):
        raise UserError(f"{name} must be a section with a _target_, got {section!r}: "
                          f"name the class, for example {name}._target_=tokenworld.{folder}...")
    target = MOVED.get(section["_target_"], section["_target_"])
    build = resolve(target)
    if target.startswith("tokenworld.") and not is_part(build, (folder,)):
        raise UserError(f"{name}._target_ must name something in tokenworld.{folder}, got {target}")
    check_keywords(cfg, name, section, build)
    for inner, value in section.items():
        if name in PARTS and name != "env" and isinstance(value, dict) and "_target_" in value:
            _check_inner(cfg, f"{name}.{inner}", value, PARTS[name])


def _check_inner(cfg: dict, name: str, section: dict, folder: str) -> None:
    """The section of something that a part is made of: `policy.network`."""
    target = section["_target_"]
    if not isinstance(target, str):
        raise UserError(f"{name}._target_ must name a class, got {target!r}: for example tokenworld.{folder}...")
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
            raise UserError(f"{name}.{key} follows from the other parts and cannot be set, got {value!r}: "
                              f"remove it from the recipe")
        if key not in settable and not anything:
            raise UserError(_unknown(cfg, key, f"{name}.", settable, section["_target_"]))
        if key in settable and not fits(value, keywords[key].annotation):
            default = keywords[key].default
            hint = "" if default is inspect.Parameter.empty else f": for example {name}.{key}={yaml_word(default)}"
            raise UserError(f"{name}.{key} must be {words_for(keywords[key].annotation)}, got {value!r}{hint}")


def settings_of(section: dict[str, Any]) -> dict[str, Any]:
    """The settings of a section of `train`, with the defaults of what it names where it says nothing."""
    keywords = inspect.signature(resolve(section["_target_"])).parameters.values()
    defaults = {keyword.name: keyword.default for keyword in keywords if keyword.default is not keyword.empty}
    return defaults | {key: value for key, value in section.items() if key != "_target_"}


def _is_by_code(keyword: inspect.Parameter) -> bool:
    """A keyword without a default follows from other parts (shapes, frame_shape, ...): a recipe cannot set it."""
    return keyword.default is keyword.empty or keyword.name in BY_CODE


def _unknown(cfg: dict, key: str, prefix: str, valid: list[str], owner: str = "the recipe") -> str:
    """One sentence on a key that nothing reads: the same key elsewhere, else the nearest name here."""
    renamed = new_word(f"{prefix}{key}", flatten(cfg).get(f"{prefix}{key}"), owner)
    if renamed:
        return renamed
    others = [path for path in flatten(cfg) if path.endswith(f".{key}") and path != f"{prefix}{key}"]
    if others and not difflib.get_close_matches(key, valid, n=1, cutoff=0.8):
        hint = f"did you mean {' or '.join(others)}? "
    else:
        hint = did_you_mean(key, valid, prefix)
    return f"unknown key {prefix}{key}: {hint}{owner} takes {', '.join(valid)}"


def build(section: dict, **by_code) -> Any:
    """Build the part that a section describes; `by_code` are the keywords that follow from other parts. Raises UserError.

    Only those of `by_code` that the constructor takes are passed: a plug-in need not know what it has no use for.
    """
    target = resolve(section["_target_"])
    name = section["_target_"].rpartition(".")[2]
    check_keywords({name: section}, name, section, target)
    keywords = inspect.signature(target, eval_str=True).parameters
    given = {key: as_annotated(value, keywords.get(key)) for key, value in section.items() if key != "_target_"}
    anything = any(p.kind is p.VAR_KEYWORD for p in keywords.values())
    given |= {key: value for key, value in by_code.items() if key in keywords or anything}
    missing = [k for k, p in keywords.items() if p.default is p.empty and p.kind is p.KEYWORD_ONLY and k not in given]
    if missing:
        raise UserError(f"{section['_target_']} has keywords without a default that no part sets, "
                          f"{', '.join(missing)}: give them defaults to set them in a recipe")
    origins.check(section, section["_target_"])
    is_own = is_part(target, tuple(PARTS.values()))
    try:
        part = target(**given)
    except UserError:
        raise
    except Exception as error:
        if not is_own:
            raise  # the author of a plug-in needs the traceback
        settings = ", ".join(f"{key}={yaml_word(value)}" for key, value in section.items() if key != "_target_")
        raise UserError(f"{section['_target_']} cannot be built with {settings[:300]}"
                        f" ({type(error).__name__}: {first_line(error)}): change one of these settings") from error
    if not is_own:
        _check_base(part, section["_target_"])
    return part


def _check_base(part: Any, target: str) -> None:
    """Refuse a module of a plug-in without the hooks that all parts have."""
    from torch import nn

    from tokenworld.interfaces import Part

    if not isinstance(part, nn.Module):
        return  # an environment or a sink
    name = type(part).__name__
    if Part not in type(part).__mro__:
        bases = ", ".join(base.__name__ for base in type(part).__bases__)
        raise UserError(f"{target} must inherit from nn.Module and tokenworld.interfaces.Part, got {bases}: write class"
                        f" {name}(nn.Module, Part)")
    for hook in vars(Part):
        if hook in part._modules:  # the attribute would be the default of the hook
            raise UserError(f"{target} has a submodule with the name of a hook of tokenworld.interfaces.Part, {hook}: give it"
                            f" another name, for example {hook}_layers")
