"""PixelCNN++: what is known of a whole pixel, by two streams of gated blocks over several sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, elu, pixel_shuffle

from genlab.networks.conditioning import required
from genlab.networks.masked import CausalConv2d, Memory, PixelNetwork, moved_down
from genlab.shapes import DataSpec

ABOVE = (1, 1, 1)
UP_TO = (1, 1, 0)


class PixelCNNpp(PixelNetwork):
    """A U-Net of two streams, of which one sees the rows above a pixel and one all that is before it.

    Salimans et al. 2017 (arXiv:1701.05517): gated residual blocks with ELUs of both signs, strided
    convolutions between the sizes, short-cuts from every block of the way down to its counterpart on the way
    up, dropout, and no masks inside of a pixel, whose channels are coupled by the likelihood
    (CoupledLogistics). Without the paper's weight normalisation.

    Args:
        spec: The images; its classes are what the network is told.
        num_outputs: Numbers for each pixel.
        features: Channels of both streams; the paper's 160.
        num_blocks: Blocks for each size and direction; the paper's 5.
        num_scales: Sizes, each half of the one before; the paper's 3.
        dropout: Share of a block's numbers set to 0 in training; the paper's 0.5.

    Shapes:
        x: (batch, channels, height, width) in [-1, 1]; label: (batch,). Returns (batch, num_outputs, height,
        width), where a pixel follows from earlier pixels alone.
    """

    sees_channels = False

    def __init__(
        self,
        spec: DataSpec,
        num_outputs: int,
        features: int = 64,
        num_blocks: int = 3,
        num_scales: int = 3,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        channels, *size = spec.shape
        self.size, self.num_classes, self.features = tuple(size), spec.num_classes, features
        # A channel of ones tells the image from the zeros around it.
        self.above = CausalConv2d(channels + 1, features, ABOVE, "above")
        self.before = CausalConv2d(channels + 1, features, ABOVE, "before")
        self.scales = _Scale(features, num_blocks, num_scales, dropout, spec.num_classes)
        self.outputs = nn.Conv2d(features, num_outputs, 1)
        nn.init.zeros_(self.outputs.weight)
        nn.init.zeros_(self.outputs.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        x = _with_ones(x)
        above, before = moved_down(self.above(x)), self.before(x)
        _, before = self.scales(above, before, self._checked(label))
        return self.outputs(elu(before))

    def pixel(self, x: Tensor, row: int, column: int, memory: Memory, label: Tensor | None = None) -> Tensor:
        """Returns the outputs at one pixel, (batch, num_outputs), given images known up to it."""
        x, label = _with_ones(x), self._checked(label)
        if column == 0:
            above = (
                self.above.row(x[:, :, row - 1], row - 1, memory)
                if row
                else x.new_zeros(len(x), self.features, x.shape[3])
            )
            self.scales.row(above, row, memory, label)
        before = self.before.image_pixel(x, row, column, memory)
        before = self.scales.pixel(before, row, column, memory, label)
        return self.outputs(elu(before)[..., None, None])[:, :, 0, 0]

    def _checked(self, label: Tensor | None) -> Tensor | None:
        return required(label, self.num_classes) if self.num_classes else None


class _Scale(nn.Module):
    """The blocks of one size, with those of all smaller sizes between its way down and its way up."""

    def __init__(
        self, features: int, num_blocks: int, num_scales: int, dropout: float, num_classes: int
    ) -> None:
        super().__init__()
        block = (features, dropout, num_classes)
        self.down = nn.ModuleList(_Block(*block, has_skip=False) for _ in range(num_blocks))
        is_smallest = num_scales == 1
        # The smallest size goes on from the last block of its way down, the others from the size below.
        num_up = num_blocks if is_smallest else num_blocks + 1
        self.up = nn.ModuleList(_Block(*block, has_skip=True) for _ in range(num_up))
        self.smaller: _Scale | None = None
        if not is_smallest:
            self.smaller = _Scale(features, num_blocks, num_scales - 1, dropout, num_classes)
            self.halve_above = CausalConv2d(features, features, ABOVE, "above", stride=2)
            self.halve_before = CausalConv2d(features, features, UP_TO, stride=2)
            self.double_above = nn.Conv2d(features, 4 * features, 1)
            self.double_before = nn.Conv2d(features, 4 * features, 1)

    def forward(self, above: Tensor, before: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        height, width = above.shape[2:]
        skips = [(above, before)]
        for block in self.down:
            above, before = block(above, before, None, label)
            skips.append((above, before))
        if self.smaller is None:
            above, before = skips.pop()
        else:
            above, before = self.smaller(self.halve_above(above), self.halve_before(before), label)
            above = pixel_shuffle(self.double_above(above), 2)[:, :, :height, :width]
            before = pixel_shuffle(self.double_before(before), 2)[:, :, :height, :width]
        for block in self.up:
            above, before = block(above, before, skips.pop(), label)
        return above, before

    def row(self, above: Tensor, row: int, memory: Memory, label: Tensor | None) -> Tensor:
        """Computes a row of the stream of the rows above; the pixels of the row will look at it."""
        width, skips = above.shape[2], [above]
        for block in self.down:
            above = block.row(above, None, row, memory, label)  # type: ignore[operator]
            skips.append(above)
        if self.smaller is None:
            above = skips.pop()
        else:
            halved = self.halve_above.row(above, row, memory)
            if row % 2 == 0:
                smaller = self.smaller.row(halved, row // 2, memory, label)
                memory.known[self, "above"] = self.double_above(smaller[:, :, None])[:, :, 0]
            four = memory.known[self, "above"].unflatten(1, (-1, 2, 2))[:, :, row % 2]
            above = four.transpose(2, 3).flatten(2)[:, :, :width]
        for block in self.up:
            above = block.row(above, skips.pop(), row, memory, label)  # type: ignore[operator]
        return above

    def pixel(self, before: Tensor, row: int, column: int, memory: Memory, label: Tensor | None) -> Tensor:
        """Computes a pixel of the stream of what is before it."""
        place, skips = (row, column, memory, label), [before]
        for block in self.down:
            before = block.pixel(before, None, *place)  # type: ignore[operator]
            skips.append(before)
        before = skips.pop() if self.smaller is None else self._from_smaller(before, *place)
        for block in self.up:
            before = block.pixel(before, skips.pop(), *place)  # type: ignore[operator]
        return before

    def _from_smaller(
        self, before: Tensor, row: int, column: int, memory: Memory, label: Tensor | None
    ) -> Tensor:
        assert self.smaller is not None
        halved = self.halve_before.pixel(before, row, column, memory)
        if (self, "before") not in memory.known:
            height, width = memory.size
            memory.known[self, "before"] = halved.new_zeros(len(halved), 4 * halved.shape[1], height, width)
        known = memory.known[self, "before"]
        if row % 2 == 0 and column % 2 == 0:
            smaller = self.smaller.pixel(halved, row // 2, column // 2, memory, label)
            known[:, :, row // 2, column // 2] = self.double_before(smaller[..., None, None])[:, :, 0, 0]
        four = known[:, :, row // 2, column // 2].unflatten(1, (-1, 2, 2))
        return four[:, :, row % 2, column % 2]


class _Block(nn.Module):
    """A gated residual block of each stream; the one of what is before a pixel also looks at the other.

    y = x + a sigmoid(b),        a, b = conv(drop(celu(conv(celu(x)) + W celu(side)))) + h of the class
    """

    def __init__(self, features: int, dropout: float, num_classes: int, has_skip: bool) -> None:
        super().__init__()
        self.above = _Gated(features, dropout, num_classes, ABOVE, int(has_skip))
        self.before = _Gated(features, dropout, num_classes, UP_TO, 1 + int(has_skip))

    def forward(
        self, above: Tensor, before: Tensor, skip: tuple[Tensor, Tensor] | None, label: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        above = self.above(above, None if skip is None else skip[0], label)
        side = above if skip is None else torch.cat([above, skip[1]], dim=1)
        return above, self.before(before, side, label)

    def row(
        self, above: Tensor, skip: Tensor | None, row: int, memory: Memory, label: Tensor | None
    ) -> Tensor:
        memory.known[self, "above"] = self.above.row(above, skip, row, memory, label)
        return memory.known[self, "above"]

    def pixel(
        self,
        before: Tensor,
        skip: Tensor | None,
        row: int,
        column: int,
        memory: Memory,
        label: Tensor | None,
    ) -> Tensor:
        above = memory.known[self, "above"][:, :, column]
        side = above if skip is None else torch.cat([above, skip], dim=1)
        return self.before.pixel(before, side, row, column, memory, label)


class _Gated(nn.Module):
    def __init__(
        self,
        features: int,
        dropout: float,
        num_classes: int,
        reach: tuple[int, int, int],
        num_sides: int,
    ) -> None:
        super().__init__()
        sees = "above" if reach == ABOVE else "up to"
        self.dropout = dropout
        self.first = CausalConv2d(2 * features, features, reach, sees)  # type: ignore[arg-type]
        self.side = nn.Conv2d(2 * num_sides * features, features, 1) if num_sides else None
        self.second = CausalConv2d(2 * features, 2 * features, reach, sees)  # type: ignore[arg-type]
        self.label = nn.Embedding(num_classes, 2 * features) if num_classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=num_classes**-0.5)

    def forward(self, x: Tensor, side: Tensor | None, label: Tensor | None) -> Tensor:
        h = self.first(_concat_elu(x))
        if self.side is not None and side is not None:
            h = h + self.side(_concat_elu(side))
        return self._gated(x, self.second(self._dropped(h)), label)

    def row(self, x: Tensor, side: Tensor | None, row: int, memory: Memory, label: Tensor | None) -> Tensor:
        h = self.first.row(_concat_elu(x), row, memory)
        if self.side is not None and side is not None:
            h = h + self.side(_concat_elu(side)[:, :, None])[:, :, 0]
        return self._gated(x, self.second.row(self._dropped(h), row, memory), label)

    def pixel(
        self, x: Tensor, side: Tensor, row: int, column: int, memory: Memory, label: Tensor | None
    ) -> Tensor:
        assert self.side is not None
        h = self.first.pixel(_concat_elu(x), row, column, memory)
        h = h + self.side(_concat_elu(side)[..., None, None])[:, :, 0, 0]
        return self._gated(x, self.second.pixel(self._dropped(h), row, column, memory), label)

    def _dropped(self, h: Tensor) -> Tensor:
        return dropout(_concat_elu(h), self.dropout, self.training)

    def _gated(self, x: Tensor, h: Tensor, label: Tensor | None) -> Tensor:
        if self.label is not None:
            told = self.label(label)
            h = h + told.reshape(*told.shape, *[1] * (h.dim() - 2))
        value, gate = h.chunk(2, dim=1)
        return x + value * gate.sigmoid()


def _concat_elu(x: Tensor) -> Tensor:
    return elu(torch.cat([x, -x], dim=1))


def _with_ones(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
