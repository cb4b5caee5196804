"""The report as one HTML file for people: it opens without a network, on a phone, and in print.

Nothing in it is trusted: every word that comes from a file is escaped.
"""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from tokenworld.evaluation import charts
from tokenworld.evaluation.records import Metric

EXPLAINED = {
    "M0.psnr": "How close decode(encode(frame)) comes to the frame. High values can hide a lost ball: see the next line.",
    "M0.recall": "Of the pixels that change from frame to frame, the share that also changes in the reconstruction.",
    "M0.precision": "Of the pixels that change in the reconstruction, the share that really changed.",
    "M0.usage": "The share of the codebook that occurs.",
    "M0.perplexity": "How many codes are in use, counted by how evenly: exp of the entropy of their frequencies.",
    "M1.bits": "What a held-out frame costs under the model, given what came before. Floor: the best simple predictor.",
    "M1.gain": "What the model saves against the best of copying, counting codes and counting pairs of codes.",
    "M1.changed": "The same, of codes that differ from the last frame's only: the standing background does not count.",
    "M2.dcal": "Surprise paid minus surprise announced. Above 0: overconfident; 0 is necessary, not sufficient.",
    "M2.dcal_p": "How likely a gap this large is if the model is calibrated.",
    "M2.entropy": "How uncertain the model says it is.",
    "M2.ece": "How far the probability of the most probable code is from how often it comes.",
    "M2.kce": "The same without bins, and without bias (arXiv:1910.11385).",
    "M2.kce_p": "How likely an error this large is if the model is calibrated.",
    "M2.dcal_joint": "The same at branches: surprise at what can come minus announced surprise.",
    "M2.dh": "Announced surprise minus the world's own: above 0 the model averages over futures, below it drops some.",
    "M3.kl": "How far the model's next frame is from the world's, in bits: calibration gap plus spread.",
    "M3.off_support": "Mass that the model puts on frames that cannot come.",
    "M3.missed": "Mass of frames that can come and that the model gives less than a tenth of what is due to them.",
    "M3.coherence": "Dependence between the codes of a frame that the model lacks: codes drawn as if they were alone.",
    "M3.energy": "Distance of drawn next frames from real ones, beside that of two sets of real ones.",
    "M7.effect_error": "Of what a change of action does to the codes, the share that the model gets wrong.",
    "M7.spurious": "What the model changes in codes that the action does not touch.",
    "M7.effect_cosine": "Whether actions move codes in the right direction: 1 is right, 0 unrelated; swaps are near 0.",
    "M7.sensitivity": "The size of the model's effects beside the world's; kept because others report it, blind to swaps.",
    "M8.kl_do": "The divergence under random actions, whatever a policy would do.",
    "M5.branch_reward_error": "How far the expected reward of an action is off, at branch states.",
    "M5.branch_reward_bias": "Whether it is too high or too low.",
    "M5.branch_hazard_error": "How far the probability of an end is off, at branch states.",
    "M5.branch_hazard_ratio": "Announced ends for each possible one, at branch states.",
    "M4.distance": "Energy distance of dreamt from real futures, both drawn many times, over all steps.",
    "M4.valid_horizon": "Steps until that distance exceeds half of what a standing frame is off.",
    "M4.spread_skill": "Spread of dreams beside their error: 1 is right, below 1 the dreams are too alike.",
    "M4.horizon": "Steps for which a dream is closer to what came than half of what a standing frame is off. One real future"
    " of each start is known: in a random world this is a lower bound.",
    "M4.self_feeding": "How much dearer a real frame is after dreamt frames than after real ones.",
    "M5.reward_recall": "Of the rewards that came, the share that was predicted within two steps.",
    "M5.reward_precision": "Of the predicted rewards, the share that came within two steps.",
    "M5.reward_bias": "Whether rewards are promised too high or too low on the whole.",
    "M5.hazard_ratio": "Ends that the model announces for each that came: 1 is right, 0.1 is ten times too few.",
    "M5.hazard_brier": "Whether the model knows when an episode ends: 0 is the base rate, 1 is always right.",
    "M5.hazard_loss": "Bits that the outcome 'ended or not' costs. Floor: the base rate.",
    "M6.shuffled": "What knowing the action saves, against an action drawn from the data's. 0: the model ignores it.",
    "M6.inverse": "How often the action that was taken explains the next frame best. Floor: the commonest action.",
    "M6.blind": "The share of states in which all actions give the frame the same probability.",
}
LADDER = ("M0.recall", "M0.precision", "M5.reward_recall", "M5.reward_precision", "M5.hazard_brier", "M5.hazard_loss")
STYLE = """
:root { color-scheme: light } body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
max-width: 1100px; padding: 16px } h1 { font-size: 1.3rem } h2 { font-size: 1.1rem; margin: 2em 0 .4em; border-top: 1px solid
#ddd; padding-top: .8em } .verdict { font-size: 1.25rem; line-height: 1.4; border-left: 6px solid #0072B2; padding: .4em .8em;
background: #f3f7fa } figure { margin: 0; max-width: 420px; flex: 1 1 320px } figcaption { color: #555; font-size: .9rem }
.row { display: flex; flex-wrap: wrap; gap: 24px } svg { width: 100%; height: auto } .wide { overflow-x: auto } table {
border-collapse: collapse; width: 100%; font-size: .9rem } th, td { text-align: left; vertical-align: top; padding: .35em .6em
.35em 0; border-bottom: 1px solid #eee } td.n { white-space: nowrap; font-variant-numeric: tabular-nums } .off { color: #666 }
small { color: #555 } @media print { body { font-size: 11pt } h2 { break-after: avoid } figure, tr { break-inside: avoid } }
@media (max-width: 600px) { table, tbody, tr, td { display: block } th { display: none } td { border: 0; padding: .1em 0 }
tr { border-bottom: 1px solid #eee; padding: .5em 0 } }
"""


def page(report: Any) -> str:
    """The whole file, from a `report.Report`."""
    env = escape(str(report.provenance.get("env_id", "")))
    parts = [
        f"<h1>How good is this world model? <small>{env}</small></h1>",
        f'<p class="verdict">{escape(report.verdict)}</p>',
        _findings(report.findings),
        _section("From floor to ceiling", _figure(_ladder(report.metrics), "Green: the whole interval lies above the floor. "
                 "Hatched: not measured. There is no single score on purpose.")),
        _section("Calibration", _pictures(report, "top_reliability", "surprise")),
        _section("At branches of the simulator", _branches(report)),
        _section("Rewards and terminations", _pictures(report, "hazard_reliability")),
        _section("How far a dream can be trusted", _pictures(report, "drift")),
        _section("All numbers", f'<div class="wide">{_table(report.metrics)}</div>'),
        _section("Where this comes from", _provenance(report)),
    ]  # fmt: skip
    head = '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    return f"{head}<title>tokenworld report: {env}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>\n"


def _section(title: str, content: str) -> str:
    return f"<h2>{escape(title)}</h2>{content}"


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def _findings(findings: list[dict]) -> str:
    open_ = [finding for finding in findings if finding["established"] is None]
    claimed = [finding for finding in findings if finding["established"]]
    rows = [f"<li><b>{escape(f['text'])}</b> <small>{escape(', '.join(f['evidence']))}</small></li>" for f in claimed]
    rows += [f'<li class="off">{escape(f["code"].lower().replace("_", " "))}: {escape(f["text"])} '
             f"<small>{escape(', '.join(f['evidence']))}</small></li>" for f in open_]  # fmt: skip
    return f"<ul>{''.join(rows)}</ul>" if rows else ""


def _ladder(metrics: list[Metric]) -> str:
    by_id = {metric.id: metric for metric in metrics}
    rows = []
    for id in LADDER:
        metric = by_id.get(id)
        if metric is None or metric.skill is None:
            rows.append((metric.name if metric else id, None, None, metric.reason if metric else "not measured"))
            continue
        ends = metric.ci and tuple((metric.floor - end) / (metric.floor - metric.ceiling) for end in metric.ci)
        rows.append((metric.name, metric.skill, ends, ""))
    return charts.ladder(rows)


def _pictures(report: Any, *names: str) -> str:
    by_id = {metric.id: metric for metric in report.metrics}
    reach = by_id.get("M4.horizon")
    drawn = {
        "top_reliability": lambda x: (charts.reliability_chart(x, "Reliability of codes", "most probable code"),
                                      "The most probable code: how sure the model was, how often it was right."),
        "hazard_reliability": lambda x: (charts.reliability_chart(x, "Reliability of ends", "termination", floor=1e-4),
                                         "Terminations: announced hazard against how often episodes ended."),
        "surprise": lambda x: (charts.heat_map(np.asarray(x), "Surprise by position", "bits"),
                               "Bits of each position of the code grid: where the surprise is."),
        "drift": lambda x: (charts.drift_chart(x, reach.value if reach else None),
                            "Dreams under the real actions, beside the real future; band: 95 % interval; bar: valid horizon."),
    }  # fmt: skip
    found = [_figure(*drawn[name](report.pictures[name])) for name in names if name in report.pictures]
    reasons = {"hazard_reliability": "M5.hazard_ratio", "drift": "M4.horizon"}
    missing = [by_id[reasons[n]].reason for n in names if n not in report.pictures and reasons.get(n) in by_id]
    return f'<div class="row">{"".join(found)}</div>' + "".join(f'<p class="off">Not drawn: {escape(m)}.</p>' for m in missing)


def _branches(report: Any) -> str:
    """Tier B: the plane of calibration and spread, and what actions do, in the world and in the model."""
    if "effects" not in report.pictures:
        return '<p class="off">Not measured: it needs a simulator that can be branched (tier B).</p>'
    plane, effects = report.pictures["plane"], report.pictures["effects"]
    words = "Across: surprise paid minus announced. Up: announced minus the world's own. The sum is the KL divergence."
    drawn = [_figure(charts.plane_chart(plane["dcal"], plane["dh"]), words)]
    top = max(float(np.max(x)) for x in effects.values())
    names = {"true": "What pairs of actions do in the world", "model": "What they do in the model",
             "cross": "The world's (rows) against the model's (columns)"}  # fmt: skip
    for key, words in names.items():
        drawn.append(_figure(charts.heat_map(np.asarray(effects[key]), words, "mean total variation per code", top),
                             f"{words}: how far apart the next codes are. Right models repeat the first."))  # fmt: skip
    if "distance" in report.pictures:
        drawn.append(_figure(charts.distance_chart(report.pictures["distance"]), "Dreamt futures beside real ones, both drawn "
                             "many times from the same states."))  # fmt: skip
    return f'<div class="row">{"".join(drawn)}</div>'


def _table(metrics: list[Metric]) -> str:
    head = "<tr><th>number</th><th>value</th><th>95 % interval</th><th>what it says</th></tr>"
    rows = []
    for metric in metrics:
        about = EXPLAINED.get(metric.id, "")
        note = f" {metric.reason[:1].upper()}{metric.reason[1:]}." if metric.reason else ""
        anchors = [f"{word} {_number(value)}" for word, value in (("floor", metric.floor), ("ceiling", metric.ceiling))
                   if value is not None]  # fmt: skip
        value = "not measured" if metric.value is None else _with_unit(metric.value, metric.unit)
        interval = "" if metric.ci is None else " to ".join(_with_unit(end, metric.unit, bare=True) for end in metric.ci)
        label = " (experimental)" if metric.experimental else ""
        rows.append(
            f"<tr{' class=off' if metric.value is None else ''}><td>{escape(metric.name)}{label}<br><small>{escape(metric.id)},"
            f" {metric.n_samples:,} samples, {metric.n_clusters:,} episodes</small></td><td class=n>{escape(value)}<br>"
            f"<small>{escape(', '.join(anchors))}</small></td><td class=n>{interval}</td>"
            f"<td>{escape(about)}{escape(note)}</td></tr>"
        )
    return f"<table>{head}{''.join(rows)}</table>"


def _provenance(report: Any) -> str:
    rows = [(key, value) for key, value in report.provenance.items()]
    rows += [(f"tier {tier}", what or "not measured") for tier, what in report.capabilities.items()]
    cells = "".join(f"<tr><td>{escape(str(key))}</td><td>{escape(_words(value))}</td></tr>" for key, value in rows)
    return f'<div class="wide"><table>{cells}</table></div>'


def _words(value: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)


def _with_unit(value: float, unit: str, bare: bool = False) -> str:
    if unit == "share":
        return f"{value:.1%}"
    return f"{_number(value)} {unit}".strip() if unit and not bare else _number(value)


def _number(value: float) -> str:
    if value and abs(value) < 0.001:
        return f"{value:.0e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
