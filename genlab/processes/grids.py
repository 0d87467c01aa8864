"""Which noise levels a sampler or a bound visits."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from genlab.processes.base import CLEAN, Level, Process, positive_shift, shifted


class Grid(ABC):
    """Noise levels from the noisiest to the data.

    The next level is always the next entry of the grid, never t - 1 of the training chain.
    """

    @abstractmethod
    def times(self, process: Process) -> Tensor:
        """Returns falling times at which a network may be asked, float64."""

    def levels(self, process: Process) -> list[Level]:
        """Returns the levels, the data themselves last."""
        times = process.snapped(self.times(process)).unique().flip(0)
        return [*(process.level(t) for t in times.tolist()), CLEAN]


class UniformGrid(Grid):
    """Equal steps in time, with both ends of the training range.

    Args:
        num_steps: Network passes of a sampler of first order.
        leading: Begin at the data's end with steps of (end / num_steps), which leaves the last one short of
            the noise: the published grid of DDIM and of its first implementations.
    """

    def __init__(self, num_steps: int = 50, leading: bool = False) -> None:
        self.num_steps, self.leading = _positive(num_steps), leading

    def times(self, process: Process) -> Tensor:
        if self.leading:
            stride = process.end / self.num_steps
            whole = math.floor(stride) if process.end > 1.0 and stride >= 1.0 else stride
            return process.start + whole * torch.arange(self.num_steps, dtype=torch.float64)
        return torch.linspace(process.end, process.start, self.num_steps, dtype=torch.float64)


class ShiftedGrid(Grid):
    """Equal steps of the share of a path that is walked, moved towards the noise as `shifted` does.

    Esser et al. 2024 (arXiv:2403.03206), section 5.3.2: for data that are seen through more noise.

    Args:
        num_steps: Network passes of a sampler of first order.
        shift: As of the training's `RectifiedFlow`.
    """

    def __init__(self, num_steps: int = 50, shift: float = 3.0) -> None:
        self.num_steps, self.shift = _positive(num_steps), positive_shift(shift)

    def times(self, process: Process) -> Tensor:
        share = shifted(torch.linspace(1.0, 0.0, self.num_steps, dtype=torch.float64), self.shift)
        return process.start + (process.end - process.start) * share


class QuadraticGrid(Grid):
    """Steps that grow towards the noise: t = reach^2 end k^2 / n^2; DDIM's grid for CIFAR-10.

    Song et al. 2021 (arXiv:2010.02502), appendix D.2.

    Args:
        num_steps: Network passes.
        reach: Share of the time that is walked; the published code stops at 0.8.
    """

    def __init__(self, num_steps: int = 50, reach: float = 0.8) -> None:
        if not 0.0 < reach <= 1.0:
            raise ValueError(f"reach must be in (0, 1], got {reach}.")
        self.num_steps, self.reach = _positive(num_steps), reach

    def times(self, process: Process) -> Tensor:
        first, last = math.sqrt(process.start), math.sqrt(self.reach * process.end)
        return torch.linspace(last, first, self.num_steps, dtype=torch.float64) ** 2


class RatioGrid(Grid):
    """Steps in r = sigma / alpha, dense near the data.

        r_i = (r_max^(1/rho) + i / (n - 1) (r_min^(1/rho) - r_max^(1/rho)))^rho

    Karras et al. 2022 (arXiv:2206.00364), equation 5.

    Args:
        num_steps: Network passes of a sampler of first order.
        rho: The higher, the more steps near the data; the paper's 7.
        smallest, largest: Ends of the walk; the process's own where they are left out or lie beyond them.
            Some chains end far above the paper's 80, where steps are wasted.
    """

    def __init__(
        self,
        num_steps: int = 18,
        rho: float = 7.0,
        smallest: float | None = None,
        largest: float | None = None,
    ) -> None:
        if rho <= 0.0:
            raise ValueError(f"rho must be positive, got {rho}.")
        self.num_steps, self.rho = _positive(num_steps), rho
        self.smallest, self.largest = smallest, largest

    def times(self, process: Process) -> Tensor:
        low, high = ratio_range(process)
        starts_at_end = self.largest is None or self.largest >= high
        low, high = max(low, self.smallest or low), min(high, self.largest or high)
        ends = (high ** (1.0 / self.rho), low ** (1.0 / self.rho))
        ratios = torch.linspace(*ends, self.num_steps, dtype=torch.float64) ** self.rho
        times = process.time_of(ratios)
        if starts_at_end:
            times[0] = process.end  # for a straight path the largest ratio is infinite
        return times

    def levels(self, process: Process) -> list[Level]:
        # A chain's levels between two steps are as good: solvers of higher order need the exact spacing.
        return [*(process.level(t) for t in self.times(process).tolist()), CLEAN]


class GivenGrid(Grid):
    """Times that are listed.

    Args:
        values: In the process's own unit, in any order, without 0.
    """

    def __init__(self, values: Sequence[float]) -> None:
        if not values or min(values) <= 0.0:
            raise ValueError(f"values must be positive times, got {list(values)}.")
        self.values = list(values)

    def times(self, process: Process) -> Tensor:
        return torch.tensor(self.values, dtype=torch.float64)


LARGEST_RATIO = 1e4  # where alpha ends at 0; a model's data are then 1e-4 of the noise


def ratio_range(process: Process) -> tuple[float, float]:
    """Returns sigma / alpha at both ends of a process, finite where alpha ends at 0."""
    first, last = process.level(process.start), process.level(process.end)
    high = last.sigma / last.alpha if last.alpha > 0.0 else LARGEST_RATIO
    return first.sigma / first.alpha, min(high, LARGEST_RATIO)


def _positive(num_steps: int) -> int:
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}.")
    return num_steps
