"""PixelRNN: what is known of a pixel, by LSTMs that read the image row by row or along its diagonals."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from genlab.networks.masked import CausalConv2d, Memory, PixelNetwork, channels_in_turn, moved_down
from genlab.networks.pixelcnn import Head, around, multiple
from genlab.shapes import DataSpec


class PixelRNN(PixelNetwork):
    """A masked convolution, layers of LSTMs with residual connections, and two 1 x 1 convolutions.

    van den Oord et al. 2016 (arXiv:1601.06759), sections 3.1 to 3.3. Every layer reads 2 x features numbers
    a pixel and adds what its LSTM found to them.

    Args:
        spec: The images, or pixels without levels, whose channels come at once.
        num_outputs: Numbers for each pixel; output i belongs to channel i modulo the channels.
        features: Length of a state; the paper's 16 for digits.
        num_layers: Layers of LSTMs; the paper's 7 for digits.
        first_size: Sides of the first convolution.
        dropout: Share of what a layer adds that is set to 0 in training, for scarce data.

    Shapes:
        x: (batch, channels, height, width) in [-1, 1]. Returns (batch, num_outputs, height, width), where
        what belongs to a channel follows from earlier channels and pixels alone.
    """

    def __init__(
        self,
        spec: DataSpec,
        num_outputs: int,
        features: int = 16,
        num_layers: int = 7,
        first_size: int = 7,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels = channels_in_turn(spec)
        width = multiple(features, channels)
        self.size, self.sees_channels = spec.shape[1:], channels > 1
        self.first = CausalConv2d(spec.shape[0], 2 * width, around(first_size), "before", channels)
        self.layers = nn.ModuleList(self.layer(width, channels, spec.shape[0]) for _ in range(num_layers))
        self.dropout = nn.Dropout(dropout)
        self.last = Head(2 * width, num_outputs, channels)

    @staticmethod
    @abstractmethod
    def layer(width: int, channels: int, numbers: int) -> nn.Module:
        """Returns a layer that maps (batch, 2 width, height, width), and the images, to the same.

        Args:
            width: Length of a state.
            channels: Of a pixel, told each other in turn.
            numbers: That a pixel is read as.
        """

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for layer in self.layers:
            h = h + self.dropout(layer(h, x))
        return self.last(h)

    def pixel(self, x: Tensor, row: int, column: int, memory: Memory) -> Tensor:
        """Returns the outputs at one pixel, (batch, num_outputs), given images known up to it."""
        h = self.first.image_pixel(x, row, column, memory)
        for layer in self.layers:
            h = h + layer.pixel(h, x, row, column, memory)  # type: ignore[operator]
        return self.last.pixel(h, row, column, memory)


class RowLSTM(PixelRNN):
    """An LSTM that reads an image from the top, a whole row at each step.

        gates = K_ss * h of the row above + K_is * inputs of the row

    with a convolution over three columns each. A pixel sees a triangle above it: one column to both sides for
    every row. Section 3.2; see PixelRNN for the arguments.
    """

    @staticmethod
    def layer(width: int, channels: int, numbers: int) -> nn.Module:
        return _RowLayer(width, channels)


class DiagonalBiLSTM(PixelRNN):
    """Two LSTMs that read an image along its diagonals, one from each upper corner.

        gates = K_ss [h of the pixel above, h of the pixel beside] + K_is inputs of the pixel

    The one from the left sees all to the upper left, the one from the right, taken one row higher, all to the
    upper right. That one also reads the pixels themselves, which the paper's does not: by features that end
    before a pixel, the last one of a row would be missed until the middle of the next. Section 3.3; see
    PixelRNN for the arguments.
    """

    @staticmethod
    def layer(width: int, channels: int, numbers: int) -> nn.Module:
        return _DiagonalLayer(width, channels, numbers)


class _RowLayer(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.inputs = CausalConv2d(2 * width, 4 * width, (0, 1, 0), num_channels=channels)
        self.states = nn.Conv1d(width, 4 * width, 3, padding=1, bias=False)
        self.leaving = CausalConv2d(width, 2 * width, num_channels=channels)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        rows = self.inputs(h).permute(2, 0, 3, 1)
        (states,) = _scan(rows[None], [self.states], reach=(1, 1))
        return self.leaving(states.permute(1, 3, 0, 2))

    def pixel(self, h: Tensor, x: Tensor, row: int, column: int, memory: Memory) -> Tensor:
        if (self, "row") not in memory.known or column == 0:
            self._begin_row(row, memory)
        known = memory.known[self, "row"]
        inputs = self.inputs.pixel(h, row, column, memory)
        state, cell = _step(inputs + known["above"][:, :, column], known["cells above"][:, :, column])
        known["states"][:, :, column], known["cells"][:, :, column] = state, cell
        return self.leaving.pixel(state, row, column, memory)

    def _begin_row(self, row: int, memory: Memory) -> None:
        if row and memory.known[self, "row"]["row"] == row:
            return  # asked again for another channel
        empty = self.states.weight.new_zeros(memory.num_images, self.states.in_channels, memory.size[1])
        last = memory.known[self, "row"] if row else {"states": empty, "cells": empty}
        memory.known[self, "row"] = {
            "row": row,
            "above": self.states(last["states"]),
            "cells above": last["cells"],
            "states": empty.clone(),
            "cells": empty.clone(),
        }


class _DiagonalLayer(nn.Module):
    def __init__(self, width: int, channels: int, numbers: int) -> None:
        super().__init__()
        self.from_left = CausalConv2d(2 * width, 4 * width, num_channels=channels)
        self.from_right = nn.Conv2d(2 * width + numbers, 4 * width, 1)
        self.left_states = nn.Conv1d(width, 4 * width, 2, bias=False)  # of the pixels above and beside
        self.right_states = nn.Conv1d(width, 4 * width, 2, bias=False)
        self.leaving = CausalConv2d(width, 2 * width, num_channels=channels)
        self.leaving_right = nn.Conv2d(width, 2 * width, 1, bias=False)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        inputs = self.from_left(h), self.from_right(torch.cat([h, x], dim=1)).flip(3)
        diagonals = torch.stack([_skewed(each).permute(3, 0, 2, 1) for each in inputs])
        states = _scan(diagonals, [self.left_states, self.right_states], reach=(1, 0))
        left, right = (_straight(each.permute(1, 3, 2, 0)) for each in states)
        return self.leaving(left) + self.leaving_right(moved_down(right.flip(3)))

    def pixel(self, h: Tensor, x: Tensor, row: int, column: int, memory: Memory) -> Tensor:
        if (self, "map") not in memory.known:
            memory.known[self, "map"] = self._empty(memory)
        known = memory.known[self, "map"]
        if column == 0 and row:
            self._read_row_from_right(x, row - 1, known)
        known["inputs"][:, :, row, column] = h
        gates = self.from_left.pixel(h, row, column, memory)
        state, cell = self._next(gates, self.left_states, known["left"], known["left cells"], row, column)
        known["left"][:, :, row + 1, column + 1] = state
        known["left cells"][:, :, row, column + 1] = cell
        above_right = self.leaving_right(known["right"][:, :, row, column + 1 : column + 2, None])
        return self.leaving.pixel(state, row, column, memory) + above_right[:, :, 0, 0]

    def _read_row_from_right(self, x: Tensor, row: int, known: dict[str, Tensor]) -> None:
        """Reads a row, all of which is known by now, from its end; the maps hold it mirrored."""
        read = torch.cat([known["inputs"][:, :, row], x[:, :, row]], dim=1)
        gates = self.from_right(read[:, :, None])[:, :, 0].flip(2)
        width = gates.shape[2]
        for column in range(width):
            state, cell = self._next(
                gates[:, :, column],
                self.right_states,
                known["mirrored"],
                known["mirrored cells"],
                row,
                column,
            )
            known["mirrored"][:, :, row + 1, column + 1] = state
            known["mirrored cells"][:, :, row, column + 1] = cell
        known["right"][:, :, row + 1, 1:] = known["mirrored"][:, :, row + 1, 1:].flip(2)

    @staticmethod
    def _next(
        gates: Tensor, states: nn.Conv1d, known: Tensor, cells: Tensor, row: int, column: int
    ) -> tuple[Tensor, Tensor]:
        above, beside = known[:, :, row, column + 1], known[:, :, row + 1, column]
        seen = states(torch.stack([above, beside], dim=2))[:, :, 0]
        return _step(gates + seen, cells[:, :, row, column])

    def _empty(self, memory: Memory) -> dict[str, Tensor]:
        """Returns maps with a row of zeros above and a column of zeros to the left, for what lies outside."""
        width, (height, columns) = self.left_states.in_channels, memory.size
        zeros = self.left_states.weight.new_zeros
        names = ("left", "left cells", "right", "mirrored", "mirrored cells")
        maps = {name: zeros(memory.num_images, width, height + 1, columns + 1) for name in names}
        return {**maps, "inputs": zeros(memory.num_images, 2 * width, height, columns)}


def _step(gates: Tensor, cell: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    """Returns state and cell of an LSTM, equation 3 of the paper, from its gates' sums."""
    width = cell.shape[dim]
    opened, content = gates.split([3 * width, width], dim)
    out, forget, into = opened.sigmoid().chunk(3, dim)
    cell = forget * cell + into * content.tanh()
    return out * cell.tanh(), cell


def _scan(inputs: Tensor, kernels: list[nn.Conv1d], reach: tuple[int, int]) -> Tensor:
    """Returns the states of LSTMs that read lines of pixels, each seeing those of the line before.

    Several are read in one loop, and as matrix products: half the time of a loop of convolutions for each.

    Args:
        inputs: (LSTMs, lines, batch, pixels of a line, 4 width).
        kernels: Of each LSTM, over the states of the line before.
        reach: Pixels before and after its own place that a kernel looks at.

    Returns:
        (LSTMs, lines, batch, pixels, width).
    """
    size, num = sum(reach) + 1, inputs.shape[3]
    weights = torch.stack([kernel.weight.permute(2, 1, 0).flatten(0, 1) for kernel in kernels])
    state = cell = inputs.new_zeros(*inputs[:, 0].shape[:-1], kernels[0].in_channels)
    states = []
    for line in inputs.unbind(dim=1):
        around_it = pad(state, (0, 0, *reach))
        seen = torch.cat([around_it[:, :, first : first + num] for first in range(size)], dim=-1)
        gates = torch.baddbmm(line.flatten(1, 2), seen.flatten(1, 2), weights).view_as(line)
        state, cell = _step(gates, cell, dim=-1)
        states.append(state)
    return torch.stack(states, dim=1)


def _skewed(x: Tensor) -> Tensor:
    """Returns x with row i moved i columns to the right, (batch, channels, height, width + height - 1).

    A diagonal then stands in one column; the pixel above and the one beside both stand in the column before.
    Outside of the image there are zeros, of which an LSTM without biases makes zeros until a row begins; what
    it makes of a row that has ended no pixel sees.
    """
    height, width = x.shape[2:]
    wider = pad(x, (0, height)).flatten(2)[..., :-height]
    return wider.unflatten(2, (height, width + height - 1))


def _straight(x: Tensor) -> Tensor:
    """Undoes `_skewed`."""
    height, wider = x.shape[2:]
    return pad(x.flatten(2), (0, height)).unflatten(2, (height, wider + 1))[..., : wider + 1 - height]
