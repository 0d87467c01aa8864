"""Likelihood and training steps a second of flows beside those of normflows and zuko, in one run.

    python tests/bench_flows.py [SEEDS [STEPS]]        prints a table
    pytest -m bench tests/bench_flows.py

All learn the same fresh points of a density in the plane in the same order, by couplings of the same kind,
number and width, from a standard normal latent, by the same fused Adam along a cosine. They train in turns of
some steps, so that what slows the machine slows all of them; the ratio is taken in each turn, against the
faster of the others, and the first turn, in which things are compiled, does not count. The excess is the mean
of log p_data - log p_model over points that nobody trained on: an estimate of the divergence, in nats.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from genlab import randomness
from genlab.bijections.elementwise import Affine, Elementwise, Spline
from genlab.bijections.flows import CouplingFlow
from genlab.data.toy import Checkerboard, EightGaussians, PointData, TwoMoons
from genlab.families.flow import Flow
from genlab.networks.conditioner import MLPConditioner

BATCH = 256
TURN = 100
WIDTH = 4.0  # of the splines' interval
REQUIRED = 1.2
TOLERANCE = 0.01  # nats: how far seeds differ


@dataclass
class Case:
    """A density and the couplings that all of the libraries learn it by; num_bins 0 means affine ones."""

    data: PointData
    num_couplings: int
    hidden: tuple[int, ...]
    num_bins: int = 0


@dataclass
class Entry:
    """A library's flow: its parameters, the loss that it minimises, and log p of points."""

    module: nn.Module
    loss: Callable[[Tensor], Tensor]
    log_prob: Callable[[Tensor], Tensor]


CASES = {
    "two moons, affine": Case(TwoMoons(), 8, (64, 64)),
    "8 Gaussians, spline": Case(EightGaussians(), 6, (64, 64, 64), num_bins=8),
    "checkerboard, spline": Case(Checkerboard(), 6, (64, 64, 64), num_bins=16),
}


def genlab(case: Case) -> Entry:
    transform: Elementwise = Spline(case.num_bins, WIDTH) if case.num_bins else Affine()
    bijection = partial(
        CouplingFlow,
        network=partial(MLPConditioner, hidden=case.hidden, zero_start=bool(case.num_bins)),
        transform=transform,
        num_couplings=case.num_couplings,
        norm=False,
        learned_prior=False,
    )
    flow = Flow(case.data.spec, bijection, torch.optim.Adam, compile=True).train()
    flow.setup("fit")  # as a trainer does
    return Entry(flow, lambda x: flow.losses({"point": x})["loss"], flow.log_prob)


def normflows(case: Case) -> Entry:
    import normflows as nf

    layers = []
    for number in range(case.num_couplings):
        if case.num_bins:  # one residual block of two layers and one layer before it
            layers.append(
                nf.flows.CoupledRationalQuadraticSpline(
                    2,
                    1,
                    case.hidden[0],
                    num_bins=case.num_bins,
                    tail_bound=WIDTH,
                    reverse_mask=bool(number % 2),
                )
            )
        else:
            layers += [nf.flows.AffineCouplingBlock(nf.nets.MLP([1, *case.hidden, 2], init_zeros=True)),
                       nf.flows.Permute(2, mode="swap")]  # fmt: skip
    flow = nf.NormalizingFlow(nf.distributions.DiagGaussian(2, trainable=False), layers)
    return Entry(flow, flow.forward_kld, flow.log_prob)


def zuko(case: Case) -> Entry:
    import zuko

    if not case.num_bins:
        flow = zuko.flows.RealNVP(2, transforms=case.num_couplings, hidden_features=case.hidden)
    else:
        shapes = [(case.num_bins,), (case.num_bins,), (case.num_bins - 1,)]
        flow = zuko.flows.NICE(
            2,
            transforms=case.num_couplings,
            univariate=partial(zuko.transforms.MonotonicRQSTransform, bound=WIDTH),
            shapes=shapes,
            hidden_features=case.hidden,
        )
    return Entry(flow, lambda x: -flow().log_prob(x).mean(), lambda x: flow().log_prob(x))


LIBRARIES: dict[str, Callable[[Case], Entry]] = {"genlab": genlab, "normflows": normflows, "zuko": zuko}


@dataclass
class Found:
    """One seed's numbers: parameters, mean -log p and its excess in nats, steps a second in each turn."""

    params: int
    nll: float
    excess: float
    rates: list[float]


def trained(case: Case, seed: int, num_steps: int) -> dict[str, Found]:
    """Returns what every library reaches; they train in turns."""
    torch.manual_seed(seed)
    entries = {name: make(case) for name, make in LIBRARIES.items()}
    optimizers = {
        name: torch.optim.Adam(entry.module.parameters(), lr=1e-3, fused=True)
        for name, entry in entries.items()
    }
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, num_steps) for o in optimizers.values()]
    rates: dict[str, list[float]] = {name: [] for name in entries}
    for turn in range(num_steps // TURN):
        index = torch.arange(turn * TURN * BATCH, (turn + 1) * TURN * BATCH)
        batches = case.data.draw(randomness.key("bench", seed), index).float().split(BATCH)
        for (name, entry), schedule in zip(entries.items(), schedules, strict=True):
            start = time.perf_counter()
            for batch in batches:
                optimizers[name].zero_grad()
                entry.loss(batch).backward()
                optimizers[name].step()
                schedule.step()
            rates[name].append(TURN / (time.perf_counter() - start))
    x = case.data.draw(randomness.key("bench", "test"), torch.arange(50_000)).float()
    best = case.data.log_density(x.double())
    with torch.no_grad():
        log_prob = {name: entry.log_prob(x).double() for name, entry in entries.items()}
    return {
        name: Found(
            sum(p.numel() for p in entries[name].module.parameters() if p.requires_grad),
            -log_prob[name].mean().item(),
            (best - log_prob[name]).mean().item(),
            rates[name][1:],
        )
        for name in entries
    }


def speed_ratio(found: list[dict[str, Found]]) -> float:
    """Returns the median over all turns of genlab's steps a second by the faster peer's."""
    ratios = [
        ours / max(theirs)
        for seed in found
        for ours, *theirs in zip(*(entry.rates for entry in seed.values()), strict=True)
    ]
    return statistics.median(ratios)


def mean_excess(found: list[dict[str, Found]]) -> dict[str, float]:
    return {name: statistics.mean(seed[name].excess for seed in found) for name in found[0]}


@pytest.mark.bench
@pytest.mark.parametrize("name", CASES)
def test_flows_are_as_likely_as_those_of_peers_and_train_faster(name):
    for library in ("normflows", "zuko"):
        pytest.importorskip(library)
    torch.set_num_threads(1)
    found = [trained(CASES[name], seed, num_steps=1000) for seed in range(3)]
    excess = mean_excess(found)
    assert excess["genlab"] <= min(excess["normflows"], excess["zuko"]) + TOLERANCE
    assert speed_ratio(found) >= REQUIRED


def main() -> None:
    num_seeds, num_steps = (int(a) for a in (sys.argv[1:] + ["3", "1000"][len(sys.argv) - 1 :])[:2])
    torch.set_num_threads(1)
    print(f"{num_seeds} seeds, {num_steps} steps of {BATCH} points, torch {torch.__version__}, one thread")
    columns = ("", "", "params", "-log p", "excess", "of each seed", "steps/s", "ratio")
    print("{:22}{:11}{:>8}{:>9}{:>9}   {:24}{:>8}{:>7}".format(*columns))
    for name, case in CASES.items():
        found = [trained(case, seed, num_steps) for seed in range(num_seeds)]
        for library in LIBRARIES:
            own = [seed[library] for seed in found]
            nll, excess = (statistics.mean(getattr(entry, key) for entry in own) for key in ("nll", "excess"))
            each = " ".join(f"{entry.excess:.4f}" for entry in own)
            rate = statistics.median(rate for entry in own for rate in entry.rates)
            ratio = f"{speed_ratio(found):7.2f}" if library == "genlab" else ""
            print(f"{name:22}{library:11}{own[0].params:8,}{nll:9.4f}{excess:9.4f}   {each:24}", end="")
            print(f"{rate:8.1f}{ratio}", flush=True)


if __name__ == "__main__":
    main()
