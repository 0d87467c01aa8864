"""Codebooks: the nearest code, running means, dead codes, several processes, and the model around them."""

import copy
import math
from functools import partial

import learning_processes
import pytest
import pytorch_lightning as pl
import torch
from short_training import train

from genlab.data.random_images import RandomImages
from genlab.families.codes import perplexity
from genlab.families.dvae import DiscreteVAE
from genlab.families.vqvae import VQVAE
from genlab.losses.likelihoods import DiscretizedLogistic
from genlab.networks.autoencoder import ConvMapDecoder, ConvMapEncoder
from genlab.networks.quantizer import FSQ, EMACodebook, LearnedCodebook, straight_through
from genlab.runs.headline import LOSS, headlines_of, named

ADAM = partial(torch.optim.Adam, lr=1e-3)
NETWORKS = (
    partial(ConvMapEncoder, num_halvings=1, base_channels=4),
    partial(ConvMapDecoder, num_halvings=1, base_channels=4),
)


def images(batch_size=8):
    return RandomImages((1, 8, 8), 3, levels=17, num_train=64, num_test=16, batch_size=batch_size)


def vqvae(codebook=EMACodebook, **options):
    torch.manual_seed(0)
    sizes = {} if partial(codebook).func is FSQ else {"num_codes": 8}
    return VQVAE(images().spec, *NETWORKS, partial(codebook, **sizes), ADAM, code_dim=3, **options)


def a_batch(num=8):
    data = images()
    return data.to_device_batch(next(iter(data.loader("train", batch_size=num))), "cpu")


def a_codebook(num_codes=5, code_dim=3, **options):
    """A codebook in the middle of its life, with codes far apart."""
    torch.manual_seed(1)
    book = EMACodebook(code_dim, num_codes, **options)
    book.codes.copy_(torch.randn(num_codes, code_dim))
    book.running_sums.copy_(book.codes)
    book.num_updates += 1
    return book


@pytest.mark.parametrize("kind", [EMACodebook, LearnedCodebook])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chosen_code_is_the_nearest_in_float64(kind, dtype):
    torch.manual_seed(0)
    book = kind(6, 300)
    with torch.no_grad():
        book.codes.normal_()
    z = torch.randn(2, 500, 6).to(dtype)
    nearest = torch.cdist(z.double().flatten(0, 1), book.codes.detach().double()).argmin(dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(book(z).flatten(), nearest)
    assert torch.equal(book.look_up(book(z)), book.codes[nearest].unflatten(0, (2, 500)))


def test_equal_codes_give_the_first_of_them():
    book = EMACodebook(2, 4)
    book.codes.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [5.0, 5.0]]))
    assert book(torch.tensor([[0.0, 0.9]])).tolist() == [1]


def test_running_means_equal_a_hand_written_loop():
    book = a_codebook(decay=0.7, reset_below=0.0, epsilon=0.0)
    codes = book.codes.clone()
    counts, sums = [1.0] * 5, [code.clone() for code in codes]
    for step in range(6):
        z = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(step))
        index = book(z)
        book.update(z, index)
        for k in range(5):
            chose = z[index == k]
            counts[k] = 0.7 * counts[k] + 0.3 * len(chose)
            sums[k] = 0.7 * sums[k] + 0.3 * chose.sum(dim=0)
            if len(chose):
                codes[k] = sums[k] / counts[k]
        assert torch.allclose(book.codes, codes, atol=1e-5)
        assert torch.allclose(book.running_counts, torch.tensor(counts), atol=1e-5)


@pytest.mark.parametrize("kind", [EMACodebook, LearnedCodebook])
def test_an_update_returns_the_batchs_uses_of_each_code(kind):
    book, index = kind(3, 5), torch.tensor([[0, 4, 4], [1, 4, 0]])
    assert book.update(torch.randn(2, 3, 3), index).tolist() == [2, 1, 0, 0, 3]


def test_without_decay_the_codes_are_the_means_of_their_clusters():
    book = a_codebook(decay=0.0, reset_below=0.0, epsilon=0.0)
    z = torch.randn(4, 10, 3)
    index = book(z)
    book.update(z, index)
    for k in index.unique():
        assert torch.allclose(book.codes[k], z[index == k].mean(dim=0), atol=1e-5)


def test_smoothing_divides_by_laplace_counts_that_are_not_kept():
    book = a_codebook(decay=0.5, epsilon=0.3, reset_below=0.0)
    z = torch.randn(2, 10, 3)
    index = book(z)
    n = 0.5 + 0.5 * torch.bincount(index.flatten(), minlength=5)
    book.update(z, index)
    assert torch.allclose(book.running_counts, n)
    k = int(index[0, 0])
    smoothed = (n[k] + 0.3) / (n.sum() + 5 * 0.3) * n.sum()
    assert torch.allclose(book.codes[k], book.running_sums[k] / smoothed)


def test_unused_codes_stay_where_they_are():
    book = a_codebook(reset_below=0.0)
    book.codes[3] = book.running_sums[3] = 100.0
    for _ in range(300):
        z = torch.randn(2, 8, 3)
        book.update(z, book(z))
    assert torch.equal(book.codes[3], torch.full((3,), 100.0))
    assert book.running_counts[3] < 0.1


def test_a_dead_code_starts_anew_with_its_sum_and_count_and_survives():
    book = a_codebook(reset_below=0.1)
    book.codes[3] = 100.0
    book.running_counts[3], book.running_sums[3] = 0.05, 5.0
    z = torch.randn(2, 8, 3)
    book.update(z, book(z))
    assert (z.flatten(0, 1) == book.codes[3]).all(dim=1).any()
    assert torch.equal(book.running_sums[3], book.codes[3]) and book.running_counts[3] == 1.0
    before = book.codes[3].clone()
    far = torch.full((2, 8, 3), -50.0)
    book.update(far, torch.zeros(2, 8, dtype=torch.int64))
    assert torch.equal(book.codes[3], before)


def test_the_first_batch_gives_the_first_codes():
    book = EMACodebook(3, 5)
    z = torch.randn(2, 8, 3) + 7.0
    book.update(z, book(z))
    assert all((z.flatten(0, 1) == code).all(dim=1).any() for code in book.codes)
    book.update(z, book(z))
    assert book.num_updates == 2 and (book.running_counts != 1.0).any()


@pytest.mark.parametrize(
    ("options", "message"), [({"decay": 1.0}, "decay must be"), ({"reset_below": 1.0}, "reset_below must be")]
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EMACodebook(3, 5, **options)


def test_perplexity_counts_the_codes_in_even_use():
    assert perplexity(torch.tensor([2.0, 2.0, 2.0, 0.0])).item() == pytest.approx(3.0)
    assert perplexity(torch.tensor([0.0, 9.0])).item() == pytest.approx(1.0)


def test_codebooks_are_equal_on_all_processes_and_equal_to_one_process(two_learners):
    first, second = (learner["codes"] for learner in two_learners)
    alone = learning_processes.learn_codes()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.allclose(alone[name].double(), first[name].double(), atol=1e-5) for name in alone)


# Finite scalar quantisation


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [3, 4], [7]])
def test_every_number_is_a_code_and_every_code_a_point_of_the_grid(levels):
    book = FSQ(len(levels), levels)
    codes = book.look_up(torch.arange(book.num_codes))
    assert book.num_codes == math.prod(levels) == len(codes.unique(dim=0))
    for size, column in zip(levels, codes.T, strict=True):
        points = column.unique()
        assert torch.equal(points, (torch.arange(size) - size // 2) / (size // 2))
        assert points[0] == -1.0 and (points[-1] == 1.0) == (size % 2 == 1)
    reach, offset = (book.sizes - 1) / 2, 0.5 * (book.sizes % 2 == 0)
    inside = ((codes * book.middle + offset) / reach).clamp(-1 + 1e-6, 1 - 1e-6)
    z = inside.atanh() - (offset / reach).atanh()  # what is bounded to each code itself
    assert torch.equal(book(z), torch.arange(book.num_codes))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(book(z), torch.arange(book.num_codes))


@pytest.mark.parametrize("kind", ["scalar", "table"])
def test_the_code_next_to_a_vector_is_the_nearest_of_all_codes(kind):
    book = FSQ(2, [3, 4]) if kind == "scalar" else LearnedCodebook(2, 12)
    codes = book.look_up(torch.arange(12))
    z = torch.randn(200, 2) * (1.5 if kind == "scalar" else codes.std())
    assert torch.equal(book.nearest(codes), torch.arange(12))
    if kind == "scalar":  # its levels differ in their distances; each number is rounded by itself
        apart = (z[:, None] - codes).abs()
        assert torch.equal(book.nearest(z), (apart == apart.amin(1, keepdim=True)).all(2).int().argmax(1))
    else:
        assert torch.equal(book.nearest(z), torch.cdist(z, codes).argmin(1))
    z.requires_grad_()
    rounded = book.rounded(z)
    assert torch.allclose(rounded, codes[book.nearest(z)])
    (gradient,) = torch.autograd.grad(rounded.sum(), z)
    assert torch.equal(gradient, torch.ones_like(z))


def test_zero_is_in_the_middle_and_what_is_far_out_at_the_ends():
    book = FSQ(2, [8, 5])
    near = torch.tensor([[0.0, 0.0], [-0.1, -0.1], [0.1, 0.1]])
    assert not book.look_up(book(near)).any()
    far = torch.tensor([[-1e4, 1e4], [1e4, -1e4]])
    assert book.look_up(book(far)).tolist() == [[-1.0, 1.0], [0.75, -1.0]]


def test_the_gradient_passes_the_rounding_and_then_the_bound():
    book = FSQ(2, [8, 5])
    z = torch.tensor([[0.3, -0.7], [-1.2, 0.1]], requires_grad=True)
    codes = book.look_up(book(z))
    passed = book.passed(z, codes)
    gradient = torch.randn(2, 2)
    (found,) = torch.autograd.grad(passed, z, gradient)
    shift = torch.tensor([math.atanh(0.5 / 3.5), 0.0])
    slope = torch.tensor([3.5 / 4, 2.0 / 2]) * (1 - torch.tanh(z.detach() + shift).square())
    assert torch.equal(passed, codes) and torch.allclose(found, gradient * slope)


def test_a_model_of_scalar_codes_has_no_term_but_the_reconstruction_and_moves_no_code():
    model = vqvae(partial(FSQ, levels=[3, 4, 5]), data_variance=0.5)
    losses = model.losses(a_batch())
    assert losses.keys() == {"loss", "mse", "code_perplexity"}
    assert losses["loss"].item() == pytest.approx(2 * losses["mse"].item())
    assert not list(model.codebook.parameters()) and not model.codebook.state_dict()
    assert model.code_spec.shape == (4, 4) and model.code_spec.levels == 60


@pytest.mark.parametrize(
    ("levels", "message"), [([8, 5], "set the model's code_dim to 2"), ([8, 5, 2], "at least 3")]
)
def test_impossible_levels_are_refused(levels, message):
    with pytest.raises(ValueError, match=message):
        FSQ(3, levels)


# The model


def test_the_decoders_gradient_reaches_the_encoder_as_it_is_and_no_code():
    z = torch.randn(2, 3, requires_grad=True)
    codes = torch.randn(2, 3, requires_grad=True)
    passed = straight_through(z, codes)
    assert torch.equal(passed, codes)
    gradient = torch.randn(2, 3)
    passed.backward(gradient)
    assert torch.equal(z.grad, gradient) and codes.grad is None


@pytest.mark.parametrize("kind", [EMACodebook, LearnedCodebook])
def test_each_part_learns_from_its_own_terms_alone(kind):
    model, batch = vqvae(partial(kind, commitment=0.0)), a_batch()
    losses = model.losses(batch)
    learners = [*model.decoder.parameters(), *model.encoder.parameters()]
    decoded = torch.autograd.grad(losses["loss"], learners, retain_graph=True)
    mse = torch.autograd.grad(losses["mse"], learners, retain_graph=True)
    assert all(torch.equal(*pair) for pair in zip(decoded, mse, strict=True))
    if kind is LearnedCodebook:
        z = model.encoder(batch["image"]).movedim(1, -1)
        index = model.codebook(z)
        expected = torch.zeros(8, 3)
        for k in range(8):
            chose = z[index == k]
            expected[k] = 2 * (len(chose) * model.codebook.codes[k] - chose.sum(dim=0)) / z.numel()
        (gradient,) = torch.autograd.grad(losses["loss"], model.codebook.codes)
        assert torch.allclose(gradient, expected, atol=1e-6)


def test_the_commitment_holds_the_encoder_with_its_weight():
    batch = a_batch()
    books = [partial(EMACodebook, commitment=c) for c in (0.0, 0.25)]
    values = [vqvae(book, data_variance=0.5).losses(batch) for book in books]
    assert values[0]["loss"].item() == pytest.approx(2 * values[0]["mse"].item())
    added = values[1]["loss"] - values[0]["loss"]
    assert added.item() == pytest.approx(0.25 * values[1]["commitment"].item(), rel=1e-4)
    model = vqvae()
    pull = torch.autograd.grad(model.losses(batch)["commitment"], list(model.encoder.output.parameters()))
    assert all(gradient.abs().sum() > 0 for gradient in pull)


def test_duplicating_the_batch_leaves_the_loss_unchanged():
    batch = a_batch()
    twice = {name: torch.cat([value, value]) for name, value in batch.items()}
    once, doubled = vqvae().losses(batch), vqvae().losses(twice)
    assert all(once[name].item() == pytest.approx(doubled[name].item(), rel=1e-5) for name in once)


def test_evaluation_never_changes_the_codebook_and_training_does():
    model = vqvae()
    before = copy.deepcopy(model.codebook.state_dict())
    model.eval()
    model.losses(a_batch())
    model.decode(model.encode(a_batch()["image"]))
    assert all(torch.equal(before[name], value) for name, value in model.codebook.state_dict().items())
    model.train()
    model.losses(a_batch())
    assert not torch.equal(before["codes"], model.codebook.codes)


@pytest.mark.parametrize(
    ("kind", "precision"), [(EMACodebook, "bf16-mixed"), (LearnedCodebook, "bf16-mixed")]
)
def test_a_vqvae_trains_and_reconstructs_the_same_each_time(kind, precision):
    model = vqvae(kind)
    trainer = train(model, images(), precision=precision, limit_val_batches=1.0, val_check_interval=3)
    assert all(value.isfinite() for value in model.latest.values())
    assert model.codebook.codes.dtype == torch.float32
    assert 1.0 <= trainer.callback_metrics["val/code_perplexity"] <= 8.0
    assert 0.0 <= trainer.callback_metrics["val/dead_codes"] < 1.0
    x = a_batch()["image"]
    index = model.encode(x)
    assert index.shape == (8, 4, 4) and index.dtype == torch.int64
    assert torch.equal(model.decode(index), model.decode(model.encode(x)))


def dvae():
    return DiscreteVAE(images().spec, *NETWORKS, DiscretizedLogistic, ADAM, num_codes=8)


@pytest.mark.parametrize("build", [vqvae, partial(vqvae, partial(FSQ, levels=[3, 4, 5])), dvae])
def test_nothing_but_its_loss_speaks_for_a_model_of_codes(build):
    """Codes in use are better when many, and the headline `perplexity` when low."""
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    trainer.validate(build(), images(), verbose=False)
    assert "val/code_perplexity" in trainer.callback_metrics
    assert headlines_of(trainer.callback_metrics) == [LOSS]
    assert named("code_perplexity").better == "higher" and named("dead_codes").better == "lower"


def test_each_validation_counts_the_codes_of_its_own_pass():
    model, perplexities = vqvae(), []
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    with torch.no_grad():
        model.codebook.codes.copy_(model.encoder(a_batch()["image"])[:, :, 1, 2])
    for _ in range(2):
        trainer.validate(model, images(), verbose=False)
        perplexities.append(float(trainer.callback_metrics["val/code_perplexity"]))
        model.codebook.codes[1:] = 1e3  # from now on all choose the first
    assert perplexities[0] > 1.5 and perplexities[1] == pytest.approx(1.0)
    assert trainer.callback_metrics["val/dead_codes"] == pytest.approx(7 / 8)
