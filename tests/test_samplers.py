"""Samplers on normal data, where the mean and the width of what comes out are computed, not estimated."""

import functools
import math
from itertools import pairwise

import pytest
import torch
from gaussian_oracle import MEAN, STD, GaussianDenoiser, UnitNoise, moments, relative_error

from genlab.processes.base import CLEAN, Denoiser, posterior, score_of, transition_variance
from genlab.processes.chain import DiscreteChain
from genlab.processes.grids import GivenGrid, QuadraticGrid, RatioGrid, ShiftedGrid, UniformGrid
from genlab.processes.schedules import CosineSchedule, SigmoidSchedule
from genlab.processes.sde import EDM, VESDE, VPSDE, NoiseLadder, RectifiedFlow, SubVPSDE
from genlab.samplers.ancestral import DDIM, Ancestral
from genlab.samplers.base import Noise
from genlab.samplers.choices import fitting_samplers
from genlab.samplers.conditioning import (
    Blur,
    FromImage,
    Guided,
    Masking,
    RePaint,
    Restoration,
    Shrink,
    conjugate_gradients,
)
from genlab.samplers.ode import DPMSolver, Euler, Heun, RungeKutta, encode
from genlab.samplers.sde import AnnealedLangevin, EulerMaruyama, PredictorCorrector

PROCESSES = [
    DiscreteChain(), DiscreteChain(200, CosineSchedule()), DiscreteChain(1000, SigmoidSchedule()),
    VPSDE(), SubVPSDE(), VESDE(), NoiseLadder(), EDM(), RectifiedFlow(),
]  # fmt: skip
SAMPLERS = [
    Ancestral(UniformGrid(20)), Ancestral(UniformGrid(20), wide=True), DDIM(UniformGrid(20)),
    DDIM(QuadraticGrid(20), eta=0.5), DDIM(UniformGrid(20, leading=True), eta=1.0),
    Euler(RatioGrid(20)), Heun(RatioGrid(20)), DPMSolver(RatioGrid(20)), RungeKutta(20),
    PredictorCorrector(UniformGrid(20)), AnnealedLangevin(UniformGrid(10), num_steps=2),
]  # fmt: skip


def named(value):
    grid = getattr(value, "grid", None)
    schedule = f"-{value.num_steps}" if isinstance(value, DiscreteChain) else ""
    return type(value).__name__ + schedule + (f"-{type(grid).__name__}" if grid else "")


# Exactness and order


@pytest.mark.parametrize("process", PROCESSES, ids=named)
@pytest.mark.parametrize("num_steps", [10, 50])
@pytest.mark.parametrize("make", [Ancestral, DDIM, Euler, Heun, DPMSolver], ids=lambda make: make.__name__)
def test_every_sampler_keeps_the_mean_exactly(process, num_steps, make):
    mean, _ = moments(make(UniformGrid(num_steps)), process)
    assert torch.allclose(mean, MEAN, rtol=0, atol=1e-12)


@functools.cache
def limit_of_many_steps(process, grid):
    return moments(Heun(grid(3_000)), process)[1]


def errors(make, process, numbers, grid=RatioGrid):
    """Largest relative distance of the width from its limit for many steps, and of it from the data's.

    The last step, from the smallest noise to the data, errs by the same whatever the number of the others.
    """
    limit = limit_of_many_steps(process, grid)
    found = [((moments(make(grid(n)), process)[1] - limit).abs() / STD).max().item() for n in numbers]
    return found, relative_error(limit)


ORDERS = [(Euler, 1, 0.051), (DDIM, 1, 0.051), (Heun, 2, 0.005), (DPMSolver, 2, 0.005)]


@pytest.mark.parametrize(("make", "order", "bound"), ORDERS, ids=[make.__name__ for make, *_ in ORDERS])
def test_the_error_on_the_edm_grid_has_the_methods_order_and_bound(make, order, bound):
    (at_128, at_256), rest = errors(make, EDM(), [128, 256])
    assert relative_error(moments(make(RatioGrid(64)), EDM())[1]) <= bound
    assert math.log2(at_128 / at_256) == pytest.approx(order, abs=0.05)
    assert rest < 1e-4


@pytest.mark.parametrize("process", [VPSDE(), SubVPSDE(), VESDE(), DiscreteChain()], ids=named)
@pytest.mark.parametrize(("make", "order", "bound"), ORDERS, ids=[make.__name__ for make, *_ in ORDERS])
def test_the_order_holds_for_every_process(process, make, order, bound):
    (at_128, at_256), _ = errors(make, process, [128, 256])
    assert math.log2(at_128 / at_256) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("make, order", [(Euler, 1), (Heun, 2)])
def test_solvers_keep_their_order_along_a_straight_path(make, order):
    (at_128, at_256), _ = errors(make, RectifiedFlow(), [128, 256], UniformGrid)
    assert math.log2(at_128 / at_256) == pytest.approx(order, abs=0.1)


def test_runge_kutta_follows_the_flow_nearly_exactly():
    _, std = moments(RungeKutta(100), EDM())
    assert relative_error(std) < 1e-4  # what is left is the last step, from sigma 0.002 to the data


@pytest.mark.parametrize(
    "process", [DiscreteChain(), VPSDE(start=1e-4), VESDE(sigma_max=20.0), RectifiedFlow()], ids=named
)
def test_stochastic_samplers_converge_to_the_data_with_order_one(process):
    for make in (lambda n: Ancestral(UniformGrid(n)), lambda n: DDIM(UniformGrid(n), eta=1.0)):
        coarse, fine = (relative_error(moments(make(n), process)[1]) for n in (250, 1000))
        assert fine < 0.02 and fine < 0.45 * coarse


@pytest.mark.parametrize("process", [VPSDE(), SubVPSDE()], ids=named)
def test_euler_maruyama_converges_to_the_data(process):
    coarse, fine = (relative_error(moments(EulerMaruyama(UniformGrid(n)), process)[1]) for n in (500, 2000))
    assert fine < 0.005 and fine < coarse


def test_wide_variances_are_too_wide_on_few_steps():
    narrow, wide = (moments(Ancestral(UniformGrid(50), wide=w), DiscreteChain())[1] for w in (False, True))
    assert (wide > narrow).all()


# Relations between samplers


@pytest.mark.parametrize("process", PROCESSES, ids=named)
def test_euler_is_ddim_without_fresh_noise(process):
    x = torch.randn(5, 4, dtype=torch.float64)
    grid = UniformGrid(12)
    levels = grid.levels(process)
    results = [s.walk(process, GaussianDenoiser(), x, levels, None) for s in (Euler(grid), DDIM(grid))]
    assert torch.allclose(*results, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("process", PROCESSES, ids=named)
@pytest.mark.parametrize("num_steps", [7, 50])
def test_ddim_with_eta_one_is_the_chains_posterior_at_any_stride(process, num_steps):
    grid = UniformGrid(num_steps)
    levels = grid.levels(process)
    x = torch.zeros(len(levels) + 2, 4, dtype=torch.float64)
    ddim, ddpm = (
        s.walk(process, GaussianDenoiser(), x, levels, UnitNoise(x))
        for s in (DDIM(grid, eta=1.0), Ancestral(grid))
    )
    assert torch.allclose(ddim, ddpm, rtol=1e-9, atol=1e-12)


def test_a_single_step_of_the_posterior_has_ddpms_coefficients():
    process = DiscreteChain()
    beta, bar = process.betas, process.alpha_bar
    for t in (2, 10, 999, 1000):
        a, b, variance = posterior(process.level(t), process.level(t - 1))
        now, before = bar[t - 1].item(), bar[t - 2].item()
        assert a == pytest.approx(math.sqrt(before) * beta[t - 1].item() / (1 - now), rel=1e-9)
        assert b == pytest.approx(math.sqrt(1 - beta[t - 1].item()) * (1 - before) / (1 - now), rel=1e-9)
        assert variance == pytest.approx((1 - before) / (1 - now) * beta[t - 1].item(), rel=1e-9)
        variance = transition_variance(process.level(t), process.level(t - 1))
        assert variance == pytest.approx(beta[t - 1].item(), rel=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=named)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=named)
def test_everything_is_finite_for_every_process_and_sampler(process, sampler):
    noise = Noise(0, torch.arange(3), (4,), torch.float64)
    assert sampler(process, GaussianDenoiser(), noise).isfinite().all()


@pytest.mark.parametrize("sampler", SAMPLERS, ids=named)
def test_a_sample_is_the_same_in_any_batch(sampler):
    process = VESDE() if isinstance(sampler, AnnealedLangevin) else VPSDE()

    def draw(index):
        return sampler(process, GaussianDenoiser(), Noise(7, index, (4,), torch.float64))

    whole = draw(torch.arange(6))
    assert torch.allclose(whole, torch.cat([draw(torch.tensor([0])), draw(torch.arange(1, 6))]))
    assert not torch.allclose(whole[0], whole[1])


def test_predictor_corrector_without_corrections_is_ancestral():
    noise = Noise(0, torch.arange(3), (4,), torch.float64)
    samplers = (PredictorCorrector(UniformGrid(9), num_corrections=0), Ancestral(UniformGrid(9)))
    assert torch.allclose(*(s(VPSDE(), GaussianDenoiser(), noise) for s in samplers))


def test_corrections_bring_the_width_nearer_to_the_datas():
    grid = UniformGrid(30)
    spread = [moments(PredictorCorrector(grid, num_corrections=n), VESDE())[1] for n in (0, 5)]
    assert relative_error(spread[1]) < 0.7 * relative_error(spread[0])


def test_annealed_langevin_reaches_the_data_from_the_ladder():
    process = NoiseLadder(0.05, 3.0, 10)
    sampler = AnnealedLangevin(UniformGrid(10), num_steps=60, step=2e-3)
    noise = Noise(2, torch.arange(4_000), (4,), torch.float64)
    x = sampler(process, GaussianDenoiser(), noise)
    assert torch.allclose(x.mean(0), MEAN, atol=0.1)
    assert relative_error(x.std(0)) < 0.06


def test_one_langevin_step_adds_half_the_step_times_the_score():
    process, sampler = NoiseLadder(), AnnealedLangevin(GivenGrid([1.0]), num_steps=1, step=0.3)
    levels = sampler.grid.levels(process)
    x = torch.zeros(3, 4, dtype=torch.float64)
    out = sampler.walk(process, GaussianDenoiser(), x, levels, UnitNoise(x))
    oracle = GaussianDenoiser()
    moved = x[0] + 0.15 * score_of(x[0], oracle(x[0], levels[0]), levels[0])
    assert torch.allclose(out[0], oracle(moved, levels[0]))
    assert torch.allclose(out[2], oracle(moved + math.sqrt(0.3), levels[0]))


# Grids


@pytest.mark.parametrize("process", PROCESSES, ids=named)
@pytest.mark.parametrize(
    "grid", [UniformGrid(9), UniformGrid(9, leading=True), QuadraticGrid(9), RatioGrid(9), ShiftedGrid(9)]
)
def test_grids_fall_from_noise_to_data_without_repeating_a_level(process, grid):
    levels = grid.levels(process)
    assert levels[-1] == CLEAN
    ratios = [math.inf if level.alpha == 0 else level.sigma / level.alpha for level in levels]
    assert all(a > b for a, b in pairwise(ratios))
    assert all(process.start * (1 - 1e-9) <= level.t <= process.end for level in levels[:-1])


def test_the_uniform_grids_of_a_chain_are_the_published_ones():
    def times(grid):
        return [level.t for level in grid.levels(DiscreteChain())]

    assert times(UniformGrid(10, leading=True)) == [901, 801, 701, 601, 501, 401, 301, 201, 101, 1, 0]
    assert times(UniformGrid(1000)) == [*range(1000, 0, -1), 0]
    assert times(UniformGrid(4)) == [1000, 667, 334, 1, 0]
    assert times(QuadraticGrid(3))[0] == 800


def test_a_shifted_grid_has_so_many_times_the_noise_at_each_step_and_both_ends_of_the_uniform_one():
    process = RectifiedFlow()
    process.start = 0.0
    uniform, moved = (grid.times(process) for grid in (UniformGrid(21), ShiftedGrid(21, shift=3.0)))
    assert torch.equal(moved[[0, -1]], uniform[[0, -1]])
    ratio = [t[1:-1] / (1.0 - t[1:-1]) for t in (moved, uniform)]
    assert torch.allclose(ratio[0] / ratio[1], torch.tensor(3.0).double())
    for process in (RectifiedFlow(), VPSDE(), EDM()):
        same = ShiftedGrid(9, shift=1.0).times(process)
        assert torch.allclose(same, UniformGrid(9).times(process), rtol=1e-12)
    with pytest.raises(ValueError, match=r"shift must be positive, got 0.0"):
        ShiftedGrid(9, shift=0.0)


@pytest.mark.parametrize("process", PROCESSES, ids=named)
def test_an_image_to_image_walk_takes_the_asked_share_of_the_steps(process):
    sampler = DDIM(UniformGrid(10))
    whole = sampler.grid.levels(process)
    assert sampler.levels_from(process, 1.0) == whole
    assert sampler.levels_from(process, 0.3) == whole[-4:]
    assert sampler.levels_from(process, 1e-6) == whole[-2:]
    for strength in (0.0, 1.1):
        with pytest.raises(ValueError, match=r"strength must be in \(0, 1\]"):
            sampler.levels_from(process, strength)


def test_a_walk_from_an_image_keeps_what_its_noise_left_of_it():
    image, process = torch.full((1, 4), 1.5, dtype=torch.float64), EDM()
    noise = Noise(0, torch.arange(4_000), (4,), torch.float64)
    sampler = FromImage(image, Heun(RatioGrid(60)), 0.5)
    start = sampler.sampler.levels_from(process, 0.5)[0].sigma
    x = sampler(process, GaussianDenoiser(), noise)
    # The flow carries the mean of x_t, and its width, in proportion to the marginal's.
    scale = STD / (STD**2 + start**2).sqrt()
    assert torch.allclose(x.mean(0), MEAN + scale * (1.5 - MEAN), atol=0.06)
    assert torch.allclose(x.std(0), scale * start, rtol=0.06)


def test_karras_grid_begins_at_the_largest_ratio_asked_for_and_not_beyond_the_process():
    def first(process, **ends):
        level = RatioGrid(9, **ends).levels(process)[0]
        return level.sigma / level.alpha

    assert first(DiscreteChain(1000, CosineSchedule()), largest=80.0) == pytest.approx(80.0, rel=1e-3)
    assert first(EDM(sigma_max=50.0), largest=80.0) == pytest.approx(50.0)
    assert RatioGrid(9, largest=1e9).levels(RectifiedFlow())[0].t == 1.0


@pytest.mark.parametrize("process", PROCESSES, ids=named)
@pytest.mark.parametrize("num_passes", [5, 10, 20])
def test_every_fitting_sampler_takes_about_the_asked_passes_and_gives_finite_samples(process, num_passes):
    choices = fitting_samplers(process)
    assert {"DDIM, Karras grid", "Heun, Karras grid", "DPM++2M, Karras grid"} <= choices.keys()
    assert ("Euler-Maruyama" in choices) == isinstance(process, VPSDE | VESDE)
    assert ("annealed Langevin" in choices) == isinstance(process, NoiseLadder)
    for name, choice in choices.items():
        counted = Counted()
        x = choice(num_passes)(process, counted, Noise(0, torch.arange(2), (4,), torch.float64))
        fewer = num_passes - 1 if num_passes % 2 == 0 else num_passes
        if not isinstance(process, NoiseLadder):  # whose ten scales are all the levels there are
            assert counted.passes in (num_passes, fewer), name
        assert x.isfinite().all(), name


class Counted(GaussianDenoiser):
    """Counts how often it is asked."""

    passes = 0

    def __call__(self, x_t, level):
        self.passes += 1
        return super().__call__(x_t, level)


@pytest.mark.parametrize("process", [EDM(), VPSDE(), DiscreteChain(), RectifiedFlow()], ids=named)
def test_encoding_is_the_way_back_of_the_flow(process):
    z = torch.randn(6, 4, dtype=torch.float64)
    oracle, sampler = GaussianDenoiser(), RungeKutta(300)
    levels = sampler.grid.levels(process)
    x = sampler.walk(process, oracle, process.prior_std(levels[0]) * z, levels, None)
    assert torch.allclose(encode(process, oracle, x, 300), z, atol=0.02)


# Conditioning


class CorrelatedDenoiser(Denoiser):
    """E[x | x_t] of a normal distribution with any covariance."""

    def __init__(self, covariance):
        self.covariance = covariance

    def __call__(self, x_t, level):
        flat = x_t.flatten(1)
        marginal = (
            level.alpha**2 * self.covariance + level.sigma**2 * torch.eye(len(self.covariance)).double()
        )
        gain = level.alpha * self.covariance @ torch.linalg.inv(marginal)
        return (flat @ gain.T).reshape(x_t.shape)


PAIR = CorrelatedDenoiser(torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize(("num_resamplings", "slope"), [(1, 0.63), (5, 0.85), (10, 0.87)])
def test_the_bias_of_repaint_falls_with_the_resamplings(num_resamplings, slope):
    known = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    sampler = RePaint(known, mask, UniformGrid(100), num_resamplings)
    x = sampler(DiscreteChain(), PAIR, Noise(0, torch.arange(2_000), (2,), torch.float64))
    assert (x[:, 0] == 2.0).all()
    assert x[:, 1].mean().item() / 2.0 == pytest.approx(slope, abs=0.04)


@pytest.mark.parametrize("num_resamplings", [1, 3])
def test_repaint_shows_the_known_part_with_the_noise_of_its_level(num_resamplings):
    seen = []

    class Watched(CorrelatedDenoiser):
        def __call__(self, x_t, level):
            seen.append((x_t[:, 0], level))
            return super().__call__(x_t, level)

    known, mask = torch.tensor([[2.0, 0.0]]).double(), torch.tensor([[1.0, 0.0]]).double()
    sampler = RePaint(known, mask, UniformGrid(5), num_resamplings)
    sampler(DiscreteChain(), Watched(PAIR.covariance), Noise(0, torch.arange(4_000), (2,), torch.float64))
    assert len(seen) == 4 * num_resamplings + 1
    for x, level in seen[num_resamplings:]:
        assert x.mean().item() == pytest.approx(2.0 * level.alpha, abs=0.06)
        assert x.std().item() == pytest.approx(level.sigma, rel=0.05)


def test_guidance_by_a_measurement_is_exact_for_normal_data():
    known = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    mask = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    std = 0.3
    guided = Guided(PAIR, Masking(mask), known, std, num_solves=2)
    x = RungeKutta(60)(EDM(), guided, Noise(0, torch.arange(4_000), (2,), torch.float64))
    gain = PAIR.covariance[:, 0] / (1.0 + std**2)
    assert torch.allclose(x.mean(0), 2.0 * gain, atol=0.03)
    posterior_covariance = PAIR.covariance - torch.outer(gain, PAIR.covariance[0])
    assert torch.allclose(x.T.cov(), posterior_covariance, atol=0.03)


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_the_guided_mean_is_that_of_the_joint_normal_distribution(sigma):
    torch.manual_seed(0)
    root = torch.randn(16, 16, dtype=torch.float64) / 4
    covariance = root @ root.T + 0.1 * torch.eye(16)
    oracle, operator, std = CorrelatedDenoiser(covariance), Blur(0.8), 0.2
    level = EDM().level(sigma)
    y, x_t = torch.randn(3, 1, 4, 4).double(), torch.randn(3, 1, 4, 4).double()
    a = torch.stack([operator(e.reshape(1, 1, 4, 4)).flatten() for e in torch.eye(16).double()], dim=1)
    both = torch.cat([torch.eye(16).double(), a])  # x_t and y as one measurement of x
    noise = torch.diag(torch.cat([torch.full((16,), sigma**2), torch.full((16,), std**2)]).double())
    gain = covariance @ both.T @ torch.linalg.inv(both @ covariance @ both.T + noise)
    expected = torch.cat([x_t.flatten(1), y.flatten(1)], dim=1) @ gain.T
    found = Guided(oracle, operator, y, std, num_solves=40)(x_t, level)
    assert torch.allclose(found.flatten(1), expected, atol=1e-8)


def test_a_restored_sample_has_the_posteriors_mean_and_width():
    covariance = torch.tensor([[1.0, 0.6, 0.3], [0.6, 0.8, 0.2], [0.3, 0.2, 0.5]], dtype=torch.float64)
    oracle, std = CorrelatedDenoiser(covariance), 0.4
    mask = torch.tensor([[1.0, 0.0, 1.0]], dtype=torch.float64)
    y = torch.tensor([[1.2, 0.0, -0.5]], dtype=torch.float64)
    index = torch.arange(4_000)
    for process in (EDM(), DiscreteChain(), RectifiedFlow()):
        sampler = Restoration(Masking(mask), y, std, RatioGrid(200, largest=80.0), num_solves=3, clip=False)
        x = sampler(process, oracle, Noise(0, index, (3,), torch.float64))
        a = mask[0].bool()
        inverse = torch.linalg.inv(covariance[a][:, a] + std**2 * torch.eye(2))
        gain = covariance[:, a] @ inverse
        assert torch.allclose(x.mean(0), gain @ y[0, a], atol=0.03)
        assert torch.allclose(x.T.cov(), covariance - gain @ covariance[a], atol=0.03)


def test_a_guided_mean_is_clipped_and_pure_noise_is_not_guided():
    operator, y = Masking(torch.ones(1, 2).double()), torch.full((1, 2), 3.0).double()
    x_t, level = torch.zeros(1, 2).double(), EDM().level(1.0)
    assert Guided(PAIR, operator, y, 0.1)(x_t, level).max() > 1.5
    assert Guided(PAIR, operator, y, 0.1, clip=True)(x_t, level).max() == 1.0
    noise = RectifiedFlow().level(1.0)
    assert noise.alpha == 0.0
    assert torch.equal(Guided(PAIR, operator, y, 0.1)(x_t, noise), PAIR(x_t, noise))


def test_a_row_whose_matrix_is_no_covariance_stays_and_its_neighbours_are_solved():
    def system(u):
        return u * torch.tensor([[2.0], [-1.0]]).double()

    solution = conjugate_gradients(system, torch.ones(2, 3).double(), 3, smallest=0.1)
    assert torch.allclose(solution, torch.tensor([[0.5], [0.0]]).double().expand(2, 3))


def test_shrinking_takes_the_mean_of_squares_and_names_sides_that_it_cannot_divide():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert torch.equal(Shrink(2)(x), torch.tensor([[[[2.5, 4.5], [10.5, 12.5]]]]))
    with pytest.raises(ValueError, match="no multiples of the factor 3"):
        Shrink(3)(x)
    with pytest.raises(ValueError, match="must be at least 2, got 1"):
        Shrink(1)


OPERATORS = [Blur(0.7), Blur(2.0), Masking((torch.rand(6, 8) > 0.5).double()), Shrink(2)]


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_adjoint_of_an_operator_moves_it_to_the_other_side(operator):
    x = torch.randn(2, 3, 6, 8).double()
    y = torch.randn_like(operator(x))
    assert (operator(x) * y).sum().item() == pytest.approx((x * operator.adjoint(y)).sum().item())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UniformGrid(0), "num_steps must be at least 1, got 0"),
        (lambda: DDIM(eta=1.5), "eta must be in"),
        (
            lambda: EulerMaruyama()(DiscreteChain(), GaussianDenoiser(), Noise(0, torch.arange(1), (4,))),
            "drift and diffusion",
        ),
        (lambda: GivenGrid([0.0]), "positive times"),
        (lambda: Guided(PAIR, Blur(1.0), MEAN, 0.0), "std must be positive"),
    ],
)
def test_samplers_refuse_what_they_cannot_do(make, message):
    with pytest.raises(ValueError, match=message):
        sampler = make()
        sampler(VPSDE(), GaussianDenoiser(), Noise(0, torch.arange(1), (4,)))
