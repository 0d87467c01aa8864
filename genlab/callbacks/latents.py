"""What a latent space holds, while it is learned: its use, its reconstructions, its directions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from genlab.callbacks.record import log_image, say
from genlab.distributed import place
from genlab.evaluation.given import given_for
from genlab.evaluation.latents import reconstruct, traverse
from genlab.evaluation.pictures import captioned, grid, new_figure, rendered
from genlab.families.capabilities import HasCode, HasLatent, HasPosterior, Reconstructs, can
from genlab.metrics.posterior import ActiveUnits
from genlab.randomness import key, normal
from genlab.shapes import observed


class PosteriorHealth(Callback):
    """Logs how many dimensions of z are in use and each one's KL; says so when none is.

    Asks the model for its `posterior`, with the mean and the `kl()` of every dimension. `val/active_units`
    and `val/kl_largest` (nats) are scores; the KL of all dimensions, sorted, is a picture. Of a map of codes,
    a second stage wants more: the mean of its numbers, and the smallest and the largest standard deviation of
    a channel, `val/code_mean`, `val/code_std_smallest` and `val/code_std_largest`.

    Args:
        num: Items of the validation split, over all devices.
    """

    def __init__(self, num: int = 2_000) -> None:
        self.num = num

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking or not can(pl_module, HasPosterior):
            return
        usage = ActiveUnits(pl_module.latent_dim).to(pl_module.device)
        for x, given in items(trainer, pl_module, self.num):
            posterior = pl_module.posterior(x, **given)
            usage.update(posterior.mean.flatten(1), posterior.kl().flatten(1))
        values = usage.compute()
        active, kl = int(values["active_units"]), values["kl_per_dim"].cpu()
        scores = {"val/active_units": float(active), "val/kl_largest": float(kl.max())}
        if can(pl_module, HasCode):
            scores |= {f"val/{name}": value for name, value in spread_of_channels(values, pl_module).items()}
        pl_module.log_dict(scores, logger=False, rank_zero_only=False)
        if trainer.state.fn == "fit" and not trainer.fast_dev_run:
            if active == 0:
                say(trainer, "The posterior has collapsed: no dimension of z depends on the image.")
            log_image(trainer, "kl_per_dim", bars(kl), pl_module.examples_seen)


def spread_of_channels(values: dict[str, Tensor], model: Any) -> dict[str, float]:
    """Returns the mean of a map's numbers, and the least and largest standard deviation of a channel."""
    channels = model.code_spec.shape[0]
    mean, square = (values[name].reshape(channels, -1).mean(1) for name in ("mean_per_dim", "square_per_dim"))
    std = (square - mean.square()).clamp_min(0.0).sqrt()
    return {
        "code_mean": float(mean.mean()),
        "code_std_smallest": float(std.min()),
        "code_std_largest": float(std.max()),
    }


class LatentPictures(Callback):
    """Draws, at every validation, what an autoencoder keeps of images and what its latents mean.

    `reconstructions`: images of the validation split, each beside what comes back of it.
    `traversal`: one row for each of the first dimensions, along which it alone changes, over 3
    standard deviations to both sides.
    `scatter`: the codes of the split on their two first principal axes, coloured by label.
    `decoded_noise`: of a first stage whose codes are maps of numbers, what it makes of N(0, 1): no samples,
    as each says, since its codes are distributed otherwise; a second stage learns how.

    Args:
        num: Reconstructed images.
        num_dims: Rows of the traversal.
        num_codes: Codes in the scatter plot.
    """

    def __init__(self, num: int = 32, num_dims: int = 8, num_codes: int = 1_000) -> None:
        self.num, self.num_dims, self.num_codes = num, num_dims, num_codes

    @torch.no_grad()
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        if pl_module.spec.kind != "image" or not isinstance(pl_module, Reconstructs):
            return
        self._reconstruct(trainer, pl_module)
        if isinstance(pl_module, HasCode) and pl_module.code_spec.kind == "point":
            self._decode_noise(trainer, pl_module)
        if isinstance(pl_module, HasLatent):
            self._traverse(trainer, pl_module)
            self._scatter(trainer, pl_module)

    def _reconstruct(self, trainer: Any, model: Any) -> None:
        batches = list(items(trainer, model, self.num, alone=True))
        pairs = [torch.stack([x, reconstruct(model, x, given)], dim=1).flatten(0, 1) for x, given in batches]
        picture = grid(torch.cat(pairs)[: 2 * self.num].cpu(), model.spec.levels, columns=16)
        log_image(trainer, "reconstructions", picture, model.examples_seen)

    def _decode_noise(self, trainer: Any, model: Any) -> None:
        numbers = torch.arange(8, device=model.device)
        x = model.decode(normal(key("decoded noise"), numbers, model.code_spec.shape))
        told = [f"noise {number}, decoded: no sample" for number in numbers.tolist()]
        picture = captioned(x.cpu(), told, model.spec.levels)
        log_image(trainer, "decoded_noise", picture, model.examples_seen)

    def _traverse(self, trainer: Any, model: Any) -> None:
        drawn = model.draw_latent(torch.arange(512, device=model.device))
        if drawn.dim() != 2:
            return  # a latent of another form has no dimensions to name
        reach = 3.0 * drawn.std(dim=0)
        low, high = drawn.mean(dim=0) - reach, drawn.mean(dim=0) + reach
        given = given_for(model, torch.arange(1))
        x = traverse(model, drawn[0], low, high, range(min(self.num_dims, drawn.shape[1])), 9, given)
        log_image(trainer, "traversal", grid(x.cpu(), model.spec.levels, columns=9), model.examples_seen)

    def _scatter(self, trainer: Any, model: Any) -> None:
        codes, labels = [], []
        for batch in trainer.datamodule.loader("val", batch_size=250, at_most=self.num_codes):
            batch = trainer.datamodule.to_device_batch(batch, model.device)
            label = batch.get("label")
            codes.append(model.encode(observed(batch), **model.given_of(batch)).cpu())
            labels.append(torch.zeros(len(codes[-1])) if label is None else label.cpu())
        log_image(trainer, "scatter", scatter(torch.cat(codes), torch.cat(labels)), model.examples_seen)


def items(trainer: Any, model: Any, num: int, alone: bool = False) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    """Yields images all over the validation split and what the model is told of them.

    Args:
        trainer: Knows the data.
        model: Knows its device.
        num: Items that are enough, over all devices.
        alone: One device yields all of them; otherwise each one its share.
    """
    rank, world_size = (0, 1) if alone else place()
    for batch in trainer.datamodule.loader("val", rank, world_size, min(250, num), num):
        batch = trainer.datamodule.to_device_batch(batch, model.device)
        yield observed(batch), model.given_of(batch)


def bars(values: Tensor) -> np.ndarray:
    """Returns a bar for each value, the largest first."""
    figure, axes = new_figure(6, 4)
    axes.bar(range(len(values)), values.sort(descending=True).values.tolist())
    axes.set(xlabel="dimension of z, sorted", ylabel="KL (nats)")
    return rendered(figure)


def scatter(codes: Tensor, labels: Tensor) -> np.ndarray:
    """Returns codes on their two first principal axes, coloured by label."""
    figure, axes = new_figure(6, 4)
    centred = (codes - codes.mean(dim=0)).double()
    if codes.shape[1] > 2:
        centred = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].T
    points = torch.nn.functional.pad(centred, (0, 2 - centred.shape[1]))
    axes.scatter(points[:, 0], points[:, 1], c=labels, s=6, cmap="tab10")
    axes.set(xlabel="first principal axis", ylabel="second")
    return rendered(figure)
