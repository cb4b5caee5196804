"""The command line: right words reach the right command, wrong ones are one sentence and exit code 2."""

import os
import subprocess
import sys

import pytest

from tokenworld.cli import main as cli
from tokenworld.cli import verbs
from tokenworld.config import compose, saved, schema
from tokenworld.errors import LONGEST, UserError


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for the commands: what they were called with."""
    seen = []

    def record(name):
        return lambda *args, **keys: seen.append((name, *args, *([keys] if keys else [])))

    for name, function in (("train", "run"), ("train", "run_phase"), ("train", "resume"), ("collect", "run"), ("score", "run"),
                           ("dream", "run")):  # fmt: skip
        monkeypatch.setattr(verbs.load(name), function, record(name if function == "run" else function))
    monkeypatch.setattr(schema, "check", lambda cfg: None)
    return seen


@pytest.fixture
def run_folder(tmp_path):
    spec = compose.compose([])
    saved.save(tmp_path / "config.yaml", spec)
    return str(tmp_path)


def fails(capsys, *words: str) -> str:
    assert cli.main(list(words)) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("tokenworld: ")
    return said.err


def test_train_composes_a_recipe(calls):
    assert cli.main(["train", "recipe=iris", "overlay=debug", "seed=3", "out=a", "env.id=ALE/Pong-v5"]) == 0
    (name, spec), = calls
    assert name == "train" and spec.parts["env"]["id"] == "ALE/Pong-v5" and spec.parts["backbone"]["layers"] == 1
    assert spec.command == {"recipe": "iris", "overlay": "debug", "seed": 3, "out": "a", "given": ["env.id"]}


def test_the_quick_start_needs_no_word(calls):
    assert cli.main(["train"]) == 0
    assert calls[0][1].command == {"recipe": "quickstart"}


@pytest.mark.parametrize("phase", ["tokenizer", "dynamics", "policy"])
def test_train_one_phase_goes_on_with_the_recipe_of_what_it_loads(calls, phase, tmp_path):
    spec = compose.compose(["recipe=atari_small"])
    saved.save(tmp_path / "config.yaml", spec)
    for word, recipe in (("seed=1", "atari_small"), ("recipe=iris", "iris")):
        assert cli.main(["train", phase, "data=d", f"load.tokenizer={tmp_path}", word]) == 0
        (name, which, spec) = calls.pop()
        assert (name, which) == ("run_phase", phase)
        assert spec.load_tokenizer == str(tmp_path) and spec.recipe == recipe


def test_collect(calls):
    assert cli.main(["collect", "recipe=atari_small", "steps=5000", "out=data/breakout"]) == 0
    assert calls[0][0] == "collect" and calls[0][2] == {"steps": 5000}


def test_commands_on_a_run(calls, run_folder):
    assert cli.main(["score", run_folder, "episodes=7"]) == 0
    assert cli.main(["dream", run_folder, "out=a.gif", "--trust-remote-code"]) == 0
    assert cli.main(["train", "--resume", run_folder, "device=cpu", "train.loop.epochs=40"]) == 0
    assert calls[0] == ("score", run_folder, {"episodes": 7})
    assert calls[1] == ("dream", run_folder, {"out": "a.gif"})
    assert calls[2] == ("resume", run_folder, {"device": "cpu"}, {"train.loop.epochs": 40})


@pytest.mark.parametrize(
    "words, part",
    [
        (["trian"], "did you mean train?"),
        (["train", "tokeniser"], "did you mean tokenizer?"),
        (["train", "--resum", "x"], "--resum"),
        (["train", "--resume"], "one run"),
        (["train", "--resume", "no-such-run"], "is not a run"),
        (["train", "recipe=irsi"], "did you mean iris?"),
        (["train", "seed=x"], "seed must be a whole number"),
        (["train", "seed"], "no phase"),
        (["collect", "seed"], "key=value"),
        (["score"], "one run"),
        (["score", "no-such-run"], "is not a run"),
        (["dream", "a", "b"], "one run"),
        (["data"], "data info"),
        (["data", "inof", "x"], "data info"),
    ],
)
def test_bad_words_are_one_sentence_and_exit_code_2(capsys, words, part):
    assert part in fails(capsys, *words)


def test_a_resumed_run_keeps_most_of_its_settings(capsys, calls, run_folder):
    for word in ("seed=1", "train.dynamics.lr=0.1", "recipe=iris"):
        said = fails(capsys, "train", "--resume", run_folder, word)
        assert "keeps its settings" in said and "train.loop.epochs" in said and "load.world_model=" in said
    assert "did you mean episodes?" in fails(capsys, "score", run_folder, "episode=3")


def test_a_rank_leaves_at_once_and_others_do_not(monkeypatch, calls):
    left = []
    monkeypatch.setattr(cli.signals, "leave", left.append)
    monkeypatch.setattr(sys, "argv", ["tokenworld", "train"])
    for ranks, argv in (("2", None), ("1", None), ("2", ["train"])):
        monkeypatch.setenv("WORLD_SIZE", ranks)
        assert cli.main(argv) == 0
    assert left == [0] and len(calls) == 3


def test_a_sentence_is_short_whatever_is_in_it(tmp_path, capsys):
    """Its beginning says what it got, its end what to do. Values of files and of the command line may have any length."""
    assert str(UserError("as it is")) == "as it is"
    for value in ("x" * 10_000, "x " * 10_000):
        cut = str(UserError(f"the key is {value}: choose another"))
        assert len(cut) <= LONGEST and cut.startswith("the key is x") and cut.endswith(": choose another")
    assert str(UserError("two\nlines, a \x1b[2J\udcff")) == "two\\nlines, a \\x1b[2J\\udcff"
    (tmp_path / "mine.yaml").write_text(f"train: {'x y' * 5000}\n")
    for word in (f"recipe={tmp_path / 'mine.yaml'}", f"env.id={'y' * 5000}", f"seed={'z ' * 5000}", "env.id=two\nlines:X"):
        assert cli.main(["show", word]) == 2
        line = capsys.readouterr().err.removesuffix("\n")
        assert len(line) <= LONGEST + len("tokenworld: ") and line.isprintable()


def test_a_path_that_the_locale_cannot_say_is_no_fault(tmp_path):
    words = [sys.executable, "-m", "tokenworld.cli", "collect", "overlay=debug", "steps=20", f"out={tmp_path / 'tést'}"]
    done = subprocess.run(words, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True)
    assert done.returncode == 0 and "t\\xe9st" in done.stderr


def test_the_config_of_a_run_is_no_recipe(run_folder, capsys):
    said = fails(capsys, "show", f"recipe={run_folder}/config.yaml")
    assert f"{run_folder}/config.yaml is the config of a run" in said and "--resume" in said



def test_ctrl_c_is_130_and_other_faults_keep_their_traceback(monkeypatch, calls):
    def raising(error):
        def command(*_):
            raise error
        return command

    for error, code in ((KeyboardInterrupt(), 130), (UserError("x"), 2)):
        monkeypatch.setattr(verbs.load("train"), "run", raising(error))
        assert cli.main(["train"]) == code
    monkeypatch.setattr(verbs.load("train"), "run", raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


@pytest.mark.parametrize("command", verbs.names())
def test_help_teaches_with_examples(capsys, command):
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "example" in text and f"tokenworld {command}" in text
    assert cli.main(["--help"]) == 0
    assert f"  {command}" in capsys.readouterr().out


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tokenworld 0.")


def test_show_prints_a_difference(capsys, monkeypatch):
    monkeypatch.setattr(schema, "check", lambda cfg: None)
    assert cli.main(["show", "recipe=iris", "against=quickstart"]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:]}
    assert rows["backbone.layers"] == ["10", "1"] and "action._target_" not in rows


def test_show_counts_parameters_and_cost(capsys):
    assert cli.main(["show", "recipe=quickstart", "backbone.layers=1"]) == 0
    out = capsys.readouterr().out
    assert "layers: 1" in out and "forward passes per imagined frame" in out
    table = [line.rsplit("  ", 1) for line in out.splitlines() if "  " in line.strip()]
    numbers = {name.strip(): value for name, value in table}
    assert int(numbers["forward passes per imagined frame"]) == 1
    # one block of width 64: two norms, qkv, out and the four-fold MLP, and the norm after the last block
    block = 2 * 128 + (64 * 192 + 192) + (64 * 64 + 64) + (64 * 256 + 256) + (256 * 64 + 64)
    assert int(numbers["backbone"].replace(",", "")) == block + 128
    assert float(numbers["MFLOPs per imagined frame"]) > 2 * 25 * (block - 700) / 1e6 * 0.9


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"]])
def test_help_imports_no_torch(words):
    code = f"import sys; from tokenworld.cli.main import main; main({words!r}); "
    code += "print('torch' in sys.modules, 'hydra' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False False"
