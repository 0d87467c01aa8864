"""Normal data, for which the best denoiser, every marginal and every likelihood are known."""

import torch

from genlab.processes.base import Denoiser

MEAN = torch.tensor([-0.7, 0.0, 0.3, 0.5], dtype=torch.float64)
STD = torch.tensor([0.2, 0.5, 1.0, 1.5], dtype=torch.float64)


class GaussianDenoiser(Denoiser):
    """E[x | x_t] of x ~ N(MEAN, diag(STD^2))."""

    def __init__(self, mean=MEAN, std=STD):
        self.mean, self.std = mean, std

    def __call__(self, x_t, level):
        gain = level.alpha * self.std**2 / self.marginal_variance(level)
        return self.mean + gain * (x_t - level.alpha * self.mean)

    def marginal_variance(self, level):
        return (level.alpha * self.std) ** 2 + level.sigma**2

    def variance_given(self, level):
        """Var[x | x_t]."""
        return (self.std * level.sigma) ** 2 / self.marginal_variance(level)


class UnitNoise:
    """Instead of noise, 1 in another row at each call: what comes out is the answer to each draw alone."""

    def __init__(self, like):
        self.like, self.calls = like, 0

    def __call__(self, *name):
        self.calls += 1
        drawn = torch.zeros_like(self.like)
        drawn[1 + self.calls] = 1.0
        return drawn


def moments(sampler, process, denoise=None, start=None):
    """Mean and standard deviation of what a sampler makes of the exact q(x_T), without any sampling error.

    Every step is affine for normal data: row 0 carries the mean, row 1 a unit of the first noise and each
    further row a unit of one later draw.
    """
    denoise = denoise or GaussianDenoiser()
    levels = sampler.grid.levels(process)
    first = levels[0]
    x = (first.alpha * denoise.mean).repeat(4_000 if not sampler.is_deterministic else 2, 1)
    x[1] += denoise.marginal_variance(first).sqrt()
    out = sampler.walk(process, denoise, x, levels, UnitNoise(x))
    return out[0], (out[1:] - out[0]).square().sum(0).sqrt()


def relative_error(std):
    return ((std - STD).abs() / STD).max().item()
