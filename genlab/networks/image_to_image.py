"""The generator and discriminator of pix2pix: from an image to an image of the same size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from genlab.networks.conditioning import with_label
from genlab.networks.dcgan import initialise
from genlab.shapes import DataSpec

Norm = Literal["batch", "instance", "none"]

_DEEPEST = 8
_MOST_DOUBLINGS = 3
_BLOCKS_WITH_DROPOUT = 3


class UNetGenerator(nn.Module):
    """Strided convolutions from a source image down to a few pixels and up again, joined by skips.

    Isola et al. 2017 (arXiv:1611.07004), section 6.1: 4 x 4 convolutions, LeakyReLU with slope 0.2 on the way
    down and ReLU on the way up, norms everywhere but at the input, the smallest map and the output, tanh at
    the end, weights from N(0, 0.02). There is no z: dropout in the first three blocks of the way up is the
    noise. It is active in training mode alone; in eval mode an image is a function of its source.

    Args:
        spec: The images to make, and in `source` those to start from, of the same sides.
        base_channels: Channels of the first layer; the next three halvings of the size double them.
        num_downs: Halvings of the size; as many as the sides allow, at most the paper's 8, where left out.
        dropout: Share of the numbers set to 0; 0 makes the network deterministic in training, too.
        norm: "instance" normalises each image by itself, in both modes, as "batch" does for a batch of one in
            training; in eval mode "batch" takes running averages, which few and odd images may not fit.

    Attributes:
        multiple: What the sides of an image must be a multiple of.
        scale: Pixels of an output for a pixel of its input, along a side.
        margin: Pixels around an output's place that it is made of, statistics of instance norm apart.

    Shapes:
        source: (batch, source channels, height, width). Returns (batch, channels, height, width) in [-1, 1].

    Raises:
        ValueError: If spec or its source are no images, their sides differ, or cannot be halved that often.
    """

    scale = 1

    def __init__(
        self,
        spec: DataSpec,
        base_channels: int = 64,
        num_downs: int | None = None,
        dropout: float = 0.5,
        norm: Literal["batch", "instance"] = "batch",
    ) -> None:
        super().__init__()
        source = image_source(spec)
        num_downs = _halvings(spec, num_downs)
        self.multiple = 2**num_downs
        self.margin = _reach(num_downs)
        widths = _widths(base_channels, num_downs)
        blocks = [_down(a, b, norm) for a, b in pairwise(widths[:-1])]
        smallest = nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(widths[-2], widths[-1], 4, 2, 1))
        self.down = nn.ModuleList([nn.Conv2d(source.shape[0], widths[0], 4, 2, 1), *blocks, smallest])
        # What comes from below has as many channels as the skip beside it; below the smallest map is nothing.
        inputs = [widths[-1], *(2 * width for width in reversed(widths[1:-1]))]
        outputs = reversed(widths[:-1])
        self.up = nn.ModuleList(
            _up(a, b, norm, dropout if number < _BLOCKS_WITH_DROPOUT else 0.0)
            for number, (a, b) in enumerate(zip(inputs, outputs, strict=True))
        )
        self.output = nn.Sequential(
            nn.ReLU(), nn.ConvTranspose2d(2 * widths[0], spec.shape[0], 4, 2, 1), nn.Tanh()
        )
        self.feature_channels = [source.shape[0], *widths[:-1]]
        self.apply(initialise)

    def encode(self, source: Tensor) -> list[Tensor]:
        """Returns the maps by which patches can be compared: the pixels, and all that a skip leads on.

        Shapes:
            Returns num_downs tensors, (batch, feature_channels[i], rows, columns) each.
        """
        features = [source]
        for layer in self.down[:-1]:
            features.append(layer(features[-1]))
        return features

    def forward(self, source: Tensor) -> Tensor:
        skips, h = [], source
        for layer in self.down:
            h = layer(h)
            skips.append(h)
        skips.pop()
        for layer in self.up:
            h = torch.cat([layer(h), skips.pop()], dim=1)
        return self.output(h)


class PatchDiscriminator(nn.Module):
    """Strided convolutions from an image to one logit for each of its overlapping patches.

    Isola et al. 2017 (arXiv:1611.07004), section 6.1: 4 x 4 convolutions, num_layers of stride 2 and two of
    stride 1, LeakyReLU with slope 0.2, norms everywhere but at the input and the output, weights from
    N(0, 0.02). A logit sees a square whose side is 16, 34, 70, 142 pixels for num_layers from 1 to 4. The
    source is stacked on the image, a label as a plane for each class.

    Args:
        spec: The images to judge; with a source or classes, the network needs them.
        base_channels: Channels of the first layer; up to three further ones double them.
        num_layers: Halvings of the size; each doubles the patch, and large ones approach a whole-image judge.
        norm: "batch" as in the paper; "instance" for batches of one; "none" for gradient penalties, which
            batch norm makes meaningless.

    Shapes:
        x: (batch, channels, height, width); label: (batch,); source: (batch, source channels, height, width).
        Returns logits, (batch, 1, rows, columns) with side // 2^num_layers - 2 rows and columns.

    Raises:
        ValueError: If spec or its source are no images, their sides differ, or no patch fits in them.
    """

    def __init__(
        self, spec: DataSpec, base_channels: int = 64, num_layers: int = 3, norm: Norm = "batch"
    ) -> None:
        super().__init__()
        _require_patch(spec, num_layers)
        self.num_classes, self.has_source = spec.num_classes, spec.source is not None
        channels = spec.shape[0] + (image_source(spec).shape[0] if self.has_source else 0) + spec.num_classes
        widths = _widths(base_channels, num_layers + 1)
        blocks = [
            _down(a, b, norm, stride=2 if number < num_layers else 1)
            for number, (a, b) in enumerate(pairwise(widths), start=1)
        ]
        self.features = nn.Sequential(nn.Conv2d(channels, widths[0], 4, 2, 1), *blocks, nn.LeakyReLU(0.2))
        self.output = nn.Conv2d(widths[-1], 1, 4, 1, 1)
        self.apply(initialise)

    def forward(self, x: Tensor, label: Tensor | None = None, source: Tensor | None = None) -> Tensor:
        planes = with_label(x.new_empty(len(x), 0), label, self.num_classes)[:, :, None, None]
        seen = [*self._sources(source), x, planes.expand(-1, -1, *x.shape[2:])]
        return self.output(self.features(torch.cat(seen, dim=1)))

    def _sources(self, source: Tensor | None) -> list[Tensor]:
        if not self.has_source:
            return []
        if source is None:
            raise ValueError("source is missing: this network judges an image beside its source; give both.")
        return [source]


class InstanceNorm(nn.InstanceNorm2d):
    """Instance norm whose gradient is right in any layout.

    Of a batch of one, torch 2.14 on a CPU reads a gradient as if it lay in memory as the input does, and
    returns a wrong one where it does not.
    """

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x.contiguous())
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient.contiguous())
        return y


def _down(inputs: int, outputs: int, norm: Norm, stride: int = 2) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 4, stride, 1, bias=norm == "none")
    return nn.Sequential(nn.LeakyReLU(0.2), convolution, _norm(norm, outputs))


def _up(inputs: int, outputs: int, norm: Norm, dropout: float) -> nn.Module:
    convolution = nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=norm == "none")
    return nn.Sequential(nn.ReLU(), convolution, _norm(norm, outputs), nn.Dropout(dropout))


def _norm(norm: Norm, channels: int) -> nn.Module:
    layers = {"batch": nn.BatchNorm2d, "instance": InstanceNorm, "none": nn.Identity}
    if norm not in layers:
        raise ValueError(f"norm must be one of {', '.join(layers)}, got {norm}.")
    return layers[norm](channels)


def _widths(base_channels: int, num: int) -> list[int]:
    return [base_channels * 2 ** min(level, _MOST_DOUBLINGS) for level in range(num)]


def image_source(spec: DataSpec) -> DataSpec:
    """Returns the form of the images to start from, or says why there is none."""
    source = spec.source
    if source is None or not source.is_grid or not spec.is_grid:
        raise ValueError(
            f"source must be an image of the sides of the image to make, got {source!r} for {spec.name} of "
            f"shape {spec.shape}; use data of pairs and tell the model its source."
        )
    if source.shape[1:] != spec.shape[1:]:
        raise ValueError(
            f"source must have the sides of the image to make, {sides_in_words(spec.shape[1:])}, got "
            f"{sides_in_words(source.shape[1:])}; resize one of the two."
        )
    return source


def _halvings(spec: DataSpec, num_downs: int | None) -> int:
    """Returns how often the sides are halved, at least twice: once to the skip and once below it."""
    sides = spec.shape[1:]
    common = math.gcd(*sides)
    possible = (common & -common).bit_length() - 1
    wanted = max(2, min(possible, _DEEPEST)) if num_downs is None else num_downs
    if wanted < 2:
        raise ValueError(f"num_downs must be at least 2, got {wanted}.")
    if wanted > possible:
        factor = 2**wanted
        valid = sides_in_words([math.ceil(side / factor) * factor for side in sides])
        fewer = f" or give num_downs={possible}" if possible >= 2 else ""
        raise ValueError(
            f"UNetGenerator with num_downs={wanted} needs sides that are a multiple of {factor}, got "
            f"{sides_in_words(sides)}; resize the images to {valid}{fewer}."
        )
    return wanted


def _reach(num_downs: int) -> int:
    """Returns how far from a pixel of the image the pixels of the source lie that it is made of.

    Position o of a transposed convolution (4 x 4, stride 2, padding 1) is made of (o - 2) / 2 ... (o + 1) / 2
    below, and position o of a strided one of 2 o - 1 ... 2 o + 2; skips are shorter ways.
    """
    farthest = 0
    for pixel in range(2**num_downs):
        first = last = pixel
        for _ in range(num_downs):
            first, last = -((2 - first) // 2), (last + 1) // 2
        for _ in range(num_downs):
            first, last = 2 * first - 1, 2 * last + 2
        farthest = max(farthest, pixel - first, last - pixel)
    return farthest


def _require_patch(spec: DataSpec, num_layers: int) -> None:
    if not spec.is_grid:
        raise ValueError(f"PatchDiscriminator needs images, but {spec.name} has shape {spec.shape}.")
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}.")
    # Two convolutions of stride 1 take a pixel each, and a map of one must be left.
    smallest = 3 * 2**num_layers
    if min(spec.shape[1:]) < smallest:
        raise ValueError(
            f"PatchDiscriminator with num_layers={num_layers} needs sides of at least {smallest} pixels, got "
            f"{sides_in_words(spec.shape[1:])}; give fewer num_layers or larger images."
        )


def sides_in_words(sides: Sequence[int]) -> str:
    """Returns sides as people write them, such as "64 x 96"."""
    return " x ".join(map(str, sides))
