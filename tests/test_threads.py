"""Threads of PyTorch sleep soon when they wait, unless the user has chosen how they wait."""

import os
import subprocess
import sys

import pytest

from tokenworld.threads import CHOSEN, SPINS

IMPORTED = "import tokenworld, torch; torch.ones(300_000).add(1)"


def displayed(code: str, **chosen: str) -> str:
    """What libgomp says of its settings when it is loaded."""
    own = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    environment = own | {"OMP_DISPLAY_ENV": "verbose"} | chosen
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this build of PyTorch does not use libgomp")
    return done.stderr


def test_waiting_threads_sleep_soon():
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in displayed(IMPORTED)


@pytest.mark.parametrize("chosen, expected", [({"GOMP_SPINCOUNT": "77"}, "'77'"), ({"OMP_WAIT_POLICY": "active"}, "'ACTIVE'")])
def test_what_the_user_has_set_is_respected(chosen, expected):
    shown = displayed(IMPORTED, **chosen)
    assert expected in shown and f"'{SPINS}'" not in shown


def test_the_environment_is_left_alone_once_torch_is_imported():
    code = "import torch, os; import tokenworld; assert 'GOMP_SPINCOUNT' not in os.environ"
    displayed(code)
