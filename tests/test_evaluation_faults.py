"""The evaluation on real models: it orders checkpoints of one training, and names faults that were planted. Minutes: slow."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from tokenworld.cli import main as cli
from tokenworld.data.episodes import EpisodeWriter, read_episodes, read_meta
from tokenworld.decoding.parallel import Parallel
from tokenworld.evaluation.report import files

pytestmark = pytest.mark.slow

NOOP, LEFT, RIGHT = range(3)  # of MinAtar Breakout
BALL = 1  # its channel
EPOCHS = 16
CALIBRATION = {"OVERCONFIDENT", "UNDERCONFIDENT"}  # it depends on how long a model learned: nobody planted it


def flipped(episode):
    """Rewards of the opposite sign."""
    return replace(episode, reward=-episode.reward)


def reward_late(episode):
    """Each reward one step after its own."""
    return replace(episode, reward=np.append(np.zeros(1, np.float32), episode.reward[:-1]))


def end_late(episode):
    """The game's last frame is shown once more, and only then the episode ends."""
    if not episode.terminated[-1]:
        return episode
    fields = {name: np.append(getattr(episode, name), np.zeros(1, getattr(episode, name).dtype))
              for name in ("action", "reward", "truncated")}  # fmt: skip
    obs = np.concatenate([episode.obs, episode.obs[-1:]])
    return replace(episode, obs=obs, terminated=np.arange(len(obs) - 1) == len(obs) - 2, **fields)


def endless(episode):
    """No episode ends, all are cut off."""
    last = np.arange(episode.steps) == episode.steps - 1
    return replace(episode, terminated=np.zeros_like(last), truncated=last)


def aliased(episode):
    """Right is recorded as doing nothing."""
    return replace(episode, action=np.where(episode.action == RIGHT, NOOP, episode.action))


def swapped(episode):
    """Left and right are recorded the wrong way round while the ball is in the left half."""
    is_left = episode.obs[:-1, BALL].max(1).argmax(1) < 5
    other = np.array([NOOP, RIGHT, LEFT])[episode.action]
    return replace(episode, action=np.where(is_left, other, episode.action))


PLANTED = {  # fault -> findings that name it, from held-out data alone and with a simulator
    flipped: ({"REWARDS_OF_THE_WRONG_SIGN"}, {"REWARDS_OF_THE_WRONG_SIGN"}),
    reward_late: ({"REWARDS_LATE"}, {"REWARDS_LATE"}),
    end_late: ({"ENDS_LATE"}, {"ENDS_LATE"}),
    endless: ({"ENDS_TOO_RARE"}, {"ENDS_TOO_RARE"}),
    aliased: ({"OVERLOOKS_AN_ACTION"}, {"OVERLOOKS_AN_ACTION", "PAIR_TOO_ALIKE"}),
    swapped: ({"TAKES_ACTIONS_FOR_OTHERS"}, {"ACTIONS_SWAPPED_IN_SOME_STATES"}),
}


def evaluated(run, name="evaluation", tier="A"):
    """The verdict, metrics by id, and the codes of what is established."""
    assert cli.main(["evaluate", str(run), f"out={run / name}", f"tier={tier}"]) == 0
    told, _ = files.read(run / name)
    codes = {finding["code"] for finding in told["findings"] if finding["established"]}
    return told["verdict"], {metric["id"]: metric for metric in told["metrics"]}, codes


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """name -> the folder of a training on 20,000 steps of random play with the same frozen tokenizer, with what was planted in
    its training episodes. The test episodes stay true."""
    folder = tmp_path_factory.mktemp("faults")
    data, tokenizer = folder / "clean", folder / "tokenizer"
    assert cli.main(["collect", f"out={data}", "steps=20000"]) == 0
    assert cli.main(["train", "tokenizer", f"data={data}", f"out={tokenizer}", "device=cpu", "train.loop.epochs=5"]) == 0
    for plant in PLANTED:
        with EpisodeWriter(folder / plant.__name__, read_meta(data)) as writer:
            for episode in read_episodes(data):
                writer.append(plant(episode) if episode.split == "train" else episode)
    runs = {name: folder / f"run_{name}" for name in ("early", "middle", "clean", "shuffled")}
    runs |= {plant.__name__: folder / f"run_{plant.__name__}" for plant in PLANTED}
    keys = {"early": ["train.loop.epochs=1", "train.dynamics.updates=15"], "middle": ["train.loop.epochs=1"],
            "shuffled": ["action._target_=tokenworld.actions.ShuffledAction", f"train.loop.epochs={EPOCHS}"]}  # fmt: skip
    for name, out in runs.items():
        source = folder / name if (folder / name).is_dir() else data
        words = ["device=cpu", f"load.tokenizer={tokenizer}", f"data={source}", f"out={out}"]
        assert cli.main(["train", "dynamics", *words, *keys.get(name, [f"train.loop.epochs={EPOCHS}"])]) == 0
    yield runs
    shutil.rmtree(folder)


def test_checkpoints_of_one_training_are_ordered(learned):
    found = [evaluated(learned[name])[1] for name in ("early", "middle", "clean")]
    for metric, better in (("code_length.bits", -1), ("terminations.log_loss", -1), ("rollouts.held_out_horizon", 1)):
        values = [numbers[metric]["value"] for numbers in found]
        print(metric, values)
        assert all(better * (b - a) >= 0 for a, b in zip(values, values[1:], strict=False)), (metric, values)
        assert values[0] != values[-1]


@pytest.mark.parametrize("tier", ["A", "B"])
def test_nothing_is_found_in_the_clean_model(learned, tier):
    verdict, _, codes = evaluated(learned["clean"], f"tier_{tier}", tier)
    print(f"clean, tier {tier}: {verdict}")
    assert codes <= CALIBRATION


@pytest.mark.parametrize("tier", ["A", "B"])
@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_named(learned, plant, tier):
    verdict, _, codes = evaluated(learned[plant.__name__], f"tier_{tier}", tier)
    print(f"{plant.__name__}, tier {tier}: {verdict}")
    assert PLANTED[plant]["AB".index(tier)] <= codes


def test_shuffled_actions_are_named(learned):
    verdict, _, codes = evaluated(learned["shuffled"])
    print(f"shuffled: {verdict}")
    assert "ACTION_BLIND" in codes


def test_sharpened_logits_are_named_overconfident(learned, monkeypatch):
    plain = Parallel._logits
    monkeypatch.setattr(Parallel, "_logits", lambda self, hidden, before: 2 * plain(self, hidden, before))
    verdict, _, codes = evaluated(learned["clean"], "sharpened")
    print(f"sharpened: {verdict}")
    assert "OVERCONFIDENT" in codes and "; overconfident (" in verdict
