"""The oracle table: what each sampler makes of normal data, where the best denoiser is known."""

import pytest
from gaussian_oracle import STD, moments

from genlab.processes.chain import DiscreteChain
from genlab.processes.grids import RatioGrid, UniformGrid
from genlab.processes.sde import EDM
from genlab.samplers.ancestral import DDIM, Ancestral
from genlab.samplers.ode import DPMSolver, Euler, Heun

pytestmark = pytest.mark.bench

ROWS = [
    ("Euler, EDM grid", EDM(), lambda n: Euler(RatioGrid(n)), (18, 35, 64, 128)),
    ("Heun, EDM grid", EDM(), lambda n: Heun(RatioGrid(n)), (18, 35, 64, 128)),
    ("DPM++2M, EDM grid", EDM(), lambda n: DPMSolver(RatioGrid(n)), (18, 35, 64, 128)),
    ("DDIM eta 0, chain", DiscreteChain(), lambda n: DDIM(UniformGrid(n)), (50, 100, 250, 1000)),
    ("DDIM eta 1, chain", DiscreteChain(), lambda n: DDIM(UniformGrid(n), eta=1.0), (50, 100, 250, 1000)),
    ("DDPM, chain", DiscreteChain(), lambda n: Ancestral(UniformGrid(n)), (50, 100, 250, 1000)),
]


def test_print_the_error_of_the_standard_deviation():
    print("\nrelative error of the standard deviation, started from the exact q(x_T), float64")
    print(f"{'sampler':<20}{'steps':>6}" + "".join(f"  std {std:<4g}" for std in STD.tolist()))
    for name, process, make, numbers in ROWS:
        for num in numbers:
            std = moments(make(num), process)[1]
            errors = ((std - STD).abs() / STD).tolist()
            print(f"{name:<20}{num:>6}" + "".join(f"{error:>10.4%}" for error in errors))
