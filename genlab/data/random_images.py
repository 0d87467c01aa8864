"""Generated images of any declared shape, to try an experiment without its data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from genlab import randomness
from genlab.data.base import DataModule
from genlab.data.packed import Packed
from genlab.shapes import DataSpec


class RandomImages(DataModule):
    """Smooth random images, different for every index and class, the same on every machine.

    Args:
        shape: (channels, height, width).
        num_classes: Labels go round 0 ... num_classes - 1; 0 gives none.
        levels: Number of values of a pixel.
        num_train: Images to train on.
        num_test: Images to score on; also "val".
        name: The name that the spec carries, such as that of the data set it stands for.
        base: Arguments that every data set has.

    Shapes:
        batch["image"]: (batch, *shape).
    """

    def __init__(
        self,
        shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: int = 0,
        levels: int = 256,
        num_train: int = 256,
        num_test: int = 64,
        name: str = "random",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.num_train, self.num_test = num_train, num_test
        self._spec = DataSpec(name, tuple(shape), num_classes, levels)

    @property
    def spec(self) -> DataSpec:
        return self._spec

    def load(self) -> dict[str, Packed]:
        return {
            "train": self._draw(0, self.num_train),
            "test": self._draw(self.num_train, self.num_test),
        }

    def _draw(self, first: int, num: int) -> Packed:
        index = torch.arange(first, first + num)
        labels = index % self.spec.num_classes if self.spec.num_classes else None
        waves = randomness.uniform(randomness.key("random images"), index, 4 * self.spec.shape[0])
        images = _waves(waves.numpy().reshape(num, self.spec.shape[0], 4), self.spec.shape)
        levels = np.rint(images * (self.spec.levels - 1)).astype(np.uint8)
        return Packed({"image": levels} if labels is None else {"image": levels, "label": labels.numpy()})


def _waves(draws: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns one plane wave a channel in [0, 1]; draws give its two frequencies, phase and height."""
    _, height, width = shape
    y, x = np.arange(height)[:, None] / height, np.arange(width)[None, :] / width
    along_y, along_x, phase, amplitude = np.moveaxis(draws, 2, 0)[..., None, None]
    angle = 2 * np.pi * (2 * along_y * y + 2 * along_x * x + phase)
    return 0.5 + 0.5 * amplitude * np.sin(angle)
