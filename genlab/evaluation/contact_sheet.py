"""What was read of some data as one picture: images of every split and class, with what is known of each."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from genlab.data.base import SPLITS, DataModule
from genlab.data.check import counted
from genlab.data.decode import BadImage, Policy, decode
from genlab.data.loading import spread
from genlab.data.sources import Source
from genlab.errors import DataError
from genlab.evaluation.pictures import LEGIBLE_SIDE, as_colour, captioned, joined, texts

Kind = tuple[str, str]
"""Split and class of an image, "" where it has none."""


@dataclass
class Sheet:
    """A contact sheet.

    Attributes:
        counts: How many images there are of each kind, shown or not.
        items: What is shown: an image and what is said of it.
        bad: What could not be read, with the reason.

    Shapes:
        an image: (height, width, 3), uint8.
    """

    counts: Counter[Kind]
    items: list[tuple[np.ndarray, str]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def picture(self) -> np.ndarray:
        """Returns all as one picture, each image in a square above its caption, (height, width, 3)."""
        tiles = torch.from_numpy(np.stack([_tile(image) for image, _ in self.items]))
        return captioned(tiles.permute(0, 3, 1, 2), [caption for _, caption in self.items])

    def lines(self) -> list[str]:
        """Returns how many images each split and each class has, as lines for a person."""
        splits, classes = Counter[str](), Counter[str]()
        for (split, label), num in self.counts.items():
            splits[split] += num
            classes[label] += num
        named = [("splits", splits), ("classes", classes)]
        return [
            line
            for title, found in named
            for line in counted(title, {k: f"{n:,}" for k, n in found.items() if k})
        ]


def chosen(kinds: Sequence[Hashable], num: int) -> list[int]:
    """Returns which items stand for all: of each kind in turn, evenly spaced over it, kind by kind."""
    members: dict[Hashable, list[int]] = defaultdict(list)
    for place, kind in enumerate(kinds):
        members[kind].append(place)
    ranked = sorted((rank, turn) for turn, rows in enumerate(members.values()) for rank in range(len(rows)))
    shares = Counter(turn for _, turn in ranked[:num])
    return [
        rows[place]
        for turn, rows in enumerate(members.values())
        for place in spread(len(rows), shares[turn]).tolist()
    ]


def of_source(source: Source, num: int) -> Sheet:
    """Returns a sheet of files as they are, before anything is cut or resized."""
    labels = [source.classes[label] for label in source.labels or []] or [""] * len(source)
    kinds = list(zip(source.parts or [""] * len(source), labels, strict=True))
    sheet = Sheet(Counter(sorted(kinds)))
    for row in chosen(kinds, num):
        try:
            pixels = decode(source.read(row), source.names[row], Policy(None)).pixels
        except BadImage as error:
            sheet.bad.append(str(error))
            sheet.items.append((np.full((8, 8, 3), (200, 0, 0), np.uint8), str(error)))
            continue
        told = source.captions[row][:1] if source.captions else []
        size = f"{pixels.shape[2]}x{pixels.shape[1]}"
        sheet.items.append((pixels.transpose(1, 2, 0), _said(*kinds[row], size, *told)))
    return sheet


def of_data(data: DataModule, num: int) -> Sheet:
    """Returns a sheet of what a model is trained, validated and tested on; sources stand at the left.

    Raises:
        DataError: The data are no images.
    """
    if data.spec.kind != "image":
        raise DataError(f"{data.spec.name} holds no images: genlab data check PATH looks at texts.")
    splits = [name for name in SPLITS if name != "val" or data.val_fraction > 0.0]
    parts = {name: data.split(name) for name in splits}
    names = list(getattr(getattr(data, "source", None), "classes", []))
    places, kinds = [], list[Kind]()
    for split, part in parts.items():
        labels = part.get("label")
        for row in range(len(part)):
            label = "" if labels is None else str(names[labels[row]] if names else labels[row])
            places.append((split, row))
            kinds.append((split, label))
    sheet = Sheet(Counter(kinds))
    for place in chosen(kinds, num):
        split, row = places[place]
        sheet.items.append(_item(data, parts[split], row, kinds[place]))
    return sheet


def _item(data: DataModule, part: Any, row: int, kind: Kind) -> tuple[np.ndarray, str]:
    spec, rows = data.spec, np.array([row])
    pixels, told = _pixels(part["image"][rows], spec.levels), []
    source = part.get("source")
    if spec.source is not None and source is not None and spec.source.kind == "tokens":
        told = texts(torch.from_numpy(np.asarray(source[rows])), spec.source)
    elif spec.source is not None and source is not None and spec.source.kind == "image":
        pixels = joined([_pixels(source[rows], spec.source.levels), pixels], axis=1, gap=2)
    return pixels, _said(*kind, f"{spec.shape[2]}x{spec.shape[1]}", *told)


def _pixels(images: Any, levels: int) -> np.ndarray:
    tensor: Tensor = torch.from_numpy(np.asarray(images))
    return as_colour(tensor, levels)[0].permute(1, 2, 0).numpy()


def _said(split: str, label: str, size: str, *told: str) -> str:
    return ", ".join(filter(None, (label, size, split, *told)))


def _tile(image: np.ndarray) -> np.ndarray:
    """Returns an image in the middle of a grey square; a small one is enlarged without smoothing."""
    height, width = image.shape[:2]
    scale = LEGIBLE_SIDE / max(height, width)
    small = Image.fromarray(np.ascontiguousarray(image))
    way = Image.Resampling.NEAREST if scale > 1.0 else Image.Resampling.BICUBIC
    small = small.resize((max(1, round(width * scale)), max(1, round(height * scale))), way)
    tile = Image.new("RGB", (LEGIBLE_SIDE, LEGIBLE_SIDE), (230, 230, 230))
    tile.paste(small, ((LEGIBLE_SIDE - small.width) // 2, (LEGIBLE_SIDE - small.height) // 2))
    return np.asarray(tile)
