"""Numbers as English words: text and sentence pairs whose rule is known, made and not fetched."""

from __future__ import annotations

from typing import Any

from genlab.data.base import MADE_HERE
from genlab.data.loading import permutation
from genlab.data.sentences import PairData, Pairs
from genlab.data.text import TextData

_SMALL = "zero one two three four five six seven eight nine ten eleven twelve".split()  # noqa: SIM905
_SMALL += [f"{begin}teen" for begin in ("thir", "four", "fif", "six", "seven", "eigh", "nine")]
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
MOST = 10_000
"""Numbers from 0 below this have a name here."""


def spelt(number: int) -> str:
    """Returns a number of 0 ... 9999 in words: 7042 is "seven thousand and forty-two"."""
    if number < 20:
        return _SMALL[number]
    if number < 100:
        ten, one = _TENS[number // 10 - 2], number % 10
        return f"{ten}-{_SMALL[one]}" if one else ten
    size, unit = (100, "hundred") if number < 1000 else (1000, "thousand")
    many, rest = f"{_SMALL[number // size]} {unit}", number % size
    if not rest:
        return many
    return f"{many} {'and ' if rest < 100 else ''}{spelt(rest)}"


def _numbers(num: int) -> list[int]:
    """Returns 0 ... num - 1 in a fixed drawn order, so that what is held out at the end is of all sizes."""
    if not 10 <= num <= MOST:
        raise ValueError(f"numbers must be in 10 ... {MOST}, got {num}.")
    return permutation(num, 0, 0).tolist()


class NumberText(TextData):
    """A running text of numbers and their names, a line each: "7042 seven thousand and forty-two".

    About 434,000 characters, 32 of them different. What a model has learnt can be counted: whether a line's
    words are those of its digits.

    Args:
        numbers: How many, from 0 on; fewer make a shorter text.
        base: Arguments of every text and of every data set.
    """

    licence = MADE_HERE

    def __init__(self, numbers: int = MOST, **base: Any) -> None:
        super().__init__(**base)
        self.numbers = numbers

    @property
    def data_name(self) -> str:
        return "numbertext"

    def text(self) -> str:
        return "".join(f"{number} {spelt(number)}\n" for number in _numbers(self.numbers))


class NumberNames(PairData):
    """Numbers in words to translate to digits, so that a translation is right or wrong.

    The tenth that is held out was never seen, the split is fixed.

    Args:
        numbers: How many, from 0 on.
        length: Most tokens of the words and of the digits.
        base: Arguments of all sentence pairs and of every data set.
    """

    licence = MADE_HERE

    def __init__(self, numbers: int = MOST, length: int = 48, **base: Any) -> None:
        super().__init__(length=length, **base)
        self.numbers = numbers

    @property
    def data_name(self) -> str:
        return "numbernames"

    def pairs(self) -> dict[str, Pairs]:
        numbers = _numbers(self.numbers)
        cut = len(numbers) - len(numbers) // 10
        return {"train": _named(numbers[:cut]), "test": _named(numbers[cut:])}


def _named(numbers: list[int]) -> Pairs:
    return Pairs([spelt(number) for number in numbers], [str(number) for number in numbers])
