"""The autoencoder and its fitted sampler, the coding networks, and augmentations by given amounts."""

import math
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from short_training import train

from genlab.data.random_images import RandomImages
from genlab.families.autoencoder import Autoencoder
from genlab.networks.augment import AffineAugment
from genlab.networks.autoencoder import (
    ConvDecoder,
    ConvEncoder,
    ConvMapDecoder,
    ConvMapEncoder,
    MLPDecoder,
    MLPEncoder,
)
from genlab.samplers.codes import MixtureOfCodes
from genlab.shapes import DataSpec

ADAM = partial(torch.optim.Adam, lr=1e-3)


def images(batch_size=8, num_train=64):
    return RandomImages((1, 8, 8), 3, levels=17, num_train=num_train, num_test=16, batch_size=batch_size)


def autoencoder(**options):
    torch.manual_seed(0)
    networks = (partial(ConvEncoder, base_channels=4), partial(ConvDecoder, base_channels=4))
    sampler = partial(MixtureOfCodes, num_components=2)
    return Autoencoder(images().spec, *networks, ADAM, **{"latent_dim": 3, "sampler": sampler, **options})


# Networks


@pytest.mark.parametrize("size", [8, 28, 32, 64])
@pytest.mark.parametrize("condition_dim", [0, 5])
@pytest.mark.parametrize("pair", [(MLPEncoder, MLPDecoder), (ConvEncoder, ConvDecoder)])
def test_vectors_and_images_of_every_size_go_into_each_other(pair, condition_dim, size):
    spec = DataSpec("images", (3, size, size))
    small = {"hidden": [8]} if pair[0] is MLPEncoder else {"base_channels": 4}
    encoder, decoder = (kind(spec, 6, condition_dim, **small) for kind in pair)
    condition = torch.randn(2, condition_dim) if condition_dim else None
    z = encoder(torch.randn(2, 3, size, size), condition)
    assert z.shape == (2, 6)
    assert decoder(z, condition).shape == (2, 3, size, size)


@pytest.mark.parametrize(("size", "halvings", "places"), [(8, 1, 4), (32, 2, 8), (28, 2, 7), (64, 3, 8)])
def test_maps_of_vectors_have_the_places_that_the_halvings_leave(size, halvings, places):
    spec = DataSpec("images", (1, size, size))
    options = {"num_halvings": halvings, "base_channels": 4}
    z = ConvMapEncoder(spec, 6, **options)(torch.randn(2, 1, size, size))
    assert z.shape == (2, 6, places, places)
    assert ConvMapDecoder(spec, 6, **options)(z).shape == (2, 1, size, size)


def all_networks(condition_dim=2):
    spec = DataSpec("images", (1, 8, 8))
    conv = {"base_channels": 4}
    maps = {"num_halvings": 1, **conv}
    return [
        (MLPEncoder(spec, 3, condition_dim, [8]), (1, 8, 8)),
        (MLPDecoder(spec, 3, condition_dim, [8]), (3,)),
        (ConvEncoder(spec, 3, condition_dim, **conv), (1, 8, 8)),
        (ConvDecoder(spec, 3, condition_dim, **conv), (3,)),
        (ConvMapEncoder(spec, 3, condition_dim, **maps), (1, 8, 8)),
        (ConvMapDecoder(spec, 3, condition_dim, **maps), (3, 4, 4)),
    ]


@pytest.mark.parametrize("number", range(6))
def test_a_network_hears_its_condition_and_learns_from_it(number):
    torch.manual_seed(0)
    network, shape = all_networks()[number]
    x, condition = torch.randn(4, *shape), torch.randn(4, 2, requires_grad=True)
    out = network(x, condition)
    assert not torch.allclose(out, network(x, condition + 1.0))
    out.square().sum().backward()
    assert (condition.grad.abs().sum(dim=1) > 0).all()
    # Items of a batch know nothing of each other.
    assert torch.allclose(out[1:2], network(x[1:2], condition[1:2]), atol=1e-5)
    with pytest.raises(ValueError, match="built for a condition of 2 numbers, got none"):
        network(x)


@pytest.mark.parametrize("number", range(6))
def test_every_parameter_of_a_network_is_trained(number):
    torch.manual_seed(0)
    network, shape = all_networks()[number]
    for parameter in network.parameters():
        if parameter.dim() == 0:
            parameter.data.fill_(0.5)  # the residual branches begin at zero
    network(torch.randn(4, *shape), torch.randn(4, 2)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


@pytest.mark.parametrize("kind", [ConvEncoder, ConvDecoder, ConvMapEncoder, ConvMapDecoder])
@pytest.mark.parametrize("shape", [(2,), (1, 30, 30)])
def test_data_that_cannot_be_halved_are_refused(kind, shape):
    options = {"num_halvings": 2} if "Map" in kind.__name__ else {}
    if shape == (1, 30, 30) and not options:
        assert kind(DataSpec("odd", (1, 24, 24)), 3) is not None
        shape = (1, 17, 17)
    with pytest.raises(ValueError, match="images"):
        kind(DataSpec("odd", shape), 3, **options)


# The fitted sampler


def test_the_fitted_mixture_has_the_codes_weights_means_and_covariances():
    torch.manual_seed(0)
    factor = torch.tensor([[1.0, 0.0], [0.8, 0.3]])
    codes = torch.cat([torch.randn(3_000, 2) @ factor.T + 5.0, 0.5 * torch.randn(1_000, 2) - 5.0])
    sampler = MixtureOfCodes(2, num_components=2)
    sampler.fit(codes[torch.randperm(4_000)])
    drawn = sampler.draw(7, torch.arange(4_000))
    high, low = drawn[drawn[:, 0] > 0], drawn[drawn[:, 0] < 0]
    assert len(high) / 4_000 == pytest.approx(0.75, abs=0.03)
    assert torch.allclose(high.mean(dim=0), torch.tensor([5.0, 5.0]), atol=0.1)
    assert torch.allclose(high.T.cov(), factor @ factor.T, atol=0.1)
    assert torch.allclose(low.T.cov(), 0.25 * torch.eye(2), atol=0.05)
    assert torch.allclose(drawn[5:9], sampler.draw(7, torch.arange(5, 9)))


def test_few_codes_make_fewer_components_and_all_draws_are_finite():
    sampler = MixtureOfCodes(3, num_components=10)
    assert sampler.draw(0, torch.arange(2_000)).std().item() == pytest.approx(1.0, abs=0.05)
    sampler.fit(torch.randn(5, 3))
    assert (sampler.weights > 0).sum() == 2
    assert sampler.draw(0, torch.arange(1_000)).isfinite().all()


def codes_of(model):
    data = images()
    (batch,) = data.loader("train", batch_size=64)
    return model.encode(data.to_device_batch(batch, "cpu")["image"])


def test_the_sampler_is_fitted_for_evaluation_and_kept_in_every_checkpoint(tmp_path):
    model = autoencoder()
    trainer = train(model, images())
    assert not model.sampler.means.any()
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    weights = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    expected = MixtureOfCodes(3, 2)
    expected.fit(codes_of(model))
    assert expected.means.any() and torch.allclose(weights["sampler.means"], expected.means, atol=1e-5)
    again = autoencoder()
    again.load_state_dict(weights)
    # A tolerance: the trained model's memory has its channels innermost, the new one's does not.
    assert torch.allclose(again.sample(5, seed=2), model.sample(5, seed=2), atol=1e-5)


def test_evaluation_in_training_fits_the_sampler_and_evaluation_alone_leaves_it():
    fitted, model = autoencoder(), autoencoder()
    train(fitted, images(), limit_val_batches=1.0, val_check_interval=3)
    expected = MixtureOfCodes(3, 2)
    expected.fit(codes_of(fitted))
    assert torch.allclose(fitted.sampler.means, expected.means, atol=1e-5)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    pl.Trainer(**quiet, accelerator="cpu").validate(model, images(), verbose=False)
    assert not model.sampler.means.any()


# The family


def test_an_autoencoder_learns_to_rebuild_its_images():
    torch.manual_seed(0)
    model = autoencoder(latent_dim=8)
    batch = next(iter(images().loader("train", batch_size=16)))
    batch = images().to_device_batch(batch, "cpu")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    first = model.losses(batch)["mse"].item()
    for _ in range(60):
        optimizer.zero_grad()
        model.losses(batch)["loss"].backward()
        optimizer.step()
    assert model.losses(batch)["mse"].item() < 0.3 * first
    x = batch["image"]
    x_hat = model.decode(model.encode(x))
    assert (x_hat - x).square().mean().item() <= model.losses(batch)["mse"].item() + 1e-6


def test_the_loss_is_the_mean_over_pixels_and_the_codes_variance_is_logged():
    model = autoencoder()
    batch = images().to_device_batch(next(iter(images().loader("train", batch_size=8))), "cpu")
    losses, z = model.losses(batch), model.encode(batch["image"])
    assert losses["loss"].item() == pytest.approx(
        (model.decoder(z) - batch["image"]).square().sum().item() / (8 * 64)
    )
    assert losses["code_variance"].item() == pytest.approx(z.var(dim=0, correction=0).mean().item(), rel=1e-4)


def test_input_noise_is_for_training_alone():
    model = autoencoder(noise_std=0.5)
    batch = images().to_device_batch(next(iter(images().loader("train", batch_size=8))), "cpu")
    plain = autoencoder().losses(batch)["mse"]
    assert model.train().losses(batch)["mse"] != plain
    assert torch.equal(model.eval().losses(batch)["mse"], plain)
    with pytest.raises(ValueError, match="noise_std must not be negative"):
        autoencoder(noise_std=-1.0)


# Augmentation by given amounts


def test_amounts_of_zero_change_nothing():
    x = torch.rand(3, 2, 9, 9) * 2 - 1
    assert torch.allclose(AffineAugment()(x, torch.zeros(3, 4)), x, atol=1e-5)


def test_a_shift_moves_the_image_by_its_share_of_the_side():
    x = torch.zeros(1, 1, 10, 10)
    x[0, 0, 4, 5] = 1.0
    moved = AffineAugment(max_shift=0.2)(x, torch.tensor([[1.0, -0.5, 0.0, 0.0]]))
    assert moved[0, 0, 3, 7].item() == pytest.approx(1.0, abs=1e-4)
    assert moved.sum().item() == pytest.approx(1.0, abs=1e-3)


def test_a_shift_by_half_a_pixel_keeps_fine_stripes():
    """Halfway between its pixels a wave of period 4 keeps 0.97 of its height; linear sampling leaves 0.71."""
    wave = torch.sin(torch.pi / 2 * torch.arange(20)).expand(1, 1, 20, 20)
    moved = AffineAugment(max_shift=0.025)(wave, torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    expected = 0.97 * torch.sin(torch.pi / 2 * (torch.arange(20) - 0.5))
    assert torch.allclose(moved[0, 0, :, 4:16], expected[4:16].expand(20, 12), atol=0.02)


def test_a_quarter_turn_is_a_rotation_of_the_pixels():
    x = torch.rand(1, 1, 7, 7)
    turned = AffineAugment(max_rotation=90.0)(x, torch.tensor([[0.0, 0.0, 1.0, 0.0]]))
    assert torch.allclose(turned, x.rot90(1, dims=(2, 3)), atol=1e-4)


def test_a_zoom_enlarges_about_the_centre():
    x = torch.zeros(1, 1, 16, 16)
    x[:, :, 6:10, 6:10] = 1.0
    zoomed = AffineAugment(max_zoom=math.log(2.0))(x, torch.tensor([[0.0, 0.0, 0.0, 1.0]]))
    assert zoomed.sum().item() == pytest.approx(64.0, rel=0.05)
    assert zoomed[0, 0, 5:11, 5:11].min() == 1.0
