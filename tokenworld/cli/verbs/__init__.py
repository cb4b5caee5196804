"""The commands: one file each, found by its name. A new file here is a new command.

Each module has
- HELP: what `--help` says of it besides its keys (`arguments.Help`);
- KEYS: the `name=value` words that it takes (name -> `arguments.Key`);
- parse(words): the call that the words ask for, checked, with nothing done yet; raises UserError;
- run(...): does the work, for the command line and for Python. It returns what it made; an int is the exit code.

Only the standard library is imported at the top of these modules: `--help` must answer without importing torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

# The order in the list of commands: as one uses them. Others follow by name.
ORDER = tuple("train sweep collect data evaluate compare score dream play export push bench show".split())


def names() -> list[str]:
    """The names of all commands."""
    available = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return [name for name in ORDER if name in available] + [name for name in available if name not in ORDER]


def load(name: str) -> ModuleType:
    """The module of one of `names()`."""
    return importlib.import_module(f"{__name__}.{name}")
