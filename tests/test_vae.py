"""The VAE: its bounds against a known evidence, its units, its conditions, its samples."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from short_training import train
from torch import nn
from torch.distributions import MultivariateNormal

from genlab.data.random_images import RandomImages
from genlab.data.toy import TwoMoons
from genlab.evaluation.likelihood import score_likelihood
from genlab.families.base import Schedule
from genlab.families.vae import VAE, Augmentation, Bound
from genlab.losses.divergences import free_bits
from genlab.losses.likelihoods import DiscretizedLogistic, Gaussian
from genlab.networks.augment import AffineAugment
from genlab.networks.autoencoder import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from genlab.shapes import DataSpec, to_levels

ADAM = partial(torch.optim.Adam, lr=1e-3)
MLP = (partial(MLPEncoder, hidden=[8]), partial(MLPDecoder, hidden=[8]))
CONV = (partial(ConvEncoder, base_channels=4), partial(ConvDecoder, base_channels=4))


def images(**options):
    values = {"num_classes": 3, "levels": 17, "num_train": 64, "num_test": 16, "batch_size": 8}
    return RandomImages((1, 8, 8), **{**values, **options})


def vae(networks=MLP, likelihood=DiscretizedLogistic, **options):
    torch.manual_seed(0)
    return VAE(images().spec, *networks, likelihood, ADAM, **{"latent_dim": 4, **options})


def a_batch(num=8, **options):
    data = images(**options)
    return data.to_device_batch(next(iter(data.loader("train", batch_size=num))), "cpu")


def fit(model, data=None, **options):
    return train(model, data or images(), **options)


def losses_of(model, batch):
    with model.numbered(batch["index"]):
        return model.losses(batch)


# A linear-Gaussian model, whose evidence and posterior are known

NOISE_STD, WEIGHT = 0.5, torch.tensor([[1.0, 0.0], [0.0, 0.7], [0.8, 0.0]], dtype=torch.float64)
OFFSET = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
EVIDENCE = MultivariateNormal(OFFSET, WEIGHT @ WEIGHT.T + NOISE_STD**2 * torch.eye(3, dtype=torch.float64))


class LinearEncoder(nn.Module):
    """The exact posterior of the linear-Gaussian model; `error` moves it away."""

    def __init__(self, spec, num_outputs, condition_dim, error=0.0):
        super().__init__()
        precision = WEIGHT.T @ WEIGHT / NOISE_STD**2 + torch.eye(2, dtype=torch.float64)  # diagonal
        self.gain = nn.Parameter((WEIGHT / NOISE_STD**2) @ precision.inverse() + error)
        self.log_std = nn.Parameter(-0.5 * precision.diagonal().log() + error)

    def forward(self, x, condition):
        return torch.cat([(x - OFFSET) @ self.gain, self.log_std.expand(len(x), 2)], dim=1)


class LinearDecoder(nn.Module):
    def __init__(self, spec, latent_dim, condition_dim):
        super().__init__()
        self.weight = nn.Parameter(WEIGHT.clone())

    def forward(self, z, condition):
        return z @ self.weight.T + OFFSET


def linear_vae(error=0.0, **options):
    encoder = partial(LinearEncoder, error=error)
    spec = DataSpec("points", (3,), levels=0)
    model = VAE(spec, encoder, LinearDecoder, Gaussian, ADAM, latent_dim=2, **options).double()
    model.likelihood.log_std.data.fill_(math.log(NOISE_STD))
    return model


def points(num):
    torch.manual_seed(3)
    return EVIDENCE.sample((num,))


@pytest.mark.parametrize("k", [1, 3, 60])
def test_with_the_exact_posterior_every_bound_is_the_evidence(k):
    x = points(50)
    bound = linear_vae(bound=Bound(num_test_samples=k)).log_prob(x)
    assert torch.allclose(bound, EVIDENCE.log_prob(x), atol=1e-8)


def test_the_elbo_with_the_exact_posterior_is_the_evidence_on_average():
    x = points(1).expand(20_000, 3)
    losses = losses_of(linear_vae(), {"point": x, "index": torch.arange(len(x))})
    # The KL is in closed form, so that one sample of the distortion remains random.
    assert losses["elbo"].item() == pytest.approx(EVIDENCE.log_prob(x[0]).item(), abs=0.03)
    assert losses["loss"].item() == pytest.approx(-losses["elbo"].item())


def test_bounds_lie_below_the_evidence_and_rise_to_it_with_k():
    x = points(400)
    evidence = EVIDENCE.log_prob(x).mean().item()
    bounds = [
        linear_vae(0.15, bound=Bound(num_test_samples=k)).log_prob(x).mean().item() for k in (1, 5, 50, 2_000)
    ]
    assert bounds == sorted(bounds)
    assert bounds[0] < evidence - 0.1
    assert bounds[-1] == pytest.approx(evidence, abs=0.01)
    assert max(bounds[:3]) < evidence


def test_one_importance_sample_is_the_elbo_on_average():
    x = points(1).expand(20_000, 3)
    model = linear_vae(0.3, bound=Bound(num_test_samples=1))
    elbo = losses_of(model, {"point": x, "index": torch.arange(len(x))})["elbo"]
    assert model.log_prob(x).mean().item() == pytest.approx(elbo.item(), abs=0.05)


def test_training_learns_a_known_density_to_within_its_bound():
    torch.manual_seed(0)
    data = TwoMoons(num_train=2_000, num_test=250, batch_size=250)
    likelihood = partial(Gaussian, per_pixel=True)
    networks = (partial(MLPEncoder, hidden=[32]), partial(MLPDecoder, hidden=[32]))
    model = VAE(data.spec, *networks, likelihood, partial(torch.optim.Adam, lr=5e-3), latent_dim=2)
    before = score_likelihood(model, data).values["nll"]
    fit(model, data, max_steps=150)
    after = score_likelihood(model, data).values["nll"]
    entropy = -data.log_density(torch.as_tensor(data.split("test").x).double()).mean().item()
    assert entropy < after < before - 0.3


# Units and reductions


@pytest.mark.parametrize("bound", [Bound(), Bound(num_train_samples=3), Bound(4.0, 0.1)])
def test_duplicating_the_batch_leaves_every_loss_unchanged(bound):
    model, batch = vae(bound=bound), a_batch()
    twice = {name: torch.cat([value, value]) for name, value in batch.items()}
    once, doubled = losses_of(model, batch), losses_of(model, twice)
    assert all(once[name].item() == pytest.approx(doubled[name].item(), rel=1e-5) for name in once)


def test_the_loss_is_in_nats_summed_over_pixels():
    model, batch = vae(), a_batch()
    losses = losses_of(model, batch)
    with model.numbered(batch["index"]):
        posterior = model.posterior(batch["image"])
        z = posterior.at(model.draw_normal("posterior", 8, (1, 4))[:, 0])
    by_pixel = model.likelihood.log_prob(model.decoder(z), batch["image"])
    assert losses["distortion"].item() == pytest.approx(-by_pixel.sum().item() / 8, rel=1e-5)
    assert losses["rate"].item() == pytest.approx(posterior.kl().sum().item() / 8, rel=1e-5)
    assert losses["loss"].item() == pytest.approx(losses["distortion"].item() + losses["rate"].item())


def test_beta_and_the_warmup_weigh_the_kl_alone():
    batch = a_batch()
    plain, weighed = losses_of(vae(), batch), losses_of(vae(bound=Bound(3.0)), batch)
    assert weighed["loss"].item() == pytest.approx((plain["distortion"] + 3 * plain["rate"]).item(), rel=1e-5)
    assert weighed["elbo"].item() == pytest.approx(plain["elbo"].item())
    warming = vae(bound=Bound(3.0, warmup=1_000)).train()
    for seen, share in ((0, 0.0), (250, 0.25), (1_000, 1.0), (5_000, 1.0)):
        warming.examples_seen = seen
        loss = losses_of(warming, batch)
        assert loss["loss"].item() == pytest.approx((loss["distortion"] + 3 * share * loss["rate"]).item())
    warming.examples_seen = 0
    assert losses_of(warming.eval(), batch)["loss"].item() == pytest.approx(weighed["loss"].item(), rel=1e-5)


@pytest.mark.parametrize(("max_steps", "share"), [(2, 0.5 + math.sqrt(0.125)), (9, 0.0)])
def test_the_learning_rate_falls_along_a_cosine_of_the_examples_seen(max_steps, share):
    trainer = fit(vae(schedule=Schedule(decay=64)), max_steps=max_steps)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * share)


def test_free_bits_are_nats_of_the_kl_and_not_of_its_weighted_share():
    model, batch = vae(bound=Bound(3.0, 0.05)), a_batch()
    loss = losses_of(model, batch)
    charged = free_bits(model.posterior(batch["image"]).kl(), 0.05)
    assert charged > loss["rate"]
    assert loss["loss"].item() == pytest.approx((loss["distortion"] + 3 * charged).item(), rel=1e-5)


def test_several_training_samples_train_the_importance_bound():
    model, batch = (
        linear_vae(0.3, bound=Bound(num_train_samples=4)),
        {"point": points(9), "index": torch.arange(9)},
    )
    loss = losses_of(model, batch)["loss"]
    gradient = torch.autograd.grad(loss, model.encoder.gain)[0]
    posterior = model.posterior(batch["point"])
    with model.numbered(batch["index"]):
        noise = model.draw_normal("posterior", 9, (4, 2))
    log_weights = sum(model._weights(posterior, noise, batch["point"], None))
    share = log_weights.softmax(dim=1).detach()
    expected = torch.autograd.grad(-(share * log_weights).sum(dim=1).mean(), model.encoder.gain)[0]
    assert torch.allclose(gradient, expected, atol=1e-10)
    assert loss.item() == pytest.approx(-(log_weights.logsumexp(1) - math.log(4)).mean().item())


@pytest.mark.parametrize("k", [1, 49, 51, 120])
def test_exactly_k_samples_are_decoded_for_the_bound(k):
    model, decoded = vae(bound=Bound(num_test_samples=k)), []
    model.decoder.register_forward_pre_hook(lambda _, inputs: decoded.append(len(inputs[0])))
    model.log_prob(a_batch(5)["image"])
    assert sum(decoded) == 5 * k


def test_the_bound_is_scored_alike_for_any_batch_size_and_in_bits():
    model, data = vae(bound=Bound(num_test_samples=7)), images()
    scores = [score_likelihood(model, data, batch_size=size).values for size in (3, 16)]
    assert scores[0]["nll"] == pytest.approx(scores[1]["nll"], rel=1e-6)
    assert scores[0]["bits_per_dim"] == pytest.approx(scores[0]["nll"] / (64 * math.log(2)))
    likelihood = score_likelihood(model, data)
    assert likelihood.protocol["kind"] == "<=" and "k = 7" in likelihood.protocol["estimator"]


# Capabilities


@pytest.mark.parametrize("networks", [MLP, CONV])
def test_reconstructions_are_images_of_the_posteriors_mean(networks):
    model, x = vae(networks), a_batch()["image"]
    z = model.encode(x)
    assert torch.equal(z, model.posterior(x).mean) and z.shape == (8, 4)
    x_hat = model.decode(z)
    assert x_hat.shape == x.shape and x_hat.abs().max() <= 1


def test_each_row_hears_its_own_label():
    model = vae(given=["label"])
    x, label = a_batch()["image"], torch.arange(8) % 3
    with model.numbered(torch.arange(8)):
        mixed = model.log_prob(x, label=label)
    for one in range(3):
        rows = torch.arange(8)[label == one]
        with model.numbered(rows):
            alone = model.log_prob(x[rows], label=label[rows])
        assert torch.allclose(mixed[rows], alone, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train_samples": 0}, "must be at least 1"),
        ({"num_train_samples": 5, "beta": 2.0}, "no KL to weigh"),
        ({"num_train_samples": 5, "free_bits": 0.1}, "no KL to weigh"),
        ({"num_train_samples": 5, "warmup": 9}, "no KL to weigh"),
        ({"num_test_samples": 0}, "must be at least 1"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Bound(**options)


@pytest.mark.parametrize(
    "options", [{"bound": Bound(num_train_samples=3)}, {"given": ["label"], "bound": Bound(free_bits=0.2)}]
)
def test_training_under_bfloat16_stays_finite(options):
    model = vae(CONV, **options)
    fit(model, precision="bf16-mixed")
    assert all(value.isfinite() for value in model.latest.values())
    assert all(p.isfinite().all() and p.dtype == torch.float32 for p in model.parameters())


# Augmentation that is told


def test_amounts_reach_both_networks_in_training_and_are_none_elsewhere():
    model, told = vae(augmentation=Augmentation(AffineAugment()), given=["label"]).train(), []
    for network in (model.encoder, model.decoder):
        network.register_forward_pre_hook(lambda _, inputs: told.append(inputs[1][:, 3:]))
    losses_of(model, a_batch())
    assert told[0].shape == (8, 5)
    assert -1 < told[0].min() < -0.5 and 0.5 < told[0][:, :4].max() < 1
    assert torch.equal(told[0][:, 4], (told[0][:, :4] != 0).any(dim=1).float())
    assert 0 < told[0][:, 4].sum() < 8
    assert torch.equal(told[0], told[1])
    model.eval()
    losses_of(model, a_batch())
    model.sample(3, label=torch.arange(3))
    model.encode(a_batch()["image"], label=a_batch()["label"])
    assert all(not amounts.any() for amounts in told[2:]) and len(told) == 6


def test_augmented_images_lie_on_the_datas_levels_and_the_rest_is_untouched():
    model = vae(augmentation=Augmentation(AffineAugment(), share=0.5)).train()
    x = a_batch(64)["image"]
    with model.numbered(torch.arange(64)):
        changed, amounts = model._augmented(x)
    still = (amounts == 0).all(dim=1)
    assert 16 < still.sum() < 48
    assert torch.allclose(changed[still], x[still], atol=1e-6)
    assert not torch.allclose(changed[~still], x[~still], atol=1e-2)
    levels = to_levels(changed, 17)
    assert torch.allclose(levels.float() / 8 - 1, changed, atol=1e-6)


def test_untold_augmentation_adds_nothing_to_the_condition():
    model, told = vae(augmentation=Augmentation(AffineAugment(), told=False)).train(), []
    model.encoder.register_forward_pre_hook(lambda _, inputs: told.append(inputs[1]))
    losses_of(model, a_batch())
    assert told == [None]


def test_the_benchmarks_jobs_of_autoencoders_do_a_round():
    from benchmarks import genlab_jobs as bench

    sizes = SimpleNamespace(batch=4, hidden=8, latent=2, lr=1e-3, steps=3, dim=4, codes=8, grid=2)
    assert bench.vae_step(sizes)["run"](0) == 3 * 4
    assert bench.vq_step(sizes)["run"](0) == 3 * 4 * 2**2
