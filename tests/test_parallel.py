"""Options of parallel decoding: several pivots, code vectors, and how h is pooled."""

import pytest
import torch
from conftest import discover, dynamics, shapes, steps_of

from tokenworld.actions import ActionTable
from tokenworld.cli.main import main
from tokenworld.decoding.parallel import GRAIN, Parallel
from tokenworld.errors import UserError
from tokenworld.interfaces import Codes
from tokenworld.nn import entropy, logprob
from tokenworld.world_model import WorldModel

DECODING = next(part for part in discover("decoding") if part.name.endswith("parallel"))
GPT = next(part for part in discover("backbones") if part.name.endswith("gpt"))


def train(body, head, world, updates=200, A=2):
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-2)
    for update in range(updates):
        losses, _, _ = head.loss(body, world(64, update), steps_of(64, 4, A=A, seed=update))
        optimizer.zero_grad()
        sum(loss.mean() for loss in losses.values()).backward()
        optimizer.step()
    body.eval(), head.eval()


def drawn(body, head, codes, A=2):
    """The frame (B, K) drawn after three given ones."""
    B, _, K = codes.indices.shape
    steps = steps_of(B, 4, A=A)
    with torch.no_grad():
        _, state = head.start(body, Codes(codes.indices[:, :3]), steps[:, :3])
        prediction, _ = head.step(body, state, steps.action[:, 2], torch.rand(B, K))
    return prediction


@pytest.mark.parametrize("pivots, broken", [(1, (0.1, 1)), (2, (0, 0.03))])
def test_a_pivot_for_each_random_event(pivots, broken):
    """Two coins turn two codes each: one pivot leaves one pair inconsistent, two leave none."""
    body, head = dynamics(DECODING, GPT, K=4, V=3, A=2, roused=False, pivots=pivots)

    def world(rows, seed):
        coins = torch.rand(rows, 4, 2, generator=torch.Generator().manual_seed(seed)) < 0.4
        return Codes((1 + coins.cumsum(1) % 2).repeat_interleave(2, -1))  # codes 0 and 1 are alike, and 2 and 3

    head.prepare(lambda: (steps_of(256, 4, A=2), world(256, 999)))
    train(body, head, world, updates=900)
    frame = drawn(body, head, world(600, 1000)).codes.indices[:, 0]
    share = ((frame[:, 0] != frame[:, 1]) | (frame[:, 2] != frame[:, 3])).float().mean()
    assert broken[0] <= share <= broken[1], share


def test_unused_codes_are_impossible():
    V = 4 * GRAIN
    body, head = dynamics(DECODING, GPT, V=V, codebook=True)
    head.set_codebook(torch.rand(V, 4), GRAIN + 1)
    assert head.computed == 2 * GRAIN
    codes = Codes(torch.randint(GRAIN, (300, 4, 3)))
    prediction = drawn(body, head, codes, A=3)
    p = prediction.score().softmax(-1)
    assert p.shape == (300, 3, V) and prediction.codes.indices.max() <= GRAIN
    assert (p[..., GRAIN + 1 :] == 0).all() and p.sum(-1).allclose(torch.ones(300, 3))
    assert torch.isfinite(entropy(prediction)).all() and torch.isfinite(logprob(prediction)).all()
    twin = Parallel(shapes=shapes(V=V), action=ActionTable(actions=3, dim=16), codebook=True)
    assert twin.computed == V
    twin.load_state_dict(head.state_dict())
    assert twin.computed == 2 * GRAIN, "a loaded decoding knows how many codes there are"
    head.set_codebook(torch.rand(V, 4), 0)
    assert (drawn(body, head, Codes(torch.zeros_like(codes.indices)), A=3).codes.indices == 0).all(), "none yet: the first"


def test_training_passes_the_codebook_on(tmp_path):
    model = tmp_path / "model"
    run = tmp_path / "run"
    assert main(["train", "overlay=debug", "decoding.codebook=true", "tokenizer.vocab_size=512", f"out={run}"]) == 0
    assert main(["export", str(run), f"out={model}"]) == 0
    loaded = WorldModel.from_pretrained(model)
    tokenizer, decoding = loaded.tokenizer, loaded.decoding
    assert 1 < tokenizer.used == decoding.used <= decoding.computed < tokenizer.V
    assert torch.equal(decoding.codebook, tokenizer.codebook.float() / 255) and decoding.codebook.any()


def test_codes_with_equal_vectors_share_what_is_learned():
    """Codes 0..7 and 8..15 have the same eight vectors. Training sees only the first eight, the test only the others."""
    V = GRAIN

    def world(rows, seed, shift=0):
        begin = torch.randint(8, (rows, 1, 1), generator=torch.Generator().manual_seed(seed))
        return Codes((begin + torch.arange(4).view(1, 4, 1)) % 8 + shift)

    right = []
    for codebook in (True, False):
        body, head = dynamics(DECODING, GPT, K=1, V=V, A=2, roused=False, codebook=codebook)
        vectors = torch.nn.functional.one_hot(torch.arange(V) % 8, 8).float() * 3
        head.set_codebook(vectors[:, :4] - vectors[:, 4:], 16)
        head.prepare(lambda: (steps_of(256, 4, A=2), world(256, 999)))
        train(body, head, world)
        start = world(400, 1000, shift=8)
        prediction, expected = drawn(body, head, start), start.indices[:, 3, 0] % 8
        follows = prediction.codes.indices[:, 0, 0] % 8
        among_untrained = prediction.score()[:, 0, 8:16].argmax(-1)
        right.append([float((code == expected).float().mean()) for code in (follows, among_untrained)])
    assert min(right[0]) > 0.7 > 0.4 > max(right[1]), right


def test_max_learns_an_event_at_one_of_many_positions():
    """One of 30 codes decides the reward. After equal updates `max` predicts it and `sum` does not."""
    K, V = 30, 12
    nats = {}
    for pool in ("sum", "max"):
        body, head = dynamics(DECODING, GPT, K=K, V=V, A=2, roused=False, pool=pool)
        judge = torch.nn.Linear(16, 1)
        optimizer = torch.optim.Adam([*body.parameters(), *head.parameters(), *judge.parameters()], lr=3e-3)
        history = []
        for update in range(150):
            codes = Codes(torch.randint(1, V, (32, 2, K)))
            pays = torch.rand(32) < 0.3
            codes.indices[pays, 1, torch.randint(K, (32,))[pays]] = 0
            _, h, _ = head.loss(body, codes, steps_of(32, 2, A=2, seed=update))
            loss = torch.nn.functional.binary_cross_entropy_with_logits(judge(h[:, 0])[:, 0], pays.float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(loss.item())
        nats[pool] = sum(history[-30:]) / 30
    assert nats["max"] < 0.5 * nats["sum"], nats


def test_a_broken_frame_is_corrected_from_those_before_it():
    """A dot goes around a ring of four codes; in the last frame that is given, it has vanished: no data have such a frame."""

    def corrected(corrupt):
        torch.manual_seed(0)
        body, head = dynamics(DECODING, GPT, K=4, V=3, A=2, roused=False, corrupt=corrupt)

        def world(rows, seed):
            place = torch.randint(4, (rows, 1), generator=torch.Generator().manual_seed(seed)) + torch.arange(4)
            return Codes(torch.nn.functional.one_hot(place % 4, 4))

        head.prepare(lambda: (steps_of(256, 4, A=2), world(256, 999)))
        train(body, head, world, updates=300)
        codes = world(200, 1000).indices
        broken = codes.clone()
        broken[:, 2] = 0
        for given in (codes, broken):
            after = drawn(body, head, Codes(given)).codes.indices[:, 0]
            yield (after == codes[:, 3]).all(1).float().mean().item()

    whole, broken = corrected(0.2)
    assert whole > 0.95 and broken > 0.8, (whole, broken)
    whole, broken = corrected(0.0)
    assert whole > 0.95 and broken < 0.5, (whole, broken)


def test_only_what_is_read_in_training_is_corrupted():
    body, head = dynamics(DECODING, GPT, K=3, V=3, A=2, corrupt=0.25)
    z = torch.randint(3, (400, 4, 3))
    head.train()
    changed = (head._corrupt(z) != z).float().mean()
    assert changed == pytest.approx(0.25 * 2 / 3, abs=0.03)  # a third of the codes of other windows are the same
    head.eval()
    assert head._corrupt(z) is z


@pytest.mark.parametrize("wrong, word", [({"pool": "mean"}, "pool"), ({"pivots": 0}, "pivots"), ({"corrupt": 1.0}, "corrupt")])
def test_impossible_settings_are_refused(wrong, word):
    with pytest.raises(UserError, match=f"decoding.{word} must be"):
        Parallel(shapes=shapes(), action=ActionTable(actions=3, dim=16), **wrong)
