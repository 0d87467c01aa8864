"""Solvers of the probability-flow equation: deterministic ways from noise to data.

    d x = E[x | x_t] d alpha + E[eps | x_t] d sigma        (Song et al. 2021, arXiv:2011.13456, equation 13)

along the curve (alpha, sigma) of the process. In this form it has no schedule and no division by alpha: it is
EDM's equation where alpha = 1 and the straight path's velocity where alpha + sigma = 1.
"""

from __future__ import annotations

import math

from torch import Tensor

from genlab.processes.base import Denoiser, Level, Process, noise_of
from genlab.processes.grids import Grid, RatioGrid, ratio_range
from genlab.processes.likelihood import flow_slope, runge_kutta
from genlab.samplers.base import Noise, Sampler, steps


class Euler(Sampler):
    """Follows the direction at the beginning of each step; order 1, one network pass a step.

    Args:
        grid: Levels; Karras's 18 where it is left out.
    """

    is_deterministic = True

    def __init__(self, grid: Grid | None = None) -> None:
        super().__init__(grid or RatioGrid())

    def walk(
        self, process: Process, denoise: Denoiser, x: Tensor, levels: list[Level], noise: Noise
    ) -> Tensor:
        for _, t, s in steps(levels):
            x = moved(x, *directions(x, denoise, t), t, s)
        return x


class Heun(Sampler):
    """Follows the mean of the directions at both ends of each step; order 2, two network passes a step.

    Karras et al. 2022 (arXiv:2206.00364), algorithm 1. The last step, to the data, is Euler's.

    Args:
        grid: Levels; Karras's 18, 35 network passes, where it is left out.
    """

    is_deterministic = True

    def __init__(self, grid: Grid | None = None) -> None:
        super().__init__(grid or RatioGrid())

    def passes_in(self, num_steps: int) -> int:
        return 2 * num_steps - 1

    def walk(
        self, process: Process, denoise: Denoiser, x: Tensor, levels: list[Level], noise: Noise
    ) -> Tensor:
        for _, t, s in steps(levels):
            to_data, to_noise = directions(x, denoise, t)
            guess = moved(x, to_data, to_noise, t, s)
            if s.sigma > 0.0:
                then_data, then_noise = directions(guess, denoise, s)
                guess = moved(x, 0.5 * (to_data + then_data), 0.5 * (to_noise + then_noise), t, s)
            x = guess
        return x


class DPMSolver(Sampler):
    """DPM-Solver++(2M): solves the linear part exactly and extrapolates the estimate of x.

        x_s = (sigma_s / sigma_t) x_t - alpha_s (e^-h - 1) D,    h = lambda_s - lambda_t,
        D = (1 + 1 / 2r) E_t - (1 / 2r) E_before,    r = h_before / h,    lambda = log(alpha / sigma)

    Lu et al. 2022 (arXiv:2211.01095), algorithm 2; order 2, one network pass a step. The first step and the
    last, to the data, are of order 1.

    Args:
        grid: Levels; Karras's with 20 where it is left out.
    """

    is_deterministic = True

    def __init__(self, grid: Grid | None = None) -> None:
        super().__init__(grid or RatioGrid(20))

    def walk(
        self, process: Process, denoise: Denoiser, x: Tensor, levels: list[Level], noise: Noise
    ) -> Tensor:
        before, width_before = None, math.inf
        for _, t, s in steps(levels):
            estimate = direction = denoise(x, t)
            width = log_snr(s) - log_snr(t)
            if before is not None and s.sigma > 0.0:
                weight = 0.5 * width / width_before
                direction = estimate + weight * (estimate - before)
            x = s.sigma / t.sigma * x - s.alpha * math.expm1(-width) * direction
            before, width_before = estimate, width
        return x


class RungeKutta(Sampler):
    """Order 4 in equal steps of log(sigma / alpha), four network passes a step: the flow nearly exactly.

    Args:
        num_steps: Steps; 50 resolve a trained network to about a grey level.
    """

    is_deterministic = True

    def __init__(self, num_steps: int = 50) -> None:
        super().__init__(RatioGrid(num_steps + 1))
        self.num_steps = num_steps

    def passes_in(self, num_steps: int) -> int:
        return 4 * self.num_steps + 1

    def walk(
        self, process: Process, denoise: Denoiser, x: Tensor, levels: list[Level], noise: Noise
    ) -> Tensor:
        low, high = ratio_range(process)
        top = levels[0]
        high = min(high, top.sigma / top.alpha) if top.alpha > 0.0 else high
        begin, end = process.level_of(high), process.level_of(low)
        y, _ = runge_kutta(flow_slope(denoise, process), x / begin.alpha, high, low, self.num_steps)
        return denoise(end.alpha * y, end)


def encode(process: Process, denoise: Denoiser, x: Tensor, num_steps: int) -> Tensor:
    """Returns the noise that the flow takes data to, at unit variance: the latent of DDIM's section 5.4."""
    low, high = ratio_range(process)
    begin, end = process.level_of(low), process.level_of(high)
    y, _ = runge_kutta(flow_slope(denoise, process), x / begin.alpha, low, high, num_steps)
    return end.alpha * y / process.prior_std(end)


def directions(x: Tensor, denoise: Denoiser, level: Level) -> tuple[Tensor, Tensor]:
    """Returns what the model sees in x: the data and the noise."""
    estimate = denoise(x, level)
    return estimate, noise_of(x, estimate, level)


def moved(x: Tensor, to_data: Tensor, to_noise: Tensor, t: Level, s: Level) -> Tensor:
    """Returns x after a straight step of the coefficients."""
    return x + (s.alpha - t.alpha) * to_data + (s.sigma - t.sigma) * to_noise


def log_snr(level: Level) -> float:
    """Returns log(alpha / sigma), infinite at either end."""
    if level.sigma == 0.0:
        return math.inf
    return math.log(level.alpha / level.sigma) if level.alpha > 0.0 else -math.inf
