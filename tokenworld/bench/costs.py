"""What the parts of a recipe cost: parameters, and operations per imagined frame."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tokenworld import action_space
from tokenworld.config import schema
from tokenworld.envs.checked import make_checked
from tokenworld.world_model import WorldModel, frames_as_steps


def costs(cfg: dict) -> list[tuple[str, ...]]:
    """Parameters per part, and what one imagined frame costs, counted on one real step of an untrained model."""
    env = make_checked(cfg["env"], 1)
    space, actions = env.single_observation_space, action_space.of(env.single_action_space)
    env.close()
    C, H, W = space.shape
    model = WorldModel.from_config(cfg, frame=(C, H, W), actions=actions).eval()
    policy = schema.build(cfg["policy"], shapes=model.shapes) if "policy" in cfg else None
    parts = {name: getattr(model, name) for name in ("tokenizer", "backbone", "decoding", "reward", "termination")}
    rows = [("part", "parameters")]
    rows += [(name, f"{_count(part):,}") for name, part in parts.items()]
    rows += [("world model without tokenizer", f"{sum(_count(p) for n, p in parts.items() if n != 'tokenizer'):,}")]
    if policy is not None:
        rows += [("policy", f"{_count(policy):,}")]

    steps = frames_as_steps(torch.zeros(1, C, H, W, dtype=getattr(torch, str(space.dtype))), None, actions)
    _, state = model.start(steps)
    action, noise = actions.zero(1), torch.full((1, model.decoding.noise_size), 0.5)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        prediction, _ = model.step(state, action, noise)
    rows += [("frame", f"{C} x {H} x {W}, {actions.describe()}"),
             ("codes", f"{model.shapes.codes}" + (f" of {model.shapes.vocab_size}" if model.shapes.vocab_size else "")),
             ("forward passes per imagined frame", f"{model.decoding.passes}"),
             ("MFLOPs per imagined frame", f"{counter.get_total_flops() / 1e6:.2f}")]
    with torch.no_grad():
        model.decode(prediction.codes)  # a tokenizer of patches draws its dictionary once
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.decode(prediction.codes)
    return [*rows, ("MFLOPs to decode it to pixels", f"{counter.get_total_flops() / 1e6:.2f}")]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
