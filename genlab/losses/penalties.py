"""Gradient penalties that keep a discriminator smooth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from genlab.losses.precision import at_least_float32


class Penalty(ABC):
    """A term of the discriminator's loss made from its gradient with respect to images.

    Computed with autocast off, since squared gradients overflow in half precision. The gradient of one
    image must not depend on the others, so the discriminator should have no batch norm.

    Args:
        weight: Factor of the penalty; 0 switches it off, large values flatten the discriminator.
        every: Apply only in every n-th discriminator step, multiplied by n, which costs less and moves the
            optimum little (lazy regularisation; Karras et al. 2020, arXiv:1912.04958, appendix B).

    Shapes:
        real, fake: (batch, ...), equal shapes.
        uniform: (batch,), numbers in (0, 1).

    Raises:
        ValueError: If weight is negative or every is below 1.
    """

    def __init__(self, weight: float, every: int = 1) -> None:
        if weight < 0:
            raise ValueError(f"weight of {type(self).__name__} must not be negative, got {weight}.")
        if every < 1:
            raise ValueError(
                f"every of {type(self).__name__} counts steps and must be at least 1, got {every}."
            )
        self.weight = weight
        self.every = every

    def __call__(
        self, discriminator: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, uniform: Tensor
    ) -> Tensor:
        """Returns the weighted penalty, differentiable with respect to the discriminator's parameters."""
        real, fake, uniform = (at_least_float32(tensor) for tensor in (real, fake, uniform))
        with torch.autocast(real.device.type, enabled=False):
            x = self.points(real, fake, uniform).detach().requires_grad_()
            # One backward for the whole batch: the gradient of the sum is the gradient of each row.
            (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
            return self.every * self.weight * self.measure(gradient.flatten(1))

    @abstractmethod
    def points(self, real: Tensor, fake: Tensor, uniform: Tensor) -> Tensor:
        """Returns the images at which the gradient is taken."""

    @abstractmethod
    def measure(self, gradient: Tensor) -> Tensor:
        """Returns the scalar to keep small, from one flattened gradient a row."""


class GradientPenalty(Penalty):
    """Pulls the gradient's norm to 1 on lines between real and generated images.

        weight E (||grad D(x_hat)|| - 1)^2,     x_hat = u x + (1 - u) G(z),  u uniform in (0, 1)

    Gulrajani et al. 2017 (arXiv:1704.00028), equation 3 and Algorithm 1.

    Args:
        weight: lambda of the paper.
        every: As in Penalty.
    """

    def __init__(self, weight: float = 10.0, every: int = 1) -> None:
        super().__init__(weight, every)

    def points(self, real: Tensor, fake: Tensor, uniform: Tensor) -> Tensor:
        share = uniform.reshape(-1, *[1] * (real.dim() - 1))
        return share * real + (1.0 - share) * fake

    def measure(self, gradient: Tensor) -> Tensor:
        return (gradient.norm(dim=1) - 1.0).square().mean()


class R1(Penalty):
    """Pulls the gradient to 0 on real images, which lets alternating training converge.

        weight / 2 E ||grad D(x)||^2

    Mescheder et al. 2018 (arXiv:1801.04406), equation 9.

    Args:
        weight: gamma of the paper.
        every: As in Penalty; StyleGAN2 applies R1 every 16 steps.
    """

    def __init__(self, weight: float = 10.0, every: int = 1) -> None:
        super().__init__(weight, every)

    def points(self, real: Tensor, fake: Tensor, uniform: Tensor) -> Tensor:
        return real

    def measure(self, gradient: Tensor) -> Tensor:
        return gradient.square().sum(dim=1).mean() / 2
