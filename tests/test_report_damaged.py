"""Reports that were cut, changed or made up: one sentence, or the same numbers, and never a traceback or all of the memory."""

import io
import json
import random
import resource
import shutil
import zipfile

import numpy as np
import pytest

from tokenworld.cli import main as cli
from tokenworld.errors import UserError
from tokenworld.evaluation.records import Metric
from tokenworld.evaluation.report import compare, files

MUTATIONS = 1000
NUMBERS = [0, -1, 1.5, -3.7, 1e308, -1e308, 10**400, 2**63]
WRONG = [None, True, False, *NUMBERS, "", "x", "\n", [], [None], [1, 2, 3], {}, {"a": 1}, "9" * 999]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A report with rows that are paired, rows that are not, and findings."""
    rng, out = np.random.default_rng(0), tmp_path_factory.mktemp("reports")
    clusters, states = np.arange(200) // 10, np.arange(200, dtype=np.uint64) + 2**60

    def metric(id, direction, tier="A", **more):
        values = rng.normal(2, 1, 200)
        return Metric(id, f"Number {id}", float(values.mean()), "bits", direction, (1.5, 2.5), n_clusters=20, n_samples=200,
                      tier=tier, values=values, clusters=clusters, **more)  # fmt: skip

    for name in ("a", "b"):
        metrics = [metric("code_length.bits", "lower"), metric("calibration.gap", "zero"),
                   metric("next_frame.kl", "lower", "B", states=states[::-1])]
        metrics += [metric("policies.value_error", "lower", "C"), Metric("M5.x", "x", None, status="skipped", reason="no time")]
        metrics += [Metric("tokenizer.psnr", "Reconstruction", 30.0, "dB", "higher", (29.0, 31.0), n_clusters=20,
                           n_samples=200)]
        found = [{"code": "BAD", "severity": "fault", "evidence": ["code_length.bits"], "text": "It is bad.",
                  "established": True}]
        provenance = {"env_id": "G", "weights": {"tokenizer": "t", "dynamics": "d"}, "parts": "p", "preprocessing": {"a": [1]}}
        files.write(files.Report(metrics, found, "Bad.", provenance, {"A": "data"}, state=states), out / name)
    return out


@pytest.fixture
def pair(folder, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(folder / name, tmp_path / name)
    return tmp_path


def compared(pair) -> str | None:
    """None if they were compared, or the sentence why not."""
    try:
        result = compare.compare(pair / "a", pair / "b")
        compare.exit_code(result.rows)
        compare.table(*result)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 1000, error
        return str(error)
    return None


def mutated(value, rng: random.Random):
    """One value anywhere below is of another type, sign or size, or is missing, or twice."""
    paths = []

    def visit(value, path):
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, each in inner:
            paths.append((*path, key))
            visit(each, (*path, key))

    visit(value, ())
    *path, key = rng.choice(paths)
    for step in path:
        value = value[step]
    how = rng.random()
    if how < 0.15:
        del value[key]
    elif how < 0.2 and isinstance(value, list):
        value.append(value[key])
    elif how < 0.3 and isinstance(value[key], (int, float)):
        value[key] = -value[key] * 10.0 ** rng.randint(-300, 300)
    else:
        value[key] = rng.choice(WRONG)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bits flipped, cut, a range swapped or doubled, or empty."""
    content, at, n = bytearray(content), rng.randrange(len(content)), rng.randint(1, 64)
    how = rng.randrange(6)
    if how == 0:
        return bytes(content[:at])
    if how == 1:
        content[at : at + n] = rng.randbytes(n)
    elif how == 2:
        content[at:at] = content[at : at + n]
    elif how == 3:
        del content[at : at + n]
    elif how == 4:
        return b"" if rng.random() < 0.1 else bytes(content) + rng.randbytes(n)
    else:
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


@pytest.mark.filterwarnings("error")
def test_changed_values_of_a_report(pair):
    rng, text = random.Random(0), (pair / "a" / "report.json").read_text()
    refused = 0
    for _ in range(MUTATIONS):
        told = json.loads(text)
        mutated(told, rng)
        (pair / "a" / "report.json").write_text(json.dumps(told))
        refused += compared(pair) is not None
    assert 0.2 * MUTATIONS < refused < MUTATIONS


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("name", ["report.json", "states.npz"])
def test_damaged_bytes(pair, name):
    rng, content = random.Random(1), (pair / "a" / name).read_bytes()
    for _ in range(MUTATIONS):
        (pair / "a" / name).write_bytes(damaged(content, rng))
        compared(pair)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_arrays_that_are_damaged_inside_a_whole_archive(pair):
    """The checksums are right again, so that what the arrays say is looked at."""
    rng, path = random.Random(2), pair / "a" / "states.npz"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for _ in range(MUTATIONS):
        name = rng.choice(list(members))
        content = damaged(members[name], rng)
        if rng.random() < 0.3:  # the header alone
            content = damaged(members[name][:128], rng) + members[name][128:]
        with zipfile.ZipFile(path, "w") as archive:
            for other, each in members.items():
                if other != name or rng.random() > 0.1:
                    archive.writestr(other, content if other == name else each)
        compared(pair)


def npy(header: str) -> bytes:
    text = header.encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


HUGE = {
    "rows": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }\n"),
    "dimensions": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 3), }\n") + bytes(48),
    "objects": npy("{'descr': '|O', 'fortran_order': False, 'shape': (2,), }\n") + b"cos\nsystem\n(S'false'\ntR.",
    "a record": npy("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (2,), }\n") + bytes(16),
    "negative": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1,), }\n"),
    "a longer type": npy("{'descr': '<f99999999', 'fortran_order': False, 'shape': (1,), }\n"),
    "words": npy("{'descr': '<U4', 'fortran_order': False, 'shape': (1,), }\n") + bytes(16),
    "nested": npy("(" * 900),
    "code": npy("__import__('os').system('false')"),
    "not a number": io.BytesIO(b"").getvalue() + npy("{'descr': '<f8', 'fortran_order': False, 'shape': (200,), }\n")
    + np.full(200, np.nan).tobytes(),
    "infinity": npy("{'descr': '<f8', 'fortran_order': False, 'shape': (200,), }\n") + np.full(200, np.inf).tobytes(),
}  # fmt: skip


@pytest.mark.parametrize("what", HUGE)
def test_made_up_arrays_are_refused(pair, what):
    path = pair / "a" / "states.npz"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, HUGE[what] if name == "code_length.bits.npy" else content)
    assert "evaluate again" in compared(pair)


def test_an_archive_that_would_fill_the_memory_is_refused(pair):
    """A gigabyte of zeros in a megabyte, and a thousand arrays of the largest size that one may have."""
    path, before = pair / "a" / "states.npz", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("code_length.bits.npy", "w", force_zip64=True) as file:
            file.write(npy("{'descr': '<f8', 'fortran_order': False, 'shape': (134217728,), }\n"))
            for _ in range(1024):
                file.write(bytes(1 << 20))
    assert path.stat().st_size < 2 << 20
    assert "expand to more" in compared(pair)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3000):
            archive.writestr(f"M{i}.npy", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (0,), }\n"))
    assert "expand to more" in compared(pair)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # kilobytes


def test_an_array_may_be_compressed_well(pair):
    """A metric that is the same in every state, of a long evaluation."""
    n = 100_000
    arrays = dict(values=np.zeros(n), clusters=np.arange(n) // 5000)
    metric = Metric("action_sensitivity.blind_states", "x", 0.0, "", "lower", (0.0, 0.0), n_clusters=20, n_samples=n, **arrays)
    files.write(files.Report([metric], [], "", {"env_id": "G"}, {}, state=np.arange(n, dtype=np.uint64)), pair / "a")
    assert len(files.read(pair / "a")[1]["action_sensitivity.blind_states"]) == n


def test_numbers_that_are_not_finite_are_never_written(tmp_path):
    values = np.array([1.0, np.nan, 2.0])
    numbers = [(np.nan, (0, 1)), (np.inf, None), (1.0, (np.nan, 2.0)), (1.0, (-np.inf, np.inf))]
    metrics = [
        Metric(f"M1.{i}", "x", value, ci=ci, floor=value, ceiling=np.inf, values=values, clusters=np.arange(3))
        for i, (value, ci) in enumerate(numbers)
    ]
    provenance = {"env_id": "G", "seed": np.float64("nan"), "frames": np.array([np.inf, 1])}
    files.write(files.Report(metrics, [], "", provenance, {}, state=np.arange(3, dtype=np.uint64)), tmp_path)
    told, rows = files.read(tmp_path)
    assert "NaN" not in (tmp_path / "report.json").read_text() and "Infinity" not in (tmp_path / "report.json").read_text()
    assert [entry["status"] for entry in told["metrics"]] == ["invalid", "invalid", "ok", "ok"]
    assert set(rows) == {"state"}


def test_an_export_goes_without_figures_that_cannot_be_read(tmp_path, capsys):
    run = tmp_path / "run"
    assert cli.main(["train", "overlay=debug", "device=cpu", "train.collect.held_out=2", f"out={run}"]) == 0
    text = (run / "evaluation" / "report.json").read_text()
    for name, content in (("cut", text[:200]), ("a list", "[]"), ("deep", "[" * 5000), ("bytes", "\udcff"), ("good", text)):
        (run / "evaluation" / "report.json").write_bytes(content.encode("utf-8", "surrogateescape"))
        capsys.readouterr()
        assert cli.main(["export", str(run), f"out={tmp_path / name}"]) == 0
        said, figures = capsys.readouterr().err, json.loads((tmp_path / name / "config.json").read_text())["figures"]
        assert ("verdict" in figures) == (name == "good") and ("without these figures" in said) == (name != "good")
