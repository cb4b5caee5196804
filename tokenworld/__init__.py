"""tokenworld: world models made of tokens. `from tokenworld import WorldModel` is the place to start."""

import sys
from importlib import import_module
from pathlib import Path

from tokenworld import threads

__version__ = "0.1.0"

# In a source checkout the tokenizers and the recipes are next to this package (`tokenizers/`, `configs/`), not inside it.
_root = Path(__file__).resolve().parent.parent
if (_root / "setup.cfg").is_file() and (_root / "tokenizers" / "vqvae.py").is_file():
    __path__.append(str(_root))

threads.wait_briefly()

# Imported on first use, so that `import tokenworld` and `tokenworld --help` stay fast.
_public = {
    "Agent": "tokenworld.agent",
    "DreamEnv": "tokenworld.dream_env",
    "WorldModel": "tokenworld.world_model",
    "imagine": "tokenworld.imagination",
    "UserError": "tokenworld.errors",
}
__all__ = sorted(_public)


def __getattr__(name: str):
    if name not in _public:
        raise AttributeError(f"module 'tokenworld' has no attribute {name!r}")
    return getattr(import_module(_public[name]), name)


def register() -> None:
    """Make "tokenworld/Dream-v0" known to Gymnasium."""
    from gymnasium.envs.registration import register, registry

    if "tokenworld/Dream-v0" not in registry:
        register("tokenworld/Dream-v0", entry_point="tokenworld.dream_env:make")


if "gymnasium" in sys.modules:  # else `tokenworld --help` would wait for its import; Agent and DreamEnv register, too
    register()
