"""What others report on Atari-100k, and scores relative to a person's: the data are in atari100k.yaml, with their sources."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tokenworld.scores.aggregate import over_games


@functools.cache
def atari100k() -> dict[str, Any]:
    """`scores`: game -> [random, human]; `systems`: name -> source and runs, or means and what is stated of all games."""
    return yaml.safe_load(Path(__file__).with_name("atari100k.yaml").read_text(encoding="utf-8"))


def game_of(env_id: str) -> str | None:
    """ALE/Breakout-v5 -> Breakout, if it is one of the 26 games; MinAtar's Breakout is another game."""
    suite, _, name = env_id.rpartition("/")
    game = name.rpartition("-v")[0]
    return game if suite == "ALE" and game in atari100k()["scores"] else None


def human_normalised(game: str, score: float) -> float:
    """0 is the published random player and 1 the published human."""
    random, human = atari100k()["scores"][game]
    return (score - random) / (human - random)


def mean_score(system: str, game: str) -> float | None:
    """A published system's mean over its seeds; None where no score of the game is known."""
    record = atari100k()["systems"][system]
    if game in record.get("runs", {}):
        return sum(record["runs"][game]) / len(record["runs"][game])
    return record.get("means", {}).get(game)


def over_published_games(system: str, games: Sequence[str]) -> dict[str, dict[str, Any]] | None:
    """mean, median and iqm of a system's human-normalised scores on these games, as `over_games` gives them.

    Of a system whose single runs are not known, there is no interquartile mean and no interval; None if a game is missing.
    """
    record, everything = atari100k()["systems"][system], set(games) == set(atari100k()["scores"])
    if "stated" in record and everything:
        return {name: {"value": record["stated"].get(name), "ci95": None} for name in ("mean", "median", "iqm")}
    if any(mean_score(system, game) is None for game in games):
        return None
    runs = record.get("runs") or {game: [mean] for game, mean in record["means"].items()}
    found = over_games({game: [human_normalised(game, score) for score in runs[game]] for game in games})
    return found if "runs" in record else found | {"iqm": {"value": None, "ci95": None}}
