"""A trained model as a folder for others, on this disk or on the Hugging Face hub. These are its files; see also
`WorldModel.save_pretrained` and `Agent.save_pretrained`.

    config.json           library, format, and the description of the model: parts, frames, actions, figures
    model.safetensors     the world model's weights, each named after its part
    policy.safetensors    the policy's, where there is one
    starts.safetensors    real moments to start dreams from, where there are any
    README.md             the model card

Nothing of it is executed: weights are tensors, and the classes that config.json names are resolved by `config.resolve`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from tokenworld import files, origins
from tokenworld.action_space import MOST_CHOICES, Actions
from tokenworld.config import saved, schema, targets
from tokenworld.config.renamed import with_new_keys
from tokenworld.errors import UserError, first_line
from tokenworld.forms import Form, Misfit, check, list_of, mapping_of, maybe, number, plain, record, tensor, text, whole
from tokenworld.interfaces import Shapes, Steps
from tokenworld.storage import space_format, weights
from tokenworld.storage.weights import Stored

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
FILES = (CONFIG, WEIGHTS, "policy.safetensors", "starts.safetensors", CARD)
SIDE, COUNT = whole(1, 2**16), whole(1, 2**31)
SCORE = record(return_mean=number, return_ci95=list_of(number, 2), episodes=whole(), random_return_mean=number)
METRIC = record(id=text, name=text, value=number, unit=text, alias=maybe(text), ci=maybe(list_of(number, 2)))


def _actions(value: Any, where: str) -> None:
    try:
        space_format.actions_from(value)
    except ValueError as error:
        raise Misfit(where, str(error), value) from None


def _frame_dtype(value: Any, where: str) -> None:
    if value not in space_format.FRAME_DTYPES:
        raise Misfit(where, " or ".join(space_format.FRAME_DTYPES), value)


def _config_form(**spaces: Form) -> Form:
    """What a config.json says; its parts are compared with their constructors later. spaces: the actions, and the type of
    frames where there is more than one."""
    return record(
        parts=mapping_of(mapping_of(plain)),
        frame=list_of(SIDE, 3),
        shapes=record(frame=list_of(SIDE, 3), grid=list_of(COUNT), codes=COUNT, vocab_size=COUNT, dim=COUNT, **spaces),
        action_meanings=maybe(list_of(text)),
        score_env=maybe(mapping_of(plain)),
        training=maybe(mapping_of(mapping_of(plain))),
        figures=maybe(
            record(score=maybe(SCORE), env_steps=maybe(whole()), verdict=maybe(text), metrics=maybe(list_of(METRIC)))
        ),
        **spaces,
    )


CONFIG_FORMS = {1: _config_form(actions=whole(1, MOST_CHOICES)), 2: _config_form(actions=_actions, frame_dtype=_frame_dtype)}
MEMORY = 2**30  # bytes of keys and values that any model may have of one game


def save(dir: Path | str, config: dict[str, Any], tensors: dict[str, dict[str, Tensor]], card: str) -> None:
    """Write a model's folder; config says its format; tensors: {"model": {...}, "policy": {...}, "starts": {...}}, the last two
    optional.

    Every file is first written next to its path: a folder that was there stays whole if the disk refuses. Raises UserError
    then, and where the folder holds something else than a model.
    """
    dir = files.check_path("dir", dir)
    if not _is_free(dir) and not (dir.is_dir() and _ours(dir / CONFIG)):
        raise UserError(f"{dir} exists and is not a model folder, no file was overwritten: choose another one")
    texts = {CONFIG: json.dumps({"library": "tokenworld", **config}, indent=1) + "\n", CARD: card}
    contents = {name: files.encode(text) for name, text in texts.items()}
    for name, each in tensors.items():
        own = {key: value.detach().cpu().contiguous().clone() for key, value in each.items()}  # tied ones get their own
        contents[f"{name}.safetensors"] = to_safetensors(own, metadata={"format": "pt"})
    with contextlib.ExitStack() as stack:  # renamed in reverse order: the config, whose folder it is, first, the weights last
        names = sorted(contents, key=lambda name: (name == CONFIG, name != WEIGHTS))
        temporaries = {name: stack.enter_context(files.replacing(dir / name)) for name in names}
        for name, temporary in temporaries.items():
            with files.writing(dir):
                temporary.write_bytes(contents[name])
    with files.writing(dir):
        for name in set(FILES) - set(contents):
            (dir / name).unlink(missing_ok=True)  # of the model that this one replaces
        for leftover in _leftovers(dir):
            leftover.unlink(missing_ok=True)


def save_model(
    model: Any, dir: Path | str, parts_with_weights: tuple[str, ...], *, policy: nn.Module | None, starts: Steps | None
) -> None:
    """Write the folder of a world model, see `WorldModel.save_pretrained`. Raises UserError."""
    if not model.config:
        raise UserError("this world model was not built from a config, so it cannot be saved: build it with"
                        " WorldModel.from_config")  # fmt: skip
    if policy is not None:
        section = model.config["parts"].get("policy")
        policy_class = None if section is None else targets.resolve(section["_target_"])
        if policy_class is None or isinstance(policy_class, type) and not isinstance(policy, policy_class):
            raise UserError(f"the model's config names {section and section['_target_']} as its policy, got a"
                            f" {type(policy).__name__}: save the policy of its run, or the world model alone")  # fmt: skip
    parts = {name: section for name, section in model.config["parts"].items() if name != "policy" or policy is not None}
    parts["backbone"] = parts["backbone"] | (model.backbone.portable() or {})
    shapes = shapes_as_json(model.shapes)
    version = space_format.version_of(model.shapes.actions, model.shapes.frame_dtype)
    config = {"format": version} | model.config | {
        "parts": parts,
        "frame": list(model.shapes.frame),
        **{key: shapes[key] for key in ("actions", "frame_dtype") if key in shapes},
        "shapes": shapes,
        "made_with": saved.meta(),
    }
    modules = {name: getattr(model, name) for name in parts_with_weights} | ({"policy": policy} if policy is not None else {})
    counts = {name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()}
    tensors = {"model": model.state_dict()}
    if policy is not None:
        tensors["policy"] = policy.state_dict()
    if starts is not None:
        tensors["starts"] = to_tensors(starts)
    save(dir, config, tensors, card(config, counts))


def shapes_as_json(shapes: Shapes) -> dict[str, Any]:
    """The shapes of a model as its config.json has them, of the format that its actions and frames need."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(shapes).items()}
    if space_format.version_of(shapes.actions, shapes.frame_dtype) == 1:
        del values["frame_dtype"]
        return values | {"actions": shapes.actions.choices[0]}
    return values | {"actions": space_format.as_json(shapes.actions)}


def spaces_of(config: dict[str, Any]) -> dict[str, Any]:
    """The frames and actions of a checked config.json of either format, as `WorldModel.from_config` takes them."""
    is_first = config["format"] == 1
    actions = Actions((config["actions"],)) if is_first else space_format.actions_from(config["actions"])
    return spaces(tuple(config["frame"]), actions, "uint8" if is_first else config["frame_dtype"])


def spaces(frame: tuple[int, ...], actions: Actions, frame_dtype: str = "uint8") -> dict[str, Any]:
    """Frames and actions as `WorldModel.from_config` takes them: frames are bytes unless it is told otherwise."""
    return {"frame": frame, "actions": actions} | ({} if frame_dtype == "uint8" else {"frame_dtype": frame_dtype})


def load_model(make: Any, folder: Path, *, trust_remote_code: bool) -> Any:
    """The world model in a folder, on the CPU; make: the class `WorldModel`, see its `from_pretrained`. Raises UserError."""
    config = read(folder)
    code = {"parts": config["parts"], "score_env": config.get("score_env")}
    if trust_remote_code:
        origins.trust(code)
    origins.check(code, folder / CONFIG)
    for name in targets.PARTS:
        if name in config["parts"] or name not in ("env", "policy"):
            schema.check_section(config["parts"], name)
    changes = config.get("score_env") or {}
    if not isinstance(changes, dict) or "_target_" in changes:
        raise UserError(f"{folder / CONFIG} says score_env {changes}, expected keywords of its env: restore it from a copy")
    sizes = spaces_of(config)
    weights_of = read_weights(folder / WEIGHTS)

    def check_shapes(model: Any) -> None:
        for key, value in shapes_as_json(model.shapes).items():
            recorded = config["shapes"].get(key)
            if recorded != value:
                raise UserError(f"{folder / CONFIG} says {key} {recorded}, but its parts make {key} {value}: weights of"
                                " another tokenizer or backbone do not fit, restore the file from a copy")  # fmt: skip

    check_sizes(make, config["parts"], weights_of, **sizes, check=check_shapes)
    model = make.from_config(config["parts"], **sizes)
    check_shapes(model)
    weights_of.load_into(model)
    model.config = {key: value for key, value in config.items() if key not in ("library", "format")}
    return model


def check_sizes(
    make: Any,
    config: dict,
    stored: Stored,
    *,
    check: Callable[[Any], None] | None = None,
    **spaces: Any,
) -> None:
    """Raise UserError unless the parts that a config names have the tensors `stored` and can remember their context; takes
    no memory for them. make: the class `WorldModel` · spaces: its frames and actions, see `spaces_of` · check: of the model
    without memory, before its tensors are compared."""

    def first(model: Any) -> None:
        if check is not None:
            check(model)
        cache = model.backbone.make_cache(1, model.shapes.codes + 1)
        needed = cache.memory
        if needed > MEMORY + 8 * stored.bytes:
            raise UserError(f"backbone.context={model.backbone.context} needs {needed / 2**30:.1f} GB of memory for a game,"
                            f" the weights in {stored.source} have {stored.bytes / 2**30:.3f} GB: {stored.mismatch}")

    parts = [config[name] for name in ("tokenizer", "backbone", "decoding", "action", "reward", "termination")]
    stored.outline(lambda: make.from_config(config, **spaces), parts, first)


def _is_free(dir: Path | str) -> bool:
    """Can a new model be written to this folder? Not if it holds anything but what a killed save left."""
    dir = Path(dir)
    if not dir.is_dir():
        return not dir.exists()
    if _ours(dir / CONFIG) and not (dir / WEIGHTS).exists():
        return True
    return {path.name for path in dir.iterdir()} <= {files.LOCK, *(path.name for path in _leftovers(dir))}


def _leftovers(dir: Path) -> list[Path]:
    """Unfinished files of a save that was killed."""
    return [path for path in dir.iterdir() if files.is_unfinished(path)]


def is_model(folder: Path | str) -> bool:
    """Is this the folder of a model, and not that of a run?"""
    return (Path(folder) / CONFIG).is_file() and not (Path(folder) / "config.yaml").is_file()


def _ours(path: Path) -> bool:
    """Other libraries, too, call their file config.json."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and config.get("library") == "tokenworld"


def read(folder: Path) -> dict[str, Any]:
    """What a model's config.json says, the sections of its parts not checked yet. Raises UserError."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} has no {CONFIG}: expected a folder that `tokenworld export` or save_pretrained wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}): restore it from a copy") from None
    if not isinstance(config, dict) or config.get("library") != "tokenworld":
        raise UserError(f"{path} is not the config of a tokenworld model: expected a folder that `tokenworld export` wrote")
    check(config, record(format=whole()), path)
    form = CONFIG_FORMS.get(config["format"])
    if form is None:
        raise UserError(f"{path} has format {config['format']}, this version reads 1 and 2: update tokenworld")
    check(config, form, path)
    return config | {"parts": with_new_keys(config["parts"])}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Read a JSON object; duplicate keys are refused because they are ambiguous."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)


def read_weights(path: Path, part: str | None = None) -> Stored:
    """The weights in a file of a model's folder. part: what they are all of; None: what tensors' names begin with.

    Raises UserError for a file that is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: the model is incomplete, restore it from a copy")
    mismatch = f"weights and {CONFIG} are not of one model, restore both from a copy"
    return Stored(weights.read(path), path, CONFIG, mismatch, "restore the file from a copy, or export the model again", part)


def to_tensors(steps: Steps) -> dict[str, Tensor]:
    return {f.name: getattr(steps, f.name) for f in fields(Steps)}


def read_starts(folder: Path) -> Steps | None:
    """Read moments to start a dream from, Steps (N, T), if the model has any. Raises UserError for a damaged file."""
    path = folder / "starts.safetensors"
    if not path.is_file():
        return None
    config, tensors = read(folder), weights.read(path)
    known = spaces_of(config)
    actions, dtype = known["actions"], getattr(torch, known.get("frame_dtype", "uint8"))
    forms = {"obs": tensor(5, dtype), "action": tensor(2 + len(actions.row), actions.dtype), "reward": tensor(2, torch.float32)}
    check(tensors, record(**{f.name: forms.get(f.name, tensor(2, torch.bool)) for f in fields(Steps)}), path)
    N, T, *frame = tensors["obs"].shape
    wrong = [f.name for f in fields(Steps) if tensors[f.name].shape[:2] != (N, T)]
    if wrong or frame != config["frame"] or not N or not T:
        raise UserError(f"{path} is damaged, it has frames {N} x {T} x {tuple(frame)}, expected {tuple(config['frame'])}"
                        f"{f' and as many of {wrong[0]}' if wrong else ''}: restore it from a copy")  # fmt: skip
    outside = None
    if tensors["action"].shape[2:] != actions.row:
        outside = f"of {tensors['action'].shape[2]} parts"
    else:  # a step without an action has zeros, which may lie outside of bounds
        taken = tensors["action"].flatten() if actions.is_single else tensors["action"][tensors["acted"]]  # (n,) or (n, A)
        outside = space_format.first_outside(actions, taken.numpy())
    if outside is not None:
        raise UserError(f"{path} is damaged, it has actions {outside}, expected {space_format.limits(actions)}: restore it from"
                        " a copy")  # fmt: skip
    for name in ("obs", "reward"):
        if weights.count_not_finite(tensors[name]):
            raise UserError(f"{path} is damaged, it has {'rewards' if name == 'reward' else 'frames'} that are NaN or infinite:"
                            " restore it from a copy")  # fmt: skip
    return Steps(**{f.name: tensors[f.name] for f in fields(Steps)})


def card(config: dict[str, Any], parameters: dict[str, int]) -> str:
    """Write the model card: the parts, an example of use, and the metrics. parameters: the count of each part."""
    from huggingface_hub import EvalResult, ModelCardData

    parts, figures = config["parts"], config.get("figures") or {}
    env = parts.get("env", {}).get("id", "frames")
    has_policy = "policy" in parameters
    data = ModelCardData(library_name="tokenworld", tags=["world-model", "reinforcement-learning", env])
    score = figures.get("score")
    if score:
        data.model_name = f"tokenworld {env}"
        data.eval_results = [
            EvalResult(
                task_type="reinforcement-learning", dataset_type=env, dataset_name=env,
                metric_type="mean_reward", metric_value=round(score["return_mean"], 3),
            )  # fmt: skip
        ]
    frames, actions = _spaces_in_words(config)
    use = ["from tokenworld import Agent", 'agent = Agent.from_pretrained("THIS_FOLDER_OR_ID")', "action = agent.act(obs)"]
    if not has_policy:
        use = ["from tokenworld import WorldModel", 'world_model = WorldModel.from_pretrained("THIS_FOLDER_OR_ID")']
    lines = ["---", data.to_yaml(), "---", "", f"# A world model of {env}, made of tokens", ""]
    lines += ["```python", *use, "```", ""]
    lines += [
        f"- frames: {frames}",
        f"- actions: {actions}",
        f"- codes: {config['shapes']['codes']} per frame, from a vocabulary of {config['shapes']['vocab_size']}",
        *(f"- {name}: `{parts[name]['_target_']}`, {count:,} parameters" for name, count in parameters.items()),
        "",
    ]
    if score:
        low, high = score["return_ci95"]
        lines += [
            f"The mean return in {env} is **{score['return_mean']:.2f}** (95 % interval [{low:.2f}, {high:.2f}]) over"
            f" {score['episodes']} episodes. Random play scores {score['random_return_mean']:.2f}. The training used"
            f" {figures.get('env_steps') or 0:,} real steps.",
            "",
        ]
    if figures.get("metrics"):
        lines += [f"> {figures['verdict']}", "", "| metric | value | 95% interval | unit |", "|---|---|---|---|"]
        for metric in figures["metrics"]:
            low, high = metric["ci"] if metric.get("ci") else (None, None)
            between = "" if low is None else f"{low:.4g} to {high:.4g}"
            id = f"{metric['id']} ({metric['alias']})" if metric.get("alias") else metric["id"]
            lines.append(f"| {id} {metric['name']} | {metric['value']:.4g} | {between} | {metric['unit']} |")
        lines.append("")
    return "\n".join(lines)


def _spaces_in_words(config: dict[str, Any]) -> tuple[str, str]:
    known, names = spaces_of(config), config.get("action_meanings") or []
    frame_dtype, actions = known.get("frame_dtype", "uint8"), known["actions"]
    if actions.is_single:
        told = f"{actions.choices[0]}{' (' + ', '.join(names) + ')' if names else ''}"
    else:
        told = space_format.describe_actions(actions).removeprefix("actions of ")
    frames = space_format.describe_frames(known["frame"], frame_dtype)
    return f"{frames.removeprefix('frames ')}{', uint8' if frame_dtype == 'uint8' else ''}", told
