"""Settings that an earlier version had under another name: files that it wrote are read with today's."""

from __future__ import annotations

import copy
from typing import Any

RENAMED_KEYS = {  # an old key -> the new one; rows are added, never removed
    "policy.view": "policy.network._target_",
    "policy.hidden": "policy.network.hidden",
    "policy.normalise": "policy.normalize",
    "policy.passes": "policy.update_epochs",
}
VALUES = {  # of keys whose values have changed, too
    "policy.view": {
        "pixels": "tokenworld.policies.networks.PixelNetwork",
        "frame": "tokenworld.policies.networks.FrameNetwork",
        "codes": "tokenworld.policies.networks.CodesNetwork",
        "codes_h": "tokenworld.policies.networks.CodesAndHNetwork",
    },
}
OWNERS = {"policy": "tokenworld.policies.actor_critic.ActorCritic"}  # a plug-in may have a key of an old name


def new_word(key: str, value: Any, owner: str) -> str:
    """Say how a setting of `owner`, the class that a section names, is written today; empty if it was never renamed."""
    if key not in RENAMED_KEYS or owner != OWNERS[key.partition(".")[0]]:
        return ""
    value = VALUES.get(key, {}).get(value, value) if isinstance(value, str) else value
    return f"{key} is now {RENAMED_KEYS[key]}: write {RENAMED_KEYS[key]}={value}"


def with_new_keys(cfg: dict[str, Any]) -> dict[str, Any]:
    """A recipe of an earlier version with today's names of its settings."""
    cfg = copy.deepcopy(cfg)
    for old, new in RENAMED_KEYS.items():
        name, _, key = old.partition(".")
        section = cfg.get(name)
        if not isinstance(section, dict) or section.get("_target_") != OWNERS[name] or key not in section:
            continue
        value, inner = section.pop(key), new.split(".")[1:-1]
        for word in inner:  # "network": a section of its own
            section = section.setdefault(word, {"_target_": VALUES["policy.view"]["pixels"]})
        if isinstance(section, dict):  # else the file is damaged, and the check of the section says so
            section[new.rpartition(".")[2]] = VALUES.get(old, {}).get(value, value) if isinstance(value, str) else value
    return cfg
