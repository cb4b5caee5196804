"""Machine code and tokens that are kept between two starts: only what is this user's alone is trusted, nothing is needed."""

import ctypes
import os
import shutil
import subprocess
import sys

import pytest

from tokenworld import private
from tokenworld.kernels import native

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="owners and modes as Linux has them")
COMPILER = shutil.which("c++") or shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no compiler")
PLANTED = """
#include <stdio.h>
__attribute__((constructor)) static void run() { FILE *file = fopen("%s", "w"); fclose(file); }
"""


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of a user's cache, empty; what was loaded before is loaded again after."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TOKENWORLD_NATIVE", raising=False)
    native.load_library.cache_clear()
    yield tmp_path / "cache" / "tokenworld"
    native.load_library.cache_clear()


@pytest.fixture
def quick(compiled_once, monkeypatch):
    """Compiling takes a second or more: once for all tests."""

    def copied(compiler, path):
        if path is not None:
            shutil.copy2(compiled_once, path)
        return ctypes.CDLL(str(compiled_once))

    monkeypatch.setattr(native, "_compile", copied)


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory):
    path = tmp_path_factory.mktemp("library") / "native.so"
    native._compile(os.environ.get("CXX") or COMPILER, path)
    return path


def kept(cache):
    return cache / f"native-{native._fingerprint(os.environ.get('CXX') or COMPILER)}.so"


def plant(path, marker):
    """A library that writes `marker` when it is loaded."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    source = marker.with_suffix(".c")
    source.write_text(PLANTED % marker)
    subprocess.run([COMPILER, "-x", "c", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    path.chmod(0o700)


@needs_compiler
def test_the_library_is_kept_and_loaded_again(cache, monkeypatch):
    assert native.load_library() is not None
    assert cache.stat().st_mode & 0o777 == 0o700 and kept(cache).stat().st_mode & 0o777 == 0o700
    assert [path.name for path in cache.iterdir()] == [kept(cache).name]
    native.load_library.cache_clear()
    monkeypatch.setattr(native, "_compile", lambda *_: pytest.fail("it was there"))
    assert native.load_library() is not None


@needs_compiler
@pytest.mark.parametrize("how", ["file of another", "folder of another", "file for all", "file for a group", "folder for all",
                                 "folder for a group", "link"])  # fmt: skip
def test_a_library_that_another_user_could_have_written_is_not_loaded(cache, quick, how, tmp_path):
    path, marker = kept(cache), tmp_path / "marker"
    plant(path, marker)
    modes = {"file for all": 0o777, "file for a group": 0o770, "folder for all": 0o777, "folder for a group": 0o770}
    if how in modes:
        (path if how.startswith("file") else cache).chmod(modes[how])
    elif how == "link":
        path.rename(tmp_path / "elsewhere.so")
        path.symlink_to(tmp_path / "elsewhere.so")
    elif os.geteuid() != 0:
        pytest.skip("only root gives files to others")
    else:
        os.chown(path if how.startswith("file") else cache, 54321, 54321)
    assert native.load_library() is not None and native.load_library().attend_float
    assert not marker.exists()


@needs_compiler
def test_a_planted_library_would_run(cache, tmp_path):
    """What the test above is for: the user's own file is loaded, and loading runs it."""
    plant(kept(cache), tmp_path / "marker")
    native.load_library()
    assert (tmp_path / "marker").exists()


@needs_compiler
def test_a_damaged_library_is_compiled_again(cache, quick):
    kept(cache).parent.mkdir(parents=True, mode=0o700)
    kept(cache).write_bytes(b"no library")
    kept(cache).chmod(0o700)
    assert native.load_library().attend_float and kept(cache).read_bytes()[:4] == b"\x7fELF"


@needs_compiler
def test_where_no_cache_can_be_kept_it_is_compiled_each_time(cache, quick, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert native.load_library().attend_float


@pytest.mark.parametrize("variable, default", [("XDG_CACHE_HOME", ".cache"), ("XDG_STATE_HOME", ".local/state")])
def test_a_relative_folder_is_ignored(variable, default, monkeypatch, tmp_path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("relative", ".", "", "~/x"):
        monkeypatch.setenv(variable, value)
        assert private.file(variable, default, "x") == (tmp_path / "home" / default / "tokenworld" / "x").resolve()
    assert not list((tmp_path / "here").iterdir())
    for home in ("", "relative"):
        monkeypatch.setenv("HOME", home)
        assert private.file(variable, default, "x") is None
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root becomes another user")
@pytest.mark.parametrize("code", [
    "from tokenworld.kernels import native; native.load_library()",
    "from tokenworld.play import server; assert len(server.remembered_token()) == 43",
    "from tokenworld import private; assert private.file('XDG_CACHE_HOME', '.cache', 'x') is None",
])  # fmt: skip
def test_a_user_without_name_and_home_needs_neither(code):
    names = ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME")
    code = f"import os, torch, tokenworld.play.server, subprocess; os.setgid(54321); os.setuid(54321); {code}"
    env = {key: value for key, value in os.environ.items() if key not in names}
    found = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
