"""Compare the runs of a sweep with each other, with random play and, on Atari, with people and published systems.

`compare` returns plain data (results.json); `markdown` turns the data into tables (results.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenworld.scores.aggregate import over_games, over_seeds
from tokenworld.scores.published import atari100k, game_of, human_normalized_score, mean_score, over_published_games

STATISTICS = ("mean", "median", "iqm")


def compare(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the data of all tables.

    Runs that differ in their seed only are one row. `swept` are the other settings that differ, except the game.

    Args:
        runs: each {"name", "env_id", "seed", "settings", "state", "summary" or None, "last_line"}.
    """
    keys = dict.fromkeys(key for run in runs for key in run["settings"] if key not in ("seed", "env.id"))
    swept = [key for key in keys if len({run["settings"].get(key) for run in runs}) > 1]
    rows: dict[tuple, list[dict]] = {}
    for run in runs:
        rows.setdefault((run["env_id"], *(run["settings"].get(key) for key in swept)), []).append(run)
    games = [
        {"env_id": env_id, "settings": dict(zip(swept, values, strict=True)), **_game(env_id, members)}
        for (env_id, *values), members in rows.items()
    ]
    return {
        "runs": [{key: value for key, value in run.items() if key != "summary"} for run in runs],
        "swept": swept,
        "games": games,
        **_atari(games),
    }


def _game(env_id: str, runs: Sequence[dict]) -> dict[str, Any]:
    """Return one row: one game, one setting, several seeds. A run without a policy, or an unfinished run, has no return."""
    ended = {run["seed"]: run["summary"] for run in runs if run["summary"]}
    measured = {seed: summary for seed, summary in ended.items() if summary["eval"]["return_mean"] is not None}
    returns = {seed: summary["eval"]["return_mean"] for seed, summary in measured.items()}
    row: dict[str, Any] = {"seeds": {run["seed"]: returns.get(run["seed"]) for run in runs}, "return": None, "random": None}
    row |= {"env_steps": max((summary["env_steps"] for summary in measured.values()), default=None)}
    if returns:
        row["return"] = over_seeds(list(returns.values()))
        row["random"] = sum(summary["eval"]["random_return_mean"] for summary in measured.values()) / len(measured)
    game = game_of(env_id)
    if game is not None:
        random, human = atari100k()["scores"][game]
        scores = [human_normalized_score(game, value) for value in returns.values()]
        row |= {"atari": game, "human_normalised": over_seeds(scores) if scores else None, "normalised_runs": scores}
        systems = {system: mean_score(system, game) for system in atari100k()["systems"]}
        row["published"] = {"random": random, "human": human, **systems}
    return row


def _atari(rows: Sequence[dict]) -> dict[str, Any]:
    """Aggregate over the Atari games for which every setting has a return, if there are two or more.

    Returns each setting, and the published systems on the same games and on all 26. Empty if no game is one of the 26.
    """
    settings: dict[tuple, dict[str, list[float]]] = {}
    for row in rows:
        if "atari" in row:
            own = settings.setdefault(tuple(row["settings"].items()), {})
            own |= {row["atari"]: row["normalised_runs"]} if row["normalised_runs"] else {}
    everywhere = set.intersection(*map(set, settings.values())) if settings else set()
    games = [game for game in atari100k()["scores"] if game in everywhere]
    sources = {system: record["source"] for system, record in atari100k()["systems"].items()} if settings else {}
    if len(games) < 2:
        return {"sources": sources}
    here = [
        {"settings": dict(values), "runs": sum(len(scores[game]) for game in games)}
        | over_games({game: scores[game] for game in games})
        for values, scores in settings.items()
    ]
    published = [
        {"system": system, "games": len(chosen)} | statistics
        for chosen in ([games, list(atari100k()["scores"])] if len(games) < len(atari100k()["scores"]) else [games])
        for system in atari100k()["systems"]
        if (statistics := over_published_games(system, chosen)) is not None
    ]
    return {"over_games": {"games": games, "here": here, "published": published}, "sources": sources}


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def markdown(results: dict[str, Any]) -> str:
    """Return the result of `compare` as Markdown tables."""
    finished = sum(run["state"] == "finished" for run in results["runs"])
    parts = [f"# {finished} of {len(results['runs'])} runs finished", _returns(results)]
    if results["sources"]:
        parts.append(_published(results))
    if "over_games" in results:
        parts.append(_over_games(results))
    if results["sources"]:
        sources = {"random, human": "google-deepmind/dqn_zoo, dqn_zoo/atari_data.py", **results["sources"]}
        parts.append("Sources:\n\n" + "\n".join(f"- {system}: {source}" for system, source in sources.items()))
    missing = [run for run in results["runs"] if run["state"] != "finished"]
    if missing:
        lines = [f"- {run['name']}, {run['state']}: {run['last_line'] or '-'}" for run in missing]
        parts.append("## Not finished\n\n" + "\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _returns(results: dict[str, Any]) -> str:
    swept, rows = results["swept"], results["games"]
    seeds = sorted({seed for row in rows for seed in row["seeds"]})
    head = ["game", *swept, "real steps", *(f"seed {seed}" for seed in seeds), "mean over seeds", "random"]
    body = [
        [row["env_id"], *row["settings"].values(), _whole(row["env_steps"])]
        + [_number(row["seeds"].get(seed)) for seed in seeds]
        + [_interval(row["return"]), _number(row["random"])]
        for row in rows
    ]
    note = "Undiscounted returns of episodes of at most train.evaluate.env.max_steps steps; the same for random play. "
    return f"## Returns\n\n{_table(head, body)}\n\n{note}Brackets: 95 % bootstrap interval over seeds; absent for one seed."


def _published(results: dict[str, Any]) -> str:
    rows = [row for row in results["games"] if "atari" in row]
    head = ["game", *results["swept"], "human-normalized", "here", *rows[0]["published"]]
    body = [
        [row["atari"], *row["settings"].values(), _interval(row["human_normalised"])]
        + [_number(row["return"] and row["return"]["value"]), *map(_number, row["published"].values())]
        for row in rows
    ]
    return (
        f"## Atari: comparison with published scores\n\n{_table(head, body)}\n\n"
        "Human-normalized: (score - random) / (human - random) with the published random and human scores of this table, not\n"
        "with the random play measured here. The published systems used 100,000 real steps; compare with `real steps` above."
    )


def _over_games(results: dict[str, Any]) -> str:
    aggregate = results["over_games"]
    head = ["human-normalized", *results["swept"], "games", "mean", "median", "IQM"]
    blank = ["" for _ in results["swept"]]
    body = [
        [f"here, {setting['runs']} runs", *setting["settings"].values(), str(len(aggregate["games"]))]
        + [_interval(setting[s]) for s in STATISTICS]
        for setting in aggregate["here"]
    ]
    body += [
        [system["system"], *blank, str(system["games"]), *(_interval(system[s]) for s in STATISTICS)]
        for system in aggregate["published"]
    ]
    return (
        f"## Atari: over games\n\n{_table(head, body)}\n\n"
        f"Games: {', '.join(aggregate['games'])}. Mean and median are over the means of the games, the IQM (interquartile\n"
        "mean) is over all runs. Brackets: 95 % stratified bootstrap intervals (arXiv:2108.13264); absent if a game has\n"
        "one run."
    )


def _table(head: list[str], body: list[list[str]]) -> str:
    """Return a Markdown table with aligned columns."""
    rows = [[str(cell) for cell in row] for row in (head, *body)]
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(head))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _interval(estimate: dict[str, Any] | None) -> str:
    if estimate is None or estimate["value"] is None:
        return "-"
    interval = "" if estimate["ci95"] is None else f" [{_number(estimate['ci95'][0])}, {_number(estimate['ci95'][1])}]"
    return _number(estimate["value"]) + interval


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.1f}"


def _whole(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"
