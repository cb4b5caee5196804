"""A training says what it loses: a dictionary of codes that is full."""

import pytest

from tokenworld.cli import main as cli

WORDS = ["train", "overlay=debug", "device=cpu", "train.tokenizer.updates=20", "train.tokenizer.batch=64"]


@pytest.mark.parametrize("size, said", [(4, 1), (256, 0)])
def test_a_full_dictionary_is_told_once(size, said, tmp_path, capsys):
    assert cli.main([*WORDS, f"tokenizer.vocab_size={size}", f"out={tmp_path / 'run'}"]) == 0
    err = capsys.readouterr().err
    assert err.count(f"the dictionary of codes is full ({size} of {size})") == said
    assert err.count(f"tokenizer.vocab_size={2 * size}") == said
    if said:  # not again after a resume
        assert cli.main(["train", "--resume", str(tmp_path / "run"), "train.loop.epochs=4"]) == 0
        assert "is full" not in capsys.readouterr().err


def test_a_tokenizer_of_another_kind_is_never_full(tmp_path, capsys):
    assert cli.main([*WORDS[:3], "recipe=atari_small", "env.id=MinAtar/Breakout-v1", "tokenizer.patch=5",
                     "train.tokenizer.updates=2", f"out={tmp_path / 'run'}"]) == 0, capsys.readouterr().err  # fmt: skip
    assert "is full" not in capsys.readouterr().err
