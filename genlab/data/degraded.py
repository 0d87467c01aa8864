"""Pairs made from any images: the image is to be found again from what was left of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from genlab import randomness
from genlab.colour import luminance
from genlab.data.base import DataModule
from genlab.data.packed import Packed, Rows
from genlab.shapes import DataSpec


class Degradation(ABC):
    """What is lost of an image, the same whenever it is asked for.

    Attributes:
        factor: Pixels of an image for each of what is left of it, along a side.

    Shapes:
        The images: (images, channels, height, width), uint8 levels.
    """

    factor = 1

    @abstractmethod
    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the form of what is left of an image of a form, (channels, height, width).

        Raises:
            ValueError: Where nothing can be lost of such images.
        """

    @abstractmethod
    def __call__(self, images: Tensor, number: Tensor, levels: int) -> Tensor:
        """Returns what is left of images of so many levels, given their numbers in the split, as uint8."""


class Grey(Degradation):
    """Colours become brightness, 0.299 R + 0.587 G + 0.114 B (ITU-R 601): the task is to colour."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape[0] != 3:
            raise ValueError(f"Grey needs images of 3 channels, got {shape[0]}; use Edges, Small or Masked.")
        return (1, *shape[1:])

    def __call__(self, images: Tensor, number: Tensor, levels: int) -> Tensor:
        return luminance(images).round_().to(torch.uint8)


class Edges(Degradation):
    """The steepness of the brightness: length of the gradient by Sobel's filters, cut off at white.

    Args:
        gain: Times the steepness is strengthened; at 1.0 a step from black to white is just white.
    """

    def __init__(self, gain: float = 1.0) -> None:
        if gain <= 0.0:
            raise ValueError(f"gain must be above 0, got {gain}.")
        self.gain = gain

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1, *shape[1:])

    def __call__(self, images: Tensor, number: Tensor, levels: int) -> Tensor:
        across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 4
        filters = torch.stack([across, across.T])[:, None]
        padded = functional.pad(luminance(images), (1, 1, 1, 1), mode="replicate")
        steepness = functional.conv2d(padded, filters).square().sum(1, keepdim=True).sqrt()
        return _levels(self.gain * steepness, levels)


class Small(Degradation):
    """The image with its sides divided, by the bicubic filter widened with the scale: super-resolution.

    The filter of Pillow and of MATLAB's imresize, a = -0.5 (Keys 1981), rounded to levels: the protocol of
    published comparisons.

    Args:
        factor: What the sides are divided by.
    """

    def __init__(self, factor: int = 4) -> None:
        if factor < 2:
            raise ValueError(f"factor must be at least 2, got {factor}.")
        self.factor = factor

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape[1] % self.factor or shape[2] % self.factor:
            raise ValueError(f"factor must divide the sides {shape[1]} and {shape[2]}, got {self.factor}.")
        return (shape[0], shape[1] // self.factor, shape[2] // self.factor)

    def __call__(self, images: Tensor, number: Tensor, levels: int) -> Tensor:
        size = [side // self.factor for side in images.shape[2:]]
        return _levels(functional.interpolate(images.float(), size, mode="bicubic", antialias=True), levels)


class Masked(Degradation):
    """A square of each image is middle grey, at a place that its number draws: the task is to fill it in.

    Args:
        share: Side of the square as a share of the image's shorter side.
    """

    def __init__(self, share: float = 0.5) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"share must be in (0, 1], got {share}.")
        self.share = share

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def __call__(self, images: Tensor, number: Tensor, levels: int) -> Tensor:
        height, width = images.shape[2:]
        side = max(1, round(self.share * min(height, width)))
        draws = randomness.uniform(randomness.key("mask"), number, 2)
        down = _covered((draws[:, 0] * (height - side + 1)).long(), side, height)
        across = _covered((draws[:, 1] * (width - side + 1)).long(), side, width)
        hole = down[:, None, :, None] & across[:, None, None, :]
        return images.masked_fill(hole, levels // 2)


def _covered(start: Tensor, side: int, size: int) -> Tensor:
    place = torch.arange(size) - start[:, None]
    return (place >= 0) & (place < side)


def _levels(x: Tensor, levels: int) -> Tensor:
    return x.round().clamp(0, levels - 1).to(torch.uint8)


class DegradedRows:
    """What is left of the images of a split, made when it is asked for.

    Args:
        images: The images.
        degradation: What they lose.
        levels: Number of values of their pixels.
        number: The number of each in its split, which draws may follow.
    """

    def __init__(
        self, images: np.ndarray | Rows, degradation: Degradation, levels: int, number: np.ndarray
    ) -> None:
        self.images, self.degradation, self.levels, self.number = images, degradation, levels, number

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.degradation.shape(tuple(self.images.shape[1:])))

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.number)

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = np.atleast_1d(self.number[index])
        images = torch.from_numpy(np.ascontiguousarray(self.images[rows]))
        made = self.degradation(images, torch.from_numpy(rows), self.levels).numpy()
        return made if np.ndim(self.number[index]) else made[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def take(self, rows: np.ndarray) -> DegradedRows:
        return DegradedRows(self.images, self.degradation, self.levels, self.number[rows])


class Degraded(DataModule):
    """The images of another data set, each with what a degradation leaves of it as its source.

    Made batch by batch, the same in every epoch. Of the other data set only what it holds is used, with its
    test split: batch size, flip, fractions and seed are those given here. The validation images are those
    that the other data set would have at the same val_fraction.

    Args:
        data: The images.
        degradation: What they lose: Grey, Edges, Small or Masked.
        base: Arguments that every data set has.

    Shapes:
        batch["image"]: As of `data`.
        batch["source"]: (batch, *degradation.shape(image)).
    """

    def __init__(self, data: DataModule, degradation: Degradation, **base: Any) -> None:
        super().__init__(**base)
        if data.spec.kind != "image" or getattr(data, "binarize", False):
            raise ValueError(f"data must hold images of levels, got {type(data).__name__} of {data.spec}.")
        degradation.shape(data.spec.shape)
        if getattr(getattr(data, "policy", None), "crop", "") == "random":
            raise ValueError(
                "data.crop random would move an image and not what is left of it: use centre or none."
            )
        self.data, self.degradation = data, degradation
        self.licence = self.licence or data.licence

    @property
    def spec(self) -> DataSpec:
        inner, lost = self.data.spec, type(self.degradation).__name__.lower()
        source = DataSpec(f"{inner.name} {lost}", self.degradation.shape(inner.shape), levels=inner.levels)
        return DataSpec(f"{inner.name}-{lost}", inner.shape, inner.num_classes, inner.levels, source)

    def load(self) -> dict[str, Packed]:
        return {name: self._degraded(packed) for name, packed in self.data.load().items()}

    def preprocessing(self) -> dict[str, Any]:
        lost = {"degradation": type(self.degradation).__name__, **vars(self.degradation)}
        return {**self.data.preprocessing(), **lost}

    def _degraded(self, packed: Packed) -> Packed:
        levels = self.data.spec.levels
        source = DegradedRows(packed["image"], self.degradation, levels, np.arange(len(packed)))
        return Packed({**packed.columns, "source": source})
