"""Actions of several parts and state vectors, evaluated, drawn and played: menus in place of all actions, levels, bars."""

import io
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tokenworld import origins
from tokenworld.action_space import Actions
from tokenworld.cli import main as cli
from tokenworld.errors import UserError
from tokenworld.evaluation.metrics.action_effects import counterfactual_effects
from tokenworld.evaluation.metrics.action_sensitivity import action_sensitivity
from tokenworld.evaluation.metrics.agents import causal_gap
from tokenworld.evaluation.metrics.confusions import confused_actions
from tokenworld.evaluation.probes import policies
from tokenworld.evaluation.probes.film import Film
from tokenworld.evaluation.probes.levels import Levels, levels_of
from tokenworld.evaluation.probes.menu import Menu
from tokenworld.evaluation.records import Branches, Scored
from tokenworld.evaluation.report.compare import compare
from tokenworld.evaluation.report.files import read
from tokenworld.evaluation.simulators.replayed import of_env
from tokenworld.evaluation.statistics import draws
from tokenworld.play import server
from tokenworld.play.future import DreamSettings
from tokenworld.play.idle import gallery
from tokenworld.play.session import Session
from tokenworld.play.starts import idle_action, moments
from tokenworld.policies.planner import Planner
from tokenworld.training.resume import open_run
from tokenworld.viz.frames import BAR, as_bytes, bars, size_of, to_rgb

KNOBS = Actions((2, 3))
FREE = Actions((2,), ((-2.0, 2.0),))


# ---------------------------------------------------------------------------------------------------------------- menus


def test_where_all_actions_are_in_the_menu_each_has_its_number():
    menu = Menu(KNOBS)
    assert menu.is_complete and menu.columns == len(menu) == 6
    assert menu.numbers(menu.rows).tolist() == [*range(6)] and menu.rows[4].tolist() == [1, 1]
    assert menu.counts(menu.rows[[4, 4, 0]]).tolist() == [1, 0, 0, 0, 2, 0]
    assert menu.alternatives(menu.rows[[5, 1]]).tolist() == menu.rows.tolist() * 2 and menu.names(["x"]) == [
        "0 0", "0 1", "0 2", "1 0", "1 1", "1 2"]  # fmt: skip


def test_where_they_are_not_the_one_that_was_taken_comes_first():
    menu, taken = Menu(FREE), torch.tensor([[1.0, 0.25], [0.0, -0.5]])
    beside = menu.alternatives(taken).view(2, menu.columns, 2)
    assert not menu.is_complete and menu.columns == len(menu) + 1 == 17 and menu.counts(taken) is None
    assert torch.equal(beside[:, 0], taken) and torch.equal(beside[1, 1:], menu.rows)


def test_numbered_actions_are_all_compared_also_more_than_a_menu_holds():
    menu = Menu(18)
    assert menu.columns == 18 and menu.is_complete and menu.parts() is None
    assert torch.equal(menu.alternatives(torch.tensor([3, 5])), torch.arange(18).repeat(2))
    assert menu.names(["a", "b"]) == ["a", "b"]


def test_random_actions_of_one_part_are_drawn_as_ever():
    rng, ours = np.random.default_rng(3), np.random.default_rng(3)
    assert [draws.random_actions(5, ours) for _ in range(20)] == [int(rng.integers(5)) for _ in range(20)]
    assert np.array_equal(draws.random_actions(5, ours, (4, 2)), rng.integers(5, size=(4, 2)))
    assert np.array_equal(draws.actions(7, 5, (3, 2), 2), draws.integers(7, 5, (3, 2), 2))


def test_random_actions_of_several_parts_are_rows_within_the_space():
    rows = draws.actions(7, FREE, (50, 3))
    assert rows.shape == (50, 3, 2) and rows.dtype == np.float32 and FREE.contains(torch.from_numpy(rows)).all()
    assert set(rows[..., 0].ravel()) == {0, 1} and rows[..., 1].std() > 1
    assert not np.array_equal(rows, draws.actions(8, FREE, (50, 3)))


# -------------------------------------------------------------------------------------------------------------- metrics


def scored(bits: np.ndarray, action: np.ndarray | None) -> Scored:
    N = len(bits)
    one = np.ones((N, 1))
    return Scored(np.arange(N) // 2, one, one, action, one, one, one, one > 0, np.zeros(N), np.zeros(N), np.zeros(N, bool),
                  np.zeros(N), bits_by_action=bits)  # fmt: skip


def test_the_use_of_actions_without_numbers_compares_the_one_taken_with_the_menu():
    bits = np.full((40, 5), 6.0)
    bits[:, 0] = 2.0  # what was taken explains the frame best
    bits[:10, 1] = 1.0  # but in a quarter of the rows
    saved, recognized, blind = action_sensitivity(scored(bits, None))
    assert saved.value == pytest.approx(4 - 0.25 * 5 / 4) and "menu of 4" in saved.reason and saved.n_clusters == 20
    assert recognized.value == 0.75 and recognized.floor == 0.2 and blind.value == 0
    assert {m.status for m in confused_actions(scored(bits, None))} == {"not_applicable"}


def branching(q: np.ndarray, **more) -> Branches:
    """Two knobs of two and three values, each of which sets a code of its own; q (A, 2, 3) is the model's, of S = 12 states."""
    S, rows = 12, Menu(KNOBS).rows.numpy().astype(int)
    p = np.zeros((6, 2, 3))
    p[np.arange(6), 0, rows[:, 0]] = p[np.arange(6), 1, rows[:, 1]] = 1
    bits = -np.log2(np.maximum(q, 1e-9)[np.arange(6)[:, None], [0, 1], rows]).sum(1)
    return Branches(
        cluster=np.arange(S), hash=np.arange(S).astype(np.uint64), exact=True, p=np.ones((S, 6, 1)),
        codes=np.tile(rows[:, None], (S, 1, 1, 1)), bits=np.tile(bits[:, None], (S, 1, 1)), entropy_q=np.zeros((S, 6)),
        marginal_p=np.tile(p, (S, 1, 1, 1)), marginal_q=np.tile(q, (S, 1, 1, 1)),
        candidates=np.tile(np.arange(3), (S, 2, 1)), **more,
    )  # fmt: skip


def test_each_knob_is_asked_whether_it_moves_its_own_codes_only():
    rows = Menu(KNOBS).rows.numpy().astype(int)
    right = np.zeros((6, 2, 3))
    right[np.arange(6), 0, rows[:, 0]] = right[np.arange(6), 1, rows[:, 1]] = 1
    wrong = right.copy()
    wrong[rows[:, 0] == 1, 1] = 1 / 3  # the first knob blurs the second code
    for q, expected in ((right, (0, 0)), (wrong, (2 / 3, 0))):
        values = {m.id: m.value for m in counterfactual_effects(branching(q), parts=Menu(KNOBS).parts())}
        assert [values[f"action_effects.spurious@part{i}"] for i in (1, 2)] == pytest.approx(expected)
    assert not any("@" in m.id for m in counterfactual_effects(branching(right)))
    distinct = np.array([[0, 0], [0, 1], [0, 2], [0, 3], [0, 4], [0, 5]])
    parts = {m.id: m for m in counterfactual_effects(branching(right), parts=distinct)}
    assert parts["action_effects.spurious@part1"].status == "not_applicable"


def test_actions_that_are_set_at_random_may_leave_out_the_policys_own():
    q = np.full((6, 2, 3), 1 / 3)
    q[0] = 0
    q[0, :, 0] = 1  # right after the first action alone
    behavior, at_random = np.tile(np.eye(6)[0], (12, 1)), np.array([0, 0.2, 0.2, 0.2, 0.2, 0.2])
    values = {m.id: m.value for m in causal_gap(branching(q, behavior=behavior, at_random=at_random))}
    assert values["agents.behavior_kl"] == pytest.approx(0, abs=1e-6)
    assert values["agents.interventional_kl"] == pytest.approx(2 * math.log2(3))


def test_policies_of_rows_are_mixed_with_random_rows():
    row, view = torch.tensor([1.0, 0.5]), None
    mixed = policies.Mixed(policies.Constant(row), 0.25, FREE)
    action, _ = mixed.act(view, None, torch.rand(2000, mixed.noise_size))
    is_own = (action == row).all(-1)
    assert mixed.noise_size == 3 and abs(is_own.float().mean() - 0.75) < 0.03 and FREE.contains(action).all()
    assert action[~is_own, 1].std() > 0.8
    assert len(policies.policies_of(None, FREE)) >= 17


# ------------------------------------------------------------------------------------------------------ state vectors


def test_levels_are_those_of_the_range_in_held_out_data(monkeypatch):
    monkeypatch.setattr("tokenworld.evaluation.probes.levels.ROWS", 1)
    frames = torch.tensor([[0.0, -5.0, 7.0], [10.0, 5.0, 7.0], [5.0, 0.0, 7.0]])[..., None, None]
    replay = SimpleNamespace(rows=3, frames=lambda rows: frames[rows])
    levels = levels_of(replay, "float32")
    assert levels(frames)[..., 0, 0].tolist() == [[0, 0, 128], [255, 255, 128], [128, 128, 128]]
    assert levels(10 * frames).dtype == torch.uint8 and levels(frames.numpy()).dtype == np.uint8
    picture = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    assert Levels()(picture) is picture and levels_of(replay, "uint8") == Levels()
    assert as_bytes(np.array([[[np.nan]]]), np.zeros(1), np.ones(1)).item() == 128


def test_a_larger_value_moves_its_bar_and_no_other():
    limits = (np.array([-1.0, -1.0, 2.0]), np.array([1.0, 1.0, 4.0]))
    small, large = (bars(np.array(x), limits) for x in ([0.0, 0.2, 3.0], [0.0, 0.6, 3.0]))
    height = len(small) // 3
    full = [[(x[i * height + 2] == (0, 114, 178)).all(-1).sum() for i in range(3)] for x in (small, large)]
    assert full[1][1] - full[0][1] == pytest.approx(0.2 * BAR, abs=1) and full[0][::2] == full[1][::2]
    assert abs(full[0][2] - BAR / 2) <= 1, "from the limit, where zero is outside"
    zero = [(small[i * height + 2] == (119, 119, 119)).all(-1).sum() for i in range(3)]
    assert zero == [1, 1, 0]


def test_the_picture_of_a_vector_has_the_size_of_a_game():
    frames = np.random.default_rng(0).standard_normal((5, 3, 1, 1)).astype(np.float32)
    rgb = to_rgb(frames, scale=1)
    assert rgb.shape == (5, *size_of(frames[0]), 3) == (5, 24, 64, 3) and rgb.dtype == np.uint8
    assert to_rgb(frames).shape == (5, 192, 512, 3) and to_rgb(np.zeros((100, 1, 1), np.float32), scale=1).shape == (100, 64, 3)
    assert size_of(np.zeros((3, 10, 12), np.uint8)) == (10, 12)


def test_a_film_marks_the_number_that_differs():
    real = np.zeros((4, 3, 1, 1), np.float32)
    other = real.copy()
    other[2, 1] = 0.5
    still = {"real": np.zeros(4)}
    film = Film({"real": real, "imagined": other}, [""] * 4, still, still, np.zeros(4, bool), (3, 1),
                limits=(-np.ones(3), np.ones(3)))  # fmt: skip
    assert np.argwhere(film.differs["imagined"]).tolist() == [[2, 1, 0]]


# ----------------------------------------------------------------------------------------------------------- whole runs

KNOBS_MODULE = """
import gymnasium
import numpy as np
from gymnasium.spaces import Box, MultiDiscrete


class Knobs(gymnasium.Env):
    observation_space, action_space = Box(0, 255, (8, 8, 1), np.uint8), MultiDiscrete([2, 3])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.at = 0, (0, 0)
        return self.seen(), {}

    def seen(self):
        obs = np.zeros((8, 8, 1), np.uint8)
        obs[:4, 4 * self.at[0] : 4 * self.at[0] + 2] = 255
        obs[4:, 2 * self.at[1] : 2 * self.at[1] + 2] = 255
        return obs

    def step(self, action):
        self.at, self.t = tuple(map(int, action)), self.t + 1
        return self.seen(), float(self.at[0]), False, self.t >= 20, {}


gymnasium.register("TwoKnobs-v0", Knobs)
"""
IDS = {"knobs": "two_knobs:TwoKnobs-v0", "pendulum": "Pendulum-v1"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """kind -> the folder of a run that is trained for moments."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "two_knobs.py").write_text(KNOBS_MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.chdir(folder)
        for kind, id in IDS.items():
            assert cli.main(["train", "overlay=debug", "env._target_=tokenworld.envs.gym.make", f"env.id={id}",
                             "env.max_steps=20", "train.collect.held_out=2", "train.collect.first_steps=200", f"out={kind}",
                             "device=cpu"]) == 0  # fmt: skip
        yield {kind: folder / kind for kind in IDS}


@pytest.mark.parametrize("kind", IDS)
def test_a_run_is_evaluated(kind, runs, monkeypatch):
    out = runs[kind] / "evaluation"
    words = ["evaluate", str(runs[kind]), "frames=60", "budget=5", "device=cpu", "--trust-remote-code"]
    assert cli.main([*words, *(["tier=B", "states=4"] if kind == "knobs" else [])]) == 0
    report, page = json.loads((out / "report.json").read_text()), (out / "report.html").read_text()
    metrics = {m["id"]: m for m in report["metrics"]}
    for id in ("tokenizer.psnr", "code_length.bits", "action_sensitivity.saved_bits", "rewards.bias", "delta_psnr.gain"):
        assert metrics[id]["value"] is not None, metrics[id]["reason"]
    if kind == "knobs":
        assert report["provenance"]["menu"] == Menu(KNOBS).names() and "levels" not in report["provenance"]
        assert {"action_effects.spurious@part1", "action_effects.spurious@part2"} <= metrics.keys()
    else:
        assert len(report["provenance"]["menu"]) == 16 and "256 levels" in page
        assert "menu of 16 others" in metrics["action_sensitivity.saved_bits"]["reason"]
        assert metrics["confusions.closest_pair_bits"]["status"] == "not_applicable"


def test_reports_of_other_menus_are_not_compared(runs, tmp_path):
    source = runs["pendulum"] / "evaluation"
    if not source.exists():
        assert cli.main(["evaluate", str(runs["pendulum"]), "frames=60", "device=cpu"]) == 0
    for name in ("report.json", "states.npz", "report.html"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    assert compare(source, tmp_path).rows
    report, _ = read(source)
    report["provenance"]["menu"][3] = "+3"
    (tmp_path / "report.json").write_text(json.dumps(report))
    with pytest.raises(UserError, match="other actions"):
        compare(source, tmp_path)


def dream_of(folder) -> DreamSettings:
    run = open_run(str(folder), {"device": "cpu"})
    model = run.world_model.eval()
    bias = [x for x in model.termination.parameters() if x.shape == (1,)][-1]
    bias.data -= 30  # no dream ends by itself
    space = model.shapes.actions
    names = [space.label(row) for row in space.menu()]
    idle = idle_action(names, space)
    planner = Planner(shapes=model.shapes, horizon=2, samples=4, iterations=1, elites=2)
    return DreamSettings(model, gallery(model, moments(run, None, idle), idle), names, run.policy, planner, name="a run")


@pytest.mark.parametrize("kind", IDS)
def test_a_run_is_played(kind, runs):
    origins.trust({"id": IDS[kind]})
    dream = dream_of(runs[kind])
    session = Session(dream)
    last = len(dream.actions) - 1
    for action in (0, last, dream.idle, "policy", "planner"):
        session.step(action)
    rows = [session.first.row(m.action) for m in session.first.moments[1:]]
    assert torch.equal(rows[1], dream.menu[last]) and all(dream.world_model.shapes.actions.contains(row) for row in rows)
    view, pictures = session.view()
    assert view["dream"]["by"] == "planner" and (view["dream"]["action"] is None) == ("name" in view["dream"])
    assert ("name" in view["dream"]) == (kind == "pendulum"), "an action of the menu is known by its number"
    hello = server._hello(dream)
    assert json.dumps(dream.actions) in hello.decode("latin1")
    assert pictures[0].shape[:2] == size_of(session.first.moments[0].frame)
    session.branch(1, 0)
    session.adopt()
    script = json.loads(json.dumps(session.script()))
    again = Session(dream)
    again.restore(script)
    for x, y in zip(session.first.moments, again.first.moments, strict=True):
        assert np.array_equal(x.frame, y.frame) and x.action == y.action
    for wrong in (last + 1, [0.0] * 3, [99.0] * len(rows[0]), None):
        with pytest.raises(UserError):
            session.step(wrong)
    rows = [session.first.row(m.action) for m in session.first.moments[1:]]
    with np.load(io.BytesIO(session.npz())) as arrays:
        assert np.array_equal(arrays["action"], torch.stack(rows).numpy()) and arrays["action"].dtype == np.float32
    assert session.gif()


def test_without_a_key_a_continuous_action_is_the_middle_one():
    rows = FREE.menu()
    idle = rows[idle_action([FREE.label(row) for row in rows], FREE)]
    assert abs(idle[1]) == min(abs(row[1]) for row in rows if row[0] == 0) and idle[0] == 0
    assert idle_action(["0 0", "0 1"], KNOBS) == 0


def test_an_environment_of_rows_is_branched_by_playing_again(runs):
    simulator = of_env(id="Pendulum-v1")
    assert isinstance(simulator.actions, Actions) and simulator.actions.bounds == ((-2.0, 2.0),)
    simulator.reset(3)
    x = simulator.snapshot()
    ends = []
    for torque in (-2.0, 2.0, -2.0):
        simulator.restore(x)
        ends.append(simulator.step(np.array([torque], np.float32))[0])
    assert np.array_equal(ends[0], ends[2]) and not np.array_equal(ends[0], ends[1])
    assert isinstance(of_env(id=IDS["knobs"]).actions, Actions)
