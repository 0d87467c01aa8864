"""The handwritten digits that come with scikit-learn: small enough to train on anywhere, with no download."""

from __future__ import annotations

import numpy as np

from genlab.data.base import DataModule
from genlab.data.packed import Packed
from genlab.data.splits import seeded_split
from genlab.shapes import DataSpec

NUM_TEST = 797
_SPLIT_SEED = 1797  # fixed: every family and every run is scored on the same digits


class Digits(DataModule):
    """1,797 digits of 8x8 pixels with 17 grey levels: 900 for training, 100 for validation, 797 for the test.

    The splits are stratified by digit, fixed, and independent of `seed`. Kaynak 1995, UCI "Optical
    recognition of handwritten digits".

    Shapes:
        batch["image"]: (batch, 1, 8, 8), levels 0 ... 16.
    """

    licence = "CC BY 4.0 (UCI Machine Learning Repository)"

    @property
    def spec(self) -> DataSpec:
        return DataSpec("digits", (1, 8, 8), num_classes=10, levels=17)

    def load(self) -> dict[str, Packed]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = digits.images.astype(np.uint8)[:, None]
        packed = Packed({"image": images, "label": digits.target.astype(np.int64)})
        return seeded_split(packed, NUM_TEST, _SPLIT_SEED)
