"""The loss that teaches a network the variance of its chain's steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.processes.chain import DiscreteChain
from genlab.processes.likelihood import log_probability_of_level


def variance_loss(
    chain: DiscreteChain, x: Tensor, x_t: Tensor, t: Tensor, estimate: Tensor, v: Tensor, levels: int
) -> Tensor:
    """Returns each row's term of the variational bound, in bits per dimension; the sum over t is the bound.

    KL(q(x_{t-1} | x_t, x) || p(x_{t-1} | x_t)), and -log p(x | x_1) where t = 1. Nichol and Dhariwal 2021
    (arXiv:2102.09672), equations 4 to 6.

    Args:
        chain: The process.
        x: Data.
        x_t: Their noised versions.
        t: Steps of the chain, one a row.
        estimate: What the model takes x for, without its gradient.
        v: The learned mixture of both log variances, from 0 to 1.
        levels: Number of values of a pixel; 0 for vectors.
    """
    shape = (-1, *(1 for _ in x.shape[1:]))
    first = t <= 1.0
    # At t = 1 the posterior has no variance; the next step's stands in, so that its logarithm is finite.
    to_x, small, large = _coefficients(chain, t.clamp(min=2.0))
    large = torch.where(first, chain.sigma(t) ** 2, large)
    to_x, log_small, log_large = (value.to(x).reshape(shape) for value in (to_x, small.log(), large.log()))
    log_variance = v * log_large + (1.0 - v) * log_small
    error = (to_x * (estimate - x)).square()
    divergence = 0.5 * (
        log_variance - log_small + (log_small - log_variance).exp() - 1.0 + error * (-log_variance).exp()
    )
    # Far from the data the decoder overflows, and 0 times its gradient would be no number.
    estimate = torch.where(first.reshape(shape), estimate, x)
    if levels:
        decoder = -log_probability_of_level(x, estimate, 0.5 * log_variance, levels)
    else:
        squared = (x - estimate).square() * (-log_variance).exp()
        decoder = 0.5 * (squared + log_variance + math.log(2.0 * math.pi))
    terms = torch.where(first.reshape(shape), decoder, divergence)
    return terms.flatten(1).mean(1) / math.log(2.0)


def _coefficients(chain: DiscreteChain, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the posterior's factor of x, its variance, and the chain's own step, for t of 2 and above."""
    rho = chain.alpha(t) * chain.sigma(t - 1) / (chain.alpha(t - 1) * chain.sigma(t))
    remaining = 1.0 - rho**2
    large = chain.sigma(t) ** 2 - (chain.alpha(t) / chain.alpha(t - 1) * chain.sigma(t - 1)) ** 2
    return chain.alpha(t - 1) * remaining, chain.sigma(t - 1) ** 2 * remaining, large
