"""N copies of one environment, stepped one after the other or each in a process of its own; autoreset on the next step.

A process that ends, is killed, or whose game raises is one UserError, and the others end with it. Ctrl-C and the signals of
schedulers reach every process of a group: those of the games ignore them, and end when the main process says so, or is gone.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from tokenworld.envs.failures import describe
from tokenworld.envs.game import Game
from tokenworld.errors import UserError

MakeGame = Callable[[int], Game]  # row -> its game
PATIENCE = 5.0  # seconds that processes get to close their games


class Copies(VectorEnv):
    """`num_envs` games behind Gymnasium's vector API: obs (N, *shape) as the games have them, rewards float64.

    Raises UserError if the copies differ in their spaces, if a process ends, and what `Game` raises.
    """

    def __init__(self, make: MakeGame, num_envs: int, *, id: str, processes: bool = False) -> None:
        self.num_envs, self._is_waiting = num_envs, False
        self.workers: list = []
        if processes:  # the exit of the interpreter waits for processes: end them before
            Finalize(self, _end, (self.workers, 1.0), exitpriority=100)
        for row in range(num_envs):
            self.workers.append(Remote(make, row, id) if processes else Local(make(row)))
        offers = self._each([("offer", {"with_code": not processes})] * num_envs)
        self.single_observation_space, self.single_action_space, metadata = offers[0]
        self.metadata = {**metadata, "autoreset_mode": AutoresetMode.NEXT_STEP}
        for row, (space, actions, _) in enumerate(offers):
            if (space.shape, space.dtype, actions) != (offers[0][0].shape, offers[0][0].dtype, offers[0][1]):
                self.close()
                raise UserError(
                    f"env.id={id}: row {row} has {space} and {actions}, row 0 has {offers[0][0]} and {offers[0][1]}: "
                    "all copies of an environment must have the same spaces"
                )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._ended = np.zeros(num_envs, bool)  # the next step of this row begins an episode
        self._frames = np.zeros((num_envs, *self.single_observation_space.shape), self.single_observation_space.dtype)

    @property
    def envs(self) -> list[Game]:
        """The games, if they are in this process."""
        return [worker.game for worker in self.workers]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        """Row i is seeded with seed + i. The frames are the vector's own array: copy what is to stay."""
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)]
        results = self._each([("reset", {"seed": each, "options": options}) for each in seeds])
        for i, (obs, _) in enumerate(results):
            self._frames[i] = obs
        self._ended[:] = False
        return self._frames, self._batch_infos([info for _, info in results])

    def step(self, actions):
        """actions: a batch of the games' own; frames as `reset` returns them."""
        again = self._ended.tolist()
        taken = iterate(self.action_space, actions)
        results = self._each([("reset", {}) if new else ("step", {"action": a}) for new, a in zip(again, taken, strict=True)])
        reward = np.zeros(self.num_envs)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        for i, result in enumerate(results):
            self._frames[i] = result[0]
            if not again[i]:
                reward[i], terminated[i], truncated[i] = result[1:4]
        self._ended = terminated | truncated
        return self._frames, reward, terminated, truncated, self._batch_infos([result[-1] for result in results])

    def _each(self, calls: list[tuple[str, dict[str, Any]]]) -> list:
        """Call one method of each game, side by side if they are in processes."""
        self._is_waiting = True
        try:
            for worker, (method, keywords) in zip(self.workers, calls, strict=True):
                worker.ask(method, keywords)
            results = [worker.answer() for worker in self.workers]
        except UserError:
            self.close()
            raise
        self._is_waiting = False
        return results

    def _batch_infos(self, infos: list[dict]) -> dict[str, Any]:
        """One dictionary of arrays; what does not fit into arrays is left out."""
        batched: dict[str, Any] = {}
        for i, info in enumerate(infos):
            with contextlib.suppress(Exception):
                batched = self._add_info(batched, info, i)
        return batched

    def close_extras(self, **kwargs: Any) -> None:
        _end(self.workers, 0.0 if self._is_waiting else PATIENCE)


class Local:
    """A game in this process."""

    def __init__(self, game: Game) -> None:
        self.game = game

    def ask(self, method: str, keywords: dict[str, Any]) -> None:
        self._result = getattr(self.game, method)(**keywords)

    def answer(self) -> Any:
        return self._result

    def begin_end(self) -> None:
        self.game.close()

    def end(self, patience: float) -> None:
        pass


class Remote:
    """A game in a process of its own."""

    def __init__(self, make: MakeGame, row: int, id: str) -> None:
        self.row, self.id = row, id
        self.pipe, theirs = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=_serve, args=(make, row, theirs, self.pipe), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, method: str, keywords: dict[str, Any]) -> None:
        try:
            self.pipe.send((method, keywords))
        except OSError as error:
            raise self._lost_error() from error

    def answer(self) -> Any:
        """What the game returned. A process that is gone may leave its pipe open to others: look at both."""
        try:
            if self.pipe not in wait([self.pipe, self.process.sentinel]):
                raise self._lost_error()
            is_fine, result = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self._lost_error() from error
        if not is_fine:
            raise UserError(result)
        return result

    def _lost_error(self) -> UserError:
        self.process.join(1.0)
        code = self.process.exitcode or 0
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return UserError(
            f"a process of the environment {self.id} has ended: row {self.row}, {how}: if the machine ran out of memory, play "
            "fewer copies at a time (train.collect.envs) or set env.processes=false"
        )

    def begin_end(self) -> None:
        with contextlib.suppress(OSError):
            self.pipe.send(None)

    def end(self, patience: float) -> None:
        self.process.join(patience)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


def _end(workers: list, patience: float) -> None:
    for worker in workers:
        worker.begin_end()
    until = time.monotonic() + patience
    for worker in workers:
        worker.end(max(0.0, until - time.monotonic()))
    workers.clear()


def _serve(make: MakeGame, row: int, pipe: Connection, mains: Connection) -> None:
    """The life of a game's process: build it, answer calls, end with the main process."""
    mains.close()
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):  # a handler, not SIG_IGN, which programs started by the game would inherit
            signal.signal(getattr(signal, name), lambda *_: None)
    game = None
    try:
        game = make(row)
        while (call := pipe.recv()) is not None:
            method, keywords = call
            if keywords.get("seed") is not None:
                random.seed(keywords["seed"])
            pipe.send((True, getattr(game, method)(**keywords)))
    except UserError as error:
        with contextlib.suppress(OSError):
            pipe.send((False, str(error)))
    except (EOFError, OSError, KeyboardInterrupt):
        pass  # the main process is gone
    except Exception as error:  # an info that cannot be sent
        with contextlib.suppress(OSError):
            pipe.send((False, f"the process of a game has failed: {describe(error)}: set env.processes=false"))
    finally:
        if game is not None:
            game.close()
