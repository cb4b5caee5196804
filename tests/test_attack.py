"""Attacks on the whole product, a few of each kind: tests/attack/ has the tools, and runs of any number of them.

Commands are killed and their disk is failed at single calls, files that they read are damaged, trainings get SIGTERM.
"""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "attack"))

import crash_points  # noqa: E402
import disk  # noqa: E402
import kills  # noqa: E402
import mutations  # noqa: E402
import scaling  # noqa: E402
from server import Server, Signal  # noqa: E402

pytestmark = pytest.mark.skipif(bool(disk.missing()), reason=disk.missing() or "nothing is missing")
POINTS = {"train": 3, "resume": 1, "collect": 3, "evaluate": 2, "replace": 1, "export": 3, "dream": 2}
ERRORS = {"train": 2, "collect": 1, "evaluate": 1, "export": 1}
QUICK = [kind for kind in mutations.TARGETS if kind not in ("summary.json", "sweep.json")]  # a sweep takes minutes to make


@pytest.fixture(scope="module")
def server():
    with Server() as started:
        yield started


@pytest.fixture(scope="module")
def bench(server, tmp_path_factory):
    return crash_points.Bench(server, tmp_path_factory.mktemp("crashes"))


def attacked(bench, name: str, action: str, points: int) -> list[str]:
    scenario = crash_points.SCENARIOS[name]
    picked = crash_points.plans(bench.trace(scenario), action, points, seed=1)
    assert picked, f"{name} has no call to attack"
    faults = []
    for call, plan in picked:
        at = f"--only {name} --action {action} --at {call.number} ({call.kind})"
        faults += [f"{at}: {fault}" for fault in bench.attack(scenario, plan)]
    return faults


def test_the_disk_counts_kills_and_fails(server, tmp_path):
    """What the attacks rely on, tried with plain Python: three calls, of which the second is attacked."""
    code = "with open('file', 'wb', buffering=0) as file: print(file.write(b'12345678'))\nprint('ended')"

    def tried(at: int, action: str, error: int = 0, once: bool = False):
        (tmp_path / "file").unlink(missing_ok=True)
        log = str(tmp_path.with_suffix(".log"))
        done = server.run(["-c", code], tmp_path, plan=disk.Plan(str(tmp_path), at, action, error, once, log))
        return done, (tmp_path / "file").read_bytes() if (tmp_path / "file").exists() else None

    done, content = tried(0, "count")
    assert (done.code, done.stdout.split(), content) == (0, ["8", "ended"], b"12345678")
    assert [call.kind for call in disk.read_log(tmp_path.with_suffix(".log"))] == ["create file", "write file"]
    done, content = tried(2, "kill")
    assert (done.code, content) == (-9, b"")
    done, content = tried(2, "half")
    assert (done.code, content) == (-9, b"1234")
    done, content = tried(2, "fail", disk.ERRORS["EIO"])
    assert done.code == 1 and "Input/output error" in done.stderr and content == b""
    done, content = tried(1, "fail", disk.ERRORS["EROFS"])
    assert done.code == 1 and "Read-only" in done.stderr and content is None
    done, content = tried(2, "fail", disk.ERRORS["ENOSPC"])
    assert (done.code, done.stdout.split(), content) == (0, ["4", "ended"], b"1234")  # a full disk takes what it can


@pytest.mark.parametrize("name", POINTS)
def test_a_killed_command_goes_on(bench, name):
    """After a kill before a write, or in the middle of one, the same command ends as if nothing had happened."""
    faults = attacked(bench, name, "kill", POINTS[name]) + attacked(bench, name, "half", POINTS[name])
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("error", disk.ERRORS)
def test_a_disk_that_fails_is_one_sentence(bench, error):
    """Whatever the disk says, a command ends with exit code 2 and one sentence, and can be run again."""
    faults = [fault for name, points in ERRORS.items() for fault in attacked(bench, name, error, points)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("kind", QUICK)
def test_a_damaged_file_is_read_or_refused(world, kind):
    """In one sentence, without a traceback, in a bounded time and memory; and nothing is lost by a refusal."""
    records = [world.attack(11, index, [kind]) for index in range(4 if kind == "metrics.jsonl" else 9)]
    failed = [record for record in records if record["outcome"] not in ("read", "refused") and not record["asked"]]
    assert not failed, "\n".join(f"{each['index']} {each['what']} | {each['command']}: {each['outcome']}" for each in failed)


@pytest.fixture(scope="module")
def world(server, tmp_path_factory):
    return mutations.World(server, tmp_path_factory.mktemp("damage") / "world", has_sweep=False)


def test_damaged_episodes_are_read_in_linear_time(server, tmp_path):
    faults = scaling.faults(server, tmp_path, limit=6, largest=2**18)
    assert not faults, "\n".join(faults)


def test_a_training_killed_at_any_time_goes_on(bench):
    """Not at a write, but by the clock."""
    rng, faults = random.Random(3), []
    for _ in range(2):
        outcome, found = bench.kill(crash_points.SCENARIOS["train"], Signal(rng.random() * 0.8, watch="run"))
        faults += found
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("phase", ["dynamics", "evaluate"])
def test_sigterm_ends_a_training_that_can_go_on(server, tmp_path, phase):
    _, faults = kills.terminate(server, tmp_path, phase, after=0.2)
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.parametrize("name", crash_points.SCENARIOS)
def test_a_command_killed_anywhere_goes_on(bench, name):
    faults = attacked(bench, name, "kill", 60) + attacked(bench, name, "half", 60)
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.parametrize("error", disk.ERRORS)
@pytest.mark.parametrize("name", crash_points.SCENARIOS)
def test_a_disk_that_fails_anywhere_is_one_sentence(bench, name, error):
    faults = attacked(bench, name, error, 20)
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.parametrize("phase", kills.PHASES)
def test_sigterm_ends_a_training_in_each_phase(server, tmp_path, phase):
    _, faults = kills.terminate(server, tmp_path, phase)
    assert not faults, "\n".join(faults)
