"""Does a model of text repeat the text that it was trained on?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from genlab.data.text import TextData
from genlab.data.tokenizers import tokenizer_of

LENGTH = 40
"""Characters of a piece: fewer are often equal by chance and custom, such as names and set phrases."""

NUM_SAMPLES = 256
"""Texts that are drawn; of 64 characters each, they have 6,400 pieces."""

NUM_PASSAGES = 12
_PIECE = 2**20  # characters of the training text that are hashed at a time


@dataclass(frozen=True)
class Passages:
    """How much of samples stands word for word in the training text, beside how much of unseen text does.

    Attributes:
        share: Of the samples' pieces of 40 characters, at every place, those that stand in it; NaN of none.
        test_share: The same share of the unseen text: what repeats itself anyway, hence the floor.
        num: Samples.
        num_pieces: Their pieces.
        num_test: Pieces of the unseen text.
        num_train: Characters of the training text.
        longest: Passages of the samples all of whose pieces stand in it, the longest first.
    """

    share: float
    test_share: float
    num: int
    num_pieces: int
    num_test: int
    num_train: int
    longest: list[str]

    def summary(self) -> dict[str, Any]:
        """Returns the numbers for a record; those of samples without a piece are left out."""
        return {
            **{n: v for n, v in (("share", self.share), ("test_share", self.test_share)) if v == v},
            "length": LENGTH,
            **{name: getattr(self, name) for name in ("num", "num_pieces", "num_test", "num_train")},
            "longest": max(map(len, self.longest), default=0),
        }

    def __str__(self) -> str:
        passages = "\n\n".join(f"{len(text)} characters:\n{text}" for text in self.longest[:NUM_PASSAGES])
        return f"{passages or f'No {LENGTH} characters of the samples stand in the training text.'}\n"


def find_passages(samples: Sequence[str], train: str, test: str) -> Passages:
    """Returns what of samples stands in the training text, with unseen text as the yardstick.

        share of (i, k) with  s_i[k] ... s_i[k + 39]  anywhere in the training text

    1 for copies of the training text; about `test_share` for samples that are as new as the unseen text.
    Pieces are compared by hashes of 64 bits: of 10^6 pieces and a text of 10^8 characters, less than one is
    taken for another with a chance of 10^-5. Time grows as n log n in characters.
    """
    pieces, unseen = [hashes(text) for text in samples], hashes(test)
    asked = np.unique(np.concatenate([*pieces, unseen]))
    stands = np.zeros(len(asked), bool)
    for part in _overlapping(train) if len(asked) else ():
        there = np.sort(hashes(part))  # in order, they are found several times faster
        places = np.searchsorted(asked, there).clip(max=len(asked) - 1)
        stands[places[asked[places] == there]] = True
    copied = [stands[np.searchsorted(asked, piece)] for piece in pieces]
    longest = [text for row in zip(samples, copied, strict=True) for text in _runs(*row)]
    return Passages(
        _mean(np.concatenate([np.zeros(0, bool), *copied])),
        _mean(stands[np.searchsorted(asked, unseen)]),
        len(samples),
        sum(map(len, pieces)),
        len(unseen),
        len(train),
        sorted(longest, key=len, reverse=True),
    )


@torch.no_grad()
def drawn_texts(model: Any, data: TextData, num: int, seed: int = 0, batch_size: int = 100) -> list[str]:
    """Returns samples as long as a window, or longer where that has fewer characters than a piece."""
    tokenizer = tokenizer_of(model.spec.vocabulary)
    tokens_each = data.num_tokens("train") / len(data.parts["train"])
    length = max(model.spec.shape[0], math.ceil(1.5 * LENGTH * tokens_each))
    texts = []
    for index in torch.arange(num, device=model.device).split(batch_size):
        start = torch.full((len(index), 1), model.start, device=model.device)
        tokens = torch.stack(list(model.complete(start, length, index, seed)), dim=1)
        texts += [tokenizer.decode(row) for row in tokens.tolist()]
    return texts


def hashes(text: str, length: int = LENGTH) -> np.ndarray:
    """Returns a number for each piece of a text, equal for equal ones, (characters - length + 1,) uint64.

    Of twice the span, a number is made of those of both halves; of a length between two powers of 2, of those
    of its beginning and its end, which overlap.
    """
    found, span = _mixed(np.frombuffer(text.encode("utf-32-le"), "<u4").astype(np.uint64)), 1
    while span < length and len(found) > 0:
        step = min(span, length - span)
        found = _mixed(found[:-step] * _ODD + found[step:])
        span += step
    return found


_ODD, _FIRST, _SECOND = (np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mixed(values: np.ndarray) -> np.ndarray:
    """Returns numbers whose bits all depend on all bits of the given ones (splitmix64)."""
    values = values + _ODD
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


def _overlapping(text: str) -> Iterator[str]:
    """Returns a text in parts that have each of its pieces in one of them."""
    for start in range(0, max(1, len(text) - LENGTH + 1), _PIECE):
        yield text[start : start + _PIECE + LENGTH - 1]


def _runs(text: str, copied: np.ndarray) -> list[str]:
    """Returns the longest passages of a text all of whose pieces are copied."""
    edges = np.flatnonzero(np.diff(copied.astype(np.int8), prepend=0, append=0))
    return [text[first : end + LENGTH - 1] for first, end in edges.reshape(-1, 2)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
