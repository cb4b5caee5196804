"""A metric is one file: in a copy of the package a file in evaluation/metrics/ is added, and nothing else is changed.

What the copy then measures, reports, finds, shows, accepts and documents is looked at in a process of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
METRIC = '''
"""How much stands still: the share of codes that do not change."""

from tokenworld.evaluation.records import Metric, Scored
from tokenworld.evaluation.statistics.measured import mean
from tokenworld.evaluation.statistics.metric_spec import MetricSpec, Rule, Section, above, arrays_of, measure

STILLNESS = Section("What stands still", "Codes that stay as they are.", 50)
SHARE = MetricSpec(
    "stillness.share", "Codes that stay", "The share of codes that do not change from frame to frame.", unit="share",
    quality="Frames that move", section=STILLNESS, picture="stillness_by_code", source="Nobody 2026, arXiv:2601.00001",
    rules=(Rule("STANDS_STILL", "fault", above(0.9), lambda m: f"{m.value:.0%} of the codes stand still"),),
)


@measure
def stillness(scored: Scored) -> list[Metric]:
    """The share of codes that do not change."""
    return [mean(SHARE, (scored.codes == scored.previous).mean(1), scored.cluster, floor=1.0, ceiling=0.0)]


@arrays_of("stillness_by_code")
def by_code(scored: Scored):
    """(K,): the share of each code."""
    return (scored.codes == scored.previous).mean(0)
'''
LOOK = '''
import json, sys
from pathlib import Path
import numpy as np
import tokenworld
from tokenworld.cli import main as cli
from tokenworld.errors import UserError
from tokenworld.evaluation.probes.stages import Stages
from tokenworld.evaluation.records import Scored
from tokenworld.evaluation.report import files, specs
from tokenworld.evaluation.report.findings import findings
from tokenworld.evaluation.report.verdict import verdict
from tokenworld.evaluation.tiers import Evaluation

def report(still):
    """Of 20 episodes of 10 frames of 4 codes, of which so many stand still."""
    n, four, zero = 200, np.ones((200, 4)), np.zeros(200)
    codes = np.tile(np.arange(4) >= 4 * still, (n, 1)).astype(int)
    scored = Scored(cluster=np.repeat(np.arange(20), 10), previous=four * 0, codes=codes, action=zero.astype(int), bits=four,
                    entropy=four, top=four / 2, hit=four > 0, reward=zero, reward_mean=zero, terminated=zero > 0, hazard=zero)
    evaluation = Evaluation(Stages())
    evaluation.fill("frames", scored=scored, baselines={})
    found = findings(evaluation.metrics)
    return files.Report(metrics=evaluation.metrics, findings=found, verdict=verdict(evaluation.metrics, found),
                        provenance={"env_id": "hand-made"}, capabilities={"A": "held-out episodes", "B": None, "C": None},
                        pictures=evaluation.pictures)

answer = {"package": tokenworld.__file__, "table": specs.table(), "selected": specs.select("stillness.share,tokenizer.psnr"),
          "family": specs.select("stillness"), "wrong": cli.main(["evaluate", "run", "metrics=stillness.shar"]),
          "right": cli.main(["evaluate", "run", "metrics=stillness.share,M0.psnr", "frames=40", "out=evaluated", "device=cpu"])}
answer["evaluated"] = [entry["id"] for entry in files.read_json(Path("evaluated"))["metrics"]]
for name, still in (("still", 1.0), ("moving", 0.5)):
    files.write(report(still), Path(name))
    answer[name] = files.read_json(Path(name))
    answer[name]["page"] = (Path(name) / "report.html").read_text(encoding="utf-8")
Path("answer.json").write_text(json.dumps(answer))
'''


def look(folder: Path) -> tuple[dict, str]:
    """What the package in the folder says of metrics, and what it writes to the terminal."""
    for name in ("tokenworld", "tokenizers", "configs"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "saved" / "0.1.0" / "run", folder / "run")
    metrics = folder / "tokenworld" / "evaluation" / "metrics"
    assert not (metrics / "stillness.py").exists()
    (metrics / "stillness.py").write_text(METRIC.lstrip(), encoding="utf-8")
    environ = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, "-c", LOOK], cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "answer.json").read_text()), done.stderr


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    pytest.importorskip("minatar")
    folder = tmp_path_factory.mktemp("copy")
    answer, said = look(folder)
    assert Path(answer["package"]).is_relative_to(folder)
    return answer, said


def test_the_report_has_the_metric(looked):
    entry = {entry["id"]: entry for entry in looked[0]["moving"]["metrics"]}["stillness.share"]
    assert entry["value"] == 0.5 and entry["name"] == "Codes that stay" and entry["alias"] == "" and entry["status"] == "ok"
    assert entry["unit"] == "share" and entry["skill"] == 0.5 and entry["n_clusters"] == 20


def test_the_page_shows_its_name_section_explanation_picture_and_rung(looked):
    page = looked[0]["moving"]["page"]
    section = page[page.index("<h2>What stands still</h2>") :]
    section = section[: section.index("</section>")]
    assert "Codes that stay as they are." in section and "stillness.share, tier A" in section
    assert "The share of codes that do not change from frame to frame." in section and "<figure><b>Stillness by code" in section
    assert "Frames that move. Codes that stay: 0.5; floor 1, best 0" in page


def test_its_finding_appears_when_its_rule_holds(looked):
    found = {name: {each["code"]: each for each in looked[0][name]["findings"]} for name in ("still", "moving")}
    claim = found["still"]["STANDS_STILL"]
    assert claim["established"] is True and claim["evidence"] == ["stillness.share"] and claim["threshold"] == "above 90%"
    assert found["moving"]["STANDS_STILL"]["established"] is False
    assert "100% of the codes stand still" in looked[0]["still"]["page"] and "stand still" in looked[0]["still"]["verdict"]


def test_the_command_line_accepts_its_id(looked):
    answer, said = looked
    assert answer["selected"] == ["tokenizer.psnr", "stillness.share"] and answer["family"] == ["stillness.share"]
    assert answer["wrong"] == 2 and "Did you mean stillness.share?" in said
    assert answer["right"] == 0 and answer["evaluated"] == ["tokenizer.psnr", "stillness.share"]


def test_the_metric_table_contains_it(looked):
    row = next(line for line in looked[0]["table"].splitlines() if "stillness" in line)
    assert row.startswith("| `stillness.share` |  | **Codes that stay.** The share of codes that do not change")
    assert "[arXiv:2601.00001](https://arxiv.org/abs/2601.00001)" in row
