"""The actions that an evaluation compares with each other: all of them where they can be counted, else a few of them.

An action is then the number of its row in the menu. Where the menu does not hold all actions, the one that was taken has no
number: it comes first, and the menu follows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokenworld.action_space import Actions, of


class Menu:
    """The representative actions of a space (`Actions.menu`)."""

    def __init__(self, space: Actions | int):
        self.actions = of(space)
        self.rows = self.actions.menu()  # (M,) or (M, A)
        self.is_complete = not self.actions.bounds and math.prod(self.actions.choices) == len(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def columns(self) -> int:
        """How many actions are compared at a step whose own one is known."""
        return len(self) + (not self.is_complete)

    def numbers(self, action: Tensor | np.ndarray) -> np.ndarray:
        """Actions (n,) or (n, A) of a complete menu -> the numbers of their rows (n,)."""
        action = torch.as_tensor(action).cpu()
        if self.actions.is_single:
            return action.numpy()
        return np.ravel_multi_index(tuple(action.round().long().numpy().T), self.actions.choices)

    def counts(self, action: Tensor | np.ndarray) -> np.ndarray | None:
        """How often each row occurs (M,) among actions (n,) or (n, A); None where they have no numbers."""
        return np.bincount(self.numbers(action), minlength=len(self)) if self.is_complete else None

    def alternatives(self, taken: Tensor) -> Tensor:
        """What is compared where actions (n,) or (n, A) were taken: (n * columns,) or (n * columns, A)."""
        rows = self.rows.to(taken.device).expand(len(taken), *self.rows.shape)  # (n, M) or (n, M, A)
        return (rows if self.is_complete else torch.cat([taken[:, None], rows], 1)).flatten(0, 1)

    def names(self, meanings: Sequence[str] = ()) -> Sequence[str]:
        """The name of each row; nothing where numbered actions have none."""
        if self.actions.is_single:
            return meanings
        return [self.actions.label(row) for row in self.rows]

    def parts(self) -> np.ndarray | None:
        """The rows (M, A), where an action has several parts that may each have an effect of its own; else None."""
        return self.rows.numpy() if self.actions.size > 1 else None
