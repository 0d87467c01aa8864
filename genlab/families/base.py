"""The contract of a family: losses to minimise, and capabilities that commands and metrics ask for."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import genlab
from genlab import randomness
from genlab.shapes import Batch, DataSpec

NetworkFactory = Callable[[DataSpec], nn.Module]
"""What a YAML file gives for a network: its class and sizes; the data's shape is filled in by the family."""


@runtime_checkable
class Samples(Protocol):
    """Can draw from the model."""

    def sample(self, index: Tensor, seed: int = 0, label: Tensor | None = None) -> Tensor:
        """Returns sample number i for every i in index, floats in [-1, 1] for images.

        Sample i depends on (seed, i) alone, not on the batch that it is drawn in.
        """


@runtime_checkable
class HasLatent(Protocol):
    """Has a latent space that can be walked through."""

    def draw_latent(self, index: Tensor, seed: int = 0) -> Tensor: ...

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor: ...


@runtime_checkable
class Reconstructs(Protocol):
    """Can find the latent of a given image and return."""

    def encode(self, x: Tensor, label: Tensor | None = None) -> Tensor: ...

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor: ...


@runtime_checkable
class HasLikelihood(Protocol):
    """Can say how probable an image is."""

    likelihood_kind: str
    """"exact" or "bound" (log_prob is a lower bound)."""

    def log_prob(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns log p(x) in nats, one number an image; images as probabilities of their discrete levels."""


class Model(pl.LightningModule):
    """A LightningModule with named losses and a count of the images it has seen.

    A family with one loss implements `losses` and `configure_optimizers`; one with alternating
    optimisers also implements `training_step`.

    Attributes:
        images_seen: Real images drawn from the data so far, over all devices: the unit of every
            budget, schedule and axis. Optimiser steps differ between families, images do not.
        latest: The last training losses, detached and still on the device; read them only when needed,
            since reading waits for the device.
        config: The model's part of the configuration file, kept in its checkpoints.
    """

    uses_labels: bool = False
    """Whether the model is given class labels; such rows are marked in comparisons."""

    alternating: bool = False
    """Whether several optimisers take turns; several devices then need a strategy that finds unused parameters."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.spec = spec
        self.images_seen = 0
        self.latest: dict[str, Tensor] = {}
        self.config: dict[str, Any] = {}
        self._step_address = 0

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Returns named scalars; the one called "loss" is minimised."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        losses = self.losses(batch)
        self.remember(losses)
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._log_losses(batch, batch_idx, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._log_losses(batch, batch_idx, "test")

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
        self._step_address = randomness.key(seed, "training", self.images_seen)
        torch.manual_seed(randomness.key(self._step_address, self.global_rank))
        self.images_seen += batch_length(batch) * self.trainer.world_size

    def training_normal(self, stream: str, num: int, shape: tuple[int, ...]) -> Tensor:
        """Returns this step's normal noise, numbered over the joined batch of all devices.

        Row j on rank r of w is row r + w j of the joined batch, so that w devices draw together
        exactly what one device draws for the whole batch.
        """
        return randomness.normal(randomness.key(self._step_address, stream), self._joined_index(num), shape)

    def training_uniform(self, stream: str, num: int) -> Tensor:
        """Returns this step's uniform numbers in (0, 1), numbered as in `training_normal`."""
        address = randomness.key(self._step_address, stream)
        return randomness.uniform(address, self._joined_index(num), 1)[:, 0].float()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["images_seen"] = self.images_seen
        checkpoint["genlab"] = {
            "version": genlab.__version__,
            "spec": self.spec.to_dict(),
            "model": self.config,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.images_seen = int(checkpoint.get("images_seen", 0))

    def _joined_index(self, num: int) -> Tensor:
        world = self.trainer.world_size
        return torch.arange(num, device=self.device) * world + self.global_rank

    def _log_losses(self, batch: Batch, batch_idx: int, stage: str) -> None:
        # The same noise at every validation, so that the numbers can be compared along a run.
        self._step_address = randomness.key("evaluation", batch_idx)
        losses = {f"{stage}/{name}": value for name, value in self.losses(batch).items()}
        # The run's recorder passes them on to every logger, with images seen as their axis.
        self.log_dict(losses, batch_size=batch_length(batch), sync_dist=True, logger=False)


def batch_length(batch: Batch) -> int:
    """Returns the number of items in a batch."""
    return next(len(value) for value in batch.values() if isinstance(value, Tensor))


def indices(num_or_index: int | Tensor, device: torch.device) -> Tensor:
    """Returns sample numbers on the device; an integer n stands for 0 ... n - 1."""
    if isinstance(num_or_index, int):
        return torch.arange(num_or_index, device=device)
    return num_or_index.to(device)


def averaged_copy(network: nn.Module, decay: float) -> AveragedModel:
    """Returns an exponential moving average of a network: weights averaged, buffers copied.

    ema <- decay ema + (1 - decay) weights,  once for each `update_parameters(network)`
    """
    if not 0.0 <= decay < 1.0:
        raise ValueError(f"The decay of an average must be in [0, 1), got {decay}.")
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=False)
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
