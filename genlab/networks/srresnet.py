"""The networks of SRGAN: from a small image to a large one, and a judge of large ones."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from genlab.shapes import DataSpec

Norm = Literal["batch", "none"]

_BICUBIC_REACH = 2  # source pixels beside a pixel that the bicubic filter takes from


class SRResNet(nn.Module):
    """Residual blocks at the size of the source, then pixel shuffles up to the image's.

    Ledig et al. 2017 (arXiv:1609.04802), figure 4, whose sizes are the defaults: a convolution of 9 x 9,
    num_blocks blocks of two convolutions of 3 x 3, a skip over all of them, one shuffle for each factor of 2
    or 3 that the sides grow by, and a convolution of 9 x 9 to the image, which has no bound. PReLU inside.

    A shuffle begins as nearest-neighbour upsampling (`icnr`; Aitken et al. 2017, arXiv:1707.02937): there is
    no checkerboard to unlearn. For a source of the image's sides there is no shuffle.

    Args:
        spec: The images to make, and in `source` those to start from, whose sides divide theirs evenly.
        features: Channels inside.
        num_blocks: Residual blocks.
        norm: "batch" as in the paper; "none" keeps the range of the source, which trains deeper and faster
            (Lim et al. 2017, arXiv:1707.02921, section 3.1).
        kernel_size: Side of the first and the last convolution.
        residual: Add the source, enlarged by the bicubic filter, and learn what it lacks (Kim et al. 2016,
            arXiv:1511.04587). The last convolution is then 0 at the start: the network begins as that filter.

    Attributes:
        scale: Pixels of an image for each of its source, along a side.
        margin: How many source pixels around its place an output pixel depends on.
        multiple: What the sides of a source must be divisible by.

    Shapes:
        source: (batch, source channels, height, width), of any sides.
        Returns (batch, channels, scale height, scale width).

    Raises:
        ValueError: If spec or its source are no images, or the sides do not grow by products of 2 and 3.
    """

    multiple = 1

    def __init__(
        self,
        spec: DataSpec,
        features: int = 64,
        num_blocks: int = 16,
        norm: Norm = "batch",
        kernel_size: int = 9,
        residual: bool = False,
    ) -> None:
        super().__init__()
        _require_sizes(features, num_blocks, kernel_size)
        self.scale = scale_of(spec)
        self.residual = residual
        assert spec.source is not None
        channels, source_channels = spec.shape[0], spec.source.shape[0]
        if residual and source_channels not in (1, channels):
            raise ValueError(
                f"residual adds the source to the image, which has {channels} channels and not "
                f"{source_channels}; leave it out."
            )
        factors = _factors(self.scale)
        half = kernel_size // 2
        self.margin = math.ceil(half + 2 * num_blocks + 1 + _reach_of_shuffles(factors, half))
        if residual:
            self.margin = max(self.margin, _BICUBIC_REACH)
        self.head = nn.Sequential(nn.Conv2d(source_channels, features, kernel_size, padding=half), nn.PReLU())
        self.blocks = nn.Sequential(*(ResidualBlock(features, norm) for _ in range(num_blocks)))
        self.join = _normalised(features, norm)
        self.upsampling = nn.Sequential(*(Upsampling(features, factor) for factor in factors))
        self.output = nn.Conv2d(features, channels, kernel_size, padding=half)
        if residual:
            nn.init.zeros_(self.output.weight)
            nn.init.zeros_(self.output.bias)  # type: ignore[arg-type]

    def forward(self, source: Tensor) -> Tensor:
        h = self.head(source)
        x = self.output(self.upsampling(h + self.join(self.blocks(h))))
        if not self.residual:
            return x
        # With antialias alone, torch has the filter of Pillow and MATLAB, by which small images are made.
        return x + interpolate(source, x.shape[2:], mode="bicubic", antialias=True)


class ResidualBlock(nn.Module):
    """x + f(x) with f of two convolutions and PReLU between them (He et al. 2016; Gross and Wilber 2016).

    Args:
        features: Channels.
        norm: After each convolution.
    """

    def __init__(self, features: int, norm: Norm) -> None:
        super().__init__()
        self.layers = nn.Sequential(_normalised(features, norm), nn.PReLU(), _normalised(features, norm))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Upsampling(nn.Module):
    """A convolution to factor^2 times the channels, of which each group of factor^2 becomes a square.

    Shi et al. 2016 (arXiv:1609.05158), equation 4, followed by PReLU; begins as nearest-neighbour upsampling
    of a convolution.

    Args:
        features: Channels of both sides.
        factor: What the sides are multiplied by.
    """

    def __init__(self, features: int, factor: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(features, factor**2 * features, 3, padding=1)
        self.shuffle = nn.PixelShuffle(factor)
        self.activation = nn.PReLU()
        icnr(self.convolution, factor)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.shuffle(self.convolution(x)))


@torch.no_grad()
def icnr(convolution: nn.Conv2d, factor: int) -> None:
    """Gives the filters that a pixel shuffle lays into one square the same weights.

    Aitken et al. 2017 (arXiv:1707.02937), section 3: convolution and shuffle together then are a convolution
    followed by nearest-neighbour upsampling.

    Args:
        convolution: Stands before the shuffle.
        factor: Of the shuffle.
    """
    for parameter in (convolution.weight, convolution.bias):
        if parameter is not None:
            parameter.copy_(parameter[:: factor**2].repeat_interleave(factor**2, dim=0))


class VGGDiscriminator(nn.Module):
    """Convolutions in the manner of VGG from an image to one logit.

    Ledig et al. 2017 (arXiv:1609.04802), figure 4: pairs of 3 x 3 convolutions of stride 1 and 2 with 1, 2, 4
    and 8 times the channels, batch norm but at the input, LeakyReLU with slope 0.2, and two linear layers.

    Args:
        spec: The images to judge.
        base_channels: Channels of the first layer.
        num_layers: Halvings of the size.
        hidden: Units of the last hidden layer.
        norm: "batch" as in the paper; "none" for gradient penalties, which batch norm makes meaningless.

    Shapes:
        x: (batch, channels, height, width). Returns logits, (batch,).

    Raises:
        ValueError: If the data are no images, or are too small to be halved that often.
    """

    def __init__(
        self,
        spec: DataSpec,
        base_channels: int = 64,
        num_layers: int = 4,
        hidden: int = 1024,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        if not spec.is_grid:
            raise ValueError(f"VGGDiscriminator needs images, but {spec.name} has shape {spec.shape}.")
        if min(spec.shape[1:]) < 2**num_layers:
            raise ValueError(
                f"VGGDiscriminator with num_layers={num_layers} needs sides of at least {2**num_layers} "
                f"pixels, got {spec.shape[1]} x {spec.shape[2]}; give fewer num_layers or larger images."
            )
        first = nn.Conv2d(spec.shape[0], base_channels, 3, padding=1)
        widths = [base_channels * 2 ** (level // 2) for level in range(2 * num_layers)]
        blocks = [
            _judging(a, b, norm, stride=2 - number % 2) for number, (a, b) in enumerate(pairwise(widths))
        ]
        self.features = nn.Sequential(nn.Sequential(first, nn.LeakyReLU(0.2)), *blocks)
        pixels = math.prod(math.ceil(side / 2**num_layers) for side in spec.shape[1:])
        self.output = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels * widths[-1], hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.features(x)).flatten()


def _judging(inputs: int, outputs: int, norm: Norm, stride: int) -> nn.Module:
    return nn.Sequential(_normalised(inputs, norm, outputs, stride), nn.LeakyReLU(0.2))


def _normalised(inputs: int, norm: Norm, outputs: int | None = None, stride: int = 1) -> nn.Module:
    if norm not in ("batch", "none"):
        raise ValueError(f"norm must be batch or none, got {norm}.")
    convolution = nn.Conv2d(inputs, outputs or inputs, 3, stride, 1, bias=norm == "none")
    return convolution if norm == "none" else nn.Sequential(convolution, nn.BatchNorm2d(outputs or inputs))


def scale_of(spec: DataSpec) -> int:
    """Returns how many pixels an image has for each of its source, along a side.

    Raises:
        ValueError: There is no source, it is no image, or its sides are not the same share of the image's.
    """
    source = spec.source
    if source is None or not source.is_grid or not spec.is_grid:
        raise ValueError(
            f"source must be an image to start from, got {source!r} for {spec.name} of shape {spec.shape}; "
            "use data of pairs and tell the model its source."
        )
    scales = {side / small for side, small in zip(spec.shape[1:], source.shape[1:], strict=True)}
    scale = scales.pop()
    if scales or scale != int(scale):
        raise ValueError(
            f"The sides of the image must be the same multiple of its source's, got {spec.shape[1:]} and "
            f"{source.shape[1:]}."
        )
    return int(scale)


def _factors(scale: int) -> list[int]:
    """Returns the shuffles that make a scale: as many of 2 as possible, then those of 3."""
    factors = []
    for factor in (2, 3):
        while scale % factor == 0:
            factors.append(factor)
            scale //= factor
    if scale != 1:
        raise ValueError(f"SRResNet enlarges by products of 2 and 3, and {scale} is left of the scale.")
    return factors


def _reach_of_shuffles(factors: list[int], half: int) -> float:
    """Returns how far the convolutions after the blocks reach, in pixels of the source."""
    scales = [math.prod(factors[:number]) for number in range(len(factors) + 1)]
    return sum(1 / scale for scale in scales[:-1]) + half / scales[-1]


def _require_sizes(features: int, num_blocks: int, kernel_size: int) -> None:
    for name, value in (("features", features), ("num_blocks", num_blocks)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}.")
