"""Published scores on Atari-100k, and human-normalized scores. atari100k.yaml holds the data with their sources."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tokenworld.scores.aggregate import over_games


@functools.cache
def atari100k() -> dict[str, Any]:
    """Return `scores`: game -> [random, human], and `systems`: name -> source and runs, or means and stated aggregates."""
    return yaml.safe_load(Path(__file__).with_name("atari100k.yaml").read_text(encoding="utf-8"))


def game_of(env_id: str) -> str | None:
    """Return the game of an id, ALE/Breakout-v5 -> Breakout; None unless it is one of the 26 Atari games."""
    suite, _, name = env_id.rpartition("/")
    game = name.rpartition("-v")[0]
    return game if suite == "ALE" and game in atari100k()["scores"] else None


def human_normalized_score(game: str, score: float) -> float:
    """Normalize a score: 0 is the published random player, 1 the published human."""
    random, human = atari100k()["scores"][game]
    return (score - random) / (human - random)


def mean_score(system: str, game: str) -> float | None:
    """Return the mean of a published system over its seeds; None if no score of the game is known."""
    record = atari100k()["systems"][system]
    if game in record.get("runs", {}):
        return sum(record["runs"][game]) / len(record["runs"][game])
    return record.get("means", {}).get(game)


def over_published_games(system: str, games: Sequence[str]) -> dict[str, dict[str, Any]] | None:
    """Return mean, median and iqm of the human-normalized scores of a system on these games, as `over_games` does.

    A system with unknown single runs has no interquartile mean and no interval. None if the score of a game is missing.
    """
    record, everything = atari100k()["systems"][system], set(games) == set(atari100k()["scores"])
    if "stated" in record and everything:
        return {name: {"value": record["stated"].get(name), "ci95": None} for name in ("mean", "median", "iqm")}
    if any(mean_score(system, game) is None for game in games):
        return None
    runs = record.get("runs") or {game: [mean] for game, mean in record["means"].items()}
    aggregate = over_games({game: [human_normalized_score(game, score) for score in runs[game]] for game in games})
    return aggregate if "runs" in record else aggregate | {"iqm": {"value": None, "ci95": None}}
