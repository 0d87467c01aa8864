"""The walk that draws an image, one pixel after the other in the order of reading."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from genlab import randomness


class NextPixel(Protocol):
    """A network that says what is known of each pixel given those before it.

    Attributes:
        sees_channels: Whether the channels of a pixel are told each other in turn; else they are drawn at
            once.
    """

    sees_channels: bool

    def __call__(self, x: Tensor, **given: Any) -> Tensor:
        """Returns the parameters of every pixel, (batch, parameters, height, width)."""

    def new_memory(self, num_images: int) -> Any:
        """Returns an empty memory of what has been computed."""

    def pixel(self, x: Tensor, row: int, column: int, memory: Any, **given: Any) -> Tensor:
        """Returns the parameters of one pixel, (batch, parameters), the pixels before it being known.

        Asked in the order of reading; again for each channel where channels see each other.
        """


class PixelDistribution(Protocol):
    """What the parameters of a pixel mean, such as `losses.likelihoods.Softmax`."""

    num_uniforms: int

    def draw(self, parameters: Tensor, u: Tensor, temperature: float = 1.0) -> Tensor:
        """Returns pixels, (batch, channels, 1, 1), from (batch, parameters, 1, 1) and uniform numbers."""


@torch.no_grad()
def walk(
    network: NextPixel,
    likelihood: PixelDistribution,
    images: Tensor,
    num_known: int,
    seed: int,
    index: Tensor,
    temperature: float = 1.0,
    **given: Any,
) -> Iterator[int]:
    """Draws what is not known of images, in place; yields the number of each row that is done.

    Every layer's features are kept, so that a pixel costs one pixel of the network and not a whole image:
    Ramachandran et al. 2017 (arXiv:1704.06001). The numbers drawn belong to a place, so that a drawn image
    that is cut and completed is itself again.

    Args:
        network: In eval mode, or dropout disturbs it.
        likelihood: Draws a pixel of its parameters.
        images: (batch, channels, height, width) in [-1, 1], of which the first pixels are known.
        num_known: How many, in the order of reading.
        seed: Of the samples.
        index: Sample numbers, (batch,).
        temperature: Near 0 the likeliest pixel, 1 by probability.
        **given: What the network is told beside, a row each, such as `label`.
    """
    _, channels, height, width = images.shape
    memory = network.new_memory(len(images))
    for row in range(height):
        for column in range(width):
            if row * width + column < num_known:
                network.pixel(images, row, column, memory, **given)  # remembered, not drawn
                continue
            u = _uniforms(likelihood, channels, seed, row * width + column, index)
            for channel in range(channels) if network.sees_channels else (slice(None),):
                parameters = network.pixel(images, row, column, memory, **given)[..., None, None]
                drawn = likelihood.draw(parameters, u, temperature)[:, :, 0, 0]
                images[:, channel, row, column] = drawn[:, channel].to(images.dtype)
        yield row


def _uniforms(likelihood: PixelDistribution, channels: int, seed: int, place: int, index: Tensor) -> Tensor:
    num = likelihood.num_uniforms
    u = randomness.uniform(randomness.key(seed, "pixel", place), index, num * channels)
    return u.reshape(len(index), num, channels, 1, 1)
