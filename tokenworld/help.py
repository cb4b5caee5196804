"""What `--help` says: prose and examples are written here, the keys come from the tables that the parser reads (`keys.py`)."""

from __future__ import annotations

import textwrap

from tokenworld.keys import FLAGS, RECIPE_KEYS, RUN_KEYS, TAKES

WIDTH, COLUMN = 128, 24  # of a line; of a key and its value

SUMMARIES = {
    "train": "the whole loop (collect, tokenizer, dynamics, policy), or one phase of it",
    "sweep": "many runs of train, over seeds, games or any setting, and one table of their results",
    "collect": "play a game and write the episodes to a folder",
    "data": "look at a folder of episodes",
    "evaluate": "how good a world model is, measured without reinforcement learning: a verdict, numbers, a page",
    "compare": "two evaluations, state by state, with an exit code",
    "score": "the return of a trained policy in the real environment",
    "dream": "a picture of real, reconstructed and imagined frames side by side",
    "play": "play inside the dream yourself, in a page of your browser",
    "export": "a trained model as a folder that others load in a line: weights, config, model card",
    "push": "the same, to the Hugging Face hub",
    "bench": "how fast a recipe runs here, beside what this machine can do at best",
    "show": "a recipe resolved: its settings, parameters and cost; or how two recipes differ",
}

EXAMPLES = """  tokenworld train                                   the quick start: MinAtar Breakout, five minutes on a laptop
  tokenworld train recipe=iris overlay=debug out=a   any recipe, shrunk to seconds
  tokenworld train recipe=iris env.id=ALE/Breakout-v5 decoding.temperature=0.9 seed=1
  tokenworld train --resume runs/NAME                go on where a run stopped
  tokenworld sweep seed=0,1,2 out=sweeps/breakout    three seeds, their mean and its interval
  tokenworld score runs/NAME episodes=100
  tokenworld evaluate runs/NAME                      is it overconfident, does it react to actions, how far can it be trusted?
  tokenworld dream runs/NAME out=dream.gif
  tokenworld play runs/NAME                          then open the address that it prints
  tokenworld export runs/NAME out=breakout           then, in Python: Agent.from_pretrained("breakout").act(obs)
  tokenworld show recipe=iris against=quickstart"""

PLACES = {  # what stands after the command, before its keys
    "train": "[tokenizer|dynamics|policy]",
    "sweep": "out=DIR",
    "collect": "out=DIR",
    "data": "info DIR",
    "evaluate": "RUN",
    "compare": "A B",
    "score": "RUN",
    "dream": "RUN",
    "play": "RUN",
    "export": "RUN",
    "push": "RUN repo=USER/NAME",
    "bench": "imagine|dynamics|tokenizer|encode|decode|collect|loop",
}

# What the command does, and examples. Keys are not listed here.
ABOUT = {
    "train": """\
Without a phase: the whole loop, from an empty replay to a policy scored in the real environment. With a phase: that
part alone, on episodes that `tokenworld collect` wrote. Ctrl-C (or SIGTERM, SIGUSR1) once saves and stops; the command
that continues is printed.

examples
  tokenworld train seed=1
  tokenworld train recipe=iris env.id=ALE/Breakout-v5
  tokenworld train env.id=my_game:Mine-v0 env.height=32 env.width=32 tokenizer.patch=8 out=mine
  tokenworld train --resume runs/NAME train.loop.epochs=40
  tokenworld collect recipe=atari_small env.id=ALE/Pong-v5 steps=5000 out=data/pong
  tokenworld train tokenizer recipe=atari_small data=data/pong out=tok
  tokenworld train dynamics recipe=atari_small data=data/pong load.tokenizer=tok out=dyn
  tokenworld train policy load.world_model=dyn""",
    "sweep": """\
Runs `tokenworld train` for every combination of the values given, each in a process of its own: DIR/NAME is a run like any
other, DIR/NAME.log what it said. All settings are checked before anything is created. The same command again skips what is
finished, goes on with what is not and tries again what failed; it may name more values than before. Ctrl-C lets every run
save and stop. DIR/results.md and results.json compare the runs, also while the sweep lasts: the return of each seed, their
mean with a 95 % bootstrap interval and random play; on Atari also human-normalised scores beside published ones, and their
mean, median and interquartile mean over games. The exit code is 1 if a run failed.

examples
  tokenworld sweep seed=0,1,2 out=sweeps/breakout
  tokenworld sweep seed=0,1,2 env.id=MinAtar/Breakout-v1,MinAtar/Asterix-v1 jobs=2 out=sweeps/minatar
  tokenworld sweep recipe=iris seed=0,1,2,3,4 env.id=ALE/Pong-v5,ALE/Boxing-v5 jobs=4 out=sweeps/iris
  tokenworld sweep backbone.layers=1,2,4 out=sweeps/layers""",
    "collect": """\
Plays `env` of the recipe with random actions: N steps to train on and a fifth as many (at least 1,000), from games with
other seeds, to test on. What is in progress at the end is written as truncated episodes.

examples
  tokenworld collect recipe=atari_small env.id=ALE/Breakout-v5 steps=5000 out=data/breakout""",
    "data": """\
Episodes, steps, spaces, returns, size and integrity of a folder of episodes.

example
  tokenworld data info data/breakout""",
    "evaluate": """\
Measures the world model of a run, or of an exported model, on held-out episodes (the run's own, or the test episodes of
data=DIR; where there are none, all of them), without a policy and without the real environment: what the tokenizer loses,
code lengths beside simple predictors, calibration, sensitivity to actions, rewards, terminations, and how long a dream
stays with what really came. Every number has a 95 % interval over episodes; what could not be measured is in the report
with the reason. Writes report.json, states.npz and report.html, one file that opens without a network.

tier=B also branches the simulator (Atari, MinAtar, the known world; others are played again from their seed): from the same
states every action is taken, and what can come of it is held against what the model says: impossible frames, missed ones, the
effects of actions, whole futures, the run's policy beside another agent.
tier=C also lets some twenty policies play (the run's own, mixed with random actions in many shares, and constant ones), really
and in dreams: does the model order them as the world does, and what does a planner without learning lose by planning in it?

examples
  tokenworld evaluate runs/NAME
  tokenworld evaluate runs/NAME tier=B
  tokenworld evaluate runs/NAME tier=C metrics=M5,M12,M13.planner_regret
  tokenworld evaluate dyn data=data/breakout frames=5000 out=reports/breakout""",
    "compare": """\
Compares two folders that `tokenworld evaluate` wrote, B against A. Where both measured the same states the difference is
taken state by state, with a 95 % interval over episodes; elsewhere the two intervals are compared. Models with different
tokenizers are compared in what does not depend on their codes.

Lists the metrics that differ (rows=all: every metric); the last line counts in how many B is better, worse or equal.

Exit code 0: B is nowhere shown to be worse; 1: it is, in one of metrics= (default: all); 2: they cannot be compared.

examples
  tokenworld compare old/evaluation new/evaluation
  tokenworld compare old/evaluation new/evaluation metrics=M1.bits,M5.hazard_loss""",
    "score": """\
The return of the policy of a run, or of an exported model, in the real environment: actions sampled at temperature 1, at
most 10,000 steps each. With policy=, a planner acts instead: before each step it searches action sequences inside the world
model.

examples
  tokenworld score runs/NAME episodes=100
  tokenworld score runs/NAME policy=cem episodes=10 policy.horizon=8 policy.samples=64""",
    "dream": """\
Real, reconstructed and imagined frames side by side, from the same start and with the same actions.

examples
  tokenworld dream runs/NAME out=dream.gif
  tokenworld dream dyn steps=50 out=ball.gif""",
    "play": """\
Opens the run's world model to be played in: a page on this machine, its address is printed. You choose the actions by keyboard,
mouse or touch, or let the policy or a planner choose; the world model imagines what comes of them. The first action key begins
the game, at a recorded moment from which it lasts at least ten steps without a further key, if the model has such moments
(looking for them takes up to six seconds). Pause, step, rewind; branch into a second future with the same random draws; see
what surprised the model; on MinAtar the real game gets the same actions. Needs the extra `play`: pip install tokenworld[play].
Nobody but you can connect: the address holds a secret, and only this machine may ask.

examples
  tokenworld play runs/NAME
  tokenworld play runs/NAME port=9000""",
    "export": """\
The run's world model, and its policy if it has one, as a folder that needs no run: config.json, weights as safetensors, a few
real moments to begin dreams at, and a model card with what was measured (return, evaluation). Loading it executes nothing.

example
  tokenworld export runs/NAME out=breakout

then, in Python
  from tokenworld import Agent, WorldModel
  agent = Agent.from_pretrained("breakout")          agent.act(obs), agent.score(episodes=100)
  world_model = WorldModel.from_pretrained("breakout")""",
    "push": """\
The folder of `tokenworld export` on the Hugging Face hub: Agent.from_pretrained("user/name") loads it from anywhere. Log in
once by `hf auth login`.

example
  tokenworld push runs/NAME repo=user/breakout private=true""",
    "bench": """\
Times the recipe's own phases and dreams after a warm-up and prints the median: units per second, forward passes per
frame, counted FLOPs, and the shares of what this machine reaches in a matrix product of the same shape and in reading
memory, measured in the same call. `loop` adds up the whole schedule, test episodes left out.

examples
  tokenworld bench imagine
  tokenworld bench imagine recipe=iris precision=bf16 train.policy.burn_in=1 --json iris.json
  tokenworld bench dynamics recipe=iris train.dynamics.batch=8
  tokenworld bench loop recipe=iris device=cuda precision=bf16""",
    "show": """\
The recipe as it will run, parameters per part, passes and FLOPs per imagined frame; with against=, what differs; with
--yaml, the recipe alone, as a file to start your own from.

examples
  tokenworld show recipe=iris
  tokenworld show recipe=iris against=quickstart
  tokenworld show recipe=iris env.id=ALE/Pong-v5 backbone.layers=4
  tokenworld show recipe=quickstart --yaml   > mine.yaml""",
}

# What of a recipe's settings a newcomer asks for first
SETTINGS = {
    "SECTION.KEY=VALUE": "any setting of the recipe: env.id=MinAtar/Asterix-v1 backbone.layers=4 train.loop.epochs=20",
    "env.id=ID": "ALE/NAME, MinAtar/NAME, any Gymnasium id; MODULE:ID imports the module that registers it, also from the"
                 ' current folder. "env.wrappers=[PACKAGE.Wrapper]" env.kwargs.KEY=VALUE env.height=64 env.width=64',
    "~SECTION.KEY": "leave a setting at its constructor's default",
}  # fmt: skip

TRAINING_SETTINGS = {
    "train.loop.sinks=[NAME]": "where numbers and pictures go too: tensorboard, trackio or wandb (each an extra), or a sink of"
                               ' your own, "train.loop.sinks=[{_target_:PACKAGE.Sink,KEY:VALUE}]"',
    "train.evaluate.pictures=12": "steps of real, reconstructed and imagined frames that RUN/pictures shows of each evaluation;"
                                  " 0: none",
}  # fmt: skip


def usage(command: str) -> str:
    """The line that says in which form a command is written."""
    words = ["tokenworld", command, PLACES.get(command, ""), "[key=value ...]" if TAKES[command] else ""]
    return " ".join(word for word in [*words, *(f"[{flag}]" for flag in FLAGS.get(command, ()))] if word)


def keys_of(command: str) -> str:
    """All that a command takes, a line or more for each key."""
    entries = {f"{name}={key.value}": key.text for name, key in TAKES[command].items()}
    if command == "sweep":
        entries = {"key=A,B": "any setting below, with one or several values; [8,16] is one value"} | entries
    if command in RECIPE_KEYS or command == "sweep":
        entries |= SETTINGS | (TRAINING_SETTINGS if command in ("train", "sweep") else {})
    return "\n".join(_entry(*entry) for entry in (entries | FLAGS.get(command, {})).items())


def _entry(name: str, text: str) -> str:
    first, rest = f"  {name}".ljust(COLUMN), " " * COLUMN
    lines = textwrap.fill(text, WIDTH, initial_indent=rest, subsequent_indent=rest, break_on_hyphens=False)
    return first + lines[COLUMN:] if first.endswith(" ") else f"{first}\n{lines}"


def _help(command: str) -> str:
    parts = [usage(command), ABOUT[command]]
    if command == "train":
        parts[0] += "\ntokenworld train --resume RUN [key=value ...]"
    if keys_of(command):
        parts.append(f"settings\n{keys_of(command)}")
    if command == "train":
        resumed = "\n".join(_entry(f"{name}={key.value}", key.text) for name, key in RUN_KEYS["--resume"].items())
        parts.append(f"settings of --resume RUN, which continues a run, bit for bit on a CPU\n{resumed}")
    return "\n\n".join(parts)


COMMAND_HELP = {command: _help(command) for command in ABOUT}

HELP = f"""tokenworld: world models made of tokens. Learn a game as tokens, dream it, learn to act inside the dream.

usage: tokenworld COMMAND [key=value ...]

{chr(10).join(f"  {command:10} {summary}" for command, summary in SUMMARIES.items())}

examples
{EXAMPLES}

`tokenworld COMMAND --help` explains a command. Settings are key=value; `tokenworld show` lists them all."""
