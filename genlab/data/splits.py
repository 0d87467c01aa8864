"""Which items are learned from, which choose while a model is trained, and which are scored at the end."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from typing import TypeVar

import numpy as np

from genlab.data.loading import permutation
from genlab.data.packed import Packed, Rows
from genlab.errors import DataError

Part = TypeVar("Part")

LEAST = 2
"""Fewest items of a split that scores compare with: a covariance needs two."""

FIXED = 0
"""Seed of the cut of the validation split: runs of all seeds are validated on the same items."""


def drawn(labels: np.ndarray | None, num_items: int, seed: int) -> np.ndarray:
    """Returns all rows in an order whose beginnings hold every label by its share to within one item.

    Rows are ranked inside their label by a seeded draw; the first ones of every label come first.
    """
    draw = permutation(num_items, seed, 0).numpy()
    if labels is None:
        return draw
    place = np.empty(num_items)
    for label in np.unique(labels):
        rows = draw[labels[draw] == label]
        place[rows] = (np.arange(len(rows)) + 0.5) / len(rows)
    # Items of one place are told apart by the draw, or the low labels would get every rounding.
    return draw[np.argsort(place[draw], kind="stable")]


def stratified(labels: np.ndarray | None, num_items: int, num: int, seed: int) -> np.ndarray:
    """Returns `num` ascending row numbers, drawn so that every label keeps its share to within one item."""
    return np.sort(drawn(labels, num_items, seed)[:num])


def held_out(packed: Packed, num: int, seed: int, split: str) -> np.ndarray:
    """Returns ascending rows as `stratified`, but of equal items all or none: `num`, or a few less.

    An item that is learned and scored tells of memory alone. Without equal items, the rows of `stratified`.

    Args:
        packed: All items.
        num: How many are held out.
        seed: Of the draw.
        split: What for, for the message that there are equal ones.
    """
    return together(drawn(packed.get("label"), len(packed), seed), first_copies(packed.x), num, split)


def together(order: np.ndarray, first: np.ndarray, num: int, split: str) -> np.ndarray:
    """Returns the first rows of an order, ascending, without parting rows that are equal.

    Args:
        order: All rows.
        first: For each row the first one that equals it.
        num: How many are wanted. A group that is larger than what is still missing is left out.
        split: Their name, for the message that there are equal rows.
    """
    num_copies = int((first != np.arange(len(first))).sum())
    if num_copies:
        warnings.warn(
            f"{num_copies:,} of {len(first):,} items are copies of others; all copies of one are kept on one "
            f"side of the {split} split.",
            stacklevel=2,
        )
    sizes = np.bincount(first, minlength=len(first))
    chosen: list[int] = []
    for row in order[first[order] == order].tolist():  # a group stands where its first row does
        if sizes[row] <= num:
            chosen.append(row)
            num -= int(sizes[row])
    return np.flatnonzero(np.isin(first, chosen))


def first_copies(values: np.ndarray | Rows) -> np.ndarray:
    """Returns for each row the number of the first row of the same content, its own where that is new."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(digest, row) for row, digest in enumerate(_digests(values))])


def _digests(values: np.ndarray | Rows) -> Iterator[bytes]:
    """Yields what tells rows of other content apart: what is known of them, or their SHA-256."""
    known = getattr(values, "digests", None)
    for start in range(0, len(values), 1024):
        block = np.ascontiguousarray((values if known is None else known)[start : start + 1024])
        for value in block.reshape(len(block), -1):
            yield hashlib.sha256(value.data).digest() if known is None else value.tobytes()


def others(rows: np.ndarray, num_items: int) -> np.ndarray:
    """Returns the rows that are not among the given ones, ascending."""
    return np.setdiff1d(np.arange(num_items), rows)


def seeded_split(packed: Packed, num_test: int, seed: int) -> dict[str, Packed]:
    """Returns a training and a test split of the given size, every label with its share in both."""
    test = held_out(packed, num_test, seed, "test")
    return {"train": packed.take(others(test, len(packed))), "test": packed.take(test)}


def share_of(num: int, fraction: float, what: str, split: str, total: int | None = None) -> int:
    """Returns how many of `num` items a share is: as rounded, but no fewer than two.

    Args:
        num: The items that are divided.
        fraction: The share.
        what: The items' name, for the message.
        split: What the share is for, "test" or "validation".
        total: The items with those that are in other splits already.

    Raises:
        DataError: Where none would be left to learn from.
    """
    share = max(LEAST, round(fraction * num))
    if share >= num:
        option = "val_fraction" if split == "validation" else "test_fraction"
        raise DataError(
            f"{total or num} {what} are too few: {share} would be the {split} split and none is left to "
            f"learn from; add {what}, or hold out less with --data.{option}."
        )
    return share


def require_counts(num_train: int, num_test: int) -> None:
    """Refuses counts of made items that leave a split empty, or too small for scores."""
    if num_train < 1 or num_test < LEAST:
        name, value, least = ("num_train", num_train, 1) if num_train < 1 else ("num_test", num_test, LEAST)
        raise ValueError(f"{name} must be at least {least}, got {value}.")


def require_share(test_fraction: float) -> None:
    """Refuses a held-out share that leaves one of the splits empty."""
    if not 0.0 < test_fraction < 1.0:
        raise ValueError(f"test_fraction must be in (0, 1), got {test_fraction}.")


def as_test(found: dict[str, Part]) -> dict[str, Part]:
    """Returns splits as they were found; a validation split without a test split is the test split.

    What chooses must not be what is scored, and validation items can still be cut from the training split.
    """
    if "val" not in found or "test" in found:
        return found
    return {"test" if name == "val" else name: part for name, part in found.items()}
