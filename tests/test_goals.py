"""The code base keeps the readability goals of goals.py, and gets no worse where it does not meet them yet."""

import goals
import pytest

OPEN = {  # goal -> the number that it must not exceed until it is met
}


@pytest.mark.parametrize("goal", [goal for goal in goals.GOALS if not goal.later], ids=lambda goal: goal.name)
def test_a_goal_is_met_or_gets_no_worse(goal):
    value = goal.measure(goals.ROOT)
    if goal.name not in OPEN:
        assert goal.is_met(value), (value, goals.long_files(goals.ROOT), goals.cycles(goals.ROOT))
        return
    assert value <= OPEN[goal.name]
    assert not goal.is_met(value), "it is met: remove it from OPEN"


def test_what_is_measured_is_there(tmp_path):
    """On a code base with one fault of each kind."""
    package = tmp_path / "tokenworld" / "decoding"
    package.mkdir(parents=True)
    (tmp_path / "tokenizers").mkdir()
    body = "\n".join(f"    x{i} = {i}" for i in range(80))
    (package / "a.py").write_text(f"from tokenworld.decoding import b\n\ndef f(x):\n{body}\n")
    shaped = "\n\ndef g(x):\n    y = x.view(1, -1)  # (1, N)\n    z = 1\n    return y.reshape(-1)\n"
    (package / "b.py").write_text(f"def f(x):\n    from tokenworld.decoding import a\n{body}{shaped}")
    (tmp_path / "tokenworld" / "long.py").write_text("x = 1\n" * 401)
    (tmp_path / "tokenworld" / "excused.py").write_text('"""Long because it is a table."""\n' + "x = 1\n" * 401)
    assert goals.cycles(tmp_path) == ["decoding/a -> decoding/b -> decoding/a"]
    assert goals.long_files(tmp_path) == ["long 401"]
    assert max(goals.function_lengths(tmp_path)) == 82
    assert goals.lines_with_shapes(tmp_path) == 50
    assert goals.duplication(tmp_path) > 90


def test_a_metric_that_a_second_file_names_is_counted(tmp_path):
    """By its id or alias, in code or in a help text; a longer name or a path that contains it is another."""
    for folder in ("evaluation/metrics", "cli"):
        (tmp_path / "tokenworld" / folder).mkdir(parents=True)
    (tmp_path / "tokenworld" / "evaluation" / "metrics" / "shape.py").write_text('A = ("shape.error", "M1.error")\n')
    other = tmp_path / "tokenworld" / "cli" / "show.py"
    same = "shape.errors or my.shape.error or shape.error()"
    for text, count in ((same, 1), ("show metrics=shape.error", 2), ("M1.error", 2)):
        other.write_text(f'HELP = "{text}"\n')
        assert goals.files_of_an_id(tmp_path) == count, text
