"""What is said of pictures of one or two coloured shapes: a scene is a row of numbers and one sentence.

The grammar, of words that are all known beforehand:

    CAPTION:   OBJECT, or OBJECT RELATION OBJECT
    OBJECT:    a [small | medium | large] COLOUR SHAPE
    RELATION:  left of | right of | above | below

so that every scene has one sentence and every sentence one scene.
"""

from __future__ import annotations

import functools
import re

import numpy as np

from genlab.data.procedural import COLOURS, SHAPES, SIZES
from genlab.data.tokenizers import Tokenizer, Words

RELATIONS = {"left of": (1, 0), "right of": (-1, 0), "above": (0, 1), "below": (0, -1)}
"""The way from the first object to the second: x to the right, y downwards."""

ZERO_SHOT = {
    "red": "triangle",
    "green": "diamond",
    "blue": "cross",
    "yellow": "ring",
    "purple": "circle",
    "orange": "square",
    "cyan": "triangle",
    "white": "diamond",
}
"""The shape that each colour never has in training, where both are met, but not together."""

NOTHING = -1
"""Stands in a row for a size that is not said, and for all of an object that is not there."""

COLUMNS = ("colour", "shape", "size", "second colour", "second shape", "second size", "relation")
"""What the columns of a row are numbers of."""

LONGEST = 10
"""Words of the longest caption."""


def objects(rows: np.ndarray) -> np.ndarray:
    """Returns colour, shape and size of each object of scenes, (scenes, 2, 3)."""
    return rows[:, :6].reshape(-1, 2, 3)


def is_zero_shot(rows: np.ndarray) -> np.ndarray:
    """Returns whether each scene has a colour and a shape that never are together in training, (scenes,)."""
    forbidden = np.array([SHAPES.index(shape) for shape in ZERO_SHOT.values()])
    colour, shape = objects(rows)[..., 0], objects(rows)[..., 1]
    return ((colour != NOTHING) & (shape == forbidden[colour])).any(axis=1)


def caption(row: list[int]) -> str:
    """Returns a scene's sentence, such as "a small red circle left of a blue square"."""
    if row[3] == NOTHING:
        return _object(*row[:3])
    return f"{_object(*row[:3])} {list(RELATIONS)[row[6]]} {_object(*row[3:6])}"


def parse(sentence: str) -> list[int]:
    """Returns the row of a scene's sentence.

    Raises:
        ValueError: Where it is none, with the grammar.
    """
    match = _CAPTION.fullmatch(sentence)
    row = [_number(name) for name in match.group(2, 3, 1, 6, 7, 5, 4)] if match else []
    if not row or caption(row) != sentence:
        raise ValueError(
            f"{sentence!r} is no caption of a scene. Say: a [{', '.join(SIZES)}] COLOUR SHAPE, alone or "
            f"{', '.join(RELATIONS)} another.\nColours: {', '.join(COLOURS)}. Shapes: {', '.join(SHAPES)}."
        )
    return row


@functools.cache
def caption_tokenizer() -> Tokenizer:
    """Returns the vocabulary of all captions, a token a word."""
    relations = [word for relation in RELATIONS for word in relation.split()]
    return Words(list(dict.fromkeys(["a", "an", *SIZES, *COLOURS, *SHAPES, *relations])), marks=True)


def _object(colour: int, shape: int, size: int) -> str:
    words = [list(COLOURS)[colour], SHAPES[shape]]
    if size != NOTHING:
        words.insert(0, list(SIZES)[size])
    return " ".join(["an" if words[0][0] in "aeiou" else "a", *words])


def _number(word: str | None) -> int:
    return NOTHING if word is None else _NUMBERS[word]


_NUMBERS = {
    word: number for words in (COLOURS, SHAPES, SIZES, RELATIONS) for number, word in enumerate(words)
}
_OBJECT = rf"an? (?:({'|'.join(SIZES)}) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_CAPTION = re.compile(rf"{_OBJECT}(?: ({'|'.join(RELATIONS)}) {_OBJECT})?")
