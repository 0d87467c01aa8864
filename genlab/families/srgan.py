"""Super-resolution by a GAN: images that look sharp, not those that are nearest on average."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genlab.families.base import NetworkFactory
from genlab.families.players import Adversarial
from genlab.families.weights import translated
from genlab.losses.distances import Distance, SquaredError
from genlab.losses.perceptual import ContentLoss
from genlab.shapes import Batch, DataSpec, observed


class SRGAN(Adversarial):
    """Enlarges images with a content loss and a discriminator, after a start by pixels alone.

        pretraining:  G minimises  d(G(s), y)
        afterwards:   G minimises  content(G(s), y) + w_a L_adv(G(s)) + w_p d(G(s), y)

    Ledig et al. 2017 (arXiv:1609.04802), equation 3, with s the source and y the image, w_a 1e-3 and w_p 0; d
    is SRResNet's squared error. In pretraining nothing of the discriminator changes: it cannot ruin a
    generator that knows nothing yet. It judges images alone, of one size. A sample is one image for each
    source, the same for any seed.

    Args:
        spec: Pairs of images, of one size or of two.
        generator: Called with source=...; gives the image.
        discriminator: From an image to logits, one or one a patch.
        content: VGGFeatures, which needs a file of weights; DiscriminatorFeatures or Pixels, which need none.
        pretraining: Examples of the first phase; 0 for none.
        adversarial_weight: w_a above: 0 learns from the content alone.
        pixel_weight: w_p above; keeps colours where the content is of features alone.
        distance: d above; None for SquaredError.
        players: The optimisers and their game; `given` must hold source.

    Shapes:
        source, x: (batch, channels, height, width) in [-1, 1].

    Raises:
        ValueError: For negative weights, a model that is told no source, or pretraining for several
            discriminator steps.
    """

    shown_losses = ("content", "adversarial", "pixels", "discriminator")

    def __init__(
        self,
        spec: DataSpec,
        generator: NetworkFactory,
        discriminator: NetworkFactory,
        content: ContentLoss,
        pretraining: int = 0,
        adversarial_weight: float = 1e-3,
        pixel_weight: float = 0.0,
        distance: Distance | None = None,
        **players: Any,
    ) -> None:
        if "source" not in players.get("given", ()):
            raise ValueError("SRGAN makes images of their sources: set given to [source].")
        weights = {"adversarial_weight": adversarial_weight, "pixel_weight": pixel_weight}
        for name, value in {"pretraining": pretraining, **weights}.items():
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}.")
        super().__init__(
            spec,
            generator=generator,
            discriminator=lambda seen: discriminator(seen.unconditional()),
            **players,
        )
        if pretraining and self.batches_per_step > 1:
            raise ValueError(
                "pretraining makes a step of each batch: leave it out, or balance.discriminator_steps."
            )
        self.content, self.distance = content, distance or SquaredError()
        self.pretraining = pretraining
        self.adversarial_weight, self.pixel_weight = adversarial_weight, pixel_weight

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            self.content.require(self.discriminator)

    @property
    def is_pretraining(self) -> bool:
        """Whether the batch that was counted last belongs to the first phase."""
        return self.examples_seen <= self.pretraining

    def generate(self, batch: Batch, stream: str) -> Tensor:
        return self.generator(**self.given_of(batch))

    def judge(self, x: Tensor, batch: Batch) -> Tensor:
        return self.discriminator(x)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        if not self.is_pretraining:
            super().training_step(batch, batch_idx)
            return
        self._follow_schedule()
        pixels = self.distance(self.generate(batch, "latent"), observed(batch))
        self._learn(pixels, 0)
        self.update_average()
        self.remember({"loss": pixels, "pixels": pixels})

    def generator_losses(self, fake: Tensor, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        content = self.content(fake, observed(batch), self.discriminator)
        adversarial, pixels = self.loss.generator(logits), self.distance(fake, observed(batch))
        total = content + self.adversarial_weight * adversarial + self.pixel_weight * pixels
        return {"generator": total, "content": content, "adversarial": adversarial, "pixels": pixels}

    @torch.no_grad()
    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns the images of the given sources, one for each i in index and the same for any seed."""
        return translated(self.sampling_network, self.told(given)).clamp(-1.0, 1.0)
