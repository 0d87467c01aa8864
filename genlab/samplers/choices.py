"""Which samplers can walk with a model that is already trained, at a given price."""

from __future__ import annotations

from collections.abc import Callable

from genlab.processes.base import Process
from genlab.processes.grids import RatioGrid, UniformGrid
from genlab.processes.sde import EDM, SDE, NoiseLadder
from genlab.samplers.ancestral import DDIM, Ancestral
from genlab.samplers.base import Sampler
from genlab.samplers.ode import DPMSolver, Heun
from genlab.samplers.sde import AnnealedLangevin, EulerMaruyama, PredictorCorrector

Choice = Callable[[int], Sampler]
"""From a number of network passes to a sampler that takes about as many."""


def fitting_samplers(process: Process) -> dict[str, Choice]:
    """Returns the samplers that fit a process, by a name that says their grid too.

    Heun's method takes two passes a step, one in the last; so does a predictor with one correction. Even
    steps of time are left out for EDM, whose time is the noise itself.
    """

    def karras(num_steps: int) -> RatioGrid:
        return RatioGrid(num_steps, largest=80.0)

    choices: dict[str, Choice] = {
        "DDIM, Karras grid": lambda n: DDIM(karras(n)),
        "Heun, Karras grid": lambda n: Heun(karras(_pairs(n))),
        "DPM++2M, Karras grid": lambda n: DPMSolver(karras(n)),
        "ancestral, Karras grid": lambda n: Ancestral(karras(n)),
    }
    if not isinstance(process, EDM):
        choices |= {
            "DDIM, even times": lambda n: DDIM(UniformGrid(n)),
            "Heun, even times": lambda n: Heun(UniformGrid(_pairs(n))),
            "DPM++2M, even times": lambda n: DPMSolver(UniformGrid(n)),
            "ancestral, even times": lambda n: Ancestral(UniformGrid(n)),
            "predictor-corrector": lambda n: PredictorCorrector(UniformGrid(_pairs(n))),
        }
    if isinstance(process, SDE):
        choices["Euler-Maruyama"] = lambda n: EulerMaruyama(UniformGrid(n))
    if isinstance(process, NoiseLadder):
        num = process.num_levels
        choices["annealed Langevin"] = lambda n: AnnealedLangevin(UniformGrid(num), max(1, n // num))
    return choices


def _pairs(num_passes: int) -> int:
    """Returns the steps whose 2 n - 1 passes are the most within a number, at least one."""
    return max(1, (num_passes + 1) // 2)
