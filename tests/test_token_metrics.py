"""Token metrics and code lengths against by-hand values and slow, obvious references."""

import math

import pytest
import torch

from tokenworld.evaluation.metrics import baselines, tokenizer_measures


def test_psnr_pools_the_squared_error_over_all_frames():
    real = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    other = real.clone()
    other[0, 0, 0, 0] = 10  # mse = 100 / 8; a mean of per-frame PSNRs would be infinite
    assert tokenizer_measures.psnr(real, other) == pytest.approx(10 * math.log10(255**2 / 12.5))
    assert tokenizer_measures.psnr(real, other.float() / 255) == pytest.approx(10 * math.log10(255**2 / 12.5))
    assert tokenizer_measures.psnr(real, real) == math.inf


def test_events_by_hand():
    real = torch.zeros(3, 3, 1, 5, dtype=torch.uint8)
    rec = torch.zeros_like(real)
    real[1, 0, 0, 0], rec[1, 0, 0, 0] = 100, 50  # recovered, exactly half
    real[1, 0, 0, 1], rec[1, 1, 0, 1] = 100, 100  # not: another channel
    real[1, 0, 0, 2], rec[1, 0, 0, 3] = 25, 60  # no real change (25 does not exceed 25); a false change
    real[1, 0, 0, 4], rec[1, 0, 0, 4] = 60, 130  # recovered, but it overshoots: false for precision (0.5 * 130 > 60)
    real[2], rec[2] = real[1], rec[1]
    first = torch.tensor([True, False, False])
    got = tokenizer_measures.events(real, rec, first)
    assert (got["real_changes"], got["recall"]) == (3, pytest.approx(2 / 3))
    assert (got["reconstructed_changes"], got["precision"]) == (4, pytest.approx(1 / 4))


def test_events_do_not_cross_episodes_nor_miss_a_pair_at_a_chunk_edge(monkeypatch):
    torch.manual_seed(0)
    real = torch.randint(0, 256, (23, 3, 4, 4), dtype=torch.uint8)
    rec = (real.float() + 40 * torch.randn(real.shape)).clamp(0, 255).to(torch.uint8)
    first = torch.zeros(23, dtype=torch.bool)
    first[[0, 7, 8, 16]] = True
    whole = tokenizer_measures.events(real, rec, first)
    changes = 0
    for t in range(1, 23):
        if not first[t]:
            changes += int(((real[t].int() - real[t - 1].int()).abs().amax(0) > 25).sum())
    assert whole["real_changes"] == changes
    monkeypatch.setattr(tokenizer_measures, "CHUNK", 4)
    assert tokenizer_measures.events(real, rec, first) == whole


def test_events_without_change_are_none():
    still = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    got = tokenizer_measures.events(still, still, torch.tensor([True, False, False]))
    assert got["recall"] is None and got["precision"] is None


def test_usage_and_perplexity():
    indices = torch.tensor([[0, 0], [1, 1]])
    assert tokenizer_measures.codebook_usage(indices, 8) == 0.25
    assert tokenizer_measures.perplexity(indices, 8) == pytest.approx(2.0)
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert tokenizer_measures.perplexity(torch.tensor([0, 0, 0, 1]), 8) == pytest.approx(math.exp(entropy))


def test_kmeans_dictionary_is_exact_when_it_holds_all_patches_and_sane_when_it_does_not():
    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (6, 3, 4, 4), dtype=torch.uint8)
    frames = blocks[torch.randint(0, 6, (20, 9))]  # (20, 9, 3, 4, 4): a 3x3 grid of patches
    frames = frames.reshape(20, 3, 3, 3, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(20, 3, 12, 12)
    assert torch.equal(tokenizer_measures.kmeans_baseline(frames, frames, 4, 6), frames)
    one = tokenizer_measures.kmeans_baseline(
        frames, frames[:1], 4, 1
    )  # one code: the mean patch, each counted as often as it occurs
    mean = frames.float().reshape(20, 3, 3, 4, 3, 4).mean((0, 2, 4)).round()
    assert torch.equal(one[0, :, :4, :4].float(), mean)
    assert tokenizer_measures.kmeans_baseline(frames[..., :10], frames[..., :10], 4, 6).shape == (20, 3, 12, 10)


def chain(N: int, K: int, V: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A Markov chain per position: with probability 0.1 a new code, half of them (old + 1) mod V, half uniform."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.zeros(N, K, dtype=torch.long)
    for t in range(1, N):
        move, jump = torch.rand(2, K, generator=g)
        new = torch.where(jump < 0.5, (codes[t - 1] + 1) % V, torch.randint(0, V, (K,), generator=g))
        codes[t] = torch.where(move < 0.1, new, codes[t - 1])
    first = torch.zeros(N, dtype=torch.bool)
    first[::50] = True
    return codes, first


def test_each_baseline_is_a_distribution_over_the_codes():
    V, (codes, first) = 5, chain(300, 3, 5, 0)
    counts = baselines.fit(codes, first, V)
    previous = torch.randint(0, V, (1, 3), generator=torch.Generator().manual_seed(1))
    for bits in (baselines.bits_unigram, baselines.bits_copy_last, baselines.bits_bigram):
        mass = sum(2 ** -bits(counts, previous, torch.full((1, 3), v)) for v in range(V))
        torch.testing.assert_close(mass, torch.ones(1, 3, dtype=torch.float64))


def test_copy_last_epsilon_maximises_the_likelihood():
    V, (codes, first) = 5, chain(2000, 2, 5, 2)
    counts = baselines.fit(codes, first, V)
    previous, current = baselines.pairs(codes, first)
    for j in range(2):
        u = counts.unigram[j, current[:, j]]
        same = (previous[:, j] == current[:, j]).double()
        grid = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)[:, None]
        likelihood = ((1 - grid) * same + grid * u).log().sum(1)
        assert abs(grid[likelihood.argmax()].item() - counts.copy_epsilon[j].item()) < 2e-3


def test_copy_last_stays_finite_where_training_never_changed():
    V, codes = 4, torch.zeros(100, 1, dtype=torch.long)
    first = torch.zeros(100, dtype=torch.bool)
    counts = baselines.fit(codes, first, V)
    bits = baselines.bits_copy_last(counts, torch.tensor([[0]]), torch.tensor([[1]]))
    assert torch.isfinite(bits).all() and bits.item() > 5
    for name, value in baselines.baselines(counts, codes, first).items():
        assert value is None if "changed" in name else value < 0.1


def test_baselines_order_and_entropy_of_a_known_chain():
    """Bits of the bigram approach the chain's entropy rate, and bigram < copy-last < unigram on it."""
    K, V = 4, 5
    counts = baselines.fit(*chain(8000, K, V, 3), V)
    got = baselines.baselines(counts, *chain(2000, K, V, 4))
    stay, next_, other = 0.9 + 0.05 / V, 0.05 + 0.05 / V, 0.05 / V
    rate = -(stay * math.log2(stay) + next_ * math.log2(next_) + (V - 2) * other * math.log2(other))
    assert got["bits_per_frame_bigram"] == pytest.approx(K * rate, rel=0.06)
    assert got["bits_per_frame_bigram"] < got["bits_per_frame_copy_last"] < got["bits_per_frame_unigram"]
    assert got["bits_per_frame_unigram"] == pytest.approx(K * math.log2(V), rel=0.02)


def test_bits_by_hand():
    codes = torch.tensor([[0], [0], [1], [0]])
    first = torch.tensor([True, False, False, True])
    previous, current = baselines.pairs(codes, first)
    assert previous.tolist() == [[0], [0]] and current.tolist() == [[0], [1]]  # no pair across an episode
    counts = baselines.fit(codes, first, 2)
    bigram = baselines.bits_bigram(counts, previous, current)
    w, u = counts.bigram_weight, counts.unigram[0]
    expected = [-math.log2((1 + w * u[v]) / (2 + w)) for v in (0, 1)]
    assert bigram.flatten().tolist() == pytest.approx(expected)
    assert baselines.bits_per_changed_token(torch.tensor([[1.0], [3.0]]), previous, current) == 3.0
    assert baselines.bits_per_changed_token(torch.tensor([[1.0]]), current[:1], current[:1]) is None
