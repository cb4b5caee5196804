"""Tokenizers: quantiser contracts, IRIS's size, exact decoding, and the guarantees that training code relies on."""

import itertools

import pytest
import torch
from safetensors.torch import save_file

from tokenworld.errors import UserError
from tokenworld.interfaces import Codes, Steps
from tokenworld.tokenizers import patch, vqvae
from tokenworld.tokenizers.nearest import NearestPatches
from tokenworld.tokenizers.patch import PatchTokenizer
from tokenworld.tokenizers.patches import cut, join
from tokenworld.tokenizers.quantizers import Quantizer, fsq_levels
from tokenworld.tokenizers.vqvae import VQVAE, Perceptual, pixel_weights

KINDS = ["vq", "vq_mse", "cosine", "fsq", "lfq"]
EMA_KINDS = ["vq", "cosine"]


def steps_of(obs: torch.Tensor, first: torch.Tensor | None = None) -> Steps:
    z = torch.zeros(obs.shape[:2])
    no = z.bool()
    return Steps(obs, z.long(), z, no, no, no if first is None else first, ~no, ~no)


def random_steps(B: int, T: int, shape: tuple[int, int, int], seed: int = 0) -> Steps:
    return steps_of(
        torch.randint(0, 256, (B, T, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    )


def build(kind: str, shape: tuple[int, int, int] = (3, 12, 12), quantizer: str = "vq", **more):
    torch.manual_seed(0)
    module, cls = {"patch": (patch, PatchTokenizer), "vqvae": (vqvae, VQVAE)}[kind]
    return cls(frame_shape=shape, **(module.TINY | {"vocab_size": 16, "quantizer": quantizer} | more))


def snapshot(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed_names(before: dict, after: dict) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# --- quantisers ---


@pytest.mark.parametrize("kind", KINDS)
def test_quantizer_call(kind):
    torch.manual_seed(0)
    quantizer = Quantizer(kind=kind, vocab_size=16, dim=6)
    x = torch.randn(3, 40, 6, requires_grad=True)
    vectors, indices, losses = quantizer(x)
    assert indices.shape == (3, 40) and indices.dtype == torch.int64 and 0 <= indices.min() and indices.max() < 16
    assert set(losses) == set(quantizer.losses)
    vectors.sum().backward()
    assert x.grad.abs().sum() > 0
    vectors, indices, _ = quantizer(x, freeze=True)
    torch.testing.assert_close(vectors, quantizer.embed(indices))
    torch.testing.assert_close(quantizer.embed(indices), quantizer.codebook[indices])
    assert quantizer.embed(indices[:, None]).shape == (3, 1, 40, 6)  # four dimensions are not an image


@pytest.mark.parametrize("kind", ["vq", "vq_mse"])
def test_nearest_neighbour_and_its_losses_by_hand(kind):
    torch.manual_seed(0)
    quantizer = Quantizer(kind=kind, vocab_size=16, dim=6).eval()
    quantizer.vq._codebook.embed.data.normal_()
    x = torch.randn(2, 50, 6)
    _, indices, losses = quantizer(x)
    distance = (x[:, :, None] - quantizer.codebook).square().sum(-1)
    assert torch.equal(indices, distance.argmin(-1))
    assert losses["commitment"].item() == pytest.approx(distance.min(-1).values.mean().item() / 6, rel=1e-5)


def test_gradients_of_the_mse_codebook():
    """The codebook's loss moves only the codebook, the commitment and the straight-through path only the encoder."""
    torch.manual_seed(0)
    quantizer = Quantizer(kind="vq_mse", vocab_size=16, dim=6)
    x = torch.randn(1, 30, 6, requires_grad=True)
    vectors, _, losses = quantizer(x)
    codebook = quantizer.vq._codebook.embed
    for value, moves_x, moves_codebook in (
        (losses["codebook"], False, True),
        (losses["commitment"], True, False),
        (vectors.sum(), True, False),
    ):
        gradients = torch.autograd.grad(value, [x, codebook], retain_graph=True, allow_unused=True)
        assert [g is not None and bool(g.abs().sum() > 0) for g in gradients] == [moves_x, moves_codebook]


def test_running_mean_follows_its_users_and_dead_codes_revive():
    torch.manual_seed(0)
    quantizer = Quantizer(kind="vq", vocab_size=8, dim=2, decay=0.9)
    centres = torch.tensor([[5.0, 5.0], [5.0, 9.0], [9.0, 5.0], [9.0, 9.0]])
    for _ in range(200):
        quantizer((centres + 0.01 * torch.randn_like(centres))[None])
    distance = torch.cdist(centres, quantizer.codebook)
    assert distance.min(1).values.max() < 0.1  # each centre has a code that is the mean of what it stands for
    assert distance.min(0).values.max() < 0.1  # and no code stayed near the origin, where all of them started


@pytest.mark.parametrize("kind", KINDS)
def test_fp32_under_autocast(kind):
    torch.manual_seed(0)
    quantizer = Quantizer(kind=kind, vocab_size=16, dim=6).eval()
    x = torch.randn(2, 200, 6)
    expected = quantizer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vectors, indices, _ = quantizer(x)
        embedded = quantizer.embed(indices)
    assert vectors.dtype == embedded.dtype == torch.float32
    assert torch.equal(indices, expected[1]) and torch.equal(vectors, expected[0])


def test_start_from_puts_every_code_on_data():
    quantizer = Quantizer(kind="vq", vocab_size=8, dim=2)
    data = torch.arange(24.0).reshape(12, 2)
    quantizer.start_from(data)
    assert torch.cdist(quantizer.codebook, data).min(1).values.max() == 0
    quantizer.start_from(data[:3])
    assert len(quantizer.codebook.unique(dim=0)) == 8


def test_fsq_levels():
    assert fsq_levels(512) == [8, 8, 8] and fsq_levels(128) in ([8, 4, 4], [4, 4, 8]) and fsq_levels(9) == [3, 3]
    with pytest.raises(UserError, match="vocab_size"):
        fsq_levels(509)
    with pytest.raises(UserError, match="product"):
        Quantizer(kind="fsq", vocab_size=16, levels=[4, 5])


# --- both tokenizers ---

BOTH = list(itertools.product(["patch", "vqvae"], KINDS))


@pytest.mark.parametrize("name, kind", BOTH)
@pytest.mark.parametrize("shape", [(4, 10, 10), (1, 9, 15)])
def test_shapes_ranges_and_weights(name, kind, shape):
    tokenizer, steps = build(name, shape, kind), random_steps(2, 3, shape)
    assert tokenizer.grid[0] * tokenizer.grid[1] == tokenizer.K and tokenizer.context == 0
    losses, codes = tokenizer.loss(steps)
    assert losses.keys() == tokenizer.weights.keys()
    assert all(value.shape in [(2, 3), ()] for value in losses.values()) and losses["l1"].shape == (2, 3)
    assert codes.indices.shape == (2, 3, tokenizer.K) and codes.vectors.shape == (2, 3, tokenizer.K, tokenizer.E)
    got = tokenizer.encode(steps)
    assert got.indices.dtype == torch.int64 and 0 <= got.indices.min() and got.indices.max() < tokenizer.V
    torch.testing.assert_close(got.vectors, tokenizer.embed(got.indices))
    for obs in (tokenizer.decode(got), tokenizer.decode(Codes(vectors=got.vectors))):
        assert obs.shape == steps.obs.shape and obs.dtype == torch.float32 and 0 <= obs.min() and obs.max() <= 1


@pytest.mark.parametrize("name, kind", BOTH)
def test_encoding_moves_nothing_and_loss_moves_running_means_only_in_train_mode(name, kind):
    tokenizer, steps = build(name, quantizer=kind), random_steps(4, 1, (3, 12, 12))
    before = snapshot(tokenizer)
    codes = tokenizer.encode(steps)
    assert torch.is_grad_enabled() and not codes.vectors.requires_grad
    tokenizer.eval().loss(steps)
    assert changed_names(before, snapshot(tokenizer)) == set()
    tokenizer.train().loss(steps)
    assert any("embed_avg" in n for n in changed_names(before, snapshot(tokenizer))) == (kind in EMA_KINDS)


@pytest.mark.parametrize("name, kind", BOTH)
def test_gradient_reaches_the_encoder_through_the_reconstruction(name, kind):
    tokenizer = build(name, quantizer=kind)
    losses, _ = tokenizer.loss(random_steps(2, 1, (3, 12, 12)))
    (losses["l1"].mean() + losses["l2"].mean()).backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0
        for p in (next(tokenizer.encoder.parameters()), next(tokenizer.decoder.parameters()))
    )


@pytest.mark.parametrize("name", ["patch", "vqvae"])
def test_a_frame_does_not_depend_on_other_frames(name):
    tokenizer, steps = build(name).eval(), random_steps(2, 4, (3, 12, 12))
    whole = tokenizer.encode(steps).indices
    obs = steps.obs.clone()
    obs[:, 2:] = 255 - obs[:, 2:]
    assert torch.equal(tokenizer.encode(steps_of(obs)).indices[:, :2], whole[:, :2])
    assert torch.equal(tokenizer.encode(steps[:1, 1:2]).indices, whole[:1, 1:2])


@pytest.mark.parametrize("name, kind", BOTH)
def test_state_round_trips(name, kind):
    tokenizer, steps = build(name, quantizer=kind), random_steps(4, 1, (3, 12, 12))
    train(tokenizer, [steps], 3)
    tokenizer.eval()
    if name == "patch":
        tokenizer.finalize([steps])
    other = build(name, quantizer=kind, vocab_size=16).eval()
    for parameter in other.parameters():
        parameter.data.add_(1)
    other.decode(other.encode(steps))  # so that a table exists which loading must outdate
    other.load_state_dict(tokenizer.state_dict())
    codes = tokenizer.encode(steps)
    assert torch.equal(other.encode(steps).indices, codes.indices)
    assert torch.equal(other.decode(codes), tokenizer.decode(codes))


@pytest.mark.parametrize("name", ["patch", "vqvae"])
def test_change_weight_counts_changing_pixels_more(name):
    obs = torch.zeros(1, 2, 3, 12, 12, dtype=torch.uint8)
    obs[0, 1, :, 3, 4] = 200
    plain, weighted = (build(name, change_weight=w).eval() for w in (1.0, 10.0))
    (a, _), (b, codes) = (tokenizer.loss(steps_of(obs)) for tokenizer in (plain, weighted))
    assert torch.equal(a["l1"][0, 0], b["l1"][0, 0])  # the first frame of a window has no known change
    error = (unclamped(weighted, codes)[0, 1] - obs[0, 1] / 255).abs()[:, 3, 4].sum()
    extra = 9 * error / (3 * 12 * 12)
    if name == "vqvae":
        assert (b["l1"] - a["l1"])[0, 1].item() == pytest.approx(extra.item(), rel=1e-4)
    else:
        assert (b["l1"] - a["l1"])[0, 1].item() > 0


def unclamped(tokenizer, codes: Codes) -> torch.Tensor:
    return (
        tokenizer._decode(codes.vectors)
        if isinstance(tokenizer, VQVAE)
        else tokenizer.decode(Codes(vectors=codes.vectors))
    )


def test_pixel_weights_by_hand():
    obs = torch.zeros(1, 3, 2, 1, 3, dtype=torch.uint8)
    obs[0, 1, 1, 0, 2] = 1  # one channel suffices
    obs[0, 2, :, 0, 0] = 9
    first = torch.tensor([[False, False, True]])
    got = pixel_weights(steps_of(obs, first), 5.0)
    assert got.shape == (1, 3, 1, 1, 3)
    assert got.flatten().tolist() == [1, 1, 1, 1, 1, 5, 1, 1, 1]


@pytest.mark.parametrize(
    "name, keywords, word",
    [
        ("patch", {"vocab_size": 0}, "vocab_size"),
        ("patch", {"patch": 13}, "patch"),
        ("patch", {"patch": 0}, "patch"),
        ("patch", {"rarity": 2.0}, "rarity"),
        ("patch", {"quantizer": "magic"}, "quantizer"),
        ("patch", {"vocab_size": 10**6, "patch": 1}, "table"),
        ("vqvae", {"vocab_size": 1}, "vocab_size"),
        ("vqvae", {"downsamplings": 4}, "downsamplings"),
        ("vqvae", {"change_weight": 0.0}, "change_weight"),
        ("vqvae", {"quantizer": "lfq", "vocab_size": 100}, "power of 2"),
        ("vqvae", {"perceptual": "no/such/file"}, "16x16"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(name, keywords, word):
    with pytest.raises(UserError, match=word) as error:
        build(name, **keywords)
    assert "got" in str(error.value) and "\n" not in str(error.value)


# --- the VQ-VAE ---


def test_size_of_iris():
    tokenizer = VQVAE(frame_shape=(3, 64, 64), quantizer="vq_mse")
    assert tokenizer.grid == (4, 4) and tokenizer.E == 512
    assert sum(p.numel() for p in tokenizer.parameters()) == pytest.approx(4.03e6, rel=0.005)
    assert tokenizer.weights == {"l1": 1.0, "l2": 0.0, "codebook": 1.0, "commitment": 1.0}
    heights = [m for m in tokenizer.encoder if isinstance(m, vqvae.Attention)]
    assert len(heights) == 2 + 2 + 1  # two at 16, two at 8, one in the middle


@pytest.mark.parametrize(
    "shape, downsamplings, grid", [((3, 96, 96), 4, (6, 6)), ((4, 10, 10), 2, (3, 3)), ((1, 9, 15), 1, (5, 8))]
)
def test_grid_of_any_frame(shape, downsamplings, grid):
    tokenizer = build("vqvae", shape, downsamplings=downsamplings)
    assert tokenizer.grid == grid
    steps = random_steps(1, 1, shape)
    assert tokenizer.decode(tokenizer.encode(steps)).shape == steps.obs.shape


def test_perceptual_against_a_hand_written_vgg(tmp_path):
    generator = torch.Generator().manual_seed(0)
    widths = {0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256)}
    widths |= {17: (256, 512), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}
    tensors, modules = {}, []
    for i in range(30):
        if i in widths:
            a, b = widths[i]
            convolution = torch.nn.Conv2d(a, b, 3, padding=1)
            convolution.weight.data = torch.randn(b, a, 3, 3, generator=generator) * (2 / (9 * a)) ** 0.5
            tensors |= {f"features.{i}.weight": convolution.weight.data, f"features.{i}.bias": convolution.bias.data}
            modules.append(convolution)
        else:
            modules.append(torch.nn.MaxPool2d(2) if i in (4, 9, 16, 23) else torch.nn.ReLU())
    linear = [torch.rand(1, c, 1, 1, generator=generator) for c in (64, 128, 256, 512, 512)]
    path = str(tmp_path / "vgg.safetensors")
    save_file(tensors | {f"lin{i}.model.1.weight": w for i, w in enumerate(linear)}, path)

    a, b = torch.rand(2, 2, 3, 16, 16, generator=generator)
    expected, features = torch.zeros(2), []
    for x in (a, b):
        x = (2 * x - 1 - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor(
            [0.458, 0.448, 0.450]
        ).view(3, 1, 1)
        features.append([])
        for i, module in enumerate(modules):
            x = module(x)
            if i in (3, 8, 15, 22, 29):  # relu1_2, 2_2, 3_3, 4_3, 5_3
                features[-1].append(x / x.norm(dim=1, keepdim=True))
    for x, y, w in zip(*features, linear, strict=True):
        expected += ((x - y) ** 2 * w[0]).sum(1).mean((1, 2))
    perceptual = Perceptual(path)
    torch.testing.assert_close(perceptual(a, b), expected, rtol=1e-4, atol=1e-5)
    assert perceptual(a, a).abs().max() == 0

    tokenizer = build("vqvae", (3, 16, 16), perceptual=path)
    losses, _ = tokenizer.loss(random_steps(1, 2, (3, 16, 16)))
    assert losses["perceptual"].shape == (1, 2) and losses.keys() == tokenizer.weights.keys()
    assert not any("perceptual" in name for name in tokenizer.state_dict())
    with pytest.raises(UserError, match="no/such/file"):
        Perceptual("no/such/file")
    del tensors["features.5.bias"]
    save_file(tensors, path)
    with pytest.raises(UserError, match="features.5.bias"):
        Perceptual(path)


# --- the patch tokenizer ---


def train(tokenizer, batches: list[Steps], updates: int) -> None:
    optimiser = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    tokenizer.train()
    tokenizer.prepare(lambda: (batches[0], None))
    for i in range(updates):
        losses, _ = tokenizer.loss(batches[i % len(batches)])
        optimiser.zero_grad()
        sum(tokenizer.weights[name] * value.mean() for name, value in losses.items()).backward()
        optimiser.step()


def balls(N: int, seed: int) -> torch.Tensor:
    """(N, 1, 4, 10, 10): a wall, and one bright pixel of channel 0 somewhere."""
    where = torch.randint(0, 100, (N,), generator=torch.Generator().manual_seed(seed))
    obs = torch.zeros(N, 1, 4, 100, dtype=torch.uint8)
    obs[torch.arange(N), 0, 0, where] = 255
    obs[:, :, 3, 10:30] = 255
    return obs.reshape(N, 1, 4, 10, 10)


def test_a_small_ball_survives():
    """One pixel in a hundred: a tokenizer that weighs patches as they come learns the background, loses the ball."""
    torch.manual_seed(0)
    tokenizer = PatchTokenizer(frame_shape=(4, 10, 10), patch=2, vocab_size=32, dim=16, hidden=64)
    train(tokenizer, [steps_of(balls(256, seed)) for seed in range(10)], 150)
    tokenizer.eval()
    tokenizer.finalize([steps_of(balls(256, seed)) for seed in range(10)])
    obs = balls(256, 99)
    error = tokenizer.decode(tokenizer.encode(steps_of(obs))) - obs / 255
    assert error.abs().max() < 0.1
    assert (
        tokenizer.encode(steps_of(obs)).indices.unique().numel() >= 5
    )  # nothing, and a ball at four places of a patch


def test_patches_are_cut_and_put_back_exactly():
    tokenizer = build("patch", (3, 10, 13))
    obs = random_steps(2, 2, (3, 10, 13)).obs
    patches = cut(obs, tokenizer.patch)
    assert tokenizer.grid == (3, 4) and patches.shape == (2, 2, 12, 48)
    assert torch.equal(patches[1, 1, 5].reshape(3, 4, 4), obs[1, 1, :, 4:8, 4:8].float())  # row 1, column 1
    assert torch.equal(join(patches, tokenizer.patch, tokenizer.frame_shape), obs.float())


def test_distinct_patches_and_their_counts():
    tokenizer = build("patch", (1, 4, 8))  # two positions
    obs = torch.zeros(3, 1, 1, 4, 8, dtype=torch.uint8)
    obs[2, 0, 0, 1, 6] = 1
    patches = cut(obs, tokenizer.patch)
    distinct, position, inverse, count = tokenizer._distinct(patches)
    assert sorted(zip(position.tolist(), distinct.sum(1).tolist(), count.tolist(), strict=True)) == [
        (0, 0, 3),
        (1, 0, 2),
        (1, 1, 1),
    ]
    assert torch.equal(distinct[inverse].reshape(patches.shape), patches)


def test_rarity_weighs_distinct_patches_alike():
    """With rarity 1 the summed loss is the mean error of the distinct patches, however often they occur."""
    obs = torch.zeros(8, 1, 1, 4, 4, dtype=torch.uint8)
    obs[7] = 255
    for rarity, share in ((1.0, 1 / 2), (0.0, 1 / 8)):
        tokenizer = build("patch", (1, 4, 4), rarity=rarity).eval()
        losses, codes = tokenizer.loss(steps_of(obs))
        error = (
            (
                tokenizer._decode(codes.vectors[[0, 7], 0, 0], torch.zeros(2, dtype=torch.long))
                - torch.tensor([[0.0], [1.0]])
            )
            .abs()
            .mean(1)
        )
        assert losses["l1"].mean().item() == pytest.approx(((1 - share) * error[0] + share * error[1]).item(), rel=1e-5)


def test_change_weight_of_one_patch_by_hand():
    obs = torch.zeros(1, 2, 1, 4, 4, dtype=torch.uint8)
    obs[0, 1, 0, 2, 3] = 200
    tokenizer = build("patch", (1, 4, 4), change_weight=10.0, rarity=0.0).eval()
    losses, codes = tokenizer.loss(steps_of(obs))
    error = (
        tokenizer._decode(codes.vectors[0, 1], torch.zeros(1, dtype=torch.long))[0] - obs[0, 1].flatten() / 255
    ).abs()
    assert losses["l1"][0, 1].item() == pytest.approx(((error.sum() + 9 * error[2 * 4 + 3]) / 16).item(), rel=1e-5)


def test_the_table_is_the_decoder_and_follows_it():
    tokenizer, steps = build("patch"), random_steps(2, 2, (3, 12, 12))
    for _ in range(2):
        codes = tokenizer.encode(steps)
        by_table, by_network = tokenizer.decode(codes), tokenizer.decode(Codes(vectors=codes.vectors))
        assert (by_table - by_network).abs().max() <= 0.5 / 255 + 1e-6
        optimiser = torch.optim.Adam(tokenizer.parameters(), lr=0.05)
        losses, _ = tokenizer.loss(steps)
        losses["l2"].mean().backward()
        tokenizer.decode(codes)  # builds a table between the loss and the step
        optimiser.step()


def test_finalize_takes_the_mean_patch_and_training_forgets_it():
    tokenizer = build("patch", (1, 4, 8), vocab_size=2).eval()
    steps = random_steps(64, 1, (1, 4, 8))
    tokenizer.finalize([steps[:40], steps[40:]])
    codes = tokenizer.encode(steps)
    for k in range(2):
        for v in codes.indices[..., k].unique().tolist():
            mine = codes.indices[:, 0, k] == v
            mean = steps.obs[mine, 0, 0, :, 4 * k : 4 * k + 4].float().mean(0).round()
            assert torch.equal(tokenizer.decode(codes)[mine][0, 0, 0, :, 4 * k : 4 * k + 4] * 255, mean)
    refitted = tokenizer.decode(codes)
    tokenizer.train().loss(steps)
    assert not torch.equal(tokenizer.decode(codes), refitted)


def test_prepare_learns_the_background():
    tokenizer = build("patch", (1, 4, 8))
    obs = torch.full((9, 1, 1, 4, 8), 7, dtype=torch.uint8)
    obs[:4] = 200
    tokenizer.prepare(lambda: (steps_of(obs), None))
    assert torch.equal((tokenizer.background * 255).round(), torch.full((2, 16), 7.0))


# --- nearest-neighbour patches ---


def binary_steps(B: int, seed: int, ones: float = 0.5) -> Steps:
    generator = torch.Generator().manual_seed(seed)
    return steps_of((torch.rand(B, 1, 2, 4, 4, generator=generator) < ones).to(torch.uint8) * 255)


def test_a_dictionary_that_holds_every_patch_is_exact_and_codes_keep_their_meaning():
    tokenizer = NearestPatches(frame_shape=(2, 4, 4), patch=1, vocab_size=8).train()
    few = steps_of(torch.zeros(3, 1, 2, 4, 4, dtype=torch.uint8))
    few.obs[0, 0, 0, 0, 0] = 255
    losses, codes = tokenizer.loss(few)
    assert tokenizer.used == 2 and (losses["l2"] == 0).all()
    assert codes.indices[1].unique().tolist() == [0]  # the most frequent patch came first
    many = binary_steps(16, 1)
    tokenizer.loss(many)
    assert tokenizer.used == 4  # 2 channels, on or off
    assert torch.equal(tokenizer.eval().encode(few).indices, codes.indices)
    assert torch.equal(tokenizer.decode(tokenizer.encode(many)) * 255, many.obs.float())


def test_only_training_adds_codes_and_a_full_dictionary_takes_the_nearest():
    tokenizer = NearestPatches(frame_shape=(1, 1, 4), patch=1, vocab_size=3)
    grey = steps_of(torch.tensor([0, 100, 200, 140], dtype=torch.uint8).view(1, 1, 1, 1, 4))
    assert tokenizer.eval().loss(grey)[0]["l2"] > 0 and tokenizer.used == 0
    tokenizer.train().loss(grey)
    assert tokenizer.used == 3
    decoded = (tokenizer.decode(tokenizer.eval().encode(grey)) * 255).flatten().tolist()
    kept = tokenizer.codebook.flatten().tolist()
    assert decoded == [min(kept, key=lambda k: abs(k - v)) for v in (0, 100, 200, 140)]


def test_the_threshold_merges_patches_that_resemble_each_other():
    obs = torch.tensor([0, 10, 20, 30], dtype=torch.uint8).view(1, 1, 1, 1, 4)
    for threshold, codes in ((0.0, 4), (10.5 / 255, 2), (31 / 255, 1)):
        tokenizer = NearestPatches(frame_shape=(1, 1, 4), patch=1, vocab_size=8, threshold=threshold).train()
        losses, _ = tokenizer.loss(steps_of(obs))
        assert tokenizer.used == codes and losses["l2"].max().sqrt() <= threshold


def test_a_code_never_given_is_never_nearest():
    tokenizer = NearestPatches(frame_shape=(1, 4, 4), patch=4, vocab_size=8).train()
    bright = steps_of(torch.full((1, 1, 1, 4, 4), 200, dtype=torch.uint8))
    tokenizer.loss(bright)
    dark = steps_of(torch.zeros(1, 1, 1, 4, 4, dtype=torch.uint8))
    assert tokenizer.eval().encode(dark).indices.item() == 0  # rows 1..7 of the codebook are dark, but not codes


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 3)])
def test_advice_on_small_frames_is_taken(size):
    """The value that the refusal names is accepted."""
    for kind, key in ((NearestPatches, "patch"), (PatchTokenizer, "patch"), (VQVAE, "downsamplings")):
        with pytest.raises(UserError) as error:
            kind(frame_shape=(1, *size), **{key: 64})
        kind(frame_shape=(1, *size), **{key: int(str(error.value).rpartition("e.g. ")[2])})
