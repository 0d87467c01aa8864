"""Image to image from pairs: a conditional GAN whose images must also lie near the true ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.families.players import Adversarial
from genlab.families.weights import translated
from genlab.shapes import Batch, DataSpec, observed


class Pix2Pix(Adversarial):
    """Translates an image into the one that belongs to it.

        G = argmin_G max_D  E log D(y | x) + E log(1 - D(G(x) | x)) + w E |y - G(x)|

    Isola et al. 2017 (arXiv:1611.07004), equation 4, with x the source, y the image and w 100. The
    discriminator judges patches, which leaves the large shapes to the last term. The only noise is the
    generator's dropout, in training: a sample is one image for each source.

    Args:
        spec: Pairs of images.
        l1_weight: w above: 0 is a GAN that may invent, large values blur.
        players: The two networks, their optimisers and their game; `given` must hold source.

    Shapes:
        x, source: (batch, channels, height, width) in [-1, 1].
    """

    shown_losses = ("adversarial", "l1", "discriminator")
    memory_format = torch.contiguous_format  # instance norm and transposed convolutions are faster in it

    def __init__(self, spec: DataSpec, l1_weight: float = 100.0, **players: Any) -> None:
        if "source" not in players.get("given", ()):
            raise ValueError("Pix2Pix translates: set given to [source].")
        if l1_weight < 0:
            raise ValueError(f"l1_weight must not be negative, got {l1_weight}.")
        super().__init__(spec, **players)
        self.l1_weight = l1_weight

    def generate(self, batch: Batch, stream: str) -> Tensor:
        return self.generator(**self.given_of(batch))

    def generator_losses(self, fake: Tensor, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        adversarial = self.loss.generator(logits)
        l1 = (fake.float() - observed(batch)).abs().mean()
        return {"generator": adversarial + self.l1_weight * l1, "adversarial": adversarial, "l1": l1}

    @torch.no_grad()
    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns the images of the given sources, one for each i in index and the same for any seed."""
        return translated(self.sampling_network, self.told(given))
