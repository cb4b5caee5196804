"""A dynamics model that does not fit one device: FSDP2 keeps a part of every weight, gradient and optimizer state per rank.

`fully_shard` (Zhao et al. 2023, arXiv:2304.11277, in its second form) gathers the weights of a block when it computes and
forgets them after. A sharded model learns; scores and imagined rollouts use its checkpoint, by processes that hold it whole.
The checkpoint is one safetensors file per rank, and any number of ranks, one included, reads it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from tokenworld import distributed
from tokenworld.errors import UserError, first_line

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def shard(
    modules: nn.ModuleList,
    device: torch.device,
    whole: Optimizer | None = None,
    make_optimizer: Callable[[], Optimizer] | None = None,
) -> None:
    """Shard [backbone, decoding, heads ...] in place: each block of the backbone, and each of the others as a whole.

    All ranks call it together. `whole`: their optimizer until now; the one that `make_optimizer()` builds takes over its state.
    """
    distributed.broadcast_parameters(modules)
    state = get_optimizer_state_dict(modules, whole) if whole is not None else None
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # of a view that we do not write into
    mesh = init_device_mesh(device.type, (distributed.world_size(),))
    backbone, decoding, *_ = modules
    for blocks in (child for child in backbone.children() if isinstance(child, nn.ModuleList)):
        for block in blocks:
            fully_shard(block, mesh=mesh)
    for module in modules:
        fully_shard(module, mesh=mesh)
    for name in ("loss", "start", "step"):
        register_fsdp_forward_method(decoding, name)
    if state is not None:
        set_optimizer_state_dict(modules, make_optimizer(), state, options=StateDictOptions(full_state_dict=True))


def write(folder: Path, module: nn.Module, optimizer: Optimizer) -> None:
    """Each rank its part of the weights and of the optimizer's state. All ranks together."""
    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(_tensors(module, optimizer), storage_writer=writer)


def read(folder: Path, module: nn.Module, optimizer: Optimizer | None = None) -> None:
    """Into a module that is sharded over as many ranks as there are now, or whole in each. All ranks together."""
    tensors = _tensors(module, optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        reader = dcp.HuggingFaceStorageReader(str(folder))
        dcp.load(tensors, storage_reader=reader, no_dist=distributed.world_size() == 1)
    module.load_state_dict({key.removeprefix("model."): x for key, x in tensors.items() if key.startswith("model.")})
    if optimizer is not None:
        state = get_optimizer_state_dict(module, optimizer, options=FLAT)
        state |= {key.removeprefix("optimizer."): x for key, x in tensors.items() if key.startswith("optimizer.")}
        set_optimizer_state_dict(module, optimizer, state, options=FLAT)


def sizes(folder: Path) -> dict[str, Tensor]:
    """The weights that `write` wrote, by name, on the meta device: their shapes and types. Raises UserError."""
    try:
        stored = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
        weights = {name.removeprefix("model."): each for name, each in stored.items() if name.startswith("model.")}
        return {name: torch.empty(each.size, dtype=each.properties.dtype, device="meta") for name, each in weights.items()}
    except Exception as error:  # of a reader that trusts what it reads
        raise UserError(f"{folder} cannot be read ({first_line(error)}): restore it from a copy") from None


def _tensors(module: nn.Module, optimizer: Optimizer | None) -> dict[str, Tensor]:
    tensors = {f"model.{name}": x for name, x in get_model_state_dict(module).items()}
    if optimizer is not None:
        state = get_optimizer_state_dict(module, optimizer, options=FLAT)
        tensors |= {f"optimizer.{name}": x for name, x in state.items() if torch.is_tensor(x)}
    return tensors
