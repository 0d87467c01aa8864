"""Densities of the latent: what a flow turns the data into."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from genlab import randomness
from genlab.bijections.base import summed


class Density(ABC):
    """A density with independent, equally distributed elements.

    Shapes:
        z: (batch, dimensions). log_prob: (batch,), in nats.
    """

    @abstractmethod
    def log_prob(self, z: Tensor) -> Tensor:
        """Returns log p(z)."""

    @abstractmethod
    def draw(self, address: int, index: Tensor, size: int) -> Tensor:
        """Returns (len(index), size) numbers; row r depends on address and index[r] alone."""


class StandardNormal(Density):
    """N(0, 1)."""

    def log_prob(self, z: Tensor) -> Tensor:
        return summed(-0.5 * z.square() - 0.5 * math.log(2 * math.pi))

    def draw(self, address: int, index: Tensor, size: int) -> Tensor:
        return randomness.normal(address, index, (size,))


class StandardLogistic(Density):
    """The density of log(u / (1 - u)) for a uniform u; NICE's base (arXiv:1410.8516, section 3.4)."""

    def log_prob(self, z: Tensor) -> Tensor:
        return summed(logsigmoid(z) + logsigmoid(-z))

    def draw(self, address: int, index: Tensor, size: int) -> Tensor:
        return randomness.uniform(address, index, size).logit().float()


class Uniform(Density):
    """Uniform in (0, 1)."""

    def log_prob(self, z: Tensor) -> Tensor:
        inside = ((z >= 0) & (z <= 1)).flatten(1).all(1)
        return torch.where(inside, 0.0, -math.inf).to(z.dtype)

    def draw(self, address: int, index: Tensor, size: int) -> Tensor:
        return randomness.single(randomness.uniform(address, index, size))
