"""metrics.jsonl stays a file of whole JSON lines; progress is quiet when piped; sinks are not imported."""

import json
import subprocess
import sys

import pytest
import torch

from tokenworld import log as log_module
from tokenworld.log import Log


def lines(folder):
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def test_one_json_line_per_call_and_nan_is_null(tmp_path):
    log = Log(tmp_path, wall=100.0)
    nan, inf = float("nan"), torch.tensor(float("inf"))
    log.metrics("dynamics", loss=torch.tensor(0.5), bad=nan, worse=inf, many=[1.0, nan])
    log.metrics("policy", step=3)
    first, second = lines(tmp_path)
    assert first["phase"] == "dynamics" and first["loss"] == 0.5 and first["bad"] is None and first["worse"] is None
    assert first["many"] == [1.0, None]
    assert second["phase"] == "policy" and second["step"] == 3
    assert first["wall"] >= 100.0 and log.lines == 2
    log.close()


def test_truncate_drops_what_came_after_the_checkpoint(tmp_path):
    log = Log(tmp_path)
    for step in range(5):
        log.metrics("loop", step=step)
    log.truncate(3)
    log.metrics("loop", step=33)
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 2, 33] and log.lines == 4


def test_a_half_line_of_a_killed_process_is_cut_off(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"phase": "loop", "step": 1}\n{"phase": "lo')
    log = Log(tmp_path)
    assert log.lines == 1
    log.metrics("loop", step=2)
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_line_is_on_disk_at_once(tmp_path):
    log = Log(tmp_path)
    log.metrics("loop", step=1)
    assert len(lines(tmp_path)) == 1, "a SIGKILL loses no line"
    log.close()


def test_piped_progress_is_plain_and_rare(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: clock[0])
    log = Log(None)
    for i in log.progress(100, "tokenizer"):
        clock[0] += 0.5  # 50 seconds in all
        assert i < 100
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5 and "\r" not in "".join(said), "one about every ten seconds and the last"
    assert said[0] == "tokenizer: 20/100 in 0:10, 0:40 left" and said[-1] == "tokenizer: 100/100 in 0:50"


def test_progress_shows_numbers_and_a_resumed_run_knows_its_speed(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: clock[0])
    with Log(None).progress(100, "epochs", done=90) as bar:
        clock[0] = 20.0
        bar.update(2, loss=torch.tensor(0.25))
    assert capsys.readouterr().err.splitlines()[0] == "epochs: 92/100 in 0:20, 1:20 left  loss 0.25"


def test_what_took_no_time_says_nothing(capsys):
    assert list(Log(None).progress(3, "short")) == [0, 1, 2]
    with Log(None).progress(3, "nothing done"):
        pass
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    log = Log(None)
    for i in log.progress(3, "policy"):
        if i == 1:
            for _ in log.progress(2, "inner"):
                pass
            assert log._bar is not None, "the outer bar is back"
            log.say("a message")
    said = capsys.readouterr().err
    assert "policy" in said and "inner" in said and "\r" in said and "a message" in said and log._bar is None


def test_importing_log_imports_no_sink():
    code = "import sys, tokenworld.log; print([m for m in ('wandb', 'tensorboard', 'trackio') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
