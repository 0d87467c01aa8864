"""Encoders from data to numbers, and decoders back, with an optional condition beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from genlab.shapes import DataSpec


class MLPEncoder(nn.Module):
    """A perceptron from data to a vector, the condition appended to the data.

    Args:
        spec: The data.
        num_outputs: Length of the vector.
        condition_dim: Length of the condition; 0 for none.
        hidden: Widths of the hidden layers, from the data to the vector.

    Shapes:
        x: (batch, *spec.shape); condition: (batch, condition_dim). Returns (batch, num_outputs).
    """

    def __init__(
        self, spec: DataSpec, num_outputs: int, condition_dim: int = 0, hidden: Sequence[int] = (512, 256)
    ) -> None:
        super().__init__()
        self.condition_dim = condition_dim
        self.layers = _perceptron([math.prod(spec.shape) + condition_dim, *hidden, num_outputs])

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.layers(_joined(x.flatten(1), condition, self.condition_dim))


class MLPDecoder(nn.Module):
    """A perceptron from a vector to data, the condition appended to the vector.

    Args:
        spec: What comes out; its shape need not be an image's three channels.
        latent_dim: Length of the vector.
        condition_dim: Length of the condition; 0 for none.
        hidden: Widths of the hidden layers, from the vector to the data.

    Shapes:
        z: (batch, latent_dim); condition: (batch, condition_dim). Returns (batch, *spec.shape), unbounded.
    """

    def __init__(
        self, spec: DataSpec, latent_dim: int, condition_dim: int = 0, hidden: Sequence[int] = (256, 512)
    ) -> None:
        super().__init__()
        self.spec = spec
        self.condition_dim = condition_dim
        self.layers = _perceptron([latent_dim + condition_dim, *hidden, math.prod(spec.shape)])

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.layers(_joined(z, condition, self.condition_dim)).reshape(-1, *self.spec.shape)


class ConvEncoder(nn.Module):
    """Residual stages that halve an image down to 4 to 7 pixels, then one linear map to a vector.

    The residual branches begin at zero (De and Smith 2020, arXiv:2002.10444), which lets deep stacks train
    without normalisation: nothing depends on the other images of a batch. He et al. 2016 (arXiv:1603.05027)
    for the order of the layers inside a block.

    Args:
        spec: The images.
        num_outputs: Length of the vector.
        condition_dim: Length of the condition; 0 for none. It shifts the channels of every block.
        base_channels: Channels of the first stage; each halving doubles them, up to four times.
        num_blocks: Residual blocks in each stage.
        patch: Side of the squares of pixels that become the channels of one place before the first stage; the
            stages then halve what is left, at a patch^2-th of the cost.

    Shapes:
        x: (batch, channels, height, width); condition: (batch, condition_dim). Returns (batch, num_outputs).

    Raises:
        ValueError: If the data are not images, or their sides cannot be halved down to a few pixels.
    """

    def __init__(
        self,
        spec: DataSpec,
        num_outputs: int,
        condition_dim: int = 0,
        base_channels: int = 32,
        num_blocks: int = 1,
        patch: int = 1,
    ) -> None:
        super().__init__()
        self.patches = nn.PixelUnshuffle(patch) if patch > 1 else nn.Identity()
        places = _in_patches(spec, patch)
        (height, width), num_halvings = halved_down(places)
        self.stages = Downward(places.shape[0], base_channels, num_halvings, num_blocks, condition_dim)
        self.output = nn.Linear(self.stages.out_channels * height * width, num_outputs)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.output(self.stages(self.patches(x), condition).flatten(1))


class ConvDecoder(nn.Module):
    """The way back of `ConvEncoder`: one linear map to a few pixels, then residual stages that double them.

    Args:
        spec: What comes out.
        latent_dim: Length of the vector.
        condition_dim: Length of the condition; 0 for none. It shifts the channels of every block.
        base_channels: Channels of the last stage.
        num_blocks: Residual blocks in each stage.

    Shapes:
        z: (batch, latent_dim); condition: (batch, condition_dim). Returns (batch, *spec.shape), unbounded.

    Raises:
        ValueError: As in `ConvEncoder`.
    """

    def __init__(
        self,
        spec: DataSpec,
        latent_dim: int,
        condition_dim: int = 0,
        base_channels: int = 32,
        num_blocks: int = 1,
    ) -> None:
        super().__init__()
        self.start, num_doublings = halved_down(spec)
        self.stages = Upward(spec.shape[0], base_channels, num_doublings, num_blocks, condition_dim)
        self.input = nn.Linear(latent_dim, self.stages.in_channels * math.prod(self.start))

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.stages(self.input(z).unflatten(1, (-1, *self.start)), condition)


class ConvMapEncoder(nn.Module):
    """Residual stages from an image to a smaller map of vectors, one for each place.

    The encoder of van den Oord et al. 2017 (arXiv:1711.00937), section 4.1, with the blocks of `ConvEncoder`.

    Args:
        spec: The images.
        num_outputs: Length of the vector at each place.
        condition_dim: Length of the condition; 0 for none.
        num_halvings: How often the sides are halved: 2 makes 8 x 8 places of 32 x 32 pixels.
        base_channels: Channels of the first stage.
        num_blocks: Residual blocks in each stage.
        patch: Side of the squares of pixels that become one place before the first stage, as in
            `ConvEncoder`; the stages halve what is left.

    Shapes:
        x: (batch, channels, height, width). Returns (batch, num_outputs, height / (patch 2^n), width / (patch
        2^n)).

    Raises:
        ValueError: If the data are not images, or the sides cannot be halved so often.
    """

    def __init__(
        self,
        spec: DataSpec,
        num_outputs: int,
        condition_dim: int = 0,
        num_halvings: int = 2,
        base_channels: int = 64,
        num_blocks: int = 1,
        patch: int = 1,
    ) -> None:
        super().__init__()
        places = _in_patches(spec, patch)
        require_halvings(places, num_halvings)
        self.patches = nn.PixelUnshuffle(patch) if patch > 1 else nn.Identity()
        self.stages = Downward(places.shape[0], base_channels, num_halvings, num_blocks, condition_dim)
        self.output = nn.Conv2d(self.stages.out_channels, num_outputs, 1)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.output(self.stages(self.patches(x), condition))


class ConvMapDecoder(nn.Module):
    """The way back of `ConvMapEncoder`.

    Args:
        spec: What comes out.
        latent_dim: Length of the vector at each place.
        condition_dim: Length of the condition; 0 for none.
        num_halvings: As in the encoder.
        base_channels: Channels of the last stage.
        num_blocks: Residual blocks in each stage.
        patch: As in the encoder: the last stage makes squares of pixels at once.

    Shapes:
        z: (batch, latent_dim, height / (patch 2^n), width / (patch 2^n)). Returns (batch, *spec.shape),
        unbounded.

    Raises:
        ValueError: As in `ConvMapEncoder`.
    """

    def __init__(
        self,
        spec: DataSpec,
        latent_dim: int,
        condition_dim: int = 0,
        num_halvings: int = 2,
        base_channels: int = 64,
        num_blocks: int = 1,
        patch: int = 1,
    ) -> None:
        super().__init__()
        places = _in_patches(spec, patch)
        require_halvings(places, num_halvings)
        self.stages = Upward(places.shape[0], base_channels, num_halvings, num_blocks, condition_dim)
        self.pixels = nn.PixelShuffle(patch) if patch > 1 else nn.Identity()
        self.input = nn.Conv2d(latent_dim, self.stages.in_channels, 1)

    @property
    def last_layer(self) -> nn.Conv2d:
        """The layer that makes the image, where the gradients of several losses are weighed up."""
        return self.stages.output

    def forward(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.pixels(self.stages(self.input(z), condition))


class Downward(nn.Module):
    """Residual blocks, then half the size and more channels, again and again.

    Args:
        in_channels: Channels of the image.
        base_channels: Channels of the first stage; each halving doubles them, up to four times.
        num_halvings: Number of halvings.
        num_blocks: Residual blocks in each stage.
        condition_dim: Length of the condition.

    Shapes:
        x: (batch, in_channels, height, width). Returns (batch, out_channels, height / 2^n, width / 2^n).
    """

    def __init__(
        self, in_channels: int, base_channels: int, num_halvings: int, num_blocks: int, condition_dim: int
    ) -> None:
        super().__init__()
        widths = _widths(base_channels, num_halvings)
        self.out_channels = widths[-1]
        self.input = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        layers: list[nn.Module] = _blocks(widths[0], num_blocks, condition_dim)
        for narrow, wide in pairwise(widths):
            layers += [nn.Conv2d(narrow, wide, 4, 2, 1), *_blocks(wide, num_blocks, condition_dim)]
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        return silu(_through(self.layers, self.input(x), condition))


class Upward(nn.Module):
    """Residual blocks, then twice the size and fewer channels, again and again; last the image.

    The transposed convolutions' kernel is a multiple of their stride, so that they leave no checkerboard.

    Args:
        out_channels: Channels of the image.
        base_channels: Channels of the last stage; as in `Downward`.
        num_doublings: Number of doublings.
        num_blocks: Residual blocks in each stage.
        condition_dim: Length of the condition.

    Shapes:
        h: (batch, in_channels, height, width). Returns (batch, out_channels, 2^n height, 2^n width).
    """

    def __init__(
        self, out_channels: int, base_channels: int, num_doublings: int, num_blocks: int, condition_dim: int
    ) -> None:
        super().__init__()
        widths = _widths(base_channels, num_doublings)[::-1]
        self.in_channels = widths[0]
        layers: list[nn.Module] = _blocks(widths[0], num_blocks, condition_dim)
        for wide, narrow in pairwise(widths):
            layers += [nn.ConvTranspose2d(wide, narrow, 4, 2, 1), *_blocks(narrow, num_blocks, condition_dim)]
        self.layers = nn.ModuleList(layers)
        self.output = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, h: Tensor, condition: Tensor | None) -> Tensor:
        return self.output(silu(_through(self.layers, h, condition)))


class Block(nn.Module):
    """Two convolutions beside an identity, shifted by the condition: h + g f(h, condition), g = 0 at first.

    Args:
        width: Number of channels, in and out.
        condition_dim: Length of the condition; 0 for none.

    Shapes:
        h: (batch, width, height, width of the image); condition: (batch, condition_dim). Returns as h.
    """

    def __init__(self, width: int, condition_dim: int) -> None:
        super().__init__()
        self.condition_dim = condition_dim
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.shift = nn.Linear(condition_dim, width) if condition_dim else None
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, h: Tensor, condition: Tensor | None) -> Tensor:
        if self.shift is not None:
            h = h + self.shift(_required(condition, self.condition_dim))[:, :, None, None]
        return h + self.gain * self.second(silu(self.first(silu(h))))


def halved_down(spec: DataSpec) -> tuple[tuple[int, int], int]:
    """Returns the (height, width) that remain when an image is halved down to 4 to 7 pixels, and how often.

    28 = 7 x 2^2, 32 = 4 x 2^3, 64 = 4 x 2^4, and 8 = 4 x 2.
    """
    if not spec.is_grid:
        raise ValueError(
            f"A convolutional network needs images, but {spec.name} has shape {spec.shape}; use the MLP ones."
        )
    height, width = spec.shape[1:]
    num_halvings = max(0, (min(height, width) // 4).bit_length() - 1)
    require_halvings(spec, num_halvings)
    return (height // 2**num_halvings, width // 2**num_halvings), num_halvings


def require_halvings(spec: DataSpec, num_halvings: int) -> None:
    """Refuses data that are no images, or whose sides cannot be halved so often."""
    factor = 2**num_halvings
    if not spec.is_grid or any(side % factor for side in spec.shape[1:]):
        raise ValueError(
            f"The network halves the sides {num_halvings} times, so they must be multiples of {factor}, but "
            f"{spec.name} has shape {spec.shape}; resize the images."
        )


def _in_patches(spec: DataSpec, patch: int) -> DataSpec:
    """Returns images whose places are squares of pixels; data that are no images as they are."""
    if not spec.is_grid or patch == 1:
        return spec
    channels, *sides = spec.shape
    if patch < 1 or any(side % patch for side in sides):
        raise ValueError(f"patch must divide the sides of {spec.name}, {spec.shape[1:]}, got {patch}.")
    return DataSpec(spec.name, (channels * patch**2, *(side // patch for side in sides)))


def _widths(base_channels: int, num_halvings: int) -> list[int]:
    return [base_channels * min(2**level, 4) for level in range(num_halvings + 1)]


def _blocks(width: int, num_blocks: int, condition_dim: int) -> list[nn.Module]:
    return [Block(width, condition_dim) for _ in range(num_blocks)]


def _through(layers: nn.ModuleList, h: Tensor, condition: Tensor | None) -> Tensor:
    for layer in layers:
        h = layer(h, condition) if isinstance(layer, Block) else layer(h)
    return h


def _perceptron(widths: Sequence[int]) -> nn.Sequential:
    hidden = [nn.Sequential(nn.Linear(a, b), nn.SiLU()) for a, b in pairwise(widths[:-1])]
    return nn.Sequential(*hidden, nn.Linear(widths[-2], widths[-1]))


def _joined(x: Tensor, condition: Tensor | None, condition_dim: int) -> Tensor:
    if condition_dim == 0:
        return x
    return torch.cat([x, _required(condition, condition_dim).to(x.dtype)], dim=1)


def _required(condition: Tensor | None, condition_dim: int) -> Tensor:
    if condition is None or condition.shape[1] != condition_dim:
        got = "none" if condition is None else str(condition.shape[1])
        raise ValueError(f"The network was built for a condition of {condition_dim} numbers, got {got}.")
    return condition
