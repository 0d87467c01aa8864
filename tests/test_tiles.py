"""Pictures of any size: in tiles as in one piece, whatever the network's norms, padding and scale."""

import pytest
import torch
from torch import nn

from genlab.evaluation.tiles import Moments, Translator, WholeNorms, reflected, whole
from genlab.networks.image_to_image import UNetGenerator
from genlab.shapes import DataSpec

WIDTH = 4


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        affine = nn.InstanceNorm2d(WIDTH, affine=True)
        self.layers = nn.Sequential(
            *(nn.ReflectionPad2d(1), nn.Conv2d(WIDTH, WIDTH, 3), affine, nn.ReLU()),
            *(nn.ReflectionPad2d(1), nn.Conv2d(WIDTH, WIDTH, 3), nn.InstanceNorm2d(WIDTH)),
        )

    def forward(self, x):
        return x + self.layers(x)


class Mirrored(nn.Sequential):
    """As CycleGAN's: mirrored borders, instance norms, one halving, a block, one doubling."""

    multiple, scale, margin = 2, 1, 3 + 1 + 4 + 1 + 1 + 3

    def __init__(self, spec):
        halve = nn.Conv2d(WIDTH, WIDTH, 3, 2, 1)
        double = nn.ConvTranspose2d(WIDTH, WIDTH, 3, 2, 1, output_padding=1)
        norms = [nn.InstanceNorm2d(WIDTH) for _ in range(3)]
        super().__init__(
            *(nn.ReflectionPad2d(3), nn.Conv2d(spec.source.shape[0], WIDTH, 7), norms[0], nn.ReLU()),
            *(halve, norms[1], nn.ReLU(), Block(), double, norms[2], nn.ReLU()),
            *(nn.ReflectionPad2d(3), nn.Conv2d(WIDTH, spec.shape[0], 7), nn.Tanh()),
        )

    def forward(self, source):
        return super().forward(source)


class Doubled(nn.Sequential):
    """As SRResNet: zeros around, twice as large by a pixel shuffle; with an instance norm at the end."""

    multiple, scale, margin = 1, 2, 3

    def __init__(self, spec):
        super().__init__(
            *(nn.Conv2d(spec.source.shape[0], WIDTH, 3, 1, 1), nn.BatchNorm2d(WIDTH), nn.PReLU()),
            *(nn.Conv2d(WIDTH, 4 * WIDTH, 3, 1, 1), nn.PixelShuffle(2), nn.InstanceNorm2d(WIDTH)),
            nn.Conv2d(WIDTH, spec.shape[0], 3, 1, 1),
        )

    def forward(self, source):
        return super().forward(source)


def unet(spec):
    return UNetGenerator(spec, base_channels=4, num_downs=2, norm="instance")


class Model:
    """What the translation of pictures asks of a model."""

    given, device = ("source",), torch.device("cpu")

    def __init__(self, network, side=16, channels=3):
        torch.manual_seed(0)
        source = DataSpec("source", (channels, side, side))
        scale = getattr(network, "scale", 1)
        self.spec = DataSpec("image", (3, side * scale, side * scale), source=source)
        self.sampling_network = network(self.spec).eval()
        for layer in self.sampling_network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
            if isinstance(layer, nn.InstanceNorm2d) and layer.affine:
                nn.init.normal_(layer.weight, 1.0, 0.5)
                nn.init.normal_(layer.bias)

    def sample(self, index, seed=0, source=None):
        return self.sampling_network(source=source)


def picture(height, width, channels=3):
    """Brighter and more contrasted to one side, so that a tile's own statistics are not the whole's."""
    x = torch.rand(channels, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return x * torch.linspace(0.1, 1.0, width) + torch.linspace(-0.5, 0.5, height)[:, None]


NETWORKS = [Mirrored, Doubled, unet]


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("height", "width", "tile"), [(67, 53, 16), (40, 41, 30), (24, 90, 8)])
def test_a_picture_in_tiles_is_the_picture_in_one_piece(network, height, width, tile):
    model, source = Model(network), picture(height, width)
    expected = Translator(model, tile=0)(source)
    found = Translator(model, tile=tile)(source)
    scale = model.sampling_network.scale
    assert found.shape == (3, scale * height, scale * width)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-4 / 4)
    assert expected.std() > 0.05


@pytest.mark.parametrize("network", NETWORKS)
def test_the_whole_picture_is_what_the_model_makes_of_it(network):
    model, source = Model(network), picture(32, 48)
    assert torch.equal(Translator(model)(source), model.sample(None, source=source[None])[0])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("size", [(1, 1), (3, 50), (17, 2)])
def test_any_size_has_a_translation_of_its_size(network, size):
    model = Model(network)
    scale = model.sampling_network.scale
    assert Translator(model)(picture(*size)).shape == (3, scale * size[0], scale * size[1])


@pytest.mark.parametrize(("network", "side"), [(Mirrored, 4), (unet, 4), (Doubled, 5)])
def test_a_picture_of_the_size_of_training_is_never_filled_up(network, side):
    model, source = Model(network, side), picture(side, side)
    assert torch.equal(Translator(model)(source), model.sample(None, source=source[None])[0])


def test_the_margin_of_a_u_net_is_how_far_a_pixel_reaches():
    net = UNetGenerator(DataSpec("i", (1, 64, 64), source=DataSpec("s", (1, 64, 64))), 2, num_downs=3)
    side = 128
    net.eval().double()
    farthest = 0
    for pixel in range(side // 2, side // 2 + net.multiple):
        source = torch.rand(1, 1, side, side, dtype=torch.float64, requires_grad=True)
        net(source)[0, 0, pixel, pixel].backward()
        seen = source.grad[0, 0].nonzero()
        farthest = max(farthest, int((seen - pixel).abs().max()))
    assert (net.margin, net.multiple, net.scale) == (farthest, 8, 1)


def test_too_small_a_margin_leaves_seams():
    model, source = Model(Mirrored), picture(64, 64)
    expected = Translator(model, tile=0)(source)
    model.sampling_network.margin = 4
    assert (Translator(model, tile=16)(source) - expected).abs().max() > 1e-3


def test_large_pictures_are_tiled_where_the_network_can_be(monkeypatch):
    monkeypatch.setattr("genlab.evaluation.tiles.LARGEST", 1000)
    monkeypatch.setattr("genlab.evaluation.tiles.TILE", 16)
    model, told = Model(Mirrored), []
    Translator(model)(picture(32, 32), lambda *seen: told.append(seen))
    assert told[-1] == (24, 24) and len(told) == 24  # 4 tiles, 5 norms and the image
    model.sampling_network.margin = None
    Translator(model)(picture(32, 32), lambda *seen: told.append(seen))
    assert len(told) == 24
    with pytest.raises(ValueError, match="sees the whole picture in each of its pixels and cannot be tiled"):
        Translator(model, tile=16)


def test_moments_of_parts_are_those_of_the_whole_even_far_from_zero():
    x = torch.randn(1, 3, 20, 30, dtype=torch.float64) * 1e-3 + 1e4
    moments = Moments()
    for part in x.split([3, 10, 7], dim=2):
        moments.add(part)
    mean, variance = moments.mean_and_variance()
    torch.testing.assert_close(mean, x.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(variance, x.var(dim=(0, 2, 3), correction=0), rtol=1e-6, atol=0.0)


def test_hooks_are_gone_afterwards_whatever_happens():
    network = Model(Mirrored).sampling_network
    with pytest.raises(RuntimeError), WholeNorms(network) as norms, norms.of_tile(whole(picture(8, 8))):
        network(torch.zeros(1, 9, 8, 8))
    assert not any(layer._forward_hooks for layer in network.modules())


def test_reflection_goes_there_and_back_as_often_as_needed():
    row = torch.arange(3.0)[None, None]
    assert reflected(row, 1, 9).flatten().tolist() == [0, 1, 2, 1, 0, 1, 2, 1, 0]
    assert reflected(row[:, :, :1], 2, 3).unique().tolist() == [0]


def test_models_that_translate_no_images_are_named():
    class Told(Model):
        given = ()

    with pytest.raises(ValueError, match="translates no images"):
        Translator(Told(Mirrored))
    model = Model(Mirrored)
    model.sampling_network = nn.Identity()
    with pytest.raises(ValueError, match="Identity does not say which sizes it takes"):
        Translator(model)
