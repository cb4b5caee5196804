"""Sweeps: the grid, what is refused before anything is created, resuming after kills, failures, tables."""

import contextlib
import errno
import fcntl
import json
import os
import signal
import sys
import threading
import time

import pytest

from tokenworld import files, sweep
from tokenworld.cli import main as cli
from tokenworld.scores.comparison import compare, markdown

DEBUG = ["overlay=debug", "device=cpu"]

# Stands for `tokenworld train`: instantly done, or what its seed asks for.
FAKE = """
import json, os, pathlib, signal, sys, time
words = dict(word.partition("=")[::2] for word in sys.argv[1:])
out = pathlib.Path(words.get("out") or sys.argv[2])
seed = int(words["seed"]) if "seed" in words else int((out / "seed").read_text())
out.mkdir(exist_ok=True)
(out / "seed").write_text(str(seed))
print("threads", os.environ["OMP_NUM_THREADS"], flush=True)
def stop(*_):
    (out / "stopped").open("a").write("once ")
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
if seed == 7:
    sys.exit("no luck with 7")
if seed == 8 and not (out / "stopped").exists():
    print("waiting", flush=True)
    time.sleep(30)
evaluation = {"return_mean": float(seed), "return_ci95": [0, 9], "episodes": 2, "random_return_mean": 0.5}
(out / "summary.json").write_text(json.dumps({"env_steps": 100, "eval": evaluation}))
print("done")
"""


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Sweeps that start the stand-in; the environment says nothing of threads."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    monkeypatch.setattr(sweep, "TRAIN", (sys.executable, str(script)))
    monkeypatch.setattr(sweep, "POLL", 0.02)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, which they inherit
    yield tmp_path / "out"
    signal.signal(signal.SIGINT, before)


def run(out, *words) -> int:
    return cli.main(["sweep", *DEBUG, f"out={out}", *words])


def names(out) -> list[str]:
    return sorted(path.name for path in out.iterdir())


@contextlib.contextmanager
def meanwhile(ready, act):
    """Do `act()` from another thread as soon as `ready()`."""

    def watch():
        while not over.is_set() and not ready():
            time.sleep(0.01)
        if not over.is_set():
            act()

    over, thread = threading.Event(), threading.Thread(target=watch)
    thread.start()
    yield
    over.set()
    thread.join()


# ---------------------------------------------------------------------------------------------------------------------
# The grid


def test_a_grid_is_the_product_of_all_lists():
    own, runs = sweep.expand(["seed=0,1", "env.id=A,B", "recipe=iris", "~policy.entropy", "out=x", "jobs=2"])
    assert own == {"out": "x", "jobs": "2"}
    assert [(r["seed"], r["env.id"]) for r in runs] == [("0", "A"), ("0", "B"), ("1", "A"), ("1", "B")]
    assert sweep.words_of(runs[3]) == ["seed=1", "env.id=B", "recipe=iris", "~policy.entropy"]
    assert sweep.expand(["recipe=iris"])[1] == [{"seed": "0", "recipe": "iris"}]


@pytest.mark.parametrize(
    "text, parts",
    [
        ("0,1,2", ["0", "1", "2"]),
        ("[8,16]", ["[8,16]"]),
        ("[8,16],[8]", ["[8,16]", "[8]"]),
        ("{a: [1,2], b: 3},{a: 4}", ["{a: [1,2], b: 3}", "{a: 4}"]),
        ("'a,b',\"c]\"", ["'a,b'", '"c]"']),
        ("", [""]),
    ],
)
def test_commas_inside_brackets_do_not_split(text, parts):
    assert sweep.split("key", text) == parts


def test_names_say_what_differs(tmp_path):
    def named(*words):
        _, runs = sweep.expand(words)
        return sweep.name_runs(tmp_path / "new", [(settings, settings["env.id"]) for settings in runs])

    assert named("env.id=ALE/Breakout-v5", "seed=0,1") == ["Breakout-seed0", "Breakout-seed1"]
    assert named("env.id=ALE/Pong-v5,MinAtar/Asterix-v1") == ["Pong-seed0", "Asterix-seed0"]
    assert named("env.id=ALE/Breakout-v5,MinAtar/Breakout-v1") == ["ALE_Breakout-v5-seed0", "MinAtar_Breakout-v1-seed0"]
    assert named("env.id=a/Pong-v5", "backbone.layers=1,2", "recipe=iris") == ["Pong-seed0-layers1", "Pong-seed0-layers2"]
    assert named("env.id=a/Pong-v5", "train.policy.lr=1,2", "train.dynamics.lr=3,4")[0] == (
        "Pong-seed0-train.policy.lr1-train.dynamics.lr3"
    )
    assert named("env.id=a/Pong-v5", "tokenizer.attention=[8,16],[8_16]") == [
        "Pong-seed0-attention8_16", "Pong-seed0-attention8_16+"
    ]


@pytest.mark.parametrize(
    "words, part",
    [
        (["seeds=0,1"], "did you mean seed?"),
        (["backbone.layer=1,2"], "did you mean backbone.layers?"),
        (["seed=0,x"], "seed must be a whole number"),
        (["seed=0,,1"], "empty or repeated value"),
        (["seed=0,1,0"], "empty or repeated value"),
        (["seed=0", "seed=1"], "given twice"),
        (["jobs=0"], "jobs must be at least 1"),
        (["backbone.layers=1,many"], "whole number"),
        (["recipe=quickstart,irsi"], "did you mean iris?"),
        (["env.id=MinAtar/Breakout-v1,MinAtar/Breakot-v1"], "did you mean MinAtar/Breakout-v1?"),  # found by building it
        (["train.dynamics.batch=4,0"], "at least 1"),
        (["backbone.heads=2,5"], "heads"),
        (["tokenizer"], "key=value"),
    ],
)
def test_one_bad_value_refuses_the_whole_grid_before_anything_is_created(capsys, tmp_path, words, part):
    assert run(tmp_path / "out", *words) == 2
    said = capsys.readouterr()
    assert part in said.err and said.err.count("\n") == 1 and said.out == ""
    assert not (tmp_path / "out").exists()


def test_out_is_needed_and_may_hold_nothing_else(capsys, tmp_path):
    assert cli.main(["sweep", *DEBUG, "seed=0,1"]) == 2
    assert "got no out" in capsys.readouterr().err
    (tmp_path / "thesis.tex").write_text("mine")
    assert run(tmp_path) == 2
    assert "is not a sweep" in capsys.readouterr().err and names(tmp_path) == ["thesis.tex"]


# ---------------------------------------------------------------------------------------------------------------------
# Running


def test_finished_runs_are_skipped_and_the_grid_may_grow(fake, capsys):
    assert run(fake, "seed=1,2") == 0
    first = (fake / "Breakout-seed1.log").read_text()
    before = json.loads((fake / "sweep.json").read_text())["runs"]
    assert sorted(before) == ["Breakout-seed1", "Breakout-seed2"]
    for words, part in ((["seed=2,3"], "Breakout-seed1"), (["seed=1,2", "backbone.layers=2"], "which this grid lacks")):
        assert run(fake, *words) == 2
        assert part in capsys.readouterr().err
        assert json.loads((fake / "sweep.json").read_text())["runs"] == before
    assert run(fake, "env.id=MinAtar/Breakout-v1,MinAtar/Asterix-v1", "seed=1,2") == 2  # a key that was not given before
    assert run(fake, "seed=1,2,3") == 0
    assert (fake / "Breakout-seed1.log").read_text() == first
    assert "3 runs, 2 of them finished" in capsys.readouterr().err
    assert (fake / "results.md").read_text().startswith("# 3 of 3 runs finished")


def test_a_failure_stops_nobody_and_is_listed(fake, capsys):
    assert run(fake, "seed=7,1", "jobs=2") == 1
    said = capsys.readouterr()
    assert "failed: Breakout-seed7, exit code 1: no luck with 7" in said.err
    assert "finished Breakout-seed1: done" in said.err and "1 of 2 runs failed" in said.err
    results = json.loads((fake / "results.json").read_text())
    assert [(r["name"], r["state"]) for r in results["runs"]] == [("Breakout-seed7", "failed"), ("Breakout-seed1", "finished")]
    assert "- Breakout-seed7, failed: no luck with 7" in said.out
    assert run(fake, "seed=7,1", "jobs=2") == 1
    assert (fake / "Breakout-seed7.log").read_text().count("no luck") == 2, "a failed run is tried again"


def test_ctrl_c_gives_each_run_one_signal_and_starts_no_other(fake, capsys):
    begun = fake / "Breakout-seed8.log"
    with meanwhile(lambda: begun.exists() and "waiting" in begun.read_text(), lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert run(fake, "seed=8,1") == 130
    assert (fake / "Breakout-seed8" / "stopped").read_text() == "once "
    assert not (fake / "Breakout-seed1").exists()
    err = capsys.readouterr().err
    assert f"stopped; resume with: tokenworld sweep overlay=debug device=cpu out={fake} seed=8,1" in err
    assert run(fake, "seed=8,1") == 0


def test_a_run_of_another_process_is_waited_for(fake, capsys):
    fake.mkdir()
    (fake / "sweep.json").write_text('{"runs": {}}')
    with open(fake / "Breakout-seed1.log", "ab") as other:  # as the child of a sweep that was killed holds it
        fcntl.flock(other, fcntl.LOCK_EX)
        done = fake / "Breakout-seed2" / "summary.json"
        with meanwhile(done.exists, lambda: fcntl.flock(other, fcntl.LOCK_UN)):
            assert run(fake, "seed=1,2") == 0
    assert "Breakout-seed1 is still running" in capsys.readouterr().err
    assert (fake / "Breakout-seed1" / "summary.json").exists()


def test_each_job_has_its_share(fake, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert run(fake, "seed=1,2,3", "jobs=3") == 0
    assert (fake / "Breakout-seed3.log").read_text().splitlines()[0] == "threads 2"
    assert sweep.environment(0, 16, "cpu")["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert sweep.environment(0, 2, "cpu")["OMP_NUM_THREADS"] == "5"


def test_several_gpus_are_taken_in_turn(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(sweep.torch.cuda, "device_count", lambda: 2)
    assert [sweep.environment(place, 3, "auto")["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["0", "1", "0"]
    assert "CUDA_VISIBLE_DEVICES" not in sweep.environment(0, 3, "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert sweep.environment(1, 3, "cuda")["CUDA_VISIBLE_DEVICES"] == "6"
    monkeypatch.setattr(sweep.torch.cuda, "device_count", lambda: 1)
    assert sweep.environment(1, 3, "cuda")["CUDA_VISIBLE_DEVICES"] == "4,6"


def test_a_killed_run_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    """Two real runs, one of them killed in its middle: it fails, the other ends, and the same command finishes it."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out, started, processes = tmp_path / "out", sweep._start, []

    def remembered(*words):
        processes.append(started(*words))
        return processes[-1]

    monkeypatch.setattr(sweep, "_start", remembered)
    words = ["seed=0,1", "jobs=2", "train.loop.epochs=12"]
    metrics = out / "Breakout-seed0" / "metrics.jsonl"
    with meanwhile(lambda: metrics.exists() and '"epoch": 4' in metrics.read_text(), lambda: processes[0].kill()):
        assert run(out, *words) == 1
    said = capsys.readouterr()
    assert "failed: Breakout-seed0, exit code -9: " in said.err and "finished Breakout-seed1: return " in said.err
    assert not (out / "Breakout-seed0" / "summary.json").exists()
    other = (out / "Breakout-seed1.log").read_text()

    assert run(out, *words) == 0
    assert f"resumed {out / 'Breakout-seed0'} after epoch " in (out / "Breakout-seed0.log").read_text()
    assert (out / "Breakout-seed1.log").read_text() == other, "what was finished is not touched"
    row, = json.loads((out / "results.json").read_text())["games"]
    for seed in ("0", "1"):
        summary = json.loads((out / f"Breakout-seed{seed}" / "summary.json").read_text())
        assert row["seeds"][seed] == summary["eval"]["return_mean"] and summary["seed"] == int(seed)


# ---------------------------------------------------------------------------------------------------------------------
# Folders of somebody else, of two sweeps, and on disks that refuse


def received(out, runs) -> bytes:
    out.mkdir()
    (out / "sweep.json").write_text(json.dumps(runs) if not isinstance(runs, str) else runs)
    return (out / "sweep.json").read_bytes()


SETTINGS = {"seed": "1", "overlay": "debug", "device": "cpu"}


@pytest.mark.parametrize(
    "name",
    ["../../evil-seed0", "/evil-seed0", "a/b-seed0", "a\\b-seed0", "..", ".", "", "a-seed0\0", "a-seed0\n", "sweep.json"],
)
def test_names_of_runs_that_a_sweep_does_not_make_are_refused(tmp_path, capsys, name):
    before = received(tmp_path / "out", {"runs": {name: SETTINGS}})
    assert run(tmp_path / "out", "seed=1") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "expected a name like Breakout-seed0" in err
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["sweep.json"]
    assert (tmp_path / "out" / "sweep.json").read_bytes() == before


@pytest.mark.parametrize(
    "runs",
    [
        *({"runs": x} for x in ([], None, 1, "x", {"a-seed0": []}, {"a-seed0": None}, {"a-seed0": "seed=0"})),
        *({"runs": {"a-seed0": {"seed": x}}} for x in (1, True, ["0"], {}, "0\nrm", "\0")),
        *({"runs": {"a-seed0": {key: "1"}}} for key in ("", "a=b", "seed\n")),
        *([], {}, 1, None, "{", "[" * 100_000, "\ud800"),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "replace").decode(),
)
def test_a_sweep_of_another_form_is_one_sentence(tmp_path, capsys, runs):
    text = runs if isinstance(runs, str) else json.dumps(runs)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sweep.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert run(tmp_path / "out", "seed=1") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "sweep.json" in err and "restore it from a copy" in err
    assert names(tmp_path / "out") == ["sweep.json"]


@pytest.mark.parametrize(
    "summary",
    ["{", "[]", "null", "{}", '{"env_steps": 1}', '{"env_steps": 1, "eval": []}',
     '{"env_steps": "1", "eval": {"return_mean": null}}',
     '{"env_steps": 1, "eval": {"return_mean": NaN, "random_return_mean": 1}}',
     '{"env_steps": 1, "eval": {"return_mean": 1, "random_return_mean": null}}', "\xff"],
)  # fmt: skip
def test_a_damaged_summary_is_one_sentence_before_anything_is_trained(fake, capsys, summary):
    assert run(fake, "seed=1") == 0
    capsys.readouterr()
    (fake / "Breakout-seed1" / "summary.json").write_bytes(summary.encode("latin-1"))
    assert run(fake, "seed=1,2") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Breakout-seed1/summary.json is damaged" in err
    assert not (fake / "Breakout-seed2").exists()


@pytest.mark.parametrize("line", ["[1]", "1", '{"epoch": "2"}', '{"epoch": null}', "{}", "[" * 10_000])
def test_metrics_of_another_form_count_for_nothing(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    assert sweep.epochs_of(tmp_path) == 0


def test_a_second_sweep_in_the_folder_is_refused(fake, capsys):
    fake.mkdir()
    with files.locking(fake):
        assert run(fake, "seed=1") == 2
    assert "is being written by another process" in capsys.readouterr().err
    assert run(fake, "seed=1") == 0 and files.LOCK not in names(fake)


def test_a_signal_is_passed_on_as_it_is(fake, capsys):
    begun = fake / "Breakout-seed8.log"
    with meanwhile(lambda: begun.exists() and "waiting" in begun.read_text(), lambda: os.kill(os.getpid(), signal.SIGTERM)):
        assert run(fake, "seed=8,1") == 143
    err = capsys.readouterr().err
    assert "stopped Breakout-seed8" in err and "stopped; resume with: tokenworld sweep" in err
    assert not (fake / "Breakout-seed8" / "stopped").exists(), "it was SIGTERM that came, not SIGINT"


def test_results_that_cannot_be_written_stop_no_run_and_are_printed(fake, capsys, monkeypatch):
    replace = os.replace

    def full(source, target, **keywords):
        if str(target).endswith("results.md"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(source, target, **keywords)

    monkeypatch.setattr(files.os, "replace", full)
    assert run(fake, "seed=1,2") == 2
    said = capsys.readouterr()
    assert "# 2 of 2 runs finished" in said.out and "results.md cannot be written" in said.err.splitlines()[-1]
    monkeypatch.undo()


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def result(env_id: str, seed: int, value: float | None, random: float = 0.0, **settings) -> dict:
    """A run as `compare` takes it; no value: it is not finished."""
    evaluation = {"return_mean": value, "random_return_mean": random}
    summary = None if value is None else {"env_steps": 1000, "eval": evaluation}
    settings = {"seed": str(seed), "env.id": env_id, **settings}
    state = "unfinished" if value is None else "finished"
    name = f"{env_id}{seed}"
    return dict(name=name, env_id=env_id, seed=seed, settings=settings, state=state, last_line="epoch 3", summary=summary)


def cells(text: str, first: str) -> list[list[str]]:
    """The rows of all tables that begin with this cell."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if row[0] == first]


def test_minatar_has_returns_only():
    runs = [result("MinAtar/Breakout-v1", s, v, 0.5) for s, v in ((0, 4.0), (1, 6.0), (2, None))]
    found = compare(runs)
    text = markdown(found)
    assert cells(text, "game") == [["game", "real steps", "seed 0", "seed 1", "seed 2", "mean over seeds", "random"]]
    assert cells(text, "MinAtar/Breakout-v1") == [
        ["MinAtar/Breakout-v1", "1,000", "4.00", "6.00", "-", "5.00 [4.00, 6.00]", "0.50"]
    ]
    assert "- MinAtar/Breakout-v12, unfinished: epoch 3" in text and "# 2 of 3 runs finished" in text
    assert "human" not in text and "IRIS" not in text and "over_games" not in found


def test_atari_stands_beside_people_and_published_systems():
    """Pong at 14.6 is human, at -3.05 half as good; Breakout at 30.5 is human."""
    runs = [result("ALE/Pong-v5", 0, 14.6, -20.0), result("ALE/Pong-v5", 1, -3.05, -20.4)]
    runs += [result("ALE/Breakout-v5", 0, 30.5, 1.0), result("ALE/Breakout-v5", 1, 30.5, 1.2)]
    runs += [result("ALE/Skiing-v5", 0, -9000.0, -17000.0)]  # not one of the 26
    found = compare(runs)
    text = markdown(found)
    returns, against = cells(text, "ALE/Pong-v5")[0], cells(text, "Pong")[0]
    assert returns[1:4] == ["1,000", "14.60", "-3.05"] and returns[5] == "-20.20"
    assert against == ["Pong", "0.75 [0.50, 1.00]", "5.78", "-20.70", "14.60", "14.60", "15.00", "20.36", "11.30", "19.86"]
    assert cells(text, "game")[1] == [
        "game", "human-normalized", "here", "random", "human", "IRIS", "delta-IRIS", "DIAMOND", "STORM", "Simulus"
    ]
    mine, = found["over_games"]["here"]
    assert mine["mean"]["value"] == pytest.approx((0.75 + 1) / 2) and mine["median"]["value"] == pytest.approx(0.875)
    assert mine["iqm"]["value"] == pytest.approx(1.0)  # 0.5 1 1 1 without the lowest and the highest
    assert found["over_games"]["games"] == ["Breakout", "Pong"]
    assert [row[1:3] for row in cells(text, "IRIS")] == [["2", "1.92 [1.72, 2.14]"], ["26", "1.05 [0.96, 1.13]"]]
    assert [row[1:3] for row in cells(text, "STORM")] == [["2", "0.70"], ["26", "1.27"]]
    assert cells(text, "ALE/Skiing-v5")[0][2] == "-9000.0" and not cells(text, "Skiing")
    for source in ("arXiv:2209.00588", "dqn_zoo", "published random"):
        assert source in text


def test_other_settings_have_rows_of_their_own():
    """Aggregates are over the games that every setting has, so that they compare."""
    runs = [
        result(f"ALE/{game}-v5", 0, value * layers, **{"backbone.layers": str(layers)})
        for layers in (1, 2)
        for game, value in (("Pong", 5.0), ("Boxing", 3.0), ("Breakout", 7.0))
    ]
    runs[-1] = runs[-1] | {"summary": None, "state": "failed"}
    found = compare(runs)
    text = markdown(found)
    assert found["swept"] == ["backbone.layers"] and found["over_games"]["games"] == ["Boxing", "Pong"]
    assert [row[1] for row in cells(text, "ALE/Pong-v5")] == ["1", "2"]
    assert [row[1:3] for row in cells(text, "here, 2 runs")] == [["1", "2"], ["2", "2"]]
    one, two = (entry["mean"]["value"] for entry in found["over_games"]["here"])
    assert one == pytest.approx((2.9 / 12 + 25.7 / 35.3) / 2) and two == pytest.approx((5.9 / 12 + 30.7 / 35.3) / 2)
