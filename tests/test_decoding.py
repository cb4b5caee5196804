"""The contract of decodings: every file of decoding/ with every file of backbones/, found by discovery."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import close, codes_of, dynamics, each, steps_of

from tokenworld.interfaces import Codes

B = 3
LONG = 11  # steps, more than twice a TINY's context
FIRST = [(0, 0), (1, 5), (2, 1), (2, 9)]

pairs = pytest.mark.parametrize("decoding, backbone", [
    pytest.param(d.values[0], b.values[0], id=f"{d.id}-{b.id}") for d in each("decoding") for b in each("backbones")
])  # fmt: skip


def replayed(body, head, codes, steps, start):
    """`start` on so many frames, then `step` on each further one: logprob (B, n, K), h (B, n, D)."""
    prediction, state = head.start(body, Codes(codes.indices[:, :start]), steps[:, :start])
    predictions = [prediction]
    for t in range(start, codes.indices.shape[1]):
        given, first = Codes(codes.indices[:, t : t + 1]), steps.first[:, t]
        prediction, state = head.step(body, state, steps.action[:, t - 1], None, given, first)
        assert torch.equal(prediction.codes.indices, given.indices)
        predictions.append(prediction)
    if predictions[0].logprob is None:
        pytest.skip("the scheme has no likelihood")
    return torch.stack([p.logprob for p in predictions], 1), torch.stack([p.h for p in predictions], 1)


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
        losses, h = head.loss(body, codes, steps)
        assert losses.keys() == head.weights.keys() and h.shape == (B, LONG, body.D)
        assert all(loss.shape in ((B, LONG - 1), ()) for loss in losses.values())
        logprob, seen = replayed(body, head, codes, steps, start)
        assert logprob.shape == (B, LONG - start + 1, K) and (logprob < 0).all()
        at = max(start, 2) - 2  # the loss's entry of the first frame that was predicted
        real = steps.acted[:, at:-1]
        assert close(-logprob[:, -real.shape[1] :].mean(-1)[real], losses["codes"][:, at:][real])
        assert close(seen[:, -real.shape[1] :][real], h[:, at:-1][real])
        assert (seen[:, -real.shape[1] :][~real] == 0).all() and (start > 1 or (seen[:, 0] == 0).all())

    @torch.no_grad()
    def test_loss_of_an_episode_alone(self, decoding, backbone):
        body, head = dynamics(decoding, backbone)
        codes, steps = codes_of(B, LONG), steps_of(B, LONG, first=FIRST)
        losses, h = head.loss(body, codes, steps)
        alone, alone_h = head.loss(body, Codes(codes.indices[1:2, 5:]), steps[1:2, 5:])
        assert close(losses["codes"][1:2, 5:], alone["codes"]) and close(h[1:2, 5:], alone_h)

    @torch.no_grad()
    def test_sampling_then_scoring(self, decoding, backbone):
        body, head = dynamics(decoding, backbone)
        codes, steps = codes_of(B, 3), steps_of(B, LONG)
        dream, _ = dreamt(body, head, codes, steps, torch.rand(B, LONG - 3, 3))
        if dream[0].logprob is None:
            pytest.skip("the scheme has no likelihood")
        whole = Codes(torch.cat([codes.indices, *[p.codes.indices for p in dream]], 1))
        logprob, h = torch.stack([p.logprob for p in dream], 1), torch.stack([p.h for p in dream], 1)
        scored, scored_h = replayed(body, head, whole, steps, 3)
        assert close(scored[:, 1:], logprob) and close(scored_h[:, 1:], h)
        losses, loss_h = head.loss(body, whole, steps)
        assert close(-logprob.mean(-1), losses["codes"][:, 2:]) and close(loss_h[:, 2:-1], h)
        entropy = torch.stack([p.entropy for p in dream], 1)
        assert (entropy > 0).all() and (entropy <= np.log(5) + 1e-5).all()

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

        if hasattr(head, "prepare"):
            head.prepare(*window(256, 4, 1))
        optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-2)
        for update in range(250):
            losses, _ = head.loss(body, *window(batch, T, update))
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

    @torch.no_grad()
    def test_actions_matter_from_their_step_on(self, decoding, backbone):
        body, head = dynamics(decoding, backbone)
        codes, steps = codes_of(B, LONG), steps_of(B, LONG)
        losses, h = head.loss(body, codes, steps)
        for t in (3, 6):
            action = steps.action.clone()
            action[:, t] = (action[:, t] + 1) % 3
            other, other_h = head.loss(body, codes, replace(steps, action=action))
            assert torch.equal(losses["codes"][:, :t], other["codes"][:, :t]) and torch.equal(h[:, :t], other_h[:, :t])
            assert ((losses["codes"] - other["codes"]).abs()[:, t] > 1e-4).all()
            assert ((h - other_h).abs().amax(-1)[:, t] > 1e-3).all()

    @torch.no_grad()
    def test_codes_matter_after_they_are_seen(self, decoding, backbone):
        body, head = dynamics(decoding, backbone)
        codes, steps = codes_of(B, LONG), steps_of(B, LONG)
        losses, h = head.loss(body, codes, steps)
        for t, k in ((3, 0), (6, 2)):
            z = codes.indices.clone()
            z[:, t, k] = (z[:, t, k] + 1) % 5
            other, other_h = head.loss(body, Codes(z), steps)
            assert torch.equal(losses["codes"][:, : t - 1], other["codes"][:, : t - 1])  # entry t-1 is frame t's own
            assert torch.equal(h[:, :t], other_h[:, :t])
            assert ((losses["codes"] - other["codes"]).abs()[:, t] > 1e-4).all()
            assert ((h - other_h).abs().amax(-1)[:, t] > 1e-3).all()

    @torch.no_grad()
    def test_another_action_another_prediction(self, decoding, backbone):
        body, head = dynamics(decoding, backbone)
        _, state = head.start(body, codes_of(1, 5), steps_of(1, 5))
        prediction, _ = head.step(body, state.select(torch.zeros(3).long()), torch.arange(3), torch.full((3, 3), 0.5))
        for a, b in ((0, 1), (0, 2), (1, 2)):
            assert not close(prediction.h[a], prediction.h[b], 1e-3)
            if prediction.entropy is not None:
                assert not close(prediction.entropy[a], prediction.entropy[b], 1e-4)

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    @torch.no_grad()
    def test_temperature_divides_logits(self, decoding, backbone, temperature):
        """Frequencies of the first code are softmax(logits / T): with evenly spread noise up to 1 / N."""
        if not decoding.has("temperature"):
            pytest.skip("no temperature")
        N, V = 4000, 5
        body, head = dynamics(decoding, backbone, temperature=temperature)
        codes, steps = codes_of(1, 5), steps_of(1, 5)
        _, state = head.start(body, codes, steps)
        every = Codes(torch.arange(V)[:, None, None].expand(V, 1, 3))
        last = steps.action[0, -1:]
        scored, _ = head.step(body, state.select(torch.zeros(V).long()), last.expand(V), None, every)
        if scored.logprob is None:
            pytest.skip("the scheme has no likelihood")
        logits = scored.logprob[:, 0]  # of the first code: it is not conditioned on the others
        assert abs(logits.exp().sum() - 1) < 1e-5
        noise = ((torch.arange(N) + 0.5) / N)[:, None].expand(N, 3)
        sampled, _ = head.step(body, state.select(torch.zeros(N).long()), last.expand(N), noise)
        frequency = torch.bincount(sampled.codes.indices[:, 0, 0], minlength=V) / N
        assert close(frequency, (logits / temperature).softmax(-1), 2 / N)

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
        every = Codes(torch.arange(5).repeat(B)[:, None, None].expand(-1, 1, 3))
        rows = torch.arange(B).repeat_interleave(5)
        scored, _ = head.step(body, state.select(rows), steps.action[rows, 4], None, every)
        if scored.logprob is not None:
            assert torch.equal(scored.logprob[:, 0].view(B, 5).argmax(1), dreams[0][0].codes.indices[:, 0, 0])

    @torch.no_grad()
    def test_noise_decides(self, decoding, backbone):
        body, head = dynamics(decoding, backbone)
        codes, steps, noise = codes_of(64, 5), steps_of(64, LONG), torch.rand(64, 6, 3)

        def sampled(noise):
            return torch.cat([p.codes.indices for p in dreamt(body, head, codes, steps, noise)[0]], 1)

        dream = sampled(noise)
        torch.manual_seed(123)
        assert torch.equal(sampled(noise), dream) and not torch.equal(sampled(torch.rand(64, 6, 3)), dream)
        for k in range(3):  # each code has its own: the first code that differs is the one whose noise does
            other = noise.clone()
            other[:, :, k] = (other[:, :, k] + 0.5) % 1
            differs = (sampled(other) != dream)[:, 0].any(0)  # (K,)
            assert differs[k] and not differs[:k].any()

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
