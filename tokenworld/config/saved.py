"""`config.yaml` of a run: its recipe, the keys of the command line and the versions that made it. Read as untrusted data."""

from __future__ import annotations

import copy
import functools
import subprocess
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from tokenworld import files, origins
from tokenworld.config.renamed import RENAMED_KEYS, with_new_keys
from tokenworld.config.schema import CLI_KEYS, PHASES
from tokenworld.config.targets import with_new_names
from tokenworld.config.values import MOST_BYTES, check_values, fits, flatten, words_for
from tokenworld.errors import UserError, first_line


@dataclass(frozen=True)
class RunSpec:
    """What a run shall be: a resolved recipe, and the keys of the command line that config.yaml stores (None: not given)."""

    recipe: str  # the name of a shipped recipe, or the path of a file
    parts: dict[str, Any]  # the section of each part, env among them
    train: dict[str, Any]  # the sections of the loop and of the phases
    overlay: str | None = None
    seed: int | None = None
    device: str | None = None
    precision: str | None = None
    out: str | None = None
    data: str | None = None
    load_tokenizer: str | None = None
    load_world_model: str | None = None
    given: tuple[str, ...] = ()  # the settings that the user set, which nothing that is loaded replaces
    phase: str | None = None  # the only phase that is trained

    @classmethod
    def of(cls, cfg: dict, command: dict[str, Any]) -> RunSpec:
        """From a recipe, and the keys of the command line by their names there."""
        parts = {name: section for name, section in cfg.items() if name not in ("train", "meta")}
        keys = {name.replace(".", "_"): value for name, value in command.items()}
        return cls(parts=parts, train=cfg.get("train"), **keys | {"given": tuple(keys.get("given", ()))})

    @property
    def cfg(self) -> dict[str, Any]:
        """The recipe: the sections of the parts, and `train`."""
        return self.parts | {"train": self.train}

    @property
    def command(self) -> dict[str, Any]:
        """The keys of the command line that were given, by their names there."""
        keys = {name: getattr(self, name.replace(".", "_")) for name in CLI_KEYS}
        keys |= {"given": list(self.given) or None, "phase": self.phase}
        return {name: value for name, value in keys.items() if value is not None}

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases that an epoch has."""
        return tuple(name for name in PHASES if name in self.train and (self.phase in (None, name) or name == "evaluate"))

    @property
    def loads(self) -> dict[str, str]:
        """What is loaded: "load.tokenizer", "load.world_model" -> the run."""
        return {key: folder for key, folder in self.command.items() if key.startswith("load.")}

    def with_cfg(self, cfg: dict) -> RunSpec:
        """The same run of another recipe."""
        return RunSpec.of(cfg, self.command)

    def with_settings(self, settings: dict[str, Any]) -> RunSpec:
        """The same run with some settings of its recipe changed, {"train.loop.epochs": 40}."""
        cfg = copy.deepcopy(self.cfg)
        for key, value in settings.items():
            *sections, last = key.split(".")
            functools.reduce(dict.__getitem__, sections, cfg)[last] = value
        return replace(self.with_cfg(cfg), given=tuple(sorted({*self.given, *settings})))


def save(path: Path | str, spec: RunSpec) -> None:
    """Write the resolved recipe, the command line's own keys (`command`) and where it ran (`meta`) as YAML.

    Raises UserError where the disk refuses.
    """
    import yaml

    files.write(path, yaml.safe_dump(spec.cfg | {"command": spec.command, "meta": meta()}, sort_keys=False))


def load(path: Path | str) -> RunSpec:
    """What `save` wrote; `path` is the file or its folder; the recipe is not checked yet (see `schema.check`).

    Raises UserError for a damaged file, and for one that names code from outside tokenworld that is not trusted.
    """
    path = Path(path)
    file = path / "config.yaml" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path} is not a run or a model: expected a folder with a config.yaml")
    cfg = _read_yaml(file)
    if not isinstance(cfg, dict) or not isinstance(cfg.get("command"), dict):
        raise UserError(f"{file} is not the config of a run: expected the sections of a recipe and `command`")
    check_values(cfg, file)
    cli = cfg.pop("command")
    cfg.pop("meta", None)
    cfg = with_new_keys(with_new_names(cfg))
    kinds = CLI_KEYS | {"given": list[str], "phase": Literal["tokenizer", "dynamics", "policy"]}
    for key, value in cli.items():
        if key not in kinds or not fits(value, kinds[key]) or kinds[key] is int and value < 0:
            raise UserError(f"{file} says command.{key}: {value!r}, expected"
                            f" {words_for(kinds[key]) if key in kinds else 'no such key'}: restore it from a copy")
    if "recipe" not in cli:
        raise UserError(f"{file} lacks command.recipe: restore it from a copy")
    origins.check(cfg, file)
    if "given" in cli:
        cli["given"] = [RENAMED_KEYS.get(key, key) for key in cli["given"]]
    return RunSpec.of(cfg, cli)


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
    """Return what produced a run: package versions and, in a checkout, the commit."""
    import platform

    versions = {"python": platform.python_version()}
    for name in ("tokenworld", "torch", "numpy", "gymnasium", "ale-py", "minatar", "transformers",
                 "vector-quantize-pytorch"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {"versions": versions, "git": _git_hash()}


def _git_hash() -> str | None:
    """The commit of the checkout that this file is in, `-dirty` if changed; None for an installed package."""
    root = Path(__file__).resolve().parent.parent.parent
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
