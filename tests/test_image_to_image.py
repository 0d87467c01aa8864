import pytest
import torch
from torch import nn

from genlab.networks.image_to_image import InstanceNorm, PatchDiscriminator, UNetGenerator
from genlab.networks.resnet_generator import ResNetGenerator
from genlab.shapes import DataSpec

BATCH = 2


def pair_spec(size: int, channels: int = 3, source: int = 3, classes: int = 0, width: int = 0) -> DataSpec:
    sides = (size, width or size)
    return DataSpec("pairs", (channels, *sides), classes, source=DataSpec("source", (source, *sides)))


def images(size: int, channels: int = 3, seed: int = 0, width: int = 0, batch: int = BATCH) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, channels, size, width or size, generator=generator) * 2 - 1


def generator(spec: DataSpec, **options) -> UNetGenerator:
    torch.manual_seed(0)
    return UNetGenerator(spec, **{"base_channels": 4} | options)


def discriminator(spec: DataSpec, **options) -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator(spec, **{"base_channels": 4} | options)


def kinds(network: nn.Module, kind: type | tuple) -> list:
    return [layer for layer in network.modules() if isinstance(layer, kind)]


# The generator


@pytest.mark.parametrize("size, width, channels, source", [
    (64, 0, 3, 1), (128, 0, 1, 3), (256, 0, 3, 3), (64, 96, 3, 3), (28, 0, 1, 1), (8, 0, 1, 2),
])  # fmt: skip
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_the_generator_gives_images_in_range_for_images_of_the_same_sides(
    size, width, channels, source, norm
):
    net = generator(pair_spec(size, channels, source, width=width), norm=norm)
    x = net(source=images(size, source, width=width) * 100)
    assert x.shape == (BATCH, channels, size, width or size)
    assert x.dtype == torch.float32 and x.abs().max() <= 1


@pytest.mark.parametrize("size, num_downs, expected", [
    (256, None, 8), (64, None, 6), (96, None, 5), (512, None, 8), (256, 7, 7), (64, 2, 2),
])  # fmt: skip
def test_sides_are_halved_as_often_as_they_can_be_up_to_the_papers_eight(size, num_downs, expected):
    net = generator(pair_spec(size), base_channels=1, num_downs=num_downs).eval()
    smallest = []
    net.down[-1].register_forward_hook(lambda module, inputs, output: smallest.append(output.shape[2:]))
    net(images(size, batch=1))
    assert smallest == [(size >> expected, size >> expected)]


def test_the_generator_for_256_pixels_is_that_of_the_paper_at_a_quarter_of_its_width():
    net = generator(pair_spec(256), base_channels=16)
    down, up = kinds(net.down, nn.Conv2d), kinds(net.up, nn.ConvTranspose2d)
    assert [4 * layer.out_channels for layer in down] == [64, 128, 256, 512, 512, 512, 512, 512]
    assert [4 * layer.out_channels for layer in up] == [512, 512, 512, 512, 256, 128, 64]
    assert [4 * layer.in_channels for layer in up] == [512, 1024, 1024, 1024, 1024, 512, 256]
    assert [layer.p for layer in kinds(net.up, nn.Dropout)] == [0.5] * 3 + [0.0] * 4
    shapes = {layer.kernel_size + layer.stride + layer.padding for layer in (*down, *up, net.output[1])}
    assert shapes == {(4, 4, 2, 2, 1, 1)}
    assert [layer.negative_slope for layer in kinds(net.down, nn.LeakyReLU)] == [0.2] * 7
    assert len(kinds(net, nn.ReLU)) == 8 and not kinds(net.up, nn.LeakyReLU)
    # At full width, published code has 54,413,955 parameters (54.414 million), a bias at the output alone.
    inner = sum(layer.weight.numel() for layer in (*down[1:], *up))
    outer = sum(layer.weight.numel() for layer in (down[0], net.output[1]))
    norms = sum(layer.weight.numel() + layer.bias.numel() for layer in kinds(net, nn.BatchNorm2d))
    assert 16 * inner + 4 * outer + 4 * norms + 3 == 54_413_955


@pytest.mark.parametrize("level", range(4))
def test_every_skip_reaches_the_output_when_all_below_it_is_silent(level):
    net, source = generator(pair_spec(32), dropout=0.0).eval(), images(32)
    nn.init.zeros_(net.up[-1 - level][1].weight)  # makes the map that is joined with this level's skip
    before = net(source)
    net.down[level + 1].register_forward_hook(lambda module, inputs, output: output + 1.0)
    assert torch.equal(net(source), before)
    net.down[level].register_forward_hook(lambda module, inputs, output: output + 1.0)
    assert not torch.equal(net(source), before)


def test_a_pixel_reaches_the_output_at_full_resolution_through_the_outermost_skip_alone():
    net = generator(pair_spec(32), num_downs=3).eval()
    nn.init.zeros_(net.up[-1][1].weight)
    source = images(32).requires_grad_()
    net(source)[:, :, 12, 12].abs().sum().backward()
    seen = source.grad.abs().sum(dim=(0, 1)).nonzero()
    # Output 12 is made of maps 5 and 6 (2 m - 1 ... 2 m + 2), and map m of pixels 2 m - 1 ... 2 m + 2.
    assert seen.amin(dim=0).tolist() == [9, 9] and seen.amax(dim=0).tolist() == [14, 14]


def test_the_smallest_map_lets_every_pixel_see_every_other_one():
    net = generator(pair_spec(32)).eval()
    source = images(32).requires_grad_()
    net(source)[0, 0, 3, 30].backward()
    assert (source.grad[0].abs().sum(dim=0) > 0).all()
    assert source.grad[1].abs().max() == 0


def test_dropout_is_the_noise_of_training_and_absent_in_eval_mode():
    net, source = generator(pair_spec(32), norm="instance"), images(32)
    assert not torch.equal(net(source), net(source))
    net.eval()
    assert torch.equal(net(source), net(source))
    still = generator(pair_spec(32), norm="instance", dropout=0.0)
    assert torch.equal(still(source), still(source))
    torch.testing.assert_close(still(source), net(source))


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_a_batch_of_one_can_be_trained(norm):
    net = generator(pair_spec(16), norm=norm)
    net(images(16, batch=1)).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_with_instance_norm_an_image_depends_on_no_other_one_in_either_mode():
    net, source = generator(pair_spec(32), norm="instance", dropout=0.0), images(32, batch=3)
    for mode in (True, False):
        net.train(mode)
        alone = torch.cat([net(source[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(net(source), alone, rtol=0, atol=1e-5)


def test_batch_norm_reads_the_batch_in_training_and_running_averages_in_eval_mode():
    net, source = generator(pair_spec(32), dropout=0.0), images(32, batch=3)
    assert (net(source)[:1] - net(source[:1])).abs().max() > 1e-4
    net.eval()
    torch.testing.assert_close(net(source)[:1], net(source[:1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size, width, options, message", [
    (100, 0, {"num_downs": 3}, r"num_downs=3 needs sides that are a multiple of 8, got 100 x 100; resize "
     r"the images to 104 x 104 or give num_downs=2\."),
    (30, 0, {}, r"multiple of 4, got 30 x 30; resize the images to 32 x 32\.$"),
    (64, 80, {"num_downs": 5}, "got 64 x 80; resize the images to 64 x 96 or give num_downs=4"),
    (64, 0, {"num_downs": 1}, "num_downs must be at least 2, got 1"),
    (64, 0, {"norm": "layer"}, "norm must be one of batch, instance, none, got layer"),
])  # fmt: skip
def test_sides_that_cannot_be_halved_that_often_are_refused_with_the_next_valid_ones(
    size, width, options, message
):
    with pytest.raises(ValueError, match=message):
        generator(pair_spec(size, width=width), **options)


@pytest.mark.parametrize("source, message", [
    (None, "source must be an image.*got None for pairs"),
    (DataSpec("sentence", (8,), levels=100), "source must be an image.*'sentence'"),
    (DataSpec("small", (3, 16, 16)), "source must have the sides of the image to make, 32 x 32, got 16 x 16"),
])  # fmt: skip
@pytest.mark.parametrize("build", [generator, discriminator])
def test_a_source_that_is_no_image_of_the_same_sides_is_refused(build, source, message):
    spec = DataSpec("pairs", (3, 32, 32), source=source)
    if source is None and build is discriminator:
        assert build(spec)(images(32)).shape == (BATCH, 1, 2, 2)
        return
    with pytest.raises(ValueError, match=message):
        build(spec)


# The discriminator


@pytest.mark.parametrize("num_layers, side", [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_logit_sees_a_patch_of_exactly_the_documented_side(num_layers, side):
    size = side + 50
    net = discriminator(pair_spec(size), base_channels=2, num_layers=num_layers).eval()
    x, source = images(size).requires_grad_(), images(size, seed=1).requires_grad_()
    logits = net(x, source=source)
    middle = logits.shape[2] // 2
    logits[:, 0, middle, middle].sum().backward()
    for image in (x, source):
        seen = image.grad.abs().sum(dim=(0, 1)).nonzero()
        assert (seen.amax(dim=0) - seen.amin(dim=0) + 1).tolist() == [side, side]


@pytest.mark.parametrize("size, width, channels, source", [
    (64, 0, 3, 3), (128, 0, 1, 3), (256, 0, 3, 1), (64, 96, 3, 3), (50, 0, 1, 1), (24, 0, 1, 1),
])  # fmt: skip
@pytest.mark.parametrize("norm", ["batch", "instance", "none"])
def test_the_discriminator_gives_a_map_of_logits(size, width, channels, source, norm):
    net = discriminator(pair_spec(size, channels, source, width=width), norm=norm)
    logits = net(images(size, channels, width=width), source=images(size, source, width=width))
    assert logits.shape == (BATCH, 1, size // 8 - 2, (width or size) // 8 - 2)


def test_the_discriminator_is_that_of_the_paper():
    net = PatchDiscriminator(pair_spec(256))
    layers = kinds(net, nn.Conv2d)
    assert [layer.out_channels for layer in layers] == [64, 128, 256, 512, 1]
    assert [layer.stride[0] for layer in layers] == [2, 2, 2, 1, 1]
    assert layers[0].in_channels == 6 and len(kinds(net, nn.BatchNorm2d)) == 3
    assert [layer.negative_slope for layer in kinds(net, nn.LeakyReLU)] == [0.2] * 4
    # 2.769 million parameters in published code.
    assert sum(parameter.numel() for parameter in net.parameters()) == 2_768_705


def test_the_discriminator_needs_its_source_and_looks_at_it_pixel_by_pixel():
    net, x = discriminator(pair_spec(32)).eval(), images(32)
    assert not torch.equal(net(x, source=images(32, seed=1)), net(x, source=images(32, seed=2)))
    assert not torch.equal(net(x, source=images(32, seed=1)), net(images(32, seed=1), source=x))
    with pytest.raises(ValueError, match="source is missing"):
        net(x)


def test_the_discriminator_hears_a_label_if_and_only_if_there_are_classes():
    for classes in (0, 3):
        net, x = discriminator(DataSpec("images", (3, 32, 32), classes)).eval(), images(32)
        first, second = (net(x, label=torch.full((BATCH,), label)) for label in (0, 1))
        assert (first != second).flatten(1).any(dim=1).tolist() == [classes > 0] * BATCH
    with pytest.raises(ValueError, match=r"label is missing.*3 classes"):
        net(x)


@pytest.mark.parametrize("spec, num_layers, message", [
    (DataSpec("images", (3, 20, 64)), 3, "at least 24 pixels, got 20 x 64; give fewer num_layers"),
    (DataSpec("images", (3, 20, 64)), 0, "num_layers must be at least 1, got 0"),
    (DataSpec("points", (2,)), 3, "needs images, but points has shape"),
])  # fmt: skip
def test_images_in_which_no_patch_fits_are_refused(spec, num_layers, message):
    with pytest.raises(ValueError, match=message):
        PatchDiscriminator(spec, num_layers=num_layers)


# The residual generator


def residual(spec: DataSpec, **options) -> ResNetGenerator:
    torch.manual_seed(0)
    return ResNetGenerator(spec, **{"base_channels": 2, "num_blocks": 2} | options)


@pytest.mark.parametrize("num_blocks, published", [(9, 11_378_179), (6, 7_837_699)])
def test_the_residual_generator_is_the_published_one_without_biases_that_norms_take_away(
    num_blocks, published
):
    with torch.device("meta"):
        net = ResNetGenerator(pair_spec(256), num_blocks=num_blocks)
    biases = sum(norm.num_features for norm in kinds(net, nn.InstanceNorm2d))
    assert sum(parameter.numel() for parameter in net.parameters()) + biases == published
    widths = [layer.out_channels for layer in kinds(net, (nn.Conv2d, nn.ConvTranspose2d))]
    assert widths == [64, 128, 256, *[256] * 2 * num_blocks, 128, 64, 3]
    assert len(kinds(net, nn.ReflectionPad2d)) == 2 + 2 * num_blocks


@pytest.mark.parametrize("size, width, channels, source", [(16, 24, 3, 1), (8, 0, 1, 3)])
def test_the_residual_generator_gives_an_image_for_an_image_of_any_valid_sides(size, width, channels, source):
    net = residual(pair_spec(32, channels, source))
    x = net(source=images(size, source, width=width))
    assert x.shape == (BATCH, channels, size, width or size) and x.abs().max() <= 1
    assert net.multiple == 4 and net.scale == 1


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_the_margin_is_the_reach_of_an_output_pixel(num_blocks):
    net = residual(pair_spec(96), base_channels=1, num_blocks=num_blocks).double()
    for module in net.modules():
        for name, layer in module.named_children():
            if isinstance(layer, nn.InstanceNorm2d | nn.ReLU):
                setattr(module, name, nn.Identity())
    reach = []
    for place in (48, 49, 50, 51):
        source = images(96).double().requires_grad_()
        net(source)[0, :, place, place].sum().backward()
        seen = source.grad[0].abs().sum(dim=0).nonzero()
        reach += [place - seen.min().item(), seen.max().item() - place]
    assert max(reach) == net.margin == 12 + 8 * num_blocks


def test_the_encoder_is_the_first_half_of_the_network():
    net, source = residual(pair_spec(16), num_blocks=9), images(16)
    features = net.encode(source)
    assert [h.shape[1] for h in features] == net.feature_channels and features[0] is source
    assert [h.shape[2] for h in features] == [16, 8, 4, 4, 4] and net.num_encoding == 5
    torch.testing.assert_close(net._rest(features[-1]), net(source))
    net.blocks[4].register_forward_hook(lambda *_: torch.zeros_like(features[-1]))
    assert not net.encode(source)[-1].any() and torch.equal(net.encode(source)[-2], features[-2])


def test_sides_that_cannot_be_halved_twice_are_refused_with_the_next_valid_ones():
    with pytest.raises(ValueError, match=r"multiple of 4, got 30 x 32; resize the images to 32 x 32\."):
        residual(pair_spec(30, width=32))
    with pytest.raises(ValueError, match="num_blocks must be at least 1, got 0"):
        residual(pair_spec(32), num_blocks=0)


def test_the_gradient_of_one_image_is_that_of_an_image_among_others_in_any_layout():
    norm = InstanceNorm(3)
    x, gradient = images(8, batch=3), images(8, seed=1, batch=3)
    found = []
    for rows in (slice(0, 3), slice(0, 1)):
        for layout in (torch.contiguous_format, torch.channels_last):
            for mixed in (torch.contiguous_format, torch.channels_last):
                leaf = x[rows].clone(memory_format=layout).requires_grad_()
                norm(leaf).backward(gradient[rows].clone(memory_format=mixed))
                found.append(leaf.grad[0])
    assert all(torch.allclose(each, found[0], atol=1e-6) for each in found)


# Both


def calls(size: int = 32) -> list:
    spec, x, source = pair_spec(size, classes=2), images(size), images(size, seed=1)
    label = torch.arange(BATCH)
    return [
        pytest.param(
            lambda norm: generator(spec, norm=norm, dropout=0.0), {"source": source}, id="generator"
        ),
        pytest.param(
            lambda norm: discriminator(spec, norm=norm),
            {"x": x, "source": source, "label": label},
            id="discriminator",
        ),
        pytest.param(lambda norm: residual(spec), {"source": source}, id="residual"),
    ]


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("build, inputs", calls())
def test_channels_last_agrees(build, inputs, norm):
    net = build(norm)
    plain = net(**inputs)
    last = {
        name: value.to(memory_format=torch.channels_last) if value.dim() == 4 else value
        for name, value in inputs.items()
    }
    torch.testing.assert_close(net.to(memory_format=torch.channels_last)(**last), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "instance"])
@pytest.mark.parametrize("build, inputs", calls())
def test_every_parameter_receives_a_gradient(build, inputs, norm):
    net = build(norm)
    output = net(**inputs)
    (output * torch.randn(output.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("build", [generator, discriminator])
def test_weights_begin_at_a_fiftieth_and_biases_at_nothing(build):
    net = build(pair_spec(64), base_channels=16)
    for layer in kinds(net, (nn.Conv2d, nn.ConvTranspose2d)):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert layer.bias is None or not layer.bias.any()
