"""Invertible layers: the inverse returns, and log_det is that of the Jacobian that autograd finds."""

import math
from functools import partial

import pytest
import torch

from genlab.bijections.base import Bijection, Chain
from genlab.bijections.coupling import CheckerboardCoupling, Coupling, Split
from genlab.bijections.densities import StandardLogistic, StandardNormal, Uniform
from genlab.bijections.dequantisation import UniformDequantisation, VariationalDequantisation
from genlab.bijections.elementwise import Additive, Affine, Spline
from genlab.bijections.flows import CouplingFlow, Glow, RealNVP
from genlab.bijections.layers import (
    ActNorm,
    Centre,
    Flatten,
    InvertibleLinear,
    LearnedPrior,
    Logit,
    Squeeze,
    moments,
)
from genlab.networks.conditioner import (
    ConvConditioner,
    LinearConvConditioner,
    MLPConditioner,
    ResNetConditioner,
)
from genlab.shapes import DataSpec

MLP = partial(MLPConditioner, hidden=[8])
CONV = partial(ConvConditioner, hidden_channels=8)
RESNET = partial(ResNetConditioner, hidden_channels=8, num_blocks=1)
GLOW = partial(Glow, network=CONV, num_steps=2)
MAPS = [Additive(), Affine(), Spline(num_bins=5, width=1.5)]


def name(transform):
    return type(transform).__name__


POINTS = DataSpec("points", (3,), num_classes=4, levels=0)
SIX = DataSpec("six", (6, 2, 2))
IMAGES = DataSpec("images", (2, 4, 6), num_classes=4)  # not square, so that swapped sides are seen
GREY = DataSpec("grey", (1, 4, 6))
CODES = DataSpec("codes", (2, 4, 6), levels=0)  # maps of any numbers

LAYERS = [
    *(pytest.param(POINTS, partial(Coupling, network=MLP, transform=m, swap=s), id=f"vector-{name(m)}-{s}")
      for m in MAPS for s in (False, True)),
    *(pytest.param(IMAGES, partial(Coupling, network=CONV, transform=m), id=f"channel-{name(m)}")
      for m in MAPS),
    *(pytest.param(IMAGES, partial(CheckerboardCoupling, network=RESNET, transform=m, swap=s),
                   id=f"checkerboard-{name(m)}-{s}") for m in MAPS for s in (False, True)),
    pytest.param(GREY, partial(CheckerboardCoupling, network=CONV, transform=Affine()), id="board-grey"),
    pytest.param(IMAGES, lambda spec: ActNorm(spec.shape[0]), id="actnorm-image"),
    pytest.param(POINTS, lambda spec: ActNorm(spec.shape[0]), id="actnorm-vector"),
    pytest.param(IMAGES, lambda spec: InvertibleLinear(spec.shape[0]), id="linear-image"),
    pytest.param(POINTS, lambda spec: InvertibleLinear(spec.shape[0]), id="linear-vector"),
    pytest.param(IMAGES, LearnedPrior, id="prior-image"),
    pytest.param(POINTS, LearnedPrior, id="prior-vector"),
    pytest.param(IMAGES, lambda spec: Squeeze(), id="squeeze"),
    pytest.param(IMAGES, lambda spec: Flatten(spec.shape), id="flatten"),
    pytest.param(IMAGES, lambda spec: Flatten(spec.shape, interleave=True), id="interleave"),
    pytest.param(IMAGES, lambda spec: Logit(0.05), id="logit"),
    pytest.param(IMAGES, lambda spec: Centre(), id="centre"),
    pytest.param(IMAGES, lambda spec: Chain(), id="identity"),
    pytest.param(IMAGES, lambda spec: Split(spec, CONV, Affine(), Flatten((1, 4, 6))), id="split"),
]  # fmt: skip
FLOWS = [
    *(pytest.param(POINTS, partial(CouplingFlow, network=MLP, transform=m, mix=True), id=f"vector-{name(m)}")
      for m in MAPS),
    pytest.param(GREY, partial(CouplingFlow, network=MLP, transform=Additive(), norm=False), id="nice"),
    pytest.param(IMAGES, partial(RealNVP, network=RESNET, num_scales=2, num_couplings=2), id="realnvp"),
    pytest.param(GREY, partial(RealNVP, network=CONV, num_scales=2, num_couplings=2), id="realnvp-grey"),
    pytest.param(DataSpec("odd", (3, 4, 4)), partial(GLOW, num_levels=2), id="glow"),
    pytest.param(IMAGES, partial(GLOW, num_levels=1, alpha=0.05), id="glow-classes"),
    pytest.param(CODES, partial(RealNVP, network=CONV, num_couplings=2), id="realnvp-codes"),
    pytest.param(CODES, partial(GLOW, num_levels=1, alpha=0.05), id="glow-codes"),
]  # fmt: skip


def perturbed(spec, factory, dtype=torch.float64, by=0.2):
    """The layer with random weights everywhere, since one that starts as the identity hides every mistake."""
    torch.manual_seed(0)
    layer = factory(spec).eval()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(by * torch.randn_like(parameter))
    return layer.to(dtype)


def inputs(spec, num=3, dtype=torch.float64):
    torch.manual_seed(1)
    x = (
        torch.rand(num, *spec.shape, dtype=dtype)
        if spec.kind == "image"
        else 2 * torch.randn(num, *spec.shape, dtype=dtype)
    )
    return x, torch.arange(num) % spec.num_classes if spec.num_classes else None


def slogdet(function, x, label):
    """log |det| of the Jacobian of each item, by autograd."""
    found = []
    for number in range(len(x)):
        given = None if label is None else label[number : number + 1]
        jacobian = torch.autograd.functional.jacobian(
            lambda row, given=given: function(row[None], given)[0].flatten(), x[number]
        )
        found.append(torch.linalg.slogdet(jacobian.reshape(x[number].numel(), -1)).logabsdet)
    return torch.stack(found)


@pytest.mark.parametrize(("spec", "factory"), [*LAYERS, *FLOWS])
def test_the_inverse_returns_the_input_and_the_negative_log_det(spec, factory):
    layer = perturbed(spec, factory)
    x, label = inputs(spec)
    with torch.no_grad():
        z, log_det = layer(x, label)
        back, log_det_back = layer.inverse(z, label)
    assert (back - x).abs().max() < 1e-10
    assert (log_det + log_det_back).abs().max() < 1e-10
    assert log_det.shape == (3,) and z.shape[0] == 3


@pytest.mark.parametrize(("spec", "factory"), [*LAYERS, *FLOWS])
def test_log_det_equals_that_of_the_autograd_jacobian_in_both_directions(spec, factory):
    layer = perturbed(spec, factory)
    x, label = inputs(spec, num=2)
    z, log_det = layer(x, label)
    assert torch.allclose(log_det, slogdet(layer, x, label), atol=1e-8)
    assert torch.allclose(
        layer.inverse(z.detach(), label)[1], slogdet(layer.inverse, z.detach(), label), atol=1e-8
    )


@pytest.mark.parametrize(("spec", "factory"), [*LAYERS, *FLOWS])
def test_an_item_does_not_depend_on_the_others_of_its_batch(spec, factory):
    layer = perturbed(spec, factory)
    x, label = inputs(spec)
    with torch.no_grad():
        z, log_det = layer(x, label)
        alone, log_det_alone = layer(x[1:2], None if label is None else label[1:2])
    assert torch.allclose(z[1:2], alone, atol=1e-12) and torch.allclose(
        log_det[1:2], log_det_alone, atol=1e-12
    )


@pytest.mark.parametrize(("spec", "factory"), FLOWS)
def test_whole_flows_compute_in_float32_under_autocast(spec, factory):
    layer = perturbed(spec, factory, torch.float32, by=0.05)
    x, label = inputs(spec, dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        z, log_det = layer(x, label)
        back, _ = layer.inverse(z, label)
    assert z.dtype == log_det.dtype == back.dtype == torch.float32
    # Networks in half precision see inputs that differ in the last digit as equal or as far apart.
    assert (back - x).abs().max() < 0.05
    with torch.no_grad():
        back, _ = layer.inverse(layer(x, label)[0], label)
    assert (back - x).abs().max() < 1e-4


@pytest.mark.parametrize(
    "factory", [partial(ActNorm, 6), partial(InvertibleLinear, 6), partial(LearnedPrior, SIX)]
)
def test_layers_without_networks_are_untouched_by_autocast(factory):
    layer = perturbed(None, lambda _: factory(), torch.float32)
    x = torch.randn(5, 6, 2, 2)
    with torch.no_grad():
        z, log_det = layer(x)
        with torch.autocast("cpu", torch.bfloat16):
            half_z, half_log_det = layer(x)
            back, _ = layer.inverse(half_z)
    assert torch.allclose(z, half_z, atol=1e-6) and torch.allclose(log_det, half_log_det, atol=1e-4)
    assert (back - x).abs().max() < 1e-4


@pytest.mark.parametrize(("spec", "factory"), FLOWS)
def test_every_number_of_the_latent_depends_on_the_data_and_every_parameter_learns(spec, factory):
    layer = perturbed(spec, factory)
    x, label = inputs(spec)
    z, log_det = layer(x.requires_grad_(), label)
    assert z.shape == (3, math.prod(spec.shape))
    (z.square().sum() - log_det.sum()).backward()
    assert (x.grad != 0).all()
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters() if p.numel() > 1)


# Couplings


@pytest.mark.parametrize("swap", [False, True])
def test_a_coupling_changes_one_half_by_the_other_alone(swap):
    coupling = perturbed(DataSpec("v", (5,)), partial(Coupling, network=MLP, transform=Affine(), swap=swap))
    x = torch.randn(1, 5, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda row: coupling(row)[0][0], x)[:, 0]
    given = (
        torch.tensor([False, False, False, True, True]) if swap else torch.tensor([True] * 3 + [False] * 2)
    )
    assert torch.equal(jacobian[given][:, given], torch.eye(int(given.sum()), dtype=torch.float64))
    assert (jacobian[given][:, ~given] == 0).all()
    assert (jacobian[~given][:, given] != 0).all()
    assert torch.equal(jacobian[~given][:, ~given] != 0, torch.eye(int((~given).sum())).bool())


def test_two_checkerboards_change_every_pixel_and_each_reads_only_the_other_fields():
    spec = DataSpec("grey", (1, 4, 4))
    first, second = (
        perturbed(spec, partial(CheckerboardCoupling, network=CONV, transform=Affine(), swap=swap))
        for swap in (False, True)
    )
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    changed = [(layer(x)[0] != x)[0, 0] for layer in (first, second)]
    assert torch.equal(changed[0], ~changed[1])
    assert torch.equal(changed[0], (torch.arange(4)[:, None] + torch.arange(4)) % 2 == 0)
    gradient = torch.autograd.functional.jacobian(lambda row: first(row)[0][0, 0, 0, 0], x)[0, 0]
    assert (gradient[changed[0]] != 0).sum() == 1  # itself


@pytest.mark.parametrize("transform", MAPS, ids=name)
def test_maps_of_zeros_are_the_identity_and_increase_for_any_parameters(transform):
    x = torch.linspace(-3, 3, 500, dtype=torch.float64)[None, :, None]
    z, log_slope = transform.forward(x, torch.zeros(1, transform.num_parameters * 500, 1))
    assert torch.allclose(z, x, atol=1e-6) and log_slope.abs().max() < 1e-6
    parameters = 3 * torch.randn(1, transform.num_parameters, 1, 1, dtype=torch.float64)
    z, log_slope = transform.forward(x, parameters.expand(1, -1, 500, 1).flatten(1, 2))
    assert (z.flatten().diff() > 0).all() and log_slope.isfinite().all()


def test_the_spline_meets_its_knots_and_has_the_derivative_1_at_both_ends():
    spline = Spline(num_bins=4, width=2.0)
    torch.manual_seed(0)
    parameters = torch.randn(1, spline.num_parameters, dtype=torch.float64)
    knots_x, knots_y, derivatives = (
        k.flatten() for k in spline._knots(torch.zeros(1, 1).double(), parameters)
    )
    z, log_slope = spline.forward(knots_x[:, None], parameters.expand(5, -1))
    assert torch.allclose(z.flatten(), knots_y, atol=1e-12)
    assert torch.allclose(log_slope.flatten(), derivatives.log(), atol=1e-12)
    assert derivatives[0] == derivatives[-1] == 1 and knots_x[0] == knots_y[0] == -2 and knots_x[-1] == 2
    assert (knots_x.diff() >= 4 * spline._LEAST).all()
    outside = torch.tensor([[-2.5], [2.5]], dtype=torch.float64)
    assert torch.equal(spline.forward(outside, parameters.expand(2, -1))[0], outside)


def test_the_affine_scale_stays_within_its_bound():
    x = torch.ones(1, 1, dtype=torch.float64)
    for raw in (-1e3, 1e3):
        _, log_slope = Affine(bound=1.5).forward(x, torch.tensor([[raw, 0.0]]))
        assert log_slope.abs().item() == pytest.approx(1.5)


# ActNorm


@pytest.mark.parametrize("shape", [(64, 3), (16, 3, 4, 6)])
def test_actnorm_makes_the_first_training_batch_standard_and_keeps_its_statistics(shape):
    layer, x = ActNorm(3), 5 + 3 * torch.randn(shape)
    z, _ = layer(x)
    mean, deviation = moments(z)
    assert mean.abs().max() < 1e-5 and (deviation - 1).abs().max() < 1e-5
    before = layer.shift.clone()
    layer(x + 1)
    assert torch.equal(layer.shift, before)


def test_actnorm_takes_no_statistics_in_evaluation_or_backwards():
    layer, x = ActNorm(3), 5 + torch.randn(8, 3)
    layer.inverse(x)
    layer.eval()
    assert torch.equal(layer(x)[0], x) and torch.equal(layer.inverse(x)[0], x)
    assert not layer.initialised
    layer.train()(x)
    assert layer.initialised


def test_that_actnorm_is_initialised_survives_a_checkpoint():
    layer = ActNorm(3)
    layer(5 + torch.randn(8, 3))
    restored = ActNorm(3)
    restored.load_state_dict(layer.state_dict())
    restored(torch.randn(8, 3) - 7)
    assert torch.equal(restored.shift, layer.shift)
    fresh = ActNorm(3)
    layer.load_state_dict(fresh.state_dict())
    layer(torch.randn(8, 3) - 7)
    assert layer.shift.mean() > 5


def statistics_of_a_rank(rank, world_size, x, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    layer = ActNorm(3).double()
    layer(x[rank::world_size])
    torch.save(layer.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_actnorm_of_two_processes_has_the_statistics_of_the_joined_batch(tmp_path):
    torch.manual_seed(0)
    x = 5 + 3 * torch.randn(9, 3, 2, 2, dtype=torch.float64)  # 5 items on one rank, 4 on the other
    options = {"nprocs": 2, "start_method": "fork"}  # without a second import
    torch.multiprocessing.start_processes(statistics_of_a_rank, (2, x, str(tmp_path)), **options)
    alone = ActNorm(3).double()
    alone(x)
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt")
        assert torch.allclose(state["shift"], alone.shift, atol=1e-12)
        assert torch.allclose(state["log_scale"], alone.log_scale, atol=1e-12)
        assert state["initialised"]


# Other layers


def test_the_1x1_convolution_starts_as_a_rotation_and_stays_invertible_for_any_weights():
    layer = InvertibleLinear(7)
    assert layer.log_scale.sum().abs() < 1e-5
    matrix = layer(torch.eye(7))[0]
    assert torch.allclose(matrix @ matrix.T, torch.eye(7), atol=1e-5)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    assert torch.linalg.slogdet(layer.double()(torch.eye(7).double())[0]).logabsdet.item() == pytest.approx(
        layer.log_scale.sum().item(), abs=1e-6
    )


def test_squeeze_moves_each_diagonal_of_a_square_into_one_half_of_the_channels():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    z, _ = Squeeze()(x)
    assert z[0, :, 0, 0].tolist() == [0, 5, 1, 4] and z[0, :, 0, 1].tolist() == [2, 7, 3, 6]
    assert sorted(z.flatten().tolist()) == list(range(16))


def test_logit_maps_the_ends_to_the_logits_of_alpha():
    ends, _ = Logit(0.05)(torch.tensor([[0.0, 0.5, 1.0]]))
    assert torch.allclose(
        ends, torch.tensor([[math.log(0.05 / 0.95), 0.0, math.log(0.95 / 0.05)]]), atol=1e-5
    )


def test_a_learned_prior_is_a_normal_density_of_each_class():
    prior = perturbed(POINTS, LearnedPrior)
    x, label = torch.randn(4, 3, dtype=torch.float64), torch.arange(4)
    z, log_det = prior(x, label)
    log_prob = StandardNormal().log_prob(z) + log_det
    raw, shift = prior.table.chunk(2, dim=1)
    scale = (-8 * (raw / 8).tanh()).exp()
    normal = torch.distributions.Normal(-shift * scale, scale)
    assert torch.allclose(log_prob, normal.log_prob(x).sum(1))
    with pytest.raises(ValueError, match="label is missing"):
        prior(x)


@pytest.mark.parametrize(
    "density", [StandardNormal(), StandardLogistic(), Uniform()], ids=lambda d: type(d).__name__
)
def test_densities_integrate_to_one_and_their_draws_have_their_entropy(density):
    places = torch.linspace(-30, 30, 600_001, dtype=torch.float64)[:, None]
    probability = density.log_prob(places).exp()
    assert torch.trapezoid(probability, dx=1e-4).item() == pytest.approx(1, abs=2e-4)
    entropy = -torch.trapezoid(torch.xlogy(probability, probability), dx=1e-4)
    draws = density.draw(3, torch.arange(20_000), 2)
    assert -density.log_prob(draws).mean().item() / 2 == pytest.approx(entropy.item(), abs=0.02)
    assert torch.allclose(density.draw(3, torch.tensor([7]), 2), draws[7:8])


@pytest.mark.parametrize("spec", [GREY, IMAGES], ids=["grey", "classes"])
def test_variational_dequantisation_is_a_density_in_the_bin(spec):
    layer = perturbed(spec, partial(VariationalDequantisation, network=CONV, num_couplings=2))
    k, label = inputs(spec, num=2)
    uniform = torch.rand_like(k)
    u, log_q = layer(uniform, k, label)
    assert ((u > 0) & (u < 1)).all()
    change = [
        slogdet(lambda row, given, k=k, n=n: layer(row, k[n : n + 1], given), uniform[n : n + 1],
                None if label is None else label[n : n + 1]) for n in range(2)
    ]  # fmt: skip
    assert torch.allclose(log_q, -torch.cat(change), atol=1e-8)
    assert not torch.allclose(u, layer(uniform, k.flip(0), label)[0])  # it looks at the image


def test_dequantisation_starts_uniform():
    uniform, k = torch.rand(2, *GREY.shape), torch.rand(2, *GREY.shape)
    for layer in (UniformDequantisation(GREY), VariationalDequantisation(GREY, CONV)):
        u, log_q = layer(uniform, k)
        assert torch.allclose(u, uniform, atol=1e-6) and log_q.abs().max() < 1e-4


@pytest.mark.parametrize(
    "network", [ConvConditioner, LinearConvConditioner, ResNetConditioner, MLPConditioner]
)
def test_networks_start_at_zero_and_look_at_the_label_once_trained(network):
    spec = POINTS if network is MLPConditioner else IMAGES
    x, label = inputs(spec, num=4)
    assert not network(spec, 6)(x.float(), label).any()
    assert MLPConditioner(POINTS, 6, zero_start=False)(*inputs(POINTS, 4, torch.float32)).any()
    trained = perturbed(spec, partial(network, out_channels=6))
    seen, other = trained(x, label), trained(x, label.flip(0))
    assert seen.shape == (4, 6, *spec.shape[1:]) and ((seen - other).flatten(1).abs().amax(1) > 1e-3).all()
    with pytest.raises(ValueError, match="label"):
        trained(x)


# Errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Glow(DataSpec("m", (1, 28, 28)), CONV, num_levels=3), "num_levels 3 .* 28 x 28 .* most 2"),
        (lambda: RealNVP(DataSpec("m", (1, 28, 28)), CONV, num_scales=4), "num_scales 4 .* at most 3"),
        (lambda: Glow(POINTS, CONV), "needs images"),
        (lambda: CouplingFlow(POINTS, MLP, num_couplings=0), "num_couplings must be at least 1, got 0"),
        (lambda: Coupling(DataSpec("one", (1,)), MLP, Affine()), "at least 2 channels"),
        (lambda: Affine(bound=0.0), "bound must be positive, got 0.0"),
        (lambda: Spline(num_bins=1), "num_bins must be from 2"),
        (lambda: Spline(width=-1.0), "width must be positive"),
        (lambda: Logit(0.5), "alpha must be between 0 and 0.5, got 0.5"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_with_their_rule(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_every_layer_is_a_bijection():
    assert all(isinstance(p.values[1](p.values[0]), Bijection) for p in [*LAYERS, *FLOWS])
