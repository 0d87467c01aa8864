r"""An own sampler: a way from noise to data along what a diffusion model sees.

genlab fit --config flow_matching_digits --allow genlab.cli.templates \
    --model.sampler genlab.cli.templates.sampler.NewSampler
"""

from __future__ import annotations

from torch import Tensor

from genlab.processes.base import Denoiser, Level, Process, noise_of
from genlab.processes.grids import Grid, UniformGrid
from genlab.samplers.base import Noise, Sampler, steps


class NewSampler(Sampler):
    """Goes on with what the last two steps saw: order 2 on even steps, one network pass a step.

        D = 3/2 D_t - 1/2 D_before

    The method of Adams and Bashforth for the probability flow, as in Liu et al. 2022 (arXiv:2202.09778); the
    first step is Euler's.

    Args:
        grid: Levels; 20 even steps of time where it is left out.
    """

    is_deterministic = True

    def __init__(self, grid: Grid | None = None) -> None:
        super().__init__(grid or UniformGrid(20))

    def walk(
        self, process: Process, denoise: Denoiser, x: Tensor, levels: list[Level], noise: Noise
    ) -> Tensor:
        # x = alpha data + sigma noise at each level, the last of which has no noise.
        before = None
        for _, t, s in steps(levels):
            data = denoise(x, t)
            seen = data, noise_of(x, data, t)
            to_data, to_noise = seen if before is None else _extrapolated(seen, before)
            x = x + (s.alpha - t.alpha) * to_data + (s.sigma - t.sigma) * to_noise
            before = seen
        return x


def _extrapolated(seen: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Returns data and noise as half a step further on, if they go on changing as they did."""
    return tuple(1.5 * now - 0.5 * then for now, then in zip(seen, before, strict=True))
