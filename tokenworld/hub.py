"""A trained model as a folder for others, on this disk or on the Hugging Face hub. Here are its files; what they mean is said
by `WorldModel.save_pretrained` and `Agent.save_pretrained`.

    config.json           library, format, and what the model says of itself: parts, frames, actions, figures
    model.safetensors     the world model's weights, each named after its part
    policy.safetensors    the policy's, where there is one
    starts.safetensors    real moments to begin dreams at, where there are any
    README.md             the model card

Nothing of it is executed: weights are tensors, and the classes that config.json names are resolved by `config.resolve`.
"""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from tokenworld import files, weights
from tokenworld.errors import UserError, first_line
from tokenworld.forms import check, listed, mapped, maybe, number, plain, record, tensor, text, whole
from tokenworld.interfaces import Steps
from tokenworld.weights import Stored

CONFIG, WEIGHTS, CARD, FORMAT = "config.json", "model.safetensors", "README.md", 1
FILES = (CONFIG, WEIGHTS, "policy.safetensors", "starts.safetensors", CARD)
SIDE, COUNT = whole(1, 2**16), whole(1, 2**31)
SCORE = record(return_mean=number, return_ci95=listed(number, 2), episodes=whole(), random_return_mean=number)
METRIC = record(id=text, name=text, value=number, unit=text, ci=maybe(listed(number, 2)))
TOLD = record(  # what a config.json says; its parts are compared with their constructors later
    parts=mapped(mapped(plain)),
    frame=listed(SIDE, 3),
    actions=COUNT,
    shapes=record(frame=listed(SIDE, 3), actions=COUNT, grid=listed(COUNT), codes=COUNT, vocab_size=COUNT, dim=COUNT),
    action_meanings=maybe(listed(text)),
    score_env=maybe(mapped(plain)),
    training=maybe(mapped(mapped(plain))),
    figures=maybe(
        record(score=maybe(SCORE), env_steps=maybe(whole()), verdict=maybe(text), metrics=maybe(listed(METRIC)))
    ),
)
FORMS = {"obs": tensor(5, torch.uint8), "action": tensor(2, torch.int64), "reward": tensor(2, torch.float32)}


def save(dir: Path | str, config: dict[str, Any], tensors: dict[str, dict[str, Tensor]], card: str) -> None:
    """Write a model's folder; tensors: {"model": {...}, "policy": {...}, "starts": {...}}, the last two optional.

    Every file is written beside its place first: a folder that was there stays whole if the disk refuses. Raises UserError
    then, and where the folder holds something else than a model.
    """
    dir = files.given_path("dir", dir)
    if not _is_free(dir) and not (dir.is_dir() and _ours(dir / CONFIG)):
        raise UserError(f"{dir} exists and is no model's folder, nothing is overwritten: choose another one")
    texts = {CONFIG: json.dumps({"library": "tokenworld", "format": FORMAT, **config}, indent=1) + "\n", CARD: card}
    contents = {name: files.encoded(text) for name, text in texts.items()}
    for name, each in tensors.items():
        own = {key: value.detach().cpu().contiguous().clone() for key, value in each.items()}  # tied ones get their own
        contents[f"{name}.safetensors"] = to_safetensors(own, metadata={"format": "pt"})
    with contextlib.ExitStack() as stack:  # renamed in reverse order: the config, whose folder it is, first, the weights last
        names = sorted(contents, key=lambda name: (name == CONFIG, name != WEIGHTS))
        places = {name: stack.enter_context(files.replacing(dir / name)) for name in names}
        for name, place in places.items():
            with files.writing(dir):
                place.write_bytes(contents[name])
    with files.writing(dir):
        for name in set(FILES) - set(contents):
            (dir / name).unlink(missing_ok=True)  # of the model that this one replaces
        for leftover in _leftovers(dir):
            leftover.unlink(missing_ok=True)


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
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(told, dict) and told.get("library") == "tokenworld"


def find(source: Path | str, **asked: Any) -> Path:
    """The folder of a model: `source` itself, or a hub id's files on this disk, fetched if need be. asked: as in
    `downloaded`. Raises UserError."""
    path = files.given_path("the model", source)
    if path.is_dir():
        return path
    for key in asked.keys() - {"revision", "token", "cache_dir", "local_files_only"}:
        raise UserError(f"from_pretrained takes revision, token, cache_dir and local_files_only of a hub's model, got {key}")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)) or str(source).startswith((".", "/")):
        raise UserError(f"{source} is no folder and no hub id: expected a folder that `tokenworld export` wrote, or user/name")
    label = f"{source}, which is no folder,"
    return Path(downloaded(str(source), list(FILES), label, "give the folder of a model on this disk", **asked))


def downloaded(id: str, wanted: list[str], label: str, otherwise: str, **asked: Any) -> str:
    """The folder of a hub id's files: from the local cache if they are there, else fetched. asked: revision, token, cache_dir,
    local_files_only, as the hub's own functions take them. Raises UserError, at once, if they cannot be had: `label` is what
    it calls the model, `otherwise` what else the user can do."""
    from huggingface_hub import HfApi, constants, snapshot_download

    local = asked.pop("local_files_only", False)
    try:
        folder = snapshot_download(id, allow_patterns=wanted, local_files_only=True, **asked)
        if any(Path(folder).glob("*.safetensors")):
            return folder
    except Exception:  # not in the cache, whatever the reason: it is asked for below
        pass
    if constants.HF_HUB_OFFLINE or local:
        why = "the hub is switched off (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "only local files were asked for"
        raise UserError(f"{label} is not in the local cache and {why}: check the name, or {otherwise}")
    try:
        keys = {key: asked[key] for key in ("revision", "token") if key in asked}
        HfApi().model_info(id, timeout=5, **keys)  # one question before anything is fetched, so that no retries follow
        return snapshot_download(id, allow_patterns=wanted, **asked)
    except Exception as error:  # of the network, the hub or the name: all of them end here
        raise UserError(f"{label} is not in the local cache and cannot be fetched from the hub ({first_line(error)}): check the"
                        f" name, or {otherwise}") from None  # fmt: skip


def push(folder: Path, repo: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a model's folder to the hub id `repo`, made if it is not there -> its address. Raises UserError."""
    from huggingface_hub import HfApi, constants

    advice = "log in by `hf auth login` with a token that may write, and name it user/name"
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"repo={repo} cannot be written, the hub is switched off (HF_HUB_OFFLINE): unset it, then push again")
    try:
        api = HfApi(token=token)
        id = api.create_repo(repo, private=private, exist_ok=True).repo_id
        api.upload_folder(repo_id=id, folder_path=folder, commit_message="Add a tokenworld model", allow_patterns=list(FILES))
    except Exception as error:  # of the network, the hub, the name or the token
        raise UserError(f"repo={repo} cannot be written on the hub ({first_line(error)}): {advice}") from None
    return f"{constants.ENDPOINT}/{id}"


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
        raise UserError(f"{path} is not of a tokenworld model: expected a folder that `tokenworld export` wrote")
    check(config, record(format=whole()), path)
    if config["format"] != FORMAT:
        raise UserError(f"{path} has format {config['format']}, this version reads {FORMAT}: update tokenworld")
    check(config, TOLD, path)
    return config


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which a key that is there twice could mean either."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")
    return dict(pairs)


def stored(path: Path, part: str | None = None) -> Stored:
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
    """Moments to begin a dream at, Steps (N, T), if the model has any. Raises UserError for a damaged file."""
    path = folder / "starts.safetensors"
    if not path.is_file():
        return None
    told, found = read(folder), weights.read(path)
    check(found, record(**{f.name: FORMS.get(f.name, tensor(2, torch.bool)) for f in fields(Steps)}), path)
    N, T, *frame = found["obs"].shape
    wrong = [f.name for f in fields(Steps) if found[f.name].shape[:2] != (N, T)]
    if wrong or frame != told["frame"] or not N or not T:
        raise UserError(f"{path} is damaged, it has frames {N} x {T} x {tuple(frame)}, expected {tuple(told['frame'])}"
                        f"{f' and as many of {wrong[0]}' if wrong else ''}: restore it from a copy")  # fmt: skip
    low, high = int(found["action"].min()), int(found["action"].max())
    if low < 0 or high >= told["actions"]:
        raise UserError(f"{path} is damaged, it has actions from {low} to {high}, expected 0..{told['actions'] - 1}: restore it"
                        " from a copy")  # fmt: skip
    if weights.not_finite(found["reward"]):
        raise UserError(f"{path} is damaged, it has rewards that are NaN or infinite: restore it from a copy")
    return Steps(**{f.name: found[f.name] for f in fields(Steps)})


def card(config: dict[str, Any], parameters: dict[str, int]) -> str:
    """The model card: what it is, how to use it, and what was measured of it. parameters: of each part."""
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
    C, H, W = config["frame"]
    use = ["from tokenworld import Agent", 'agent = Agent.from_pretrained("THIS_FOLDER_OR_ID")', "action = agent.act(obs)"]
    if not has_policy:
        use = ["from tokenworld import WorldModel", 'world_model = WorldModel.from_pretrained("THIS_FOLDER_OR_ID")']
    names = config.get("action_meanings") or []
    lines = ["---", data.to_yaml(), "---", "", f"# A token world model of {env}", ""]
    lines += ["```python", *use, "```", ""]
    lines += [
        f"- frames: {C} x {H} x {W} (channels, height, width), bytes",
        f"- actions: {config['actions']}{' (' + ', '.join(names) + ')' if names else ''}",
        f"- codes: {config['shapes']['codes']} a frame out of {config['shapes']['vocab_size']}",
        *(f"- {name}: `{parts[name]['_target_']}`, {count:,} parameters" for name, count in parameters.items()),
        "",
    ]
    if score:
        low, high = score["return_ci95"]
        lines += [
            f"Return in {env}: **{score['return_mean']:.2f}** [{low:.2f}, {high:.2f}] over {score['episodes']} episodes,"
            f" random play {score['random_return_mean']:.2f}; {figures.get('env_steps') or 0:,} real steps.",
            "",
        ]
    if figures.get("metrics"):
        lines += [f"> {figures['verdict']}", "", "| number | value | 95 % interval | unit |", "|---|---|---|---|"]
        for metric in figures["metrics"]:
            low, high = metric["ci"] if metric.get("ci") else (None, None)
            between = "" if low is None else f"{low:.4g} to {high:.4g}"
            lines.append(f"| {metric['id']} {metric['name']} | {metric['value']:.4g} | {between} | {metric['unit']} |")
        lines.append("")
    return "\n".join(lines)
