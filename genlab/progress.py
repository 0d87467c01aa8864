"""How far something is that takes a while: one line on a terminal, nothing in a log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

from genlab.distributed import place

Part = TypeVar("Part")

PATIENCE = 5.0
"""Seconds before a bar appears."""


@contextmanager
def bar(title: str, total: int, unit: str, done: int = 0, patience: float | None = None) -> Iterator[Any]:
    """Gives a bar, to be moved by `update(num)`: shown by the first process, on a terminal, after a while.

    Args:
        title: What is done.
        total: Of what is counted.
        unit: What is counted.
        done: What was done before.
        patience: Other seconds than `PATIENCE`.
    """
    delay = PATIENCE if patience is None else patience
    hidden = True if place()[0] else None  # None: but on a terminal
    with tqdm(
        desc=title, total=total, initial=done, unit=unit, delay=delay, leave=False, disable=hidden
    ) as shown:
        yield shown


def watched(
    parts: Iterable[Part],
    title: str,
    total: int,
    unit: str,
    size: Callable[[Part], int] = len,  # type: ignore[assignment]
    patience: float | None = None,
) -> Iterator[Part]:
    """Yields the parts of something, and shows how many of all were done; see `bar`.

    Args:
        parts: What is done.
        title: What it is.
        total: Of what is counted.
        unit: What is counted.
        size: What a part counts for.
        patience: Other seconds than `PATIENCE`.
    """
    with bar(title, total, unit, patience=patience) as shown:
        for part in parts:
            yield part
            shown.update(size(part))
