"""Pretrained: any Hugging Face causal transformer as the dynamics (GPT-2, Llama, Qwen3, GPT-NeoX, Mistral and their like).

The model's own code runs, on vectors instead of tokens. Ours are the masks (block-causal, a band of `context` steps, cut
where episodes begin), the positions and the cache. Rotary positions count on without limit: only distances matter.
A table of learned ones (GPT-2's) is walked in a ring of `context` steps that begins where the episode does: the cached
result equals the uncached one however long a rollout is. In training each row enters that ring at a random slot, so
that a window no longer than the context has also seen what comes after the ring's end.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokenworld.backbones import language_model
from tokenworld.backbones.ring_cache import RingCache
from tokenworld.errors import UserError, first_line
from tokenworld.interfaces import Part
from tokenworld.kernels.attention import additive, compute_dtype, write_ring
from tokenworld.kernels.memory import ring_memory
from tokenworld.storage.hub import download
from tokenworld.storage.weights import is_on_meta


class Pretrained(nn.Module, Part):
    """x (B, T, P, D) -> h (B, T, P, D). Exactly one of the first three says which model:

    name: an id on the Hugging Face hub, looked for in the local cache first · path: a folder with config.json and
    safetensors · config: {model_type: llama, hidden_size: 256, ...}, with random weights. Files are only read: no pickles,
    no code.
    dim: D; null is the model's own width, any other is projected to and from it · context: steps of the band · train_mode:
    full, frozen (projections only) or lora (adapters of rank `lora_rank`, Hu et al. 2021, arXiv:2106.09685) · lr_scale:
    learning rate of the model's weights relative to that of new ones · attention: auto is PyTorch's kernel (sdpa) on a GPU
    and two matrix products (eager) on a CPU, where one query over many keys is faster so · checkpoint: compute each block
    again for the gradient instead of keeping it. Raises UserError on a model that cannot be had or cannot serve.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        path: str | None = None,
        config: dict | None = None,
        dim: int | None = None,
        context: int = 20,
        train_mode: Literal["full", "frozen", "lora"] = "full",
        lora_rank: int = 8,
        lr_scale: float = 1.0,
        attention: Literal["auto", "eager", "sdpa"] = "auto",
        checkpoint: bool = False,
    ):
        super().__init__()
        for key, value in (("context", context), ("dim", 1 if dim is None else dim), ("lora_rank", lora_rank)):
            if value < 1:
                raise UserError(f"backbone.{key} must be at least 1, got {value}")
        if lr_scale <= 0:
            raise UserError(f"backbone.lr_scale must be positive, got {lr_scale}: to keep weights as they are,"
                            f" train_mode=frozen")  # fmt: skip
        if attention == "auto":
            attention = "sdpa" if torch.cuda.is_available() else "eager"
        self.model = _model(name, path, config, attention)
        H = self.model.config.hidden_size
        self.layers, self.heads, self.width = _probe(self.model, H)
        self.D, self.context, self.checkpoint, self.lr_scale = dim or H, context, checkpoint, lr_scale
        self.table = _learned_positions(self.model)
        self.receptive_field = None if self.table is not None else self.layers * (context - 1) + 1
        # tokens never come in; a table of them would only take memory
        self.model.set_input_embeddings(nn.Identity())
        _straighten(self.model)
        if train_mode != "full":
            self.model.requires_grad_(False)
        if train_mode == "lora":
            _add_adapters(self.model, lora_rank)
        if checkpoint:
            with warnings.catch_warnings(action="ignore", category=FutureWarning):  # version 6 will have another name for it
                self.model.gradient_checkpointing_enable({"use_reentrant": False})
        same = self.D == H
        self.enter = nn.Identity() if same else nn.Linear(self.D, H)
        self.leave = nn.Identity() if same else nn.Linear(H, self.D)

    def forward(
        self, x: Tensor, within: str, cache: RingCache | None = None, first: Tensor | None = None, keep: bool = True
    ):
        """x (B, T, P, D), within "causal" or "full", first (B, T) -> h like x, cache (None if none came in).
        keep=False: x, of one step, is forgotten."""
        assert within in ("causal", "full"), within
        B, T, p, D = x.shape
        if cache is not None:
            assert cache.alive, "this state was consumed by a step: keep a copy with state.select(index) before stepping"
            assert T == 1 or p == cache.positions and keep, (x.shape, cache.positions)
            assert not (self.checkpoint and self.training), "the model's own checkpointing drops caches: call eval() first"
            cache.reserve(T * p)
        P = p if cache is None else cache.positions
        S = self._slots(P)
        index = torch.arange(T * p, device=x.device)  # (L,) absolute positions of x
        start = torch.zeros(B, dtype=torch.int64, device=x.device)
        if cache is not None:
            index, start = index + cache.cursor, cache.start
        step = index // P
        begun = start[:, None].expand(B, T)  # the step at which a position's episode began
        if first is not None:
            begun = torch.maximum(torch.where(first, step.view(T, p)[:, 0], -1).cummax(1).values, begun)
        start, begun = begun[:, -1], begun.repeat_interleave(p, 1)  # (B,), (B, L)

        keys, rings = index, None
        if cache is not None:
            keys, rings = self._rings(cache, index, S)
        positions = index.expand(1, -1) if self.table is None else self._table_rows(index, begun, P, S)  # (1 or B, L)
        cut = begun if first is not None or cache is not None else None
        seen = _visible(keys, index, cut, P, self.context, within)
        h = self.enter(x.reshape(B, T * p, D))
        mask = additive(seen, T * p, compute_dtype(h), x.device, False)
        h = self.model(
            inputs_embeds=h, attention_mask=mask, position_ids=positions, past_key_values=rings, use_cache=False
        ).last_hidden_state
        h = self.leave(h).view(B, T, p, D)
        if cache is not None and keep:
            cache = cache.advance(T * p, start)
        return h, cache

    def make_cache(self, batch: int, positions: int, dtype: torch.dtype | None = None) -> RingCache:
        """An empty cache for `batch` rows of steps with `positions` (P) each."""
        weight = next(self.model.parameters())
        S = self._slots(positions)
        shape, C = (batch, self.heads, S, self.width), S if weight.is_cuda else 0
        zeros = [ring_memory(shape, C, dtype or weight.dtype, weight.device) for _ in range(2 * self.layers)]
        long: dict = dict(dtype=torch.int64, device=weight.device)
        n = self.layers
        return RingCache(zeros[:n], zeros[n:], torch.zeros((), **long), torch.zeros(batch, **long), positions, 0, S)

    def parameter_groups(self) -> list[tuple[float, list[Tensor]]] | None:
        """(scale of the learning rate, parameters): what was trained before may be moved with more care."""
        old = [p for name, p in self.model.named_parameters() if "lora_" not in name]
        return [(self.lr_scale, old)] if self.lr_scale != 1 else None

    def portable(self) -> dict:
        """The keywords that build the same architecture without the files that its weights came from."""
        config = self.model.config.to_diff_dict()
        tokens = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
        left_out = (*tokens, "architectures", "dtype", "transformers_version")
        kept = {key: value for key, value in config.items() if key in _keywords(self.model.config) and key not in left_out}
        return {"name": None, "path": None, "config": kept}

    def _slots(self, P: int) -> int:
        """S, if the model has so many positions."""
        S = self.context * P
        if self.table is not None and S > self.table:
            fewer = f"set backbone.context={self.table // P} or less, or " if self.table >= P else ""
            raise UserError(
                f"backbone.context={self.context} steps of {P} positions are {S}, but the model has learned positions for"
                f" {self.table}: {fewer}choose a model with more of them or with rotary ones"
            )
        return S

    def _table_rows(self, index: Tensor, begun: Tensor, P: int, S: int) -> Tensor:
        """Rows of the table of learned positions, (B, L): a ring of S that begins with the episode."""
        positions = index - begun * P
        if self.training and torch.is_grad_enabled():
            positions = positions + P * torch.randint(self.context, (len(begun), 1), device=index.device)
        return positions % S

    def _rings(self, cache: RingCache, index: Tensor, S: int) -> tuple[Tensor, Rings]:
        """The absolute position that each key of the coming pass has, (C,) or (C + L,), and where keys and values go."""
        C, L, one_step = cache.keys[0].shape[2], len(index), len(index) <= cache.positions
        slots = torch.arange(C if one_step or cache.filled else 0, device=index.device)
        newest = cache.cursor + L - 1 if one_step else cache.cursor - 1
        keys = newest - (newest - slots) % S  # what one step overwrites has just left the band
        at = cache.read % S  # a CPU copies faster to an index that the host knows
        if one_step:
            return keys, Rings(cache, at if not index.is_cuda and at + L <= S else index % S, None)
        return torch.cat([keys, index]), Rings(cache, index[-min(L, S) :] % S, slots)  # only the last S have a slot

    def _apply(self, fn, recurse: bool = True):
        """Angles stay in fp32 whatever type the weights are moved to: rounded ones would turn by the wrong amount."""
        exact = [(m, key, x) for m in self.model.modules() for key, x in m.named_buffers(recurse=False)]
        super()._apply(fn, recurse)
        for module, key, x in exact:
            module._buffers[key] = x.to(module._buffers[key].device)
        return self


class Rings:
    """What the model takes for its cache: keys and values go into its `RingCache`, what attention may see comes back.

    One step (old is None): write, then attend over the ring. Many: attend over ring + x, then write, because early queries
    still need what the late ones overwrite.
    """

    is_compileable = False

    def __init__(self, cache: RingCache, write: int | Tensor, old: Tensor | None):
        self.cache, self.write, self.old = cache, write, old

    def update(self, k: Tensor, v: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """k, v (B, N, L, d) -> keys and values (B, N, C or C + L, d)."""
        return self._through(self.cache.keys[layer], k), self._through(self.cache.values[layer], v)

    def _through(self, ring: Tensor, x: Tensor) -> Tensor:
        if self.old is None:
            write_ring(ring, self.write, x)
            return ring.to(x.dtype)
        seen = torch.cat([ring.to(x.dtype), x], 2) if len(self.old) else x
        write_ring(ring, self.write, x[:, :, -len(self.write) :])
        return seen


class Probe:
    """Stands for a cache to see what the model keeps in it."""

    is_compileable = False

    def __init__(self):
        self.shapes: dict[int, tuple] = {}

    def update(self, k: Tensor, v: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.shapes[layer] = (k.shape, v.shape)
        return k, v


def _visible(keys: Tensor, index: Tensor, begun: Tensor | None, P: int, context: int, within: str) -> Tensor:
    """keys (S,), queries (L,), begun (B, L) -> bool (B or 1, 1, L, S), true where a query sees a key."""
    key_step, step = keys // P, (index // P).unsqueeze(-1)
    ahead = keys <= index.unsqueeze(-1) if within == "causal" else key_step <= step
    seen = ahead & (key_step > step - context) & (keys >= 0)  # (L, S)
    if begun is None:
        return seen.view(1, 1, *seen.shape)
    return (seen & (key_step >= begun.unsqueeze(-1))).unsqueeze(1)


def _model(name: str | None, path: str | None, config: dict | None, attention: str):
    """The transformer without its head, in fp32. Raises UserError, one sentence, whatever is wrong."""
    given = {key: value for key, value in dict(name=name, path=path, config=config).items() if value is not None}
    if len(given) != 1:
        got = " and ".join(given) or "none"
        raise UserError(f"backbone takes exactly one of name, path and config, got {got}: for example backbone.name=gpt2")
    import transformers

    transformers.logging.set_verbosity_error()  # its advice is for other uses; what matters raises
    transformers.logging.disable_progress_bar()
    if config is not None:
        return language_model.build_untrained(_build_config(config), attention)
    label = f"backbone.{next(iter(given))}={name or path}"
    if path is not None:
        where = Path(path).expanduser()
        if not where.is_dir():
            raise UserError(f"{label} is not a folder: give one that save_pretrained wrote, or a hub id as backbone.name")
    else:
        wanted = ["config.json", "*.safetensors", "*.safetensors.index.json"]
        advice = "download it where there is a network and give its folder as backbone.path"
        where = Path(download(name, wanted, label, advice))
    language_model.check(where, label)
    try:
        loaded_config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # a damaged config raises errors of many types
        raise UserError(f"{label} cannot be loaded: {first_line(error)}; expected a causal transformer's config.json and"
                        " safetensors") from None  # fmt: skip
    _refuse_unfit(loaded_config)
    if is_on_meta():
        return language_model.build_untrained(loaded_config, attention)
    return language_model.load(where, loaded_config, attention, label)


def _build_config(config: dict):
    """A config of the model type that it names; a table of tokens is not needed and made small."""
    from transformers import AutoConfig

    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"backbone.config must name a model_type, got {config}: for example"
                        " backbone.config={model_type: llama, hidden_size: 256}")  # fmt: skip
    try:
        model_config = AutoConfig.for_model(kind, **{"vocab_size": 8} | {k: v for k, v in config.items() if k != "model_type"})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"backbone.config is not a valid {kind} config of transformers: {first_line(error)}") from None
    known = _keywords(model_config)
    for key in set(config) - known:
        near = difflib.get_close_matches(key, known, n=1)
        raise UserError(f"unknown key backbone.config.{key}: {f'did you mean {near[0]}? ' if near else ''}"
                        f"{type(model_config).__name__} takes {', '.join(sorted(known))}")  # fmt: skip
    _refuse_unfit(model_config)
    if model_config.pad_token_id is not None and model_config.pad_token_id >= model_config.vocab_size:
        model_config.pad_token_id = None
    return model_config


def _keywords(config) -> set[str]:
    """Return the config keys of a model of this type; configs on the hub often have more."""
    return {"model_type", *type(config).__dataclass_fields__, *config.attribute_map, "rope_theta", "rope_scaling"}


def _refuse_unfit(config) -> None:
    """Masks, positions and the cache are ours, which takes a model with attention in every layer and steady positions."""
    from transformers.models.auto import modeling_auto

    kind = config.model_type
    if kind not in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"backbone cannot be a {kind}: expected a causal language model such as gpt2, llama, qwen3, gpt_neox"
                        " or mistral")  # fmt: skip
    if getattr(config, "quantization_config", None) is not None:
        raise UserError("backbone cannot be a quantized model, its weights cannot be trained: choose one with floating weights")
    cls = modeling_auto.MODEL_MAPPING[type(config)]
    needs = {"inputs_embeds", "attention_mask", "position_ids", "past_key_values"}
    if getattr(cls, "_is_stateful", False) or not needs <= set(inspect.signature(cls.forward).parameters):
        raise UserError(f"backbone cannot be a {kind}: it takes no attention mask and no positions, so episodes could"
                        " not be separated; choose a transformer such as gpt2, llama, qwen3 or gpt_neox")  # fmt: skip
    rope = getattr(config, "rope_parameters", None) or {}
    if any(word in str(rope.get("rope_type")) for word in ("dynamic", "longrope")):
        raise UserError(f"backbone cannot be a {kind} with {rope['rope_type']} positions: they change with the length of the"
                        " sequence, and cached keys would not; choose a model with default rotary positions")  # fmt: skip


@torch.no_grad()
def _probe(model, H: int) -> tuple[int, int, int]:
    """(layers, key heads, width) of what the model caches, after two positions went through it: a model that ignores our
    masks, as one with biases of its own would, is refused."""
    kind, training = model.config.model_type, model.training
    x = torch.randn(1, 3, H, generator=torch.Generator().manual_seed(0))
    full = torch.zeros(1, 1, 2, 2)
    causal = full.masked_fill(torch.ones(2, 2).triu(1).bool(), float("-inf"))
    probe = Probe()

    def out(x, mask):
        ids = torch.arange(2).unsqueeze(0)
        got = model(inputs_embeds=x, attention_mask=mask, position_ids=ids, past_key_values=probe, use_cache=False)
        return got.last_hidden_state[0, 0]

    model.eval()
    try:
        first, second, both = out(x[:, :2], causal), out(x[:, ::2], causal), out(x[:, :2], full)
    except (AttributeError, TypeError):  # it asks its cache for what only the model's own has
        raise UserError(f"backbone cannot be a {kind}: it needs a cache of its own; choose gpt2, llama or qwen3") from None
    model.train(training)
    shapes = {shape for pair in probe.shapes.values() for shape in pair}
    if not first.is_meta and (not torch.equal(first, second) or torch.equal(first, both)):
        raise UserError(f"backbone cannot be a {kind}: it does not follow the attention mask; choose gpt2, llama or qwen3")
    if len(shapes) != 1 or len(probe.shapes) != model.config.num_hidden_layers:
        raise UserError(f"backbone cannot be a {kind}: its layers do not all keep keys and values of one size; choose e.g."
                        " gpt2, llama or qwen3")  # fmt: skip
    _, N, _, d = shapes.pop()
    return len(probe.shapes), N, d


def _learned_positions(model) -> int | None:
    """How many positions there is a learned vector for; None where positions are rotary."""
    tokens = model.get_input_embeddings()
    tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not tokens]
    return min([model.config.max_position_embeddings, *(m.num_embeddings for m in tables)]) if tables else None


def _straighten(model) -> None:
    """GPT-2's linear layers hold their weights the other way round: as `nn.Linear` they are decayed, adapted and laid out for
    bf16 like all others."""
    from transformers.pytorch_utils import Conv1D

    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Conv1D):
                linear = nn.Linear(*child.weight.shape, device="meta")  # both its tensors are given to it
                linear.weight, linear.bias = nn.Parameter(child.weight.detach().t().contiguous()), child.bias
                setattr(parent, name, linear)


def _add_adapters(model, rank: int) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("backbone.train_mode=lora needs peft, which is not installed: pip install 'tokenworld[lora]', or set"
                        " train_mode=frozen") from None  # fmt: skip
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"), model)


_SIZES = dict(n_layer=1, n_head=4, n_embd=16, n_positions=64, initializer_range=0.2)
TINY = dict(config=dict(model_type="gpt2", **_SIZES, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0), context=4)
