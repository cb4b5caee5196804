"""The report as one HTML file for people: it opens without a network, on a phone, and in print.

Nothing in it is trusted: every word that comes from a file is escaped.
"""

from __future__ import annotations

from html import escape
from typing import Any

from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.report import specs, svg
from tokenworld.evaluation.report.drawings import draw, figure, title_of
from tokenworld.evaluation.statistics.metric_spec import OVERVIEW, MetricSpec, Section

NEEDS = {"A": "held-out episodes", "B": "a simulator that can be branched", "C": "policies and their returns in the world"}
TIERS = {"A": "From data alone", "B": "With a simulator", "C": "With policies"}
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
.sources td:first-child { white-space: nowrap }
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


def page(report: Any) -> str:
    """The whole file, from a `report.Report`."""
    env = escape(str(report.provenance.get("env_id", "")))
    numbers = {metric.id: metric for metric in report.metrics}
    parts = [
        f"<h1>How good is this world model? <small>{env}</small></h1>",
        f'<p class="verdict">{escape(report.verdict)}</p>',
        _levels(report.provenance.get("levels")),
        _findings(report.findings),
        *(_headed(section.title, (_ladders(report) if section == OVERVIEW else "") + _section(section, own, report, numbers))
          for section, own in specs.sections().items()),
        _others(report),
        _headed("Where this comes from", _provenance(report)),
    ]
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
    )
    return f"{head}<title>tokenworld report: {env}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"


def _levels(words: Any) -> str:
    """How frames that are no pictures were compared."""
    return f'<p class="off">{escape(str(words)[:1].upper() + str(words)[1:])}.</p>' if words else ""


def _others(report: Any) -> str:
    """What no spec knows: metrics of another version or of one's own."""
    unknown = [metric for metric in report.metrics if specs.spec_of(metric.id) is None]
    return _headed("Further metrics", _table(unknown)) if unknown else ""


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
        words = "; ".join(f"{', '.join(codes)}, {escape(n)}" for n, codes in open_.items())
        parts.append(f'<p class="off">Not established, neither shown nor excluded: {words}.</p>')
    excluded = [_words(f["code"]) + _limit(f, " ({})") for f in findings
                if f["established"] is False and f["severity"] != "note"]  # fmt: skip
    if excluded:
        words = f"Checked and excluded, the whole interval is on the good side of the limit: {', '.join(excluded)}"
        parts.append(f'<p class="off">{words}.</p>')
    return "".join(parts)


def _limit(finding: dict, words: str) -> str:
    """The threshold of a finding, in `words`; nothing where it is not known."""
    return words.format(escape(finding["threshold"])) if finding.get("threshold") else ""


def _sentence(words: str) -> str:
    return f"<b>{escape(words[:1].upper() + words[1:])}.</b>"


def _words(code: str) -> str:
    return escape(code.lower().replace("_", " "))


def _ladders(report: Any) -> str:
    """A ladder for each tier: every metric that has a floor and a ceiling, and what a full evaluation would show."""
    parts = []
    for tier, title in TIERS.items():
        rows = _rungs(report, tier)
        if rows:
            lacking = "" if report.capabilities.get(tier) else f"Not measured: it needs {NEEDS[tier]}."
            parts.append(figure(title, svg.ladder(rows, title), lacking))
    about = ("A bar for each quality, longer is better: from the floor, which simple predictors reach, to the ceiling, the best"
             " possible value. The text gives the value itself with both. Green: the whole 95 % interval lies above the floor;"
             " orange: below it; gray: neither, or too few episodes to tell. Hatched: not measured. There is no single score,"
             " on purpose.")  # fmt: skip
    return f'<p class="off">{about}</p><div class="row">{"".join(parts)}</div>'


def _rungs(report: Any, tier: str) -> list[tuple]:
    """The rows of a tier's ladder, as `svg.ladder` takes them."""
    numbers, rows = {metric.id: metric for metric in report.metrics}, []
    known = [spec.id for spec in specs.specs() if spec.tier == tier and spec.is_expected]
    ids = dict.fromkeys([metric.id for metric in report.metrics if metric.tier == tier] + known)
    for id in sorted(ids, key=specs.position):
        metric, spec = numbers.get(id), specs.spec_of(id)
        if metric is not None and metric.skill is not None:
            rows.append((_rung(metric, spec), metric.skill, metric.skill_ci, "" if metric.status == "ok" else "few episodes"))
        elif (metric is None or metric.value is None) and spec is not None and spec.quality:
            reason = (metric.reason if metric else "") or (_lacking(tier, report) if report.capabilities.get(tier) else "")
            rows.append((spec.quality, None, None, f"not measured{', ' if reason else ''}{reason}"))
    return rows  # without a floor or a ceiling a metric has no bar: the table has it


def _rung(metric: Metric, spec: MetricSpec | None) -> str:
    """What is good, then the value with its anchors: "Mass on possible frames. Mass on impossible frames: 0.04; floor 1,
    best 0". A bare percentage would look like the quality's own."""
    value, floor, best = (_number(x) for x in (metric.value, metric.floor, metric.ceiling))
    label = " (experimental)" if metric.experimental else ""
    number = f": {value}; floor {floor}, best {best}"
    if spec is None or spec.quality in ("", metric.name):
        return f"{metric.name}{label}{number}"
    return f"{spec.quality}{label}. {metric.name}{number}"


def _section(section: Section, own: list[MetricSpec], report: Any, numbers: dict[str, Metric]) -> str:
    """The pictures and the table of a section's metrics."""
    shown = {spec.picture: spec for spec in reversed(own) if spec.picture}  # of several specs the first explains its absence
    shown = dict(reversed(shown.items()))
    drawn = {picture: draw(picture, report.pictures, numbers, spec.explanation) for picture, spec in shown.items()}
    missing = [f"{title_of(picture)}: {_why(spec, report, numbers)}" for picture, spec in shown.items() if not drawn[picture]]
    parts = [f'<p class="off">{escape(section.about)}</p>' if section.about else ""]
    if any(drawn.values()):
        parts.append(f'<div class="row">{"".join(drawn.values())}</div>')
    if missing:
        parts.append(f'<p class="off">Not drawn: {escape("; ".join(missing))}.</p>')
    ids = {spec.id for spec in own}
    return "".join(parts) + _table([metric for metric in report.metrics if metric.id.split("@")[0] in ids])


def _why(spec: MetricSpec, report: Any, numbers: dict[str, Metric]) -> str:
    """Why the picture of a metric is missing: the reason of the metric, or what it would take."""
    metric = numbers.get(spec.id)
    if metric is not None and metric.value is None and metric.reason:
        return metric.reason
    return _lacking(spec.tier, report)


def _lacking(tier: str, report: Any) -> str:
    return "it was not part of this evaluation" if report.capabilities.get(tier) else f"it needs {NEEDS[tier]}"


def _table(metrics: list[Metric]) -> str:
    head = "<tr><th>metric</th><th>value</th><th>95 % interval</th><th>what it says</th></tr>"
    rows = []
    for metric in sorted(metrics, key=lambda metric: specs.position(metric.id)):
        note = f" {metric.reason[:1].upper()}{metric.reason[1:]}." if metric.reason else ""
        if metric.status == "underpowered":
            note = f" Underpowered:{note.lower()}"
        anchors = [f"{word} {_with_unit(value, metric.unit, bare=True)}"
                   for word, value in (("floor", metric.floor), ("ceiling", metric.ceiling)) if value is not None]  # fmt: skip
        value = "not measured" if metric.value is None else _with_unit(metric.value, metric.unit)
        interval = "" if metric.ci is None else " to ".join(_with_unit(end, metric.unit, bare=True) for end in metric.ci)
        label = " (experimental)" if metric.experimental else ""
        counts = "" if metric.value is None else f", {metric.n_samples:,} samples, {metric.n_clusters:,} episodes"
        alias = specs.alias_of(metric.id)
        id = f"{metric.id} ({alias})" if alias else metric.id
        row = [
            ("", f"{escape(metric.name)}{label}<br><small>{escape(id)}, tier {metric.tier}{counts}</small>"),
            ("n", f"{escape(value)}<br><small>{escape(', '.join(anchors))}</small>"),
            ("n ci", escape(interval)),
            ("", f"{escape(specs.explain(metric.id))}{escape(note)}"),
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
        rows += [(f"self-test: {name}", result) for name, result in report.selftest.items()]
    cells = "".join(f"<tr><td>{escape(str(key))}</td><td>{escape(_as_words(value))}</td></tr>" for key, value in rows)
    return f'<table class="sources">{cells}</table>'


def _as_words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_as_words(inner)}" for key, inner in value.items())
    return ", ".join(map(_as_words, value)) if isinstance(value, (list, tuple)) else str(value)


def _with_unit(value: float, unit: str, bare: bool = False) -> str:
    if unit == "share":
        return f"{value:.1%}"
    return f"{_number(value)} {unit}".strip() if unit and not bare else _number(value)


def _number(value: float) -> str:
    if value and abs(value) < 0.001:
        return f"{value:.0e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
