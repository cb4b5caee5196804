"""A decoding without a likelihood of a frame runs end to end; what takes a likelihood is reported as not applicable."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import codes_of, steps_of
from likelihood_free import Masked

from tokenworld import Agent, DreamEnv, WorldModel, origins
from tokenworld.cli import main as cli
from tokenworld.evaluation import tiers
from tokenworld.evaluation.metrics.rollouts import EXPOSURE_BIAS
from tokenworld.evaluation.probes import branches as branch_probe
from tokenworld.evaluation.probes import held_out
from tokenworld.evaluation.report import specs
from tokenworld.evaluation.simulators.tabular import Tabular
from tokenworld.evaluation.statistics.metric_spec import MEASURE
from tokenworld.interfaces import Codes, Prediction
from tokenworld.nn import entropy, logprob
from tokenworld.play.session import Session
from tokenworld.storage.model_folder import read_starts

DECODING = ("~decoding", "decoding={_target_: likelihood_free.Masked}")
REASON = "the decoding gives no likelihood of a frame"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained for moments by `tokenworld train`."""
    pytest.importorskip("minatar")
    out = tmp_path_factory.mktemp("likelihood_free") / "run"
    words = ["overlay=debug", "device=cpu", *DECODING, "train.collect.first_steps=400", f"out={out}"]
    assert cli.main(["train", *words]) == 0
    return out


@pytest.fixture
def trusted():
    origins.trust({"decoding": {"_target_": "likelihood_free.Masked"}})


def world_model(recipe: str, frame: tuple[int, int, int], actions: int) -> WorldModel:
    torch.manual_seed(0)
    words = ("overlay=debug", *DECODING, "tokenizer.vocab_size=8")
    model = WorldModel.from_recipe(recipe, *words, frame=frame, actions=actions).eval()
    assert type(model.decoding) is Masked
    return model


def metrics_of(folder) -> dict[str, dict]:
    return {metric["id"]: metric for metric in json.loads((folder / "report.json").read_text())["metrics"]}


def of_likelihood(tier: str, *records: str) -> set[str]:
    """The metrics of a tier that take a likelihood, of functions that read one of these records."""
    marked = [function for function in specs._marked(MEASURE) if specs.takes_likelihood(function)]
    found = {spec.id for function in marked for spec in specs.of_likelihood(function)
             if spec.tier == tier and specs._needs(function) & set(records)}  # fmt: skip
    return found | ({EXPOSURE_BIAS.id} if "drift" in records else set())


OF_LIKELIHOOD = {
    "A": of_likelihood("A", "scored", "drift"),
    "B": of_likelihood("B", "branches", "own_branches", "history_pairs"),
    "known world": of_likelihood("B", "recalls", "undos"),
}


def check_absences(metrics: dict[str, dict], tier: str):
    """Exactly the metrics that take a likelihood are absent for that reason; those of rollouts if there was time for any."""
    because = {id for id, metric in metrics.items() if metric["reason"] == REASON}
    expected = {id for part in tier for id in OF_LIKELIHOOD[part]}
    if metrics["rollouts.held_out_horizon"]["status"] == "skipped":
        expected -= of_likelihood("A", "drift")
    assert because == expected
    assert all(metrics[id]["status"] == "not_applicable" and metrics[id]["value"] is None for id in because)


def test_there_is_no_probability():
    prediction = Prediction(codes_of(2, 1), torch.zeros(2, 4))
    assert logprob(prediction) is entropy(prediction) is None
    uniform = Prediction(Codes(torch.ones(2, 1, 3, dtype=torch.int64)), torch.zeros(2, 4), lambda: torch.zeros(2, 3, 4))
    assert torch.allclose(logprob(uniform), torch.tensor(0.25).log().expand(2, 3))
    assert torch.allclose(entropy(uniform), torch.tensor(4.0).log().expand(2, 3))


def test_training_measures_what_takes_no_likelihood(run):
    summary = json.loads((run / "summary.json").read_text())
    assert summary["updates"]["dynamics"] == 6 and summary["dynamics"]["bits_per_frame"] is None
    assert summary["dynamics"]["bits_per_frame_bigram"] > 0
    metrics = metrics_of(run / "evaluation")
    check_absences(metrics, "A")
    assert metrics["tokenizer.psnr"]["value"] is not None


def test_evaluation_with_a_simulator(run, tmp_path, capsys):
    words = [str(run), "tier=B", "states=6", "frames=200", f"out={tmp_path / 'report'}", "--trust-remote-code"]
    assert cli.main(["evaluate", *words]) == 0
    metrics = metrics_of(tmp_path / "report")
    check_absences(metrics, "AB")
    for id in ("next_frame.energy_distance", "rollouts.distance", "rollouts.valid_horizon", "terminations.branch_error",
               "terminations.survival_gap", "proxies.c2st@1"):  # fmt: skip
        assert metrics[id]["value"] is not None, id
    verdict = json.loads((tmp_path / "report" / "report.json").read_text())["verdict"]
    topics = "the use of actions and the effects of actions and other agents and state identity"
    assert topics in verdict and f"({REASON})" in verdict and verdict in capsys.readouterr().out
    page = (tmp_path / "report" / "report.html").read_text()
    assert REASON in page and "Rollouts like real ones" in page


def test_questions_to_the_known_world():
    from tokenworld.envs.known_world import World

    simulator = Tabular(World())
    model = world_model("known_world", simulator.reset(0).shape, simulator.actions)
    found, pictures = tiers.tier_b(model, simulator, states=4, budget=60.0)
    because = {metric.id for metric in found if metric.reason == REASON}
    assert because == {*OF_LIKELIHOOD["B"], *OF_LIKELIHOOD["known world"]}
    assert {"distance", "memory"} <= pictures.keys() and not {"effects", "plane", "filmstrips"} & pictures.keys()
    recalled = next(metric for metric in found if metric.id == "memory.recall")  # counted in drawn frames
    assert recalled.name.endswith("10 steps") and recalled.n_samples == 40 and 0 <= recalled.value <= 1


def test_records_hold_what_is_known():
    model = world_model("quickstart", (4, 10, 10), 3)
    steps, codes = steps_of(2, 9, first=[(0, 0), (1, 0)]), codes_of(2, 9, K=25)
    episode = np.array([[0] * 9, [1] * 9])
    scored = held_out.score_held_out(model, steps, codes, episode)
    assert all(getattr(scored, name) is None for name in held_out.OF_LIKELIHOOD)
    assert scored.codes.shape == scored.previous.shape == (len(scored.reward_mean), 25)
    assert np.isfinite(scored.reward_mean).all() and ((0 <= scored.hazard) & (scored.hazard <= 1)).all()
    drift = held_out.drift(model, steps, codes, episode, context=2, futures=3)
    assert drift.own_bits is drift.real_bits is drift.imagined_bits is None and drift.model.shape == (2, 3, 7, 25)
    state = model.start(steps[:1, :3], Codes(codes.indices[:1, :3]))[1]
    own = branch_probe.own_distribution(model, state, torch.arange(3), key=5)
    assert own.keys() == {"reward", "hazard"} and own["hazard"].shape == (3,)


def test_dream_and_score(run, tmp_path):
    assert cli.main(["dream", str(run), f"out={tmp_path / 'dream.gif'}", "steps=5", "--trust-remote-code"]) == 0
    assert (tmp_path / "dream.gif").stat().st_size > 0
    assert cli.main(["score", str(run), "episodes=2", "--trust-remote-code"]) == 0


def test_play(run, trusted, tmp_path):
    from play_world import make_dream, shift_end

    session = Session(make_dream(shift_end(Path(shutil.copytree(run, tmp_path / "run")), -30)), 0, 0)
    for action in (0, 1, "policy", 2):
        session.step(action, 0.5)
    session.branch(1, 2)
    numbers, pictures = session.view()
    for name in ("dream", "branch"):
        assert numbers[name]["surprise"] is numbers[name]["bits"] is None and 0 <= numbers[name]["p_end"] <= 1
    assert len(session.first.moments) == 5 and len(pictures) >= 2
    arrays = np.load(io.BytesIO(session.npz()))
    assert len(arrays["obs"]) == 5 and "surprise_bits" not in arrays


def test_exported_it_acts_and_is_an_environment(run, tmp_path):
    folder = tmp_path / "model"
    assert cli.main(["export", str(run), f"out={folder}", "--trust-remote-code"]) == 0
    origins._trusted.clear()
    model = WorldModel.from_pretrained(folder, trust_remote_code=True)
    agent = Agent.from_pretrained(folder, trust_remote_code=True)
    env = DreamEnv(model, read_starts(folder), num_envs=3, horizon=4)
    obs, _ = env.reset(seed=1)
    for _ in range(6):
        obs, reward, *_ = env.step(np.zeros(3, np.int64))
    assert obs.shape == (3, *model.shapes.frame) and np.isfinite(reward).all()
    assert agent.act(obs[0]) in range(model.shapes.actions.choices[0])
