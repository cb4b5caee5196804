"""What `--help` prints: the list of commands, and of one command its text and the keys that its parser reads."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from tokenworld.cli import verbs
from tokenworld.cli.arguments import Key

WIDTH, COLUMN = 128, 24  # of a line; of a key and its value

EXAMPLES = """  tokenworld train                                   the quick start: MinAtar Breakout, five minutes on a laptop
  tokenworld train recipe=iris overlay=debug out=a   any recipe, shrunk to seconds
  tokenworld train recipe=iris env.id=ALE/Breakout-v5 decoding.temperature=0.9 seed=1
  tokenworld train --resume runs/NAME                resume a run that stopped
  tokenworld sweep seed=0,1,2 out=sweeps/breakout    three seeds, their mean and its interval
  tokenworld score runs/NAME episodes=100
  tokenworld evaluate runs/NAME                      is it overconfident? does it react to actions? how far can it be trusted?
  tokenworld dream runs/NAME out=dream.gif
  tokenworld play runs/NAME                          then open the address that it prints
  tokenworld export runs/NAME out=breakout           then, in Python: Agent.from_pretrained("breakout").act(obs)
  tokenworld show recipe=iris against=quickstart"""


def overview() -> str:
    """The list of all commands."""
    summaries = "\n".join(f"  {name:10} {verbs.load(name).HELP.summary}" for name in verbs.names())
    return f"""tokenworld: world models made of tokens. Learn a game as tokens, dream it, learn to act inside the dream.

usage: tokenworld COMMAND [key=value ...]

{summaries}

examples
{EXAMPLES}

`tokenworld COMMAND --help` explains a command. Settings are key=value; `tokenworld show` lists them all."""


def of_command(name: str) -> str:
    """The help of one of `verbs.names()`."""
    help = verbs.load(name).HELP
    parts = ["\n".join([usage(name), *help.usages]), help.about]
    if keys_of(name):
        parts.append(f"settings\n{keys_of(name)}")
    parts += [f"{title}\n{_entries(_of_keys(keys))}" for title, keys in help.sections.items()]
    return "\n\n".join(parts)


def usage(name: str) -> str:
    """The line that says in which form a command is written."""
    verb = verbs.load(name)
    words = ["tokenworld", name, verb.HELP.positional, "[key=value ...]" if verb.KEYS else ""]
    return " ".join(word for word in [*words, *(f"[{flag}]" for flag in verb.HELP.flags)] if word)


def keys_of(name: str) -> str:
    """All that a command takes, a line or more for each key."""
    verb = verbs.load(name)
    return _entries(verb.HELP.first | _of_keys(verb.KEYS) | verb.HELP.settings | verb.HELP.flags)


def _of_keys(keys: Mapping[str, Key]) -> dict[str, str]:
    return {f"{name}={key.value}": key.text for name, key in keys.items()}


def _entries(texts: Mapping[str, str]) -> str:
    return "\n".join(_entry(*entry) for entry in texts.items())


def _entry(name: str, text: str) -> str:
    first, rest = f"  {name}".ljust(COLUMN), " " * COLUMN
    lines = textwrap.fill(text, WIDTH, initial_indent=rest, subsequent_indent=rest, break_on_hyphens=False)
    return first + lines[COLUMN:] if first.endswith(" ") else f"{first}\n{lines}"
