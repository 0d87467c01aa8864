"""Text that comes from other people's files, made fit to be printed. Imports no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def printable(text: str, keep: str = "") -> str:
    """Returns a text without control characters, terminal commands, direction marks and lone surrogates.

    Each becomes one replacement character: a name must neither move the cursor, nor turn the line around, nor
    end it.

    Args:
        text: Any text.
        keep: Characters that stay, such as line breaks.
    """

    def shown(letter: re.Match[str]) -> str:
        return letter[0] if letter[0].isprintable() or letter[0] in keep else "\N{REPLACEMENT CHARACTER}"

    return re.sub(r"[^ -~]", shown, text)


def shortened(text: str, most: int = 100) -> str:
    """Returns a printable text with its middle left out where it is long."""
    text = printable(text)
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def similar(name: str, names: Iterable[str], most: int = 3, least: float = 0.6) -> list[str]:
    """Returns the names that are most like one, the most similar first.

    Args:
        name: Possibly misspelt.
        names: Those that there are.
        most: How many at most.
        least: Similarity that they must have, of 0 ... 1 (`difflib.SequenceMatcher.ratio`).
    """
    return difflib.get_close_matches(name, names, n=most, cutoff=least)


def nearest(name: str, names: Iterable[str]) -> str:
    """Returns a question after the name that was meant, with a space before it; "" where none is near."""
    near = similar(name, names, most=1)
    return f" Did you mean '{near[0]}'?" if near else ""
