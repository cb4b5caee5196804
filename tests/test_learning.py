"""Learning itself, end to end: the quick start, cut short, must dream well enough that its policy beats a random one."""

from tokenworld.cli.verbs import train as train_verb
from tokenworld.config import compose, schema


def test_the_quick_start_learns_in_its_dream(tmp_path):
    """The first part of the quick start; a broken part leaves the policy at random's 0.3 to 0.5."""
    spec = compose.compose([f"out={tmp_path / 'run'}", "seed=1", "device=cpu", "train.loop.epochs=10"])
    schema.check(spec.cfg)
    result = train_verb.run(spec)
    tokenizer, dynamics, returns = result["tokenizer"], result["dynamics"], result["eval"]
    assert tokenizer["psnr"] > 60 and tokenizer["event_recall"] > 0.999, tokenizer
    assert dynamics["bits_per_frame"] < 0.2 * dynamics["bits_per_frame_bigram"], dynamics
    assert dynamics["reward_event_f1"] > 0.9 and dynamics["termination_brier_skill"] > 0.6, dynamics
    assert returns["return_ci95"][0] > 4 * returns["random_return_mean"], returns
