"""One environment from its id, its keyword arguments and its wrappers, or the cause why there is none, in one sentence."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
from gymnasium.error import DependencyNotInstalled, DeprecatedEnv, Error, VersionNotFound

from tokenworld.config.env_section import GYM, maker_of
from tokenworld.envs.failures import describe
from tokenworld.errors import UserError, first_line

# Ids that begin so are registered by this module of a package.
MODULES = {
    "MiniGrid-": "minigrid",
    "BabyAI-": "minigrid",
    "MiniWorld-": "miniworld",
    "Vizdoom": "vizdoom.gymnasium_wrapper",
}
BY_OTHERS = {"id": "env.id", "max_episode_steps": "env.max_steps", "disable_env_checker": "nothing"}
MAPPING = ": give it in a mapping, {_target_: package.module.Wrapper, keyword: value}"
FROM_GYM = "for an environment of the old package gym use env.id=shimmy:GymV21Environment-v0 env.kwargs.env_id=ID"


def build(id: str, *, max_steps: int | None = None, wrappers: list | None = None, kwargs: dict | None = None) -> gymnasium.Env:
    """Build one environment: `gymnasium.make` with `kwargs`, then the wrappers in order.

    A wrapper is a dotted name, or a mapping of `_target_` (the name) and its keyword arguments. Raises UserError that names the
    cause: a module that is not found or fails, an unknown id, a constructor or a wrapper that raises.
    """
    if not isinstance(id, str) or not id.strip():
        raise UserError(f"env.id must name a Gymnasium environment, got {id!r}: write for example env.id=CartPole-v1")
    if wrappers is not None and not isinstance(wrappers, (list, tuple)):
        raise UserError(f"env.wrappers must be a list, got {wrappers!r}: write 'env.wrappers=[package.module.Wrapper]'")
    module, colon, name = id.rpartition(":")
    if colon and not module:
        raise UserError(f"env.id={id} names no module before the colon: write env.id=my_module:{name or 'Name-v0'}")
    if colon:
        _import(module, f"env.id={id}")
    if name.startswith("ALE/"):
        _register_atari()
    env = _construct(id, module, name, max_steps, kwargs or {})
    for wrapper in wrappers or []:
        env = _wrap(env, id, wrapper)
    return env


def _construct(id: str, module: str, name: str, max_steps: int | None, kwargs: dict[str, Any]) -> gymnasium.Env:
    for key in BY_OTHERS.keys() & kwargs.keys():
        raise UserError(f"env.kwargs.{key} is set by {BY_OTHERS[key]}, got {kwargs[key]!r}: leave it out")
    if kwargs.get("render_mode") == "rgb_array":
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame looks for a screen, and complains of none
    limit = {} if max_steps is None else {"max_episode_steps": max_steps}
    try:
        return gymnasium.make(name, disable_env_checker=True, **limit, **kwargs)
    except DependencyNotInstalled as error:
        raise UserError(f"env.id={id} needs a package that is not installed: {first_line(error)}") from error
    except (Exception, SystemExit) as error:
        if isinstance(error, Error) and name not in gymnasium.registry:
            raise UserError(_describe_unregistered(id, module, name, error)) from error
        if _has_no_env(error):
            raise UserError(
                f"env.id={id}: its entry point returned no gymnasium.Env: {first_line(error)}: "
                f"have it return one environment; {FROM_GYM}"
            ) from error
        cause = error.__cause__ if isinstance(error, TypeError) and error.__cause__ is not None else error
        raise UserError(f"env.id={id} cannot be constructed: {describe(cause)}{_advice(cause, kwargs)}") from error


def _has_no_env(error: BaseException) -> bool:
    """Is it Gymnasium's own complaint on what the entry point returned, not an error inside of it?"""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, TypeError) and error.__cause__ is None and frames[-1] is gymnasium.make.__code__


def _advice(error: BaseException, kwargs: dict[str, Any]) -> str:
    if not isinstance(error, TypeError):
        return ""
    if "unexpected keyword argument" in str(error) and kwargs:
        return f": it was called with env.kwargs {', '.join(kwargs)}, leave out what it does not take"
    return ": give it by env.kwargs.NAME=VALUE" if "missing" in str(error) and "required" in str(error) else ""


def _describe_unregistered(id: str, module: str, name: str, error: Error) -> str:
    """The sentence on an id that Gymnasium does not know: only names that are near are suggested."""
    if isinstance(error, (VersionNotFound, DeprecatedEnv)):
        base, _, version = name.rpartition("-v")
        versions = [each for each in gymnasium.registry if each.rpartition("-v")[0] == base]
        return f"env.id={id}: there is no version v{version} of {base}: choose one of {', '.join(sorted(versions))}"
    if module:
        own = [each for each, spec in gymnasium.registry.items() if _package(spec.entry_point) == module.partition(".")[0]]
        near = difflib.get_close_matches(name, own, n=1, cutoff=0.7)
        where = getattr(sys.modules[module], "__file__", None) or module
        if near:
            hint = f"did you mean env.id={module}:{near[0]}?"
        elif own:
            hint = f"it registers {', '.join(own[:5])}{' and others' if len(own) > 5 else ''}"
        else:
            hint = f'it registers no environment: call gymnasium.register("{name or "Name-v0"}", entry_point=YourClass) in it'
        return f"env.id={id}: the module {module} ({where}) was imported, but it does not register {name or 'that'}: {hint}"
    if maker_of(name, GYM) != GYM:
        return f"env.id={id} is made by {maker_of(name, GYM)}, not by {GYM}: leave out env._target_, or set it to that"
    known = next((package for prefix, package in MODULES.items() if name.startswith(prefix)), None)
    if known:
        return f"env.id={id} is not registered until its package is imported: write env.id={known}:{name}"
    near = difflib.get_close_matches(name, list(gymnasium.registry), n=1, cutoff=0.7)
    guess = f"did you mean {near[0]}? " if near else ""
    return (
        f"env.id={id} is not registered with Gymnasium: {guess}if a package, or a module in the current folder, registers it, "
        f"name that before a colon: env.id=package:{name}"
    )


def _package(entry_point: Any) -> str:
    """The top-level package or module in which an entry point, a string or a callable, is defined."""
    module = entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", None) or ""
    return module.partition(":")[0].partition(".")[0]


def _import(module: str, source: str) -> ModuleType:
    importlib.invalidate_caches()  # a file that was written a moment ago is seen
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        is_absent = bool(missing) and f"{module}.".startswith(f"{missing}.")
        if is_absent or not all(part.isidentifier() for part in module.split(".")):
            raise UserError(f"{source}: the module {module} was not found: {_where(module)}") from error
        raise UserError(f"{source}: the module {module} failed to import: {describe(error)}: correct that first") from error


def _where(module: str) -> str:
    """How a module that was not found becomes importable."""
    here, top = Path.cwd(), module.partition(".")[0]
    if module.endswith(".py") or "/" in module:
        return "write its dotted name, package.module, without folders and without .py"
    if top in {name.partition(".")[0] for name in MODULES.values()}:
        return f"run `pip install {top}`"
    if ((here / f"{top}.py").exists() or (here / top).is_dir()) and not {"", ".", os.getcwd()} & set(sys.path):
        return "it lies in the current folder, which Python does not search: set PYTHONPATH=."
    modules = [path.stem for path in here.glob("*.py")] + [path.parent.name for path in here.glob("*/__init__.py")]
    near = difflib.get_close_matches(top, modules, n=1)
    searched = f"neither the current folder, {here}, nor the installed packages have it: "
    if near:
        return f"{searched}did you mean {near[0]}?"
    return f"{searched}start in the folder that holds {top}.py, add that folder to PYTHONPATH, or install its package"


def _wrap(env: gymnasium.Env, id: str, wrapper: Any) -> gymnasium.Env:
    keywords = dict(wrapper) if isinstance(wrapper, dict) else {"_target_": wrapper}
    target = keywords.pop("_target_", None)
    if not isinstance(target, str) or "." not in target:
        raise UserError(
            f"env.wrappers must hold dotted names, or mappings with a _target_, got {wrapper!r}: "
            "write for example 'env.wrappers=[gymnasium.wrappers.GrayscaleObservation]'"
        )
    module, _, name = target.rpartition(".")
    holder = _import(module, f"env.wrappers={target}")
    try:
        wrap = getattr(holder, name)
    except AttributeError:
        near = difflib.get_close_matches(name, dir(holder), n=1)
        hint = f"did you mean {module}.{near[0]}?" if near else "name a class that the module defines"
        raise UserError(f"env.wrappers={target}: the module {module} has no {name}: {hint}") from None
    except Exception as error:
        raise UserError(f"env.wrappers={target} cannot be loaded: {describe(error)}: choose another wrapper") from error
    try:
        wrapped = wrap(env, **keywords)
    except (Exception, SystemExit) as error:
        advice = MAPPING if "missing" in str(error) else ""
        if "render_mode" in str(error):
            advice = ": add env.kwargs.render_mode=rgb_array"
        raise UserError(f"env.wrappers={target} cannot wrap {id}: {describe(error)}{advice}") from error
    if not isinstance(wrapped, gymnasium.Env):
        raise UserError(
            f"env.wrappers={target} returned {type(wrapped).__name__}, expected a gymnasium.Env: name a class that is a "
            "gymnasium.Wrapper"
        )
    return wrapped


def _register_atari() -> None:
    try:
        import ale_py
    except ImportError as error:
        raise UserError("Atari needs ale-py, which is not installed: run `pip install 'gymnasium[atari]'`") from error
    gymnasium.register_envs(ale_py)
