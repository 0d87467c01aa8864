"""Any folder, zip or tar of images."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from genlab.data.base import DataModule
from genlab.data.chunks import WINDOW, ChunkRows, Chunks
from genlab.data.decode import Crop, Policy
from genlab.data.image_tables import label_by_table
from genlab.data.packed import Packed, Rows, WindowRows, pack
from genlab.data.sources import BadSource, Pack, Source, open_source
from genlab.data.splits import LEAST, as_test, require_share, seeded_split, share_of
from genlab.shapes import DataSpec


class ImageFolder(DataModule):
    """Images of a folder, a zip or a tar, cut to a square and resized.

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
        label_column: The column of labels.csv, metadata.csv or metadata.jsonl that holds the labels, in place
            of class sub-folders; see `image_tables`.
        background: Colour under transparent pixels.
        crop: "centre" cuts the centred square out; "random", in training, a square drawn anew in each epoch
            along the longer side, and the middle one wherever is scored; "none" squeezes the whole image into
            the square.
        stream: Read the chunks of a pack (`genlab data pack`), a few at a time, in place of one array that is
            made of all images: for what neither memory nor this disk holds.
        stream_window: Chunks that are mixed at a time in training; more mix better and take more memory.
        stream_cache_gib: Most GiB of copies of a remote pack's chunks on this disk; None keeps all.
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
        stream: bool = False,
        stream_window: int = WINDOW,
        stream_cache_gib: float | None = None,
        label_column: str | None = None,
        crop: Crop = "centre",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        require_share(test_fraction)
        if num_test is not None and num_test < LEAST:
            raise ValueError(f"num_test must be at least {LEAST} for a covariance, got {num_test}.")
        if label_column is not None and not (labelled and label_column):
            raise ValueError(
                f"label_column must name a column, of data that are labelled, got {label_column!r}."
            )
        if stream_window < 1:
            raise ValueError(f"stream_window must be at least 1 chunk, got {stream_window}.")
        if stream_cache_gib is not None and not stream_cache_gib > 0.0:
            raise ValueError(
                f"stream_cache_gib must be above 0, or null for no limit, got {stream_cache_gib}."
            )
        self.path, self.image_size = path, image_size
        self.stream, self.stream_window, self.stream_cache_gib = stream, stream_window, stream_cache_gib
        self.policy = Policy(image_size, channels, background, crop=crop)
        self.num_test, self.test_fraction = num_test, test_fraction
        self.labelled, self.label_column = labelled, label_column

    @cached_property
    def source(self) -> Source:
        """The images' place, opened once."""
        source = self.open()
        if self.label_column is not None:
            label_by_table(source, self.label_column)
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
        columns = {"image": self.pixels(Path(self.path).stem)}
        if self.labelled and self.source.labels is not None:
            columns["label"] = np.asarray(self.source.labels, np.int64)
        return self.split_images(Packed(columns))

    def pixels(self, name: str) -> np.ndarray | Rows:
        """Returns all images: as one array that is packed under a name, or as the chunks of a pack."""
        if isinstance(self.source, Pack):
            self._require_crop_of(self.source)
        if not self.stream:
            images = pack(self.source, self.policy, name, self.cache)["image"]
            self._require_longer_sides(images)
            return images
        if not isinstance(self.source, Pack):
            raise BadSource(
                f"{self.path} is not packed, and packs alone are streamed: genlab data pack {self.path} "
                f"-o FOLDER --image_size {self.image_size} --channels {self.policy.channels}, and give that "
                "--data.path FOLDER"
            )
        chunks = self.source.chunks
        for key, asked in self.policy.to_dict().items():
            if chunks.policy.get(key) != asked:
                raise BadSource(
                    f"{self.path} was packed with {key} {chunks.policy.get(key)}, not {asked}; ask for that, "
                    "pack anew, or leave --data.stream out"
                )
        chunks.keep = self.stream_window + 1
        if self.stream_cache_gib is not None:
            chunks.cache_bytes = self._cache_bytes(self.stream_cache_gib, chunks)
        return ChunkRows(chunks, self.stream_window)

    def _require_crop_of(self, source: Pack) -> None:
        """Refuses another square of packed images than the one that is left of them."""
        asked, packed = self.policy.crop, source.chunks.policy.get("crop", "centre")
        if asked != packed:
            raise BadSource(
                f"{self.path} was packed with crop {packed}, and holds nothing else of its images: give "
                f"--data.crop {packed}, or the images themselves for {asked}"
            )

    def _require_longer_sides(self, images: np.ndarray | Rows) -> None:
        if isinstance(images, WindowRows) and bool((np.abs(images.lengths) == self.image_size).all()):
            raise BadSource(
                f"all images of {self.path} are square, so that there is nothing to draw by --data.crop "
                "random; leave it out, or move images by --data.shift"
            )

    def _cache_bytes(self, gib: float, chunks: Chunks) -> int:
        """Returns the bytes of chunks that are kept: those that are mixed, or each would be copied often."""
        least = chunks.keep * max(size for _, size in chunks.files)
        if gib * 2**30 < least:
            raise ValueError(
                f"stream_cache_gib must be at least {least / 2**30:.3g}, the size of {chunks.keep} chunks, "
                f"for a stream_window of {self.stream_window}, got {gib:g}."
            )
        return int(gib * 2**30)

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
        labels = {} if self.label_column is None else {"label_column": self.label_column}
        return {**self.policy.to_dict(), **labels}

    def _refuse_split_folders(self, source: Source) -> None:
        tops = sorted({name.split("/")[0] for name in source.names if "/" in name})
        if "train" in tops:
            raise BadSource(
                f"{self.path} holds the folders {', '.join(tops)}, which are splits and not classes; use "
                f"--data.path {Path(self.path) / 'train'}, or --data.labelled false to take all as one set"
            )
