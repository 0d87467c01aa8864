"""Pictures of one or two coloured shapes, each with a sentence whose truth needs no network."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from genlab import randomness
from genlab.data.base import MADE_HERE, DataModule
from genlab.data.packed import Packed
from genlab.data.procedural import COLOURS, SHAPES, SIZES, painted
from genlab.data.scene_captions import (
    LONGEST,
    NOTHING,
    RELATIONS,
    ZERO_SHOT,
    caption,
    caption_tokenizer,
    is_zero_shot,
)
from genlab.data.scene_judge import SceneJudge
from genlab.data.sentences import sentence_spec, sources
from genlab.data.splits import require_counts
from genlab.shapes import DataSpec

_SIZES = np.array(list(SIZES.values()))
_WAYS = np.array(list(RELATIONS.values()))
_SIZE_JITTER = 0.07  # half of what would let two sizes meet
_GAP = 0.06  # between objects, in sides of the picture: 4 pixels of 64 keep blurred ones apart
_MARGIN = 0.02
_SLANT = 0.5  # of the way across to the way along: a half keeps every relation far from the diagonal
_UNSEEN = 0.1  # share of the captions that are no training picture's
_BLOCK = 4096
_CHUNK = 512


class Scenes(DataModule):
    """Pictures of one or two coloured shapes on black, each with its caption as its source.

    "a small green ring", "a red circle left of a blue square": two objects in three scenes of four; half of
    the sizes are said. Scene i is a function of i alone, whatever the number of pictures and the split. Its
    places and sizes are drawn freely within what is said, without objects touching, so that no two pictures
    are equal.

    A scene's caption decides what it is for. With a colour and a shape of `ZERO_SHOT`, one shape for each
    colour, it is for the end of the test split alone. Of the others, a tenth is for the beginning of the test
    split: what they combine is met in training, but not in one picture. Training and validation have the
    rest. `RightCaptions` counts both parts of the test split apart.

    Args:
        image_size: Side of the pictures in pixels, at least 48.
        num_train: Pictures to train on, with those for validation.
        num_test: Pictures to score on, of captions that training does not have.
        num_zero_shot: Further ones to score on, of colours and shapes that training never has together.
        base: Arguments that every data set has.

    Shapes:
        batch["image"]: (batch, 3, image_size, image_size).
        batch["source"]: (batch, 11), a token a word.
        split(...)["factors"]: (pictures, 7): the `COLUMNS` of `scene_captions`, -1 for what is not said.
    """

    licence = MADE_HERE

    def __init__(
        self,
        image_size: int = 64,
        num_train: int = 20_000,
        num_test: int = 1_000,
        num_zero_shot: int = 500,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        require_counts(num_train, num_test)
        if num_zero_shot < 0:
            raise ValueError(f"num_zero_shot must not be negative, got {num_zero_shot}.")
        if self.flip:
            raise ValueError("flip must be false with captions: a mirrored left is a right.")
        if image_size < 48:
            raise ValueError(
                f"image_size must be at least 48 for small shapes to be told apart, got {image_size}."
            )
        self.image_size = image_size
        self.num_train, self.num_test, self.num_zero_shot = num_train, num_test, num_zero_shot

    @property
    def spec(self) -> DataSpec:
        source = sentence_spec("scenes caption", caption_tokenizer(), LONGEST + 1)
        return DataSpec("scenes", (3, self.image_size, self.image_size), source=source)

    @property
    def judge(self) -> SceneJudge:
        return SceneJudge()

    def load(self) -> dict[str, Packed]:
        train, test, zero_shot = numbers_of(self.num_train, self.num_test, self.num_zero_shot)
        return {"train": self._packed(train), "test": self._packed(np.concatenate([test, zero_shot]))}

    def preprocessing(self) -> dict[str, Any]:
        return {"num_zero_shot": self.num_zero_shot, "zero_shot": ZERO_SHOT}

    def _packed(self, index: np.ndarray) -> Packed:
        parts = [
            picture(index[start : start + _CHUNK], self.image_size) for start in range(0, len(index), _CHUNK)
        ]
        rows = scenes(index)
        encode = caption_tokenizer().encode
        tokens = sources([encode(caption(row)) for row in rows.tolist()], LONGEST + 1)
        return Packed({"image": np.concatenate(parts), "source": tokens, "factors": rows})


def scenes(index: np.ndarray) -> np.ndarray:
    """Returns what is said of numbered scenes, (len(index), 7), as `scene_captions` numbers it."""
    return _drawn(index)[0]


def picture(index: np.ndarray, image_size: int) -> np.ndarray:
    """Returns the pictures of numbered scenes as uint8, (len(index), 3, image_size, image_size)."""
    rows, sizes = _drawn(index)
    return draw(rows, sizes, index, image_size)


def draw(rows: np.ndarray, sizes: np.ndarray, index: np.ndarray, image_size: int) -> np.ndarray:
    """Returns pictures of scenes.

    Shapes:
        rows: (scenes, 7); sizes: (scenes, 2), of the objects, said or not.
        index: (scenes,), what places and exact sizes follow from.
        Returns (scenes, 3, image_size, image_size), uint8.
    """
    u = randomness.uniform(randomness.key("scenes", "places"), torch.from_numpy(index), 6).numpy()
    radius = _SIZES[sizes] * (1 + _SIZE_JITTER * (2 * u[:, :2] - 1))
    two = rows[:, 3] != NOTHING
    middle = np.empty((len(rows), 2, 2))
    middle[~two, 0] = _alone(radius[~two, 0], u[~two, 2:4])
    middle[two] = _related(_WAYS[rows[two, 6]], radius[two], u[two, 2:])
    image = painted(rows[:, 0], rows[:, 1], middle[:, 0], radius[:, 0], image_size)
    image[two] += painted(rows[two, 3], rows[two, 4], middle[two, 1], radius[two, 1], image_size)
    return image


def numbers_of(num_train: int, num_test: int, num_zero_shot: int) -> list[np.ndarray]:
    """Returns the first numbers of scenes for training, of unseen captions and of unseen pairs."""
    wanted = (num_train, num_test, num_zero_shot)
    found: list[list[np.ndarray]] = [[], [], []]
    start = 0
    while any(sum(map(len, parts)) < num for parts, num in zip(found, wanted, strict=True)):
        index = np.arange(start, start + _BLOCK)
        kinds = purpose(scenes(index))
        for kind, parts in enumerate(found):
            parts.append(index[kinds == kind])
        start += _BLOCK
    return [np.concatenate(parts)[:num] for parts, num in zip(found, wanted, strict=True)]


def purpose(rows: np.ndarray) -> np.ndarray:
    """Returns what scenes are for, (scenes,): 0 training, 1 a test of unseen captions, 2 of unseen pairs."""
    code = np.zeros(len(rows), np.int64)
    for column in rows.T:
        code = code * (len(COLOURS) + 1) + column + 1
    draw = randomness.uniform(randomness.key("scenes", "unseen"), torch.from_numpy(code), 1)[:, 0].numpy()
    return np.where(is_zero_shot(rows), 2, (draw < _UNSEEN).astype(np.int64))


def _drawn(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns what is said of numbered scenes, and the sizes of both objects, said or not."""
    u = randomness.uniform(randomness.key("scenes"), torch.from_numpy(index), 8).numpy()
    num_pairs = len(COLOURS) * len(SHAPES)
    first = (u[:, 0] * num_pairs).astype(np.int64)
    second = (first + 1 + (u[:, 1] * (num_pairs - 1)).astype(np.int64)) % num_pairs  # never the same pair
    sizes = (u[:, 2:4] * len(SIZES)).astype(np.int64)
    said = np.where(u[:, 4:6] < 0.5, sizes, NOTHING)
    relation = (u[:, 6] * len(RELATIONS)).astype(np.int64)
    rows = np.empty((len(index), 7), np.int64)
    for place, pair in enumerate((first, second)):
        rows[:, 3 * place : 3 * place + 2] = np.stack(np.divmod(pair, len(SHAPES)), axis=1)
    rows[:, [2, 5]], rows[:, 6] = said, relation
    rows[u[:, 7] < 0.25, 3:] = NOTHING
    return rows, sizes


def _alone(radius: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Returns middles anywhere within the picture, (scenes, 2)."""
    near = (radius + _MARGIN)[:, None]
    return near + u * (1 - 2 * near)


def _related(way: np.ndarray, radius: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Returns the middles of two objects, (scenes, 2 objects, 2), the second in the way of the first.

    Along the way they are as far apart as they may without touching or leaving the picture; across it they
    differ by at most half as much.
    """
    before, behind = radius.T + _MARGIN
    least = radius.sum(axis=1) + _GAP
    along = least + u[:, 0] * (1 - before - behind - least)
    start = before + u[:, 1] * (1 - before - behind - along)
    across = _SLANT * along * (2 * u[:, 2] - 1)
    low = np.maximum(before, behind - across)
    high = np.minimum(1 - before, 1 - behind - across)
    side = low + u[:, 3] * (high - low)
    first, second = np.stack([start, side], axis=1), np.stack([start + along, side + across], axis=1)
    backwards = way.sum(axis=1) < 0
    first[backwards, 0], second[backwards, 0] = 1 - first[backwards, 0], 1 - second[backwards, 0]
    both = np.stack([first, second], axis=1)
    return np.where((way[:, 0] == 0)[:, None, None], both[..., ::-1], both)
