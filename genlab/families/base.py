"""The contract of a family: losses to minimise, and capabilities that commands and metrics ask for."""

from __future__ import annotations

import math
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

import genlab
from genlab import randomness
from genlab.shapes import Batch, DataSpec

NetworkFactory = Callable[[DataSpec], nn.Module]
"""What a YAML file gives for a network: its class and sizes; the data's shape is filled in by the family."""

CodingFactory = Callable[[DataSpec, int, int], nn.Module]
"""The same for an encoder or decoder: the data, the length of the code, and of the condition beside it."""


class Diverged(RuntimeError):  # noqa: N818 - the word of the run's status
    """A loss or a weight is no longer finite."""


@runtime_checkable
class Samples(Protocol):
    """Can draw from the model."""

    def sample(self, index: Tensor, seed: int = 0, label: Tensor | None = None) -> Tensor:
        """Returns sample number i for every i in index, floats in [-1, 1] for images.

        Sample i depends on (seed, i) alone, not on the batch that it is drawn in.
        """


@runtime_checkable
class HasLatent(Protocol):
    """Has a latent space that can be walked through.

    What it is, in two or three words for a table, may be said by an attribute `latent_type`.
    """

    def draw_latent(self, index: Tensor, seed: int = 0) -> Tensor: ...

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor: ...


@runtime_checkable
class Reconstructs(Protocol):
    """Can find the latent of a given image and return."""

    def encode(self, x: Tensor, label: Tensor | None = None) -> Tensor: ...

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor: ...


@runtime_checkable
class HasPosterior(Protocol):
    """Gives each image a distribution of its latent, whose mean `encode` returns."""

    def posterior(self, x: Tensor, label: Tensor | None = None) -> Any: ...


@runtime_checkable
class HasLikelihood(Protocol):
    """Can say how probable an image is."""

    likelihood_kind: str
    """"exact", or "<=" where log_prob is a lower bound and bits per dimension an upper one."""

    likelihood_estimator: str
    """How it is computed, such as "importance-weighted, k = 64"."""

    def log_prob(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns log p(x) in nats, one number an image; images as probabilities of their discrete levels."""


@runtime_checkable
class Denoises(Protocol):
    """Walks from noise to data, so that any sampler can be put in, one that agrees with a picture too."""

    process: Any
    """How data become noise (`processes.base.Process`)."""

    sampler: Any
    """How samples are drawn (`samplers.base.Sampler`)."""

    sampling_network: Any
    """The network that is asked at every step, averaged where there is an average."""

    def sample_with(
        self,
        sampler: Any,
        index: int | Tensor,
        seed: int = 0,
        label: Tensor | None = None,
        clip: bool | None = None,
    ) -> Tensor:
        """Returns samples by another sampler than the model's own; clip overrides the model's."""


class Model(pl.LightningModule):
    """A LightningModule with named losses and a count of the images it has seen.

    A family with one loss implements `losses` and `configure_optimizers`; one with alternating
    optimisers also implements `training_step`.

    Attributes:
        examples_seen: Real images drawn from the data so far, over all devices: the unit of every
            budget, schedule and axis. Optimiser steps differ between families, images do not.
        latest: The last training losses, detached and still on the device; read them only when needed,
            since reading waits for the device.
        config: The model's part of the configuration file, kept in its checkpoints.
    """

    uses_labels: bool = False
    """Whether the model is given class labels; such rows are marked in comparisons."""

    alternating: bool = False
    """Whether several optimisers take turns; several devices then need a strategy for unused parameters."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec
        self.examples_seen = 0
        self.latest: dict[str, Tensor] = {}
        self.config: dict[str, Any] = {}
        self._step_address = 0
        self._item_numbers: Tensor | None = None
        self._sums: dict[str, Tensor] = {}

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns named scalars; the one called "loss" is minimised."""

    def setup(self, stage: str) -> None:
        if self.spec.is_grid:
            # Convolutions run a tenth faster on a CPU and more on a GPU with channels innermost.
            self.to(memory_format=torch.channels_last)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        losses = self.losses(batch)
        self.remember(losses)
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._add_losses(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._add_losses(batch)

    def on_validation_epoch_end(self) -> None:
        self._log_mean_losses("val")

    def on_test_epoch_end(self) -> None:
        self._log_mean_losses("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns as many samples as the batch has items, numbered by their place in the data."""
        if not isinstance(self, Samples):
            raise ValueError(f"{type(self).__name__} cannot be sampled, so predict has nothing to write.")
        return self.sample(batch["index"])

    def remember(self, losses: dict[str, Tensor]) -> None:
        """Keeps the step's losses for the progress line and the log, without waiting for the device."""
        self.latest = {name: value.detach() for name, value in losses.items()}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Everything random in this step follows from (seed, images seen, rank): a resumed run repeats it.
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        self._step_address = randomness.key(seed, "training", self.examples_seen)
        torch.manual_seed(randomness.key(self._step_address, self.global_rank))
        self.examples_seen += batch_length(batch) * self.trainer.world_size

    def draw_normal(self, stream: str, num: int, shape: tuple[int, ...]) -> Tensor:
        """Returns this step's normal noise, one row for each item of the batch.

        In training row j on rank r of w is row r + w j of the joined batch, so that w devices draw together
        exactly what one device draws for the whole batch. In evaluation rows are numbered by the data.
        """
        rows = self._noise_rows(num)
        return randomness.normal(randomness.key(self._step_address, stream), rows, shape)

    def draw_uniform(self, stream: str, num: int, shape: tuple[int, ...] = ()) -> Tensor:
        """Returns this step's uniform numbers in (0, 1), (num, *shape), numbered as in `draw_normal`."""
        rows = self._noise_rows(num)
        u = randomness.uniform(randomness.key(self._step_address, stream), rows, math.prod(shape))
        return u.float().reshape(num, *shape)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["examples_seen"] = self.examples_seen
        checkpoint["latest"] = {name: value.cpu() for name, value in self.latest.items()}
        checkpoint["genlab"] = {
            "version": genlab.__version__,
            "spec": self.spec.to_dict(),
            "model": self.config,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.examples_seen = int(checkpoint["examples_seen"])
        # On the device, where a step of only one player will join its losses to the other's last ones.
        self.latest = {name: value.to(self.device) for name, value in checkpoint["latest"].items()}

    @contextmanager
    def numbered(self, index: Tensor) -> Iterator[None]:
        """Makes noise a function of the items' numbers, so that an evaluation can be repeated anywhere."""
        self._step_address, self._item_numbers = randomness.key("evaluation"), index.to(self.device)
        try:
            yield
        finally:
            self._item_numbers = None

    def _noise_rows(self, num: int) -> Tensor:
        if self._item_numbers is not None:
            return self._item_numbers
        if self._trainer is None:  # someone asks the model itself, outside of a run
            return torch.arange(num, device=self.device)
        return torch.arange(num, device=self.device) * self.trainer.world_size + self.global_rank

    def _add_losses(self, batch: Batch) -> None:
        num = batch_length(batch)
        one = torch.ones((), device=self.device)
        with self.numbered(batch["index"]):
            losses = self.losses(batch)
        for name, value in {**losses, "items": one}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().double() * num

    def _log_mean_losses(self, stage: str) -> None:
        sums, self._sums = self._sums, {}
        if not sums or self.trainer.sanity_checking:
            return
        totals = torch.stack(list(sums.values()))
        if self.trainer.world_size > 1:
            dist.all_reduce(totals)
        means = dict(zip(sums, (totals / totals[-1]).tolist(), strict=True))
        # The run's recorder passes them on to every logger, with images seen as their axis.
        self.log_dict({f"{stage}/{name}": v for name, v in means.items() if name != "items"}, logger=False)


def can_be_sampled(model: Any) -> bool:
    """Returns whether a model has the capability `Samples`."""
    return isinstance(model, Samples)


def batch_length(batch: Batch) -> int:
    """Returns the number of items in a batch."""
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))


def indices(num_or_index: int | Tensor, device: torch.device) -> Tensor:
    """Returns sample numbers on the device; an integer n stands for 0 ... n - 1."""
    if isinstance(num_or_index, int):
        return torch.arange(num_or_index, device=device)
    return num_or_index.to(device)


def scheduled(
    model: Model, optimizer: Optimizer, warmup_images: int = 0, decay_images: int = 0
) -> dict[str, Any]:
    """Returns what `configure_optimizers` gives for a learning rate that follows the images seen."""
    rate = LambdaLR(
        optimizer, lambda _: learning_rate_factor(model.examples_seen, warmup_images, decay_images)
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": rate, "interval": "step"}}


def learning_rate_factor(images: int, warmup_images: int, decay_images: int) -> float:
    """Returns what share of its learning rate an optimiser has after so many images.

    It grows evenly over the first warmup_images and falls to 0 at decay_images along a cosine (Loshchilov
    and Hutter 2017, arXiv:1608.03983, without restarts); 0 leaves either out.
    """
    rise = min(1.0, (images + 1) / warmup_images) if warmup_images else 1.0
    done = min(1.0, images / decay_images) if decay_images else 0.0
    return rise * 0.5 * (1.0 + math.cos(math.pi * done))


def averaged_copy(network: nn.Module, decay: float) -> AveragedModel:
    """Returns an exponential moving average of a network: weights averaged, buffers copied.

        ema <- d ema + (1 - d) weights,  d = min(decay, (1 + n) / (10 + n)),  at update number n

    One update for each `update_parameters(network)`. The ramp lets the average forget the first weights
    even in runs shorter than 1 / (1 - decay) updates.
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"The decay of an average must be in [0, 1), got {decay}.")

    @torch.no_grad()
    def ramped(averaged: Any, current: Any, num_averaged: Any) -> None:
        # All on the device: reading the count would wait for it in every step.
        weight = 1.0 - ((1.0 + num_averaged) / (10.0 + num_averaged)).clamp(max=decay)
        step = torch._foreach_sub(current, averaged)
        torch._foreach_mul_(step, weight)
        torch._foreach_add_(averaged, step)

    average = AveragedModel(network, multi_avg_fn=ramped, use_buffers=False)
    return average.requires_grad_(False).eval()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Puts a network into evaluation mode for a while: batch norm by running statistics, no dropout."""
    was_training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(was_training)


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Keeps gradients out of a network's parameters while another one learns through it."""
    states = [parameter.requires_grad for parameter in network.parameters()]
    network.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, state in zip(network.parameters(), states, strict=True):
            parameter.requires_grad_(state)
