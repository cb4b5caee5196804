"""Pictures of a run say what is on them: names of rows, steps, actions, rewards, ends, differences; curves their intervals."""

import numpy as np
import pytest
import torch
from PIL import Image

from tokenworld.cli import main as cli
from tokenworld.evaluation.probes.film import Film, film_of, title_of
from tokenworld.evaluation.report import film_drawing
from tokenworld.training.resume import open_run
from tokenworld.viz import figures


def film(T: int = 14, **changes) -> Film:
    """Black frames of 10 x 10 pixels, in cells of 2 x 2, in which nothing happens."""
    still = np.zeros((T, 1, 10, 10), np.uint8)
    none = {"real": np.zeros(T, bool), "imagined": np.zeros(T, bool)}
    fields = dict(
        rows={"real": still, "reconstructed": still.copy(), "imagined": still.copy()}, actions=["LEFT"] * T,
        reward={name: np.zeros(T) for name in none}, ended=none, first=np.zeros(T, bool), grid=(5, 5), title="a game",
    )  # fmt: skip
    return Film(**(fields | changes))


@pytest.fixture
def words(monkeypatch):
    """The words that are drawn, with their places and colors."""
    seen = []
    draw = film_drawing._text
    monkeypatch.setattr(film_drawing, "_text", lambda d, at, text, color=None, room=None: (
        seen.append((text, at, color)), draw(d, at, text, color or film_drawing.INK, room)))  # fmt: skip
    return seen


def test_cells_that_differ_visibly_are_marked():
    imagined = np.zeros((14, 1, 10, 10), np.uint8)
    imagined[3, 0, 5, 9] = 200  # row 2, column 4 of the cells
    imagined[4, 0, 0, 0] = 20  # not to be seen
    rows = {"real": np.zeros_like(imagined), "imagined": imagined}
    one = film(rows=rows)
    assert [tuple(cell) for cell in np.argwhere(one.differs["imagined"])] == [(3, 2, 4)] and "real" not in one.differs
    shown = film_drawing._pictures(one, "imagined", 80)  # 8 pixels for one
    at = np.argwhere((shown == film_drawing.MARK).all(-1))
    assert set(at[:, 0]) == {3} and at[:, 1].min() == 32 and at[:, 1].max() == 47 and at[:, 2].min() == 64
    assert not (film_drawing._pictures(one, "real", 80) == film_drawing.MARK).all(-1).any()


def test_a_strip_names_rows_steps_actions_rewards_and_ends(words):
    reward = {"real": np.eye(14)[2], "imagined": -0.7 * np.eye(14)[5] + 0.01}
    ended = {"real": np.arange(14) == 12, "imagined": np.zeros(14, bool)}
    picture = film_drawing.strip(film(reward=reward, ended=ended, first=np.arange(14) == 13))
    found = [text for text, *_ in words if text]
    assert found[0] == "a game" and [found.count(name) for name in ("real", "reconstructed", "imagined")] == [2, 2, 2]
    assert [text for text in found if text.startswith("step")] == [f"step {t}" for t in range(1, 15)], "in two bands"
    assert found.count("LEFT") == 13 and found.count("new episode") == 1
    events = [(text, color) for text, _, color in words if text and text[0] in "+-E"]
    good, bad = film_drawing.GOOD, film_drawing.BAD  # small promises are no events
    assert events == [("+1", good), ("-0.69", bad), ("END", bad)]
    where = {text: at for text, at, _ in reversed(words)}
    assert where["step 3"][0] == where["+1"][0] and where["real"][1] < where["+1"][1] < where["reconstructed"][1]
    assert any("magenta outline" in text for text in found)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and max(picture.shape) < 1300


def test_a_video_says_on_each_frame_what_happened(words):
    reward = {"real": np.eye(14)[2], "imagined": np.zeros(14)}
    shown = film_drawing.video(film(reward=reward))
    assert len(shown) == 14 and not np.array_equal(shown[2], shown[3])
    assert [text for text, *_ in words if text.startswith("step")][2] == "step 3 of 14   LEFT"
    assert sum(text == "+1" for text, *_ in words) == 1


@pytest.mark.parametrize("size", [(1, 1), (10, 10), (84, 84), (210, 160), (40, 900)])
def test_pictures_of_all_sizes_are_bounded(size):
    frames = np.random.default_rng(0).integers(256, size=(24, 3, *size), dtype=np.uint8)
    whole = film(24, rows={"real": frames, "reconstructed": frames, "imagined": 255 - frames}, grid=(1, 1))
    assert film_drawing.strip(whole).size < 3 * 2600 * 1500 and film_drawing.video(whole)[0].size < 3 * 1300 * 500


def test_a_film_holds_what_the_replay_holds(tmp_path_factory, monkeypatch):
    """Actions, rewards and ends stand with the frame that they led to."""
    out = tmp_path_factory.mktemp("film") / "run"
    words = ["train", "overlay=debug", "device=cpu", "train.collect.held_out=2", "train.collect.first_steps=300", f"out={out}"]
    assert cli.main(words) == 0
    run = open_run(str(out), {"device": "cpu"})
    run.meta["action_meanings"] = None
    state = torch.get_rng_state(), run.rng.bit_generator.state, run.generator.get_state()
    T = run.held_out.rows
    rows = np.arange(T)[None]
    monkeypatch.setattr(run.held_out, "sample", lambda *_: (run.held_out.gather(rows), rows))
    whole = film_of(run, run.held_out, steps=10_000, seed=3, title=title_of(run))
    steps = run.held_out.gather(rows)[0]
    assert len(whole) == T - 1 and np.array_equal(whole.rows["real"], steps.obs[1:].numpy())
    assert np.array_equal(whole.first, steps.first[1:].numpy()) and whole.first.any(), "more than one episode"
    led = steps.acted[:-1].numpy()
    assert whole.actions == [f"action {a}" if real else "" for a, real in zip(steps.action.tolist(), led, strict=False)]
    assert not led[whole.first].any(), "no action leads to the first frame of an episode"
    assert np.array_equal(whole.reward["real"], np.where(led, steps.reward[:-1].numpy(), 0))
    assert np.array_equal(whole.ended["real"], led & steps.terminated[:-1].numpy()) and whole.ended["real"].any()
    assert whole.rows["imagined"].shape == whole.rows["reconstructed"].shape == whole.rows["real"].shape
    again = film_of(run, run.held_out, steps=10_000, seed=3)
    assert np.array_equal(again.rows["imagined"], whole.rows["imagined"])
    after = torch.get_rng_state(), run.rng.bit_generator.state, run.generator.get_state()
    assert torch.equal(state[0], after[0]) and state[1] == after[1] and torch.equal(state[2], after[2])
    assert "MinAtar/Breakout-v1, epoch 3" in whole.title
    assert "imagined" not in film_of(run, run.held_out, steps=5, seed=0, dynamics=False).rows
    for name in ("dream.png", "dream.gif"):
        assert Image.open(out / name).size[0] > 500


def test_a_learning_curve_has_intervals(tmp_path, monkeypatch):
    made = []
    plain = figures.curves
    monkeypatch.setattr(figures, "curves", lambda *a, **k: made.append(plain(*a, **k)) or made[-1])
    points = [(10, 1.0), (20, 2.0, 1.5, 2.75), (30, 3.0, 2.0, 3.5)]  # the first was saved by an older version
    figures.save_curve(tmp_path / "c.png", points, random=0.5, xlabel="real steps", ylabel="return", title="a game")
    (axes,) = made[0].axes
    band, bars = axes.collections
    assert {tuple(p) for p in band.get_paths()[0].vertices.tolist()} >= {(20, 1.5), (20, 2.75), (30, 2.0), (30, 3.5)}
    assert [segment.tolist() for segment in bars.get_segments()[-2:]] == [[[20, 1.5], [20, 2.75]], [[30, 2.0], [30, 3.5]]]
    assert axes.get_xlabel() == "real steps" and (tmp_path / "c.png").stat().st_size > 5000


def test_a_curve_whose_interval_does_not_hold_its_mean_is_drawn(tmp_path):
    figures.save_curve(tmp_path / "c.png", [(1, 3.0, 4.0, 5.0), (2, 4.0, 1.0, 2.0)], random=0.5, xlabel="x", ylabel="y")
    figures.bars({"a": 1.0}, intervals={"a": (2.0, 3.0)})
    assert (tmp_path / "c.png").stat().st_size > 0
