"""Monotone maps of single numbers whose parameters a network predicts: what a coupling does to its half."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import pad, softmax, softplus


class Elementwise(ABC):
    """An increasing function of every element, with its own parameters for every element.

    Parameters that are all 0 give the identity, so that a network whose last layer starts at 0 makes a flow
    that starts as the identity.

    Attributes:
        num_parameters: Parameters an element.

    Shapes:
        x, z: (batch, channels, ...). parameters: (batch, num_parameters * channels, ...), in any format.
        log_slope: like x; log |dz/dx| forward, log |dx/dz| backward.
    """

    num_parameters: int

    @abstractmethod
    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Returns z and log |dz/dx| of every element."""

    @abstractmethod
    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """Returns x and log |dx/dz| of every element."""


class Additive(Elementwise):
    """z = x + shift: keeps volumes. Dinh et al. 2015, NICE (arXiv:1410.8516), section 3.2."""

    num_parameters = 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return x + parameters.to(x.dtype), torch.zeros_like(x)

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        return z - parameters.to(z.dtype), torch.zeros_like(z)


class Affine(Elementwise):
    """z = x exp(s) + shift,  s = bound tanh(raw / bound).

    Dinh et al. 2017, RealNVP (arXiv:1605.08803), equation 4. The bound keeps one layer from stretching so
    much that rounding errors, or a step of the optimiser, make the flow uninvertible.

    Args:
        bound: Largest |s|; small values need more layers, and above about 5 float32 shows in the inverse.
    """

    num_parameters = 2

    def __init__(self, bound: float = 2.0) -> None:
        if not bound > 0.0:
            raise ValueError(f"bound must be positive, got {bound}; for no scaling use Additive.")
        self.bound = bound

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._scale_and_shift(x, parameters)
        return x * log_scale.exp() + shift, log_scale.expand_as(x)

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._scale_and_shift(z, parameters)
        return (z - shift) * (-log_scale).exp(), -log_scale.expand_as(z)

    def _scale_and_shift(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = parameters.to(x.dtype).chunk(2, dim=1)
        return self.bound * (raw / self.bound).tanh(), shift


class Spline(Elementwise):
    """A monotone rational-quadratic spline on [-width, width], the identity outside.

    With bins (x_k, y_k), slopes s_k = (y_k+1 - y_k) / (x_k+1 - x_k), derivatives d_k at the knots and
    r = (x - x_k) / (x_k+1 - x_k):

        z = y_k + (y_k+1 - y_k) (s r^2 + d_k r (1 - r)) / (s + (d_k+1 + d_k - 2 s) r (1 - r))

    Durkan et al. 2019 (arXiv:1906.04032), equations 4 to 8. Bin widths and heights are softmaxes, derivatives
    softplus; the derivative at both ends is 1, so that the tails join smoothly.

    Args:
        num_bins: More bins make sharper densities, with three parameters each.
        width: Half width of the interval; outside the spline cannot learn anything.
    """

    _LEAST = 1e-3  # of bins, as a share of the interval, and of derivatives

    def __init__(self, num_bins: int = 8, width: float = 4.0) -> None:
        if num_bins < 2 or num_bins > 256:
            raise ValueError(f"num_bins must be from 2 to 256, got {num_bins}.")
        if not width > 0.0:
            raise ValueError(f"width must be positive, got {width}.")
        self.num_bins = num_bins
        self.width = width
        self.num_parameters = 3 * num_bins - 1

    def forward(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        knots_x, knots_y, derivatives = self._knots(x, parameters)
        inner = x.clamp(-self.width, self.width)
        (left, right), (low, high), (start, end) = self._bin_of(inner, knots_x, (knots_y, derivatives))
        slope = (high - low) / (right - left)
        r = (inner - left) / (right - left)
        z = low + (high - low) * (slope * r.square() + start * r * (1 - r)) / self._divisor(
            r, slope, start, end
        )
        return self._or_identity(x, z, self._log_slope(r, slope, start, end))

    def inverse(self, z: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
        knots_x, knots_y, derivatives = self._knots(z, parameters)
        inner = z.clamp(-self.width, self.width)
        (low, high), (left, right), (start, end) = self._bin_of(inner, knots_y, (knots_x, derivatives))
        slope = (high - low) / (right - left)
        # The root of a r^2 + b r + c in [0, 1], in the form that cancels no digits.
        bend = (inner - low) * (end + start - 2 * slope)
        a = (high - low) * (slope - start) + bend
        b = (high - low) * start - bend
        c = -slope * (inner - low)
        root = (b.square() - 4 * a * c).clamp_min(0).sqrt()
        r = (2 * c / (-b - root)).clamp(0, 1)
        x = left + r * (right - left)
        return self._or_identity(z, x, -self._log_slope(r, slope, start, end))

    def _knots(self, x: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (x_k), (y_k) and (d_k), each (*x.shape, num_bins + 1)."""
        raw = parameters.to(x.dtype).unflatten(1, (self.num_parameters, x.shape[1])).movedim(1, -1)
        widths, heights, slopes = raw.split([self.num_bins, self.num_bins, self.num_bins - 1], dim=-1)
        one = math.log(math.expm1(1 - self._LEAST))  # what softplus takes to 1
        derivatives = pad(self._LEAST + softplus(slopes + one), (1, 1), value=1.0)
        return self._edges(widths), self._edges(heights), derivatives

    def _edges(self, raw: Tensor) -> Tensor:
        share = self._LEAST + (1 - self._LEAST * self.num_bins) * softmax(raw, dim=-1)
        inner = 2 * self.width * share[..., :-1].cumsum(-1) - self.width
        # Both ends exactly: a sum of shares misses 1 by rounding, and points would fall off the last bin.
        return pad(pad(inner, (1, 0), value=-self.width), (0, 1), value=self.width)

    def _bin_of(
        self, at: Tensor, edges: Tensor, others: tuple[Tensor, Tensor]
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Returns the edges of the bin that each number lies in, and the other quantities at both edges."""
        number = torch.searchsorted(edges[..., 1:-1].contiguous(), at[..., None].contiguous(), right=True)

        def both(values: Tensor) -> tuple[Tensor, Tensor]:
            return values.gather(-1, number)[..., 0], values.gather(-1, number + 1)[..., 0]

        return both(edges), both(others[0]), both(others[1])

    def _divisor(self, r: Tensor, slope: Tensor, start: Tensor, end: Tensor) -> Tensor:
        return slope + (end + start - 2 * slope) * r * (1 - r)

    def _log_slope(self, r: Tensor, slope: Tensor, start: Tensor, end: Tensor) -> Tensor:
        rise = end * r.square() + 2 * slope * r * (1 - r) + start * (1 - r).square()
        return 2 * slope.log() + rise.log() - 2 * self._divisor(r, slope, start, end).log()

    def _or_identity(self, at: Tensor, mapped: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
        inside = at.abs() <= self.width
        return torch.where(inside, mapped, at), torch.where(inside, log_slope, 0.0)
