"""Autoencoders whose code is a map of numbers, held near a standard normal distribution by a small KL."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from genlab.distributed import joined_mean
from genlab.families.base import CodingFactory, Model, NetworkFactory
from genlab.families.codes import NEEDS_PRIOR, code_shape
from genlab.families.players import Adversarial
from genlab.families.weights import evaluating, frozen
from genlab.losses.distances import AbsoluteError, Distance
from genlab.losses.divergences import DiagonalNormal
from genlab.shapes import Batch, DataSpec, observed

LOG_STD = (-15.0, 10.0)
"""Of codes, the bounds of Rombach et al. 2022 (arXiv:2112.10752), in their program."""


class Coder(nn.Module):
    """An encoder of normal distributions over maps, and a decoder of such maps.

    Shapes:
        x: (batch, *image). The encoder makes (batch, 2 channels, height, width) of it: means, then log stds.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def posterior(self, x: Tensor) -> DiagonalNormal:
        """Returns q(z | x), one normal distribution for each number of the map.

        Log stds are kept within `LOG_STD`: a KL of so small a weight lets single ones run away, and its
        exponential overflows.
        """
        mean, log_std = self.encoder(x).chunk(2, dim=1)
        return DiagonalNormal(mean, log_std.clamp(*LOG_STD))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what comes back of one draw of z, and KL(q, N(0, I)) in nats an item, (batch,)."""
        posterior = self.posterior(x)
        return self.decoder(posterior.at(noise)).float(), posterior.kl().flatten(1).sum(dim=1)


class KLCodes(Model):
    """What autoencoders with a KL share, with a discriminator and without: their code and its loss.

        fidelity = d(x, decoder(z)) + w KL(q(z | x), N(0, I)) / D,     z drawn from q, D the numbers of x

    Attributes:
        code_spec: The codes; `levels` is 0.
        latent_dim: Numbers of a code.
    """

    latent_type = "normal map"
    conditions = ()
    cannot_sample = NEEDS_PRIOR
    shown_losses: tuple[str, ...] = ("distance", "kl")
    code_spec: DataSpec
    latent_dim: int
    distance: Distance
    kl_weight: float

    @property
    def learner(self) -> Coder:
        """The networks that learn."""
        raise NotImplementedError

    @property
    def coder(self) -> Coder:
        """The networks that codes and images come from: the average where there is one."""
        return self.learner if self.average is None else self.average.module  # type: ignore[return-value]

    def posterior(self, x: Tensor, **given: Any) -> DiagonalNormal:
        """Returns q(z | x), whose mean and log std are maps."""
        self.told(given)
        return self.coder.posterior(x)

    @torch.no_grad()
    def encode(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the posterior's mean: the same code each time."""
        with evaluating(self):
            return self.posterior(x, **given).mean

    @torch.no_grad()
    def decode(self, z: Tensor, **given: Any) -> Tensor:
        """Returns the images of codes."""
        self.told(given)
        x = self.decoded(z)
        return x.clamp(-1.0, 1.0) if self.spec.kind == "image" else x

    def decoded(self, z: Tensor) -> Tensor:
        """Returns the images of codes with their gradient, not kept in the range of images."""
        with evaluating(self):
            return self.coder.decoder(z).float()

    def _coded(self, coder: Coder, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns what comes back of a batch, and its "fidelity" with its parts."""
        x = observed(batch)
        noise = self.draw_normal("posterior", len(x), self.code_spec.shape)
        made, kl = coder(x, noise)
        distance, kl = self.distance(made, x), kl.mean()
        fidelity = distance + self.kl_weight / math.prod(self.spec.shape) * kl
        return made, {"fidelity": fidelity, "distance": distance, "kl": kl}

    def _describe(self, distance: Distance | None, kl_weight: float) -> None:
        if kl_weight < 0:
            raise ValueError(f"kl_weight must not be negative, got {kl_weight}.")
        channels, *sides = code_shape(self.learner.encoder, self.spec)
        self.code_spec = self.spec.coded((channels // 2, *sides), 0)
        self.latent_dim = math.prod(self.code_spec.shape)
        self.distance, self.kl_weight = distance or AbsoluteError(), kl_weight


class KLAutoencoder(KLCodes):
    """Encodes an image as a smaller map of numbers, on which a diffusion model can be trained.

        loss = d(x, decoder(z)) + w KL(q(z | x), N(0, I)) / D,     z drawn from q(z | x)

    Rombach et al. 2022 (arXiv:2112.10752), section 3.1 and appendix G, without perceptual loss; D is the
    numbers of x, so that w is the paper's weight of a KL an image beside a distance an image. The KL keeps
    codes from drifting and is far too small for decoded noise to look like an image.

    Args:
        spec: The images.
        encoder: Network from images to a map, such as ConvMapEncoder.
        decoder: Network from a map to images.
        optimizer: Built from all parameters.
        latent_channels: Channels of the code.
        distance: d above; None for AbsoluteError.
        kl_weight: w above: 1e-6 in the paper; large values blur.
        model: Arguments of every model.

    Shapes:
        z: (batch, latent_channels, height, width) of the map.
    """

    def __init__(
        self,
        spec: DataSpec,
        encoder: CodingFactory,
        decoder: CodingFactory,
        optimizer: OptimizerCallable,
        latent_channels: int = 4,
        distance: Distance | None = None,
        kl_weight: float = 1e-6,
        **model: Any,
    ) -> None:
        super().__init__(spec, **model)
        self.network = made_coder(encoder, decoder, latent_channels)(self.seen_spec)
        self.keep_average(self.network)
        self._describe(distance, kl_weight)
        self.optimizer = optimizer

    @property
    def learner(self) -> Coder:
        return self.network

    def configure_optimizers(self) -> Any:
        return self.scheduled(self.optimizer(self.network.parameters()))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss, the distance, and the KL in nats an image."""
        losses = self._coded(self.learner if self.training else self.coder, batch)[1]
        return {"loss": losses.pop("fidelity"), **losses}


@dataclass(frozen=True)
class Adversary:
    """When and how strongly a discriminator enters an autoencoder's loss.

    Attributes:
        weight: Of its term, where its gradient is as large as the others'; 0.5 in the paper.
        adversarial_after: Examples after which the term begins; before, it has no influence at all.
        discriminator_after: Examples after which the discriminator begins to learn: earlier, since one that
            knows nothing ruins good reconstructions.
        ramp: Examples over which the term grows from nothing to its weight; 0 for at once.
        largest: Bound of the adaptive weight.
    """

    weight: float = 0.5
    adversarial_after: int = 0
    discriminator_after: int = 0
    ramp: int = 0
    largest: float = 1e4

    def __post_init__(self) -> None:
        if min(self.weight, self.adversarial_after, self.discriminator_after, self.ramp, self.largest) < 0:
            raise ValueError("adversary: no weight and no number of examples may be negative.")
        if self.discriminator_after > self.adversarial_after:
            raise ValueError(
                f"adversary: the discriminator must learn before its term begins, but discriminator_after is "
                f"{self.discriminator_after} and adversarial_after {self.adversarial_after}."
            )

    def weight_after(self, examples: int) -> float:
        """Returns the weight in the step that ends with so many examples."""
        begun = examples - self.adversarial_after
        if begun <= 0:
            return 0.0
        return self.weight * (min(1.0, begun / self.ramp) if self.ramp else 1.0)


class AdversarialKLAutoencoder(KLCodes, Adversarial):
    """A `KLAutoencoder` whose images must also pass for real, patch by patch, which keeps them sharp.

        loss = d(x, decoder(z)) + w KL / D + a r L_adv(decoder(z)),     r = |grad d| / (|grad L_adv| + 1e-4)

    with gradients of the decoder's last layer; r is bounded and not learned through. Esser et al. 2021
    (arXiv:2012.09841), section 3.1; Rombach et al. 2022 (arXiv:2112.10752), appendix G. There are three
    phases: the autoencoder alone; the discriminator learns beside it; both play. An evaluation's loss leaves
    the last term out, since r is one of gradients.

    Args:
        spec: The images.
        encoder, decoder: As in `KLAutoencoder`; the decoder has a `last_layer`.
        discriminator: From an image to logits, one a patch.
        latent_channels, distance, kl_weight: As in `KLAutoencoder`.
        adversary: When the discriminator plays, and how strongly.
        players: The two optimisers, the generator's being the autoencoder's, and their game.

    Raises:
        ValueError: For a decoder without last layer, or several discriminator steps.
    """

    shown_losses = ("distance", "kl", "adversarial", "discriminator")

    def __init__(
        self,
        spec: DataSpec,
        encoder: CodingFactory,
        decoder: CodingFactory,
        discriminator: NetworkFactory,
        latent_channels: int = 4,
        distance: Distance | None = None,
        kl_weight: float = 1e-6,
        adversary: Adversary = Adversary(),
        **players: Any,
    ) -> None:
        super().__init__(
            spec,
            generator=made_coder(encoder, decoder, latent_channels),
            discriminator=discriminator,
            **players,
        )
        if self.batches_per_step > 1:
            raise ValueError("The autoencoder learns from each batch: leave balance.discriminator_steps out.")
        if not hasattr(self.learner.decoder, "last_layer"):
            raise ValueError(
                f"{type(self.learner.decoder).__name__} names no last_layer, where gradients are weighed up: "
                "use ConvMapDecoder."
            )
        self._describe(distance, kl_weight)
        self.adversary = adversary

    @property
    def learner(self) -> Coder:
        return self.generator  # type: ignore[return-value]

    @property
    def signs(self) -> tuple[str, ...]:  # type: ignore[override]
        """The discriminator's accuracies, once it has somebody to play against."""
        return Adversarial.signs if self.adversary.weight_after(self.examples_seen) else ()

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self._follow_schedule()
        made, losses = self._coded(self.learner, batch)
        total = losses.pop("fidelity")
        if self.examples_seen > self.adversary.discriminator_after:
            losses |= self._discriminator_step(batch, made.detach())
        if weight := self.adversary.weight_after(self.examples_seen):
            with frozen(self.discriminator):
                losses["adversarial"] = self.loss.generator(self.judge(self.augment(made), batch))
            losses["adaptive_weight"] = self._adaptive_weight(losses["distance"], losses["adversarial"])
            total = total + weight * losses["adaptive_weight"] * losses["adversarial"]
        self._learn(total, 0)
        self.update_average()
        self.remember({"loss": total, **losses})

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the fidelity as loss, its parts, both players' losses and the discriminator's accuracy."""
        made, losses = self._coded(self.learner if self.training else self.coder, batch)
        real_logits, fake_logits = self.judge_both(observed(batch), made, batch)
        return {
            "loss": losses.pop("fidelity"),
            **losses,
            "adversarial": self.loss.generator(fake_logits),
            "discriminator": self.loss.discriminator(real_logits, fake_logits),
            **self._accuracy(real_logits, fake_logits),
        }

    def _adaptive_weight(self, distance: Tensor, adversarial: Tensor) -> Tensor:
        weight: Any = self.learner.decoder.last_layer.weight  # type: ignore[union-attr]
        of_distance, of_other = (
            joined_mean(torch.autograd.grad(loss, weight, retain_graph=True)[0])
            for loss in (distance, adversarial)
        )
        return adaptive_weight(of_distance, of_other, self.adversary.largest)


def made_coder(
    encoder: CodingFactory, decoder: CodingFactory, latent_channels: int
) -> Callable[[DataSpec], Coder]:
    """Returns what makes the networks of a data set."""
    return lambda spec: Coder(encoder(spec, 2 * latent_channels, 0), decoder(spec, latent_channels, 0))


def adaptive_weight(wanted: Tensor, other: Tensor, largest: float = 1e4) -> Tensor:
    """Returns |wanted| / (|other| + 1e-4), at most `largest`: what makes another gradient as long as one.

    Esser et al. 2021 (arXiv:2012.09841), equation 7. No gradient passes.
    """
    return (wanted.norm() / (other.norm() + 1e-4)).clamp(max=largest).detach()
