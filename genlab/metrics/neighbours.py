"""Distances between many feature vectors, in pieces that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from genlab.metrics.base import exact

_CHUNK_ENTRIES = 2**23  # of a piece of the distance matrix: 64 MB in float64


def row_chunks(num_rows: int, num_columns: int) -> Iterator[slice]:
    """Yields slices that cover the rows of a large matrix, few enough at a time for the memory."""
    step = max(1, _CHUNK_ENTRIES // max(1, num_columns))
    for start in range(0, num_rows, step):
        yield slice(start, min(start + step, num_rows))


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Returns |a_i - b_j|^2, (len(a), len(b)), for float64 vectors.

    Rows that differ by less than float32 can tell (1e-7 of their length) are at distance 0: the features
    are float32, and a copy of an image must not count as a neighbour at some rounding's distance.
    """
    lengths = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)[None, :]
    squared = torch.addmm(lengths, a, b.mT, alpha=-2.0)
    return squared.masked_fill_(squared < 1e-14 * lengths, 0.0)


def neighbour_distances(a: Tensor, b: Tensor | None = None, k: int = 1) -> Tensor:
    """Returns the squared distance of every row of a to its k-th nearest row of b, (len(a),), float64.

    Args:
        a: The rows that look for neighbours.
        b: The rows to look among; None looks among the other rows of a.
        k: 1 is the nearest.
    """
    a = exact(a)
    others = a if b is None else exact(b)
    nearest = []
    for rows in row_chunks(len(a), len(others)):
        squared = squared_distances(a[rows], others)
        if b is None:
            squared.diagonal(offset=rows.start).fill_(torch.inf)
        nearest.append(squared.kthvalue(k, dim=1).values if k > 1 else squared.amin(dim=1))
    return torch.cat(nearest)


def nearest_rows(a: Tensor, b: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Returns the distances of every row of a to its k nearest rows of b, and their places, nearest first.

    Shapes:
        a: (n, d); b: (m, d), m >= k. Returns (n, k), float64, and (n, k), int64.
    """
    a, b = exact(a), exact(b)
    found = [
        squared_distances(a[rows], b).topk(k, dim=1, largest=False) for rows in row_chunks(len(a), len(b))
    ]
    return torch.cat([part.values for part in found]).sqrt(), torch.cat([part.indices for part in found])
