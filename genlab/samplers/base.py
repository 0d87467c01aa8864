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

    def levels_from(self, process: Process, strength: float) -> list[Level]:
        """Returns the levels of a walk that begins with a noised image.

        Args:
            process: How data become noise.
            strength: Share of the steps that are walked: near 0 keeps the image, 1 forgets it.
        """
        if not 0.0 < strength <= 1.0:
            raise ValueError(f"strength must be in (0, 1], got {strength}: 1 forgets the image.")
        levels = self.grid.levels(process)
        num_steps = max(1, round(strength * (len(levels) - 1)))
        return levels[-num_steps - 1 :]

    def passes(self, process: Process) -> int:
        """Returns how often the denoiser is asked for one sample."""
        return self.passes_in(len(self.grid.levels(process)) - 1)

    def passes_in(self, num_steps: int) -> int:
        """Returns how often it is asked in so many steps: once in each, unless a sampler says otherwise."""
        return num_steps

    @abstractmethod
    def walk(
        self, process: Process, denoise: Denoiser, x: Tensor, levels: list[Level], noise: Noise
    ) -> Tensor:
        """Returns data from x at the first of the levels."""


def steps(levels: list[Level]) -> Iterator[tuple[int, Level, Level]]:
    """Yields each step's number, the level that it leaves and the one that it reaches."""
    for number, (t, s) in enumerate(pairwise(levels)):
        yield number, t, s
