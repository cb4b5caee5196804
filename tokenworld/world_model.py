"""The world model: tokenizer, backbone, decoding and heads composed. It imports no concrete part; parts are arguments."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokenworld import arguments
from tokenworld.action_space import Actions
from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, Losses, Prediction, Shapes, Steps, View
from tokenworld.nn import check_device, copy_for_inference
from tokenworld.steps import frames_as_steps

PARTS_OF_MODEL = ("tokenizer", "backbone", "decoding", "reward", "termination")


class WorldModel(nn.Module):
    """Frames in, imagined frames, rewards and terminations out.

    `forward(steps)` is the dynamics' loss (the tokenizer is frozen in it); `start`, `step`, `observe` and `rollout` run the
    model with state as a value: a step may consume the state it is given, `state.select(index)` makes a copy.
    """

    def __init__(self, *, tokenizer, backbone, decoding, reward, termination):
        super().__init__()
        assert tokenizer.context == 0, f"frames are encoded one by one, got a tokenizer that looks back {tokenizer.context}"
        self.shapes: Shapes = decoding.shapes
        self.noise_size = decoding.noise_size + 2  # uniform numbers of one imagined step: codes, reward, termination
        self.tokenizer, self.backbone, self.decoding = tokenizer, backbone, decoding
        self.reward, self.termination = reward, termination
        self.weights = {**decoding.weights, "reward": 1.0, "termination": 1.0}
        self.config: dict[str, Any] = {}  # what its config.json says, see `save_pretrained`; empty if put together by hand

    @classmethod
    def from_config(cls, config: dict, *, frame: tuple[int, int, int], actions: Actions | int) -> WorldModel:
        """Build the parts that a recipe names for frames (C, H, W) and these actions, a number for numbered ones."""
        from tokenworld.config.parts import build_parts
        from tokenworld.config.targets import PARTS

        frame = arguments.sizes("frame", frame, "CHW")
        model = cls(**build_parts(config, frame=frame, actions=arguments.space(actions)))
        model.config = {"parts": {name: dict(config[name]) for name in PARTS if name in config}}
        return model

    @classmethod
    def from_recipe(cls, recipe: str, *overrides: str, frame: tuple[int, int, int], actions: Actions | int) -> WorldModel:
        """`WorldModel.from_recipe("quickstart", "backbone.layers=4", frame=(4, 10, 10), actions=3)`: untrained."""
        from tokenworld.config.compose import compose

        return cls.from_config(compose([f"recipe={recipe}", *overrides]).cfg, frame=frame, actions=actions)

    # --- as a folder that others can load ---

    def save_pretrained(self, dir: Path | str, *, policy: nn.Module | None = None, starts: Steps | None = None) -> None:
        """Write config.json, model.safetensors and a model card to `dir`, with a policy (see `tokenworld.Agent`) and real
        steps (N, T) to start rollouts from. Raises UserError for a folder that holds something else, a full disk, and a model
        that was not built from a config."""
        from tokenworld.storage import model_folder

        model_folder.save_model(self, dir, PARTS_OF_MODEL, policy=policy, starts=starts)

    @classmethod
    def from_pretrained(
        cls, source: Path | str, *, device: torch.device | str = "cpu", trust_remote_code: bool = False, **asked: Any
    ) -> WorldModel:
        """A world model that `save_pretrained` or `tokenworld export` wrote, in eval mode: a folder, or an id on the Hugging
        Face hub (asked: revision, token, cache_dir, local_files_only). Its config may only name classes of tokenworld's own
        part folders, unless trust_remote_code. Raises UserError for a model that is not there, one that names anything else,
        and weights that do not fit."""
        from tokenworld.storage import hub, model_folder

        device, folder = check_device(device), hub.find(source, **asked)
        return model_folder.load_model(cls, folder, trust_remote_code=trust_remote_code).to(device).eval()

    def push_to_hub(self, repo: str, *, private: bool = False, token: str | None = None, **saved: Any) -> str:
        """`save_pretrained` to the hub id `repo` -> its address. Raises UserError without a network or a login."""
        from tokenworld.storage import hub

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "model", **saved)
            return hub.push(Path(folder) / "model", repo, private=private, token=token)

    # --- its parts ---

    @property
    def device(self) -> torch.device:
        """Where the dynamics' weights are."""
        return next(iter(self.dynamics_modules().parameters())).device

    def dynamics_modules(self) -> nn.ModuleList:
        """Everything but the tokenizer: what the dynamics' optimizer trains."""
        return nn.ModuleList([self.backbone, self.decoding, self.reward, self.termination])

    def share_codebook(self) -> None:
        """Pass the tokenizer's code vectors to a decoding that uses them: call it whenever the tokenizer has changed."""
        tokenizer, used = self.tokenizer, self.tokenizer.codes_in_use()
        if not tokenizer.V:
            return
        vectors = tokenizer.embed(torch.arange(tokenizer.V, device=self.device).view(1, 1, -1))[0, 0]  # (V, E)
        self.decoding.set_codebook(vectors, tokenizer.V if used is None else used)

    def in_bf16(self) -> WorldModel:
        """Return a frozen copy for imagined rollouts: all in bf16 but the samplers. It decodes, but does not encode."""
        twin = copy_for_inference(self)
        twin.tokenizer.encode = None
        return twin

    def forward(self, steps: Steps, codes: Codes | None = None) -> Losses:
        """The dynamics' losses on real steps: {"codes" (B, T-1), "reward", "termination" (B, T - lookahead)} in nats."""
        return self._losses(steps, self.encode(steps) if codes is None else codes)[0]

    def joint_loss(self, steps: Steps) -> Losses:
        """The losses of dynamics and tokenizer together, the latter's with the codes that the decoding returned: a gradient
        flows from both into the encoder."""
        losses, codes = self._losses(steps, self.tokenizer.encode(steps))
        return losses | self.tokenizer.loss(steps, codes)[0]

    def _losses(self, steps: Steps, codes: Codes) -> tuple[Losses, Codes]:
        losses, h, codes = self.decoding.loss(self.backbone, codes, steps)
        targets = steps[:, : h.shape[1]]
        reward, termination = self.reward(h).loss(targets.reward), self.termination(h).loss(targets.terminated)
        return losses | {"reward": reward, "termination": termination}, codes

    @torch.no_grad()
    def posterior(self, steps: Steps, codes: Codes) -> Codes:
        """The codes of frames (B, T) as the decoding reads them from what the tokenizer returned: what `decode` takes."""
        return self.decoding.loss(self.backbone, codes, steps)[2] if self.decoding.has_posterior else codes

    @torch.no_grad()
    def encode(self, steps: Steps) -> Codes:
        """obs (B, T, C, H, W) uint8, or float32 -> codes. Raises UserError for frames of another type or shape."""
        arguments.frames(steps.obs, self.shapes.frame, "BT", self.shapes.frame_dtype)
        return self.tokenizer.encode(steps)

    def decode(self, codes: Codes) -> Tensor:
        """codes -> obs (B, T, C, H, W) float in 0..1, of vectors in own units. Raises UserError for indices that do not fit."""
        if codes.indices is not None:
            arguments.codes(codes.indices, self.shapes.codes, self.shapes.vocab_size)
        return self.tokenizer.decode(codes)

    def view(self, prediction: Prediction) -> View:
        """What a policy may look at; pixels are decoded only if it asks."""
        return self.view_of(prediction.codes, prediction.h)

    def frames(self, codes: Codes) -> Tensor:
        """codes (B, T, K) -> obs (B, T, C, H, W) uint8 or float32, as the environment gives them."""
        frames = self.decode(codes).float()
        return frames if self.shapes.frame_dtype == "float32" else (frames.clamp(0, 1) * 255).round().to(torch.uint8)

    def view_of(self, codes: Codes, h: Tensor | None = None) -> View:
        """A view of codes with T = 1 that no prediction came with."""
        return View(codes, h, lambda: self.decode(codes)[:, 0])

    @torch.no_grad()
    def start(self, steps: Steps, codes: Codes | None = None) -> tuple[Prediction, Any]:
        """Read T real frames and the T-1 actions between them; the prediction is that of the last frame.

        Raises UserError for frames, codes or actions of another type, shape or range (see `arguments.py`)."""
        codes = self.encode(steps) if codes is None else codes
        if codes.indices is not None:
            arguments.codes(codes.indices, self.shapes.codes, self.shapes.vocab_size)
        arguments.actions(steps.action, self.shapes.actions, tuple(codes.shape), "BT")
        return self.decoding.start(self.backbone, codes, steps)

    @torch.no_grad()
    def step(self, state: Any, action: Tensor, noise: Tensor) -> tuple[Prediction, Any]:
        """action (B,) or (B, A), noise (B, decoding.noise_size) uniform -> codes, reward and termination; consumes `state`.

        Raises UserError for actions or noise of another type, shape or range (see `arguments.py`)."""
        arguments.actions(action, self.shapes.actions, (_rows(state),), "B")
        arguments.noise(noise, (len(action), self.decoding.noise_size), "Bn")
        return self._heads(*self.decoding.step(self.backbone, state, action, noise))

    @torch.no_grad()
    def observe(self, state: Any, action: Tensor, obs: Tensor, first: Tensor) -> tuple[Prediction, Any]:
        """Read the real frame obs (B, C, H, W) that followed `action`; rows with first (B,) begin a new episode.

        Raises UserError for frames, actions or first of another type, shape or range."""
        arguments.actions(action, self.shapes.actions, (_rows(state),), "B")
        steps = frames_as_steps(obs, first, self.shapes.actions)
        if len(obs) != len(action):
            raise UserError(f"{len(obs)} frames followed {len(action)} actions: give one frame for each action")
        codes = self.encode(steps)
        return self._heads(*self.decoding.step(self.backbone, state, action, None, codes, first))

    def split_noise(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Uniform noise (..., noise_size + m) -> that of the next codes (..., n), of reward and termination (..., 2), and the
        rest (..., m), which is a policy's."""
        n = self.decoding.noise_size
        return noise[..., :n], noise[..., n : n + 2], noise[..., n + 2 :]

    def outcome(self, prediction, noise: Tensor, expected_reward=False, expected_end=False) -> tuple[Tensor, Tensor]:
        """Draw reward (B,) and termination (B,) bool with uniform noise (B, 2), or take the mean instead."""
        reward = prediction.reward.mean if expected_reward else prediction.reward.sample(noise[:, 0])
        return reward, prediction.terminated.mean if expected_end else prediction.terminated.sample(noise[:, 1])

    @torch.no_grad()
    def rollout(self, state: Any, actions: Tensor, noise: Tensor) -> list[Prediction]:
        """Futures of given actions (B, S, H) or (B, S, H, A), S branches from each of B states, noise (B, S, H, n):
        H predictions, each of B*S rows (branches of a state together). The argument state stays usable.

        Raises UserError for actions or noise of another type, shape or range."""
        arguments.actions(actions, self.shapes.actions, (_rows(state), None, None), "BSH")
        B, S, H = actions.shape[:3]
        arguments.noise(noise, (B, S, H, self.decoding.noise_size), "BSHn")
        state = state.select(torch.arange(B, device=actions.device).repeat_interleave(S))
        predictions = []
        for t in range(H):
            prediction, state = self.step(state, actions[:, :, t].flatten(0, 1), noise[:, :, t].flatten(0, 1))
            predictions.append(prediction)
        return predictions

    def _heads(self, prediction: Prediction, state: Any) -> tuple[Prediction, Any]:
        h = prediction.h
        return replace(prediction, reward=self.reward(h), terminated=self.termination(h)), state


def _rows(state: Any) -> int | None:
    """How many rows a decoding's state has; None where it does not say."""
    codes = getattr(state, "codes", None)
    return len(codes) if isinstance(codes, Tensor) else None
