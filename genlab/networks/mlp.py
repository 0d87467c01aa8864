"""Multilayer perceptrons for GANs: the networks of the 2014 paper, for images and for vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from genlab.networks.conditioning import Projection, with_label
from genlab.shapes import DataSpec


class MLPGenerator(nn.Module):
    """A perceptron from noise to data: rectifiers inside; tanh at the end for images, nothing for vectors.

    Goodfellow et al. 2014 (arXiv:1406.2661), section 5; labels are appended to the noise.

    Args:
        spec: The data to generate; with classes, the network needs a label.
        latent_dim: Length of the noise; below the data's own dimension, samples lie on a thin sheet.
        hidden: Widths of the hidden layers, from the noise to the data.

    Shapes:
        z: (batch, latent_dim); label: (batch,). Returns (batch, *spec.shape), in [-1, 1] for images.
    """

    def __init__(self, spec: DataSpec, latent_dim: int = 100, hidden: Sequence[int] = (256, 512)) -> None:
        super().__init__()
        self.spec = spec
        self.latent_dim = latent_dim
        widths = [latent_dim + spec.num_classes, *hidden]
        layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
        self.hidden = nn.Sequential(*layers)
        self.output = nn.Linear(widths[-1], math.prod(spec.shape))
        self.squash = nn.Tanh() if spec.kind == "image" else nn.Identity()

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.hidden(with_label(z, label, self.spec.num_classes))
        return self.squash(self.output(h)).reshape(-1, *self.spec.shape)


class MLPDiscriminator(nn.Module):
    """A perceptron from data to one logit.

    Goodfellow et al. 2014 (arXiv:1406.2661), section 5: maxout units and dropout; leaky rectifiers are the
    usual choice today. Labels enter by projection.

    Args:
        spec: The data to judge; with classes, the network needs a label.
        hidden: Widths of the hidden layers, from the data to the logit.
        activation: What follows each linear map; maxout has five times the weights.
        dropout: Share of hidden units set to 0 in training; the 2014 paper uses 0.5.

    Shapes:
        x: (batch, *spec.shape); label: (batch,). Returns logits, (batch,).
    """

    def __init__(
        self,
        spec: DataSpec,
        hidden: Sequence[int] = (512, 256),
        activation: Literal["leaky_relu", "maxout"] = "leaky_relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layer: Callable[[int, int], nn.Module] = Maxout if activation == "maxout" else _leaky_layer
        widths = [math.prod(spec.shape), *hidden]
        layers = [nn.Sequential(layer(a, b), nn.Dropout(dropout)) for a, b in pairwise(widths)]
        self.hidden = nn.Sequential(nn.Flatten(), *layers)
        self.output = nn.Linear(widths[-1], 1)
        self.projection = Projection(spec.num_classes, widths[-1])

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        h = self.hidden(x)
        return self.output(h).squeeze(1) + self.projection(h, label)


class Maxout(nn.Module):
    """The largest of several linear maps, unit by unit: max_j (W_j x + b_j).

    Goodfellow et al. 2013 (arXiv:1302.4389).

    Args:
        in_features: Length of the input.
        out_features: Number of units.
        num_pieces: Linear maps a unit chooses from; 1 makes the layer linear.

    Shapes:
        x: (batch, in_features). Returns (batch, out_features).
    """

    def __init__(self, in_features: int, out_features: int, num_pieces: int = 5) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features * num_pieces)
        self.num_pieces = num_pieces

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).unflatten(1, (-1, self.num_pieces)).amax(dim=2)


def _leaky_layer(in_features: int, out_features: int) -> nn.Module:
    return nn.Sequential(nn.Linear(in_features, out_features), nn.LeakyReLU(0.2))
