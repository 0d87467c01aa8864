"""SRResNet: what it begins as, how far it looks, what it refuses; and the judge of SRGAN."""

import pytest
import torch
from torch.nn.functional import interpolate

from genlab.evaluation.restoration import enlarged
from genlab.networks.srresnet import SRResNet, Upsampling, VGGDiscriminator
from genlab.shapes import DataSpec

TINY = {"features": 4, "num_blocks": 2, "kernel_size": 5}


def spec_of(scale, side=8, channels=3, source_channels=3):
    source = DataSpec("small", (source_channels, side, side))
    return DataSpec("large", (channels, scale * side, scale * side), source=source)


def network(scale=2, **options):
    torch.manual_seed(0)
    return SRResNet(spec_of(scale), **{**TINY, **options})


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_pixel_shuffle_begins_as_nearest_neighbour_upsampling(factor):
    """Of the first filter of each square, to the bit."""
    layer, x = Upsampling(3, factor), noise(2, 3, 5, 7)
    one = layer.activation(layer.convolution(x)[:, :: factor**2])
    assert torch.equal(layer(x), interpolate(one, scale_factor=factor, mode="nearest"))
    assert one.std() > 0.1


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 6])
def test_every_scale_makes_images_of_any_sides(scale):
    model = network(scale)
    assert model.scale == scale and model(source=noise(2, 3, 5, 9)).shape == (2, 3, 5 * scale, 9 * scale)
    assert len(model.upsampling) == {1: 0, 2: 1, 3: 1, 4: 2, 6: 2}[scale]


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_residual_network_begins_as_the_bicubic_filter(scale):
    x = noise(2, 3, 8, 6)
    assert torch.allclose(network(scale, residual=True)(source=x), enlarged(x, scale), atol=1e-6)
    colours = SRResNet(spec_of(1, source_channels=1), residual=True, **TINY)
    assert torch.allclose(colours(source=x[:, :1]), x[:, :1].expand(-1, 3, -1, -1))


@pytest.mark.parametrize(("scale", "kernel_size"), [(1, 5), (2, 5), (2, 9), (3, 3), (4, 3), (4, 9)])
def test_the_margin_is_how_far_a_pixel_looks(scale, kernel_size):
    model = network(scale, kernel_size=kernel_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_().add_(1e-2)  # no path may cancel another one
    side = 2 * model.margin + 5
    x = noise(1, 3, side, side).requires_grad_()
    middle = slice(scale * (side // 2), scale * (side // 2 + 1))
    model(source=x)[..., middle, middle].sum().backward()
    (rows,) = x.grad.abs().sum((0, 1, 3)).nonzero(as_tuple=True)
    assert (rows.min().item(), rows.max().item()) == (2, side - 3)


def test_a_tile_with_its_margin_is_part_of_the_whole_whatever_lies_beside_it():
    """Batch norm takes running statistics in evaluation: nothing of a tile leaks into another one."""
    model = network(2)
    for _ in range(3):
        model(source=3 * noise(4, 3, 16, 16) + 1)  # moves the running statistics
    model.eval()
    side, margin = 40, model.margin
    x = noise(1, 3, side, side)
    with torch.no_grad():
        whole = model(source=x)
        tile = model(source=x[..., 10 - margin : 20 + margin, 12 - margin : 20 + margin])
    inside = tile[..., 2 * margin : 2 * (margin + 10), 2 * margin : 2 * (margin + 8)]
    assert torch.allclose(inside, whole[..., 20:40, 24:40], atol=1e-5)


def test_without_norms_there_is_none():
    norms = [module for module in network(norm="none").modules() if "Norm" in type(module).__name__]
    assert not norms and any("BatchNorm" in type(module).__name__ for module in network().modules())


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (DataSpec("alone", (3, 8, 8)), {}, "source must be an image to start from"),
        (spec_of(5), {}, "products of 2 and 3, and 5 is left"),
        (DataSpec("x", (3, 9, 8), source=DataSpec("s", (3, 4, 4))), {}, "same multiple"),
        (spec_of(2, source_channels=2), {"residual": True}, "3 channels and not 2"),
        (spec_of(2), {"norm": "layer"}, "norm must be batch or none"),
        (spec_of(2), {"kernel_size": 4}, "kernel_size must be odd"),
        (spec_of(2), {"num_blocks": 0}, "num_blocks must be at least 1"),
    ],
)
def test_what_cannot_be_enlarged_is_refused(spec, options, message):
    with pytest.raises(ValueError, match=message):
        SRResNet(spec, **{**TINY, **options})


@pytest.mark.parametrize("side", [16, 24, 18])
def test_the_judge_of_large_images_gives_one_logit(side):
    spec = DataSpec("large", (3, side, side))
    judge = VGGDiscriminator(spec, base_channels=4, num_layers=3, hidden=8)
    assert judge(noise(2, 3, side, side)).shape == (2,)
    strides = [layer[0][0].stride[0] for layer in judge.features[1:]]
    assert strides == [2, 1, 2, 1, 2]
    widths = [module.out_channels for module in judge.features.modules() if hasattr(module, "out_channels")]
    assert widths == [4, 4, 8, 8, 16, 16]
    with pytest.raises(ValueError, match="sides of at least 16 pixels, got 8 x 8"):
        VGGDiscriminator(DataSpec("small", (3, 8, 8)), num_layers=4)
