"""Autoencoders: each image to one point and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from genlab import randomness
from genlab.families.base import CodingFactory, Model, indices
from genlab.families.weights import evaluating
from genlab.samplers.codes import MixtureOfCodes
from genlab.shapes import Batch, DataSpec, observed


class Autoencoder(Model):
    """Learns a short code for each image by rebuilding the image from it.

        loss = |x - decoder(encoder(x + noise_std eps))|^2, a mean over pixels

    Hinton and Salakhutdinov 2006; Vincent et al. 2008 for the noise. Nothing in training says how codes are
    distributed, so that samples come from a distribution fitted to the training images' codes before each
    evaluation and each checkpoint, which keeps it.

    Args:
        spec: The data.
        encoder: Network from the data to a code.
        decoder: Network from a code to the data.
        optimizer: Built from all parameters.
        latent_dim: Length of a code.
        noise_std: Standard deviation of the noise that is added to the input in training.
        sampler: The distribution that is fitted to the codes.
        num_codes: Training images whose codes it is fitted to.
        model: Arguments of every model.

    Shapes:
        z: (batch, latent_dim).
        x: (batch, channels, height, width) in [-1, 1], or (batch, dimensions).
    """

    latent_type = "codes, fitted mixture"
    conditions = ()

    def __init__(
        self,
        spec: DataSpec,
        encoder: CodingFactory,
        decoder: CodingFactory,
        optimizer: OptimizerCallable,
        latent_dim: int = 32,
        noise_std: float = 0.0,
        sampler: Callable[[int], MixtureOfCodes] = MixtureOfCodes,
        num_codes: int = 10_000,
        **model: Any,
    ) -> None:
        super().__init__(spec, **model)
        if noise_std < 0:
            raise ValueError(f"noise_std must not be negative, got {noise_std}.")
        self.latent_dim = latent_dim
        self.encoder = encoder(spec.unconditional(), latent_dim, 0)
        self.decoder = decoder(spec.unconditional(), latent_dim, 0)
        self.sampler = sampler(latent_dim)
        self.optimizer = optimizer
        self.noise_std = noise_std
        self.num_codes = num_codes
        self._fitted_at = -1

    def configure_optimizers(self) -> Any:
        return self.scheduled(self.optimizer(self.parameters()))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the mean squared error of a pixel and the variance of the codes."""
        x = observed(batch)
        z = self.encoder(self._noisy(x))
        mse = (self.decoder(z).float() - x).square().mean()
        return {"loss": mse, "mse": mse, "code_variance": z.float().var(dim=0, correction=0).mean()}

    @torch.no_grad()
    def encode(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the images' codes."""
        self.told(given)
        with evaluating(self):
            return self.encoder(x).float()

    @torch.no_grad()
    def decode(self, z: Tensor, **given: Any) -> Tensor:
        """Returns the images of codes."""
        self.told(given)
        with evaluating(self):
            x = self.decoder(z).float()
        return x.clamp(-1.0, 1.0) if self.spec.kind == "image" else x

    def draw_latent(self, index: int | Tensor, seed: int = 0) -> Tensor:
        """Returns code number i of the seed for every i in index, from the fitted distribution."""
        return self.sampler.draw(randomness.key(seed, "latent"), indices(index, self.device))

    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns sample i of the seed for every i in index."""
        return self.decode(self.draw_latent(index, seed), **given)

    def on_validation_start(self) -> None:
        self.fit_sampler()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # The weights are already in the checkpoint, by reference: what is fitted now is written with them.
        self.fit_sampler()
        super().on_save_checkpoint(checkpoint)

    def fit_sampler(self) -> None:
        """Fits the codes' distribution to the weights of this moment, unless it was already."""
        data = getattr(self._trainer, "datamodule", None)
        if data is None or self.trainer.state.fn != "fit" or self._fitted_at == self.examples_seen:
            return
        learner: Any = self.trainer.lightning_module
        codes: list[Tensor] = []
        for batch in data.loader("train", batch_size=500):
            seen = learner.coded(data.to_device_batch(batch, self.device))
            codes.append(self.encode(observed(seen)))
            if sum(map(len, codes)) >= self.num_codes:
                break
        self.sampler.fit(torch.cat(codes)[: self.num_codes])
        self._fitted_at = self.examples_seen

    def _noisy(self, x: Tensor) -> Tensor:
        if not self.training or self.noise_std == 0.0:
            return x
        return x + self.noise_std * self.draw_normal("input", len(x), tuple(x.shape[1:]))
