"""Every file of a part folder runs its folder's contract: a new file is tested without a new test.

Here: backbones, tokenizers, environments. Decodings, each with every backbone, have theirs in test_decoding.py,
policies in test_policies.py.
What only one file can have (its own keywords, values by hand) is tested in a file of its own.
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import BY_CODE, close, discover, each, rouse, steps_of
from gymnasium.vector import AutoresetMode

from tokenworld.interfaces import Codes
from tokenworld.nn import total_loss


def test_discovery_finds_the_parts():
    names = {folder: {part.name for part in discover(folder)} for folder in BY_CODE}
    assert {"tokenizers.vqvae", "tokenizers.patch", "tokenizers.nearest"} <= names["tokenizers"]
    assert {"backbones.gpt"} <= names["backbones"]
    assert {"decoding.autoregressive", "decoding.parallel"} <= names["decoding"]
    assert {"policies.actor_critic"} <= names["policies"]
    assert {"envs.atari", "envs.gym", "envs.minatar"} <= names["envs"]


# ------------------------------------------------------------------------------------------------------------ backbones

B = 3
LONG = 11  # steps, more than twice a TINY's context
FIRST = [(0, 0), (1, 5), (2, 1), (2, 9)]


def backbone_input(part, T=LONG, first=FIRST):
    body = rouse(part())
    return body, torch.randn(B, T, 1 if body.scans else 3, body.D), steps_of(B, T, first=first).first


def chunked(body, x, within, first, sizes):
    """Through a cache in pieces of so many positions; a piece is whole steps, or a part of one."""
    P = x.shape[2]
    cache, out, at = body.make_cache(x.shape[0], P), [], 0
    for size in sizes:
        t, p = divmod(at, P)
        part = x[:, t : t + size // P] if size >= P else x[:, t : t + 1, p : p + size]
        mark = None if first is None else first[:, t : t + max(1, size // P)]
        h, cache = body(part, within, cache, mark)
        out.append(h.flatten(1, 2))
        at += size
    return torch.cat(out, 1).view(x.shape)


@pytest.mark.parametrize("part", each("backbones"))
@pytest.mark.parametrize("within", ["causal", "full"])
class TestBackbone:
    def test_shape(self, part, within):
        body, x, first = backbone_input(part)
        h, cache = body(x, within, None, first)
        assert h.shape == x.shape and cache is None

    def test_sees_no_later_position(self, part, within):
        body, x, _ = backbone_input(part)
        h, _ = body(x, within)
        for t, p in [(4, 0), (10, 0)] if body.scans else [(4, 1), (4, 2), (10, 0)]:
            moved = x.clone()
            moved[:, t, p] += torch.randn(body.D)  # a constant would vanish in a norm
            change = (body(moved, within)[0] - h).abs().amax((0, 3))  # (T, P)
            assert change[:t].max() == 0
            assert change[t, p:].min() > 1e-4 and (change[t + 1 : t + 2] > 1e-4).all()
            assert (change[t, :p] > 1e-4).all() if within == "full" else (change[t, :p] == 0).all()

    def test_sees_a_band_of_context_steps(self, part, within):
        """One layer sees exactly `context` steps; n layers see n (context - 1) + 1. What scans sees all of them."""
        if part.make.scans:
            body, x, _ = backbone_input(part, 8 * part.tiny["context"])
            moved = x.clone()
            moved[:, 0] += torch.randn(body.D)
            assert ((body(moved, within)[0] - body(x, within)[0]).abs().amax((0, 2, 3)) > 1e-7).all()
            return
        for layers in (1, 2):
            body = rouse(part(layers=layers)) if part.has("layers") else rouse(part())
            x = torch.randn(B, LONG, 3, body.D)
            reach = (layers if part.has("layers") else part.tiny.get("layers", 1)) * (body.context - 1)
            moved = x.clone()
            moved[:, 1] += torch.randn(body.D)
            change = (body(moved, within)[0] - body(x, within)[0]).abs().amax((0, 2, 3))  # (T,)
            assert change[1 + reach] > 1e-5 and (change[2 + reach :] < 1e-6).all(), (layers, change)

    def test_first_cuts(self, part, within):
        """What came before an episode's first step does not matter; the rest equals the episode alone."""
        body, x, first = backbone_input(part)
        h, _ = body(x, within, None, first)
        moved = x.clone()
        moved[1, :5] += torch.randn(body.D)
        assert torch.equal(body(moved, within, None, first)[0][1, 5:], h[1, 5:])
        alone, _ = body(x[2:, 1:9], within)
        assert close(h[2:, 1:9], alone)
        assert not close(h[1, 5:], body(x, within)[0][1, 5:], 1e-2)

    @pytest.mark.parametrize("cut", [True, False])
    def test_cached_equals_uncached(self, part, within, cut):
        body, x, first = backbone_input(part)
        first = first if cut else None
        h, _ = body(x, within, None, first)
        P = x.shape[2]
        pieces = {
            "whole": [P * LONG],
            "steps": [P] * LONG,
            "short, long, rest": [P * 2, P * 7, P, P],
            "long, then steps": [P * 6, *[P] * 5],
        }
        if within == "causal" and P > 1:
            pieces["positions"] = [1] * (P * LONG)
            pieces["parts"] = [P * 3, *[1, 2] * 4, *[2, 1] * 4]
        for name, sizes in pieces.items():
            assert close(chunked(body, x, within, first, sizes), h), name

    def test_select_copies_rows(self, part, within):
        body, x, first = backbone_input(part)
        h, _ = body(x, within, None, first)
        _, cache = body(x[:, :7], within, body.make_cache(B, x.shape[2]), first[:, :7])
        for index in ([2, 0, 0, 1], [1, 2, 0]):
            index = torch.tensor(index)
            branch, kept, out = cache.select(index), cache.select(torch.arange(B)), []
            for t in (7, 8, 9):  # both go on in turns: neither spoils the other
                got, branch = body(x[index, t : t + 1], within, branch, first[index, t : t + 1])
                assert close(got, h[index, t : t + 1])
                got, kept = body(x[:, t : t + 1], within, kept, first[:, t : t + 1])
                out.append(got)
            assert close(torch.cat(out, 1), h[:, 7:10])

    @pytest.mark.parametrize("cut", [True, False])
    def test_what_is_not_kept_leaves_no_trace(self, part, within, cut):
        """Read and forgotten any number of times, whole steps or less, also where an episode begins; the state that came in
        can still be copied."""
        body, x, first = backbone_input(part)
        first = first if cut else None
        mark = lambda t: None if first is None else first[:, t : t + 1]  # noqa: E731
        h, _ = body(x, within, None, first)
        P = x.shape[2]
        for start in (0, 1, 6):
            cache = body.make_cache(B, P)
            if start:
                _, cache = body(x[:, :start], within, cache, None if first is None else first[:, :start])
            for t in range(start, LONG):
                seen, cache = body(x[:, t : t + 1], within, cache, mark(t), keep=False)
                assert close(seen, h[:, t : t + 1])
                begins = torch.ones(B, 1, dtype=torch.bool)
                for p in range(1, P + 1):
                    _, cache = body(torch.randn(B, 1, p, body.D), within, cache, begins, keep=False)
                copied, _ = body(x[:, t : t + 1], within, cache.select(torch.arange(B)), mark(t))
                got, cache = body(x[:, t : t + 1], within, cache, mark(t))
                assert close(got, h[:, t : t + 1]) and close(copied, got)

    def test_a_consumed_cache_raises(self, part, within):
        body, x, _ = backbone_input(part)
        if body.scans:
            pytest.skip("no call writes into a cache")
        empty = body.make_cache(B, 3)
        body(x[:, :1], within, empty)
        with pytest.raises(AssertionError, match="consumed"):
            body(x[:, :1], within, empty)
        with pytest.raises(AssertionError, match="consumed"):
            empty.select(torch.arange(B))

    def test_what_scans_has_a_gradient_and_rows_that_can_be_replaced(self, part, within):
        body, x, first = backbone_input(part)
        if not body.scans:
            pytest.skip("a window of keys")
        x.requires_grad_()
        _, cache = body(x[:, :3], within, body.make_cache(B, 1), first[:, :3])
        h, _ = body(x[:, 3:4], within, cache, first[:, 3:4])
        h.sum().backward()
        assert (x.grad[0, :4].abs().amax((-1, -2)) > 0).all() and (x.grad[:, 4:] == 0).all()
        _, other = body(x[:2, 5:7], within, body.make_cache(2, 1))
        mixed = cache.put(torch.tensor([2, 0]), other)
        rows = ((other, 1), (cache, 1), (other, 0))
        alone = [body(x[:1, 8:9], within, each.select(torch.tensor([row])))[0] for each, row in rows]
        assert close(body(x[:1, 8:9].expand(3, -1, -1, -1), within, mixed)[0], torch.cat(alone))


# ----------------------------------------------------------------------------------------------------------- tokenizers

FRAMES = [(4, 10, 10), (3, 64, 64), (1, 96, 96), (2, 12, 8)]
VECTORS = [(5, 1, 1), (1, 1, 1)]


def frames_of(part) -> list[tuple[int, int, int]]:
    """Shapes of frames that a tokenizer reads."""
    return VECTORS if getattr(part.make, "frame_dtype", "uint8") == "float32" else FRAMES


def pictures(frame, n=3, T=8, seed=0):
    """Windows of a few distinct blocky frames or vectors, (4, T)."""
    g = torch.Generator().manual_seed(seed)
    C, H, W = frame
    if (H, W) == (1, 1):
        vectors = torch.randn(n, C, 1, 1, generator=g) * torch.linspace(1, 100, C)[:, None, None]
        return replace(steps_of(4, T, first=[(0, 0)]), obs=vectors[torch.randint(n, (4, T), generator=g)])
    small = torch.randint(0, 2, (n, C, -(-H // 4), -(-W // 4)), generator=g) * 255
    frames = small.repeat_interleave(4, 2).repeat_interleave(4, 3)[:, :, :H, :W].to(torch.uint8)
    return replace(steps_of(4, T, first=[(0, 0)]), obs=frames[torch.randint(n, (4, T), generator=g)])


def reconstructed(tokenizer, steps):
    """Frames (B, T') in 0..1; a tokenizer that looks back gets the real past."""
    codes, n = tokenizer.encode(steps), tokenizer.context
    if n == 0:
        return tokenizer.decode(codes)
    out = []
    for t in range(n, steps.obs.shape[1]):
        part = Codes(*(None if x is None else x[:, t : t + 1] for x in (codes.indices, codes.vectors, codes.logits)))
        out.append(tokenizer.decode(part, steps.obs[:, t - n : t]))
    return torch.cat(out, 1)


@pytest.mark.parametrize("part", each("tokenizers"))
class TestTokenizer:
    @pytest.mark.parametrize("number", range(len(FRAMES)))
    def test_shapes_and_ranges(self, part, number):
        frame = frames_of(part)[number % len(frames_of(part))]
        tokenizer = part(frame_shape=frame)
        B, T = 2, 2 + tokenizer.context
        steps = pictures(frame, T=T)[:B]
        codes = tokenizer.eval().encode(steps)
        assert (codes.indices is None) == (tokenizer.V == 0) and codes.shape == (B, T)
        if tokenizer.V:
            assert codes.indices.shape == (B, T, tokenizer.K) and codes.indices.dtype == torch.int64
            assert 0 <= codes.indices.min() and codes.indices.max() < tokenizer.V
            assert torch.equal(tokenizer.embed(codes.indices), codes.vectors)
        assert codes.vectors.shape == (B, T, tokenizer.K, tokenizer.E) and codes.vectors.requires_grad == tokenizer.joint
        assert tokenizer.grid[0] * tokenizer.grid[1] == tokenizer.K
        out = reconstructed(tokenizer, steps)
        assert out.shape == (B, 2, *frame) and (frame[1:] == (1, 1) or 0 <= out.min() and out.max() <= 1)
        losses, in_training = tokenizer.loss(steps)
        assert losses.keys() == tokenizer.weights.keys() and in_training.shape == codes.shape
        assert all(loss.shape in ((B, T), ()) and loss.isfinite().all() for loss in losses.values())

    def test_encode_is_deterministic_and_moves_nothing(self, part):
        """In eval mode at least; a tokenizer that is trained with the dynamics may draw its codes while it learns."""
        tokenizer, steps = part(frame_shape=frames_of(part)[0]), pictures(frames_of(part)[0])
        tokenizer.train(not tokenizer.joint)
        tokenizer.loss(steps)
        before = copy.deepcopy(tokenizer.state_dict())
        one, two = tokenizer.encode(steps), tokenizer.encode(steps)
        assert torch.equal(one.vectors, two.vectors)
        assert all(torch.equal(value, before[name]) for name, value in tokenizer.state_dict().items())
        assert tokenizer.training == (not tokenizer.joint)

    def test_encode_gives_the_codes_that_loss_trains(self, part):
        tokenizer, steps = part(frame_shape=frames_of(part)[0]).eval(), pictures(frames_of(part)[0])
        trained, codes = tokenizer.loss(steps)[1], tokenizer.encode(steps)
        assert close(trained.vectors, codes.vectors) and (not tokenizer.V or torch.equal(trained.indices, codes.indices))

    def test_gradient_reaches_the_encoder(self, part):
        """From the reconstruction alone, through the quantiser: the first layer that touches pixels moves."""
        tokenizer, steps = part(frame_shape=frames_of(part)[0]).train(), pictures(frames_of(part)[0])
        if not list(tokenizer.parameters()):
            pytest.skip("nothing in it is learned by gradient")
        losses, _ = tokenizer.loss(steps)
        sum(losses[name].mean() for name in ("l1", "l2", "pixels") if name in losses).backward()
        encoder = [p.grad for name, p in tokenizer.named_parameters() if "encoder" in name and p.ndim > 1]
        assert encoder and all(grad is not None and grad.abs().max() > 0 for grad in encoder)

    def test_sees_no_later_frame(self, part):
        tokenizer, steps = part(frame_shape=frames_of(part)[0]).eval(), pictures(frames_of(part)[0])
        other = replace(steps, obs=torch.cat([steps.obs[:, :5], 255 - steps.obs[:, 5:]], 1))
        one, two = tokenizer.encode(steps), tokenizer.encode(other)
        assert torch.equal(one.vectors[:, :5], two.vectors[:, :5])
        n = 5 - tokenizer.context
        assert close(reconstructed(tokenizer, steps)[:, :n], reconstructed(tokenizer, other)[:, :n])

    def test_learns_and_comes_back_from_its_state(self, part):
        """In at most 300 updates on three frames; then the state alone makes the same codes and pixels."""
        frame, steps = frames_of(part)[0], pictures(frames_of(part)[0])
        tokenizer = part(frame_shape=frame)
        tokenizer.prepare(lambda: (steps, None))
        parameters = list(tokenizer.parameters())
        optimizer = torch.optim.Adam(parameters, lr=1e-2) if parameters else None
        target = steps.obs[:, tokenizer.context :].float() / (255 if steps.obs.dtype == torch.uint8 else 1)
        baseline = (target - target.mean((0, 1), keepdim=True)).square().mean()
        for update in range(300):
            losses, _ = tokenizer.train().loss(steps)
            if optimizer is not None:
                optimizer.zero_grad()
                total_loss(losses, tokenizer.weights).backward()
                optimizer.step()
            tokenizer.eval()
            if update % 25 == 24 and (reconstructed(tokenizer, steps) - target).square().mean() < 0.2 * baseline:
                break
        codes, out = tokenizer.encode(steps), reconstructed(tokenizer, steps)
        assert (out - target).square().mean() < 0.2 * baseline
        if tokenizer.V:
            assert len(codes.indices.unique()) / tokenizer.V >= (0.3 if frame[1:] == (1, 1) else 0.5)  # usage; bins have room
        fresh = part(frame_shape=frame).eval()
        fresh.load_state_dict(tokenizer.state_dict())
        assert torch.equal(fresh.encode(steps).vectors, codes.vectors) and torch.equal(reconstructed(fresh, steps), out)


# --------------------------------------------------------------------------------------------------------- environments


def played(env, steps, seed=3):
    """Obs, rewards, ends of random actions, and which steps came right after an end."""
    rng = np.random.default_rng(0)
    out, ended = [(env.reset(seed=seed)[0],)], np.zeros(env.num_envs, bool)
    after_end = []
    for _ in range(steps):
        obs, reward, terminated, truncated, _ = env.step(rng.integers(env.single_action_space.n, size=env.num_envs))
        out.append((obs, reward, terminated, truncated))
        after_end.append(ended)
        ended = terminated | truncated
    return out, np.stack(after_end)


@pytest.mark.parametrize("part", each("envs"))
class TestEnv:
    def test_vector_env(self, part):
        env = part(num_envs=3)
        assert env.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
        space = env.single_observation_space
        assert space.dtype == np.uint8 and len(space.shape) == 3 and env.single_action_space.start == 0
        steps, after_end = played(env, 100)
        for obs, *rest in steps:
            assert obs.dtype == np.uint8 and obs.shape == (3, *space.shape) and env.observation_space.contains(obs)
            assert all(x.shape == (3,) for x in rest) and all(x.dtype == bool for x in rest[1:])
        assert after_end.any()  # TINY's episodes are short
        for (_, reward, terminated, truncated), reset in zip(steps[1:], after_end, strict=True):
            assert not (reward[reset].any() or terminated[reset].any() or truncated[reset].any())
        env.close()

    def test_same_seed_same_game(self, part):
        runs = []
        for seed in (3, 3):
            env = part(num_envs=2)
            runs.append(played(env, 60, seed)[0])
            env.close()
        assert all(np.array_equal(a, b) for x, y in zip(*runs, strict=True) for a, b in zip(x, y, strict=True))

    def test_observations_are_copies(self, part):
        env = part(num_envs=2)
        obs, _ = env.reset(seed=0)
        kept = obs.copy()
        for _ in range(5):
            env.step(np.zeros(2, np.int64) + env.single_action_space.n - 1)
        assert np.array_equal(obs, kept)
        env.close()
