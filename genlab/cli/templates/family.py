"""An own family: what a model learns. Beside it lies an experiment that trains it.

genlab fit --config genlab/cli/templates/family.yaml --allow genlab.cli.templates
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from genlab import randomness
from genlab.families.base import CodingFactory, Model, indices
from genlab.families.weights import evaluating
from genlab.shapes import Batch, DataSpec, observed


class NewFamily(Model):
    """A generator whose batches are to be as far from each other as they are from the data's.

        loss = E k(x, x') - 2 E k(x, G(z)) + E k(G(z), G(z'))
        k(a, b) = mean over w of exp(-|a - b|^2 / 2 w)

    The squared maximum mean discrepancy: Li et al. 2015 (arXiv:1502.02761), Dziugaite et al. 2015
    (arXiv:1505.03906). One network and no game.

    Args:
        spec: The data; every family is given it.
        generator: Network from a latent vector to the data.
        optimizer: Built from the generator's parameters.
        latent_dim: Length of a latent vector.
        widths: Squared widths w of the kernels, for one number of an item: they grow with its size.
        model: Arguments of every model: schedule, half_life.

    Shapes:
        z: (batch, latent_dim), standard normal.
        x: (batch, channels, height, width) in [-1, 1], or (batch, dimensions).
    """

    latent_type = "normal prior"
    conditions = ()  # what it can be told: "label", "source"

    def __init__(
        self,
        spec: DataSpec,
        generator: CodingFactory,
        optimizer: OptimizerCallable,
        latent_dim: int = 16,
        widths: Sequence[float] = (0.05, 0.2, 0.8),
        **model: Any,
    ) -> None:
        super().__init__(spec, **model)
        if min(widths, default=0.0) <= 0.0:
            raise ValueError(f"widths must be above 0, and at least one, got {list(widths)}.")
        self.generator = generator(self.seen_spec, latent_dim, 0)
        self.keep_average(self.generator)  # where there is a half_life
        self.optimizer = optimizer
        self.latent_dim = latent_dim
        self.widths = widths

    def configure_optimizers(self) -> Any:
        return self.scheduled(self.optimizer(self.generator.parameters()))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the discrepancy between a batch of data and as many samples."""
        x = observed(batch)
        # Not torch.randn: these numbers are the same in a resumed run and on any number of devices.
        z = self.draw_normal("latent", len(x), (self.latent_dim,))
        return {"loss": discrepancy(self.generator(z).float(), x, self.widths)}

    # Two capabilities (genlab/families/capabilities.py): a latent space, and samples.

    def draw_latent(self, index: int | Tensor, seed: int = 0) -> Tensor:
        """Returns latent number i of the seed for every i in index."""
        key = randomness.key(seed, "latent")
        return randomness.normal(key, indices(index, self.device), (self.latent_dim,))

    @torch.no_grad()
    def decode(self, z: Tensor, **given: Any) -> Tensor:
        """Returns the items of latent vectors."""
        self.told(given)  # refuses what the model was not trained to be told
        network = self.generator if self.average is None else self.average
        with evaluating(network):
            x = network(z).float()
        return x.clamp(-1.0, 1.0) if self.spec.kind == "image" else x

    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns sample i of the seed for every i in index."""
        return self.decode(self.draw_latent(index, seed), **given)


def discrepancy(made: Tensor, real: Tensor, widths: Sequence[float]) -> Tensor:
    """Returns an unbiased estimate of the squared discrepancy, which may be below 0.

    Shapes:
        made, real: (batch, ...), at least 2 of each. Returns a scalar.
    """
    items = torch.cat([made, real]).flatten(1)
    distances = torch.cdist(items, items).square() / items.shape[1]
    kernel = torch.stack([(-distances / (2.0 * width)).exp() for width in widths]).mean(dim=0)
    n, m = len(made), len(real)
    within_made = (kernel[:n, :n].sum() - n) / (n * (n - 1))  # without each item's kernel with itself, 1
    within_real = (kernel[n:, n:].sum() - m) / (m * (m - 1))
    return within_made + within_real - 2.0 * kernel[:n, n:].mean()
