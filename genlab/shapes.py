"""The words that every room shares: what a batch holds, what a data set is, and how bytes become floats."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from typing import Any, Literal, Protocol, TypedDict

import torch
from torch import Tensor

from genlab.files import digest


class Batch(TypedDict, total=False):
    """What a data loader yields: what is modelled under one of the first three keys, and what is known of it.

    Shapes:
        image: (batch, channels, height, width); uint8 levels from the loader, float in [-1, 1] in a model.
        point: (batch, ...), float: vectors of the toy densities, or codes without levels.
        tokens: (batch, length + 1) for a text of shape (length,): column 0 is the token before, only ever an
            input, the last one only ever a target, and `IGNORED` fills up short rows. (batch, height, width)
            for a map of codes. int64 numbers of a vocabulary.
        source: What the model is told beside it, of the form of `DataSpec.source`: an image to translate, or
            the tokens of a sentence, filled up with its vocabulary's "pad". Images become floats as the
            modelled ones do.
        code: (batch, ...), what a first stage makes of the image, where it is known already.
        label: (batch,), int64 class number.
        index: (batch,), int64 position in the split.
        flip: (batch,), bool: images to mirror, with their sources, decided by the loader so that a resumed
            run repeats it.
        shift: (batch, 2), int64: pixels to move images down and to the right, with their sources; likewise.
    """

    image: Tensor
    point: Tensor
    tokens: Tensor
    source: Tensor
    code: Tensor
    label: Tensor
    index: Tensor
    flip: Tensor
    shift: Tensor


Kind = Literal["image", "point", "tokens"]

IGNORED = -1
"""What fills up a row of `tokens`: never counted as a target; as an input it may be any token."""

_UNITS = {"image": "img", "point": "pt", "tokens": "tok"}


class DataSpec:
    """What a model must know of a data set before it can be built.

    Not a dataclass: the command line's parser would take one apart into options.

    Args:
        name: The data set's name, for titles and tables.
        shape: (channels, height, width) of an image, (dimensions,) of a vector, (length,) of a text,
            (height, width) of a map of codes.
        num_classes: Number of labels, 0 where there are none.
        levels: Number of values of a pixel (256 for bytes, 17 for the embedded digits) or of a token (the
            vocabulary's size); 0 for continuous data.
        source: What each item comes with and a model may be told: the image to translate, the sentence.
        vocabulary: A tokenizer as JSON (`data.tokenizers`), for tokens that stand for text; "" for others.
    """

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        num_classes: int = 0,
        levels: int = 256,
        source: DataSpec | dict[str, Any] | None = None,
        vocabulary: str = "",
    ) -> None:
        self.name = name
        self.shape = tuple(int(size) for size in shape)
        self.num_classes = num_classes
        self.levels = levels
        self.source = DataSpec(**source) if isinstance(source, dict) else source
        self.vocabulary = vocabulary

    @property
    def kind(self) -> Kind:
        """What is modelled: an "image" (levels on a grid of channels), "tokens" (other levels), a "point"."""
        if not self.levels:
            return "point"
        return "image" if self.is_grid else "tokens"

    @property
    def is_grid(self) -> bool:
        """Whether there are channels on a plane, which convolutions walk over; bounded or not."""
        return len(self.shape) == 3

    @property
    def unit(self) -> str:
        """The unit that examples are counted in, as people read it: img, pt, tok or pairs."""
        return "pairs" if self.source is not None else _UNITS[self.kind]

    @property
    def units(self) -> int:
        """How many units one item counts for: the tokens of a window of text, else one."""
        return math.prod(self.shape) if self.unit == "tok" else 1

    @property
    def padding(self) -> int:
        """The token that fills up short rows, -1 where the vocabulary has none."""
        return int(json.loads(self.vocabulary).get("pad", -1)) if self.vocabulary else -1

    def told(self, given: Collection[str]) -> DataSpec:
        """Returns the same data with the named conditions only ("label", "source"), as networks see them."""
        return DataSpec(
            self.name,
            self.shape,
            self.num_classes if "label" in given else 0,
            self.levels,
            self.source if "source" in given else None,
            self.vocabulary,
        )

    def coded(self, shape: Sequence[int], levels: int) -> DataSpec:
        """Returns the codes of these data: a map of numbers, or of vectors where levels is 0.

        Each comes with the label and the source of its item, which a second stage may be told.
        """
        return DataSpec(f"codes of {self.name}", shape, self.num_classes, levels, self.source)

    def unconditional(self) -> DataSpec:
        """Returns the same data without any condition; networks condition wherever there is one."""
        return self.told(())

    def reversed(self) -> DataSpec:
        """Returns the data of the way back: what comes as the source is made, from what was made.

        Raises:
            ValueError: There is no source.
        """
        if self.source is None:
            raise ValueError(f"{self.name} has no source, and so no way back.")
        made = self.source
        return DataSpec(made.name, made.shape, 0, made.levels, self.unconditional(), made.vocabulary)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values that `DataSpec(**values)` reads back; what is absent is left out."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "levels": self.levels,
            **({} if self.source is None else {"source": self.source.to_dict()}),
            **({"vocabulary": self.vocabulary} if self.vocabulary else {}),
        }

    def summary(self) -> dict[str, Any]:
        """Returns plain values for a record, a vocabulary by its digest."""
        values = self.to_dict()
        if self.vocabulary:
            values["vocabulary"] = digest(self.vocabulary, 16)
        if self.source is not None:
            values["source"] = self.source.summary()
        return values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DataSpec) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.name, self.shape, self.num_classes, self.levels, self.source, self.vocabulary))

    def __repr__(self) -> str:
        source = "" if self.source is None else f", source={self.source!r}"
        return (
            f"DataSpec({self.name!r}, {self.shape}, num_classes={self.num_classes}, "
            f"levels={self.levels}{source})"
        )


class Judge(Protocol):
    """Says what of an image is as its source says, where that can be known without a network."""

    def marks(self, images: Tensor, source: Tensor) -> dict[str, Tensor]:
        """Returns by attribute, and by "all", 1 for right, 0 for wrong and -1 for not said, (batch,), int8.

        Shapes:
            images: (batch, channels, height, width), bytes or floats in [-1, 1].
            source: (batch, ...), of the form of `DataSpec.source`.
        """

    def is_unseen(self, source: Tensor) -> Tensor:
        """Returns whether each source combines what is never together in training, (batch,), bool."""

    def protocol(self) -> dict[str, Any]:
        """Returns the settings that the marks depend on."""


def observed(batch: Batch) -> Tensor:
    """Returns what a generative model learns from: the images, the points or the tokens."""
    for kind in _UNITS:
        if kind in batch:
            return batch[kind]  # type: ignore[literal-required]
    raise ValueError(f"A batch holds one of {', '.join(_UNITS)}; this one has {', '.join(batch)}.")


def predicted(tokens: Tensor) -> Tensor:
    """Returns the tokens of a batch that a model is to predict: all of maps, all but the first of texts."""
    return tokens if tokens.dim() == 3 else tokens[:, 1:]


def to_float(levels: Tensor, num_levels: int = 256) -> Tensor:
    """Maps level k of 0 ... num_levels - 1 to 2 k / (num_levels - 1) - 1, a float in [-1, 1]."""
    return levels.float().mul(2.0 / (num_levels - 1)).sub_(1.0)


def to_levels(x: Tensor, num_levels: int = 256) -> Tensor:
    """Maps floats in [-1, 1] to the nearest of num_levels levels, as uint8; values outside are clipped.

    Rounds: truncation would darken every generated image by half a level and break the round trip of
    a quarter of the 256 levels.
    """
    scaled = x.float().add(1.0).mul_((num_levels - 1) / 2.0)
    return scaled.round_().clamp_(0, num_levels - 1).to(torch.uint8)


def levels_to_bytes(levels: Tensor, num_levels: int = 256) -> Tensor:
    """Maps levels 0 ... num_levels - 1 to bytes 0 ... 255, for pictures and byte-based extractors."""
    if num_levels == 256:
        return levels
    return levels.float().mul_(255.0 / (num_levels - 1)).round_().to(torch.uint8)


def bytes_to_levels(pixels: Tensor, num_levels: int = 256) -> Tensor:
    """Maps bytes 0 ... 255 to the nearest of so many levels, as uint8."""
    if num_levels == 256:
        return pixels
    return pixels.float().mul_((num_levels - 1) / 255.0).round_().to(torch.uint8)
