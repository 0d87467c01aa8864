"""Any folder, zip or tar of images."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from genlab.data.base import DataModule, require_share, seeded_split
from genlab.data.decode import Policy
from genlab.data.packed import Packed, pack
from genlab.data.sources import BadSource, Source, open_source
from genlab.shapes import DataSpec


class ImageFolder(DataModule):
    """Images of a folder, a zip or a tar, cut to the centred square and resized.

    Sub-folders are classes where every image lies in one, exactly one level down. The split is drawn by
    `seed`, stratified by class; there is none for validation, so that "val" is the test split.

    Args:
        path: Folder, zip or tar; nothing is unpacked.
        image_size: Side of the images in pixels.
        channels: 1 (grey) or 3 (RGB).
        num_test: Images kept for the test; None means test_fraction of all.
        test_fraction: Share kept for the test.
        labelled: Use class sub-folders; False gives images without labels.
        background: Colour under transparent pixels.
        base: Arguments that every data set has.

    Shapes:
        batch["image"]: (batch, channels, image_size, image_size).
    """

    def __init__(
        self,
        path: str,
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
        self.path, self.image_size = path, image_size
        self.policy = Policy(image_size, channels, background)
        self.num_test, self.test_fraction, self.labelled = num_test, test_fraction, labelled

    @cached_property
    def source(self) -> Source:
        """The images' place, opened once."""
        source = self.open()
        if self.labelled and source.labels is None:
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
        packed = pack(self.source, self.policy, Path(self.path).stem, self.cache)
        if not self.labelled:
            packed = Packed({"image": packed["image"]})
        return self.drawn_split(packed)

    def drawn_split(self, packed: Packed) -> dict[str, Packed]:
        """Returns the training and test split drawn by `seed`."""
        return seeded_split(packed, self.num_held_out(len(packed)), self.seed)

    def num_held_out(self, num: int) -> int:
        """Returns how many of the images are kept for the test."""
        num_test = round(self.test_fraction * num) if self.num_test is None else self.num_test
        if not 1 <= num_test < num:
            raise ValueError(
                f"num_test must leave images for both splits, got {num_test} of {num} images of {self.path}; "
                "set --data.num_test."
            )
        return num_test

    def preprocessing(self) -> dict[str, Any]:
        return self.policy.to_dict()

    def _refuse_split_folders(self, source: Source) -> None:
        tops = sorted({name.split("/")[0] for name in source.names if "/" in name})
        if "train" in tops:
            raise BadSource(
                f"{self.path} holds the folders {', '.join(tops)}, which are splits and not classes; use "
                f"--data.path {Path(self.path) / 'train'}, or --data.labelled false to take all as one set"
            )
