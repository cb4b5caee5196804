"""Models on the Hugging Face hub: found in the local cache, fetched, pushed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tokenworld import files
from tokenworld.errors import UserError, first_line
from tokenworld.storage.model_folder import FILES


def find(source: Path | str, **asked: Any) -> Path:
    """The folder of a model: `source` itself, or a hub id's files on this disk, fetched if need be. asked: as in
    `download`. Raises UserError."""
    path = files.check_path("the model", source)
    if path.is_dir():
        return path
    for key in asked.keys() - {"revision", "token", "cache_dir", "local_files_only"}:
        raise UserError(f"from_pretrained takes revision, token, cache_dir and local_files_only of a hub's model, got {key}")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)) or str(source).startswith((".", "/")):
        raise UserError(f"{source} is neither a folder nor a hub id: expected a folder from `tokenworld export`, or user/name")
    label = f"{source}, which is not a folder,"
    return Path(download(str(source), list(FILES), label, "give the folder of a model on this disk", **asked))


def download(id: str, wanted: list[str], label: str, otherwise: str, **asked: Any) -> str:
    """The folder of a hub id's files: from the local cache if they are there, else fetched. asked: revision, token, cache_dir,
    local_files_only, as the hub's own functions take them. Raises UserError at once if they are not available: `label` is
    the name of the model in it, `otherwise` its advice."""
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
    """Upload a model's folder to the hub id `repo`, created if it does not exist -> its address. Raises UserError."""
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
