"""The values that a setting may take in a sweep, as people write them: log:1e-4:1e-2, int:1:8, choice:a,b."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genlab.configuration.plain_yaml import parse_yaml
from genlab.text import nearest, shortened

KINDS = ("log", "lin", "int", "choice")
_EXAMPLES = "log:1e-4:1e-2, lin:0:1, int:1:8 or choice:a,b,c"


@dataclass(frozen=True)
class Range:
    """The values that one setting may take.

    Args:
        kind: One of `KINDS`: numbers that spread by factors, numbers, whole numbers, any values.
        low: The smallest number; 0 of choices.
        high: The largest number; 0 of choices.
        choices: The values that there are to choose from, as texts of YAML.
    """

    kind: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()

    @property
    def ends(self) -> list[str]:
        """Values that are all allowed where every value of the range is: both ends, or all choices."""
        return list(self.choices) or [self.text(self.low), self.text(self.high)]

    def text(self, value: Any) -> str:
        """Returns a value as an option is given it: six digits of a number are enough, and can be read."""
        if self.kind == "choice":
            return str(value)
        return str(int(value)) if self.kind == "int" else f"{value:.6g}"

    def value_of(self, setting: Any) -> Any:
        """Returns the value that stands for what a configuration holds, None if it lies outside."""
        if self.kind == "choice":
            return next((text for text in self.choices if value_of(text) == setting), None)
        if isinstance(setting, bool) or not isinstance(setting, int | float):
            return None
        is_inside = self.low <= setting <= self.high and (self.kind != "int" or setting == int(setting))
        return (int(setting) if self.kind == "int" else float(setting)) if is_inside else None


def value_of(text: str) -> Any:
    """Returns what a text stands for in YAML, and a number for 1e-4, which YAML takes for a text."""
    if re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", text):
        return float(text)
    return parse_yaml(text, "the value")


def parse_ranges(texts: Sequence[str]) -> dict[str, Range]:
    """Returns the range of each key of texts such as "model.lr=log:1e-4:1e-2".

    Raises:
        ValueError: A text is none, or a key stands twice.
    """
    found: dict[str, Range] = {}
    for text in texts:
        key, sign, values = text.partition("=")
        if not (key and sign and values):
            raise ValueError(
                f"--over needs KEY=RANGE, such as data.batch_size=int:8:64, got {shortened(text)!r}."
            )
        if key in found:
            raise ValueError(f"--over {shortened(key)} is given twice.")
        try:
            found[key.removeprefix("--")] = parse_range(values)
        except ValueError as error:
            raise ValueError(f"--over {shortened(key)}: {error}.") from None
    return found


def parse_range(text: str) -> Range:
    """Returns the range that a text such as log:1e-4:1e-2 stands for.

    Raises:
        ValueError: It stands for none; in a few words why.
    """
    kind, _, rest = text.partition(":")
    if kind not in KINDS:
        raise ValueError(
            f"there is no range '{shortened(kind)}'.{nearest(kind, KINDS)} There are {_EXAMPLES}"
        )
    if kind == "choice":
        return Range(kind, choices=_choices(rest))
    low, high = _limits(rest, kind)
    if not low < high:
        raise ValueError(f"the first limit must be below the second, got {shortened(rest)}")
    if kind == "log" and low <= 0:
        raise ValueError(f"numbers that spread by factors are above 0, got {low:g}")
    return Range(kind, low, high)


def _limits(text: str, kind: str) -> tuple[float, float]:
    read = int if kind == "int" else float
    try:
        low, high = map(read, text.split(":"))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high)):
        what = "whole numbers" if kind == "int" else "numbers"
        raise ValueError(f"{kind} needs two {what}, such as {_EXAMPLES}; got {shortened(text)!r}")
    return low, high


def _choices(text: str) -> tuple[str, ...]:
    choices = tuple(part.strip() for part in re.split(r",(?![^\[{]*[\]}])", text))  # none inside of brackets
    if len(set(choices)) < max(2, len(choices)) or "" in choices:
        raise ValueError(f"choice needs two or more different values, got {shortened(text)!r}")
    for choice in choices:
        value_of(choice)
    return choices
