"""Samplers that walk a chain backwards: DDPM and DDIM."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.processes.base import Denoiser, Level, Process, noise_of, posterior
from genlab.processes.grids import Grid, UniformGrid
from genlab.processes.likelihood import reverse_log_variance
from genlab.samplers.base import Noise, Sampler, steps


class Ancestral(Sampler):
    """Draws each x_s from the chain's reverse step; DDPM's sampler, over any levels of any process.

        x_s ~ N(a E[x | x_t] + b x_t, var)

    with a, b of q(x_s | x_t, x). Ho et al. 2020 (arXiv:2006.11239), algorithm 2.

    Args:
        grid: Levels; all 1,000 of the training chain as in the paper where it is left out.
        wide: Use beta_t as the variance instead of the posterior's. A variance that was learned goes first.
    """

    def __init__(self, grid: Grid | None = None, wide: bool = False) -> None:
        super().__init__(grid or UniformGrid(1000))
        self.wide = wide

    def walk(
        self, process: Process, denoise: Denoiser, x: Tensor, levels: list[Level], noise: Noise
    ) -> Tensor:
        before = None
        for number, t, s in steps(levels):
            estimate, v = denoise.with_variance(x, t)
            step = posterior(t, s)
            x = step.to_x * estimate + step.to_x_t * x
            if s.sigma > 0.0:
                std = torch.exp(0.5 * reverse_log_variance(t, s, v, self.wide, before)).to(x)
                x = x + std * noise("step", number)
            before = t
        return x


class DDIM(Sampler):
    """Walks with the noise that the model sees in x_t, and replaces a part of it by fresh noise.

        x_s = alpha_s E[x | x_t] + sqrt(sigma_s^2 - var) eps + sqrt(var) z,  var = eta^2 var(q(x_s | x_t, x))

    Song et al. 2021 (arXiv:2010.02502), equations 12 and 16, for any two levels of any process.

    Args:
        grid: Levels; 50 in equal steps of time where it is left out.
        eta: 0 is deterministic, 1 is the chain's own reverse step.
    """

    def __init__(self, grid: Grid | None = None, eta: float = 0.0) -> None:
        super().__init__(grid or UniformGrid(50))
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta must be in [0, 1], got {eta}.")
        self.eta = eta

    @property
    def is_deterministic(self) -> bool:  # type: ignore[override]
        return self.eta == 0.0

    def walk(
        self, process: Process, denoise: Denoiser, x: Tensor, levels: list[Level], noise: Noise
    ) -> Tensor:
        for number, t, s in steps(levels):
            estimate = denoise(x, t)
            variance = self.eta**2 * posterior(t, s).variance
            kept = math.sqrt(s.sigma**2 - variance)
            x = s.alpha * estimate + kept * noise_of(x, estimate, t)
            if variance > 0.0:
                x = x + math.sqrt(variance) * noise("step", number)
        return x
