"""The pictures of a report, each as a figure with a sentence below it; `report.Report` says which arrays they need."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

import numpy as np

from tokenworld.evaluation.metrics.calibration import BRANCH_GAP, EXCESS_ENTROPY
from tokenworld.evaluation.metrics.policies import REGRET, SPEARMAN
from tokenworld.evaluation.metrics.rollouts import HELD_OUT_HORIZON, VALID_HORIZON
from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.report import svg
from tokenworld.evaluation.report.filmstrips import picture, strips
from tokenworld.evaluation.report.svg import BLUE, GRAY, GREEN, ORANGE

Numbers = dict[str, Metric]
SIGNS = ("negative", "none", "positive")


def figure(title: str, drawing: str, caption: str = "") -> str:
    return f"<figure><b>{escape(title)}</b>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def draw(name: str, pictures: dict[str, Any], numbers: Numbers, caption: str = "") -> str:
    """The picture of that name as HTML; nothing where its arrays, or the metrics it shows, were not measured. A name that has
    no drawing of its own is drawn by the form of its arrays, with the caption."""
    if pictures.get(name) is None:
        return ""
    return DRAWINGS[name][1](pictures[name], numbers) if name in DRAWINGS else _by_form(title_of(name), pictures[name], caption)


def title_of(name: str) -> str:
    return DRAWINGS[name][0] if name in DRAWINGS else name.replace("_", " ").capitalize()


def _by_form(title: str, x: Any, caption: str) -> str:
    """A dict of series (n,) as curves over 1 .. n, an array (h, w) or (w,) as a heat map."""
    if not isinstance(x, dict):
        return figure(title, svg.heat_map(np.atleast_2d(np.asarray(x, float)), title, ""), caption)
    styles = [(BLUE, ""), (ORANGE, "6 3"), (GREEN, "9 3"), (GRAY, "2 3")]
    lines = [(name, np.asarray(y, float), *styles[i % len(styles)]) for i, (name, y) in enumerate(x.items())]
    return figure(title, svg.curves(title, "", "", np.arange(1, len(lines[0][1]) + 1), lines), caption)


def _plane(x: dict, numbers: Numbers) -> str:
    shown = [numbers.get(spec.id) for spec in (BRANCH_GAP, EXCESS_ENTROPY)]
    if any(metric is None or metric.value is None for metric in shown):
        return ""
    dcal, dh = ((metric.value, metric.ci) for metric in shown)
    caption = ("Across: surprise paid minus announced. Up: announced minus the world's own. Their sum is the KL divergence, 0 "
               "for a model that is right. Bars: 95 % intervals.")  # fmt: skip
    return figure("Calibration plane", svg.plane_chart(dcal, dh, x.get("others", ())), caption)


def _top_reliability(x: dict, numbers: Numbers) -> str:
    caption = "The most probable code: how sure the model was, how often it was right. Below the line: overconfident."
    return figure("Codes", svg.reliability_chart(x, "Reliability of codes", "most probable code"), caption)


def _hazard_reliability(x: dict, numbers: Numbers) -> str:
    caption = "Terminations: announced hazard against how often episodes ended. Above the line: ends are announced too rarely."
    return figure("Ends", svg.reliability_chart(x, "Reliability of ends", "termination", floor=1e-4), caption)


def _survival(x: dict, numbers: Numbers) -> str:
    t = np.arange(len(x["real"]))
    lines = [("in the world", x["real"], GREEN, ""), ("imagined", x["model"], BLUE, "5 3")]
    chart = svg.curves("Survival", "steps", "share not yet ended", t, lines, top=1.05, steps=True)
    return figure("Survival", chart,
                  "The share of real episodes and imagined rollouts from the same starts that have not ended.")


def _reward_confusion(x: Any, numbers: Numbers) -> str:
    counts = np.asarray(x, float)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    rows = [f"{sign} {n:.0f}" for sign, n in zip(SIGNS, counts.sum(1), strict=True)]
    chart = svg.heat_map(share, "Rewards", "share of the row", top=1.0, rows=rows, columns=SIGNS)
    return figure("Rewards", chart, "Rows: what came, and how often. Columns: what was predicted, as shares of the row.")


def _effects(x: dict, numbers: Numbers) -> str:
    true, model = np.asarray(x["true"]), np.asarray(x["model"])
    names = [str(i) for i in range(len(true))]
    top = max(float(true.max()), float(model.max()), float(np.max(x["cross"])))
    shown = [("What pairs of actions do in the world", true, {}), ("What they do in the model", model, {}),
             ("Model minus world", model - true, {"signed": True}),
             ("World (rows) against model (columns)", np.asarray(x["cross"]), {})]  # fmt: skip
    names_of = ", ".join(f"{i} {name}" for i, name in enumerate(x.get("actions", ())))
    captions = [
        "How far apart the next codes are after two actions: rows and columns are actions, 0 is the same."
        + (f" Actions: {names_of}." if names_of else ""),
        "The same in the model: a right model repeats the world's; a blank picture means that its actions do nothing.",
        "Blue: the model's actions differ too much; orange: too little.",
        "Small numbers say which of the model's actions is which of the world's: on the diagonal if it is right, elsewhere if"
        " actions are swapped.",
    ]
    parts = []
    for (title, values, more), caption in zip(shown, captions, strict=True):
        chart = svg.heat_map(values, title, "mean total variation per code", top=top, rows=names, columns=names, **more)
        parts.append(figure(title, chart, caption))
    return "".join(parts)


def _distance(x: dict, numbers: Numbers) -> str:
    t = np.arange(1, len(x["model"]) + 1)
    lines = [("imagined rollouts, with 95 % interval", x["model"], BLUE, ""), ("a static frame", x["copy"], ORANGE, "6 3"),
             ("half of that", np.asarray(x["copy"]) / 2, GRAY, "2 3"),
             ("other real futures: the best possible", x["second"], GREEN, "9 3")]  # fmt: skip
    chart = svg.curves("Distance of rollouts", "steps", "energy distance", t, lines, band=(x["low"], x["high"]),
                          mark=_mark(numbers.get(VALID_HORIZON.id), len(t)))  # fmt: skip
    caption = "Imagined and real futures from the same states, both sampled many times: 0 is indistinguishable."
    parts = [figure("Rollouts and the simulator", chart, caption)]
    feeding = np.asarray(x.get("self_feeding", np.nan), float)
    if np.isfinite(feeding).any():
        lines = [("after imagined frames, for 1 bit after real ones", feeding, BLUE, ""), ("no harm", t * 0 + 1.0, GRAY, "4 3")]
        chart = svg.curves("Exposure bias", "steps", "bits of a real frame, ratio", t, lines)
        parts.append(figure("Exposure bias", chart,
                            "Cost of a real frame when the context is imagined instead of real. In a random"
                                                   " world it rises without a fault of the model."))  # fmt: skip
    return "".join(parts)


def _drift(x: dict, numbers: Numbers) -> str:
    t = np.arange(1, len(x["model"]) + 1)
    lines = [("imagined rollouts, with 95 % interval", x["model"], BLUE, ""), ("a static frame", x["copy"], ORANGE, "6 3"),
             ("half of that", np.asarray(x["copy"]) / 2, GRAY, "2 3")]  # fmt: skip
    chart = svg.curves("Drift", "imagined steps", "energy score", t, lines, band=(x["low"], x["high"]),
                          mark=_mark(numbers.get(HELD_OUT_HORIZON.id), len(t)))  # fmt: skip
    caption = ("Imagined rollouts under the real actions, and the one real future that is known: in a random world a right"
               " model rises too.")  # fmt: skip
    return figure("Rollouts and held-out episodes", chart, caption)


def _mark(metric: Metric | None, steps: int) -> tuple[float, str] | None:
    if metric is None or metric.value is None:
        return None
    return max(1.0, min(metric.value, steps)), f"valid horizon: {metric.value:.0f} steps"


def _surprise(x: Any, numbers: Numbers) -> str:
    return figure("Surprise by position", svg.heat_map(np.atleast_2d(np.asarray(x)), "Surprise by position", "bits"),
                  "Bits of each position of the code grid: where the surprise is.")  # fmt: skip


def _transfer(x: dict, numbers: Numbers) -> str:
    names = [str(name) for name in x["names"]]
    values = np.asarray(x["mean"], float)
    chart = svg.heat_map(values, "Transfer between agents", "bits/frame", rows=names, columns=names)
    return figure("Transfer between agents", chart, "Rows: the agent whose data the model learned from. Columns: the agent on"
                  " whose data it is tested; bits of a frame. Dark off the diagonal: it learned its agent.")  # fmt: skip


def _support(x: dict, numbers: Numbers) -> str:
    part = np.arange(1, len(x["do"]) + 1)
    lines = [("actions set at random, with 95 % interval", x["do"], BLUE, ""),
             ("actions of the agent that played", x["behavior"], ORANGE, "6 3")]  # fmt: skip
    lines = [line for line in lines if np.isfinite(line[1]).any()]
    chart = svg.curves("Error by support", "tenth of (state, action), rarest first", "KL, bits/frame", part, lines,
                          band=(x["low"], x["high"]))  # fmt: skip
    return figure("Error by support", chart, "How often training data hold a state and action: high at the left is a lack of"
                                             " data, high at the right a wrong cause.")  # fmt: skip


def _policies(x: dict, numbers: Numbers) -> str:
    chart = svg.scatter("Policies", "return in the world", "return in the model", [str(name) for name in x["names"]],
                           x["real"], x["model"], x.get("real_ci"), x.get("model_ci"))  # fmt: skip
    parts = [f"{word} {metric.value:.2f}" + (f" ({metric.ci[0]:.2f} to {metric.ci[1]:.2f})." if metric.ci else ".")
            for spec, word in ((SPEARMAN, "Rank correlation"), (REGRET, "Return lost by trusting the model's best"))
             if (metric := numbers.get(spec.id)) is not None and metric.value is not None]  # fmt: skip
    return figure("Policies", chart, "A point for each policy: on the line, the model says what it is worth. "
                  + " ".join(parts))


def _memory(x: dict, numbers: Numbers) -> str:
    delay = np.asarray(x["delay"], float)
    lines = [("recalled, with exact 95 % interval", x["accuracy"], BLUE, ""), ("guessing", delay * 0 + 0.5, GRAY, "4 3")]
    chart = svg.curves("Memory", "steps hidden", "share recalled", delay, lines, band=(x["low"], x["high"]), top=1.05)
    return figure("Memory", chart, "A planted bit, hidden and asked for: how often the model still knows it.")


def _filmstrips(x: Any, numbers: Numbers) -> str:
    caption = ("The worst states. World and model: how probable the frame is in each; the model's probabilities of what can"
               " come should repeat the world's, and what it draws should be among these.")  # fmt: skip
    return f'<div class="full"><p class="off">{caption}</p><div class="branchings">{strips(x)}</div></div>'


def _undos(x: Any, numbers: Numbers) -> str:
    events = []
    for words, mass, before, after in sorted(x, key=lambda event: -event[1])[:12]:
        clip = f"<span>{picture(before, 'before')}<br>before</span><span>{picture(after, 'after')}<br>imagined</span>"
        events.append(f'<div class="strip"><b>{escape(str(words))}, {mass:.0%}</b>{clip}</div>')
    title = "Undone in imagined steps, with the probability that the model gives it:"
    return f'<div class="full"><p>{title}</p>{"".join(events)}</div>'


DRAWINGS: dict[str, tuple[str, Callable[[Any, Numbers], str]]] = {  # name -> title, how it is drawn
    "plane": ("Calibration plane", _plane), "top_reliability": ("Reliability of codes", _top_reliability),
    "filmstrips": ("Filmstrips", _filmstrips), "effects": ("Effects of actions", _effects),
    "distance": ("Distance of rollouts", _distance), "drift": ("Drift", _drift),
    "hazard_reliability": ("Reliability of ends", _hazard_reliability), "survival": ("Survival", _survival),
    "reward_confusion": ("Rewards", _reward_confusion), "transfer": ("Transfer between agents", _transfer),
    "support": ("Error by support", _support), "policies": ("Policies", _policies),
    "surprise": ("Surprise by position", _surprise), "memory": ("Memory", _memory), "undos": ("Undone in rollouts", _undos),
}  # fmt: skip
