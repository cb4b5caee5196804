"""Hugging Face models as backbones against the models themselves. The contract, on a tiny GPT-2, is in test_contracts.py."""

import json
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import close, codes_of, discover, each_recipe, rouse, shapes, steps_of
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from tokenworld import optim
from tokenworld.actions import ActionTable
from tokenworld.backbones.pretrained import TINY, Pretrained, _probe
from tokenworld.config import compose, schema
from tokenworld.errors import UserError
from tokenworld.interfaces import Codes
from tokenworld.nn import copy_for_inference, logprob, total_loss
from tokenworld.world_model import WorldModel

B, LONG, P = 3, 11, 3
FIRST = [(0, 0), (1, 5), (2, 1), (2, 9)]
MODELS = {
    "gpt2": dict(n_layer=2, n_head=4, n_embd=32, n_positions=64),
    "llama": dict(num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32, intermediate_size=48),
    "qwen3": dict(
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32, intermediate_size=48, head_dim=16
    ),
    "gpt_neox": dict(num_hidden_layers=2, num_attention_heads=4, hidden_size=32, intermediate_size=48),
    "mistral": dict(
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        hidden_size=32,
        intermediate_size=48,
        sliding_window=5,
    ),
}
DECODINGS = {part.name.split(".")[-1]: part for part in discover("decoding")}


def made(kind, **keywords):
    torch.manual_seed(3)
    sizes = dict(model_type=kind, initializer_range=0.3) | MODELS[kind]
    return Pretrained(**{"config": sizes, "context": 4} | keywords).eval()


def saved(kind, folder):
    """A tiny model of random weights as save_pretrained writes it, and the model."""
    torch.manual_seed(5)
    model = AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=7, initializer_range=0.3, **MODELS[kind])).eval()
    model.save_pretrained(folder)
    return model


def refusal(**keywords) -> str:
    with pytest.raises(UserError) as caught:
        Pretrained(**keywords)
    message = str(caught.value)
    assert "\n" not in message and caught.value.__suppress_context__ | (caught.value.__context__ is None)
    return message


# --------------------------------------------------------------------------------------------------- cached = uncached


@torch.no_grad()
def test_cached_equals_uncached_with_eager_and_sdpa():
    """Log-probabilities of codes over episodes' borders and past the context: 4 models x 2 decodings x 2 x 2 ways."""
    table, K, V = {}, 3, 5
    codes, steps = codes_of(B, LONG, K, V), steps_of(B, LONG, first=FIRST)
    for kind in ("gpt2", "llama", "qwen3", "gpt_neox"):
        for name in ("autoregressive", "parallel"):
            found = {}
            for attention in ("eager", "sdpa"):
                body = made(kind, attention=attention)
                assert body.model.config._attn_implementation == attention
                torch.manual_seed(7)
                action = ActionTable(actions=3, dim=body.D)
                head = DECODINGS[name](shapes=shapes(K, V, body.D, 3), action=action)
                head = rouse(head, 0.1)
                losses, h, _ = head.loss(body, codes, steps)
                found[attention, "uncached"] = losses["codes"]
                _, state = head.start(body, Codes(codes.indices[:, :2]), steps[:, :2])
                nats = [losses["codes"][:, :1]]
                for t in range(2, LONG):
                    given, first = Codes(codes.indices[:, t : t + 1]), steps.first[:, t]
                    prediction, state = head.step(body, state, steps.action[:, t - 1], None, given, first)
                    nats.append(-logprob(prediction).mean(1, keepdim=True))
                found[attention, "cached"] = torch.cat(nats, 1)
            real = steps.acted[:, :-1]
            reference = found["eager", "uncached"][real]
            assert reference.std() > 0.05  # there is something to agree on
            table[kind, name] = {way: (nats[real] - reference).abs().max().item() for way, nats in found.items()}
    ways = [("eager", "cached"), ("sdpa", "uncached"), ("sdpa", "cached")]
    print(f"\n{'largest difference in nats to eager uncached':46}" + "".join(f"{' '.join(way):>16}" for way in ways))
    for (kind, name), row in table.items():
        print(f"{kind:12}{name:34}" + "".join(f"{row[way]:16.1e}" for way in ways))
    assert all(error < 1e-5 for row in table.values() for error in row.values())


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("within", ["causal", "full"])
@torch.no_grad()
def test_every_family_slides_and_branches(kind, within):
    """Two layers: cut episodes, in pieces, with a branch: what a pass over everything gives."""
    body = made(kind, dim=24)
    x, first = torch.randn(B, LONG, P, 24), steps_of(B, LONG, first=FIRST).first
    h, _ = body(x, within, None, first)
    alone, _ = body(x[2:, 1:9], within)
    assert close(h[2:, 1:9], alone)
    _, cache = body(x[:, :6], within, body.make_cache(B, P), first[:, :6])
    index = torch.tensor([2, 0, 2])
    branch = cache.select(index)
    for t in range(6, LONG):
        got, cache = body(x[:, t : t + 1], within, cache, first[:, t : t + 1])
        other, branch = body(x[index, t : t + 1], within, branch, first[index, t : t + 1])
        assert close(got[:, 0], h[:, t]) and close(other[:, 0], h[index, t])
    moved = x.clone()
    moved[:, 1] += torch.randn(24)
    change = (body(moved, within)[0] - body(x, within)[0]).abs().amax((0, 2, 3))
    assert change[1 + 2 * 3] > 1e-6 and (change[2 + 2 * 3 :] < 1e-6).all()  # two layers of three steps back


# --------------------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_weights_of_a_folder(kind, tmp_path):
    """Loaded by its path: the hidden states of the model itself, on the same vectors and causal or block-causal mask."""
    model = saved(kind, tmp_path)
    body = Pretrained(path=str(tmp_path), context=4).eval()
    assert body.D == 32 and not list(tmp_path.glob("*.bin"))
    x = torch.randn(2, 4, P, 32)
    flat = x.view(2, 4 * P, 32)
    places = torch.arange(4 * P)
    for within, seen in (("causal", places <= places[:, None]), ("full", places // P <= places[:, None] // P)):
        mask = torch.zeros(1, 1, 4 * P, 4 * P).masked_fill(~seen, float("-inf"))
        expected = model(inputs_embeds=flat, attention_mask=mask, use_cache=False).last_hidden_state
        assert close(body(x, within)[0].reshape(2, 4 * P, 32), expected, 1e-5)
        assert within == "full" or kind == "mistral" or close(model(inputs_embeds=flat).last_hidden_state, expected, 1e-5)


def test_bf16_weights_are_trained_in_fp32(tmp_path):
    saved("llama", tmp_path / "fp32").to(torch.bfloat16).save_pretrained(tmp_path / "bf16")
    assert {p.dtype for p in Pretrained(path=str(tmp_path / "bf16")).parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", MODELS)
@torch.no_grad()
def test_bf16(kind):
    """Under autocast and as a copy to dream with: near the fp32 result, cached or not, and angles stay exact."""
    body = made(kind, dim=24)
    twin = copy_for_inference(body)
    x = torch.randn(B, LONG, P, 24)
    h, _ = body(x, "causal")
    with torch.autocast("cpu", torch.bfloat16):
        cast, _ = body(x, "causal")
        _, cache = body(x[:, :6], "causal", body.make_cache(B, P))
        last, _ = body(x[:, 6:7], "causal", cache)
    _, cache = twin(x[:, :6].bfloat16(), "causal", twin.make_cache(B, P))
    assert cache.keys[0].dtype == torch.bfloat16
    dreamt, _ = twin(x[:, 6:7].bfloat16(), "causal", cache)
    scale = h.std()
    for got, expected in ((cast, h), (last, h[:, 6:7]), (dreamt, h[:, 6:7])):
        assert got.dtype == torch.bfloat16 and (got.float() - expected).square().mean().sqrt() < 0.05 * scale
    for one, other in zip(body.model.buffers(), twin.model.buffers(), strict=True):
        assert torch.equal(one, other) and one.dtype == other.dtype


def world_and_batch(**keywords):
    words = [f"backbone.{key}={value}" for key, value in keywords.items()]
    small = [f"backbone.config.{key}={value}" for key, value in MODELS["llama"].items()]
    recipe = ["quickstart", "overlay=pretrained", *small, *words, "tokenizer.vocab_size=5", "tokenizer.patch=5"]
    model = WorldModel.from_recipe(*recipe, frame=(2, 10, 10), actions=3)
    return model, codes_of(4, 6, 4, 5), steps_of(4, 6)


def learn(model, codes, steps, updates=3, lr=1e-2):
    """What moved: {name: largest change} of the backbone, and the loss on the way."""
    modules = model.dynamics_modules().train()
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    optimizer, seen = optim.make(modules, lr=lr, weight_decay=0.0), []
    for _ in range(updates):
        optimizer.zero_grad()
        loss = total_loss(model(steps, codes), model.weights, steps)
        loss.backward()
        optimizer.step()
        seen.append(loss.item())
    return {name: (p - before[name]).abs().max().item() for name, p in model.backbone.named_parameters()}, seen


def test_frozen_weights_stay_and_projections_learn():
    model, codes, steps = world_and_batch(train_mode="frozen", dim=24)
    moved, losses = learn(model, codes, steps)
    assert all(change == 0 for name, change in moved.items() if name.startswith("model."))
    around = [change for name, change in moved.items() if not name.startswith("model.")]
    assert len(around) == 4 and all(change > 0 for change in around) and losses[-1] < losses[0]


def test_full_training_moves_every_weight():
    moved, losses = learn(*world_and_batch(dim=24))
    assert all(change > 0 for change in moved.values()) and losses[-1] < losses[0]


def test_gradient_checkpointing_gives_the_same_gradient():
    grads = []
    for checkpoint in (False, True):
        body = made("llama", checkpoint=checkpoint).train()
        calls = []
        body.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(0)
        body(torch.randn(2, 5, P, 32), "full")[0].square().mean().backward()
        assert len(calls) == 1 + checkpoint  # the block is computed again
        grads.append([p.grad for p in body.parameters()])
    assert all(close(one, other, 1e-6) for one, other in zip(*grads, strict=True))


def test_lr_scale():
    """Adam steps as far as its learning rate says: a tenth as far in the model's own weights, as far as ever elsewhere."""
    moves = []
    for factor in (1.0, 0.1):
        torch.manual_seed(0)
        model, codes, steps = world_and_batch(dim=24, lr_scale=factor)
        # the first gradient is zero, because heads begin at zero; so both runs take the second one at the same weights
        moves.append(learn(model, codes, steps, updates=2, lr=1e-3)[0])
    for name, change in moves[0].items():
        assert change > 5e-4
        assert abs(moves[1][name] / change / (0.1 if name.startswith("model.") else 1) - 1) < 0.02, name
    groups = optim.make(model.dynamics_modules(), lr=1.0, weight_decay=0.5).param_groups
    assert sorted((g.get("lr_scale", 1.0), g["weight_decay"]) for g in groups) == [(0.1, 0), (0.1, 0.5), (1, 0), (1, 0.5)]
    counted = sum(p.numel() for g in groups for p in g["params"])
    assert counted == sum(p.numel() for p in model.dynamics_modules().parameters())


def test_lora():
    pytest.importorskip("peft")
    model, codes, steps = world_and_batch(train_mode="lora", dim=24, lora_rank=2)
    moved, losses = learn(model, codes, steps, updates=5)
    adapters = [name for name in moved if "lora_" in name]
    assert len(adapters) == 2 * 2 * 7  # A and B, two layers, seven linear layers in each
    weights = dict(model.backbone.named_parameters())
    assert {min(weights[name].shape) for name in adapters} == {2}  # the rank
    assert all((change > 0) == ("lora_" in name or not name.startswith("model.")) for name, change in moved.items())
    assert losses[-1] < losses[0]


def test_adapters_are_new_weights_to_lr_scale():
    pytest.importorskip("peft")
    body = made("llama", train_mode="lora", lr_scale=0.1)
    ((scale, old),) = body.parameter_groups()
    own = {id(p) for name, p in body.named_parameters() if name.startswith("model.") and "lora_" not in name}
    assert scale == 0.1 and {id(p) for p in old} == own


def test_lora_needs_peft(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "not installed: pip install 'tokenworld[lora]'" in refusal(**TINY, train_mode="lora")
    Pretrained(**TINY, train_mode="frozen")


@torch.no_grad()
def test_learned_positions_go_round():
    """Past the context the places begin again, as the model itself does when it is told so, under the same band."""
    body, x = made("gpt2"), torch.randn(2, LONG, P, 32)
    places = torch.arange(LONG * P)
    step = places // P
    seen = (places <= places[:, None]) & (step > step[:, None] - 4)
    mask = torch.zeros(1, 1, LONG * P, LONG * P).masked_fill(~seen, float("-inf"))
    expected = body.model(
        inputs_embeds=x.flatten(1, 2), attention_mask=mask, position_ids=(places % (4 * P))[None], use_cache=False
    ).last_hidden_state.view(2, LONG, P, 32)
    assert close(body(x, "causal")[0], expected)


def still(body):
    """Without dropout, also in training."""
    for p in (m for m in body.model.modules() if isinstance(m, torch.nn.Dropout)):
        p.p = 0.0
    for block in body.model.h:
        block.attn.attn_dropout.p = 0.0
    return body


@torch.no_grad()
def test_learned_positions_enter_training_at_a_random_place():
    """In training each row of one window starts at another step of the ring, as the model itself does when it is told these
    positions; without a gradient, and in evaluation, the ring begins with the episode."""
    body, x = still(made("gpt2")), torch.randn(1, 3, P, 32).repeat(64, 1, 1, 1)
    places = torch.arange(3 * P)
    mask = torch.zeros(1, 1, 3 * P, 3 * P).masked_fill(~(places // P <= places[:, None] // P), float("-inf"))
    entered = [
        body.model(
            inputs_embeds=x[:1].flatten(1, 2),
            attention_mask=mask,
            position_ids=((places + P * n) % (4 * P))[None],
            use_cache=False,
        ).last_hidden_state.view(3, P, 32)
        for n in range(4)
    ]
    for rows in (body(x, "full")[0], body.train()(x, "full")[0]):
        assert all(close(row, entered[0]) for row in rows)
    with torch.enable_grad():
        trained = body(x, "full")[0].detach()
    came = [[close(row, one, 1e-4) for one in entered] for row in trained]
    assert all(sum(row) == 1 for row in came) and all(any(row[n] for row in came) for n in range(4))


# -------------------------------------------------------------------------------------------------------------- refusals


def test_exactly_one_source():
    assert "exactly one of name, path and config, got none" in refusal()
    assert "got name and config" in refusal(name="gpt2", config=TINY["config"])


def test_what_cannot_serve_is_refused():
    for kind in ("mamba", "mamba2", "bloom", "jamba", "bert_no", "t5", "vit"):
        message = refusal(config=dict(model_type=kind))
        assert kind in message and len(message) < 1500, message
    assert "episodes could not be separated" in refusal(config=dict(model_type="mamba"))
    bert = dict(model_type="bert", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    assert "needs a cache of its own" in refusal(config=bert)
    assert "must name a model_type" in refusal(config=dict(hidden_size=3))
    assert "did you mean hidden_size?" in refusal(config=dict(model_type="llama", hiden_size=3))
    assert "backbone.context must be at least 1" in refusal(**TINY | dict(context=0))
    assert "train_mode=frozen" in refusal(**TINY, lr_scale=0.0)
    long = dict(short_factor=[1.0] * 4, long_factor=[2.0] * 4)
    for rope in (dict(rope_type="dynamic", factor=2.0), dict(rope_type="longrope", factor=2.0, **long)):
        told = dict(model_type="llama", hidden_size=32, num_attention_heads=4, rope_parameters=dict(rope_theta=1e4, **rope))
        assert "change with the length" in refusal(config=told)


class Blind(torch.nn.Module):
    """A model that does as `obeys` says with the mask that it is given, and keeps the keys of so many layers."""

    def __init__(self, obeys="mask", kept=2, widths=(8, 8)):
        super().__init__()
        self.obeys, self.kept, self.widths = obeys, kept, widths
        self.config = AutoConfig.for_model("llama", num_hidden_layers=2)

    def forward(self, inputs_embeds, attention_mask, past_key_values, **_):
        for layer in range(self.kept):
            k = inputs_embeds.new_zeros(1, 4, 2, self.widths[layer])
            past_key_values.update(k, k, layer)
        mask, none = attention_mask[0, 0], torch.zeros(2, 2)
        seen = {"mask": mask, "leaks": mask.clamp(min=-3), "all": none, "causal": torch.full((2, 2), -torch.inf).triu(1)}
        return SimpleNamespace(last_hidden_state=seen[self.obeys].softmax(-1) @ inputs_embeds)


def test_what_does_not_attend_or_remember_as_it_should_is_found_out():
    assert _probe(Blind(), 6) == (2, 4, 8)
    for wrong, told in (
        (Blind("all"), "does not follow the attention mask"),
        (Blind("leaks"), "does not follow the attention mask"),
        (Blind("causal"), "does not follow the attention mask"),
        (Blind(kept=1), "do not all keep"),
        (Blind(widths=(8, 6)), "do not all keep"),
    ):
        with pytest.raises(UserError, match=told):
            _probe(wrong, 6)


def test_a_padding_token_of_a_table_that_is_not_needed():
    """Phi-3's is number 32000."""
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2)
    assert Pretrained(config=dict(model_type="phi3", **sizes), context=4).layers == 1


def test_the_cache_has_the_type_that_is_asked_for():
    cache = made("llama").make_cache(2, P, torch.bfloat16)
    assert {x.dtype for x in (*cache.keys, *cache.values)} == {torch.bfloat16}


def test_more_positions_than_were_learned():
    body = made("gpt2", context=30)
    with pytest.raises(UserError, match="90, but the model has learned positions for 64: set backbone.context=21 or less"):
        body(torch.randn(1, 2, P, 32), "full")
    with pytest.raises(UserError, match="context=21"):
        body.make_cache(1, P)


def test_folders_that_hold_no_model(tmp_path):
    assert "is not a folder" in refusal(path=str(tmp_path / "none"))
    assert "has no config.json" in refusal(path=str(tmp_path))
    saved("gpt2", tmp_path)
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    assert "cannot be loaded" in refusal(path=str(tmp_path))
    weights.unlink()
    assert "cannot be loaded" in refusal(path=str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    assert "cannot be loaded" in refusal(path=str(tmp_path))


def test_nothing_from_a_folder_is_executed(tmp_path):
    """Neither a pickle in place of safetensors nor code that the config names."""
    model = saved("gpt2", tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    (tmp_path / "config.json").write_text(json.dumps(told | {"auto_map": {"AutoModel": "own.Model"}}))
    assert Pretrained(path=str(tmp_path), context=4).D == 32 and not (tmp_path / "executed").exists()
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert "cannot be loaded" in refusal(path=str(tmp_path))
    told |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModel": "own.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(told))
    assert "cannot be loaded" in refusal(path=str(tmp_path))
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("switched_off", [False, True])
def test_a_hub_id_without_a_network(switched_off, tmp_path, monkeypatch):
    """One sentence, at once; and no socket is even tried where the hub is switched off."""
    from huggingface_hub import constants

    def blocked(*_, **__):
        tried.append(1)
        raise OSError("Network is unreachable")

    tried = []
    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    monkeypatch.setattr(socket.socket, "connect", blocked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", switched_off)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    message = refusal(name="nobody/nothing")
    assert "backbone.name=nobody/nothing is not in the local cache" in message and "backbone.path" in message
    assert ("the hub is switched off (HF_HUB_OFFLINE)" in message) == switched_off and len(tried) <= (0 if switched_off else 4)


# ---------------------------------------------------------------------------------------------- names, sizes and values


def whole_model(kind, folder):
    """With its head, as most checkpoints are; the tensors as they were saved."""
    torch.manual_seed(5)
    config = AutoConfig.for_model(kind, vocab_size=7, initializer_range=0.3, **MODELS[kind])
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def restored(folder, tensors) -> dict[str, torch.Tensor]:
    """The weights of a backbone from a folder with these tensors."""
    save_file({name: x.clone() for name, x in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return Pretrained(path=str(folder), context=4).model.state_dict()


PREFIXES = ["_orig_mod.", "module.", "module.module.", "module._orig_mod.", "model.", "base_model.model.", "_forward_module."]


@pytest.mark.parametrize("kind", MODELS)
def test_wrappers_around_the_model_that_was_saved_are_left_out(kind, tmp_path):
    tensors = whole_model(kind, tmp_path)
    expected = restored(tmp_path, tensors)
    inside = {name.replace(".0.", ".0._fsdp_wrapped_module.", 1): x for name, x in tensors.items()}
    base = {"gpt2": "transformer.", "gpt_neox": "gpt_neox."}.get(kind, "model.")
    bare = {name.removeprefix(base): x for name, x in tensors.items()}
    for named in ([{prefix + name: x for name, x in tensors.items()} for prefix in PREFIXES], inside, bare):
        for each in named if isinstance(named, list) else [named]:
            found = restored(tmp_path, each)
            assert found.keys() == expected.keys() and all(torch.equal(x, expected[name]) for name, x in found.items())


@pytest.mark.parametrize("kind", MODELS)
def test_missing_tensors_are_counted_and_named(kind, tmp_path):
    tensors = whole_model(kind, tmp_path)
    lost = [name for name in tensors if ".1." in name]
    save_file({name: x for name, x in tensors.items() if name not in lost}, tmp_path / "model.safetensors")
    message = refusal(path=str(tmp_path))
    bare = [name.split(".", 1)[1] for name in lost]
    assert f"lacks {len(lost)} of the" in message and any(f"example {name} of shape" in message for name in bare)
    one = next(name for name in tensors if "norm" in name or "ln_" in name)
    save_file({name: x for name, x in tensors.items() if name != one}, tmp_path / "model.safetensors")
    assert "lacks 1 of the" in (message := refusal(path=str(tmp_path))) and one.split(".", 1)[1] in message


def test_tokens_and_heads_may_be_missing_and_heads_be_there(tmp_path):
    tensors = whole_model("llama", tmp_path)
    expected = restored(tmp_path, tensors)
    without = {name: x for name, x in tensors.items() if "embed_tokens" not in name and "lm_head" not in name}
    more = tensors | {"score.weight": torch.zeros(2, 32), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
    for each in (without, more):
        found = restored(tmp_path, each)
        assert found.keys() == expected.keys() and all(torch.equal(x, expected[name]) for name, x in found.items())


def test_tensors_of_a_larger_or_of_another_model(tmp_path):
    tensors = whole_model("llama", tmp_path / "llama")
    deeper = tensors | {name.replace(".1.", ".2."): x.clone() for name, x in tensors.items() if ".1." in name}
    save_file(deeper, tmp_path / "llama" / "model.safetensors")
    assert "layers.2." in (message := refusal(path=str(tmp_path / "llama"))) and "does not ask for" in message
    qwen = whole_model("qwen3", tmp_path / "qwen3")
    save_file(whole_model("gpt2", tmp_path / "gpt2"), tmp_path / "llama" / "model.safetensors")
    assert "lacks" in refusal(path=str(tmp_path / "llama"))
    told = json.loads((tmp_path / "llama" / "config.json").read_text()) | {"head_dim": 16}
    (tmp_path / "llama" / "config.json").write_text(json.dumps(told))
    save_file(qwen, tmp_path / "llama" / "model.safetensors")
    assert "norm" in (message := refusal(path=str(tmp_path / "llama"))) and "does not ask for 4" not in message


@pytest.mark.parametrize(
    "kind, key, value, told",
    [
        ("gpt2", "n_positions", 128, ("wpe.weight", "(64, 32)", "(128, 32)")),
        ("gpt2", "n_embd", 64, ("wpe.weight", "(64, 32)", "(64, 64)")),
        ("llama", "intermediate_size", 64, ("mlp.gate_proj.weight", "(48, 32)", "(64, 32)")),
        ("llama", "num_hidden_layers", 8_000_000, ("tensors", "many more")),
        ("gpt2", "n_embd", 400_000, ("wpe.weight", "(64, 32)", "(64, 400000)")),
        ("gpt2", "n_layer", 3, ("lacks 12", "h.2.")),
    ],
)
def test_sizes_in_its_config_are_named_with_both_shapes(kind, key, value, told, tmp_path):
    saved(kind, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    message = refusal(path=str(tmp_path))
    assert all(word in message for word in told) and f"backbone.path={tmp_path}" in message and "report" not in message


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value, tmp_path):
    tensors = whole_model("gpt2", tmp_path)
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 4] = value
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    message = refusal(path=str(tmp_path))
    assert "NaN or infinite" in message and "h.1.mlp.c_fc.weight" in message and "1 of" in message


def test_weights_in_several_files(tmp_path):
    """With an index, as large models are; a file that is missing is named, and none outside the folder is read."""
    tensors = whole_model("llama", tmp_path)
    expected = restored(tmp_path, tensors)
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, tmp_path / file, {"format": "pt"})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    found = Pretrained(path=str(tmp_path), context=4).model.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in found.items())
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    assert "has no model-00002-of-00002.safetensors" in refusal(path=str(tmp_path))
    index.write_text(json.dumps({"weight_map": {"x": "../model.safetensors"}}))
    assert "outside the folder" in refusal(path=str(tmp_path))
    for content in ("{", "[]", "[" * 100_000, '{"weight_map": [1]}', '{"weight_map": {"x": 1}}'):
        index.write_text(content)
        assert "index.json" in refusal(path=str(tmp_path))


def test_an_adapter_and_pickles_in_the_place_of_a_model(tmp_path):
    tensors = whole_model("gpt2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    message = refusal(path=str(tmp_path))
    assert "has no model.safetensors, only pytorch_model.bin, a pickle, which is not read" in message
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "gpt2"}))
    save_file({"base_model.model.h.0.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "adapter_model.safetensors")
    assert "holds an adapter (LoRA), not a model" in refusal(path=str(tmp_path))
    (tmp_path / "config.json").unlink()
    assert "holds an adapter (LoRA), not a model" in refusal(path=str(tmp_path))


def test_weights_with_adapters_in_them_are_refused(tmp_path):
    tensors = whole_model("llama", tmp_path)
    wrapped = {name.replace("q_proj.weight", "q_proj.base_layer.weight"): x for name, x in tensors.items()}
    wrapped["model.layers.0.self_attn.q_proj.lora_A.default.weight"] = torch.zeros(2, 32)
    save_file(wrapped, tmp_path / "model.safetensors")
    assert "q_proj" in (message := refusal(path=str(tmp_path))) and "lacks 2" in message


def test_fewer_learned_positions_than_one_step_has():
    body = made("gpt2", context=1)
    with pytest.raises(UserError, match="learned positions for 64: choose a model with more of them or with rotary ones"):
        body.make_cache(1, 65)


def test_a_quantized_model_is_refused(tmp_path):
    saved("llama", tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    quantized = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "config.json").write_text(json.dumps(told | {"quantization_config": quantized}))
    assert "quantized" in refusal(path=str(tmp_path))


def test_transformers_is_never_told_to_trust_code():
    """Nor by a setting: the keyword is False wherever it is given."""
    import ast
    import inspect

    from tokenworld.backbones import language_model, pretrained

    seen = []
    for module in (language_model, pretrained):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                seen.append(ast.unparse(node.value))
    assert len(seen) >= 3 and set(seen) == {"False"}
    assert "unknown key backbone.config.trust_remote_code" in refusal(config=dict(model_type="gpt2", trust_remote_code=True))


# --------------------------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("recipe", each_recipe())
def test_the_overlay_swaps_the_backbone_of_every_recipe(recipe):
    plain = compose.compose([f"recipe={recipe}"]).cfg
    cfg = compose.compose([f"recipe={recipe}", "overlay=pretrained", "backbone.config.num_hidden_layers=1"]).cfg
    schema.check(cfg)
    assert cfg["backbone"]["_target_"].endswith("Pretrained") and "heads" not in cfg["backbone"]
    assert {key: value for key, value in cfg.items() if key != "backbone"} == {
        key: value for key, value in plain.items() if key != "backbone"
    }
    cfg = compose.compose([f"recipe={recipe}", "overlay=pretrained", "backbone.config=null", "backbone.name=gpt2"]).cfg
    schema.check(cfg)
    assert cfg["backbone"]["config"] is None


def test_transformers_is_imported_only_for_it():
    code = "import sys, tokenworld.backbones.pretrained; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
