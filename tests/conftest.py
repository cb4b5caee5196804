"""What all tests share: a stricter world than users have, and the discovery of parts."""

import os

os.environ.setdefault("TOKENWORLD_DEBUG", "1")  # using a consumed state raises, here and in subprocesses
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:  # each worker has its share of the cores
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))

import importlib
import inspect
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tokenworld import origins
from tokenworld.action_space import of
from tokenworld.actions import ActionTable
from tokenworld.config import compose
from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, Shapes, Steps

ROOT = Path(__file__).resolve().parent.parent
# What code passes to a part beside its TINY: how the part is told from its file's helpers.
BY_CODE = {
    "tokenizers": ("frame_shape",),
    "backbones": (),
    "decoding": ("shapes", "action"),
    "policies": ("shapes",),
    "envs": ("num_envs",),
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_trusted(monkeypatch):
    """What one test trusts, the next does not."""
    monkeypatch.setattr(origins, "_trusted", set())


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A current folder with modules of the user's, on the path as a command line that names them puts it there."""
    import gymnasium
    import own_env

    for path in (ROOT / "tests" / "own").glob("*.py"):
        shutil.copy(path, tmp_path)
    for name, text in own_env.OTHERS.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for id, spec in list(gymnasium.registry.items()):
        if getattr(spec.entry_point, "__module__", None) in own_env.MODULES or id == "Nowhere-v0":
            del gymnasium.registry[id]
    for name in own_env.MODULES:
        sys.modules.pop(name, None)


# ------------------------------------------------------------------------------------------------------------ play


@pytest.fixture(scope="session")
def play_run(tmp_path_factory):
    """The folder of a run to play in; it is only read."""
    pytest.importorskip("minatar")
    from play_world import make_run

    return make_run(tmp_path_factory.mktemp("play") / "run")


@pytest.fixture(scope="session")
def mortal_run(play_run, tmp_path_factory):
    """The same, but its dreams end by themselves, most of them within ten steps; it is only read."""
    from play_world import shift_end

    return shift_end(Path(shutil.copytree(play_run, tmp_path_factory.mktemp("mortal") / "run")), 28)


@pytest.fixture(scope="session")
def dream(play_run):
    from play_world import make_dream

    return make_dream(play_run)


# ------------------------------------------------------------------------------------------------------------ discovery


@dataclass(frozen=True)
class Part:
    """A file of a part folder: its one public callable and the smallest keywords that it takes."""

    name: str
    make: object
    tiny: dict

    def __call__(self, **keywords):
        """Build it; keywords it does not have are the caller's mistake, what is not installed skips the test."""
        try:
            return self.make(**{**self.tiny, **keywords})
        except UserError as error:
            if "not installed" in str(error):
                pytest.skip(str(error))
            raise

    def has(self, keyword: str) -> bool:
        return keyword in inspect.signature(self.make).parameters


def discover(folder: str, root: Path = ROOT) -> list[Part]:
    """Every file of a part folder that ends in a TINY."""
    found = []
    where = root / "tokenizers" if folder == "tokenizers" else root / "tokenworld" / folder
    for path in sorted(where.glob("*.py")):
        if path.stem == "__init__":
            continue
        module = importlib.import_module(f"tokenworld.{folder}.{path.stem}")
        if hasattr(module, "TINY"):
            found.append(part_of(module, BY_CODE[folder]))
    return found


def part_of(module, by_code: tuple[str, ...]) -> Part:
    """The one public callable that `module` defines and that takes TINY's keywords and those passed by code."""
    wanted = {*by_code, *module.TINY}

    def fits(value) -> bool:
        if not callable(value) or getattr(value, "__module__", None) != module.__name__:
            return False
        keywords = inspect.signature(value).parameters.values()
        return wanted <= {k.name for k in keywords if k.kind is k.KEYWORD_ONLY}

    fitting = [value for name, value in vars(module).items() if not name.startswith("_") and fits(value)]
    assert len(fitting) == 1, (module.__name__, sorted(wanted), fitting)
    return Part(module.__name__.removeprefix("tokenworld."), fitting[0], module.TINY)


def each(folder: str):
    """`parametrize` arguments: one case per part of a folder."""
    return [pytest.param(part, id=part.name.split(".")[-1]) for part in discover(folder)]


def each_recipe() -> list:
    """`parametrize` arguments: all shipped recipes, those that only change another one among the slow tests."""
    texts = {name: (compose.recipe_dir() / f"{name}.yaml").read_text("utf-8") for name in compose.recipes()}
    changes = [name for name, text in texts.items() if "\ndefaults:" in text]
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in changes), id=name) for name in compose.recipes()]


# ------------------------------------------------------------------------------------------------------------- builders


def shapes(K: int = 3, V: int = 5, D: int = 16, A: int = 3, frame: tuple[int, int, int] = (2, 10, 8)) -> Shapes:
    return Shapes(frame, of(A), (1, K), K, V, 4, D)


def network(view: str, hidden: int = 16) -> dict:
    """The section of a policy's network: pixels, frame, codes, codes_h or h."""
    name = {"pixels": "PixelNetwork", "frame": "FrameNetwork", "codes": "CodesNetwork", "codes_h": "CodesAndHNetwork",
            "h": "HNetwork"}[view]
    return {"_target_": f"tokenworld.policies.networks.{name}", "hidden": hidden}


def rouse(module: torch.nn.Module, scale: float = 0.3) -> torch.nn.Module:
    """Move all parameters well away from their start, so that what depends on an input depends on it visibly."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)
    return module.eval()


def dynamics(decoding: Part, backbone: Part, K: int = 3, V: int = 5, A: int = 3, roused: bool = True, **keywords):
    """A backbone and a decoding that fit each other."""
    torch.manual_seed(1)
    body = backbone()
    head = decoding(shapes=shapes(K, V, body.D, A), action=ActionTable(actions=A, dim=body.D), **keywords)
    return (rouse(body), rouse(head)) if roused else (body, head)


def steps_of(B: int, T: int, A: int = 3, first: list[tuple[int, int]] = (), frame=(1, 1, 1), seed: int = 0) -> Steps:
    """Random steps with episodes that begin at the (row, t) of `first`; the row before one has no action."""
    g = torch.Generator().manual_seed(seed)
    begins = torch.zeros(B, T, dtype=torch.bool)
    for row, t in first:
        begins[row, t] = True
    acted = torch.ones(B, T, dtype=torch.bool)
    acted[:, :-1] = ~begins[:, 1:]
    action = torch.randint(A, (B, T), generator=g) * acted
    reward = torch.randint(-1, 2, (B, T), generator=g).float() * acted
    obs = torch.randint(256, (B, T, *frame), generator=g, dtype=torch.uint8)
    none = torch.zeros(B, T, dtype=torch.bool)
    return Steps(obs, action, reward, none, none, begins, acted, ~none)


def codes_of(B: int, T: int, K: int = 3, V: int = 5, seed: int = 0) -> Codes:
    return Codes(torch.randint(V, (B, T, K), generator=torch.Generator().manual_seed(seed)))


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 2e-5) -> bool:
    return torch.allclose(a, b, atol=atol, rtol=1e-4)
