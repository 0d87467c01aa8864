"""Squares cut out of a few large images of different sizes, with what a degradation leaves of them."""

from __future__ import annotations

import hashlib
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genlab import randomness
from genlab.data.base import DataModule
from genlab.data.decode import Policy, decode
from genlab.data.degraded import Degradation
from genlab.data.loading import Items
from genlab.data.packed import Packed
from genlab.data.sources import BadSource, open_source, require_path
from genlab.data.splits import FIXED, as_test, drawn, others, require_share, share_of, together
from genlab.shapes import DataSpec

_SYMMETRIES = 8  # of the square: four turns, each of them mirrored or not

Squares = np.ndarray
"""One row a square: number of the image, top, left and symmetry, in pixels of the degraded image."""


class Patches(DataModule):
    """Squares of whole images, each with the same square of what a degradation leaves of the whole image.

    The whole image is degraded before squares are cut, as it is where it is scored, so that no square has a
    border of its own. Whole images are held out: no square of a validation image is learned from.

    Folders called train, val and test are the splits; a val without a test is the test split. Else the test
    images are drawn by `seed`. Images of equal pixels stay on one side. Those smaller than a square are left
    out, and all are kept in memory.

    Args:
        path: Folder, zip or tar.
        degradation: What is lost of an image: Small for super-resolution, Grey, Edges or Masked.
        patch_size: Side of a square in pixels.
        channels: 1 (grey) or 3 (RGB).
        test_fraction: Share of the images that is held out where there are no folders.
        fresh: Draw other squares in each epoch, as many as lie side by side in the images, each in one of the
            square's eight symmetries. Else these side by side, always the same, which the other splits have.
        base: Arguments that every data set has; val_fraction is a share of the images.

    Shapes:
        batch["image"]: (batch, channels, patch_size, patch_size).
        batch["source"]: (batch, *degradation.shape(image)).
    """

    things = "patches"

    def __init__(
        self,
        degradation: Degradation,
        path: str = "",
        patch_size: int = 96,
        channels: int = 3,
        test_fraction: float = 0.1,
        fresh: bool = True,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        require_path(path, "a folder, a zip or a tar of images")
        require_share(test_fraction)
        if fresh and self.fraction < 1.0:
            raise ValueError(
                f"fraction {self.fraction} means few data, but fresh cuts new squares in each epoch; "
                "use --data.fresh false."
            )
        self.path, self.degradation, self.patch_size = path, degradation, patch_size
        self.policy = Policy(None, channels)
        self.test_fraction, self.fresh = test_fraction, fresh
        degradation.shape((channels, patch_size, patch_size))

    @property
    def spec(self) -> DataSpec:
        name, lost = Path(self.path).stem, type(self.degradation).__name__.lower()
        shape = (self.policy.channels, self.patch_size, self.patch_size)
        source = DataSpec(f"{name} {lost}", self.degradation.shape(shape))
        return DataSpec(f"{name}-{lost}", shape, source=source)

    @cached_property
    def pictures(self) -> dict[str, list[np.ndarray]]:
        """The whole images of every split, (channels, height, width) each."""
        source = open_source(self.path)
        pictures = [decode(source.read(i), name, self.policy).pixels for i, name in enumerate(source.names)]
        parts = np.array(source.parts) if source.parts is not None else self._drawn_parts(pictures)
        found = as_test({name: [pictures[row] for row in np.flatnonzero(parts == name)] for name in {*parts}})
        if "val" not in found and self.val_fraction:
            train = found["train"]
            rows = _held_out(
                train, share_of(len(train), self.val_fraction, "images", "validation"), FIXED, "validation"
            )
            found["val"] = [train[row] for row in rows]
            found["train"] = [train[row] for row in others(rows, len(train))]
        return {name: self._large_enough(found[name]) for name in sorted(found)}

    @cached_property
    def halves(self) -> dict[str, tuple[list[np.ndarray], list[np.ndarray]]]:
        """The images of every split, and what is left of each."""
        return {name: self._degraded(pictures) for name, pictures in self.pictures.items()}

    def load(self) -> dict[str, Packed]:
        return {name: self._cut(name, self.side_by_side(name)) for name in self.halves}

    def training_items(self, epoch: int) -> Items:
        train = self.split("train")
        cut = self._cut("train", self.draw(len(train), epoch)) if self.fresh else train
        return Items(cut, self.moves(len(train), epoch))

    def side_by_side(self, split: str) -> Squares:
        """Returns the squares that lie side by side in the images of a split, from the upper left corner."""
        side = self.patch_size // self.degradation.factor
        rows = []
        for number, (height, width) in enumerate(self._sizes(split)):
            tops, lefts = (np.arange(0, length - side + 1, side) for length in (height, width))
            rows += [(number, top, left, 0) for top in tops for left in lefts]
        return np.array(rows).reshape(-1, 4)

    def draw(self, num: int, epoch: int) -> Squares:
        """Returns the squares of an epoch, each equally probable at any place of any training image."""
        side = self.patch_size // self.degradation.factor
        places = self._sizes("train") - side + 1
        ends = places.prod(axis=1).cumsum()
        draws = randomness.uniform(
            randomness.key(self.drawing_seed, "patches", epoch), torch.arange(num), 2
        ).numpy()
        place = (draws[:, 0] * ends[-1]).astype(np.int64)
        number = np.searchsorted(ends, place, side="right")
        top, left = np.divmod(place - (ends - places.prod(axis=1))[number], places[number, 1])
        return np.stack([number, top, left, (draws[:, 1] * _SYMMETRIES).astype(np.int64)], axis=1)

    def preprocessing(self) -> dict[str, Any]:
        lost = {"degradation": type(self.degradation).__name__, **vars(self.degradation)}
        images = {name: len(pictures) for name, pictures in self.pictures.items()}
        return {**self.policy.to_dict(), "patch_size": self.patch_size, "images": images, **lost}

    def _cut(self, split: str, squares: Squares) -> Packed:
        images, sources = self.halves[split]
        side, factor = self.patch_size // self.degradation.factor, self.degradation.factor
        return Packed(
            {"image": Cuts(images, squares, side, factor), "source": Cuts(sources, squares, side, 1)}
        )

    def _sizes(self, split: str) -> np.ndarray:
        return np.array([source.shape[1:] for source in self.halves[split][1]]).reshape(-1, 2)

    def _degraded(self, pictures: list[np.ndarray]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        images, sources = [], []
        for number, picture in enumerate(pictures):
            image, source = degraded(torch.from_numpy(picture), self.degradation, number)
            images.append(image.numpy())
            sources.append(source.numpy())
        return images, sources

    def _drawn_parts(self, pictures: list[np.ndarray]) -> np.ndarray:
        rows = _held_out(
            pictures, share_of(len(pictures), self.test_fraction, "images", "test"), self.seed, "test"
        )
        parts = np.full(len(pictures), "train", dtype=object)
        parts[rows] = "test"
        return parts

    def _large_enough(self, pictures: list[np.ndarray]) -> list[np.ndarray]:
        kept = [picture for picture in pictures if min(picture.shape[1:]) >= self.patch_size]
        if len(kept) < len(pictures):
            warnings.warn(
                f"{len(pictures) - len(kept)} of {len(pictures)} images of {self.path} are smaller than "
                f"--data.patch_size {self.patch_size} and left out.",
                stacklevel=2,
            )
        if not kept:
            raise BadSource(
                f"{self.path} has no image of {self.patch_size} pixels or more in one of its splits; use a "
                "smaller --data.patch_size"
            )
        return kept


def degraded(picture: Tensor, degradation: Degradation, number: int = 0) -> tuple[Tensor, Tensor]:
    """Returns an image cut so that the degradation's factor divides its sides, and what is left of it.

    Args:
        picture: Levels, (channels, height, width); cut at the right and at the bottom.
        degradation: What is lost.
        number: Of the image, which draws may follow.
    """
    height, width = (side // degradation.factor * degradation.factor for side in picture.shape[1:])
    image = picture[:, :height, :width]
    degradation.shape(tuple(image.shape))
    return image, degradation(image[None], torch.tensor([number]), 256)[0]


class Cuts:
    """Squares of images, cut when they are asked for.

    Args:
        images: (channels, height, width) each, of different sizes.
        squares: Where they lie, for images whose sides are divided by factor.
        side: Of such a square.
        factor: Of these images.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, images: list[np.ndarray], squares: Squares, side: int, factor: int) -> None:
        self.images, self.squares, self.side, self.factor = images, squares, side, factor

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), self.images[0].shape[0], *2 * (self.factor * self.side,))

    def __len__(self) -> int:
        return len(self.squares)

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = self.squares[index]
        if rows.ndim == 1:
            return self._square(*rows.tolist())
        # A copy of each square is faster than one gather, whose indices are eight times as large as they.
        return np.stack([self._square(*row) for row in rows.tolist()])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def take(self, rows: np.ndarray) -> Cuts:
        return Cuts(self.images, self.squares[rows], self.side, self.factor)

    def _square(self, number: int, top: int, left: int, symmetry: int) -> np.ndarray:
        size, top, left = self.factor * self.side, self.factor * top, self.factor * left
        square = self.images[number][:, top : top + size, left : left + size]
        turned = np.rot90(square, symmetry % 4, axes=(1, 2))
        return turned[..., ::-1] if symmetry >= 4 else turned


def _held_out(pictures: list[np.ndarray], num: int, seed: int, split: str) -> np.ndarray:
    """Returns the rows of held-out images, ascending; of equal ones all or none."""
    seen: dict[tuple[int, ...], dict[bytes, int]] = {}
    first = [
        seen.setdefault(picture.shape, {}).setdefault(hashlib.sha256(picture.tobytes()).digest(), row)
        for row, picture in enumerate(pictures)
    ]
    return together(drawn(None, len(pictures), seed), np.array(first), num, split)
