"""Generative adversarial networks: samples from noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab import randomness
from genlab.families.base import batch_length, indices
from genlab.families.players import Adversarial
from genlab.families.weights import evaluating
from genlab.shapes import Batch, DataSpec


class GAN(Adversarial):
    """A generator learns to be mistaken for the data by a discriminator that learns to tell them apart.

        min_G max_D  E_x log D(x) + E_z log(1 - D(G(z)))          (Goodfellow et al. 2014, equation 1)

    and the other games of `losses.adversarial`.

    Args:
        spec: The data.
        players: The two networks, their optimisers and their game; the generator goes from a latent vector to
            an image and names its own `latent_dim`.

    Shapes:
        z: (batch, latent_dim), standard normal.
        x: (batch, channels, height, width) in [-1, 1], or (batch, dimensions).
    """

    latent_type = "normal prior"

    def __init__(self, spec: DataSpec, **players: Any) -> None:
        super().__init__(spec, **players)
        self.latent_dim = int(self.generator.latent_dim)  # type: ignore[arg-type]

    def generate(self, batch: Batch, stream: str) -> Tensor:
        z = self.draw_normal(stream, batch_length(batch), (self.latent_dim,))
        return self.generator(z, **self.given_of(batch))

    def draw_latent(self, index: int | Tensor, seed: int = 0) -> Tensor:
        """Returns latent number i of the seed for every i in index."""
        index = indices(index, self.device)
        return randomness.normal(randomness.key(seed, "latent"), index, (self.latent_dim,))

    @torch.no_grad()
    def decode(self, z: Tensor, **given: Any) -> Tensor:
        """Returns the images of latent vectors, by the averaged generator where there is one."""
        with evaluating(self.sampling_network):
            return self.sampling_network(z, **self.told(given))

    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns sample i of the seed for every i in index."""
        return self.decode(self.draw_latent(index, seed), **given)
