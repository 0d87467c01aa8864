"""Pixels' distributions sum to one, and the parts of the bound equal their closed forms."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from genlab.losses.divergences import DiagonalNormal, free_bits, importance_bound, standard_normal_log_prob
from genlab.losses.likelihoods import (
    Bernoulli,
    DiscretizedLogistic,
    Gaussian,
    log_logistic_interval,
    log_ndtr,
    log_normal_interval,
)
from genlab.shapes import DataSpec, to_float

DOUBLE = torch.float64


def spec(levels, shape=(2, 3, 1)):
    return DataSpec("tiny", shape, levels=levels)


LIKELIHOODS = [
    (Bernoulli, 2, {}),
    (Gaussian, 2, {}),
    (Gaussian, 17, {"per_pixel": True}),
    (Gaussian, 256, {}),
    (Gaussian, 256, {"per_pixel": True}),
    (DiscretizedLogistic, 2, {"num_components": 2}),
    (DiscretizedLogistic, 17, {}),
    (DiscretizedLogistic, 256, {}),
    (DiscretizedLogistic, 256, {"num_components": 3}),
]


def everything(kind, levels, options, spread=1.0, dtype=torch.float32):
    """A likelihood, random parameters, and an image of each single level."""
    likelihood = kind(spec(levels), **options)
    torch.manual_seed(0)
    parameters = spread * torch.randn(1, *likelihood.parameter_shape, dtype=dtype)
    x = (
        to_float(torch.arange(levels), levels)
        .to(dtype)
        .reshape(-1, 1, 1, 1)
        .expand(-1, *likelihood.spec.shape)
    )
    return likelihood, parameters.expand(levels, *parameters.shape[1:]), x


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0])
@pytest.mark.parametrize(("kind", "levels", "options"), LIKELIHOODS)
def test_the_levels_of_every_pixel_sum_to_one(kind, levels, options, spread):
    likelihood, parameters, x = everything(kind, levels, options, spread)
    total = likelihood.log_prob(parameters, x).double().exp().sum(dim=0)
    assert torch.allclose(total, torch.ones_like(total), atol=2e-5)
    exact = likelihood.double().log_prob(parameters.double(), x.double()).exp().sum(dim=0)
    assert torch.allclose(exact, torch.ones_like(exact), atol=1e-6)


@pytest.mark.parametrize(("kind", "levels", "options"), LIKELIHOODS)
def test_an_images_log_probability_is_the_sum_over_its_pixels(kind, levels, options):
    likelihood, parameters, x = everything(kind, levels, options)
    by_pixel = likelihood.log_prob(parameters, x)
    assert by_pixel.shape == x.shape
    assert torch.allclose(likelihood(parameters, x), by_pixel.sum(dim=(1, 2, 3)))


@pytest.mark.parametrize(("kind", "levels", "options"), LIKELIHOODS)
@pytest.mark.parametrize("size", [30.0, 300.0])
def test_extreme_parameters_give_finite_numbers_and_gradients(kind, levels, options, size):
    likelihood, parameters, x = everything(kind, levels, options)
    parameters = (size * parameters.sign()).clone().requires_grad_()
    total = likelihood(parameters, x).sum()
    total.backward()
    assert total.isfinite() and parameters.grad.isfinite().all()
    assert likelihood.mean(parameters).abs().max() <= 1.0


@pytest.mark.parametrize(("kind", "levels", "options"), LIKELIHOODS)
def test_half_precision_parameters_are_judged_in_full(kind, levels, options):
    likelihood, parameters, x = everything(kind, levels, options)
    half = parameters.bfloat16()
    assert likelihood(half, x).dtype == torch.float32
    assert torch.equal(likelihood(half, x), likelihood(half.float(), x))


@pytest.mark.parametrize(
    ("interval", "cdf"),
    [(log_logistic_interval, torch.sigmoid), (log_normal_interval, lambda v: torch.special.ndtr(v))],
)
def test_intervals_equal_the_difference_of_the_cumulative_functions(interval, cdf):
    middle = torch.linspace(-5, 5, 41, dtype=DOUBLE)
    low, high, no = middle - 0.3, middle + 0.3, torch.zeros(41, dtype=torch.bool)
    assert torch.allclose(interval(low, high, no, no), (cdf(high) - cdf(low)).log(), atol=1e-8)
    assert torch.allclose(interval(low, high, ~no, no), cdf(high).log(), atol=1e-8)
    assert torch.allclose(interval(low, high, no, ~no), cdf(-low).log(), atol=1e-8)


def test_the_levels_of_a_mixture_are_those_of_its_components():
    likelihood = DiscretizedLogistic(spec(17, (1, 1, 1)), num_components=2)
    logits, means, log_scales = [0.3, -0.4], [0.2, -0.1], [0.1, 0.7]
    parameters = torch.tensor([*logits, *means, *log_scales], dtype=DOUBLE).reshape(1, 6, 1, 1)
    x = to_float(torch.tensor([5]), 17).double().reshape(1, 1, 1, 1)
    weights = torch.tensor(logits, dtype=DOUBLE).softmax(0)
    expected = 0.0
    for w, m, s in zip(weights, [0.2 - 0.5, -0.1 + 0.5], [0.1 - 2.0, 0.7 - 2.0], strict=True):
        edges = (x + torch.tensor([-1 / 16, 1 / 16]) - m) / math.exp(s)
        expected += w * (edges.sigmoid()[..., 1] - edges.sigmoid()[..., 0])
    assert likelihood(parameters, x).item() == pytest.approx(expected.log().item(), abs=1e-8)


def test_a_gaussian_of_continuous_data_is_torchs_normal_density():
    likelihood = Gaussian(DataSpec("points", (3,), levels=0), per_pixel=True).double()
    parameters, x = torch.randn(4, 6, dtype=DOUBLE), torch.randn(4, 3, dtype=DOUBLE)
    mean, log_std = parameters.chunk(2, dim=1)
    expected = Normal(mean, log_std.exp()).log_prob(x).sum(dim=1)
    assert torch.allclose(likelihood(parameters, x), expected, atol=1e-12)


def test_a_bernoulli_is_torchs_cross_entropy_with_logits():
    likelihood = Bernoulli(spec(2))
    logits, x = torch.randn(5, 2, 3, 1), torch.randint(2, (5, 2, 3, 1)).float()
    expected = -torch.nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none")
    assert torch.allclose(likelihood(logits, 2 * x - 1), expected.sum(dim=(1, 2, 3)))
    assert torch.allclose(likelihood.mean(logits), 2 * logits.sigmoid() - 1)


@pytest.mark.parametrize(
    ("kind", "levels", "message"),
    [(Bernoulli, 256, "Bernoulli needs data of 2 levels"), (DiscretizedLogistic, 0, "is continuous")],
)
def test_data_of_another_kind_are_refused(kind, levels, message):
    with pytest.raises(ValueError, match=message):
        kind(spec(levels))


def test_the_shared_std_of_a_gaussian_is_learned():
    torch.manual_seed(0)
    likelihood, levels = Gaussian(spec(256)), (127.5 + 0.2 * 127.5 * torch.randn(300, 2, 3, 1)).round().byte()
    optimizer = torch.optim.Adam(likelihood.parameters(), 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        x = to_float(levels)
        (-likelihood(torch.zeros_like(x), x).mean()).backward()
        optimizer.step()
    assert likelihood.log_std.exp().item() == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("place", [-19.9, -20.1, -300.0, -1e4, -3e5])
def test_the_log_of_the_normal_tail_has_the_right_value_and_slope(place):
    x = torch.tensor(place, requires_grad=True)
    value = log_ndtr(x)
    value.backward()
    if place > -100:
        assert value.item() == pytest.approx(torch.special.log_ndtr(x.detach().double()).item(), rel=1e-6)
    assert value.item() == pytest.approx(-(place**2) / 2, rel=0.03)
    assert x.grad.item() == pytest.approx(-place - 1 / place, rel=1e-4)


# The KL and the bounds


def random_normal(shape=(6, 4)):
    torch.manual_seed(1)
    return DiagonalNormal(torch.randn(shape, dtype=DOUBLE), torch.randn(shape, dtype=DOUBLE))


def test_the_kl_is_torchs_in_float64_and_the_mean_of_samples():
    q = random_normal()
    reference = kl_divergence(Normal(q.mean, q.log_std.exp()), Normal(0.0, 1.0))
    assert torch.allclose(q.kl(), reference, atol=1e-10)
    many = DiagonalNormal(q.mean[:, None], q.log_std[:, None])
    z = many.at(torch.randn(6, 20_000, 4, dtype=DOUBLE))
    ratios = many.log_prob(z) - standard_normal_log_prob(z)
    error = ratios.std(dim=1) / math.sqrt(20_000)
    assert ((ratios.mean(dim=1) - q.kl().sum(dim=1)).abs() < 4 * error).all()


def test_log_densities_are_torchs_in_float64():
    q, z = random_normal(), torch.randn(6, 4, dtype=DOUBLE)
    expected = Normal(q.mean, q.log_std.exp()).log_prob(z).sum(dim=1)
    assert torch.allclose(q.log_prob(z), expected, atol=1e-10)
    assert torch.allclose(standard_normal_log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(dim=1), atol=1e-10)


def test_free_bits_take_the_gradient_of_quiet_dimensions_alone():
    kl = torch.tensor([[0.1, 2.0, 0.4], [0.7, 4.0, 1.0]], requires_grad=True)  # means 0.4, 3.0, 0.7
    charged = free_bits(kl, 0.5)
    charged.backward()
    assert charged.item() == pytest.approx(0.5 + 3.0 + 0.7)
    assert torch.equal(kl.grad, torch.tensor([[0.0, 0.5, 0.5], [0.0, 0.5, 0.5]]))
    assert free_bits(kl, 0.0).item() == pytest.approx(kl.sum().item() / 2)


def test_the_importance_bounds_gradient_weighs_samples_by_their_share():
    torch.manual_seed(2)
    theta = torch.randn(5, 7, dtype=DOUBLE, requires_grad=True)
    log_weights = theta.sin() + theta.square()
    (automatic,) = torch.autograd.grad(importance_bound(log_weights).sum(), theta, retain_graph=True)
    surrogate = (log_weights.softmax(dim=1).detach() * log_weights).sum()
    (weighted,) = torch.autograd.grad(surrogate, theta)
    assert torch.allclose(automatic, weighted, atol=1e-12)


def test_the_importance_bound_is_the_log_of_the_mean_weight_without_overflow():
    log_weights = torch.tensor([[0.1, -0.3, 0.7]])
    assert importance_bound(log_weights).item() == pytest.approx(log_weights.exp().mean().log().item())
    assert importance_bound(log_weights - 1000.0).item() == pytest.approx(
        importance_bound(log_weights).item() - 1000.0
    )
