"""PixelCNN: what is known of a pixel, by convolutions over those before it."""

from __future__ import annotations

from torch import Tensor, nn

from genlab.networks.conditioning import required
from genlab.networks.masked import CausalConv2d, Memory, PixelNetwork, Sees, channels_in_turn, moved_down
from genlab.shapes import DataSpec


class PixelCNN(PixelNetwork):
    """Masked convolutions in residual blocks.

    van den Oord et al. 2016 (arXiv:1601.06759), section 3.5: a first convolution that sees what is before
    the pixel, blocks of 1 x 1, masked k x k and 1 x 1 convolutions with ReLUs before each, and two 1 x 1
    convolutions at the end. Stacked masks miss a growing triangle to the right above the pixel, the blind
    spot that GatedPixelCNN has not.

    Args:
        spec: The images, or pixels without levels, whose channels come at once.
        num_outputs: Numbers for each pixel; output i belongs to channel i modulo the channels.
        features: Channels inside of the blocks; twice as many between them.
        num_blocks: Residual blocks.
        size: Sides of the masked convolutions.
        first_size: Sides of the first one.
        dropout: Share of a block's inner numbers set to 0 in training.

    Shapes:
        x: (batch, channels, height, width) in [-1, 1]. Returns (batch, num_outputs, height, width), where
        what belongs to a channel follows from earlier channels and pixels alone.
    """

    def __init__(
        self,
        spec: DataSpec,
        num_outputs: int,
        features: int = 32,
        num_blocks: int = 15,
        size: int = 3,
        first_size: int = 7,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels = channels_in_turn(spec)
        width = multiple(features, channels)
        self.size, self.sees_channels = spec.shape[1:], channels > 1
        self.first = CausalConv2d(spec.shape[0], 2 * width, around(first_size), "before", channels)
        self.blocks = nn.ModuleList(_Block(width, size, channels, dropout) for _ in range(num_blocks))
        self.last = Head(2 * width, num_outputs, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h = block(h)
        return self.last(h)

    def pixel(self, x: Tensor, row: int, column: int, memory: Memory) -> Tensor:
        """Returns the outputs at one pixel, (batch, num_outputs), given images known up to it."""
        h = self.first.image_pixel(x, row, column, memory)
        for block in self.blocks:
            h = block.pixel(h, row, column, memory)  # type: ignore[operator]
        return self.last.pixel(h, row, column, memory)


class _Block(nn.Module):
    def __init__(self, width: int, size: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.narrow = CausalConv2d(2 * width, width, num_channels=channels)
        self.look = CausalConv2d(width, width, around(size), num_channels=channels)
        self.widen = CausalConv2d(width, 2 * width, num_channels=channels)

    def forward(self, h: Tensor) -> Tensor:
        inner = self.look(self.narrow(h.relu()).relu())
        return h + self.widen(self.dropout(inner.relu()))

    def pixel(self, h: Tensor, row: int, column: int, memory: Memory) -> Tensor:
        place = row, column, memory
        inner = self.look.pixel(self.narrow.pixel(h.relu(), *place).relu(), *place)
        return h + self.widen.pixel(inner.relu(), *place)


class Head(nn.Module):
    """Two 1 x 1 convolutions from features to outputs, which begin at 0: every level is equally likely."""

    def __init__(self, features: int, num_outputs: int, channels: int) -> None:
        super().__init__()
        self.hidden = CausalConv2d(features, features, num_channels=channels)
        self.outputs = CausalConv2d(features, num_outputs, num_channels=channels)
        nn.init.zeros_(self.outputs.weight)
        nn.init.zeros_(self.outputs.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor) -> Tensor:
        return self.outputs(self.hidden(h.relu()).relu())

    def pixel(self, h: Tensor, row: int, column: int, memory: Memory) -> Tensor:
        place = row, column, memory
        return self.outputs.pixel(self.hidden.pixel(h.relu(), *place).relu(), *place)


class GatedPixelCNN(PixelNetwork):
    """Two stacks of gated convolutions, one over the rows above and one over the row of the pixel.

        y = tanh(W_f * x + V_f h) sigmoid(W_g * x + V_g h)

    van den Oord et al. 2016 (arXiv:1606.05328), section 2: the vertical stack sees every row above, the
    horizontal one what is before the pixel in its row and, at each layer, the vertical one; no pixel is
    missed. A class adds a vector h to every gate, the same everywhere.

    Args:
        spec: The images, or pixels without levels, whose channels come at once; its classes are what the
            network is told.
        num_outputs: Numbers for each pixel; output i belongs to channel i modulo the channels.
        features: Channels of both stacks.
        num_layers: Gated layers.
        size: Sides of the convolutions.
        first_size: Sides of the first ones.
        dropout: Share of what leaves the gates that is set to 0 in training, for scarce data.

    Shapes:
        x: (batch, channels, height, width) in [-1, 1]; label: (batch,). Returns (batch, num_outputs, height,
        width), where what belongs to a channel follows from earlier channels and pixels alone.
    """

    def __init__(
        self,
        spec: DataSpec,
        num_outputs: int,
        features: int = 64,
        num_layers: int = 8,
        size: int = 3,
        first_size: int = 7,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels = channels_in_turn(spec)
        width = multiple(features, channels)
        self.size, self.sees_channels = spec.shape[1:], channels > 1
        self.num_classes = spec.num_classes
        more = channels, spec.num_classes, dropout
        first = _GatedLayer(spec.shape[0], width, first_size, "before", *more)
        rest = (_GatedLayer(width, width, size, "up to", *more) for _ in range(num_layers - 1))
        self.layers = nn.ModuleList([first, *rest])
        self.last = Head(width, num_outputs, channels)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        above, across, label = x, x, self._checked(label)
        for layer in self.layers:
            above, across = layer(above, across, label)
        return self.last(across)

    def pixel(self, x: Tensor, row: int, column: int, memory: Memory, label: Tensor | None = None) -> Tensor:
        """Returns the outputs at one pixel, (batch, num_outputs), given images known up to it."""
        label = self._checked(label)
        if column == 0:
            self._read_row(x, row - 1, memory, label)
        first, *rest = self.layers
        across = first.image_pixel(x, row, column, memory, label)  # type: ignore[operator]
        for layer in rest:
            across = layer.pixel(across, row, column, memory, label)  # type: ignore[operator]
        return self.last.pixel(across, row, column, memory)

    def _read_row(self, x: Tensor, row: int, memory: Memory, label: Tensor | None) -> None:
        """Computes the vertical stack of the row above, which is known by now."""
        above = x[:, :, row] if row >= 0 else None
        for layer in self.layers:
            above = layer.read_row(above, row, memory, label)  # type: ignore[operator]

    def _checked(self, label: Tensor | None) -> Tensor | None:
        return required(label, self.num_classes) if self.num_classes else None


class _GatedLayer(nn.Module):
    def __init__(
        self,
        in_width: int,
        width: int,
        size: int,
        sees: Sees,
        channels: int,
        num_classes: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.is_first = sees == "before"
        self.vertical = CausalConv2d(in_width, 2 * width, around(size), "above")
        self.horizontal = CausalConv2d(in_width, 2 * width, (0, size // 2, 0), sees, channels)
        self.joining = nn.Conv2d(2 * width, 2 * width, 1)
        self.leaving = CausalConv2d(width, width, num_channels=channels)
        self.dropout = nn.Dropout(dropout)
        self.label = nn.Embedding(num_classes, 4 * width) if num_classes else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=num_classes**-0.5)

    def forward(self, above: Tensor, across: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
        seen = self.vertical(above)
        joined = self.horizontal(across).add_(self.joining(moved_down(seen)))
        if self.label is not None:
            for_above, for_across = self._told(label)
            joined, seen = joined.add_(for_across[..., None, None]), seen + for_above[..., None, None]
        out = self.leaving(self.dropout(_gate(joined)))
        return self.dropout(_gate(seen)), out if self.is_first else out.add_(across)

    def read_row(self, above: Tensor | None, row: int, memory: Memory, label: Tensor | None) -> Tensor | None:
        """Computes one row of the vertical stack; None stands for the row above the first, which is zeros."""
        seen = None if above is None else self.vertical.row(above, row, memory)
        memory.known[self, "above"] = self._joined(seen, memory)
        return None if seen is None else _gate(seen + self._told(label)[0][..., None])

    def image_pixel(self, x: Tensor, row: int, column: int, memory: Memory, label: Tensor | None) -> Tensor:
        seen = self.horizontal.image_pixel(x, row, column, memory)
        return self._out(seen, row, column, memory, label)

    def pixel(self, across: Tensor, row: int, column: int, memory: Memory, label: Tensor | None) -> Tensor:
        seen = self.horizontal.pixel(across, row, column, memory)
        return self._out(seen, row, column, memory, label) + across

    def _out(self, seen: Tensor, row: int, column: int, memory: Memory, label: Tensor | None) -> Tensor:
        joined = seen + memory.known[self, "above"][:, :, column] + self._told(label)[1]
        return self.leaving.pixel(_gate(joined), row, column, memory)

    def _joined(self, seen: Tensor | None, memory: Memory) -> Tensor:
        if seen is None:
            seen = self.joining.weight.new_zeros(1, self.joining.in_channels, memory.size[1])
        return self.joining(seen[:, :, None])[:, :, 0]

    def _told(self, label: Tensor | None) -> tuple[Tensor, Tensor]:
        """Returns what a class adds to the gates of both stacks, (batch, 2 width) each; zeros without."""
        if self.label is None:
            none = self.vertical.weight.new_zeros(1, 2 * self.leaving.weight.shape[1])
            return none, none
        both = self.label(label)
        return both.chunk(2, dim=1)


def _gate(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=1)
    # In tensors of their own: over halves of the channels both functions take twice as long.
    return value.clone().tanh_() * gate.clone().sigmoid_()


def multiple(features: int, channels: int) -> int:
    """Returns the number of features, raised to a whole number for each channel."""
    return -(-features // channels) * channels


def around(size: int) -> tuple[int, int, int]:
    """Returns the reach of a convolution of these sides, of which the rows below are left out."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"The side of a masked convolution must be odd, to have a middle, got {size}.")
    return size // 2, size // 2, size // 2
