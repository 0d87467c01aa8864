"""How probable a trained process finds an image: a bound by the chain, or the value by the flow."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from genlab.losses.likelihoods import log_normal_interval
from genlab.processes.base import CLEAN, Denoiser, Level, Process, posterior, transition_variance
from genlab.processes.grids import Grid, UniformGrid, ratio_range

Draw = Callable[[str], Tensor]
"""Gives standard normal numbers of x's shape for a name; the same for the same name and items."""


class Likelihood(ABC):
    """An estimate of log p(x).

    Attributes:
        is_bound: Whether even a density is only bounded; the probability of a level may be in any case.
    """

    is_bound: bool

    @property
    @abstractmethod
    def estimator(self) -> str:
        """How it is computed, in a few words."""

    @abstractmethod
    def log_prob(self, x: Tensor, denoise: Denoiser, process: Process, draw: Draw, levels: int = 0) -> Tensor:
        """Returns log p(x) in nats, one number a row.

        Args:
            x: Data in [-1, 1], or vectors.
            denoise: The model.
            process: What it was trained for.
            draw: Source of noise.
            levels: Number of values of a pixel, whose probability is asked for; 0 for a density.
        """


class VariationalBound(Likelihood):
    """The evidence lower bound of the ancestral chain over a grid.

        log p(x) >= log p(x | x_1) - sum_t KL(q(x_s | x_t, x) || p(x_s | x_t)) - KL(q(x_T | x) || p(x_T))

    Ho et al. 2020 (arXiv:2006.11239), equation 5, with the discrete decoder of equation 13 for images. A grid
    with fewer steps than the training chain is a shorter chain, whose bound is valid too and looser.

    Args:
        grid: Steps of the chain; every one is a network pass.
        wide: Fixed variance of the steps: beta_t instead of that of the posterior. Learned ones go first.
    """

    is_bound = True

    def __init__(self, grid: Grid | None = None, wide: bool = False) -> None:
        self.grid, self.wide = grid or UniformGrid(1000), wide

    @property
    def estimator(self) -> str:
        return f"variational bound, {getattr(self.grid, 'num_steps', 'given')} steps"

    def log_prob(self, x: Tensor, denoise: Denoiser, process: Process, draw: Draw, levels: int = 0) -> Tensor:
        steps = self.grid.levels(process)
        total = -prior_divergence(x, steps[0], process.prior_std(steps[0]))
        for number, (t, s) in enumerate(pairwise(steps)):
            x_t = t.alpha * x + t.sigma * draw(f"bound {number}")
            before = steps[number - 1] if number else None
            if s.sigma > 0.0:
                total = total - self.divergence(x, x_t, t, s, denoise, before)
            else:
                total = total + self.decoder(x, x_t, t, denoise, before, levels)
        return total

    def divergence(
        self, x: Tensor, x_t: Tensor, t: Level, s: Level, denoise: Denoiser, before: Level | None
    ) -> Tensor:
        """Returns KL(q(x_s | x_t, x) || p(x_s | x_t)) in nats."""
        estimate, v = denoise.with_variance(x_t, t)
        step = posterior(t, s)
        log_variance = reverse_log_variance(t, s, v, self.wide, before).to(x)
        log_true = math.log(step.variance)
        error = (step.to_x * (estimate - x)).square()
        terms = log_variance - log_true + torch.exp(log_true - log_variance) - 1.0
        return 0.5 * _summed(terms + error * torch.exp(-log_variance))

    def decoder(
        self, x: Tensor, x_t: Tensor, t: Level, denoise: Denoiser, before: Level | None, levels: int
    ) -> Tensor:
        """Returns log p(x | x_1) of the chain's last step."""
        mean, v = denoise.with_variance(x_t, t)
        log_variance = reverse_log_variance(t, CLEAN, v, self.wide, before).to(x)
        if not levels:
            error = (x - mean).square() * torch.exp(-log_variance)
            return -0.5 * _summed(error + log_variance + math.log(2.0 * math.pi))
        return _summed(log_probability_of_level(x, mean, 0.5 * log_variance, levels))


class ProbabilityFlow(Likelihood):
    """The density of the deterministic flow that has the same marginals as the process.

        d y / d log r = y - E[x | x_t],    y = x_t / alpha,  r = sigma / alpha,
        log p(x) = log p(y_T) + int div (y - E) d log r

    Song et al. 2021 (arXiv:2011.13456), equation 39, in the coordinates of Karras et al. 2022, where it has
    no schedule left; solved by Runge-Kutta of order 4 in equal steps of log r. Exact for vectors up to the
    steps; for images uniform noise fills each level's interval first, whose mean log density is a bound.

    Args:
        num_steps: Steps of four network passes each.
        num_probes: Random directions for the divergence (Hutchinson; unbiased); 0 computes it exactly, with
            one backward pass a dimension.
    """

    is_bound = False

    def __init__(self, num_steps: int = 50, num_probes: int = 1) -> None:
        if num_steps < 1 or num_probes < 0:
            raise ValueError(
                f"num_steps must be at least 1 and num_probes at least 0, got {num_steps} and {num_probes}."
            )
        self.num_steps, self.num_probes = num_steps, num_probes

    @property
    def estimator(self) -> str:
        plural = "s" if self.num_probes > 1 else ""
        probes = f"{self.num_probes} probe{plural}" if self.num_probes else "exact divergence"
        return f"probability flow, {self.num_steps} RK4 steps, {probes}"

    def log_prob(self, x: Tensor, denoise: Denoiser, process: Process, draw: Draw, levels: int = 0) -> Tensor:
        dimensions = math.prod(x.shape[1:])
        if levels:
            width = 2.0 / (levels - 1)
            x = x + width * (torch.special.ndtr(draw("dequantisation")) - 0.5)
        log_volume = dimensions * math.log(width) if levels else 0.0
        first, last = ratio_range(process)
        probes = [draw(f"probe {number}").sign() for number in range(self.num_probes)]
        slope = _slope_with_divergence(denoise, process, probes)
        start = process.level_of(first)
        y, change = runge_kutta(slope, x / start.alpha, first, last, self.num_steps)
        end = process.level_of(last)
        std = process.prior_std(end) / end.alpha
        log_prior = -0.5 * _summed((y / std).square()) - dimensions * (
            math.log(std) + 0.5 * math.log(2.0 * math.pi)
        )
        return log_prior + change + log_volume - dimensions * math.log(start.alpha)


def runge_kutta(
    slope: Callable[[Tensor, float], tuple[Tensor, Tensor]],
    y: Tensor,
    first: float,
    last: float,
    num_steps: int,
) -> tuple[Tensor, Tensor]:
    """Returns y and the integral of the divergence after a walk from one ratio to another.

    Args:
        slope: Gives d y / d log r and its divergence at (y, r).
        y: Where the walk begins, (batch, ...).
        first: r at the beginning.
        last: r at the end.
        num_steps: Equal steps in log r, of order 4.
    """
    places = torch.linspace(math.log(first), math.log(last), num_steps + 1, dtype=torch.float64).tolist()
    total = y.new_zeros(len(y))
    for a, b in pairwise(places):
        h, middle = b - a, math.exp(0.5 * (a + b))
        k1, d1 = slope(y, math.exp(a))
        k2, d2 = slope(y + 0.5 * h * k1, middle)
        k3, d3 = slope(y + 0.5 * h * k2, middle)
        k4, d4 = slope(y + h * k3, math.exp(b))
        y = y + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)
        total = total + h / 6.0 * (d1 + 2.0 * d2 + 2.0 * d3 + d4)
    return y, total


def flow_slope(denoise: Denoiser, process: Process) -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
    """Returns the flow's direction, with 0 for the divergence that nobody asked for."""

    def slope(y: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
        level = process.level_of(ratio)
        return y - denoise(level.alpha * y, level), y.new_zeros(len(y))

    return slope


def _slope_with_divergence(
    denoise: Denoiser, process: Process, probes: list[Tensor]
) -> Callable[[Tensor, float], tuple[Tensor, Tensor]]:
    @torch.enable_grad()
    def slope(y: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
        y = y.detach().requires_grad_()
        level = process.level_of(ratio)
        direction = y - denoise(level.alpha * y, level)
        return direction.detach(), divergence(direction, y, probes)

    return slope


def divergence(direction: Tensor, y: Tensor, probes: list[Tensor]) -> Tensor:
    """Returns tr(d direction / d y) of each row: exactly, or as the mean of e^T J e over random signs e."""
    if probes:
        parts = [_summed(torch.autograd.grad(direction, y, e, retain_graph=True)[0] * e) for e in probes]
        return torch.stack(parts).mean(0)
    flat = direction.flatten(1)
    rows = [
        torch.autograd.grad(flat[:, i].sum(), y, retain_graph=True)[0].flatten(1)[:, i]
        for i in range(flat.shape[1])
    ]
    return torch.stack(rows).sum(0)


def reverse_log_variance(t: Level, s: Level, v: Tensor | None, wide: bool, before: Level | None) -> Tensor:
    """Returns the log variance of p(x_s | x_t): learned where v is given, else fixed.

    At the data the posterior's variance is 0; there the one of the step before it is taken instead, as
    Nichol and Dhariwal's code does, so that every logarithm is finite.
    """
    large = math.log(transition_variance(t, s))
    variance = posterior(t, s).variance
    if variance <= 0.0:
        variance = posterior(before, t).variance if before is not None else math.exp(large)
    small = math.log(variance)
    if v is not None:
        return v * large + (1.0 - v) * small
    return torch.tensor(large if wide else small, dtype=torch.float64)


def prior_divergence(x: Tensor, last: Level, prior_std: float) -> Tensor:
    """Returns KL(q(x_T | x) || N(0, prior_std^2 I)) in nats."""
    ratio = (last.sigma / prior_std) ** 2
    return 0.5 * _summed((last.alpha * x / prior_std).square() + ratio - 1.0 - math.log(ratio))


def log_probability_of_level(x: Tensor, mean: Tensor, log_std: Tensor, levels: int) -> Tensor:
    """Returns the log of a normal density's mass on each pixel's level; the outer levels reach to infinity.

    arXiv:2006.11239, equation 13, with half a level 1 / (levels - 1).
    """
    half, scale = 1.0 / (levels - 1), torch.exp(-log_std)
    low, high = (x - half - mean) * scale, (x + half - mean) * scale
    return log_normal_interval(low, high, x <= -1 + half, x >= 1 - half)


def _summed(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)
