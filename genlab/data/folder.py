"""Any folder, zip or tar of images."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from genlab.data.base import DataModule
from genlab.data.decode import Policy
from genlab.data.packed import Packed, pack
from genlab.data.sources import BadSource, Source, open_source
from genlab.data.splits import LEAST, as_test, require_share, seeded_split, share_of
from genlab.shapes import DataSpec


class ImageFolder(DataModule):
    """Images of a folder, a zip or a tar, cut to the centred square and resized.

    Folders called train (training), val (valid, validation) and test (testing) at the top are the splits; a
    val without a test is the test split. Else the test split is drawn by `seed`, stratified by class, and
    images of equal pixels stay on one side. Sub-folders are classes where every image lies in one, exactly
    one level down.

    Args:
        path: Folder, zip or tar; nothing is unpacked.
        image_size: Side of the images in pixels.
        channels: 1 (grey) or 3 (RGB).
        num_test: Images kept for the test where no folder is; None means test_fraction of all.
        test_fraction: Share kept for the test where no folder is.
        labelled: Use class sub-folders; False gives images without labels.
        background: Colour under transparent pixels.
        base: Arguments that every data set has.

    Shapes:
        batch["image"]: (batch, channels, image_size, image_size).
    """

    def __init__(
        self,
        path: str = "",
        image_size: int = 64,
        channels: int = 3,
        num_test: int | None = None,
        test_fraction: float = 0.1,
        labelled: bool = True,
        background: str = "white",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        require_share(test_fraction)
        if num_test is not None and num_test < LEAST:
            raise ValueError(f"num_test must be at least {LEAST} for a covariance, got {num_test}.")
        self.path, self.image_size = path, image_size
        self.policy = Policy(image_size, channels, background)
        self.num_test, self.test_fraction, self.labelled = num_test, test_fraction, labelled

    @cached_property
    def source(self) -> Source:
        """The images' place, opened once."""
        source = self.open()
        if self.labelled and source.labels is None and source.parts is None:
            self._refuse_split_folders(source)
        return source

    def open(self) -> Source:
        """Returns the images' place."""
        return open_source(self.path)

    @property
    def spec(self) -> DataSpec:
        shape = (self.policy.channels, self.image_size, self.image_size)
        num_classes = len(self.source.classes) if self.labelled else 0
        return DataSpec(Path(self.path).stem, shape, num_classes)

    def load(self) -> dict[str, Packed]:
        columns = {"image": pack(self.source, self.policy, Path(self.path).stem, self.cache)["image"]}
        if self.labelled and self.source.labels is not None:
            columns["label"] = np.asarray(self.source.labels, np.int64)
        return self.split_images(Packed(columns))

    def split_images(self, packed: Packed) -> dict[str, Packed]:
        """Returns the splits that the folders name, else a training and a test split drawn by `seed`."""
        if self.source.parts is None:
            return self.drawn_split(packed)
        parts = np.array(self.source.parts)
        return as_test({name: packed.take(np.flatnonzero(parts == name)) for name in sorted({*parts})})

    def drawn_split(self, packed: Packed) -> dict[str, Packed]:
        """Returns the training and test split drawn by `seed`."""
        return seeded_split(packed, self.num_held_out(len(packed)), self.seed)

    def num_held_out(self, num: int) -> int:
        """Returns how many of the images are kept for the test."""
        if self.num_test is None:
            return share_of(num, self.test_fraction, "images", "test")
        if self.num_test >= num:
            raise BadSource(
                f"{num} images of {self.path} are too few for --data.num_test {self.num_test}; keep fewer "
                "for the test."
            )
        return self.num_test

    def preprocessing(self) -> dict[str, Any]:
        return self.policy.to_dict()

    def _refuse_split_folders(self, source: Source) -> None:
        tops = sorted({name.split("/")[0] for name in source.names if "/" in name})
        if "train" in tops:
            raise BadSource(
                f"{self.path} holds the folders {', '.join(tops)}, which are splits and not classes; use "
                f"--data.path {Path(self.path) / 'train'}, or --data.labelled false to take all as one set"
            )
