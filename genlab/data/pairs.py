"""Images with the images that they are to be made from: as pairs, or as two sets that belong together."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch

from genlab import randomness
from genlab.data.base import DataModule
from genlab.data.decode import Policy
from genlab.data.loading import Items
from genlab.data.packed import MappedRows, Packed, pack, part_of
from genlab.data.sources import SPLIT_FOLDERS, BadSource, Source, open_source, require_path, siblings
from genlab.data.splits import as_test, require_share, seeded_split, share_of
from genlab.shapes import DataSpec


class PairedImages(DataModule):
    """Pictures of an image and its source: two squares side by side in one file, or two files of one name.

    Sub-folders called train, val and test are the splits; a val without a test is the test split. Else the
    test split is drawn by `seed`.

    Args:
        path: Folder, zip or tar of the double pictures, or of the images where there are two places.
        source_path: Folder, zip or tar of the sources, which have the names of their images, endings apart.
        image_size: Side of an image and of its source in pixels.
        side: Which square of a double picture is the image; the other one is its source.
        channels: 1 (grey) or 3 (RGB).
        test_fraction: Share that is held out where there are no sub-folders.
        base: Arguments that every data set has.

    Shapes:
        batch["image"], batch["source"]: (batch, channels, image_size, image_size).
    """

    def __init__(
        self,
        path: str = "",
        source_path: str | None = None,
        image_size: int = 64,
        side: Literal["left", "right"] = "left",
        channels: int = 3,
        test_fraction: float = 0.1,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        require_path(path, "a folder, a zip or a tar of images")
        require_share(test_fraction)
        self.path, self.source_path, self.side = path, source_path, side
        self.policy = Policy(image_size, channels, panels=2 if source_path is None else 1)
        self.test_fraction = test_fraction

    @property
    def spec(self) -> DataSpec:
        return _pair_spec(self.path, self.policy)

    @cached_property
    def images(self) -> Source:
        """The images' place, or the double pictures'."""
        return open_source(self.path)

    def load(self) -> dict[str, Packed]:
        double = self.source_path is None
        packed, names = self._halves() if double else self._matched(open_source(str(self.source_path)))
        parts = np.array(_splits_of(names))
        if set(parts) == {""}:
            return _drawn(packed, self.test_fraction, self.seed)
        _require_splits(self.path, names, parts.tolist())
        return as_test({name: packed.take(np.flatnonzero(parts == name)) for name in sorted({*parts})})

    def preprocessing(self) -> dict[str, Any]:
        return {**self.policy.to_dict(), **({"side": self.side} if self.source_path is None else {})}

    def _halves(self) -> tuple[Packed, list[str]]:
        both = pack(self.images, self.policy, Path(self.path).stem, self.cache)["image"]
        size = both.shape[-1] // 2
        left, right = part_of(both, slice(0, size)), part_of(both, slice(size, 2 * size))
        image, source = (left, right) if self.side == "left" else (right, left)
        return Packed({"image": image, "source": source}), self.images.names

    def _matched(self, sources: Source) -> tuple[Packed, list[str]]:
        rows, source_rows = matching(self.images, sources)
        packs = [pack(place, self.policy, place.path.stem, self.cache) for place in (self.images, sources)]
        image, source = packs[0].take(rows)["image"], packs[1].take(source_rows)["image"]
        return Packed({"image": image, "source": source}), [self.images.names[row] for row in rows]


def matching(images: Source, sources: Source) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of two places whose names are equal but for the ending, in the order of the first.

    Raises:
        BadSource: Where an image has no source or a source no image, with the first five names.
    """
    first, second = _by_stem(images), _by_stem(sources)
    alone = [f"{images.path.name}/{first[name][0]}" for name in first if name not in second]
    alone += [f"{sources.path.name}/{second[name][0]}" for name in second if name not in first]
    if alone:
        more = f" and {len(alone) - 5} more" if len(alone) > 5 else ""
        raise BadSource(
            f"{len(alone)} images of {images.path} and {sources.path} have no partner of the same name: "
            f"{', '.join(alone[:5])}{more}; remove them or give them one"
        )
    return np.array([first[name][1] for name in first]), np.array([second[name][1] for name in first])


def _by_stem(source: Source) -> dict[str, tuple[str, int]]:
    found: dict[str, tuple[str, int]] = {}
    for row, name in enumerate(source.names):
        stem = str(PurePosixPath(name).with_suffix(""))
        if stem in found:
            raise BadSource(f"{source.path} holds both {found[stem][0]} and {name}; a pair needs one of them")
        found[stem] = name, row
    return found


def _splits_of(names: list[str]) -> list[str]:
    """Returns the split that each name lies in by its folders, "" for those in none."""
    folders = [PurePosixPath(name).parts[:-1] for name in names]
    splits = [[SPLIT_FOLDERS.get(part.lower(), "") for part in parts] for parts in folders]
    return [next(filter(None, found), "") for found in splits]


def _require_splits(path: str, names: list[str], parts: list[str]) -> None:
    outside = [name for name, part in zip(names, parts, strict=True) if not part]
    if outside:
        raise BadSource(
            f"{path} holds folders of splits, but {len(outside)} pictures outside of these, such as "
            f"{outside[0]}; move them into one"
        )
    if not {"val", "test"} & set(parts) or "train" not in parts:
        found = ", ".join(sorted(set(parts)))
        raise BadSource(f"{path} needs a folder train and one of val and test, and holds {found}")


def _drawn(packed: Packed, test_fraction: float, seed: int) -> dict[str, Packed]:
    return seeded_split(packed, share_of(len(packed), test_fraction, "images", "test"), seed)


def _pair_spec(path: str, policy: Policy) -> DataSpec:
    shape = (policy.channels, policy.image_size or 0, policy.image_size or 0)
    name = Path(path).stem
    return DataSpec(name, shape, source=DataSpec(f"{name} source", shape))


class UnpairedImages(DataModule):
    """Two sets of images without pairs, such as paintings and photographs.

    In training, the sources are dealt to the images anew in each epoch, by (seed, epoch), each equally often
    to within one. An epoch has as many items as there are images; of more sources, each takes others. For
    scoring, image i has source i, from the first one again where there are fewer.

    Folders called train... (trainA) have their other splits beside them (testA, valA) where both have; else
    the test splits are drawn by `seed`. Validation items are cut from both sides.

    Args:
        path: Folder, zip or tar of the images.
        source_path: Folder, zip or tar of what is to become such images.
        image_size: Side of both in pixels.
        channels: 1 (grey) or 3 (RGB).
        test_fraction: Share of both that is held out where no folder is.
        base: Arguments that every data set has.

    Shapes:
        batch["image"], batch["source"]: (batch, channels, image_size, image_size).
    """

    def __init__(
        self,
        path: str = "",
        source_path: str = "",
        image_size: int = 64,
        channels: int = 3,
        test_fraction: float = 0.1,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        require_path(path, "a folder, a zip or a tar of images")
        require_path(source_path, "a folder, a zip or a tar of what is to become such images", "source_path")
        require_share(test_fraction)
        self.path, self.source_path, self.test_fraction = path, source_path, test_fraction
        self.policy = Policy(image_size, channels)

    @property
    def spec(self) -> DataSpec:
        return _pair_spec(self.path, self.policy)

    @cached_property
    def sides(self) -> tuple[dict[str, Packed], dict[str, Packed]]:
        """The splits of the images and of the sources, each in its own order and number."""
        return self._side(self.path, self.source_path), self._side(self.source_path, self.path)

    def load(self) -> dict[str, Packed]:
        images, sources = self.sides
        return {
            name: _side_by_side(images[name], sources[name], np.arange(len(images[name]))) for name in images
        }

    def reversed_split(self, name: str) -> Packed:
        images, sources = self.sides
        return _side_by_side(sources[name], images[name], np.arange(len(sources[name])))

    def training_items(self, epoch: int) -> Items:
        train, sources = self.split("train"), self.sides[1]["train"]
        dealt = _side_by_side(train, sources, deal(len(train), len(sources), self.drawing_seed, epoch))
        return Items(dealt, self.moves(len(train), epoch))

    def preprocessing(self) -> dict[str, Any]:
        counts = {name: len(part) for name, part in self.sides[1].items()}
        return {**self.policy.to_dict(), "sources": counts}

    def _side(self, path: str, other: str) -> dict[str, Packed]:
        train, beside = self._packed(path), siblings(Path(path).expanduser())
        both = beside.keys() & siblings(Path(other).expanduser()).keys()
        held_out = as_test({name: self._packed(beside[name]) for name in sorted(both)})
        if "test" not in held_out:
            return self.validated(_drawn(train, self.test_fraction, self.seed))
        return self.validated({"train": train, **held_out})

    def _packed(self, path: str | Path) -> Packed:
        return Packed({"image": pack(open_source(path), self.policy, Path(path).stem, self.cache)["image"]})


def deal(num: int, num_sources: int, seed: int, epoch: int) -> np.ndarray:
    """Returns the source of each of `num` items in an epoch: all sources in a drawn order, and so on."""
    numbers = torch.arange(num_sources)
    draws = [
        randomness.uniform(randomness.key(seed, "sources", epoch, round_), numbers, 1)[:, 0]
        for round_ in range(-(-num // num_sources))
    ]
    return torch.cat([draw.argsort(stable=True) for draw in draws])[:num].numpy()


def _side_by_side(images: Packed, sources: Packed, rows: np.ndarray) -> Packed:
    source: Any = sources["image"]
    rows = rows % len(sources)
    taken = source.take(rows) if isinstance(source, MappedRows) else source[rows]
    return Packed({"image": images["image"], "source": taken})
