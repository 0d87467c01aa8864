"""The words that every room shares: what a batch holds, what a data set is, and how bytes become floats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor


class Batch(TypedDict, total=False):
    """What a data loader yields; a data set fills the keys that it has.

    Shapes:
        image: (batch, channels, height, width); uint8 levels from the loader, float in [-1, 1] in a model.
        point: (batch, dimensions), float: vectors of the toy densities.
        label: (batch,), int64 class number.
        index: (batch,), int64 position in the split.
        flip: (batch,), bool: images to mirror, decided by the loader so that a resumed run repeats it.
        caption: list of strings.
        source, target: images of a translation task.
        tokens: (batch, length), int64.
    """

    image: Tensor
    point: Tensor
    label: Tensor
    index: Tensor
    flip: Tensor
    caption: list[str]
    source: Tensor
    target: Tensor
    tokens: Tensor


class DataSpec:
    """What a model must know of a data set before it can be built.

    Not a dataclass: the command line's parser would take one apart into options.

    Args:
        name: The data set's name, for titles and tables.
        shape: (channels, height, width) of an image, (dimensions,) of a vector.
        num_classes: Number of labels, 0 where there are none.
        levels: Number of values a pixel can take (256 for bytes, 17 for the embedded digits);
            0 for continuous data.
    """

    def __init__(self, name: str, shape: Sequence[int], num_classes: int = 0, levels: int = 256) -> None:
        self.name = name
        self.shape = tuple(int(size) for size in shape)
        self.num_classes = num_classes
        self.levels = levels

    @property
    def is_image(self) -> bool:
        return len(self.shape) == 3

    def unconditional(self) -> DataSpec:
        """Returns the same data without its labels; networks condition wherever there are classes."""
        return DataSpec(self.name, self.shape, 0, self.levels)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values that `DataSpec(**values)` reads back."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "levels": self.levels,
        }

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DataSpec) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.name, self.shape, self.num_classes, self.levels))

    def __repr__(self) -> str:
        return f"DataSpec({self.name!r}, {self.shape}, num_classes={self.num_classes}, levels={self.levels})"


def is_point(spec: DataSpec) -> bool:
    """Returns whether the data are vectors of numbers, such as the points of a toy density."""
    return len(spec.shape) == 1 and spec.levels == 0


def observed(batch: Batch) -> Tensor:
    """Returns what a generative model learns from: the images, or the points of a toy density."""
    return batch["image"] if "image" in batch else batch["point"]


def to_float(levels: Tensor, num_levels: int = 256) -> Tensor:
    """Maps level k of 0 ... num_levels - 1 to 2 k / (num_levels - 1) - 1, a float in [-1, 1]."""
    return levels.float().mul(2.0 / (num_levels - 1)).sub_(1.0)


def to_levels(x: Tensor, num_levels: int = 256) -> Tensor:
    """Maps floats in [-1, 1] to the nearest of num_levels levels, as uint8; values outside are clipped.

    Rounds: truncation would darken every generated image by half a level and break the round trip of
    a quarter of the 256 levels.
    """
    scaled = x.float().add(1.0).mul_((num_levels - 1) / 2.0)
    return scaled.round_().clamp_(0, num_levels - 1).to(torch.uint8)


def levels_to_bytes(levels: Tensor, num_levels: int = 256) -> Tensor:
    """Maps levels 0 ... num_levels - 1 to bytes 0 ... 255, for pictures and byte-based extractors."""
    if num_levels == 256:
        return levels
    return levels.float().mul_(255.0 / (num_levels - 1)).round_().to(torch.uint8)
