"""Autoregressive images: no pixel sees itself or a later one, probabilities sum to 1, samples follow them."""

import io
import itertools
import math
import sys
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare
from torch import nn
from torch.nn.functional import conv2d, pad

from genlab import randomness
from genlab.families.autoregressive import AutoregressiveImages, AutoregressiveMaps
from genlab.families.vae import VAE
from genlab.losses.likelihoods import CoupledLogistics, DiscretizedLogistic, Softmax
from genlab.networks.autoencoder import MLPDecoder, MLPEncoder
from genlab.networks.masked import CausalConv2d
from genlab.networks.pixelcnn import GatedPixelCNN, PixelCNN
from genlab.networks.pixelcnnpp import PixelCNNpp
from genlab.networks.pixelrnn import DiagonalBiLSTM, RowLSTM
from genlab.shapes import DataSpec, to_float, to_levels

DROPOUT = {"dropout": 0.1}
SMALL_RNN = {"features": 12, "num_layers": 2, "first_size": 3, **DROPOUT}
NETWORKS = {
    "PixelCNN": lambda spec, num: PixelCNN(spec, num, 9, num_blocks=2, first_size=5, **DROPOUT),
    "GatedPixelCNN": lambda spec, num: GatedPixelCNN(spec, num, 9, num_layers=3, first_size=5, **DROPOUT),
    "RowLSTM": lambda spec, num: RowLSTM(spec, num, **SMALL_RNN),
    "DiagonalBiLSTM": lambda spec, num: DiagonalBiLSTM(spec, num, **SMALL_RNN),
    "PixelCNNpp": lambda spec, num: PixelCNNpp(spec, num, features=6, num_blocks=1, num_scales=2),
}
WHOLE = ("GatedPixelCNN", "DiagonalBiLSTM")
"""Networks that miss no earlier pixel."""


def spec_of(size=(6, 5), channels=1, levels=4, num_classes=0):
    return DataSpec("toy", (channels, *size), num_classes=num_classes, levels=levels)


def built(name, spec, num_outputs, seed=0):
    """A network with random weights everywhere, also where it begins at 0; in float64."""
    torch.manual_seed(seed)
    network = NETWORKS[name](spec, num_outputs).double().eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network


def jacobian(network, spec):
    """|d output / d input|, the sum over five images: (outputs, H, W, channels, H, W)."""
    total = 0.0
    for _ in range(3):  # a ReLU that is shut for one image is open for another
        x = torch.randn(1, *spec.shape, dtype=torch.float64)
        total = total + torch.autograd.functional.jacobian(network, x, vectorize=True)[0, :, :, :, 0].abs()
    return total


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_pixel_sees_what_is_before_it_and_nothing_else(name, channels, training):
    spec = spec_of((4, 5), channels)
    network = built(name, spec, 2 * channels).train(training)
    found = jacobian(network, spec)
    for i, j, row, column in itertools.product(range(4), range(5), range(4), range(5)):
        place, other = i * 5 + j, row * 5 + column
        for output in range(2 * channels):
            seen = found[output, i, j, :, row, column]
            own = output % channels if network.sees_channels else 0
            if other > place:
                assert (seen == 0).all()
            elif other == place:  # of its own pixel, the earlier channels
                assert (seen[own:] == 0).all() and (seen[:own] > 0).all()
            elif name in WHOLE:
                assert (seen > 0).all(), (i, j, row, column)


def test_stacked_masks_have_the_blind_spot_that_the_paper_names():
    spec = spec_of((6, 9))
    network = built("PixelCNN", spec, 1)
    found = jacobian(network, spec)[0, 5, 3, 0]
    assert found[4, 8] == 0 and found[4, 4] > 0  # the triangle to the right above


@pytest.mark.parametrize("in_channels", [1, 3, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_layer_is_a_convolution_of_the_masked_weight_whatever_its_channels(in_channels, stride):
    layer = CausalConv2d(in_channels, 5, (2, 1, 1), stride=stride)
    x = torch.randn(2, in_channels, 5, 6)
    expected = conv2d(pad(x, (1, 1, 2, 0)), layer.weight * layer.mask, layer.bias, stride)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("name", NETWORKS)
def test_no_gradient_crosses_the_batch(name):
    spec = spec_of()
    network = built(name, spec, 1).train()
    x = torch.randn(3, *spec.shape, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(x)[1].sum(), x)
    assert (gradient[[0, 2]] == 0).all() and (gradient[1] != 0).any()


@pytest.mark.parametrize("name", NETWORKS)
def test_dropout_disturbs_training_alone(name):
    spec = spec_of()
    network, x = built(name, spec, 4), torch.randn(1, *spec.shape, dtype=torch.float64)
    assert torch.equal(network(x), network(x))
    network.train()
    assert not torch.equal(network(x), network(x))


def model_of(name, spec, given=(), **more):
    torch.manual_seed(1)
    model = AutoregressiveImages(spec, NETWORKS[name], torch.optim.Adam, given=given, **more).double()
    for parameter in model.network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


@pytest.mark.parametrize("channels, size", [(1, (3, 3)), (3, (1, 3))])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_probabilities_of_all_images_sum_to_one_and_samples_have_them(name, channels, size):
    spec = spec_of(size, channels, levels=2)
    model = model_of(name, spec)
    every = torch.tensor(list(itertools.product((0, 1), repeat=9))).reshape(-1, *spec.shape)
    probability = model.log_prob(to_float(every, 2).double()).exp()
    assert probability.sum() == pytest.approx(1.0, abs=1e-9)
    num = 6_000
    drawn = (model.sample(num, seed=3) > 0).flatten(1).long()
    code = (drawn * 2 ** torch.arange(8, -1, -1)).sum(dim=1)
    counts = torch.bincount(code, minlength=512)
    expected = probability * num
    often = expected >= 5.0
    observed = torch.cat([counts[often], counts[~often].sum()[None]]).double()
    wanted = torch.cat([expected[often], expected[~often].sum()[None]])
    kept = wanted > 0
    assert chisquare(observed[kept], wanted[kept] * observed[kept].sum() / wanted[kept].sum()).pvalue > 1e-3


@pytest.mark.parametrize("num_classes", [0, 3])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_remembered_pixel_is_the_pixel_of_the_whole_image(name, channels, num_classes):
    if num_classes and name not in ("GatedPixelCNN", "PixelCNNpp"):
        pytest.skip("is told nothing")
    spec = spec_of((5, 4), channels, num_classes=num_classes)
    network = built(name, spec, 4 * channels)
    x = torch.rand(3, *spec.shape, dtype=torch.float64) * 2 - 1
    given = {"label": torch.tensor([0, 2, 1])} if num_classes else {}
    memory, whole = network.new_memory(3), network(x, **given)
    with torch.no_grad():
        for row, column in itertools.product(range(5), range(4)):
            known = x.clone()
            known[:, :, row, column + 1 :] = 9.0  # what is not known yet is not looked at
            known[:, :, row + 1 :] = 9.0
            outputs = network.pixel(known, row, column, memory, **given)
            torch.testing.assert_close(outputs, whole[:, :, row, column], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_untrained_model_gives_every_level_the_same_probability(name):
    spec = spec_of(channels=3, levels=7)
    model = AutoregressiveImages(spec, NETWORKS[name], torch.optim.Adam).train()
    loss = model.losses({"image": torch.rand(4, *spec.shape) * 2 - 1})["loss"]
    assert loss.item() == pytest.approx(math.log2(7), abs=1e-6)


def test_samples_depend_on_their_number_alone_and_are_completed_as_they_were():
    spec = spec_of((4, 4), levels=5)
    model = model_of("GatedPixelCNN", spec)
    whole = model.sample(6, seed=2)
    assert torch.equal(model.sample(torch.tensor([4, 1]), seed=2), whole[[4, 1]])
    assert not torch.equal(model.sample(6, seed=3), whole)
    for num_known in (0, 3, 7, 16):
        again = model.complete(whole, num_known, 6, seed=2)
        assert torch.equal(again, whole)
    other = model.complete(whole, 7, 6, seed=5)
    assert torch.equal(other.flatten(2)[..., :7], whole.flatten(2)[..., :7])
    assert not torch.equal(other, whole)


def test_a_class_changes_what_is_drawn():
    spec = spec_of((4, 4), levels=5, num_classes=2)
    model = model_of("GatedPixelCNN", spec, given=["label"])
    one, two = (model.sample(8, label=torch.full((8,), label)) for label in (0, 1))
    assert not torch.equal(one, two)
    with pytest.raises(ValueError, match="is told label"):
        model.sample(8)


@pytest.mark.parametrize("temperature, changes", [(1e-6, False), (1.0, True)])
def test_near_zero_temperature_draws_the_likeliest_pixel(temperature, changes):
    model = model_of("GatedPixelCNN", spec_of((4, 4), levels=5), temperature=temperature)
    assert torch.equal(model.sample(4, seed=1)[0], model.sample(4, seed=2)[0]) is not changes


@pytest.mark.parametrize(
    "terminal, patience, shown", [(True, 0.0, True), (True, 9.0, False), (False, 0.0, False)]
)
def test_a_long_drawing_shows_on_a_terminal_how_far_it_is(monkeypatch, terminal, patience, shown):
    output = io.StringIO()
    output.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", output)
    monkeypatch.setattr("genlab.families.autoregressive.PATIENCE", patience)
    model_of("GatedPixelCNN", spec_of((3, 2))).sample(5)
    assert ("drawing 5 images" in output.getvalue() and "0/3" in output.getvalue()) is shown


# Maps of codes


def maps_model(name, size, levels, num_classes=0, seed=1):
    torch.manual_seed(seed)
    spec, given = DataSpec("codes", size, num_classes, levels), ["label"] * bool(num_classes)
    model = AutoregressiveMaps(spec, NETWORKS[name], torch.optim.Adam, given=given).double()
    for parameter in model.network.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_code_sees_all_channels_of_the_codes_before_it_and_no_other(name):
    found = jacobian(maps_model(name, (3, 4), 3).network, DataSpec("codes", (3, 3, 4), levels=0))
    for i, j, row, column in itertools.product(range(3), range(4), range(3), range(4)):
        seen, is_before = found[:, i, j, :, row, column], row * 4 + column < i * 4 + j
        assert (seen == 0).all() or is_before
        assert (seen > 0).all() or not (is_before and name in WHOLE)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_probabilities_of_all_maps_sum_to_one_and_samples_have_them(name):
    model, num = maps_model(name, (2, 2), 3), 4_000
    every = torch.cartesian_prod(*[torch.arange(3)] * 4).reshape(-1, 2, 2)
    p = model.log_prob(every).exp()
    assert p.sum() == pytest.approx(1.0, abs=1e-9) and p.max() > 3 / 81
    drawn = model.sample(num)
    assert drawn.shape == (num, 2, 2) and drawn.dtype == torch.int64
    counts = (drawn[:, None] == every[None]).flatten(2).all(dim=2).sum(dim=0)
    often = p * num >= 5.0
    observed = torch.cat([counts[often], counts[~often].sum()[None]])
    expected = torch.cat([p[often], p[~often].sum()[None]]) * num
    assert chisquare(observed, expected * num / expected.sum()).pvalue > 1e-3


@pytest.mark.parametrize("name, num_classes", [("PixelCNN", 0), ("GatedPixelCNN", 3), ("RowLSTM", 0)])
def test_a_map_is_drawn_as_by_the_whole_network_for_each_code(name, num_classes):
    model, index = maps_model(name, (3, 2), 5, num_classes), torch.tensor([4, 1, 9])
    given = {"label": index % 3} if num_classes else {}
    drawn, expected = model.sample(index, 7, **given), torch.zeros(3, 3, 2, dtype=torch.int64)
    for place in range(6):
        logits = model.network(model.pixels(expected), **given)[:, :, place // 2, place % 2]
        u = randomness.uniform(randomness.key(7, "pixel", place), index, 1)
        expected[:, place // 2, place % 2] = (logits.softmax(1).cumsum(1) < u).sum(1).clamp(max=4)
    assert torch.equal(drawn, expected)


def test_an_untrained_model_of_maps_gives_every_code_the_same_probability():
    spec = DataSpec("codes", (4, 5), levels=300)
    model = AutoregressiveMaps(spec, NETWORKS["GatedPixelCNN"], torch.optim.Adam).train()
    loss = model.losses({"tokens": torch.randint(300, (4, 4, 5))})["loss"]
    assert loss.item() == pytest.approx(math.log(300), abs=1e-5)


@pytest.mark.parametrize("spec", [spec_of(), DataSpec("text", (8,), levels=65)])
def test_what_is_no_map_of_codes_is_refused(spec):
    with pytest.raises(ValueError, match="models maps of codes"):
        AutoregressiveMaps(spec, NETWORKS["PixelCNN"], torch.optim.Adam)


def test_the_softmax_draws_every_level_by_its_probability():
    spec = spec_of((1, 1), levels=6)
    likelihood = Softmax(spec)
    parameters = torch.randn(1, 6, 1, 1, dtype=torch.float64).expand(60_000, -1, -1, -1)
    u = torch.rand(60_000, 1, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = likelihood.draw(parameters, u)
    levels = to_float(torch.arange(6), 6)
    counts = torch.tensor([(drawn.flatten() == level).sum() for level in levels])
    each = likelihood.log_prob(parameters[:6], levels.double().reshape(6, 1, 1, 1)).exp().flatten()
    assert each.sum() == pytest.approx(1.0)
    assert chisquare(counts, each * 60_000).pvalue > 1e-3


def test_a_model_of_tokens_is_refused_with_its_place():
    with pytest.raises(ValueError, match="models images"):
        AutoregressiveImages(DataSpec("text", (8,), levels=65), NETWORKS["PixelCNN"], torch.optim.Adam)


def test_the_remembered_walk_is_ten_times_faster_than_the_naive_one():
    import time

    spec = spec_of((28, 28), levels=2)
    network = GatedPixelCNN(spec, 2, features=32, num_layers=6).eval()
    x = torch.zeros(16, *spec.shape)
    with torch.no_grad():
        network(x)
        begin = time.perf_counter()
        network(x)
        naive = 784 * (time.perf_counter() - begin)
        memory, begin = network.new_memory(16), time.perf_counter()
        for place in range(784):
            network.pixel(x, place // 28, place % 28, memory)
        remembered = time.perf_counter() - begin
    assert naive > 10 * remembered, (naive, remembered)


def mixture(channels, levels, num_components=3, seed=0):
    """A mixture of whole pixels with random parameters of one pixel, in float64."""
    likelihood = CoupledLogistics(spec_of((1, 1), channels, levels), num_components)
    torch.manual_seed(seed)
    return likelihood, torch.randn(1, *likelihood.parameter_shape, dtype=torch.float64)


@pytest.mark.parametrize("channels, levels", [(1, 256), (1, 17), (2, 9), (3, 2), (3, 5)])
def test_a_mixture_of_pixels_sums_to_one_over_all_of_them_and_draws_them(channels, levels):
    likelihood, parameters = mixture(channels, levels)
    every = torch.tensor(list(itertools.product(range(levels), repeat=channels)))
    x = to_float(every, levels).double().reshape(-1, channels, 1, 1)
    probability = likelihood(parameters.expand(len(x), -1, -1, -1), x).exp()
    assert probability.sum() == pytest.approx(1.0, abs=1e-6)
    num = 40_000
    u = torch.rand(num, 2, channels, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    drawn = to_levels(likelihood.draw(parameters.expand(num, -1, -1, -1), u), levels).flatten(1).long()
    code = (drawn * levels ** torch.arange(channels - 1, -1, -1)).sum(dim=1)
    counts, often = torch.bincount(code, minlength=len(every)), probability * num >= 5.0
    rest = counts[~often].sum()
    observed = torch.cat([counts[often], rest[None]]).double() + 1e-9
    expected = torch.cat([probability[often] * num, probability[~often].sum()[None] * num + 1e-9])
    assert chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-3


def test_one_component_of_one_channel_is_the_discretised_logistic():
    likelihood, parameters = mixture(1, 256, num_components=1)
    x = to_float(torch.arange(256), 256).double().reshape(-1, 1, 1, 1)
    ours = likelihood(parameters.expand(256, -1, -1, -1), x)
    alone = DiscretizedLogistic(spec_of((1, 1), 1, 256))
    assert (ours - alone(parameters[:, 1:].expand(256, -1, -1, -1), x)).abs().max() < 1e-7


def test_several_components_of_one_channel_are_the_mixture_of_one_channel():
    likelihood, parameters = mixture(1, 17, num_components=4)
    x = to_float(torch.arange(17), 17).double().reshape(-1, 1, 1, 1)
    by_kind = parameters.unflatten(1, (4, 3)).transpose(1, 2).flatten(1, 2)  # logits, means, scales
    alone = DiscretizedLogistic(spec_of((1, 1), 1, 17), num_components=4)
    ours = likelihood(parameters.expand(17, -1, -1, -1), x)
    assert (ours - alone(by_kind.expand(17, -1, -1, -1), x)).abs().max() < 1e-12


def test_the_second_channel_follows_the_first_with_the_learned_slope():
    likelihood, parameters = mixture(3, 256, num_components=1)
    parameters = parameters.unflatten(1, (1, 10)).clone()
    parameters[:, :, 1:4], parameters[:, :, 4:7] = 0.0, -4.0  # means of 0, narrow
    parameters[:, :, 7], parameters[:, :, 8], parameters[:, :, 9] = 0.8, -0.4, 0.6
    parameters = parameters.flatten(1, 2)
    r, g = 0.5, math.tanh(0.8) * 0.5
    b = math.tanh(-0.4) * r + math.tanh(0.6) * g
    best = torch.tensor([r, g, b], dtype=torch.float64).reshape(1, 3, 1, 1)
    x = to_float(to_levels(best, 256), 256).double()
    nearer = likelihood(parameters, x)
    for channel, step in itertools.product((1, 2), (-12, 12)):
        moved = x.clone()
        moved[:, channel] += step / 127.5
        assert likelihood(parameters, moved) < nearer


def test_a_mixture_of_pixels_is_refused_by_a_network_whose_masks_couple_them():
    with pytest.raises(ValueError, match="take Softmax"):
        model_of("GatedPixelCNN", spec_of(channels=3), likelihood=CoupledLogistics)


def test_a_vae_takes_the_mixture_of_pixels_as_its_likelihood():
    spec = spec_of((4, 4), channels=3, levels=5)
    torch.manual_seed(0)
    coding = (partial(kind, hidden=[16]) for kind in (MLPEncoder, MLPDecoder))
    vae = VAE(spec, *coding, partial(CoupledLogistics, num_components=2), torch.optim.Adam, latent_dim=2)
    x = to_float(torch.randint(5, (6, *spec.shape)), 5)
    losses = vae.losses({"image": x})
    parameters = vae.decoder(torch.randn(6, 2), None)
    assert parameters.shape[1:] == vae.likelihood.parameter_shape
    assert losses["elbo"].item() == pytest.approx(-(losses["distortion"] + losses["rate"]).item())
    assert losses["distortion"].isfinite() and vae.log_prob(x).shape == (6,)
    losses["loss"].backward()
    assert all((p.grad != 0).any() for p in vae.decoder.parameters())
    assert vae.sample(3).abs().max() <= 1.0 and vae.sample(3).shape[1:] == spec.shape


def stepped(gates, cell):
    """One step of an LSTM, as equation 3 of the paper has it."""
    o, f, i, g = gates.chunk(4)
    cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(cell), cell


def test_the_row_lstm_is_a_plain_loop_over_pixels():
    torch.manual_seed(0)
    layer = RowLSTM.layer(4, 1, 1).double()
    h = torch.randn(1, 8, 4, 5, dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.float64)
    state, cell = {}, {}
    for i, j in itertools.product(range(4), range(5)):
        k_is = layer.inputs.kernel()[:, :, 0]  # the pixel to the left, and itself
        gates = layer.inputs.bias + k_is[:, :, 1] @ h[0, :, i, j]
        if j:
            gates = gates + k_is[:, :, 0] @ h[0, :, i, j - 1]
        for offset in (-1, 0, 1):
            above = state.get((i - 1, j + offset), zero)
            gates = gates + layer.states.weight[:, :, offset + 1] @ above
        state[i, j], cell[i, j] = stepped(gates, cell.get((i - 1, j), zero))
    expected = torch.stack([torch.stack([state[i, j] for j in range(5)], 1) for i in range(4)], 1)[None]
    torch.testing.assert_close(layer(h, h[:, :1]), layer.leaving(expected), atol=1e-12, rtol=0)


def test_the_diagonal_bilstm_is_a_plain_loop_over_pixels():
    torch.manual_seed(0)
    layer = DiagonalBiLSTM.layer(4, 1, 1).double()
    h, x = torch.randn(1, 8, 4, 5, dtype=torch.float64), torch.randn(1, 1, 4, 5, dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.float64)

    def read(inputs, weight, step):
        state, cell = {}, {}
        for i in range(4):
            for j in range(5)[::step]:
                above, beside = state.get((i - 1, j), zero), state.get((i, j - step), zero)
                gates = inputs[0, :, i, j] + weight[:, :, 0] @ above + weight[:, :, 1] @ beside
                state[i, j], cell[i, j] = stepped(gates, cell.get((i, j - step), zero))
        return state

    left = read(layer.from_left(h), layer.left_states.weight, 1)
    right = read(layer.from_right(torch.cat([h, x], dim=1)), layer.right_states.weight, -1)
    found = layer(h, x)
    for i, j in itertools.product(range(4), range(5)):
        out = layer.leaving.bias + layer.leaving.kernel()[:, :, 0, 0] @ left[i, j]
        out = out + layer.leaving_right.weight[:, :, 0, 0] @ right.get((i - 1, j), zero)
        torch.testing.assert_close(found[0, :, i, j], out, atol=1e-12, rtol=0)


def test_the_row_lstm_sees_a_triangle_of_the_known_width():
    torch.manual_seed(0)
    network = built("RowLSTM", spec_of((5, 11)), 1)
    network.layers = network.layers[:1]
    found = jacobian(network, spec_of((5, 11)))[0, 4, 5, 0]
    for row in range(4):
        seen = (found[row] > 0).nonzero().flatten()
        assert seen.max() == 5 + 4 - row  # a column for every row
        assert seen.min() == max(0, 5 - (4 - row) - 2)  # one more of the row's convolution, and of the first


SMALL = (
    *("--config", "experiments/pixelcnn_digits.yaml", "--trainer.accelerator", "cpu"),
    *("--model.network.features", "4", "--model.network.num_layers", "2", "--samples.num", "4"),
    *("--evaluate.num_samples", "8", "--evaluate.at_start", "false", "--budget.evaluate_every", "200"),
    *("--budget.examples", "200",),
)  # fmt: skip


def test_a_picture_is_completed_from_the_part_that_is_kept(copy_of_trained, genlab_command, tmp_path):
    run = copy_of_trained(*SMALL)
    image = tmp_path / "half.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(image)
    for part, known in (("--rows", 3), ("--pixels", 21)):
        code, out, error = genlab_command("complete", run, image, part, known, "-n", 3, "--seed", 1)
        assert code == 0 and out.strip().endswith("completed/half/grid.png"), error
        kept = known * 8 if part == "--rows" else known
        drawn = [np.asarray(Image.open(run / f"completed/half/{n:06d}.png")).ravel() for n in range(3)]
        assert all((one[:kept] == drawn[0][:kept]).all() for one in drawn)
        assert not (drawn[0] == drawn[1]).all()
    for wrong, what in (
        (("--rows", 9), "--rows must be between 0 and 8"),
        (("--pixels", 65), "between 0 and 64"),
        (("--rows", 1, "--pixels", 1), "leave one out"),
    ):
        code, _, error = genlab_command("complete", run, image, *wrong)
        assert code == 2 and what in error


def test_another_family_is_refused_with_what_it_can_do(copy_of_trained, genlab_command, tmp_path):
    run = copy_of_trained(
        *("--config", "experiments/gan_digits.yaml", "--budget.examples", "64", "--samples.num", "4"),
        *("--evaluate.num_samples", "8", "--evaluate.at_start", "false", "--budget.evaluate_every", "64"),
    )
    image = tmp_path / "x.png"
    Image.new("L", (8, 8)).save(image)
    code, _, error = genlab_command("complete", run, image)
    assert code == 2 and "pixel by pixel" in error and "genlab inpaint" in error
