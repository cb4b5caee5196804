"""Optimizers: AdamW, and on request Muon for the matrices of hidden layers and an average of the weights.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) takes the momentum of a matrix, makes all its singular
values about 1, and moves the matrix by that: directions of few examples are learned as fast as those of many.
The average of the weights over the last updates predicts better than the weights after any one of them.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

from tokenworld.errors import UserError
from tokenworld.interfaces import Part

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c of x -> a x + b x^3 + c x^5, which moves singular values toward 1


def make(
    module: nn.Module, *, lr: float, weight_decay: float, muon: float | None = None, average: float = 0.0
) -> torch.optim.AdamW:
    """An optimizer of all parameters of `module` that learn.

    AdamW decays the weights of linear layers only: embeddings, norms, biases and convolutions are not decayed. A part with
    `parameter_groups()` says which of its parameters learn at another pace: their groups carry a `lr_scale`.

    muon: the learning rate of Muon for the weights of `nn.Linear` layers; null: AdamW for all. Logits and embeddings stay with
    AdamW · average: the decay of the average of the weights, see `Averaged`; 0: no average. Raises UserError for other numbers.
    """
    check(muon=muon, average=average)
    decayed = {id(m.weight) for m in module.modules() if isinstance(m, nn.Linear)}
    asked = [group for m in module.modules() if isinstance(m, Part) for group in m.parameter_groups() or ()]
    scale = {id(p): factor for factor, parameters in asked for p in parameters}
    matrices = {id(m.weight) for m in module.modules() if type(m) is nn.Linear} if muon else set()  # a subclass computes logits
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {(1.0, True, False): [], (1.0, False, False): []}
    for p in module.parameters():
        if p.requires_grad:
            groups.setdefault((scale.get(id(p), 1.0), id(p) in decayed, id(p) in matrices), []).append(p)
    param_groups = [
        {"params": parameters, "weight_decay": weight_decay if is_decayed else 0.0}
        | ({"muon": muon} if is_matrix else {})
        | ({"lr_scale": factor} if factor != 1 else {})
        for (factor, is_decayed, is_matrix), parameters in groups.items()
        if parameters
    ]
    if muon or average:
        optimizer = Averaged(param_groups, average=average, lr=lr)
    else:
        optimizer = torch.optim.AdamW(param_groups, lr=lr, fused=True)
    set_rate(optimizer, lr)
    return optimizer


def set_rate(optimizer: torch.optim.Optimizer, lr: float, share: float = 1.0) -> None:
    """Have each group learn at `share` of its rate: lr, or that of Muon, times the group's `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = group.get("muon", lr) * group.get("lr_scale", 1.0) * share


def check(*, muon: float | None = None, average: float = 0.0) -> None:
    """Raises UserError for settings of `make` that it cannot work with."""
    if muon is not None and not 0 < muon < float("inf"):
        raise UserError(f"the learning rate of Muon must be positive, got muon={muon}: choose e.g. 0.02, or null for AdamW")
    if not 0 <= average < 1:
        raise UserError("the decay of averaged weights must be at least 0 and below 1,"
                        f" got average={average}: choose e.g. 0.98")


class Averaged(torch.optim.AdamW):
    """AdamW, with Muon for groups with `muon`, and with an exponential moving average of the weights if `average` > 0.

    The parameters hold the average, and the state of each the last weights (`state[p]["last"]`), but in a
    `with learning(...)`, where it is the other way around. The momentum of Muon is `state[p]["exp_avg"]`.
    """

    def __init__(self, groups: list[dict], *, average: float, lr: float):
        super().__init__(groups, lr=lr, fused=True)
        self.average = average

    @torch.no_grad()
    def step(self, closure=None) -> None:
        groups = self.param_groups
        self.param_groups = [group for group in groups if "muon" not in group]
        super().step()
        self.param_groups = groups
        for group in groups:
            if "muon" in group:
                self._step_muon(group)
        if self.average:
            self._update_average()

    def _step_muon(self, group: dict) -> None:
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(p))
            state["step"] += 1
            momentum = state["exp_avg"].lerp_(p.grad, 1 - MOMENTUM)
            direction = orthogonal(p.grad.lerp(momentum, MOMENTUM))
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(direction, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)

    def _update_average(self) -> None:
        """In the first updates the average is of all weights so far, about."""
        learned = [p for p, state in self.state.items() if state]
        for p in learned:
            self.state[p].setdefault("last", p.detach().clone())
        step = float(self.state[learned[0]]["step"])  # one value fetched from the device
        decay = min(self.average, (1 + step) / (10 + step))
        torch._foreach_lerp_([self.state[p]["last"] for p in learned], [p.detach() for p in learned], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the last weights with their average."""
        for p, state in self.state.items():
            if "last" in state:
                kept = p.detach().clone()
                p.copy_(state["last"])
                state["last"].copy_(kept)


@contextlib.contextmanager
def learning(optimizer: torch.optim.Optimizer):
    """Around updates: the parameters hold the last weights, and after it their average, if the optimizer keeps one."""
    swap = getattr(optimizer, "swap", lambda: None)
    swap()
    try:
        yield
    finally:
        swap()


def orthogonal(x: Tensor, steps: int = 5) -> Tensor:
    """A matrix of any shape with the singular vectors of `x` and singular values of about 1, between 0.7 and 1.2."""
    a, b, c = NEWTON_SCHULZ
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x
