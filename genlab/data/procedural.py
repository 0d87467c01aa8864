"""Pictures of one coloured shape each, with captions and with the factors that they were made from."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch

from genlab import randomness
from genlab.data.base import MADE_HERE, DataModule
from genlab.data.loading import permutation
from genlab.data.packed import Packed
from genlab.data.sentences import sentence_spec, sources
from genlab.data.splits import require_counts, seeded_split
from genlab.data.tokenizers import Characters, Tokenizer
from genlab.shapes import DataSpec

COLOURS = {
    "red": (230, 25, 25),
    "green": (30, 180, 50),
    "blue": (40, 80, 235),
    "yellow": (250, 220, 30),
    "purple": (150, 40, 190),
    "orange": (250, 130, 20),
    "cyan": (40, 210, 220),
    "white": (255, 255, 255),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
POSITIONS = (
    "in the top left",
    "at the top",
    "in the top right",
    "on the left",
    "in the centre",
    "on the right",
    "in the bottom left",
    "at the bottom",
    "in the bottom right",
)
SIZES = {"small": 0.08, "medium": 0.115, "large": 0.15}  # radius as a share of the picture's side
FACTORS = {"colour": len(COLOURS), "shape": len(SHAPES), "position": len(POSITIONS), "size": len(SIZES)}
"""Number of values of each factor, in the order of the columns of `factors`."""

_CHUNK = 512


class Shapes(DataModule):
    """Anti-aliased shapes on black: colour x shape x position x size, 1,296 combinations equally often.

    Picture i is a function of i alone. Its place inside of its ninth of the picture is drawn, so that no two
    pictures of one combination are equal. The label is the shape. The test split is drawn by `seed`,
    stratified by shape. Every split also holds `factors`.
    Where captions are asked for, each is its picture's source, spelt in characters.

    Args:
        image_size: Side of the pictures in pixels, at least 16.
        num_train: Pictures to train on, with those for validation.
        num_test: Pictures to score on.
        captions: Give each picture its caption as batch["source"].
        jitter: How much of the free way inside of its ninth a shape may move; 0 puts it in the middle.
        base: Arguments that every data set has.

    Shapes:
        batch["image"]: (batch, 3, image_size, image_size).
        split(...)["factors"]: (images, 4): colour, shape, position, size.
    """

    licence = MADE_HERE

    def __init__(
        self,
        image_size: int = 32,
        num_train: int = 10_000,
        num_test: int = 1_000,
        jitter: float = 1.0,
        captions: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        require_counts(num_train, num_test)
        if captions and self.flip:
            raise ValueError("flip must be false with captions: a mirrored left is a right.")
        if image_size < 16:
            raise ValueError(f"image_size must be at least 16 for shapes to be told apart, got {image_size}.")
        if not 0.0 <= jitter <= 1.0:
            raise ValueError(f"jitter must be in [0, 1], got {jitter}.")
        self.image_size, self.num_train, self.num_test = image_size, num_train, num_test
        self.jitter, self.captions = jitter, captions

    @property
    def spec(self) -> DataSpec:
        source = sentence_spec("shapes caption", caption_tokenizer(), LONGEST + 1) if self.captions else None
        return DataSpec("shapes", (3, self.image_size, self.image_size), len(SHAPES), source=source)

    def load(self) -> dict[str, Packed]:
        index = np.arange(self.num_train + self.num_test)
        chosen = factors(index)
        parts = [
            render(
                chosen[start : start + _CHUNK], index[start : start + _CHUNK], self.image_size, self.jitter
            )
            for start in range(0, len(index), _CHUNK)
        ]
        columns = {"image": np.concatenate(parts), "label": chosen[:, 1].copy(), "factors": chosen}
        if self.captions:
            encode = caption_tokenizer().encode
            columns["source"] = sources([encode(caption(row)) for row in chosen.tolist()], LONGEST + 1)
        return seeded_split(Packed(columns), self.num_test, self.seed)

    def preprocessing(self) -> dict[str, Any]:
        return {"jitter": self.jitter}


def factors(index: np.ndarray) -> np.ndarray:
    """Returns (len(index), 4) numbers of colour, shape, position and size; every combination in turn."""
    combination = permutation(math.prod(FACTORS.values()), 0, 0).numpy()[index % math.prod(FACTORS.values())]
    return np.stack(np.unravel_index(combination, tuple(FACTORS.values())), axis=1).astype(np.int64)


def caption(row: list[int]) -> str:
    """Returns a sentence such as "a small red circle in the top left"."""
    colour, shape, position, size = row
    return f"a {list(SIZES)[size]} {list(COLOURS)[colour]} {SHAPES[shape]} {POSITIONS[position]}"


LONGEST = sum(max(map(len, words)) for words in (SIZES, COLOURS, SHAPES, POSITIONS)) + len("a    ")
"""Characters of the longest caption."""


@functools.cache
def caption_tokenizer() -> Tokenizer:
    """Returns the vocabulary of all captions: their letters and the space."""
    words = ["a ", *SIZES, *COLOURS, *SHAPES, *POSITIONS]
    return Characters.trained_on("".join(words), marks=True)


def render(chosen: np.ndarray, index: np.ndarray, image_size: int, jitter: float = 1.0) -> np.ndarray:
    """Returns the pictures of some factors as uint8, (pictures, 3, image_size, image_size)."""
    colour, shape, position, size = chosen.T
    radius = np.array(list(SIZES.values()))[size]
    return painted(colour, shape, _middle(position, index, radius, jitter), radius, image_size)


def painted(
    colour: np.ndarray, shape: np.ndarray, middle: np.ndarray, radius: np.ndarray, image_size: int
) -> np.ndarray:
    """Returns pictures of one object each as uint8, (objects, 3, image_size, image_size).

    Shapes:
        colour, shape: (objects,), their numbers.
        middle: (objects, 2), x and y, which grows downwards; radius: (objects,): in sides of the picture.
    """
    pixel = (np.arange(image_size) + 0.5) / image_size
    x = pixel[None, None, :] - middle[:, 0, None, None]
    y = pixel[None, :, None] - middle[:, 1, None, None]
    far = np.empty((len(shape), image_size, image_size))
    for number, name in enumerate(SHAPES):
        rows = shape == number
        far[rows] = distance(name, x[rows], y[rows], radius[rows, None, None])
    # A pixel is covered by what the edge, taken as straight, leaves of it.
    covered = np.clip(0.5 - far * image_size, 0.0, 1.0)
    shade = np.array(list(COLOURS.values()), float)[colour]
    return np.rint(covered[:, None] * shade[:, :, None, None]).astype(np.uint8)


def _middle(position: np.ndarray, index: np.ndarray, radius: np.ndarray, jitter: float) -> np.ndarray:
    """Returns each shape's middle inside of its ninth, (shapes, 2)."""
    moves = randomness.uniform(randomness.key("shapes"), torch.from_numpy(index), 2).numpy() * 2 - 1
    ninth = np.stack([position % 3, position // 3], axis=1)
    return (ninth + 0.5) / 3 + jitter * moves * (1 / 6 - radius[:, None])


def distance(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """Returns the signed distance to the shape's edge, negative inside; exact next to straight edges."""
    across, down = np.abs(x), np.abs(y)
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(across, down) - 0.85 * radius
    if shape == "triangle":
        return np.maximum(y, across * math.sqrt(0.75) - y / 2) - radius / 2
    if shape == "diamond":
        return (across + down - radius) / math.sqrt(2)
    if shape == "cross":
        bars = np.maximum(across - radius, down - radius / 3), np.maximum(across - radius / 3, down - radius)
        return np.minimum(*bars)
    return np.abs(np.hypot(x, y) - 0.75 * radius) - 0.25 * radius
