"""Autoencoders with a KL: its value, the adaptive weight, which player moves when, and by what."""

from functools import partial

import pytest
import torch
from short_training import train
from torch import nn
from torch.distributions import Normal, kl_divergence

from genlab.data.random_images import RandomImages
from genlab.evaluation.given import item_batch
from genlab.families.kl_autoencoder import (
    AdversarialKLAutoencoder,
    Adversary,
    KLAutoencoder,
    adaptive_weight,
)
from genlab.losses.adversarial import Hinge
from genlab.losses.distances import SquaredError
from genlab.networks.autoencoder import ConvMapDecoder, ConvMapEncoder, MLPDecoder, MLPEncoder
from genlab.networks.image_to_image import PatchDiscriminator

ADAM = partial(torch.optim.Adam, lr=1e-2)
CODING = (
    partial(ConvMapEncoder, num_halvings=1, base_channels=4),
    partial(ConvMapDecoder, num_halvings=1, base_channels=4),
)


def images():
    return RandomImages((1, 8, 8), 3, levels=17, num_train=32, num_test=16, batch_size=8)


def batch_of(num=4):
    return item_batch(images(), "test", torch.arange(num), torch.device("cpu"))


def alone(**options):
    torch.manual_seed(0)
    return KLAutoencoder(images().spec, *CODING, ADAM, latent_channels=2, **options)


def test_a_spread_that_runs_away_gives_finite_losses_and_gradients():
    model = alone()
    with torch.no_grad():
        model.network.encoder.output.bias[2:] = torch.tensor([300.0, -300.0])
    loss = model.losses(batch_of())["loss"]
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    assert loss.isfinite() and all(g.isfinite().all() for g in gradients if g is not None)


AT_ONCE = Adversary()


def playing(adversary=AT_ONCE, coding=CODING, **options):
    torch.manual_seed(0)
    discriminator = partial(PatchDiscriminator, base_channels=4, num_layers=1, norm="none")
    optimizers = {"generator_optimizer": ADAM, "discriminator_optimizer": ADAM}
    options = {"latent_channels": 2, "adversary": adversary, "loss": Hinge(), **options}
    return AdversarialKLAutoencoder(images().spec, *coding, discriminator, **optimizers, **options)


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# The code


def test_the_kl_is_that_of_torch_s_normals_in_nats_an_image():
    model, batch = alone(kl_weight=0.5, distance=SquaredError()).eval(), batch_of()
    mean, log_std = model.network.encoder(batch["image"]).chunk(2, dim=1)
    by_torch = kl_divergence(Normal(mean, log_std.exp()), Normal(0.0, 1.0)).sum(dim=(1, 2, 3)).mean()
    with model.numbered(batch["index"]):
        losses = model.losses(batch)
        noise = model.draw_normal("posterior", 4, (2, 4, 4))
    made = model.network.decoder(mean + log_std.exp() * noise)
    distance = (made - batch["image"]).square().mean()
    assert losses["kl"].item() == pytest.approx(by_torch.item(), rel=1e-5)
    assert losses["distance"].item() == pytest.approx(distance.item(), rel=1e-5)
    assert losses["loss"].item() == pytest.approx((distance + 0.5 * by_torch / 64).item(), rel=1e-5)


@pytest.mark.parametrize("build", [alone, playing])
def test_codes_are_the_means_and_of_the_form_that_a_second_stage_is_told(build):
    model, x = build(), batch_of()["image"]
    z = model.encode(x)
    assert z.shape[1:] == model.code_spec.shape == (2, 4, 4) and model.code_spec.levels == 0
    assert model.code_spec.is_grid and model.code_spec.kind == "point" and model.latent_dim == 32
    assert model.code_spec.num_classes == 3
    assert torch.equal(z, model.posterior(x).mean) and torch.equal(z, model.encode(x))
    assert model.decode(z).shape == x.shape and model.decode(100 * z).abs().max() <= 1


# The adversarial term


def test_the_adaptive_weight_makes_both_gradients_of_a_linear_decoder_as_long():
    """Of x_hat = W z: grad |x - W z|^2 = -2 (x - W z) z^T, and grad of c^T W z = c z^T."""
    layer = nn.Linear(2, 3, bias=False).double()
    z, x, c = torch.tensor([0.6, -1.0]), torch.tensor([1.0, 2.0, -1.0]), torch.tensor([3.0, 0.0, 4.0])
    z, x, c = z.double(), x.double(), c.double()
    gradients = [
        torch.autograd.grad(loss, layer.weight)[0]
        for loss in ((x - layer(z)).square().sum(), (c * layer(z)).sum())
    ]
    expected = 2 * (x - layer(z)).norm() * z.norm() / (5.0 * z.norm() + 1e-4)
    assert adaptive_weight(*gradients).item() == pytest.approx(expected.item())
    assert adaptive_weight(gradients[0], 0 * gradients[1], largest=7.0).item() == 7.0
    assert not adaptive_weight(layer.weight, layer.weight).requires_grad


def test_the_model_weighs_at_its_decoder_s_last_layer():
    model, x = playing(), batch_of()["image"]
    made = model.generator.decoder(torch.randn(4, 2, 4, 4))
    losses = (made - x).abs().mean(), -model.discriminator(made).mean()
    layer = model.generator.decoder.stages.output.weight
    distance, adversarial = (torch.autograd.grad(loss, layer, retain_graph=True)[0].norm() for loss in losses)
    found = model._adaptive_weight(*losses)
    assert found.item() == pytest.approx((distance / (adversarial + 1e-4)).item(), rel=1e-5)


def test_before_its_time_the_discriminator_leaves_no_trace_in_the_autoencoder():
    """To the bit that of no discriminator at all, whether or not it has begun to learn."""
    reference = alone(half_life=8)
    waiting = playing(Adversary(adversarial_after=99, discriminator_after=99), half_life=8)
    learning = playing(Adversary(adversarial_after=99, discriminator_after=8), half_life=8)
    first = weights(learning.discriminator)
    for model in (reference, waiting, learning):
        train(model, images(), max_steps=3)
    for model in (waiting, learning):
        assert same(weights(model.generator), weights(reference.network))
        assert same(weights(model.average.module), weights(reference.average.module))
    assert same(weights(waiting.discriminator), first) and waiting.discriminator_updates == 0
    assert not same(weights(learning.discriminator), first) and learning.discriminator_updates == 2
    assert waiting.latest.keys() == reference.latest.keys() == {"loss", "distance", "kl"}
    assert "adversarial" not in learning.latest and learning.signs == ()


def test_once_it_plays_each_player_learns_from_its_own_loss_alone():
    model = playing(Adversary(weight=0.5))
    kept = {}

    def noted(loss, player):
        for name in ("generator", "discriminator"):
            network = getattr(model, name)
            found = torch.autograd.grad(
                loss, list(network.parameters()), retain_graph=True, allow_unused=True
            )
            kept[player, name] = [gradient is not None and bool(gradient.any()) for gradient in found]

    model._learn, model._follow_schedule, model.examples_seen = noted, lambda: None, 8
    model.training_step(batch_of(), 0)
    assert any(kept[0, "generator"]) and not any(kept[0, "discriminator"])
    assert any(kept[1, "discriminator"]) and not any(kept[1, "generator"])
    found = model.latest
    total = found["distance"] + 1e-6 / 64 * found["kl"]
    total = total + 0.5 * found["adaptive_weight"] * found["adversarial"]
    assert found["loss"].item() == pytest.approx(total.item(), rel=1e-5) and model.signs


def test_the_term_grows_from_nothing_once_the_discriminator_has_learned():
    adversary = Adversary(0.5, adversarial_after=100, discriminator_after=60, ramp=40)
    assert [adversary.weight_after(n) for n in (60, 100, 110, 140, 900)] == [0, 0, 0.125, 0.5, 0.5]
    assert Adversary(0.5, 100).weight_after(101) == 0.5


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Adversary(adversarial_after=5, discriminator_after=6), "must learn before"),
        (lambda: Adversary(ramp=-1), "may be negative"),
        (lambda: alone(kl_weight=-1.0), "kl_weight must not"),
        (lambda: playing(coding=(CODING[0], MLPDecoder)), "names no last_layer"),
        (lambda: playing(coding=(MLPEncoder, CODING[1])), "makes no map"),
    ],
)
def test_impossible_settings_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
