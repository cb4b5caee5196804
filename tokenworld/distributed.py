"""One training on several processes: torch.distributed, started by torchrun; alone, everything here does nothing.

Each rank (process) plays its own games, keeps its own part of the replay and learns from its part of every batch. What is
averaged over a batch is averaged over the whole of it: sums and counts are added over the ranks (`total`), gradients by
DistributedDataParallel. What is random about a whole batch is drawn alike on all ranks, and each takes its rows (`rows`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tokenworld.errors import UserError

PATIENCE = timedelta(minutes=30)  # how long a rank waits for the others, an evaluation on the first one included


def start(device: torch.device) -> torch.device:
    """Join the group that torchrun's environment describes, if there is one; the device that this rank is to use."""
    if "RANK" not in os.environ:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"there are {torch.cuda.device_count()} GPUs, got more processes on this machine:"
                " lower torchrun's --nproc-per-node"
            )
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        # torchrun's store outlives a restart: under one name the ranks would read the addresses of those that are gone
        store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    return device


def stop() -> None:
    """Leave the group, all ranks together: without the barrier some runs abort at exit."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def is_lost(error: BaseException) -> bool:
    """Does this error say that another rank is gone?"""
    words = ("gloo", "nccl", "connection closed", "connection reset", "timed out")
    return world_size() > 1 and isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def barrier() -> None:
    """Wait until all ranks reach this call."""
    if world_size() > 1:
        dist.barrier()


def split_evenly(n: int, what: str) -> int:
    """Split a number evenly over the ranks and return this rank's part."""
    if n % world_size():
        near = n // world_size() * world_size() or world_size()
        raise UserError(f"{what} must be a multiple of the {world_size()} processes, got {n}: choose {near}")
    return n // world_size()


def local_rows(x: Tensor) -> Tensor:
    """Return this rank's rows of a tensor that is the same on all ranks."""
    each = len(x) // world_size()
    return x[rank() * each : (rank() + 1) * each]


def local_index(index: Tensor, each: int) -> Tensor:
    """Of numbers into the whole batch those that are this rank's, `each` per rank, as numbers into its part."""
    begin = rank() * each
    return index[(index >= begin) & (index < begin + each)] - begin


@torch.no_grad()
def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum a tensor over all ranks."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


def mean(part: Tensor, count: Tensor) -> Tensor:
    """This rank's part of a mean over all ranks' `count` things, of which it adds up `part`: the average over ranks of what
    is returned, which is what DistributedDataParallel makes of gradients, is that mean."""
    return part * world_size() / all_reduce_sum(count).clamp(min=1)


@torch.no_grad()
def all_gather(x: Tensor) -> Tensor:
    """Gather the rows of all ranks, in the order of ranks; each has the same number."""
    if world_size() == 1:
        return x
    if x.dtype == torch.bool:
        return all_gather(x.byte()).bool()
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def broadcast(value: Any) -> Any:
    """Broadcast the value of rank 0 to all ranks."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def gather(value: Any) -> list[Any]:
    """Gather the values of all ranks on rank 0 (the others get only their own): what a checkpoint keeps of each."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size() if rank() == 0 else None
    dist.gather_object(value, values)
    return values if values is not None else [value]


@torch.no_grad()
def broadcast_parameters(module: nn.Module) -> None:
    """Broadcast the parameters and buffers of rank 0 to all ranks."""
    if world_size() > 1:
        for x in module.state_dict().values():
            dist.broadcast(x, 0)


class Loss(nn.Module):
    """A loss as the forward pass of what it trains, which is what DistributedDataParallel averages gradients of."""

    def __init__(self, trained: nn.Module, loss: Callable):
        super().__init__()
        self.trained, self.loss = trained, loss

    def forward(self, *arguments: Any) -> Any:
        return self.loss(*arguments)


def parallel(trained: nn.Module, loss: Callable) -> Callable:
    """`loss`, its gradients in `trained` averaged over the ranks. The ranks begin with the first one's weights."""
    if world_size() == 1:
        return loss
    broadcast_parameters(trained)
    return nn.parallel.DistributedDataParallel(Loss(trained, loss), forward_sync_buffers=False)
