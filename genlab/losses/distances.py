"""How far an image is from the one that it should be, pixel by pixel."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from genlab.losses.precision import at_least_float32


class Distance(ABC):
    """A mean over all numbers of two tensors of one shape, 0 where they are equal, in at least 32 bits."""

    @abstractmethod
    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        """Returns a scalar."""


class SquaredError(Distance):
    """E (x - y)^2: its minimiser is the mean of what is possible, and PSNR its logarithm."""

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        return _difference(x, target).square().mean()


class AbsoluteError(Distance):
    """E |x - y|: its minimiser is the median of what is possible, less drawn by a few large errors.

    Zhao et al. 2017 (arXiv:1511.08861) compare the two for restoration.
    """

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        return _difference(x, target).abs().mean()


class Charbonnier(Distance):
    """E sqrt((x - y)^2 + epsilon^2) - epsilon: the absolute error, smooth at 0.

    Charbonnier et al. 1994; Lai et al. 2017 (arXiv:1704.03915), equation 3, but for the constant.

    Args:
        epsilon: Where it turns from squares to absolute values.
    """

    def __init__(self, epsilon: float = 1e-3) -> None:
        if epsilon <= 0:
            raise ValueError(f"epsilon must be above 0, got {epsilon}.")
        self.epsilon = epsilon

    def __call__(self, x: Tensor, target: Tensor) -> Tensor:
        squares = _difference(x, target).square()
        return (squares + self.epsilon**2).sqrt().mean() - self.epsilon


def _difference(x: Tensor, target: Tensor) -> Tensor:
    return at_least_float32(x) - at_least_float32(target)
