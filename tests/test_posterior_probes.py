"""World models whose codes have no equality: probes read the decoding's own codes, decode them, and compare frames."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import steps_of
from posterior import posterior_model
from test_branch_probe import Dial
from torch import nn

from tokenworld import WorldModel
from tokenworld.action_space import Actions
from tokenworld.envs.known_world import World
from tokenworld.evaluation import tiers
from tokenworld.evaluation.metrics import code_length, delta_psnr, memory
from tokenworld.evaluation.probes import branches, codes, held_out, known_world
from tokenworld.evaluation.probes.film import film_of
from tokenworld.evaluation.records import Recalls, Reconstructions, Steered
from tokenworld.evaluation.statistics.metric_spec import OF_POSTERIOR
from tokenworld.heads import SignReward, Termination
from tokenworld.interfaces import Codes, Part, Prediction, Shapes, State
from tokenworld.tokenizers.nearest import NearestPatches

FRAME = (4, 10, 10)


@pytest.fixture(scope="module")
def model():
    return posterior_model("quickstart", FRAME, 3)


def windows(B=3, T=9, seed=0):
    return steps_of(B, T, first=[(b, 0) for b in range(B)], frame=FRAME, seed=seed)


def episodes(B=3, T=9):
    return np.repeat(np.arange(B)[:, None], T, 1)


# ------------------------------------------------------------------------------------------------------------ held-out frames


@torch.no_grad()
def test_scores_are_of_the_codes_that_the_decoding_read(model):
    steps = windows()
    features = model.encode(steps)
    scored = held_out.score_held_out(model, steps, features, episodes())
    read = model.posterior(steps, features)
    assert scored.codes.shape == (3 * 8, 4) and len(np.unique(scored.codes)) > 1
    by_step = scored.codes.reshape(8, 3, 4), scored.previous.reshape(8, 3, 4)  # rows are appended step by step
    assert np.array_equal(by_step[0], read.indices[:, 1:].transpose(0, 1).numpy())
    assert np.array_equal(by_step[1], read.indices[:, :-1].transpose(0, 1).numpy())
    assert all(getattr(scored, name) is None for name in held_out.OF_LIKELIHOOD)
    assert np.isfinite(scored.reward_mean).all() and ((0 <= scored.hazard) & (scored.hazard <= 1)).all()


@torch.no_grad()
def test_the_divergence_of_the_posterior(model):
    """The loss `dyn`, which is in nats and not below its free ones, in bits; not the entropy, and not the other direction."""
    steps = windows()
    scored = held_out.score_held_out(model, steps, model.encode(steps), episodes())
    nats = model.decoding.loss(model.backbone, model.encode(steps), steps)[0]["dyn"]  # (B, T-1)
    bits = scored.posterior_bits.reshape(8, 3).T
    assert nats.min() > 0.1 and np.allclose(bits, nats.numpy() / math.log(2), atol=1e-5)
    (metric,) = code_length.posterior_kl(scored)
    assert metric.value == pytest.approx(bits.mean()) and metric.unit == "bits/frame"
    absent = code_length.of_predictors(scored, None)
    assert {each.status for each in absent} == {"not_applicable"} and all(each.reason for each in absent)


@torch.no_grad()
def test_drift_compares_tiles_of_decoded_frames(model):
    steps = windows(T=7)
    features = model.encode(steps)
    drift = held_out.drift(model, steps, features, episodes(T=7), context=3, futures=2)
    shown = model.frames(model.posterior(steps, features))  # (B, T, C, H, W)
    levels = (shown.flatten(2).float() / 255 * 7).round().to(torch.uint8).numpy()
    assert drift.model.shape == (3, 2, 4, 400) and drift.real.max() <= 7 and drift.model.max() <= 7
    assert np.array_equal(drift.real, levels[:, 3:]) and np.array_equal(drift.copy, levels[:, 2])
    assert drift.own_bits is drift.real_bits is drift.imagined_bits is None


def test_tiles_are_means_in_eight_levels():
    frames = torch.zeros(2, 3, 32, 48, dtype=torch.uint8)
    frames[1, :, :2, :3] = 255  # one tile of 2 x 3 pixels
    tiles = codes.tiles(frames)
    assert tiles.shape == (2, 3 * 16 * 16) and tiles[0].sum() == 0
    assert sorted(tiles[1].nonzero().squeeze(1).tolist()) == [0, 256, 512] and tiles[1].max() == 7


# ------------------------------------------------------------------------------------------------------------- branches


def test_branches_are_merged_by_their_frames(model):
    """Action 0 has two futures with one frame, the others have two frames."""
    states = branches.branch_states(Dial(), 3, 2, math.inf)
    branched = branches.branches(model, Dial(), states, math.inf)
    assert branched.codes is branched.bits is branched.marginal_q is None
    assert np.allclose(branched.p, np.array([[1, 0], [0.75, 0.25], [0.75, 0.25]])[None])
    assert np.isfinite(branched.reward_mean).all() and branched.hazard.shape == (3, 3)


# ------------------------------------------------------------------------------------------------------------- histories


def test_a_memory_without_a_limit_reads_whole_episodes(model, monkeypatch):
    assert codes.history_of(model.backbone) == 4 and codes.history_of(model.backbone, 3) == 3
    states = branches.branch_states(Dial(), 4, codes.history_of(model.backbone, branches.READ), math.inf)
    assert {len(state.obs) for state in states} == {4}
    monkeypatch.setattr(model.backbone, "scans", True)
    assert codes.history_of(model.backbone) == codes.history_of(model.backbone, 3) == codes.LONGEST
    states = branches.branch_states(Dial(), 12, codes.history_of(model.backbone, branches.READ), math.inf)
    lengths = [len(state.obs) for state in states]
    assert branches.READ <= min(lengths) < 200 < max(lengths)
    assert all(len(state.action) == len(state.obs) - 1 for state in states)


@pytest.mark.parametrize("scans", [False, True])
def test_rollouts_of_held_out_episodes_read_all_before_them(model, monkeypatch, scans):
    """The state of a start is that of its episode alone, read from its first frame."""
    monkeypatch.setattr(model.backbone, "scans", scans)
    from test_required_metrics import replay_of

    replay = replay_of(World(), 6)
    seen = []
    monkeypatch.setattr(held_out, "drift", lambda model, steps, codes, episode, **more: seen.append((steps, more)))
    monkeypatch.setattr(held_out, "steered", lambda *_, **__: None)
    everything = replay.gather(np.arange(replay.rows)[None])[0]
    first = everything.first.numpy()
    tiers._imagined(model, replay, lambda rows: Codes(torch.zeros(*rows.shape, 1)), first, np.cumsum(first), 0, 8, 0)
    (steps, more), = seen
    H = more["context"]
    assert H == (codes.LONGEST if scans else 4)
    begun = steps.first[:, :H].any(1)
    assert begun.all() if scans else not begun.all()


# ------------------------------------------------------------------------------------------------------------- the known world


def test_the_color_of_drawn_frames_is_the_nearest_glyph():
    world, rng = World(), np.random.default_rng(0)
    shown = {value: np.flatnonzero(world.tiles[:, 5] == value) for value in range(3)}
    for value, expected in ((1, 0.0), (2, 1.0), (0, 0.5)):
        frames = world.pictures[rng.choice(shown[value], 8)].astype(float)
        blurred = torch.from_numpy((0.7 * frames + 0.3 * rng.integers(0, 256, frames.shape)).astype(np.uint8))
        assert known_world.share_of_color(blurred) == expected
    mixed = torch.from_numpy(world.pictures[[*shown[2][:3], shown[1][0]]])
    assert known_world.share_of_color(mixed) == 0.75


@pytest.mark.parametrize("remembers", [True, False])
def test_recalls_are_counted_in_drawn_frames(remembers, monkeypatch):
    world, model = World(), posterior_model()
    lengths = []

    def read_state(_, branch_state, device):
        lengths.append(len(branch_state.obs))
        cell, *_, color = (int(x) for x in world.states[(world.pictures == branch_state.obs[0]).all((1, 2, 3)).argmax()])
        assert cell == 0 or not model.backbone.scans  # the color is shown there
        return Fixed(torch.tensor([color]))

    class Fixed(State):
        def __init__(self, color):
            self.color = color

        def select(self, index):
            return Fixed(self.color[index])

    def step(state, action, noise):
        color = state.color if remembers else (noise[:, 0] < 0.5).long()
        pictures = torch.from_numpy(np.stack([world.render(world.index(0, 0, 0, 0, int(c))) for c in color]))
        return Prediction(Codes(vectors=pictures[:, None]), torch.zeros(len(color), 1)), state

    monkeypatch.setattr(model.backbone, "scans", True)
    monkeypatch.setattr(branches, "read_state", read_state)
    monkeypatch.setattr(model, "step", step)
    monkeypatch.setattr(model, "frames", lambda codes: codes.vectors)
    recalls = known_world.recalls(model, world)
    assert set(recalls.delay) == {2, 5, 10, 30} and max(lengths) == 30 + 2 and len(recalls.answer) == 160
    if remembers:
        assert np.array_equal(recalls.answer, recalls.truth)
    else:
        assert abs(recalls.answer.mean() - 0.5) < 0.05 and ((0.2 < recalls.answer) & (recalls.answer < 0.8)).all()


# ------------------------------------------------------------------------------------------------------------- reconstructions


@torch.no_grad()
def test_reconstructions_decode_the_posterior(model):
    from test_required_metrics import replay_of

    world, model = World(), posterior_model()
    replay = replay_of(world, 2)
    rows = np.arange(replay.rows)[None]
    steps = replay.gather(rows)
    record = tiers._reconstructions(model, replay, lambda rows: model.encode(replay.gather(rows)), rows[0], 1000)
    expected = model.frames(model.posterior(steps, model.encode(steps)))[0]
    assert torch.equal(record.decoded, expected) and record.codes is None and record.vocab_size == 0
    assert not torch.equal(expected, model.frames(model.encode(steps))[0])  # features are no codes of this decoder


@pytest.mark.parametrize("dynamics", [True, False])
def test_a_film_shows_the_decoded_posterior(dynamics, monkeypatch):
    from test_required_metrics import replay_of

    model, replay = posterior_model(), replay_of(World(), 2)
    run = SimpleNamespace(world_model=model, device=torch.device("cpu"), meta={})
    steps = replay.gather(np.arange(replay.rows)[None])
    monkeypatch.setattr(replay, "sample", lambda *_: (steps, None))
    film = film_of(run, replay, steps=1000, seed=0, dynamics=dynamics)
    expected = model.frames(model.posterior(steps, model.encode(steps)))[0]
    assert np.array_equal(film.rows["reconstructed"], expected[1:].numpy()) and ("imagined" in film.rows) == dynamics


def test_what_counts_codes_is_not_applicable_without_indices():
    from tokenworld.evaluation.metrics import tokenizer

    frames = torch.randint(256, (12, 1, 4, 4), dtype=torch.uint8)
    record = Reconstructions(np.arange(12), frames, frames, torch.ones(12, dtype=torch.bool), None, 0)
    absent = [metric for metric in tokenizer.tokenizer_ceiling(record) if metric.status == "not_applicable"]
    assert {metric.id for metric in absent} >= {"tokenizer.codebook_usage", "tokenizer.perplexity"}
    assert {metric.status for metric in tokenizer.dictionary_of_patches(None)} == {"not_applicable"}


# ------------------------------------------------------------------------------------------------------------- delta-PSNR


class Row(nn.Module, Part):
    """A row of V pixels of which one is lit: its code says which."""

    K, E, grid, context, joint = 1, 1, (1, 1), 0, False

    def __init__(self, V):
        super().__init__()
        self.V = V

    def encode(self, steps):
        return Codes(steps.obs[:, :, 0].float().argmax(-1))

    def decode(self, codes, past=None):
        return torch.nn.functional.one_hot(codes.indices, self.V).float().unsqueeze(2)


class Walk(nn.Module, Part):
    """The lit pixel moves by the action, or by chance."""

    passes, lookahead, noise_size, has_posterior, joint_draw = 1, 0, 1, False, True
    weights = {"codes": 1.0}

    def __init__(self, V, follows):
        super().__init__()
        self.V, self.follows = V, follows
        self.shapes = Shapes((1, 1, V), Actions((3,)), (1, 1), 1, V, 1, 1)

    def start(self, backbone, codes, steps):
        return Prediction(codes[:, -1:], torch.zeros(len(codes.indices), 1)), At(codes.indices[:, -1, 0])

    def step(self, backbone, state, action, noise, codes=None, first=None):
        move = action if self.follows else (noise[:, 0] * 3).long()
        at = (state.at + move) % self.V if codes is None else codes.indices[:, 0, 0]
        return Prediction(Codes(at[:, None, None]), torch.zeros(len(at), 1)), At(at)


class At(State):
    def __init__(self, at):
        self.at = at

    def select(self, index):
        return At(self.at[index])


class Still(nn.Module, Part):
    D, context = 1, 4


def walk(follows, V=16):
    heads = dict(reward=SignReward(dim=1, hidden=4), termination=Termination(dim=1, hidden=4))
    return WorldModel(tokenizer=Row(V), backbone=Still(), decoding=Walk(V, follows), **heads).eval()


@pytest.mark.parametrize("follows", [True, False])
def test_what_actions_add_to_imagined_frames(follows):
    S, T, V = 40, 3 + delta_psnr.STEPS, 16
    steps = steps_of(S, T, frame=(1, 1, V))
    moves = torch.cat([torch.zeros(S, 1, dtype=torch.int64), steps.action[:, :-1].cumsum(1)], 1)
    obs = (torch.nn.functional.one_hot((3 + moves) % V, V) * 255).to(torch.uint8)[:, :, None, None]
    steps = replace(steps, obs=obs)
    model = walk(follows)
    read = model.encode(steps)[:, :3]
    steered = held_out.steered(model, steps, read, obs[:, -1], np.repeat(np.arange(S)[:, None], T, 1), futures=4)
    (metric,) = delta_psnr.delta_psnr(steered)
    low, high = metric.ci
    assert metric.id == "delta_psnr.gain" and metric.n_clusters == S and metric.status == "ok"
    if follows:
        assert steered.real_actions.max() == 0 and steered.random_actions.shape == (S, 4) and low > 10
    else:  # under the same random numbers
        assert np.array_equal(steered.real_actions, steered.random_actions) and low <= 0 <= high and metric.value == 0


class Pictures(Row):
    """The same without an index: a code is its picture."""

    V = 0

    def __init__(self, V):
        nn.Module.__init__(self)
        self.E = V

    def encode(self, steps):
        return Codes(vectors=(steps.obs[:, :, 0] > 0).float())

    def decode(self, codes, past=None):
        return codes.vectors.unsqueeze(2)


class Glide(Walk):
    def start(self, backbone, codes, steps):
        prediction, state = super().start(backbone, self.indexed(codes), steps)
        return replace(prediction, codes=self.drawn(prediction.codes)), state

    def step(self, backbone, state, action, noise, codes=None, first=None):
        read = None if codes is None else self.indexed(codes)
        prediction, state = super().step(backbone, state, action, noise, read, first)
        return replace(prediction, codes=self.drawn(prediction.codes)), state

    def indexed(self, codes):
        return Codes(codes.vectors.argmax(-1))

    def drawn(self, codes):
        return Codes(vectors=torch.nn.functional.one_hot(codes.indices, self.V).float())


def test_vectors_without_indices_and_without_a_posterior():
    """What is imagined of a world without chance is what came."""
    V = 16
    heads = dict(reward=SignReward(dim=1, hidden=4), termination=Termination(dim=1, hidden=4))
    model = WorldModel(tokenizer=Pictures(V), backbone=Still(), decoding=Glide(V, True), **heads).eval()
    steps = steps_of(2, 8, first=[(0, 0), (1, 0)], frame=(1, 1, V))
    moves = torch.cat([torch.zeros(2, 1, dtype=torch.int64), steps.action[:, :-1].cumsum(1)], 1)
    obs = (torch.nn.functional.one_hot((3 + moves) % V, V) * 255).to(torch.uint8)[:, :, None, None]
    steps = replace(steps, obs=obs)
    scored = held_out.score_held_out(model, steps, model.encode(steps), episodes(2, 8))
    assert scored.codes is scored.previous is scored.bits is scored.posterior_bits is None and len(scored.hazard) == 2 * 7
    drift = held_out.drift(model, steps, model.encode(steps), episodes(2, 8), context=2, futures=2)
    assert drift.real.shape == (2, 6, V) and (drift.model == drift.real[:, None]).all() and drift.real.max() == 7
    assert (drift.real.argmax(-1) == ((3 + moves) % V)[:, 2:].numpy()).all()


def test_independent_errors_of_a_model_without_actions_are_no_gain():
    rng, missed = np.random.default_rng(0), 0
    for _ in range(60):
        steered = Steered(np.repeat(np.arange(30), 2), 4, rng.gamma(2, 100, (60, 4)), rng.gamma(2, 100, (60, 4)))
        low, high = delta_psnr.delta_psnr(steered)[0].ci
        missed += not low <= 0 <= high
    assert missed <= 8
    few = Steered(np.arange(30), 3, np.ones((30, 4)), np.ones((30, 4)))
    assert delta_psnr.delta_psnr(few)[0].status == "not_applicable"


def test_the_reason_is_the_posterior(model):
    assert codes.why_no_likelihood(model) == OF_POSTERIOR and not codes.have_equality(model)
    token = WorldModel.from_recipe("quickstart", "overlay=debug", frame=FRAME, actions=3)
    assert type(token.tokenizer) is not NearestPatches or codes.have_equality(token)
    assert codes.have_equality(token) and codes.why_no_likelihood(token) != OF_POSTERIOR


@pytest.mark.parametrize("delays, judged, shown", [((2, 5, 10, 30), 10, [30]), ((2, 5), 5, []), ((20, 30), 20, [30])])
def test_memory_is_judged_after_ten_steps_and_shown_after_more(delays, judged, shown):
    delay = np.repeat(delays, 20)
    truth = np.tile([0, 1], len(delay) // 2)
    answer = np.where(delay > 10, 0.5, truth).astype(float)  # forgotten after ten steps
    recalls = Recalls(np.arange(len(delay)), delay, truth, answer)
    metrics = {metric.id: metric for metric in memory.recall(recalls)}
    assert metrics["memory.recall"].value == (1.0 if judged <= 10 else 0.5)
    assert f"after {judged} steps" in metrics["memory.recall"].name
    assert {id for id in metrics if "@" in id} == {f"memory.recall@{k}" for k in shown}
    assert all(metrics[f"memory.recall@{k}"].value == 0.5 for k in shown)
