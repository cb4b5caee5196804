"""The command line: `tokenworld COMMAND ... key=value`. Only the standard library is imported until a command runs."""

from __future__ import annotations

import contextlib
import difflib
import os
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenworld import files, origins, signals
from tokenworld.errors import UserError, sentence
from tokenworld.help import COMMAND_HELP, HELP
from tokenworld.keys import FLAGS, RECIPE_KEYS, RESUMED, RUN_KEYS

PHASES = ("tokenizer", "dynamics", "policy")


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit code: 0, 1 for a sweep with a failed run, 2 for what the user can correct (one line on stderr),
    128 + the number of the signal that ended it: 130 for Ctrl-C."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a path may hold what the locale cannot say
    try:
        with signals.ending(), origins.command_line(words):
            code = _run(words)
            sys.stdout.flush()  # here, where an error is told
        if argv is None and os.environ.get("WORLD_SIZE", "1") != "1":
            signals.leave(code)  # gloo's threads sometimes abort a rank that ends in Python's own way
        return code
    except KeyboardInterrupt as error:
        code = 128 + getattr(error, "signum", signal.SIGINT)
        if argv is None:  # the process is this command
            signals.leave(code)
        return code
    except (UserError, OSError, EOFError) as error:
        is_closed = _is_stdout_closed()
        _abandon_stdout()
        if is_closed and isinstance(error, BrokenPipeError):  # `tokenworld show | head`
            return 0
        rank = os.environ.get("RANK", "0")
        with contextlib.suppress(OSError):  # a closed stderr
            print(f"tokenworld{'' if rank == '0' else f' (rank {rank})'}: {_sentence(error)}", file=sys.stderr)
        return 2


def _sentence(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    if signals.is_lost_process(error):
        return "a process that this command had started has ended (out of memory, or killed): run the same command again"
    return sentence(files.explain(error))


def _is_stdout_closed() -> bool:
    """Has the reader of stdout, a pipe, gone?"""
    try:
        poller = select.poll()
        poller.register(sys.stdout.fileno(), 0)
        return bool(poller.poll(0))
    except (AttributeError, ValueError, OSError):  # Windows; a test's stdout
        return False


def _abandon_stdout() -> None:
    """If stdout is closed or full, drop what is left in its buffer: Python would complain of it at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help") and len(words) == 1:
        print(HELP)
        return 0
    if words[0] == "--version":
        from tokenworld import __version__

        print(f"tokenworld {__version__}")
        return 0
    if words[0] == "help":
        words = [*words[1:], "--help"]
    if words[0] in COMMAND_HELP and {"-h", "--help"} & set(words):
        print(COMMAND_HELP[words[0]])
        return 0
    outcome = parse(words)()
    return outcome if isinstance(outcome, int) else 0  # a sweep has an exit code of its own


def parse(words: list[str]):
    """The call that a command line asks for, with its settings checked and nothing done yet. Raises UserError."""
    command, *rest = words
    if command not in COMMAND_HELP:
        raise UserError(f"there is no command {command!r}: {_near(command, COMMAND_HELP)}"
                     f"expected one of {', '.join(COMMAND_HELP)}")
    if origins.FLAG in FLAGS.get(command, ()):  # `origins` has read it already
        rest = [word for word in rest if word != origins.FLAG]
    if command == "data":
        return _parse_data(rest)
    if command == "compare":
        return _parse_compare(rest)
    if command in RUN_KEYS:
        return _parse_run(command, rest)
    if command == "show":
        return _parse_show(rest)
    if command == "bench":
        return _parse_bench(rest)
    if command == "sweep":
        return _parse_sweep(rest)
    if command == "train" and "--resume" in rest:
        return _parse_resume(rest)
    phase = None
    if command == "train" and rest and "=" not in rest[0] and not rest[0].startswith(("-", "~")):
        phase, *rest = rest
        if phase not in PHASES:
            raise UserError(f"there is no phase {phase!r} to train: {_near(phase, PHASES)}expected {', '.join(PHASES)}, "
                         f"or none for the whole loop")
    cfg, cli = _recipe(command, rest)
    if phase is not None:
        return lambda: _commands().train_phase(phase, cfg, cli)
    return lambda: getattr(_commands(), command)(cfg, cli)


def _commands():
    """The module that does the work: imported when a command line has been found right."""
    from tokenworld import commands

    return commands


def _recipe(command: str, words: list[str]) -> tuple[dict, dict]:
    from tokenworld.config import compose, saved, schema

    for key in (word.partition("=")[0] for word in words):
        if key in schema.CLI_KEYS and key not in RECIPE_KEYS[command]:
            raise UserError(f"{command} takes no key {key}: expected some of {', '.join(RECIPE_KEYS[command])}, or settings")
    given, recipe = dict(word.partition("=")[::2] for word in words), compose.DEFAULT_RECIPE
    for key in ("load.tokenizer", "load.world_model"):
        if key in given:  # what was trained with one recipe goes on with it; a file that a run names is not opened
            theirs = saved.load(given[key])[1]["recipe"]
            recipe = theirs if theirs in compose.recipes() else recipe
    cfg, cli = compose.compose(words, recipe)
    schema.check(cfg)
    return cfg, cli


def _parse_resume(words: list[str]):
    """train --resume RUN: the run's own config, where its episodes are now, on which device, and how long it shall train."""
    from tokenworld.config import compose

    takes = RUN_KEYS["--resume"]
    run, words = _run_of([word for word in words if word != "--resume"], takes)
    for key in (word.partition("=")[0] for word in words):
        if key not in takes:
            raise UserError(f"a resumed run keeps its settings, got {key!r}: expected some of {', '.join(takes)}; "
                            f"to change others, start a new run with load.world_model={run}")
    settings = [word for word in words if word.partition("=")[0] in RESUMED]
    keys = compose.cli_keys([word for word in words if word not in settings])
    changes = compose.cli_keys(settings, {name: key.kind for name, key in RESUMED.items()})
    return lambda: _commands().resume(run, keys, changes)


def _parse_run(command: str, words: list[str]):
    """score RUN and dream RUN: the run's own config, and a few keys of the command line."""
    from tokenworld.config import compose

    run, words = _run_of(words, RUN_KEYS[command])
    planner = [word for word in words if word.partition("=")[0] == "policy" or word.startswith("policy.")]
    if command == "score" and planner:
        words = [word for word in words if word not in planner]
    for key in (word.partition("=")[0] for word in words):
        if key not in RUN_KEYS[command]:
            raise UserError(f"{command} takes no key {key!r}: {_near(key, RUN_KEYS[command])}"
                            f"expected some of {', '.join(RUN_KEYS[command])} (the run's own config says the rest)")
    keys = compose.cli_keys(words)
    if command == "score" and planner:
        keys["policy"] = _planner(planner)
    return lambda: getattr(_commands(), command)(run, keys)


def _planner(words: list[str]) -> dict:
    """policy=cem policy.horizon=8 ... -> the section of a planner."""
    import yaml

    from tokenworld.config import schema, targets

    given = dict(word.partition("=")[::2] for word in words)
    method = given.pop("policy", None)
    if method not in ("cem", "shooting") or "policy.method" in given:
        raise UserError(f"policy must be cem or shooting, got {method or 'none'}: "
                        f"leave policy and policy.* out for the run's own")
    try:
        section = {key.removeprefix("policy."): yaml.safe_load(value) for key, value in given.items()}
    except yaml.YAMLError:
        raise UserError(f"cannot read {' '.join(words)!r}: write for example policy=cem policy.horizon=8") from None
    section = {"_target_": "tokenworld.policies.planner.Planner", **section, "method": method}
    schema.check_keywords({}, "policy", section, targets.resolve(section["_target_"]))
    return section


def _run_of(words: list[str], keys: Sequence[str]) -> tuple[str, list[str]]:
    """The one folder of a run or model among the words, and the others. Raises UserError if its config cannot be read."""
    from tokenworld.config import compose, saved
    from tokenworld.storage import model_folder

    compose.refuse_repeats(words)
    runs, others = _folders(words, 1, keys)
    if len(runs) != 1:
        raise UserError(f"expected the folder of one run, got {' and '.join(runs) or 'none'}: for example runs/NAME")
    if model_folder.is_model(runs[0]):
        model_folder.read(Path(runs[0]))
    else:
        saved.load(runs[0])
    return runs[0], others


def _folders(words: list[str], wanted: int, keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """The folders among the words, and the settings. A word with an = is a folder if folders are missing and it is one on this
    disk, first where its key is none of the command's: a folder may be called lr=0.1, even seed=3."""
    found = [word for word in words if "=" not in word and (not word.startswith(("-", "~")) or Path(word).is_dir())]
    for candidates in (lambda word: word.partition("=")[0] not in keys, lambda word: True):
        for word in words:
            if len(found) < wanted and "=" in word and word not in found and candidates(word) and Path(word).is_dir():
                found.append(word)
    return [word for word in words if word in found], [word for word in words if word not in found]


def _parse_data(words: list[str]):
    if len(words) != 2 or words[0] != "info":
        raise UserError(f"data takes `info` and a folder of episodes, got {' '.join(words) or 'nothing'}: "
                     f"write tokenworld data info data/breakout")

    return lambda: _commands().data_info(words[1])


def _parse_compare(words: list[str]):
    from tokenworld.config import compose

    compose.refuse_repeats([word for word in words if word.startswith(("metrics=", "rows="))])
    folders, settings = _folders(words, 2, ("metrics", "rows"))
    keys = dict(word.split("=", 1) for word in settings if word.startswith(("metrics=", "rows=")))
    if len(folders) != 2 or len(keys) != len(settings):
        raise UserError(f"compare takes two folders of reports, metrics= and rows=, got {' '.join(words) or 'nothing'}: "
                        f"write tokenworld compare runs/A/evaluation runs/B/evaluation")
    if keys.get("rows", "all") != "all":
        raise UserError(f"rows={keys['rows']}: expected rows=all, which also lists the metrics in which no difference is shown")
    metrics = keys["metrics"].split(",") if "metrics" in keys else None
    return lambda: _commands().compare(*folders, metrics, "rows" in keys)


def _parse_bench(words: list[str]):
    words, json_file = list(words), None
    if "--json" in words:
        at = words.index("--json")
        if at + 1 == len(words) or "=" in words[at + 1]:
            raise UserError("--json needs the file to write (- for stdout), for example --json bench.json")
        json_file = words[at + 1]
        del words[at : at + 2]
    if not words or "=" in words[0]:
        raise UserError("bench needs to know what to time: write for example tokenworld bench imagine recipe=iris")
    cfg, cli = _recipe("bench", words[1:])
    return lambda: _commands().bench(words[0], cfg, cli, json_file)


def _parse_sweep(words: list[str]):
    from tokenworld import sweep

    out, jobs, members = sweep.plan(words, lambda settings: _recipe("train", settings))
    return lambda: _commands().sweep(out, members, jobs, words)


def _parse_show(words: list[str]):
    from tokenworld.config import saved

    cfg, cli = _recipe("show", [word for word in words if word != "--yaml"])
    against = cli.get("against")
    if "--yaml" in words and against:
        raise UserError(f"--yaml prints one recipe, got against={against} too: leave one of them out")
    if "--yaml" in words:
        return lambda: print(_yaml(cfg), end="")
    if not against:
        return lambda: _show(cfg)
    other, _ = _recipe("show", [f"recipe={against}"])
    return lambda: print(_table([("", cli["recipe"], against),
                                 *((k, _word(a), _word(b)) for k, a, b in saved.difference(cfg, other))]))


def _show(cfg: dict) -> None:
    print(_yaml(cfg))
    print(_table(_costs(cfg)))


def _yaml(cfg: dict) -> str:
    import yaml

    return yaml.safe_dump(cfg, sort_keys=False)


def _costs(cfg: dict) -> list[tuple[str, ...]]:
    """Parameters per part, and what one imagined frame costs, counted on one real step of an untrained model."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from tokenworld.config import schema
    from tokenworld.envs.checked import make_checked
    from tokenworld.world_model import WorldModel, frames_as_steps

    env = make_checked(cfg["env"], 1)
    space, actions = env.single_observation_space, int(env.single_action_space.n)
    env.close()
    C, H, W = space.shape
    model = WorldModel.from_config(cfg, frame=(C, H, W), actions=actions).eval()
    policy = schema.build(cfg["policy"], shapes=model.shapes)
    parts = {name: getattr(model, name) for name in ("tokenizer", "backbone", "decoding", "reward", "termination")}
    rows = [("part", "parameters")]
    rows += [(name, f"{_count(part):,}") for name, part in parts.items()]
    rows += [("world model without tokenizer", f"{sum(_count(p) for n, p in parts.items() if n != 'tokenizer'):,}")]
    rows += [("policy", f"{_count(policy):,}")]

    steps = frames_as_steps(torch.zeros(1, C, H, W, dtype=torch.uint8))
    _, state = model.start(steps)
    action, noise = torch.zeros(1, dtype=torch.int64), torch.full((1, model.tokenizer.K), 0.5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        prediction, _ = model.step(state, action, noise)
    rows += [("frame", f"{C} x {H} x {W}, {actions} actions"),
             ("codes", f"{model.tokenizer.K} of {model.tokenizer.V}"),
             ("forward passes per imagined frame", f"{model.decoding.passes}"),
             ("MFLOPs per imagined frame", f"{counter.get_total_flops() / 1e6:.2f}")]
    with torch.no_grad():
        model.decode(prediction.codes)  # a tokenizer of patches draws its dictionary once
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.decode(prediction.codes)
    return [*rows, ("MFLOPs to decode it to pixels", f"{counter.get_total_flops() / 1e6:.2f}")]


def _count(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in rows)


def _word(value) -> str:
    return "-" if value is None else str(value)


def _near(word: str, known) -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]}? " if near else ""


if __name__ == "__main__":
    sys.exit(main())
