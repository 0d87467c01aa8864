"""What a sample costs: time, network passes, memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from genlab.evaluation.given import given_for
from genlab.evaluation.score import sample_levels
from genlab.families.base import Model

BATCH = 64
REPEATS = 30
SECONDS = 1.0
"""Time for the repeats at each batch size; a sampler that is slower is timed once."""

PATIENCE = 60.0
"""Most seconds, in units of the time for repeats, that a draw may be expected to take."""


def measure_speed(
    model: Model, seconds: float = SECONDS, repeats: int = REPEATS, seed: int = 0, data: Any = None
) -> dict[str, Any]:
    """Returns what drawing a sample costs, on the model's device and with the process's threads.

    `ms_per_sample` and `samples_per_second_1` come from samples drawn one at a time, `samples_per_second_64`
    from 64 at a time; each is the median of the repeats after a first draw that does not count. A sampler for
    which 64 would take too long is timed with `batch`, 8 or 1, at a time. `nfe` is the number of network
    passes that the model declares. `peak_memory_mib` is the model's weights and the most memory that a draw
    holds beside them, as the GPU's allocator counts it; None on a CPU, which counts none.

    Args:
        model: Can be sampled.
        seconds: Time for the repeats at each batch size.
        repeats: Most repeats.
        seed: Of the samples.
        data: Holds the sources of a model that is told one.
    """

    def draw(num: int) -> Callable[[], Any]:
        index = torch.arange(num)
        given = given_for(model, index, data)
        return lambda: sample_levels(model, index, seed, given)

    first = _timed(draw(1), model.device)
    alone = first if first > seconds else _median(draw(1), model.device, seconds, repeats)
    batch, together = _largest_batch(draw, model.device, alone, PATIENCE * seconds)
    if together <= seconds:
        together = _median(draw(batch), model.device, seconds, repeats)
    return {
        "ms_per_sample": 1e3 * alone,
        "samples_per_second_1": 1.0 / alone,
        "samples_per_second_64": batch / together,
        "batch": batch,
        "nfe": model.passes,
        "peak_memory_mib": peak_memory(model, draw(batch)),
        "device": device_name(model.device),
        "threads": torch.get_num_threads(),
    }


def peak_memory(model: Model, draw: Callable[[], Any]) -> float | None:
    """Returns the MiB of the weights and of the most that a draw holds at one time; None without a GPU."""
    if model.device.type != "cuda":
        return None
    weights = sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
    before = torch.cuda.memory_allocated(model.device)
    torch.cuda.reset_peak_memory_stats(model.device)
    draw()
    return (weights + torch.cuda.max_memory_allocated(model.device) - before) / 2**20


def device_name(device: torch.device) -> str:
    """Returns the name of a GPU, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _largest_batch(
    draw: Callable[[int], Callable[[], Any]], device: torch.device, alone: float, patience: float
) -> tuple[int, float]:
    """Returns the largest of 1, 8 and 64 samples whose draw is expected to end in time, and its seconds.

    A draw is expected to grow as the one before grew; the first step is taken where one sample is in time.
    """
    size, took, growth = 1, alone, 1.0
    while size < BATCH and took * growth <= patience:
        before, size = took, size * 8
        took = _timed(draw(size), device)
        growth = max(1.0, took / before)
    return size, took


def _median(draw: Callable[[], Any], device: torch.device, seconds: float, repeats: int) -> float:
    times: list[float] = []
    while not times or (sum(times) < seconds and len(times) < repeats):
        times.append(_timed(draw, device))
    return statistics.median(times)


def _timed(draw: Callable[[], Any], device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    draw()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    """Waits until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
