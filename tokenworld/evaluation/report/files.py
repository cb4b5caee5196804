"""A finished evaluation as files: report.json (for programs), states.npz (for comparisons), report.html (for people).

report.json, schema 2, strict JSON (no NaN, no Infinity):

    schema        2
    verdict       one line
    provenance    model, tokenizer and data by hash, versions, environment, seed
    capabilities  tier -> what was there to measure with, or null
    metrics       [{id, alias, name, value, unit, direction, ci, level, n_clusters, n_samples, floor, ceiling, skill, tier,
                  status, reason, experimental, seconds}]; value is null unless status is ok or underpowered; alias is the
                  id of schema 1, or empty
    findings      [{code, severity, evidence, text, established, threshold}]; established is true, false (excluded) or null
                  (open), threshold its limit in words (not in reports of older versions)
    selftest      what the suite checked of itself on this machine, name -> {passed, ...}, or null

In schema 1 the ids were what are aliases now: it is read, and its ids are translated.

states.npz, no pickles: for each metric with a value per row "<id>" (n,) and "<id>/cluster" (n,), the episode of each; "state"
(N,), a number for each row that was measured, the same in every evaluation on the same data; "<id>/state" (n,) where a
metric's rows are others (branch states by the hash of the simulator's state).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import platform
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenworld import files
from tokenworld.errors import UserError, first_line
from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.report import partial, specs
from tokenworld.evaluation.report import rows as state_rows
from tokenworld.evaluation.report.page import page

SCHEMA = 2
READABLE = (1, SCHEMA)
LARGEST = 64 << 20  # bytes of a report.json
KEYS = ("schema", "verdict", "provenance", "capabilities", "metrics", "findings")
STATUSES = ("ok", "underpowered", "not_applicable", "skipped", "invalid")
MEASURED = STATUSES[:2]
DIRECTIONS = ("lower", "higher", "zero", "none")
PACKAGES = ("numpy", "gymnasium", "ale-py", "minatar")  # what the numbers also depend on, where it is installed
SEVERITIES = ("fault", "warning", "note")
TYPES = {"name": str, "unit": str, "reason": str, "experimental": bool, "n_clusters": int, "n_samples": int}


@dataclass(frozen=True)
class Report:
    """`pictures`: arrays that the page draws, each optional:

    plane        {}, or {"others": [(name, gap, excess entropy)]}, for comparison
    filmstrips   [`records.Branching`], worst first
    transfer     the matrix of `transfer_matrix` in metrics/agents.py, and "names": [name]
    undos        [(words, mass, frame before, frame after)], frames (C, H, W)
    others       as the functions of `metrics/` return them that are marked with `arrays_of`
    """

    metrics: list[Metric]
    findings: list[dict[str, Any]]
    verdict: str
    provenance: dict[str, Any]
    capabilities: dict[str, str | None]
    pictures: dict[str, Any] = field(default_factory=dict)
    state: np.ndarray | None = None  # (N,) uint64, of the rows that metrics have values of, unless they say of which
    selftest: dict[str, Any] | None = None


def write(report: Report, folder: Path) -> None:
    """All three files, or none where the disk refuses (UserError). report.json is renamed last: where it is, the others are."""
    report = replace(report, metrics=[_finite(metric) for metric in report.metrics])
    names = ("report.json", "states.npz", "report.html")
    with contextlib.ExitStack() as stack:  # which renames the last one first
        json_file, rows, html = (stack.enter_context(files.replacing(folder / name)) for name in names)
        json_file.write_text(json.dumps(as_json(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        np.savez_compressed(rows, **states(report))
        html.write_bytes(files.encode(page(report)))


def check_folder(folder: Path) -> None:
    """Check that a report may be written to `folder`, and delete what a killed `write` left there: while it is locked. Raises
    UserError for a folder that holds something else."""
    unfinished = list(folder.glob(f"{files.TEMPORARY}*-report.json"))
    if not _is_report(folder):
        others = [path for path in folder.iterdir() if not (unfinished and path.name in ("states.npz", "report.html"))
                  and path.name != partial.NAME]  # fmt: skip
        if not all(files.is_own(path) for path in others):
            raise UserError(f"{folder} holds something else than a report, no file was overwritten: choose another out=DIR")
        for path in set(folder.iterdir()) - {*others, folder / partial.NAME}:
            path.unlink()
    files.remove_unfinished(folder)


def _is_report(folder: Path) -> bool:
    """Is the report.json here, perhaps a damaged one, tokenworld's? Other programs use that name, but write no states.npz."""
    path = folder / "report.json"
    if path.is_file() and (folder / "states.npz").is_file():
        return True
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"schema", "verdict", "metrics"} <= content.keys()


def as_json(report: Report) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "verdict": report.verdict,
        "provenance": _plain(report.provenance),
        "capabilities": report.capabilities,
        "metrics": [_entry(metric) for metric in report.metrics],
        "findings": report.findings,
        "selftest": _plain(report.selftest),
    }


def _entry(metric: Metric) -> dict[str, Any]:
    entry = {f.name: _plain(getattr(metric, f.name)) for f in fields(metric) if f.name not in ("values", "clusters", "states")}
    return entry | {"alias": specs.alias_of(metric.id), "skill": _plain(metric.skill)}


def _finite(metric: Metric) -> Metric:
    """Values that are not finite: a value is then invalid, an interval or an anchor left out."""
    value, floor, ceiling = (_plain(x) for x in (metric.value, metric.floor, metric.ceiling))
    ci = None if metric.ci is None or None in _plain(metric.ci) else metric.ci
    known = metric.values is None or np.isfinite(np.asarray(metric.values, float)).all()
    metric = replace(metric, floor=floor, ceiling=ceiling, values=metric.values if known else None)
    if metric.value is not None and value is None:
        return replace(metric, value=None, ci=None, status="invalid", reason=f"the value is {metric.value}, no finite number")
    return replace(metric, value=value, ci=ci)


def _plain(x: Any) -> Any:
    """What JSON has: arrays and tuples as lists, numpy's numbers as Python's, paths as text, None for what is not finite."""
    if isinstance(x, dict):
        return {str(key): _plain(value) for key, value in x.items()}
    if isinstance(x, (list, tuple, np.ndarray)):
        return [_plain(value) for value in x]
    if isinstance(x, np.generic):
        x = x.item()
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    return x if x is None or isinstance(x, (str, int)) else str(x)


def states(report: Report) -> dict[str, np.ndarray]:
    """The arrays of states.npz."""
    arrays = {} if report.state is None else {"state": np.asarray(report.state, np.uint64)}
    for metric in report.metrics:
        if metric.values is None or metric.clusters is None or not len(metric.values):
            continue
        _, cluster = np.unique(np.asarray(metric.clusters), return_inverse=True)  # names of episodes become numbers
        arrays |= {metric.id: np.asarray(metric.values, float), f"{metric.id}/cluster": cluster}
        if metric.states is not None:
            arrays[f"{metric.id}/state"] = np.asarray(metric.states, np.uint64)
    return arrays


def read(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """report.json and states.npz of a folder, checked. Raises UserError that names what is missing or wrong."""
    report, is_old = _read_json(folder)
    rows = state_rows.read(Path(folder) / "states.npz")
    if not is_old:
        return report, rows
    upgraded = {"/".join([specs.id_of(base), *kind]): x for name, x in rows.items() for base, *kind in [name.split("/")]}
    if len(upgraded) != len(rows):
        raise UserError(f"{folder}/states.npz holds a metric under its old and its new id: evaluate again")
    return report, upgraded


def read_json(folder: Path) -> dict[str, Any]:
    """report.json of a folder, checked, its ids those of this version. Raises UserError that names what is missing or wrong."""
    return _read_json(folder)[0]


def _read_json(folder: Path) -> tuple[dict[str, Any], bool]:
    """report.json of a folder, and whether its ids were of schema 1."""
    path = Path(folder) / "report.json"
    try:
        if not path.is_file():
            raise UserError(f"there is no report at {path}: expected the out= of `tokenworld evaluate`")
        if path.stat().st_size > LARGEST:
            raise ValueError(f"it is longer than {LARGEST >> 20} MB")
        report = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refused)
    except OSError as error:
        raise UserError(files.explain(error, path)) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({first_line(error)}): evaluate again") from None
    wrong = validate(report)
    is_old = not wrong and report["schema"] == 1
    if is_old:
        report = _upgrade(report)
        wrong = validate(report)
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise UserError(f"{path} is no report of this version: {' '.join(wrong[0].split())[:300]}{more}: evaluate again")
    return report, is_old


def _upgrade(report: dict[str, Any]) -> dict[str, Any]:
    """A report of schema 1 as one of this schema: ids become aliases. What no spec knows keeps its id."""
    metrics = [entry | {"id": specs.id_of(entry["id"]), "alias": specs.alias_of(specs.id_of(entry["id"]))}
               for entry in report["metrics"]]  # fmt: skip
    findings = []
    for finding in report["findings"]:
        finding = finding | {"evidence": [specs.id_of(str(id)) for id in finding["evidence"]]}
        if "threshold" in finding:
            finding["threshold"] = specs.translate(finding["threshold"])
        findings.append(finding)
    verdict = specs.translate(report["verdict"])
    return report | {"schema": SCHEMA, "metrics": metrics, "findings": findings, "verdict": verdict}


def figures(folder: Path) -> dict[str, Any]:
    """What an exported model says of its evaluation: the verdict, and the entries that were measured. Raises UserError as
    `read_json`."""
    report = read_json(folder)
    return {"verdict": report["verdict"], "metrics": [entry for entry in report["metrics"] if entry["status"] in MEASURED]}


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def validate(report: Any) -> list[str]:
    """What is wrong with a loaded report.json, a sentence each; empty if it is as it should be."""
    if not isinstance(report, dict):
        return [f"expected an object, got {type(report).__name__}"]
    missing = [key for key in KEYS if key not in report]
    if missing:
        return [f"it has no {', '.join(missing)}"]
    if report["schema"] not in READABLE or isinstance(report["schema"], bool):
        return [f"it has schema {report['schema']!r}, expected {SCHEMA}"]
    kinds = {"verdict": str, "provenance": dict, "capabilities": dict, "metrics": list, "findings": list}
    wrong = [f"{key} is {type(report[key]).__name__}, expected {kind.__name__}" for key, kind in kinds.items()
             if not isinstance(report[key], kind)]  # fmt: skip
    if wrong:
        return wrong
    ids = [entry["id"] if isinstance(entry, dict) and isinstance(entry.get("id"), str) else "" for entry in report["metrics"]]
    for entry, id in zip(report["metrics"], ids, strict=True):
        wrong += [f"metric {id:.60} {what}" for what in _wrong(entry)] if id else ["a metric has no id"]
    times = Counter(ids)
    wrong += [f"metric {id:.60} is there {count} times" for id, count in times.items() if count > 1 and id]
    for finding in report["findings"]:
        code = finding.get("code") if isinstance(finding, dict) else None
        if not isinstance(code, str) or not isinstance(finding.get("text"), str):
            wrong.append("a finding has no code or text")
        elif finding.get("severity") not in SEVERITIES:
            wrong.append(f"finding {code} has severity {finding.get('severity')!r}, expected one of {', '.join(SEVERITIES)}")
        elif not any(finding.get("established", "nothing") is value for value in (True, False, None)):
            wrong.append(f"finding {code} has established {finding.get('established')!r}, expected true, false or null")
        elif not isinstance(finding.get("threshold", ""), str):
            wrong.append(f"finding {code} has threshold {finding['threshold']!r:.60}, expected words")
        elif not isinstance(finding.get("evidence"), list) or not set(map(str, finding["evidence"])) <= set(ids):
            wrong.append(f"finding {code} has evidence {finding.get('evidence')}, which are not all metrics of the report")
    return wrong


def _wrong(entry: dict[str, Any]) -> list[str]:
    """What is wrong with one metric's entry."""
    wrong, status, value, ci = [], entry.get("status"), entry.get("value"), entry.get("ci")
    for key, allowed in (("status", STATUSES), ("direction", DIRECTIONS), ("tier", ("A", "B", "C"))):
        if entry.get(key) not in allowed:
            wrong.append(f"has {key} {entry.get(key)!r}, expected one of {', '.join(allowed)}")
    wrong += [f"has {key} {entry.get(key)!r:.60}, expected {kind.__name__}" for key, kind in TYPES.items()
              if not isinstance(entry.get(key), kind) or kind is int and not 0 <= entry[key] < 2**63]  # fmt: skip
    wrong += [f"has no {key}" for key in ("value", "ci") if key not in entry]
    for key in ("value", "floor", "ceiling", "skill"):
        if entry.get(key) is not None and not _number(entry[key]):
            wrong.append(f"has {key} {entry[key]!r:.60}, expected a number or null")
    if status in STATUSES and (value is None) == (status in MEASURED):
        wrong.append(f"has status {status} and value {value}")
    if status in STATUSES[2:] and not entry.get("reason"):
        wrong.append("was not measured and gives no reason")
    if ci is not None and not (isinstance(ci, list) and len(ci) == 2 and all(map(_number, ci)) and ci[0] <= ci[1]):
        wrong.append(f"has the interval {ci!r:.60}, expected [low, high] or null")
    return wrong


def _number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < state_rows.LARGEST


def provenance(run) -> dict[str, Any]:
    """Where the numbers come from; `run` as in `tokenworld.training.run`."""
    parts = {"tokenizer": run.world_model.tokenizer, "dynamics": run.world_model.dynamics_modules()}
    settings = {name: value for name, value in run.world_model.config.get("parts", {}).items() if name not in ("env", "policy")}
    return {
        "run": str(run.out),
        "env_id": run.meta["env_id"],
        "preprocessing": run.meta["preprocessing"],
        "recipe": run.config.get("recipe"),
        "updates": {name: run.count[name] for name in parts},
        "weights": {name: fingerprint(module) for name, module in parts.items()},
        "parts": hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:16],
        "temperature": 1.0,
        "device": str(run.device),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def fingerprint(module: torch.nn.Module) -> str:
    """A short hash of a module's parameters and buffers."""
    digest = hashlib.sha256()
    for name, x in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if x.numel() else b"")
    return digest.hexdigest()[:16]
