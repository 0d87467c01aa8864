"""The work of genlab's side of a benchmark against other libraries, one function a job.

Each takes the job's numbers (`batch`, `features`, `steps`, ...) and returns what does one round of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from genlab.bijections.base import BijectionFactory
from genlab.bijections.elementwise import Affine
from genlab.bijections.flows import CouplingFlow, Glow
from genlab.families.flow import Flow
from genlab.networks.conditioner import ConvConditioner, MLPConditioner
from genlab.shapes import DataSpec


def flow2d_train(ctx: Any) -> dict[str, Any]:
    """Trains affine couplings of the two halves of a vector."""
    return _flow_training(DataSpec("points", (ctx.features,), levels=0), _vectors(ctx), ctx, compiled=True)


flow28_train = flow2d_train


def flow2d_sample(ctx: Any) -> dict[str, Any]:
    """Samples from affine couplings of the two halves of a vector."""
    return _flow_sampling(DataSpec("points", (ctx.features,), levels=0), _vectors(ctx), ctx)


flow28_sample = flow2d_sample


def glow_train(ctx: Any) -> dict[str, Any]:
    """Trains Glow on images of continuous numbers."""
    return _flow_training(DataSpec("images", ctx.image, levels=0), _glow(ctx), ctx)


def glow_sample(ctx: Any) -> dict[str, Any]:
    """Samples from Glow."""
    return _flow_sampling(DataSpec("images", ctx.image, levels=0), _glow(ctx), ctx)


def _vectors(ctx: Any) -> BijectionFactory:
    network = partial(MLPConditioner, hidden=ctx.hidden)
    return partial(
        CouplingFlow,
        network=network,
        transform=Affine(),
        num_couplings=ctx.layers,
        norm=False,
        learned_prior=False,
    )


def _glow(ctx: Any) -> BijectionFactory:
    network = partial(ConvConditioner, hidden_channels=ctx.hidden)
    return partial(Glow, network=network, num_levels=ctx.levels, num_steps=ctx.depth)


def _flow_training(
    spec: DataSpec, bijection: BijectionFactory, ctx: Any, compiled: bool = False
) -> dict[str, Any]:
    model = Flow(spec, bijection, partial(torch.optim.Adam, lr=ctx.lr, fused=True), compile=compiled).train()
    model.setup("fit")
    optimizer = model.configure_optimizers()["optimizer"]
    batch = torch.randn(ctx.batch, *spec.shape) * 0.5
    name = "image" if spec.is_image else "point"

    def step() -> None:
        optimizer.zero_grad()
        model.losses({name: batch})["loss"].backward()  # type: ignore[misc]
        optimizer.step()

    return _rounds(step, ctx, model)


def _flow_sampling(spec: DataSpec, bijection: BijectionFactory, ctx: Any) -> dict[str, Any]:
    model = Flow(spec, bijection, torch.optim.Adam).eval()
    model.setup("predict")

    def step() -> None:
        model.decode(torch.randn(ctx.batch, model.latent_dim))

    return _rounds(step, ctx, model)


def _rounds(step: Callable[[], None], ctx: Any, model: nn.Module) -> dict[str, Any]:
    def run(number: int) -> int:
        num = ctx.steps if number >= 0 else max(1, ctx.steps // 4)
        for _ in range(num):
            step()
        return num * ctx.batch

    step()  # compiles before the warm-up
    return {"run": run, "params": sum(p.numel() for p in model.parameters() if p.requires_grad)}
