"""The contract of decodings: every file of decoding/ with every file of backbones/, found by discovery, and a decoding whose
predictions have no score, since it has no likelihood."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import Part, close, codes_of, dynamics, each, steps_of
from likelihood_free import Masked

from tokenworld.action_space import Actions
from tokenworld.interfaces import Codes
from tokenworld.nn import entropy, logprob

B = 3
LONG = 11  # steps, more than twice a TINY's context
FIRST = [(0, 0), (1, 5), (2, 1), (2, 9)]

# a posterior and a mixture of densities read vectors: test_rssm.py, test_mixture.py
OF_CODES = [part for part in each("decoding") if part.id not in ("rssm", "mixture")]
DECODINGS = [*OF_CODES, pytest.param(Part("likelihood_free", Masked, {}), id="likelihood_free")]
pairs = pytest.mark.parametrize("decoding, backbone", [
    pytest.param(d.values[0], b.values[0], id=f"{d.id}-{b.id}") for d in DECODINGS for b in each("backbones")
    if d.id == "single" or not b.values[0].make.scans  # which reads one position per step
])  # fmt: skip


def replayed(body, head, codes, steps, start):
    """`start` on so many frames, then `step` on each further one: log-probabilities (B, n, K), None without a likelihood, and
    h (B, n, D)."""
    prediction, state = head.start(body, Codes(codes.indices[:, :start]), steps[:, :start])
    predictions = [prediction]
    for t in range(start, codes.indices.shape[1]):
        given, first = Codes(codes.indices[:, t : t + 1]), steps.first[:, t]
        prediction, state = head.step(body, state, steps.action[:, t - 1], None, given, first)
        assert torch.equal(prediction.codes.indices, given.indices)
        predictions.append(prediction)
    assert len({prediction.score is None for prediction in predictions}) == 1
    nats = None if predictions[0].score is None else torch.stack([logprob(p) for p in predictions], 1)
    return nats, torch.stack([p.h for p in predictions], 1)


def dreamt(body, head, codes, steps, noise):
    """`start` on the codes, then sample as many steps as there is noise (B, H, K)."""
    prediction, state = head.start(body, codes, steps[:, : codes.indices.shape[1]])
    out = []
    for t in range(noise.shape[1]):
        prediction, state = head.step(body, state, steps.action[:, codes.indices.shape[1] - 1 + t], noise[:, t])
        out.append(prediction)
    return out, state


@pairs
class TestDecoding:
    @pytest.mark.parametrize("K", [1, 3])
    @pytest.mark.parametrize("start", [1, 2, 7])
    @torch.no_grad()
    def test_loss_equals_start_and_step(self, decoding, backbone, K, start):
        """The same log-probabilities and h whether a window is read at once or step by step, over episodes' borders."""
        body, head = dynamics(decoding, backbone, K)
        codes, steps = codes_of(B, LONG, K), steps_of(B, LONG, first=FIRST)
        losses, h, _ = head.loss(body, codes, steps)
        assert losses.keys() == head.weights.keys() and h.shape == (B, LONG - head.lookahead, body.D)
        assert all(loss.shape in ((B, LONG - 1), ()) for loss in losses.values())
        nats, seen = replayed(body, head, codes, steps, start)
        at = max(start, 2) - 2  # the loss's entry of the first frame that was predicted
        real = steps.acted[:, at:-1]
        if nats is not None:
            assert nats.shape == (B, LONG - start + 1, K) and (nats < 0).all()
            assert close(-nats[:, -real.shape[1] :].mean(-1)[real], losses["codes"][:, at:][real])
        assert close(seen[:, -real.shape[1] :][real], h[:, at : LONG - 1][real])
        assert (seen[:, -real.shape[1] :][~real] == 0).all() and (start > 1 or (seen[:, 0] == 0).all())

    @torch.no_grad()
    def test_actions_of_several_parts(self, decoding, backbone):
        """Rows (B, T, A) instead of whole numbers, and each part of them matters."""
        actions = Actions((3,), ((-2.0, 2.0),))
        body, head = dynamics(decoding, backbone, A=actions)
        codes, steps = codes_of(B, LONG), steps_of(B, LONG, first=FIRST)
        rows, real = actions.draw(torch.rand(B, LONG, 2)), steps.acted[:, :-1]
        h = head.loss(body, codes, replace(steps, action=rows))[1]
        seen = replayed(body, head, codes, replace(steps, action=rows), 2)[1]
        assert close(seen[:, -real.shape[1] :][real], h[:, : LONG - 1][real])
        for part in (0, 1):
            other = rows.clone()
            other[..., part] = (other[..., part] + 1) % 3 if part == 0 else -other[..., part]
            assert not close(head.loss(body, codes, replace(steps, action=other))[1], h)

    @torch.no_grad()
    def test_loss_of_an_episode_alone(self, decoding, backbone):
        body, head = dynamics(decoding, backbone)
        codes, steps = codes_of(B, LONG), steps_of(B, LONG, first=FIRST)
        losses, h, _ = head.loss(body, codes, steps)
        alone, alone_h, _ = head.loss(body, Codes(codes.indices[1:2, 5:]), steps[1:2, 5:])
        assert close(losses["codes"][1:2, 5:], alone["codes"]) and close(h[1:2, 5:], alone_h)

    @torch.no_grad()
    def test_sampling_then_scoring(self, decoding, backbone):
        body, head = dynamics(decoding, backbone)
        codes, steps = codes_of(B, 3), steps_of(B, LONG)
        dream, _ = dreamt(body, head, codes, steps, torch.rand(B, LONG - 3, 3))
        whole, h = Codes(torch.cat([codes.indices, *[p.codes.indices for p in dream]], 1)), torch.stack([p.h for p in dream], 1)
        scored, scored_h = replayed(body, head, whole, steps, 3)
        losses, loss_h, _ = head.loss(body, whole, steps)
        assert close(scored_h[:, 1:], h) and close(loss_h[:, 2 : LONG - 1], h)
        assert (scored is None) == all(p.score is None for p in dream)
        if scored is None:
            return
        nats = torch.stack([logprob(p) for p in dream], 1)
        assert close(scored[:, 1:], nats) and close(-nats.mean(-1), losses["codes"][:, 2:])
        uncertain = torch.stack([entropy(p) for p in dream], 1)
        assert (uncertain > 0).all() and (uncertain <= np.log(5) + 1e-5).all()

    def test_overfits_and_samples_back(self, decoding, backbone):
        """The second code is the first one of two steps ago: it takes memory, the right shift and the right action."""
        body, head = dynamics(decoding, backbone, K=2, V=5, A=2, roused=False)
        T, batch = body.context + 3, 48

        def world(action):
            state = torch.cat([torch.zeros(len(action), 1), (1 + action).cumsum(1)], 1).long()[:, :-1] % 5
            return Codes(torch.stack([state, torch.nn.functional.pad(state, (2, 0))[:, :-2]], -1))

        def window(rows, length, seed):
            steps = steps_of(rows, length + 9, A=2, seed=seed)  # begun long before: the window sees no episode's first
            return Codes(world(steps.action).indices[:, 9:]), steps[:, 9:]

        head.prepare(lambda: window(256, 4, 1)[::-1])
        optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-2)
        for update in range(250):
            losses, _, _ = head.loss(body, *window(batch, T, update))
            loss = losses["codes"][:, 1:].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert loss < 0.02, loss
        body.eval(), head.eval()
        codes, steps = window(4, 3 + 5 * body.context, 999)
        with torch.no_grad():
            noise = torch.rand(4, 5 * body.context, 2).clamp(0.02, 0.98)
            dream, _ = dreamt(body, head, Codes(codes.indices[:, :3]), steps, noise)
        got = torch.cat([p.codes.indices for p in dream], 1)
        assert torch.equal(got, codes.indices[:, 3:])

    def test_codes_that_chance_moves_together_are_drawn_together(self, decoding, backbone):
        """In each step a coin turns both codes of a frame or neither: no frame may be drawn with one of them turned."""
        body, head = dynamics(decoding, backbone, K=2, V=3, A=2, roused=False)

        def world(rows, seed):
            coin = torch.rand(rows, 4, generator=torch.Generator().manual_seed(seed)) < 0.3
            return Codes((1 + coin.cumsum(1) % 2).unsqueeze(-1).expand(-1, -1, 2))  # both 1 or both 2

        head.prepare(lambda: (steps_of(256, 4, A=2), world(256, 999)))
        optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-2)
        for update in range(150):
            losses, _, _ = head.loss(body, world(64, update), steps_of(64, 4, A=2, seed=update))
            optimizer.zero_grad()
            sum(loss.mean() for loss in losses.values()).backward()
            optimizer.step()
        body.eval(), head.eval()
        start, steps = world(500, 1000), steps_of(500, 4, A=2)
        with torch.no_grad():
            dream, _ = dreamt(body, head, Codes(start.indices[:, :3]), steps, torch.rand(500, 1, 2))
        drawn = dream[0].codes.indices[:, 0]
        turned = (drawn != start.indices[:, 2]).float().mean(1)  # 0, 1/2 or 1
        half = (turned == 0.5).float().mean()
        assert half < 0.02 if head.joint_draw else half > 0.3  # what draws each code on its own says so
        assert 0.22 < turned.mean() < 0.38

    @torch.no_grad()
    def test_actions_matter_from_their_step_on(self, decoding, backbone):
        body, head = dynamics(decoding, backbone)
        codes, steps = codes_of(B, LONG), steps_of(B, LONG)
        losses, h, _ = head.loss(body, codes, steps)
        for t in (3, 6):
            action = steps.action.clone()
            action[:, t] = (action[:, t] + 1) % 3
            other, other_h, _ = head.loss(body, codes, replace(steps, action=action))
            assert torch.equal(losses["codes"][:, :t], other["codes"][:, :t]) and torch.equal(h[:, :t], other_h[:, :t])
            assert ((losses["codes"] - other["codes"]).abs()[:, t] > 1e-4).all()
            assert ((h - other_h).abs().amax(-1)[:, t] > 1e-3).all()

    @torch.no_grad()
    def test_codes_matter_after_they_are_seen(self, decoding, backbone):
        body, head = dynamics(decoding, backbone)
        codes, steps = codes_of(B, LONG), steps_of(B, LONG)
        losses, h, _ = head.loss(body, codes, steps)
        for t, k in ((3, 0), (6, 2)):
            z = codes.indices.clone()
            z[:, t, k] = (z[:, t, k] + 1) % 5
            other, other_h, _ = head.loss(body, Codes(z), steps)
            assert torch.equal(losses["codes"][:, : t - 1], other["codes"][:, : t - 1])  # entry t-1 is frame t's own
            seen = t - head.lookahead  # the first h that has seen frame t
            assert torch.equal(h[:, :seen], other_h[:, :seen])
            assert ((losses["codes"] - other["codes"]).abs()[:, t] > 1e-4).all()
            assert ((h - other_h).abs().amax(-1)[:, seen : t + 1] > 1e-3).all()

    @torch.no_grad()
    def test_another_action_another_prediction(self, decoding, backbone):
        body, head = dynamics(decoding, backbone)
        _, state = head.start(body, codes_of(1, 5), steps_of(1, 5))
        prediction, _ = head.step(body, state.select(torch.zeros(3).long()), torch.arange(3), torch.full((3, 3), 0.5))
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert not close(prediction.h[a], prediction.h[b], 1e-3)
            if prediction.score is not None:
                assert not close(entropy(prediction)[a], entropy(prediction)[b], 1e-4)

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    @torch.no_grad()
    def test_temperature_divides_logits(self, decoding, backbone, temperature):
        """Frames come as often as the product of their codes' softmax(logits / T), each given the codes drawn before it."""
        if not decoding.has("temperature"):
            pytest.skip("no temperature")
        N, K, V = 40_000, 2, 5
        body, head = dynamics(decoding, backbone, K, V, temperature=temperature)
        codes, steps = codes_of(1, 5, K), steps_of(1, 5)
        _, state = head.start(body, codes, steps)
        every = torch.cartesian_prod(torch.arange(V), torch.arange(V))  # all V^K frames
        last = steps.action[0, -1:]
        scored, _ = head.step(body, state.select(torch.zeros(V**K).long()), last.expand(V**K), None, Codes(every[:, None]))
        if scored.score is None:
            pytest.skip("the decoding has no likelihood")
        assert abs(logprob(scored).sum(1).exp().sum() - 1) < 1e-5
        cold = (scored.score() / temperature).log_softmax(-1).gather(-1, every.unsqueeze(-1)).squeeze(-1)  # (V^K, K)
        noise = torch.cartesian_prod(*[(torch.arange(200) + 0.5) / 200] * K)  # evenly spread
        sampled, _ = head.step(body, state.select(torch.zeros(N).long()), last.expand(N), noise)
        frame = sampled.codes.indices[:, 0]
        frequency = torch.bincount(frame[:, 0] * V + frame[:, 1], minlength=V**K) / N
        assert close(frequency, cold.sum(1).exp(), 0.01)
        assert not close(frequency, logprob(scored).sum(1).exp(), 0.05) or temperature == 1

    @torch.no_grad()
    def test_temperature_zero_is_greedy(self, decoding, backbone):
        if not decoding.has("temperature"):
            pytest.skip("no temperature")
        body, head = dynamics(decoding, backbone, temperature=0.0)
        codes, steps = codes_of(B, 5), steps_of(B, LONG)
        dreams = [dreamt(body, head, codes, steps, torch.rand(B, 4, 3))[0] for _ in range(2)]
        for one, two in zip(*dreams, strict=True):
            assert torch.equal(one.codes.indices, two.codes.indices)
        _, state = head.start(body, codes, steps[:, :5])
        greedy = dreams[0][0].codes
        scored, _ = head.step(body, state, steps.action[:, 4], None, greedy)
        if scored.score is not None:  # each code is the likeliest given those before it
            assert torch.equal(scored.score().argmax(-1), greedy.indices[:, 0])

    @torch.no_grad()
    def test_noise_decides(self, decoding, backbone):
        body, head = dynamics(decoding, backbone)
        codes, steps, noise = codes_of(64, 5), steps_of(64, LONG), torch.rand(64, 6, 3)

        def sampled(noise):
            return torch.cat([p.codes.indices for p in dreamt(body, head, codes, steps, noise)[0]], 1)

        dream = sampled(noise)
        torch.manual_seed(123)
        assert torch.equal(sampled(noise), dream) and not torch.equal(sampled(torch.rand(64, 6, 3)), dream)
        moves = torch.zeros(64, 3, 3, dtype=torch.bool)  # which codes (last) change with which code's noise
        for k in range(3):
            other = noise.clone()
            other[:, :, k] = (other[:, :, k] + 0.5) % 1
            moves[:, k] = (sampled(other) != dream)[:, 0]
        assert moves.diagonal(dim1=1, dim2=2).any(0).all()  # each code has its own
        for row in moves:  # and they are drawn in some order, so that none depends on the noise of a later one
            orders = itertools.permutations(range(3))
            assert any(not any(row[b, a] for a, b in itertools.combinations(order, 2)) for order in orders)

    @pytest.mark.parametrize("border", [4, 5])
    @torch.no_grad()
    def test_branches_do_not_interact(self, decoding, backbone, border):
        """Row 1's episode has just begun: with a frame in memory, or with the frame that waits for its action."""
        body, head = dynamics(decoding, backbone)
        codes, steps = codes_of(2, 6), steps_of(2, 6, first=[(1, border)])
        index = torch.tensor([1, 0, 1])

        def fresh():
            return head.start(body, codes, steps)[1]

        def run(state, action, noise):
            out = []
            for t in range(3):
                prediction, state = head.step(body, state, torch.full((len(noise),), action), noise[:, t])
                out.append(prediction)
            return torch.stack([p.h for p in out], 1), torch.stack([p.codes.indices for p in out], 1)

        noise, wide = torch.rand(2, 3, 3), torch.rand(3, 3, 3)
        alone = [run(fresh(), 0, noise), run(fresh(), 1, noise), run(fresh().select(index), 2, wide)]
        state = fresh()
        branch, wider = state.select(torch.arange(2)), state.select(index)
        together = [run(branch, 0, noise), run(state, 1, noise), run(wider, 2, wide)]
        for (h, z), (other_h, other_z) in zip(alone, together, strict=True):
            assert close(h, other_h) and torch.equal(z, other_z)
        for i, row in enumerate(index):  # a selected row goes on as that row does alone
            lone = head.start(body, Codes(codes.indices[row : row + 1]), steps[row : row + 1])[1]
            h, z = run(lone, 2, wide[i : i + 1])
            assert close(h[0], alone[2][0][i]) and torch.equal(z[0], alone[2][1][i])

    @torch.no_grad()
    def test_a_consumed_state_raises(self, decoding, backbone):
        body, head = dynamics(decoding, backbone)
        if body.scans:
            pytest.skip("no call writes into a state")
        _, state = head.start(body, codes_of(1, 2), steps_of(1, 2))
        head.step(body, state, torch.zeros(1).long(), torch.rand(1, 3))
        with pytest.raises(AssertionError, match="consumed"):
            head.step(body, state, torch.zeros(1).long(), torch.rand(1, 3))
        with pytest.raises(AssertionError, match="consumed"):
            state.select(torch.zeros(1).long())

    @pytest.mark.parametrize("K", [1, 3])
    @torch.no_grad()
    def test_passes_is_true(self, decoding, backbone, K):
        body, head = dynamics(decoding, backbone, K)
        _, state = head.start(body, codes_of(1, 2, K), steps_of(1, 2))
        calls = []
        handle = body.register_forward_hook(lambda *_: calls.append(1))
        for _ in range(2):
            _, state = head.step(body, state, torch.zeros(1).long(), torch.rand(1, K))
        handle.remove()
        assert len(calls) == 2 * head.passes
