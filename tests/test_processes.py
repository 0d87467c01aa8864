"""Processes, predictions and likelihoods against closed forms on normal data."""

import math

import pytest
import torch
from gaussian_oracle import MEAN, STD, GaussianDenoiser

from genlab.processes.base import CLEAN, Denoiser, Level, noise_of, posterior, score_of, transition_variance
from genlab.processes.chain import DiscreteChain
from genlab.processes.denoiser import CountedPasses, Guide, NetworkDenoiser
from genlab.processes.grids import RatioGrid, UniformGrid
from genlab.processes.likelihood import (
    ProbabilityFlow,
    VariationalBound,
    divergence,
    log_probability_of_level,
    prior_divergence,
)
from genlab.processes.prediction import (
    MinSNR,
    Preconditioned,
    PredictData,
    PredictNoise,
    PredictV,
    PredictVelocity,
)
from genlab.processes.schedules import CosineSchedule, LinearSchedule, SigmoidSchedule
from genlab.processes.sde import EDM, SDE, VESDE, VPSDE, NoiseLadder, RectifiedFlow, SubVPSDE
from genlab.processes.variance import variance_loss

CHAINS = [
    DiscreteChain(num_steps, schedule)
    for schedule in (LinearSchedule(), CosineSchedule(), SigmoidSchedule())
    for num_steps in (50, 1000, 4000)
]
PROCESSES = [*CHAINS, VPSDE(), SubVPSDE(), VESDE(), NoiseLadder(), EDM(), RectifiedFlow()]
PREDICTIONS = [PredictNoise(), PredictData(), PredictV(), PredictVelocity(), Preconditioned(0.7)]


def named(value):
    return type(value).__name__ + (f"-{value.num_steps}" if isinstance(value, DiscreteChain) else "")


def inside(process, num=7):
    """Times of the process at which nothing is at an end."""
    low, high = process.start, process.end
    return process.snapped(torch.linspace(low, low + 0.97 * (high - low), num, dtype=torch.float64))


# Schedules


@pytest.mark.parametrize("process", CHAINS, ids=named)
def test_a_chains_table_is_the_product_of_its_steps_and_holds_noise_from_the_first_on(process):
    product = torch.cumprod(1 - process.betas, 0)
    assert torch.allclose(process.alpha_bar, product, rtol=1e-10, atol=0)
    assert 0.9 < process.alpha_bar[0] < 1 and process.alpha_bar[-1] > 0
    assert (process.alpha_bar.diff() < 0).all()
    t = torch.arange(1, process.num_steps + 1).double()
    assert torch.allclose(process.alpha(t) ** 2, product, rtol=1e-9, atol=0)
    assert torch.allclose(process.sigma(t) ** 2, 1 - product, rtol=1e-9, atol=0)


def test_the_published_schedules_have_their_published_values():
    linear, cosine = DiscreteChain(1000), DiscreteChain(1000, CosineSchedule())
    assert linear.betas[0].item() == pytest.approx(1e-4) and linear.betas[-1].item() == pytest.approx(0.02)
    assert linear.alpha_bar[-1].item() == pytest.approx(4.036e-5, rel=1e-3)

    def f(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    assert cosine.alpha_bar[499].item() == pytest.approx(f(500) / f(0), rel=1e-9)
    assert cosine.betas.max() == 0.999
    assert DiscreteChain(1000, SigmoidSchedule()).alpha_bar[499].item() == pytest.approx(0.5, abs=1e-3)


def test_a_shorter_linear_chain_ends_in_the_same_noise():
    assert DiscreteChain(200).alpha_bar[-1].item() == pytest.approx(3.5e-5, rel=0.2)


@pytest.mark.parametrize("process", PROCESSES, ids=named)
def test_time_is_found_again_from_the_ratio(process):
    t = inside(process)
    assert torch.allclose(process.time_of(process.sigma(t) / process.alpha(t)), t, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=named)
def test_noise_grows_from_the_data_to_the_end(process):
    t = torch.linspace(process.start, process.end, 50, dtype=torch.float64)
    assert (process.sigma(t) / process.alpha(t)).diff().min() > 0
    assert process.level(0.0) == CLEAN
    first, last = process.level(process.start), process.level(process.end)
    assert first.sigma > 0 and first.alpha > 0.9
    assert last.alpha < 0.02 * last.sigma or isinstance(process, NoiseLadder)


@pytest.mark.parametrize("process", PROCESSES, ids=named)
def test_training_draws_times_of_its_range_and_the_network_tells_them_apart(process):
    t = process.training_time(torch.linspace(1e-6, 1 - 1e-6, 999))
    assert t.dtype == torch.float64 and (t.diff() >= 0).all()
    if not isinstance(process, EDM):
        assert t[0] >= process.start and t[-1] <= process.end
        assert t[0] <= process.start * 1.001 + 2e-3 and t[-1] >= process.end * 0.998
    seen = process.network_time(torch.tensor([process.start, process.end], dtype=torch.float64))
    assert seen[1] - seen[0] > 500


def test_a_chain_tells_the_network_the_published_numbers_of_its_steps():
    ends = torch.tensor([1.0, 1000.0]).double()
    assert DiscreteChain().network_time(ends).tolist() == [0.0, 999.0]
    assert DiscreteChain(250).network_time(ends / 4 + 0.75).tolist() == [0.0, 999.0]


def test_the_ladder_trains_its_scales_only_and_they_are_geometric():
    ladder = NoiseLadder(0.02, 2.0, 10)
    scales = ladder.sigma(ladder.training_time(torch.linspace(0.01, 0.99, 500))).unique()
    assert torch.allclose(scales, 0.02 * 100 ** (torch.arange(10).double() / 9))


def test_edm_draws_its_noise_log_normally():
    t = EDM().training_time(torch.arange(1, 10_000) / 10_000).log()
    assert t.mean().item() == pytest.approx(-1.2, abs=1e-3) and t.std().item() == pytest.approx(1.2, abs=0.01)


def test_the_straight_path_trains_as_much_where_the_noise_is_as_its_spread_and_its_shift_say():
    u = torch.arange(1, 10_000) / 10_000
    uniform = RectifiedFlow().training_time(u)
    assert torch.allclose(uniform, 1e-3 + 0.999 * u.double())
    logit = torch.logit(RectifiedFlow(t_spread=0.5).training_time(u))
    assert float(logit.mean()) == pytest.approx(0.0, abs=1e-6) and float(logit.std()) == pytest.approx(
        0.5, rel=2e-3
    )
    for spread in (None, 0.5):
        plain, moved = (RectifiedFlow(spread, shift).training_time(u) for shift in (1.0, 4.0))
        assert torch.allclose(moved / (1 - moved), 4.0 * plain / (1 - plain))
    ends = RectifiedFlow(3.0, 50.0).training_time(torch.tensor([1e-9, 1 - 1e-9]))
    assert ends.min() >= RectifiedFlow().start and ends.max() <= RectifiedFlow().end
    with pytest.raises(ValueError, match=r"shift must be positive, got -1.0"):
        RectifiedFlow(shift=-1.0)


@pytest.mark.parametrize("process", [VPSDE(), SubVPSDE(), VESDE()], ids=named)
def test_drift_and_diffusion_are_the_derivatives_of_alpha_and_sigma(process):
    t = inside(process).requires_grad_()
    alpha, sigma = process.alpha(t), process.sigma(t)
    d_alpha = torch.zeros_like(t)
    if not isinstance(process, VESDE):
        (d_alpha,) = torch.autograd.grad(alpha.sum(), t, retain_graph=True)
    (d_variance,) = torch.autograd.grad((sigma**2).sum(), t)
    assert isinstance(process, SDE)
    drift = process.drift(t)
    assert torch.allclose(drift, d_alpha / alpha)
    assert torch.allclose(process.diffusion_squared(t), d_variance - 2 * drift * sigma**2)


def test_a_long_chain_tends_to_the_variance_preserving_equation():
    t = torch.linspace(0.05, 1.0, 20, dtype=torch.float64)
    gaps = [
        (DiscreteChain(n).alpha(t * n) - VPSDE().alpha(t)).abs().max().item() for n in (1_000, 4_000, 16_000)
    ]
    assert gaps[0] < 2e-3 and gaps[1] < 0.3 * gaps[0] and gaps[2] < 0.3 * gaps[1]


def test_the_smallest_noise_survives_half_precision_around_it():
    x, noise = torch.rand(4, 3, 8, 8) * 2 - 1, torch.randn(4, 3, 8, 8)
    process, t = DiscreteChain(), torch.tensor([1.0, 2.0, 10.0, 1000.0])
    expected = process.diffuse(x, t, noise)
    table = process.alpha_bar.clone()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(process.diffuse(x, t, noise), expected)
    half = process.diffuse(x.bfloat16(), t, noise.bfloat16())
    assert half.dtype == torch.float32 and torch.allclose(half, expected, atol=0.02)
    assert torch.equal(process.alpha_bar, table) and table.dtype == torch.float64


# Predictions


@pytest.mark.parametrize("process", PROCESSES, ids=named)
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=named)
def test_the_target_leads_back_to_the_data(process, prediction):
    t = inside(process)
    x, noise = torch.randn(7, 4).double(), torch.randn(7, 4).double()
    alpha, sigma = process.coefficients(t, x)
    c_skip, c_out = prediction.scales(alpha, sigma)
    x_t = process.diffuse(x, t, noise)
    found = c_skip * x_t + c_out * prediction.target(x, noise, alpha, sigma)
    assert torch.allclose(found, x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction", [PredictNoise(), PredictV(), PredictData()], ids=named)
def test_min_snr_counts_the_error_of_x_alike_for_every_prediction(prediction):
    process = DiscreteChain()
    alpha, sigma = process.coefficients(inside(process), torch.zeros(7, 1).double())
    c_out = prediction.scales(alpha, sigma)[1]
    weight_of_x = MinSNR(5.0)(alpha, sigma, c_out) / c_out**2
    assert torch.allclose(weight_of_x, ((alpha / sigma) ** 2).clamp(max=5.0))


def test_preconditioned_networks_see_and_predict_unit_variance():
    prediction, process = Preconditioned(0.5), EDM()
    for t in (0.002, 0.5, 80.0):
        alpha, sigma = process.coefficients(torch.tensor([t]), torch.zeros(1, 1).double())
        x, noise = 0.5 * torch.randn(200_000, 1).double(), torch.randn(200_000, 1).double()
        seen = prediction.input_scale(alpha, sigma) * (x + sigma * noise)
        assert seen.std().item() == pytest.approx(1.0, rel=0.01)
        assert prediction.target(x, noise, alpha, sigma).std().item() == pytest.approx(1.0, rel=0.01)


def test_chains_need_no_input_scale_and_exploding_noise_is_scaled_away():
    process, prediction = DiscreteChain(), PredictNoise()
    assert torch.allclose(
        prediction.input_scale(process.alpha(inside(process)), process.sigma(inside(process))),
        torch.ones(7).double(),
    )
    assert prediction.input_scale(torch.ones(1), torch.tensor([100.0])).item() == pytest.approx(
        0.01, rel=1e-3
    )


@pytest.mark.parametrize("process", PROCESSES, ids=named)
def test_the_score_is_the_gradient_of_the_marginal_log_density(process):
    oracle = GaussianDenoiser()
    for t in inside(process)[1:].tolist():
        level = process.level(t)
        x_t = torch.randn(3, 4).double().requires_grad_()
        variance = oracle.marginal_variance(level)
        log_density = -0.5 * ((x_t - level.alpha * MEAN) ** 2 / variance).sum()
        (expected,) = torch.autograd.grad(log_density, x_t)
        estimate = oracle(x_t, level)
        assert torch.allclose(score_of(x_t, estimate, level), expected, rtol=1e-6, atol=1e-6)
        assert torch.allclose(-noise_of(x_t, estimate, level) / level.sigma, expected, rtol=1e-6, atol=1e-6)


# Guidance


def network(x, t, label):
    """F depends on the label: unlabelled rows, number 3, give 0."""
    return x * 0.1 + torch.where(label == 3, 0, label + 1)[:, None].to(x)


@pytest.mark.parametrize(("guidance", "like"), [(1.0, [0, 1, 2]), (0.0, [3, 3, 3])])
def test_guidance_of_one_is_conditional_and_of_zero_unconditional(guidance, like):
    process, label = DiscreteChain(), torch.tensor([0, 1, 2])
    x, level = torch.randn(3, 4), process.level(300)

    def denoise(label, **options):
        return NetworkDenoiser(network, process, PredictNoise(), {"label": label}, **options)(x, level)

    found = denoise(label, guide=Guide(guidance, {"label": torch.full((3,), 3)}))
    assert torch.allclose(found, denoise(torch.tensor(like)), atol=1e-5)
    assert label.tolist() == [0, 1, 2]


def test_guidance_goes_beyond_the_conditional_estimate_in_one_pass():
    calls, process, x = [], DiscreteChain(), torch.randn(3, 4)

    def counted(x, t, **told):
        calls.append(len(x))
        return network(x, t, **told)

    level, given, free = (
        process.level(300),
        {"label": torch.tensor([0, 1, 2])},
        {"label": torch.full((3,), 3)},
    )

    def denoise(w):
        return NetworkDenoiser(counted, process, PredictNoise(), given, Guide(w, free))(x, level)

    assert torch.allclose(denoise(3.0) - denoise(0.0), 3 * (denoise(1.0) - denoise(0.0)), atol=1e-4)
    assert calls == [6, 6, 3, 6]


def test_a_clipped_estimate_stays_in_range_and_changes_nothing_that_was():
    process, x = DiscreteChain(), torch.randn(3, 4)
    denoise = [NetworkDenoiser(lambda x, t: 0 * x, process, PredictNoise(), clip=c) for c in (False, True)]
    late, early = process.level(900), process.level(1)
    assert denoise[1](x, late).abs().max() <= 1 < denoise[0](x, late).abs().max()
    assert torch.equal(denoise[1](0.1 * x, early), denoise[0](0.1 * x, early))


@pytest.mark.parametrize("process", [DiscreteChain(), VESDE(), RectifiedFlow()])
def test_another_network_guides_as_far_as_both_differ_in_their_estimates_of_x(process):
    x, level = torch.randn(3, 4), process.level_of(0.8)

    def view(network, guide=None):
        return NetworkDenoiser(network, process, PredictNoise(), guide=guide)(x, level)

    def own(x, t):
        return torch.tanh(x)

    def weaker(x, t):
        return 0.3 * torch.sin(x)

    for scale in (0.0, 0.5, 3.0):
        expected = view(weaker) + scale * (view(own) - view(weaker))
        assert torch.allclose(view(own, Guide(scale, network=weaker)), expected, atol=1e-5)
        assert torch.allclose(view(own, Guide(scale, network=own)), view(own), atol=1e-6)


def test_guidance_acts_above_the_low_end_of_its_interval_and_up_to_the_high_one():
    guide = Guide(2.0, interval=(0.5, 2.0))
    found = [guide.acts_at(Level(1.0, 1.0, ratio)) for ratio in (0.0, 0.5, 0.6, 2.0, 2.1)]
    assert found == [False, False, True, True, False]
    pure_noise = Level(1.0, 0.0, 1.0)
    assert Guide(2.0).acts_at(pure_noise) and not guide.acts_at(pure_noise)
    assert not Guide(1.0).acts_at(Level(1.0, 1.0, 1.0))
    assert not any(Guide(2.0, interval=(r, r)).acts_at(Level(1.0, 1.0, r)) for r in (0.0, 1.0, math.inf))


def test_a_walk_is_counted_twice_where_it_is_guided():
    levels = [Level(1.0, 1.0, ratio) for ratio in (4.0, 2.0, 1.0, 0.5)]
    for guide, expected in ((None, 4), (Guide(2.0), 8), (Guide(2.0, interval=(0.5, 2.0)), 6)):
        counted = CountedPasses(guide)
        assert all(counted(torch.ones(1), level).isfinite() for level in levels)
        assert counted.passes == expected


def test_a_learned_variance_is_the_guided_networks_own():
    process, x = DiscreteChain(), torch.randn(2, 1, 2, 2)

    def network(x, t, label):
        return torch.cat([x, torch.full_like(x, 0.5) * label[:, None, None, None]], dim=1)

    given, free = {"label": torch.ones(2)}, {"label": torch.zeros(2)}
    guided = NetworkDenoiser(network, process, PredictNoise(), given, Guide(3.0, free))
    assert torch.equal(guided.with_variance(x, process.level(300))[1], torch.full_like(x, 0.75))


# Likelihoods


def log_density(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + torch.log(2 * math.pi * variance)).sum(-1)


def no_draw(name):
    raise AssertionError("an exact divergence needs no noise")


class StandardGaussian(GaussianDenoiser):
    """Normal data of any shape, for images."""

    def __init__(self):
        super().__init__(torch.tensor(0.1).double(), torch.tensor(0.4).double())


@pytest.mark.parametrize("process", [DiscreteChain(), VPSDE(), SubVPSDE(), VESDE(), EDM()], ids=named)
def test_the_flows_likelihood_is_the_analytic_one(process):
    oracle, x = GaussianDenoiser(), MEAN + STD * torch.randn(5, 4).double()
    found = ProbabilityFlow(200, num_probes=0).log_prob(x, oracle, process, no_draw)
    first, last = process.level(process.start), process.level(process.end)
    # The flow starts from the prior; carried through it, its width at the data is known too.
    scale = (oracle.marginal_variance(first) / oracle.marginal_variance(last)).sqrt()
    prior = process.prior_std(last)
    mean = first.alpha * MEAN - scale * last.alpha * MEAN
    expected = log_density(x, mean, (scale * prior) ** 2)
    tolerance = 1e-4 if isinstance(process, DiscreteChain) else 1e-5  # a chain's ratio has kinks
    assert ((found - expected).abs() / (4 * math.log(2))).max() < tolerance
    true = log_density(x, first.alpha * MEAN, oracle.marginal_variance(first))
    assert ((found - true).abs() / (4 * math.log(2))).max() < 0.02  # a prior of N(0, I) is not q(x_T)


def test_the_flow_has_order_four():
    x, oracle = MEAN + STD * torch.randn(5, 4).double(), GaussianDenoiser()
    limit, a, b = (
        ProbabilityFlow(n, num_probes=0).log_prob(x, oracle, EDM(), no_draw) for n in (400, 40, 80)
    )
    assert math.log2((a - limit).abs().max() / (b - limit).abs().max()) == pytest.approx(4, abs=0.3)


def test_random_directions_estimate_the_divergence_without_bias():
    x = torch.randn(2, 1, 2, 3).double().requires_grad_()
    weight = torch.randn(6, 6).double()
    y = torch.tanh(x.flatten(1) @ weight).reshape(x.shape)
    exact = divergence(y, x, [])
    expected = [
        torch.autograd.functional.jacobian(lambda r: torch.tanh(r @ weight), row.flatten()).trace()
        for row in x.detach()
    ]
    assert torch.allclose(exact, torch.stack(expected))
    signs = [torch.randn(2, 1, 2, 3).double().sign() for _ in range(3_000)]
    assert torch.allclose(divergence(y, x, signs), exact, atol=0.3)


def test_the_flow_takes_images_and_probes():
    x = 0.1 + 0.4 * torch.randn(3, 1, 4, 4).double()
    arguments = (x, StandardGaussian(), VPSDE())
    exact = ProbabilityFlow(20, num_probes=0).log_prob(*arguments, no_draw)
    # The Jacobian of a diagonal map is seen exactly in any random direction.
    probed = ProbabilityFlow(20, num_probes=1).log_prob(*arguments, lambda name: torch.randn_like(x))
    assert torch.allclose(exact, probed) and exact.shape == (3,)


class UniformDenoiser(Denoiser):
    """E[x | x_t] of data uniform on [-half, half], by quadrature."""

    def __init__(self, half):
        nodes = (torch.arange(4_000).double() + 0.5) / 2_000 - 1
        self.nodes = half * nodes

    def __call__(self, x_t, level):
        weight = torch.softmax(
            -0.5 * ((x_t[..., None] - level.alpha * self.nodes) / level.sigma) ** 2, dim=-1
        )
        return (weight * self.nodes).sum(-1)


def test_uniform_data_have_as_many_bits_as_their_levels():
    levels = torch.tensor([[40.0, 100.0], [200.0, 128.0]]).double()
    x = 2 * levels / 255 - 1
    denoise = UniformDenoiser(1 + 1 / 255)
    log_prob = ProbabilityFlow(150, num_probes=0).log_prob(
        x, denoise, EDM(sigma_min=0.01), lambda name: torch.zeros_like(x), levels=256
    )
    assert torch.allclose(-log_prob / (2 * math.log(2)), torch.full((2,), 8.0).double(), atol=2e-3)


class AnalyticVariance(GaussianDenoiser):
    """Also gives the v that makes each reverse step's variance the true one."""

    def __init__(self, levels):
        super().__init__()
        self.levels = levels

    def with_variance(self, x_t, level):
        number = self.levels.index(level)
        s = self.levels[number + 1]
        to_x, _, small = posterior(level, s)
        true = small + to_x**2 * self.variance_given(level)
        if s.sigma == 0:
            small = posterior(self.levels[number - 1], level).variance
        large = transition_variance(level, s)
        v = (true.log() - math.log(small)) / (math.log(large) - math.log(small))
        return self(x_t, level), v.expand_as(x_t)


def two_point_draws():
    """Data and noise with the exact mean, variance and no covariance: expectations of squares are sums."""
    signs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double()
    x = MEAN + STD * signs[:, :1]
    return x, lambda name: signs[:, 1:].expand(4, 4)


@pytest.mark.parametrize("num_steps", [5, 100, 1000])
@pytest.mark.parametrize("process", [DiscreteChain(), VPSDE(), VESDE()], ids=named)
def test_the_bound_of_the_best_gaussian_chain_is_entropy_plus_the_priors_divergence(process, num_steps):
    grid = UniformGrid(num_steps)
    x, draw = two_point_draws()
    denoise = AnalyticVariance(grid.levels(process))
    nll = -VariationalBound(grid).log_prob(x, denoise, process, draw).mean()
    last = grid.levels(process)[0]
    variance = denoise.marginal_variance(last)
    entropy = (0.5 * torch.log(2 * math.pi * math.e * STD**2)).sum()
    prior = process.prior_std(last)
    mean = last.alpha * MEAN
    divergence = 0.5 * ((variance + mean**2) / prior**2 - 1 - torch.log(variance / prior**2)).sum()
    assert (nll - entropy - divergence).abs() / (4 * math.log(2)) < 1e-9


def test_fixed_variances_cost_bits():
    x, draw = two_point_draws()
    grid = UniformGrid(100)
    best = VariationalBound(grid).log_prob(
        x, AnalyticVariance(grid.levels(DiscreteChain())), DiscreteChain(), draw
    )
    for wide in (False, True):
        bound = VariationalBound(grid, wide=wide)
        assert bound.log_prob(x, GaussianDenoiser(), DiscreteChain(), draw).mean() < best.mean()


def test_the_priors_divergence_is_that_of_two_normal_distributions():
    level = DiscreteChain().level(700)
    x = torch.randn(3, 4).double()
    p = torch.distributions.Normal(level.alpha * x, level.sigma)
    expected = torch.distributions.kl_divergence(p, torch.distributions.Normal(0.0, 1.3)).sum(1)
    assert torch.allclose(prior_divergence(x, level, 1.3), expected)


@pytest.mark.parametrize("std", [1e-3, 0.05, 3.0])
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_decoder_is_a_distribution_over_the_levels_at_any_width(std, levels):
    x = torch.linspace(-1, 1, levels, dtype=torch.float64)
    for mean in (-1.2, 0.013, 0.9):
        log_std = torch.full_like(x, math.log(std))
        log_probability = log_probability_of_level(x, torch.full_like(x, mean), log_std, levels)
        assert log_probability.exp().sum().item() == pytest.approx(1.0, abs=1e-9)
        assert log_probability.isfinite().all()
        single = log_probability_of_level(
            x.float(), torch.full_like(x.float(), mean), log_std.float(), levels
        )
        assert single.isfinite().all()


def test_the_decoder_gives_the_mass_between_two_half_levels():
    normal = torch.distributions.Normal(0.1, 0.2)
    x = torch.tensor([2 * 8 / 16 - 1 + 2 / 16]).double()
    expected = normal.cdf(x + 1 / 16) - normal.cdf(x - 1 / 16)
    found = log_probability_of_level(
        x, torch.tensor([0.1]).double(), torch.tensor([math.log(0.2)]).double(), 17
    )
    assert found.exp().item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("levels", [0, 17])
def test_the_loss_of_the_variance_is_the_bound_term_by_term(levels):
    torch.manual_seed(0)
    process, x = DiscreteChain(8), torch.randint(17, (5, 1, 2, 2)).double() / 8 - 1
    noise, v = torch.randn(8, *x.shape).double(), torch.rand(8, *x.shape).double()

    class Fixed(Denoiser):
        def __call__(self, x_t, level):
            return 0.9 * x_t

        def with_variance(self, x_t, level):
            return self(x_t, level), v[int(level.t) - 1]

    grid = UniformGrid(8)
    bound = VariationalBound(grid).log_prob(
        x, Fixed(), process, lambda name: noise[7 - int(name.split()[1])], levels
    )
    total = prior_divergence(x, process.level(8), 1.0) / (4 * math.log(2))
    for t in range(1, 9):
        times = torch.full((5,), float(t)).double()
        x_t = process.diffuse(x, times, noise[t - 1])
        total = total + variance_loss(process, x, x_t, times, 0.9 * x_t, v[t - 1], levels)
    assert torch.allclose(total, -bound / (4 * math.log(2)))


@pytest.mark.parametrize("v", [-1.0, 0.0, 1.0])
def test_the_loss_of_a_variance_and_its_gradient_are_finite_at_every_step(v):
    x = torch.rand(5, 1, 4, 4) * 2 - 1
    t = torch.tensor([1, 2, 500, 999, 1000]).double()
    v = torch.full_like(x, v).requires_grad_()
    far = x / DiscreteChain().alpha(t).float()[:, None, None, None] * 1e3
    for estimate in (x, torch.where(t[:, None, None, None] > 1, far, x)):
        loss = variance_loss(DiscreteChain(), x, x, t, estimate, v, 256)
        loss.sum().backward()
        assert loss.isfinite().all() and v.grad.isfinite().all()


@pytest.mark.parametrize("far", [5.0, 12.0, 30.0, 200.0])
def test_the_gradient_of_the_variances_loss_in_the_far_tail_is_that_of_a_square(far):
    chain, x = DiscreteChain(), torch.zeros(1, 1, 1, 1)
    v = torch.full_like(x, 0.5).requires_grad_()
    loss = variance_loss(chain, x, x, torch.ones(1).double(), x + far, v, 256)
    (gradient,) = torch.autograd.grad(loss.sum(), v)
    # -log p = z^2 / 2 + ..., with z the nearer edge in standard deviations; v interpolates log variances.
    next_step = posterior(chain.level(2), chain.level(1)).variance
    small, large = math.log(next_step), 2 * math.log(chain.level(1).sigma)
    z = (far - 1 / 255) * math.exp(-0.25 * (small + large))
    assert gradient.item() == pytest.approx(-0.5 * z**2 * (large - small) / math.log(2), rel=1e-3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiscreteChain(1), "num_steps must be at least 2, got 1"),
        (lambda: LinearSchedule(0.1, 0.01), "0 < first <= last"),
        (lambda: VESDE(1.0, 0.1), "0 < sigma_min < sigma_max"),
        (lambda: VPSDE(start=0.0), "start must be in"),
        (lambda: RatioGrid(0), "num_steps must be at least 1"),
        (lambda: MinSNR(0.0), "gamma must be positive"),
        (lambda: ProbabilityFlow(0), "num_steps must be at least 1"),
    ],
)
def test_impossible_settings_are_refused_with_their_rule(make, message):
    with pytest.raises(ValueError, match=message):
        make()
