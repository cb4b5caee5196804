"""The same weights are never worse than themselves: what is measured at a state depends on that state alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import rouse

from tokenworld.cli import main as cli
from tokenworld.evaluation import assess
from tokenworld.evaluation.metrics import action_sensitivity
from tokenworld.evaluation.report import compare, files
from tokenworld.evaluation.simulators.lookup import simulator_of
from tokenworld.evaluation.statistics import draws, intervals
from tokenworld.training.resume import open_run

DEBUG = ["overlay=debug", "device=cpu", "train.collect.held_out=2", "train.collect.first_steps=700", "train.collect.steps=200"]
GAMES = {
    "drawn": [*DEBUG, "recipe=quickstart", "train.collect.cut=40"],
    "listed": [*DEBUG, "recipe=known_world"],
}
SETTINGS = {  # what chooses states, never what is measured at one
    "few": dict(frames=60, seed=0, states=12),
    "all": dict(frames=5000, seed=0, states=20),
    "another seed": dict(frames=200, seed=3, states=12),
    "in a hurry": dict(frames=200, seed=0, states=12, budget=4.0),
}


@pytest.fixture(scope="module", params=list(GAMES))
def reports(request, tmp_path_factory) -> dict[str, Path]:
    """Evaluations of one model by the name of their settings."""
    folder = tmp_path_factory.mktemp("same")
    assert cli.main(["train", *GAMES[request.param], f"out={folder / 'run'}"]) == 0
    run = open_run(str(folder / "run"), {})
    torch.manual_seed(0)
    rouse(run.world_model.dynamics_modules(), 0.2)  # away from what is nearly uniform
    rouse(run.policy, 0.2)
    simulator = simulator_of(run.config["env"])
    found = {"training": folder / "run" / "evaluation"}
    for name, settings in SETTINGS.items():
        found[name] = folder / name
        files.write(assess.evaluate_world_model(run, simulator=simulator, **{"budget": 600.0, **settings}), folder / name)
    return found


def test_values_at_shared_states_are_the_same(reports):
    shared: dict[str, int] = {}
    entries, arrays = {}, {}
    for name in SETTINGS:
        told, arrays[name] = files.read(reports[name])
        entries[name] = {entry["id"]: entry for entry in told["metrics"]}
    for name in SETTINGS:
        for id, entry in entries[name].items():
            if id not in entries["all"]:
                continue
            x, y = compare._rows_of(entry, arrays[name]), compare._rows_of(entries["all"][id], arrays["all"])
            if x is None or y is None:
                continue
            at_x, at_y = compare._match(x[2], y[2])
            if name != "all":
                shared[id] = shared.get(id, 0) + len(at_x)
            assert x[0][at_x] == pytest.approx(y[0][at_y], rel=compare.ROUNDING, abs=compare.ROUNDING), (name, id)
    expected = {"code_length.bits", "code_length.saved_bits", "calibration.gap", "rewards.bias",
                "action_sensitivity.saved_bits", "action_sensitivity.inverse_accuracy", "calibration.excess_entropy",
                "next_frame.kl",
                "next_frame.lost_dependence", "action_effects.spurious", "agents.interventional_kl", "agents.behavior_kl",
                "agents.other_agent_kl", "next_frame.energy_distance"}  # fmt: skip
    assert expected <= {id for id, n in shared.items() if n >= 5}, shared


@pytest.mark.parametrize("name", SETTINGS)
def test_no_row_of_the_same_weights_is_worse(reports, name):
    for a, b in ((name, "all"), ("all", name)):
        rows, remarks = compare.compare(reports[a], reports[b])
        assert rows and not [(row.metric, row.verdict, row.note) for row in rows if row.verdict != "no difference shown"]
        assert compare.exit_code(rows) == 0
        assert any("the same weights" in remark for remark in remarks)


def test_the_report_of_a_training_and_evaluate_agree(tmp_path, capsys):
    """By the command line, as people meet it: exit code 0, and the reason is said. Other weights of the same run are not."""
    assert cli.main(["train", *GAMES["drawn"], f"out={tmp_path / 'run'}", "train.evaluate.frames=30"]) == 0
    assert cli.main(["evaluate", str(tmp_path / "run"), f"out={tmp_path / 'again'}", "frames=400"]) == 0
    capsys.readouterr()
    assert cli.main(["compare", str(tmp_path / "run" / "evaluation"), str(tmp_path / "again")]) == 0
    said = capsys.readouterr().out
    assert "the same weights" in said and "B: 0 better, 0 worse, " in said.splitlines()[-1]
    assert " worse" not in said.replace("0 worse", "")
    other = json.loads((tmp_path / "again" / "report.json").read_text())
    other["provenance"]["weights"]["dynamics"] = "0" * 16
    (tmp_path / "again" / "report.json").write_text(json.dumps(other))
    assert not any("same weights" in text for text in compare.compare(tmp_path / "run" / "evaluation", tmp_path / "again")[1])


def test_other_settings_of_the_same_weights_are_another_model(reports, tmp_path):
    """A temperature changes what a model says, and no weight."""
    told, arrays = files.read(reports["all"])
    told["provenance"]["parts"] = "0" * 16
    (tmp_path / "report.json").write_text(json.dumps(told))
    np.savez(tmp_path / "states.npz", **arrays)
    assert not any("same weights" in remark for remark in compare.compare(reports["all"], tmp_path).remarks)


def test_draws_follow_from_their_state_alone_and_are_uniform():
    states = np.random.default_rng(0).integers(2**63, size=4000, dtype=np.uint64)
    numbers = draws.uniform(states, (2, 3))
    assert numbers.shape == (4000, 2, 3) and numbers.dtype == torch.float32 and 0 <= numbers.min() and numbers.max() < 1
    assert torch.equal(draws.uniform(states[5:7], (2, 3)), numbers[5:7])
    assert torch.equal(draws.uniform(states[:2], (6,)).view(2, 2, 3), numbers[:2])
    flat = numbers.flatten(1).double().numpy()
    bins = np.histogram(flat, 20, (0, 1))[0]
    assert np.square(bins - flat.size / 20).sum() / (flat.size / 20) < 50  # chi square of 19 degrees: 99.99 % are below 50
    correlation = np.corrcoef(np.concatenate([flat, draws.uniform(states, (6,), stream=1).double().numpy()], 1).T)
    assert np.abs(correlation - np.eye(12)).max() < 0.08
    near = draws.uniform(np.arange(4000), (1,)).double().numpy()[:, 0]  # neighbors are as far apart as any
    assert abs(np.corrcoef(near[1:], near[:-1])[0, 1]) < 0.06 and abs(near.mean() - 0.5) < 0.02


def test_actions_that_explain_a_frame_alike_are_named_equally_often():
    """Rounding must not decide between them: it differs with the size of a batch."""
    from test_evaluation import scored

    record = scored(300)
    noise = np.random.default_rng(0).normal(0, 1e-5, (300, 3))
    blind = {**record.__dict__, "bits_by_action": 5 + noise}
    found = {m.id: m for m in action_sensitivity.action_sensitivity(type(record)(**blind), np.ones(3))}
    assert np.allclose(found["action_sensitivity.inverse_accuracy"].values, 1 / 3)


def test_the_interval_of_what_actions_save_lies_around_its_value():
    from test_evaluation import scored

    record, taken = scored(), np.array([1.0, 2.0, 3.0])
    own = record.bits_by_action[np.arange(3000), record.action]
    found = next(m for m in action_sensitivity.action_sensitivity(record, taken) if m.id == "action_sensitivity.saved_bits")
    assert found.value == pytest.approx((record.bits_by_action @ taken / 6 - own).mean())
    assert np.mean(found.ci) == pytest.approx(found.value, abs=0.02)
    error = np.std(intervals.cluster_sums(found.values / 20, record.cluster)) / 150**0.5  # of 150 episodes of 20 steps
    assert found.ci[1] - found.ci[0] > 2 * 1.6 * error
