"""Do weights that were trained on text help a world model? The measurement behind docs/backbones.md, from scratch:

    python docs/backbones_measured.py FOLDER > docs/backbones_measured.md

A small Llama learns the docstrings of Python's own standard library, byte by byte, and is saved in FOLDER/text as
save_pretrained does. Episodes of random play and a tokenizer are made once. Then the dynamics of one world model are trained
with each backbone of `BACKBONES`, from several seeds, on the same batches in the same order. The code length of held-out frames
is measured after several numbers of updates. Finished parts stay in FOLDER and are not computed again, so you can stop and
continue at any time. No network and no GPU; about a quarter of an hour on one core.
"""

from __future__ import annotations

import ast
import json
import math
import sys
import sysconfig
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tokenworld.cli.verbs import collect as collect_verb
from tokenworld.cli.verbs import train as train_verb
from tokenworld.config import compose
from tokenworld.errors import UserError
from tokenworld.evaluation.assess import code_counts
from tokenworld.evaluation.metrics import baselines
from tokenworld.interfaces import Codes
from tokenworld.log import Log
from tokenworld.training.build import build_run, with_loaded_sections

ALPHABET = 128  # bytes; the rare others are left out
BATCH = 32  # windows in an update of the dynamics
WINDOW = 128  # bytes that the language model sees
SIZES = dict(hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=2)  # as the quick start's gpt
LLAMA = "backbone.config={model_type: llama, " + ", ".join(f"{key}: {value}" for key, value in SIZES.items()) + "}"
SWAP = ("overlay=pretrained", "backbone.context=2")
BACKBONES = {
    "gpt, from scratch": (),
    "llama, from scratch": (*SWAP, LLAMA),
    "llama, text weights, full": (*SWAP, "backbone.config=null", "backbone.path=TEXT"),
    "llama, text weights, frozen": (*SWAP, "backbone.config=null", "backbone.path=TEXT", "backbone.train_mode=frozen"),
    "llama, random weights, frozen": (*SWAP, LLAMA, "backbone.train_mode=frozen"),
}
REFERENCE = "llama, from scratch"
T975 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t of n - 1 degrees of freedom


def documentation(folder: Path | None = None) -> bytes:
    """The docstrings in a folder of Python files, by default the standard library's, in ASCII, sorted by file."""
    folder = folder or Path(sysconfig.get_path("stdlib"))
    texts = []
    for path in sorted(folder.rglob("*.py")):
        if {"site-packages", "test", "tests", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # files with errors on purpose
        if path.name == "topics.py":  # of pydoc: the language reference, as one dictionary
            texts += [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        texts += [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    return "\n\n".join(filter(None, texts)).encode("ascii", "ignore")


def read_text(folder: Path, text: bytes, *, updates: int, batch: int = 32, lr: float = 3e-3) -> dict[str, float]:
    """Train the language model on the first nine tenths of `text` and save it; bits per byte on the last tenth."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=ALPHABET, max_position_embeddings=WINDOW, **SIZES))
    x = torch.from_numpy(np.frombuffer(text, np.uint8).copy()).long()
    train, test = x[: len(x) * 9 // 10], x[len(x) * 9 // 10 :]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=updates)
    windows, began = train.unfold(0, WINDOW, 1), time.monotonic()
    for update in range(updates):
        part = windows[torch.randint(len(windows), (batch,))]
        loss = model(input_ids=part, labels=part).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if update % 200 == 0:
            say(f"text {update}/{updates}: {loss.item() / math.log(2):.2f} bits per byte, {time.monotonic() - began:.0f} s")
    with torch.no_grad():
        parts = test[: len(test) // WINDOW * WINDOW].view(-1, WINDOW)[:512]
        nats = torch.stack([model.eval()(input_ids=part, labels=part).loss for part in parts.split(64)]).mean().item()
    share = torch.bincount(train, minlength=ALPHABET) / len(train)
    share = share[share > 0]
    model.save_pretrained(folder)
    return {
        "bytes": len(x),
        "parameters": sum(p.numel() for p in model.model.layers.parameters()) + model.model.norm.weight.numel(),
        "updates": updates,
        "seconds": time.monotonic() - began,
        "bits_per_byte": nats / math.log(2),
        "bits_per_byte_unigram": -(share * share.log2()).sum().item(),
    }


def experience(folder: Path, steps: int) -> None:
    """Make the episodes of random play and the tokenizer that all runs share: FOLDER/data and FOLDER/tokenizer."""
    data, out = folder / "data", folder / "tokenizer"
    if not data.exists():
        collect_verb.run(compose.compose(["recipe=quickstart", f"out={data}"]), steps=steps)
    if not out.exists():
        words = ["recipe=quickstart", f"data={data}", f"out={out}", "train.loop.epochs=1", "train.tokenizer.updates=40"]
        train_verb.run_phase("tokenizer", compose.compose(words))


def learn(folder: Path, backbone: tuple[str, ...], seed: int, at: tuple[int, ...], lr: float) -> dict:
    """Train the dynamics with a backbone; bits per held-out frame after each number of updates in `at`, and the time."""
    words = ["recipe=quickstart", f"data={folder / 'data'}", f"load.tokenizer={folder / 'tokenizer'}", f"seed={seed}"]
    words += [f"train.dynamics.lr={lr}", f"train.dynamics.batch={BATCH}", "train.dynamics.recent=0", "device=cpu"]
    spec = compose.compose([*words, *(word.replace("TEXT", str(folder / "text")) for word in backbone)])
    spec = replace(with_loaded_sections(spec), phase="dynamics")
    run = build_run(folder / "none", spec, ("dynamics",), log=Log(None, silent=True))
    parameters = list(run.world_model.backbone.parameters())
    result = {
        "bits": {},
        "seconds": 0.0,
        "parameters": sum(p.numel() for p in parameters),
        "trained": sum(p.numel() for p in parameters if p.requires_grad),
    }
    for before, after in zip((0, *at), at, strict=False):
        began = time.monotonic()
        run.phases["dynamics"](run, False, updates=after - before)
        result["seconds"] += time.monotonic() - began
        result["bits"][str(after)], result["baselines"] = held_out_bits(run)
    return result


@torch.no_grad()
def held_out_bits(run, length: int = 16) -> tuple[float, dict[str, float]]:
    """Bits per held-out frame that has a predecessor in its episode and window, and those of simple predictors."""
    model, rows = run.world_model.eval(), np.arange(run.held_out.rows // length * length).reshape(-1, length)
    steps, codes = run.held_out.gather(rows, frames=False), run.codes(run.held_out, rows)
    nats = [model.decoding.loss(model.backbone, Codes(codes.indices[part]), steps[part])[0]["codes"]
            for part in torch.arange(len(rows)).split(32)]  # fmt: skip
    real = steps.acted[:, :-1] & steps.valid[:, 1:]
    before, after, counts = codes.indices[:, :-1][real], codes.indices[:, 1:][real], code_counts(run)
    simple = {
        name: getattr(baselines, f"bits_{name}")(counts, before, after).sum(1).mean().item()
        for name in ("copy_last", "unigram", "bigram")
    }
    return torch.cat(nats)[real].mean().item() * model.shapes.codes / math.log(2), simple


def mean_and_interval(values: list[float]) -> tuple[float, float]:
    """The mean over seeds and half of its 95 % interval (Student's t)."""
    x = np.asarray(values, float)
    return float(x.mean()), float(T975[len(x)] * x.std(ddof=1) / math.sqrt(len(x)))


def page(text: dict, runs: dict[str, dict[str, dict]], settings: dict) -> str:
    """runs: backbone -> seed -> the result of `learn`."""
    at = list(next(iter(next(iter(runs.values())).values()))["bits"])
    rows = [["backbone", "weights that learn", "seconds", *(f"after {n}" for n in at)]]
    paired = [["backbone", *(f"after {n}" for n in at)]]
    for name, by_seed in runs.items():
        first = next(iter(by_seed.values()))
        seconds = np.mean([result["seconds"] for result in by_seed.values()])
        bits = [mean_and_interval([result["bits"][n] for result in by_seed.values()]) for n in at]
        rows.append([name, f"{first['trained']:,} of {first['parameters']:,}", f"{seconds:.0f}", *map(_format, bits)])
        if name != REFERENCE:
            pairs = {n: [result["bits"][n] - runs[REFERENCE][seed]["bits"][n] for seed, result in by_seed.items()] for n in at}
            paired.append([name, *(_format(mean_and_interval(pairs[n]), signed=True) for n in at)])
    simple = next(iter(next(iter(runs.values())).values()))["baselines"]
    predictors = ", ".join(f"{value:.2f} ({name.replace('_', ' ')})" for name, value in simple.items())
    return "\n\n".join([
        "# Text weights as the start of a world model: measured",
        "Made by `python docs/backbones_measured.py FOLDER`; [backbones.md](backbones.md) has the conclusions.",
        f"The text: {text['bytes']:,} bytes of docstrings of Python's standard library. The language model: a Llama of two"
        f" layers and width 64, {text['parameters']:,} weights without its tables of bytes, {text['updates']:,} updates in"
        f" {text['seconds']:.0f} s; {text['bits_per_byte']:.2f} bits per byte of held-out text (the frequencies of"
        f" bytes alone: {text['bits_per_byte_unigram']:.2f}).",
        f"The game: MinAtar Breakout, {settings['steps']:,} steps of random play, drawn uniformly in batches of {BATCH}"
        f" windows; learning rate {settings['lr']:g} for all; other settings as in the quick start (parallel decoding,"
        " context 2).",
        f"## Bits per held-out frame\n\nMean over {settings['seeds']} seeds ± half of its 95 % interval (Student's t); lower is"
        f" better. Simple predictors on the same frames: {predictors}. Seconds are training time on one core.",
        _table(rows),
        f"## Difference from {REFERENCE}\n\nSeed by seed (equal batches in equal order), then as above: a value below zero"
        " means fewer bits.",
        _table(paired),
    ])  # fmt: skip


def _format(estimate: tuple[float, float], signed: bool = False) -> str:
    return f"{estimate[0]:{'+' if signed else ''}.3f} ± {estimate[1]:.3f}"


def _table(rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def measure(
    folder: Path, *, text_updates: int = 2500, steps: int = 20_000, seeds: int = 3, at: tuple[int, ...] = (50, 150, 400),
    lr: float = 0.002, names: list[str] | None = None, source: Path | None = None,
) -> str:  # fmt: skip
    """Run the whole measurement and return its page; FOLDER/results.json keeps finished runs.

    Raises UserError if the folder was begun with other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, settings = folder / "results.json", dict(text_updates=text_updates, steps=steps, seeds=seeds, at=list(at), lr=lr)
    kept = json.loads(path.read_text()) if path.is_file() else {"settings": settings, "text": None, "runs": {}}
    if kept["settings"] != settings:
        raise UserError(f"{folder} was begun with {kept['settings']}, got {settings}: choose another folder")

    def keep() -> None:
        path.with_suffix(".tmp").write_text(json.dumps(kept, indent=1) + "\n")
        path.with_suffix(".tmp").replace(path)

    if kept["text"] is None:
        kept["text"] = read_text(folder / "text", documentation(source), updates=text_updates)
        keep()
    experience(folder, steps)
    for seed in map(str, range(seeds)):
        for name in names or BACKBONES:
            runs = kept["runs"].setdefault(name, {})
            if seed not in runs:
                runs[seed] = learn(folder, BACKBONES[name], int(seed), at, lr)
                keep()
                say(f"{name}, seed {seed}: {runs[seed]['bits']} bits per frame, {runs[seed]['seconds']:.0f} s")
    return page(kept["text"], {name: kept["runs"][name] for name in names or BACKBONES}, settings)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/backbones_measured.py FOLDER > docs/backbones_measured.md")
    print(measure(Path(sys.argv[1])))
