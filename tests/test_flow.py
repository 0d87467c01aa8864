"""The flow as a density: it integrates to 1, samples agree with it, bits per dimension count levels."""

import math
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from short_training import train

from genlab.bijections.base import Chain
from genlab.bijections.coupling import Coupling
from genlab.bijections.densities import Uniform
from genlab.bijections.dequantisation import VariationalDequantisation
from genlab.bijections.elementwise import Affine, Spline
from genlab.bijections.flows import CouplingFlow, Glow, RealNVP
from genlab.bijections.layers import Centre, Flatten
from genlab.callbacks.density import DensityPlot
from genlab.callbacks.health import Health
from genlab.data.random_images import RandomImages
from genlab.data.toy import EightGaussians, TwoMoons
from genlab.evaluation.likelihood import score_likelihood
from genlab.families.base import Schedule
from genlab.families.flow import Flow
from genlab.networks.conditioner import ConvConditioner, MLPConditioner
from genlab.report.test_table import likelihood_protocol
from genlab.shapes import DataSpec, to_float, to_levels

ADAM = partial(torch.optim.Adam, lr=2e-3)
MLP = partial(MLPConditioner, hidden=[16])
CONV = partial(ConvConditioner, hidden_channels=8)
VECTOR = partial(CouplingFlow, network=MLP, num_couplings=4)
REALNVP = partial(RealNVP, network=CONV, num_couplings=2)
GLOW = partial(Glow, network=CONV, num_levels=2, num_steps=2)
IMAGE_FLOWS = [
    pytest.param(partial(REALNVP), id="realnvp"),
    pytest.param(partial(GLOW, alpha=0.05), id="glow"),
    pytest.param(partial(VECTOR, alpha=0.05), id="vector"),
]


def images(levels=256, **options):
    return RandomImages((1, 8, 8), 3, levels, num_train=64, num_test=16, **{"batch_size": 8, **options})


def flow(bijection=REALNVP, data=None, perturb=0.05, **options):
    torch.manual_seed(0)
    model = Flow((data or images()).spec, bijection, ADAM, **options)
    with torch.no_grad():
        for parameter in model.parts.parameters():
            parameter.add_(perturb * torch.randn_like(parameter))
    return model.eval()


def fit(model, data=None, **options):
    train(model.train(), data or images(), **options)
    return model.eval()


def identity(spec):
    return Chain([Flatten(spec.shape)])


def batch_of(data, num=8):
    return data.to_device_batch(next(iter(data.loader("test", batch_size=num))), "cpu")


# Exact numbers


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("num_draws", [1, 3])
def test_the_identity_with_a_uniform_base_has_log2_of_the_levels_in_bits_per_dim(levels, num_draws):
    data = images(levels)
    model = flow(identity, data, base=Uniform(), num_draws=num_draws)
    scores = score_likelihood(model, data).values
    assert scores["bits_per_dim"] == pytest.approx(math.log2(levels), abs=1e-6)
    assert scores["nll"] == pytest.approx(64 * math.log(levels), rel=1e-6)
    with model.numbered(torch.arange(8)):
        assert model.losses(batch_of(data))["loss"].item() == pytest.approx(math.log2(levels), abs=1e-6)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_every_level_is_dequantised_inside_of_its_own_bin(levels):
    k = torch.arange(levels).repeat(100)[:, None, None, None].expand(-1, 1, 2, 2)
    model = flow(identity, RandomImages((1, 2, 2), levels=levels))
    with model.numbered(torch.arange(len(k))):
        v, log_volume = model._continuous(model.parts, to_float(k, levels), None, "draw")
    assert ((v >= k / levels) & (v <= (k + 1) / levels)).all()
    u = v * levels - k
    assert u.mean().item() == pytest.approx(0.5, abs=0.02) and u.var().item() == pytest.approx(
        1 / 12, abs=0.01
    )
    assert torch.allclose(log_volume, torch.tensor(-4 * math.log(levels)))


class Uncentre(Centre):
    """The inverse of Centre."""

    def forward(self, x, label=None):
        return super().inverse(x, label)

    def inverse(self, z, label=None):
        return super().forward(z, label)


def square_to_square(spec):
    """A flow of (0, 1)^n to itself, so that no mass lies outside of the levels."""
    flat, spline = DataSpec("flat", (math.prod(spec.shape),)), Spline(num_bins=3, width=0.5)
    couplings = [Coupling(flat, MLP, spline, swap=swap) for swap in (False, True)]
    return Chain([Flatten(spec.shape), Centre(), *couplings, Uncentre()])


@pytest.mark.parametrize(
    "dequantisation", [None, partial(VariationalDequantisation, network=CONV, num_couplings=2)]
)
def test_probabilities_of_all_images_sum_to_one_and_samples_follow_them(dequantisation):
    data = RandomImages((1, 1, 2), levels=3)
    model = flow(square_to_square, data, 0.4, base=Uniform(), num_draws=300, dequantisation=dequantisation)
    with torch.no_grad():  # far from uniform, some hundred draws miss some corner of a bin
        for parameter in model.parts["dequantisation"].parameters():
            parameter.mul_(0.5)
    k = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    probability = model.log_prob(to_float(k, 3).reshape(9, 1, 1, 2)).exp()
    assert probability.sum().item() == pytest.approx(1, abs=0.02)
    assert probability.max() > 1.5 / 9
    drawn = to_levels(model.sample(8_000), 3).long().flatten(1)
    counted = torch.bincount(3 * drawn[:, 0] + drawn[:, 1], minlength=9) / 8_000
    assert (counted - probability).abs().max() < 0.02


def test_more_draws_bring_the_bound_closer_to_the_likelihood():
    data = RandomImages((1, 1, 2), levels=3)
    bits = [
        score_likelihood(flow(square_to_square, data, 0.6, base=Uniform(), num_draws=n), data).values["nll"]
        for n in (1, 4, 64)
    ]
    assert bits[0] > bits[1] > bits[2]


# A density


@pytest.mark.parametrize("transform", [Affine(), Spline(num_bins=4)], ids=["affine", "spline"])
def test_a_density_in_two_dimensions_integrates_to_one(transform):
    model = flow(partial(VECTOR, transform=transform), TwoMoons(), perturb=0.15)
    places = torch.linspace(-12, 12, 401)
    density = model.log_prob(torch.cartesian_prod(places, places)).double().exp()
    assert density.sum().item() * (24 / 400) ** 2 == pytest.approx(1, abs=1e-3)


def test_frequencies_of_samples_agree_with_log_prob():
    model = flow(VECTOR, TwoMoons(), perturb=0.3)
    edges = torch.linspace(-2, 2, 5)
    fine = torch.linspace(-2, 2, 401)[:-1] + 0.005
    cells = model.log_prob(torch.cartesian_prod(fine, fine)).double().exp().reshape(4, 100, 4, 100) * 1e-4
    expected = cells.sum((1, 3))
    counted = torch.histogramdd(model.sample(40_000, seed=1), [edges, edges]).hist / 40_000
    assert (counted - expected).abs().max() < 5 * (0.25 / 40_000) ** 0.5


@pytest.mark.slow
@pytest.mark.parametrize("data", [TwoMoons, EightGaussians])
def test_a_flow_fitted_to_a_known_density_reaches_its_entropy(data):
    data = data(num_train=50_000, num_test=10_000, batch_size=512)
    network = partial(MLPConditioner, hidden=[64, 64])
    bijection = partial(CouplingFlow, network=network, transform=Spline(num_bins=8), num_couplings=6)
    model = fit(Flow(data.spec, bijection, ADAM, half_life=70_000), data, max_steps=2_500)
    x = torch.as_tensor(data.split("test").x)
    excess = (data.log_density(x) - model.log_prob(x)).mean().item()  # an estimate of the divergence
    assert -0.01 < excess < 0.05


def test_a_flow_learns_a_skewed_normal_density_to_its_entropy():
    data = TwoMoons(num_train=20_000, num_test=2_000, batch_size=128)
    stretch = torch.tensor([[2.0, 0.0], [1.5, 0.3]], dtype=torch.float64)
    data.draw = lambda address, index: torch.randn(
        len(index), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(address % 2**62)
    ) @ stretch.T + 3  # fmt: skip
    model = fit(
        Flow(data.spec, VECTOR, partial(torch.optim.Adam, lr=5e-3), half_life=4_000), data, max_steps=200
    )
    entropy = 1 + math.log(2 * math.pi) + math.log(0.6)
    found = -model.log_prob(torch.as_tensor(data.split("test").x)).mean().item()
    assert found == pytest.approx(entropy, abs=0.05)


# Capabilities


@pytest.mark.parametrize("bijection", IMAGE_FLOWS)
@pytest.mark.parametrize("conditional", [False, True])
def test_encoding_and_decoding_return_every_image_exactly(bijection, conditional):
    data = images(levels=17)
    model = flow(bijection, data, given=["label"] if conditional else [])
    batch = batch_of(data, 16)
    told = model.given_of(batch)
    z = model.encode(batch["image"], **told)
    assert z.shape == (16, 64) and z.shape[1] == model.latent_dim
    assert torch.equal(model.decode(z, **told), batch["image"])


@pytest.mark.parametrize("bijection", IMAGE_FLOWS)
def test_samples_are_levels_and_temperature_zero_is_one_image(bijection):
    model = flow(bijection, images(levels=17))
    x = model.sample(10, seed=3)
    assert torch.allclose(to_float(to_levels(x, 17), 17), x, atol=1e-6)
    cold = model.sample(4, seed=3, temperature=0.0)
    assert torch.allclose(cold, cold[:1], atol=1e-5) and not torch.allclose(cold, x[:4], atol=0.1)
    assert torch.equal(model.draw_latent(4, temperature=0.5), 0.5 * model.draw_latent(4))


def test_images_have_a_bound_and_vectors_an_exact_density():
    model = flow()
    assert (model.likelihood_kind, model.likelihood_estimator) == ("<=", "uniform dequantisation, k = 1")
    assert flow(VECTOR, TwoMoons()).likelihood_kind == "exact"


def test_bits_per_dim_names_resolution_levels_and_how_it_was_estimated():
    data = images(levels=17)
    model = flow(data=data, num_draws=2)
    found = score_likelihood(model, data)
    text = likelihood_protocol(found.protocol)
    assert "1x8x8, 17 levels" in text and "uniform dequantisation, k = 2" in text and text.startswith("<=")
    assert found.protocol != score_likelihood(flow(num_draws=2), images()).protocol


# Training


def test_training_draws_fresh_dequantisation_noise_and_evaluation_repeats_its_own():
    data, seen = images(), []
    model = flow(data=data)
    x = batch_of(data)["image"]

    def noise(index):
        with model.numbered(index):
            return model._continuous(model.parts, x, None, "dequantisation")[0]

    assert torch.equal(noise(torch.arange(8)), noise(torch.arange(8)))
    assert not torch.equal(noise(torch.arange(8)), noise(torch.arange(8) + 8))
    model._continuous = lambda *a, f=model._continuous: seen.append(f(*a)) or seen[-1]
    fit(model, images(batch_size=64), max_steps=2)
    (first, second) = (v * 256 - (v * 256).floor() for v, _ in seen)
    assert not torch.allclose(first.sort(0).values, second.sort(0).values)


def test_a_wrong_inverse_is_seen_in_the_inverse_error():
    model = flow(GLOW)
    layer = model.parts["bijection"].layers[0]
    layer.inverse = lambda z, label=None: (z + 0.6, z.new_zeros(len(z)))  # instead of 0.5
    with model.numbered(torch.arange(8)), torch.no_grad():
        assert model.losses(batch_of(images()))["inverse_error"].item() == pytest.approx(0.1, abs=1e-4)


def test_health_flags_an_inverse_that_misses_the_data():
    health = Health()
    assert health.signs({"val/inverse_error": 0.01}, Flow.signs) == {"inverse_error": 0.01}
    assert "misses the data by 0.01" in health.problems({"inverse_error": 0.01})["inverse"]
    assert not health.problems({"inverse_error": 1e-5})


def test_reports_are_computed_without_half_precision():
    def validate(precision):
        options = {"logger": False, "accelerator": "cpu", "enable_progress_bar": False}
        trainer = pl.Trainer(**options, enable_checkpointing=False, precision=precision)
        trainer.validate(flow(GLOW), images(), verbose=False)
        return {name: float(value) for name, value in trainer.callback_metrics.items()}

    full, half = validate("32-true"), validate("bf16-mixed")
    assert set(full) == {"val/loss", "val/inverse_error"} and full["val/inverse_error"] < 1e-5
    assert half == pytest.approx(full, abs=1e-5)


@pytest.mark.slow
def test_a_compiled_training_step_equals_the_uncompiled_one():
    plain, compiled = (flow(GLOW, half_life=50, compile=compile) for compile in (False, True))
    assert plain.state_dict().keys() == compiled.state_dict().keys()
    for model in (plain, compiled):
        fit(model, max_steps=3)
    assert compiled.latest["loss"].item() == pytest.approx(plain.latest["loss"].item(), abs=1e-4)
    assert torch.allclose(
        plain.log_prob(batch_of(images(), 5)["image"]),
        compiled.log_prob(batch_of(images(), 5)["image"]),
        atol=1e-2,
    )


VARIATIONAL = partial(VariationalDequantisation, network=CONV, num_couplings=2)


@pytest.mark.parametrize(
    ("bijection", "dequantisation"),
    [(REALNVP, VARIATIONAL), (partial(GLOW, alpha=0.05), None), (partial(VECTOR, alpha=0.05), None)],
)
def test_every_flow_learns_images_under_bfloat16(bijection, dequantisation):
    model = flow(bijection, perturb=0.0, dequantisation=dequantisation, given=["label"], half_life=20)
    before = score_likelihood(model, images()).values["bits_per_dim"]
    fit(model, max_steps=20, precision="bf16-mixed", gradient_clip_val=10.0)
    assert score_likelihood(model, images()).values["bits_per_dim"] < before - 0.1
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())


def test_actnorm_is_initialised_by_the_first_training_batch_and_not_by_scoring_or_sampling():
    model = flow(perturb=0.0)
    model.train()
    model.sample(4)
    model.encode(batch_of(images())["image"])
    score_likelihood(model, images())
    flags = {name: b for name, b in model.parts.named_buffers() if name.endswith("initialised")}
    assert flags and not any(flags.values())
    fit(model, max_steps=1)
    assert all(flags.values())


@pytest.mark.parametrize("place", ["layers.1.layers.1.network.second", "layers.1.layers.0"])
def test_a_value_that_is_not_finite_is_explained_by_the_layers_name(place):
    model, batch = flow(), batch_of(images())
    layer = model.parts["bijection"].get_submodule(place)
    with torch.no_grad():
        next(layer.parameters()).fill_(math.nan)
    assert model.explain(batch).startswith(f"layer bijection.{place} gives the first such value")
    broken = {**batch, "image": batch["image"] * math.nan}
    assert flow().explain(broken).startswith("the data gives")


def test_a_run_whose_loss_is_not_finite_stops_and_names_the_layer(genlab_command):
    code, _, error = genlab_command(
        *("fit", "--config", "experiments/spline_checkerboard.yaml", "--trainer.accelerator", "cpu"),
        *("--model.optimizer.init_args.lr", "1e30", "--trainer.log_every_n_steps", "1"),
        *("--data.num_train", "256", "--data.num_test", "32", "--data.batch_size", "64"),
        *("--budget.examples", "512", "--evaluate.num_samples", "16", "--trainer.callbacks", "[]"),
    )
    assert code == 6 and "loss is not finite after" in error
    assert "gives the first such value; a smaller learning rate" in error


def test_the_learning_rate_grows_over_the_warm_up():
    model = flow(schedule=Schedule(warmup=32))
    rates = []

    class Watcher(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    fit(model, max_steps=6, callbacks=[Watcher()])
    assert rates == pytest.approx([2e-3 / 32, 2e-3 * 9 / 32, 2e-3 * 17 / 32, 2e-3 * 25 / 32, 2e-3, 2e-3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_draws": 0}, "num_draws must be at least 1"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
    ],
)
def test_wrong_settings_of_a_flow_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        flow(**options)


def test_the_picture_of_two_dimensions_shows_density_samples_and_the_warped_grid():
    data = TwoMoons(num_test=200)
    model = flow(partial(VECTOR, num_couplings=2), data)
    picture = DensityPlot(num=100)._two_dimensions(data, model, model.sample(100))
    assert picture.shape == (600, 1800, 3)
    thirds = [picture[50:550, start + 60 : start + 560] for start in (0, 600, 1200)]
    assert all(third.std() > 0 for third in thirds)


def test_images_of_continuous_numbers_have_an_exact_density():
    spec = DataSpec("numbers", (1, 4, 4), levels=0)
    model = Flow(spec, partial(GLOW, num_levels=1), ADAM).eval()
    x = torch.rand(3, 1, 4, 4)
    assert model.likelihood_kind == "exact" and torch.allclose(model.decode(model.encode(x)), x, atol=1e-5)
