"""Atari through ale-py's native vector environment: the fastest there is, with every preprocessing choice stated here.

The defaults are those of IRIS (Micheli et al., 2023): 64x64 color, frame skip 4 with max-pooling over the last two
frames, up to 30 no-ops at the start, no sticky actions, unclipped rewards and no press of FIRE after a reset.

What ale-py does and this file changes:
- its defaults clip rewards, stack four gray frames and press FIRE, so everything is passed explicitly;
- its `episodic_life` starts a *new game* at each lost life, so that later lives are never seen. Here, as in the
  EpisodicLifeEnv of the literature, the game continues: a lost life ends the episode, one no-op frame begins the next;
- it hangs on an action outside the action set, so actions are checked.
"""

from __future__ import annotations

import difflib
import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from tokenworld.envs.seeds import fold
from tokenworld.errors import UserError


def make(
    *,
    id: str = "ALE/Breakout-v5",
    num_envs: int = 1,
    height: int = 64,
    width: int = 64,
    grayscale: bool = False,
    frameskip: int = 4,
    sticky: float = 0.0,
    noop_max: int = 30,
    life_loss_ends: bool = False,
    full_actions: bool = False,
    max_steps: int = 27000,
    maxpool: bool = True,
) -> VectorEnv:
    """`num_envs` Atari games: obs (N, 3 or 1, height, width) uint8, discrete actions, raw game scores as rewards.

    `sticky` is the probability that the emulator repeats the last action; `max_steps` counts the agent's steps
    (frames / frameskip) of a whole game, all its lives, and truncates. Raises `UserError` for an id or a number that
    cannot be.
    """
    for name, value, least in [
        ("num_envs", num_envs, 1),
        ("height", height, 1),
        ("width", width, 1),
        ("frameskip", frameskip, 1),
        ("noop_max", noop_max, 0),
        ("max_steps", max_steps, 1),
    ]:
        if value < least:
            raise UserError(f"env.{name} must be at least {least}, got {value}: choose a larger number")
    if not 0.0 <= sticky < 1.0:
        raise UserError(f"env.sticky must be a probability in [0, 1), got {sticky}: choose e.g. 0 or 0.25")
    try:
        import ale_py
    except ImportError as error:
        raise UserError("Atari needs ale-py, which is not installed: run `pip install 'gymnasium[atari]'`") from error
    gymnasium.register_envs(ale_py)
    games = {name: spec.kwargs["game"] for name, spec in gymnasium.registry.items() if name.startswith("ALE/")}
    if id not in games:
        nearest = difflib.get_close_matches(id, games, n=1, cutoff=0.0)[0]
        raise UserError(f"env.id={id} is not an Atari game of ale-py: did you mean {nearest}?")

    from ale_py.vector_env import AtariVectorEnv

    games_env = AtariVectorEnv(
        games[id],
        num_envs,
        batch_size=num_envs,
        num_threads=min(num_envs, os.cpu_count() or 1),
        max_num_frames_per_episode=max_steps * frameskip,
        repeat_action_probability=sticky,
        full_action_space=full_actions,
        continuous=False,
        autoreset_mode=AutoresetMode.NEXT_STEP,
        img_height=height,
        img_width=width,
        grayscale=grayscale,
        stack_num=1,
        frameskip=frameskip,
        maxpool=maxpool,
        noop_max=noop_max,
        episodic_life=False,
        life_loss_info=life_loss_ends,
        reward_clipping=False,
        use_fire_reset=False,
    )
    return AtariVector(games_env, grayscale=grayscale)


class AtariVector(VectorEnv):
    """ale-py's vector environment with channel-first frames, float rewards and lives that end episodes properly."""

    def __init__(self, games: VectorEnv, *, grayscale: bool) -> None:
        _, height, width = games.single_observation_space.shape[:3]
        self.games = games
        self.grayscale = grayscale
        self.num_envs = games.num_envs
        self.single_observation_space = Box(0, 255, (1 if grayscale else 3, height, width), np.uint8)
        self.single_action_space = Discrete(int(games.single_action_space.n))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        meanings = [action.name for action in games.ale.get_action_set()]
        self.metadata = {
            "autoreset_mode": AutoresetMode.NEXT_STEP,
            "action_meanings": meanings,
            "simulator": "tokenworld.evaluation.simulators.atari.of_env",
        }
        self._begin()

    def _begin(self) -> None:
        self._ended = np.zeros(self.num_envs, bool)  # the next step of this row begins an episode
        self._late_terminated = np.zeros(self.num_envs, bool)
        self._late_truncated = np.zeros(self.num_envs, bool)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        if options:
            raise ValueError(f"no reset options are supported, got {options}")
        # ale-py seeds row i with seed + i and keeps 31 bits
        obs, info = self.games.reset(seed=fold(seed, 2**31 - self.num_envs + 1))
        self._begin()
        return self._channel_first(obs), info

    def step(self, actions):
        actions = np.asarray(actions)
        A = int(self.single_action_space.n)
        if actions.shape != (self.num_envs,) or actions.min() < 0 or actions.max() >= A:
            raise ValueError(f"actions must be {self.num_envs} numbers in 0..{A - 1}, got {actions}")

        # After an end ale-py ignores the action if the game is over. If only a life is lost, it plays on: with a no-op,
        # whose reward belongs to no episode.
        begins = self._ended
        actions = np.where(begins, 0, actions)
        obs, reward, terminated, truncated, info = self.games.step(actions)
        reward = np.where(begins, 0, reward).astype(np.float32)

        # If that no-op ends the game, an episode would be over before its first action. It ends with its first action.
        late_terminated, late_truncated = begins & terminated, begins & truncated
        terminated = (terminated & ~begins) | self._late_terminated
        truncated = (truncated & ~begins) | self._late_truncated
        self._late_terminated, self._late_truncated = late_terminated, late_truncated
        self._ended = terminated | truncated
        return self._channel_first(obs), reward, terminated, truncated, info

    def _channel_first(self, obs: np.ndarray) -> np.ndarray:
        if self.grayscale:
            return obs.copy()  # (N, 1, H, W): the stack of one frame is the channel
        return np.ascontiguousarray(obs[:, 0].transpose(0, 3, 1, 2))  # (N, C, H, W)

    def close_extras(self, **kwargs: Any) -> None:
        self.games.close()


TINY = dict(id="ALE/Breakout-v5", num_envs=2, height=16, width=16, max_steps=40)
