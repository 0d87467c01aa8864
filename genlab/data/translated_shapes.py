"""Coloured shapes that are to become other ones: translation whose right answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np

from genlab.data.base import MADE_HERE, DataModule
from genlab.data.loading import Items
from genlab.data.packed import Packed
from genlab.data.pairs import deal
from genlab.data.procedural import SHAPES, factors, render
from genlab.data.splits import require_counts
from genlab.shapes import DataSpec

_CHUNK = 512
_SHAPE = 1  # column of the factors


class TranslatedShapes(DataModule):
    """Shapes of one kind, as sources, and the same ones of another kind: equal in colour, place and size.

    Made as `Shapes` are. What is held out are pairs, so that every translation can be counted as right or
    wrong. In training there are pairs too if `paired` is set; else no image is the translation of any source,
    and sources are dealt to the images anew in each epoch.

    Args:
        source_shape: What the sources show, such as circle.
        target_shape: What the images show, such as square.
        paired: Whether training images stand beside what they come of.
        image_size: Side of the pictures in pixels, at least 16.
        num_train: Images to train on, and as many sources.
        num_test: Pairs to score on, and as many others for validation.
        base: Arguments that every data set has.

    Shapes:
        batch["image"], batch["source"]: (batch, 3, image_size, image_size).
        split(...)["factors"]: (pictures, 4): colour, shape of the image, position, size.
    """

    licence = MADE_HERE

    def __init__(
        self,
        source_shape: str = "circle",
        target_shape: str = "square",
        paired: bool = False,
        image_size: int = 32,
        num_train: int = 2_000,
        num_test: int = 432,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        require_counts(num_train, num_test)
        for name, shape in (("source_shape", source_shape), ("target_shape", target_shape)):
            if shape not in SHAPES:
                raise ValueError(f"{name} must be one of {', '.join(SHAPES)}, got {shape!r}.")
        if source_shape == target_shape:
            raise ValueError(f"source_shape and target_shape must differ, got {source_shape!r} twice.")
        if image_size < 16:
            raise ValueError(f"image_size must be at least 16 for shapes to be told apart, got {image_size}.")
        self.source_shape, self.target_shape, self.paired = source_shape, target_shape, paired
        self.image_size, self.num_train, self.num_test = image_size, num_train, num_test

    @property
    def spec(self) -> DataSpec:
        shape = (3, self.image_size, self.image_size)
        return DataSpec(f"{self.target_shape}s", shape, source=DataSpec(f"{self.source_shape}s", shape))

    def load(self) -> dict[str, Packed]:
        starts = {"test": 0, "val": self.num_test, "train": 2 * self.num_test}
        lengths = {"test": self.num_test, "val": self.num_test, "train": self.num_train}
        return {name: self._pairs(np.arange(lengths[name]) + start, name) for name, start in starts.items()}

    def training_items(self, epoch: int) -> Items:
        train = self.split("train")
        moves = self.moves(len(train), epoch)
        if self.paired:
            return Items(train, moves)
        rows = deal(len(train), len(train), self.drawing_seed, epoch)
        return Items(Packed({"image": train["image"], "source": train["source"][rows]}), moves)

    def preprocessing(self) -> dict[str, Any]:
        return {"source_shape": self.source_shape, "target_shape": self.target_shape, "paired": self.paired}

    def _pairs(self, index: np.ndarray, split: str) -> Packed:
        together = self.paired or split != "train"
        image, chosen = self._pictures(self.target_shape, index)
        source, _ = self._pictures(self.source_shape, index if together else index + self.num_train)
        return Packed({"image": image, "source": source, "factors": chosen})

    def _pictures(self, shape: str, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns pictures of one shape, in every colour, place and size in turn, and their factors."""
        chosen = factors(index)
        chosen[:, _SHAPE] = SHAPES.index(shape)
        parts = [
            render(chosen[start : start + _CHUNK], index[start : start + _CHUNK], self.image_size)
            for start in range(0, len(index), _CHUNK)
        ]
        return np.concatenate(parts), chosen
