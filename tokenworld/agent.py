"""A trained agent in three lines: `Agent.from_pretrained("DIR").act(obs)`."""

from __future__ import annotations

import numbers
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokenworld import arguments, register
from tokenworld.config import schema
from tokenworld.envs.checked import make_checked
from tokenworld.errors import UserError
from tokenworld.imagination import Actor
from tokenworld.interfaces import Steps
from tokenworld.scores.returns import score_policy
from tokenworld.storage import hub, model_folder
from tokenworld.world_model import WorldModel

register()  # who acts may want to act in a dream
HOTTEST = 1e6  # a temperature at which every action is as probable as any other
SCORED = {"max_steps": 10_000}  # where an episode is cut when an agent is scored, unless its config says otherwise


class Agent:
    """A policy that reads the codes of a world model. It remembers the episode that it is in: call `reset` where one begins.

    temperature: of the choice of actions, 0 takes the most probable one · seed: of that choice.
    """

    def __init__(self, world_model: WorldModel, policy, *, temperature: float = 1.0, seed: int = 0):
        is_number = isinstance(temperature, numbers.Real) and not isinstance(temperature, bool)
        if not is_number or not 0 <= temperature <= HOTTEST:
            what = arguments.format_value(temperature)
            raise UserError(f"temperature must be a number from 0 (the most probable action) to {HOTTEST:g}, got {what}")
        self.world_model, self.policy, self.temperature = world_model.eval(), policy.eval(), temperature
        self.device = world_model.device
        self.reset(arguments.seed(seed))

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str,
        *,
        device: torch.device | str = "cpu",
        temperature: float = 1.0,
        seed: int = 0,
        trust_remote_code: bool = False,
        **asked: Any,
    ) -> Agent:
        """An agent that `tokenworld export` or `save_pretrained` wrote: a folder or a hub id, as `WorldModel.from_pretrained`.

        Raises UserError as that does, and for a model without a policy.
        """
        folder = hub.find(source, **asked)
        world_model = WorldModel.from_pretrained(folder, device=device, trust_remote_code=trust_remote_code)
        if "policy" not in world_model.config["parts"]:
            raise UserError(f"{source} is a world model without a policy: load it by WorldModel.from_pretrained")
        section = world_model.config["parts"]["policy"]
        stored = model_folder.read_weights(folder / "policy.safetensors", "policy")
        policy = stored.build_fitting(lambda: schema.build(section, shapes=world_model.shapes), [section])
        return cls(world_model, policy.to(device), temperature=temperature, seed=seed)

    def save_pretrained(self, dir: Path | str, *, starts: Steps | None = None) -> None:
        """World model and policy as one folder, see `WorldModel.save_pretrained`."""
        self.world_model.save_pretrained(dir, policy=self.policy, starts=starts)

    def push_to_hub(self, repo: str, *, private: bool = False, token: str | None = None, starts: Steps | None = None) -> str:
        """`save_pretrained` to the hub id `repo` -> its address. Raises UserError without a network or a login."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "model", starts=starts)
            return hub.push(Path(folder) / "model", repo, private=private, token=token)

    def reset(self, seed: int | None = None) -> None:
        """Forget the episode; with a seed, restart its random choices. Raises UserError for what is no seed."""
        if seed is not None:
            self._generator = torch.Generator(self.device).manual_seed(arguments.seed(seed))
        self._actor = Actor(self.world_model, self.policy, generator=self._generator, temperature=self.temperature)
        self._rows: int | None = None  # frames at a time, since the reset

    def act(self, obs: np.ndarray | torch.Tensor, first: np.ndarray | torch.Tensor | None = None) -> int | np.ndarray:
        """One frame -> an action; N frames -> actions, as rows of `Actions`: a whole number or (N,), else (A,) or (N, A).

        obs: (C, H, W) or (H, W, C), or N of them, bytes or bool, as the training environment gives them (`make_env`), or state
        vectors (M,), (M, 1, 1) or (N, M, 1, 1).
        first (N,) bool: which rows begin an episode; by default all do at the first call after `reset`, and none later. Raises
        UserError for frames of another size or type, and for another number of them than since `reset`.
        """
        frames, single = self._frames(arguments.array("obs", obs))
        N = len(frames)
        if self._rows not in (None, N):
            raise UserError(
                f"obs has {N} frames, the calls before it had {self._rows}, each the next of its episode: call reset()"
            )
        begins = np.full(N, self._rows is None) if first is None else arguments.array("first", first)
        if begins.shape != (N,):
            raise UserError(f"first has shape {begins.shape}, expected ({N},), one for each of the {N} frames")
        self._rows = N
        actions = self._actor(torch.from_numpy(np.ascontiguousarray(frames)), torch.from_numpy(begins.astype(bool)))
        if single:
            return int(actions[0]) if self.world_model.shapes.actions.is_single else actions[0].numpy()
        return actions.numpy()

    def _frames(self, given: np.ndarray) -> tuple[np.ndarray, bool]:
        """Observations as frames (N, C, H, W), and whether it was only one."""
        shapes = self.world_model.shapes
        C, H, W = shapes.frame
        if shapes.frame_dtype == "float32":
            single = given.ndim in (1, 3)
            frames = (given[:, None, None] if given.ndim == 1 else given).astype(np.float32)[(None,) * single]
            if frames.shape[1:] != (C, 1, 1) or len(frames) == 0 or given.dtype.kind not in "fiub":
                raise UserError(f"obs has shape {given.shape} and type {given.dtype}, expected state vectors of {C} numbers,"
                                f" ({C},) or (N, {C}, 1, 1)")  # fmt: skip
            return frames, single
        single = given.ndim == 3
        frames = given[None] if single else given
        if frames.shape[1:] == (H, W, C) != (C, H, W):
            frames = np.moveaxis(frames, -1, 1)  # (N, C, H, W)
        if frames.shape[1:] != (C, H, W) or len(frames) == 0 or frames.dtype not in (np.uint8, np.bool_):
            raise UserError(
                f"obs has shape {given.shape} and type {given.dtype}, expected ({C}, {H}, {W}) or"
                f" ({H}, {W}, {C}) of bytes, or several of them: make the environment by agent.make_env(), which prepares"
                " frames as in training"
            )
        return frames * np.uint8(255) if frames.dtype == np.bool_ else frames, single

    def make_env(self, num_envs: int = 1, **changes: Any):
        """The environment it was trained in, with the same preprocessing: a gymnasium.vector.VectorEnv that autoresets on the
        next step. changes: other keywords of it, such as max_steps=1000."""
        parts = self.world_model.config.get("parts", {})
        if "env" not in parts:
            raise UserError("this agent's config names no environment: build one with the frames that it was trained on")
        return make_checked(parts["env"], arguments.whole("num_envs", num_envs), **changes)

    def score(self, episodes: int = 100, seed: int = 0, envs: int = 16) -> dict[str, Any]:
        """Its return in the real environment as `tokenworld score` measures it: mean, 95% interval, and random play.

        Raises UserError for impossible numbers of episodes and environments, and seeds."""
        episodes, envs, seed = arguments.whole("episodes", episodes), arguments.whole("envs", envs), arguments.seed(seed)
        changes = SCORED | (self.world_model.config.get("score_env") or {})
        env = self.make_env(min(envs, episodes), **changes)
        generator = torch.Generator(self.device).manual_seed(seed + 20_000)
        actor = Actor(self.world_model, self.policy, generator=generator, temperature=self.temperature)
        result = score_policy(env, actor, self.world_model.shapes.actions, episodes=episodes, seed=seed + 20_000)
        env.close()
        return result | {"temperature": self.temperature}
