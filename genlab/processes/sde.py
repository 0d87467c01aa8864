"""The stochastic differential equations of score-based models, and the ladder that came before them."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from genlab.processes.base import Level, Process, positive_shift, shifted


class SDE(Process):
    """A diffusion in continuous time, dx = f(t) x dt + g(t) dw.

    Song et al. 2021 (arXiv:2011.13456), equation 5 and appendix B. Its score is learned by predicting the
    noise: with the paper's weight sigma^2, || sigma (score + eps / sigma) ||^2 is || eps_model - eps ||^2.
    """

    @abstractmethod
    def drift(self, t: Tensor) -> Tensor:
        """Returns f(t)."""

    @abstractmethod
    def diffusion_squared(self, t: Tensor) -> Tensor:
        """Returns g(t)^2."""


class VPSDE(SDE):
    """Keeps the variance: the limit of DDPM's chain for many steps.

        f = -beta(t) / 2,  g^2 = beta(t),  beta(t) = beta_min + t (beta_max - beta_min)

    Song et al. 2021 (arXiv:2011.13456), equations 32 and 33.

    Args:
        beta_min, beta_max: Rates at both ends.
        start: Smallest time of training: there sigma is 0.01 at 1e-3 and 0.001 at 1e-5.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, start: float = 1e-3) -> None:
        _require_start(start)
        self.beta_min, self.beta_max, self.start = beta_min, beta_max, start

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._total(t))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._total(t)))

    def time_of(self, ratio: Tensor) -> Tensor:
        return self._time_of_total(torch.log1p(ratio**2))

    def drift(self, t: Tensor) -> Tensor:
        return -0.5 * self._rate(t)

    def diffusion_squared(self, t: Tensor) -> Tensor:
        return self._rate(t)

    def _rate(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _total(self, t: Tensor) -> Tensor:
        """Returns the integral of the rate from 0 to t."""
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def _time_of_total(self, total: Tensor) -> Tensor:
        # The root of a quadratic in the form that does not cancel for small totals.
        slope = self.beta_max - self.beta_min
        return 2.0 * total / (self.beta_min + torch.sqrt(self.beta_min**2 + 2.0 * slope * total))


class SubVPSDE(VPSDE):
    """As VPSDE with less noise at every time: sigma = 1 - alpha^2, the square of VPSDE's.

    Song et al. 2021 (arXiv:2011.13456), equation 29: best likelihoods of the three.
    """

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._total(t))

    def time_of(self, ratio: Tensor) -> Tensor:
        # ratio = exp(B / 2) - exp(-B / 2) for the total B.
        return self._time_of_total(2.0 * torch.asinh(0.5 * ratio))

    def diffusion_squared(self, t: Tensor) -> Tensor:
        return self._rate(t) * -torch.expm1(-2.0 * self._total(t))


class VESDE(SDE):
    """Adds noise to unchanged data, in a geometric sequence of scales.

        alpha = 1,  sigma(t) = sigma_min (sigma_max / sigma_min)^t

    Song et al. 2021 (arXiv:2011.13456), equation 30.

    Args:
        sigma_min, sigma_max: Scales of the noise at both ends; the last about the largest distance between
            two images, here of values in [-1, 1].
    """

    start = 1e-5

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 100.0) -> None:
        if not 0.0 < sigma_min < sigma_max:
            raise ValueError(f"VESDE needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}.")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self._span = math.log(sigma_max / sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(self._span * t)

    def time_of(self, ratio: Tensor) -> Tensor:
        return torch.log(ratio / self.sigma_min) / self._span

    def drift(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def diffusion_squared(self, t: Tensor) -> Tensor:
        return 2.0 * self._span * self.sigma(t) ** 2

    def prior_std(self, level: Level) -> float:
        return level.sigma


class NoiseLadder(VESDE):
    """A few noise scales in geometric sequence, the noise-conditional score network of 2019.

    Song and Ermon 2019 (arXiv:1907.05600), section 4: training draws only these scales, and annealed Langevin
    dynamics descends them one by one.

    Args:
        sigma_min, sigma_max: Smallest and largest scale; the paper's 0.01 and 1 for values in [0, 1] are
            0.02 and 2 here.
        num_levels: Number of scales.
    """

    def __init__(self, sigma_min: float = 0.02, sigma_max: float = 2.0, num_levels: int = 10) -> None:
        super().__init__(sigma_min, sigma_max)
        if num_levels < 2:
            raise ValueError(f"num_levels must be at least 2, got {num_levels}.")
        self.num_levels = num_levels
        self.start, self.end = 1.0 / num_levels, 1.0
        self._span *= num_levels / (num_levels - 1)
        # Time 1 / num_levels is the smallest scale, time 1 the largest; 0 stays free for the data.
        self.sigma_min = sigma_max * math.exp(-self._span)

    def training_time(self, u: Tensor) -> Tensor:
        return ((u.double() * self.num_levels).floor().clamp(max=self.num_levels - 1) + 1.0) / self.num_levels

    def snapped(self, times: Tensor) -> Tensor:
        return (times * self.num_levels).round() / self.num_levels


class EDM(Process):
    """Time is the noise itself: x_t = x + t eps, drawn log-normally in training.

    Karras et al. 2022 (arXiv:2206.00364), table 1, right column; goes with `Preconditioned`.

    Args:
        sigma_min, sigma_max: Noise at both ends of sampling.
        log_mean, log_std: Of the logarithm of the noise in training: where most is learned.
    """

    def __init__(
        self,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        log_mean: float = -1.2,
        log_std: float = 1.2,
    ) -> None:
        if not 0.0 < sigma_min < sigma_max:
            raise ValueError(f"EDM needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}.")
        self.start, self.end = sigma_min, sigma_max
        self.log_mean, self.log_std = log_mean, log_std

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time_of(self, ratio: Tensor) -> Tensor:
        return ratio

    def training_time(self, u: Tensor) -> Tensor:
        return torch.exp(self.log_mean + self.log_std * torch.special.ndtri(u.double()))

    def network_time(self, t: Tensor) -> Tensor:
        return 1000.0 * torch.log(t / self.start) / math.log(self.end / self.start)

    def prior_std(self, level: Level) -> float:
        return level.sigma


class RectifiedFlow(Process):
    """Moves an image to noise in a straight line and learns the way back.

        x_t = (1 - t) x + t eps,        dx_t / dt = eps - x

    Liu et al. 2022 (arXiv:2209.03003), Lipman et al. 2022 (arXiv:2210.02747). Their time runs the other way;
    here t grows with the noise. Goes with `PredictVelocity`.

    Args:
        t_spread: Standard deviation of logit(t) in training (Esser et al. 2024, arXiv:2403.03206); small
            values train mostly the middle of the path. None draws t uniformly.
        shift: What multiplies the ratio of noise to data of each time in training, as `shifted` does. The
            same content on n times as many numbers, such as a code of more channels, is seen through
            sqrt(n) times the noise: what a text or a class decides is decided later, and a shift of sqrt(n)
            brings training there.
    """

    def __init__(self, t_spread: float | None = None, shift: float = 1.0) -> None:
        if t_spread is not None and t_spread <= 0.0:
            raise ValueError(f"t_spread must be positive, got {t_spread}; leave it out for uniform times.")
        self.t_spread, self.shift = t_spread, positive_shift(shift)

    def alpha(self, t: Tensor) -> Tensor:
        return 1.0 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def time_of(self, ratio: Tensor) -> Tensor:
        return ratio / (1.0 + ratio)

    def prior_std(self, level: Level) -> float:
        return level.sigma

    def training_time(self, u: Tensor) -> Tensor:
        t = super().training_time(u)
        if self.t_spread is not None:
            t = torch.sigmoid(self.t_spread * torch.special.ndtri(u.double()))
        return shifted(t, self.shift).clamp(self.start, self.end)


def _require_start(start: float) -> None:
    if not 0.0 < start < 0.1:
        raise ValueError(f"start must be in (0, 0.1), got {start}: the noise must not vanish in training.")
