"""Autoencoders whose code is a small map of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from genlab.families.base import CodingFactory, Model
from genlab.families.weights import evaluating
from genlab.shapes import Batch, DataSpec, observed

CodebookFactory = Callable[[int], nn.Module]
"""What a YAML file gives for a codebook: its class and sizes; the vectors' length is the family's."""


class VQVAE(Model):
    """Encodes an image as a map of code numbers and decodes the codes' vectors.

        loss = |x - decoder(e)|^2 + |sg[z] - e|^2 + beta |z - sg[e]|^2,     e the code nearest to z

    Van den Oord et al. 2017 (arXiv:1711.00937), equation 3, each term a mean over its numbers, the first
    divided by the data's variance where it is given. The gradient at the decoder's input is passed to the
    encoder's output as it is. A codebook of running means has no second term.

    The codes have no distribution of their own: drawing images needs a model of the codes, trained after.

    Args:
        spec: The images.
        encoder: Network from images to a map of vectors, such as ConvMapEncoder.
        decoder: Network from the map of code vectors to images.
        codebook: The codes and how they are learned.
        optimizer: Built from all parameters.
        code_dim: Length of the vectors.
        commitment: beta above: how hard the encoder is held to its codes; the paper uses 0.25.
        data_variance: Variance of the pixels in [-1, 1]; puts the reconstruction on a scale of 0 to 1.

    Shapes:
        z: (batch, code_dim, height, width) of the map; code numbers: (batch, height, width).
    """

    latent_type = "codebook"
    conditions = ()
    cannot_sample = "its codes need a prior, which is trained on top of it"

    def __init__(
        self,
        spec: DataSpec,
        encoder: CodingFactory,
        decoder: CodingFactory,
        codebook: CodebookFactory,
        optimizer: OptimizerCallable,
        code_dim: int = 64,
        commitment: float = 0.25,
        data_variance: float = 1.0,
    ) -> None:
        super().__init__(spec)
        if data_variance <= 0:
            raise ValueError(f"data_variance must be positive, got {data_variance}.")
        unconditional = spec.unconditional()
        self.encoder = encoder(unconditional, code_dim, 0)
        self.decoder = decoder(unconditional, code_dim, 0)
        self.codebook = codebook(code_dim)
        self.optimizer = optimizer
        self.commitment = commitment
        self.data_variance = data_variance
        self._usage: Tensor | None = None

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss, its parts, and in training how many codes the batch uses."""
        x = observed(batch)
        z = self.encoder(x).movedim(1, -1)
        index = self.codebook(z)
        codes = self.codebook.look_up(index)  # type: ignore[operator]
        x_hat = self.decoder(straight_through(z, codes).movedim(-1, 1)).float()
        mse = (x_hat - x).square().mean()
        distance = (z.float() - codes.detach()).square().mean()
        loss = mse / self.data_variance + self.commitment * distance
        if codes.requires_grad:
            loss = loss + (z.detach().float() - codes).square().mean()
        losses, counts = {"loss": loss, "mse": mse, "commitment": distance}, self._count(z, index)
        # A mean over batches understates the usage of a split, which `_log_usage` measures.
        return {**losses, "perplexity": perplexity(counts)} if self.training else losses

    @torch.no_grad()
    def encode(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the code numbers of images."""
        self.told(given)
        with evaluating(self):
            return self.codebook(self.encoder(x).movedim(1, -1))

    @torch.no_grad()
    def decode(self, z: Tensor, **given: Any) -> Tensor:
        """Returns the images of code numbers."""
        self.told(given)
        with evaluating(self):
            codes = self.codebook.look_up(z).movedim(-1, 1)  # type: ignore[operator]
            return self.decoder(codes).float().clamp(-1.0, 1.0)

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self._log_usage("val")

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        self._log_usage("test")

    def _count(self, z: Tensor, index: Tensor) -> Tensor:
        """Returns the batch's uses of each code; in training the codes learn from it."""
        if self.training:
            return self.codebook.update(z.flatten(1, -2), index.flatten(1))  # type: ignore[operator]
        counts = self.codebook.counts(index)  # type: ignore[operator]
        self._usage = counts if self._usage is None else self._usage + counts
        return counts

    def _log_usage(self, stage: str) -> None:
        """Logs the codes' usage over the whole split."""
        usage, self._usage = self._usage, None
        if usage is None or self.trainer.sanity_checking:
            return
        values = {"perplexity": perplexity(usage), "dead_codes": (usage == 0).float().mean()}
        self.log_dict({f"{stage}/{name}": float(v) for name, v in values.items()}, logger=False)


def straight_through(z: Tensor, codes: Tensor) -> Tensor:
    """Returns the codes, with the gradient of z: what arrives here goes to the encoder unchanged."""
    return codes.detach() + (z - z.detach())


def perplexity(counts: Tensor) -> Tensor:
    """Returns exp of the entropy of the codes' usage: the number of codes in use, were they used alike."""
    share = counts / counts.sum()
    return torch.special.entr(share).sum().exp()
