"""The notebooks' figures show the numbers that they were given."""

import numpy as np

from tokenworld.viz import figures


def test_lines_have_their_points_band_and_level():
    figure = figures.draw_lines({"a": ([1, 2], [3.0, 4.0]), "b": ([1, 2], [5.0, 6.0], [4.5, 5.5], [5.5, 6.5])}, "x", "y",
                            level=("copy", 7.0))  # fmt: skip
    (axes,) = figure.axes
    a, b, level = axes.lines
    assert a.get_xydata().tolist() == [[1, 3], [2, 4]] and b.get_xydata().tolist() == [[1, 5], [2, 6]]
    assert set(level.get_ydata()) == {7.0}
    (band,) = axes.collections
    assert {tuple(p) for p in band.get_paths()[0].vertices.tolist()} >= {(1, 4.5), (2, 5.5), (1, 5.5), (2, 6.5)}
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["a", "b", "copy"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_yscale()) == ("x", "y", "linear")


def test_more_lines_than_colours_are_all_drawn():
    figure = figures.draw_lines({str(i): ([0, 1], [i, i]) for i in range(9)}, "x", "y", log=True)
    assert len(figure.axes[0].lines) == 9 and figure.axes[0].get_yscale() == "log"


def test_reliability_intervals_reach_as_far_as_given():
    bins = dict(probability=[0.2, 0.8], frequency=[0.1, 1.0], low=[0.05, 0.9], high=[0.3, 1.0])
    (axes,) = figures.draw_reliability({"m": bins}).axes
    diagonal, points, *_ = axes.lines
    assert points.get_xydata().tolist() == [[0.2, 0.1], [0.8, 1.0]]
    (bars,) = axes.collections
    assert np.allclose(bars.get_segments(), [[[0.2, 0.05], [0.2, 0.3]], [[0.8, 0.9], [0.8, 1.0]]])


def test_intervals_off_zero_are_blue_and_go_from_the_top_down():
    (axes,) = figures.draw_intervals([("sure", 2.0, 1.0, 3.0), ("open", 0.5, -1.0, 2.0)], "difference").axes
    assert [line.get_color() for line in axes.lines[:4:2]] == ["#0072B2", "#999999"]
    assert axes.lines[0].get_xdata().tolist() == [1.0, 3.0] and axes.lines[1].get_xdata().tolist() == [2.0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["sure", "open"] and axes.yaxis_inverted()


def test_table_writes_what_is_not_zero():
    values = np.array([[0.5, 0.001], [np.nan, -2.0]])
    (axes,) = figures.draw_table(values, ["r", "s"], ["c", "d"]).axes
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {((0, 0), "+0.50"), ((1, 1), "-2.00")}
    orange, blue = (axes.images[0].cmap(axes.images[0].norm(x)) for x in (-1.0, 1.0))
    assert orange[0] > orange[2] and blue[2] > blue[0]


def test_bars_are_stacked():
    (axes,) = figures.draw_bars({"a": {"old": 2.0, "new": 1.0}, "b": {"new": 4.0}}, "weights").axes
    tops = [(bar.get_y(), bar.get_height()) for bar in axes.patches]
    assert tops == [(0, 2), (0, 0), (2, 1), (0, 4)]


def test_picture_names_its_rows_at_their_middle():
    picture = np.zeros((40, 80, 3), np.uint8)
    (axes,) = figures.draw_picture(picture, ["one", "two"]).axes
    assert axes.get_yticks().tolist() == [10, 30] and axes.images[0].get_array().shape == (40, 80, 3)
