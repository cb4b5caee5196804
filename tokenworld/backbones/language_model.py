"""A Hugging Face model with its weights, all of them, from a folder: transformers leaves those random that it does not find.

Names are compared with those that the config asks for, whatever wrapped the model when it was saved (torch.compile, DDP, FSDP,
a module around it). Sizes are compared before memory is taken, values must be finite. Only safetensors are read, no pickles.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor

from tokenworld.errors import UserError, first_line
from tokenworld.storage.weights import Stored, TooMany, read, shorten, sketch

ANYWHERE = {"_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
LEADING = {"module", "model", "base_model"}  # in addition to the name that its own class gives to the transformer
UNUSED = re.compile(r"(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.(masked_)?bias)$")  # what older versions saved too
ADVICE = "give a folder whose config.json and weights save_pretrained wrote together"


def build_untrained(config, attention: str):
    """The transformer of a config, without its head, in fp32, with random weights."""
    from transformers import AutoModel

    return AutoModel.from_config(config, dtype=torch.float32, trust_remote_code=False, attn_implementation=attention)


def check(folder: Path, label: str) -> None:
    """Raise UserError for a folder that holds no whole model."""
    if (folder / "adapter_config.json").is_file():
        raise UserError(f"{label} holds an adapter (LoRA), not a model: merge it into its model by merge_and_unload,"
                        " save_pretrained that, and give its folder")  # fmt: skip
    if not (folder / "config.json").is_file():
        raise UserError(f"{label} has no config.json: give a folder that save_pretrained wrote")


def load(folder: Path, config, attention: str, label: str):
    """The transformer of a config with the weights of its folder, without its head, in fp32. label: what the user calls it.

    Raises UserError naming a tensor that is missing, has another shape or is not finite.
    """
    tensors = _tensors(folder, label)
    try:
        model = sketch(lambda: build_untrained(config, attention), len(tensors))
    except TooMany:
        raise UserError(f"{label} has {len(tensors)} tensors, but its config.json describes many more: {ADVICE}") from None
    except Exception as error:  # of sizes that no model can have
        raise UserError(f"{label} has a config.json that no model can be built from ({first_line(error)}): {ADVICE}") from None
    wanted, unneeded = model.state_dict(), _token_table(model)
    named = {_bare(name, wanted, config_prefix=model.base_model_prefix): x for name, x in tensors.items()}
    if len(named) < len(tensors):
        raise UserError(f"{label} has several tensors of one name without the prefixes of its wrappers: {ADVICE}")
    for name, own in wanted.items():
        if name in named and named[name].shape != own.shape and name != unneeded:
            raise UserError(f"{label} does not fit its config.json, {name} has shape {tuple(named[name].shape)}, expected"
                            f" {tuple(own.shape)}: {ADVICE}")  # fmt: skip
    missing = [name for name in wanted if name not in named and name != unneeded]
    unknown = [x for name, x in named.items() if name not in wanted]
    if sum(wanted[name].numel() for name in missing) > sum(x.numel() for x in unknown):  # no conversion can make up for it
        _refuse_missing(label, missing, wanted)
    Stored(named, folder, "config.json", ADVICE, "restore its weights from a copy", config.model_type).check_finite()
    try:
        model, loading_info = type(model).from_pretrained(
            None, config=config, state_dict=named, dtype=torch.float32, output_loading_info=True, trust_remote_code=False,
            attn_implementation=attention, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:  # of any of its checks
        raise UserError(f"{label} cannot be loaded: {first_line(error)}; expected a causal transformer's config.json and"
                        " safetensors") from None  # fmt: skip
    _refuse_missing(label, sorted(set(loading_info["missing_keys"]) - {unneeded}), wanted)
    _refuse_unexpected(label, sorted(loading_info["unexpected_keys"]), wanted)
    return model


def _tensors(folder: Path, label: str) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors, be they in one file or in several with an index."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if not (folder / names[0]).is_file() and index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(f"{label} cannot be loaded: {index.name} is damaged, restore it from a copy") from None
    if any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise UserError(f"{label} cannot be loaded: {index.name} names files outside the folder, restore it from a copy")
    lost = [name for name in names if not (folder / name).is_file()]
    if lost:
        pickles = [path.name for kind in ("*.bin", "*.pt", "*.pth") for path in folder.glob(kind)]
        advice = "save the model again as safetensors (save_pretrained does)" if pickles else ADVICE
        other = f", only {pickles[0]}, a pickle, which is not read" if pickles else ""
        raise UserError(f"{label} cannot be loaded: it has no {shorten(lost[0])}{other}: {advice}")
    tensors: dict[str, Tensor] = {}
    for name in names:
        try:
            tensors |= read(folder / name)
        except UserError as error:
            raise UserError(f"{label} cannot be loaded: {error}") from None
    return tensors


def _token_table(model) -> str | None:
    """The name of the table of tokens, which is not used here and may be missing."""
    table = model.get_input_embeddings()
    return next((f"{name}.weight" for name, module in model.named_modules() if module is table), None)


def _bare(name: str, wanted: dict[str, Tensor], config_prefix: str) -> str:
    """A tensor's name without the wrappers of the model that was saved."""
    words = [word for word in name.split(".") if word not in ANYWHERE]
    at = 0
    while at < len(words) - 1 and ".".join(words[at:]) not in wanted and words[at] in LEADING | {config_prefix}:
        at += 1
    return ".".join(words[at:])


def _refuse_missing(label: str, missing: list[str], wanted: dict[str, Tensor]) -> None:
    if missing:
        raise UserError(f"{label} lacks {len(missing)} of the {len(wanted)} tensors that its config.json asks for, for example"
                        f" {missing[0]} of shape {tuple(wanted[missing[0]].shape)}: {ADVICE}")  # fmt: skip


def _refuse_unexpected(label: str, names: list[str], wanted: dict[str, Tensor]) -> None:
    """Refuse tensors in the layers of the transformer, which say that it is a larger or another one; heads are left alone."""
    layers = {name[: match.start() + 1] for name in wanted if (match := re.search(r"\.\d+\.", name))}
    wrong = [name for name in names if name.startswith(tuple(layers)) and not UNUSED.search(name)] if layers else []
    if wrong:
        raise UserError(f"{label} has {len(wrong)} tensors that its config.json does not ask for, for example"
                        f" {shorten(wrong[0])}: {ADVICE}")  # fmt: skip
