"""Image to image by regression: super-resolution, colouring, whatever has one right answer."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor, nn

from genlab.families.base import Model, NetworkFactory
from genlab.families.weights import translated
from genlab.losses.distances import Distance
from genlab.shapes import Batch, DataSpec, observed


class ImageRegression(Model):
    """Makes an image of its source, as near to the true one as a distance can tell.

        f = argmin_f  E d(f(source), image)

    By squared errors f is the mean of all images that a source may come from: the best PSNR, and blurred
    where these differ. A sample is one image for each source, the same for any seed.

    Args:
        spec: Pairs of images, of one size or of two.
        network: Called with source=...; gives the image.
        distance: d above: SquaredError, AbsoluteError or Charbonnier.
        optimizer: Built from the network's parameters.
        model: Arguments of every model; `given` must hold source.

    Shapes:
        source, x: (batch, channels, height, width) in [-1, 1].
    """

    def __init__(
        self,
        spec: DataSpec,
        network: NetworkFactory,
        distance: Distance,
        optimizer: OptimizerCallable,
        **model: Any,
    ) -> None:
        if "source" not in model.get("given", ()):
            raise ValueError("ImageRegression makes images of their sources: set given to [source].")
        super().__init__(spec, **model)
        self.network = network(self.seen_spec)
        self.keep_average(self.network)
        self.optimizer = optimizer
        self.distance = distance

    @property
    def sampling_network(self) -> nn.Module:
        """The network that images come from: the average where there is one."""
        return self.network if self.average is None else self.average

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        network = self.network if self.training else self.sampling_network
        return {"loss": self.distance(network(**self.given_of(batch)), observed(batch))}

    def configure_optimizers(self) -> Any:
        return self.scheduled(self.optimizer(self.network.parameters()))

    @torch.no_grad()
    def sample(self, index: int | Tensor, seed: int = 0, **given: Any) -> Tensor:
        """Returns the images of the given sources, one for each i in index and the same for any seed."""
        return translated(self.sampling_network, self.told(given)).clamp(-1.0, 1.0)
