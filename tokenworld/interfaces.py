"""The seams of tokenworld: read this file first.

frames --tokenizer--> codes --\\
                                decoding( backbone ) --> h --> heads --> reward, termination
actions --action encoder------/         \\--> next codes --tokenizer.decode--> frames

Dimension letters, used in every shape comment of the library:

    B batch · T time steps · K codes per frame · V codebook size · P positions per step · D model width · E code width
    A numbers of one action · G groups · C,H,W pixels · h,w code grid · N heads · L = T*P · S cached positions

Alignment, decided once: `obs[t]` is seen, `action[t]` is taken at `obs[t]`; `reward[t]`, `terminated[t]`, `truncated[t]`
are what `env.step(action[t])` returned, and `obs[t+1]` came with them. An episode's last observation has no action:
`acted[t]` is false there. `first[t]` marks the first observation of an episode. `valid[t]` masks padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from tokenworld.action_space import Actions

Losses = dict[str, Tensor]  # each (B, T), (B, T-1) or () for a loss that has no step; unweighted and unmasked


@runtime_checkable
class Part(Protocol):  # Optional hooks with defaults, for callers to call and not to ask for. Parts inherit nn.Module and Part
    patch: int | None = None  # tokenizer: side of its patches in pixels; None: it does not cut frames into patches
    frame_dtype: str = "uint8"  # tokenizer: of the frames that it reads, see `Shapes`
    receptive_field: int | None = None  # backbone: steps that an output depends on; None: all of them
    scans: bool = False  # backbone: its call with a cache has a gradient, and rows of its state can be replaced
    temperature: float | None = None  # decoding: None without a sampling temperature
    signs_only: bool = False  # reward head: it learns the signs of rewards, not their sizes

    # tokenizer, decoding: fit to what `sample` draws, before the first update; the codes are None for a tokenizer
    def prepare(self, sample: Callable[[], tuple[Steps, Codes | None]]) -> None: ...
    def finalize(self, batches: Iterator[Steps]) -> None: ...  # tokenizer: fit to all frames after the last update
    def codes_in_use(self) -> int | None: ...  # tokenizer: n, if it has learned only the codes 0..n-1 so far; None: all V
    def set_codebook(self, vectors: Tensor, used: int) -> None: ...  # decoding: code vectors (V, E), the first `used` in use
    def parameter_groups(self) -> list[tuple[float, list[Tensor]]] | None: ...  # [(scale of the learning rate, parameters)]
    def portable(self) -> dict[str, Any] | None: ...  # backbone: keywords that build it without its files; None: the recipe's
    # backbone: x (B, T, P, D) -> weights (B, layers, N, L, L), query before key; None: it has no attention maps
    def attention(self, x: Tensor, within: str, first: Tensor | None = None) -> Tensor | None: ...


@dataclass(frozen=True)
class Shapes:  # A decoding is built with those of tokenizer and backbone; all others see `decoding.shapes`
    frame: tuple[int, int, int]  # C, H, W; a state vector of M numbers is (M, 1, 1)
    actions: Actions
    grid: tuple[int, int]  # h, w of the code grid
    codes: int  # K
    vocab_size: int  # V; 0: the codes have no indices
    code_dim: int  # E
    dim: int  # D: of the backbone; of h, in those of a decoding
    frame_dtype: str = "uint8"  # or "float32", for state vectors in their own units


class Record:  # Tensors with the same leading dimensions, indexed and moved together; each may be None
    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(*(None if (x := getattr(self, f.name)) is None else change(x) for f in fields(self)))

    def __getitem__(self, index) -> Self:  # `steps[:, :5]` are the first five time steps
        return self.map(lambda x: x[index])

    def to(self, device: torch.device | str) -> Self:
        return self.map(lambda x: x.to(device, non_blocking=True))


@dataclass(frozen=True)
class Steps(Record):  # A batch of real experience, (B, T) everywhere; for the alignment see the module's docstring
    obs: Tensor  # (B, T, C, H, W) uint8, 0..255, or float32 (`Shapes.frame_dtype`)
    action: Tensor  # (B, T) int64, or (B, T, A) float32 (`Actions`); zero where not acted
    reward: Tensor  # (B, T) float32
    terminated: Tensor  # (B, T) bool, as are all below
    truncated: Tensor
    first: Tensor
    acted: Tensor
    valid: Tensor


@dataclass(frozen=True)
class Codes(Record):  # What stands for a batch of frames: one or more of these, passed on whole by all that do not look inside
    indices: Tensor | None = None  # (B, T, K) int64
    vectors: Tensor | None = None  # (B, T, K, E)
    logits: Tensor | None = None  # (B, T, K, V) of a posterior, with a gradient in joint training

    @property
    def shape(self) -> torch.Size:  # (B, T)
        return next(x for x in (self.indices, self.vectors, self.logits) if x is not None).shape[:2]


@dataclass(frozen=True)
class Prediction:  # The next step, as a decoding sampled or scored it; the world model fills in `reward` and `terminated`
    codes: Codes  # T = 1, as drawn or read; a decoding that `has_posterior` returns its own, not those it was given
    h: Tensor  # (B, D), the summary of the step that led to these codes; zero before the first prediction
    score: Any = None  # () -> logits (B, K, V) of each code given those before it; always None: no likelihood (nn.logprob)
    reward: Any = None  # a distribution: .mean (B,), .sample(noise), .loss(target)
    terminated: Any = None  # likewise; .mean is the probability of termination


@dataclass(frozen=True)
class Trajectory:  # H imagined steps: what the policy saw at t = 0..H, its actions at t = 0..H-1 and their results
    codes: Codes  # (B, H+1, ...)
    h: Tensor | None  # (B, H+1, D); None: the dynamics did not follow real steps
    action: Tensor  # (B, H), or (B, H, A)
    reward: Tensor  # (B, H) float32
    terminated: Tensor  # (B, H) bool, or probabilities (`imagine(expected_end=True)`)
    alive: Tensor  # (B, H+1) bool: not terminated before step t; what follows does not count. Likewise probabilities
    frames: Tensor | None  # (B, H+1, C, H, W) decoded, if the policy needs pixels
    carry: Any  # the policy's carry before t = 0


@runtime_checkable
class State(Protocol):  # The model's memory as a value, opaque to all but its decoding. A `step` may consume its argument
    def select(self, index: Tensor) -> State: ...  # gather or repeat rows (B',) int64: the only copy, the state stays usable
    def put(self, rows: Tensor, other: State) -> State | None:  # with other's rows in place of `rows`; None: it cannot
        return None


class Tokenizer(Part, Protocol):  # Frames to K codes and back
    K: int
    V: int  # 0: vectors without indices
    E: int
    grid: tuple[int, int]  # h, w with h * w = K
    context: int  # past frames that `encode` and `decode` look at; 0 for a frame-by-frame tokenizer
    joint: bool  # it can be trained with the dynamics: `encode` has a gradient, and `loss` takes codes that were encoded before
    weights: dict[str, float]  # of the losses, the same names
    def encode(self, steps: Steps) -> Codes: ...  # indices and vectors of T frames; no codebook update; fixed in eval mode
    def embed(self, indices: Tensor) -> Tensor: ...  # (B, T, K) -> code vectors (B, T, K, E)
    # codes -> obs (B, T, C, H, W) float in 0..1, of vectors in own units; past (B, context, C, H, W) is needed when context > 0
    def decode(self, codes: Codes, past: Tensor | None = None) -> Tensor: ...
    # of its own codes, or of these; in train mode it may move an EMA codebook. Losses (B, T) are of frames: terminal ones, too
    def loss(self, steps: Steps, codes: Codes | None = None) -> tuple[Losses, Codes]: ...


class Backbone(Part, Protocol):  # The sequence model. Across steps attention is causal; within a step `causal` or `full`
    D: int
    context: int  # steps that a step can look back on, itself included
    # x (B, T, P, D) -> h (B, T, P, D), cache. With a cache, x continues it: T whole steps or (T = 1) p < P positions of one
    # step. A step where `first` (B, T) is true and all later ones do not see what came before. keep=False (T = 1): x is read
    # and forgotten, the cache goes on as if it had not been.
    def __call__(self, x: Tensor, within: str, cache=None, first: Tensor | None = None, keep=True) -> tuple[Tensor, Any]: ...
    # an empty cache for `batch` rows of steps with `positions` (P) each; has `.select(index)`
    def make_cache(self, batch: int, positions: int, dtype: torch.dtype | None = None) -> Any: ...


class Decoding(Part, Protocol):  # Owns all that must agree between training and sampling: order, masks, shifts, loss, sampler
    passes: int  # forward passes of the backbone per imagined frame
    lookahead: int  # frames that h has seen beyond its step: 0, or 1 where h is read after the next codes were drawn
    noise_size: int  # uniform numbers per drawn frame
    has_posterior: bool  # its codes depend on h: a policy in the real environment needs the dynamics to follow along
    joint_draw: bool  # it draws the codes of a frame with regard to each other
    shapes: Shapes  # of the codes and the h that it returns
    weights: dict[str, float]  # of the losses, the same names

    # Teacher forcing. Losses (B, T-1): entry t is that of predicting frame t+1 from frames ..t; a mean over K. h (B, T -
    # lookahead, D): h[:, t] has seen frames ..t+lookahead and action[t]; the heads read reward[t], terminated[t] in it.
    # The codes are those that the tokenizer's loss decodes in joint training: the posterior's, or those given.
    def loss(self, backbone: Backbone, codes: Codes, steps: Steps) -> tuple[Losses, Tensor, Codes]: ...
    # Read T frames and the T-1 actions between them. The prediction is that of the last frame; its h is zero in rows where the
    # last frame is the first of its episode (or T = 1).
    def start(self, backbone: Backbone, codes: Codes, steps: Steps) -> tuple[Prediction, State]: ...
    # Take action (B,) or (B, A). Sample the next codes with noise (B, noise_size) uniform, or read and score `codes` (T = 1);
    # rows with first (B,) true then begin a new episode with them. May consume `state`. noise, codes, first may be None.
    def step(self, backbone: Backbone, state, action: Tensor, noise, codes=None, first=None) -> tuple[Prediction, State]: ...


class ActionEncoder(Part, Protocol):  # Built for actions and a width
    def __call__(self, action: Tensor) -> Tensor: ...  # (B, T) or (B, T, A) -> (B, T, D)


class Head(Part, Protocol):
    def __call__(self, h: Tensor) -> Any: ...  # (..., D) -> a distribution: .loss(target), .mean, .sample(noise), all (...)


@dataclass(frozen=True)
class View:  # What a policy sees of one step: the codes and the h that predicted them; pixels on demand
    codes: Codes  # T = 1
    h: Tensor  # (B, D)
    decode: Any  # () -> obs (B, C, H, W) as `Tokenizer.decode` returns it: the *reconstruction* of the codes
    dream: Any = None  # rollouts from here (`imagination.Ahead`), if the dynamics follows along


class Policy(Part, Protocol):  # Acts on views, learns on imagined trajectories; `carry`: its memory, a row per episode, or None
    needs_pixels: bool  # imagined frames are decoded for it
    needs_h: bool  # the dynamics follows along in the real environment
    noise_size: int  # uniform numbers per action
    weights: dict[str, float]  # of the losses, the same names
    def start(self, batch: int) -> Any: ...  # a fresh carry
    def act(self, view: View, carry: Any, noise: Tensor, temperature: float = 1.0) -> tuple[Tensor, Any]: ...
    def follow(self, view: View, carry: Any) -> Any: ...  # the carry after a view on which another policy acted
    def loss(self, imagined: Trajectory) -> Losses: ...
    # losses to step on, one after the other: how often and in which parts it learns from a rollout; calls loss or self.loss
    def updates(self, imagined: Trajectory, generator: torch.Generator, loss: Any = None) -> Iterator[Losses]: ...
    def track(self) -> None: ...  # after each optimizer step, for slow copies
