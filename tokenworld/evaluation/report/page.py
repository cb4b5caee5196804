"""The report as one HTML file for people: it opens without a network, on a phone, and in print.

Nothing in it is trusted: every word that comes from a file is escaped.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.report import svg
from tokenworld.evaluation.report.drawings import drawn, figure
from tokenworld.evaluation.report.explained import explained

NEEDS = {"A": "held-out episodes", "B": "a simulator that can be branched", "C": "policies and what they earn in the world"}
TIERS = {"A": "From data alone", "B": "With a simulator", "C": "With policies"}
LADDER = {  # what a full evaluation shows, by tier, named by what is good: where it is missing, a hatched bar says why
    "A": {"M0.recall": "Changes that survive the tokenizer", "M0.precision": "Changes that are real",
          "M5.reward_recall": "Rewards that were predicted", "M5.reward_precision": "Predicted rewards that came",
          "M5.reward_bias": "Rewards promised as they come", "M5.hazard_brier": "Terminations that are known",
          "M5.hazard_loss": "Terminations that do not surprise"},
    "B": {"M3.kl": "The world's next frame", "M3.off_support": "Mass on possible frames",
          "M3.missed": "Outcomes that are expected", "M3.energy": "Next frames like real ones",
          "M4.first": "First frames like real ones", "M4.last": "Last frames like real ones",
          "M4.distance": "Rollouts like real ones", "M5.branch_reward_error": "Rewards of actions",
          "M5.branch_reward_bias": "Rewards of actions promised as they come", "M5.branch_hazard_error": "Ends after actions",
          "M7.effect_error": "Right effects of actions", "M7.effect_cosine": "Agreement of the effects of actions",
          "M7.weakest_pair": "Actions that differ", "M7.reversed": "States with the right actions",
          "M9.compression": "One state, one prediction", "M9.distinction_auc": "Different states told apart",
          "M9.recall": "Different states that are told apart", "M10.recall": "A hidden bit recalled",
          "M11.arrow_gap": "Order of time kept", "M11.reachability": "One-way paths kept"},
    "C": {"M12.spearman": "Order of policies", "M12.kendall": "Order of pairs of policies",
          "M12.regret": "Return kept by choosing in the model", "M12.within_tertile": "Order of similar policies",
          "M13.planner_regret": "Return kept by planning in the model", "M13.optimism": "Returns promised as they come"},
}  # fmt: skip
ALWAYS = ("M0", "M3", "M5", "M7", "M9", "M12", "M4.distance", "M10.recall", "M13.planner_regret")  # rows of what is missing
QUALITIES = {id: quality for names in LADDER.values() for id, quality in names.items()}
STYLE = """
:root { color-scheme: light }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; max-width: 1240px; padding: 16px;
  overflow-wrap: anywhere }
h1 { font-size: 1.3rem }
h2 { font-size: 1.15rem; margin: 2.2em 0 .5em; border-top: 1px solid #ccc; padding-top: .9em }
.verdict { font-size: 1.25rem; line-height: 1.4; border-left: 6px solid #0072B2; padding: .4em .8em; background: #f3f7fa }
.off { color: #666 }
small, figcaption { color: #555 }
figcaption { font-size: .9rem }
figure { margin: 0; max-width: 400px; flex: 1 1 320px; min-width: 0 }
.row { display: flex; flex-wrap: wrap; gap: 28px 20px; margin-bottom: 1em }
.full { flex: 1 1 100% }
svg { display: block; width: 100%; height: auto; font-family: system-ui, sans-serif }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
th, td { text-align: left; vertical-align: top; padding: .35em .8em .35em 0; border-bottom: 1px solid #eee }
th:nth-child(1) { width: 30% } th:nth-child(2) { width: 15% } th:nth-child(3) { width: 15% }
.told td:first-child { white-space: nowrap }
td.n { overflow-wrap: normal; font-variant-numeric: tabular-nums }
.branchings { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 560px), 1fr)); gap: 0 20px }
.branching { border-top: 1px solid #eee }
.strip { display: flex; flex-wrap: wrap; gap: 8px; align-items: flex-start; margin: .3em 0 }
.strip b { flex: 0 0 6.5em; font-weight: normal; color: #555 }
.strip span { width: 80px; font-size: .75rem; line-height: 1.3 }
.strip i { display: block; height: 5px; margin-bottom: 2px; min-width: 1px }
i.p { background: #009E73 } i.q { background: #0072B2 }
img { width: 78px; image-rendering: pixelated; border: 1px solid #ddd }
@media print {
  body { font-size: 11pt; max-width: none } figure { max-width: 48% } h2 { break-after: avoid }
  figure, tr, .branching { break-inside: avoid } rect, polygon, i { print-color-adjust: exact }
}
@media screen and (max-width: 600px) {
  .numbers, .numbers tbody, .numbers tr, .numbers td { display: block } .numbers th { display: none }
  .numbers td { border: 0; padding: .1em 0 } .numbers td:first-child { font-weight: bold } small { font-weight: normal }
  td.ci:not(:empty)::before { content: "95 % interval: " } .numbers tr { border-bottom: 1px solid #eee; padding: .5em 0 }
  .strip b, figure { flex: 1 0 100% } ul { padding-left: 1.2em }
}
"""


@dataclass(frozen=True)
class Section:
    title: str
    about: str
    pictures: tuple[str, ...]
    numbers: tuple[str, ...]  # of metrics whose id begins so


SECTIONS = (
    Section("Calibration: overconfident or averaging?", "A model can err by being too sure, or by spreading over too much.",
            ("plane", "top_reliability"), ("M2.",)),
    Section("What can come, and what the model expects", "At states of the simulator, all next frames and their probabilities"
            " are known or drawn.", ("filmstrips",), ("M3.",)),
    Section("What actions do", "Does the model know that another action would have another effect, and which?", ("effects",),
            ("M6.", "M7.")),
    Section("How far a dream can be trusted", "Dreams feed on their own frames, so small errors grow.", ("distance", "drift"),
            ("M4.",)),
    Section("Rewards and ends", "What a policy lives on: both are rare, so they are compared as probabilities.",
            ("hazard_reliability", "survival", "reward_confusion"), ("M5.",)),
    Section("Another agent, another choice of actions", "A model may have learnt its agent's habits, not the world.",
            ("transfer", "support"), ("M8.",)),
    Section("Is it useful?", "What policies and planners are worth in the model, beside what they earn in the world.",
            ("policies",), ("M12.", "M13.", "M14.")),
    Section("Surprise, memory and what cannot be undone", "Where in the frame the surprise is, and what lasts.",
            ("surprise", "memory", "undos"), ("M9.", "M10.", "M11.", "M15.")),
)  # fmt: skip
PICTURES = {  # what it is called, what it takes, the number whose absence explains its own
    "plane": ("Calibration plane", "B", "M2.dh"), "top_reliability": ("Reliability of codes", "A", "M2.ece"),
    "filmstrips": ("Filmstrips", "B", "M3.kl"), "effects": ("Effects of actions", "B", "M7.effect_error"),
    "distance": ("Distance of dreams", "B", "M4.distance"), "drift": ("Drift", "A", "M4.horizon"),
    "hazard_reliability": ("Reliability of ends", "A", "M5.hazard_ratio"), "survival": ("Survival", "B", "M5.survival_gap"),
    "reward_confusion": ("Rewards", "A", "M5.reward_classes"), "transfer": ("Transfer between agents", "A", "M8.matrix_gap"),
    "support": ("Error by support", "B", "M8.do_gap_supported"), "policies": ("Policies", "C", "M12.spearman"),
    "surprise": ("Surprise by position", "A", "M1.bits"), "memory": ("Memory", "B", "M10.recall"),
    "undos": ("Undone in dreams", "B", "M11.undo"),
}  # fmt: skip


def page(report: Any) -> str:
    """The whole file, from a `report.Report`."""
    env = escape(str(report.provenance.get("env_id", "")))
    numbers = {metric.id: metric for metric in report.metrics}
    parts = [
        f"<h1>How good is this world model? <small>{env}</small></h1>",
        f'<p class="verdict">{escape(report.verdict)}</p>',
        _findings(report.findings),
        _headed("From floor to ceiling", _ladders(report) + _table(report.metrics, ("M0.", "M1."))),
        *(_headed(section.title, _section(section, report, numbers)) for section in SECTIONS),
        _headed("Where this comes from", _provenance(report)),
    ]
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
    )
    return f"{head}<title>tokenworld report: {env}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"


def _headed(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _findings(findings: list[dict]) -> str:
    """What is claimed as a list; what is open and what is excluded in a paragraph each; all with their thresholds."""
    claimed = [finding for finding in findings if finding["established"]]
    rows = [f"<li>{_sentence(f['text'])} <small>{escape(f['severity'])}, from {escape(', '.join(f['evidence']))}"
            f"{_limit(f, '; limit: {}')}</small></li>" for f in claimed]  # fmt: skip
    parts = [f"<ul>{''.join(rows)}</ul>"] if rows else []
    open_: dict[str, list[str]] = {}  # how much was measured -> what that did not settle
    for finding in findings:
        if finding["established"] is None:
            amount = finding["text"].removeprefix("not established").strip(" ()")
            open_.setdefault(amount, []).append(_words(finding["code"]) + _limit(finding, " ({})"))
    if open_:
        told = "; ".join(f"{', '.join(codes)}, {escape(n)}" for n, codes in open_.items())
        parts.append(f'<p class="off">Not established, neither shown nor excluded: {told}.</p>')
    excluded = [_words(f["code"]) + _limit(f, " ({})") for f in findings
                if f["established"] is False and f["severity"] != "note"]  # fmt: skip
    if excluded:
        told = f"Looked for and excluded, the whole interval is on the good side of the limit: {', '.join(excluded)}"
        parts.append(f'<p class="off">{told}.</p>')
    return "".join(parts)


def _limit(finding: dict, words: str) -> str:
    """The threshold of a finding, in `words`; nothing where it is not known."""
    return words.format(escape(finding["threshold"])) if finding.get("threshold") else ""


def _sentence(words: str) -> str:
    return f"<b>{escape(words[:1].upper() + words[1:])}.</b>"


def _words(code: str) -> str:
    return escape(code.lower().replace("_", " "))


def _ladders(report: Any) -> str:
    """A ladder for each tier: every number that has a floor and a ceiling, and what a full evaluation would show."""
    numbers = {metric.id: metric for metric in report.metrics}
    parts = []
    for tier, names in LADDER.items():
        ids = [m.id for m in report.metrics if m.tier == tier and (m.skill is not None or m.id in names)]
        ids += [id for id in names if id not in numbers and id.startswith(ALWAYS)]
        order = {id: i for i, id in enumerate(names)}
        rows = []
        for id in sorted(ids, key=lambda id: (order.get(id, len(order)), id)):
            metric = numbers.get(id)
            if metric is not None and metric.value is not None and metric.skill is None:
                continue  # without a floor or a ceiling it has no place here: the table has it
            if metric is None or metric.value is None:
                reason = (metric.reason if metric else "") or (_lacking(tier, report) if report.capabilities.get(tier) else "")
                rows.append((names[id], None, None, f"not measured{', ' if reason else ''}{reason}"))
            else:
                few = "" if metric.status == "ok" else "few episodes"
                rows.append((_rung(metric), metric.skill, metric.skill_ci, few))
        if rows:
            lacking = "" if report.capabilities.get(tier) else f"Not measured: it needs {NEEDS[tier]}."
            parts.append(figure(TIERS[tier], svg.ladder(rows, TIERS[tier]), lacking))
    about = ("A bar for each quality, longer is better: how far its number is on the way from the floor, what simple predictors"
             " reach, to the ceiling, the best there is. The number itself stands above the bar. Green: the whole 95 % interval"
             " lies above the floor; orange: below it; grey: neither, or too few episodes to tell. Hatched: not measured. There"
             " is no single score, on purpose.")  # fmt: skip
    return f'<p class="off">{about}</p><div class="row">{"".join(parts)}</div>'


def _rung(metric: Metric) -> str:
    """What is good, then the number itself between its anchors: "Mass on possible frames. Mass on impossible frames: 0.04
    (floor 1, best 0)"."""
    id = metric.id.split("@")[0]
    value, floor, best = (_with_unit(x, metric.unit, bare=True) for x in (metric.value, metric.floor, metric.ceiling))
    quality = QUALITIES.get(id, "")
    label = " (experimental)" if metric.experimental else ""
    number = f"{metric.name}: {value} (floor {floor}, best {best})"
    return f"{quality}{label}. {number}" if quality else f"{number}{label}"


def _section(section: Section, report: Any, numbers: dict[str, Metric]) -> str:
    found = [drawn(name, report.pictures, numbers) for name in section.pictures]
    missing = [f"{PICTURES[name][0]}: {_why(name, report, numbers)}"
               for name, drawing in zip(section.pictures, found, strict=True) if not drawing]  # fmt: skip
    parts = [f'<p class="off">{escape(section.about)}</p>']
    if any(found):
        parts.append(f'<div class="row">{"".join(found)}</div>')
    if missing:
        parts.append(f'<p class="off">Not drawn: {escape("; ".join(missing))}.</p>')
    return "".join(parts) + _table(report.metrics, section.numbers)


def _why(name: str, report: Any, numbers: dict[str, Metric]) -> str:
    """Why a picture is missing: what its number says, or what it would take."""
    _, tier, id = PICTURES[name]
    metric = numbers.get(id)
    if metric is not None and metric.value is None and metric.reason:
        return metric.reason
    return _lacking(tier, report)


def _lacking(tier: str, report: Any) -> str:
    return "it was not part of this evaluation" if report.capabilities.get(tier) else f"it needs {NEEDS[tier]}"


def _table(metrics: list[Metric], beginning: tuple[str, ...] = ("",)) -> str:
    head = "<tr><th>number</th><th>value</th><th>95 % interval</th><th>what it says</th></tr>"
    rows = []
    for metric in metrics:
        if not metric.id.startswith(beginning):
            continue
        note = f" {metric.reason[:1].upper()}{metric.reason[1:]}." if metric.reason else ""
        if metric.status == "underpowered":
            note = f" Underpowered:{note.lower()}"
        anchors = [f"{word} {_with_unit(value, metric.unit, bare=True)}"
                   for word, value in (("floor", metric.floor), ("ceiling", metric.ceiling)) if value is not None]  # fmt: skip
        value = "not measured" if metric.value is None else _with_unit(metric.value, metric.unit)
        interval = "" if metric.ci is None else " to ".join(_with_unit(end, metric.unit, bare=True) for end in metric.ci)
        label = " (experimental)" if metric.experimental else ""
        counts = "" if metric.value is None else f", {metric.n_samples:,} samples, {metric.n_clusters:,} episodes"
        row = [
            ("", f"{escape(metric.name)}{label}<br><small>{escape(metric.id)}, tier {metric.tier}{counts}</small>"),
            ("n", f"{escape(value)}<br><small>{escape(', '.join(anchors))}</small>"),
            ("n ci", escape(interval)),
            ("", f"{escape(explained(metric.id))}{escape(note)}"),
        ]
        cells = "".join(f'<td class="{kind}">{cell}</td>' if kind else f"<td>{cell}</td>" for kind, cell in row)
        rows.append(f"<tr{' class=off' if metric.value is None else ''}>{cells}</tr>")
    return f'<table class="numbers">{head}{"".join(rows)}</table>' if rows else ""


def _provenance(report: Any) -> str:
    rows = list(report.provenance.items())
    rows += [(f"tier {tier}", what or f"not measured: it needs {NEEDS.get(tier, 'more')}")
             for tier, what in report.capabilities.items()]  # fmt: skip
    if report.selftest is None:
        rows.append(("self-test", "not run"))
    else:
        rows += [(f"self-test: {name}", told) for name, told in report.selftest.items()]
    cells = "".join(f"<tr><td>{escape(str(key))}</td><td>{escape(_told(value))}</td></tr>" for key, value in rows)
    return f'<table class="told">{cells}</table>'


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_told(inner)}" for key, inner in value.items())
    return ", ".join(map(_told, value)) if isinstance(value, (list, tuple)) else str(value)


def _with_unit(value: float, unit: str, bare: bool = False) -> str:
    if unit == "share":
        return f"{value:.1%}"
    return f"{_number(value)} {unit}".strip() if unit and not bare else _number(value)


def _number(value: float) -> str:
    if value and abs(value) < 0.001:
        return f"{value:.0e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
