"""A finished evaluation as files: report.json (for programs), states.npz (for comparisons), report.html (for people).

report.json, schema 1:

    schema        1
    verdict       one line
    provenance    model, tokenizer and data by hash, versions, environment, seed
    capabilities  tier -> what was there to measure with, or null
    metrics       [{id, name, value, unit, direction, ci, level, n_clusters, n_samples, floor, ceiling, skill, tier, status,
                  reason, experimental, seconds}]; value is null unless status is ok or underpowered
    findings      [{code, severity, evidence, text, established}]; established is true, false (excluded) or null (open)

states.npz holds "state" (N,), a number for each state that was measured, the same in every evaluation on the same data, and
for each metric with a value per state "<id>" (N,) and "<id>/cluster" (N,).
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenworld.evaluation.page import page
from tokenworld.evaluation.records import Metric
from tokenworld.interfaces import UserError

SCHEMA = 1
KEYS = ("schema", "verdict", "provenance", "capabilities", "metrics", "findings")
STATUSES = ("ok", "underpowered", "not_applicable", "skipped", "invalid")


@dataclass(frozen=True)
class Report:
    """`pictures`: arrays that the page draws, each optional: top_reliability and hazard_reliability (as `reliability`
    returns), surprise (h, w) bits per position, drift (as `drift.curves` returns)."""

    metrics: list[Metric]
    findings: list[dict[str, Any]]
    verdict: str
    provenance: dict[str, Any]
    capabilities: dict[str, str | None]
    pictures: dict[str, Any] = field(default_factory=dict)
    state: np.ndarray | None = None  # (N,) uint64, of the rows that metrics have values of


def write(report: Report, folder: Path) -> None:
    """All three files, each whole or not at all. report.json is written last: where it is, the others are."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "report.html", page(report).encode())
    temporary = folder / "states.tmp.npz"
    np.savez_compressed(temporary, **states(report))
    temporary.replace(folder / "states.npz")
    _replace(folder / "report.json", (json.dumps(as_json(report), indent=1, allow_nan=False) + "\n").encode())


def as_json(report: Report) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "verdict": report.verdict,
        "provenance": report.provenance,
        "capabilities": report.capabilities,
        "metrics": [_plain(metric) for metric in report.metrics],
        "findings": report.findings,
    }


def _plain(metric: Metric) -> dict[str, Any]:
    entry = {key: value for key, value in asdict(metric).items() if key not in ("values", "clusters")}
    entry["ci"] = None if metric.ci is None or not all(map(math.isfinite, metric.ci)) else list(metric.ci)
    return entry | {"skill": metric.skill}


def states(report: Report) -> dict[str, np.ndarray]:
    found = {} if report.state is None else {"state": report.state}
    for metric in report.metrics:
        if metric.values is not None and metric.clusters is not None:
            found |= {metric.id: np.asarray(metric.values, float), f"{metric.id}/cluster": np.asarray(metric.clusters)}
    return found


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """report.json and states.npz of a folder, checked. Raises UserError that names what is missing or wrong."""
    path = Path(folder) / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise UserError(f"there is no report at {path}: expected the out= of `tokenworld evaluate`") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): evaluate again") from None
    wrong = _wrong(report)
    if wrong:
        raise UserError(f"{path} is no report of this version: {wrong}: evaluate again")
    try:
        with np.load(Path(folder) / "states.npz", allow_pickle=False) as file:
            return report, {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise UserError(f"{Path(folder) / 'states.npz'} cannot be read ({error}): evaluate again") from None


def _wrong(report: Any) -> str:
    """What is wrong with a loaded report.json; nothing if it is as it should be."""
    if not isinstance(report, dict):
        return f"expected an object, got {type(report).__name__}"
    missing = [key for key in KEYS if key not in report]
    if missing:
        return f"it has no {', '.join(missing)}"
    if report["schema"] != SCHEMA:
        return f"it has schema {report['schema']}, expected {SCHEMA}"
    for entry in report["metrics"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), str):
            return "a metric has no id"
        if entry.get("status") not in STATUSES:
            return f"{entry['id']} has status {entry.get('status')!r}, expected one of {', '.join(STATUSES)}"
        if (entry.get("value") is None) == (entry["status"] in ("ok", "underpowered")):
            return f"{entry['id']} has status {entry['status']} and value {entry.get('value')}"
    return ""


def provenance(run) -> dict[str, Any]:
    """Where the numbers come from; `run` as in `tokenworld.run`."""
    parts = {"tokenizer": run.world_model.tokenizer, "dynamics": run.world_model.dynamics_modules()}
    return {
        "run": str(run.out),
        "env_id": run.meta["env_id"],
        "preprocessing": run.meta["preprocessing"],
        "recipe": run.config.get("recipe"),
        "updates": {name: run.count[name] for name in parts},
        "weights": {name: fingerprint(module) for name, module in parts.items()},
        "temperature": 1.0,
        "device": str(run.device),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def fingerprint(module: torch.nn.Module) -> str:
    """A short hash of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, x in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if x.numel() else b"")
    return digest.hexdigest()[:16]


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
