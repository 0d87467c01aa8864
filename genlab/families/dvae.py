"""Discrete variational autoencoders: a map of code numbers whose posterior is learned through."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from genlab.distributed import joined_counts
from genlab.families.base import CodingFactory
from genlab.families.codes import CodeNumbers, code_shape, one_hot_map
from genlab.families.weights import evaluating
from genlab.losses.divergences import kl_to_uniform
from genlab.losses.likelihoods import LikelihoodFactory
from genlab.shapes import Batch, DataSpec, observed


@dataclass(frozen=True)
class Relaxation:
    """How near draws of a code are to one of its numbers.

    Attributes:
        first: Temperature at the start: at 1 draws are soft, which teaches fast.
        last: Temperature after `examples`: near 0 draws are one number, as the decoder will see them.
        examples: Over which it falls along a cosine; 0 for `last` at once.
        hard: Give the decoder one number, with the gradient of the soft draw (straight through).
    """

    first: float = 1.0
    last: float = 1.0 / 16.0
    examples: int = 0
    hard: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.last <= self.first:
            raise ValueError(
                f"relaxation: temperatures fall but not to 0, got first {self.first} and last {self.last}."
            )

    def temperature(self, examples: int) -> float:
        """Returns the temperature after so many examples."""
        done = min(1.0, examples / self.examples) if self.examples else 1.0
        return self.last + (self.first - self.last) * 0.5 * (1.0 + math.cos(math.pi * done))


class DiscreteVAE(CodeNumbers):
    """Encodes an image as a map of code numbers, each drawn from a softmax that is learned through.

        loss = -log p(x | y) + beta KL(q(k | x), uniform)          in nats an image, summed over places
        y = softmax((logits + g) / temperature),     g = -log(-log u)

    Ramesh et al. 2021 (arXiv:2102.12092), section 2.1 and appendix A; Jang et al. 2017 (arXiv:1611.01144) and
    Maddison et al. 2017 (arXiv:1611.00712) for y. The KL of a place is log K - H(q). The vectors of the codes
    are the weights of the decoder's first layer. In an evaluation y is the likeliest number, as `encode`
    gives it to a second stage.

    Args:
        spec: The images.
        encoder: Network from images to a map of logits, such as ConvMapEncoder.
        decoder: Network from a map of y to the parameters of each pixel's distribution.
        likelihood: That distribution, such as DiscretizedLogistic or Gaussian.
        optimizer: Built from all parameters.
        num_codes: K above.
        beta: Weight of the KL: above 1 more codes are in use, each for less; the paper has 6.6.
        kl_warmup: Examples over which beta grows from 0.
        relaxation: How soft y is.
        model: Arguments of every model.

    Shapes:
        logits, y: (batch, num_codes, height, width) of the map; code numbers: (batch, height, width).
    """

    latent_type = "categorical map"

    def __init__(
        self,
        spec: DataSpec,
        encoder: CodingFactory,
        decoder: CodingFactory,
        likelihood: LikelihoodFactory,
        optimizer: OptimizerCallable,
        num_codes: int = 512,
        beta: float = 1.0,
        kl_warmup: int = 0,
        relaxation: Relaxation = Relaxation(),
        **model: Any,
    ) -> None:
        super().__init__(spec, **model)
        if num_codes < 2:
            raise ValueError(f"num_codes must be at least 2, got {num_codes}.")
        if beta < 0:
            raise ValueError(f"beta must not be negative, got {beta}.")
        self.likelihood = likelihood(spec)
        parameters = DataSpec(spec.name, self.likelihood.parameter_shape, 0, spec.levels)
        self.encoder = encoder(self.seen_spec, num_codes, 0)
        self.decoder = decoder(parameters, num_codes, 0)
        self.code_spec = spec.coded(code_shape(self.encoder, spec)[1:], num_codes)
        self.optimizer = optimizer
        self.beta, self.kl_warmup, self.relaxation = beta, kl_warmup, relaxation

    def configure_optimizers(self) -> Any:
        return self.scheduled(self.optimizer(self.parameters()))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss and its parts in nats an image: distortion -log p(x | y) and rate KL."""
        x = observed(batch)
        logits = self.encoder(x).float()
        index = logits.argmax(dim=1)
        distortion = -self.likelihood(self.decoder(self._drawn(logits, index)), x).mean()
        rate = kl_to_uniform(logits.flatten(2).transpose(1, 2)).sum(dim=1).mean()
        losses = {
            "loss": distortion + self._kl_weight() * rate,
            "distortion": distortion,
            "rate": rate,
            **self.usage(joined_counts(index, self.code_spec.levels)),
        }
        return {**losses, "temperature": x.new_tensor(self.temperature)} if self.training else losses

    @property
    def temperature(self) -> float:
        """The temperature of the step that was counted last."""
        return self.relaxation.temperature(self.examples_seen)

    @torch.no_grad()
    def encode(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the likeliest code number of each place."""
        self.told(given)
        with evaluating(self):
            return self.encoder(x).argmax(dim=1)

    @torch.no_grad()
    def decode(self, z: Tensor, **given: Any) -> Tensor:
        """Returns the expected images of code numbers."""
        self.told(given)
        with evaluating(self):
            return self.likelihood.mean(self.decoder(one_hot_map(z, self.code_spec.levels)))

    def _drawn(self, logits: Tensor, index: Tensor) -> Tensor:
        if not self.training:
            return one_hot_map(index, self.code_spec.levels)
        u = self.draw_uniform("gumbel", len(logits), tuple(logits.shape[1:]))
        return gumbel_softmax(logits, u, self.temperature, self.relaxation.hard)

    def _kl_weight(self) -> float:
        if not self.training or not self.kl_warmup:
            return self.beta
        return self.beta * min(1.0, self.examples_seen / self.kl_warmup)


def gumbel_softmax(logits: Tensor, u: Tensor, temperature: float, hard: bool = False) -> Tensor:
    """Returns softmax((logits - log(-log u)) / temperature), near 0 one number drawn with its probability.

    Args:
        logits: Of the classes, along side 1.
        u: Uniform numbers in (0, 1), as many.
        temperature: Above 0.
        hard: Return the largest as 1 and the others as 0, with the gradient of the softmax.
    """
    # In 32 bits, a number just below 1 may have become 1.
    gumbel = -(-u.clamp(1e-38, 1.0 - 2.0**-24).log()).log()
    soft = ((logits + gumbel) / temperature).softmax(dim=1)
    if not hard:
        return soft
    return one_hot_map(soft.argmax(dim=1), logits.shape[1]) + (soft - soft.detach())
