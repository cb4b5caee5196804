"""`tokenworld bench`: how fast a recipe runs here, compared with the best this machine can do, measured in the same call.

The phases and the dreams that are time_calls are those that training runs, on frames that the recipe's own environment gave.
FLOPs are counted by running the same code on the meta device, which computes no values. The arithmetic ceiling is a
matrix product (or convolution) of the model's own shape and type, the ceiling of bytes a sum over a large array.
"""

from __future__ import annotations

import functools
import math
import platform
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokenworld.bench.ceilings import (
    Dice,
    count_flops,
    decode_flops,
    device_name,
    dream_bytes,
    dream_flops,
    encode_flops,
    peak_memory,
    picture_ceiling,
    positions_of,
    product_ceiling,
    read_bandwidth,
)
from tokenworld.bench.clocks import WARMUP, clock, time_calls
from tokenworld.config import schema
from tokenworld.errors import UserError
from tokenworld.exploration import random_act
from tokenworld.imagination import Actor, burn_in_policy, imagine
from tokenworld.interfaces import Codes, Steps
from tokenworld.nn import total_loss
from tokenworld.training.phases.world import train_world
from tokenworld.training.run import Run

REAL_STEPS = 600  # of random play, to have frames
COLLECTED = 200  # real steps that are time_calls at once
WARMUP_UPDATES = 10
FRAMES = 256  # at once, where no phase says how many


@dataclass
class Row:
    """One measurement. `seconds` of `units` units, one per repeat."""

    name: str
    unit: str
    units: int
    seconds: list[float]
    passes: int | None = None  # forward passes of the backbone per imagined frame
    flops: float | None = None  # per unit
    bytes: float | None = None  # per unit: weights and caches that must be read
    ceiling: float | None = None  # FLOP/s of the product this work consists of

    @property
    def rate(self) -> float:
        return self.units / statistics.median(self.seconds)

    def as_dict(self, bandwidth: float) -> dict[str, Any]:
        rates = sorted(self.units / s for s in self.seconds)
        numbers = {
            "per_second": self.rate,
            "per_second_range": [rates[0], rates[-1]],
            "flops": self.flops or None,  # a table that is only looked up has none
            "flops_per_second": self.flops and self.flops * self.rate,
            "share_of_flops": self.flops * self.rate / self.ceiling if self.flops and self.ceiling else None,
            "share_of_bytes": self.bytes and self.bytes * self.rate / bandwidth,
        }
        if self.flops and self.ceiling:  # the bound: arithmetic and bytes one after the other, as one core does them
            numbers["bound_per_second"] = 1 / (self.flops / self.ceiling + (self.bytes or 0) / bandwidth)
        return asdict(self) | numbers


def bench(what: str, run: Run, repeats: int) -> dict[str, Any]:
    """The rows of one kind of benchmark, with ceilings, memory and versions, as a dictionary for JSON."""
    rows = BENCHES[what](run, repeats)
    bandwidth = read_bandwidth(run.device)
    return {
        "bench": what,
        "recipe": run.config["recipe"],
        "env_id": run.meta["env_id"],
        "precision": run.precision,
        "device": device_name(run.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "read_bytes_per_second": bandwidth,
        "peak_memory_bytes": peak_memory(run.device),
        "rows": [row.as_dict(bandwidth) for row in rows],
    }


def bench_imagine(run: Run, repeats: int) -> list[Row]:
    """Measure imagined rollouts as in `train_policy`: codes only, with pixels, and with the recipe's policy."""
    settings = _settings(run, "policy")
    batch, horizon, burn_in = settings["batch"], settings["horizon"], settings["burn_in"]
    model = run.imagination_model()
    steps, rows = run.replay.sample(batch, burn_in, run.rng, ends="acted")
    steps, codes = steps.to(run.device), run.codes(run.replay, rows)
    passes, noise_size = model.decoding.passes, model.noise_size + max(model.shapes.actions.size, run.policy.noise_size)
    noise = torch.rand(batch, horizon, noise_size, generator=run.generator, device=run.device)
    positions = positions_of(model, steps, codes)
    blind, seeing = Dice(model.shapes.actions, False), Dice(model.shapes.actions, True)
    results = []
    for name, who in (("codes", blind), ("codes and pixels", seeing), ("with the policy", run.policy.eval())):
        own = noise[..., : model.noise_size + who.noise_size]
        seconds = [_dream_seconds(model, who, steps, codes, own) for _ in range(WARMUP + repeats)][WARMUP:]
        flops = dream_flops(run.world_model, who, steps, codes, own, horizon) / (batch * horizon)
        row = Row(name, "imagined frames", batch * horizon, seconds, passes, flops)
        row.bytes = dream_bytes(run, model, steps, codes, noise) / (batch * horizon)
        row.ceiling = product_ceiling(run, batch * math.ceil(positions / passes), run.world_model.backbone.D)
        if who.needs_pixels:
            row.ceiling = picture_ceiling(run, batch) or row.ceiling
        results.append(row)
    return results


@torch.no_grad()
def _dream_seconds(model, policy, steps: Steps, codes: Codes, noise: Tensor) -> float:
    """Of one dream; reading the real frames before it is not part of it."""
    prediction, state = model.start(steps, codes)
    carry = burn_in_policy(model, policy, steps, codes)
    return clock(noise.device, lambda: imagine(model, prediction, state, policy, noise.shape[1], noise, carry))


def bench_dynamics(run: Run, repeats: int) -> list[Row]:
    """Updates of the dynamics: the phase itself, replay and optimizer included."""
    settings = _settings(run, "dynamics")
    batch, length = settings["batch"], settings["length"]
    seconds = _phase(run, "dynamics", repeats)
    steps, rows = run.replay.sample(1, length, run.rng)
    codes = run.codes(run.replay, rows)

    def learn(model, steps, codes):
        if run.phases["dynamics"].function is train_world:
            of_frames = model.tokenizer.weights
            losses, weights = model.train().joint_loss(steps), model.weights | of_frames
            return total_loss(losses, weights, steps, of_frames=of_frames).backward()
        return total_loss(model.train()(steps, codes), model.weights, steps).backward()

    flops = count_flops(learn, run.world_model, steps, codes) / length
    positions = batch * length * positions_of(run.world_model, steps, codes)
    ceiling = product_ceiling(run, positions, run.world_model.backbone.D)
    return [Row("dynamics updates", "environment steps", batch * length, seconds, None, flops, None, ceiling)]


def bench_tokenizer(run: Run, repeats: int) -> list[Row]:
    """Updates of the tokenizer: the phase itself, replay and optimizer included."""
    batch = _settings(run, "tokenizer")["batch"]
    tokenizer = run.world_model.tokenizer
    seconds = _phase(run, "tokenizer", repeats)
    flops = None
    if any(True for _ in tokenizer.parameters()):
        steps, _ = run.replay.sample(1, 1, run.rng)
        flops = 3 * (encode_flops(run, steps) + decode_flops(run))  # backward costs twice the forward
    return [Row("tokenizer updates", "frames", batch, seconds, None, flops, None, picture_ceiling(run, batch))]


def bench_encode(run: Run, repeats: int) -> list[Row]:
    """Frames to codes."""
    batch = _settings(run, "tokenizer")["batch"] if "tokenizer" in run.phases else FRAMES
    steps = run.replay.sample(batch, 1, run.rng)[0].to(run.device)
    model = run.world_model.eval()
    seconds = time_calls(run.device, lambda: model.encode(steps), repeats)
    flops = encode_flops(run, steps)
    return [Row("encode", "frames", batch, seconds, None, flops, None, picture_ceiling(run, batch))]


@torch.no_grad()
def bench_decode(run: Run, repeats: int) -> list[Row]:
    """Codes to frames."""
    batch = _settings(run, "policy")["batch"] if "policy" in run.phases else FRAMES
    _, rows = run.replay.sample(batch, 1, run.rng)
    codes, model = run.codes(run.replay, rows), run.imagination_model()
    seconds = time_calls(run.device, lambda: model.decode(codes), repeats)
    return [Row("decode", "frames", batch, seconds, None, decode_flops(run), None, picture_ceiling(run, batch))]


def bench_collect(run: Run, repeats: int) -> list[Row]:
    """Real steps: random play, and play with the policy, the frames read through the tokenizer."""
    n = COLLECTED
    players, rows = [("random play", random_act(run.world_model.shapes.actions, np.random.default_rng(0)))], []
    if run.policy is not None:
        actor = Actor(run.world_model.eval(), run.policy.eval(), generator=run.generator)
        players.append(("play with the policy", actor))
    for name, act in players:
        seconds = time_calls(run.device, lambda act=act: run.collector.collect(n, act), repeats)
        rows.append(Row(name, "real steps", n, seconds))
    return rows


def bench_loop(run: Run, repeats: int) -> list[Row]:
    """What one epoch costs when all phases that the recipe has run, and the whole schedule; test episodes are not in it."""
    benches = {"collect": lambda *each: bench_collect(*each)[-1:], "tokenizer": bench_tokenizer, "dynamics": bench_dynamics,
               "policy": _bench_policy}  # fmt: skip
    names = [name for name in benches if name in run.phases]
    rows = [row for name in names for row in benches[name](run, repeats)]
    epochs = schema.settings_of(run.config["train"]["loop"])["epochs"]
    total = 0.0
    for row, name in zip(rows, names, strict=True):
        settings = run.phases[name].settings
        active = max(0, min(settings.get("stop") or epochs, epochs) - settings.get("start", 0))
        each = settings["steps"] if name == "collect" else settings["updates"] * row.units
        total += active * each / row.rate
    rows.append(Row(f"the whole schedule, {epochs} epochs", "epochs", epochs, [total]))
    return rows


def _bench_policy(run: Run, repeats: int) -> list[Row]:
    settings, seconds = _settings(run, "policy"), _phase(run, "policy", repeats)
    return [Row("policy updates, dreams included", "imagined frames", settings["batch"] * settings["horizon"], seconds)]


BENCHES: dict[str, Callable[[Run, int], list[Row]]] = {
    "imagine": bench_imagine,
    "dynamics": bench_dynamics,
    "tokenizer": bench_tokenizer,
    "encode": bench_encode,
    "decode": bench_decode,
    "collect": bench_collect,
    "loop": bench_loop,
}


def _settings(run: Run, name: str) -> dict[str, Any]:
    """The settings of a phase. Raises UserError for a run without it."""
    if name not in run.phases:
        recipe = run.config["recipe"]
        raise UserError(f"this needs the settings of train.{name}, which {recipe} lacks: choose another benchmark")
    return run.phases[name].settings


def _phase(run: Run, name: str, repeats: int) -> list[float]:
    """Seconds per update of a training phase, called as the loop calls it. The first updates, in which the process still
    asks the system for memory, take up to three times as long: they are the warm-up."""
    phase = functools.partial(run.phases[name], run, False, start=0)
    once = min(clock(run.device, functools.partial(phase, updates=1)) for _ in range(WARMUP_UPDATES))
    updates = max(2, math.ceil(0.5 / once))
    return [clock(run.device, functools.partial(phase, updates=updates)) / updates for _ in range(repeats)]


def compared(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """From rounds of {run: the result of `bench`} to {"runs": the median round of each by its rates, "ratios": {run: {row:
    [ratio to the last run of each round]}}}."""
    *others, last = rounds[0]
    rates = [{name: {row["name"]: row["per_second"] for row in run["rows"]} for name, run in each.items()} for each in rounds]
    ratios = {name: {row: sorted(each[name][row] / each[last][row] for each in rates) for row in rates[0][name]
                     if row in rates[0][last]} for name in others}  # fmt: skip
    middle = {name: sorted(rounds, key=lambda each: each[name]["rows"][-1]["per_second"])[len(rounds) // 2][name]
              for name in rounds[0]}  # fmt: skip
    return {"runs": middle, "against": last, "ratios": ratios}


def ratios(result: dict[str, Any]) -> str:
    """Say how many times as fast each run is as the last one, and the range over the rounds."""
    lines = []
    for name, by_row in result["ratios"].items():
        each = [f"{row} {statistics.median(x):.2f} ({x[0]:.2f} to {x[-1]:.2f})" for row, x in by_row.items()]
        lines.append(f"{name} is as fast as {result['against']} times: {', '.join(each)}")
    return "\n".join(lines)


def table(result: dict[str, Any]) -> str:
    """Format the result as a table: a row per measurement, the machine below."""
    head = ("", "per second", "range", "passes", "MFLOP each", "GFLOP/s", "of product", "of bytes", "bound/s")
    lines = [head]
    for row in result["rows"]:
        low, high = row["per_second_range"]
        lines.append((
            f"{row['name']} ({row['unit']})", _short(row["per_second"]), f"{_short(low)}..{_short(high)}",
            _short(row["passes"]), _short(row["flops"], 1e-6), _short(row["flops_per_second"], 1e-9),
            _percent(row["share_of_flops"]), _percent(row["share_of_bytes"]), _short(row.get("bound_per_second")),
        ))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = "\n".join("  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
                     for line in lines)
    return text + (
        f"\n{result['recipe']}, {result['env_id']}, {result['precision']}, {result['device']}, {result['threads']} threads,"
        f" torch {result['torch']}; reads {result['read_bytes_per_second'] / 1e9:.0f} GB/s,"
        f" peak memory {result['peak_memory_bytes'] / 2**30:.2f} GiB"
    )


def _short(x: float | None, scale: float = 1.0) -> str:
    if x is None:
        return "-"
    x = x * scale
    return f"{x:,.0f}" if x >= 100 or x == int(x) else f"{x:.3g}"


def _percent(x: float | None) -> str:
    return "-" if x is None else f"{100 * x:.0f} %"


def check(what: str) -> None:
    if what not in BENCHES:
        raise UserError(f"there is no benchmark {what!r}: expected one of {', '.join(BENCHES)}")
