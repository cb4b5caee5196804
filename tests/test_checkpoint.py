"""A checkpoint is whole or it is refused by name; whatever the moment of a kill, one complete copy is found."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tokenworld.errors import UserError
from tokenworld.storage import checkpoint


def net(value: float) -> nn.Module:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    nn.init.constant_(module[0].weight, value)
    return module


def stored(dir) -> float:
    return checkpoint.load(dir)[0]["net"]["0.weight"][0, 0].item()


def test_everything_comes_back_equal(tmp_path):
    module = net(1.5)
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.1)
    module(torch.randn(8, 3)).sum().backward()
    optimiser.step()
    numbers = np.random.default_rng(7)
    numbers.random(3)
    state = {"optimiser": optimiser.state_dict(), "epoch": 3, "nested": [{"a": None}]}
    state["numpy"] = numbers.bit_generator.state
    plain = {"x": torch.arange(6).view(2, 3).T, "b": torch.tensor(True)}
    checkpoint.save(tmp_path / "c", {"net": module, "plain": plain}, state)

    weights, back = checkpoint.load(tmp_path / "c")
    assert all(torch.equal(weights["net"][key], value) for key, value in module.state_dict().items())
    assert weights["net"].keys() == module.state_dict().keys()
    assert torch.equal(weights["plain"]["x"], torch.arange(6).view(2, 3).T) and weights["plain"]["b"]
    assert back["epoch"] == 3 and back["nested"] == [{"a": None}]
    assert back["numpy"] == numbers.bit_generator.state, "128-bit integers"
    again = torch.optim.AdamW(net(0.0).parameters(), lr=0.5)
    again.load_state_dict(back["optimiser"])
    for key, value in optimiser.state_dict()["state"][0].items():
        assert torch.equal(again.state_dict()["state"][0][key], value)


def test_tied_weights_and_empty_modules(tmp_path):
    tied = nn.ModuleList([nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)])
    tied[1].weight = tied[0].weight
    checkpoint.save(tmp_path / "c", {"tied": tied, "empty": nn.Identity()}, {})
    weights, _ = checkpoint.load(tmp_path / "c")
    assert torch.equal(weights["tied"]["0.weight"], weights["tied"]["1.weight"]) and weights["empty"] == {}


def test_random_generators_go_on_where_they_were(tmp_path):
    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item(), random.gauss(0, 1)

    draw()
    checkpoint.save(tmp_path / "c", {}, {"rng": checkpoint.rng_state()})
    first = [draw() for _ in range(3)]
    checkpoint.set_rng_state(checkpoint.load(tmp_path / "c")[1]["rng"])
    assert [draw() for _ in range(3)] == first


def test_a_second_save_replaces_the_first_and_leaves_nothing_else(tmp_path):
    for value in (1.0, 2.0):
        checkpoint.save(tmp_path / "c", {"net": net(value)}, {})
    assert stored(tmp_path / "c") == 2.0 and os.listdir(tmp_path) == ["c"]


@pytest.mark.parametrize("name", ["net.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_file_is_named(tmp_path, name, damage):
    checkpoint.save(tmp_path / "c", {"net": net(1.0)}, {"epoch": 1})
    path = tmp_path / "c" / name
    content = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 128
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises(UserError, match=name):
        checkpoint.load(tmp_path / "c")


def test_no_checkpoint_and_another_format(tmp_path):
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoint.load(tmp_path / "c")
    checkpoint.save(tmp_path / "c", {}, {})
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        checkpoint.load(tmp_path / "c")
    outside = {"../x": manifest["files"]["state.pt"]}
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest | {"files": outside}))
    with pytest.raises(UserError, match="outside"):
        checkpoint.load(tmp_path / "c")


class Payload:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_file_that_would_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoint, "FORMAT", 1)
    checkpoint.save(tmp_path / "c", {}, {"payload": Payload()})  # an attacker's manifest has the right checksum
    with pytest.raises(UserError, match="state.pt cannot be read"):
        checkpoint.load(tmp_path / "c")
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "c", {"net": net(1.0)}, {})

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left.*previous checkpoint is intact"):
            checkpoint.save(tmp_path / "c", {"net": net(2.0)}, {})
    assert stored(tmp_path / "c") == 1.0 and os.listdir(tmp_path) == ["c"]


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours runs after it."""


def file_operations(monkeypatch, kill_at: int) -> list[str]:
    """Die before the file operation number `kill_at`; the list collects those that happened."""
    done: list[str] = []

    def counted(owner, name):
        original = getattr(owner, name)

        def operation(*args, **kwargs):
            if len(done) == kill_at:
                if name == "rmtree":  # it dies half way: some files are gone, the folder is not
                    for path in sorted(args[0].glob("*"))[:1]:
                        path.unlink()
                raise Killed
            done.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, operation)

    counted(os, "fsync")
    counted(Path, "rename")
    counted(Path, "mkdir")
    counted(checkpoint.shutil, "rmtree")
    return done


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "c", {"net": net(1.0)}, {})
    shutil.copytree(tmp_path / "c", tmp_path / "first")
    found = []
    for kill_at in range(100):
        for name in ("c", "c.new", "c.old"):
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        shutil.copytree(tmp_path / "first", tmp_path / "c")
        with monkeypatch.context() as patch:
            file_operations(patch, kill_at)
            try:
                checkpoint.save(tmp_path / "c", {"net": net(2.0)}, {})
                finished = True
            except Killed:
                finished = False
        assert checkpoint.exists(tmp_path / "c")
        found.append(stored(tmp_path / "c"))
        if finished:
            break
        # the process that resumes saves next, and is killed at every moment too
        for kill_again in (0, 2, 4, 6, 8, 10):
            shutil.rmtree(tmp_path / "again", ignore_errors=True)
            (tmp_path / "again").mkdir()
            for name in ("c", "c.new", "c.old"):
                if (tmp_path / name).exists():
                    shutil.copytree(tmp_path / name, tmp_path / "again" / name)
            with monkeypatch.context() as patch:
                file_operations(patch, kill_again)
                try:
                    checkpoint.save(tmp_path / "again" / "c", {"net": net(3.0)}, {})
                except Killed:
                    pass
            assert stored(tmp_path / "again" / "c") in (found[-1], 3.0)
    assert finished and len(found) > 8
    assert found == sorted(found) and set(found) == {1.0, 2.0}, "first the old one, later the new one"


def test_a_real_sigkill_while_saving(tmp_path):
    code = (
        "import sys, torch; from tokenworld.storage import checkpoint\n"
        "for i in range(10**6):\n"
        "    checkpoint.save(sys.argv[1], {'net': {'x': torch.full((20000,), float(i))}}, {'i': i})\n"
        "    print(i, flush=True)\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "c")], stdout=subprocess.PIPE, text=True)
    for _ in range(20):
        worker.stdout.readline()
    time.sleep(random.random() * 0.02)
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    weights, state = checkpoint.load(tmp_path / "c")
    assert state["i"] >= 19 and (weights["net"]["x"] == state["i"]).all()


# ------------------------------------------------------------------------------------------- kills, disks and other processes


def test_a_kill_while_the_first_manifest_is_written_leaves_no_checkpoint(tmp_path):
    new = tmp_path / "c.new"
    checkpoint.save(new, {"net": net(1.0)}, {})
    content = (new / "manifest.json").read_bytes()
    for cut in (0, 1, len(content) // 2, len(content) - 2):
        (new / "manifest.json").write_bytes(content[:cut])
        assert not checkpoint.exists(tmp_path / "c")
        with pytest.raises(UserError, match="no checkpoint"):
            checkpoint.load(tmp_path / "c")
    (new / "manifest.json").write_bytes(content)
    (new / "state.pt").write_bytes(b"half")
    assert not checkpoint.exists(tmp_path / "c")
    checkpoint.save(tmp_path / "c", {"net": net(2.0)}, {})
    assert stored(tmp_path / "c") == 2.0 and os.listdir(tmp_path) == ["c"]


def test_a_partial_manifest_beside_the_old_checkpoint_does_not_hide_it(tmp_path):
    """Killed between the renames, and the new one damaged since: the old one is complete."""
    checkpoint.save(tmp_path / "c.old", {"net": net(1.0)}, {})
    checkpoint.save(tmp_path / "c.new", {"net": net(2.0)}, {})
    path = tmp_path / "c.new" / "manifest.json"
    path.write_bytes(path.read_bytes()[:40])
    assert checkpoint.exists(tmp_path / "c") and stored(tmp_path / "c") == 1.0


@pytest.mark.parametrize(
    "kept, value", [(("old",), 1.0), (("new", "old"), 2.0), (("new",), 2.0), (("", "old"), 3.0), (("", "new"), 3.0)]
)
def test_what_a_kill_left_is_settled(tmp_path, kept, value):
    for name, number in (("old", 1.0), ("new", 2.0), ("", 3.0)):
        if name in kept:
            checkpoint.save(tmp_path / ("c." + name).rstrip("."), {"net": net(number)}, {})
    assert stored(tmp_path / "c") == value, "a reader changes nothing"
    checkpoint.settle(tmp_path / "c")
    assert stored(tmp_path / "c") == value and os.listdir(tmp_path) == ["c"]


def test_a_checkpoint_of_a_later_version_is_not_taken_for_a_leftover(tmp_path):
    checkpoint.save(tmp_path / "c.new", {}, {})
    (tmp_path / "c.new" / "manifest.json").write_text('{"format": 2, "other": []}')
    assert checkpoint.exists(tmp_path / "c")
    with pytest.raises(UserError, match="format 2, this version reads 1"):
        checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES])
@pytest.mark.parametrize("owner, name", [(os, "fsync"), (Path, "write_bytes"), (Path, "rename")])
@pytest.mark.parametrize("nth", [0, 1, 2])
def test_a_disk_that_refuses_is_one_sentence(tmp_path, monkeypatch, number, owner, name, nth):
    checkpoint.save(tmp_path / "c", {"net": net(1.0)}, {})
    calls, original = [], getattr(owner, name)

    def refuses(*args):
        calls.append(args)
        if len(calls) == nth + 1:
            raise OSError(number, os.strerror(number))
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, refuses)
        with pytest.raises(UserError, match=f"{os.strerror(number)}.*; the previous checkpoint is intact") as caught:
            checkpoint.save(tmp_path / "c", {"net": net(2.0)}, {})
    assert "\n" not in str(caught.value)
    assert stored(tmp_path / "c") in (1.0, 2.0) and os.listdir(tmp_path) == ["c"]
    checkpoint.save(tmp_path / "c", {"net": net(3.0)}, {})
    assert stored(tmp_path / "c") == 3.0


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["files"]["net.safetensors"].update(bytes=-1),
        lambda m: m["files"]["net.safetensors"].update(bytes="10"),
        lambda m: m["files"]["net.safetensors"].update(bytes=1.5),
        lambda m: m["files"]["net.safetensors"].pop("sha256"),
        lambda m: m["files"].update(other=None),
        lambda m: m["files"].pop("state.pt"),
        lambda m: m.update(files=[]),
        lambda m: m.update(files=None),
        lambda m: m.update(format="1"),
        lambda m: m.pop("format"),
    ],
)
def test_manifests_of_another_form(tmp_path, change):
    checkpoint.save(tmp_path / "c", {"net": net(1.0)}, {})
    path = tmp_path / "c" / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="manifest.json") as caught:
        checkpoint.load(tmp_path / "c")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_is_read_while_another_process_replaces_it(tmp_path):
    code = (
        "import sys, torch; from tokenworld.storage import checkpoint\n"
        "for i in range(10**6):\n"
        "    checkpoint.save(sys.argv[1], {'net': {'x': torch.full((8,), float(i))}}, {'i': i})\n"
        "    print(i, flush=True)\n"
    )
    worker = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "c")], stdout=subprocess.PIPE, text=True)
    try:
        worker.stdout.readline()
        found = []
        end = time.monotonic() + 60
        while len(found) < 2000 or len(set(found)) <= 20 and time.monotonic() < end:
            weights, state = checkpoint.load(tmp_path / "c")
            assert (weights["net"]["x"] == state["i"]).all()
            found.append(state["i"])
    finally:
        worker.kill()
        worker.wait()
    assert found == sorted(found) and len(set(found)) > 20


def test_a_damaged_checkpoint_is_not_read_again_and_again(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "c", {"net": net(1.0)}, {})
    path = tmp_path / "c" / "net.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    monkeypatch.setattr(checkpoint.time, "sleep", lambda seconds: pytest.fail("waited for nobody"))
    with pytest.raises(UserError, match="corrupt"):
        checkpoint.load(tmp_path / "c")
