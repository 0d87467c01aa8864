"""Convolutions that see only what comes before a pixel, over whole images or one pixel at a time."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pad, unfold

from genlab.shapes import DataSpec

Sees = Literal["above", "before", "up to"]
"""What an output sees of its own row: all of it ("above", to be moved down by one row), what is before the
pixel, or the pixel too."""


class Memory:
    """What a network has computed for the pixels that are known, so that no pixel is computed twice.

    Args:
        num_images: Images that are drawn at a time.
        size: Their height and width.

    Attributes:
        known: What layers of other kinds keep, each under a name of its own.
    """

    def __init__(self, num_images: int, size: tuple[int, ...]) -> None:
        self.num_images, self.size = num_images, size
        self._maps: dict[int, Tensor] = {}
        self._kernels: dict[int, Tensor] = {}
        self.known: dict[tuple[nn.Module, str], Any] = {}

    def inputs(self, layer: CausalConv2d) -> Tensor:
        """Returns the inputs of a layer with the zeros around them, to be filled in."""
        if id(layer) not in self._maps:
            height, width = self.size
            left, right, top, _ = layer.margins
            shape = (self.num_images, layer.weight.shape[1], height + top, width + left + right)
            self._maps[id(layer)] = layer.weight.new_zeros(shape)
        return self._maps[id(layer)]

    def kernel(self, layer: CausalConv2d) -> Tensor:
        """Returns the weight of a layer as a matrix, (out channels, inputs of a pixel)."""
        if id(layer) not in self._kernels:
            self._kernels[id(layer)] = layer.kernel().flatten(1)
        return self._kernels[id(layer)]


class PixelNetwork(nn.Module):
    """A network that can be asked for one pixel after the other, remembering what it has computed.

    Attributes:
        size: Height and width of the images.
        sees_channels: Whether the channels of a pixel are told each other in turn; else they come at once.
    """

    size: tuple[int, ...]
    sees_channels: bool

    def new_memory(self, num_images: int) -> Memory:
        """Returns an empty memory for drawing images."""
        return Memory(num_images, self.size)


class CausalConv2d(nn.Conv2d):
    """A convolution over the rows above and the part of its own row that comes before a pixel.

    Its kernel ends at the pixel's row. Inside of a pixel the channels R, G, B come one after the other: a
    feature belongs to the channel of its number modulo the number of channels, and sees of its own pixel only
    the features of earlier channels, or of its own one too where it sees "up to" the pixel (van den Oord et
    al. 2016, arXiv:1601.06759, section 3.4).

    Args:
        in_channels, out_channels: Of the features.
        reach: Rows above, columns to the left and columns to the right that it looks at; of its own row only
            what it may see.
        sees: What of its own row.
        num_channels: Of a pixel, when its channels see each other in turn; 1 for all at a time.
        stride: Takes every second row and column where it is 2: output (i, j) is that of pixel (2 i, 2 j).

    Shapes:
        x: (batch, in_channels, height, width). Returns (batch, out_channels, height, width).
    """

    mask: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        reach: tuple[int, int, int] = (0, 0, 0),
        sees: Sees = "up to",
        num_channels: int = 1,
        stride: int = 1,
    ) -> None:
        above, left, right = reach
        super().__init__(in_channels, out_channels, (above + 1, left + 1 + right), stride)
        self.margins = (left, right, above, 0)
        self.register_buffer("mask", _mask(self.weight, left, sees, num_channels), persistent=False)

    def kernel(self) -> Tensor:
        """Returns the weight with zeros where nothing may be seen."""
        return self.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        padded = pad(x, self.margins)
        if self.in_channels > 3:
            return conv2d(padded, self.kernel(), self.bias, self.stride)
        # Of few channels it is a matrix product, several times as fast, whose channels are innermost.
        size = [-(-side // step) for side, step in zip(x.shape[2:], self.stride, strict=True)]
        seen = unfold(padded, self.kernel_size, stride=self.stride).mT
        return linear(seen, self.kernel().flatten(1), self.bias).unflatten(1, size).movedim(-1, 1)

    def pixel(self, features: Tensor, row: int, column: int, memory: Memory) -> Tensor:
        """Returns the output at one pixel, (batch, out_channels), and remembers the features there.

        Args:
            features: At this pixel, (batch, in_channels).
            row: Its row.
            column: Its column.
            memory: Of the pixels before it.
        """
        known, kernel = memory.inputs(self), memory.kernel(self)
        left, _, top, _ = self.margins
        known[:, :, row + top, column + left] = features
        rows, width = self.weight.shape[2:]
        seen = known[:, :, row : row + rows, column : column + width]
        return torch.addmm(self.bias, seen.flatten(1), kernel.T)  # type: ignore[arg-type]

    def image_pixel(self, x: Tensor, row: int, column: int, memory: Memory) -> Tensor:
        """Returns the output at one pixel of a layer whose inputs are the images themselves.

        A pixel is drawn after it was asked for: what was drawn since is read first, in this row and above.
        """
        left, _, top, _ = self.margins
        new = slice(max(row - 1, 0), row + 1)
        memory.inputs(self)[:, :, new.start + top : new.stop + top, left : left + x.shape[3]] = x[:, :, new]
        return self.pixel(x[:, :, row, column], row, column, memory)

    def row(self, features: Tensor, row: int, memory: Memory) -> Tensor:
        """Returns the output of one row, (batch, out_channels, width), and remembers the features there.

        Args:
            features: Of this row, (batch, in_channels, width).
            row: Its number.
            memory: Of the rows above it.
        """
        known = memory.inputs(self)
        left, right, top, _ = self.margins
        width = features.shape[2]
        known[:, :, row + top, left : left + width] = features
        seen = known[:, :, row : row + top + 1, : left + width + right]
        return conv2d(seen, self.kernel(), self.bias, self.stride)[:, :, 0]


def channels_in_turn(spec: DataSpec) -> int:
    """Returns how many channels of a pixel are told each other in turn: those of an image, which have levels.

    Numbers without levels, such as the indicators of a code, are one pixel that comes at once: 1.
    """
    return spec.shape[0] if spec.kind == "image" else 1


def _mask(weight: Tensor, middle: int, sees: Sees, num_channels: int) -> Tensor:
    """Returns ones where an output may see an input, (out channels, in channels, rows, width)."""
    mask = torch.ones_like(weight)
    if sees == "above":
        return mask
    mask[:, :, -1, middle + 1 :] = 0
    out, into = (torch.arange(number) % num_channels for number in weight.shape[:2])
    earlier = out[:, None] > into[None, :] if sees == "before" else out[:, None] >= into[None, :]
    mask[:, :, -1, middle] = earlier.to(mask)
    return mask


def moved_down(x: Tensor) -> Tensor:
    """Returns the features of the row above in every row, zeros in the first."""
    return pad(x, (0, 0, 1, -1))
