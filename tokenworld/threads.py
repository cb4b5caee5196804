"""How PyTorch's threads wait for each other on a CPU that they do not have to themselves.

By default OpenMP (libgomp) has a thread that waits try again about 300,000 times before it sleeps. Next to one busy process on
two cores, a thread then waits on its core for a thread that waits for this core, and training falls to a quarter of its
speed. Threads that sleep at once lose a tenth on an idle machine, because they are woken thousands of times per second.
"""

from __future__ import annotations

import os
import sys

SPINS = "500"  # a few microseconds: as fast as the default on an idle machine, twice as fast next to a busy process
CHOSEN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # a user who sets one of these has chosen


def wait_briefly() -> None:
    """Have waiting threads sleep soon, unless the user has set how they wait. Acts only before PyTorch is imported."""
    if "torch" not in sys.modules and not any(name in os.environ for name in CHOSEN):
        os.environ["GOMP_SPINCOUNT"] = SPINS
