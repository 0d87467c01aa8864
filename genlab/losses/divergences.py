"""How far a posterior lies from its prior, and bounds on the evidence made of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genlab.losses.precision import at_least_float32


class DiagonalNormal:
    """A normal distribution with independent dimensions, as an encoder describes it.

    Args:
        mean: Its centre.
        log_std: Logarithm of its standard deviations.

    Shapes:
        mean, log_std, z: (..., dimensions).
    """

    def __init__(self, mean: Tensor, log_std: Tensor) -> None:
        self.mean, self.log_std = at_least_float32(mean), at_least_float32(log_std)

    @classmethod
    def of(cls, parameters: Tensor) -> DiagonalNormal:
        """Returns the distribution with one half of the last dimension as means, the other as log stds."""
        return cls(*parameters.chunk(2, dim=-1))

    def at(self, noise: Tensor) -> Tensor:
        """Returns z = mean + std noise, through which gradients reach both (Kingma and Welling 2014)."""
        return self.mean + self.log_std.exp() * noise

    def log_prob(self, z: Tensor) -> Tensor:
        """Returns the log-density, (...,)."""
        return standard_normal_log_prob((z - self.mean) * (-self.log_std).exp()) - self.log_std.sum(dim=-1)

    def kl(self) -> Tensor:
        """Returns KL(self, N(0, I)) in nats for each dimension: (mean^2 + std^2 - 1) / 2 - log std.

        Kingma and Welling 2014 (arXiv:1312.6114), appendix B.
        """
        return 0.5 * (self.mean.square() + torch.expm1(2.0 * self.log_std)) - self.log_std


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """Returns log N(z; 0, I) over the last dimension."""
    return -0.5 * (z.square() + math.log(2.0 * math.pi)).sum(dim=-1)


def kl_to_uniform(logits: Tensor) -> Tensor:
    """Returns KL(q, uniform) = log K - H(q) in nats, q the softmax over the last dimension, of K classes."""
    log_q = at_least_float32(logits).log_softmax(dim=-1)
    return math.log(logits.shape[-1]) + (log_q.exp() * log_q).sum(dim=-1)


def free_bits(kl: Tensor, floor: float) -> Tensor:
    """Returns the KL that is charged: sum over dimensions of max(floor, mean over the batch).

    Below the floor a dimension costs the same whatever it says, so that nothing pushes it to say less
    (Kingma et al. 2016, arXiv:1606.04934, appendix C.8).

    Args:
        kl: Nats, (batch, dimensions).
        floor: Nats that each dimension may use freely; 0 charges everything.
    """
    return kl.mean(dim=0).clamp(min=floor).sum()


def importance_bound(log_weights: Tensor) -> Tensor:
    """Returns log (1/k) sum_j w_j over the last dimension: a bound on log p(x) that grows with k.

        w_j = p(x, z_j) / q(z_j | x),     z_j drawn from q

    Burda et al. 2016 (arXiv:1509.00519), equation 8. Its gradient weighs each sample's by w_j / sum w.
    """
    return log_weights.logsumexp(dim=-1) - math.log(log_weights.shape[-1])
