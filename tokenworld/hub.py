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

import errno
import json
import os
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from tokenworld.errors import UserError
from tokenworld.interfaces import Steps

CONFIG, CARD, FORMAT = "config.json", "README.md", 1
FILES = (CONFIG, "model.safetensors", "policy.safetensors", "starts.safetensors", CARD)
NEEDED = {"parts": dict, "frame": list, "actions": int, "shapes": dict}


def save(dir: Path | str, config: dict[str, Any], tensors: dict[str, dict[str, Tensor]], card: str) -> None:
    """Write a model's folder; tensors: {"model": {...}, "policy": {...}, "starts": {...}}, the last two optional.

    Every file is written beside its place first: a folder that was there stays whole if the disk is full. Raises UserError
    then, and where the folder holds something else than a model.
    """
    dir = Path(dir)
    if dir.exists() and not (dir.is_dir() and (_ours(dir / CONFIG) or not any(dir.iterdir()))):
        raise UserError(f"{dir} exists and is no model's folder, nothing is overwritten: choose another one")
    texts = {CONFIG: json.dumps({"library": "tokenworld", "format": FORMAT, **config}, indent=1) + "\n", CARD: card}
    contents = {name: text.encode() for name, text in texts.items()}
    for name, each in tensors.items():
        whole = {key: value.detach().cpu().contiguous().clone() for key, value in each.items()}  # tied ones get their own
        contents[f"{name}.safetensors"] = to_safetensors(whole, metadata={"format": "pt"})
    news = {name: dir / f".{name}.new" for name in contents}
    try:
        dir.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            news[name].write_bytes(content)
        for name, new in news.items():
            os.replace(new, dir / name)
    except OSError as error:
        for new in news.values():
            new.unlink(missing_ok=True)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise UserError(f"{dir} cannot be written ({error.strerror}): free some space or choose another folder") from None
    for name in set(FILES) - set(contents):
        (dir / name).unlink(missing_ok=True)  # of the model that this one replaces


def is_model(folder: Path | str) -> bool:
    """Is this the folder of a model, and not that of a run?"""
    return (Path(folder) / CONFIG).is_file() and not (Path(folder) / "config.yaml").is_file()


def _ours(path: Path) -> bool:
    """Other libraries, too, call their file config.json."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(told, dict) and told.get("library") == "tokenworld"


def find(source: Path | str, **asked: Any) -> Path:
    """The folder of a model: `source` itself, or a hub id's files on this disk, fetched if need be. Raises UserError."""
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser()
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
        raise UserError(f"{label} is not in the local cache and cannot be had from the hub ({brief(error)}): check the name, or"
                        f" {otherwise}") from None  # fmt: skip


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
        raise UserError(f"repo={repo} cannot be written on the hub ({brief(error)}): {advice}") from None
    return f"{constants.ENDPOINT}/{id}"


def read(folder: Path) -> dict[str, Any]:
    """What a model's config.json says, the sections of its parts not checked yet. Raises UserError."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} has no {CONFIG}: expected a folder that `tokenworld export` or save_pretrained wrote")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged ({brief(error)}): restore it from a copy") from None
    if not isinstance(config, dict) or config.get("library") != "tokenworld":
        raise UserError(f"{path} is not of a tokenworld model: expected a folder that `tokenworld export` wrote")
    if config.get("format") != FORMAT:
        raise UserError(f"{path} has format {config.get('format')}, this version reads {FORMAT}: update tokenworld")
    wrong = [key for key, kind in NEEDED.items() if not isinstance(config.get(key), kind)]
    if wrong or len(config["frame"]) != 3 or not all(isinstance(n, int) for n in [*config["frame"], config["actions"]]):
        raise UserError(f"{path} is incomplete, {', '.join(wrong) or 'frame'} is missing or wrong: restore it from a copy")
    return config


def load_into(module: nn.Module, path: Path, part: str | None = None) -> None:
    """The weights of a file into a module, all of them. part: what the module is called; None: what tensors' names begin with.

    Raises UserError naming the part, the tensor and both shapes where file and module do not fit; the module is then as it was.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: the model is incomplete, restore it from a copy")
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({brief(error)}): restore it from a copy") from None
    wanted = module.state_dict()

    def named(key: str) -> str:
        return f"{part}: {key}" if part else f"{key.partition('.')[0]}: {key.partition('.')[2]}"

    advice = f"weights and {CONFIG} are not of one model, restore both from a copy"
    for key in wanted:
        if key not in found:
            raise UserError(f"{path} lacks a tensor of the {named(key)}, expected shape {tuple(wanted[key].shape)}: {advice}")
        if found[key].shape != wanted[key].shape:
            raise UserError(f"{path} does not fit the {named(key)} has shape {tuple(found[key].shape)} in the file, expected"
                            f" {tuple(wanted[key].shape)} as in {CONFIG}: {advice}")  # fmt: skip
    extra = sorted(set(found) - set(wanted))
    if extra:
        raise UserError(f"{path} has a tensor that no part has, {named(extra[0])} {tuple(found[extra[0]].shape)}: {advice}")
    module.load_state_dict(found)


def to_tensors(steps: Steps) -> dict[str, Tensor]:
    return {f.name: getattr(steps, f.name) for f in fields(Steps)}


def read_starts(folder: Path) -> Steps | None:
    """Moments to begin a dream at, Steps (N, T), if the model has any. Raises UserError for a damaged file."""
    path = folder / "starts.safetensors"
    if not path.is_file():
        return None
    try:
        found = load_file(path)
        return Steps(**{f.name: found[f.name] for f in fields(Steps)})
    except (SafetensorError, OSError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({brief(error)}): restore it from a copy") from None


def card(config: dict[str, Any], parameters: dict[str, int]) -> str:
    """The model card: what it is, how to use it, and what was measured of it. parameters: of each part."""
    from huggingface_hub import EvalResult, ModelCardData

    parts, figures = config["parts"], config.get("figures", {})
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
            f" random play {score['random_return_mean']:.2f}; {figures.get('env_steps', 0):,} real steps.",
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


def brief(error: Exception) -> str:
    """The first line of another library's complaint."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[0].rstrip(".")[:200]
