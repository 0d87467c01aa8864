"""What an invertible layer promises: forward and inverse, each with the logarithm of its volume change."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from genlab.shapes import DataSpec

BijectionFactory = Callable[[DataSpec], "Bijection"]
"""What a YAML file gives for a whole flow; the data's shape is filled in by the family."""

ConditionerFactory = Callable[[DataSpec, int], nn.Module]
"""A network inside a layer: what it sees (shape and classes), and the number of channels it returns."""


class Bijection(nn.Module):
    """An invertible, differentiable map.

        forward:  z = f(x),       log_det = log |det df/dx|
        inverse:  x = f^-1(z),    log_det = log |det df^-1/dz|, the negative of the former

    Both compute in the format of their input, which is at least float32: under autocast only the networks
    inside of a layer run in half precision, since one rounding to bfloat16 makes x unrecoverable.

    Shapes:
        x, z: (batch, ...). label: (batch,) or None. log_det: (batch,).
    """

    @abstractmethod
    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns z and log |det df/dx|."""

    @abstractmethod
    def inverse(self, z: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns x and log |det df^-1/dz|."""


class Chain(Bijection):
    """Layers one after the other; without any, the identity.

        log |det| of f_n o ... o f_1 = sum_i log |det df_i|

    Args:
        layers: From the data to the latent.
    """

    def __init__(self, layers: Sequence[Bijection] = ()) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = x.new_zeros(len(x))
        for layer in self.layers:
            x, change = layer(x, label)
            log_det = log_det + change
        return x, log_det

    def inverse(self, z: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_det = z.new_zeros(len(z))
        for layer in reversed(self.layers):
            z, change = layer.inverse(z, label)  # type: ignore[operator]
            log_det = log_det + change
        return z, log_det


def summed(log_det: Tensor) -> Tensor:
    """Returns the sum over everything but the batch, (batch,)."""
    return log_det.flatten(1).sum(1)


def unchanged_volume(x: Tensor) -> Tensor:
    """Returns the log_det of a map that only moves things around: 0 for each item."""
    return x.new_zeros(len(x))


def without_autocast(x: Tensor) -> torch.autocast:
    """Returns the context in which products are computed in the format of x."""
    return torch.autocast(x.device.type, enabled=False)
