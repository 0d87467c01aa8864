"""Samples that agree with something known: a part of an image, a linear measurement, a coarse shape."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d, avg_pool2d, conv2d, interpolate

from genlab.processes.base import Denoiser, Level, Process, posterior, transition_variance
from genlab.processes.grids import Grid, RatioGrid, UniformGrid
from genlab.samplers.ancestral import DDIM
from genlab.samplers.base import Noise, Sampler, steps
from genlab.shapes import DataSpec


class RePaint(Sampler):
    """Fills the unknown part of an image: the known part is noised to each level and put in.

    After each reverse step the image is noised back and stepped again, so that both parts learn of each
    other (Lugmayr et al. 2022, arXiv:2201.09865, algorithm 1, jump length 1). The result is biased towards
    ignoring the known part; the bias falls with the number of repetitions, not to 0.

    Args:
        known: The image, (batch, ...) or broadcast to it.
        mask: 1 where the image is known, 0 where it is to be filled.
        grid: Levels.
        num_resamplings: Reverse steps at each level; 1 is plain replacement, the paper takes 10.
    """

    def __init__(
        self, known: Tensor, mask: Tensor, grid: Grid | None = None, num_resamplings: int = 10
    ) -> None:
        super().__init__(grid or UniformGrid(250))
        if num_resamplings < 1:
            raise ValueError(f"num_resamplings must be at least 1, got {num_resamplings}.")
        self.known, self.mask, self.num_resamplings = known, mask, num_resamplings

    def passes_in(self, num_steps: int) -> int:
        return (num_steps - 1) * self.num_resamplings + 1

    def walk(
        self, process: Process, denoise: Denoiser, x: Tensor, levels: list[Level], noise: Noise
    ) -> Tensor:
        for number, t, s in steps(levels):
            for repetition in range(self.num_resamplings):
                name = (number, repetition)
                to_x, to_x_t, variance = posterior(t, s)
                less = to_x * denoise(x, t) + to_x_t * x + math.sqrt(variance) * noise("step", *name)
                known = s.alpha * self.known + s.sigma * noise("known", *name)
                less = self.mask * known + (1 - self.mask) * less
                if s.sigma == 0.0 or repetition + 1 == self.num_resamplings:
                    break
                std = math.sqrt(transition_variance(t, s))
                x = t.alpha / s.alpha * less + std * noise("again", *name)
            x = less
        return x


class FromImage(Sampler):
    """Begins with a noised image instead of noise, and so keeps its coarse shape.

    Meng et al. 2022 (SDEdit, arXiv:2108.01073), algorithm 1.

    Args:
        image: (batch, ...) or broadcast to it.
        sampler: Walks from there.
        strength: Share of its steps that are walked: near 0 keeps the image, 1 forgets it.
    """

    def __init__(self, image: Tensor, sampler: Sampler, strength: float = 0.5) -> None:
        super().__init__(sampler.grid)
        self.image, self.sampler, self.strength = image, sampler, strength

    def passes(self, process: Process) -> int:
        return self.sampler.passes_in(len(self.sampler.levels_from(process, self.strength)) - 1)

    def __call__(self, process: Process, denoise: Denoiser, noise: Noise) -> Tensor:
        levels = self.sampler.levels_from(process, self.strength)
        x_t = levels[0].alpha * self.image + levels[0].sigma * noise("latent")
        return self.walk(process, denoise, x_t, levels, noise)

    def walk(
        self, process: Process, denoise: Denoiser, x: Tensor, levels: list[Level], noise: Noise
    ) -> Tensor:
        return self.sampler.walk(process, denoise, x, levels, noise)


class Operator(ABC):
    """A linear map A from an image to a measurement."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Returns A x."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """Returns A^T y."""

    def at(self, x: Tensor) -> Operator:
        """Returns its derivative at x: of a linear map, itself."""
        return self


class Masking(Operator):
    """Keeps the known pixels; with a mask of ones, the whole image, for denoising.

    Args:
        mask: 1 where the image is known.
    """

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, x: Tensor) -> Tensor:
        return self.mask * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.mask * y


class Blur(Operator):
    """Replaces each pixel by a normal-weighted mean of its neighbours; nothing comes from outside.

    Args:
        std: Width in pixels.
    """

    def __init__(self, std: float) -> None:
        if std <= 0.0:
            raise ValueError(f"The width of a blur must be positive, got {std}.")
        reach = math.ceil(3 * std)
        weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / std) ** 2)
        self.kernel = weights / weights.sum()

    def __call__(self, x: Tensor) -> Tensor:
        channels, kernel = x.shape[1], self.kernel.to(x)
        reach = len(kernel) // 2
        rows = kernel.reshape(1, 1, -1, 1).expand(channels, 1, -1, 1)
        x = conv2d(x, rows, padding=(reach, 0), groups=channels)
        return conv2d(x, rows.transpose(2, 3), padding=(0, reach), groups=channels)

    def adjoint(self, y: Tensor) -> Tensor:
        return self(y)  # a symmetric kernel with zeros outside


class Shrink(Operator):
    """Replaces each square of pixels by its mean: the small image that super-resolution begins with.

    Args:
        factor: Side of the squares.
    """

    def __init__(self, factor: int) -> None:
        if factor < 2:
            raise ValueError(f"The factor of shrinking must be at least 2, got {factor}.")
        self.factor = factor

    def __call__(self, x: Tensor) -> Tensor:
        if any(side % self.factor for side in x.shape[2:]):
            raise ValueError(f"Sides {tuple(x.shape[2:])} are no multiples of the factor {self.factor}.")
        return avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        return interpolate(y, scale_factor=float(self.factor), mode="nearest") / self.factor**2


class Through(Operator):
    """A measurement of what a decoder makes of codes, A D(z), which is not linear; its derivative is.

    Args:
        operator: A.
        decode: D, which gradients pass.
    """

    def __init__(self, operator: Operator, decode: Callable[[Tensor], Tensor]) -> None:
        self.operator, self.decode = operator, decode

    def __call__(self, x: Tensor) -> Tensor:
        return self.operator(self.decode(x))

    def adjoint(self, y: Tensor) -> Tensor:
        raise NotImplementedError("Only the derivative at a code has an adjoint: ask `at`.")

    def at(self, x: Tensor) -> Operator:
        return _Derivative(self, x)


class _Derivative(Operator):
    """The derivative J of a function at x, by one pass through the function."""

    @torch.enable_grad()
    def __init__(self, function: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self.x = x.detach().requires_grad_()
        self.y = function(self.x)
        # J^T v is linear in v, and its derivative by v is J^T again: J is the adjoint of that.
        self.v = torch.zeros_like(self.y).requires_grad_()
        (self.pulled,) = torch.autograd.grad(self.y, self.x, self.v, create_graph=True)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.autograd.grad(self.pulled, self.v, x, retain_graph=True)[0]

    def adjoint(self, y: Tensor) -> Tensor:
        return torch.autograd.grad(self.y, self.x, y, retain_graph=True)[0]


class Space:
    """Where a model walks from noise, and what is known of images there: in the images themselves.

    Args:
        spec: What is walked in.
    """

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec

    def inside(self, x: Tensor) -> Tensor:
        """Returns images as the walk sees them."""
        return x

    def known(self, mask: Tensor) -> Tensor:
        """Returns what of them is known where some pixels are, marked by 1."""
        return mask

    def measured(self, operator: Operator) -> Operator:
        """Returns a measurement of images as one of what is walked in."""
        return operator


class Codes(Space):
    """The codes of a first stage: a code is known where all of its pixels are.

    Args:
        spec: Of the codes.
        encode: From images to codes.
        decode: From codes to images, which gradients pass.
    """

    def __init__(
        self, spec: DataSpec, encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__(spec)
        self.encode, self.decode = encode, decode

    def inside(self, x: Tensor) -> Tensor:
        return self.encode(x)

    def known(self, mask: Tensor) -> Tensor:
        return -adaptive_max_pool2d(-mask, self.spec.shape[1:])

    def measured(self, operator: Operator) -> Operator:
        return Through(operator, self.decode)


class Guided(Denoiser):
    """The mean of x given both x_t and a measurement y = A x + noise.

        E[x | x_t, y] = E + C A^T (A C A^T + std^2 I)^-1 (y - A E),    E = E[x | x_t],
        C = Cov[x | x_t] = sigma^2 / alpha dE / dx_t

    (Rozet et al. 2024, arXiv:2405.13712, section 3.) Exact where x given x_t is normal; a measurement that is
    not linear is taken for its derivative at E. The covariance is the
    network's own derivative, never stored: conjugate gradients solve the system with one backward pass each.

    Args:
        denoise: The model's E[x | x_t].
        operator: A.
        measurement: y.
        std: Standard deviation of the measurement's noise; a small positive number where there is none.
        num_solves: Iterations of conjugate gradients.
        clip: Keep the mean in [-1, 1], where images lie; the model's own estimate must not be clipped, or its
            derivative would say that what lies at an end is known.
    """

    def __init__(
        self,
        denoise: Denoiser,
        operator: Operator,
        measurement: Tensor,
        std: float,
        num_solves: int = 3,
        clip: bool = False,
    ) -> None:
        if std <= 0.0:
            raise ValueError(f"std must be positive, got {std}; take a small one for exact measurements.")
        self.denoise, self.operator, self.measurement = denoise, operator, measurement
        self.std, self.num_solves, self.clip = std, num_solves, clip

    def __call__(self, x_t: Tensor, level: Level) -> Tensor:
        with torch.enable_grad():
            x_t = x_t.detach().requires_grad_()
            mean = self.denoise(x_t, level)
        if level.alpha == 0.0:  # pure noise says nothing about x, and its derivative nothing of how x varies
            return mean.detach()

        operator = self.operator.at(mean.detach())

        def covariance(u: Tensor) -> Tensor:
            (row,) = torch.autograd.grad(mean, x_t, u, retain_graph=True)
            return level.sigma**2 / level.alpha * row

        def system(u: Tensor) -> Tensor:
            return operator(covariance(operator.adjoint(u))) + self.std**2 * u

        missing = self.measurement - self.operator(mean.detach())
        solution = conjugate_gradients(system, missing, self.num_solves, self.std**2)
        mean = mean.detach() + covariance(operator.adjoint(solution))
        return mean.clamp(-1.0, 1.0) if self.clip else mean


class Restoration(Sampler):
    """DDIM with a denoiser that knows a measurement: draws x given y = A x + noise.

    Its denoiser must not be clipped.

    Args:
        operator: A.
        measurement: y, (batch, ...) or broadcast to it.
        std: Standard deviation of the measurement's noise.
        grid: Levels, each a forward pass and num_solves + 1 backward passes.
        num_solves: Iterations of conjugate gradients.
        clip: Keep the guided mean in [-1, 1].
    """

    def __init__(
        self,
        operator: Operator,
        measurement: Tensor,
        std: float,
        grid: Grid | None = None,
        num_solves: int = 3,
        clip: bool = True,
    ) -> None:
        super().__init__(grid or RatioGrid(50, largest=80.0))
        self.operator, self.measurement, self.std = operator, measurement, std
        self.num_solves, self.clip = num_solves, clip

    def walk(
        self, process: Process, denoise: Denoiser, x: Tensor, levels: list[Level], noise: Noise
    ) -> Tensor:
        guided = Guided(denoise, self.operator, self.measurement, self.std, self.num_solves, self.clip)
        return DDIM(self.grid).walk(process, guided, x, levels, noise)


def conjugate_gradients(system: Any, right: Tensor, num_steps: int, smallest: float = 0.0) -> Tensor:
    """Returns an approximate solution of a symmetric positive system, for each row on its own.

    Args:
        system: The matrix, as a function of a vector.
        right: What it should give.
        num_steps: Iterations.
        smallest: A lower bound of its eigenvalues. Where a row's direction shows a smaller one, the matrix
            is not what it should be (a network's derivative is no exact covariance) and the row stays.
    """
    shape = (-1, *(1 for _ in right.shape[1:]))
    solution, residual = torch.zeros_like(right), right
    direction, size = residual, _squared(residual)
    for _ in range(num_steps):
        image = system(direction)
        curvature = _inner(direction, image)
        sound = curvature >= smallest * _squared(direction)
        step = torch.where(sound, size / curvature.clamp(min=1e-30), 0.0)
        solution = solution + step.reshape(shape) * direction
        residual = residual - step.reshape(shape) * image
        previous, size = size, _squared(residual)
        direction = residual + (size / previous.clamp(min=1e-30)).reshape(shape) * direction
    return solution


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(1)


def _squared(a: Tensor) -> Tensor:
    return _inner(a, a)
