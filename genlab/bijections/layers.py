"""Invertible layers without a network: normalisation, mixing of channels, rearrangements, the logit."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, logsigmoid

from genlab.bijections.base import Bijection, summed, unchanged_volume, without_autocast
from genlab.bijections.elementwise import Affine
from genlab.distributed import joined_sum
from genlab.shapes import DataSpec


class ActNorm(Bijection):
    """Scales and shifts each channel; the first training batch comes out with mean 0 and deviation 1.

        z = (x + shift) exp(log_scale),    log_det = positions * sum log_scale

    Kingma and Dhariwal 2018, Glow (arXiv:1807.03039), section 3.1. The statistics are those of the batch of
    all devices together. They are taken once, in training and in this direction only; that they were taken
    is part of the checkpoint. Until then the layer is the identity.

    Args:
        num_channels: Channels of an image, or dimensions of a vector.

    Shapes:
        x, z: (batch, num_channels, ...).
    """

    initialised: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(num_channels))
        self.log_scale = nn.Parameter(torch.zeros(num_channels))
        self.register_buffer("initialised", torch.tensor(False))
        self._is_initialised = False  # what the buffer says, without waiting for the device

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.training and not self._is_initialised:
            self._initialise(x.detach())
        z = (x + _over_positions(self.shift, x)) * _over_positions(self.log_scale, x).exp()
        return z, self._log_det(x)

    def inverse(self, z: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = z * _over_positions(-self.log_scale, z).exp() - _over_positions(self.shift, z)
        return x, -self._log_det(z)

    def _log_det(self, x: Tensor) -> Tensor:
        return (self.log_scale.sum() * x[0, 0].numel()).expand(len(x))

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        if not bool(self.initialised):
            mean, deviation = moments(x)
            self.shift.copy_(-mean)
            self.log_scale.copy_(-deviation.clamp_min(1e-6).log())
            self.initialised.fill_(True)
        self._is_initialised = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._is_initialised = False


class InvertibleLinear(Bijection):
    """Mixes the channels by one invertible matrix: at each position of an image, a 1x1 convolution.

        W = P L (U + diag(sign exp(log_scale))),    log_det = positions * sum log_scale

    Kingma and Dhariwal 2018, Glow (arXiv:1807.03039), section 3.2: L is lower triangular with ones, U
    strictly upper triangular, the permutation P and the signs stay as they were drawn, so that W can never
    become singular. W starts as a random rotation.

    Args:
        num_channels: Channels of an image, or dimensions of a vector.

    Shapes:
        x, z: (batch, num_channels, ...).
    """

    permutation: Tensor
    sign: Tensor
    below: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        rotation, _ = torch.linalg.qr(torch.randn(num_channels, num_channels, dtype=torch.float64))
        permutation, lower, upper = torch.linalg.lu(rotation)
        diagonal = upper.diagonal()
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_scale = nn.Parameter(diagonal.abs().log().float())
        self.register_buffer("permutation", permutation.float())
        self.register_buffer("sign", diagonal.sign().float())
        self.register_buffer("below", torch.ones_like(rotation, dtype=torch.bool).tril(-1), persistent=False)

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with without_autocast(x):
            lower, upper = self._factors()
            z = _mixed(x, self.permutation @ (lower @ upper))
        return z, self._log_det(x)

    def inverse(self, z: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        with without_autocast(z):
            lower, upper = self._factors()
            half = torch.linalg.solve_triangular(lower, self.permutation.T, upper=False, unitriangular=True)
            x = _mixed(z, torch.linalg.solve_triangular(upper, half, upper=True))
        return x, -self._log_det(z)

    def _factors(self) -> tuple[Tensor, Tensor]:
        lower = torch.where(self.below, self.lower, 0.0) + torch.diag(torch.ones_like(self.log_scale))
        upper = torch.where(self.below.T, self.upper, 0.0) + torch.diag(self.sign * self.log_scale.exp())
        return lower, upper

    def _log_det(self, x: Tensor) -> Tensor:
        return (self.log_scale.sum() * x[0, 0].numel()).expand(len(x))


class LearnedPrior(Bijection):
    """Standardises every channel by a learned mean and deviation, those of the label's class where known.

    A standard normal latent makes this the prior of Glow's last level (Kingma and Dhariwal 2018,
    arXiv:1807.03039), and the diagonal scaling of NICE (arXiv:1410.8516, section 3.3).

    Args:
        spec: Shape of x, and the classes.
        bound: Largest |log deviation|.

    Shapes:
        x, z: (batch, channels, ...).
    """

    def __init__(self, spec: DataSpec, bound: float = 8.0) -> None:
        super().__init__()
        self.num_classes = spec.num_classes
        self.transform = Affine(bound)
        self.table = nn.Parameter(torch.zeros(max(1, spec.num_classes), 2 * spec.shape[0]))

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, log_slope = self.transform.forward(x, self._predicted(x, label))
        return z, summed(log_slope)

    def inverse(self, z: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_slope = self.transform.inverse(z, self._predicted(z, label))
        return x, summed(log_slope)

    def _predicted(self, x: Tensor, label: Tensor | None) -> Tensor:
        if not self.num_classes:
            rows: Tensor = self.table
        elif label is None:
            raise ValueError(
                f"label is missing: this prior has {self.num_classes} classes; give one label an item."
            )
        else:
            rows = self.table[label]
        return rows.reshape(len(rows), -1, *[1] * (x.dim() - 2))


class Squeeze(Bijection):
    """Turns each square of 2 x 2 pixels into four times the channels.

    Dinh et al. 2017 (arXiv:1605.08803), section 3.6. The two diagonals of the square come one after the
    other, so that half of the channels are the black fields of a checkerboard, and half the white ones.

    Shapes:
        x: (batch, channels, height, width). z: (batch, 4 channels, height / 2, width / 2).
    """

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        even, odd = x[:, :, 0::2], x[:, :, 1::2]
        parts = [even[..., 0::2], odd[..., 1::2], even[..., 1::2], odd[..., 0::2]]
        # Convolutions of a few channels run up to three times as fast with channels innermost.
        z = torch.cat(parts, dim=1).contiguous(memory_format=torch.channels_last)
        return z, unchanged_volume(x)

    def inverse(self, z: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        a, d, b, c = z.chunk(4, dim=1)
        even = torch.stack([a, b], dim=-1).flatten(-2)
        odd = torch.stack([c, d], dim=-1).flatten(-2)
        return torch.stack([even, odd], dim=-2).flatten(-3, -2), unchanged_volume(z)


class Flatten(Bijection):
    """Writes an image as a vector.

    Args:
        shape: Of an image.
        interleave: All numbers with even places first, then those with odd ones: the halves of a coupling are
            then every second pixel, as in NICE (arXiv:1410.8516, section 5.1).

    Shapes:
        x: (batch, *shape). z: (batch, product of shape).
    """

    def __init__(self, shape: tuple[int, ...], interleave: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.interleave = interleave

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z = x.flatten(1)
        return torch.cat([z[:, 0::2], z[:, 1::2]], 1) if self.interleave else z, unchanged_volume(x)

    def inverse(self, z: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.interleave:
            x = torch.empty_like(z)
            x[:, 0::2], x[:, 1::2] = z.tensor_split(2, dim=1)
            z = x
        return z.reshape(len(z), *self.shape), unchanged_volume(z)


class Logit(Bijection):
    """z = log(p / (1 - p)),  p = alpha + (1 - 2 alpha) x: from (0, 1) to the whole line.

    Dinh et al. 2017 (arXiv:1605.08803), section 4.1.

    Args:
        alpha: Keeps p away from 0 and 1; small values stretch black and white pixels far out.
    """

    def __init__(self, alpha: float = 0.05) -> None:
        super().__init__()
        if not 0.0 < alpha < 0.5:
            raise ValueError(f"alpha must be between 0 and 0.5, got {alpha}.")
        self.alpha = alpha

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        p = self.alpha + (1 - 2 * self.alpha) * x
        z = p.log() - (-p).log1p()
        return z, -self._log_slope(z)

    def inverse(self, z: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = (z.sigmoid() - self.alpha) / (1 - 2 * self.alpha)
        return x, self._log_slope(z)

    def _log_slope(self, z: Tensor) -> Tensor:
        """Returns log |det dx/dz|: the sigmoid's slope is p (1 - p)."""
        log_det = summed(logsigmoid(z) + logsigmoid(-z))
        return log_det - z[0].numel() * math.log1p(-2 * self.alpha)


class Centre(Bijection):
    """z = x - 1/2: puts (0, 1) around 0 and keeps volumes."""

    def forward(self, x: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x - 0.5, unchanged_volume(x)

    def inverse(self, z: Tensor, label: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return z + 0.5, unchanged_volume(z)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Returns mean and standard deviation of each channel, over the batches of all devices together."""
    columns = x.double().transpose(0, 1).flatten(1)
    count = torch.full_like(columns[:, 0], columns.shape[1])
    sums = joined_sum(torch.stack([columns.sum(1), columns.square().sum(1), count]))
    mean = sums[0] / sums[2]
    return mean, (sums[1] / sums[2] - mean.square()).clamp_min(0).sqrt()


def _over_positions(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype).reshape(-1, *[1] * (x.dim() - 2))


def _mixed(x: Tensor, matrix: Tensor) -> Tensor:
    matrix = matrix.to(x.dtype)
    return linear(x, matrix) if x.dim() == 2 else conv2d(x, matrix[:, :, None, None])
