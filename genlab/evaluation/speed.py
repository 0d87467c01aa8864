"""What a sample costs: time, network evaluations, memory."""

from __future__ import annotations

import statistics
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genlab.evaluation.score import sample_levels
from genlab.families.base import Model

BATCH = 64
REPEATS = 30
SECONDS = 1.0
"""Time for the repeats at each batch size; a sampler that is slower is timed once."""


class _Enough(Exception):  # noqa: N818 - not an error: ends a sampler whose pace is known
    pass


class Evaluations:
    """Counts how often the trained networks are evaluated for each sample, while hooks are on.

    A network is the outermost trained module that is called; what it calls itself is a part of it. Each of
    a model's parts counts with the network in it that is called most: a flow's layers, each with its own
    network called once, are one evaluation, and a denoiser called in every step is as many as there are
    steps. A call with twice the batch's rows, as guidance makes it, counts twice.

    Args:
        batch: Samples drawn at a time.
        seconds: Time after which the sampler is interrupted by `_Enough`, at an evaluation; None for never.
    """

    def __init__(self, batch: int, seconds: float | None = None) -> None:
        self.batch, self.seconds = batch, seconds
        self.times: list[float] = []
        self._calls: dict[tuple[str, str], float] = defaultdict(float)
        self._depth = 0
        self._device = torch.device("cpu")

    @property
    def per_sample(self) -> float:
        """Evaluations for each sample; 0 where no trained module was called."""
        parts: dict[str, float] = defaultdict(float)
        for (part, _), calls in self._calls.items():
            parts[part] = max(parts[part], calls)
        return sum(parts.values())

    @contextmanager
    def counting(self, model: Model) -> Iterator[Evaluations]:
        """Counts inside the block."""
        handles, self._device = [], model.device
        for part, child in model.named_children():
            for name, module in child.named_modules():
                if any(True for _ in module.parameters()):
                    enter, leave = self._enter((part, name)), self._leave
                    handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
                    handles.append(module.register_forward_hook(leave, always_call=True))
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, place: tuple[str, str]) -> Callable[..., None]:
        def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self._depth == 0:
                self._check_clock()
                rows = next((len(x) for x in tree_leaves((args, kwargs)) if _is_batch(x)), self.batch)
                self._calls[place] += max(1.0, rows / self.batch)
            self._depth += 1

        return enter

    def _leave(self, *_: Any) -> None:
        self._depth -= 1

    def _check_clock(self) -> None:
        if self.seconds is not None:
            synchronise(self._device)
        self.times.append(time.perf_counter())
        if self.seconds is not None and self.times[-1] - self.times[0] > self.seconds:
            raise _Enough


def _is_batch(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0


class LiveBytes(TorchDispatchMode):
    """Sums the bytes of all tensors made inside and still alive; `peak` is the largest sum at any time.

    What a library takes inside of one operation is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(outputs):
            if isinstance(x, Tensor):
                self._watch(x.untyped_storage(), given)
        return outputs

    def _watch(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address in self._known or address in given:  # a view, or in place
            return
        self._known.add(address)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, address, size)

    def _release(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size


def measure_speed(
    model: Model, seconds: float = SECONDS, repeats: int = REPEATS, seed: int = 0
) -> dict[str, Any]:
    """Returns what drawing a sample costs, on the model's device and with the process's threads.

    `ms_per_sample` and `samples_per_second_1` come from samples drawn one at a time, `samples_per_second_64`
    from 64 at a time; each is the median of the repeats after a first draw that does not count. `nfe` is the
    number of network evaluations for a sample, as `Evaluations` counts them. `peak_memory_mib` is the model's
    weights and the most memory that the tensors of a draw of 64 hold at one time: on CUDA as the allocator
    counts it, on a CPU as the sum of the tensors alive.

    A draw of 64 that takes longer than the time for all repeats is interrupted, and its time follows from the
    evaluations made and still to make.

    Args:
        model: Can be sampled.
        seconds: Time for the repeats at each batch size.
        repeats: Most repeats.
        seed: Of the samples.
    """
    one, many = (torch.arange(num) for num in (1, BATCH))

    def draw(index: Tensor) -> None:
        sample_levels(model, index, seed)

    with Evaluations(1).counting(model) as evaluations:
        first = _timed(lambda: draw(one), model.device)
    times = [first] if first > seconds else _repeated(lambda: draw(one), model.device, seconds, repeats)
    peak = peak_memory(model, lambda: draw(many), seconds)
    together = _time_of_many(model, lambda: draw(many), len(evaluations.times), seconds, repeats)
    per_sample = statistics.median(times)
    nfe = evaluations.per_sample
    return {
        "ms_per_sample": 1e3 * per_sample,
        "samples_per_second_1": 1.0 / per_sample,
        "samples_per_second_64": BATCH / together,
        "nfe": (int(nfe) if nfe == int(nfe) else nfe) if nfe else None,
        "peak_memory_mib": peak / 2**20,
        "device": device_name(model.device),
        "threads": torch.get_num_threads(),
    }


def peak_memory(model: Model, draw: Callable[[], None], seconds: float | None = None) -> int:
    """Returns the bytes of the weights and of the most that a draw holds at one time; see `measure_speed`.

    Args:
        model: Draws.
        draw: What is measured.
        seconds: A draw that takes longer is interrupted: each step of a sampler needs as much as the last.
    """
    weights = sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers()))
    with Evaluations(BATCH, seconds).counting(model):
        if model.device.type == "cuda":
            before = torch.cuda.memory_allocated(model.device)
            torch.cuda.reset_peak_memory_stats(model.device)
            _until_enough(draw)
            return weights + torch.cuda.max_memory_allocated(model.device) - before
        with LiveBytes() as tensors:
            _until_enough(draw)
    return weights + tensors.peak


def device_name(device: torch.device) -> str:
    """Returns the name of a GPU, or `cpu`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _time_of_many(
    model: Model, draw: Callable[[], None], num_evaluations: int, seconds: float, repeats: int
) -> float:
    """Returns the seconds of one draw, from a part of it where it takes long."""
    with Evaluations(BATCH, seconds).counting(model) as part:
        is_whole = _until_enough(draw)
    if is_whole:
        return statistics.median(_repeated(draw, model.device, seconds, repeats))
    return (part.times[-1] - part.times[0]) / (len(part.times) - 1) * num_evaluations


def _repeated(draw: Callable[[], None], device: torch.device, seconds: float, repeats: int) -> list[float]:
    times: list[float] = []
    while not times or (sum(times) < seconds and len(times) < repeats):
        times.append(_timed(draw, device))
    return times


def _timed(draw: Callable[[], None], device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    draw()
    synchronise(device)
    return time.perf_counter() - start


def _until_enough(draw: Callable[[], None]) -> bool:
    try:
        draw()
    except _Enough:
        return False
    return True


def synchronise(device: torch.device) -> None:
    """Waits until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
