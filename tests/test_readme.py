"""The README's example runs as it stands and says what it claims."""

import re
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def test_the_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    lines = [line for line in example.splitlines() if line.strip()]
    assert len(lines) <= 10
    names: dict = {}
    exec(example, names)
    assert len(names["dream"]) == 15
    assert names["frames"].shape == (8, 1, 4, 10, 10) and 0 <= names["frames"].min() <= names["frames"].max() <= 1
