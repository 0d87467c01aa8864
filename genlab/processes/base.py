"""What every way of turning data into noise shares: two coefficients of time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor


class Level(NamedTuple):
    """One noise level of a process, as exact numbers: x_t = alpha x + sigma eps."""

    t: float
    alpha: float
    sigma: float


CLEAN = Level(0.0, 1.0, 0.0)
"""Where every grid ends: the data themselves, which no network is asked about."""


def shifted(t: Tensor, shift: float) -> Tensor:
    """Returns times at which t / (1 - t), a straight path's ratio of noise to data, is so many times larger.

        shift t / (1 + (shift - 1) t)

    Esser et al. 2024 (arXiv:2403.03206), equation 23. Keeps 0 and 1; the shift of 1 / shift undoes it.
    """
    return shift * t / (1.0 + (shift - 1.0) * t)


def positive_shift(shift: float) -> float:
    """Returns a shift of times that has an inverse, refuses another one."""
    if not shift > 0.0:
        raise ValueError(f"shift must be positive, got {shift}; 1 moves nothing.")
    return shift


class Process(ABC):
    """Turns data into noise by degrees.

        x_t = alpha(t) x + sigma(t) eps,    eps ~ N(0, I)

    (Kingma et al. 2021, arXiv:2107.00630, equation 1). Time grows with the noise. Everything that a sampler,
    a loss or a likelihood needs follows from alpha and sigma, which are computed in float64: in half
    precision the first levels of most schedules hold no noise at all.

    Attributes:
        start: The smallest time that a network is trained at.
        end: The time at which nothing of the data is left.

    Shapes:
        x, noise: (batch, ...); t: (batch,), float64.
    """

    start: float = 1e-3
    end: float = 1.0

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Returns how much of the data is left at t."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Returns the standard deviation of the noise at t."""

    @abstractmethod
    def time_of(self, ratio: Tensor) -> Tensor:
        """Returns the time at which sigma / alpha has a value: the inverse of a growing function."""

    def training_time(self, u: Tensor) -> Tensor:
        """Maps uniform numbers in (0, 1) to the times that training draws."""
        return self.start + (self.end - self.start) * u.double()

    def network_time(self, t: Tensor) -> Tensor:
        """Returns the time as a network is told it: from 0 to 1,000 in even steps of difficulty."""
        return 1000.0 * t / self.end

    def prior_std(self, level: Level) -> float:
        """Returns the standard deviation that sampling starts with at a level."""
        return 1.0

    def snapped(self, times: Tensor) -> Tensor:
        """Returns the nearest times that the process has; all of them where time is continuous."""
        return times

    def level(self, t: float) -> Level:
        """Returns the coefficients at one time; the data themselves at 0."""
        if t <= 0.0:
            return CLEAN
        time = torch.tensor([t], dtype=torch.float64)
        return Level(t, self.alpha(time).item(), self.sigma(time).item())

    def level_of(self, ratio: float) -> Level:
        """Returns the level at which sigma / alpha has a value."""
        return self.level(self.time_of(torch.tensor([ratio], dtype=torch.float64)).item())

    def coefficients(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns alpha(t) and sigma(t) in x's precision (at least float32), shaped to multiply x."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        shape = (-1,) + (1,) * (x.dim() - 1)
        t = t.double()
        return self.alpha(t).to(dtype).reshape(shape), self.sigma(t).to(dtype).reshape(shape)

    def diffuse(self, x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Returns x_t, never in less than float32."""
        alpha, sigma = self.coefficients(t, x)
        return alpha * x + sigma * noise


class Posterior(NamedTuple):
    """The distribution of a less noisy x_s when x and x_t are known: N(to_x x + to_x_t x_t, variance)."""

    to_x: float
    to_x_t: float
    variance: float


def posterior(t: Level, s: Level) -> Posterior:
    """Returns (a, b, var) of the less noisy x_s when x_t and x are known.

        q(x_s | x_t, x) = N(a x + b x_t, var),    var = sigma_s^2 (1 - rho^2),
        rho = alpha_t sigma_s / (alpha_s sigma_t),    b = rho sigma_s / sigma_t,    a = alpha_s (1 - rho^2)

    Ho et al. 2020 (arXiv:2006.11239), equations 6 and 7, for any two levels of any process.
    """
    rho = t.alpha * s.sigma / (s.alpha * t.sigma)
    remaining = 1.0 - rho**2
    return Posterior(s.alpha * remaining, rho * s.sigma / t.sigma, s.sigma**2 * remaining)


def transition_variance(t: Level, s: Level) -> float:
    """Returns the variance of q(x_t | x_s) for s < t: the beta_t of a chain's single step."""
    return t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2


class Denoiser(ABC):
    """A model seen as what every sampler asks for: the mean of x given x_t.

    Shapes:
        x_t: (batch, ...). Returns the same shape.
    """

    @abstractmethod
    def __call__(self, x_t: Tensor, level: Level) -> Tensor:
        """Returns E[x | x_t] as the model sees it."""

    def with_variance(self, x_t: Tensor, level: Level) -> tuple[Tensor, Tensor | None]:
        """Returns the mean, and where the model learned it the reverse step's variance.

        That is v of log var = v log beta + (1 - v) log posterior variance, from 0 to 1 (Nichol and Dhariwal
        2021, arXiv:2102.09672, equation 15).
        """
        return self(x_t, level), None


def noise_of(x_t: Tensor, x: Tensor, level: Level) -> Tensor:
    """Returns the noise that makes x_t of x."""
    return (x_t - level.alpha * x) / level.sigma


def score_of(x_t: Tensor, x: Tensor, level: Level) -> Tensor:
    """Returns the score, grad log p(x_t) = (alpha E[x | x_t] - x_t) / sigma^2."""
    return (level.alpha * x - x_t) / level.sigma**2
