"""Optimizers: which parameters Muon moves, the average of the weights, and both in a checkpoint."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from tokenworld import distributed, optim
from tokenworld.config import compose, schema
from tokenworld.errors import UserError
from tokenworld.nn import ExactLinear, mlp
from tokenworld.training import build


def body() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(7, 16), nn.LayerNorm(16), mlp(16, 8, hidden=32), ExactLinear(8, 3))


def update(module: nn.Module, optimizer, seed: int) -> None:
    z = torch.randint(7, (64,), generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    nn.functional.cross_entropy(module(z), z % 3).backward()
    optimizer.step()


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 64)])
def test_orthogonal_keeps_the_singular_vectors_and_evens_the_values(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    U, _, V = torch.linalg.svd(x, full_matrices=False)
    values = (U.T @ optim.orthogonal(x) @ V.T).diagonal()
    assert 0.65 < values.min() and values.max() < 1.25
    assert torch.dist(optim.orthogonal(x), U @ values.diag() @ V) < 1e-3


def test_muon_moves_the_matrices_of_hidden_layers_and_adamw_the_rest():
    module = body()
    optimizer = optim.make(module, lr=0.001, weight_decay=0.1, muon=0.02)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(groups) == len(list(module.parameters()))
    matrices = {id(module[2][0].weight), id(module[2][2].weight)}
    assert {key for key, group in groups.items() if "muon" in group} == matrices
    assert all(groups[key]["lr"] == pytest.approx(0.02) and groups[key]["weight_decay"] == 0.1 for key in matrices)
    assert groups[id(module[0].weight)]["weight_decay"] == 0 and groups[id(module[3].weight)]["lr"] == 0.001
    before = copy.deepcopy(module)
    update(module, optimizer, 0)
    moved = (module[2][0].weight - before[2][0].weight * (1 - 0.02 * 0.1)) / (0.02 * 2**0.5)  # 32 rows for 16 columns
    values = torch.linalg.svdvals(moved.detach())[:7]  # a gradient of 7 different inputs has rank 7
    assert 0.6 < values.min() and values.max() < 1.25
    assert "exp_avg_sq" not in optimizer.state[module[2][0].weight]


def test_without_settings_the_optimizer_is_adamw():
    assert type(optim.make(body(), lr=0.001, weight_decay=0.0)) is torch.optim.AdamW


def test_parameters_hold_the_average_outside_of_learning_and_the_last_weights_inside():
    module, other = body(), body()
    optimizer = optim.make(module, lr=0.01, weight_decay=0.0, average=0.5)
    plain = optim.make(other, lr=0.01, weight_decay=0.0)
    average = None
    for step in range(1, 7):
        update(other, plain, step)
        with optim.learning(optimizer):
            update(module, optimizer, step)
            assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))
        decay, now = min(0.5, (1 + step) / (10 + step)), [p.detach().clone() for p in other.parameters()]
        average = now if average is None else [a + (1 - decay) * (b - a) for a, b in zip(average, now, strict=True)]
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(average, module.parameters(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_the_average_is_back_where_learning_fails():
    module = body()
    optimizer = optim.make(module, lr=0.01, weight_decay=0.0, average=0.9)
    for step in range(3):
        with optim.learning(optimizer):
            update(module, optimizer, step)
    average = copy.deepcopy(module)
    with pytest.raises(KeyboardInterrupt), optim.learning(optimizer):
        raise KeyboardInterrupt
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), average.parameters(), strict=True))


@pytest.mark.parametrize("settings", [{"muon": 0.0}, {"muon": float("nan")}, {"average": 1.0}, {"average": -0.1}])
def test_numbers_that_cannot_work_are_refused(settings):
    with pytest.raises(UserError, match="got (muon|average)="):
        optim.make(body(), lr=0.001, weight_decay=0.0, **settings)


def test_rates_follow_the_warmup_whatever_the_rate_an_optimizer_was_made_with():
    for lr in (0.004, 1.0):  # a resumed run makes its optimizer before it knows the rate
        optimizer = optim.make(body(), lr=lr, weight_decay=0.0, muon=0.02)
        optim.set_rate(optimizer, 0.004, share=0.5)
        rates = {"muon" in group: group["lr"] for group in optimizer.param_groups}
        assert rates == {True: pytest.approx(0.01), False: pytest.approx(0.002)}


def test_a_sharded_dynamics_refuses_them(tmp_path, monkeypatch):
    spec = compose.compose(["overlay=debug", f"out={tmp_path / 'run'}", "train.dynamics.optimizer={muon: 0.02}"])
    spec.train["loop"]["shard"] = True
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="train.dynamics.optimizer needs whole matrices"):
        build.build_run(tmp_path / "run", replace(spec, phase="dynamics"), ("dynamics",))


@pytest.mark.parametrize("settings, expected", [
    ("{mun: 0.02}", "did you mean train.dynamics.optimizer.muon"), ("{_target_: os.system}", "got a _target_"),
    ("{muon: often}", "must be"),
])  # fmt: skip
def test_settings_of_a_recipe_are_checked(settings, expected):
    cfg = compose.compose([f"train.dynamics.optimizer={settings}"]).cfg
    with pytest.raises(UserError, match=expected):
        schema.check(cfg)
