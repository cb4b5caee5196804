"""Real frames, their reconstruction and an imagined rollout: the same start, the same actions, and what came of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from tokenworld.data.replay import Replay
from tokenworld.viz.frames import Limits, as_bytes, is_vector, limits_of

CANDIDATES = 64  # starts among which the one with the fewest episode ends is taken
CONTEXT = 8  # frames that the model reads before the first imagined one, at most


@dataclass(frozen=True)
class Film:
    """T consecutive steps. Each frame stands with the action that led to it and what the step returned.

    rows: name -> frames (T, C, H, W) uint8, or float32 of state vectors · actions: (T,) words, empty before the first frame of
    an episode · reward: name of a row -> (T,) · ended: name of a row -> (T,) bool, the episode terminated with this frame ·
    first: (T,) bool, an episode begins · grid: (h, w) of the codes; (M, 1) of state vectors, whose numbers are drawn one below
    the other · limits: of these numbers.
    """

    rows: dict[str, np.ndarray]
    actions: list[str]
    reward: dict[str, np.ndarray]
    ended: dict[str, np.ndarray]
    first: np.ndarray
    grid: tuple[int, int]
    title: str = ""
    limits: Limits | None = None
    differs: dict[str, np.ndarray] = field(init=False)  # name of a row -> (T, h, w) bool: cells that are not as in reality

    def __post_init__(self) -> None:
        shown = {name: self._picture(frames) for name, frames in self.rows.items()}
        real = shown["real"]
        differs = {name: _differing(real, frames, self.grid) for name, frames in shown.items() if name != "real"}
        object.__setattr__(self, "differs", differs)

    def __len__(self) -> int:
        return len(self.rows["real"])

    def _picture(self, frames: np.ndarray) -> np.ndarray:
        """Frames as bytes: a state vector is a picture (1, M, 1), one number below the other."""
        return frames if self.limits is None else as_bytes(frames[..., 0, 0], *self.limits)[:, None, :, None]


@torch.no_grad()
def film_of(run, replay: Replay, *, steps: int, seed: int, dynamics: bool = True, title: str = "") -> Film:
    """A film of `steps` steps, or of all that there are. The start is drawn from those with the fewest episode ends in the
    steps that follow. dynamics: with an imagined row; its rewards are expected ones, its end is where the probability of a
    termination is above one half. Takes no random number of the run's own."""
    model = run.world_model.eval()
    T = min(min(model.backbone.context, CONTEXT) + steps, replay.rows)
    rng = np.random.default_rng(seed)
    candidates = [replay.sample(1, T, rng) for _ in range(CANDIDATES)]
    real, _ = min(candidates, key=lambda c: int(c[0].first[0, 1:].sum()))
    start = T - steps if T > steps else 1
    codes = model.encode(real.to(run.device))  # not those that the replay keeps: a picture leaves no trace in a checkpoint
    reconstructed = model.frames(model.posterior(real.to(run.device), codes))[0, start:].cpu().numpy()
    frames = {"real": real.obs[0, start:].numpy(), "reconstructed": reconstructed}
    acted = real.acted[0, start - 1 : -1].numpy()  # (T - start,): of the step that led to each frame
    reward = {"real": np.where(acted, real.reward[0, start - 1 : -1].numpy(), 0.0)}
    ended = {"real": acted & real.terminated[0, start - 1 : -1].numpy()}
    if dynamics:
        steps_on = real.to(run.device)
        _, state = model.start(steps_on[:, :start], codes[:, :start])
        generator = torch.Generator(run.device).manual_seed(seed)
        noise = torch.rand(1, 1, T - start, model.decoding.noise_size, generator=generator, device=run.device)
        predictions = model.rollout(state, steps_on.action[:, None, start - 1 : -1], noise)
        frames["imagined"] = torch.cat([model.frames(p.codes)[0] for p in predictions]).cpu().numpy()
        reward["imagined"] = torch.cat([p.reward.mean for p in predictions]).float().cpu().numpy()
        ended["imagined"] = torch.cat([p.terminated.mean for p in predictions]).cpu().numpy() > 0.5
    names, shapes = run.meta.get("action_meanings"), model.shapes
    taken = [shapes.actions.label(action, names) if was_taken else "" for action, was_taken in zip(
        real.action[0, start - 1 : -1], acted.tolist(), strict=True)]  # fmt: skip
    limits = limits_of(real.obs[0].numpy()) if is_vector(frames["real"]) else None
    grid = tuple(shapes.grid) if limits is None else (shapes.frame[0], 1)
    return Film(frames, taken, reward, ended, real.first[0, start:].numpy(), grid, title, limits)


def title_of(run) -> str:
    """Which game and how far a run is, as the title of a film."""
    count = run.count
    return f"{run.meta.get('env_id')}, epoch {run.epoch}, {count['env_steps']:,} real steps, {count['dynamics']:,} updates"


VISIBLE = 32  # of 255: what a pixel must differ by


def _differing(real: np.ndarray, other: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(T, h, w) bool: cells of the grid in which a pixel differs visibly, of frames (T, C, H, W) uint8."""
    T, _, H, W = real.shape
    off = (np.abs(real.astype(np.int16) - other) > VISIBLE).any(1)  # (T, H, W)
    t, y, x = np.nonzero(off)
    cells = np.zeros((T, *grid), bool)
    cells[t, y * grid[0] // H, x * grid[1] // W] = True
    return cells
