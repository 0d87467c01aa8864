"""Generated data of any declared form, to try an experiment without its data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab import randomness
from genlab.data.base import MADE_HERE, DataModule
from genlab.data.packed import Packed
from genlab.data.splits import require_counts
from genlab.shapes import DataSpec


class RandomData(DataModule):
    """Smooth random images, points or tokens, different for every index and class, the same on every machine.

    The first arguments are those of a `DataSpec`, which says what is made.

    Args:
        shape: (channels, height, width) of images, (length,) or (height, width) of tokens, any of points.
        num_classes: Labels go round 0 ... num_classes - 1; 0 gives none.
        levels: Number of values of a pixel or a token; 0 for points.
        source: The spec of what each item comes with, made in the same way; None for nothing.
        vocabulary: A tokenizer's JSON, so that random tokens can be read.
        num_train: Items to train on.
        num_test: Items to score on, and as many others for validation.
        name: The name that the spec carries, such as that of the data set it stands for.
        base: Arguments that every data set has.

    Shapes:
        batch["image"]: (batch, *shape); likewise "point" and tokens on a grid.
        batch["tokens"]: (batch, length + 1) for a shape of one axis, as of a text.
    """

    things = "items"
    licence = MADE_HERE

    def __init__(
        self,
        shape: tuple[int, ...] = (3, 32, 32),
        num_classes: int = 0,
        levels: int = 256,
        source: dict[str, Any] | None = None,
        vocabulary: str = "",
        num_train: int = 256,
        num_test: int = 64,
        name: str = "random",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        require_counts(num_train, num_test)
        self.num_train, self.num_test = num_train, num_test
        self._spec = DataSpec(name, tuple(shape), num_classes, levels, source, vocabulary)

    @property
    def spec(self) -> DataSpec:
        return self._spec

    def load(self) -> dict[str, Packed]:
        return {
            "train": self._draw(0, self.num_train),
            "test": self._draw(self.num_train, self.num_test),
            "val": self._draw(self.num_train + self.num_test, self.num_test),
        }

    def _draw(self, first: int, num: int) -> Packed:
        spec, index = self.spec, torch.arange(first, first + num)
        is_text = spec.kind == "tokens" and len(spec.shape) == 1
        shape = (spec.shape[0] + 1,) if is_text else spec.shape
        columns: dict[str, np.ndarray] = {spec.kind: drawn(shape, spec.levels, "random images", index)}
        if spec.source is not None:
            columns["source"] = drawn(spec.source.shape, spec.source.levels, "random sources", index)
        if spec.num_classes:
            columns["label"] = (index % spec.num_classes).numpy()
        return Packed(columns)


def drawn(shape: tuple[int, ...], levels: int, name: str, index: Tensor) -> np.ndarray:
    """Returns random data by their numbers, (len(index), *shape): levels, or normal numbers without levels.

    Images have one wave a channel, rows of tokens and maps of codes one in all.
    """
    address = randomness.key(name)
    if not levels:
        return randomness.normal(address, index, shape).numpy()
    planes = shape if len(shape) == 3 else (1, *(1,) * (2 - len(shape)), *shape)
    waves = randomness.uniform(address, index, 4 * planes[0]).numpy().reshape(len(index), planes[0], 4)
    smallest = np.uint8 if levels <= 256 else np.int32
    return np.rint(_waves(waves, planes) * (levels - 1)).astype(smallest).reshape(len(index), *shape)


def _waves(draws: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns one plane wave a channel in [0, 1]; draws give its two frequencies, phase and height."""
    _, height, width = shape
    y, x = np.arange(height)[:, None] / height, np.arange(width)[None, :] / width
    along_y, along_x, phase, amplitude = np.moveaxis(draws, 2, 0)[..., None, None]
    angle = 2 * np.pi * (2 * along_y * y + 2 * along_x * x + phase)
    return 0.5 + 0.5 * amplitude * np.sin(angle)
