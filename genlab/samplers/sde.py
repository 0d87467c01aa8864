"""Samplers that walk with the score and fresh noise: reverse equations and Langevin dynamics."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.processes.base import (
    CLEAN,
    Denoiser,
    Level,
    Process,
    posterior,
    score_of,
)
from genlab.processes.grids import Grid, UniformGrid
from genlab.processes.sde import SDE
from genlab.samplers.base import Noise, Sampler, steps


class EulerMaruyama(Sampler):
    """Solves the reverse stochastic equation by its simplest scheme.

        x <- x - (f x - g^2 score) dt + g sqrt(dt) z

    Song et al. 2021 (arXiv:2011.13456), equation 6; for processes that are stochastic equations. The last
    step, to the data, is the model's estimate without noise.

    Args:
        grid: Levels, many and evenly spaced; 1,000 where it is left out.
    """

    def __init__(self, grid: Grid | None = None) -> None:
        super().__init__(grid or UniformGrid(1000))

    def walk(
        self, process: Process, denoise: Denoiser, x: Tensor, levels: list[Level], noise: Noise
    ) -> Tensor:
        if not isinstance(process, SDE):
            raise ValueError(
                f"EulerMaruyama needs a process with drift and diffusion (VPSDE, SubVPSDE, VESDE), "
                f"got {type(process).__name__}; use Ancestral."
            )
        for number, t, s in steps(levels):
            estimate = denoise(x, t)
            if s == CLEAN:
                return estimate
            time = torch.tensor(t.t, dtype=torch.float64)
            drift, rate = process.drift(time).item(), process.diffusion_squared(time).item()
            width = t.t - s.t
            x = x - (drift * x - rate * score_of(x, estimate, t)) * width
            x = x + math.sqrt(rate * width) * noise("step", number)
        return x


class PredictorCorrector(Sampler):
    """After each reverse step, Langevin steps at the new level repair what the step missed.

        x <- x + step score + sqrt(2 step) z,    step = 2 (snr sigma)^2

    Song et al. 2021 (arXiv:2011.13456), algorithms 2 to 5, with the reverse step of `Ancestral`. The paper's
    |z| / |score| is a mean over the batch, which would make a sample depend on its neighbours; sigma is what
    it tends to, and what the paper's code takes for its annealed corrector.

    Args:
        grid: Levels; 500, so 1,000 network passes with one correction, where it is left out.
        snr: Size of the corrections; the paper's 0.16.
        num_corrections: Langevin steps at each level.
    """

    def __init__(self, grid: Grid | None = None, snr: float = 0.16, num_corrections: int = 1) -> None:
        super().__init__(grid or UniformGrid(500))
        if snr <= 0.0 or num_corrections < 0:
            raise ValueError(
                f"snr must be positive and num_corrections at least 0, got {snr} and {num_corrections}."
            )
        self.snr, self.num_corrections = snr, num_corrections

    def passes_in(self, num_steps: int) -> int:
        return num_steps * (1 + self.num_corrections) - self.num_corrections

    def walk(
        self, process: Process, denoise: Denoiser, x: Tensor, levels: list[Level], noise: Noise
    ) -> Tensor:
        for number, t, s in steps(levels):
            to_x, to_x_t, variance = posterior(t, s)
            x = to_x * denoise(x, t) + to_x_t * x
            if s == CLEAN:
                return x
            x = x + math.sqrt(variance) * noise("step", number)
            for correction in range(self.num_corrections):
                score = score_of(x, denoise(x, s), s)
                step = 2.0 * (self.snr * s.sigma) ** 2
                x = x + step * score + math.sqrt(2.0 * step) * noise("correction", number, correction)
        return x


class AnnealedLangevin(Sampler):
    """Langevin dynamics at each noise scale in turn, with steps in proportion to its variance.

        x <- x + step_i / 2 score + sqrt(step_i) z,    step_i = step (sigma_i / sigma_min)^2

    Song and Ermon 2019 (arXiv:1907.05600), algorithm 1; the model's estimate of x follows the last step,
    which lowers FID at no cost (Jolicoeur-Martineau et al. 2020, arXiv:2009.05475).

    Args:
        grid: Scales; those of the ladder.
        num_steps: Steps at each scale; the paper's 100.
        step: Step at the smallest scale. The paper's 2e-5 is for values in [0, 1]; 8e-5 here.
    """

    def __init__(self, grid: Grid, num_steps: int = 100, step: float = 8e-5) -> None:
        super().__init__(grid)
        if num_steps < 1 or step <= 0.0:
            raise ValueError(f"num_steps must be at least 1 and step positive, got {num_steps} and {step}.")
        self.num_steps, self.step = num_steps, step

    def passes_in(self, num_steps: int) -> int:
        return num_steps * self.num_steps + 1

    def walk(
        self, process: Process, denoise: Denoiser, x: Tensor, levels: list[Level], noise: Noise
    ) -> Tensor:
        smallest = levels[-2].sigma
        for number, t, _ in steps(levels):
            step = self.step * (t.sigma / smallest) ** 2
            for repetition in range(self.num_steps):
                score = score_of(x, denoise(x, t), t)
                x = x + 0.5 * step * score + math.sqrt(step) * noise("step", number, repetition)
        return denoise(x, levels[-2])
