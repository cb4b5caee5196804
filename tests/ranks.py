"""Run by torchrun (or alone) from test_distributed.py: the three trainings on batches that are fixed for all ranks together.

usage: python ranks.py OUT RESULT.json [key=value ...]
"""

import json
import sys

import numpy as np
import torch

from tokenworld import distributed
from tokenworld.config import compose, schema
from tokenworld.data.episodes import Episode
from tokenworld.training import resume
from tokenworld.training import run as run_module

UPDATES = 20


def episode(rng, shape, length, actions):
    false = np.zeros(length, bool)
    terminated = false.copy()
    terminated[-1] = length % 2 == 0
    truncated = false.copy()
    truncated[-1] = not terminated[-1]
    return Episode(
        obs=rng.integers(0, 255, (length + 1, *shape), dtype=np.uint8),
        action=rng.integers(actions, size=length),
        reward=rng.choice([-1.0, 0.0, 1.0], size=length).astype(np.float32),
        terminated=terminated,
        truncated=truncated,
        seed=0,
        split="train",
    )


def main(out, result, *words):
    spec = compose.compose([*words, f"out={out}", "device=cpu"])
    schema.check(spec.cfg)
    run = resume.start_run(spec)
    shapes, rng = run.world_model.shapes, np.random.default_rng(0)
    for length in (1, 1, 2, 3, 9, 4, 1, 1, 1, 7, 2, 5):  # so short that ranks get windows with unequal numbers of real steps
        run.replay.add(episode(rng, shapes.frame, length, shapes.actions.choices[0]))
    torch.manual_seed(0)

    def batches(count, batch, length, rng, ends="any", **_):
        fixed = np.random.default_rng(length)
        for _ in range(count):
            _, numbers = run.replay.sample(batch * distributed.world_size(), length, fixed, ends)
            part = numbers[distributed.rank() * batch : (distributed.rank() + 1) * batch]
            yield run.replay.gather(part), part

    run.replay.batches = batches
    losses: dict[str, list[float]] = {}
    update = run_module.Run.update

    def recorded(self, name, optimizer, parts, clip):
        def each():
            for loss in parts:
                whole = distributed.all_reduce_sum(loss) / distributed.world_size()
                losses.setdefault(name, []).append(float(whole.detach()))
                yield loss

        update(self, name, optimizer, each(), clip)

    run_module.Run.update = recorded
    for name in ("dynamics", "policy", "tokenizer"):  # codes of one and the same tokenizer
        if name == "tokenizer" and any(True for _ in run.world_model.tokenizer.parameters()):
            # Adam makes rounding errors of tiny gradients (those of biases before a norm, say) as large as any; plain descent
            # shows whether gradients agree
            run.optimizers[name] = torch.optim.SGD(run.world_model.tokenizer.parameters(), lr=0.002)
        run.phases[name](run, False, start=0, updates=UPDATES)
    run.writer.close()
    if distributed.rank() == 0:
        with open(result, "w", encoding="utf-8") as file:
            json.dump(losses, file)
    distributed.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
