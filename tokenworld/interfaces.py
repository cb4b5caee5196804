"""The seams of tokenworld: read this file first.

frames --tokenizer--> codes --\\
                                decoding( backbone ) --> h --> heads --> reward, termination
actions --action encoder------/         \\--> next codes --tokenizer.decode--> frames

Dimension letters, used in every shape comment of the library:

    B batch · T time steps · K codes per frame · V codebook size · P positions per step · D model width · E code width
    A number of actions or action size · G groups · C,H,W pixels · h,w code grid · N heads · L = T*P · S cached positions

Alignment, decided once: `obs[t]` is seen, `action[t]` is taken at `obs[t]`; `reward[t]`, `terminated[t]`, `truncated[t]`
are what `env.step(action[t])` returned, and `obs[t+1]` came with them. An episode's last observation has no action:
`acted[t]` is false there. `first[t]` marks the first observation of an episode. `valid[t]` masks padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

Losses = dict[str, Tensor]  # each (B, T), (B, T-1) or () for a loss that has no step; unweighted and unmasked


@dataclass(frozen=True)
class Shapes:
    """The numbers that follow from the environment and the tokenizer: passed to parts by code, never written in a recipe."""

    frame: tuple[int, int, int]  # C, H, W
    actions: int  # A
    grid: tuple[int, int]  # h, w of the code grid
    codes: int  # K
    vocab_size: int  # V
    code_dim: int  # E
    dim: int  # D of the backbone


@dataclass(frozen=True)
class Steps:
    """A batch of real experience, (B, T) everywhere; see the alignment rules in the module's docstring."""

    obs: Tensor  # (B, T, C, H, W) uint8, 0..255
    action: Tensor  # (B, T) int64, or (B, T, A) float32; zero where not acted
    reward: Tensor  # (B, T) float32
    terminated: Tensor  # (B, T) bool
    truncated: Tensor  # (B, T) bool
    first: Tensor  # (B, T) bool
    acted: Tensor  # (B, T) bool
    valid: Tensor  # (B, T) bool

    def __getitem__(self, index) -> Steps:
        """Index every field alike: `steps[:, :5]` are the first five time steps."""
        return Steps(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def to(self, device: torch.device | str) -> Steps:
        return Steps(**{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    def pinned(self) -> Steps:
        """In memory that the system may not move: a GPU copies from it while it works."""
        return Steps(**{f.name: getattr(self, f.name).pin_memory() for f in fields(self)})


@dataclass(frozen=True)
class Codes:
    """What a tokenizer returns for a batch of frames."""

    indices: Tensor | None = None  # (B, T, K) int64
    vectors: Tensor | None = None  # (B, T, K, E)
    logits: Tensor | None = None  # (B, T, K, V)


@dataclass(frozen=True)
class Prediction:
    """The next step, as a decoding scheme sampled or scored it; the world model fills in `reward` and `terminated`."""

    codes: Codes  # T = 1
    h: Tensor  # (B, D), the summary of the step that led to these codes; zero before the first prediction
    score: Any = None  # () -> logits (B, K, V) of each code given those before it, None where a scheme has no likelihood
    reward: Any = None  # a distribution: .mean (B,), .sample(noise), .loss(target)
    terminated: Any = None  # likewise; .mean is the probability of termination

    @property
    def logprob(self) -> Tensor | None:
        """(B, K) of the codes, in nats; None where a scheme cannot give it. Computed only when asked for."""
        if self.score is None:
            return None
        logp = self.score().float().log_softmax(-1)
        return logp.gather(-1, self.codes.indices[:, 0].unsqueeze(-1)).squeeze(-1)

    @property
    def entropy(self) -> Tensor | None:
        """(B, K) in nats, of each code given those before it; None where a scheme cannot give it."""
        if self.score is None:
            return None
        logp = self.score().float().log_softmax(-1)
        return -(logp.exp() * logp).sum(-1)


@runtime_checkable
class State(Protocol):
    """The world model's memory as a value: opaque to all but the decoding that made it. A `step` may consume its argument."""

    def select(self, index: Tensor) -> State:
        """Gather or repeat rows: index (B',) int64 into the batch. The only copy; the argument stays usable."""


class Tokenizer(Protocol):
    """Frames to K discrete codes out of V and back. An `nn.Module`."""

    K: int
    V: int
    E: int
    grid: tuple[int, int]  # h, w with h * w = K
    context: int  # past frames that `encode` and `decode` look at; 0 for a frame-by-frame tokenizer
    weights: dict[str, float]  # of the losses, the same names
    # Optional, called by the trainer if there: `prepare(steps)` before the first update, `refit(batches)` after the last.
    # Optional: `used`, the number of codes in use so far (0..used-1), for a codebook that grows.

    def encode(self, steps: Steps) -> Codes:
        """obs (B, T, C, H, W) uint8 -> indices (B, T, K), vectors (B, T, K, E). No gradient, no codebook update."""

    def embed(self, indices: Tensor) -> Tensor:
        """indices (B, T, K) -> code vectors (B, T, K, E)."""

    def decode(self, codes: Codes, past: Tensor | None = None) -> Tensor:
        """codes -> obs (B, T, C, H, W) float in 0..1. `past` (B, context, C, H, W): needed when context > 0."""

    def loss(self, steps: Steps) -> tuple[Losses, Codes]:
        """The training losses of a batch of frames, and its codes. In train mode it may move an EMA codebook."""


class Backbone(Protocol):
    """The sequence model. Across steps attention is causal; within a step `causal` or `full`. An `nn.Module`."""

    D: int
    context: int  # steps that a step can look back on, itself included
    # Optional: `parameter_groups()` -> [(scale of the learning rate, parameters)], for what learns at another pace;
    # `reach`: steps that an output depends on, if they are fewer than all; `portable()` -> keywords that build it again where
    # the files it was made from are not there.

    def __call__(self, x: Tensor, within: str, cache: Any = None, first: Tensor | None = None) -> tuple[Tensor, Any]:
        """x (B, T, P, D) -> h (B, T, P, D), cache.

        With a cache, x continues it: T whole steps or (T = 1) p < P positions of one step. `first` (B, T) cuts the
        attention: a step where it is true and all later ones do not see what came before.
        """

    def make_cache(self, batch: int, positions: int, dtype: torch.dtype | None = None) -> Any:
        """An empty cache for `batch` rows of steps with `positions` (P) each; has `.select(index)`."""


class Decoding(Protocol):
    """Owns everything that must agree between training and sampling: embedding order, masks, shifts, loss, sampler."""

    passes: int  # forward passes of the backbone per imagined frame
    ahead: int  # frames that h has seen beyond its step: 0, or 1 where h is read after the next codes were drawn
    weights: dict[str, float]  # of the losses, the same names
    # Optional, called by the trainer if there: `prepare(codes, steps)` before the first update; `set_codebook(vectors, used)`
    # before the updates of each epoch, with the tokenizer's code vectors (V, E), of which the first `used` are in use.

    def loss(self, backbone: Backbone, codes: Codes, steps: Steps) -> tuple[Losses, Tensor]:
        """Teacher forcing. Losses (B, T-1): entry t is that of predicting frame t+1 from frames ..t; a mean over K.
        h (B, T - ahead, D): h[:, t] has seen frames ..t+ahead and action[t]; the heads read reward[t], terminated[t] in it."""

    def start(self, backbone: Backbone, codes: Codes, steps: Steps) -> tuple[Prediction, Any]:
        """Read T frames and the T-1 actions between them. The prediction is that of the last frame; its h is zero in rows
        where the last frame is the first of its episode (or T = 1)."""

    def step(
        self,
        backbone: Backbone,
        state: Any,
        action: Tensor,
        noise: Tensor | None,
        codes: Codes | None = None,
        first: Tensor | None = None,
    ) -> tuple[Prediction, Any]:
        """One environment step: action (B,). Samples the next codes with noise (B, K) uniform, or, given `codes` (T = 1),
        consumes and scores those; rows with first (B,) true then begin a new episode with them. May consume `state`."""


class ActionEncoder(Protocol):
    """Actions to vectors: (B, T) or (B, T, A) -> (B, T, D). An `nn.Module`."""

    A: int

    def __call__(self, action: Tensor) -> Tensor: ...


class Head(Protocol):
    """h (..., D) -> a distribution with .loss(target) (...), .mean (...), .sample(noise (...)) (...). An `nn.Module`."""

    def __call__(self, h: Tensor) -> Any: ...


@dataclass(frozen=True)
class View:
    """What a policy sees of one step: the codes and the h that predicted them; pixels on demand."""

    codes: Codes  # T = 1
    h: Tensor  # (B, D)
    decode: Any  # () -> obs (B, C, H, W) float in 0..1, the *reconstruction* of the codes
    dream: Any = None  # (actions (B, S, H), noise (B, S, H, K)) -> H predictions of B*S rows; if the dynamics follows along


class Sink(Protocol):
    """Where the numbers and pictures of a run go beside its folder. Its keyword-only settings are those of an entry of
    `train.loop.sinks`; code passes what it takes of `folder` (the run's), `config` (the recipe) and `step` (where
    it goes on)."""

    package: str | None  # what must be installed, imported when the sink is opened

    def log(self, numbers: dict[str, float], step: int) -> None:
        """Numbers by name, `phase/key`. `step`: real environment steps so far."""

    def picture(self, name: str, path: Any, step: int) -> None:
        """A png or gif that was written to `path`."""

    def close(self) -> None:
        """Nothing more comes."""


class Policy(Protocol):
    """Acts on views, learns on imagined trajectories. An `nn.Module`."""

    needs_pixels: bool  # dreams are decoded for it
    needs_h: bool  # the dynamics follows along in the real environment
    weights: dict[str, float]  # of the losses, the same names

    def start(self, batch: int) -> Any:
        """A fresh carry (recurrent state) for `batch` rows; None if the policy has none."""

    def act(self, view: View, carry: Any, noise: Tensor, temperature: float = 1.0) -> tuple[Tensor, Any]:
        """noise (B,) uniform -> action (B,), carry."""

    def follow(self, view: View, carry: Any) -> Any:
        """The carry after a view on which somebody else acted."""

    def loss(self, imagined: Any) -> Losses:
        """The losses of a `Trajectory` made by `imagination.imagine`."""

    def updates(self, imagined: Any, generator: torch.Generator, loss: Any = None) -> Iterator[Losses]:
        """Losses to step on, one after the other: how often and in which parts a dream is learnt from. `loss`: what to call
        in place of self.loss."""

    def track(self) -> None:
        """Called after each optimiser step, for slow copies."""
