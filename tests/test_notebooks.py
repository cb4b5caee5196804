"""The notebooks run and draw, their figures show what they were given, and what they look at is right."""

import functools
import json
import os
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from tokenworld.backbones.gpt import GPT
from tokenworld.data.collect import play_episode
from tokenworld.envs import known_world
from tokenworld.errors import UserError
from tokenworld.evaluation.probes.attention import attention
from tokenworld.imagination import Actor
from tokenworld.training.build import temporary_run
from tokenworld.training.run import run_training
from tokenworld.viz import figures
from tokenworld.viz.frames import code_colors

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 600  # that a cell may take on the slowest machine; all cells of a notebook take about one minute on one core
names = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# ---------------------------------------------------------------------------------------------------------------------
# Notebooks


@names
def test_no_outputs_are_kept(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None, "".join(cell["source"])[:100]


@functools.cache
def executed(path: Path) -> tuple[int, float]:
    """Run a notebook in its folder, by this Python: (pictures, seconds). A cell that fails raises."""
    import tempfile
    import time

    import nbformat
    from nbclient import NotebookClient

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernels" / "this").mkdir(parents=True)
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        spec = {"argv": command, "display_name": "this", "language": "python", "env": {"PYTHONPATH": str(ROOT)}}
        (Path(folder) / "kernels" / "this" / "kernel.json").write_text(json.dumps(spec))
        notebook = nbformat.read(path, as_version=4)
        began = time.monotonic()
        resources = {"metadata": {"path": str(path.parent)}}
        with mock.patch.dict(os.environ, JUPYTER_PATH=folder):
            NotebookClient(notebook, kernel_name="this", timeout=SECONDS, resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    return sum("image/png" in output.get("data", {}) for output in outputs), time.monotonic() - began


@names
def test_a_notebook_runs_and_draws(path):
    pictures, seconds = executed(path)
    print(f"{path.stem}: {pictures} pictures in {seconds:.0f} s")
    assert pictures >= 2


def test_the_notebooks_are_full_of_pictures():
    assert sum(executed(path)[0] for path in NOTEBOOKS) >= 12


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def frames(T: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (T, 3, 4, 6), dtype=np.uint8)


def drawn(figure) -> None:
    """It is a Figure, and it can be drawn without a display."""
    assert isinstance(figure, Figure)
    figure.canvas.draw()


def test_a_filmstrip_shows_frames_words_heat_and_marks():
    long, short = frames(3), frames(2, 1)
    heat, marks = np.zeros((2, 2, 3)), np.zeros((2, 2, 3), bool)
    heat[1, 0, 2], marks[0, 1, 0] = 4.0, True
    figure = figures.filmstrip({"a": long, "b": short}, titles=["x", "y", "z"], captions={"a": ["left", "right"]},
                               heat={"b": heat}, marks={"b": marks}, heat_label="bits", title="all")  # fmt: skip
    drawn(figure)
    *cells, bar = figure.axes
    assert len(cells) == 6 and not cells[5].axison  # the short row has no third frame
    assert (cells[1].images[0].get_array() == np.moveaxis(long[1], 0, -1)).all()
    assert cells[1].images[0].get_interpolation() == "nearest"
    assert [axes.get_title() for axes in cells] == ["x", "y", "z", "", "", ""]
    assert [axes.get_xlabel() for axes in cells[:3]] == ["left", "right", ""]
    assert (cells[0].get_ylabel(), cells[3].get_ylabel()) == ("a", "b") and bar.get_ylabel() == "bits"
    assert (cells[4].images[1].get_array() == heat[1]).all() and cells[4].images[1].get_clim() == (0, 4)
    (box,) = cells[3].patches  # row 1 of 2, column 0 of 3, of 4 x 6 pixels
    assert (box.get_xy(), box.get_width(), box.get_height()) == ((0, 2), 2, 2) and not cells[4].patches
    assert figure.get_suptitle() == "all"


def test_tokens_stand_between_their_frame_and_its_reconstruction():
    indices = np.array([[[7, 7, 3]], [[7, 12, 7]]])
    figure = figures.tokens(frames(2), indices, frames(2, 1) / 255)
    drawn(figure)
    assert [axes.get_ylabel() for axes in figure.axes[::2]] == ["frame", "codes", "decoded"]
    assert [text.get_text() for text in figure.axes[3].texts] == ["7", "12", "7"]
    assert (figure.axes[5].images[0].get_array() == np.moveaxis(frames(2, 1)[1], 0, -1)).all()


def test_codes_have_a_colour_each_and_the_commonest_is_grey():
    colours = code_colors(np.array([[5, 5, 5, 2], [2, 9, 40, 5]]))
    assert colours.shape == (2, 4, 3) and colours.dtype == np.uint8
    assert (colours[0, :3] == 236).all() and (colours[1, 3] == 236).all() and (colours[0, 3] == colours[1, 0]).all()
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 4
    many = code_colors(np.arange(40))
    assert len(np.unique(many, axis=0)) == 40  # also beyond the palette


def test_a_token_map_counts_the_changes():
    indices = np.array([[1, 1, 1], [1, 2, 1], [3, 4, 1]])
    figure = figures.token_map(indices)
    drawn(figure)
    above, below = figure.axes
    assert above.images[0].get_array().shape == (3, 3, 3)  # K, T, colour
    assert [bar.get_height() for bar in below.patches] == [1, 2]
    assert sorted(map(tuple, above.collections[0].get_offsets().tolist())) == [(1, 1), (2, 0), (2, 1)]


def test_numbers_stand_below_the_frames_that_they_belong_to():
    panels = {"reward": {"real": [0, -1, 2], "expected": [0.1, np.nan, 1.5, 0]}, "value": {"v": [1, 2, 3]}}
    figure = figures.along(frames(4), panels, bars=["real"], captions=["up", "down"])
    drawn(figure)
    film, reward, value = figure.axes
    assert len(film.images) == 4 and film.images[2].get_extent()[:2] == [1.54, 2.46]
    assert [(text.get_position()[0], text.get_text()) for text in film.texts] == [(0, "up"), (1, "down")]
    assert [bar.get_height() for bar in reward.patches] == [0, -1, 2]
    assert reward.patches[1].get_facecolor() != reward.patches[2].get_facecolor()
    assert (reward.get_ylabel(), value.get_ylabel()) == ("reward", "value")
    assert film.get_xlim() == reward.get_xlim() == value.get_xlim() == (-0.5, 3.5)
    assert value.lines[0].get_ydata().tolist() == [1, 2, 3]


def test_curves_bars_fan_and_shares_hold_their_numbers():
    figure = figures.curves({"a": [1, 2], "b": [3, 4]}, x=[10, 20], bands={"a": ([0, 1], [2, 3])}, xlabel="x", ylabel="y")
    drawn(figure)
    (axes,) = figure.axes
    assert [line.get_ydata().tolist() for line in axes.lines] == [[1, 2], [3, 4]] and len(axes.collections) == 1
    assert axes.lines[0].get_linestyle() != axes.lines[1].get_linestyle() and axes.lines[0].get_xdata().tolist() == [10, 20]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]

    figure = figures.bars({"a": 2.0, "b": 3.0}, intervals={"b": (2.5, 4.5)}, ylabel="return")
    drawn(figure)
    assert [bar.get_height() for bar in figure.axes[0].patches] == [2, 3]
    (whisker,) = [c for c in figure.axes[0].collections if hasattr(c, "get_segments")]
    assert whisker.get_segments()[0].tolist() == [[1, 2.5], [1, 4.5]]

    figure = figures.fan([[0, 1], [0, 2], [0, 3]], {"best": [0, 3]})
    drawn(figure)
    assert [line.get_ydata().tolist() for line in figure.axes[0].lines] == [[0, 1], [0, 2], [0, 3], [0, 3]]
    assert [text.get_text() for text in figure.axes[0].get_legend().get_texts()] == ["best"]

    table = np.array([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]])  # three steps, two actions
    figure = figures.shares({"before": table, "after": table}, ["left", "right"])
    drawn(figure)
    assert (figure.axes[0].images[0].get_array() == table.T).all() and figure.axes[1].get_title() == "after"
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["left", "right"]


# ---------------------------------------------------------------------------------------------------------------------
# What the notebooks look at


@pytest.mark.parametrize("within", ["causal", "full"])
def test_attention_is_what_the_block_computes(within):
    """One layer, one head: the shares times the values, projected, are what the block's attention adds to the stream."""
    torch.manual_seed(0)
    gpt = GPT(layers=1, heads=1, dim=8, context=2).eval()
    x, first = torch.randn(2, 3, 2, 8), torch.tensor([[True, False, False], [True, False, True]])
    shares = gpt.attention(x, within, first)
    assert shares.shape == (2, 1, 1, 6, 6) and torch.allclose(shares.sum(-1), torch.ones(2, 1, 1, 6))
    block, flat = gpt.blocks[0], x.reshape(2, 6, 8)
    v = block.qkv(block.norm1(flat))[..., 16:]
    stream = flat + block.out(shares[:, 0, 0] @ v)
    expected = gpt.norm(stream + block.mlp(block.norm2(stream))).view_as(x)
    assert torch.allclose(gpt(x, within, None, first)[0], expected, atol=1e-6)
    step = torch.arange(6) // 2
    assert (shares[:, 0, 0][:, step[:, None] - step >= 2] == 0).all()  # a context of two steps
    assert (shares[1, 0, 0, 4:, :4] == 0).all()  # another episode
    assert (shares[0, 0, 0, 2, 3] > 0) == (within == "full")


def test_a_small_run_learns_plays_and_tells_where_it_looks():
    words = ("recipe=known_world", "overlay=debug", "device=cpu", "train.collect.first_steps=200")
    run = temporary_run(*words)
    assert set(run.phases) == {"collect", "tokenizer", "dynamics", "policy"}
    run_training(run)
    assert run.count["policy"] > 0 and (run.out / "checkpoint").exists()
    act = Actor(run.world_model, run.policy, generator=torch.Generator().manual_seed(0))
    game = play_episode(run.make_env(2), act, seed=0)
    T = game.obs.shape[1]
    assert game.acted[0].tolist() == [True] * (T - 1) + [False] and game.first[0].tolist() == [True] + [False] * (T - 1)
    assert bool(game.terminated[0, -2] | game.truncated[0, -2])
    env = known_world.make(num_envs=2)  # the same game again, by hand
    obs, _ = env.reset(seed=0)
    assert any((game.obs[0, 0].numpy() == row).all() for row in obs)
    shares = attention(run.world_model, game[:, :5])
    K, L, N = run.world_model.shapes.codes, 1, 2
    assert shares.shape == (1, L, N, 5, K + 1, 5, K + 1)
    assert torch.allclose(shares.sum((-1, -2)), torch.ones(1, L, N, 5, K + 1))
    assert (shares[0, :, :, 2, :, 3:] == 0).all()  # nothing of what is to come
    run.world_model.backbone.attention = lambda *_: None  # as of a backbone without attention maps
    with pytest.raises(UserError, match="does not tell where it looks"):
        attention(run.world_model, game[:, :5])
