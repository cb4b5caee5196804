"""The ruler: it runs for each kind, counts FLOPs as one would by hand, and says what it cannot do."""

import json

import pytest
import torch

from tokenworld.bench import ceilings, clocks, rows
from tokenworld.cli import main as cli
from tokenworld.config import compose
from tokenworld.imagination import imagine
from tokenworld.interfaces import Codes
from tokenworld.log import Log
from tokenworld.training.build import build_run
from tokenworld.world_model import WorldModel, frames_as_steps

AR = "decoding._target_=tokenworld.decoding.autoregressive.Autoregressive"


@pytest.mark.parametrize("what", list(rows.BENCHES))
def test_each_kind_runs_and_writes_json(what, tmp_path, capsys):
    file = tmp_path / "bench.json"
    assert cli.main(["bench", what, "overlay=debug", "repeats=1", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert result["bench"] == what and result["rows"] and result["peak_memory_bytes"] > 0
    for row in result["rows"]:
        assert row["per_second"] > 0
        assert row["share_of_flops"] is None or 0 < row["share_of_flops"] < 2, row
    printed = capsys.readouterr().out
    assert all(row["name"] in printed for row in result["rows"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An untrained run of a recipe at debug size, made when it is first asked for."""
    made = {}

    def of(recipe, precision):
        if (recipe, precision) not in made:
            spec = compose.compose([f"recipe={recipe}", "overlay=debug", "device=cpu", f"precision={precision}"])
            run = build_run(tmp_path_factory.mktemp(recipe), spec, log=Log(None))
            run.phases["collect"](run, False, steps=60, first_steps=60, random=True)
            run.collector.cut()
            made[recipe, precision] = run
        return made[recipe, precision]

    return of


CHEAP = ("atari_small", "iris", "quickstart")  # patch, vqvae and nearest: the three kinds of tokenizers


@pytest.mark.parametrize("what", list(rows.BENCHES))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=[] if name in CHEAP else [pytest.mark.slow]) for name in compose.recipes()]
)
def test_each_kind_runs_on_each_recipe(runs, recipe, precision, what, monkeypatch):
    """What is timed, without repeats: a clock that is read once, and ceilings that nobody measures."""
    monkeypatch.setattr(rows, "time_calls", lambda device, call, repeats, least=0.0: [clocks.clock(device, call)])
    monkeypatch.setattr(rows, "_phase", lambda run, name, repeats: [
        clocks.clock(run.device, lambda: run.phases[name](run, False, start=0, updates=1))
    ])  # fmt: skip
    for name, value in (("read_bandwidth", 1e9), ("product_ceiling", 1e9), ("picture_ceiling", 1e9)):
        monkeypatch.setattr(rows, name, lambda *_, value=value: value)
    monkeypatch.setattr(rows, "WARMUP", 0)
    monkeypatch.setattr(rows, "COLLECTED", 4)
    result = rows.bench(what, runs(recipe, precision), 1)
    assert result["recipe"] == recipe and result["precision"] == precision and result["rows"]
    assert all(row["per_second"] > 0 for row in result["rows"])
    assert "per second" in rows.table(result) and "NaN" not in json.dumps(result)


def test_figures_go_to_stdout_where_that_is_asked(capsys):
    assert cli.main(["bench", "decode", "overlay=debug", "repeats=1", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["bench"] == "decode"


def test_bf16_dreams_are_timed_too(capsys):
    assert cli.main(["bench", "imagine", "recipe=iris", "overlay=debug", "repeats=1", "precision=bf16"]) == 0
    assert "bf16" in capsys.readouterr().out


def test_flops_are_those_counted_by_hand():
    """One dreamt frame after one real one: K passes; the matrix products of the blocks, the heads and the attention."""
    D, layers, V, A = 16, 2, 8, 3
    words = ["overlay=debug", f"backbone.dim={D}", f"backbone.layers={layers}", "backbone.heads=2", f"tokenizer.vocab_size={V}"]
    model = WorldModel.from_recipe("iris", *words, "reward.hidden=16", "termination.hidden=16", frame=(3, 64, 64), actions=A)
    K = model.shapes.codes
    steps = frames_as_steps(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    codes, noise = Codes(torch.zeros(1, 1, K, dtype=torch.int64)), torch.rand(1, 1, K + 3)
    counted = ceilings.dream_flops(model.eval(), ceilings.Dice(A, False), steps, codes, noise, 1)

    positions = K + 1  # the waiting code and the action, then each code but the last
    seen = 2 * (K + 1)  # keys that each position reads: rings grow by two steps
    blocks = positions * layers * (2 * 12 * D * D + 4 * D * seen)
    heads = K * 2 * (D * D + D * V) + 2 * (D * 16 + 16 * 3) + 2 * (D * 16 + 16)
    assert counted == blocks + heads


def test_a_dream_needs_nothing_from_the_device():
    """Nothing is fetched to the host within the horizon: on the meta device there is nothing to fetch."""
    for words in (["recipe=iris", "overlay=debug"], ["recipe=quickstart", "overlay=debug"]):
        recipe = words[0].partition("=")[2]
        frame = (3, 64, 64) if recipe == "iris" else (4, 10, 10)
        model = WorldModel.from_recipe(recipe, *words[1:], frame=frame, actions=3).eval().to("meta")
        steps = frames_as_steps(torch.zeros(2, *frame, dtype=torch.uint8)).to("meta")
        K = model.shapes.codes
        with torch.no_grad():
            prediction, state = model.start(steps, Codes(torch.zeros(2, 1, K, dtype=torch.int64, device="meta")))
        dream = imagine(model, prediction, state, ceilings.Dice(3, True), 3, torch.rand(2, 3, K + 3, device="meta"))
        assert dream.codes.indices.shape == (2, 4, K) and dream.codes.indices.is_meta


@pytest.mark.parametrize(
    "words, said",
    [
        (["bench"], "the name of a benchmark"),
        (["bench", "imagination"], "expected one of imagine"),
        (["bench", "imagine", "--json"], "needs the file"),
        (["bench", "imagine", "steps=3"], "takes no key steps"),
        (["bench", "imagine", "repeats=0"], "at least 1"),
    ],
)
def test_a_wrong_call_is_one_sentence(words, said, capsys):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
