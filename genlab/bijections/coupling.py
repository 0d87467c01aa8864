"""Couplings: one part of the input is changed by a map that a network reads off the other part."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.bijections.base import Bijection, ConditionerFactory, summed
from genlab.bijections.elementwise import Elementwise
from genlab.shapes import DataSpec


class Coupling(Bijection):
    """Changes one half of the channels, or of a vector, given the other half.

        z_a = x_a,    z_b = T(x_b; network(x_a, label)),    log_det = sum log T'

    Dinh et al. 2017 (arXiv:1605.08803), equations 4 to 8. The Jacobian is triangular whatever the network is.

    Args:
        spec: Shape of x, and the classes that the network is told.
        network: Conditioner; gets the spec of x_a and the number of channels that T needs.
        transform: The map T.
        swap: Change the first half, given the second.

    Shapes:
        x, z: (batch, channels, height, width) or (batch, dimensions); the middle of an odd number
            belongs to the first half.
    """

    def __init__(
        self, spec: DataSpec, network: ConditionerFactory, transform: Elementwise, swap: bool = False
    ) -> None:
        super().__init__()
        if spec.shape[0] < 2:
            raise ValueError(f"A coupling needs at least 2 channels, but the shape is {spec.shape}.")
        self.swap = swap
        self.transform = transform
        first, second = (spec.shape[0] + 1) // 2, spec.shape[0] // 2
        given, changed = (second, first) if swap else (first, second)
        seen = DataSpec(spec.name, (given, *spec.shape[1:]), spec.num_classes, spec.levels)
        self.network = network(seen, transform.num_parameters * changed)

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        given, changed = self._halves(x)
        changed, log_slope = self.transform.forward(changed, self.network(given, label))
        return self._joined(given, changed), summed(log_slope)

    def inverse(self, z: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        given, changed = self._halves(z)
        changed, log_slope = self.transform.inverse(changed, self.network(given, label))
        return self._joined(given, changed), summed(log_slope)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, second = x.tensor_split(2, dim=1)
        return (second, first) if self.swap else (first, second)

    def _joined(self, given: Tensor, changed: Tensor) -> Tensor:
        return torch.cat([changed, given] if self.swap else [given, changed], dim=1)


class CheckerboardCoupling(Bijection):
    """Changes every second pixel given the others, as the black and white fields of a chessboard.

        z = b x + (1 - b) T(x; network(b x, label)),    b = (row + column + swap) mod 2

    Dinh et al. 2017 (arXiv:1605.08803), equation 9 and figure 3.

    Args:
        spec: Shape of x, and the classes that the network is told.
        network: Conditioner; gets the spec of b x, with context_channels more, and the channels T needs.
        transform: The map T.
        swap: Change the other fields.
        context_channels: Channels of an image that the network is shown beside b x.

    Shapes:
        x, z: (batch, channels, height, width). context: (batch, context_channels, height, width).
    """

    given: Tensor

    def __init__(
        self,
        spec: DataSpec,
        network: ConditionerFactory,
        transform: Elementwise,
        swap: bool = False,
        context_channels: int = 0,
    ) -> None:
        super().__init__()
        channels, height, width = spec.shape
        self.transform = transform
        seen = DataSpec(
            spec.name, (channels + context_channels, height, width), spec.num_classes, spec.levels
        )
        self.network = network(seen, transform.num_parameters * channels)
        field = torch.arange(height)[:, None] + torch.arange(width)[None, :] + int(swap)
        self.register_buffer("given", field % 2 == 1, persistent=False)

    def forward(
        self, x: Tensor, label: Tensor | None = None, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        z, log_slope = self.transform.forward(x, self._predicted(x, label, context))
        return torch.where(self.given, x, z), summed(log_slope.masked_fill(self.given, 0.0))

    def inverse(
        self, z: Tensor, label: Tensor | None = None, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        x, log_slope = self.transform.inverse(z, self._predicted(z, label, context))
        return torch.where(self.given, z, x), summed(log_slope.masked_fill(self.given, 0.0))

    def _predicted(self, x: Tensor, label: Tensor | None, context: Tensor | None) -> Tensor:
        seen = x * self.given
        return self.network(seen if context is None else torch.cat([seen, context], dim=1), label)


class Split(Bijection):
    """Sends half of the channels to the latent at once, standardised by a prior that the other half predicts.

        (x_a, x_b) = x,    z = (rest(x_a), (x_b - mean) / scale),    (mean, scale) = network(x_a, label)

    Dinh et al. 2017 (arXiv:1605.08803), section 3.6, with the prior of Kingma and Dhariwal 2018, Glow
    (arXiv:1807.03039). A standard normal for the second part of z is N(mean, scale^2) for x_b; written as a
    layer, nothing is lost: the factored-out part is in the latent, and decoding returns it.

    Args:
        spec: Shape of x, and the classes that the network is told.
        network: Conditioner of the prior.
        transform: Standardises x_b.
        rest: What happens to x_a, ending in a flat latent.

    Shapes:
        x: (batch, channels, height, width). z: (batch, channels * height * width).
    """

    def __init__(
        self, spec: DataSpec, network: ConditionerFactory, transform: Elementwise, rest: Bijection
    ) -> None:
        super().__init__()
        channels, *sides = spec.shape
        kept = DataSpec(spec.name, ((channels + 1) // 2, *sides), spec.num_classes, spec.levels)
        self.shape = (channels // 2, *sides)
        self.num_kept = math.prod(kept.shape)
        self.transform = transform
        self.network = network(kept, transform.num_parameters * self.shape[0])
        self.rest = rest

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, out = x.tensor_split(2, dim=1)
        noise, log_slope = self.transform.forward(out, self.network(kept, label))
        z, log_det = self.rest(kept, label)
        return torch.cat([z, noise.flatten(1)], dim=1), log_det + summed(log_slope)

    def inverse(self, z: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        kept, log_det = self.rest.inverse(z[:, : self.num_kept], label)
        noise = z[:, self.num_kept :].unflatten(1, self.shape)
        out, log_slope = self.transform.inverse(noise, self.network(kept, label))
        return torch.cat([kept, out], dim=1), log_det + summed(log_slope)
