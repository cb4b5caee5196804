"""The dream as a Gymnasium environment: whatever learns or plans in an environment can do so inside a world model.

`DreamEnv` dreams many games at once (a `gymnasium.vector.VectorEnv`); `gymnasium.make("tokenworld/Dream-v0", model=DIR)` is one
of them. All that chance decides comes from the seed of `reset`: same seed and same actions, same dream.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from tokenworld import action_space, arguments, files, register
from tokenworld.data.episodes import read_episodes
from tokenworld.data.replay import Replay
from tokenworld.errors import UserError
from tokenworld.interfaces import Steps
from tokenworld.nn import compact, concat, put
from tokenworld.storage import hub, model_folder
from tokenworld.viz.frames import side_by_side, to_rgb
from tokenworld.world_model import WorldModel, frames_as_steps

Starts = Steps | Replay | str | Path


class DreamEnv(VectorEnv):
    """`num_envs` dreams: obs (N, C, H, W) uint8 or float32, the decoded codes. `load` makes one of an exported model.

    starts: real moments to begin at, of which each reset draws one: Steps (M, T), a `Replay`, or a folder of episodes
    horizon: steps after which a dream is truncated, because what goes wrong in it adds up
    expected_reward: the mean of the reward head in place of a drawn reward
    autoreset: a dream that ended restarts on the "next_step", as the real environments do, or in the "same_step", with its
    last frame in info["final_obs"]

    A dream that restarts does not disturb the others: its rows of a recurrent state are replaced; where a state cannot do that,
    what all of them remember is read again from their own codes.
    """

    def __init__(
        self,
        world_model: WorldModel,
        starts: Starts,
        num_envs: int = 1,
        *,
        horizon: int = 20,
        expected_reward: bool = False,
        autoreset: Literal["next_step", "same_step"] = "next_step",
    ):
        num_envs, horizon = arguments.whole("num_envs", num_envs), arguments.whole("horizon", horizon)
        if autoreset not in ("next_step", "same_step"):
            raise UserError(f"autoreset must be next_step or same_step, got {autoreset!r}: choose one of these")
        self.world_model, self.horizon, self.expected_reward = world_model.eval(), horizon, expected_reward
        self.device = world_model.device
        self.starts = _windows_of(starts, world_model)
        C, H, W = world_model.shapes.frame
        self.num_envs = num_envs
        is_vector = world_model.shapes.frame_dtype == "float32"
        limits = (-np.inf, np.inf, (C, H, W), np.float32) if is_vector else (0, 255, (C, H, W), np.uint8)
        self.single_observation_space = Box(*limits)
        self.single_action_space = action_space.space_of(world_model.shapes.actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        meanings = world_model.config.get("action_meanings")
        self.at_once = autoreset == "same_step"
        mode = AutoresetMode.SAME_STEP if self.at_once else AutoresetMode.NEXT_STEP
        self.metadata = {"autoreset_mode": mode, "action_meanings": meanings}
        # as far back as the model can see: all of a dream, unless the backbone says that less is enough
        field, longest = world_model.backbone.receptive_field, world_model.backbone.context + horizon
        self.memory = max(world_model.backbone.context, longest if field is None else min(longest, field + 1))
        self._generator = torch.Generator(self.device)
        self._rng, self._state = np.random.default_rng(), None
        self._seed(int(self._rng.integers(2**31)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """options: {"obs": a frame (C, H, W), or one for each dream (N, C, H, W)} begins at those frames. Without a seed
        the random streams continue."""
        seed = None if seed is None else arguments.seed(seed)
        if not isinstance(options, (dict, type(None))):
            given = arguments.format_value(options)
            raise UserError(f"reset takes options as a dict, got {given}: give options={{'obs': frames}} or none")
        unknown = set(options or ()) - {"obs"}
        if unknown:
            raise UserError(f"reset takes the option obs, got {', '.join(sorted(map(str, unknown)))}: leave it out")
        frames = None if not options else self._frames(options["obs"])
        if seed is not None:
            self._seed(seed)
        N, self._codes, self._state = self.num_envs, None, None
        self._action = self.world_model.shapes.actions.zero(N, self.memory, device=self.device)
        self._first = torch.zeros(N, self.memory, dtype=torch.bool, device=self.device)
        self._length, self._ended = np.zeros(N, np.int64), np.zeros(N, bool)
        self._begin(np.arange(N), frames)
        return self._obs(), {}

    @torch.no_grad()
    def step(self, actions):
        """actions, a batch of `action_space` -> obs, reward (N,) float32, terminated (N,), truncated (N,), {}. Rows that
        ended in the last step restart: their action is ignored."""
        N, taken = self.num_envs, self._rows_of(actions)
        if self._state is None:
            raise UserError("no dream has started: call reset() before step()")
        noise = torch.rand(N, self.world_model.noise_size, generator=self._generator, device=self.device)
        of_codes, of_outcome, _ = self.world_model.split_noise(noise)
        prediction, self._state = self.world_model.step(self._state, taken, of_codes)
        reward, terminated = self.world_model.outcome(prediction, of_outcome, self.expected_reward)
        begins, terminations = self._ended, terminated.cpu().numpy()
        self._action[:, -1] = taken
        self._now = prediction.codes
        self._codes = concat([self._codes[:, 1:], compact(prediction.codes)])
        for history, newest in ((self._action, 0), (self._first, False)):
            history[:, :-1] = history[:, 1:].clone()
            history[:, -1] = newest
        self._length += 1
        if begins.any():
            self._begin(np.flatnonzero(begins))
        terminated = terminations & ~begins
        truncated = (self._length >= self.horizon) & ~terminated & ~begins
        ended = terminated | truncated
        reward = np.where(begins, 0, reward.float().cpu().numpy()).astype(np.float32)
        obs = self._obs()
        if not (self.at_once and ended.any()):
            self._ended = ended
            return obs, reward, terminated, truncated, {}
        last = np.full(N, None, object)
        for i in np.flatnonzero(ended):
            last[i] = obs[i]
        self._begin(np.flatnonzero(ended))
        return self._obs(), reward, terminated, truncated, {"final_obs": last, "_final_obs": ended}

    def render(self) -> np.ndarray:
        """The dreams side by side, (H', W', 3) uint8. Raises UserError before the first reset."""
        if self._state is None:
            raise UserError("no dream has started: call reset() before render()")
        pictures = to_rgb(self._obs())
        return side_by_side(list(pictures[:, None]))[0]

    def _begin(self, rows: np.ndarray, frames: torch.Tensor | None = None) -> None:
        """New starts of these rows: drawn ones, or given frames (N, C, H, W)."""
        index = torch.from_numpy(rows).to(self.device)
        actions = self.world_model.shapes.actions
        steps = self._draw_starts(len(rows)) if frames is None else frames_as_steps(frames, None, actions)
        steps = steps.to(self.device)
        first = steps.first.clone()
        first[:, 0] = True  # what came before is not known
        steps, model, T = replace(steps, first=first), self.world_model, steps.obs.shape[1]
        encoded = model.encode(steps)
        self._length[rows] = 0
        if model.backbone.scans and self._state is not None:
            prediction, fresh = model.start(steps, encoded)
            state = self._state.put(index, fresh)
            if state is not None:
                self._state, self._now = state, put(self._now, index, prediction.codes)
                return
        codes = compact(model.posterior(steps, encoded))
        if self._codes is None:
            self._codes = codes.map(lambda x: x.new_zeros(self.num_envs, self.memory, *x.shape[2:]))
        histories = [(vars(self._codes)[name], new) for name, new in vars(codes).items() if new is not None]
        for history, new in (*histories, (self._action, steps.action), (self._first, first)):
            history[index] = 0
            history[index, -T:] = new.to(history.dtype)
        self._action[index, -1] = 0
        self._remember()

    def _draw_starts(self, count: int) -> Steps:
        """Draw moments with an action, and their history: Steps (count, T)."""
        if isinstance(self.starts, Replay):
            return self.starts.sample(count, self.world_model.backbone.context, self._rng, ends="acted")[0]
        return self.starts[torch.from_numpy(self._rng.integers(len(self.starts.obs), size=count))]

    @torch.no_grad()
    def _remember(self) -> None:
        """The model's state, rebuilt from the histories."""
        none = torch.zeros_like(self._first)
        dtype = getattr(torch, self.world_model.shapes.frame_dtype)
        obs = torch.zeros(*self._first.shape, 0, 0, 0, dtype=dtype, device=self.device)
        steps = Steps(obs, self._action, none.float(), none, none, self._first, ~none, ~none)
        prediction, self._state = self.world_model.start(steps, self._codes)
        self._now = prediction.codes

    @torch.no_grad()
    def _obs(self) -> np.ndarray:
        """The frames that the dreams show, (N, C, H, W)."""
        return self.world_model.frames(self._now)[:, 0].cpu().numpy()

    def _rows_of(self, actions: Any) -> torch.Tensor:
        """A batch of the action space -> (N,) int64 or (N, A) float32."""
        space, own, N = self.single_action_space, self.world_model.shapes.actions, self.num_envs
        is_mixed = bool(own.choices and own.bounds)  # a tuple of both
        batch = actions if is_mixed else arguments.array("actions", actions)
        if own.is_single:
            A = own.choices[0]
            if batch.shape != (N,) or batch.dtype.kind not in "iu" or batch.min() < 0 or batch.max() >= A:
                raise UserError(f"actions must be {N} whole numbers in 0..{A - 1}, got {arguments.format_value(actions)}")
            return torch.from_numpy(batch.astype(np.int64)).to(self.device)
        try:
            rows = torch.from_numpy(action_space.from_space(space, batch))
            good = rows.shape == (N, *own.row) and bool(own.contains(rows).all())
        except (TypeError, ValueError, IndexError, KeyError):
            good = False
        if not good:
            raise UserError(f"actions must be {N} of {space}, got {arguments.format_value(actions)}: give a batch"
                            " of them as action_space.sample() does")  # fmt: skip
        return rows.to(self.device)

    def _frames(self, obs) -> torch.Tensor:
        frames, shape = arguments.array("obs", obs), self.single_observation_space.shape
        dtype = self.single_observation_space.dtype
        if frames.dtype != dtype or frames.shape not in (shape, (self.num_envs, *shape)):
            raise UserError(
                f"reset(options={{'obs': ...}}) takes frames {shape} or {(self.num_envs, *shape)} of {dtype}, got"
                f" {frames.shape} of {frames.dtype}: give them as the real environment does"
            )
        return torch.from_numpy(frames).expand(self.num_envs, *shape)

    def _seed(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._generator.manual_seed(seed)


class Dream(gymnasium.Env):
    """One dream, as `gymnasium.make("tokenworld/Dream-v0", model=DIR)` gives it. See `DreamEnv`; render_mode: "rgb_array"."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(self, dreams: DreamEnv, render_mode: str | None = None):
        if render_mode not in (None, "rgb_array"):
            raise UserError(f"render_mode must be rgb_array or none, got {render_mode!r}")
        self.dreams, self.render_mode = dreams, render_mode
        self.observation_space, self.action_space = dreams.single_observation_space, dreams.single_action_space
        self.ended = True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        seed = None if seed is None else arguments.seed(seed)
        super().reset(seed=seed)
        obs, info = self.dreams.reset(seed=None if seed is None else int(self.np_random.integers(2**31)), options=options)
        self.ended = False
        return obs[0], info

    def step(self, action):
        if self.ended:
            raise gymnasium.error.ResetNeeded("the dream has ended, or was not begun: call reset() first")
        obs, reward, terminated, truncated, info = self.dreams.step(np.array([action]))
        self.ended = bool(terminated[0] or truncated[0])
        return obs[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info

    def render(self) -> np.ndarray | None:
        return self.dreams.render() if self.render_mode == "rgb_array" else None


def make(
    model: str | Path,
    starts: Starts | None = None,
    render_mode: str | None = None,
    *,
    device: str = "cpu",
    trust_remote_code: bool = False,
    **settings: Any,
) -> Dream:
    """The entry point of "tokenworld/Dream-v0". model: what `WorldModel.from_pretrained` takes · starts: by default the moments
    stored with the model · settings: of `DreamEnv`."""
    return Dream(load(model, starts, device=device, trust_remote_code=trust_remote_code, **settings), render_mode)


def load(
    model: str | Path,
    starts: Starts | None = None,
    *,
    num_envs: int = 1,
    device: str = "cpu",
    trust_remote_code: bool = False,
    **settings: Any,
) -> DreamEnv:
    """A `DreamEnv` of a model's folder or hub id, from the real moments stored with it if `starts` is None."""
    folder = hub.find(model)
    world_model = WorldModel.from_pretrained(folder, device=device, trust_remote_code=trust_remote_code)
    starts = model_folder.read_starts(folder) if starts is None else starts
    if starts is None:
        raise UserError(f"{model} has no moments to start a dream from: give starts=, a folder of episodes or frames as Steps")
    return DreamEnv(world_model, starts, num_envs, **settings)


def _windows_of(starts: Starts, world_model: WorldModel) -> Steps | Replay:
    """Return the windows that dreams may start from, checked against the model's frames."""
    if not isinstance(starts, (Steps, Replay, str, Path)):
        kind = type(starts).__name__
        raise UserError(f"starts must be Steps, a Replay or a folder of episodes, got a {kind}: see DreamEnv")
    if isinstance(starts, (str, Path)):
        folder, starts = files.check_path("starts", starts), Replay()
        for episode in read_episodes(folder):
            starts.add(episode)
        if not starts.steps:
            raise UserError(f"starts={folder} has no episodes to start a dream from: expected a folder that `collect` wrote")
    empty = not (starts.steps if isinstance(starts, Replay) else len(starts.obs))
    if empty:
        raise UserError("starts has no moment to start a dream from: give episodes with at least one step")
    frame = starts.frames(np.zeros(1, np.int64)).shape[1:] if isinstance(starts, Replay) else starts.obs.shape[2:]
    if tuple(frame) != world_model.shapes.frame:
        raise UserError(f"starts has frames {tuple(frame)}, expected {world_model.shapes.frame}: choose episodes of its game")
    if isinstance(starts, Steps):
        arguments.frames(starts.obs, world_model.shapes.frame, "BT", world_model.shapes.frame_dtype)
        return starts[:, -world_model.backbone.context :]
    return starts


register()
