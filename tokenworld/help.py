"""What `--help` says, of the whole and of each command."""

from __future__ import annotations

HELP = """tokenworld: world models made of tokens. Learn a game as tokens, dream it, learn to act inside the dream.

usage: tokenworld COMMAND [key=value ...]

  train      the whole loop (collect, tokenizer, dynamics, policy), or one phase of it
  sweep      many runs of train, over seeds, games or any setting, and one table of their results
  collect    play a game and write the episodes to a folder
  data       look at a folder of episodes
  evaluate   how good a world model is, measured without reinforcement learning: a verdict, numbers, a page
  compare    two evaluations, state by state, with an exit code
  score      the return of a trained policy in the real environment
  dream      a picture of real, reconstructed and imagined frames side by side
  play       play inside the dream yourself, in a page of your browser
  export     a trained model as a folder that others load in a line: weights, config, model card
  push       the same, to the Hugging Face hub
  bench      how fast a recipe runs here, beside what this machine can do at best
  show       a recipe resolved: its settings, parameters and cost; or how two recipes differ

examples
  tokenworld train                                   the quick start: MinAtar Breakout, five minutes on a laptop
  tokenworld train recipe=iris overlay=debug out=a   any recipe, shrunk to seconds
  tokenworld train recipe=iris env.id=ALE/Breakout-v5 decoding.temperature=0.9 seed=1
  tokenworld train --resume runs/NAME                go on where a run stopped
  tokenworld sweep seed=0,1,2 out=sweeps/breakout    three seeds, their mean and its interval
  tokenworld score runs/NAME episodes=100
  tokenworld evaluate runs/NAME                      is it overconfident, does it heed its actions, how far can it be trusted?
  tokenworld dream runs/NAME out=dream.gif
  tokenworld play runs/NAME                          then open the address that it prints
  tokenworld export runs/NAME out=breakout           then, in Python: Agent.from_pretrained("breakout").act(obs)
  tokenworld show recipe=iris against=quickstart

`tokenworld COMMAND --help` explains a command. Settings are key=value; `tokenworld show` lists them all."""

TRUST = "  --trust-remote-code    import code that the folders of this command name (only if you trust their origin)"

COMMON = """  recipe=NAME        a shipped recipe (default quickstart) or the path of a YAML file of your own, which may begin
                     with `defaults: [iris, _self_]` and then only says what differs; code that it names is
                     imported, so give none that you do not trust
  overlay=debug      shrink any recipe to seconds; or the path of a YAML file; several are merged in their order
  SECTION.KEY=VALUE  any setting of the recipe: env.id=MinAtar/Asterix-v1 backbone.layers=4 train.loop.epochs=20
  env.id=ID          ALE/NAME, MinAtar/NAME, any Gymnasium id; MODULE:ID imports the module that registers it, also from
                     the current folder. "env.wrappers=[PACKAGE.Wrapper]" env.kwargs.KEY=VALUE env.height=64 env.width=64
  ~SECTION.KEY       leave a setting at its constructor's default
  seed=0             of everything random: same seed, same result
  device=auto        auto, cpu, cuda or mps
  precision=fp32     fp32 or bf16
  out=DIR            where to write; an existing run is never overwritten"""

COMMAND_HELP = {
    "train": f"""tokenworld train [tokenizer|dynamics|policy] [key=value ...]
tokenworld train --resume RUN [train.loop.epochs=N] [data=DIR] [device=NAME]

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
  tokenworld train policy load.world_model=dyn

settings
{COMMON}
  data=DIR               episodes to learn from (phases tokenizer, dynamics, policy)
  load.tokenizer=RUN     a trained tokenizer (phase dynamics); recipe= is then that run's if you give none
  load.world_model=RUN   a trained world model (phase policy; phase dynamics continues it, on other data where shapes fit)
  --resume RUN           continue a run, bit for bit on a CPU; train.loop.epochs= trains a finished run longer, data= says
                         where its episodes are now, device= where it runs this time
{TRUST}""",
    "sweep": f"""tokenworld sweep out=DIR [jobs=1] [key=A,B,... ...]

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
  tokenworld sweep backbone.layers=1,2,4 out=sweeps/layers

settings
  out=DIR            where to write; a folder of another sweep is never overwritten
  jobs=1             runs at once: each has its share of the cores (unless you set OMP_NUM_THREADS), and of several GPUs one
  key=A,B            any setting of `tokenworld train`, with one or several values; [8,16] is one value
{TRUST}""",
    "collect": f"""tokenworld collect out=DIR [steps=N] [key=value ...]

Plays `env` of the recipe with random actions: N steps to train on and a fifth as many (at least 1,000), from games with
other seeds, to test on. What is in progress at the end is written as truncated episodes.

examples
  tokenworld collect recipe=atari_small env.id=ALE/Breakout-v5 steps=5000 out=data/breakout

settings
  steps=5000         environment steps to write
{COMMON}""",
    "data": """tokenworld data info DIR

Episodes, steps, spaces, returns, size and integrity of a folder of episodes.

example
  tokenworld data info data/breakout""",
    "score": f"""tokenworld score RUN [policy=cem|shooting] [episodes=100] [seed=0] [device=auto]

The return of the policy of a run, or of an exported model, in the real environment: actions sampled at temperature 1, at
most 10,000 steps each. With policy=, a planner acts instead: before each step it searches action sequences inside the world
model.

examples
  tokenworld score runs/NAME episodes=100
  tokenworld score runs/NAME policy=cem episodes=10 policy.horizon=8 policy.samples=64

  policy.horizon=12      steps that a planner looks ahead
  policy.samples=128     imagined futures per iteration
  policy.iterations=3    refits of the plan (cem)
  policy.elites=16       best futures that a refit keeps (cem)
  policy.gamma=0.995     discount per step
  policy.keep=0.1        share of the last plan in a refit (cem)

{TRUST}""",
    "evaluate": f"""tokenworld evaluate RUN [tier=A|B|C] [data=DIR] [frames=2000] [states=200] [budget=MINUTES] [metrics=ID,ID]
                    [policies=RUN,RUN] [seed=0] [out=RUN/evaluation] [device=auto]

Measures the world model of a run, or of an exported model, on held-out episodes (the run's own, or the test episodes of
data=DIR; where there are none, all of them), without a policy and without the real environment: what the tokenizer loses, code
lengths beside simple predictors, calibration, heed of actions, rewards, terminations, and how long a dream stays with what
really came. Every number has a 95 % interval over episodes; what could not be measured is in the report with the reason. Writes
report.json, states.npz and report.html, one file that opens without a network.

tier=B also branches the simulator (Atari, MinAtar, the known world; others are played again from their seed): from the same
states every action is taken, and what can come of it is held against what the model says: impossible frames, missed ones, the
effects of actions, whole futures, the run's policy beside another agent.
tier=C also lets some twenty policies play (the run's own, mixed with random actions in many shares, and constant ones), really
and in dreams: does the model order them as the world does, and what does a planner without learning lose by planning in it?

examples
  tokenworld evaluate runs/NAME
  tokenworld evaluate runs/NAME tier=B
  tokenworld evaluate runs/NAME tier=C metrics=M5,M12,M13.planner_regret
  tokenworld evaluate dyn data=data/breakout frames=5000 out=reports/breakout

  frames=2000        held-out frames to measure on
  states=200         states to branch from (tier B)
  policies=          runs whose policies play along (tier C); they must look at pixels, or share this run's tokenizer
  metrics=           only these numbers, or rows of them; default: all of the tier
  budget=3           minutes (10 with a simulator); what does not fit is reported as skipped, or done at fewer states
{TRUST}""",
    "compare": """tokenworld compare A B [metrics=ID,ID] [rows=all]

Compares two folders that `tokenworld evaluate` wrote, B against A. Where both measured the same states the difference is
taken state by state, with a 95 % interval over episodes; elsewhere the two intervals are compared. Models with different
tokenizers are compared in what does not depend on their codes.

Lists the metrics that differ (rows=all: every metric); the last line counts in how many B is better, worse or equal.

Exit code 0: B is nowhere shown to be worse; 1: it is, in one of metrics= (default: all); 2: they cannot be compared.

examples
  tokenworld compare old/evaluation new/evaluation
  tokenworld compare old/evaluation new/evaluation metrics=M1.bits,M5.hazard_loss""",
    "dream": f"""tokenworld dream RUN [out=dream.gif] [steps=N] [seed=0] [data=DIR] [device=auto]

Real, reconstructed and imagined frames side by side, from the same start and with the same actions.

examples
  tokenworld dream runs/NAME out=dream.gif
  tokenworld dream dyn steps=50 out=ball.gif

{TRUST}""",
    "play": f"""tokenworld play RUN [port=8642] [data=DIR] [device=auto]

Opens the run's world model to be played in: a page on this machine, its address is printed. You choose the actions by keyboard,
mouse or touch (or let the policy choose); the world model dreams what comes of them. Pause, step, rewind; branch into a second
future beside the first, with the same luck; see what surprised the model; on MinAtar the real game goes along. Needs the extra
`play`: pip install tokenworld[play]. Nobody but you can connect: the address holds a secret, and only this machine may ask.

examples
  tokenworld play runs/NAME
  tokenworld play runs/NAME port=9000

  port=8642          of the address
  data=DIR           more episodes to begin from
{TRUST}""",
    "export": f"""tokenworld export RUN [out=RUN/model] [data=DIR] [device=cpu]

The run's world model, and its policy if it has one, as a folder that needs no run: config.json, weights as safetensors, a few
real moments to begin dreams at, and a model card with what was measured (return, evaluation). Loading it executes nothing.

example
  tokenworld export runs/NAME out=breakout

then, in Python
  from tokenworld import Agent, WorldModel
  agent = Agent.from_pretrained("breakout")          agent.act(obs), agent.score(episodes=100)
  world_model = WorldModel.from_pretrained("breakout")

  out=DIR                a new folder
  data=DIR               episodes to take moments from, where the run's own were moved
{TRUST}""",
    "push": f"""tokenworld push RUN repo=user/name [private=false]

The folder of `tokenworld export` on the Hugging Face hub: Agent.from_pretrained("user/name") loads it from anywhere. Log in
once by `hf auth login`.

example
  tokenworld push runs/NAME repo=user/breakout private=true

  repo=user/name         made if it is not there
  private=false          true: only you can see it
{TRUST}""",
    "bench": f"""tokenworld bench imagine|dynamics|tokenizer|encode|decode|collect|loop [key=value ...] [--json FILE]

Times the recipe's own phases and dreams after a warm-up and prints the median: units per second, forward passes per
frame, counted FLOPs, and the shares of what this machine reaches in a matrix product of the same shape and in reading
memory, measured in the same call. `loop` adds up the whole schedule, test episodes left out.

examples
  tokenworld bench imagine
  tokenworld bench imagine recipe=iris precision=bf16 train.policy.burn_in=1 --json iris.json
  tokenworld bench dynamics recipe=iris train.dynamics.batch=8
  tokenworld bench loop recipe=iris device=cuda precision=bf16

settings
{COMMON}
  repeats=5          timings of each thing; the median counts
  --json FILE        the figures as JSON; with - in place of the table""",
    "show": f"""tokenworld show [recipe=NAME] [against=NAME] [key=value ...] [--yaml]

The recipe as it will run, parameters per part, passes and FLOPs per imagined frame; with against=, what differs; with
--yaml, the recipe alone, as a file to start your own from.

examples
  tokenworld show recipe=iris
  tokenworld show recipe=iris against=quickstart
  tokenworld show recipe=iris env.id=ALE/Pong-v5 backbone.layers=4
  tokenworld show recipe=quickstart --yaml   > mine.yaml

settings
{COMMON}""",
}
