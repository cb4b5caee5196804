"""docs/architecture.md tells the truth: its files and names exist, its rooms are visited once, its reading order is counted."""

import ast
import re
from pathlib import Path

import goals

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
HALLWAYS = ("training/phases", "interfaces", "world_model")  # where the page says why a step returns to them


def steps() -> list[tuple[list[str], list[str]]]:
    """Of each row of the table: its files, and the names to read in them."""
    rows = [line.split("|")[1:-1] for line in TEXT.splitlines() if re.match(r"\| \d+ \|", line)]
    return [(re.findall(r"`([^`]+)`", row[2]), re.findall(r"`([^`]+)`", row[3])) for row in rows]


def defined(file: str) -> set[str]:
    """The functions and classes of a file, methods included."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_each_step_names_files_and_functions_that_exist():
    assert [number for number, _ in enumerate(steps(), start=1)] == list(range(1, 13))
    for files, names in steps():
        known = set().union(*map(defined, files))
        assert names and not set(names) - known, (files, set(names) - known)


def test_no_step_returns_to_a_room_that_it_left():
    visits: dict[str, list[int]] = {}
    for number, (files, _) in enumerate(steps(), start=1):
        for file in files:
            words = Path(file.removeprefix("tokenworld/")).with_suffix("").parts
            room = "/".join(words[:2]) if words[:2] == ("training", "phases") else words[0]
            if room not in HALLWAYS and number not in visits.setdefault(room, []):
                visits[room].append(number)
    assert len(visits) >= 12 and {room: at for room, at in visits.items() if len(at) > 1} == {}


def test_the_reading_order_is_the_one_that_is_counted():
    listed = re.findall(r"`([^`]+)`", TEXT.split("## Read in this order")[1].split("Then add one file")[0])
    assert listed == [*(f"tokenworld/{name}.py" for name in goals.NEW_ORDER), "configs/iris.yaml"]


def test_every_file_that_the_page_names_exists():
    for name in re.findall(r"[`(]((?:tokenworld|tokenizers|configs|tests)/[\w/.]*|\w+\.svg)[`)]", TEXT):
        path = ROOT / ("docs" if name.endswith(".svg") else "") / name
        assert path.exists() or name == "tests/test_one_file_metric.py", name
