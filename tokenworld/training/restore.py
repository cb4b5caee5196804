"""A run's checkpoint, read, checked as a whole and put back into a run: whatever does not fit is refused in one sentence.

Weights that do not fit are named by part and tensor, numbers and states by where they lie in `state.pt`. Only what chance
decides is replaced where it cannot be restored: a generator's state of another kind of device, and the moments of an
optimizer that are no longer finite.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tokenworld import forms
from tokenworld.action_space import Actions
from tokenworld.config import saved as saved_config
from tokenworld.config import schema
from tokenworld.config.saved import RunSpec
from tokenworld.data.replay import UNCODED
from tokenworld.errors import UserError
from tokenworld.forms import either, flag, list_of, mapping_of, maybe, number, plain, positive, record, tensor, whole
from tokenworld.interfaces import Shapes
from tokenworld.storage import checkpoint, model_folder, space_format
from tokenworld.storage import shards as sharding
from tokenworld.storage.weights import Stored, count_not_finite
from tokenworld.training.run import COUNTED, Run
from tokenworld.world_model import PARTS_OF_MODEL, WorldModel

WORD = whole(0, 2**32 - 1)
BYTES, INTEGERS = tensor(1, torch.uint8), (torch.uint8, torch.int32, torch.int64)
INDICES_OR_VECTORS = either(tensor(3, torch.float32), tensor(2, torch.int32))
CODES = record(codes=maybe(INDICES_OR_VECTORS), version=maybe(tensor(1, torch.int64)))


def _python(value: Any, where: str) -> None:
    """The state of Python's generator: a version, 625 words, and what a normal draw has left over."""
    list_of(lambda value, where: None, 3)(value, where)
    for part, form in zip(value, (whole(), list_of(WORD, 625), maybe(number)), strict=True):
        form(part, where)


GENERATORS = record(
    python=_python,
    numpy=record(state=record(key=list_of(WORD, 624), pos=whole(0, 624)), has_gauss=whole(0, 1), gauss=number),
    torch=BYTES,
    cuda=list_of(BYTES),
)
COLLECTOR = record(
    actions=either(tensor(3, torch.float32), tensor(2, *INTEGERS)), cuts=tensor(2, torch.int64), began=whole(0, 1),
    seed=whole(), steps=whole(), episodes=whole(), target=whole(), before=maybe(list_of(whole(), 2)), checksum=maybe(WORD),
)  # fmt: skip
RANK = record(
    learnt_rows=whole(),
    rng=GENERATORS,
    batches=record(
        state=record(state=whole(0, 2**128 - 1), inc=whole(0, 2**128 - 1)), has_uint32=whole(0, 1), uinteger=WORD
    ),
    generator=BYTES,
    acting=BYTES,
    shuffler=BYTES,
    collector=maybe(COLLECTOR),
    writer=maybe(record(shard=whole(0, 10**6), offset=whole(), episodes=whole())),
    code_cache=record(replay=CODES, held_out=CODES),
)
SCORE = record(return_mean=number, return_ci95=list_of(number, 2), episodes=whole(), random_return_mean=number)
GROUP = record(lr=positive, weight_decay=positive, eps=positive, betas=list_of(positive, 2))
STATE = record(
    epoch=whole(0, 10**7),
    count=record(**{name: whole() for name in COUNTED}),
    seconds=mapping_of(positive),
    wall=positive,
    results=record(
        eval=maybe(SCORE), random=maybe(number), tokenizer=maybe(mapping_of(plain)), dynamics=maybe(mapping_of(plain))
    ),
    curve=list_of(list_of(number, least=2)),  # older ones have no intervals
    log_lines=whole(),
    optimizers=mapping_of(record(state=lambda value, where: None, param_groups=list_of(GROUP))),
    groups=maybe(list_of(GROUP)),
    spread=flag,
    ranks=list_of(RANK, least=1),
)
HYPER = ("lr", "weight_decay", "eps", "betas")  # what is taken from a saved optimizer; the rest follows from the device
MISMATCH = "its config.yaml was edited, or is of another run: undo the change, or train a new run"
DIVERGED = "training diverged, train again with a smaller lr or restore an earlier copy"


@dataclass(frozen=True)
class Saved:
    """The weights and the state of a run, or the weights of an exported model.

    model: all tensors of the world model; those of the dynamics have no values if they are in `shards` · policy: None if there
    is none.
    """

    model: Stored
    policy: Stored | None = None
    state: dict[str, Any] | None = None
    shards: Path | None = None

    def check_sizes(self, cfg: dict, frame: tuple[int, ...], actions: Actions, frame_dtype: str = "uint8") -> None:
        """Raise UserError unless the parts of the world model that a config names have these weights; takes no memory."""
        model_folder.check_sizes(WorldModel, cfg, self.model, **model_folder.spaces(frame, actions, frame_dtype))

    def build_policy(self, cfg: dict, shapes: Shapes) -> nn.Module:
        """The policy that a config names, without its weights, after it has been compared with them."""
        if self.policy is None:
            raise UserError(f"{self.model.source} has no weights of a policy, {self.model.config} names one: {MISMATCH}")

        def build() -> nn.Module:
            return schema.build(cfg["policy"], shapes=shapes)

        self.policy.outline(build, [cfg["policy"]])
        return build()

    def put(self, world_model: WorldModel, policy: nn.Module | None = None) -> None:
        """Copy the weights into a world model, and into a policy that `build_policy` made."""
        if self.shards is None:
            self.model.load_into(world_model)
        else:
            self.put_tokenizer(world_model)
            sharding.read(self.shards, world_model.dynamics_modules())
            _as_stored(world_model.state_dict(), self.model.source).check_finite()
        if policy is not None:
            self.policy.load_into(policy)

    def put_tokenizer(self, world_model: WorldModel) -> None:
        self.tokenizer().load_into(world_model.tokenizer)

    def tokenizer(self) -> Stored:
        """The tensors of the tokenizer alone."""
        tensors = {key.partition(".")[2]: x for key, x in self.model.tensors.items() if key.startswith("tokenizer.")}
        return _as_stored(tensors, self.model.source, "tokenizer")


def load(out: Path | str) -> Saved:
    """Load the last checkpoint of a run. Raises UserError if there is none, or if its files are not what a run saves."""
    source = Path(out) / "checkpoint"
    modules, state = checkpoint.load(source)
    forms.check(state, STATE, source / checkpoint.STATE)
    state.setdefault("groups", None)  # what may be missing
    for own in state["ranks"]:
        own.update({key: own.get(key) for key in ("collector", "writer")})
    writers = [each["writer"] is None for each in state["ranks"]]
    if any(writers) != all(writers):
        raise UserError(f"{source / checkpoint.STATE} is damaged, only some processes wrote episodes: restore it from a copy")
    shards = checkpoint.shards(source)
    dynamics = modules.get("dynamics", {}) if shards is None else sharding.sizes(shards)
    tensors = {f"tokenizer.{key}": x for key, x in modules.get("tokenizer", {}).items()}
    names = {str(i): name for i, name in enumerate(PARTS_OF_MODEL[1:])}  # as in `WorldModel.dynamics_modules`
    for key, x in dynamics.items():
        number, _, name = key.partition(".")
        tensors[f"{names.get(number, 'dynamics')}.{name}"] = x
    policy = _as_stored(modules["policy"], source, "policy") if "policy" in modules else None
    return Saved(_as_stored(tensors, source), policy, state, shards)


def load_sources(
    spec: RunSpec, frame: tuple[int, ...], actions: Actions, frame_dtype: str = "uint8"
) -> dict[str, Saved]:
    """Load the runs that load.* names; their parts must be trained and have the sizes of the config. Raises UserError."""
    cfg, sources = spec.cfg, {key: load(folder) for key, folder in spec.loads.items()}
    for key, saved in sources.items():
        part = "tokenizer" if key == "load.tokenizer" else "dynamics"
        if saved.state["count"][part] == 0:
            raise UserError(f"{key}={spec.loads[key]} has an untrained {part}: expected the out= of `train {part}`")
        try:
            if part == "dynamics":
                saved.check_sizes(cfg, frame, actions, frame_dtype)
            else:
                section = cfg["tokenizer"]
                saved.tokenizer().outline(lambda section=section: schema.build(section, frame_shape=frame), [section])
        except UserError as error:
            source, here = saved_config.load(spec.loads[key]).parts["env"]["id"], cfg["env"]["id"]
            if source == here:
                raise
            reason = str(error).removesuffix(f": {MISMATCH}")
            raise UserError(f"{key}={spec.loads[key]} was trained on {source} and does not fit {here}, which has frames {frame}"
                            f" and {actions.describe()} ({reason}): train a new one") from None  # fmt: skip
    return sources


def put_run(run: Run, saved: Saved) -> None:
    """Copy weights and counters into a run that `build_run` made."""
    saved.put(run.world_model, run.policy)
    for name in ("epoch", "count", "seconds", "results", "curve"):
        setattr(run, name, saved.state[name])


def _as_stored(tensors: dict[str, Tensor], source: Path, part: str | None = None) -> Stored:
    return Stored(tensors, source, "config.yaml", MISMATCH, DIVERGED, part)


# ---------------------------------------------------------------------------------------------------------------------
# Optimizers


def put_optimizers(run: Run, saved: Saved) -> None:
    """Restore the optimizers of a run that has its weights. Raises UserError where they are of other parameters."""
    where = saved.model.source / checkpoint.STATE
    for name, state in saved.state["optimizers"].items():
        if run.modules(name) is None:
            raise UserError(f"{where} has an optimizer of a part that this run does not train, {name[:40]!r}: {MISMATCH}")
        optimizer = run.optimizer(name, lr=1.0)
        groups = _groups(optimizer, state["param_groups"], name, where)
        moments = _moments(optimizer, state.get("state"), name, where)
        if _is_broken(moments):
            run.log.say(f"the saved state of the {name} optimizer is not finite: it starts again from zero")
            moments = {}
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
    if saved.state["groups"] is not None:
        if saved.shards is None:
            raise UserError(f"{where} is of a sharded model, but there are no {checkpoint.SHARDS}: restore them from a copy")
        run.shard()
        optimizer = run.optimizer("dynamics", lr=1.0)
        groups = _groups(optimizer, saved.state["groups"], "dynamics", where)
        for group, each in zip(optimizer.param_groups, groups, strict=True):
            group.update({key: each[key] for key in HYPER})
        sharding.read(saved.shards, run.modules("dynamics"), optimizer)


def _groups(optimizer: torch.optim.Optimizer, saved: list[dict], name: str, where: Path) -> list[dict]:
    """The groups of parameters of a new optimizer, with the saved learning rates."""
    own = optimizer.state_dict()["param_groups"]
    if [len(each["params"]) for each in own] != [_length(each.get("params")) for each in saved]:
        raise UserError(f"{where} does not fit: the {name} optimizer is of other parameters than those of this run: {MISMATCH}")
    if any(not 0 <= beta < 1 for each in saved for beta in each["betas"]):
        raise UserError(f"{where} is damaged, betas of the {name} optimizer must lie in 0..1: restore it from a copy")
    return [
        group | {key: tuple(each[key]) if key == "betas" else each[key] for key in HYPER}
        for group, each in zip(own, saved, strict=True)
    ]


def _length(params: Any) -> int:
    return len(params) if isinstance(params, list) else -1


def _moments(optimizer: torch.optim.Optimizer, saved: Any, name: str, where: Path) -> dict[int, dict[str, Tensor]]:
    """The saved moments of each parameter, of which there are as many as the parameter has elements."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    muon = {id(p) for group in optimizer.param_groups if "muon" in group for p in group["params"]}
    if not isinstance(saved, dict) or not all(isinstance(key, int) and 0 <= key < len(parameters) for key in saved):
        raise UserError(f"{where} does not fit: the {name} optimizer is of other parameters than those of this run: {MISMATCH}")
    for i, state in saved.items():
        shape = parameters[i].shape
        expected = {"step": torch.Size(), "exp_avg": shape} | ({} if id(parameters[i]) in muon else {"exp_avg_sq": shape})
        expected |= {"last": shape} if getattr(optimizer, "average", 0) else {}
        fits = isinstance(state, dict) and state.keys() == expected.keys()
        if not fits or not all(torch.is_tensor(x) and x.is_floating_point() for x in state.values()):
            raise UserError(f"{where} is damaged, the {name} optimizer has no step and moments of parameter {i}: restore it"
                            " from a copy")  # fmt: skip
        for key, x in state.items():
            if x.shape != expected[key]:
                raise UserError(f"{where} does not fit, {key} of parameter {i} of the {name} optimizer has shape"
                                f" {tuple(x.shape)}, expected {tuple(expected[key])}: {MISMATCH}")  # fmt: skip
    return {i: {key: x.detach().clone() for key, x in state.items()} for i, state in saved.items()}


def _is_broken(moments: dict[int, dict[str, Tensor]]) -> bool:
    """Is a moment NaN or infinite, or a square negative?"""
    tensors = [x for state in moments.values() for x in state.values()]
    roots = [state[key] for state in moments.values() for key in ("step", "exp_avg_sq") if key in state]
    return any(count_not_finite(x) for x in tensors) or any(bool((x < 0).any()) for x in roots)


# ---------------------------------------------------------------------------------------------------------------------
# What a process alone knows


def put_generators(run: Run, own: dict, generator: Tensor, shuffler: Tensor, alone: bool) -> None:
    """Restore what a run draws from; alone: also what this process drew by itself.

    States of another kind of device (or damaged ones) are replaced by the run's seed and epoch, and the log says so.
    """
    seed = int(np.random.SeedSequence([run.seed, run.epoch]).generate_state(1)[0])
    restored = [_put(run.generator, generator, seed), _put(run.shuffler, shuffler, seed + 1)]
    if alone:
        run.rng.bit_generator.state = own["batches"] | {"bit_generator": run.rng.bit_generator.state["bit_generator"]}
        if run.acting is not run.generator:
            restored.append(_put(run.acting, own["acting"], seed + 2))
    if not all(restored):
        run.log.say(f"the saved random state does not fit the device {run.device.type}: draws now follow from seed and epoch")


def put_global_generators(run: Run, own: dict) -> None:
    """Restore the generators of Python, NumPy and torch: last, because building and playing draw from them."""
    try:
        checkpoint.set_rng_state(own["rng"])
    except (RuntimeError, ValueError, TypeError, OverflowError, KeyError):
        torch.manual_seed(run.seed + run.epoch)
        run.log.say("the saved state of the global random generators is damaged: it follows from the seed from now on")


def _put(generator: torch.Generator, state: Tensor, seed: int) -> bool:
    try:
        generator.set_state(state.cpu())
        return True
    except RuntimeError:
        generator.manual_seed(seed)
        return False


def collector_state(own: dict) -> dict[str, Any] | None:
    """The saved state of the games that a process plays, with arrays; None if it plays none."""
    if own["collector"] is None:
        return None
    return {key: value.numpy() if torch.is_tensor(value) else value for key, value in own["collector"].items()}


def collector_of(out: Path | str, actions: Actions) -> dict[str, Any] | None:
    """The checked `collector_state` of the first process of a run in a folder."""
    saved = load(out)
    _check_games(saved.state["ranks"][0], actions, saved.model.source / checkpoint.STATE)
    return collector_state(saved.state["ranks"][0])


def check_ranks(run: Run, ranks: list[dict], where: Path) -> None:
    """Raise UserError for games and codes that this run's environment and tokenizer cannot have, before anything is written."""
    tokenizer = run.world_model.tokenizer
    K, V, shape = tokenizer.K, tokenizer.V, (tokenizer.K,) if tokenizer.V else (tokenizer.K, tokenizer.E)
    for own in ranks:
        _check_games(own, run.world_model.shapes.actions, where)
        for name, state in own["code_cache"].items():
            codes, version = state.get("codes"), state.get("version")
            if (codes is None) != (version is None) or codes is not None and codes.shape != (len(version), *shape):
                raise UserError(f"{where} is damaged, the codes of {name} are not {K} for each row: restore it from a copy")
            codes = None if codes is None else codes[version != UNCODED]
            if codes is not None and V and codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < V:
                raise UserError(f"{where} has codes {codes.min()}..{codes.max()}, the tokenizer has 0..{V - 1}: {MISMATCH}")


def _check_games(own: dict, actions: Actions, where: Path) -> None:
    state = collector_state(own)
    if state is None:
        return
    log, cuts = state["actions"], state["cuts"]
    if log.shape[2:] != actions.row or log.ndim != 2 + len(actions.row):
        raise UserError(f"{where} has actions of shape {log.shape[2:]}, the environment has {actions.row}: {MISMATCH}")
    outside = space_format.first_outside(actions, log.reshape(-1, *actions.row))  # (M N,) or (M N, A)
    if outside is not None:
        raise UserError(f"{where} has actions {outside}, the environment has {space_format.limits(actions)}: {MISMATCH}")
    if cuts.shape[1] != 2 or cuts.size and not (0 <= int(cuts.min()) and int(cuts[:, 0].max()) <= len(log)):
        raise UserError(f"{where} is damaged, it cuts games that were not played: restore it from a copy")
