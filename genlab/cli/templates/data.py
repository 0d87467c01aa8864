"""Own data: their shape, and arrays of them. Beside it lies an experiment that learns them.

genlab fit --config genlab/cli/templates/data.yaml --allow genlab.cli.templates
"""

from __future__ import annotations

from typing import Any

import numpy as np

from genlab.data.base import DataModule
from genlab.data.packed import Packed
from genlab.data.splits import seeded_split
from genlab.shapes import DataSpec

NUM_TEST = 797


class NewData(DataModule):
    """The digits of scikit-learn in ink and paper, two levels.

    Put your own arrays in the place of these digits: `load` is called once, and batches, splits, labels and
    fingerprints follow from what it returns.

    Args:
        threshold: Grey level, of 0 ... 16, from which a pixel is ink.
        data: Arguments of all data: batch_size, val_fraction, flip.

    Shapes:
        batch["image"]: (batch, 1, 8, 8), levels 0 and 1.

    Raises:
        ValueError: If all pixels would be ink.
    """

    licence = "CC BY 4.0"  # what the data may be used for, which a model card says

    def __init__(self, threshold: int = 8, **data: Any) -> None:
        super().__init__(**data)
        if not 1 <= threshold <= 16:
            raise ValueError(f"threshold must be in 1 ... 16, got {threshold}.")
        self.threshold = threshold

    @property
    def spec(self) -> DataSpec:
        return DataSpec("inked digits", (1, 8, 8), num_classes=10, levels=2)

    def load(self) -> dict[str, Packed]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = (digits.images >= self.threshold).astype(np.uint8)[:, None]  # (1797, 1, 8, 8), levels
        packed = Packed({"image": images, "label": digits.target.astype(np.int64)})
        # {"train": ..., "test": ...}; a tenth of "train" becomes "val" unless it is given, too.
        return seeded_split(packed, NUM_TEST, seed=0)

    def preprocessing(self) -> dict[str, Any]:
        return {"threshold": self.threshold}  # kept in the run's record
