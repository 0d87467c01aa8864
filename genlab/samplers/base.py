"""What every sampler is: a walk over noise levels that asks a denoiser at each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from genlab import randomness
from genlab.processes.base import Denoiser, Level, Process
from genlab.processes.grids import Grid


class Noise:
    """Normal numbers whose row r depends on (seed, sample number r, name) alone.

    Args:
        seed: Of the samples.
        index: Sample numbers, on the device where the noise is wanted.
        shape: Of one sample.
        dtype: Of the numbers.

    Shapes:
        Returns (len(index), *shape).
    """

    def __init__(
        self, seed: int, index: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32
    ) -> None:
        self.seed, self.index, self.shape, self.dtype = seed, index, shape, dtype

    def __call__(self, *name: int | str) -> Tensor:
        return randomness.normal(randomness.key(self.seed, *name), self.index, self.shape, self.dtype)


class Sampler(ABC):
    """Turns noise into data with a denoiser.

    Args:
        grid: The levels to visit.

    Attributes:
        is_deterministic: Whether the sample is a function of its first noise, which then is its latent.

    Shapes:
        x: (batch, ...), at the noise of the grid's first level.
    """

    is_deterministic: bool = False

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def __call__(self, process: Process, denoise: Denoiser, noise: Noise) -> Tensor:
        """Returns samples from nothing but noise."""
        levels = self.grid.levels(process)
        return self.walk(process, denoise, process.prior_std(levels[0]) * noise("latent"), levels, noise)

    def levels_from(self, process: Process, t: float) -> list[Level]:
        """Returns the levels up to a time, for a walk that begins with an image."""
        levels = self.grid.levels(process)
        kept = [level for level in levels if level.t <= t]
        if len(kept) < 2:
            raise ValueError(f"The grid has no level up to time {t}: take a higher strength or more steps.")
        return kept

    @abstractmethod
    def walk(
        self, process: Process, denoise: Denoiser, x: Tensor, levels: list[Level], noise: Noise
    ) -> Tensor:
        """Returns data from x at the first of the levels."""


def steps(levels: list[Level]) -> Iterator[tuple[int, Level, Level]]:
    """Yields each step's number, the level that it leaves and the one that it reaches."""
    for number, (t, s) in enumerate(pairwise(levels)):
        yield number, t, s
