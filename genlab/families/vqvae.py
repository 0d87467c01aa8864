"""Autoencoders whose code is a small map of numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from genlab.families.base import CodingFactory
from genlab.families.codes import CodeNumbers, code_shape
from genlab.families.weights import evaluating
from genlab.shapes import Batch, DataSpec, observed

CodebookFactory = Callable[[int], nn.Module]
"""What a YAML file gives for a codebook: its class and sizes; the vectors' length is the family's."""


class VQVAE(CodeNumbers):
    """Encodes an image as a map of code numbers and decodes the codes' vectors.

        loss = |x - decoder(e)|^2 + |sg[z] - e|^2 + beta |z - sg[e]|^2,     e the code that stands for z

    Van den Oord et al. 2017 (arXiv:1711.00937), equation 3, each term a mean over its numbers, the first
    divided by the data's variance where it is given. The gradient at the decoder's input is passed to the
    encoder's output. The other terms are the codebook's: one of running means has no second term, and finite
    scalar quantisation (FSQ) neither of them.

    The codes have no distribution of their own: drawing images needs a model of the codes, trained after.

    Args:
        spec: The images.
        encoder: Network from images to a map of vectors, such as ConvMapEncoder.
        decoder: Network from the map of code vectors to images.
        codebook: The codes and how they are learned: EMACodebook, LearnedCodebook or FSQ.
        optimizer: Built from all parameters.
        code_dim: Length of the vectors; for FSQ the number of its levels.
        data_variance: Variance of the pixels in [-1, 1]; puts the reconstruction on a scale of 0 to 1.
        model: Arguments of every model.

    Shapes:
        z: (batch, code_dim, height, width) of the map; code numbers: (batch, height, width).
    """

    latent_type = "codebook"
    codebook: Any

    def __init__(
        self,
        spec: DataSpec,
        encoder: CodingFactory,
        decoder: CodingFactory,
        codebook: CodebookFactory,
        optimizer: OptimizerCallable,
        code_dim: int = 64,
        data_variance: float = 1.0,
        **model: Any,
    ) -> None:
        super().__init__(spec, **model)
        if data_variance <= 0:
            raise ValueError(f"data_variance must be positive, got {data_variance}.")
        unconditional = spec.unconditional()
        self.encoder = encoder(unconditional, code_dim, 0)
        self.decoder = decoder(unconditional, code_dim, 0)
        self.codebook = codebook(code_dim)
        sides = code_shape(self.encoder, spec)[1:]
        self.code_spec = spec.coded(sides, self.codebook.num_codes)
        self.vector_spec = spec.coded((code_dim, *sides), 0)
        self.optimizer = optimizer
        self.data_variance = data_variance

    def configure_optimizers(self) -> Any:
        return self.scheduled(self.optimizer(self.parameters()))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the loss, its parts, and in training how many codes the batch uses."""
        x = observed(batch)
        z = self.encoder(x).movedim(1, -1)
        index = self.codebook(z)
        codes = self.codebook.look_up(index)
        x_hat = self.decoder(self.codebook.passed(z, codes).movedim(-1, 1)).float()
        mse = (x_hat - x).square().mean()
        terms = self.codebook.losses(z, codes)
        loss = mse / self.data_variance + terms.pop("loss")
        return {"loss": loss, "mse": mse, **terms, **self.usage(self._count(z, index))}

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
            codes = self.codebook.look_up(z).movedim(-1, 1)
            return self.decoder(codes).float().clamp(-1.0, 1.0)

    @torch.no_grad()
    def vectors(self, index: Tensor) -> Tensor:
        """Returns the vectors of code numbers, as the decoder takes them."""
        return self.codebook.look_up(index).movedim(-1, 1)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Returns the code number next to each vector."""
        return self.codebook.nearest(z.movedim(1, -1))

    def decoded(self, z: Tensor) -> Tensor:
        """Returns the images of the codes next to vectors, with the gradient of what is not rounded."""
        with evaluating(self):
            return self.decoder(self.codebook.rounded(z.movedim(1, -1)).movedim(-1, 1)).float()

    def _count(self, z: Tensor, index: Tensor) -> Tensor:
        """Returns the batch's uses of each code; in training the codes learn from it."""
        if self.training:
            return self.codebook.update(z.flatten(1, -2), index.flatten(1))
        return self.codebook.counts(index)
