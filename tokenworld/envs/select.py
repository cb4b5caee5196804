"""Which maker an environment's id gets. Imports nothing: the command line asks before anything is loaded."""

from __future__ import annotations

MAKERS = {
    "ALE/": "tokenworld.envs.atari.make",
    "MinAtar/": "tokenworld.envs.minatar.make",
    "KnownWorld-": "tokenworld.envs.known_world.make",
}
ANY = "tokenworld.envs.gym.make"


def maker_of(id: str) -> str:
    """Return the dotted name of the maker for `id`: the one of its family, else the one for any Gymnasium environment."""
    return next((maker for prefix, maker in MAKERS.items() if id.startswith(prefix)), ANY)
