import math

import pytest
import torch
from torch import nn

from genlab.losses.adversarial import Hinge, LeastSquares, Minimax, NonSaturating, Wasserstein
from genlab.losses.penalties import R1, GradientPenalty, Penalty

LOSSES = [Minimax(), NonSaturating(), LeastSquares(), LeastSquares(-1, 1, 0), Hinge(), Wasserstein()]
PENALTIES = [GradientPenalty(), R1()]
EXTREMES = [-1e4, -50.0, 0.0, 50.0, 1e4]


def name(item: object) -> str:
    return type(item).__name__


def logits(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def generator_gradient(loss, value: float) -> float:
    x = logits(value)
    loss.generator(x).backward()
    return x.grad.item()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# The expected values are the papers' formulas, written with D = sigmoid(logit) where they use probabilities.
DISCRIMINATOR = [
    (Minimax(), lambda r, f: -math.log(sigmoid(r)) - math.log(1 - sigmoid(f))),
    (NonSaturating(), lambda r, f: -math.log(sigmoid(r)) - math.log(1 - sigmoid(f))),
    (LeastSquares(), lambda r, f: 0.5 * (r - 1) ** 2 + 0.5 * f**2),
    (LeastSquares(-1, 2, 0), lambda r, f: 0.5 * (r - 2) ** 2 + 0.5 * (f + 1) ** 2),
    (Hinge(), lambda r, f: max(0, 1 - r) + max(0, 1 + f)),
    (Wasserstein(), lambda r, f: f - r),
]
GENERATOR = [
    (Minimax(), lambda f: math.log(1 - sigmoid(f))),
    (NonSaturating(), lambda f: -math.log(sigmoid(f))),
    (LeastSquares(), lambda f: 0.5 * (f - 1) ** 2),
    (LeastSquares(-1, 1, 0.25), lambda f: 0.5 * (f - 0.25) ** 2),
    (Hinge(), lambda f: -f),
    (Wasserstein(), lambda f: -f),
]
GENERATOR_GRADIENT = [
    (Minimax(), lambda f: -sigmoid(f)),
    (NonSaturating(), lambda f: -(1 - sigmoid(f))),
    (LeastSquares(), lambda f: f - 1),
    (Hinge(), lambda f: -1.0),
    (Wasserstein(), lambda f: -1.0),
]


@pytest.mark.parametrize("real, fake", [(0.0, 0.0), (1.3, -0.4), (-2.0, 3.0), (0.2, 0.7)])
@pytest.mark.parametrize("loss, formula", DISCRIMINATOR, ids=lambda item: name(item))
def test_discriminator_loss_equals_the_papers_formula(loss, formula, real, fake):
    assert loss.discriminator(logits(real), logits(fake)).item() == pytest.approx(formula(real, fake))


@pytest.mark.parametrize("fake", [-3.0, -0.4, 0.0, 0.7, 3.0])
@pytest.mark.parametrize("loss, formula", GENERATOR, ids=lambda item: name(item))
def test_generator_loss_equals_the_papers_formula(loss, formula, fake):
    assert loss.generator(logits(fake)).item() == pytest.approx(formula(fake))


@pytest.mark.parametrize("fake", [-3.0, -0.4, 0.0, 0.7, 3.0])
@pytest.mark.parametrize("loss, formula", GENERATOR_GRADIENT, ids=lambda item: name(item))
def test_generator_gradient_equals_its_closed_form(loss, formula, fake):
    assert generator_gradient(loss, fake) == pytest.approx(formula(fake))


def test_only_minimax_stops_teaching_the_generator_when_the_discriminator_is_sure():
    assert abs(generator_gradient(Minimax(), -20.0)) < 1e-8
    assert generator_gradient(NonSaturating(), -20.0) == pytest.approx(-1.0)


@pytest.mark.parametrize("loss", LOSSES, ids=name)
def test_losses_average_over_the_batch_of_each_side(loss):
    real, fake = logits(0.3, -1.2, 2.0), logits(1.0, -0.5)
    each = [loss.discriminator(r[None], f[None]) for r in real for f in fake]
    assert torch.allclose(loss.discriminator(real, fake), torch.stack(each).mean())
    assert torch.allclose(loss.generator(fake), torch.stack([loss.generator(f[None]) for f in fake]).mean())


@pytest.mark.parametrize("loss", LOSSES, ids=name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [torch.bfloat16, torch.float16, None])
def test_losses_and_gradients_are_finite_at_extreme_logits_and_at_least_float32(loss, dtype, autocast):
    for value in EXTREMES:
        real = torch.full((4,), value, dtype=dtype, requires_grad=True)
        fake = torch.full((4,), value, dtype=dtype, requires_grad=True)
        with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
            values = [loss.discriminator(real, fake), loss.generator(fake)]
        sum(values).backward()
        assert all(v.dtype == torch.float32 and v.isfinite() for v in values)
        assert real.grad.isfinite().all() and fake.grad.isfinite().all()


def test_tails_are_exact_where_a_sigmoid_would_round():
    assert Minimax().discriminator(logits(-50.0), logits(50.0)).item() == pytest.approx(100.0)
    assert NonSaturating().generator(logits(40.0)).item() == pytest.approx(math.exp(-40.0), rel=1e-9)


@pytest.mark.parametrize(
    "p, q", [((0.5, 0.5), (0.5, 0.5)), ((0.7, 0.3), (0.2, 0.8)), ((1 - 1e-9, 1e-9), (1e-9, 1 - 1e-9))]
)
def test_minimax_at_the_optimal_discriminator_is_the_jensen_shannon_divergence(p, q):
    p, q = torch.tensor([p, q], dtype=torch.float64)
    optimal = (p / q).log()
    value = -sum(p[i] * Minimax().discriminator(optimal[i : i + 1], logits(-1e4)) for i in range(2)) - sum(
        q[i] * Minimax().discriminator(logits(1e4), optimal[i : i + 1]) for i in range(2)
    )
    middle = (p + q) / 2
    divergence = (p * (p / middle).log()).sum() / 2 + (q * (q / middle).log()).sum() / 2
    assert value.item() == pytest.approx(2 * divergence.item() - math.log(4), abs=1e-12)
    assert torch.allclose(Minimax().probability(optimal), p / (p + q))


@pytest.mark.parametrize("loss, optimum", [
    (Minimax(), lambda p, q: math.log(p / q)),
    (LeastSquares(-1, 2, 0), lambda p, q: (2 * p - q) / (p + q)),
], ids=lambda item: name(item))  # fmt: skip
@pytest.mark.parametrize("p, q", [(0.5, 0.5), (0.9, 0.1), (0.3, 0.7)])
def test_the_expected_discriminator_loss_is_stationary_at_the_known_optimum(loss, optimum, p, q):
    x, away = logits(optimum(p, q)), logits(0.0)
    real = loss.discriminator(x, away.detach())
    fake = loss.discriminator(away.detach(), x)
    (p * real + q * fake).backward()
    assert x.grad.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("loss, threshold", [
    (Minimax(), 0.0), (Hinge(), 0.0), (LeastSquares(), 0.5), (LeastSquares(-1, 3, 0), 1.0),
], ids=lambda item: name(item))  # fmt: skip
def test_an_image_counts_as_real_above_the_middle_of_the_scale(loss, threshold):
    assert loss.threshold == threshold
    assert loss.is_real(logits(threshold - 0.1, threshold, threshold + 0.1)).tolist() == [False, False, True]


def test_wasserstein_has_no_threshold_and_only_log_odds_have_probabilities():
    assert Wasserstein().threshold is None and Wasserstein().is_real(logits(1.0)) is None
    assert [loss.probability(logits(0.0)) is None for loss in LOSSES] == [
        False,
        False,
        True,
        True,
        True,
        True,
    ]


def test_least_squares_refuses_targets_in_the_wrong_order():
    with pytest.raises(ValueError, match="a < b"):
        LeastSquares(a=1.0, b=0.0)


def images(num: int = 5, size: int = 3, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(num, 2, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch(num: int = 5, dtype=torch.float64):
    uniform = torch.rand(num, generator=torch.Generator().manual_seed(2), dtype=dtype)
    return images(num, seed=0, dtype=dtype), images(num, seed=1, dtype=dtype), uniform


@pytest.mark.parametrize("slope", [0.0, 0.25, 1.0, 3.0])
def test_penalties_of_a_linear_critic_depend_on_its_slope_alone(slope):
    direction = images(1, seed=3).flatten()
    direction = slope * direction / direction.norm()
    critic = lambda x: x.flatten(1) @ direction + 7.0  # noqa: E731
    assert GradientPenalty(weight=10)(critic, *batch()).item() == pytest.approx(10 * (slope - 1) ** 2)
    assert R1(weight=4)(critic, *batch()).item() == pytest.approx(4 / 2 * slope**2)


def test_penalties_of_a_quadratic_critic_show_where_the_gradient_is_taken():
    real, fake, uniform = batch()
    critic = lambda x: x.flatten(1).square().sum(dim=1) / 2  # its gradient is x itself  # noqa: E731
    between = torch.stack([u * r + (1 - u) * f for r, f, u in zip(real, fake, uniform, strict=True)])
    expected = (between.flatten(1).norm(dim=1) - 1).square().mean() * 3
    assert torch.allclose(GradientPenalty(weight=3)(critic, real, fake, uniform), expected)
    assert torch.allclose(R1(weight=3)(critic, real, fake, uniform), real.square().sum() / len(real) * 3 / 2)


@pytest.mark.parametrize("uniform, end", [(1.0, 0), (0.0, 1)])
def test_the_interpolation_reaches_the_real_image_at_1_and_the_generated_one_at_0(uniform, end):
    pair = batch()[:2]
    points = GradientPenalty().points(*pair, torch.full((5,), uniform, dtype=torch.float64))
    assert torch.equal(points, pair[end])


@pytest.mark.parametrize("penalty", [GradientPenalty, R1])
def test_lazy_penalties_weigh_as_many_times_as_they_wait(penalty):
    critic = lambda x: x.flatten(1).square().sum(dim=1)  # noqa: E731
    assert torch.allclose(penalty(every=4)(critic, *batch()), 4 * penalty()(critic, *batch()))


def small_critic(dtype=torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(18, 6), nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0)).to(dtype)


@pytest.mark.parametrize("penalty", PENALTIES, ids=name)
def test_gradient_of_the_penalty_equals_finite_differences(penalty: Penalty):
    critic, step = small_critic(), 1e-5
    penalty(critic, *batch()).backward()
    for parameter in [critic[1].weight, critic[1].bias, critic[3].weight]:
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                parameter += sign * step * direction
                with torch.enable_grad():
                    values.append(penalty(critic, *batch()).item())
                parameter -= sign * step * direction
        slope = (values[0] - values[1]) / (2 * step)
        assert (parameter.grad * direction).sum().item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("penalty", PENALTIES, ids=name)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_penalties_under_autocast_are_as_exact_as_without(penalty, dtype):
    with torch.autocast("cpu", dtype=dtype):
        value = penalty(small_critic(torch.float32), *(tensor.float() for tensor in batch()))
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(penalty(small_critic(), *batch()).item(), rel=1e-5)


@pytest.mark.parametrize("penalty", PENALTIES, ids=name)
def test_half_precision_images_are_penalised_in_float32(penalty):
    critic = small_critic(torch.float32)
    value = penalty(critic, *(tensor.half() for tensor in batch()))
    assert value.dtype == torch.float32 and value.isfinite()


@pytest.mark.parametrize("penalty", PENALTIES, ids=name)
def test_a_flat_critic_gives_finite_gradients(penalty):
    critic = small_critic()
    nn.init.zeros_(critic[3].weight)
    penalty(critic, *batch()).backward()
    gradients = [p.grad for p in critic.parameters() if p.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("penalty", PENALTIES, ids=name)
def test_penalties_leave_no_gradient_in_the_images(penalty):
    real, fake, uniform = batch()
    fake.requires_grad_()
    penalty(small_critic(), real, fake, uniform).backward()
    assert fake.grad is None and not real.requires_grad


@pytest.mark.parametrize("arguments, rule", [({"weight": -1.0}, "negative"), ({"every": 0}, "at least 1")])
def test_penalties_refuse_impossible_settings(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        R1(**arguments)
