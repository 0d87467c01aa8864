"""Networks inside the layers of a flow: from one half of the data to the parameters of a map of the other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from genlab.networks.conditioning import required, with_label
from genlab.shapes import DataSpec


class MLPConditioner(nn.Module):
    """A perceptron from vectors to vectors; labels are appended to the input.

    Args:
        spec: What it sees; with classes, it needs a label.
        out_channels: Length of what it returns.
        hidden: Widths of the hidden layers.
        zero_start: Return 0 before training, so that a flow starts as the identity; without, affine couplings
            of a plane learn faster at first.

    Shapes:
        x: (batch, dimensions); label: (batch,). Returns (batch, out_channels).
    """

    def __init__(
        self, spec: DataSpec, out_channels: int, hidden: Sequence[int] = (64, 64), zero_start: bool = True
    ) -> None:
        super().__init__()
        self.num_classes = spec.num_classes
        widths = [spec.shape[0] + spec.num_classes, *hidden]
        parts = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU(inplace=True))]
        self.layers = nn.Sequential(*parts, nn.Linear(widths[-1], out_channels))
        if zero_start:
            start_at_zero(self.layers[-1])

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return self.layers(with_label(x, label, self.num_classes))


class ConvConditioner(nn.Module):
    """Convolutions of 3, 1 and 3 pixels that start at 0; a label shifts the first hidden layer.

    Kingma and Dhariwal 2018, Glow (arXiv:1807.03039), section 3.3.

    Args:
        spec: What it sees; with classes, it needs a label.
        out_channels: Channels of what it returns.
        hidden_channels: Width; 512 in the paper.

    Shapes:
        x: (batch, channels, height, width); label: (batch,). Returns (batch, out_channels, height, width).
    """

    def __init__(self, spec: DataSpec, out_channels: int, hidden_channels: int = 64) -> None:
        super().__init__()
        self.label = LabelShift(spec.num_classes, hidden_channels)
        self.first = nn.Conv2d(spec.shape[0], hidden_channels, 3, padding=1)
        self.second = nn.Conv2d(hidden_channels, hidden_channels, 1)
        self.output = nn.Conv2d(hidden_channels, out_channels, 3, padding=1)
        start_at_zero(self.output)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        h = relu(self.label(self.first(x), label), inplace=True)
        return self.output(relu(self.second(h), inplace=True))


class LinearConvConditioner(nn.Module):
    """One convolution of 3 pixels that starts at 0; a label shifts what it returns.

    The prior of what a split factors out, as in the code of Kingma and Dhariwal 2018 (arXiv:1807.03039).

    Args:
        spec: What it sees; with classes, it needs a label.
        out_channels: Channels of what it returns.

    Shapes:
        x: (batch, channels, height, width); label: (batch,). Returns (batch, out_channels, height, width).
    """

    def __init__(self, spec: DataSpec, out_channels: int) -> None:
        super().__init__()
        self.output = nn.Conv2d(spec.shape[0], out_channels, 3, padding=1)
        self.label = LabelShift(spec.num_classes, out_channels)
        start_at_zero(self)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        return self.label(self.output(x), label)


class ResNetConditioner(nn.Module):
    """Residual blocks at full size that start at 0; a label shifts the first hidden layer.

    Dinh et al. 2017, RealNVP (arXiv:1605.08803), section 3.2; normalised by each image's own statistics in
    groups of channels (Wu and He 2018, arXiv:1803.08494) instead of the batch's, which would make the
    likelihood of one image depend on the others.

    Args:
        spec: What it sees; with classes, it needs a label.
        out_channels: Channels of what it returns.
        hidden_channels: Width; 64 in the paper.
        num_blocks: Residual blocks; 4 to 8 in the paper.

    Shapes:
        x: (batch, channels, height, width); label: (batch,). Returns (batch, out_channels, height, width).
    """

    def __init__(
        self, spec: DataSpec, out_channels: int, hidden_channels: int = 64, num_blocks: int = 4
    ) -> None:
        super().__init__()
        self.label = LabelShift(spec.num_classes, hidden_channels)
        self.first = nn.Conv2d(spec.shape[0], hidden_channels, 3, padding=1)
        self.blocks = nn.Sequential(*(PreActivationBlock(hidden_channels) for _ in range(num_blocks)))
        self.norm = nn.GroupNorm(num_groups(hidden_channels), hidden_channels)
        self.output = nn.Conv2d(hidden_channels, out_channels, 1)
        start_at_zero(self.output)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.blocks(self.label(self.first(x), label))
        return self.output(relu(self.norm(h), inplace=True))


class PreActivationBlock(nn.Module):
    """x + conv(relu(norm(conv(relu(norm(x)))))): He et al. 2016 (arXiv:1603.05027).

    Args:
        num_channels: Width.

    Shapes:
        x: (batch, num_channels, height, width). Returns the same.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        groups = num_groups(num_channels)
        self.layers = nn.Sequential(
            nn.GroupNorm(groups, num_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(num_channels, num_channels, 3, padding=1, bias=False),
            nn.GroupNorm(groups, num_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(num_channels, num_channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class LabelShift(nn.Module):
    """Adds the label's learned vector to every position; nothing where there are no classes.

    Args:
        num_classes: Number of labels.
        num_channels: Channels of h.

    Shapes:
        h: (batch, num_channels, height, width); label: (batch,). Returns the same shape as h.
    """

    def __init__(self, num_classes: int, num_channels: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        if num_classes:
            self.embedding = nn.Embedding(num_classes, num_channels)
            nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, h: Tensor, label: Tensor | None) -> Tensor:
        if not self.num_classes:
            return h
        return h + self.embedding(required(label, self.num_classes))[:, :, None, None]


def num_groups(num_channels: int) -> int:
    """Returns 8 groups, or fewer where the channels do not divide by 8."""
    return next(groups for groups in (8, 4, 2, 1) if num_channels % groups == 0)


@torch.no_grad()
def start_at_zero(layer: nn.Module) -> None:
    """Sets a layer's weight and bias to 0, so that a flow starts as the identity."""
    for parameter in layer.parameters():
        parameter.zero_()
