"""What of a picture is as its caption says, found without a network.

Objects are the connected parts of what is not black. Each is compared with what the renderer would draw of
every shape at its place and of its extent; the nearest one is its shape, if it is near enough, and the colour
that fits it best is its colour.
"""

from __future__ import annotations

import functools
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from genlab.data.procedural import COLOURS, SHAPES, SIZES, distance
from genlab.data.scene_captions import (
    NOTHING,
    RELATIONS,
    caption_tokenizer,
    is_zero_shot,
    objects,
    parse,
)

_BRIGHT = (
    0.3  # less than half of the brightest channel of any colour: the edge of an object, even of a dark one
)
_HAZE = 0.1  # less says nothing about an object's place and extent
_SPECK = 0.002  # share of a picture that is too small for an object: a third of the smallest triangle
_MOST = 3  # objects of a picture that are looked at, the largest ones; more are only counted
_RADII = (0.9, 1.0, 1.1)  # of the radius that the extent says: noise and blur change it
_BLURS = (1.0, 2.0)  # widths of an edge in pixels
_REACH = 1.3  # half of what is looked at around an object's middle, in largest radii
_BLOCK = 256

ATTRIBUTES = ("all", "number", "colour", "shape", "size", "relation")
"""What is judged."""


class SceneJudge:
    """Judges pictures by their captions, which are rows of tokens; see `genlab.shapes.Judge`.

    An attribute is right where it is so for all that the caption says of it, for the assignment of the
    picture's objects to the caption's that makes the most attributes right; a further object makes the number
    wrong alone, a missing one what is said of it, too. One object is left of another if its middle is, by
    more than it is above or below.

    Args:
        max_shade: Largest difference from a colour in any channel, as a share of its range. Two colours
            differ by 0.35 and more.
        max_error: Largest squared error of a drawn shape, as a share of the object's squared brightness.
    """

    def __init__(self, max_shade: float = 0.15, max_error: float = 0.15) -> None:
        self.max_shade, self.max_error = max_shade, max_error

    def protocol(self) -> dict[str, Any]:
        return {"max_shade": self.max_shade, "max_error": self.max_error}

    def marks(self, images: Tensor, source: Tensor) -> dict[str, Tensor]:
        """Returns by attribute, and by "all", 1 for right, 0 for wrong and -1 for not said, (batch,), int8.

        Shapes:
            images: (batch, 3, side, side), bytes or floats in [-1, 1].
            source: (batch, length), tokens of captions.
        """
        found = self.judged(images, self.rows(source))
        return {name: torch.from_numpy(values).to(images.device) for name, values in found.items()}

    def is_unseen(self, source: Tensor) -> Tensor:
        """Returns whether each caption holds a pair that training never has, (batch,), bool."""
        return torch.from_numpy(is_zero_shot(self.rows(source))).to(source.device)

    def rows(self, source: Tensor) -> np.ndarray:
        """Returns the scenes that rows of tokens say."""
        sentences = [caption_tokenizer().decode(row) for row in source.tolist()]
        return np.array([parse(sentence) for sentence in sentences], np.int64).reshape(-1, 7)

    def judged(self, images: Tensor, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Returns what `marks` does, for scenes as rows of numbers."""
        shares = images.float() / 255 if images.dtype == torch.uint8 else (images.float() + 1) / 2
        blocks = shares.clamp(0, 1).cpu().split(_BLOCK)
        seen = [self.seen(block.numpy()) for block in blocks]
        return _compared(rows, *(np.concatenate(parts) for parts in zip(*seen, strict=True)))

    def seen(self, images: np.ndarray) -> Seen:
        """Returns what is on pictures, (batch, 3, side, side), float32 in [0, 1]."""
        parts = _parts(images)
        fits = _fitted(images, parts)
        shades = np.array(list(COLOURS.values()), np.float32) / 255
        off = np.abs(fits.shade[:, None] - shades).max(axis=2)
        colour = np.where(off.min(axis=1) <= self.max_shade, off.argmin(axis=1), NOTHING)
        shape = np.where(fits.error <= self.max_error, fits.shape, NOTHING)
        size = np.where(shape == NOTHING, NOTHING, _size(fits.radius))  # of what has no shape there is none
        table = np.full((len(images), _MOST, 3), NOTHING)
        middles = np.zeros((len(images), _MOST, 2))
        table[parts.owner, parts.rank] = np.stack([colour, shape, size], axis=1)
        middles[parts.owner, parts.rank] = fits.middle
        return Seen(parts.num, table, middles)


class Seen(NamedTuple):
    """What is on pictures.

    Shapes:
        num: (batch,), how many objects.
        objects: (batch, 3, 3), colour, shape and size of the largest ones, -1 for none of those known.
        middles: (batch, 3, 2), x and y.
    """

    num: np.ndarray
    objects: np.ndarray
    middles: np.ndarray


class _Parts(NamedTuple):
    """Connected bright parts of pictures.

    Shapes:
        label: (batch, side, side), the number of the part that a pixel belongs to, from 1 on, or 0.
        num: (batch,), parts of a picture that are no specks.
        number, owner, rank: (parts,), of the largest ones of each picture: label, picture, place by size.
        middle: (parts, 2), whole pixels, row and column.
    """

    label: np.ndarray
    num: np.ndarray
    number: np.ndarray
    owner: np.ndarray
    rank: np.ndarray
    middle: np.ndarray


class _Fits(NamedTuple):
    """What fits each part best.

    Shapes:
        shape, error: (parts,), its number and squared error as a share.
        radius: (parts,), middle: (parts, 2), x and y: both in sides of the picture.
        shade: (parts, 3), its colour in [0, 1].
    """

    shape: np.ndarray
    error: np.ndarray
    radius: np.ndarray
    middle: np.ndarray
    shade: np.ndarray


def _parts(images: np.ndarray) -> _Parts:
    label, num = ndimage.label(images.max(axis=1) > _BRIGHT, structure=_IN_PLANE)
    pixel = np.flatnonzero(label)
    part = label.ravel()[pixel] - 1
    picture, row, column = np.unravel_index(pixel, label.shape)
    area = np.bincount(part, minlength=num)
    owner = np.zeros(num, np.int64)
    owner[part] = picture
    middle = [np.bincount(part, weights=place, minlength=num) / area for place in (row, column)]
    kept = np.flatnonzero(area >= _SPECK * images[0, 0].size)
    kept = kept[np.lexsort((-area[kept], owner[kept]))]
    nums = np.bincount(owner[kept], minlength=len(images))
    rank = np.arange(len(kept)) - (np.cumsum(nums) - nums)[owner[kept]]
    kept, rank = kept[rank < _MOST], rank[rank < _MOST]
    return _Parts(label, nums, kept + 1, owner[kept], rank, np.rint(np.stack(middle, 1)[kept]).astype(int))


def _fitted(images: np.ndarray, parts: _Parts) -> _Fits:
    """Returns for each part the shape, of all in some radii and blurs, with the least squared error.

    Place and extent are the first two moments of brightness, which do not ask how bright an object is.
    """
    crop, corner = _cropped(images, parts)
    side = images.shape[-1]
    bright = np.clip(crop.max(axis=1) - _HAZE, 0, None)
    mass = bright.sum(axis=(1, 2))
    window = np.arange(crop.shape[-1], dtype=np.float32)
    middle = np.stack([bright.sum(axis=1) @ window, bright.sum(axis=2) @ window], axis=1) / mass[:, None]
    x = window[None, None, :] - middle[:, 0, None, None]
    y = window[None, :, None] - middle[:, 1, None, None]
    spread = (bright * (x**2 + y**2)).sum(axis=(1, 2)) / mass
    energy = np.bincount(parts.label.ravel(), (images**2).sum(axis=1).ravel())[parts.number]
    energy = np.maximum(energy, (crop**2).sum(axis=(1, 2, 3)))  # a part may reach out of its window
    num = len(crop)
    best = _Fits(
        shape=np.zeros(num),
        error=np.full(num, np.inf),
        radius=np.zeros(num),
        middle=(middle + corner + 0.5) / side,
        shade=np.zeros((num, 3)),
    )
    for shape, name in enumerate(SHAPES):
        for share in _RADII:
            radius = (share * np.sqrt(spread / _spread(name))).astype(np.float32)
            far = distance(name, x, y, radius[:, None, None])
            for blur in _BLURS:
                cover = np.clip(0.5 - far / blur, 0, 1)
                fit = np.einsum("pcyx,pyx->pc", crop, cover)
                square = np.maximum((cover**2).sum(axis=(1, 2)), 1e-6)
                error = 1 - (fit**2).sum(axis=1) / square / energy
                better = error < best.error
                best.shape[better], best.error[better] = shape, error[better]
                best.radius[better] = radius[better] / side
                best.shade[better] = (fit / square[:, None])[better]
    return best._replace(shape=best.shape.astype(np.int64))


def _cropped(images: np.ndarray, parts: _Parts) -> tuple[np.ndarray, np.ndarray]:
    """Returns a window around each part without the others, (parts, 3, window, window), and its first pixel.

    What lies two pixels beyond the part is left in, as blurred edges do. The first pixel is x and y.
    """
    half = int(np.ceil(_REACH * max(SIZES.values()) * images.shape[-1]))
    around = np.arange(2 * half + 1)
    row, column = (parts.middle[:, place, None] + around for place in (0, 1))
    padded = np.pad(images, ((0, 0), (0, 0), (half, half), (half, half)))
    label = np.pad(parts.label, ((0, 0), (half, half), (half, half)))
    where = parts.owner[:, None, None], row[:, :, None], column[:, None, :]
    own = ndimage.binary_dilation(label[where] == parts.number[:, None, None], _IN_PLANE, iterations=2)
    crop = np.moveaxis(padded.transpose(0, 2, 3, 1)[where], 3, 1) * own[:, None]
    return crop, parts.middle[:, ::-1] - half


@functools.cache
def _spread(shape: str) -> float:
    """Returns the mean squared distance of a shape's points from its middle, in squared radii."""
    line = np.linspace(-1.25, 1.25, 501)
    x, y = line[None, None, :], line[None, :, None]
    inside = distance(shape, x, y, np.ones((1, 1, 1))) < 0
    return float((x**2 + y**2)[inside].mean())


def _size(radius: np.ndarray) -> np.ndarray:
    """Returns the number of the nearest size, as ratios, or NOTHING beyond a quarter more than any."""
    off = np.abs(np.log(np.maximum(radius, 1e-6)[:, None] / np.array(list(SIZES.values()))))
    return np.where(off.min(axis=1) <= np.log(1.25), off.argmin(axis=1), NOTHING)


def _compared(
    rows: np.ndarray, num: np.ndarray, table: np.ndarray, middles: np.ndarray
) -> dict[str, np.ndarray]:
    """Returns what is right of scenes by what is seen; see `SceneJudge`."""
    said = objects(rows)
    alone = rows[:, 6] == NOTHING
    right = _best(said, rows[:, 6], num, table, middles)
    enough = num == np.where(alone, 1, 2)
    columns = (right.all(axis=1) & enough, enough, *right.T)
    marks = {name: column.astype(np.int8) for name, column in zip(ATTRIBUTES, columns, strict=True)}
    marks["size"][(said[..., 2] == NOTHING).all(axis=1)] = NOTHING
    marks["relation"][alone] = NOTHING
    return marks


def _best(
    said: np.ndarray, relation: np.ndarray, num: np.ndarray, table: np.ndarray, middles: np.ndarray
) -> np.ndarray:
    """Returns whether colour, shape, size and relation are right by the best assignment, (batch, 4).

    Of two assignments that make as many right, the one that knows the objects: two of them in each other's
    places have the relation wrong, not two attributes.
    """
    equal = (said[:, :, None] == table[:, None]) | (said == NOTHING)[:, :, None]
    way = np.array([*RELATIONS.values(), (0, 0)])[relation]
    options = []
    for first, second in permutations(range(_MOST), 2):
        known = (equal[:, 0, first] & equal[:, 1, second]).T
        step = middles[:, second] - middles[:, first]
        along, across = (step * way).sum(axis=1), np.abs((step * way[:, ::-1]).sum(axis=1))
        related = (along > across) & (max(first, second) < num) | (relation == NOTHING)
        options.append(np.stack([*known, related], axis=1))
    choices = np.stack(options)
    chosen = (choices @ np.array([1.1, 1.1, 1.1, 1.0])).argmax(axis=0)
    return choices[chosen, np.arange(len(said))]


_IN_PLANE = np.zeros((3, 3, 3), bool)
_IN_PLANE[1] = True
