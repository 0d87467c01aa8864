"""Sums over all devices, by whoever trains on one or on many, and how long one process waits for another."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT_VARIABLE = "GENLAB_TIMEOUT"
TIMEOUT = 300.0
"""Seconds that a process waits for another one of its training that does not answer."""


def timeout() -> float:
    """Returns the seconds that a process waits for another one.

    Raises:
        ValueError: $GENLAB_TIMEOUT is no number of seconds.
    """
    given = os.environ.get(TIMEOUT_VARIABLE) or TIMEOUT
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ValueError(f"${TIMEOUT_VARIABLE} must be a positive number of seconds, got {given}.")
    return seconds


def distributed() -> bool:
    """Returns whether this process is one of several, asked anew each time: models are built before."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def place() -> tuple[int, int]:
    """Returns this process's rank and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if distributed() else (0, 1)


def joined_sum(values: Tensor) -> Tensor:
    """Returns the sum over all devices."""
    if not distributed():
        return values
    # Reduced in place, and by some backends only where memory is dense.
    values = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(values)
    return values


def joined_mean(values: Tensor) -> Tensor:
    """Returns the mean over all devices."""
    return joined_sum(values) / dist.get_world_size() if distributed() else values


def joined_rows(rows: Tensor) -> Tensor:
    """Returns the rows of all devices, one device's after another's, through which gradients pass.

    Each must have as many. The gradient of a row is the sum of what all devices have for it.
    """
    return _JoinedRows.apply(rows) if distributed() else rows


@torch.no_grad()
def gathered(rows: Tensor) -> Tensor:
    """Returns the rows of all devices, which may have unequally many, one device's after another's."""
    if not distributed():
        return rows
    counts = joined_rows(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = joined_rows(padded).split(max(counts))
    return torch.cat([part[:num] for part, num in zip(parts, counts, strict=True)])


def joined_counts(index: Tensor, num: int) -> Tensor:
    """Returns how often each number of 0 ... num - 1 occurs, over all devices, (num,)."""
    return joined_sum(torch.bincount(index.flatten(), minlength=num).float())


class _JoinedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(place()[1])]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        rank, world_size = place()
        return joined_sum(gradient).chunk(world_size)[rank]
