"""The script behind docs/backbones.md: its numbers against others' and by hand, and a whole measurement in small."""

import importlib.util
import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from tokenworld.cli import main as cli
from tokenworld.config import compose, schema
from tokenworld.errors import UserError
from tokenworld.evaluation.assess import code_counts
from tokenworld.evaluation.metrics import baselines
from tokenworld.interfaces import Codes
from tokenworld.nn import logprob

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("backbones_measured", ROOT / "docs" / "backbones_measured.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)

NAMES = ["llama, from scratch", "llama, text weights, full", "llama, text weights, frozen"]
SMALL = dict(text_updates=3, steps=400, seeds=2, at=(1, 3), names=NAMES)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    (folder / "a.py").write_text('"""One."""\ndef f():\n    """Two é."""\n\nclass C:\n    x = "no docstring"\n' + "# more\n")
    (folder / "b.py").write_text("def broken(:\n")
    (folder / "c.py").write_text('"""' + "Words of a module, again and again. " * 200 + '"""\n')
    (folder / "test").mkdir()
    (folder / "test" / "d.py").write_text('"""Left out."""\n')
    return folder


@pytest.fixture(scope="module")
def measured(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("measured")
    return folder, script.measure(folder, source=source, **SMALL)


def test_docstrings_are_found(source):
    assert script.documentation(source).startswith(b"One.\n\nTwo .\n\nWords of a module")
    assert b"Left out" not in script.documentation(source) and b"no docstring" not in script.documentation(source)


def test_mean_and_interval_by_hand():
    """1, 2, 6: mean 3, standard deviation sqrt(7), t 4.303."""
    mean, half = script.mean_and_interval([1.0, 2.0, 6.0])
    assert mean == 3 and half == pytest.approx(4.303 * math.sqrt(7 / 3))


def test_the_page_pairs_seeds():
    """Bits 2 and 4 against 1 and 3 of the same seeds: one bit more each time, without doubt, though the means overlap."""

    def run(bits):
        return {"bits": {"5": bits}, "seconds": 1.0, "parameters": 9, "trained": 3, "baselines": {"copy_last": 7.0}}

    text = dict(bytes=10, parameters=9, updates=1, seconds=1.0, bits_per_byte=2.0, bits_per_byte_unigram=4.0)
    runs = {script.REFERENCE: {"0": run(1.0), "1": run(3.0)}, "other": {"0": run(2.0), "1": run(4.0)}}
    page = script.page(text, runs, dict(steps=10, seeds=2, lr=0.1))
    assert "| other | 3 of 9 | 1 | 3.000 ± 12.706 |" in page and "| other | +1.000 ± 0.000 |" in page
    assert "7.00 (copy last)" in page and page.count(f"| {script.REFERENCE} |") == 1


def test_a_small_measurement_can_be_gone_on_with(measured, source):
    folder, page = measured
    kept = json.loads((folder / "results.json").read_text())
    assert list(kept["runs"]) == NAMES and all(set(by_seed) == {"0", "1"} for by_seed in kept["runs"].values())
    runs = kept["runs"][NAMES[0]], kept["runs"][NAMES[1]], kept["runs"][NAMES[2]]
    assert runs[0]["0"]["parameters"] == runs[0]["0"]["trained"] == runs[1]["0"]["trained"] > runs[2]["0"]["trained"] == 0
    assert all(found["bits"]["3"] < found["bits"]["1"] for by_seed in runs for found in by_seed.values())
    before = (folder / "results.json").read_bytes()
    assert script.measure(folder, source=source, **SMALL) == page and (folder / "results.json").read_bytes() == before
    with pytest.raises(UserError, match="choose another folder"):
        script.measure(folder, source=source, **SMALL | dict(seeds=3))


def test_bits_are_those_of_the_evaluation(measured):
    """Scored by the loss here, step by step there."""
    folder, _ = measured
    spec = script.compose.compose(
        ["recipe=quickstart", f"data={folder / 'data'}", f"load.tokenizer={folder / 'tokenizer'}", "device=cpu"]
    )
    run = script.build_run(
        folder / "none", script.with_loaded_sections(spec), ("dynamics",), log=script.Log(None, silent=True)
    )
    run.phases["dynamics"](run, False, updates=3)
    bits, simple = script.held_out_bits(run)
    rows = np.arange(run.held_out.rows // 16 * 16).reshape(-1, 16)
    steps, codes, nats, pairs = run.held_out.gather(rows), run.codes(run.held_out, rows).indices, [], []
    with torch.no_grad():
        _, state = run.world_model.start(steps[:, :1], Codes(codes[:, :1]))
        for t in range(15):
            following = Codes(codes[:, t + 1 : t + 2])
            prediction, state = run.world_model.decoding.step(
                run.world_model.backbone, state, steps.action[:, t], None, following, steps.first[:, t + 1]
            )
            real = steps.acted[:, t] & steps.valid[:, t + 1]
            nats.append(-logprob(prediction)[real].sum(1))
            pairs.append(codes[real, t : t + 2])
    before, after = torch.cat(pairs).unbind(1)
    assert len(after) > 100 and bits == pytest.approx(torch.cat(nats).mean().item() / math.log(2), abs=1e-3)
    for name, value in simple.items():
        reference = getattr(baselines, f"bits_{name}")(code_counts(run), before, after).sum(1).mean()
        assert value == pytest.approx(reference.item(), abs=1e-6)


def test_the_commands_of_the_page_parse():
    text = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("tokenworld ")]
    assert len(lines) >= 4
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        assert callable(cli.parse(words)), line
        cfg = compose.compose(words[1:]).cfg
        schema.check(cfg)
        given = [key for key in ("name", "path", "config") if cfg["backbone"][key] is not None]
        assert len(given) == 1, line
