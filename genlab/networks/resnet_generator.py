"""The generator of CycleGAN and CUT: residual blocks at a quarter of the image's sides."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from genlab.networks.dcgan import initialise
from genlab.networks.image_to_image import InstanceNorm, image_source, sides_in_words
from genlab.shapes import DataSpec

_HALVINGS = 2
_ENCODER_BLOCKS = 5


class ResNetGenerator(nn.Module):
    """Two halvings, residual blocks and two doublings, with instance norm; no skip from input to output.

    Johnson et al. 2016 (arXiv:1603.08155) as Zhu et al. 2017 (arXiv:1703.10593), appendix 7.2, use it: with
    c = base_channels, c7s1-c, d2c, d4c, num_blocks times R4c, u2c, uc, c7s1-channels; reflection padding but
    around strided convolutions, ReLU, tanh at the end, weights from N(0, 0.02). Published code gives each
    convolution a bias; one before an instance norm is taken away again by it, and is left out here.

    Args:
        spec: The images to make, and in `source` those to start from, of the same sides.
        base_channels: c above.
        num_blocks: 9 for images of 256 pixels and more, 6 for smaller ones.

    Attributes:
        multiple: What the sides of an image must be a multiple of.
        scale: Pixels of an output for a pixel of its input, along a side.
        margin: Pixels around an output's place that it is made of, statistics of instance norm apart.

    Shapes:
        source: (batch, source channels, height, width). Returns (batch, channels, height, width) in [-1, 1].

    Raises:
        ValueError: If spec or its source are no images, or their sides differ or are no multiple of 4.
    """

    multiple = 2**_HALVINGS
    scale = 1

    def __init__(self, spec: DataSpec, base_channels: int = 64, num_blocks: int = 9) -> None:
        super().__init__()
        source = image_source(spec)
        if num_blocks < 1:
            raise ValueError(f"num_blocks must be at least 1, got {num_blocks}.")
        _require_multiple(spec.shape[1:], self.multiple)
        c = base_channels
        self.margin = 12 + 8 * num_blocks
        self.start = nn.Sequential(
            nn.ReflectionPad2d(3), *_normed(nn.Conv2d(source.shape[0], c, 7, bias=False))
        )
        self.down = nn.ModuleList(
            nn.Sequential(*_normed(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False))) for width in (c, 2 * c)
        )
        self.blocks = nn.ModuleList(_Residual(4 * c) for _ in range(num_blocks))
        self.up = nn.Sequential(
            *_normed(nn.ConvTranspose2d(4 * c, 2 * c, 3, 2, 1, 1, bias=False)),
            *_normed(nn.ConvTranspose2d(2 * c, c, 3, 2, 1, 1, bias=False)),
        )
        self.output = nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(c, spec.shape[0], 7), nn.Tanh())
        self.num_encoding = min(_ENCODER_BLOCKS, num_blocks // 2 + 1)
        self.feature_channels = [source.shape[0], 2 * c, 4 * c, 4 * c, 4 * c]
        self.apply(initialise)

    def forward(self, source: Tensor) -> Tensor:
        return self._rest(self.encode(source)[-1])

    def encode(self, source: Tensor) -> list[Tensor]:
        """Returns the maps by which patches are compared.

        Park et al. 2020 (arXiv:2007.15651), section 4: the pixels, both halved maps, and what comes of the
        first and of the last residual block of the encoder, the first half of the network: the fifth of nine.

        Shapes:
            Returns five tensors, (batch, feature_channels[i], rows, columns) each.
        """
        h = self.start(source)
        features = [source]
        for layer in self.down:
            h = layer(h)
            features.append(h)
        for number, block in enumerate(self.blocks[: self.num_encoding]):
            h = block(h)
            if number == 0:
                features.append(h)
        return [*features, h]

    def _rest(self, h: Tensor) -> Tensor:
        """Returns the image that belongs to the last map of the encoder."""
        for block in self.blocks[self.num_encoding :]:
            h = block(h)
        return self.output(self.up(h))


class _Residual(nn.Module):
    """x + f(x) with two convolutions, and no ReLU behind the sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, second = (nn.Conv2d(channels, channels, 3, bias=False) for _ in range(2))
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1), *_normed(first), nn.ReflectionPad2d(1), *_normed(second)[:-1]
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class PatchHeads(nn.Module):
    """Directions of the features at some places of each map: a perceptron a map, scaled to length 1.

    Park et al. 2020 (arXiv:2007.15651), section 3: two layers with ReLU between them, so that what is
    compared need not be what the generator works with.

    Args:
        channels: Of each map.
        width: Of the hidden and of the output layer.

    Shapes:
        features: (batch, places, channels[i]) for each map i. Returns (batch, places, width) each.
    """

    def __init__(self, channels: Sequence[int], width: int = 256) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(num, width), nn.ReLU(), nn.Linear(width, width)) for num in channels
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [
            nn.functional.normalize(head(x), dim=-1) for head, x in zip(self.heads, features, strict=True)
        ]


def _normed(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[nn.Module]:
    return [convolution, InstanceNorm(convolution.out_channels), nn.ReLU()]


def _require_multiple(sides: Sequence[int], multiple: int) -> None:
    if any(side % multiple for side in sides):
        valid = [math.ceil(side / multiple) * multiple for side in sides]
        raise ValueError(
            f"ResNetGenerator needs sides that are a multiple of {multiple}, got {sides_in_words(sides)}; "
            f"resize the images to {sides_in_words(valid)}."
        )
