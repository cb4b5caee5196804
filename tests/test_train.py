"""The loop around the phases: stopping by Ctrl-C, diverging, phases one by one, and the controls."""

import json
import signal
from dataclasses import replace

import pytest
import torch

from tokenworld import run_summary
from tokenworld.cli.verbs import collect as collect_verb
from tokenworld.cli.verbs import data as data_verb
from tokenworld.cli.verbs import dream as dream_verb
from tokenworld.cli.verbs import score as score_verb
from tokenworld.cli.verbs import train as train_verb
from tokenworld.config import compose, schema
from tokenworld.errors import UserError
from tokenworld.storage import checkpoint
from tokenworld.training import batches, build, resume
from tokenworld.training.run import Run, run_training


def composed(*words):
    spec = compose.compose(["overlay=debug", "device=cpu", *words])
    schema.check(spec.cfg)
    return spec


def train(*words):
    return train_verb.run(composed(*words))


def test_ctrl_c_saves_and_the_run_goes_on_to_the_same_end(tmp_path, monkeypatch):
    train(f"out={tmp_path / 'whole'}")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored in the background
    update = Run.update

    def interrupted(self, name, *args):
        update(self, name, *args)
        if name == "dynamics" and self.count[name] == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(f"out={tmp_path / 'stopped'}")
    monkeypatch.undo()
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
    train_verb.resume(str(tmp_path / "stopped"), {}, {})
    for name in ("tokenizer", "dynamics", "policy"):
        file = f"checkpoint/{name}.safetensors"
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "stopped" / file).read_bytes()


def test_a_diverged_loss_stops_before_it_is_saved(tmp_path, monkeypatch):
    total = batches.total_loss
    monkeypatch.setattr(batches, "total_loss", lambda *args, **keywords: total(*args, **keywords) * torch.nan)
    with pytest.raises(UserError, match="loss is nan.*lr"):
        train(f"out={tmp_path / 'run'}")
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_the_phases_one_by_one(tmp_path):
    data, tok, dyn, pol = (str(tmp_path / name) for name in ("data", "tok", "dyn", "pol"))
    collect_verb.run(composed(f"out={data}"), steps=200)
    assert data_verb.run(data)["splits"]["test"]["steps"] >= 1000
    result = train_verb.run_phase("tokenizer", composed(f"data={data}", f"out={tok}"))
    assert result["tokenizer"]["psnr"] > 0 and result["dynamics"]["bits_per_frame"] is None
    result = train_verb.run_phase("dynamics", composed(f"data={data}", f"load.tokenizer={tok}", f"out={dyn}"))
    assert result["dynamics"]["bits_per_frame"] > 0 and result["updates"]["tokenizer"] == 1
    result = train_verb.run_phase("policy", composed(f"load.world_model={dyn}", f"out={pol}"))
    assert result["eval"]["episodes"] == 2 and result["env_steps"] == 0 and result["imagined_steps"] > 0
    assert dream_verb.run(dyn, {"out": str(tmp_path / "dream.gif"), "steps": 5}).stat().st_size > 0
    assert score_verb.run(pol, {"episodes": 3})["episodes"] == 3
    with pytest.raises(UserError, match="no trained policy"):
        score_verb.run(dyn, {})


def test_a_run_made_with_relative_paths_opens_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    collect_verb.run(composed("out=data"), steps=200)
    train_verb.run_phase("tokenizer", composed("data=data", "out=tok"))
    train_verb.run_phase("dynamics", composed("data=data", "load.tokenizer=tok", "out=dyn"))
    monkeypatch.chdir("/")
    run = resume.open_run(str(tmp_path / "dyn"), {})
    assert run.replay.steps >= 200


def test_a_setting_that_the_data_contradicts_is_refused(tmp_path):
    data = str(tmp_path / "data")
    collect_verb.run(composed(f"out={data}"), steps=50)
    with pytest.raises(UserError, match="env.id=MinAtar/Asterix-v1 contradicts data=.*MinAtar/Breakout-v1"):
        train_verb.run_phase("tokenizer", composed("env.id=MinAtar/Asterix-v1", f"data={data}", f"out={tmp_path / 'x'}"))
    assert not (tmp_path / "x").exists()


def test_a_comparison_that_cannot_be_made_is_refused_before_the_run_is(tmp_path):
    with pytest.raises(UserError, match="kmeans needs a tokenizer of patches"):
        train("recipe=iris", "train.evaluate.kmeans=true", f"out={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_damaged_episodes_are_named_counted_and_left_out(tmp_path, capsys):
    data = tmp_path / "data"
    collect_verb.run(composed(f"out={data}"), steps=200)
    shard = data / "episodes-00000.bin"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content)
    train_verb.run_phase("tokenizer", composed(f"data={data}", f"out={tmp_path / 'tok'}"))
    assert str(shard) in capsys.readouterr().err
    assert data_verb.run(str(data))["corrupt"] == 1


def test_controls(tmp_path):
    """No dream at all, and a dream of somebody else's actions."""
    free = ["train.policy._target_=tokenworld.training.phases.model_free.train_policy_model_free", "train.policy.start=0"]
    unused = ["~train.policy.updates", "~train.policy.burn_in", "~train.policy.recent", "~train.policy.events"]
    result = train(f"out={tmp_path / 'free'}", *free, *unused)
    assert result["imagined_steps"] == 0 and result["updates"]["policy"] > 0 and result["eval"]["episodes"] == 2
    result = train(f"out={tmp_path / 'shuffled'}", "action._target_=tokenworld.actions.ShuffledAction")
    assert result["imagined_steps"] > 0
    saved = json.loads((tmp_path / "shuffled" / "summary.json").read_text())
    assert saved["updates"]["dynamics"] == result["updates"]["dynamics"]


def test_the_loop_that_the_recipe_names_trains_the_run(tmp_path, monkeypatch):
    """Here one that runs the phases in another order, each once; its settings are those of train.loop and its own defaults."""
    (tmp_path / "my_loop.py").write_text(
        "def once(run, *, epochs: int = 600, order: str = 'dynamics tokenizer'):\n"
        "    run.phases['collect'](run, False)\n"
        "    for name in order.split():\n"
        "        run.phases[name](run, True, start=0)\n"
        "    run.results['loop'] = (epochs, list(run.count.items()))\n"
    )
    monkeypatch.chdir(tmp_path)
    loop = ["~train.loop", "train.loop._target_=my_loop.once", "train.loop.epochs=7", "train.dynamics.updates=3"]
    run = resume.start_run(composed(*loop, "train.tokenizer.updates=2", f"out={tmp_path / 'run'}"))
    run_training(run)
    epochs, counts = run.results["loop"]
    assert epochs == 7 and dict(counts)["tokenizer"] == 2 and dict(counts)["dynamics"] == 3 and dict(counts)["policy"] == 0
    with pytest.raises(UserError, match="unknown key train.loop.order_: did you mean train.loop.order"):
        composed(*loop, "train.loop.order_=x")


def test_the_summary_holds_the_metrics_of_the_report(tmp_path):
    """The world model is measured once in the last epoch: the same values under other names."""
    summary = train("train.collect.held_out=3", "train.evaluate.frames=40", f"out={tmp_path / 'run'}")
    metrics = json.loads((tmp_path / "run" / "evaluation" / "report.json").read_text())["metrics"]
    values = {metric["id"]: metric["value"] for metric in metrics}
    for entry, table in (("tokenizer", run_summary.TOKENIZER), ("dynamics", run_summary.DYNAMICS)):
        assert summary[entry] == {key: values[spec.id] for key, spec in table.items()}
    assert summary["tokenizer"]["psnr"] > 0 and summary["dynamics"]["bits_per_frame"] > 0
    assert summary["dynamics"]["bits_per_frame_bigram"] > 0 and summary["dynamics"]["bits_per_changed_token_unigram"] > 0


def test_a_phase_has_all_of_its_settings(tmp_path):
    spec = composed("train.dynamics.batch=3", "train.dynamics.start=2", f"out={tmp_path}")
    phase = build.phase_of(spec, "dynamics")
    assert phase.settings["batch"] == 3 and phase.settings["accumulate"] == 1 and phase.settings["start"] == 2
    alone = build.phase_of(replace(spec, phase="dynamics"), "dynamics")
    assert alone.settings == phase.settings | {"start": 0, "stop": None}
    assert "stop" not in build.phase_of(replace(spec, phase="policy"), "policy").settings


def test_a_batch_in_parts_has_the_gradient_of_the_whole(tmp_path):
    """Three uneven parts, of which some steps do not count, move the weights as the whole batch does."""
    moved = []
    for accumulate in (1, 3):
        words = [f"train.{phase}.accumulate={accumulate}" for phase in ("tokenizer", "dynamics")]
        words += ["recipe=iris", "backbone.dropout=0", "train.dynamics.batch=7", "train.tokenizer.batch=7"]
        spec = composed(*words, f"out={tmp_path / str(accumulate)}")
        run = resume.start_run(spec)
        run.phases["collect"](run, False, first_steps=120, random=True)
        run.collector.cut()
        for name in ("tokenizer", "dynamics"):
            run.phases[name](run, False, start=0, updates=2)
        moved.append(torch.cat([p.detach().flatten() for p in run.world_model.parameters()]))
        run.writer.close()
    # Adam moves a weight whose gradient is almost nothing by the sign of rounding: one in ten thousand may be off
    assert ((moved[0] - moved[1]).abs() > 2e-5).float().mean() < 1e-4


def test_parts_are_as_equal_as_can_be():
    assert batches.split_batch(7, 3) == [slice(0, 2), slice(2, 5), slice(5, 7)]
    assert [p.stop - p.start for p in batches.split_batch(2, 4)] == [1, 1]


@pytest.mark.parametrize(
    "words",
    [
        ["recipe=quickstart"],
        ["recipe=atari_small", "train.evaluate.kmeans=false"],
        ["recipe=iris", "tokenizer.channels=8", "tokenizer.blocks=1"],
        ["recipe=atari100k_fast"],
        ["recipe=storm"],
        ["recipe=dreamer_v3"],
    ],
)
def test_recipes_train_in_bf16(words, tmp_path):
    """Every part has its bf16 copy to dream with, and the fp32 weights are what is trained and saved."""
    summary = train(*words, "precision=bf16", "train.loop.epochs=2", f"out={tmp_path / 'run'}")
    assert summary["updates"]["policy"] > 0
    modules, _ = checkpoint.load(tmp_path / "run" / "checkpoint")
    floats = [x for module in modules.values() for x in module.values() if x.is_floating_point()]
    assert floats and all(x.dtype in (torch.float32, torch.float64) for x in floats)
