"""The GAN's two players: what each step may touch, what is counted, what is averaged, what is sampled."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from short_training import train

from genlab.data.random_images import RandomImages
from genlab.families.gan import GAN
from genlab.families.players import Balance
from genlab.families.weights import Average, evaluating, frozen
from genlab.losses.adversarial import Hinge, LeastSquares, Minimax, NonSaturating, Wasserstein
from genlab.losses.penalties import R1, GradientPenalty
from genlab.networks.augment import DiffAugment
from genlab.networks.dcgan import DCGANDiscriminator, DCGANGenerator
from genlab.networks.mlp import MLPDiscriminator, MLPGenerator

MLP = (partial(MLPGenerator, latent_dim=4, hidden=[8]), partial(MLPDiscriminator, hidden=[8]))
CONV = (
    partial(DCGANGenerator, latent_dim=4, base_channels=4),
    partial(DCGANDiscriminator, base_channels=4),
)
SGD = partial(torch.optim.SGD, lr=0.1)


def images(num_classes=3, batch_size=8, num_train=64):
    return RandomImages((1, 8, 8), num_classes, num_train=num_train, num_test=16, batch_size=batch_size)


def gan(networks=MLP, optimizers=(SGD, SGD), loss=None, **options):
    torch.manual_seed(0)
    generator, discriminator = networks
    players = {"generator": generator, "discriminator": discriminator, "loss": loss or NonSaturating()}
    rates = dict(zip(("generator_optimizer", "discriminator_optimizer"), optimizers, strict=True))
    return GAN(images().spec, **players, **rates, **options)


def fit(model, data=None, **options):
    return train(model, data or images(), **options)


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


class Watcher(pl.Callback):
    """Keeps what each optimiser step finds in the players' weights and gradients."""

    def __init__(self):
        self.steps = []

    def on_before_optimizer_step(self, trainer, model, optimizer):
        first = optimizer.param_groups[0]["params"][0]
        player = "G" if first is next(model.generator.parameters()) else "D"
        gradients = {
            name: [p.grad is not None and bool(p.grad.any()) for p in network.parameters()]
            for name, network in (("G", model.generator), ("D", model.discriminator))
        }
        self.steps.append((player, gradients, weights(model.generator), weights(model.discriminator)))


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_budget_of_n_makes_n_generator_updates_for_any_k(k):
    model, watcher = gan(balance=Balance(discriminator_steps=k)), Watcher()
    trainer = fit(model, max_steps=6, callbacks=[watcher])
    players = [player for player, *_ in watcher.steps]
    assert players.count("G") == 6 == trainer.global_step
    assert players.count("D") == 6 * k == model.discriminator_updates
    assert players[: k + 1] == ["D"] * k + ["G"]
    assert model.examples_seen == 6 * k * 8


def test_every_discriminator_step_sees_a_fresh_batch():
    model, seen = gan(balance=Balance(discriminator_steps=2)), []
    model.discriminator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    fit(model, max_steps=2)
    real = seen[0], seen[2]  # D(real), D(fake), D(real), D(fake), G's D(fake), ...
    assert not torch.equal(*real)


def test_each_step_leaves_the_other_players_weights_and_gradients_untouched():
    watcher = Watcher()
    fit(gan(CONV, half_life=50), max_steps=4, callbacks=[watcher])
    for (player, gradients, g, d), (_, _, next_g, next_d) in zip(
        watcher.steps, watcher.steps[1:], strict=False
    ):
        other = "D" if player == "G" else "G"
        parameters = [name for name in g if "running" not in name and "num_batches" not in name]
        if player == "D":
            assert all(torch.equal(g[name], next_g[name]) for name in parameters)
            assert any(gradients["D"])
        else:
            assert same({n: v for n, v in d.items() if "num_batches" not in n and "running" not in n}, next_d)
            assert any(gradients["G"])
        assert player != other


def test_the_discriminators_gradient_does_not_reach_the_generator():
    model = gan()
    fit(model, max_steps=1)  # after one step of each
    model.generator.zero_grad()
    fake = model.generate({"image": torch.zeros(8, 1, 8, 8)}, "latent")
    assert fake.requires_grad
    model.loss.discriminator(
        model.discriminator(fake.detach()), model.discriminator(fake.detach())
    ).backward()
    assert all(p.grad is None for p in model.generator.parameters())


def test_a_generator_step_leaves_the_discriminators_gradient_as_it_was():
    gradients = {}

    class Check(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            # The first optimiser step is the discriminator's own, before the generator's backward pass.
            if "before" not in gradients:
                gradients["before"] = [p.grad.clone() for p in module.discriminator.parameters()]

        def on_train_batch_end(self, trainer, module, *_):
            gradients["after"] = [p.grad for p in module.discriminator.parameters()]

    model = gan()
    fit(model, max_steps=1, callbacks=[Check()])
    assert all(torch.equal(*pair) for pair in zip(gradients["before"], gradients["after"], strict=True))
    assert all(p.requires_grad for p in model.discriminator.parameters())


def test_freezing_is_undone_when_the_step_fails():
    network = torch.nn.Linear(2, 1)
    network.bias.requires_grad_(False)
    with pytest.raises(RuntimeError), frozen(network):
        assert not network.weight.requires_grad
        raise RuntimeError
    assert network.weight.requires_grad and not network.bias.requires_grad


def test_evaluating_returns_to_the_mode_before_it():
    network = torch.nn.BatchNorm1d(2)
    with evaluating(network):
        assert not network.training
    assert network.training


def test_the_average_follows_the_closed_form_and_copies_buffers():
    network = torch.nn.BatchNorm1d(3)
    average = Average(network, half_life=100)
    expected = None
    for step in range(200):
        with torch.no_grad():
            network.weight.fill_(step + 1.0)
        network(torch.randn(8, 3))
        examples = 8 + step % 3
        average.update(network, examples)
        decay = min(2 ** (-examples / 100), (1 + step) / (10 + step))
        expected = step + 1.0 if expected is None else decay * expected + (1 - decay) * (step + 1.0)
    assert torch.allclose(average.module.weight, torch.full((3,), expected))
    assert torch.equal(average.module.running_mean, network.running_mean)
    assert average.module.num_batches_tracked == 200 == average.num_updates
    assert not any(p.requires_grad for p in average.parameters())


@pytest.mark.parametrize("pieces", [1, 2, 8])
def test_half_of_a_weight_is_left_after_a_half_life_in_any_number_of_steps(pieces):
    network = torch.nn.Linear(1, 1)
    average = Average(network, half_life=64)
    average.num_updates = 10**6  # long after the ramp
    torch.nn.init.ones_(average.module.weight), torch.nn.init.zeros_(network.weight)
    for _ in range(pieces):
        average.update(network, 64 // pieces)
    assert average.module.weight.item() == pytest.approx(0.5)


def test_a_half_life_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="half-life of an average must be positive, got -1"):
        gan(half_life=-1)


def test_only_the_generator_is_averaged_and_samples_come_from_the_average():
    model = gan(half_life=50)
    fit(model, max_steps=3)
    assert [n for n in model.state_dict() if n.startswith("average.module.")] == [
        f"average.module.{n}" for n in model.generator.state_dict()
    ]
    assert model.average.num_updates == 3
    assert not torch.equal(model.sample(4), model.generator(model.draw_latent(4)))
    with torch.no_grad():
        assert torch.equal(model.sample(4), model.average(model.draw_latent(4)))


LOSSES = [Minimax(), NonSaturating(), LeastSquares(), Hinge(), Wasserstein()]


PENALTIES = [R1(every=2), GradientPenalty(), None, R1(every=2), GradientPenalty()]


@pytest.mark.parametrize(
    ("loss", "penalty"), zip(LOSSES, PENALTIES, strict=True), ids=lambda part: type(part).__name__
)
def test_every_game_trains_under_bfloat16_and_stays_finite(loss, penalty):
    networks = (CONV[0], partial(DCGANDiscriminator, base_channels=4, norm="none", spectral_norm=True))
    model = gan(networks, loss=loss, balance=Balance(penalty=penalty, augment=DiffAugment()), given=["label"])
    fit(model, max_steps=3, precision="bf16-mixed")
    assert all(value.isfinite() for value in model.latest.values())
    assert all(p.isfinite().all() for p in model.parameters())
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="float16 with its loss scale needs a GPU")
def test_clipping_under_float16_acts_on_unscaled_gradients():
    moved = {}
    for precision in ("32-true", "16-mixed"):
        model = gan(balance=Balance(clip=1e-3), optimizers=(partial(torch.optim.SGD, lr=1.0),) * 2)
        before = weights(model.discriminator)
        trainer = pl.Trainer(max_steps=1, accelerator="gpu", devices=1, precision=precision, logger=False)
        trainer.fit(model, images())
        after = model.discriminator.state_dict()
        moved[precision] = torch.cat([(after[n].cpu() - before[n]).flatten() for n in before]).norm()
    assert moved["16-mixed"] == pytest.approx(moved["32-true"], rel=0.02)


def test_a_lazy_penalty_is_applied_every_nth_step():
    seen = []

    class Counted(R1):
        def points(self, real, fake, uniform):
            seen.append(model.discriminator_updates)
            return super().points(real, fake, uniform)

    model = gan(balance=Balance(penalty=Counted(every=3)))
    fit(model, max_steps=7)
    assert seen == [0, 3, 6]


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_clipped_to_the_given_norm_before_every_step(fused, scaled):
    model = gan(balance=Balance(clip=1e-3), optimizers=(partial(torch.optim.SGD, lr=1.0, fused=fused),) * 2)
    before = weights(model.discriminator)
    fit(model, max_steps=1, plugins=[MixedPrecision("16-mixed", "cpu")] if scaled else None)
    moved = [model.discriminator.state_dict()[name] - before[name] for name in before]
    # With a learning rate of 1 the step is the gradient.
    assert torch.cat([step.flatten() for step in moved]).norm() == pytest.approx(1e-3, rel=1e-3)


def test_accuracy_is_the_share_of_images_on_the_right_side_of_the_threshold():
    accuracy = gan()._accuracy(torch.tensor([1.0, 2.0, -1.0]), torch.tensor([-1.0, -2.0, 3.0, -0.5]))
    assert accuracy["accuracy_real"] == pytest.approx(2 / 3)
    assert accuracy["accuracy_fake"] == pytest.approx(3 / 4)
    assert gan(loss=Wasserstein())._accuracy(torch.ones(2), torch.ones(2)) == {}


def test_momentum_and_adam_are_chosen_by_configuration():
    momentum = partial(torch.optim.SGD, lr=0.1, momentum=0.5)
    model = gan(optimizers=(momentum, torch.optim.Adam))
    generator, discriminator = model.configure_optimizers()
    assert isinstance(generator, torch.optim.SGD) and isinstance(discriminator, torch.optim.Adam)
    assert generator.param_groups[0]["momentum"] == 0.5


def test_the_loss_of_a_step_is_the_losses_of_the_batch_at_the_weights_before_it():
    model = gan(optimizers=(partial(torch.optim.SGD, lr=0.0),) * 2)
    fit(model, max_steps=1)
    assert set(model.latest) == {"discriminator", "generator", "loss", "accuracy_real", "accuracy_fake"}
    assert 0 <= model.latest["accuracy_real"] <= 1
    # An untrained discriminator knows nothing: both losses lie near log 2.
    assert model.latest["generator"].item() == pytest.approx(0.693, abs=0.2)
    assert model.latest["discriminator"].item() == pytest.approx(1.386, abs=0.3)


def test_wrong_numbers_of_discriminator_steps_are_refused():
    with pytest.raises(ValueError, match="discriminator_steps must be at least 1, got 0"):
        gan(balance=Balance(discriminator_steps=0))
