"""The work of genlab's side of a benchmark against other libraries, one function a job.

Imported from the project's root as `benchmarks.genlab_jobs`. Each takes the job's numbers (`batch`,
`features`, `steps`, ...) and returns what does one round of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from torch import nn

from genlab.bijections.base import BijectionFactory
from genlab.bijections.elementwise import Affine
from genlab.bijections.flows import CouplingFlow, Glow
from genlab.data.text import TextFile
from genlab.data.torchvision_sets import MNIST
from genlab.families.autoregressive import Autoregressive
from genlab.families.base import Model
from genlab.families.codes import perplexity
from genlab.families.diffusion import Diffusion
from genlab.families.flow import Flow
from genlab.families.vae import VAE
from genlab.losses.likelihoods import Bernoulli
from genlab.networks.autoencoder import MLPDecoder, MLPEncoder
from genlab.networks.conditioner import ConvConditioner, MLPConditioner
from genlab.networks.quantizer import EMACodebook, straight_through
from genlab.networks.transformer import CausalTransformer
from genlab.networks.unet import UNet
from genlab.processes.chain import DiscreteChain
from genlab.processes.grids import UniformGrid
from genlab.samplers.ancestral import DDIM
from genlab.shapes import DataSpec

QUIET: Any = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


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


def vae_step(ctx: Any) -> dict[str, Any]:
    """Trains a VAE of one hidden layer on one batch of black and white images."""
    model = _vae(DataSpec("images", (1, 28, 28), levels=2), ctx)
    batch = torch.randint(2, (ctx.batch, 1, 28, 28)) * 2.0 - 1.0
    return _training(model, model.configure_optimizers()["optimizer"], {"image": batch}, ctx)


def vae_train(ctx: Any) -> dict[str, Any]:
    """Trains a VAE of one hidden layer for an epoch of binarised MNIST, by the trainer and its loader."""
    folder = Path(ctx.data) / f"mnist{ctx.images}" / "data"
    data = MNIST(path=str(folder), binarize=True, batch_size=ctx.batch)
    model = _vae(DataSpec("mnist", (1, 28, 28), levels=2), ctx)

    def run(number: int) -> int:
        trainer = Trainer(max_epochs=1, accelerator="cpu", limit_val_batches=0, **QUIET)
        trainer.fit(model, data)
        return int(trainer.global_step) * ctx.batch

    return {"run": run, "params": _num_parameters(model)}


def vq_step(ctx: Any) -> dict[str, Any]:
    """Finds the nearest codes of vectors, moves the codes, and passes the gradient straight through."""
    book = EMACodebook(ctx.dim, ctx.codes).train()
    z = torch.randn(ctx.batch, ctx.grid**2, ctx.dim, requires_grad=True)

    def step() -> None:
        index = book(z)
        codes = book.look_up(index)
        perplexity(book.update(z, index))
        commitment = (z - codes).square().mean()
        (straight_through(z, codes).square().mean() + 0.25 * commitment).backward()

    return _rounds(step, ctx, book, ctx.batch * ctx.grid**2)


def gpt_train(ctx: Any) -> dict[str, Any]:
    """Trains GPT of a file's characters as `genlab fit` does: its loader, clipped gradients, AdamW."""
    data = TextFile(str(ctx.text), context=ctx.block, batch_size=ctx.batch)
    network = partial(
        CausalTransformer, num_layers=ctx.layers, num_heads=ctx.heads, width=ctx.dim, dropout=ctx.dropout
    )
    numbers: dict[str, Any] = {"lr": ctx.lr, "betas": tuple(ctx.betas), "weight_decay": ctx.weight_decay}
    model = Autoregressive(data.spec, network, partial(torch.optim.AdamW, fused=True, **numbers))
    model.train().setup("fit")
    optimizer = model.configure_optimizers()["optimizer"]
    batches = chain.from_iterable(repeat(data.train_dataloader()))

    def step() -> None:
        optimizer.zero_grad()
        model.losses(next(batches))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.network.parameters(), ctx.clip)
        optimizer.step()

    return _rounds(step, ctx, model, ctx.batch * ctx.block)


def _vae(spec: DataSpec, ctx: Any) -> VAE:
    networks = partial(MLPEncoder, hidden=[ctx.hidden]), partial(MLPDecoder, hidden=[ctx.hidden])
    optimizer = partial(torch.optim.Adam, lr=ctx.lr, fused=True)
    return VAE(spec, *networks, Bernoulli, optimizer, latent_dim=ctx.latent)


def ddpm_train(ctx: Any) -> dict[str, Any]:
    """Trains DDPM's U-Net as `genlab fit` does: clipped gradients, AdamW, an average of the weights."""
    model = _ddpm(ctx).train()
    optimizer = model.configure_optimizers()["optimizer"]
    batch = torch.rand(ctx.batch, *ctx.image) * 2 - 1

    def step() -> None:
        optimizer.zero_grad()
        model.losses({"image": batch})["loss"].backward()
        torch.nn.utils.clip_grad_norm_(model.network.parameters(), ctx.clip)
        optimizer.step()
        model.update_average()

    return _rounds(step, ctx, model)


def ddim_sample(ctx: Any) -> dict[str, Any]:
    """Samples from the same network by DDIM."""
    model = _ddpm(ctx).eval()

    def run(number: int) -> int:
        steps = ctx.sampling_steps if number >= 0 else ctx.warmup_sampling_steps
        for _ in range(ctx.steps):
            model.sample_with(DDIM(UniformGrid(steps)), ctx.batch)
        return ctx.steps * ctx.batch

    return {"run": run, "params": _num_parameters(model)}


def _ddpm(ctx: Any) -> Diffusion:
    first, *_ = widths = tuple(ctx.dim * factor for factor in ctx.mults)
    # The last width gives the peers' number of parameters; all attend at the two smaller sizes.
    widths = (*widths[:-1], widths[-1] + first // 4)
    side = ctx.image[1]
    network = partial(UNet, channels=widths, num_blocks=1, attention=(side // 2, side // 4), num_groups=8)
    model = Diffusion(
        DataSpec("images", ctx.image),
        network,
        DiscreteChain(ctx.timesteps),
        partial(torch.optim.AdamW, lr=getattr(ctx, "lr", 1e-4), fused=True),
        half_life=round(ctx.batch * math.log(0.5) / math.log(getattr(ctx, "ema", 0.995))),
    )
    model.setup("fit")
    return model


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
    model = Flow(spec, bijection, partial(torch.optim.Adam, lr=ctx.lr, fused=True), compile=compiled)
    batch = {"image" if spec.kind == "image" else "point": torch.randn(ctx.batch, *spec.shape) * 0.5}
    return _training(model, model.configure_optimizers()["optimizer"], batch, ctx)


def _training(model: Model, optimizer: Any, batch: Any, ctx: Any) -> dict[str, Any]:
    model.train().setup("fit")

    def step() -> None:
        optimizer.zero_grad()
        model.losses(batch)["loss"].backward()
        optimizer.step()

    return _rounds(step, ctx, model)


def _flow_sampling(spec: DataSpec, bijection: BijectionFactory, ctx: Any) -> dict[str, Any]:
    model = Flow(spec, bijection, torch.optim.Adam).eval()
    model.setup("predict")

    def step() -> None:
        model.decode(torch.randn(ctx.batch, model.latent_dim))

    return _rounds(step, ctx, model)


def _rounds(
    step: Callable[[], None], ctx: Any, model: nn.Module, num_items: int | None = None
) -> dict[str, Any]:
    def run(number: int) -> int:
        num = ctx.steps if number >= 0 else max(1, ctx.steps // 4)
        for _ in range(num):
            step()
        return num * (num_items or ctx.batch)

    step()  # compiles before the warm-up
    return {"run": run, "params": _num_parameters(model)}


def _num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
