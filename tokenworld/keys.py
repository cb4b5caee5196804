"""What each command of the command line takes: the parser reads these tables, and `--help` is made from them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from tokenworld import origins


@dataclass(frozen=True)
class Key:
    """A `name=value` of the command line. kind: the annotation that a value must fit · value: what --help shows after the `=`,
    the default where there is one · text: what it does."""

    kind: Any
    value: str
    text: str


KEYS: dict[str, Key] = {
    "recipe": Key(str, "NAME", "a shipped recipe (default quickstart) or the path of a YAML file of your own, which may begin"
                  " with `defaults: [iris, _self_]` and then only says what differs; code that it names is imported, so give"
                  " none that you do not trust"),
    "overlay": Key(str, "debug", "shrink any recipe to seconds; or the path of a YAML file; several are merged in their order"),
    "against": Key(str, "NAME", "another recipe: print only what differs"),
    "seed": Key(int, "0", "of everything random: same seed, same result"),
    "device": Key(Literal["auto", "cpu", "cuda", "mps"], "auto", "auto, cpu, cuda or mps"),
    "precision": Key(Literal["fp32", "bf16"], "fp32", "fp32 or bf16"),
    "out": Key(str, "DIR", "where to write; an existing run is never overwritten"),
    "data": Key(str, "DIR", "episodes that `tokenworld collect` wrote, where the run's own were moved or others are wanted"),
    "load.tokenizer": Key(str, "RUN", "a trained tokenizer (phase dynamics); recipe= is then that run's if you give none"),
    "load.world_model": Key(str, "RUN", "a trained world model (phase policy; phase dynamics continues it, on other data where"
                            " shapes fit)"),
    "steps": Key(int, "40", "imagined steps"),
    "episodes": Key(int, "100", "real episodes"),
    "repeats": Key(int, "5", "timings of each thing; the median counts"),
    "jobs": Key(int, "1", "runs at once: each has its share of the cores (unless you set OMP_NUM_THREADS), and of several GPUs"
                " one"),
    "port": Key(int, "8642", "of the address"),
    "tier": Key(Literal["A", "B", "C"], "A", "A: held-out episodes; B: also branches of the simulator; C: also policies"),
    "frames": Key(int, "2000", "held-out frames to measure on"),
    "states": Key(int, "200", "states to branch from (tier B)"),
    "budget": Key(int, "3", "minutes (10 with a simulator); what does not fit is reported as skipped, or done at fewer states"),
    "metrics": Key(str, "ID,ID", "only these metrics, or rows of them; default: all of the tier"),
    "rows": Key(Literal["all"], "all", "also list the metrics in which no difference is shown"),
    "policies": Key(str, "RUN,RUN", "runs whose policies play along (tier C); they must look at pixels, or share this run's"
                    " tokenizer"),
    "repo": Key(str, "USER/NAME", "created if it is not there"),
    "private": Key(Literal["true", "false"], "false", "true: only you can see it"),
    "policy": Key(Literal["cem", "shooting"], "cem|shooting", "a planner acts instead of the run's policy"),
}  # fmt: skip

# Keywords of the planner that `score` takes after policy=
PLANNER: dict[str, Key] = {
    "policy.horizon": Key(int, "12", "steps that a planner looks ahead"),
    "policy.samples": Key(int, "128", "imagined futures per iteration"),
    "policy.iterations": Key(int, "3", "refits of the plan (cem)"),
    "policy.elites": Key(int, "16", "best futures that a refit keeps (cem)"),
    "policy.gamma": Key(float, "0.995", "discount per step"),
    "policy.keep": Key(float, "0.1", "share of the last plan in a refit (cem)"),
}

# Settings that a run may change on its way
RESUMED: dict[str, Key] = {
    "train.loop.epochs": Key(int, "N", "epochs in all: trains a finished run longer"),
    "train.loop.checkpoint_every": Key(int, "1", "epochs from one checkpoint to the next"),
}


def _take(names: str, **other: tuple[str, str]) -> dict[str, Key]:
    """The keys of these names; other: value and text that this command shows in their place."""
    changed = {name: dict(zip(("value", "text"), shown, strict=True)) for name, shown in other.items()}
    return {name: replace(KEYS[name], **changed.get(name, {})) for name in names.split()}


DEVICE = ("auto", "auto, cpu, cuda or mps, instead of the run's own")
TRAIN = _take(
    "recipe overlay seed device precision out data load.tokenizer load.world_model",
    data=("DIR", "episodes to learn from (phases tokenizer, dynamics, policy; the whole loop starts with them)"),
)

# Commands whose other settings are those of a recipe: SECTION.KEY=VALUE and ~SECTION.KEY
RECIPE_KEYS: dict[str, dict[str, Key]] = {
    "train": TRAIN,
    "collect": _take(
        "recipe overlay seed out steps",
        out=("DIR", "a new folder; the same command continues a collection that was interrupted"),
        steps=("5000", "environment steps to write"),
    ),
    "bench": _take("recipe overlay seed device precision repeats"),
    "show": _take("recipe overlay against"),
}

# Commands on a run, whose config says the rest
RUN_KEYS: dict[str, dict[str, Key]] = {
    "evaluate": _take(
        "tier frames states budget metrics policies data seed out device",
        data=("DIR", "held-out episodes: the test episodes of this folder, or all where none is one"),
        seed=("0", "chooses the frames and states"),
        out=("RUN/evaluation", "the folder of the report"),
        device=DEVICE,
    ),
    "score": _take(
        "episodes policy seed device data", seed=("0", "of the games and of what is drawn"), device=DEVICE,
        data=("DIR", "the run's episodes, where they were moved"),
    ) | PLANNER,
    "dream": _take(
        "out steps seed data device", out=("RUN/dream.gif", "a .gif, or a .png of some of its frames"), device=DEVICE,
        seed=("0", "chooses the start and what is drawn"), data=("DIR", "episodes to start from"),
    ),
    "play": _take("port data device", data=("DIR", "more episodes to begin from"), device=DEVICE),
    "export": _take(
        "out data device", out=("RUN/model", "a new folder"), device=("cpu", "auto, cpu, cuda or mps"),
        data=("DIR", "episodes to take moments from, where the run's own were moved"),
    ),
    "push": _take(
        "repo private data device", device=("cpu", "auto, cpu, cuda or mps"),
        data=("DIR", "episodes to take moments from, where the run's own were moved"),
    ),
    "--resume": _take(
        "data device", data=("DIR", "where its episodes are now"),
        device=("auto", "where it runs this time: auto, cpu, cuda or mps"),
    ) | RESUMED,
}  # fmt: skip

OTHER_KEYS: dict[str, dict[str, Key]] = {
    "sweep": _take("out jobs", out=("DIR", "where to write; a folder of another sweep is never overwritten"))
    | {name: key for name, key in TRAIN.items() if name != "out"},
    "compare": _take("metrics rows", metrics=("ID,ID", "only these decide the exit code; default: all")),
    "data": {},
}

TAKES = RECIPE_KEYS | RUN_KEYS | OTHER_KEYS

# Words without an `=`: command -> word as --help shows it -> what it does
TRUST = {origins.FLAG: "import code that the folders of this command name (only if you trust their origin)"}
FLAGS: dict[str, dict[str, str]] = {
    **dict.fromkeys(("train", "sweep", *(command for command in RUN_KEYS if command != "--resume")), TRUST),
    "bench": {"--json FILE": "the figures as JSON; with - in place of the table"},
    "show": {"--yaml": "the recipe alone, as a file to start your own from"},
}
