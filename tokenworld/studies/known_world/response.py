"""The evaluation evaluated: what every number does when a known defect is planted, in growing doses.

    python -m tokenworld.studies.known_world.response > docs/response_matrix.md

A number *responds* if it moves away from the truth's value by more than `RESOLUTION`, further (or as far) at each higher dose;
it is *silent* if it moves by no more. What was claimed and does not hold is in `EXCEPTIONS`, with the reason: a number is not
made to look right, it is marked.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tokenworld.evaluation.metrics import proxies
from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.report import specs
from tokenworld.evaluation.statistics import intervals
from tokenworld.studies.known_world import numbers as known_numbers
from tokenworld.studies.known_world.planted import DEFECTS, Model, oracle, planted

DOSES = (0.25, 0.5, 1.0)
RESOLUTION = 0.01  # bits, shares, probabilities, correlations
SHOWN = ("tokenizer.event_recall", "code_length.excess_bits", "calibration.gap", "calibration.excess_entropy", "next_frame.kl",
         "next_frame.impossible_mass", "next_frame.missed_mass", "next_frame.lost_dependence", "rollouts.first_step_distance",
         "rollouts.last_step_distance", "rewards.recall", "rewards.bias", "rewards.slope", "terminations.hazard_ratio",
         "rewards.branch_error",
         "terminations.branch_error", "action_sensitivity.saved_bits", "confusions.closest_pair_bits",
         "confusions.misattributed_bits", "confusions.unexpected_bits", "confusions.inverse_gap",
         "action_effects.error", "action_effects.spurious", "action_effects.cosine", "action_effects.size_ratio",
         "confusions.weakest_pair", "confusions.swapped_states", "agents.intervention_gap",
         "agents.transfer_gap",
         "agents.spurious_feature", "state_identity.compression", "memory.recall", "arrow_of_time.undo_mass",
         "policies.spearman", "policies.regret", "planning.value_error",
         "planning.optimism")  # fmt: skip
BIASED = ("policies.spearman", "policies.regret")  # by chance in returns: compared with the truth measured on as many
EXCEPTIONS = {
    ("action-blind", "agents.transfer_gap", "silent"):
        "the other agent takes other actions more often, and ignoring them costs it more: a gap between agents is no proof of "
        "a wrong cause",
    ("left and right swapped", "calibration.excess_entropy", "silent"):
        "at the walls left and right are unlike in entropy, so swapping them moves it a little",
    ("underconfident", "calibration.gap", "responds"):
        "a flat distribution over what is possible pays what it announces: the gap is largest at a temperature of about 2 and "
        "shrinks again, calibration.excess_entropy keeps growing",
    ("underconfident", "calibration.branch_gap", "responds"): "as calibration.gap",
    ("reward sign flipped", "policies.spearman", "responds"):
        "with half of the door's rewards wrong the order of the policies is nearly right again: ranks are no measure of size",
}  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """What a number of a defect was claimed to do, and its values at `DOSES`."""

    defect: str
    metric: str
    kind: str  # "responds" or "silent"
    truth: float
    values: tuple[float, ...]

    @property
    def holds(self) -> bool:
        moved = [abs(value - self.truth) for value in self.values]
        if self.kind == "silent":
            return max(moved) <= RESOLUTION
        return all(a <= b + 1e-9 for a, b in zip([0.0, *moved], moved, strict=False)) and moved[-1] > RESOLUTION

    @property
    def exception(self) -> str:
        return EXCEPTIONS.get((self.defect, self.metric, self.kind), "")


def matrix() -> dict[tuple[str, float], dict[str, float]]:
    """(defect, dose) -> every number in expectation; the truth is ("", 0)."""
    numbers = {("", 0.0): known_numbers.exact(oracle())}
    return numbers | {(name, dose): known_numbers.exact(planted(name, dose)) for name in DEFECTS for dose in DOSES}


def claims(numbers: dict) -> list[Claim]:
    """All claims of `DEFECTS`, against the numbers of `matrix`."""
    truth, rows = numbers["", 0.0], []
    for name, defect in DEFECTS.items():
        for kind, metrics in (("responds", defect.targets), ("silent", defect.silent)):
            for metric in metrics:
                values = tuple(numbers[name, dose][metric] for dose in DOSES)
                rows.append(Claim(name, metric, kind, truth[metric], values))
    return rows


def signatures(numbers: dict) -> dict[str, tuple[int, ...]]:
    """Which way each shown number moves at full dose: -1, 0, 1."""
    truth, rows = numbers["", 0.0], {}
    for name in DEFECTS:
        moved = np.array([numbers[name, 1.0][metric] - truth[metric] for metric in SHOWN])
        rows[name] = tuple(np.where(np.abs(moved) > RESOLUTION, np.sign(moved), 0).astype(int).tolist())
    return rows


def heard(numbers: dict, seed: int = 0, episodes: int = 60) -> list[tuple[str, str, float, tuple[float, float], bool]]:
    """(defect, silent number, value, interval, silent?) on sampled data at full dose: the interval, widened after Holm for the
    defect's silent numbers, must reach the truth's value (within the resolution)."""
    rows = []
    for name, defect in DEFECTS.items():
        measured = _by_id(planted(name, 1.0), episodes, seed)
        asked = [metric for metric in defect.silent if metric in measured and measured[metric].ci is not None]
        for metric in asked:
            low, high = _widened(measured[metric], len(asked))
            truth = _reference(metric, numbers, episodes, seed)
            silent = low - RESOLUTION <= truth <= high + RESOLUTION
            rows.append((name, metric, measured[metric].value, (low, high), silent))
    return rows


def false_alarms(numbers: dict, seeds: int = 200, episodes: int = 60) -> dict[str, int]:
    """Of `seeds` samples of the truth itself: in how many the 95 % interval of each number leaves its exact value out."""
    counts: dict[str, int] = {}
    for seed in range(seeds):
        for metric in known_numbers.sampled(oracle(), episodes, seed):
            if metric.ci is not None and metric.id in numbers["", 0.0]:
                counts[metric.id] = counts.get(metric.id, 0) + (not _covers(metric, numbers["", 0.0][metric.id]))
    return counts


def power(numbers: dict, seeds: int = 20, episodes: int = 50, dose: float = 0.25) -> dict[tuple[str, str], float]:
    """(defect, target) -> the share of samples of about 1,000 frames in which a small dose is found."""
    hits: dict[tuple[str, str], list[bool]] = {}
    for name, defect in DEFECTS.items():
        for seed in range(seeds):
            measured = _by_id(planted(name, dose), episodes, seed)
            for metric in defect.targets:
                if metric in measured and measured[metric].ci is not None:
                    truth = _reference(metric, numbers, episodes, seed)
                    hits.setdefault((name, metric), []).append(not _covers(measured[metric], truth))
    return {key: float(np.mean(hit)) for key, hit in hits.items()}


def coverage(name: str, dose: float, datasets: int = 500, episodes: int = 60) -> dict[str, float]:
    """Of `datasets` samples of a wrong model: the share in which the 95 % interval of each number covers its exact value."""
    model, covered = planted(name, dose), {}
    exact = known_numbers.exact(model)
    for seed in range(datasets):
        for metric in known_numbers.sampled(model, episodes, seed, rollouts=False):
            if metric.ci is not None and metric.id in exact:
                covered.setdefault(metric.id, []).append(_covers(metric, exact[metric.id]))
    return {id: float(np.mean(inside)) for id, inside in covered.items()}


def meta(numbers: dict) -> dict:
    """The meta table over the planted models: which cheap metrics predict which expensive ones. A property of these defects."""
    models = [numbers["", 0.0], *(numbers[name, 1.0] for name in DEFECTS)]
    truth = models[0]

    def column(metric: str) -> np.ndarray:  # how far from right
        return np.abs(np.array([model[metric] for model in models]) - truth[metric])

    cheap = ("code_length.excess_bits", "calibration.gap", "action_sensitivity.saved_bits", "terminations.hazard_ratio",
             "rollouts.last_step_distance")
    expensive = ("next_frame.kl", "action_effects.error", "policies.spearman", "planning.value_error", "planning.optimism")
    return proxies.meta_table({id: column(id) for id in cheap}, {id: column(id) for id in expensive})


_references: dict[tuple[int, int], dict[str, Metric]] = {}


def _by_id(model: Model, episodes: int, seed: int) -> dict[str, Metric]:
    return {metric.id: metric for metric in known_numbers.sampled(model, episodes, seed, policies=True)}


def _reference(metric: str, numbers: dict, episodes: int, seed: int) -> float:
    if metric not in BIASED:
        return numbers["", 0.0][metric]
    if (episodes, seed) not in _references:
        _references[episodes, seed] = _by_id(oracle(), episodes, seed)
    return _references[episodes, seed][metric].value


def _covers(metric: Metric, value: float) -> bool:
    low, high = metric.ci
    return low - 1e-9 <= value <= high + 1e-9


def _widened(metric: Metric, tests: int) -> tuple[float, float]:
    """The interval at level 1 - 0.05 / tests, its halves stretched as a normal distribution's are."""
    stretch = intervals.normal_quantile(1 - 0.025 / tests) / intervals.normal_quantile(0.975)
    low, high = metric.ci
    return metric.value - (metric.value - low) * stretch, metric.value + (high - metric.value) * stretch


# ---------------------------------------------------------------------------------------------------------------------
# As a page


def page(seeds: int = 200, small: int = 20, datasets: int = 500) -> str:
    """All of it in Markdown; at full size it takes about a quarter of an hour."""
    numbers = matrix()
    return "\n\n".join(
        [
            "# What every number does when a known defect is planted",
            "Made by `python -m tokenworld.studies.known_world.response`, on the known world (`tokenworld/envs/known_world.py`)"
            ": 160 states, every probability known. Doses 0.25, 0.5 and 1 are the share of visited states that have the defect "
            "(temperatures: of their logarithm). Expectations are exact; what is measured on samples is said to be.",
            "## The matrix at full dose\n\nDifference from the truth's own number (first row); empty where it is at most "
            f"{RESOLUTION}, undefined where the model gives the number no meaning (a slope on predictions that never "
            "change).\n\n" + _matrix_table(numbers),
            "## Claims: does it respond, in every dose no less than in a smaller one? Is it silent?\n\n"
            + _claims_table(numbers),
            "## What does not hold, and why\n\n"
            + "\n".join(f"- {d}, {m} ({k}): {why}." for (d, m, k), why in EXCEPTIONS.items()),
            f"## Signatures\n\n{len(set(signatures(numbers).values()))} of {len(DEFECTS)} defects move the numbers above in "
            "directions that no other does.",
            _heard_table(numbers),
            _alarms_table(false_alarms(numbers, seeds), seeds),
            _power_table(power(numbers, small), small),
            _coverage_table({(name, dose): coverage(name, dose, datasets) for name, dose in COVERED}, datasets),
            _meta_table(numbers),
        ]
    )


FAMILIES = ("code_length", "calibration", "next_frame", "rewards", "terminations", "action_sensitivity", "confusions",
            "action_effects")  # fmt: skip
COVERED = (("action-blind", 0.5), ("overconfident", 1.0), ("termination-blind", 0.5), ("flat reward", 0.5))


def _order(id: str) -> tuple[int, str]:
    return specs.position(id), id


def _matrix_table(numbers: dict) -> str:
    truth = numbers["", 0.0]
    names = [f"{id} ({specs.alias_of(id)})" for id in SHOWN]
    rows = [["defect", *names], ["(the truth)", *(f"{truth[m]:.3g}" for m in SHOWN)]]
    for name in DEFECTS:
        moved = [numbers[name, 1.0][m] - truth[m] for m in SHOWN]
        rows.append([name, *("" if abs(x) <= RESOLUTION else "undefined" if np.isnan(x) else f"{x:+.3g}" for x in moved)])
    return _table([list(column) for column in zip(*rows, strict=True)])  # numbers down, defects across


def _claims_table(numbers: dict) -> str:
    rows = [["defect", "number", "claim", "truth", *(f"at {dose:g}" for dose in DOSES), "holds"]]
    for c in claims(numbers):
        verdict = "yes" if c.holds else "**no**"
        rows.append([c.defect, c.metric, c.kind, f"{c.truth:.3g}", *(f"{v:.4g}" for v in c.values), verdict])
    return _table(rows)


def _heard_table(numbers: dict) -> str:
    silences = heard(numbers)
    loud = [row for row in silences if not row[-1]]
    rows = [["defect", "number", "value", "Holm-corrected interval"]]
    rows += [[d, m, f"{v:.3g}", f"{low:.3g} to {high:.3g}"] for d, m, v, (low, high), _ in loud]
    return (
        f"## Silence on sampled data\n\n60 episodes, full dose: {len(silences) - len(loud)} of {len(silences)} silent"
        " numbers stay inside their Holm-corrected interval." + (" The others:\n\n" + _table(rows) if loud else "")
    )


def _alarms_table(counts: dict[str, int], seeds: int) -> str:
    rows = [["number", f"false alarms of {seeds}"], *([id, str(counts[id])] for id in sorted(counts, key=_order) if counts[id])]
    quiet = sum(not n for n in counts.values())
    return (
        f"## False alarms\n\n{seeds} samples of 60 episodes of the truth itself: how often the 95 % interval leaves the exact "
        f"value out. {quiet} further numbers never did (most of them are exact for an exact model).\n\n" + _table(rows)
    )


def _power_table(power: dict[tuple[str, str], float], seeds: int) -> str:
    rows = [["defect", "number", "found"], *([d, m, f"{share:.0%}"] for (d, m), share in power.items())]
    return (
        "## Small doses\n\nDose 0.25, samples of 50 episodes (about 1,000 frames; 60 returns of each policy), "
        f"{seeds} samples each: how often the 95 % interval leaves the truth's value out. What is found in less than 90 % "
        "makes no claim to small doses.\n\n" + _table(rows)
    )


def _coverage_table(coverage: dict[tuple[str, float], dict[str, float]], datasets: int) -> str:
    ids = sorted({id for covered in coverage.values() for id in covered if id.split(".")[0] in FAMILIES}, key=_order)
    rows = [["number", *(f"{name} {dose:g}" for name, dose in coverage)]]
    for id in ids:
        rows.append([id, *(f"{covered[id]:.1%}" if covered.get(id, 1.0) < 1 else "" for covered in coverage.values())])
    return (
        f"## Coverage\n\n{datasets} samples of 60 episodes of four wrong models: how often the 95 % interval holds the exact "
        "value; empty where the number is the same in every sample.\n\n" + _table([row for row in rows if any(row[1:])])
    )


def _meta_table(numbers: dict) -> str:
    table = meta(numbers)
    rows = [["cheap number", *table["criteria"]]]
    for i, proxy in enumerate(table["proxies"]):
        cells = (f"{table['rho'][i, j]:+.2f} [{table['low'][i, j]:+.2f}, {table['high'][i, j]:+.2f}]"
                 for j in range(len(table["criteria"])))  # fmt: skip
        rows.append([proxy, *cells])
    return (
        "## Do cheap metrics predict expensive ones?\n\nSpearman over the truth and all defects at full dose, of how far each "
        "is from right, with its interval over models: a property of these defects, and the way to make such a table of real "
        "checkpoints.\n\n" + _table(rows)
    )


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    print(page())
