"""Everything a run is made of, and its checkpoint. The phases work on it, `build.py` makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from tokenworld import distributed, optim
from tokenworld.config import schema, targets
from tokenworld.data.collect import Collector
from tokenworld.data.episodes import Episode, EpisodeWriter
from tokenworld.data.replay import Replay
from tokenworld.interfaces import Codes, Steps
from tokenworld.log import Log
from tokenworld.storage import checkpoint, shards
from tokenworld.world_model import WorldModel


@dataclass(frozen=True)
class Phase:
    """A phase of training with all of its settings: `phase(run, is_last, **changes)` runs it, with some of them changed."""

    name: str
    function: Callable[..., None]  # (run, is_last, **settings)
    settings: dict[str, Any]

    def __call__(self, run: Run, is_last: bool = False, **changes: Any) -> None:
        self.function(run, is_last, **self.settings | changes)


# Trained modules by the name of their optimizer; a name with more than one is that of training them together.
TRAINED = {"tokenizer": ("tokenizer",), "dynamics": ("dynamics",), "world": ("tokenizer", "dynamics"), "policy": ("policy",)}
COUNTED = ("env_steps", "imagined_steps", "tokenizer", "dynamics", "policy")  # the last three are optimizer steps


@dataclass
class Run:
    """Everything a run is made of. Its parts are built in `build.py`; the files of `phases/` work on it."""

    out: Path
    seed: int
    device: torch.device
    world_model: WorldModel
    policy: Any
    make_env: Callable[..., Any]  # num_envs, changes to the recipe's env -> VectorEnv
    phases: dict[str, Phase]  # by name, in the order of an epoch
    log: Log
    meta: dict  # what the episodes' folder says of itself
    precision: Literal["fp32", "bf16"] = "fp32"
    replay: Replay = field(default_factory=Replay)
    held_out: Replay = field(default_factory=Replay)
    collector: Collector | None = None
    writer: EpisodeWriter | None = None
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)
    epoch: int = 0
    count: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    seconds: dict[str, float] = field(default_factory=dict)
    results: dict[str, Any] = field(default_factory=dict)  # the newest evaluation, by part
    config: dict = field(default_factory=dict)  # the recipe, as it goes into the summary
    curve: list[list[float]] = field(default_factory=list)  # [env_steps, return_mean, low, high] of each evaluation
    rows_used: int = 0  # rows that the model-free control has learned from
    resume_keys: dict[str, str] = field(default_factory=dict)  # keys that a resume of this run must repeat
    epoch_summary: dict[str, float] = field(default_factory=dict)  # what the last line of the epoch shows

    def __post_init__(self) -> None:
        self.wrapped: dict[str, Callable] = {}  # losses whose gradients are averaged over the ranks
        self.to_shard = self.sharded = False  # each rank holds a part of the dynamics
        self.is_redistributed = False  # the episodes on disk were collected by another number of ranks
        self.seed_ranks()

    def seed_ranks(self) -> None:
        """Seed the generators: draws for a whole batch are the same on all ranks, all other draws differ by rank."""
        rank, alone = distributed.rank(), distributed.world_size() == 1
        self.generator = torch.Generator(self.device).manual_seed(self.seed)  # imagination, and acting if alone
        self.shuffler = torch.Generator().manual_seed(self.seed)  # minibatches
        own = self.seed if alone else [self.seed, self.epoch, rank]
        self.rng = np.random.default_rng(own)  # batches, random play
        self.play_seed = self.seed + 100_003 * (rank + 1000 * self.epoch)
        self.acting = self.generator if alone else torch.Generator(self.device).manual_seed(self.play_seed + 1)
        if not alone:
            torch.manual_seed(self.play_seed + 2)  # dropout

    # --- data ---

    def add(self, episode: Episode) -> None:
        """Keep an episode for training, or for evaluation if it is of the test split."""
        (self.held_out if episode.split == "test" else self.replay).add(episode)

    def batches(self, count: int, batch: int, length: int, **settings: Any):
        """Batches of the replay, prepared ahead for this run's device: see `Replay.batches`."""
        return self.replay.batches(count, batch, length, self.rng, **settings, pin=self.device.type == "cuda")

    def codes(self, replay: Replay, rows: np.ndarray) -> Codes:
        """The codes of rows (B, T) of a replay, encoded once per version of the tokenizer."""
        return replay.codes(rows, self._encode, self.count["tokenizer"]).to(self.device)

    def imagination_model(self) -> WorldModel:
        """Return the world model for imagined rollouts: itself, or with precision bf16 a copy of what it has learned by now."""
        return self.world_model.eval() if self.precision == "fp32" else self.world_model.in_bf16()

    def _encode(self, steps: Steps) -> Codes:
        return self.world_model.encode(steps.to(self.device))

    # --- learning ---

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def modules(self, name: str) -> nn.Module | None:
        """What the optimizer of this name trains, see `TRAINED`; None: this run has no such part."""
        model = self.world_model
        whole = {"tokenizer": model.tokenizer, "dynamics": model.dynamics_modules(), "policy": self.policy}
        parts = [whole[part] for part in TRAINED.get(name, ())]
        return parts[0] if len(parts) == 1 else nn.ModuleList(parts) if parts else None

    def optimizer(self, name: str, lr: float, weight_decay: float = 0.0) -> torch.optim.Optimizer:
        """The optimizer of this name, made at the first call: with the settings `optimizer` of its phase."""
        if name not in self.optimizers:
            phase = self.phases.get(TRAINED[name][-1])
            settings = {} if phase is None else phase.settings.get("optimizer") or {}
            self.optimizers[name] = optim.make(self.modules(name), lr=lr, weight_decay=weight_decay, **settings)
        return self.optimizers[name]

    def loss(self, name: str, loss: Callable) -> Callable:
        """`loss`, ready for training `modules(name)` on all ranks. To be called when the weights are prepared."""
        if name not in self.wrapped:
            self.wrapped[name] = distributed.parallel(self.modules(name), loss)
        return self.wrapped[name]

    def shard(self) -> None:
        """Have each rank hold a part of the dynamics and of its optimizer's state. All ranks together."""
        if distributed.world_size() == 1 or self.sharded:
            return
        self.sharded, modules = True, self.world_model.dynamics_modules()
        whole = self.optimizers.pop("dynamics", None)
        shards.shard(modules, self.device, whole, lambda: self.optimizer("dynamics", lr=1.0))

    def update(self, name: str, optimizer, losses: Iterable[torch.Tensor], clip: float) -> None:
        """One optimizer step on the sum of losses, made and differentiated one after the other; the gradient is clipped."""
        optimizer.zero_grad(set_to_none=True)
        for loss in losses:
            loss.backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        for part in TRAINED[name]:
            self.count[part] += 1

    # --- the checkpoint ---

    def save(self) -> None:
        """Save everything that the rest of the run depends on, at the end of an epoch."""
        modules = {"tokenizer": self.world_model.tokenizer, "dynamics": self.world_model.dynamics_modules()}
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items() if not self._in_parts(name)}
        if self.policy is not None:
            modules["policy"] = self.policy
        own = {
            "learnt_rows": self.rows_used,
            "rng": checkpoint.rng_state(),
            "batches": self.rng.bit_generator.state,
            "generator": self.generator.get_state(),
            "acting": self.acting.get_state(),
            "shuffler": self.shuffler.get_state(),
            "collector": tensors(self.collector.state_dict()) if self.collector is not None else None,
            "writer": self.writer.position() if self.writer is not None else None,
            "code_cache": {"replay": self.replay.code_state(), "held_out": self.held_out.code_state()},
        }
        state = {
            "epoch": self.epoch,
            "count": self.count,
            "seconds": self.seconds,
            "wall": self.log.wall,
            "results": self.results,
            "curve": self.curve,
            "log_lines": self.log.lines,
            "optimizers": optimizers,
            "groups": self.optimizers["dynamics"].state_dict()["param_groups"] if self.sharded else None,
            "spread": self.is_redistributed,
            "ranks": distributed.gather(own),
        }
        dynamics, optimizer = modules["dynamics"], self.optimizers.get("dynamics")

        def write_shards(folder: Path) -> None:
            folder = Path(distributed.broadcast(str(folder)))  # there only now
            shards.write(folder, dynamics, optimizer)

        if self.sharded:
            del modules["dynamics"]
        if distributed.rank() == 0:
            checkpoint.save(self.out / "checkpoint", modules, state, write_shards if self.sharded else None)
        elif self.sharded:
            write_shards(self.out)
        distributed.barrier()

    def _in_parts(self, name: str) -> bool:
        return self.sharded and name == "dynamics"


def run_training(run: Run) -> None:
    """Train a run to its end, by the loop that its recipe names (`train.loop._target_`)."""
    section = run.config["train"]["loop"]
    targets.resolve(section["_target_"])(run, **schema.settings_of(section))


def tensors(state: dict[str, Any]) -> dict[str, Any]:
    """Arrays as tensors: what a checkpoint can hold without executing anything."""
    return {key: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for key, value in state.items()}
